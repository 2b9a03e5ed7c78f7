"""The parts of a source, read in turn by one thread: each may be slow, fail or hang without the others.

- All parts share a time budget. Parts that answer quickly come first, then the slow ones, those first that
  have waited longest. What the budget does not reach is left out of this reading, and comes sooner in the
  next.
- A part that does not answer keeps its thread until it does, and is left out that long. The other parts go
  on in a new thread.
- What is left out, or fails, is a `Trouble`, never an old value.
- The meters of a part that is left out are missing like its samples, so the node's power is too low for that
  moment. A collector whose sum needs them all raises ReadFailed itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from powerbench_agent.core.model import ReadFailed, Reading, Trouble
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from powerbench_agent.core.host import Clock
    from powerbench_agent.core.model import Meter

    Read = Callable[[], Reading]

T = TypeVar("T")

_SLOW_SECONDS = 0.1
_STUCK = "check the kernel log for a stuck driver or bus"


class _Pace(NamedTuple):
    """How a part did when it was last read; the smaller, the earlier its turn."""

    is_slow: bool = False
    turn: int = 0  # of all turns that parts have had


class _Round:
    """One reading of all parts, as its thread goes through them."""

    def __init__(self, jobs: Sequence[tuple[str, Read]], clock: Clock, until: float) -> None:
        self.current = ""
        self.found: dict[str, Reading] = {}
        self.seconds: dict[str, float] = {}
        self.is_over = False
        self._jobs = jobs
        self._clock = clock
        self._until = until

    def run(self) -> None:
        """Read the parts that there is time for."""
        now = self._clock.monotonic()
        for part, read in self._jobs:
            if self.is_over or now >= self._until:
                return
            self.current = part
            try:
                found = read()
            except ReadFailed as failed:
                found = Reading((), troubles=(Trouble(part, str(failed), failed.remedy),))
            except (OSError, ValueError) as error:
                found = Reading((), troubles=(Trouble(part, str(error)),))
            begun, now = now, self._clock.monotonic()
            self.seconds[part] = now - begun
            self.found[part] = found


class Parts:
    """Reads the parts of one source."""

    def __init__(self, name: str, clock: Clock) -> None:
        """`name`: of the thread."""
        self._name = name
        self._clock = clock
        self._worker = Worker(name)
        self._stuck: dict[str, Worker] = {}  # by the part that has not returned
        self._paces: dict[str, _Pace] = {}
        self._turns = 0
        self._round: _Round | None = None  # the last one

    async def read(self, jobs: Mapping[str, Read], budget: float) -> Reading:
        """Return what the parts say that answer within `budget` seconds, and a trouble for each other part.

        `jobs`: part → how to read it, in a thread; what it raises other than ReadFailed, OSError and
        ValueError is a bug, and raised here. So is a `taken`: the parts are read one after the other, and
        their counters are as of no common moment. Raises: TypeError for it.
        """
        self._part_with_stuck_thread()
        self._paces = {part: self._paces.get(part, _Pace()) for part in jobs}
        waiting = [part for part in jobs if part not in self._stuck]
        waiting.sort(key=self._paces.__getitem__)
        until = self._clock.monotonic() + budget
        this = self._round = _Round([(part, jobs[part]) for part in waiting], self._clock, until)
        try:
            async with asyncio.timeout(budget):
                await self._worker.call(this.run)
        except TimeoutError:
            pass  # what has been found by now is there
        finally:
            this.is_over = True
        found = dict(this.found)  # a copy: the thread may still add to it
        for part in found:
            self._take_pace(part, is_slow=this.seconds[part] > _SLOW_SECONDS)
        if this.current not in found:
            self._take_pace(this.current, is_slow=True)
        troubles = {part: self._left_out(part, this.current, budget) for part in jobs if part not in found}
        return _merge([found.get(part) or Reading((), troubles=(troubles[part],)) for part in jobs])

    def _take_pace(self, part: str, *, is_slow: bool) -> None:
        self._turns += 1
        self._paces[part] = _Pace(is_slow, self._turns)

    def close(self) -> None:
        """End the threads after their present calls, without waiting for them."""
        for worker in (self._worker, *self._stuck.values()):
            worker.close()

    def _part_with_stuck_thread(self) -> None:
        """Leave the last round's thread to the part that has not returned; take back parts that have."""
        for part, worker in list(self._stuck.items()):
            if not worker.busy:
                worker.close()
                del self._stuck[part]
        if self._worker.busy and self._round is not None:
            self._stuck[self._round.current] = self._worker
            self._worker = Worker(self._name)

    def _left_out(self, part: str, current: str, budget: float) -> Trouble:
        if part in self._stuck:
            return Trouble(part, "an earlier reading has not returned", _STUCK)
        if part == current:
            return Trouble(part, f"no answer within {budget:g} s", _STUCK)
        return Trouble(part, f"its turn did not come within {budget:g} s", "see which other part is slow")


def _merge(readings: Sequence[Reading]) -> Reading:
    """Return the parts' readings as one. Raises: TypeError for a reading with a time of its own."""
    if any(reading.taken is not None for reading in readings):
        raise TypeError("a part's Reading has no `taken`: the parts have no moment in common")
    powers: dict[Meter, float | None] = {}
    for reading in readings:
        powers.update(reading.powers)
    return Reading(
        [sample for reading in readings for sample in reading.samples],
        [meter for reading in readings for meter in reading.meters],
        uses=[use for reading in readings for use in reading.uses],
        claims=[claim for reading in readings for claim in reading.claims],
        troubles=[trouble for reading in readings for trouble in reading.troubles],
        powers=powers,
    )


class Rota:
    """Goes through a list a stretch at a time: each stretch begins where the last one ran out of time."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._next = 0

    def stretch(self, items: Sequence[T]) -> Iterator[T]:
        """Yield the items that the time is enough for, at least one."""
        until = self._clock.monotonic() + self._seconds
        start = self._next % len(items) if items else 0
        for item in (*items[start:], *items[:start]):
            self._next += 1
            yield item
            if self._clock.monotonic() >= until:
                return
