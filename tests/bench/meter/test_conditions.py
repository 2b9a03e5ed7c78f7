"""What makes a window's figures doubtful."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from powerbench_agent.bench.meter.conditions import (
    Conditions,
    describe,
    other_load,
    read_conditions,
    warnings_of,
)
from powerbench_agent.core.host import Host

if TYPE_CHECKING:
    from pathlib import Path

CALM = Conditions(
    busy=100.0,
    capacity=1000.0,
    own=5.0,
    governor="performance",
    turbo=False,
    throttled=3,
    celsius=50.0,
    on_battery=False,
)
AFTER = CALM._replace(busy=140.0, capacity=1080.0, own=6.0)  # 40 busy of 80, one of them ours


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")
    return root


def test_a_calm_window_has_no_warning() -> None:
    """There is no warning if everything that ran was ours."""
    assert warnings_of(CALM, AFTER, CALM, 39.0) == []


def test_other_load_is_what_was_not_ours() -> None:
    """Busy CPU time less our own and our children's, of all there was."""
    assert other_load(CALM, AFTER, 19.0) == 20 / 80
    assert other_load(CALM, AFTER, 99.0) == 0
    assert other_load(CALM._replace(busy=None), AFTER, 0.0) is None
    assert describe(CALM, AFTER, 19.0)["other_load"] == 20 / 80


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {"busy": 150.0}, ["other programs used 12%", "stop them"]),
        ({}, {"governor": "powersave"}, ["governor changed from performance to powersave"]),
        ({}, {"turbo": True}, ["turbo"]),
        ({}, {"throttled": 5}, ["throttled", "2 times"]),
        ({"celsius": 61.0}, {}, ["11 °C warmer", "--cooldown"]),
        ({}, {"on_battery": True}, ["battery", "plug it in"]),
    ],
)
def test_each_doubt_is_a_warning_with_what_to_do(
    before: dict[str, object], after: dict[str, object], words: list[str]
) -> None:
    """One thing that is wrong is one warning."""
    (warning,) = warnings_of(CALM._replace(**before), AFTER._replace(**after), CALM, 39.0)  # type: ignore[arg-type]
    assert all(word in warning for word in words), warning


def test_the_machine_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    """Governor, turbo, throttling, the CPUs' own sensors, mains: out of sysfs; CPU time out of /proc/stat."""
    files = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
        "sys/devices/system/cpu/cpufreq/boost": "1",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2",
        "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "3",
        "sys/class/hwmon/hwmon0/name": "nvme",
        "sys/class/hwmon/hwmon0/temp1_input": "99000",
        "sys/class/hwmon/hwmon1/name": "k10temp",
        "sys/class/hwmon/hwmon1/temp1_input": "61500",
        "sys/class/power_supply/AC/type": "Mains",
        "sys/class/power_supply/AC/online": "0",
        "sys/class/power_supply/BAT0/type": "Battery",
        "proc/stat": "cpu  100 0 100 700 50 0 50 0 0 0",
    }
    write(tmp_path, files)
    found = read_conditions(Host(sysfs=tmp_path / "sys", procfs=tmp_path / "proc"))
    assert (found.busy, found.capacity, found.throttled, found.celsius) == (2.5, 10.0, 5, 61.5)
    assert (found.governor, found.turbo, found.on_battery) == ("schedutil", True, True)


def test_a_machine_that_says_nothing_is_no_failure(tmp_path: Path) -> None:
    """What is not there is None, and nothing is warned of."""
    found = read_conditions(Host(sysfs=tmp_path, procfs=tmp_path))
    assert found == Conditions(None, None, 0.0, None, None, None, None, None)
    assert warnings_of(found, found, found, 0.0) == []


ODD = [b"", b"\xff\xfe", b"<unknown>", b"9" * 400, b"9" * 5000, b"-273150", b"1.5"]


@pytest.mark.parametrize("odd", ODD, ids=[repr(content[:9]) for content in ODD])
def test_an_odd_file_costs_itself_alone(tmp_path: Path, odd: bytes) -> None:
    """Whatever one file of each sort holds, reading goes on, and the good files beside it count."""
    write(
        tmp_path,
        {
            "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
            "class/hwmon/hwmon0/name": "coretemp",
            "class/hwmon/hwmon0/temp1_input": "51000",
            "class/power_supply/AC/type": "Mains",
            "class/power_supply/AC/online": "0",
            "class/power_supply/BAT0/type": "Battery",
        },
    )
    for name in (
        "devices/system/cpu/cpu0/cpufreq/scaling_governor",
        "devices/system/cpu/cpufreq/boost",
        "class/hwmon/hwmon0/temp2_input",
        "class/hwmon/hwmon1/name",
        "class/power_supply/BAT1/type",
        "stat",
        "meminfo",
        "cpuinfo",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(odd)
    found = read_conditions(Host(tmp_path, tmp_path))
    assert (found.busy, found.throttled, found.celsius, found.on_battery) == (None, 3, 51.0, True)
