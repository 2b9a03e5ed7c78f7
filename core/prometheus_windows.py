"""The energy of a past window, from the samples that Prometheus or VictoriaMetrics kept. Pure.

A window has an energy only if the samples cover all of it: otherwise a part would pass for the whole.

1. `powerbench_node_energy_joules_total` counts first: its components do not overlap. Without it come
   `rapl_energy_joules_total` and then `rapl_power_watts`, of package and dram zones. The first of the three
   that has samples in the window decides.
2. A machine may be scraped several times, by two jobs or on two ports: each of its series counts once. Series
   of several machines are never added up.
3. A counter's gain is interpolated at both edges of the window, because PromQL's `increase` extrapolates; a
   gauge is integrated by trapezoids. Samples must surround each edge, at most a minute away, and at most as
   far apart as the window is long. So a window that is shorter than the scrape interval does not have an
   energy, because that would be a share of a longer step.
4. A source that stood still was replaced by another one. An estimate is never added to a measurement of the
   same component.

Samples are (Unix seconds, value), in any order. Values are in the series' own unit: joules, or watts.

Source: https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries,
https://docs.victoriametrics.com/keyconcepts/#instant-query
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from powerbench_agent.core.model import ESTIMATE
from powerbench_agent.core.results import Energy, Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NODE = "powerbench_node_energy_joules_total"
RAPL = "rapl_energy_joules_total"
POWER = "rapl_power_watts"
METRICS = (NODE, RAPL, POWER)  # in order of preference

REACH = 60.0  # seconds between an edge and the samples around it: a minute is the slowest usual scrape
JITTER = 1.1  # a scrape interval is kept to within a tenth
MARGIN_SECONDS = 120.0  # asked for on both sides, so that a sample lies beyond each edge
UNNAMED_SOURCE = "prometheus"  # the source of a series that names none

_COMPONENTS = ("cpu", "dram", "gpu")
_ZONES = {"package": "cpu", "dram": "dram"}  # older exporters' zones are package-0 or package_0
# All other labels come from the scrape.
_AGENT_LABELS = ("__name__", "component", "source", "package", "zone", "path")
_NOT_OF_MACHINES = frozenset((*_AGENT_LABELS, "job"))

Point = tuple[float, float]
Labels = tuple[tuple[str, str], ...]


class PastWindow(NamedTuple):
    """A span of Unix seconds."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.begin

    @property
    def is_possible(self) -> bool:
        """Whether a clock can have shown these times, in this order."""
        return 0 < self.begin < self.end < 1e11


class Series(NamedTuple):
    """One series' raw samples."""

    labels: Mapping[str, str]
    samples: Sequence[Point]

    @property
    def name(self) -> str:
        """The metric."""
        return self.labels.get("__name__", "")

    @property
    def host(self) -> str:
        """The address that it was scraped from, without the port."""
        instance = self.labels.get("instance", "")
        return instance.rpartition(":")[0] or instance


class WindowEnergy(NamedTuple):
    """What the samples say about a window."""

    metric: str = ""  # the metric that decided; "" if none has samples in the window
    energy: Energy | None = None  # None if its samples do not cover the window
    restarted: bool = False  # a counter started again from 0: what it gained just before that is lost


class Answer(NamedTuple):
    """A server's answer to a query."""

    series: list[Series]
    error: str = ""  # why it refused the query; "" if it did not


class NotPrometheus(Exception):  # noqa: N818 - a verdict
    """An answer that does not have the form of Prometheus's API."""


class SeveralMachines(Exception):  # noqa: N818 - a verdict
    """The samples come from several machines, which differ in the values of a label."""

    def __init__(self, label: str, values: Sequence[str]) -> None:
        super().__init__(f"several machines answer ({label} {', '.join(values[:3])})")
        self.label = label
        self.values = values


# -- asking ------------------------------------------------------------------------------------------


def range_query(selector: str, window: PastWindow, now: float = math.inf) -> dict[str, str]:
    """Return the parameters of an instant query for the raw samples in and around a window, up to `now`."""
    until = min(window.end + MARGIN_SECONDS, max(now, window.end))
    span = math.ceil(until - window.begin + MARGIN_SECONDS)
    return {"query": f"{selector}[{span}s]", "time": f"{until:.3f}"}


class _WireSeries(msgspec.Struct, frozen=True):
    metric: dict[str, str]
    values: list[tuple[float, str]] = []


class _WireData(msgspec.Struct, frozen=True):
    result: list[_WireSeries] = []


class _WireAnswer(msgspec.Struct, frozen=True):
    status: str
    data: _WireData | None = None
    error: str = ""


def parse_answer(body: bytes) -> Answer:
    """Return what a server answered to a `range_query`. Raises: NotPrometheus."""
    try:
        answer = msgspec.json.decode(body, type=_WireAnswer)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise NotPrometheus(str(error)) from None
    if answer.status != "success":
        return Answer([], answer.error or answer.status)
    found = answer.data.result if answer.data is not None else []
    return Answer([Series(one.metric, _numbers(one.values)) for one in found])


def _numbers(values: Iterable[tuple[float, str]]) -> list[Point]:
    samples = []
    for moment, text in values:
        with contextlib.suppress(ValueError):
            samples.append((moment, float(text)))
    return _sorted(samples)


# -- energy ------------------------------------------------------------------------------------------


def energy_of(series: Iterable[Series], window: PastWindow) -> WindowEnergy:
    """Return a window's energy out of all series that a server has; other metrics are passed over.

    Raises: SeveralMachines.
    """
    found = deciding_series(series, window)
    if not found:
        return WindowEnergy()
    _check_one_machine(found)
    return _energy_of_metric(found[0].name, found, window)


def deciding_series(series: Iterable[Series], window: PastWindow) -> list[Series]:
    """Return the series that a window's energy comes from: the first metric's that has samples in it."""
    known = [one for one in series if one.name in METRICS and _component(one.labels)]
    inside = [one for one in known if _has_samples_in(one, window)]
    for metric in METRICS:
        found = [one for one in inside if one.name == metric]
        if found:
            return found
    return []


def is_energy(series: Series) -> bool:
    """Return whether a series is of one of the metrics that hold energy."""
    return series.name in METRICS


def _energy_of_metric(metric: str, series: Sequence[Series], window: PastWindow) -> WindowEnergy:
    parts: dict[tuple[str, str], float] = defaultdict(float)
    restarted = False
    for copies in _copies(_without_twins(series)):
        chosen = _gain(copies, window)
        if chosen is None:
            return WindowEnergy(metric)
        one, joules = chosen
        parts[_component(one.labels), _source(one)] += joules
        if metric != POWER and began_again(one.samples, *window):
            restarted = True
    counted = _counted(parts)
    energy = None if counted is None else _energy(counted, window)
    return WindowEnergy(metric, energy, restarted)


def _component(labels: Mapping[str, str]) -> str:
    """Return the component that a series counts for; "" if it is within another, or is the whole machine."""
    if labels.get("__name__") == NODE:
        component = labels.get("component", "")
        return component if component in _COMPONENTS else ""
    zone = labels.get("zone", "")
    for start, component in _ZONES.items():
        if zone.startswith(start):
            return component
    return ""


def _source(series: Series) -> str:
    """Return what measured a series."""
    if series.name != NODE:
        return "rapl"
    return series.labels.get("source") or UNNAMED_SOURCE


def _has_samples_in(series: Series, window: PastWindow) -> bool:
    """Return whether a series has a sample in the window, or samples on both sides of it."""
    moments = [moment for moment, value in series.samples if math.isfinite(value)]
    return bool(moments) and min(moments) < window.end and max(moments) > window.begin


def _check_one_machine(series: Iterable[Series]) -> None:
    """Raise SeveralMachines unless all series are of one machine."""
    machines: dict[Labels, Mapping[str, str]] = {}
    for one in series:
        machines.setdefault(_machine(one), one.labels)
    if len(machines) < 2:
        return
    identities = [dict(machine) for machine in machines]
    names = sorted({name for identity in identities for name in identity})
    differing = [name for name in names if len({identity.get(name) for identity in identities}) > 1]
    label = "instance" if "instance" in differing else differing[0]
    values = {labels.get(label, "") for labels in machines.values()}
    raise SeveralMachines(label, sorted(value[:100] for value in values))


def _machine(series: Series) -> Labels:
    """Return the labels that tell machines apart: those of the scrape, without its job and the port."""
    labels = {name: value for name, value in series.labels.items() if name not in _NOT_OF_MACHINES}
    if "instance" in labels:
        labels["instance"] = series.host
    return tuple(sorted(labels.items()))


def _copies(series: Iterable[Series]) -> list[list[Series]]:
    """Return one machine's series as groups of those that differ only in how they were scraped."""
    found: dict[Labels, list[Series]] = defaultdict(list)
    for one in series:
        own = tuple((name, one.labels.get(name, "")) for name in _AGENT_LABELS)
        found[own].append(one)
    return list(found.values())


def _without_twins(series: Sequence[Series]) -> list[Series]:
    """Return the series without the `intel-rapl-mmio` twins of zones that are there themselves."""
    zones: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in series:
        place = one.labels.get("package") or one.labels.get("zone", "")
        zones[_component(one.labels), place].append(one)
    kept: list[Series] = []
    for same in zones.values():
        plain = [one for one in same if not _is_mmio(one)]
        kept += plain or same
    return kept


def _is_mmio(series: Series) -> bool:
    return any("mmio" in series.labels.get(name, "") for name in ("path", "zone"))


def _gain(copies: Sequence[Series], window: PastWindow) -> tuple[Series, float] | None:
    """Return the most often scraped copy that covers the window, and its joules there."""
    reach = min(window.seconds, REACH)
    for one in sorted(copies, key=lambda one: len(one.samples), reverse=True):
        if one.name == POWER:
            joules = integral(one.samples, *window, reach=reach)
        else:
            joules = increase(one.samples, *window, reach=reach, step=window.seconds * JITTER)
        if joules is not None and math.isfinite(joules) and joules >= 0:
            return one, joules
    return None


def _counted(parts: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float] | None:
    """Return the parts without those that others replaced; None if an estimate and a measurement mix."""
    measured = any(source != ESTIMATE for _, source in parts)
    counted = {}
    for (component, source), joules in parts.items():
        if joules == 0:
            others = [other for (of, _), other in parts.items() if of == component]
            replaced = any(other > 0 for other in others)
            if replaced or (source == ESTIMATE and measured):
                continue
        counted[component, source] = joules
    for component, source in counted:
        sources = {other for of, other in counted if of == component}
        if source == ESTIMATE and len(sources) > 1:
            return None
    return counted


def _energy(parts: Mapping[tuple[str, str], float], window: PastWindow) -> Energy | None:
    """Return the sum of the parts; None if it is not finite."""
    joules = sum(parts.values())
    if not math.isfinite(joules):
        return None
    sources = sorted({source for _, source in parts})
    shown = [
        Part(component, source, part, part / window.seconds)
        for (component, source), part in sorted(parts.items())
    ]
    return Energy(
        source=" + ".join(sources),
        seconds=window.seconds,
        joules=joules,
        mean_watts=joules / window.seconds,
        measured=ESTIMATE not in sources,
        parts=tuple(shown),
    )


# -- one series --------------------------------------------------------------------------------------


def increase(
    samples: Iterable[Point], start: float, end: float, *, reach: float = REACH, step: float = math.inf
) -> float | None:
    """Return what a counter gained from `start` to `end`, interpolated at both edges.

    A counter that goes back has started again from 0: what it shows then is what it gained. What it gained
    between its last sample and the reset is lost, as it is to Prometheus's own increase().
    None if an edge does not have a sample within `reach` seconds on both its sides, if those two are more
    than `step` seconds apart, or if the window is empty.
    """
    known = _sorted(samples)
    first = _around(known, start, reach, step)
    last = _around(known, end, reach, step)
    if first is None or last is None or not start < end:
        return None
    # Only what lies between decides: a reset before the window does not matter.
    rising = _without_resets(known[first.before : last.after + 1])
    return _between(rising, first, last, start, end)


def began_again(samples: Iterable[Point], start: float, end: float) -> bool:
    """Return whether a counter went back between the samples around `start` and those around `end`."""
    known = _sorted(samples)
    first, last = _around(known, start, math.inf), _around(known, end, math.inf)
    if first is None or last is None:
        return False
    values = [value for _, value in known[first.before : last.after + 1]]
    return any(after < before for before, after in pairwise(values))


def integral(samples: Iterable[Point], start: float, end: float, *, reach: float = REACH) -> float | None:
    """Return a gauge's integral from `start` to `end`: joules of watts. Between two samples it is their mean.

    None if the samples do not surround the window, two of them around or in it are more than `reach`
    seconds apart, or the window is empty.
    """
    known = _sorted(samples)
    first, last = _around(known, start, reach), _around(known, end, reach)
    if first is None or last is None or not start < end:
        return None
    used = known[first.before : last.after + 1]
    total = 0.0
    sums = [(used[0][0], 0.0)]
    for (before, low), (after, high) in pairwise(used):
        if after - before > reach:
            return None
        total += (after - before) * (low + high) / 2
        sums.append((after, total))
    return _between(sums, first, last, start, end)


def mean(samples: Iterable[Point], start: float, end: float, *, reach: float = REACH) -> float | None:
    """Return the mean of a gauge's samples from `start` to `end`.

    None if there are none, or if more than `reach` seconds at either edge have none.
    """
    inside = [sample for sample in _sorted(samples) if start <= sample[0] <= end]
    if not inside:
        return None
    first, last = inside[0][0], inside[-1][0]
    if first - start > reach or end - last > reach:
        return None
    return math.fsum(value for _, value in inside) / len(inside)


class _Neighbours(NamedTuple):
    """Places of the samples on both sides of an edge; the same one twice if it lies on the edge."""

    before: int
    after: int


def _sorted(samples: Iterable[Point]) -> list[Point]:
    """Return the finite samples in order, one for each moment; the mark of a stale series is NaN."""
    finite = {moment: value for moment, value in samples if math.isfinite(moment) and math.isfinite(value)}
    return sorted(finite.items())


def _around(known: Sequence[Point], edge: float, reach: float, step: float = math.inf) -> _Neighbours | None:
    """Return the places of the last sample at or before the edge, and of the first at or after it."""
    before = max((i for i, (moment, _) in enumerate(known) if moment <= edge), default=None)
    after = min((i for i, (moment, _) in enumerate(known) if moment >= edge), default=None)
    if before is None or after is None:
        return None
    left, right = known[before][0], known[after][0]
    if edge - left > reach or right - edge > reach or right - left > step:
        return None
    return _Neighbours(before, after)


def _without_resets(known: Sequence[Point]) -> list[Point]:
    """Return the counter as if it had never started again."""
    rising: list[Point] = []
    lost = 0.0
    previous = -math.inf
    for moment, value in known:
        if value < previous:
            lost += previous
        rising.append((moment, value + lost))
        previous = value
    return rising


def _between(
    rising: Sequence[Point], first: _Neighbours, last: _Neighbours, start: float, end: float
) -> float:
    """Return the difference between `start` and `end`; `rising` begins at the sample before `start`."""
    offset = first.before
    at_start = _at(rising[0], rising[first.after - offset], start)
    at_end = _at(rising[last.before - offset], rising[last.after - offset], end)
    return at_end - at_start


def _at(before: Point, after: Point, moment: float) -> float:
    """Return the value at a moment between two samples."""
    left, low = before
    right, high = after
    if right == left:
        return low
    return low + (high - low) * (moment - left) / (right - left)
