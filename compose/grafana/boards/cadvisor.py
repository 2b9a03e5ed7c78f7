"""The row of containers as cAdvisor sees them, beside the agent's own."""

from __future__ import annotations

from boards.layout import Row
from boards.panels import THIRD, graph
from boards.queries import SLOW_STEP, Query, of, once, rate

# Containers have a name; entries without one are control groups of the system.
OURS = ('name!=""', 'name=~"$container"')
NAMED = "{{host}} {{name}}"
MISSING = "cAdvisor is not scraped, or does not see a container"


def row() -> Row:
    """Return the row of cAdvisor's containers."""
    ways = {
        "received": "container_network_receive_bytes_total",
        "transmitted": "container_network_transmit_bytes_total",
    }
    by_cpu = once(rate("container_cpu_usage_seconds_total", *OURS), "name", "cpu")
    by_card = {way: once(rate(metric, *OURS), "name", "interface") for way, metric in ways.items()}
    return Row(
        "Containers through cAdvisor, if it is scraped",
        [
            graph(
                "cAdvisor: CPU",
                "CPU of each container; 100 % is one core. Measured by cAdvisor: these are the same "
                "containers as under Containers, so never add the two up.",
                "percent",
                Query(f"100 * sum by (host, name) ({by_cpu})", NAMED),
                size=THIRD,
                step=SLOW_STEP,
                nothing=MISSING,
            ),
            graph(
                "cAdvisor: memory",
                "Working set of each container: memory without the page cache that would be dropped first. "
                "Measured by cAdvisor.",
                "bytes",
                Query(once(of("container_memory_working_set_bytes", *OURS), "name"), NAMED),
                size=THIRD,
                step=SLOW_STEP,
                nothing=MISSING,
            ),
            graph(
                "cAdvisor: network",
                "Bits per second that each container receives and transmits on all its interfaces. "
                "Measured by cAdvisor.",
                "bps",
                *(
                    Query(f"8 * sum by (host, name) ({cards})", f"{NAMED} {way}")
                    for way, cards in by_card.items()
                ),
                size=THIRD,
                step=SLOW_STEP,
                nothing="cAdvisor is not scraped, or no container has its own network",
            ),
        ],
        closed=True,
    )
