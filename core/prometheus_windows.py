"""What a counter gained, or a gauge was, between two moments that fall between its samples. Pure.

Samples are (Unix seconds, value), as a time-series database hands them out, in any order. Values are in the
series' own unit: joules in, joules out; watts in, watts out.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

REACH = 60.0  # seconds between an edge and the samples around it: a minute is the slowest usual scrape


def increase(
    samples: Iterable[tuple[float, float]], start: float, end: float, *, reach: float = REACH
) -> float | None:
    """Return what a counter gained from `start` to `end`, interpolated at both edges.

    A counter that goes back has begun again at 0: what it shows then is what it gained. What it gained
    between its last sample and the reset is lost, as it is to Prometheus's own increase().
    None where either edge has no sample within `reach` seconds on both its sides, or the window is empty.
    """
    known = _sorted(samples)
    first, last = _around(known, start, reach), _around(known, end, reach)
    if first is None or last is None or not start < end:
        return None
    # Only what lies between decides: a counter that began again before the window is as any other.
    rising = _without_resets(known[first[0] : last[1] + 1])
    offset = first[0]
    return _at(rising, last[0] - offset, last[1] - offset, end) - _at(rising, 0, first[1] - offset, start)


def began_again(samples: Iterable[tuple[float, float]], start: float, end: float) -> bool:
    """Return whether a counter went back between the samples around `start` and those around `end`."""
    known = _sorted(samples)
    first, last = _around(known, start, math.inf), _around(known, end, math.inf)
    if first is None or last is None:
        return False
    values = [value for _, value in known[first[0] : last[1] + 1]]
    return any(after < before for before, after in pairwise(values))


def integral(
    samples: Iterable[tuple[float, float]], start: float, end: float, *, reach: float = REACH
) -> float | None:
    """Return a gauge's integral from `start` to `end`: joules of watts. Between two samples it is their mean.

    None where the samples do not surround the window, two of them around or in it are more than `reach`
    seconds apart, or the window is empty.
    """
    known = _sorted(samples)
    first, last = _around(known, start, reach), _around(known, end, reach)
    if first is None or last is None or not start < end:
        return None
    total, sums = 0.0, [(known[first[0]][0], 0.0)]
    for (before, low), (after, high) in pairwise(known[first[0] : last[1] + 1]):
        if after - before > reach:
            return None
        total += (after - before) * (low + high) / 2
        sums.append((after, total))
    offset = first[0]
    return _at(sums, last[0] - offset, last[1] - offset, end) - _at(sums, 0, first[1] - offset, start)


def mean(
    samples: Iterable[tuple[float, float]], start: float, end: float, *, reach: float = REACH
) -> float | None:
    """Return the mean of a gauge's samples from `start` to `end`.

    None where there is none, or a stretch of more than `reach` seconds from or to an edge has none.
    """
    inside = [sample for sample in _sorted(samples) if start <= sample[0] <= end]
    if not inside or inside[0][0] - start > reach or end - inside[-1][0] > reach:
        return None
    return math.fsum(value for _, value in inside) / len(inside)


def _sorted(samples: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the samples in order, one a moment, and without what is no number (a stale series' mark)."""
    return sorted({time: value for time, value in samples if math.isfinite(value)}.items())


def _around(known: Sequence[tuple[float, float]], edge: float, reach: float) -> tuple[int, int] | None:
    """Return the places of the last sample at or before the edge, and of the first at or after it."""
    before = max((i for i, (time, _) in enumerate(known) if time <= edge), default=None)
    after = min((i for i, (time, _) in enumerate(known) if time >= edge), default=None)
    if before is None or after is None or max(edge - known[before][0], known[after][0] - edge) > reach:
        return None
    return before, after


def _without_resets(known: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the counter as if it had never begun again."""
    rising, lost, previous = [], 0.0, -math.inf
    for time, value in known:
        if value < previous:
            lost += previous
        rising.append((time, value + lost))
        previous = value
    return rising


def _at(rising: Sequence[tuple[float, float]], before: int, after: int, moment: float) -> float:
    (left, low), (right, high) = rising[before], rising[after]
    return low if right == left else low + (high - low) * (moment - left) / (right - left)
