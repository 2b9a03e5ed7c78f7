"""Writes docs/metrics.md and the table of docs/encoders.md out of what the code declares.

`--check` says whether they are up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from powerbench_agent.agent import exposition, node, roster
from powerbench_agent.bench.load.encoders.table import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from powerbench_agent.core.model import Metric

PAGE = Path(__file__).with_name("metrics.md")
ENCODERS = Path(__file__).with_name("encoders.md")
_BEGIN, _END = "<!-- table: make docs -->\n", "<!-- end of table -->\n"

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


def encoders_page() -> str:
    """Return docs/encoders.md with the table as the code has it."""
    before, _, rest = ENCODERS.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    return f"{before}{_BEGIN}\n{encoders_table()}\n\n{_END}{after}"


def encoders_table() -> str:
    """Return the table of encoders."""
    lines = [
        "| name | FFmpeg's name | codec | also called | preset | rate control | pixel formats |",
        "|---|" + "---|" * 6,
    ]
    for row in ROWS:
        if not row.rates:
            continue
        rates = ", ".join(
            f"{kind} {control.low:g} to {control.high:g}" if control.high else kind
            for kind, control in row.rates.items()
        )
        speed = f"{row.speed} ({row.speed.default})" if row.speed else ""
        also = ", ".join(name for name in row.friendly if name != row.known_as)
        cells = (row.known_as, row.name, row.codec, also, speed, rates, ", ".join(row.formats))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


PAGES = {PAGE: page, ENCODERS: encoders_page}

if __name__ == "__main__":
    for path, content in PAGES.items():
        if "--check" not in sys.argv[1:]:
            path.write_text(content())
        elif path.read_text() != content():
            sys.exit(f"docs/{path.name} is out of date: run make docs")
