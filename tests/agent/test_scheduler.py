"""The beat: verdicts, deadlines, the grid, fresh readings, reloads. All of it in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from powerbench_agent.agent.bucket import Bucket
from powerbench_agent.agent.scheduler import SEARCH_SECONDS, Scheduler
from powerbench_agent.core.model import Absent, Claim, Meter, Metric, ReadFailed, Reading, Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from conftest import Cheap, FakeClock, LoopClock, Scripted

VALUE = Metric("fake_value", "gauge", "A value.")
GOOD = Reading([VALUE.sample(42.0)])


def opening(collector: Any) -> Callable[[], Awaitable[Any]]:
    async def open_() -> Any:
        return collector

    return open_


class Appearing:
    """A source that is not there before `at`."""

    def __init__(self, clock: LoopClock, at: float, collector: Any) -> None:
        self.clock, self.at, self.collector = clock, at, collector

    async def __call__(self) -> Any:
        if self.clock.monotonic() < self.at:
            raise Absent("not plugged in")
        return self.collector


@contextlib.asynccontextmanager
async def running(
    clock: LoopClock, collectors: Mapping[str, tuple[Any, float]], **more: Any
) -> AsyncIterator[Scheduler]:
    """Run a scheduler; each `how` is a way to open a collector, or a collector that is there."""
    scheduler = Scheduler(
        {
            name: (how if callable(how) else opening(how), interval)
            for name, (how, interval) in collectors.items()
        },
        clock,
        **more,
    )
    beating = asyncio.ensure_future(scheduler.run())
    try:
        yield scheduler
    finally:
        beating.cancel()
        await asyncio.wait([beating])
    assert beating.cancelled(), beating.exception()


def values(scheduler: Scheduler, name: str) -> list[float]:
    state = scheduler.snapshot.states.get(name)
    return [sample.value for sample in state.reading.samples] if state and state.reading else []


# -- absent ------------------------------------------------------------------------------------------


@pytest.mark.looptime
@pytest.mark.parametrize("interval", [0.5, 1.0, 30.0, 3600.0])
async def test_an_absent_source_is_not_shown_and_is_found_within_ten_seconds(
    loop_clock: LoopClock, scripted: type[Scripted], interval: float
) -> None:
    """An absent source has no state but a reason, and is up at most 10 s after it appeared."""
    late = Appearing(loop_clock, 13.2, scripted(GOOD))
    async with running(loop_clock, {"late": (late, interval)}) as scheduler:
        await loop_clock.until(13.1)
        assert "late" not in scheduler.snapshot.states
        assert scheduler.snapshot.absent == {"late": "not plugged in"}
        await loop_clock.until(23.3)
        assert values(scheduler, "late") == [42.0]
        assert not scheduler.snapshot.absent


@pytest.mark.looptime
async def test_absence_is_logged_once(loop_clock: LoopClock) -> None:
    """A source that stays away is one info line, however often it is looked for."""
    with capture_logs() as logs:
        async with running(loop_clock, {"gone": (Appearing(loop_clock, 1e9, None), 1.0)}):
            await loop_clock.until(60)
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("collector absent", "info")]
    assert logs[0]["reason"] == "not plugged in"


@pytest.mark.looptime
async def test_a_source_that_goes_away_leaves_the_page_and_its_counters_go_on(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """Absent out of read(): not shown, looked for every 10 s, and the very same collector when it is back."""
    collector = scripted(GOOD, GOOD, Absent("unplugged"), Absent("unplugged"), GOOD)
    opened = []

    async def open_() -> Scripted:
        opened.append(collector)
        return collector

    async with running(loop_clock, {"usb": (open_, 1.0)}) as scheduler:
        await loop_clock.until(1.5)
        assert values(scheduler, "usb") == [42.0]
        for second in (2.5, 10.5):
            await loop_clock.until(second)
            assert "usb" not in scheduler.snapshot.states
            assert scheduler.snapshot.absent == {"usb": "unplugged"}
        await loop_clock.until(20.1)
        assert values(scheduler, "usb") == [42.0]
        assert not scheduler.snapshot.absent
        assert (len(opened), collector.closed) == (1, 0)
    assert collector.closed == 1
    assert collector.read_at == pytest.approx([0, 1, 2, 10, 20], abs=0.01)


@pytest.mark.looptime
async def test_the_estimate_takes_over_from_a_source_that_went_away(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """A measured source that is down leaves a gap in the node; one that is absent leaves the estimate."""

    def joules(source: str, figure: float) -> Reading:
        return Reading([], [Meter("cpu", source, "0", figure)])

    measured = scripted(joules("fake", 0), ReadFailed("x"), Absent("unplugged"))
    estimate = scripted(*(joules("estimate", 10.0 * second) for second in range(9)))
    async with running(loop_clock, {"fake": (measured, 1.0), "estimate": (estimate, 1.0)}) as scheduler:
        shown = []
        for second in range(4):
            await loop_clock.until(second + 0.5)
            reading = scheduler.snapshot.states["node"].reading
            assert reading is not None
            shown.append({sample.labels[1] for sample in reading.samples})
    assert shown == [{"fake"}, set(), {"estimate"}, {"estimate"}]


# -- down --------------------------------------------------------------------------------------------


@pytest.mark.looptime
async def test_a_failed_reading_is_a_gap_with_one_log_line_at_each_change(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """ReadFailed: no samples, failures count up, one line when it goes down, one when it is back."""
    failed = ReadFailed("may not read it", "give access")
    collector = scripted(GOOD, failed, failed, failed, GOOD)
    with capture_logs() as logs:
        async with running(loop_clock, {"meter": (collector, 1.0)}) as scheduler:
            await loop_clock.until(3.5)
            state = scheduler.snapshot.states["meter"]
            assert (state.up, state.reading, state.failures) == (False, None, 3)
            assert state.last_success == loop_clock.EPOCH
            assert "give access" in state.error
            await loop_clock.until(4.5)
            state = scheduler.snapshot.states["meter"]
            assert (state.up, state.failures, state.error) == (True, 3, "")
            await loop_clock.until(20)
    assert [entry["event"] for entry in logs] == ["collector up", "collector down", "collector is up again"]
    assert logs[1]["remedy"] == "give access"


@pytest.mark.looptime
async def test_another_cause_is_another_log_line(loop_clock: LoopClock, scripted: type[Scripted]) -> None:
    """A collector that fails for a new reason says the new reason, once."""
    collector = scripted(ReadFailed("a"), ReadFailed("a"), ReadFailed("b"), ReadFailed("b"))
    with capture_logs() as logs:
        async with running(loop_clock, {"meter": (collector, 1.0)}):
            await loop_clock.until(9)
    assert [entry["error"] for entry in logs] == ["a", "b"]


@pytest.mark.looptime
@pytest.mark.parametrize(("interval", "deadline"), [(0.5, 0.5), (1.0, 1.0), (5.0, 5.0), (60.0, 5.0)])
async def test_a_deadline_is_the_interval_and_five_seconds_at_most(
    loop_clock: LoopClock, scripted: type[Scripted], interval: float, deadline: float
) -> None:
    """A collector that never answers is down when its deadline has passed, and not before."""
    async with running(loop_clock, {"stuck": (scripted(None), interval)}) as scheduler:
        await loop_clock.until(deadline - 0.01)
        assert "stuck" not in scheduler.snapshot.states
        await loop_clock.until(deadline + 0.01)
        state = scheduler.snapshot.states["stuck"]
        assert (state.up, state.failures) == (False, 1)
        assert f"no answer within {deadline:g} s" in state.error


@pytest.mark.looptime
async def test_opening_has_a_deadline_too(loop_clock: LoopClock) -> None:
    """An open that hangs is a missed deadline, not a collector that is never heard of."""

    async def open_() -> Any:
        await asyncio.Event().wait()

    async with running(loop_clock, {"stuck": (open_, 1.0)}) as scheduler:
        await loop_clock.until(1.2)
        assert not scheduler.snapshot.states["stuck"].up
        assert scheduler.ready


@pytest.mark.looptime
async def test_a_hanging_collector_delays_no_other(loop_clock: LoopClock, scripted: type[Scripted]) -> None:
    """While one collector hangs, the others and the node are published at every beat."""
    beats = []
    collectors = {"stuck": (scripted(None), 60.0), "also stuck": (scripted(None), 1.0)}
    async with running(
        loop_clock,
        {**collectors, "good": (scripted(GOOD), 1.0)},
        on_beat=lambda: beats.append(loop_clock.monotonic()),
    ) as scheduler:
        for second in range(12):
            await loop_clock.until(second + 0.9)
            assert scheduler.snapshot.states["good"].monotonic == pytest.approx(second, abs=0.01)
            assert scheduler.snapshot.states["node"].monotonic == pytest.approx(second, abs=0.01)
    assert len(beats) == 12, "the watchdog is fed each beat, whatever the verdicts"


@pytest.mark.looptime
async def test_a_slow_answer_is_published_when_it_comes(loop_clock: LoopClock) -> None:
    """An answer within its deadline does not wait for the next beat to be seen."""

    class Slow:
        async def read(self) -> Reading:
            await loop_clock.until(0.7)
            return GOOD

        async def aclose(self) -> None: ...

    async with running(loop_clock, {"slow": (Slow(), 1.0)}) as scheduler:
        await loop_clock.until(0.69)
        assert values(scheduler, "slow") == []
        await loop_clock.until(0.71)
        assert values(scheduler, "slow") == [42.0]
        assert scheduler.snapshot.states["slow"].duration == pytest.approx(0.7, abs=0.01)


@pytest.mark.looptime
async def test_a_bug_is_logged_once_with_its_traceback(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """A collector's bug leaves one traceback, is counted, and the others go on."""
    bug = KeyError("oops")
    with capture_logs() as logs:
        async with running(
            loop_clock, {"bad": (scripted(bug), 1.0), "good": (scripted(GOOD), 1.0)}
        ) as scheduler:
            await loop_clock.until(4.5)
            state = scheduler.snapshot.states["bad"]
            assert (state.up, state.failures) == (False, 5)
            assert values(scheduler, "good") == [42.0]
    traced = [entry for entry in logs if "exc_info" in entry]
    assert [(entry["collector"], entry["exc_info"]) for entry in traced] == [("bad", bug)]


@pytest.mark.looptime
async def test_a_bug_that_comes_back_is_logged_again(loop_clock: LoopClock, scripted: type[Scripted]) -> None:
    """A bug after a recovery has a traceback of its own."""
    collector = scripted(KeyError("x"), GOOD, KeyError("x"))
    with capture_logs() as logs:
        async with running(loop_clock, {"bad": (collector, 1.0)}):
            await loop_clock.until(5.5)
    assert sum("exc_info" in entry for entry in logs) == 2


@pytest.mark.looptime
async def test_a_share_with_other_labels_is_a_bug_of_its_collector(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """A claim whose share the node could not emit takes its own collector down, and not the node."""
    share = Metric("fake_energy_joules_total", "counter", "Its share.", ("container",))
    claiming = scripted(Reading([], claims=[Claim("container", "web", share, 1.0, "a" * 64)]))
    async with running(loop_clock, {"bad": (claiming, 1.0)}) as scheduler:
        await loop_clock.until(1.5)
        states = scheduler.snapshot.states
        labels = "('container', 'component', 'source')"
        what = f"fake_energy_joules_total, the share of a container, must have the labels {labels}"
        assert (states["bad"].up, states["bad"].error) == (False, f"bug: TypeError: {what}")
        assert states["node"].up


FAULTS = [
    pytest.param(lambda: ReadFailed("no"), id="ReadFailed"),
    pytest.param(lambda: Absent("no"), id="Absent"),
    pytest.param(lambda: OSError(5, "Input/output error"), id="OSError"),
    pytest.param(lambda: PermissionError(13, "Permission denied"), id="PermissionError"),
    pytest.param(lambda: ValueError("no number"), id="ValueError"),
    pytest.param(lambda: ZeroDivisionError("x"), id="ZeroDivisionError"),
    pytest.param(MemoryError, id="MemoryError"),
    pytest.param(lambda: RecursionError("deep"), id="RecursionError"),
    pytest.param(lambda: TimeoutError("its own"), id="TimeoutError"),
    pytest.param(lambda: asyncio.CancelledError("its own"), id="CancelledError"),
    pytest.param(lambda: ExceptionGroup("both", [ValueError("a"), OSError(5, "b")]), id="ExceptionGroup"),
    pytest.param(lambda: None, id="no answer"),
]


@pytest.mark.looptime
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_in_open_shows_no_samples(
    loop_clock: LoopClock, scripted: type[Scripted], fault: Callable[[], BaseException | None]
) -> None:
    """Whatever open() raises: no samples, ready all the same, the neighbour unharmed, up once it opens."""
    broken = True

    async def open_() -> Scripted:
        if broken:
            await scripted.step([fault()])
        return scripted(GOOD)

    async with running(loop_clock, {"bad": (open_, 1.0), "good": (scripted(GOOD), 1.0)}) as scheduler:
        await loop_clock.until(3.2)
        assert values(scheduler, "bad") == []
        assert values(scheduler, "good") == [42.0]
        assert scheduler.ready
        broken = False
        await loop_clock.until(14)
        assert values(scheduler, "bad") == [42.0]


@pytest.mark.looptime
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_in_read_shows_neither_stale_nor_zero_samples(
    loop_clock: LoopClock, scripted: type[Scripted], fault: Callable[[], BaseException | None]
) -> None:
    """Whatever read() raises after a good reading: no samples until it works again, the others unharmed."""
    collector = scripted(GOOD, GOOD, fault(), fault(), GOOD)
    async with running(loop_clock, {"bad": (collector, 1.0), "good": (scripted(GOOD), 1.0)}) as scheduler:
        await loop_clock.until(1.5)
        assert values(scheduler, "bad") == [42.0]
        await loop_clock.until(3.2)
        assert values(scheduler, "bad") == []
        assert values(scheduler, "good") == [42.0]
        await loop_clock.until(25)
        assert values(scheduler, "bad") == [42.0]


@pytest.mark.looptime
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_in_refresh_shows_neither_stale_nor_zero_samples(
    loop_clock: LoopClock, cheap: type[Cheap], fault: Callable[[], BaseException | None]
) -> None:
    """Whatever refresh() raises: that scrape sees no samples of it, the neighbour's, and no error."""
    bad = cheap(GOOD)
    bad.refreshes = [fault()]
    async with running(loop_clock, {"bad": (bad, 1.0), "good": (cheap(GOOD), 1.0)}) as scheduler:
        await loop_clock.until(0.1)
        assert values(scheduler, "bad") == [42.0]
        asked = loop_clock.monotonic()
        snapshot = await scheduler.fresh()
        state = snapshot.states.get("bad")
        assert state is None or state.reading is None or state.monotonic > asked, "or the next beat's"
        assert values(scheduler, "good") == [42.0]
        await loop_clock.until(25)
        assert values(scheduler, "bad") == [42.0]


# -- the beat ----------------------------------------------------------------------------------------


@pytest.mark.looptime(start=100.3)
@pytest.mark.parametrize(
    ("interval", "then"),
    [
        (1.0, [100.3, 101, 102, 103, 104, 105]),
        (0.5, [100.3, 101, 101.5]),
        (2.5, [100.3, 102.5, 105, 107.5]),
        (10.0, [100.3, 110, 120]),
        (60.0, [100.3, 180, 240]),
    ],
)
async def test_beats_lie_on_a_grid(
    loop_clock: LoopClock, scripted: type[Scripted], interval: float, then: list[float]
) -> None:
    """Read at once, then at multiples of the interval at least half of it away: wake-ups are shared."""
    collector = scripted(GOOD)
    async with running(loop_clock, {"meter": (collector, interval)}):
        await loop_clock.until(then[-1] + 0.1)
    assert collector.read_at == pytest.approx(then, abs=0.01)


@pytest.mark.looptime
async def test_every_beat_publishes_a_new_snapshot_and_leaves_the_old_one_as_it_was(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """A snapshot never changes once it is published."""
    async with running(loop_clock, {"meter": (scripted(GOOD, ReadFailed("x")), 1.0)}) as scheduler:
        await loop_clock.until(0.5)
        old = scheduler.snapshot
        await loop_clock.until(1.5)
        assert scheduler.snapshot is not old
        assert old.states["meter"].up
        assert not scheduler.snapshot.states["meter"].up
        with pytest.raises(TypeError):
            old.states["meter"] = None  # type: ignore[index]


@pytest.mark.looptime
async def test_ready_once_each_collector_has_been_tried(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """Ready waits for the slowest first answer, and takes down and absent for answers."""
    collectors = {
        "good": (scripted(GOOD), 1.0),
        "down": (scripted(ReadFailed("x")), 1.0),
        "absent": (Appearing(loop_clock, 1e9, None), 1.0),
        "stuck": (scripted(None), 3.0),
    }
    async with running(loop_clock, collectors) as scheduler:
        assert not scheduler.ready
        await loop_clock.until(2.9)
        assert not scheduler.ready
        await loop_clock.until(3.1)
        assert scheduler.ready


@pytest.mark.looptime
async def test_an_agent_without_collectors_is_ready_and_beats(loop_clock: LoopClock) -> None:
    """The watchdog is fed even if there is nothing to read."""
    beats: list[float] = []
    async with running(loop_clock, {}, on_beat=lambda: beats.append(loop_clock.monotonic())) as scheduler:
        await loop_clock.until(35)
        assert scheduler.ready
    assert beats == pytest.approx([0, 10, 20, 30], abs=0.1)


@pytest.mark.looptime
async def test_a_reading_that_says_when_its_counters_were_taken_is_stamped_so(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """`monotonic` is the counters' own moment, and `time` is the same moment in Unix seconds."""
    await loop_clock.until(50)
    collector = scripted(GOOD._replace(taken=49.25))
    async with running(loop_clock, {"meter": (collector, 1.0)}) as scheduler:
        await loop_clock.until(50.5)
        state = scheduler.snapshot.states["meter"]
        assert state.monotonic == 49.25
        assert state.time == pytest.approx(loop_clock.EPOCH + 49.25, abs=1e-3)


@pytest.mark.looptime
async def test_closing_waits_for_every_collector_half_a_second_at_most(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """A cancelled run() closes every collector, and neither a hanging nor a failing close holds it up."""

    class Hanging(scripted):  # type: ignore[misc, valid-type]
        async def aclose(self) -> None:
            await asyncio.Event().wait()

    class Failing(scripted):  # type: ignore[misc, valid-type]
        async def aclose(self) -> None:
            raise OSError(9, "Bad file descriptor")

    good, stuck = scripted(GOOD), scripted(None)
    collectors = {
        "hanging": (Hanging(GOOD), 1.0),
        "failing": (Failing(GOOD), 1.0),
        "good": (good, 1.0),
        "stuck in read": (stuck, 60.0),
    }
    with capture_logs() as logs:
        async with running(loop_clock, collectors):
            await loop_clock.until(2.2)
        assert loop_clock.monotonic() == pytest.approx(2.7, abs=0.05)
    assert (good.closed, stuck.closed) == (1, 1)
    complaints = {entry["collector"] for entry in logs if entry["event"] == "collector did not close"}
    assert complaints == {"hanging", "failing"}


# -- fresh readings ----------------------------------------------------------------------------------


@pytest.mark.looptime
async def test_a_fresh_reading_asks_only_those_that_are_cheap(
    loop_clock: LoopClock, cheap: type[Cheap], scripted: type[Scripted]
) -> None:
    """fresh() refreshes collectors that can and are up; it reads no other and never calls read()."""
    fast, slow, down = cheap(GOOD), scripted(GOOD), cheap(ReadFailed("x"))
    fast.refreshes = [Reading([VALUE.sample(43.0)])]
    collectors = {"fast": (fast, 1.0), "slow": (slow, 1.0), "down": (down, 1.0)}
    async with running(loop_clock, collectors) as scheduler:
        await loop_clock.until(0.5)
        snapshot = await scheduler.fresh()
        assert snapshot is scheduler.snapshot
        assert values(scheduler, "fast") == [43.0]
        assert (fast.refreshed, len(fast.read_at), len(slow.read_at), down.refreshed) == (1, 1, 1, 0)


@pytest.mark.looptime
@pytest.mark.parametrize(("source", "times"), [("fake", 0), ("estimate", 1)])
async def test_an_estimate_beside_a_measurement_is_not_read_afresh(
    loop_clock: LoopClock, cheap: type[Cheap], source: str, times: int
) -> None:
    """It counts for nothing there; where nothing measures it is what an exact window is made of."""
    measured = cheap(Reading([], [Meter("cpu", source, "0", 1.0)]))
    estimate = cheap(Reading([], [Meter("cpu", "estimate", "cpu", 1.0)]))
    async with running(loop_clock, {"a": (measured, 1.0), "b": (estimate, 1.0)}) as scheduler:
        await loop_clock.until(0.5)
        await scheduler.fresh()
        assert (measured.refreshed, estimate.refreshed) == (1, times)


@pytest.mark.looptime
async def test_concurrent_callers_share_one_fresh_reading(loop_clock: LoopClock, cheap: type[Cheap]) -> None:
    """A hundred scrapes at once cost one reading; one that hangs up does not cancel it for the others."""
    fast = cheap(GOOD)
    async with running(loop_clock, {"fast": (fast, 1.0)}) as scheduler:
        await loop_clock.until(0.5)
        callers = [asyncio.ensure_future(scheduler.fresh()) for _ in range(100)]
        await loop_clock.until(loop_clock.monotonic())
        callers[0].cancel()
        snapshots = await asyncio.gather(*callers[1:])
        assert fast.refreshed == 1
        assert all(snapshot is snapshots[0] for snapshot in snapshots)
        await scheduler.fresh()
        assert fast.refreshed == 2


@pytest.mark.looptime
async def test_a_fresh_reading_moves_neither_the_node_nor_the_beat(
    loop_clock: LoopClock, cheap: type[Cheap]
) -> None:
    """The node's sum advances at the beat alone, however often its meters are looked at."""

    def joules(figure: float) -> Reading:
        return Reading([], [Meter("cpu", "fake", "0", figure)])

    fast = cheap(joules(1), joules(3))
    fast.refreshes = [joules(2)]
    async with running(loop_clock, {"fast": (fast, 1.0)}) as scheduler:
        await loop_clock.until(0.5)
        before = scheduler.snapshot.states["node"]
        await scheduler.fresh()
        assert scheduler.snapshot.states["node"] is before
        await loop_clock.until(1.5)
        assert values(scheduler, "node")[0] == 3
        assert fast.read_at == pytest.approx([0, 1], abs=0.01)


# -- reloads -----------------------------------------------------------------------------------------


@pytest.mark.looptime
async def test_a_reload_keeps_closes_opens_and_reopens(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """replace() keeps an unchanged collector's object, closes what left, reopens what it is told to."""
    kept, gone, old, new, added = (scripted(GOOD) for _ in range(5))
    async with running(
        loop_clock, {"kept": (kept, 1.0), "gone": (gone, 1.0), "changed": (old, 1.0)}
    ) as scheduler:
        await loop_clock.until(2.5)
        wanted = {"kept": kept, "changed": new, "added": added}
        await scheduler.replace({n: (opening(c), 2.0) for n, c in wanted.items()}, reopen={"changed"})
        assert set(scheduler.snapshot.states) == {"kept", "node"}
        assert (kept.closed, gone.closed, old.closed) == (0, 1, 1)
        await loop_clock.until(2.6)
        assert {name: scheduler.collector(name) for name in wanted} == wanted
        assert scheduler.collector("gone") is None
        assert all(values(scheduler, name) == [42.0] for name in wanted)
        await loop_clock.until(6.5)
        assert kept.read_at == pytest.approx([0, 1, 2, 2.5, 4, 6], abs=0.01), "the new interval holds"
    assert (kept.closed, new.closed, added.closed, gone.closed) == (1, 1, 1, 1)


@pytest.mark.looptime
async def test_a_reload_ends_the_reading_of_a_collector_that_hangs(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """A collector can be configured away while its read is out."""
    stuck = scripted(None)
    async with running(loop_clock, {"stuck": (stuck, 60.0), "good": (scripted(GOOD), 1.0)}) as scheduler:
        await loop_clock.until(1.5)
        await scheduler.replace({"good": (opening(scripted(GOOD)), 1.0)}, reopen=set())
        assert loop_clock.monotonic() == pytest.approx(1.5, abs=0.01)
        assert stuck.closed == 1
        await loop_clock.until(7.5)
        assert set(scheduler.snapshot.states) == {"good", "node"}


@pytest.mark.looptime
async def test_a_reload_in_the_middle_of_a_fresh_reading(loop_clock: LoopClock, cheap: type[Cheap]) -> None:
    """A collector that is configured away while a scrape waits for another costs that scrape nothing."""
    slow, other = cheap(GOOD), cheap(GOOD)
    slow.refreshes = [None]  # no answer before the deadline
    async with running(loop_clock, {"slow": (slow, 1.0), "other": (other, 1.0)}) as scheduler:
        await loop_clock.until(0.5)
        scrape = asyncio.ensure_future(scheduler.fresh())
        await loop_clock.until(0.6)
        await scheduler.replace({"slow": (opening(slow), 1.0)}, reopen=set())
        assert "other" not in (await scrape).states


@pytest.mark.looptime
async def test_the_nodes_counter_outlives_a_reopened_meter(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """A collector reopened by a reload counts from 0 again; the node's counter does not."""

    def metered(*figures: float) -> Scripted:
        return scripted(*(Reading([], [Meter("cpu", "fake", "0", joules)]) for joules in figures))

    async with running(loop_clock, {"meter": (metered(0, 70, 100), 1.0)}) as scheduler:
        await loop_clock.until(2.5)
        assert values(scheduler, "node")[0] == 100
        await scheduler.replace({"meter": (opening(metered(0, 5)), 1.0)}, reopen={"meter"})
        await loop_clock.until(3.5)
        assert values(scheduler, "node")[0] == 105


# -- the bucket --------------------------------------------------------------------------------------


def test_a_bucket_gives_its_burst_then_its_rate(clock: FakeClock) -> None:
    """Five at once, then one each half second."""
    bucket = Bucket(clock, rate=2.0, burst=5.0)
    assert [bucket.take() for _ in range(6)] == [True] * 5 + [False]
    clock.advance(0.49)
    assert not bucket.take()
    clock.advance(0.02)
    assert [bucket.take(), bucket.take()] == [True, False]
    clock.advance(3600)
    assert [bucket.take() for _ in range(6)] == [True] * 5 + [False]


@given(
    st.lists(st.floats(0, 10), max_size=200),
    st.floats(0.1, 100),
    st.floats(1, 100),
)
def test_a_bucket_never_gives_more_than_burst_and_rate(waits: list[float], rate: float, burst: float) -> None:
    """Over any pattern of asking: at most burst + rate x time, and never a refusal after a full refill."""
    now = 0.0

    class Clock:
        def monotonic(self) -> float:
            return now

        def time(self) -> float:
            return now

    bucket = Bucket(Clock(), rate=rate, burst=burst)
    given_out = 0
    for wait in waits:
        now += wait
        took = bucket.take()
        given_out += took
        assert took or wait * rate < 1
        assert given_out <= burst + rate * now + 1e-6


async def test_a_reload_keeps_the_collectors_in_their_order(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """A reopened collector keeps its place: the first of two that share a family keeps the family."""
    first, second = scripted(GOOD), scripted(GOOD)
    collectors = {"first": (opening(first), 1.0), "second": (opening(second), 1.0)}
    scheduler = Scheduler(collectors, loop_clock)
    await scheduler.beat()
    await scheduler.replace(collectors, {"first"})
    await scheduler.beat()
    assert list(scheduler.snapshot.states) == ["node", "first", "second"]
    await scheduler.aclose()


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(0.1, marks=pytest.mark.looptime(start=100.1)),
        pytest.param(3.0, marks=pytest.mark.looptime(start=103.0)),
        pytest.param(7.0, marks=pytest.mark.looptime(start=107.0)),
        pytest.param(9.9, marks=pytest.mark.looptime(start=109.9)),
    ],
)
async def test_an_absent_source_is_looked_for_within_ten_seconds_whatever_the_phase(
    loop_clock: LoopClock, scripted: type[Scripted], phase: float
) -> None:
    """Wherever between two searches it was found missing, the next comes no later than promised."""
    collector = scripted(Absent("not yet"), GOOD)
    async with running(loop_clock, {"late": (collector, 1.0)}):
        await loop_clock.until(100.0 + phase + SEARCH_SECONDS + 0.01)
        assert len(collector.read_at) >= 2
        assert collector.read_at[1] - collector.read_at[0] <= SEARCH_SECONDS


@pytest.mark.looptime
async def test_a_reading_that_lacks_a_part_is_up_and_its_fault_is_counted(
    loop_clock: LoopClock, scripted: type[Scripted]
) -> None:
    """One bad file costs its own figures; the state says how often, also while the collector is down."""
    slow = Trouble("frequency", "no answer")
    collector = scripted(GOOD._replace(troubles=[slow]), ReadFailed("gone"))
    scheduler = Scheduler({"fake": (opening(collector), 1.0)}, loop_clock)
    for up in (True, False):
        await scheduler.beat()
        state = scheduler.snapshot.states["fake"]
        assert (state.up, state.faults) == (up, {"frequency": 1})
        await loop_clock.until(loop_clock.monotonic() + 2.0)
    await scheduler.aclose()
