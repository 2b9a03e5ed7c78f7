"""All workers side by side. Out of recording rules, so that a thousand hosts are as quick to show as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boards.layout import Row, board
from boards.panels import BAD, GOOD, WHOLE, bars, graph, linked, stat, table
from boards.queries import AGENTS, Query, of, recorded

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard

    from boards.panels import Panel

WATTS = "host:powerbench_node_watts:rate1m"
PER_STREAM = "host:powerbench_watts_per_stream:rate1m"
PER_FRAME = "host:powerbench_joules_per_frame:rate1m"
MEASURED = 'measured="true"'
ESTIMATED = 'measured="false"'
NAMED = "{{host}} {{note}}"
# What is true whatever the cause; the descriptions have the causes.
NO_FIGURE = "no figure"
WHY_NONE = "No figure: no agent answers, or the recording rules do not run."
WHY_NO_RATIO = "No figure: no stream is active, no agent answers, or the recording rules do not run."
WHOLE_HOST = (
    "All components of the host: one that says estimate has an estimate in it, beside what is measured."
)
HOST_LINK = "/d/power-monitoring?var-host={}&${{datasource:queryparam}}&${{__url_time_range}}"


def streams_by_host(state: str = "active") -> str:
    """Return how many streams there are on each host; a host that is scraped twice counts once."""
    return f"sum by (host) (max by (host, stream) ({of(f'ffmpeg_stream_{state}')}))"


def now() -> Row:
    """Return the row of figures of now."""
    down = f"1 - max by (host) ({of('up', AGENTS)})"
    return Row(
        "Now",
        [
            stat(
                "Agents",
                "Hosts with an agent that is to be scraped.",
                "none",
                Query(f"count(max by (host) ({of('up', AGENTS)}))", "hosts"),
                nothing="no target",
            ),
            stat(
                "Agents down",
                "Hosts of whose agent the last scrape failed.",
                "none",
                Query(f"sum({down})", "down"),
                base=GOOD,
                steps=((1, BAD),),
                nothing="no target",
            ),
            stat(
                "Measured power",
                "Power of the chosen hosts together, mean over a minute: what RAPL and GPUs measure. "
                "Estimates are not in it. No figure: all is estimated, no agent answers, or the recording "
                "rules do not run.",
                "watt",
                Query(f"sum({of(WATTS, MEASURED)})", "measured"),
                decimals=0,
                nothing="no measurement",
            ),
            stat(
                "Estimated power",
                "Power of what nothing measures, mean over a minute: a linear model of CPU time, never added "
                "to measured power. No figure: all is measured, no agent answers, or the recording rules do "
                "not run.",
                "watt",
                Query(f"sum({of(WATTS, ESTIMATED)})", "estimate"),
                decimals=0,
                base="purple",
                nothing="no estimate",
            ),
            stat(
                "Active streams",
                "Streams of which a report came in the last 5 s, on the chosen hosts together.",
                "none",
                Query(f"sum({streams_by_host()})", "active"),
                nothing="no stream",
            ),
            stat(
                "Stalled streams",
                "Streams without a new frame or new output for 5 s, or silent without an end.",
                "none",
                Query(f"sum({streams_by_host('stalled')})", "stalled"),
                base=GOOD,
                steps=((1, BAD),),
                nothing="no stream",
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
                "Power of a host, mean over a minute. What is measured and what is estimated of a host are a "
                f"bar each. {WHY_NONE}",
                "watt",
                WATTS,
            ),
            _worst(
                "Most energy a frame",
                "Joules of a host, idle energy among them, by the frames that its streams encode. "
                f"{WHOLE_HOST} {WHY_NO_RATIO}",
                "joule",
                PER_FRAME,
            ),
            _worst(
                "Most power a stream",
                f"Power of a host, idle power among it, by its active streams. {WHOLE_HOST} {WHY_NO_RATIO}",
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
                "Power of each host, mean over a minute. An estimate says so, and is a curve of its "
                f"own. {WHY_NONE}",
                "watt",
                Query(recorded(WATTS), NAMED),
                nothing=NO_FIGURE,
            ),
            graph(
                "Streams by host",
                "Active streams on each host.",
                "none",
                Query(streams_by_host(), "{{host}}"),
                nothing="no stream",
            ),
            graph(
                "Energy a frame by host",
                "Joules of a host, idle energy among them, by the frames that its streams encode; mean over "
                f"a minute. {WHOLE_HOST} {WHY_NO_RATIO}",
                "joule",
                Query(recorded(PER_FRAME), NAMED),
                nothing=NO_FIGURE,
            ),
            graph(
                "Power a stream by host",
                "Power of a host, idle power among it, by its active streams; mean over a minute. "
                f"{WHOLE_HOST} {WHY_NO_RATIO}",
                "watt",
                Query(recorded(PER_STREAM), NAMED),
                nothing=NO_FIGURE,
            ),
            graph(
                "Power by component, all hosts",
                "Power of the chosen hosts together by component and source, mean over a minute. Sources are "
                f"never added up. {WHY_NONE}",
                "watt",
                Query(
                    "sum by (component, source) ("
                    f"{of('host_component_source:powerbench_node_watts:rate1m')})",
                    "{{component}} ({{source}})",
                ),
                nothing=NO_FIGURE,
            ),
            graph(
                "Energy a frame, all hosts",
                "Joules that the chosen hosts draw by the frames that they encode, hosts without a stream "
                "left out, and those with an estimate in their energy: measured hosts only. "
                "No figure: no such host has a stream, no agent answers, or the recording rules do not run.",
                "joule",
                Query(_per_frame_of_all(), "measured"),
                nothing=NO_FIGURE,
            ),
        ],
    )


def _per_frame_of_all() -> str:
    watts, per_frame = of(WATTS, MEASURED), of(PER_FRAME, MEASURED)
    # Watts by joules a frame are the host's frames a second.
    return f"sum({watts} and on (host) {per_frame}) / sum({watts} / on (host) ({per_frame} > 0))"


def agents() -> Row:
    """Return the row that has every host with its figures."""
    of_host = "sum by (host)"
    panel = table(
        "Hosts",
        "Every host with its figures of now, means over a minute. What is measured and what is estimated "
        "stand in columns of their own; a frame's and a stream's figures are of all components, and stand "
        "among the measured ones only where no estimate is in them. up is 0 where the last scrape failed.",
        {
            "up": (f"max by (host) ({of('up', AGENTS)})", "none"),
            "measured": (f"{of_host} ({of(WATTS, MEASURED)})", "watt"),
            "estimated": (f"{of_host} ({of(WATTS, ESTIMATED)})", "watt"),
            "streams": (streams_by_host(), "none"),
            "measured a frame": (f"{of_host} ({of(PER_FRAME, MEASURED)})", "joule"),
            "measured a stream": (f"{of_host} ({of(PER_STREAM, MEASURED)})", "watt"),
            "a frame, with an estimate": (f"{of_host} ({of(PER_FRAME, ESTIMATED)})", "joule"),
            "a stream, with an estimate": (f"{of_host} ({of(PER_STREAM, ESTIMATED)})", "watt"),
        },
        {"host": "host"},
        sort_by="measured",
        size=WHOLE,
    )
    missing = table(
        "Agents that do not answer",
        "Targets whose last scrape failed.",
        {"up": (f"{of('up', AGENTS)} == 0", "none")},
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
        "All workers: power, streams, energy a frame and power a stream, which stand out, and which do not "
        "answer. Out of the recording rules: with VictoriaMetrics, vmalert has to run.",
        [now(), worst(), hosts(), agents()],
    )
