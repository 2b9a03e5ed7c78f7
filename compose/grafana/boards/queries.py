"""PromQL that the dashboards share. Energy in joules, power in watts, time in seconds.

Everything is selected and joined by machine. Its name is the label `host` where the scrape job sets one,
else the address in `instance` without its port: two ports of one machine are one, and two machines are two,
with or without relabelling. compose/prometheus/rules/recording.yml has the same rule.
"""

from __future__ import annotations

from typing import NamedTuple

HOST = 'host=~"$host"'
_NAMED = (HOST,)
_UNNAMED = ('host=""', 'instance=~"$host(:[0-9]+)?"')
COMPONENT = 'component=~"$component"'
STREAM = 'stream=~"$stream"'
CONTAINER = 'container=~"$container"'
MEASURED = 'source!="estimate"'
ESTIMATED = 'source="estimate"'

# Minimum steps of what some layouts scrape less often than every 5 s: $__rate_interval is at least
# four of them, so that a rate always finds two samples.
FFMPEG_STEP = "10s"
SLOW_STEP = "15s"


class Query(NamedTuple):
    """An expression, and the names of its series; `{{label}}` is a label's value."""

    expr: str
    legend: str


def by_machine(expr: str) -> str:
    """Return series with their machine's name as `host`."""
    joined = f'label_join({expr}, "host", ";", "host", "instance")'
    return f'label_replace({joined}, "host", "$1", "host", ";?([^;]*?)((:[0-9]+)?|;.*)")'


# Targets that have shown an agent's page, under any job name, or whose job is named after us.
_AGENTS = (
    'last_over_time(powerbench_build_info[$__range]) or last_over_time(up{job=~"powerbench(-.+)?"}[$__range])'
)
MACHINES = f"group by (host) ({by_machine(_AGENTS)})"


def of(metric: str, *matchers: str) -> str:
    """Return a metric of the selected machines."""
    return _selected("{}", metric, matchers)


def agents(expr: str) -> str:
    """Return the series of agents alone, of what every target can have."""
    return f"({expr} and on (job, instance) ({_AGENTS}))"


def rate(metric: str, *matchers: str) -> str:
    """Return a counter's increase per second: joules become mean watts."""
    return _selected("rate({}[$__rate_interval])", metric, matchers)


def gained(metric: str, *matchers: str) -> str:
    """Return a counter's increase over the selected time range."""
    return _selected("increase({}[$__range])", metric, matchers)


def of_rule(rule: str, *matchers: str) -> str:
    """Return a recording rule's series of the selected machines: its `host` is the machine's name already."""
    return f"{rule}{{{','.join((HOST, *matchers))}}}"


def _selected(function: str, metric: str, matchers: tuple[str, ...]) -> str:
    selectors = (f"{metric}{{{','.join((*place, *matchers))}}}" for place in (_NAMED, _UNNAMED))
    return by_machine(" or ".join(function.format(selector) for selector in selectors))


def once(expr: str, *labels: str) -> str:
    """Return series by host and their own labels, so that a machine that is scraped twice counts once."""
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
    return f'label_replace({of_rule(rule, *matchers)}, "note", "(estimate)", "measured", "false")'
