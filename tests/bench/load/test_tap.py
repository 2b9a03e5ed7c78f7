"""The end of an output in this process: what is counted, what is kept, and what may go wrong with either."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from powerbench_agent.bench.load import tap as module
from powerbench_agent.bench.load.tap import FileCounter, Tap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Clock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Disk:
    """A file on a disk that has so many bytes of room."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.content = b""

    def write(self, data: memoryview) -> int:
        taken = bytes(data[: self.room - len(self.content)])
        if not taken:
            raise OSError(28, "No space left on device")
        self.content += taken
        return len(taken)

    def seek(self, _: int) -> None:
        pass

    def truncate(self) -> None:
        self.content = b""

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


@pytest.fixture
async def tap(tmp_path: Path) -> AsyncIterator[Tap]:
    """Give a tap that listens and keeps."""
    made = Tap()
    await made.start(tmp_path)
    yield made
    await made.stop()
    made.forget()


async def connected(tap: Tap) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(tap.url.rpartition(":")[2]))


async def send(tap: Tap, *chunks: bytes) -> None:
    """Send what a sender has, and wait until it is there and the sender gone."""
    _, writer = await connected(tap)
    for chunk in chunks:
        writer.write(chunk)
        await writer.drain()
    writer.close()
    await writer.wait_closed()
    while tap.total < sum(map(len, chunks)):  # noqa: ASYNC110 - bytes set no event
        await asyncio.sleep(0)
    assert await tap.drained(10)


def named(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def kept(tap: Tap) -> bytes:
    return Path(tap.kept).read_bytes()


async def test_what_arrives_is_counted_and_kept(tap: Tap, tmp_path: Path) -> None:
    """All of it, in a file that has no name."""
    assert named(tmp_path) == []
    await send(tap, b"a" * 70_000, b"b" * 70_000)
    assert (tap.total, kept(tap)) == (140_000, b"a" * 70_000 + b"b" * 70_000)
    assert (tap.problem, tap.is_cut) == ("", False)
    assert tap.points[-1][1] == 140_000
    assert [count for _, count in tap.points] == sorted(count for _, count in tap.points)


async def test_a_tap_that_keeps_nothing_has_no_file() -> None:
    """It counts all the same."""
    tap = Tap()
    await tap.start()
    await send(tap, b"abc")
    tap.stop_keeping()
    assert (tap.total, tap.kept, tap.is_cut) == (3, "", False)
    await tap.stop()


async def test_a_second_sender_is_refused_and_does_not_disturb_the_first(tap: Tap) -> None:
    """Its connection is closed, and nothing of it is counted."""
    _, first = await connected(tap)
    first.write(b"12345")
    await first.drain()
    while tap.total < 5:  # noqa: ASYNC110 - bytes set no event
        await asyncio.sleep(0)
    reader, second = await connected(tap)
    second.write(b"xxx")
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    assert not await tap.drained(0)
    first.write(b"678")
    await first.drain()
    first.close()
    assert await tap.drained(10)
    assert (tap.total, kept(tap)) == (8, b"12345678")
    second.close()


async def test_a_sender_that_comes_again_begins_again(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts, what is kept, and whether it is whole are the second one's alone."""
    monkeypatch.setattr(module, "MOST_KEPT", 10)
    await send(tap, b"a" * 11)
    tap.mark()
    assert tap.is_cut
    await send(tap, b"bbb")
    assert (tap.total, kept(tap), tap.problem, tap.is_cut) == (3, b"bbb", "", False)
    assert {count for _, count in tap.points} <= {0, 3}


async def test_no_more_is_kept_than_most(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is counted, and the score is told why it has not all."""
    monkeypatch.setattr(module, "MOST_KEPT", 2**20)
    await send(tap, b"a" * 2**20, b"b", b"c")
    assert tap.total == 2**20 + 2
    assert len(kept(tap)) <= 2**20
    assert tap.problem == "more than 1 MiB were to be kept"
    assert tap.is_cut


@pytest.mark.parametrize("room", [0, 5, 11])
def test_a_full_disk_costs_the_keeping_and_not_the_counting(room: int) -> None:
    """A part of a write is no whole one; after the first that fails nothing more is kept."""
    tap: Any = Tap()
    tap._file, tap._keeps = Disk(room), True
    for _ in range(4):
        tap.take(b"1234")
    assert tap.total == 16
    assert tap._file.content == (b"1234" * 4)[:room]
    assert tap.problem == "what was encoded could not be kept: No space left on device"
    assert tap.is_cut


def test_a_disk_that_takes_parts_gets_all() -> None:
    """A write that was cut short is gone on with."""
    tap: Any = Tap()

    class Parts(Disk):
        def write(self, data: memoryview) -> int:
            return super().write(data[:3])

    tap._file, tap._keeps = Parts(99), True
    tap.take(b"12345678")
    assert (tap._file.content, tap.problem, tap.is_cut) == (b"12345678", "", False)


def test_keeping_ends_when_it_is_told_to() -> None:
    """What comes then is counted alone; that is a cut, and no problem."""
    tap: Any = Tap()
    tap._file, tap._keeps = Disk(99), True
    tap.take(b"12")
    tap.stop_keeping()
    tap.take(b"34")
    assert (tap.total, tap._file.content, tap.is_cut, tap.problem) == (4, b"12", True, "")


def test_a_week_is_remembered_in_few_points(clock: Clock) -> None:
    """However long it lasts; marks stay where they are, and what lies between is not far off."""
    tap = Tap()
    marked: list[tuple[float, float]] = []
    tap.take(b"")
    for second in range(7 * 86_400 // 12):
        clock.now += 12.0
        tap.take(b"x" * 12)
        if second in (5000, 20_000, 20_001):
            clock.now += 1.0  # between two points
            tap.mark()
            marked.append(tap.points[-1])
    assert len(tap.points) <= module._MOST_POINTS
    assert set(marked) <= set(tap.points)
    moments = [moment for moment, _ in tap.points]
    assert moments == sorted(moments)
    assert max(later - earlier for earlier, later in pairwise(moments)) <= 120
    assert tap.points[-1][1] >= tap.total - 120


def test_points_are_a_tenth_of_a_second_apart(clock: Clock) -> None:
    """More often would be of no use; less often would blur an edge."""
    tap = Tap()
    for _ in range(1000):
        clock.now += 0.01
        tap.take(b"x")
    assert len(tap.points) == pytest.approx(100, abs=10)


def test_a_file_that_another_writes_is_counted_at_each_mark(tmp_path: Path) -> None:
    """Before it is begun there is nothing."""
    counter = FileCounter(tmp_path / "out.mkv")
    counter.mark()
    (tmp_path / "out.mkv").write_bytes(b"x" * 30)
    counter.mark()
    assert [count for _, count in counter.points] == [0, 30]
