"""What metrics may be called, and what their samples may hold, in both text formats. Pure.

Source: https://prometheus.io/docs/concepts/data_model/ and, for the names that a counter takes up,
https://prometheus.io/docs/specs/om/open_metrics_spec/.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args

from powerbench_agent.core.model import Kind

if TYPE_CHECKING:
    from powerbench_agent.core.model import Metric, Sample

_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_KINDS = get_args(Kind)


def family_name(metric: Metric) -> str:
    """Return the name of the metric's family: a counter's is without _total."""
    return metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name


def taken_names(family: str, kind: str) -> frozenset[str]:
    """Return the names that a family takes up on a page, in one format or the other."""
    if kind != "counter":
        return frozenset((family,))
    return frozenset((family, f"{family}_total", f"{family}_created"))


def metric_complaint(metric: Metric) -> str:
    """Return what makes a metric invalid in one of the formats; "" if nothing does.

    A plug-in's metric may hold anything, whatever its type hints say.
    """
    if not _matches(_METRIC_NAME, metric.name):
        return "is not a metric name"
    if metric.kind not in _KINDS:
        return f"is a {metric.kind}, which is not one of {', '.join(_KINDS)}"
    if metric.kind == "counter" and family_name(metric) in ("", metric.name):
        return "is a counter and has no name that ends in _total"
    odd = [label for label in metric.labels if not _matches(_LABEL_NAME, label)]
    if odd:
        return f"has a label {odd[0]!r}, which is not a label name"
    if len(set(metric.labels)) < len(metric.labels):
        return "has a label twice"
    return "" if isinstance(metric.help, str) else "has a help text that is not text"


def _matches(pattern: re.Pattern[str], name: object) -> bool:
    return isinstance(name, str) and pattern.fullmatch(name) is not None


def sample_complaint(sample: Sample) -> str:
    """Return why a sample cannot be shown as what its metric says; "" if it can."""
    metric, texts, value = sample
    if len(texts) != len(metric.labels) or not all(isinstance(text, str) for text in texts):
        return "has label values that do not fit its labels"
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return "has a value that is not a number"
    if metric.kind == "counter" and not number >= 0:
        return f"is a counter and has the value {number}"
    return ""
