"""Snapshots to pages. Does no I/O, apart from logging what is left off.

Each collector's fragment is rendered once for each reading and kept; a page is fragments joined. Fragments
that share a family are rendered together, so that no page has a family or a series twice.
"""

from __future__ import annotations

import gzip
import platform
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import structlog
from prometheus_client import process_collector

from powerbench_agent.agent import __version__
from powerbench_agent.agent.text_format import OPENMETRICS, TEXT, Format, group, render
from powerbench_agent.core.metric_names import family_name, taken_names
from powerbench_agent.core.model import Metric, Reading, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from prometheus_client import core

    from powerbench_agent.core.model import Kind, Snapshot


log = structlog.get_logger("page")

_DROPPED_REMEDY = (
    "find what else has this series, or the name with another type: two *.prom files, or two plug-ins"
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
LIMIT_HITS = Metric(
    "powerbench_limit_hits_total",
    "counter",
    "Readings in which a limit left something out, as COLLECTOR.OPTION, and connections beyond their limit.",
    ("limit",),
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
    LIMIT_HITS,
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


class _Fragment:
    """One collector's part of a page, in the formats that were asked for."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.families, self.dropped = group(reading.samples)
        self.names = frozenset().union(*(family.names for family in self.families))
        self._texts: dict[Format, bytes] = {}

    def text(self, form: Format) -> bytes:
        """Return it in a format."""
        if form not in self._texts:
            self._texts[form] = render(self.families, form)
        return self._texts[form]


MAX_PAGES = 16  # kept, of one snapshot
_MAX_LOGGED = 100  # names of dropped series; a *.prom file may have new ones each time
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
        self._fragments: dict[str, _Fragment] = {}
        self._pages: dict[_PageKey, bytes] = {}  # of one snapshot
        self._snapshot: Snapshot | None = None
        self._dropped = 0
        self._logged: set[str] = set()  # names of which a series was dropped
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
        process = list(_samples_of(self._process()))
        fragments = [self._fragment(name, reading) for name, reading in readings.items()]
        for name in list(self._fragments):
            if name not in snapshot.states:
                del self._fragments[name]
        own, _ = group([*self._own_samples(snapshot, names), *process])
        reserved = _OWN_NAMES.union(*(family.names for family in own))
        seen = [*reserved, *(name for fragment in fragments for name in fragment.names)]
        if len(seen) == len(set(seen)):
            parts = [fragment.text(form) for fragment in fragments]
        else:  # two collectors share a family, or one has ours: render them together
            samples = [sample for reading in readings.values() for sample in reading.samples]
            families, dropped = group(samples, reserved)
            parts = [render(families, form)]
            if self._merged is not snapshot:
                self._merged = snapshot
                counted = sum(fragment.dropped.total() for fragment in fragments)
                self._note_dropped(dropped, dropped.total() - counted)
                own, _ = group([*self._own_samples(snapshot, names), *process])
        return b"".join([*parts, render(own, form), form.end])

    def _fragment(self, name: str, reading: Reading) -> _Fragment:
        kept = self._fragments.get(name)
        if kept is None or kept.reading is not reading:
            kept = self._fragments[name] = _Fragment(reading)
            self._note_dropped(kept.dropped, kept.dropped.total())
        return kept

    def _note_dropped(self, names: Iterable[str], count: int) -> None:
        """Count dropped series, and log each of their names once."""
        self._dropped += count
        for name in names:
            if name not in self._logged and len(self._logged) < _MAX_LOGGED:
                self._logged.add(name)
                log.warning("series left off the page", metric=name, remedy=_DROPPED_REMEDY)

    def _own_samples(self, snapshot: Snapshot, names: Collection[str]) -> Iterator[Sample]:
        yield BUILD_INFO.sample(1, __version__, platform.python_version())
        yield SERIES_DROPPED.sample(self._dropped)
        yield REQUESTS_FORBIDDEN.sample(self._rejections.get("forbidden", 0))
        for reason, count in self._rejections.items():
            yield HTTP_REJECTED.sample(count, reason)
        yield LIMIT_HITS.sample(self._rejections.get("connection_limit", 0), "connections")
        for name, state in snapshot.states.items():
            if name not in names:
                continue
            yield COLLECTOR_UP.sample(state.up, name)
            yield COLLECTOR_DURATION.sample(state.duration, name)
            yield COLLECTOR_FAILURES.sample(state.failures, name)
            for part, count in state.faults.items():
                yield COLLECTOR_FAULTS.sample(count, name, part)
            for option, count in state.limit_hits.items():
                yield LIMIT_HITS.sample(count, f"{name}.{option}")
            if state.last_success is not None:
                yield COLLECTOR_SUCCESS.sample(state.last_success, name)


def _samples_of(families: Iterable[core.Metric]) -> Iterator[Sample]:
    """Yield prometheus_client's samples as ours."""
    for family in families:
        for sample in family.samples:
            kind = cast("Kind", family.type)
            metric = Metric(sample.name, kind, family.documentation, tuple(sample.labels))
            yield metric.sample(sample.value, *sample.labels.values())


_OWN_NAMES = frozenset().union(*(taken_names(family_name(metric), metric.kind) for metric in AGENT_METRICS))
