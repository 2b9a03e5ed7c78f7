"""What makes a window's figures doubtful."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from powerbench_agent.bench.meter.conditions import (
    Conditions,
    describe,
    first_of,
    other_load,
    read_at_edge,
    read_conditions,
    warnings_of,
)
from powerbench_agent.bench.meter.gpus import GpuState
from powerbench_agent.core.host import Host

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.bench.meter.meters import Meters

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


class FakeMeters:
    """The meters of agents that see one GPU."""

    async def gpus(self) -> dict[str, GpuState]:
        return {"0 (GPU-a)": GpuState({"sm": 1.2e9}, 250.0, 40.0)}


PACKAGE = "class/powercap/intel-rapl:0"
CPUFREQ = "devices/system/cpu/cpufreq"


@pytest.mark.parametrize(
    ("files", "mhz"),
    [
        ({"cpuinfo": "cpu MHz\t\t: 3000.004\nflags\t: fpu\n\ncpu MHz\t\t: 1000.500"}, 2000),
        (
            {f"{CPUFREQ}/policy0/scaling_cur_freq": "1500000", f"{CPUFREQ}/policy4/scaling_cur_freq": "x"},
            1500,
        ),
        ({"cpuinfo": "cpu MHz\t\t: unknown"}, None),
        ({}, None),
    ],
)
async def test_at_an_edge_frequency_limits_and_gpus_are_read_too(
    tmp_path: Path, files: dict[str, str], mhz: float | None
) -> None:
    """The mean of all CPUs, of whichever file has it; limits in watts; the agents' GPUs."""
    limits = {
        f"{PACKAGE}/name": "package-0",
        f"{PACKAGE}/constraint_0_name": "long_term",
        f"{PACKAGE}/constraint_0_power_limit_uw": "65000000",
    }
    write(tmp_path, files | limits)
    found = await read_at_edge(Host(tmp_path, tmp_path), cast("Meters", FakeMeters()))
    described = describe(found, found._replace(mhz=9.0), 0.0)
    assert (described["mhz_before"], described["mhz_after"]) == (mhz, 9.0)
    assert described["power_limits"] == {"intel-rapl:0 (package-0)": {"long_term": 65.0}}
    assert described["gpus"]["0 (GPU-a)"]["celsius_before"] == 40.0


def test_a_changed_cpu_limit_is_a_warning() -> None:
    """Within the window or since the run began; one that has become unknown is not."""
    limits = {"intel-rapl:0 (package-0)": {"long_term": 65.0}}
    lower = {"intel-rapl:0 (package-0)": {"long_term": 45.0}}
    begin = CALM._replace(power_limits=limits)
    assert warnings_of(begin, AFTER._replace(power_limits=limits), begin, 39.0) == []
    assert warnings_of(begin, AFTER, begin, 39.0) == []
    (warning,) = warnings_of(begin, AFTER._replace(power_limits=lower), begin, 39.0)
    assert "long_term of intel-rapl:0 (package-0) changed from 65 to 45 W" in warning
    later = CALM._replace(power_limits=lower)
    assert len(warnings_of(later, AFTER._replace(power_limits=lower), begin, 39.0)) == 1


def test_what_is_read_only_at_edges_is_first_read_at_the_first() -> None:
    """Later windows are compared with the first; a GPU that comes later, with itself."""
    gpu, warmer = GpuState({}, 250.0, 40.0), GpuState({}, 250.0, 55.0)
    limits = {"zone": {"long_term": 65.0}}
    first = first_of(CALM, CALM._replace(gpus={"0": gpu}, power_limits=limits, celsius=99.0))
    first = first_of(first, CALM._replace(gpus={"0": warmer, "1": warmer}, power_limits={}))
    assert (first.celsius, first.power_limits) == (50.0, limits)
    assert first.gpus == {"0": gpu, "1": warmer}
    after = AFTER._replace(gpus={"0": warmer, "1": warmer})
    (warning,) = warnings_of(CALM._replace(gpus={"0": warmer, "1": warmer}), after, first, 39.0)
    assert "GPU 0 15 °C warmer" in warning
