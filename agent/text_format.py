"""Samples to text: Prometheus text 0.0.4 and OpenMetrics 1.0.0. Pure.

The lines of samples are the same in both formats, so they are made once. prometheus_client's own functions
take five times as long, on the event loop.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.utils import floatToGoString

from powerbench_agent.core.metric_names import family_name, taken_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from powerbench_agent.core.model import Metric, Sample


class Format(NamedTuple):
    """A text format: its media type, and the last line of a page."""

    content_type: str
    end: bytes


TEXT = Format("text/plain; version=0.0.4; charset=utf-8", b"")
OPENMETRICS = Format("application/openmetrics-text; version=1.0.0; charset=utf-8", b"# EOF\n")


class MetricFamily:
    """One family: its lines, without their beginning that differs between the formats."""

    def __init__(self, metric: Metric) -> None:
        """Begin a family; its first metric decides the type and the help."""
        self.name = family_name(metric)
        self.kind = metric.kind
        self.help = metric.help
        self.lines: list[str] = []
        self.series: set[str] = set()  # labels that it has already, as text

    @property
    def names(self) -> frozenset[str]:
        """The names that it takes up on a page."""
        return taken_names(self.name, self.kind)


class _Series(NamedTuple):
    """What the lines of one metric have in common."""

    family: MetricFamily
    name: str
    labels: list[tuple[str, int]]  # `name="` and the index of the value, in the order of the names


def group(
    samples: Iterable[Sample], reserved: Collection[str] = ()
) -> tuple[list[MetricFamily], Counter[str]]:
    """Return the samples as families, and how many of which name had to be dropped.

    Dropped are samples of a series that is there already, of a family that was first seen with another type,
    and of a name that is reserved or belongs to another family. A family keeps the help of its first sample.
    """
    families: dict[str, MetricFamily] = {}
    series: dict[Metric, _Series | None] = {}  # None: the metric is dropped
    taken = set(reserved)
    dropped: Counter[str] = Counter()
    for metric, values, value in samples:
        if metric not in series:
            series[metric] = _join(metric, families, taken)
        known = series[metric]
        if known is None:
            dropped[metric.name] += 1
            continue
        labels = _label_text(known.labels, values)
        if labels in known.family.series:
            dropped[metric.name] += 1
            continue
        known.family.series.add(labels)
        known.family.lines.append(f"{known.name}{labels} {_number(value)}\n")
    return list(families.values()), dropped


def _join(metric: Metric, families: dict[str, MetricFamily], taken: set[str]) -> _Series | None:
    """Return the metric's place in its family, a new one if need be; None if it cannot have one."""
    name = family_name(metric)
    family = families.get(name)
    if family is None:
        family = MetricFamily(metric)
        if not taken.isdisjoint(family.names):
            return None
        taken |= family.names
        families[name] = family
    elif family.kind != metric.kind:
        return None
    labels = [(f'{label}="', index) for index, label in enumerate(metric.labels)]
    return _Series(family, metric.name, sorted(labels))


def _number(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def _label_text(labels: list[tuple[str, int]], values: tuple[str, ...]) -> str:
    """Return the labels as they are written; one without a value is left out."""
    written = []
    for beginning, index in labels:
        value = values[index]
        if value:
            written.append(f'{beginning}{_escape_quoted(value)}"')
    return f"{{{','.join(written)}}}" if written else ""


def _escape_quoted(text: str) -> str:
    return _escape(text).replace('"', '\\"')


def _escape(text: str) -> str:
    """Escape backslashes and line ends; replace lone surrogates, which UTF-8 cannot encode."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def render(families: Iterable[MetricFamily], form: Format) -> bytes:
    """Return families as text, without the last line of a page."""
    parts: list[str] = []
    for family in families:
        name, kind, help_text = family.name, str(family.kind), _escape(family.help)
        if form is OPENMETRICS:
            help_text = _escape_quoted(family.help)
        elif kind == "counter":
            name = f"{name}_total"
        elif kind == "unknown":
            kind = "untyped"
        parts.append(f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n")
        parts += family.lines
    return "".join(parts).encode()
