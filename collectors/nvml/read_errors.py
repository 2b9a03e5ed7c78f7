"""Questions that a GPU's driver did not answer, or whose answer cannot be true: counted each time."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

from powerbench_agent.collectors.nvml.metrics import ERRORS
from powerbench_agent.core.model import Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from powerbench_agent.collectors.nvml.gpu import Gpu
    from powerbench_agent.core.model import Sample


class ReadErrors:
    """What has gone unanswered since the agent started, and what goes unanswered now."""

    def __init__(self) -> None:
        self._counts: Tally[tuple[str, str, str, str]] = Tally()  # by gpu, uuid, question, error
        self._current: dict[
            tuple[str, str, str], tuple[str, str]
        ] = {}  # (error, remedy) by gpu, uuid, question

    def note(self, gpu: Gpu, question: str, error: str, remedy: str) -> None:
        """Count an error; an empty one means that the question is answered again."""
        key = (*gpu.labels, question)
        if not error:
            self._current.pop(key, None)
            return
        self._counts[(*key, error)] += 1
        self._current[key] = (error, remedy)

    def current(self, gpu: Gpu, question: str) -> str:
        """Return the error with which a question goes unanswered now, or nothing."""
        error, _ = self._current.get((*gpu.labels, question), ("", ""))
        return error

    def samples(self) -> Iterator[Sample]:
        """Yield the counts."""
        for labels, count in self._counts.items():
            yield ERRORS.sample(count, *labels)

    def troubles(self, gpu: Gpu) -> Iterator[Trouble]:
        """Yield what one GPU does not answer now."""
        for (index, uuid, question), (error, remedy) in self._current.items():
            if (index, uuid) == gpu.labels:
                yield Trouble(f"gpu {index} {question}", error, remedy)
