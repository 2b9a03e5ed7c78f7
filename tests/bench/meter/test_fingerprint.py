"""What makes two hosts' figures comparable."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from powerbench_agent.bench.meter import fingerprint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("file", "content", "turbo"),
    [
        ("intel_pstate/no_turbo", "0\n", True),
        ("intel_pstate/no_turbo", "1\n", False),
        ("cpufreq/boost", "1\n", True),
        ("cpufreq/boost", "0\n", False),
        (None, "", None),
    ],
)
def test_turbo_is_read_from_whichever_driver_there_is(
    tmp_path: Path, file: str | None, content: str, *, turbo: bool | None
) -> None:
    """intel_pstate inverts the value; without either file it is unknown."""
    if file:
        path = tmp_path / "devices/system/cpu" / file
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert fingerprint.host(tmp_path, tmp_path)["turbo"] is turbo


def test_the_cpu_is_named_and_a_guest_is_known(tmp_path: Path) -> None:
    """The model's name and the hypervisor flag come from cpuinfo."""
    (tmp_path / "cpuinfo").write_text("model name\t: Imaginary 9000\nflags\t\t: fpu hypervisor\n")
    found = fingerprint.host(tmp_path, tmp_path)
    assert (found["cpu_model"], found["virtual"]) == ("Imaginary 9000", True)


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


CPU = "devices/system/cpu"
PACKAGE = "class/powercap/intel-rapl:0"
PI = (
    "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\n\n"
    "processor\t: 1\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n\n"
    "processor\t: 2\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"cpuinfo": "processor\t: 0\nmodel name\t: \nmodel name\t: Imaginary 9000\n"}, "Imaginary 9000"),
        ({"cpuinfo": PI, "device-tree/model": "Raspberry Pi 5 Model B\0"}, "Raspberry Pi 5 Model B"),
        (
            {"cpuinfo": PI, "device-tree/model": "\0"},
            "implementer 0x41 part 0xd0b, implementer 0x41 part 0xd05",
        ),
        ({"cpuinfo": PI}, "implementer 0x41 part 0xd0b, implementer 0x41 part 0xd05"),
        ({"cpuinfo": "CPU part: 0xd0b\n"}, None),
        ({}, None),
    ],
)
def test_a_cpu_without_a_name_is_what_it_says_of_itself(
    tmp_path: Path, files: dict[str, str], said: str | None
) -> None:
    """ARM has no model name: the device tree's, else the cores' numbers as they are read, each kind once."""
    write(tmp_path, files)
    assert fingerprint.host(tmp_path, tmp_path)["cpu_model"] == said


def test_what_a_reviewer_asks_for_is_read(tmp_path: Path) -> None:
    """Microcode, SMT, threads of a core, limits in watts by zone and constraint, the system's name."""
    files = {
        "proc/cpuinfo": "processor\t: 0\nmicrocode\t: 0xb000040\n",
        f"sys/{CPU}/smt/active": "1\n",
        f"sys/{CPU}/cpu0/topology/thread_siblings_list": "0,64\n",
        f"sys/{CPU}/cpu1/topology/thread_siblings_list": "1\n",
        f"sys/{PACKAGE}/name": "package-0\n",
        f"sys/{PACKAGE}/constraint_0_name": "long_term\n",
        f"sys/{PACKAGE}/constraint_0_power_limit_uw": "125000000\n",
        f"sys/{PACKAGE}/constraint_1_name": "short_term\n",
        f"sys/{PACKAGE}/constraint_1_power_limit_uw": "0\n",
        f"sys/{PACKAGE}:0/name": "core\n",
        "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
    }
    write(tmp_path, files)
    found = fingerprint.host(tmp_path / "sys", tmp_path / "proc", tmp_path)
    assert (found["microcode"], found["smt"], found["threads_per_core"]) == ("0xb000040", True, 2)
    assert found["power_limits"] == {"intel-rapl:0 (package-0)": {"long_term": 125.0}}
    assert found["os_release"] == "Debian GNU/Linux 12 (bookworm)"


def test_where_else_they_are(tmp_path: Path) -> None:
    """Microcode beside the CPU, os-release in /usr/lib, without quotes; a core of two threads as a range."""
    write(
        tmp_path,
        {
            f"{CPU}/cpu0/microcode/version": "0xf0\n",
            f"{CPU}/smt/active": "0\n",
            f"{CPU}/cpu0/topology/thread_siblings_list": "0-1\n",
            "usr/lib/os-release": "PRETTY_NAME=Alpine\n",
        },
    )
    found = fingerprint.host(tmp_path, tmp_path, tmp_path)
    assert (found["microcode"], found["smt"], found["os_release"]) == ("0xf0", False, "Alpine")
    assert (found["threads_per_core"], found["power_limits"]) == (2, None)


def test_nothing_is_made_up(tmp_path: Path) -> None:
    """A machine that says nothing of itself is unknown in every one of these."""
    found = fingerprint.host(tmp_path, tmp_path, tmp_path)
    unknown = ("cpu_model", "microcode", "smt", "threads_per_core", "os_release", "governor", "turbo")
    assert {key: found[key] for key in (*unknown, "power_limits")} == dict.fromkeys(
        (*unknown, "power_limits")
    )


@pytest.mark.parametrize(
    "odd", [b"", b"\xff\xfe", b"PRETTY_NAME='", b"9" * 400, b"0-99999999999", b"x" * 100_000]
)
def test_odd_files_cost_themselves_alone(tmp_path: Path, odd: bytes) -> None:
    """Whatever these files hold, the fingerprint is read."""
    for name in (
        "cpuinfo",
        "device-tree/model",
        "etc/os-release",
        f"{CPU}/smt/active",
        f"{CPU}/cpu0/topology/thread_siblings_list",
        f"{CPU}/cpu0/microcode/version",
        f"{PACKAGE}/name",
        f"{PACKAGE}/constraint_0_name",
        f"{PACKAGE}/constraint_0_power_limit_uw",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(odd)
    found = fingerprint.host(tmp_path, tmp_path, tmp_path)
    assert (found["smt"], found["threads_per_core"]) == (None, None)
    assert found["power_limits"] == {}


def test_a_pipe_for_an_os_release_is_not_waited_for(tmp_path: Path) -> None:
    """What is not a file is unknown, and the other place is looked at."""
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/os-release")
    write(tmp_path, {"usr/lib/os-release": 'PRETTY_NAME="Real OS 1"\n'})
    assert fingerprint.host(tmp_path, tmp_path, tmp_path)["os_release"] == "Real OS 1"
