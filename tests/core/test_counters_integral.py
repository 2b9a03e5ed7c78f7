"""Power integrated to energy: trapezoids, gaps, and what any sequence of readings adds up to."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.core.counters import Integral

WATTS = st.floats(0.0, 2000.0)
STEPS = st.lists(st.tuples(st.floats(0.001, 10.0), WATTS), min_size=1, max_size=40)


def integrated(steps: list[tuple[float, float]], max_gap: float = 10.0) -> float:
    """Return the joules after these readings; a step: (monotonic second, watts)."""
    integral = Integral(max_gap)
    for now, watts in steps:
        integral.advance(watts, now)
    return integral.joules


def timed(steps: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the steps with their seconds added up."""
    return list(zip(accumulate(step for step, _ in steps), (watts for _, watts in steps), strict=True))


def test_starts_at_zero() -> None:
    """The first reading is a start, not energy."""
    assert Integral(3.0).advance(250.0, 1000.0) == 0


def test_trapezoid() -> None:
    """Between two readings the energy is their mean power times the time between them."""
    assert integrated([(0.0, 100.0), (1.0, 200.0), (3.0, 0.0)]) == 150.0 + 200.0


def test_a_reading_at_the_same_moment_adds_nothing() -> None:
    """Two readings at the same time add no energy."""
    assert integrated([(5.0, 100.0), (5.0, 900.0)]) == 0


@pytest.mark.parametrize(("gap", "joules"), [(3.0, 300.0), (3.001, 0.0), (3600.0, 0.0)])
def test_a_long_gap_is_not_bridged(gap: float, joules: float) -> None:
    """A gap up to the bound is bridged and a longer one adds nothing."""
    assert integrated([(0.0, 100.0), (gap, 100.0)], max_gap=3.0) == joules


def test_goes_on_after_a_gap() -> None:
    """The reading after a gap opens the next trapezoid."""
    assert integrated([(0.0, 100.0), (60.0, 50.0), (61.0, 70.0)], max_gap=3.0) == 60.0


def test_what_is_forgotten_is_not_counted() -> None:
    """After forget() the time up to the next reading adds nothing, and what was counted stays."""
    integral = Integral(3.0)
    integral.advance(100.0, 0.0)
    integral.advance(100.0, 1.0)
    integral.forget()
    assert integral.advance(100.0, 2.0) == 100.0
    assert integral.advance(100.0, 3.0) == 200.0


@given(steps=STEPS, cut=st.integers(0, 39))
def test_the_parts_make_the_whole(steps: list[tuple[float, float]], cut: int) -> None:
    """The energy of a stretch is that of its parts, wherever it is cut at a reading."""
    readings = timed(steps)
    cut = min(cut, len(readings) - 1)
    parts = integrated(readings[: cut + 1]) + integrated(readings[cut:])
    assert integrated(readings) == pytest.approx(parts, abs=1e-6)


@given(steps=STEPS)
def test_it_never_decreases(steps: list[tuple[float, float]]) -> None:
    """Power that is never negative makes a counter that never falls, over gaps too."""
    integral = Integral(5.0)
    joules = [integral.advance(watts, now) for now, watts in timed(steps)]
    assert all(before <= after for before, after in pairwise(joules))


@given(steps=STEPS)
def test_it_lies_between_the_least_and_the_most(steps: list[tuple[float, float]]) -> None:
    """The energy is never less than the least power's over the time, nor more than the most's."""
    readings = timed(steps)
    seconds = readings[-1][0] - readings[0][0]
    watts = [power for _, power in readings]
    joules = integrated(readings)
    assert min(watts) * seconds - 1e-6 <= joules <= max(watts) * seconds + 1e-6


@given(
    steps=st.lists(st.floats(0.001, 10.0), min_size=2, max_size=40),
    start=st.floats(0.0, 500.0),
    slope=st.floats(0.0, 5.0),
)
def test_linear_power_is_exact(steps: list[float], start: float, slope: float) -> None:
    """Power that grows linearly is integrated to its closed form, however it is sampled."""
    times = list(accumulate(steps))
    begin, end = times[0], times[-1]
    joules = start * (end - begin) + slope / 2 * (end**2 - begin**2)
    found = integrated([(t, start + slope * t) for t in times], max_gap=10.1)  # beyond any rounding of 10
    assert found == pytest.approx(joules, rel=1e-9, abs=1e-6)
