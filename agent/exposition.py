"""Snapshots to pages: Prometheus text 0.0.4 and OpenMetrics 1.0.0. Pure.

Each collector's fragment is rendered once for each reading and kept; a page is fragments joined. Fragments
that share a family are rendered together, so that no page has a family or a series twice.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/.
"""

from __future__ import annotations

import gzip
import platform
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import core, exposition, process_collector
from prometheus_client.openmetrics import exposition as openmetrics_exposition

from powerbench_agent.agent import __version__
from powerbench_agent.core.metric_names import family_name, taken_names
from powerbench_agent.core.model import Metric, Reading, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from powerbench_agent.core.model import Snapshot


class Format(NamedTuple):
    """A text format: its media type, how to render families, and the last line of a page."""

    content_type: str
    render: Callable[[_Families], bytes]
    end: bytes


class _Families(NamedTuple):
    """Families as prometheus_client renders them: an object with a collect()."""

    families: list[core.Metric]

    def collect(self) -> Iterator[core.Metric]:
        return iter(self.families)


TEXT = Format("text/plain; version=0.0.4; charset=utf-8", exposition.generate_latest, b"")
OPENMETRICS = Format(
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
    openmetrics_exposition.generate_latest,
    b"# EOF\n",
)

BUILD_INFO = Metric(
    "powerbench_build_info", "gauge", "Version of the agent and of its Python.", ("version", "python")
)
COLLECTOR_UP = Metric(
    "powerbench_collector_up", "gauge", "Whether the last reading succeeded.", ("collector",)
)
COLLECTOR_DURATION = Metric(
    "powerbench_collector_duration_seconds", "gauge", "How long the last reading took.", ("collector",)
)
COLLECTOR_SUCCESS = Metric(
    "powerbench_collector_last_success_timestamp_seconds",
    "gauge",
    "When a reading last succeeded.",
    ("collector",),
)
COLLECTOR_FAILURES = Metric(
    "powerbench_collector_failures_total",
    "counter",
    "Readings that failed or missed their deadline.",
    ("collector",),
)
COLLECTOR_FAULTS = Metric(
    "powerbench_collector_faults_total",
    "counter",
    "Readings in which a part of the source failed or its value was refused, while the rest went on.",
    ("collector", "part"),
)
SERIES_DROPPED = Metric(
    "powerbench_series_dropped_total",
    "counter",
    "Samples left off a page because their series, or their family with another type, was already on it.",
)
REQUESTS_FORBIDDEN = Metric(
    "powerbench_http_forbidden_total", "counter", "Requests refused because of who sent them."
)
HTTP_REJECTED = Metric(
    "powerbench_http_rejected_total",
    "counter",
    "Connections and requests that were refused or given up, by reason.",
    ("reason",),
)
AGENT_METRICS = (
    BUILD_INFO,
    COLLECTOR_UP,
    COLLECTOR_DURATION,
    COLLECTOR_SUCCESS,
    COLLECTOR_FAILURES,
    COLLECTOR_FAULTS,
    SERIES_DROPPED,
    REQUESTS_FORBIDDEN,
    HTTP_REJECTED,
)

# What prometheus_client says of the process; here only so that nobody else says it.
PROCESS_METRICS = (
    Metric("process_cpu_seconds_total", "counter", ""),
    Metric("process_max_fds", "gauge", ""),
    Metric("process_open_fds", "gauge", ""),
    Metric("process_resident_memory_bytes", "gauge", ""),
    Metric("process_start_time_seconds", "gauge", ""),
    Metric("process_virtual_memory_bytes", "gauge", ""),
)
_PROCESS = process_collector.ProcessCollector(registry=None)


def choose_format(accept: str) -> Format:
    """Return the format that an Accept header asks for."""
    return OPENMETRICS if "application/openmetrics-text" in accept else TEXT


class _Fragment(NamedTuple):
    """One collector's part of a page, rendered."""

    reading: Reading
    families: frozenset[str]
    dropped: int
    text: bytes


MAX_PAGES = 16  # kept, of one snapshot
_PageKey = tuple[frozenset[str], Format, bool]  # the collectors, the format, whether it is compressed


class Pages:
    """Renders pages, and keeps what does not have to be rendered again."""

    def __init__(
        self,
        rejections: Mapping[str, int] = MappingProxyType({}),
        process: Callable[[], Iterable[core.Metric]] = _PROCESS.collect,
    ) -> None:
        """`rejections`: how many so far, by reason."""
        self._rejections = rejections
        self._process = process
        self._fragments: dict[tuple[str, Format], _Fragment] = {}
        self._pages: dict[_PageKey, bytes] = {}  # of one snapshot
        self._snapshot: Snapshot | None = None
        self._dropped = 0
        self._counted: dict[str, Reading] = {}
        self._merged: Snapshot | None = None

    def page(
        self, snapshot: Snapshot, names: Collection[str], form: Format, *, gzipped: bool = False
    ) -> bytes:
        """Return the page of the named collectors and of the agent itself, encoded as asked."""
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._pages.clear()
        key = (frozenset(names), form, gzipped)
        page = self._pages.get(key)
        if page is None:
            page = self._render(snapshot, names, form)
            if gzipped:
                page = gzip.compress(page, compresslevel=1, mtime=0)
            if len(self._pages) >= MAX_PAGES:  # anyone may ask for any combination of collectors
                del self._pages[next(iter(self._pages))]
            self._pages[key] = page
        return page

    def _render(self, snapshot: Snapshot, names: Collection[str], form: Format) -> bytes:
        readings = {
            name: state.reading
            for name, state in snapshot.states.items()
            if name in names and state.reading is not None
        }
        process = list(self._process())
        fragments = [self._fragment(name, reading, form) for name, reading in readings.items()]
        for name, kept_form in list(self._fragments):
            if name not in snapshot.states:
                del self._fragments[name, kept_form]
        reserved = _OWN_NAMES.union(*(_names(family) for family in process))
        seen = [*reserved, *(family for fragment in fragments for family in fragment.families)]
        if len(seen) == len(set(seen)):
            parts = [fragment.text for fragment in fragments]
        else:  # two collectors share a family, or one has ours: render them together
            samples = [sample for reading in readings.values() for sample in reading.samples]
            families, dropped = group(samples, reserved)
            parts = [render(families, form)]
            if self._merged is not snapshot:
                self._merged = snapshot
                self._dropped += dropped - sum(fragment.dropped for fragment in fragments)
        own = [*group(self._own_samples(snapshot, names))[0], *process]
        return b"".join([*parts, render(own, form), form.end])

    def _fragment(self, name: str, reading: Reading, form: Format) -> _Fragment:
        kept = self._fragments.get((name, form))
        if kept is None or kept.reading is not reading:
            families, dropped = group(reading.samples)
            names = frozenset().union(*(_names(family) for family in families))
            kept = _Fragment(reading, names, dropped, render(families, form))
            self._fragments[name, form] = kept
            if self._counted.get(name) is not reading:  # once, in however many formats it is shown
                self._counted[name] = reading
                self._dropped += dropped
        return kept

    def _own_samples(self, snapshot: Snapshot, names: Collection[str]) -> Iterator[Sample]:
        yield BUILD_INFO.sample(1, __version__, platform.python_version())
        yield SERIES_DROPPED.sample(self._dropped)
        yield REQUESTS_FORBIDDEN.sample(self._rejections.get("forbidden", 0))
        for reason, count in self._rejections.items():
            yield HTTP_REJECTED.sample(count, reason)
        for name, state in snapshot.states.items():
            if name not in names:
                continue
            yield COLLECTOR_UP.sample(state.up, name)
            yield COLLECTOR_DURATION.sample(state.duration, name)
            yield COLLECTOR_FAILURES.sample(state.failures, name)
            for part, count in state.faults.items():
                yield COLLECTOR_FAULTS.sample(count, name, part)
            if state.last_success is not None:
                yield COLLECTOR_SUCCESS.sample(state.last_success, name)


def _names(family: core.Metric) -> frozenset[str]:
    return taken_names(family.name, family.type)


_OWN_NAMES = frozenset(name for metric in AGENT_METRICS for name in (metric.name, family_name(metric)))


def group(samples: Iterable[Sample], reserved: Collection[str] = ()) -> tuple[list[core.Metric], int]:
    """Return the samples as families, and how many of them had to be dropped.

    Dropped are samples of a series that is there already, of a family that was first seen with another type,
    and of a name that is reserved or belongs to another family. A family keeps the help of its first sample.
    """
    groups: dict[str, _Group] = {}
    taken = set(reserved)
    dropped = 0
    for metric, values, value in samples:
        name = family_name(metric)
        known = groups.get(name)
        if known is None:
            family = core.Metric(name, _encodable(metric.help), metric.kind)
            names = _names(family)
            if not taken.isdisjoint(names):
                dropped += 1
                continue
            taken |= names
            known = groups[name] = _Group(metric, family, set())
        labels: dict[str, str] = {}
        for label, text in zip(metric.labels, values, strict=True):
            if text:
                labels[label] = _encodable(text)
        series = tuple(sorted(labels.items()))
        if known.first.kind != metric.kind or series in known.series:
            dropped += 1
            continue
        known.series.add(series)
        known.family.add_sample(metric.name, labels, value)
    return [collected.family for collected in groups.values()], dropped


class _Group(NamedTuple):
    """One family while its samples are collected."""

    first: Metric  # it decides the type and the help
    family: core.Metric
    series: set[tuple[tuple[str, str], ...]]  # labels that it has already


def _encodable(text: str) -> str:
    """Return the text without lone surrogates, as in some file names: UTF-8 cannot encode them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def render(families: list[core.Metric], form: Format) -> bytes:
    """Return families as text, without the last line of a page."""
    return form.render(_Families(families)).removesuffix(form.end)
