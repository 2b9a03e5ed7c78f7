"""All workers side by side, from recording rules, so that a thousand hosts load as quickly as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boards.layout import Row, board
from boards.panels import BAD, GOOD, WHOLE, bars, graph, linked, stat, table
from boards.queries import Query, of_rule, recorded

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard

    from boards.panels import Panel

AGENTS = "instance:powerbench_agent:up"
WATTS = "host:powerbench_node_watts:rate1m"
PER_STREAM = "host:powerbench_watts_per_stream:rate1m"
PER_FRAME = "host:powerbench_joules_per_frame:rate1m"
MEASURED = 'measured="true"'
ESTIMATED = 'measured="false"'
NAMED = "{{host}} {{note}}"
# True whatever the cause is; the descriptions list the causes.
NO_FIGURE = "no data"
WHY_NONE = "No data: no agent answers, or the recording rules do not run."
WHY_NO_TARGET = "No data: no agent is a target, or the recording rules do not run."
WHY_NO_STREAM = "No data: no stream is known, no agent answers, or the recording rules do not run."
WHY_NO_RATIO = "No data: no stream is active, no agent answers, or the recording rules do not run."
WHOLE_HOST = "Covers all components of the host; labelled estimate if any of them is estimated."
HOST_LINK = "/d/power-monitoring?var-host={}&${{datasource:queryparam}}&${{__url_time_range}}"


def streams_by_host(state: str = "active") -> str:
    """Return how many streams there are on each host."""
    return f"sum by (host) ({of_rule(f'host_stream:ffmpeg_stream_{state}:max')})"


def now() -> Row:
    """Return the row of current figures."""
    down = f"1 - max by (host) ({of_rule(AGENTS)})"
    return Row(
        "Now",
        [
            stat(
                "Agents",
                f"Hosts whose agent is a scrape target. {WHY_NO_TARGET}",
                "none",
                Query(f"count(max by (host) ({of_rule(AGENTS)}))", "hosts"),
                nothing=NO_FIGURE,
            ),
            stat(
                "Agents down",
                f"Hosts on which the last scrape of the agent failed. {WHY_NO_TARGET}",
                "none",
                Query(f"sum({down})", "down"),
                base=GOOD,
                steps=((1, BAD),),
                nothing=NO_FIGURE,
            ),
            stat(
                "Measured power",
                "Total power of the selected hosts as measured by RAPL and GPUs, mean over a minute, without "
                "estimates. No data: everything is estimated, no agent answers, or the recording rules do "
                "not run.",
                "watt",
                Query(f"sum({of_rule(WATTS, MEASURED)})", "measured"),
                decimals=0,
                nothing="no measurement",
            ),
            stat(
                "Estimated power",
                "Power of CPUs that nothing measures, mean over a minute: a linear model of CPU time, "
                "never added to measured power. No data: everything is measured, no agent answers, or the "
                "recording rules do not run.",
                "watt",
                Query(f"sum({of_rule(WATTS, ESTIMATED)})", "estimate"),
                decimals=0,
                base="purple",
                nothing="no estimate",
            ),
            stat(
                "Active streams",
                "Streams that sent a report in the last 5 s, on all selected hosts together. "
                f"{WHY_NO_STREAM}",
                "none",
                Query(f"sum({streams_by_host()})", "active"),
                nothing=NO_FIGURE,
            ),
            stat(
                "Stalled streams",
                "Streams without a new frame or new output for 5 s, or whose reports stopped without an "
                f"end. {WHY_NO_STREAM}",
                "none",
                Query(f"sum({streams_by_host('stalled')})", "stalled"),
                base=GOOD,
                steps=((1, BAD),),
                nothing=NO_FIGURE,
            ),
        ],
    )


def worst() -> Row:
    """Return the row of the ten hosts that stand out."""
    return Row(
        "The worst ten",
        [
            _worst(
                "Most power",
                "Power of a host, mean over a minute. Measured and estimated power of a host are separate "
                f"bars. {WHY_NONE}",
                "watt",
                WATTS,
            ),
            _worst(
                "Most energy per frame",
                "Joules of a host, including idle, divided by the frames that its streams encode. "
                f"{WHOLE_HOST} {WHY_NO_RATIO}",
                "joule",
                PER_FRAME,
            ),
            _worst(
                "Most power per stream",
                "Power of a host, including idle, divided by its active streams. "
                f"{WHOLE_HOST} {WHY_NO_RATIO}",
                "watt",
                PER_STREAM,
            ),
        ],
    )


def _worst(title: str, what: str, unit: str, rule: str) -> Panel:
    panel = bars(
        title,
        f"The ten highest. {what}",
        unit,
        Query(f"topk(10, {recorded(rule)})", NAMED),
        size=(8, 9),
        decimals=2,
        nothing=NO_FIGURE,
    )
    return linked(panel, "Power monitoring of this host", HOST_LINK.format("${__field.labels.host}"))


def hosts() -> Row:
    """Return the row of curves by host."""
    return Row(
        "Hosts over time",
        [
            graph(
                "Power by host",
                "Power of each host, mean over a minute. An estimate is a separate curve and labelled as an "
                f"estimate. {WHY_NONE}",
                "watt",
                Query(recorded(WATTS), NAMED),
                nothing=NO_FIGURE,
            ),
            graph(
                "Streams by host",
                f"Active streams on each host. {WHY_NO_STREAM}",
                "none",
                Query(streams_by_host(), "{{host}}"),
                nothing=NO_FIGURE,
            ),
            graph(
                "Energy per frame by host",
                "Joules of a host, including idle, divided by the frames that its streams encode; mean over "
                f"a minute. {WHOLE_HOST} {WHY_NO_RATIO}",
                "joule",
                Query(recorded(PER_FRAME), NAMED),
                nothing=NO_FIGURE,
            ),
            graph(
                "Power per stream by host",
                "Power of a host, including idle, divided by its active streams; mean over a minute. "
                f"{WHOLE_HOST} {WHY_NO_RATIO}",
                "watt",
                Query(recorded(PER_STREAM), NAMED),
                nothing=NO_FIGURE,
            ),
            graph(
                "Power by component, all hosts",
                "Power of all selected hosts by component and source, mean over a minute. Sources are "
                f"never added up. {WHY_NONE}",
                "watt",
                Query(
                    "sum by (component, source) ("
                    f"{of_rule('host_component_source:powerbench_node_watts:rate1m')})",
                    "{{component}} ({{source}})",
                ),
                nothing=NO_FIGURE,
            ),
            graph(
                "Energy per frame, all hosts",
                "Joules of the selected hosts divided by the frames that they encode. Covers only hosts that "
                "have a stream and whose energy is measured completely. "
                "No data: no such host has a stream, no agent answers, or the recording rules do not run.",
                "joule",
                Query(_per_frame_of_all(), "measured"),
                nothing=NO_FIGURE,
            ),
        ],
    )


def _per_frame_of_all() -> str:
    watts, per_frame = of_rule(WATTS, MEASURED), of_rule(PER_FRAME, MEASURED)
    # Watts divided by joules per frame are the host's frames per second.
    return f"sum({watts} and on (host) {per_frame}) / sum({watts} / on (host) ({per_frame} > 0))"


def agents() -> Row:
    """Return the row that has every host with its figures."""
    of_host = "sum by (host)"
    panel = table(
        "Hosts",
        "Every host with its current figures, means over a minute. Measured and estimated figures have "
        "separate columns. Figures per frame and per stream cover all components, and count as measured "
        "only if no part of them is an estimate. up is 0 if the last scrape failed.",
        {
            "up": (f"max by (host) ({of_rule(AGENTS)})", "none"),
            "measured": (f"{of_host} ({of_rule(WATTS, MEASURED)})", "watt"),
            "estimated": (f"{of_host} ({of_rule(WATTS, ESTIMATED)})", "watt"),
            "streams": (streams_by_host(), "none"),
            "measured per frame": (f"{of_host} ({of_rule(PER_FRAME, MEASURED)})", "joule"),
            "measured per stream": (f"{of_host} ({of_rule(PER_STREAM, MEASURED)})", "watt"),
            "per frame, with an estimate": (f"{of_host} ({of_rule(PER_FRAME, ESTIMATED)})", "joule"),
            "per stream, with an estimate": (f"{of_host} ({of_rule(PER_STREAM, ESTIMATED)})", "watt"),
        },
        {"host": "host"},
        sort_by="measured",
        size=WHOLE,
    )
    missing = table(
        "Agents that do not answer",
        "Targets whose last scrape failed.",
        {"up": (f"{of_rule(AGENTS)} == 0", "none")},
        {"host": "host", "job": "job", "instance": "target"},
        sort_by="host",
        size=(24, 6),
        nothing="every agent answers",
    )
    link = HOST_LINK.format("${__data.fields.host}")
    return Row("Hosts and agents", [linked(panel, "Power monitoring of this host", link), missing])


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    return board(
        "fleet",
        "Fleet",
        "All workers: power, streams, energy per frame and power per stream, which hosts stand out, and "
        "which do not answer. Uses recording rules: with VictoriaMetrics, vmalert has to run.",
        [now(), worst(), hosts(), agents()],
    )
