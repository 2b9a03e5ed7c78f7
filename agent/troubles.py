"""What has gone wrong with parts of one collector while the rest of it went on: logged once, and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from powerbench_agent.core.model import Trouble

log = structlog.get_logger("troubles")

RECOVERED_SECONDS = 60.0  # a part that comes and goes is not logged each time
MAX_PARTS = 100
OTHERS = "others"  # what parts beyond MAX_PARTS are counted as


class Troubles:
    """The parts of one collector that are, or have been, in trouble."""

    def __init__(self, collector: str) -> None:
        self.faults: dict[str, int] = {}  # readings with a fault since the agent started, by part
        self.limit_hits: dict[str, int] = {}  # readings in which a limit left something out, by option
        self._collector = collector
        self._seen: dict[str, float] = {}  # monotonic second of the last fault, of parts not yet recovered

    def take(self, troubles: Sequence[Trouble], now: float) -> None:
        """Count the troubles of a reading, and log parts that have failed or recovered at `now`."""
        for trouble in troubles:
            part = trouble.part
            if trouble.limit:
                _count(self.limit_hits, trouble.limit)
            else:
                part = _count(self.faults, part)
            if part not in self._seen:
                advice = {"remedy": trouble.remedy} if trouble.remedy else {}
                log.warning(
                    "part of a collector in trouble",
                    collector=self._collector,
                    part=part,
                    error=trouble.error,
                    **advice,
                )
            self._seen[part] = now
        if not self._seen:
            return
        for part, seen in list(self._seen.items()):
            if now - seen > RECOVERED_SECONDS:
                del self._seen[part]
                log.info("part of a collector is well again", collector=self._collector, part=part)


def _count(counts: dict[str, int], key: str) -> str:
    """Count one more of a key; return the key that it is counted under."""
    if key not in counts and len(counts) >= MAX_PARTS:
        key = OTHERS
    counts[key] = counts.get(key, 0) + 1
    return key
