"""Joules between two moments that fall between a counter's samples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.core.prometheus_windows import began_again, increase, integral, mean

STEADY = [(float(t), 10.0 * t) for t in range(0, 101, 10)]  # 10 W, a sample each 10 s


def test_edges_fall_between_samples() -> None:
    """From 13 s to 47 s a counter of 10 W gains 340 J, in whatever order its samples come."""
    assert increase(STEADY, 13, 47) == pytest.approx(340)
    assert increase(reversed(STEADY), 13, 47) == pytest.approx(340)


def test_an_edge_on_a_sample_is_exact() -> None:
    """On a sample nothing is interpolated, however uneven the steps beside it are."""
    uneven = [(0.0, 0.0), (10.0, 100.0), (20.0, 300.0)]
    assert increase(uneven, 10, 20, reach=1) == 200
    assert increase(uneven, 5, 15) == pytest.approx(150)
    assert increase(uneven, 5, 15, reach=4) is None


def test_a_window_between_two_samples() -> None:
    """A window shorter than the scrape interval has its part of the one step."""
    assert increase(STEADY, 42, 45) == pytest.approx(30)


def test_a_counter_that_began_again() -> None:
    """After a reset it counts from 0; one before or after the window is nothing to it."""
    samples = [(0.0, 500.0), (10.0, 600.0), (20.0, 50.0), (30.0, 150.0)]
    assert increase(samples, 0, 30) == pytest.approx(100 + 50 + 100)
    assert increase(samples, 20, 30) == pytest.approx(100)
    assert increase(samples, 0, 10) == pytest.approx(100)
    assert began_again(samples, 0, 30)
    assert not began_again(samples, 20, 30)


@pytest.mark.parametrize(
    ("samples", "start", "end"),
    [
        ([], 0, 10),
        ([(5.0, 1.0)], 0, 10),
        (STEADY, -5, 20),
        (STEADY, 50, 105),
        (STEADY, 30, 30),
        (STEADY, 40, 30),
        ([(0.0, 0.0), (100.0, 1000.0)], 45, 55),
        ([(0.0, math.nan), (10.0, 5.0)], 5, 10),
    ],
)
def test_without_samples_around_both_edges_there_is_no_figure(
    samples: list[tuple[float, float]], start: float, end: float
) -> None:
    """What is not known is None: no sample before, none after, too far away, or no window."""
    assert increase(samples, start, end, reach=30) is None


def test_marks_of_a_stale_series_are_no_samples() -> None:
    """NaN among the values is passed over."""
    assert increase([*STEADY, (45.0, math.nan)], 40, 50) == pytest.approx(100)


def test_a_gauge_is_its_samples_mean() -> None:
    """Only samples in the window count, and they must reach its edges."""
    gauge = [(0.0, 100.0), (10.0, 4.0), (20.0, 6.0), (30.0, 100.0)]
    assert mean(gauge, 5, 25) == pytest.approx(5)
    assert mean(gauge, 11, 19) is None
    assert mean(gauge, 5, 500) is None


def test_power_between_two_samples_is_their_mean() -> None:
    """Watts come to joules by trapezoids, their integral interpolated at both edges."""
    power = [(0.0, 10.0), (10.0, 30.0), (11.0, 30.0), (21.0, 30.0)]
    assert integral(power, 0, 10) == pytest.approx(200)
    assert integral(power, 0, 11) == pytest.approx(230)
    assert integral(reversed(power), 5, 16) == pytest.approx(100 + 30 + 150)


@pytest.mark.parametrize(
    ("start", "end"), [(-5.0, 20.0), (50.0, 225.0), (30.0, 30.0), (40.0, 30.0), (50.0, 150.0), (95.0, 150.0)]
)
def test_power_that_nobody_has_read_is_not_made_up(start: float, end: float) -> None:
    """A gauge has no integral over a stretch of more than its reach without a sample, nor beyond them."""
    power = [(float(t), 5.0) for t in range(0, 221, 10) if not 100 < t < 140]
    assert integral(power, start, end, reach=30) is None


@given(
    st.lists(st.floats(0, 1000), min_size=12, max_size=12),
    st.floats(0, 110),
    st.floats(0, 110),
    st.floats(0, 110),
)
def test_parts_of_a_window_sum_to_it(steps: list[float], a: float, b: float, c: float) -> None:
    """A counter's gain over two windows that meet is that over both together, and none is negative."""
    first, middle, last = sorted((a, b, c))
    samples, value = [], 0.0
    for place, step in enumerate(steps):
        value += step
        samples.append((10.0 * place, value))

    def gained(start: float, end: float) -> float:
        if start == end:
            return 0.0
        found = increase(samples, start, end)
        assert found is not None
        assert found >= -1e-6
        return found

    whole = gained(first, middle) + gained(middle, last)
    assert whole == pytest.approx(gained(first, last), abs=1e-6)
