"""What the joules are worth: simulated hosts whose true energy is known in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from trees import BusyClock, Draw, FakeClock, RaplCounter, SimulatedHost, add_up, value, values

from powerbench_agent.agent.node import Node
from powerbench_agent.collectors import rapl

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.core.model import Reading

TOLERANCE = 0.0002  # of the energy of a 10 s window
WINDOW = 10.0

# Reading a register takes from 20 µs to 0.3 ms, and not always the same.
COSTS = (20e-6, 35e-6, 300e-6, 22e-6, 80e-6)

DRAWS = {
    "constant": (Draw(180.0), Draw(95.0), Draw(12.0)),
    "slow swing": (Draw(180.0, 90.0, 37.0), Draw(95.0, 45.0, 23.0), Draw(12.0, 6.0, 11.0)),
    "fast swing": (Draw(180.0, 90.0, 0.13), Draw(95.0, 45.0, 0.41), Draw(12.0, 6.0, 0.9)),
    "idle": (Draw(8.0), Draw(9.0), Draw(2.0)),
    "heavy": (Draw(400.0, 40.0, 3.0), Draw(390.0), Draw(60.0)),
}
ENERGY_BEFORE_WRAP = 5.0  # joules: even the idle dram wraps within the window


def simulate(
    tmp_path: Path, clock: FakeClock, draws: tuple[Draw, ...], bits: int, spent: float
) -> SimulatedHost:
    """Return two packages and dram; `spent`: joules until each counter's wrap, negative for "far away"."""
    counters = {}
    for path, name, unit_bits, draw in zip(
        ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"),
        ("package-0", "package-1", "dram"),
        (bits, bits, 16),
        draws,
        strict=True,
    ):
        held = 2**32 / 2**unit_bits - spent if spent > 0 else 1234.5
        counters[path] = (name, RaplCounter(clock, draw, unit_bits, held))
    return SimulatedHost(tmp_path, clock, counters)


async def window(collector: rapl.Rapl, clock: FakeClock) -> tuple[Reading, Reading]:
    """Return readings `WINDOW` apart, as two scrapes see them, with beats of a second between."""
    await collector.read()
    clock.advance(0.37)
    first = await collector.refresh()
    end = clock.now + WINDOW
    while clock.now + 1.0 < end:
        clock.advance(1.0 - clock.now % 1.0)  # the beat's grid
        await collector.read()
    clock.advance(end - clock.now)
    return first, await collector.refresh()


@pytest.mark.parametrize("bits", [14, 16], ids=["61uJ", "15.3uJ"])
@pytest.mark.parametrize("until_wrap", [-1.0, ENERGY_BEFORE_WRAP], ids=["no wrap", "wrap"])
@pytest.mark.parametrize("draws", DRAWS.values(), ids=DRAWS)
async def test_window_within_0_02_percent(
    tmp_path: Path, draws: tuple[Draw, ...], until_wrap: float, bits: int
) -> None:
    """A zone's mean power between two scrapes 10 s apart is within 0.02 % of the truth, wraps and all."""
    clock = BusyClock(COSTS)
    simulated = simulate(tmp_path, clock, draws, bits, until_wrap)
    first, last = await window(await rapl.open_collector(rapl.Options(), simulated.host), clock)
    assert first.taken is not None
    assert last.taken is not None
    before, after = values(first, rapl.ENERGY), values(last, rapl.ENERGY)
    for labels, joules in after.items():
        truth = simulated.counters[labels[2]].draw.joules(first.taken, last.taken)
        assert joules - before[labels] == pytest.approx(truth, rel=TOLERANCE)
    assert set(values(last, rapl.RESETS).values()) == {0}
    assert sum(values(last, rapl.WRAPS).values()) == (3 if until_wrap > 0 else 0)


async def test_ranges_are_the_kernels() -> None:
    """The simulated registers have the two ranges that machines show."""
    clock = FakeClock()
    assert RaplCounter(clock, Draw(1.0), 14).range_uj == 262143328850
    assert RaplCounter(clock, Draw(1.0), 16).range_uj == 65532610987


async def test_node_is_as_exact(tmp_path: Path) -> None:
    """The node's cpu and dram joules over 10 s of beats are within 0.02 % of the truth."""
    clock = BusyClock(COSTS)
    simulated = simulate(tmp_path, clock, DRAWS["slow swing"], 16, ENERGY_BEFORE_WRAP)
    collector = await rapl.open_collector(rapl.Options(), simulated.host)
    node = Node()
    first = await collector.read()
    begin = dict(_node(node, first))
    last = first
    for _ in range(int(WINDOW)):
        clock.advance(1.0)
        last = await collector.read()
        end = dict(_node(node, last))
    assert first.taken is not None
    assert last.taken is not None
    for component, paths in (("cpu", ("intel-rapl:0", "intel-rapl:1")), ("dram", ("intel-rapl:0:0",))):
        truth = sum(simulated.counters[path].draw.joules(first.taken, last.taken) for path in paths)
        assert end[component] - begin[component] == pytest.approx(truth, rel=TOLERANCE)


def _node(node: Node, reading: Reading) -> list[tuple[str, float]]:
    return [
        (s.labels[0], s.value)
        for s in add_up(node, [reading]).samples
        if s.metric.name.endswith("joules_total")
    ]


async def test_power_is_the_intervals_mean(tmp_path: Path) -> None:
    """A second's power gauge is within 0.2 % of that second's true mean: the counter moves every 1 ms."""
    clock = BusyClock(COSTS)
    simulated = simulate(tmp_path, clock, DRAWS["slow swing"], 14, -1.0)
    collector = await rapl.open_collector(rapl.Options(), simulated.host)
    begin = (await collector.read()).taken
    for _ in range(20):
        clock.advance(1.0)
        reading = await collector.read()
        assert begin is not None
        assert reading.taken is not None
        for labels, watts in values(reading, rapl.POWER).items():
            truth = simulated.counters[labels[2]].draw.joules(begin, reading.taken) / (reading.taken - begin)
            assert watts == pytest.approx(truth, rel=0.002)
        begin = reading.taken


@pytest.mark.parametrize("second", [0.0, 0.4, 3.0, 9.9])
async def test_reset_invents_nothing(tmp_path: Path, second: float) -> None:
    """A reset within the window loses at most one beat's energy, adds none, and is counted."""
    clock = FakeClock()
    simulated = simulate(tmp_path, clock, DRAWS["constant"], 14, -1.0)
    counter = simulated.counters["intel-rapl:0"]
    collector = await rapl.open_collector(rapl.Options(), simulated.host)
    first = await collector.read()
    start = clock.now
    reset = False
    last = first
    for beat in range(1, 11):
        if not reset and start + second < start + beat:
            clock.advance(start + second - clock.now)
            counter.reset()
            reset = True
        clock.advance(start + beat - clock.now)
        last = await collector.read()
    labels = ("0", "package", "intel-rapl:0")
    gained = value(last, rapl.ENERGY, *labels) - value(first, rapl.ENERGY, *labels)
    truth = counter.draw.joules(start, start + WINDOW)
    a_beat = counter.draw.joules(0.0, 1.0)
    assert truth - a_beat * 1.001 <= gained <= truth
    assert value(last, rapl.RESETS, *labels) == 1
    assert value(last, rapl.WRAPS, *labels) == 0


@pytest.mark.parametrize("until_wrap", [-1.0, ENERGY_BEFORE_WRAP], ids=["no wrap", "wrap"])
async def test_read_error_invents_nothing(tmp_path: Path, until_wrap: float) -> None:
    """Beats that cannot read cost no joule and add none: the counter says afterwards what was missed."""
    clock = FakeClock()
    simulated = simulate(tmp_path, clock, DRAWS["constant"], 16, until_wrap)
    collector = await rapl.open_collector(rapl.Options(), simulated.host)
    first = await collector.read()
    for beat in range(1, 11):
        clock.advance(1.0)
        simulated.failing = {"intel-rapl:0"} if beat in (4, 5, 6) else set()
        if simulated.failing:
            with pytest.raises(rapl.ReadFailed):
                await collector.read()
        else:
            last = await collector.read()
    for labels, joules in values(last, rapl.ENERGY).items():
        truth = simulated.counters[labels[2]].draw.joules(0.0, WINDOW)
        gained = joules - values(first, rapl.ENERGY)[labels]
        assert gained <= truth * (1 + 1e-6)
        assert gained == pytest.approx(truth, rel=TOLERANCE)
    assert set(values(last, rapl.RESETS).values()) == {0}


async def test_reset_during_an_error_invents_nothing(tmp_path: Path) -> None:
    """A counter that is reset while it cannot be read adds nothing, and is counted as a reset."""
    clock = FakeClock()
    simulated = simulate(tmp_path, clock, DRAWS["constant"], 14, -1.0)
    collector = await rapl.open_collector(rapl.Options(), simulated.host)
    await collector.read()
    clock.advance(3.0)
    simulated.failing = {"intel-rapl:0"}
    with pytest.raises(rapl.ReadFailed):
        await collector.read()
    simulated.counters["intel-rapl:0"].reset()
    clock.advance(1.0)
    simulated.failing = set()
    last = await collector.read()
    labels = ("0", "package", "intel-rapl:0")
    assert value(last, rapl.ENERGY, *labels) == 0
    assert value(last, rapl.RESETS, *labels) == 1
