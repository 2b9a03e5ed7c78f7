"""Statistics against published tables, by hand, and by what must hold of any figures."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from powerbench_agent.bench.statistics import stats
from powerbench_agent.bench.statistics.stats import Interval, Moments

# Student 1908, "The probable error of a mean": hours of sleep gained with two drugs, ten patients.
# R 4, t.test(extra ~ group, data = sleep): t = -1.8608, df = 17.776, p-value = 0.07939,
# 95 percent confidence interval -3.3654832 0.2054832.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
# Motor Trend 1974 (Henderson & Velleman 1981): miles a gallon. R, t.test(mpg ~ am, data = mtcars):
# t = -3.7671, df = 18.332, p-value = 0.001374, interval -11.280194 -3.209684.
AUTOMATIC = [
    *(21.4, 18.7, 18.1, 14.3, 24.4, 22.8, 19.2, 17.8, 16.4, 17.3),
    *(15.2, 10.4, 10.4, 14.7, 21.5, 15.5, 15.2, 13.3, 19.2),
]
MANUAL = [21.0, 21.0, 22.8, 32.4, 30.4, 33.9, 27.3, 26.0, 30.4, 15.8, 19.7, 15.0, 21.4]
# Anscombe 1973, the first of four: slope 0.5001, its standard error 0.1179, intercept 3.0001.
ANSCOMBE = list(
    zip(
        [10.0, 8.0, 13.0, 9.0, 11.0, 14.0, 6.0, 4.0, 12.0, 7.0, 5.0],
        [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68],
        strict=True,
    )
)
T_9 = 2.262157  # Student's t for 95 % with 9 degrees of freedom; NIST/SEMATECH e-Handbook, 1.3.6.7.2

WATTS = st.integers(-50_000, 50_000).map(lambda thousandths: thousandths / 1000)
SAMPLE = st.lists(WATTS, min_size=2, max_size=8)


# -- published tables ----------------------------------------------------------------------------------


def test_welch_on_students_sleep_data() -> None:
    """t, degrees of freedom, p and interval are those that R prints for Student's two groups of ten."""
    found = stats.compare(DRUG_1, DRUG_2)
    assert found.delta == pytest.approx(-1.58)
    assert found.t == pytest.approx(-1.8608, abs=5e-5)
    assert found.df == pytest.approx(17.776, abs=5e-4)
    assert found.p == pytest.approx(0.07939, abs=5e-6)
    assert found.interval == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)
    assert not found.detected


def test_welch_on_groups_of_unequal_size() -> None:
    """19 automatic and 13 manual cars differ as R says that they do."""
    found = stats.compare(AUTOMATIC, MANUAL)
    assert found.t == pytest.approx(-3.7671, abs=5e-5)
    assert found.df == pytest.approx(18.332, abs=5e-4)
    assert found.p == pytest.approx(0.001374, abs=5e-7)
    assert found.interval == pytest.approx((-11.280194, -3.209684), abs=5e-7)
    assert found.detected


def test_welch_out_of_means_and_deviations_alone() -> None:
    """The cars of NIST/SEMATECH e-Handbook 1.3.5.3: t = -12.94627 with 136.8750 degrees of freedom."""
    found = stats.contrast([Moments(249, 20.14458, 6.41470**2)], [Moments(79, 30.48101, 6.10771**2)])
    assert found.t == pytest.approx(-12.94627, abs=5e-4)
    assert found.df == pytest.approx(136.8750, abs=5e-3)


def test_the_interval_of_a_mean() -> None:
    """Student's ten differences have the interval that R prints for the paired test."""
    found = stats.summarize([a - b for a, b in zip(DRUG_1, DRUG_2, strict=True)])
    assert found.mean == pytest.approx(-1.58)
    assert found.sd == pytest.approx(1.229995, abs=5e-7)
    assert found.interval == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)


def test_the_slope_of_anscombes_first_set() -> None:
    """Slope, intercept and standard error are those that the four famous sets share."""
    found = stats.fit(ANSCOMBE)
    assert found is not None
    assert found.slope == pytest.approx(0.5001, abs=5e-5)
    assert found.intercept == pytest.approx(3.0001, abs=5e-5)
    assert found.interval is not None
    assert (found.interval.high - found.slope) / T_9 == pytest.approx(0.1179, abs=5e-5)


def test_hedges_g_by_hand() -> None:
    """Means 4 and 2, both variances 1: d = 2, corrected by 1 - 3/(4·4 - 1) to 1.6."""
    assert stats.hedges_g([3.0, 4.0, 5.0], [1.0, 2.0, 3.0]) == pytest.approx(1.6)


@pytest.mark.parametrize(("n", "deviations"), [(3, 3.0), (5, 2.0), (10, 1.3), (30, 0.74)])
def test_the_detectable_difference_shrinks_as_repeats_grow(n: int, deviations: float) -> None:
    """Two groups of n could have shown so many standard deviations, with power 0.8 at 5 %."""
    found = stats.contrast([Moments(n, 10.0, 4.0)], [Moments(n, 10.0, 4.0)])
    assert found.detectable is not None
    assert found.detectable / 2 == pytest.approx(deviations, rel=0.03)


def test_an_outlier_by_hand() -> None:
    """Median 3, median deviation 1: 9 scores 0.6745·6 = 4.05 and stands out, 8 scores 3.37 and does not."""
    assert stats.outliers([1.0, 2.0, 3.0, 4.0, 9.0]) == [4]
    assert stats.outliers([1.0, 2.0, 3.0, 4.0, 8.0]) == []


def test_the_bootstrap_is_scipys() -> None:
    """The BCa interval is within the resampling's own noise of scipy.stats.bootstrap's."""
    from scipy import stats as reference  # noqa: PLC0415 - takes seconds, for this test alone

    ours = stats.compare(AUTOMATIC, MANUAL).bootstrap
    theirs = reference.bootstrap(
        (AUTOMATIC, MANUAL),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        method="BCa",
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.3)  # of a width of 7.5


def test_four_means_at_once() -> None:
    """A difference of differences has the variances of all four groups: ± t·√(4·1/5), 16 degrees."""
    one = Moments(5, 3.0, 1.0)
    found = stats.contrast([one, one], [Moments(5, 1.0, 1.0), Moments(5, 2.0, 1.0)])
    assert found.delta == pytest.approx(3.0)
    assert found.df == pytest.approx(16)
    assert found.interval is not None
    assert found.interval.high - 3.0 == pytest.approx(2.119905 * math.sqrt(0.8))


# -- degenerate figures --------------------------------------------------------------------------------


def test_one_repeat_has_no_interval() -> None:
    """A single figure says nothing of its spread: a difference, and nothing beside it."""
    assert stats.summarize([5.0]) == (5.0, 1, None, None)
    found = stats.compare([5.0], [3.0, 3.1, 3.2])
    assert found.delta == pytest.approx(1.9)
    assert found[1:] == (None,) * 7
    assert not found.detected


def test_figures_without_spread_do_not_divide_by_zero() -> None:
    """Groups that stand still differ for sure, or not at all."""
    same, other = stats.compare([3.0, 3.0], [3.0, 3.0]), stats.compare([4.0, 4.0], [3.0, 3.0])
    assert (same.p, same.interval, same.detected, same.hedges_g) == (1.0, Interval(0, 0), False, None)
    assert (other.p, other.interval, other.detected, other.detectable) == (0.0, Interval(1, 1), True, 0.0)
    assert stats.outliers([3.0] * 6) == []
    assert stats.summarize([3.0, 3.0]).interval == Interval(3, 3)


def test_one_group_without_spread_still_compares() -> None:
    """A constant baseline leaves the test group's spread, with its own degrees of freedom."""
    found = stats.compare([4.0, 5.0, 6.0], [3.0, 3.0, 3.0])
    assert found.df == pytest.approx(2)
    assert found.bootstrap is not None


@pytest.mark.parametrize("bad", [[], [math.nan, 1.0], [1.0, math.inf], [-math.inf, 2.0, 3.0]])
def test_what_is_no_figure_is_refused(bad: list[float]) -> None:
    """Nothing at all, NaN and infinity raise, wherever they come in."""
    for call in (stats.summarize, stats.moments, stats.outliers):
        with pytest.raises(ValueError, match="finite"):
            call(bad)
    for pair in ((bad, [1.0, 2.0]), ([1.0, 2.0], bad)):
        with pytest.raises(ValueError, match="finite"):
            stats.compare(*pair)
        with pytest.raises(ValueError, match="finite"):
            stats.hedges_g(*pair)


def test_a_line_needs_two_places() -> None:
    """One place has no slope; two points have a slope and no interval; NaN is refused."""
    assert stats.fit([]) is None
    assert stats.fit([(1.0, 2.0), (1.0, 3.0)]) is None
    assert stats.fit([(0.0, 4.0), (2.0, 5.0)]) == (0.5, 4.0, None)
    with pytest.raises(ValueError, match="finite"):
        stats.fit([(0.0, math.nan), (1.0, 1.0)])


# -- what must hold of any figures ---------------------------------------------------------------------


def close(a: Interval | None, b: Interval | None) -> bool:
    return (a is None and b is None) or (a is not None and b == pytest.approx(a, rel=1e-6, abs=1e-6))


@given(SAMPLE, SAMPLE, WATTS)
def test_a_shift_of_both_changes_nothing(test: list[float], baseline: list[float], by: float) -> None:
    """What is added to every figure of both groups is in neither difference nor interval."""
    found = stats.compare(test, baseline, resample=False)
    shifted = stats.compare([x + by for x in test], [x + by for x in baseline], resample=False)
    assert shifted.delta == pytest.approx(found.delta, abs=1e-6)
    assume(max(statistics.stdev(test), statistics.stdev(baseline)) > 0)
    assert close(found.interval, shifted.interval)
    assert shifted.p == pytest.approx(found.p, rel=1e-4, abs=1e-9)


@given(SAMPLE, SAMPLE, st.integers(1, 1000))
def test_another_unit_scales_the_watts_alone(test: list[float], baseline: list[float], factor: int) -> None:
    """In milliwatts the difference is as many times larger, and p and g are the same."""
    assume(max(statistics.stdev(test), statistics.stdev(baseline)) > 0)
    found = stats.compare(test, baseline, resample=False)
    scaled = stats.compare([x * factor for x in test], [x * factor for x in baseline], resample=False)
    assert scaled.delta == pytest.approx(found.delta * factor, abs=1e-6)
    assert scaled.p == pytest.approx(found.p, rel=1e-6, abs=1e-12)
    assert scaled.hedges_g == pytest.approx(found.hedges_g, rel=1e-6, abs=1e-9)
    assert scaled.detectable == pytest.approx((found.detectable or 0) * factor, rel=1e-6)


@given(SAMPLE, SAMPLE)
def test_swapping_the_groups_turns_the_sign(test: list[float], baseline: list[float]) -> None:
    """A less B is the opposite of B less A, and as sure."""
    one, other = (
        stats.compare(test, baseline, resample=False),
        stats.compare(baseline, test, resample=False),
    )
    assert one.delta == pytest.approx(-other.delta, abs=1e-9)
    assert one.p == pytest.approx(other.p, rel=1e-9, abs=1e-12)
    assert one.interval is not None
    assert other.interval is not None
    assert close(one.interval, Interval(-other.interval.high, -other.interval.low))


@given(SAMPLE, SAMPLE)
def test_an_interval_holds_its_difference(test: list[float], baseline: list[float]) -> None:
    """The difference is within its interval, and 0 is outside just where it is called a difference."""
    found = stats.compare(test, baseline, resample=False)
    assert found.interval is not None
    low, high = found.interval
    assert low <= found.delta <= high
    if found.p is not None and abs(found.p - stats.ALPHA) > 1e-9:
        assert found.detected == (not low <= 0 <= high)


@given(SAMPLE)
def test_outliers_are_on_their_places(sample: list[float]) -> None:
    """Whatever is named an outlier is further from the median than whatever is not."""
    places = stats.outliers(sample)
    middle = statistics.median(sample)
    away = [abs(value - middle) for value in sample]
    rest = [away[place] for place in range(len(sample)) if place not in places]
    assert all(away[place] > max(rest) for place in places)
