"""PromQL that the dashboards share. Energy in joules, power in watts, time in seconds.

Everything is selected by `host`, the label that every scrape job sets: it joins the metrics of an agent, of
node_exporter and of DCGM on one machine.
"""

from __future__ import annotations

from typing import NamedTuple

HOST = 'host=~"$host"'
COMPONENT = 'component=~"$component"'
STREAM = 'stream=~"$stream"'
CONTAINER = 'container=~"$container"'
MEASURED = 'source!="estimate"'
ESTIMATED = 'source="estimate"'
AGENTS = 'job=~"powerbench.*"'

# Minimum steps of what some layouts scrape less often than every 5 s: $__rate_interval is at least
# four of them, so that a rate always finds two samples.
FFMPEG_STEP = "10s"
SLOW_STEP = "15s"


class Query(NamedTuple):
    """An expression, and the names of its series; `{{label}}` is a label's value."""

    expr: str
    legend: str


def of(metric: str, *matchers: str) -> str:
    """Return a metric of the selected hosts."""
    return f"{metric}{{{','.join((HOST, *matchers))}}}"


def rate(metric: str, *matchers: str) -> str:
    """Return a counter's increase per second: joules become mean watts."""
    return f"rate({of(metric, *matchers)}[$__rate_interval])"


def gained(metric: str, *matchers: str) -> str:
    """Return a counter's increase over the selected time range."""
    return f"increase({of(metric, *matchers)}[$__range])"


def once(expr: str, *labels: str) -> str:
    """Return series by host and their own labels, so that a host that is scraped twice counts once."""
    return f"max by ({', '.join(('host', *labels))}) ({expr})"


def apart(expr: str, legend: str) -> tuple[Query, Query]:
    """Return an expression twice: for what is measured, and for what is estimated, labelled as such.

    `expr` has SOURCE in the matcher's place, so that no sum ever contains both.
    """
    return (
        Query(expr.replace("SOURCE", MEASURED), legend),
        Query(expr.replace("SOURCE", ESTIMATED), f"{legend} (estimate)"),
    )


def recorded(rule: str, *matchers: str) -> str:
    """Return a recording rule's series; estimates get a label `note`."""
    return f'label_replace({of(rule, *matchers)}, "note", "(estimate)", "measured", "false")'
