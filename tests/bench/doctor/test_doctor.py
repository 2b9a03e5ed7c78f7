"""What the doctor reports: every fault with its remedy, and no fault where everything works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from powerbench_agent.bench.doctor import findings as doctor
from powerbench_agent.bench.doctor.cli import lines

HOST = {
    "virtual": False,
    "cpu_model": "A CPU",
    "machine": "x86_64",
    "cpus": 8,
    "kernel": "6.1",
    "governor": None,
}
METER = {"component": "cpu", "source": "rapl", "key": "intel-rapl:0", "joules": 1.0}
DENIED = {
    "up": False,
    "meters": [],
    "error": "may not read /sys/class/powercap/intel-rapl:0/energy_uj; a group",
}


def snapshot(absent: dict[str, str] | None = None, **collectors: dict[str, Any]) -> dict[str, Any]:
    return {"absent": absent or {}, "collectors": collectors}


def up(*meters: dict[str, Any]) -> dict[str, Any]:
    return {"up": True, "meters": list(meters)}


def nothing(_: str) -> None:
    return None


def everything(program: str) -> str:
    return f"/usr/bin/{program}"


def test_rapl_that_can_be_read_is_fine() -> None:
    """Its counters are named."""
    [found] = doctor.energy(snapshot(rapl=up(METER)), virtual=False)
    assert (found.verdict, found.text) == ("ok", "measures cpu intel-rapl:0")


def test_rapl_that_may_not_be_read_stands_in_the_way() -> None:
    """The collector's own words and the command that gives access are shown."""
    [found] = doctor.energy(snapshot(rapl=DENIED), virtual=False)
    assert found.verdict == "bad"
    assert "may not read" in found.text
    assert "chgrp powercap" in found.remedy


@pytest.mark.parametrize(("virtual", "remedy"), [(True, ""), (False, "sudo modprobe")])
def test_a_machine_without_rapl_is_told_that_figures_are_estimates(remedy: str, *, virtual: bool) -> None:
    """In a virtual machine nothing can be done about it; on bare metal the module may be missing."""
    [found] = doctor.energy(snapshot({"rapl": "no RAPL"}), virtual=virtual)
    assert (found.verdict, found.remedy.startswith(remedy), bool(found.remedy)) == (
        "note",
        True,
        bool(remedy),
    )
    assert "estimate" in found.text


def test_a_governor_that_follows_the_load_is_noted() -> None:
    """Any governor but `performance`, which fixes the clock, is noted with the command to set that."""
    assert [found.what for found in doctor.machine({**HOST, "governor": "performance"})] == ["machine"]
    found = list(doctor.machine({**HOST, "governor": "powersave"}))[1]
    assert (found.verdict, "cpupower" in found.remedy) == ("note", True)


def test_a_gpu_that_does_not_answer_stands_in_the_way() -> None:
    """A machine without a GPU is fine; a GPU that is there and down is not."""
    faulty = snapshot({"drm": "no AMD GPU"}, nvml={"up": False, "meters": [], "error": "GPU is lost; reboot"})
    nvidia, other = doctor.gpus(faulty)
    assert (nvidia.verdict, nvidia.text, other.verdict) == ("bad", "GPU is lost; reboot", "ok")


def test_docker_that_is_not_permitted_names_what_the_group_gives_away() -> None:
    """The doctor says that the docker group is equivalent to root."""
    denied = snapshot({"docker": "/run/docker.sock: permission denied"})
    engine, installed = doctor.containers(denied, everything)
    assert (engine.verdict, "equivalent to root" in engine.remedy, installed.verdict) == ("note", True, "ok")


def test_without_docker_the_other_way_is_named() -> None:
    """The stack runs without containers."""
    _, missing = doctor.containers(snapshot({"docker": "no container engine"}), nothing)
    assert (missing.verdict, missing.remedy) == ("note", "make native-up")


def test_another_program_on_the_agents_port_stands_in_the_way() -> None:
    """It is named; an agent there is fine, and one with a collector that is down is noted."""
    assert doctor.agent(None, "nc (pid 7)").text.startswith("nc (pid 7) has port 9510")
    assert doctor.agent(None, "nc (pid 7)").verdict == "bad"
    assert doctor.agent({**snapshot(rapl=up()), "version": "1"}, "powerbench-agent (pid 8)").verdict == "ok"
    half = doctor.agent({**snapshot(rapl=DENIED), "version": "1"}, None)
    assert (half.verdict, "rapl" in half.text) == ("note", True)


def test_taken_ports_are_named_with_their_holders() -> None:
    """Each port is shown with the part of the stack that needs it."""
    assert doctor.ports_taken(dict.fromkeys(doctor.PORTS)).verdict == "ok"
    found = doctor.ports_taken({9090: "prometheus (pid 5)", 9093: None})
    assert found.text == "taken: 9090 (Prometheus) by prometheus (pid 5)"


def test_missing_servers_are_one_command() -> None:
    """One apt command names each package once."""
    [found] = doctor.extras(nothing)
    expected = "prometheus prometheus-alertmanager prometheus-node-exporter victoria-metrics"
    assert found.remedy.endswith(f"apt install {expected}")


def test_lines_are_plain_without_a_terminal() -> None:
    """Columns line up, the remedy is below what it fixes, and only a terminal gets colours."""
    found = [
        doctor.Finding("note", "nginx-rtmp", "no nginx"),
        doctor.Finding("bad", "ffmpeg", "no ffmpeg\x1b", "apt install ffmpeg"),
    ]
    assert list(lines(found, coloured=False)) == [
        "note  nginx-rtmp  no nginx",
        "bad   ffmpeg      no ffmpeg?",
        f"{'':18}→ apt install ffmpeg",
    ]
    assert list(lines(found, coloured=True))[1] == "\x1b[31mbad\x1b[0m   ffmpeg      no ffmpeg?"


def test_the_command_looks_at_this_machine() -> None:
    """`powerbench doctor` prints a line for each finding, and exits 1 exactly if one of them is bad."""
    done = subprocess.run(
        [Path(sys.executable).with_name("powerbench"), "doctor"], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    found = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert found[0].split()[:2] == ["ok", "machine"]
    assert done.returncode == (1 if any(line.startswith("bad") for line in found) else 0)


def ffmpeg_on_path(directory: Path, monkeypatch: pytest.MonkeyPatch, version: str, encode: str) -> None:
    """Put an ffmpeg on the PATH that has H.264 and RTMP and, asked to encode, does `encode`."""
    script = directory / "ffmpeg"
    script.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f'  *-version*) echo "ffmpeg version {version} Copyright" ;;\n'
        '  *-encoders*) echo " V..... libx264 H.264" ;;\n'
        "  *-protocols*) echo rtmp ;;\n"
        f"  *) {encode} ;;\nesac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)


async def test_an_ffmpeg_that_can_do_all_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest release that run works with is not complained of."""
    ffmpeg_on_path(tmp_path, monkeypatch, "4.1.11", "exit 0")
    found = await doctor.encoder()
    assert (found.verdict, found.text) == ("ok", f"{tmp_path}/ffmpeg 4.1.11")


@pytest.mark.parametrize(
    ("version", "encode", "text"),
    [
        ("4.0.6", "exit 0", "is too old: run needs ffmpeg 4.1 or newer"),
        ("7.1", """echo "No such filter: 'testsrc2'" >&2; exit 1""", "No such filter: 'testsrc2'"),
    ],
)
async def test_an_ffmpeg_that_run_would_refuse_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, encode: str, text: str
) -> None:
    """What run checks before it measures, the doctor checks, too, and says what to do."""
    ffmpeg_on_path(tmp_path, monkeypatch, version, encode)
    found = await doctor.encoder()
    assert found.verdict == "bad"
    assert text in found.text
    assert "--ffmpeg" in found.remedy
