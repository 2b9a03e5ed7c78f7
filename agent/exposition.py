"""Snapshots to pages: Prometheus text 0.0.4 and OpenMetrics 1.0.0. Pure.

Each collector's fragment is rendered once a reading and kept; a page is fragments joined. Fragments that
share a family are rendered together, so that no page holds a family or a series twice.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/.
"""

from __future__ import annotations

import gzip
import platform
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import core, exposition, process_collector
from prometheus_client.openmetrics import exposition as openmetrics_exposition

from powerbench_agent.agent import __version__
from powerbench_agent.core.model import Metric, Reading, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from powerbench_agent.core.model import Snapshot


class Format(NamedTuple):
    """A text format: its media type, how to render families, and what ends a page."""

    content_type: str
    render: Callable[[_Families], bytes]
    end: bytes


class _Families(NamedTuple):
    """What prometheus_client renders: anything with a collect()."""

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
SERIES_DROPPED = Metric(
    "powerbench_series_dropped_total",
    "counter",
    "Samples left off a page because their series, or their family with another type, was already on it.",
)
REQUESTS_FORBIDDEN = Metric(
    "powerbench_http_forbidden_total", "counter", "Requests refused because of who sent them."
)
AGENT_METRICS = (
    BUILD_INFO,
    COLLECTOR_UP,
    COLLECTOR_DURATION,
    COLLECTOR_SUCCESS,
    COLLECTOR_FAILURES,
    SERIES_DROPPED,
    REQUESTS_FORBIDDEN,
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


class Pages:
    """Renders pages, and remembers what it need not render again."""

    def __init__(self, process: Callable[[], Iterable[core.Metric]] = _PROCESS.collect) -> None:
        self.forbidden = 0  # counted by whoever refuses a request
        self._process = process
        self._fragments: dict[tuple[str, Format], _Fragment] = {}
        self._pages: dict[tuple[frozenset[str], Format, bool], tuple[Snapshot, bytes]] = {}
        self._dropped = 0
        self._counted: dict[str, Reading] = {}
        self._merged: Snapshot | None = None

    def page(
        self, snapshot: Snapshot, names: Collection[str], form: Format, *, gzipped: bool = False
    ) -> bytes:
        """Return the page of the named collectors and of the agent itself, encoded as asked."""
        key = (frozenset(names), form, gzipped)
        kept = self._pages.get(key)
        if kept is not None and kept[0] is snapshot:
            return kept[1]
        if gzipped:
            page = gzip.compress(self.page(snapshot, names, form), compresslevel=1, mtime=0)
        else:
            page = self._render(snapshot, names, form)
        self._pages = {
            k: v for k, v in self._pages.items() if v[0] is snapshot
        }  # at most one snapshot's pages
        self._pages[key] = (snapshot, page)
        return page

    def _render(self, snapshot: Snapshot, names: Collection[str], form: Format) -> bytes:
        readings = {
            name: state.reading
            for name, state in snapshot.states.items()
            if name in names and state.reading is not None
        }
        process = list(self._process())
        fragments = [self._fragment(name, reading, form) for name, reading in readings.items()]
        self._fragments = {k: v for k, v in self._fragments.items() if k[0] in snapshot.states}
        reserved = _OWN_NAMES.union(*(_names(family) for family in process))
        seen = [*reserved, *(family for fragment in fragments for family in fragment.families)]
        if len(seen) == len(set(seen)):
            parts = [fragment.text for fragment in fragments]
        else:  # two collectors share a family (a text file's, say), or one has ours: render them as one
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
            if self._counted.get(name) is not reading:  # once, however many formats show it
                self._counted[name] = reading
                self._dropped += dropped
        return kept

    def _own_samples(self, snapshot: Snapshot, names: Collection[str]) -> Iterator[Sample]:
        yield BUILD_INFO.sample(1, __version__, platform.python_version())
        yield SERIES_DROPPED.sample(self._dropped)
        yield REQUESTS_FORBIDDEN.sample(self.forbidden)
        for name, state in snapshot.states.items():
            if name not in names:
                continue
            yield COLLECTOR_UP.sample(state.up, name)
            yield COLLECTOR_DURATION.sample(state.duration, name)
            yield COLLECTOR_FAILURES.sample(state.failures, name)
            if state.last_success is not None:
                yield COLLECTOR_SUCCESS.sample(state.last_success, name)


def family_name(metric: Metric) -> str:
    """Return the name of the metric's family: a counter's has no _total."""
    return metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name


def _names(family: core.Metric) -> frozenset[str]:
    """Return the names that a family takes on a page; a counter's TYPE has _total in text alone."""
    return frozenset((family.name, f"{family.name}_total") if family.type == "counter" else (family.name,))


_OWN_NAMES = frozenset(name for metric in AGENT_METRICS for name in (metric.name, family_name(metric)))


def group(samples: Iterable[Sample], reserved: Collection[str] = ()) -> tuple[list[core.Metric], int]:
    """Return the samples as families, and how many of them had to be dropped.

    Dropped are: a series that was there already, one whose family was seen with another type, and those whose
    name is reserved or another family's. A family keeps the help that it was first seen with.
    """
    families: dict[str, tuple[Metric, core.Metric, set[tuple[tuple[str, str], ...]]]] = {}
    taken = set(reserved)
    dropped = 0
    for metric, values, value in samples:
        name = family_name(metric)
        if (found := families.get(name)) is None:
            family = core.Metric(name, metric.help, metric.kind)
            if not taken.isdisjoint(_names(family)):
                dropped += 1
                continue
            taken |= _names(family)
            found = families[name] = (metric, family, set())
        first, family, series = found
        labels = {key: _text(label) for key, label in zip(metric.labels, values, strict=True) if label}
        identity = tuple(sorted(labels.items()))
        if first.kind != metric.kind or identity in series:
            dropped += 1
            continue
        series.add(identity)
        family.add_sample(metric.name, labels, value)
    return [family for _, family, _ in families.values()], dropped


def _text(label: str) -> str:
    """Return the label as UTF-8 can hold it: a lone surrogate, out of a file's name, would cost the page."""
    return label if label.isascii() else label.encode("utf-8", "replace").decode()


def render(families: list[core.Metric], form: Format) -> bytes:
    """Return families as text, without what ends a page."""
    return form.render(_Families(families)).removesuffix(form.end)
