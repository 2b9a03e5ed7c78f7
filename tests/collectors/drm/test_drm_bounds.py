"""What AMD and Intel GPUs say and cannot be true, and which of them are left out."""

from __future__ import annotations

import pytest
from gpu_trees import DGPU, HARMLESS, SECOND, GpuMachine, engines_fdinfo, gpu_machine, meters
from trees import value, values

from powerbench_agent.collectors.drm import collector as drm
from powerbench_agent.collectors.drm import metrics
from powerbench_agent.core.model import ANYONE, Absent

machine = pytest.fixture(gpu_machine)

AMD = ("card0", "amd", DGPU)
INTEL = ("card0", "intel", DGPU)


@pytest.mark.parametrize(("watts", "good"), [(300, True), (599, True), (601, False), (5999, False)])
async def test_power_is_bounded_by_the_cards_own_limit(
    machine: GpuMachine, watts: float, *, good: bool
) -> None:
    """Power of up to twice the highest limit is believed; more is a gap, and counted."""
    machine.gpus.amd(0, watts=watts, power1_cap_max=300_000_000, power1_cap=150_000_000)
    reading = await (await machine.open()).read() if good else None
    if good:
        assert reading is not None
        assert value(reading, metrics.POWER, *AMD) == watts
        return
    machine.gpus.amd(1, SECOND)
    reading = await (await machine.open()).read()
    assert AMD not in values(reading, metrics.POWER)
    assert values(reading, metrics.ERRORS) == {(*AMD, "power", "implausible"): 1}


async def test_a_large_card_without_a_limit_is_believed(machine: GpuMachine) -> None:
    """Without a limit of its own a card may use what the largest ones do."""
    machine.gpus.amd(0, watts=2900)
    collector = await machine.open()
    await collector.read()
    assert meters(await machine.beat(collector)) == {DGPU: 2900}


async def test_a_counter_that_leaps_is_said_and_tells_no_power(machine: GpuMachine) -> None:
    """A reload adds nothing, is a trouble, and is a gap of power instead of 0 W."""
    machine.gpus.i915(0)
    collector = await machine.open()
    for joules in (5000, 5100, 5200, 5300):
        machine.gpus.set_joules(DGPU, joules)
        await machine.beat(collector)
    readings = []
    for joules in (3, 103, 203, 303):
        machine.gpus.set_joules(DGPU, joules)
        readings.append(await machine.beat(collector))
    assert {trouble.part for reading in readings for trouble in reading.troubles} == {"card0 energy counter"}
    assert None in [watts for reading in readings for watts in reading.powers.values()]
    for reading in readings:
        assert values(reading, metrics.POWER).get(INTEL, 100) == pytest.approx(100)
    assert 400 <= value(readings[-1], metrics.ENERGY, *INTEL) <= 700


async def test_limits_are_not_asked_of_a_card_that_sleeps(machine: GpuMachine) -> None:
    """A sleeping card is asked nothing that would wake it, its limits included, until it is awake."""
    machine.gpus.i915(0)
    machine.gpus.runtime_status(DGPU, "suspended")
    collector = await machine.open()
    for _ in range(12):
        await machine.beat(collector)
    assert {path.name for path in machine.reader.asked} <= HARMLESS
    machine.gpus.runtime_status(DGPU, "active")
    for _ in range(12):
        await machine.beat(collector)
    assert "power1_max" in {path.name for path in machine.reader.asked}


async def test_a_process_that_used_more_than_there_was_is_said(machine: GpuMachine) -> None:
    """Engine time far beyond the time that passed charges nobody; what comes after it counts."""
    machine.gpus.amd(0)
    machine.clients.open(42, 5, engines_fdinfo(DGPU, 7, enc=3.0))
    collector = await machine.open()
    await collector.read()
    machine.clients.open(42, 5, engines_fdinfo(DGPU, 7, enc=50_583.0))
    reading = await machine.beat(collector)
    assert [trouble.part for trouble in reading.troubles] == ["use by process"]
    machine.clients.open(42, 5, engines_fdinfo(DGPU, 7, enc=50_583.5))
    reading = await machine.beat(collector)
    assert [use.seconds for use in reading.uses if use.pid != ANYONE] == [0.5]
    assert not reading.troubles


async def test_two_cards_with_one_sensor_are_metered_once(machine: GpuMachine) -> None:
    """If two cards lead to one hwmon its energy counts for the first alone."""
    machine.gpus.amd(0)
    machine.gpus.amd(1, SECOND, power1_average=None)
    first = machine.gpus.file(DGPU, "power1_average").parent
    second = machine.gpus.file(SECOND, "temp1_input").parent
    (second / "power1_average").symlink_to(first / "power1_average")
    collector = await machine.open()
    await collector.read()
    reading = await machine.beat(collector)
    assert meters(reading) == {DGPU: 100}
    assert len(values(reading, metrics.BUSY)) == 2


@pytest.mark.parametrize("pattern", ["card1", "1", SECOND, "intel"])
async def test_an_excluded_card_is_not_touched(machine: GpuMachine, pattern: str) -> None:
    """By card, number, PCI address or vendor; after a reload that takes it back its counter goes on."""
    machine.gpus.amd(0)
    machine.gpus.xe(1, SECOND)
    machine.options = drm.Options(exclude=(pattern,))
    collector = await machine.open()
    for _ in range(12):
        reading = await machine.beat(collector)
    assert {labels[0] for labels in values(reading, metrics.INFO)} == {"card0"}
    touched = {path.name for path in machine.reader.asked if "card1" in str(path)}
    assert touched <= {"vendor"}
    collector.configure(drm.Options())
    assert set(meters(await machine.beat(collector))) == {DGPU, SECOND}


async def test_if_every_card_is_excluded_it_is_absent(machine: GpuMachine) -> None:
    """Nothing is left to read, and that is no failure."""
    machine.gpus.amd(0)
    machine.options = drm.Options(exclude=("*",))
    with pytest.raises(Absent):
        await machine.open()
