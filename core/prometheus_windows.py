"""The energy of a past window, out of the samples that a Prometheus or VictoriaMetrics has of it. Pure.

The one rule for the results collector and for `powerbench analyze --prometheus`. Only the first of these
metrics that has samples in the window counts, because their series overlap:

1. `powerbench_node_energy_joules_total`: the components of the node, which do not overlap
2. `rapl_energy_joules_total`: package and dram zones, without mirrored `intel-rapl-mmio` zones
3. `rapl_power_watts`: the same zones, integrated over the window

A counter or gauge is interpolated at both edges of the window (PromQL's `increase` extrapolates). If one
series does not cover the window there is no answer, since a part of the energy would pass for the whole.

Samples are (Unix seconds, value) in any order; joules and watts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core.model import ESTIMATE
from powerbench_agent.core.results import Energy, Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

REACH = 60.0  # seconds between an edge and the samples around it: a minute is the slowest usual scrape

NODE_ENERGY = "powerbench_node_energy_joules_total"
RAPL_ENERGY = "rapl_energy_joules_total"
RAPL_POWER = "rapl_power_watts"
ENERGY_METRICS = (NODE_ENERGY, RAPL_ENERGY, RAPL_POWER)  # in the order in which they are trusted
COMPONENTS = ("cpu", "dram", "gpu")  # of the node; these do not overlap

# What tells series of one machine apart. Another label ("cluster", say) tells machines apart.
_SERIES_LABELS = frozenset(("__name__", "component", "source", "package", "zone", "path", "instance", "job"))


class SampledSeries(NamedTuple):
    """One series' raw samples."""

    labels: Mapping[str, str]
    samples: Sequence[tuple[float, float]]

    @property
    def name(self) -> str:
        """The metric."""
        return self.labels.get("__name__", "")

    @property
    def host(self) -> str:
        """The `instance` it was scraped from, without the port."""
        instance = self.labels.get("instance", "")
        return instance.rpartition(":")[0] or instance

    @property
    def machine(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What tells its machine from others: its host, and labels that are not the series' own."""
        others = sorted(item for item in self.labels.items() if item[0] not in _SERIES_LABELS)
        return self.host, tuple(others)


class SeveralMachines(Exception):  # noqa: N818 - a verdict
    """The samples are of more than one machine; `hosts` and `instances` name them, sorted."""

    def __init__(self, series: Iterable[SampledSeries]) -> None:
        found = list(series)
        self.hosts = sorted({one.host for one in found})
        self.instances = sorted({one.labels.get("instance", "?") for one in found})
        super().__init__(f"several machines: {', '.join(self.hosts)}")


def energy_of_window(series: Iterable[SampledSeries], start: float, end: float) -> Energy | None:
    """Return the energy of one machine from `start` to `end`; None if the samples do not tell.

    Raises: SeveralMachines.
    """
    inside = [one for one in series if touches(one, start, end)]
    metric = next((name for name in ENERGY_METRICS if any(one.name == name for one in inside)), "")
    counted = _once([one for one in inside if one.name == metric])
    if metric == NODE_ENERGY:
        parts = [(one.labels.get("component", ""), one.labels.get("source", ""), one) for one in counted]
        parts = [part for part in parts if part[0] in COMPONENTS]
    else:
        parts = [(component, "rapl", one) for component, one in _zones(counted)]
    measure = integral if metric == RAPL_POWER else increase
    # A window without a sample of its own has a share of a longer step, which is not its own energy.
    reach = min(end - start, REACH)
    joules: defaultdict[tuple[str, str], float] = defaultdict(float)
    for component, source, one in parts:
        gained = measure(one.samples, start, end, reach=reach)
        if gained is None or not math.isfinite(gained) or gained < 0:
            return None
        joules[component, source] += gained
    return _energy(_without_idle_sources(joules), end - start)


def touches(series: SampledSeries, start: float, end: float) -> bool:
    """Return whether a series holds energy, and its samples reach into the window or across it."""
    times = [time for time, value in series.samples if math.isfinite(value)]
    return series.name in ENERGY_METRICS and bool(times) and min(times) < end and max(times) > start


def _once(series: Sequence[SampledSeries]) -> list[SampledSeries]:
    """Return each series once: one machine may be scraped by two jobs, or on two ports.

    Raises: SeveralMachines.
    """
    if len({one.machine for one in series}) > 1:
        raise SeveralMachines(series)
    kept: dict[frozenset[tuple[str, str]], SampledSeries] = {}
    for one in series:
        own = frozenset(item for item in one.labels.items() if item[0] not in ("instance", "job"))
        if own not in kept or len(one.samples) > len(kept[own].samples):
            kept[own] = one
    return list(kept.values())


def _zones(series: Iterable[SampledSeries]) -> list[tuple[str, SampledSeries]]:
    """Return (component, series) of the RAPL zones that do not lie within, or mirror, one another."""
    found: defaultdict[tuple[str, str], list[SampledSeries]] = defaultdict(list)
    for one in series:
        zone = one.labels.get("zone", "")  # of older exporters: package-0, package_0, dram-1
        for prefix, component in (("package", "cpu"), ("dram", "dram")):
            if zone.startswith(prefix):
                found[component, one.labels.get("package") or zone].append(one)
    kept = []
    for (component, _), same in found.items():
        plain = [one for one in same if not any("mmio" in value for value in one.labels.values())]
        kept += [(component, one) for one in plain or same]
    return kept


def _without_idle_sources(joules: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Return the parts without sources that stood still while another one counted their component.

    The agent counts an estimate only until something measures the component, and its counter stays.
    """
    moved = {component for (component, _), gained in joules.items() if gained > 0}
    return {key: gained for key, gained in joules.items() if gained > 0 or key[0] not in moved}


def _energy(joules: Mapping[tuple[str, str], float], seconds: float) -> Energy | None:
    total = math.fsum(joules.values())
    if not joules or not math.isfinite(total):
        return None
    sources = sorted({source for _, source in joules})
    return Energy(
        source=" + ".join(sources),
        seconds=seconds,
        joules=total,
        mean_watts=total / seconds,
        measured=ESTIMATE not in sources,
        parts=tuple(
            Part(component, source, gained, gained / seconds)
            for (component, source), gained in sorted(joules.items())
        ),
    )


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
