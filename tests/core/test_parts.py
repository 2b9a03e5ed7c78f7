"""Parts that are slow, fail or hang, and what becomes of the others."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from powerbench_agent.core.model import (
    SHARE_LABELS,
    Claim,
    Meter,
    Metric,
    ReadFailed,
    Reading,
    Trouble,
    Use,
)
from powerbench_agent.core.parts import Parts, Rota

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from trees import FakeClock

VALUE = Metric("test_value", "gauge", "A test's.", ("part",))
SHARE = Metric("test_joules_total", "counter", "A test's.", SHARE_LABELS["container"])
PATIENCE = 20.0  # seconds
BUDGET = 10.0  # of the fake clock, and more real seconds than any good part takes


def good(part: str) -> Reading:
    return Reading([VALUE.sample(1, part)])


def raising(error: Exception) -> Callable[[], Reading]:
    def read() -> Reading:
        raise error

    return read


def found(reading: Reading) -> list[str]:
    return [sample.labels[0] for sample in reading.samples]


@pytest.fixture
async def parts(clock: FakeClock) -> AsyncIterator[Parts]:
    made = Parts("test-parts", clock)
    yield made
    made.close()


async def test_all_parts_in_order(parts: Parts) -> None:
    """Every part's samples are there, in the order of the parts."""
    jobs = {name: lambda name=name: good(name) for name in ("b", "a", "c")}
    assert found(await parts.read(jobs, BUDGET)) == ["b", "a", "c"]


def full(part: str) -> Reading:
    """Return a reading in which everything is there that a part can say."""
    meter = Meter("gpu", "test", part, 5.0)
    return Reading(
        [VALUE.sample(1, part)],
        [meter, Meter("dram", "test", part, 2.0)],
        uses=[Use("gpu", "test", part, "render", 42, 1.5)],
        claims=[Claim("container", part, SHARE, 3.0)],
        troubles=[Trouble(part, "one sensor is missing")],
        powers={meter: None},
    )


async def test_all_that_parts_say_is_kept(parts: Parts) -> None:
    """Meters, uses, claims and powers come through like samples, in the order of the parts."""
    jobs = {name: lambda name=name: full(name) for name in ("b", "a")}
    jobs["bad"] = raising(ValueError("not a number"))
    reading = await parts.read(jobs, BUDGET)
    first, second = full("b"), full("a")
    assert reading == Reading(
        [*first.samples, *second.samples],
        [*first.meters, *second.meters],
        uses=[*first.uses, *second.uses],
        claims=[*first.claims, *second.claims],
        troubles=[*first.troubles, *second.troubles, Trouble("bad", "not a number")],
        powers={**first.powers, **second.powers},
    )


async def test_a_part_has_no_time_of_its_own(parts: Parts) -> None:
    """A `taken` of one part is not that of the others: refused, and not dropped in silence."""
    with pytest.raises(TypeError, match="taken"):
        await parts.read({"a": lambda: good("a")._replace(taken=7.0), "b": lambda: good("b")}, BUDGET)


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (OSError(5, "Input/output error"), Trouble("bad", "[Errno 5] Input/output error")),
        (TimeoutError(110, "Connection timed out"), Trouble("bad", "[Errno 110] Connection timed out")),
        (ValueError("not a number"), Trouble("bad", "not a number")),
        (ReadFailed("broken", "mend it"), Trouble("bad", "broken", "mend it")),
    ],
)
async def test_a_part_that_fails(parts: Parts, error: Exception, trouble: Trouble) -> None:
    """A part that cannot be read is a trouble, and the parts before and after it are read."""
    jobs = {"first": lambda: good("first"), "bad": raising(error), "last": lambda: good("last")}
    reading = await parts.read(jobs, BUDGET)
    assert found(reading) == ["first", "last"]
    assert reading.troubles == [trouble]


async def test_a_bug_is_not_a_trouble(parts: Parts) -> None:
    """What only a mistake in the code raises is raised where the reading is awaited."""
    with pytest.raises(ZeroDivisionError):
        await parts.read({"bad": raising(ZeroDivisionError())}, BUDGET)


async def test_the_budget_goes_round(parts: Parts, clock: FakeClock) -> None:
    """Slow parts take turns, quick ones are read each time, and each part left out is named."""

    def slow(part: str) -> Reading:
        clock.advance(4.0)
        return good(part)

    jobs = {name: lambda name=name: slow(name) for name in ("s1", "s2", "s3", "s4")}
    jobs["quick"] = lambda: good("quick")
    seen: list[list[str]] = []
    for _ in range(5):
        reading = await parts.read(jobs, BUDGET)
        seen.append(found(reading))
        assert [trouble.part for trouble in reading.troubles] == [p for p in jobs if p not in seen[-1]]
    assert seen == [
        ["s1", "s2", "s3"],
        ["s1", "s2", "s4", "quick"],
        ["s1", "s3", "s4", "quick"],
        ["s2", "s3", "s4", "quick"],
        ["s1", "s2", "s3", "quick"],
    ]


class Hanging:
    """Parts of which some do not return until they are told to."""

    def __init__(self, parts: Parts, names: str) -> None:
        self._parts = parts
        self._leave = threading.Event()
        self.hanging: set[str] = set()
        self.jobs: Mapping[str, Callable[[], Reading]] = {
            name: lambda name=name: self._read(name) for name in names
        }

    def _read(self, name: str) -> Reading:
        if name in self.hanging:
            self._leave.wait(PATIENCE)
        return good(name)

    def leave(self) -> None:
        self.hanging.clear()
        self._leave.set()

    async def until(self, wanted: str) -> Reading:
        """Read again and again, each time for a moment, until exactly these parts are found."""
        async with asyncio.timeout(PATIENCE):
            while True:
                reading = await self._parts.read(self.jobs, 0.05)
                if found(reading) == list(wanted):
                    return reading


@pytest.mark.parametrize("hanging", ["a", "c", "e", "ace"])
async def test_a_part_that_hangs(parts: Parts, hanging: str) -> None:
    """Parts that do not return are left out, one trouble each, until they do; the others go on."""
    rig = Hanging(parts, "abcde")
    rig.hanging = set(hanging)
    others = "".join(name for name in "abcde" if name not in hanging)
    reading = await rig.until(others)
    assert [trouble.part for trouble in reading.troubles] == list(hanging)
    assert all(trouble.remedy for trouble in reading.troubles)
    rig.leave()
    assert (await rig.until("abcde")).troubles == []


async def test_a_part_that_hangs_has_one_thread(parts: Parts) -> None:
    """However often it is read, a part that hangs costs one thread."""
    rig = Hanging(parts, "ab")
    rig.hanging = {"a"}
    for _ in range(10):
        await rig.until("b")
    async with asyncio.timeout(PATIENCE):
        while [thread.name for thread in threading.enumerate()].count("test-parts") != 2:
            await rig.until("b")  # a thread that was late once is just ending
    rig.leave()


def test_a_rota_takes_all_there_is_time_for(clock: FakeClock) -> None:
    """Without a slow one it is the whole list, in order."""
    rota = Rota(clock, 1.0)
    assert list(rota.stretch("abc")) == ["a", "b", "c"]
    assert list(rota.stretch("abc")) == ["a", "b", "c"]
    assert list(rota.stretch("")) == []


def test_a_rota_goes_on_where_it_stopped(clock: FakeClock) -> None:
    """A stretch ends when its time is over, and never before its first item."""
    rota = Rota(clock, 1.0)

    def stretch(seconds: float) -> str:
        taken = ""
        for item in rota.stretch("abcde"):
            taken += item
            clock.advance(seconds)
        return taken

    assert [stretch(0.5), stretch(0.5), stretch(5.0), stretch(0.1), stretch(0.5)] == [
        "ab",
        "cd",
        "e",
        "abcde",
        "ab",
    ]
