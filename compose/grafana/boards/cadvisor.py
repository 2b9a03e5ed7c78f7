"""The row of containers as cAdvisor sees them, beside the agent's own."""

from __future__ import annotations

from boards.layout import Row
from boards.panels import THIRD, graph
from boards.queries import SLOW_STEP, Query, of, once, rate

# Containers that have a name: without one it is a control group of the system's.
OURS = ('job="cadvisor"', 'name!=""', 'name=~"$container"')
NAMED = "{{host}} {{name}}"
MISSING = "cAdvisor is not scraped, or sees no container"


def row() -> Row:
    """Return the row of cAdvisor's containers."""
    ways = {
        "received": "container_network_receive_bytes_total",
        "transmitted": "container_network_transmit_bytes_total",
    }
    by_cpu = once(rate("container_cpu_usage_seconds_total", *OURS), "name", "cpu")
    by_card = {way: once(rate(metric, *OURS), "name", "interface") for way, metric in ways.items()}
    return Row(
        "Containers through cAdvisor, where it is scraped",
        [
            graph(
                "cAdvisor: CPU",
                "CPU of each container; 100 % is one core. Measured by cAdvisor: the same containers as "
                "under Containers, so never add the two up.",
                "percent",
                Query(f"100 * sum by (host, name) ({by_cpu})", NAMED),
                size=THIRD,
                step=SLOW_STEP,
                nothing=MISSING,
            ),
            graph(
                "cAdvisor: memory",
                "Working set of each container: memory without the page cache that goes first. Measured by "
                "cAdvisor.",
                "bytes",
                Query(once(of("container_memory_working_set_bytes", *OURS), "name"), NAMED),
                size=THIRD,
                step=SLOW_STEP,
                nothing=MISSING,
            ),
            graph(
                "cAdvisor: network",
                "Bits a second that each container receives and transmits, all its cards. Measured by "
                "cAdvisor.",
                "bps",
                *(
                    Query(f"8 * sum by (host, name) ({cards})", f"{NAMED} {way}")
                    for way, cards in by_card.items()
                ),
                size=THIRD,
                step=SLOW_STEP,
                nothing="cAdvisor is not scraped, or no container has a network of its own",
            ),
        ],
        closed=True,
    )
