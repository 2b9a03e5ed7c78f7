"""The host: CPU modes, frequencies, load, memory, and temperatures whose chips can be told apart."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from trees import FakeClock, Faults, Procfs, add_frequency, add_hwmon, value, values

from powerbench_agent.collectors import host
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import ReadFailed, Reading, Refreshes
from powerbench_agent.core.options import Seconds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HERTZ = os.sysconf("SC_CLK_TCK")


class Machine:
    def __init__(self, root: Path) -> None:
        self.procfs = Procfs(root / "proc")
        self.sysfs = root / "sys"
        self.sysfs.mkdir()
        self.faults = Faults()
        self.host = Host(self.sysfs, self.procfs.procfs, FakeClock(), self.faults)

    async def read(self) -> Reading:
        collector = await host.open_collector(host.Options(), self.host)
        try:
            return await collector.read()
        finally:
            await collector.aclose()

    async def temperatures(self) -> Mapping[tuple[str, ...], float]:
        return values(await self.read(), host.TEMPERATURE)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_cpu_modes(machine: Machine) -> None:
    """Every mode's ticks are shown in seconds; guest time is part of user and not a mode of its own."""
    machine.procfs.set_ticks(100, 200, 300, 400, (500, 600, 700, 800, 900, 1000))
    assert values(await machine.read(), host.CPU_SECONDS) == {
        ("user",): 100 / HERTZ,
        ("nice",): 200 / HERTZ,
        ("system",): 300 / HERTZ,
        ("idle",): 400 / HERTZ,
        ("iowait",): 500 / HERTZ,
        ("irq",): 600 / HERTZ,
        ("softirq",): 700 / HERTZ,
        ("steal",): 800 / HERTZ,
    }


async def test_memory_and_load(machine: Machine) -> None:
    """Memory is in bytes, load is the first of the three."""
    reading = await machine.read()
    assert value(reading, host.MEMORY_TOTAL) == 2048 * 1024
    assert value(reading, host.MEMORY_AVAILABLE) == 1024 * 1024
    assert value(reading, host.LOAD1) == 0.75


async def test_frequencies(machine: Machine) -> None:
    """The CPUs' frequencies show as minimum, mean and maximum, in hertz; an offline CPU has none."""
    for cpu, khz in enumerate(("800000\n", "2400000\n", "4000000\n", "<unknown>\n")):
        add_frequency(machine.sysfs, cpu, khz)
    machine.faults.errors["cpu3/cpufreq/scaling_cur_freq"] = OSError(errno.EBUSY, "Device or resource busy")
    assert values(await machine.read(), host.FREQUENCY) == {
        ("min",): 800e6,
        ("mean",): 2400e6,
        ("max",): 4000e6,
    }


async def test_bare_machine(machine: Machine) -> None:
    """A machine without cpufreq and sensors, as most virtual ones are, shows the rest."""
    reading = await machine.read()
    assert values(reading, host.FREQUENCY) == {}
    assert values(reading, host.TEMPERATURE) == {}
    assert value(reading, host.LOAD1) == 0.75


async def test_chips_of_one_name_differ(machine: Machine) -> None:
    """Two drives of one driver are two chips, named by where they are and not by their hwmon number."""
    add_hwmon(machine.sysfs, 4, "pci0000:00/0000:00:01.0/nvme/nvme0", {"temp1_input": "41850"})
    add_hwmon(machine.sysfs, 2, "pci0000:00/0000:00:02.0/nvme/nvme1", {"temp1_input": "38000"})
    assert await machine.temperatures() == {
        ("pci0000:00/0000:00:01.0/nvme/nvme0", "temp1"): 41.85,
        ("pci0000:00/0000:00:02.0/nvme/nvme1", "temp1"): 38.0,
    }


async def test_chip_without_a_parent(machine: Machine) -> None:
    """Virtual chips have no device of their own, and differ by their own path."""
    for number in range(2):
        add_hwmon(machine.sysfs, number, f"virtual/zone{number}", {"temp1_input": "30000"}, link=False)
    assert set(await machine.temperatures()) == {
        ("virtual/zone0/hwmon/hwmon0", "temp1"),
        ("virtual/zone1/hwmon/hwmon1", "temp1"),
    }


async def test_labels(machine: Machine) -> None:
    """A sensor goes by its label; those that share one are told apart by their numbers."""
    add_hwmon(
        machine.sysfs,
        0,
        "platform/coretemp.0",
        {
            "temp1_input": "50000",
            "temp1_label": "Package id 0",
            "temp2_input": "48000",
            "temp2_label": "Core 0",
            "temp3_input": "47000",
            "temp3_label": "Core 0",
            "temp4_input": "46000",
            "temp5_input": "45000",
            "temp5_label": "",
            "temp1_max": "100000",
            "fan1_input": "1200",
        },
    )
    assert await machine.temperatures() == {
        ("platform/coretemp.0", "Package id 0"): 50,
        ("platform/coretemp.0", "Core 0 (temp2)"): 48,
        ("platform/coretemp.0", "Core 0 (temp3)"): 47,
        ("platform/coretemp.0", "temp4"): 46,
        ("platform/coretemp.0", "temp5"): 45,
    }


@pytest.mark.parametrize(
    "sentinel", ["4294967295000", "-273150", "-128000", "255000", "-2147483648", "", "N/A", "nan"]
)
async def test_sentinels_are_left_out(machine: Machine, sentinel: str) -> None:
    """A driver's "no value" is not shown as a temperature; other sensors stay."""
    add_hwmon(machine.sysfs, 0, "platform/chip", {"temp1_input": sentinel, "temp2_input": "-5500"})
    assert await machine.temperatures() == {("platform/chip", "temp2"): -5.5}


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODATA, errno.EAGAIN, errno.EACCES, errno.ENXIO])
async def test_unreadable_sensors_are_left_out(machine: Machine, code: int) -> None:
    """A sensor that does not answer is left out, and everything else is read."""
    add_hwmon(machine.sysfs, 0, "platform/chip", {"temp1_input": "1000", "temp2_input": "2000"})
    machine.faults.errors["temp1_input"] = OSError(code, os.strerror(code))
    reading = await machine.read()
    assert values(reading, host.TEMPERATURE) == {("platform/chip", "temp2"): 2}
    assert value(reading, host.LOAD1) == 0.75


async def test_sleeping_sensor_from_the_kernel(machine: Machine) -> None:
    """The kernel's own EIO on a sensor leaves it out."""
    chip = add_hwmon(machine.sysfs, 0, "platform/chip", {"temp2_input": "2000"})
    (chip / "temp1_input").symlink_to("/proc/self/mem")
    assert await machine.temperatures() == {("platform/chip", "temp2"): 2}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("stat", ""),
        ("stat", "intr 1 2\n"),
        ("stat", "cpu a b c\n"),
        ("loadavg", ""),
        ("loadavg", "much"),
        ("meminfo", ""),
        ("meminfo", "MemTotal: 5 kB\n"),
        ("meminfo", "MemTotal:\nMemAvailable:\n"),
        ("stat", None),
        ("loadavg", None),
        ("meminfo", None),
    ],
)
async def test_unusable_procfs(machine: Machine, name: str, content: str | None) -> None:
    """A procfs that cannot be used fails the reading: no sample is made up."""
    file = machine.procfs.procfs / name
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(ReadFailed, match="proc"):
        await machine.read()


async def test_recovers(machine: Machine) -> None:
    """After a failed reading the next good one is whole."""
    collector = await host.open_collector(host.Options(), machine.host)
    machine.faults.errors["loadavg"] = OSError(errno.EIO, "Input/output error")
    with pytest.raises(ReadFailed):
        await collector.read()
    machine.faults.errors.clear()
    assert value(await collector.read(), host.LOAD1) == 0.75
    await collector.aclose()


async def test_slow_sensors_are_read_by_the_beat_alone(machine: Machine) -> None:
    """A scrape cannot make it read its sensors, and its own beat is five seconds."""
    collector = await host.open_collector(host.Options(), machine.host)
    assert not isinstance(collector, Refreshes)
    assert host.Options().interval == Seconds(5.0)
    await collector.aclose()
