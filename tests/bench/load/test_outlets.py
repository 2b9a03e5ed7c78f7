"""The ways out of an encoder: where each rendition goes, what counts its bytes, and what is kept of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from msgspec import structs

from powerbench_agent.bench.load.child import StreamFailed
from powerbench_agent.bench.load.ffmpeg import Ffmpeg
from powerbench_agent.bench.load.outlets import Outlet, Way, open_outlets
from powerbench_agent.bench.load.tap import FileCounter, Tap
from powerbench_agent.bench.plan.ladder import parse_ladder, renditions_of, with_ladder
from powerbench_agent.bench.plan.pace import MAX
from powerbench_agent.bench.plan.scenario import Resolution, Scenario

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from powerbench_agent.bench.meter.client import AgentClient

FFMPEG = Ffmpeg("/usr/bin/ffmpeg", "7.1", "", frozenset())
PLAIN = Scenario(
    name="x",
    type="single",
    duration=60,
    video_kbps=1000,
    resolution=Resolution(320, 180),
    fps=30,
    encoder="h264",
)


def ladder() -> Scenario:
    made, wrong = renditions_of(PLAIN, parse_ladder("320x180:1M,160x90:1M"), 0.0)
    assert wrong == []
    return with_ladder(PLAIN, made)


@pytest.fixture
async def stack() -> AsyncIterator[contextlib.AsyncExitStack]:
    async with contextlib.AsyncExitStack() as found:
        yield found


async def outlets(
    stack: contextlib.AsyncExitStack,
    scenario: Scenario,
    sink: str,
    keep_in: Path | None = None,
    place: tuple[int, int] = (0, 1),
) -> list[Outlet]:
    way = Way(sink, cast("AgentClient", None), keep_in)
    return await open_outlets(stack, FFMPEG, scenario, way, place)


def forget(found: list[Outlet]) -> None:
    for outlet in found:
        if isinstance(outlet.counter, Tap):
            outlet.counter.forget()


async def test_a_plain_stream_to_a_server_is_counted_by_ffmpeg(stack: contextlib.AsyncExitStack) -> None:
    """There is nothing beside it."""
    (one,) = await outlets(stack, PLAIN, "rtmp://h/live/x")
    assert (one.target.url, one.target.copy, one.container) == ("rtmp://h/live/x", "", "flv")
    assert (one.counter, one.sink, one.kept, one.bytes_of) == (None, None, "", "flv as sent")
    (lossy,) = await outlets(stack, PLAIN, "srt://h:9")
    assert lossy.bytes_of == "mpegts as sent; what arrived is not counted"


async def test_what_is_to_be_scored_is_copied_to_a_tap(
    stack: contextlib.AsyncExitStack, tmp_path: Path
) -> None:
    """Its bytes are then those of the copy, and that is said."""
    found = await outlets(stack, PLAIN, "rtmp://h/live/x", tmp_path)
    (one,) = found
    assert one.target.copy.startswith("tcp://127.0.0.1:")
    assert one.kept.startswith("/proc/")
    assert one.bytes_of == "nut, a copy"
    forget(found)
    assert one.kept == ""


async def test_the_renditions_of_a_ladder_are_counted_apart(stack: contextlib.AsyncExitStack) -> None:
    """Each by a tap of its own: at the embedded sink itself, elsewhere as a copy."""
    here = await outlets(stack, ladder(), "embedded")
    assert len({one.target.url for one in here}) == 2
    assert [(one.container, one.target.copy, one.bytes_of) for one in here] == [
        ("nut", "", "nut at the sink")
    ] * 2
    there = await outlets(stack, ladder(), "rtmp://h/live/x?key=1", place=(1, 2))
    assert [one.target.url for one in there] == ["rtmp://h/live/x-3?key=1", "rtmp://h/live/x-4?key=1"]
    assert len({one.target.copy for one in there}) == 2


async def test_an_encode_as_fast_as_it_goes_passes_no_server(stack: contextlib.AsyncExitStack) -> None:
    """The embedded sink is this process."""
    (one,) = await outlets(stack, structs.replace(PLAIN, pace=MAX), "embedded")
    assert (one.container, one.sink, one.bytes_of) == ("nut", None, "nut at the sink")
    assert isinstance(one.counter, Tap)


async def test_a_file_is_kept_as_it_is(stack: contextlib.AsyncExitStack, tmp_path: Path) -> None:
    """Nothing else is; a ladder's are counted by their sizes."""
    (one,) = await outlets(stack, PLAIN, "file:/a/b.mp4", tmp_path)
    assert (one.counter, one.kept, one.bytes_of) == (None, "file:/a/b.mp4", "mp4 file")
    both = await outlets(stack, ladder(), "file:/a/{}.mkv", tmp_path)
    assert [one.kept for one in both] == ["file:/a/x_180p.mkv", "file:/a/x_90p.mkv"]
    assert all(isinstance(one.counter, FileCounter) for one in both)


async def test_a_part_of_the_work_has_no_way_out(stack: contextlib.AsyncExitStack, tmp_path: Path) -> None:
    """Nothing listens for it."""
    assert await outlets(stack, structs.replace(ladder(), part="decode"), "embedded", tmp_path) == []


async def test_what_cannot_be_kept_fails_the_stream(stack: contextlib.AsyncExitStack) -> None:
    """The message has the directory and the reason."""
    with pytest.raises(StreamFailed, match="cannot be kept in /nowhere/at/all: No such file"):
        await outlets(stack, ladder(), "embedded", Path("/nowhere/at/all"))


async def test_what_was_kept_of_a_stream_that_failed_is_dropped(tmp_path: Path) -> None:
    """It would fill the disk until the run ends."""
    stack = contextlib.AsyncExitStack()
    found = await outlets(stack, ladder(), "embedded", tmp_path)
    assert all(one.kept for one in found)
    died = StreamFailed("it died")
    await stack.__aexit__(type(died), died, None)
    assert [one.kept for one in found] == ["", ""]


async def test_what_was_kept_of_a_stream_that_went_well_stays(tmp_path: Path) -> None:
    """Until it is scored."""
    async with contextlib.AsyncExitStack() as stack:
        found = await outlets(stack, ladder(), "embedded", tmp_path)
    assert all(one.kept for one in found)
    forget(found)
