"""Questions that a GPU's driver did not answer: counted each time, logged when the error changes."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

import structlog

from powerbench_agent.collectors.nvml.metrics import ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from powerbench_agent.collectors.nvml.gpu import Gpu
    from powerbench_agent.core.model import Sample

log = structlog.get_logger("nvml")


class ReadErrors:
    """What has gone unanswered since the agent started, and what goes unanswered now."""

    def __init__(self) -> None:
        self._counts: Tally[tuple[str, str, str, str]] = Tally()  # by gpu, uuid, question, error
        self._current: dict[tuple[str, str], str] = {}  # error by uuid and question

    def note(self, gpu: Gpu, question: str, error: str, remedy: str) -> None:
        """Count and log an error; an empty one means that the question is answered again."""
        key = (gpu.uuid, question)
        if not error:
            self._current.pop(key, None)
            return
        self._counts[str(gpu.index), gpu.uuid, question, error] += 1
        if self._current.get(key) != error:
            log.warning("GPU value missing", gpu=gpu.index, question=question, error=error, remedy=remedy)
        self._current[key] = error

    def current(self, gpu: Gpu, question: str) -> str:
        """Return the error with which a question goes unanswered now, or nothing."""
        return self._current.get((gpu.uuid, question), "")

    def samples(self) -> Iterator[Sample]:
        """Yield the counts."""
        for labels, count in self._counts.items():
            yield ERRORS.sample(count, *labels)
