"""What repeated windows say, and how surely. Pure; Student's t comes from scipy.special.

Samples are one figure a repeat (mean watts of a window, say), independent and in the same unit. Intervals and
tests are two-sided at 95 % unless said otherwise.

scipy.stats would have all of it ready, and takes seconds to import: it stands beside these in the tests.

Source: Welch 1947; Satterthwaite 1946; Hedges 1981; Efron 1987 (bootstrap, BCa); Iglewicz & Hoaglin 1993
(modified z-score); Cohen 1988 (power).
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.80  # with which a difference would have been found
OUTLIER_SCORE = 3.5  # modified z-score beyond which Iglewicz and Hoaglin call a value an outlier
OUTLIER_METHOD = "modified z-score > 3.5 (Iglewicz & Hoaglin)"
RESAMPLES = 9999
SEED = 20_260_101  # a result is the same however often it is analysed
_MIN_FOR_OUTLIERS = 4
_MIN_FOR_BOOTSTRAP = 3


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Summary(NamedTuple):
    """One group of repeats; `interval` is None for a single one, which says nothing of its spread."""

    mean: float
    n: int
    sd: float | None
    interval: Interval | None


class Comparison(NamedTuple):
    """A test group against a baseline group: `delta` is test minus baseline, in the samples' unit."""

    delta: float
    interval: Interval | None = None  # Welch's; None where a group has fewer than two repeats
    bootstrap: Interval | None = None  # BCa, of the same difference
    t: float | None = None
    df: float | None = None
    p: float | None = None
    hedges_g: float | None = None  # in pooled standard deviations, corrected for small samples
    detectable: float | None = None  # the smallest difference these samples would have shown, with power 0.8

    @property
    def detected(self) -> bool:
        """Whether the difference is beyond chance at 5 %."""
        return self.p is not None and self.p < ALPHA


class Moments(NamedTuple):
    """What a t-test needs to know of one group."""

    n: int
    mean: float
    variance: float  # of the sample; 0 where n < 2


class Slope(NamedTuple):
    """A straight line through (x, y): `slope` in y a unit of x."""

    slope: float
    intercept: float
    interval: Interval | None  # of the slope; None for fewer than three points


def summarize(sample: Sequence[float]) -> Summary:
    """Return mean, spread and Student's interval of the mean. Raises: ValueError without finite figures."""
    _check(sample)
    mean, n = statistics.fmean(sample), len(sample)
    if n < 2:
        return Summary(mean, n, None, None)
    sd = statistics.stdev(sample)
    half = _t_quantile(1 - ALPHA / 2, n - 1) * sd / math.sqrt(n)
    return Summary(mean, n, sd, Interval(mean - half, mean + half))


def compare(test: Sequence[float], baseline: Sequence[float], *, resample: bool = True) -> Comparison:
    """Return the difference of two groups' means, and how sure it is; `resample`: by bootstrap as well.

    Raises: ValueError as summarize.
    """
    found = contrast([moments(test)], [moments(baseline)])
    bootstrapped = _bootstrap(test, baseline) if resample and found.t is not None else None
    return found._replace(bootstrap=bootstrapped, hedges_g=hedges_g(test, baseline))


def moments(sample: Sequence[float]) -> Moments:
    """Return a sample's mean and variance. Raises: ValueError without finite figures."""
    _check(sample)
    return Moments(
        len(sample), statistics.fmean(sample), statistics.variance(sample) if len(sample) > 1 else 0.0
    )


def contrast(plus: Sequence[Moments], minus: Sequence[Moments]) -> Comparison:
    """Return the sum of some independent groups' means less that of others, by Welch and Satterthwaite.

    Of one group each it is Welch's t-test. No interval where any group has fewer than two repeats.
    """
    groups = [*plus, *minus]
    delta = math.fsum([g.mean for g in plus] + [-g.mean for g in minus])
    if any(group.n < 2 for group in groups):
        return Comparison(delta)
    spread = [(group.variance / group.n, group.n - 1) for group in groups]
    error = math.sqrt(math.fsum(share for share, _ in spread))
    if error == 0:  # counters that stand still, or figures made up: no spread to judge by
        p = 1.0 if delta == 0 else 0.0
        return Comparison(delta, Interval(delta, delta), p=p, detectable=0.0)
    # As shares of the error: the squares of small variances would vanish.
    df = 1 / math.fsum((share / error**2) ** 2 / degrees for share, degrees in spread)
    t = delta / error
    half = _t_quantile(1 - ALPHA / 2, df) * error
    return Comparison(
        delta,
        Interval(delta - half, delta + half),
        t=t,
        df=df,
        p=2 * _t_survival(abs(t), df),
        detectable=(_t_quantile(1 - ALPHA / 2, df) + _t_quantile(POWER, df)) * error,
    )


def hedges_g(test: Sequence[float], baseline: Sequence[float]) -> float | None:
    """Return the difference in pooled standard deviations, for small samples too.

    None without any spread, or of fewer than two repeats. Raises: ValueError as summarize.
    """
    return effect(moments(test), moments(baseline))


def effect(ours: Moments, theirs: Moments) -> float | None:
    """Return Hedges' g of two groups; None without any spread, or of fewer than two repeats."""
    if ours.n < 2 or theirs.n < 2:
        return None
    df = ours.n + theirs.n - 2
    pooled = (ours.variance * (ours.n - 1) + theirs.variance * (theirs.n - 1)) / df
    if pooled == 0:
        return None
    return (ours.mean - theirs.mean) / math.sqrt(pooled) * (1 - 3 / (4 * df - 1))


def fit(points: Sequence[tuple[float, float]]) -> Slope | None:
    """Return the least-squares line; None where all x are equal or there are fewer than two points.

    Raises: ValueError for a figure that is not finite.
    """
    if len({x for x, _ in points}) < 2:
        return None
    _check([figure for point in points for figure in point])
    xs, ys = zip(*points, strict=True)
    line = statistics.linear_regression(xs, ys)
    if len(points) < 3:
        return Slope(line.slope, line.intercept, None)
    mean = statistics.fmean(xs)
    left = sum((y - line.intercept - line.slope * x) ** 2 for x, y in points)
    error = math.sqrt(left / (len(points) - 2) / sum((x - mean) ** 2 for x in xs))
    half = _t_quantile(1 - ALPHA / 2, len(points) - 2) * error
    return Slope(line.slope, line.intercept, Interval(line.slope - half, line.slope + half))


def outliers(sample: Sequence[float]) -> list[int]:
    """Return the places of values that stand out, by OUTLIER_METHOD.

    None of fewer than four, and none where half of them are the same. Raises: ValueError as summarize.
    """
    _check(sample)
    if len(sample) < _MIN_FOR_OUTLIERS:
        return []
    median = statistics.median(sample)
    deviation = statistics.median(abs(value - median) for value in sample)
    if deviation == 0:
        return []
    scores = (0.6745 * abs(value - median) / deviation for value in sample)
    return [place for place, score in enumerate(scores) if score > OUTLIER_SCORE]


def _check(sample: Sequence[float]) -> None:
    if not sample or not all(math.isfinite(value) for value in sample):
        raise ValueError("statistics need at least one figure, and finite ones")


def _bootstrap(test: Sequence[float], baseline: Sequence[float]) -> Interval | None:
    """Return the BCa interval of the difference of means; None for too few repeats to resample."""
    if min(len(test), len(baseline)) < _MIN_FOR_BOOTSTRAP:
        return None
    import numpy as np  # noqa: PLC0415 - heavy

    random = np.random.default_rng(SEED)
    ours, theirs = np.asarray(test, dtype=float), np.asarray(baseline, dtype=float)
    means = (s[random.integers(0, s.size, (RESAMPLES, s.size))].mean(axis=1) for s in (ours, theirs))
    found = np.sort(next(means) - next(means))
    delta = ours.mean() - theirs.mean()
    below = float(np.mean(found < delta) + np.mean(found <= delta)) / 2
    if not 0 < below < 1:
        return None
    normal = statistics.NormalDist()
    bias = normal.inv_cdf(below)
    # The jackknife's influence of a value on a mean is its distance from that mean.
    away = (ours - ours.mean()) / ours.size, (theirs.mean() - theirs) / theirs.size
    squares = sum(float((a**2).sum()) for a in away)
    skew = sum(float((a**3).sum()) for a in away) / (6 * squares**1.5)

    def edge(probability: float) -> float:
        z = bias + normal.inv_cdf(probability)
        return float(np.quantile(found, normal.cdf(bias + z / (1 - skew * z))))

    return Interval(edge(ALPHA / 2), edge(1 - ALPHA / 2))


def _t_quantile(probability: float, df: float) -> float:
    from scipy import special  # noqa: PLC0415 - heavy; of scipy the lightest part

    return float(special.stdtrit(df, probability))


def _t_survival(t: float, df: float) -> float:
    from scipy import special  # noqa: PLC0415 - as above

    return float(special.stdtr(df, -t))
