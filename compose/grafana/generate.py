"""Writes dashboards/*.json from boards/; `--check` lists those that are out of date."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from boards import agent, baseline_vs_test, fleet, power_monitoring, streams

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

DASHBOARDS = Path(__file__).with_name("dashboards")


def dashboards() -> list[Dashboard]:
    """Return every dashboard."""
    return [module.build() for module in (power_monitoring, baseline_vs_test, streams, fleet, agent)]


def pages() -> dict[Path, str]:
    """Return every file with its content; the same text each time."""
    return {DASHBOARDS / f"{board.uid}.json": render(board) for board in dashboards()}


def render(board: Dashboard) -> str:
    """Return a dashboard as JSON."""
    return json.dumps(board, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def outdated() -> list[str]:
    """Return the names of files that differ, are missing, or should not exist."""
    right = {path.name: text for path, text in pages().items()}
    there = {path.name: path.read_text() for path in DASHBOARDS.glob("*.json")}
    return sorted(name for name in right.keys() | there.keys() if right.get(name) != there.get(name))


def main(arguments: list[str]) -> int | str:
    """Write the files, or only check them."""
    if "--check" in arguments:
        names = ", ".join(outdated())
        return f"compose/grafana/dashboards: {names} out of date: run make dashboards" if names else 0
    for name in outdated():
        (DASHBOARDS / name).unlink(missing_ok=True)
    for path, text in pages().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
