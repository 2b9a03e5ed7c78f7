"""The host: CPU modes, frequencies, load, memory, and temperatures whose chips can be told apart."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
import time
from typing import TYPE_CHECKING

import pytest
from trees import FakeClock, Faults, Procfs, SlowReader, add_frequency, add_hwmon, value, values

from powerbench_agent.collectors import host
from powerbench_agent.core.host import Host, read_file
from powerbench_agent.core.model import ReadFailed, Reading, Reconfigures, Refreshes
from powerbench_agent.core.options import Seconds
from powerbench_agent.core.procfs import MODES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from powerbench_agent.core.model import Metric

HERTZ = os.sysconf("SC_CLK_TCK")


class Machine:
    def __init__(self, root: Path) -> None:
        self.procfs = Procfs(root / "proc")
        self.sysfs = root / "sys"
        self.sysfs.mkdir()
        self.clock = FakeClock()
        self.faults = Faults()
        self.host = Host(self.sysfs, self.procfs.procfs, self.clock, self.faults)

    def slow_reader(self) -> SlowReader:
        """Let a reader of its own take over, and return it."""
        reader = SlowReader(self.clock)
        self.host = Host(self.sysfs, self.procfs.procfs, self.clock, reader)
        return reader

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


async def test_several_chips_of_one_device(machine: Machine) -> None:
    """Chips of one device are told apart by their names, and those of one name by their order."""
    for number, name in ((2, "acpitz"), (10, "nct6775"), (11, "nct6775")):
        add_hwmon(machine.sysfs, number, "platform/board", {"temp1_input": f"{number}000"}, name=name)
    add_hwmon(machine.sysfs, 1, "platform/alone", {"temp1_input": "1000"}, name="nct6775")
    assert await machine.temperatures() == {
        ("platform/alone", "temp1"): 1,
        ("platform/board acpitz", "temp1"): 2,
        ("platform/board nct6775", "temp1"): 10,
        ("platform/board nct6775 2", "temp1"): 11,
    }


async def test_chips_come_and_go(machine: Machine) -> None:
    """A driver that is loaded or unloaded while the agent runs changes what is shown."""
    collector = await host.open_collector(host.Options(), machine.host)
    add_hwmon(machine.sysfs, 0, "platform/a", {"temp1_input": "1000"})
    assert len(values(await collector.read(), host.TEMPERATURE)) == 1
    add_hwmon(machine.sysfs, 1, "platform/b", {"temp1_input": "1000"})
    assert len(values(await collector.read(), host.TEMPERATURE)) == 2
    shutil.rmtree(machine.sysfs / "devices/platform/a")
    reading = await collector.read()
    assert set(values(reading, host.TEMPERATURE)) == {("platform/b", "temp1")}
    assert not reading.troubles
    await collector.aclose()


@pytest.mark.parametrize(
    "labels",
    [
        ("temp2", ""),
        ("Core 0 (temp3)", "Core 0", "Core 0"),
        ("same", "same", "same"),
        ("", "temp1", "temp1 (temp1)"),
    ],
)
async def test_labels_that_look_like_numbers(machine: Machine, labels: tuple[str, ...]) -> None:
    """Whatever the labels are, no two sensors of a chip have one name."""
    files = {f"temp{number}_label": label for number, label in enumerate(labels, 1)}
    files |= {f"temp{number}_input": f"{number}000" for number in range(1, len(labels) + 1)}
    add_hwmon(machine.sysfs, 0, "platform/chip", files)
    assert sorted((await machine.temperatures()).values()) == list(range(1, len(labels) + 1))


async def test_a_label_that_cannot_be_read(machine: Machine) -> None:
    """A sensor whose label fails goes by its number until the label can be read; the others keep theirs."""
    sensors = {"temp1_input": "1000", "temp1_label": "edge", "temp2_input": "2000", "temp2_label": "mem"}
    add_hwmon(machine.sysfs, 0, "platform/gpu", sensors)
    collector = await host.open_collector(host.Options(), machine.host)
    machine.faults.errors["temp1_label"] = OSError(errno.EIO, "Input/output error")
    assert set(values(await collector.read(), host.TEMPERATURE)) == {
        ("platform/gpu", "temp1"),
        ("platform/gpu", "mem"),
    }
    machine.faults.errors.clear()
    assert ("platform/gpu", "edge") in values(await collector.read(), host.TEMPERATURE)
    await collector.aclose()


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
    "sentinel", ["4294967295000", "9" * 400, "-273150", "-128000", "255000", "-2147483648", "", "N/A", "nan"]
)
async def test_sentinels_are_left_out(machine: Machine, sentinel: str) -> None:
    """A driver's "no value" is not shown as a temperature and is a trouble; other sensors stay."""
    add_hwmon(machine.sysfs, 0, "platform/chip", {"temp1_input": sentinel, "temp2_input": "-5500"})
    reading = await machine.read()
    assert values(reading, host.TEMPERATURE) == {("platform/chip", "temp2"): -5.5}
    (trouble,) = reading.troubles
    assert trouble.part == "hwmon0"
    assert "exclude" in trouble.remedy


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODATA, errno.EAGAIN, errno.EACCES, errno.ENXIO])
async def test_unreadable_sensors_are_left_out(machine: Machine, code: int) -> None:
    """A sensor that does not answer is left out, and everything else is read; no value is not a trouble."""
    add_hwmon(machine.sysfs, 0, "platform/chip", {"temp1_input": "1000", "temp2_input": "2000"})
    machine.faults.errors["temp1_input"] = OSError(code, os.strerror(code))
    reading = await machine.read()
    assert values(reading, host.TEMPERATURE) == {("platform/chip", "temp2"): 2}
    assert value(reading, host.LOAD1) == 0.75
    assert bool(reading.troubles) is (code in (errno.EIO, errno.EACCES))


async def test_sleeping_sensor_from_the_kernel(machine: Machine) -> None:
    """The kernel's own EIO on a sensor leaves it out."""
    chip = add_hwmon(machine.sysfs, 0, "platform/chip", {"temp2_input": "2000"})
    (chip / "temp1_input").symlink_to("/proc/self/mem")
    assert await machine.temperatures() == {("platform/chip", "temp2"): 2}


MEMORY = {host.MEMORY_TOTAL, host.MEMORY_AVAILABLE}


@pytest.mark.parametrize(
    ("name", "content", "part", "missing"),
    [
        ("stat", "", "cpu", {host.CPU_SECONDS}),
        ("stat", "intr 1 2\n", "cpu", {host.CPU_SECONDS}),
        ("stat", "cpu a b c\n", "cpu", {host.CPU_SECONDS}),
        ("stat", None, "cpu", {host.CPU_SECONDS}),
        ("loadavg", "", "load", {host.LOAD1}),
        ("loadavg", "much", "load", {host.LOAD1}),
        ("loadavg", "nan 0 0", "load", {host.LOAD1}),
        ("loadavg", "1e999 0 0", "load", {host.LOAD1}),
        ("loadavg", "-1 0 0", "load", {host.LOAD1}),
        ("loadavg", None, "load", {host.LOAD1}),
        ("meminfo", "", "memory", MEMORY),
        ("meminfo", "MemTotal: 5 kB\n", "memory", {host.MEMORY_AVAILABLE}),
        ("meminfo", "MemAvailable: 5 kB\nMemTotal: 5x kB\n", "memory", {host.MEMORY_TOTAL}),
        ("meminfo", "MemTotal: 5 kB\nMemAvailable: -1 kB\n", "memory", {host.MEMORY_AVAILABLE}),
        ("meminfo", f"MemTotal: 5 kB\nMemAvailable: {'9' * 400}\n", "memory", {host.MEMORY_AVAILABLE}),
        ("meminfo", "MemTotal: 5 kB\nMemAvailable: 6 kB\n", "memory", {host.MEMORY_AVAILABLE}),
        ("meminfo", f"MemTotal: 5 kB\nMemAvailable: {2**64 - 1} kB\n", "memory", {host.MEMORY_AVAILABLE}),
        ("meminfo", "MemTotal:\nMemAvailable:\n", "memory", MEMORY),
        ("meminfo", None, "memory", MEMORY),
    ],
)
async def test_a_broken_file_costs_its_own_figures(
    machine: Machine, name: str, content: str | None, part: str, missing: set[Metric]
) -> None:
    """A file of /proc that cannot be used, or lacks a line, is a trouble, and all other figures are there."""
    add_frequency(machine.sysfs, 0, "800000\n")
    add_hwmon(machine.sysfs, 0, "platform/chip", {"temp1_input": "1000"})
    file = machine.procfs.procfs / name
    file.unlink()
    if content is not None:
        file.write_text(content)
    reading = await machine.read()
    assert {sample.metric for sample in reading.samples} == set(host.METRICS) - missing
    (trouble,) = reading.troubles
    assert trouble.part == part
    assert name in trouble.error


async def test_without_any_figure_it_is_down(machine: Machine) -> None:
    """A machine of which nothing can be read is down, and says why."""
    for name in ("stat", "loadavg", "meminfo"):
        (machine.procfs.procfs / name).unlink()
    with pytest.raises(ReadFailed, match=r"stat.*loadavg"):
        await machine.read()


async def test_recovers(machine: Machine) -> None:
    """After a failed reading the next good one is whole."""
    collector = await host.open_collector(host.Options(), machine.host)
    machine.faults.errors["loadavg"] = OSError(errno.EIO, "Input/output error")
    assert (await collector.read()).troubles
    machine.faults.errors.clear()
    reading = await collector.read()
    assert value(reading, host.LOAD1) == 0.75
    assert not reading.troubles
    await collector.aclose()


# -- CPU time that the kernel counts badly -----------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (800_000_000, 0, 800_000_000),  # falls far: stands still, and counts on from there
        (0, 800_000_000, 0),
        (1000, 999, 1000),  # a step back
        (1000, 1100, 1100),
    ],
)
@pytest.mark.parametrize("mode", range(8))
async def test_cpu_seconds_never_fall(
    machine: Machine, mode: int, before: int, after: int, shown: int
) -> None:
    """Whatever the kernel does to a mode, its counter does not fall, and the other modes go on."""
    collector = await host.open_collector(host.Options(), machine.host)
    figures = [5000] * 8
    for ticks, other in ((before, 5000), (after, 5005)):
        figures = [other] * 8
        figures[mode] = ticks
        user, nice, system, idle, *rest = figures
        machine.procfs.set_ticks(user, nice, system, idle, (*rest, 0, 0))
        reading = await collector.read()
        machine.clock.advance(5.0)
    await collector.aclose()
    name = MODES[mode]
    seconds = values(reading, host.CPU_SECONDS)
    assert seconds.pop((name,)) == shown / HERTZ
    assert set(seconds.values()) == {5005 / HERTZ}
    is_broken = abs(after - before) > 1000
    assert [(trouble.part, name in trouble.error) for trouble in reading.troubles] == [
        ("cpu", True)
    ] * is_broken


async def test_a_mode_below_zero_is_a_gap(machine: Machine) -> None:
    """A count that has wrapped below 0 is not shown; the others are."""
    machine.procfs.set_ticks(rest=(0, 0, 0, 2**64 - 616, 0, 0))
    reading = await machine.read()
    assert {mode for (mode,) in values(reading, host.CPU_SECONDS)} == set(MODES) - {"steal"}
    (trouble,) = reading.troubles
    assert "steal" in trouble.error


# -- slow files --------------------------------------------------------------------------------------


async def test_slow_frequencies_are_sampled(machine: Machine) -> None:
    """512 CPUs of 16.8 ms each are asked in turn, a stretch at a time; everything else is there."""
    for cpu in range(512):
        add_frequency(machine.sysfs, cpu, f"{1_000_000 + cpu}\n")
    add_hwmon(machine.sysfs, 0, "platform/chip", {"temp1_input": "1000"})
    reader = machine.slow_reader()
    reader.seconds["scaling_cur_freq"] = 0.0168
    collector = await host.open_collector(host.Options(), machine.host)
    for _ in range(20):
        began = machine.clock.now
        reading = await collector.read()
        assert machine.clock.now - began < 1.0
        assert {sample.metric for sample in reading.samples} == set(host.METRICS)
        assert [trouble.part for trouble in reading.troubles] == ["frequency"]
        assert "512" in reading.troubles[0].error
    await collector.aclose()
    asked = {path for path in reader.opened if path.name == "scaling_cur_freq"}
    assert len(asked) == 512


async def test_slow_sensors_are_sampled(machine: Machine) -> None:
    """A chip with many slow sensors is read in turns, and the other chips each time."""
    add_hwmon(machine.sysfs, 0, "platform/slow", {f"temp{n}_input": "1000" for n in range(1, 21)})
    add_hwmon(machine.sysfs, 1, "platform/good", {"temp1_input": "1000"})
    reader = machine.slow_reader()
    for number in range(1, 21):
        reader.seconds[f"hwmon0/temp{number}_input"] = 0.2
    collector = await host.open_collector(host.Options(), machine.host)
    seen: set[tuple[str, ...]] = set()
    for _ in range(8):
        shown = values(await collector.read(), host.TEMPERATURE)
        assert ("platform/good", "temp1") in shown
        seen |= shown.keys()
    await collector.aclose()
    assert len(seen) == 21


@pytest.mark.parametrize(
    "file", ["temp1_input", "temp1_label", "name", "runtime_status", "scaling_cur_freq", "meminfo", "stat"]
)
async def test_a_file_that_hangs(machine: Machine, file: str) -> None:
    """A read that does not come back costs its part, until it does; the event loop and the others go on."""
    add_frequency(machine.sysfs, 0, "800000\n")
    bad = add_hwmon(machine.sysfs, 0, "platform/bad", {"temp1_input": "1000", "temp1_label": "x"})
    suspend(bad / "device", "active")
    add_hwmon(machine.sysfs, 1, "platform/good", {"temp2_input": "1000"})
    leave = threading.Event()

    def read(path: Path) -> bytes:
        if path.name == file and "hwmon1" not in path.parts:
            leave.wait(20)
        return read_file(path)

    options = host.Options(interval=Seconds(0.1))
    collector = await host.open_collector(options, Host(machine.sysfs, machine.procfs.procfs, time, read))
    async with asyncio.timeout(20):
        while True:
            try:
                reading = await collector.read()
            except ReadFailed:  # the first reading, if it is the first file that hangs
                continue
            stuck = [trouble.error for trouble in reading.troubles]
            is_good_read = ("platform/good", "temp2") in values(reading, host.TEMPERATURE)
            if stuck == ["an earlier reading has not returned"] and is_good_read:
                break
        leave.set()
        while (await collector.read()).troubles:
            pass
    await collector.aclose()


# -- sleeping devices --------------------------------------------------------------------------------


def suspend(device: Path, status: str) -> None:
    (device / "power").mkdir(exist_ok=True)
    (device / "power/runtime_status").write_text(f"{status}\n")


@pytest.mark.parametrize(
    ("status", "is_read"), [("suspended", False), ("suspending", False), ("active", True)]
)
async def test_a_suspended_gpu_is_left_asleep(machine: Machine, status: str, *, is_read: bool) -> None:
    """Of a suspended device no attribute is opened; it is shown again as soon as it is active."""
    chip = add_hwmon(
        machine.sysfs, 0, "pci0000:00/0000:01:00.0", {"temp1_input": "1000", "temp1_label": "edge"}
    )
    suspend(chip / "device", status)
    reader = machine.slow_reader()
    collector = await host.open_collector(host.Options(), machine.host)
    reading = await collector.read()
    assert bool(values(reading, host.TEMPERATURE)) is is_read
    assert any("hwmon0" in path.parts and path.name != "runtime_status" for path in reader.opened) is is_read
    assert not reading.troubles
    suspend(chip / "device", "active")
    assert values(await collector.read(), host.TEMPERATURE) == {("pci0000:00/0000:01:00.0", "edge"): 1}
    await collector.aclose()


async def test_a_sensor_of_a_suspended_controllers_device(machine: Machine) -> None:
    """An NVMe drive's chip belongs to a controller, and that to the PCI device which is suspended."""
    chip = add_hwmon(machine.sysfs, 0, "pci0000:00/0000:01:00.0/nvme/nvme0", {"temp1_input": "1000"})
    pci = machine.sysfs / "devices/pci0000:00/0000:01:00.0"
    suspend(chip / "device", "unsupported")
    suspend(pci, "suspended")
    (pci / "nvme/nvme0/device").symlink_to(pci)
    assert await machine.temperatures() == {}
    suspend(pci, "active")
    assert len(await machine.temperatures()) == 1


async def test_a_sensor_on_a_suspended_bus_is_read(machine: Machine) -> None:
    """An I2C bus sleeps between two transfers; its sensors are read."""
    add_hwmon(machine.sysfs, 0, "pci0000:00/0000:00:1f.4/i2c-0/0-0018", {"temp1_input": "1000"})
    suspend(machine.sysfs / "devices/pci0000:00/0000:00:1f.4/i2c-0", "suspended")
    suspend(machine.sysfs / "devices/pci0000:00/0000:00:1f.4", "suspended")
    assert len(await machine.temperatures()) == 1


class Drive:
    """A disk with a chip of the driver drivetemp."""

    def __init__(self, machine: Machine, rotational: str = "1") -> None:
        self.machine = machine
        self.chip = add_hwmon(
            machine.sysfs, 0, "ata1/host0/target0:0:0/0:0:0:0", {"temp1_input": "31000"}, name="drivetemp"
        )
        self.block = self.chip.parent.parent / "block/sda"
        (self.block / "queue").mkdir(parents=True)
        (self.block / "queue/rotational").write_text(f"{rotational}\n")
        self.use(0)

    def use(self, reads: int) -> None:
        (self.block / "stat").write_text(f"{reads} 0 0 0 0 0 0 0 0 0 0\n")


async def test_an_idle_disk_is_left_to_spin_down(machine: Machine) -> None:
    """A disk's temperature is read while it is in use, and until a minute after its last I/O."""
    drive = Drive(machine)
    collector = await host.open_collector(host.Options(), machine.host)

    async def is_shown() -> bool:
        reading = await collector.read()
        assert not reading.troubles
        return bool(values(reading, host.TEMPERATURE))

    assert not await is_shown(), "it may have been asleep for hours"
    machine.clock.advance(5.0)
    drive.use(1)
    assert await is_shown()
    machine.clock.advance(55.0)
    assert await is_shown()
    machine.clock.advance(5.0)
    assert not await is_shown()
    machine.clock.advance(3600.0)
    assert not await is_shown()
    drive.use(2)
    assert await is_shown()
    suspend(drive.chip / "device", "suspended")
    drive.use(3)
    assert not await is_shown()
    await collector.aclose()


async def test_a_disk_that_does_not_spin(machine: Machine) -> None:
    """An SSD's temperature is read whether it is in use or not, and so is a disk's whose use is unknown."""
    drive = Drive(machine, rotational="0")
    assert len(await machine.temperatures()) == 1
    shutil.rmtree(drive.block)
    assert len(await machine.temperatures()) == 1


# -- what is left out --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("platform/coretemp.0", {("platform/other", "x")}),
        ("coretemp", {("platform/other", "x")}),
        ("core*", {("platform/other", "x")}),
        ("Package*", {("platform/coretemp.0", "Core 0"), ("platform/other", "x")}),
        ("platform/*", set()),
        (
            "nothing",
            {("platform/coretemp.0", "Core 0"), ("platform/coretemp.0", "Package"), ("platform/other", "x")},
        ),
    ],
)
async def test_exclude(machine: Machine, pattern: str, left: set[tuple[str, str]]) -> None:
    """Sensors are excluded by chip, hwmon name or label, and are not opened then."""
    sensors = {"temp1_input": "1", "temp1_label": "Package", "temp2_input": "2", "temp2_label": "Core 0"}
    add_hwmon(machine.sysfs, 0, "platform/coretemp.0", sensors, name="coretemp")
    add_hwmon(machine.sysfs, 1, "platform/other", {"temp1_input": "3", "temp1_label": "x"})
    reader = machine.slow_reader()
    collector = await host.open_collector(host.Options(), machine.host)
    assert isinstance(collector, Reconfigures)
    collector.configure(host.Options(exclude=(pattern,)))
    assert values(await collector.read(), host.TEMPERATURE).keys() == left
    assert sum(path.name.endswith("_input") for path in reader.opened) == len(left)
    await collector.aclose()


async def test_slow_sensors_are_read_by_the_beat_alone(machine: Machine) -> None:
    """A scrape cannot make it read its sensors, and its own beat is five seconds."""
    collector = await host.open_collector(host.Options(), machine.host)
    assert not isinstance(collector, Refreshes)
    assert host.Options().interval == Seconds(5.0)
    await collector.aclose()
