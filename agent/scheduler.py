"""Opens and reads the collectors once a beat, enforces their deadlines, and publishes what they found.

The scheduler is the only writer. It swaps an immutable `Snapshot`; the code that serves pages reads the
latest one and never touches hardware. `fresh()` is the only way to request a reading between beats.

What a collector raises decides its state:

- `Absent`, from opening or reading: not shown, and looked for again every 10 s. Once opened it stays open,
  so that its counters continue when the source comes back.
- `ReadFailed`, or no answer by the deadline: down, without samples, and read again at its next beat.
- anything else is a bug in the collector: its traceback is logged once, it is down, and the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from powerbench_agent.agent.names import Names
from powerbench_agent.agent.node import Node
from powerbench_agent.agent.troubles import Troubles
from powerbench_agent.core.host import asleep
from powerbench_agent.core.metric_names import metric_complaint
from powerbench_agent.core.model import (
    ESTIMATE,
    SHARE_LABELS,
    Absent,
    Collector,
    ReadFailed,
    Reading,
    Refreshes,
    Snapshot,
    State,
)

if TYPE_CHECKING:
    from powerbench_agent.agent.attribution import Idle
    from powerbench_agent.core.host import Clock
    from powerbench_agent.core.model import CpuTime

log = structlog.get_logger("scheduler")

BEAT_SECONDS = 1.0
SEARCH_SECONDS = 10.0  # an absent source is looked for this often
MAX_DEADLINE_SECONDS = 5.0
CLOSE_SECONDS = 0.5

Open = Callable[[], Awaitable[Collector]]


class _Slot:
    """One collector: closed, or open and read at its interval."""

    def __init__(self, name: str, open_: Open, interval: float) -> None:
        self.name = name
        self.open = open_
        self.interval = interval
        self.collector: Collector | None = None
        self.refreshes: Refreshes | None = None  # the same collector, if it can do that
        self.measures: set[str] = set()  # components that it has measured since it was opened
        self.state: State | None = None
        self.beaten: Reading | None = None  # the last beat's reading, which scrapes do not change
        self.absent = ""
        self.tried = False
        self.failures = 0  # this and last_success are kept while the source is absent
        self.last_success: float | None = None
        self.due = -math.inf
        self.lock = asyncio.Lock()  # one call into the collector at a time
        self.task: asyncio.Task[None] | None = None  # the beat's read, while it is in progress
        self.bug_logged = ""
        self.troubles = Troubles(name)

    @property
    def deadline(self) -> float:
        return min(self.interval, MAX_DEADLINE_SECONDS)


class Scheduler:
    """Owns the collectors and the latest snapshot."""

    def __init__(
        self,
        collectors: Mapping[str, tuple[Open, float]],
        clock: Clock,
        on_beat: Callable[[], None] = lambda: None,
        *,
        cpu_time: Callable[[], CpuTime | None] = lambda: None,
        idle: Idle = "apart",
    ) -> None:
        """`collectors`: name → (how to open it, its interval in seconds); `on_beat` feeds the watchdog.

        `cpu_time`: how busy the CPUs have been so far, None if unknown; `idle`: as in attribution.Shares.
        """
        self.names = Names()  # who may show what; until it is replaced, only what is invalid is left out
        self._clock = clock
        self._on_beat = on_beat
        self._slots = {name: _Slot(name, *how) for name, how in collectors.items()}
        self._cpu_time = cpu_time
        self._node = Node(idle)
        self._node_state: State | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._beating = False
        self._changed = asyncio.Event()
        self.snapshot = Snapshot(clock.time())

    # -- for those who serve pages -------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether every collector has been tried once: it was read, or found down or absent."""
        return all(slot.tried for slot in self._slots.values()) and "node" in self.snapshot.states

    def collector(self, name: str) -> Collector | None:
        """Return the open collector of that name, if there is one."""
        slot = self._slots.get(name)
        return slot.collector if slot else None

    def can_refresh(self, names: Collection[str]) -> bool:
        """Return whether a fresh reading would change anything for these collectors."""
        return any(slot.refreshes is not None for name, slot in self._slots.items() if name in names)

    async def fresh(self) -> Snapshot:
        """Read what is cheap to read, and return a snapshot with it.

        Callers that come while such a reading is in progress share it.
        """
        if self._refreshing is None:
            self._refreshing = asyncio.ensure_future(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        await asyncio.shield(self._refreshing)
        return self.snapshot

    # -- running ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read and publish, beat after beat, until cancelled; then close every collector."""
        try:
            while True:
                await self.beat()
                soonest = min((slot.due for slot in self._slots.values()), default=math.inf)
                await self._sleep_until(min(soonest, self._clock.monotonic() + SEARCH_SECONDS))
        finally:
            await self.aclose()

    async def beat(self) -> None:
        """Read every collector that is due, add up the node, and publish all of it in one step."""
        if self._failure is not None:
            raise self._failure
        now = self._clock.monotonic()
        started = []
        self._beating = True
        for slot in self._slots.values():
            if now < slot.due:
                continue
            # On a grid, so that collectors with different intervals wake the processor together.
            slot.due = _next_on_grid(now, slot.interval)
            if slot.task is None:
                slot.task = asyncio.ensure_future(self._attempt(slot))
                slot.task.add_done_callback(functools.partial(self._attempted, slot))
                started.append(slot.task)
        # How busy the CPUs were, at the moment when the collectors read who used them.
        cpu = self._cpu_time()
        if started:
            # A slow collector does not delay the others: it is published when it answers.
            await asyncio.wait(started, timeout=BEAT_SECONDS / 2)
        self._beating = False
        self._add_up(now, cpu)
        self._publish()
        self._on_beat()

    async def replace(
        self, collectors: Mapping[str, tuple[Open, float]], reopen: set[str], idle: Idle = "apart"
    ) -> None:
        """Apply a reload: close the collectors that have gone or must be reopened, keep the others."""
        self._node.shares.idle = idle
        gone = [name for name in self._slots if name not in collectors or name in reopen]
        await asyncio.gather(*(self._close(self._slots.pop(name)) for name in gone))
        slots: dict[str, _Slot] = {}
        for name, (
            open_,
            interval,
        ) in collectors.items():  # their order decides which one keeps a shared family
            slot = self._slots.get(name) or _Slot(name, open_, interval)
            if slot.interval != interval:
                slot.due = -math.inf
            slot.open, slot.interval = open_, interval
            slots[name] = slot
        self._slots = slots
        self._publish()
        self._changed.set()

    async def aclose(self) -> None:
        """Close every collector, each within half a second."""
        await asyncio.gather(*(self._close(slot) for slot in self._slots.values()))
        if self._refreshing is not None:
            self._refreshing.cancel()

    # -- one collector ---------------------------------------------------------------------------

    async def _attempt(self, slot: _Slot, *, refresh: bool = False) -> None:
        """Open the collector if it is closed, read it, and record the result."""
        async with slot.lock:
            started = self._clock.monotonic()
            try:
                async with asyncio.timeout(slot.deadline):
                    if not refresh:
                        reading = await (slot.collector or await self._open(slot)).read()
                    elif slot.refreshes is not None:
                        reading = await slot.refreshes.refresh()
                    else:
                        return
                _check_claims(reading)
                reading = self.names.check(slot.name, reading)
            except Absent as gone:
                self._lose(slot, str(gone))
            except ReadFailed as failed:
                self._fail(slot, started, failed)
            except TimeoutError:
                remedy = "check the kernel log for a stuck driver or mount"
                self._down(slot, started, f"no answer within {slot.deadline:g} s", remedy)
            except asyncio.CancelledError as cancelled:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self._bug(slot, started, cancelled)  # this task was not cancelled: the collector let it out
            except Exception as bug:  # noqa: BLE001 - the one place where a collector's bugs are caught
                self._bug(slot, started, bug)
            else:
                self._up(slot, started, reading, refresh=refresh)
        slot.tried = True

    def _attempted(self, slot: _Slot, task: asyncio.Task[None]) -> None:
        slot.task = None
        if not task.cancelled():
            self._failure = self._failure or task.exception()
        if not self._beating:  # it answered after its beat had ended
            self._publish()

    async def _open(self, slot: _Slot) -> Collector:
        collector = await slot.open()
        slot.collector = collector
        slot.refreshes = collector if isinstance(collector, Refreshes) else None
        slot.absent = ""
        return collector

    async def _refresh(self) -> None:
        measured = self._measured()
        for slot in tuple(self._slots.values()):  # a reload may remove some meanwhile
            reading = slot.state.reading if slot.state else None
            if slot.refreshes is None or reading is None:
                continue
            # An estimate beside a measurement is not part of the node: that of the beat is fresh enough.
            estimated = {meter.source for meter in reading.meters} == {ESTIMATE}
            if estimated and measured.issuperset(meter.component for meter in reading.meters):
                continue
            # One after the other: a task for each would cost more than most of these reads.
            await self._attempt(slot, refresh=True)
        self._publish()

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled():
            self._failure = self._failure or task.exception()

    def _up(self, slot: _Slot, started: float, reading: Reading, *, refresh: bool) -> None:
        was = slot.state
        slot.absent = ""
        if was is None:
            log.info("collector up", collector=slot.name, samples=len(reading.samples))
        elif not was.up:
            log.info("collector is up again", collector=slot.name)
        slot.bug_logged = ""
        slot.measures.update(meter.component for meter in reading.meters if meter.source != ESTIMATE)
        now = self._clock.time()
        slot.last_success = now
        ended = self._clock.monotonic()
        taken = started if reading.taken is None else reading.taken
        reading = reading if reading.taken == taken else reading._replace(taken=taken)
        if not refresh:
            slot.beaten = reading
        slot.troubles.take(reading.troubles, ended)
        slot.state = State(
            reading=reading,
            time=now - (ended - taken),
            monotonic=taken,
            duration=ended - started,
            failures=slot.failures,
            last_success=slot.last_success,
            faults=dict(slot.troubles.faults),
            limit_hits=dict(slot.troubles.limit_hits),
        )

    def _fail(self, slot: _Slot, started: float, failed: ReadFailed) -> None:
        if not failed.measures:
            slot.measures.clear()
        self._down(slot, started, str(failed), failed.remedy)

    def _down(self, slot: _Slot, started: float, what: str, remedy: str) -> None:
        was = slot.state
        slot.beaten = None
        slot.failures += 1
        error = f"{what}; {remedy}" if remedy else what
        if was is None or was.error != error:
            advice = {"remedy": remedy} if remedy else {}
            log.warning("collector down", collector=slot.name, error=what, **advice)
        slot.state = State(
            reading=None,
            time=self._clock.time(),
            monotonic=started,
            duration=self._clock.monotonic() - started,
            failures=slot.failures,
            last_success=slot.last_success,
            error=error,
            faults=dict(slot.troubles.faults),
            limit_hits=dict(slot.troubles.limit_hits),
        )

    def _bug(self, slot: _Slot, started: float, bug: BaseException) -> None:
        what = f"{type(bug).__name__}: {bug}"
        if slot.bug_logged != what:
            log.error("bug in a collector", collector=slot.name, exc_info=bug)
            slot.bug_logged = what
        self._down(slot, started, f"bug: {what}", "")

    def _lose(self, slot: _Slot, why: str) -> None:
        if slot.absent != why:
            log.info("collector absent", collector=slot.name, reason=why)
        slot.measures.clear()
        slot.absent = why
        slot.state = slot.beaten = None
        # On the grid, and never later than promised, even if the next multiple is close.
        slot.due = (math.floor(self._clock.monotonic() / SEARCH_SECONDS) + 1) * SEARCH_SECONDS

    async def _close(self, slot: _Slot) -> None:
        if slot.task is not None:
            slot.task.cancel()
            await asyncio.wait([slot.task], timeout=CLOSE_SECONDS)
        collector, slot.collector, slot.refreshes = slot.collector, None, None
        slot.measures.clear()
        if collector is None:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await collector.aclose()
        except Exception as error:  # noqa: BLE001 - it is being closed: log it and go on
            log.warning("collector did not close", collector=slot.name, error=repr(error))

    # -- publishing ------------------------------------------------------------------------------

    def _add_up(self, started: float, cpu: CpuTime | None) -> None:
        present = [name for name, slot in self._slots.items() if slot.state]
        readings = {name: slot.beaten for name, slot in self._slots.items() if slot.beaten}
        ended = self._clock.monotonic()
        now = self._clock.time()
        self._node.asleep = asleep(self._clock)
        self._node_state = State(
            reading=self._node.beat(readings, self._measured(), present, cpu, started),
            time=now,
            monotonic=started,
            duration=self._clock.monotonic() - ended,
            failures=0,
            last_success=now,
        )

    def _measured(self) -> set[str]:
        """Return the components that something measures."""
        return {component for slot in self._slots.values() for component in slot.measures}

    def _publish(self) -> None:
        states: dict[str, State] = {}
        if self._node_state is not None:
            states["node"] = self._node_state  # first on the page: no collector can take its families
        states.update((name, slot.state) for name, slot in self._slots.items() if slot.state is not None)
        absent = {
            name: slot.absent for name, slot in self._slots.items() if slot.state is None and slot.absent
        }
        self.snapshot = Snapshot(self._clock.time(), MappingProxyType(states), MappingProxyType(absent))

    async def _sleep_until(self, due: float) -> None:
        """Sleep until then and not less: a loop's timers may fire a millisecond early."""
        self._changed.clear()
        while (left := due - self._clock.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
            if self._changed.is_set():
                return


def _check_claims(reading: Reading) -> None:
    """Check that the node can show every claim; a collector that breaks this has a bug. Raises: TypeError."""
    for claim in reading.claims:
        labels = SHARE_LABELS[claim.kind]
        if claim.share.labels != labels:
            raise TypeError(f"{claim.share.name}, the share of a {claim.kind}, must have the labels {labels}")
        wrong = metric_complaint(claim.share)
        if wrong:
            raise TypeError(f"{claim.share.name!r}, the share of a {claim.kind}, {wrong}")


def _next_on_grid(now: float, interval: float) -> float:
    """Return a multiple of the interval after `now`, so that equal intervals share wake-ups.

    It is at least half an interval away, so that the first window, which begins between two multiples, is not
    a short one.
    """
    due = math.floor(now / interval) * interval + interval
    return due if due - now >= interval / 2 else due + interval
