"""The agent itself: whether its collectors work, and what it costs the machine that it measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boards.layout import Row, board
from boards.panels import BAD, GOOD, THIRD, WARN, bars, graph, stat, states, table
from boards.queries import MEASURED, SLOW_STEP, Query, agents, apart, gained, of, once, rate

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard

COLLECTOR = "{{host}} {{collector}}"
OWN = "powerbench_agent_energy_joules_total"
SUCCESS = "powerbench_collector_last_success_timestamp_seconds"


def now() -> Row:
    """Return the row of current figures."""
    return Row(
        "Now",
        [
            stat(
                "Agents down",
                "Scrape targets of agents whose last scrape failed.",
                "none",
                Query(f"sum(1 - {agents(of('up'))})", "down"),
                base=GOOD,
                steps=((1, BAD),),
                nothing="no target",
            ),
            stat(
                "Collectors down",
                "Collectors whose last reading failed. Collectors without a source on their machine do not "
                "count.",
                "none",
                Query(f"sum(1 - min by (host, collector) ({of('powerbench_collector_up')}))", "down"),
                base=GOOD,
                steps=((1, BAD),),
            ),
            stat(
                "Failed readings",
                "Readings that failed or missed their deadline, over the selected time range.",
                "short",
                Query(f"sum({once(gained('powerbench_collector_failures_total'), 'collector')})", "failed"),
                base=GOOD,
                steps=((1, WARN),),
                decimals=0,
            ),
            stat(
                "Longest without success",
                "The longest time since the last successful reading of a collector.",
                "s",
                Query(f"max(time() - {of(SUCCESS)})", "age"),
                base=GOOD,
                steps=((60, WARN), (300, BAD)),
                decimals=0,
            ),
            stat(
                "Power of the agents",
                "The agents' share of the measured power, attributed by CPU time, not measured itself.",
                "watt",
                Query(f"sum({once(rate(OWN, MEASURED), 'component', 'source')})", "measured, attributed"),
                decimals=3,
                nothing="nothing is measured",
            ),
            stat(
                "Largest agent",
                "Resident memory of the largest agent. Measured.",
                "bytes",
                Query(f"max({agents(of('process_resident_memory_bytes'))})", "resident"),
                decimals=1,
            ),
        ],
    )


def collectors() -> Row:
    """Return the row of the collectors' health."""
    return Row(
        "Collectors",
        [
            states(
                "Collectors up",
                "Whether each collector's last reading succeeded. A band ends when its source disappears.",
                {0: ("down", BAD), 1: ("up", GOOD)},
                Query(of("powerbench_collector_up"), COLLECTOR),
                size=(12, 9),
            ),
            graph(
                "Duration of readings",
                "How long each collector's last reading took. Measured.",
                "s",
                Query(of("powerbench_collector_duration_seconds"), COLLECTOR),
                size=(12, 9),
            ),
            graph(
                "Failures",
                "Readings per second that failed or missed their deadline.",
                "suffix: /s",
                Query(rate("powerbench_collector_failures_total"), COLLECTOR),
            ),
            graph(
                "Failures of parts",
                "Readings per second in which a part failed or its value was refused, while the rest of the "
                "collector went on.",
                "suffix: /s",
                Query(rate("powerbench_collector_faults_total"), f"{COLLECTOR} {{{{part}}}}"),
                nothing="none",
            ),
            graph(
                "Time since the last success",
                "Seconds since each collector's last successful reading: normally a few intervals at most.",
                "s",
                Query(f"time() - {of(SUCCESS)}", COLLECTOR),
            ),
        ],
    )


def cost() -> Row:
    """Return the row of what the agent costs."""
    return Row(
        "What the agent costs",
        [
            graph(
                "Power of each agent",
                "The agent's share of its host's power, attributed by CPU time, not measured itself.",
                "watt",
                *apart(f"sum by (host) ({once(rate(OWN, 'SOURCE'), 'component', 'source')})", "{{host}}"),
                size=THIRD,
            ),
            graph(
                "CPU of each agent",
                "CPU of the agent's process; 100 % is one core. Measured.",
                "percent",
                Query(f"100 * {agents(rate('process_cpu_seconds_total'))}", "{{host}} {{job}}"),
                size=THIRD,
                step=SLOW_STEP,
            ),
            graph(
                "Resident memory of each agent",
                "Memory of the agent's process. Measured.",
                "bytes",
                Query(agents(of("process_resident_memory_bytes")), "{{host}} {{job}}"),
                size=THIRD,
            ),
            graph(
                "Duration of scrapes",
                "How long the server waited for the agent's page. Measured by the server.",
                "s",
                Query(agents(of("scrape_duration_seconds")), "{{host}} {{job}}"),
                size=THIRD,
            ),
            graph(
                "Samples on a page",
                "Number of samples in the last scrape.",
                "short",
                Query(agents(of("scrape_samples_scraped")), "{{host}} {{job}}"),
                size=THIRD,
            ),
            graph(
                "Open files",
                "File descriptors that the agent has open. Measured.",
                "none",
                Query(agents(of("process_open_fds")), "{{host}} {{job}}"),
                size=THIRD,
            ),
        ],
    )


def refused() -> Row:
    """Return the row of what the agent dropped or refused."""
    return Row(
        "Dropped or refused",
        [
            graph(
                "Series dropped",
                "Samples per second left off a page because the series was already on it: two sources with "
                "the same name.",
                "suffix: /s",
                Query(rate("powerbench_series_dropped_total"), "{{host}}"),
                size=THIRD,
            ),
            bars(
                "Rejected ingests",
                "Connections to /ingest that were read but rejected, over the selected time range, by "
                "reason.",
                "none",
                Query(gained("ffmpeg_ingest_rejected_total"), "{{host}} {{reason}}"),
                size=THIRD,
            ),
            graph(
                "Requests refused",
                "Requests per second that were refused because the client was not permitted.",
                "suffix: /s",
                Query(rate("powerbench_http_forbidden_total"), "{{host}}"),
                size=THIRD,
            ),
            bars(
                "Energy counters that jumped",
                "Resets of RAPL's counters over the selected time range. A reset does not add energy.",
                "none",
                Query(gained("rapl_resets_total"), "{{host}} {{path}}"),
                size=THIRD,
                nothing="no RAPL on these hosts",
            ),
            bars(
                "Results files skipped",
                "Versions of results files that could not be used, over the selected time range, by reason.",
                "none",
                Query(gained("results_files_skipped_total"), "{{host}} {{reason}}"),
                size=THIRD,
                nothing="no results files on these hosts",
            ),
            table(
                "Versions",
                "The version of the agent on each host, and of its Python.",
                {"agents": (f"count by (host, version, python) ({of('powerbench_build_info')})", "none")},
                {"host": "host", "version": "version", "python": "python"},
                sort_by="version",
                size=THIRD,
            ),
        ],
    )


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    return board(
        "agent",
        "Agent",
        "Health and cost of the agents: collectors, readings, memory, CPU, energy, and what was dropped.",
        [now(), collectors(), cost(), refused()],
    )
