"""Writes docs/metrics.md out of what the collectors declare; `--check` says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from powerbench_agent.agent import exposition, node, roster

if TYPE_CHECKING:
    from collections.abc import Iterable

    from powerbench_agent.core.model import Metric

PAGE = Path(__file__).with_name("metrics.md")

HEAD = """# Metrics

Written by `make docs` out of the collectors' declarations; edit those.

A source that cannot be read gives no samples: a gap, never 0 and never an old value. Energy counters start at
0 with the agent and never decrease. A label without a value is left out. `source="estimate"` and `estimate_*`
are a model's figures, not measurements.
"""

TAIL = """
## The process

`process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`,
`process_start_time_seconds`, `process_open_fds`, `process_max_fds`: the agent's own, as Prometheus' client
libraries have them.
"""


def table(metrics: Iterable[Metric]) -> str:
    """Return a table of metrics."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines)


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    modules = roster.load_modules()
    for name, module in modules.items():
        what = (module.__doc__ or "").partition("\n")[0]
        parts.append(f"\n## {name}\n\n{what}\n\n{table(module.METRICS)}\n")
    what = "The collectors' parts that do not overlap, added up."
    parts.append(f"\n## node\n\n{what}\n\n{table([*node.NODE_METRICS, *roster.share_metrics(modules)])}\n")
    parts.append(f"\n## The agent itself\n\n{table(exposition.AGENT_METRICS)}\n")
    parts.append(TAIL)
    return "".join(parts)


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.read_text() == page() else "docs/metrics.md is out of date: run make docs")
    PAGE.write_text(page())
