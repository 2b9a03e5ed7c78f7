"""Which samples of a collector may be shown: of a valid name that is not another collector's. Pure.

A text file may say anything, and a plug-in may be wrong. One odd name would make Prometheus refuse the whole
page, a file's rapl_power_watts would pass for ours, and its `up` would make us look down. So every reading is
checked before it is published.

Source: https://prometheus.io/docs/concepts/jobs_instances/ for what Prometheus writes for each target.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from powerbench_agent.core.metric_names import family_name, metric_complaint, sample_complaint, taken_names
from powerbench_agent.core.model import Trouble

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from powerbench_agent.core.model import Metric, Reading, Sample

_OWN_PREFIX = "powerbench_"
# What the rules in compose/prometheus record, thresholds among them.
_RECORDED = re.compile(r"powerbench:|host(_[a-z]+)*:|[a-z_]+:powerbench_")
# What Prometheus writes for each target and alert; a target's own sample would replace it.
_SERVERS = frozenset(
    {
        "up",
        "scrape_body_size_bytes",
        "scrape_duration_seconds",
        "scrape_sample_limit",
        "scrape_samples_post_metric_relabeling",
        "scrape_samples_scraped",
        "scrape_series_added",
        "scrape_timeout_seconds",
        "ALERTS",
        "ALERTS_FOR_STATE",
    }
)
_REMEDY = "correct the name or the value where it is written; see docs/collectors.md"


class Names:
    """Who declares which metric, and so may show it; what nobody declares is open to everyone."""

    def __init__(
        self, declared: Mapping[str, Iterable[Metric]] | None = None, built_in: Collection[str] = ()
    ) -> None:
        """Take what each collector declares; `built_in`: those whose declared metrics are taken on trust."""
        self._owners: defaultdict[str, set[str]] = defaultdict(set)
        self._trusted: dict[str, frozenset[Metric]] = {}
        for collector, metrics in (declared or {}).items():
            known = frozenset(metrics)
            if collector in built_in:
                self._trusted[collector] = known
            for metric in known:
                for name in taken_names(family_name(metric), metric.kind):
                    self._owners[name].add(collector)

    def check(self, collector: str, reading: Reading) -> Reading:
        """Return a collector's reading without the samples that may not be shown; a trouble says why."""
        trusted = self._trusted.get(collector)
        if trusted is not None and trusted.issuperset([sample[0] for sample in reading.samples]):
            return reading
        verdicts: dict[Metric, str] = {}  # what is wrong with a metric, "" for nothing
        shown: list[Sample] = []
        first_complaint = ""
        for sample in reading.samples:
            metric = sample.metric
            if metric not in verdicts:
                verdicts[metric] = self.complaint(collector, metric)
            complaint = verdicts[metric] or sample_complaint(sample)
            if not complaint:
                shown.append(sample)
            elif not first_complaint:
                first_complaint = f"{metric.name!r} {complaint}"
        left_out = len(reading.samples) - len(shown)
        if not left_out:
            return reading
        error = f"{left_out} samples were left out; the first: {first_complaint}"
        troubles = [*reading.troubles, Trouble("names and values", error, _REMEDY)]
        return reading._replace(samples=shown, troubles=troubles)

    def complaint(self, collector: str, metric: Metric) -> str:
        """Return why a collector may not show this metric; "" if it may."""
        wrong = metric_complaint(metric)
        if wrong:
            return wrong
        if metric.name in _SERVERS:
            return "is what Prometheus itself writes for each target or alert"
        if _RECORDED.match(metric.name):
            return "is what the recording rules write"
        for name in sorted(taken_names(family_name(metric), metric.kind)):
            owners = self._owners.get(name)
            if owners is not None and collector not in owners:
                return f"is a metric of {', '.join(sorted(owners))}"
            if owners is None and name.startswith(_OWN_PREFIX):
                return f"begins with {_OWN_PREFIX}, which is for the agent's own metrics"
        return ""
