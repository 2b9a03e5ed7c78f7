"""The units as systemd itself reads them: without a complaint, and as sealed as the guide says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from real.conftest import need

from powerbench_agent.agent import roster

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
DROP_INS = UNITS / "drop-ins"
GUIDE = ROOT / "docs/systemd.md"
AGENT = "powerbench-agent.service"
INSTANCES = {name: entry.port for name, entry in roster.BUILT_IN.items() if entry.port}
OLDER = {"cpu": "rapl", "gpu": "nvml", "stats": "ffmpeg", "docker-stats": "docker"}

# What each drop-in may come to, over nothing but the unit itself.
BOUNDS = {
    "": 0.3,
    "capability": 0.5,
    "nvidia": 0.5,
    "tls": 0.5,
    "network": 1.1,
    "attribution": 1.4,
    "docker": 0.7,
}


def settings(file: Path, section: str = "Service") -> list[str]:
    """Return the lines of one section, without comments."""
    found, inside = [], False
    for line in file.read_text().splitlines():
        if line.startswith("["):
            inside = line == f"[{section}]"
        elif inside and line and not line.startswith("#"):
            found.append(line)
    return found


def sealed(file: Path) -> list[str]:
    """Return what a unit's file says after the word Sealed."""
    return file.read_text().partition("# Sealed")[2].partition("[Install]")[0].splitlines()[1:]


@pytest.fixture
def unit_path(tmp_path: Path) -> Path:
    """Return a directory with the units, whose program is one that this machine has."""
    for source in UNITS.glob("*.*"):
        if source.is_dir() and source.name.endswith(".service.d"):
            shutil.copytree(source, tmp_path / source.name)
        elif source.suffix in (".service", ".socket", ".path", ".target"):
            text = source.read_text().replace("/usr/lib/powerbench/bin/powerbench-agent", "/bin/true")
            (tmp_path / source.name).write_text(text)
    return tmp_path


def analyze(unit_path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [need("systemd-analyze"), "--no-pager", *arguments],
        env={"SYSTEMD_UNIT_PATH": f"{unit_path}:", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def exposure(unit_path: Path, unit: str = AGENT, drop_ins: Iterable[str] = ()) -> float:
    """Return the score of a unit with some drop-ins, 0 is best and 10 worst."""
    directory = unit_path / f"{unit}.d"
    for name in drop_ins:
        directory.mkdir(exist_ok=True)
        shutil.copy(DROP_INS / f"{name}.conf", directory)
    text = analyze(unit_path, "security", "--offline=true", unit)
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
    assert match, text
    return float(match[1])


def test_systemd_has_nothing_to_complain_about(unit_path: Path) -> None:
    """Every unit, instance and drop-in is understood, to the last directive."""
    for drop_in in DROP_INS.glob("*.conf"):
        (unit_path / f"{AGENT}.d").mkdir(exist_ok=True)
        shutil.copy(drop_in, unit_path / f"{AGENT}.d")
    (unit_path / "powerbench-agent.socket.d").mkdir()
    shutil.copy(DROP_INS / "socket/per-port.conf", unit_path / "powerbench-agent.socket.d")
    plain = [file.name for file in unit_path.iterdir() if file.is_file() and "@." not in file.name]
    instances = [f"powerbench@{name}.service" for name in INSTANCES]
    assert analyze(unit_path, "verify", "--man=no", *sorted(plain), *instances) == ""


@pytest.mark.parametrize("drop_in", BOUNDS)
def test_the_unit_is_as_sealed_as_promised(unit_path: Path, drop_in: str) -> None:
    """With each drop-in, within its bound, and the figure is the guide's."""
    score = exposure(unit_path, drop_ins=[drop_in] if drop_in else [])
    assert score <= BOUNDS[drop_in]
    (row,) = re.findall(rf"^\| `{drop_in or AGENT}` \|.*\| ([0-9.]+) \|$", GUIDE.read_text(), re.MULTILINE)
    assert float(row) == score


def test_every_drop_in_has_its_bound() -> None:
    """None is forgotten here."""
    assert {file.stem for file in DROP_INS.glob("*.conf")} == BOUNDS.keys() - {""}


@pytest.mark.parametrize("name", INSTANCES)
def test_an_exporter_of_its_own_is_as_sealed(unit_path: Path, name: str) -> None:
    """In the classic layout each process has the agent's seal; only docker's is opened, for the engine."""
    assert exposure(unit_path, f"powerbench@{name}.service") <= (0.7 if name == "docker" else 0.3)


def test_agent_and_exporters_have_one_seal() -> None:
    """The two units say the same of it, line by line."""
    assert sealed(UNITS / AGENT) == sealed(UNITS / "powerbench@.service") != []


def test_the_exporters_own_drop_ins_are_the_shipped_ones() -> None:
    """What opens docker's and nvml's process is what the drop-in of that name opens."""
    for instance, name in (("docker", "docker"), ("nvml", "nvidia")):
        own = UNITS / f"powerbench@{instance}.service.d/{name}.conf"
        assert set(settings(DROP_INS / f"{name}.conf")) <= set(settings(own))


def test_the_classic_ports_are_the_collectors_own() -> None:
    """Each socket has the port that its collector has alone; the target wants all five."""
    wanted = " ".join(settings(UNITS / "powerbench.target", "Unit"))
    for name, port in INSTANCES.items():
        assert f"ListenStream={port}" in settings(UNITS / f"powerbench@{name}.socket", "Socket")
        assert f"powerbench@{name}.service" in wanted
    extra = {line.partition("=")[2] for line in settings(DROP_INS / "socket/per-port.conf", "Socket")}
    assert extra | {"9510"} == {str(port) for port in INSTANCES.values()}


@pytest.mark.parametrize(("older", "name"), OLDER.items())
def test_an_older_name_stands_for_its_exporter(older: str, name: str) -> None:
    """Each requires the other or is part of it: started, stopped and restarted together, the socket too."""
    lines = settings(UNITS / f"ffmpeg-{older}-exporter.service", "Unit")
    assert {f"Requires=powerbench@{name}.service", f"PartOf=powerbench@{name}.service"} <= set(lines)
    own = settings(UNITS / f"powerbench@{name}.service.d/older-name.conf", "Unit")
    socket = settings(UNITS / f"powerbench@{name}.socket", "Unit")
    assert own == [f"PartOf=ffmpeg-{older}-exporter.service"]
    assert f"PartOf=powerbench.target ffmpeg-{older}-exporter.service" in socket
