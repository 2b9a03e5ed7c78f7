"""CPU time that never falls, whatever /proc/stat does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import FakeClock, Procfs

from powerbench_agent.core.cpu_time import CpuCounters, CpuTimes
from powerbench_agent.core.host import Host
from powerbench_agent.core.procfs import BUSY_MODES, MODES, MachineStat

if TYPE_CHECKING:
    from pathlib import Path

HERTZ = os.sysconf("SC_CLK_TCK")
CPUS = 4
FAR = 800_000_000  # ticks; 93 days

# A quarter of the machine is busy; ticks a second over all CPUs.
RATES = {"user": 70, "nice": 0, "system": 25, "idle": 280, "iowait": 10, "irq": 2, "softirq": 3, "steal": 10}
BUSY = sum(RATES[mode] for mode in BUSY_MODES) / 100  # CPU seconds a second
START = dict.fromkeys(MODES, 10 * FAR)


def ticks_at(second: float, **changes: int) -> dict[str, int]:
    """Return the figures that many seconds on, `changes` added to some modes."""
    return {
        mode: START[mode] + round(RATES[mode] * second * HERTZ / 100) + changes.get(mode, 0) for mode in MODES
    }


class Run:
    """Counters that have been read at second 0."""

    def __init__(self) -> None:
        self.counters = CpuCounters()
        self.advance(0, ticks_at(0))
        self.busy, self.capacity = self.counters.busy, self.counters.capacity

    def advance(self, second: float, ticks: dict[str, int], cpus: int = CPUS) -> tuple[str, ...]:
        return self.counters.advance(MachineStat(ticks, cpus), second)

    @property
    def gained(self) -> tuple[float, float]:
        """CPU seconds (busy, capacity) since second 0."""
        return self.counters.busy - self.busy, self.counters.capacity - self.capacity


def test_good_figures_pass_through() -> None:
    """What the kernel counts is what is shown, and busy and capacity follow it."""
    run = Run()
    for second in range(1, 11):
        assert run.advance(second, ticks_at(second)) == ()
        assert run.counters.ticks == ticks_at(second)
    assert run.gained == pytest.approx((10 * BUSY, 40))


@pytest.mark.parametrize("change", [-FAR, FAR], ids=["falls", "jumps"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_that_is_replaced_costs_itself_alone(mode: str, change: int) -> None:
    """A mode that falls or jumps far adds nothing in that interval, is named, and counts again from there."""
    run = Run()
    shown = run.counters.ticks[mode]
    assert run.advance(1, ticks_at(1, **{mode: change})) == (mode,)
    assert run.counters.ticks[mode] == shown
    lost = RATES[mode] / 100
    busy, capacity = run.gained
    assert busy == pytest.approx(BUSY - lost * (mode in BUSY_MODES))
    assert capacity == pytest.approx(4 if mode == "idle" else 4 - lost), "without idle, the time that passed"
    assert run.advance(2, ticks_at(2, **{mode: change})) == ()
    assert run.gained == pytest.approx((busy + BUSY, capacity + 4))


@pytest.mark.parametrize("mode", ["idle", "iowait", "steal"])
def test_a_step_back_stands_still_until_caught_up(mode: str) -> None:
    """A tick back adds 0, is no fault, and is not counted twice when it comes back."""
    run = Run()
    start = ticks_at(0)[mode]
    for raw, shown in ((start - 1, start), (start, start), (start + 1, start + 1)):
        assert run.advance(0.01, ticks_at(0) | {mode: raw}) == ()
        assert run.counters.ticks[mode] == shown
    assert run.counters.capacity - run.capacity == pytest.approx(1 / HERTZ)


def test_steps_back_that_add_up_are_a_fall() -> None:
    """A mode that goes down and down is not waited for."""
    run = Run()
    named = [run.advance(1, ticks_at(0, iowait=-step * HERTZ)) for step in range(1, 8)]
    assert ("iowait",) in named


def test_cpus_that_leave_and_come_back() -> None:
    """Unplugging half of the CPUs takes half of every figure: nothing falls, and counting goes on."""
    run = Run()
    halved = {mode: ticks // 2 for mode, ticks in ticks_at(1).items()}
    assert set(run.advance(1, halved, cpus=2)) == set(MODES)
    assert run.gained == (0, 4), "which is the time that passed"
    busy = 0.0
    for second in range(2, 5):
        halved = {mode: ticks // 2 for mode, ticks in ticks_at(second).items()}
        assert run.advance(second, halved, cpus=2) == ()
        busy += BUSY / 2
    assert run.gained[0] == pytest.approx(busy, abs=0.1)
    run.advance(5, ticks_at(5))
    assert run.counters.ticks["user"] >= ticks_at(0)["user"]
    assert run.gained[0] < 5 * BUSY


def test_a_long_interval_is_not_a_jump() -> None:
    """An hour without a reading counts as an hour, of CPUs that were all busy."""
    run = Run()
    full = ticks_at(0, user=3600 * HERTZ * CPUS)
    assert run.advance(3600, full) == ()
    assert run.gained == pytest.approx((3600 * CPUS, 3600 * CPUS))


def test_lumps_are_not_a_jump() -> None:
    """Ticks that arrive late, all at once, are counted."""
    run = Run()
    assert run.advance(0.001, ticks_at(0, user=CPUS)) == ()
    assert run.gained[0] == pytest.approx(CPUS / HERTZ)


def test_a_mode_that_disappears() -> None:
    """A mode that cannot be read any more is named; if it is idle, the time that passed is the capacity."""
    run = Run()
    ticks = ticks_at(1)
    del ticks["idle"]
    assert run.advance(1, ticks) == ("idle",)
    assert run.gained == pytest.approx((BUSY, 4))


def test_without_a_line_a_cpu() -> None:
    """If the file does not say how many CPUs there are, no gain is too much."""
    run = Run()
    run.advance(0.1, ticks_at(0, user=100 * HERTZ), cpus=0)
    counters = CpuCounters()
    counters.advance(MachineStat(ticks_at(0), 0), 0)
    assert counters.advance(MachineStat(ticks_at(0, user=100 * HERTZ), 0), 1) == ()


@given(
    steps=st.lists(
        st.tuples(
            st.floats(0, 10), st.lists(st.integers(0, 2**63), min_size=8, max_size=8), st.integers(0, 9)
        )
    )
)
def test_nothing_ever_falls(steps: list[tuple[float, list[int], int]]) -> None:
    """No figures at all make a counter fall, and the machine is never busier than it can be."""
    counters = CpuCounters()
    now = 0.0
    for seconds, figures, cpus in steps:
        now += seconds
        before = dict(counters.ticks), counters.busy, counters.capacity
        counters.advance(MachineStat(dict(zip(MODES, figures, strict=True)), cpus), now)
        assert all(counters.ticks[mode] >= ticks for mode, ticks in before[0].items())
        assert counters.busy >= before[1]
        assert counters.capacity >= before[2]


def test_repeated_readings_of_one_machine(tmp_path: Path) -> None:
    """The reader keeps the counters from one reading to the next."""
    clock = FakeClock()
    procfs = Procfs(tmp_path / "proc")
    procfs.set_ticks(user=HERTZ, rest=(0, 0, 0, FAR, 0, 0))
    times = CpuTimes(Host(procfs=procfs.procfs, clock=clock))
    first = times.read()
    clock.advance(1)
    procfs.set_ticks(user=2 * HERTZ, idle=HERTZ)
    second = times.read()
    assert first is not None
    assert second is not None
    assert (second.busy - first.busy, second.capacity - first.capacity) == pytest.approx((1, 2))
    (procfs.procfs / "stat").unlink()
    assert times.read() is None
