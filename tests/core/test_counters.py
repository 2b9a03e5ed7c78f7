"""Raw counters that leap: what a glitch, a reset and a true rise each add up to."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.core.counters import Counter, Rate

RANGE_UJ = 65_532_610_987  # AMD's package, server DRAM
IDLE = 6.2


class Fed:
    """A counter, and the raw register that it reads."""

    def __init__(self, joules: float = 5000.0, range_uj: int | None = RANGE_UJ) -> None:
        self.counter = Counter(range_uj)
        self.counter.most_watts = 2000.0
        self._range_uj = range_uj
        self.raw_uj = round(joules * 1e6)
        self.now = self.asleep = 0.0
        self.true = 0.0
        self.read()

    def read(self, off: float = 0.0) -> float:
        """Read the register, `off` joules from the truth."""
        raw_uj = self.raw_uj + round(off * 1e6)
        if self._range_uj is not None:
            raw_uj %= self._range_uj
        return self.counter.advance(raw_uj, self.now, self.asleep)

    def beat(self, watts: float = IDLE, seconds: float = 1.0, off: float = 0.0) -> float:
        """Draw power for a time, then read."""
        self.now += seconds
        self.raw_uj += round(watts * seconds * 1e6)
        self.true += watts * seconds
        return self.read(off)

    def is_true(self) -> bool:
        return self.counter.joules == pytest.approx(self.true, abs=1e-3)


@pytest.mark.parametrize("off", [690.0, 100.0, 1900.0, 60000.0, -60.0, -1500.0, -4990.0])
@pytest.mark.parametrize("start", [5000.0, 65530.0], ids=["far from a wrap", "just before a wrap"])
def test_a_reading_off_the_line_adds_nothing(off: float, start: float) -> None:
    """An idle package with one reading in five too high or too low: exactly what it used, at every beat."""
    fed = Fed(start)
    for second in range(1, 26):
        before = fed.true
        fed.beat(off=off if second % 5 == 4 else 0.0)
        if second % 5 == 4:
            assert fed.counter.held
            assert fed.counter.joules == pytest.approx(before)
        else:
            assert not fed.counter.held
            assert fed.is_true()


@pytest.mark.parametrize("off", [690.0, -1500.0])
@pytest.mark.parametrize("lasts", [2, 3])
def test_a_glitch_of_several_readings_adds_nothing(off: float, lasts: int) -> None:
    """Some readings in a row beside the line are no energy either."""
    fed = Fed()
    for _ in range(5):
        fed.beat()
    for _ in range(lasts):
        fed.beat(off=off)
    for _ in range(4):
        fed.beat()
    assert fed.counter.joules == pytest.approx(fed.true, abs=IDLE)


@pytest.mark.parametrize("off", [-690.0, -1500.0, -4990.0, 60_000.0])
@pytest.mark.parametrize("lasts", [1, 2, 3])
@pytest.mark.parametrize("every", [7, 20])
def test_glitches_between_slow_readings_add_nothing(off: float, lasts: int, every: int) -> None:
    """Read every 15 s, a counter that comes back after one, two or three readings loses and wins nothing."""
    fed = Fed()
    for number in range(1, 68):
        fed.beat(seconds=15.0, off=off if number % every in range(4 - lasts, 4) and number > 5 else 0.0)
    assert fed.is_true()


@pytest.mark.parametrize("off", [690.0, 2000.0])
@pytest.mark.parametrize("lasts", [2, 3])
def test_a_leap_that_was_believed_is_taken_back(off: float, lasts: int) -> None:
    """If readings beside the line go on until they are believed, the joules wait for the truth afterwards."""
    fed = Fed()
    for _ in range(5):
        fed.beat(seconds=15.0)
    for _ in range(3):
        for _ in range(lasts):
            fed.beat(seconds=15.0, off=off)
        for _ in range(4):
            fed.beat(seconds=15.0)
            assert fed.counter.joules <= fed.true + off
    for _ in range(20):
        fed.beat(seconds=15.0)
    assert fed.is_true()
    assert not fed.counter.held


@pytest.mark.parametrize("off", [690.0, -1500.0])
def test_a_glitch_as_the_last_reading_before_a_refresh(off: float) -> None:
    """A scrape right after the glitch sees the line again."""
    fed = Fed()
    for _ in range(5):
        fed.beat()
    fed.beat(off=off)
    fed.beat(seconds=0.01)
    assert fed.is_true()
    fed.beat()
    assert fed.is_true()


@pytest.mark.parametrize("off", [690.0, -1500.0])
def test_a_glitch_while_the_load_begins(off: float) -> None:
    """A doubtful reading between two true but very different powers: energy, and no more than was used."""
    fed = Fed()
    for _ in range(5):
        fed.beat()
    fed.beat(280.0, off=off)
    for _ in range(5):
        fed.beat(280.0)
    assert fed.is_true()


@pytest.mark.parametrize("off", [690.0, -1500.0])
@pytest.mark.parametrize("place", [0, 1])
def test_a_glitch_among_the_first_readings(off: float, place: int) -> None:
    """Before anything is known of the part but its limit, a glitch costs at most a beat in the end."""
    counter = Counter(RANGE_UJ)
    counter.most_watts = 200.0
    raw = [5000.0 + IDLE * second for second in range(200)]
    raw[place] += off
    for second, joules in enumerate(raw):
        counter.advance(round(joules * 1e6), second)
    assert counter.joules == pytest.approx(IDLE * 199, abs=2 * IDLE)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 30.0])
def test_idle_to_the_limit_is_kept_with_the_next_reading(seconds: float) -> None:
    """A package that goes from idle to its limit within a beat: in doubt for one reading, then all there."""
    fed = Fed()
    for _ in range(5):
        fed.beat(seconds=seconds)
    fed.beat(280.0, seconds)
    fed.beat(280.0, seconds)
    assert not fed.counter.held
    assert fed.is_true()
    assert fed.counter.resets == fed.counter.breaks == 0


def test_a_burst_of_one_beat_is_kept() -> None:
    """A second at the limit and idle again: when the counter stays there, it was energy."""
    fed = Fed()
    for _ in range(5):
        fed.beat()
    fed.beat(280.0)
    for _ in range(4):
        fed.beat()
    assert not fed.counter.held
    assert fed.is_true()
    assert fed.counter.resets == 0


@pytest.mark.parametrize("watts", [IDLE, 280.0])
def test_a_late_beat_is_kept(watts: float) -> None:
    """A beat that is 30 s late, with or without a load that began meanwhile."""
    fed = Fed()
    for _ in range(5):
        fed.beat()
    fed.beat(watts, seconds=31.0)
    fed.beat(watts)
    assert fed.is_true()
    assert fed.counter.resets == 0


def test_a_reset_under_load_goes_on_from_there() -> None:
    """After a reset two readings decide; what is lost is the gap, whatever power follows it."""
    fed = Fed()
    for _ in range(5):
        fed.beat()
    before = fed.counter.joules
    fed.raw_uj = 0
    for _ in range(6):
        fed.beat(280.0)
    assert fed.counter.joules - before == pytest.approx(6 * 280, abs=2 * 280 + 1)
    assert fed.counter.joules < fed.true
    assert fed.counter.breaks == 1


def test_a_counter_that_steps_once_a_second_loses_nothing() -> None:
    """Readings a moment before and after a step: a whole second's energy within 10 ms is no leap."""
    counter = Counter(RANGE_UJ)
    for second in range(20):
        for moment in (0.99, 1.0):
            whole = int(second + moment)
            counter.advance(280_000_000 * whole, second + moment)
    counter.advance(280_000_000 * 20, 20.5)
    assert counter.joules == 280 * 20
    assert counter.resets == 0


@pytest.mark.parametrize("step", [1.0, 2.0, 5.0, 7.0])
@pytest.mark.parametrize("interval", [0.5, 1.0])
def test_large_steps_of_a_full_load_are_no_leaps(step: float, interval: float) -> None:
    """A counter that a hypervisor writes every few seconds: a step is of the time that it stood before."""
    counter, rate = Counter(RANGE_UJ), Rate(at_rest=None)
    counter.most_watts = 3 * 400.0
    watts = []
    for number in range(120):
        now = number * interval
        counter.advance(round(400 * step * (now // step) * 1e6), now)
        rate.follow(counter, now)
        watts.append(rate.watts)
    assert counter.joules == 400 * step * (now // step)
    assert counter.resets == 0
    known = [power for power in watts[40:] if power is not None]
    assert len(known) >= 20
    assert all(200 < power < 800 for power in known)


def test_energy_of_a_suspend_is_held_to_the_time_asleep() -> None:
    """A counter that ran on while the machine slept: 28.8 kJ over eight hours is one watt."""
    fed = Fed()
    for _ in range(5):
        fed.beat()
    fed.asleep += 28_800.0
    fed.true += 28_800.0
    fed.raw_uj += 28_800_000_000
    fed.beat()
    assert fed.is_true()
    assert fed.counter.resets == 0


def test_a_counter_restarted_by_a_suspend_has_not_wrapped() -> None:
    """A night is long enough for any wrap to be plausible: a fall over a suspend is a reset."""
    fed = Fed()
    for _ in range(5):
        fed.beat()
    before = fed.counter.joules
    fed.asleep += 28_800.0
    fed.raw_uj = 3_000_000
    fed.beat()
    fed.beat()
    assert fed.counter.wraps == 0
    assert fed.counter.joules == pytest.approx(before + IDLE)


STEPS = st.lists(st.tuples(st.floats(0.01, 31.0), st.floats(0.0, 2000.0)), min_size=1, max_size=30)


@given(steps=STEPS, start=st.floats(0.0, 65_532.0))
def test_any_true_series_is_counted_exactly(steps: list[tuple[float, float]], start: float) -> None:
    """Any power up to the bound, late beats and wraps: all of it, once the last step is confirmed."""
    fed = Fed(start)
    for seconds, watts in steps:
        fed.beat(min(watts, 20_000 / seconds), seconds)  # at most a third of the range, 650 W for 30 s
        assert fed.counter.joules <= fed.true + 1e-3
    for _ in range(4):
        fed.beat(0.0)
    assert fed.is_true()
    assert fed.counter.resets == 0


@given(
    powers=st.lists(st.floats(4.0, 9.0), min_size=8, max_size=40),
    place=st.floats(0.2, 0.8),
    off=st.floats(60.0, 60_000.0),
    up=st.booleans(),
    start=st.floats(0.0, 65_532.0),
)
def test_any_single_outlier_adds_nothing(
    powers: list[float], place: float, off: float, start: float, *, up: bool
) -> None:
    """One reading anywhere beside the line of an idle part: never more than the truth, and then all of it."""
    fed = Fed(start)
    glitch = int(place * len(powers)) + 1
    shown = []
    for number, watts in enumerate(powers):
        shown.append(fed.beat(watts, off=(off if up else -off) if number == glitch else 0.0))
        assert shown[-1] <= fed.true + 1e-3
    fed.beat()
    assert fed.is_true()
    assert all(before <= after for before, after in pairwise(shown))
