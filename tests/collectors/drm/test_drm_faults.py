"""AMD and Intel GPUs that sleep, fail, vanish and return: gaps, and no invented values."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from gpu_trees import APU, DGPU, HARMLESS, SECOND, GpuMachine, engines_fdinfo, gpu_machine, meters
from structlog.testing import capture_logs
from trees import add_up, value, values

from powerbench_agent.agent.node import NODE_ENERGY, Node
from powerbench_agent.collectors.drm import collector as drm
from powerbench_agent.collectors.drm import metrics
from powerbench_agent.core.model import Metric, ReadFailed, Reading

if TYPE_CHECKING:
    from collections.abc import Callable

machine = pytest.fixture(gpu_machine)

AMD = ("card0", "amd", DGPU)
INTEL = ("card0", "intel", DGPU)
SETTLED = 7  # beats until a counter that stands still is 0 W
INTEL_RANGE_JOULES = 2**32 / 2**14


# -- sleep -------------------------------------------------------------------------------------------


async def no_sensor_is_read(machine: GpuMachine, collector: drm.Drm) -> Reading:
    """Read until after the next scan; fail if a file that would wake a sleeping card was read."""
    machine.reader.asked.clear()
    for _ in range(12):
        await collector.refresh()
        reading = await machine.beat(collector)
    assert {path.name for path in machine.reader.asked} <= HARMLESS
    return reading


@pytest.mark.parametrize("status", ["suspended", "suspending"])
@pytest.mark.parametrize("maker", ["amd", "mi250", "i915", "xe"])
async def test_a_sleeping_gpu_is_left_asleep(machine: GpuMachine, maker: str, status: str) -> None:
    """No sensor of a GPU that is asleep from the start is read: it is only shown as asleep."""
    getattr(machine.gpus, maker)(0)
    machine.gpus.runtime_status(DGPU, status)
    collector = await machine.open()
    reading = await no_sensor_is_read(machine, collector)
    assert {sample.metric: sample.value for sample in reading.samples} == {metrics.INFO: 1, metrics.ASLEEP: 1}
    assert not reading.meters


async def test_amd_sleep_is_not_integrated(machine: GpuMachine) -> None:
    """A GPU that wakes goes on counting, without inventing energy for even a short sleep."""
    machine.gpus.amd(0)
    collector, node = await machine.open(), Node()
    add_up(node, [await collector.read()])
    add_up(node, [await machine.beat(collector)])
    machine.gpus.runtime_status(DGPU, "suspended")
    add_up(node, [await machine.beat(collector)])
    machine.gpus.runtime_status(DGPU, "active")
    reading = await machine.beat(collector)
    assert meters(reading) == {DGPU: 100}
    assert sum(values(add_up(node, [reading]), NODE_ENERGY).values()) == 100
    machine.gpus.runtime_status(DGPU, "suspended")
    reading = await no_sensor_is_read(machine, collector)
    assert value(reading, metrics.ASLEEP, *AMD) == 1
    machine.gpus.runtime_status(DGPU, "resuming")
    await machine.beat(collector)
    assert meters(await machine.beat(collector)) == {DGPU: 200}


# Restarted, some way on, and restarted as the drivers tell it: they take it for a wrap and add the rest.
@pytest.mark.parametrize("register", [0.0, 60_000.0, INTEL_RANGE_JOULES])
async def test_intel_sleep_adds_nothing(machine: GpuMachine, register: float) -> None:
    """A GPU that loses power resets its counter: after an hour asleep no counter value adds energy."""
    machine.gpus.xe(0, joules=200_000)
    collector = await machine.open()
    await collector.read()
    machine.gpus.runtime_status(DGPU, "suspended")
    await machine.beat(collector)
    await machine.beat(collector, 3600.0)
    machine.gpus.runtime_status(DGPU, "active")
    machine.gpus.set_joules(DGPU, register)
    reading = await machine.beat(collector)
    assert value(reading, metrics.ENERGY, *INTEL) == 0
    assert not values(reading, metrics.POWER)
    machine.gpus.set_joules(DGPU, register + 40)
    reading = await machine.beat(collector)
    assert value(reading, metrics.ENERGY, *INTEL) == 40
    assert value(reading, metrics.POWER, *INTEL) == 40


async def test_one_sleeps_the_other_goes_on(machine: GpuMachine) -> None:
    """A sleeping GPU does not affect the others."""
    machine.gpus.amd(0)
    machine.gpus.xe(1, SECOND)
    machine.gpus.runtime_status(SECOND, "suspended")
    collector = await machine.open()
    await collector.read()
    reading = await machine.beat(collector)
    assert meters(reading) == {DGPU: 100}
    assert values(reading, metrics.ASLEEP) == {AMD: 0, ("card1", "intel", SECOND): 1}


async def test_an_apu_that_was_asleep_is_an_apu(machine: GpuMachine) -> None:
    """An APU that was asleep when found, and is known only by its metrics, is not metered once it wakes."""
    machine.gpus.amd(0)
    machine.gpus.apu(1, vddnb=False)
    machine.gpus.runtime_status(APU, "suspended")
    collector = await machine.open()
    await collector.read()
    machine.gpus.runtime_status(APU, "active")
    for _ in range(12):
        assert set(meters(await machine.beat(collector))) == {DGPU}


# -- bad sensors -------------------------------------------------------------------------------------


class Sensor(NamedTuple):
    """One sensor: its GPU's vendor, its name among errors, its file, and the metrics that need it."""

    maker: str
    sensor: str
    file: str
    metrics: tuple[Metric, ...]


SENSORS = (
    Sensor("amd", "power", "power1_average", (metrics.POWER, metrics.ENERGY)),
    Sensor("amd", "temperature", "temp1_input", (metrics.TEMPERATURE,)),
    Sensor("amd", "busy", "gpu_busy_percent", (metrics.BUSY,)),
    Sensor("amd", "encoder_busy", "vcn_busy_percent", (metrics.ENCODER_BUSY,)),
    Sensor("amd", "memory_used", "mem_info_vram_used", (metrics.MEMORY_USED,)),
    Sensor("xe", "energy", "energy1_input", (metrics.POWER, metrics.ENERGY, metrics.RESETS)),
    Sensor("xe", "temperature", "temp2_input", (metrics.TEMPERATURE,)),
)
METERED = tuple(sensor for sensor in SENSORS if metrics.ENERGY in sensor.metrics)
ERRNOS = ("EPERM", "EACCES", "ENODATA", "EIO", "EOPNOTSUPP")
CONTENTS = {
    "4294967295000": "implausible",
    "9" * 400: "implausible",  # beyond a float
    "-4294967295": "implausible",
    "N/A": "not_a_number",
    "": "not_a_number",
}
BAD: dict[str, tuple[str | OSError, str]] = {
    **{code: (OSError(getattr(errno, code), code), code.lower()) for code in ERRNOS},
    **{content[:14] or "empty": (content, reason) for content, reason in CONTENTS.items()},
}
# What looks like a figure is one: bytes have no bound, and a counter's leap is a reset.
FIGURES = {"4294967295000", "9" * 14}


class Broken:
    """A sensor that a test can break and repair."""

    def __init__(self, machine: GpuMachine, which: Sensor, what: str | OSError) -> None:
        self._machine = machine
        self._file = machine.gpus.file(DGPU, which.file)
        self._good = self._file.read_text()
        self._end = "/".join(self._file.parts[-2:]) if "hwmon" in str(self._file) else which.file
        self._what = what

    def fail(self) -> None:
        if isinstance(self._what, OSError):
            self._machine.reader.errors[self._end] = self._what
        else:
            self._file.write_text(f"{self._what}\n")

    def mend(self) -> None:
        self._machine.reader.errors.clear()
        self._file.write_text(self._good)


@pytest.mark.parametrize(
    ("which", "bad"),
    [
        pytest.param(which, bad, id=f"{which.maker} {which.sensor} {bad}")
        for which in SENSORS
        for bad in BAD
        if bad not in FIGURES or which.sensor not in ("memory_used", "energy")
    ],
)
async def test_a_bad_sensor_is_a_gap(machine: GpuMachine, which: Sensor, bad: str) -> None:
    """A sensor without a valid value is one gap, counted, logged once per failure, and recovers."""
    getattr(machine.gpus, which.maker)(0)
    machine.gpus.xe(1, SECOND)
    card = ("card0", "amd" if which.maker == "amd" else "intel", DGPU)
    what, reason = BAD[bad]
    broken = Broken(machine, which, what)
    collector = await machine.open()
    await collector.read()
    for _ in range(SETTLED):
        good = await machine.beat(collector)
    latest = value(good, metrics.ENERGY, *card)
    others = {(s.metric, s.labels) for s in good.samples if card != s.labels or s.metric not in which.metrics}
    with capture_logs() as logged:
        for failure in (1, 2):
            broken.fail()
            for beat in (1, 2):
                reading = await machine.beat(collector)
                assert values(reading, metrics.ERRORS) == {
                    (*card, which.sensor, reason): 2 * failure - 2 + beat
                }
                rest = {(s.metric, s.labels) for s in reading.samples if s.metric is not metrics.ERRORS}
                assert rest == others
                assert set(meters(reading)) == ({SECOND} if which in METERED else {DGPU, SECOND})
                lines = [line for line in logged if line.get("gpu") == "card0"]  # other threads may log too
                assert len(lines) == failure
            broken.mend()
            for _ in range(SETTLED):
                reading = await machine.beat(collector)
            assert {(s.metric, s.labels) for s in reading.samples if s.metric is not metrics.ERRORS} == {
                (s.metric, s.labels) for s in good.samples
            }
            assert value(reading, metrics.ENERGY, *card) >= latest
            latest = value(reading, metrics.ENERGY, *card)
    assert all(line["remedy"] and line["reason"] == reason and which.file in line["file"] for line in lines)
    assert {line["log_level"] for line in lines} == {"warning"}
    # Of power: the beats before, and those after each failure but the first, which has no reading before it.
    assert latest == {"power": 100 * (SETTLED + 2 * (SETTLED - 1)), "energy": 0}.get(which.sensor, latest)


@pytest.mark.parametrize("bad", [bad for bad in BAD if bad not in FIGURES])
@pytest.mark.parametrize("which", METERED, ids=lambda which: which.sensor)
async def test_the_only_energy_fails(machine: GpuMachine, which: Sensor, bad: str) -> None:
    """If no card's energy can be read the collector is down with reason and remedy, and recovers."""
    getattr(machine.gpus, which.maker)(0)
    what, reason = BAD[bad]
    broken = Broken(machine, which, what)
    collector = await machine.open()
    await collector.read()
    broken.fail()
    with capture_logs() as logged:
        for _ in range(3):
            with pytest.raises(ReadFailed, match=f"{which.file}: {reason}") as failed:
                await machine.beat(collector)
            assert failed.value.remedy
            with pytest.raises(ReadFailed):
                await collector.refresh()
    assert len([line for line in logged if line.get("gpu") == "card0"]) == 1
    broken.mend()
    reading = await machine.beat(collector)
    assert list(values(reading, metrics.ERRORS).values()) == [6]
    assert meters(reading) == {DGPU: 0}


async def test_an_energy_that_leaps_is_no_energy(machine: GpuMachine) -> None:
    """A sentinel value in an energy counter adds nothing when it appears or goes, and gives no power."""
    machine.gpus.xe(0, joules=100)
    collector = await machine.open()
    await collector.read()
    machine.gpus.set_joules(DGPU, 150)
    await machine.beat(collector)
    for content, joules in ((4294967295000, 50), (4294967295000, 50), (200_000_000, 100)):
        machine.gpus.set(DGPU, energy1_input=content)
        reading = await machine.beat(collector)
        assert value(reading, metrics.ENERGY, *INTEL) == joules
        assert values(reading, metrics.POWER).get(INTEL, 0) == 0
    assert value(reading, metrics.RESETS, *INTEL) == 2
    machine.gpus.set_joules(DGPU, 230)
    assert value(await machine.beat(collector), metrics.ENERGY, *INTEL) == 130


async def test_intel_catches_up_after_a_gap(machine: GpuMachine) -> None:
    """What Intel's counter gained while it could not be read is added; no mean power spans the gap."""
    machine.gpus.xe(0)
    collector = await machine.open()
    await collector.read()
    machine.reader.errors["energy1_input"] = OSError(errno.EIO, "EIO")
    with pytest.raises(ReadFailed):
        await machine.beat(collector)
    machine.reader.errors.clear()
    machine.gpus.set_joules(DGPU, 120)
    reading = await machine.beat(collector)
    assert value(reading, metrics.ENERGY, *INTEL) == 120
    assert not values(reading, metrics.POWER)


# -- vanishing ---------------------------------------------------------------------------------------


def leave(machine: GpuMachine, code: int) -> Callable[[], None]:
    """Return a reader's hook that unplugs the second card during a reading."""

    def unplug() -> None:
        machine.gpus.remove(SECOND)
        raise OSError(code, os.strerror(code))

    return unplug


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENODEV])
@pytest.mark.parametrize("end", ["card1/device/gpu_busy_percent", "hwmon2/power1_average"])
async def test_a_card_vanishes_in_mid_read(machine: GpuMachine, end: str, code: int) -> None:
    """A card that is unplugged while it is read disappears at once, without effect on the other."""
    machine.gpus.amd(0)
    machine.gpus.amd(1, SECOND)
    collector = await machine.open()
    await collector.read()
    machine.reader.errors["card0/device/vcn_busy_percent"] = OSError(errno.EIO, "EIO")
    machine.reader.hooks[end] = leave(machine, code)
    reading = await machine.beat(collector)
    assert not machine.reader.hooks
    assert meters(reading) == {DGPU: 100}
    assert values(reading, metrics.ASLEEP) == {AMD: 0}
    assert values(reading, metrics.ERRORS) == {(*AMD, "encoder_busy", "eio"): 1}
    assert values(reading, metrics.TEMPERATURE) == {AMD: 51}


async def test_a_card_vanishes_under_a_refresh(machine: GpuMachine) -> None:
    """A scrape that finds a card gone is a gap; the next beat goes on without the card."""
    machine.gpus.amd(0)
    machine.gpus.amd(1, SECOND)
    collector = await machine.open()
    await collector.read()
    machine.gpus.remove(SECOND)
    with pytest.raises(ReadFailed) as failed:
        await collector.refresh()
    assert failed.value.remedy
    assert meters(await machine.beat(collector)) == {DGPU: 100}


@pytest.mark.parametrize("maker", ["amd", "xe"])
async def test_a_card_returns_under_another_number(machine: GpuMachine, maker: str) -> None:
    """A card that returns is found within 10 s and counts on under its new number, without the gap."""
    add = getattr(machine.gpus, maker)
    machine.gpus.amd(0)
    add(1, SECOND)
    collector = await machine.open()
    await collector.read()
    if maker == "xe":
        machine.gpus.set_joules(SECOND, 100)
    assert meters(await machine.beat(collector))[SECOND] == 100
    machine.gpus.remove(SECOND)
    for _ in range(3):
        assert set(meters(await machine.beat(collector))) == {DGPU}
    add(4, SECOND)
    if maker == "xe":
        machine.gpus.set_joules(SECOND, 150)
    for _ in range(10):
        reading = await machine.beat(collector)
    assert {labels[0] for labels in values(reading, metrics.ENERGY)} == {"card0", "card4"}
    counted = meters(reading)[SECOND]
    assert 100 <= counted <= (1000 if maker == "amd" else 100)
    if maker == "xe":
        machine.gpus.set_joules(SECOND, 250)
    assert meters(await machine.beat(collector))[SECOND] == counted + 100


async def test_cards_change_places(machine: GpuMachine) -> None:
    """When two cards swap their numbers between two beats, each goes on counting its own energy."""
    machine.gpus.amd(0, watts=100)
    machine.gpus.amd(1, SECOND, watts=300)
    collector = await machine.open()
    await collector.read()
    machine.gpus.number(DGPU, 7)
    machine.gpus.number(SECOND, 0)
    machine.gpus.number(DGPU, 1)
    assert meters(await machine.beat(collector)) == {DGPU: 100, SECOND: 300}
    for _ in range(10):
        reading = await machine.beat(collector)
    assert values(reading, metrics.ENERGY) == {("card1", "amd", DGPU): 1100, ("card0", "amd", SECOND): 3300}


async def test_a_new_card_is_found(machine: GpuMachine) -> None:
    """A card that is plugged in is found within 10 s, and starts at 0."""
    machine.gpus.amd(0)
    collector = await machine.open()
    await collector.read()
    machine.gpus.xe(1, SECOND, joules=9000)
    found = [meters(await machine.beat(collector)).get(SECOND) for _ in range(10)]
    assert found[-1] == 0


async def test_cards_that_come_and_go_all_the_time(machine: GpuMachine) -> None:
    """A card that a scan finds and each reading misses is an error that says so."""
    machine.gpus.amd(0)
    collector = await machine.open()
    machine.reader.errors["gpu_busy_percent"] = FileNotFoundError(errno.ENOENT, "gone")
    with pytest.raises(ReadFailed, match="GPUs appear and vanish") as failed:
        await collector.read()
    assert failed.value.remedy


async def test_a_card_that_is_gone_has_no_uses(machine: GpuMachine) -> None:
    """When the last metered card goes, neither beats nor refreshes report uses of it."""
    machine.gpus.amd(0)
    machine.gpus.apu(1)
    machine.clients.open(42, 5, engines_fdinfo(DGPU, 7, enc=3.0))
    collector = await machine.open()
    assert [use.pid for use in (await collector.read()).uses if use.pid] == [42]
    machine.gpus.remove(DGPU)
    assert (await machine.beat(collector)).uses == ()
    assert (await collector.refresh()).uses == ()
