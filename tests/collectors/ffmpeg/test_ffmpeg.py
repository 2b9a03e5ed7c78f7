"""FFmpeg's streams: windowed rates, restarts, stalls, expiry, and names that others choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import CAPTURES
from proc_trees import Connection, Processes
from structlog.testing import capture_logs
from trees import FakeClock, value, values

from powerbench_agent.collectors.ffmpeg import collector as ffmpeg
from powerbench_agent.collectors.ffmpeg import encoders
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Feed, IngestRejected, Ingests, Metric, Reading, Sender
from powerbench_agent.core.options import Seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

TOTALS = (ffmpeg.FRAMES, ffmpeg.DROPPED, ffmpeg.DUPLICATED, ffmpeg.BYTES, ffmpeg.MEDIA, ffmpeg.RESTARTS)
RATES = (ffmpeg.FPS, ffmpeg.SPEED, ffmpeg.BITRATE)


def report(
    frame: int | None = None,
    size: int | None = None,
    media: float | None = None,
    *,
    dropped: int = 0,
    duplicated: int = 0,
    end: bool = False,
) -> bytes:
    lines = [
        f"frame={frame}" if frame is not None else "",
        f"total_size={'N/A' if size is None else size}",
        f"out_time_us={'N/A' if media is None else round(media * 1e6)}",
        f"dup_frames={duplicated}",
        f"drop_frames={dropped}",
        f"progress={'end' if end else 'continue'}",
    ]
    return "\n".join(filter(None, lines)).encode() + b"\n"


class Streams(NamedTuple):
    clock: FakeClock
    collector: ffmpeg.FFmpeg

    async def read(self) -> Reading:
        return await self.collector.read()

    async def live(self, feed: Feed, reports: Iterable[bytes], every: float = 0.5) -> Reading:
        """Send a report at a time; return the reading at the last one."""
        for number, content in enumerate(reports):
            if number:
                self.clock.advance(every)
            feed.feed(content)
            await self.read()  # the agent beats beside it
        return await self.read()


async def open_streams(**options: float) -> Streams:
    clock = FakeClock()
    made = await ffmpeg.open_collector(ffmpeg.Options(**options), Host(clock=clock))  # type: ignore[arg-type]
    return Streams(clock, made)


@pytest.fixture
async def streams() -> Streams:
    return await open_streams()


def has(reading: Reading, metric: Metric, stream: str = "cam1") -> bool:
    return (stream,) in values(reading, metric)


def at_30_fps(count: int, start: int = 0, every: float = 0.5) -> list[bytes]:
    """Return live reports of a stream at 30 fps, speed 1 and 800 kb/s."""
    return [
        report(round(30 * every * n), round(100_000 * every * n), every * n)
        for n in range(start, start + count)
    ]


# -- rates -------------------------------------------------------------------------------------------


async def test_is_fed(streams: Streams) -> None:
    """The collector takes feeds, and shows nothing but its rejections before the first report."""
    assert isinstance(streams.collector, Ingests)
    streams.collector.open_feed("cam1")
    assert {sample.metric for sample in (await streams.read()).samples} == {ffmpeg.REJECTED}


async def test_live_stream(streams: Streams) -> None:
    """A live stream shows what it encodes a second, by the time its reports arrived."""
    reading = await streams.live(streams.collector.open_feed("cam1"), at_30_fps(9))
    assert value(reading, ffmpeg.FPS, "cam1") == pytest.approx(30)
    assert value(reading, ffmpeg.SPEED, "cam1") == pytest.approx(1)
    assert value(reading, ffmpeg.BITRATE, "cam1") == pytest.approx(800)
    assert value(reading, ffmpeg.RUN_FRAMES, "cam1") == value(reading, ffmpeg.FRAMES, "cam1") == 120
    assert value(reading, ffmpeg.BYTES, "cam1") == 400_000
    assert value(reading, ffmpeg.MEDIA, "cam1") == 4
    assert value(reading, ffmpeg.ACTIVE, "cam1") == 1
    assert value(reading, ffmpeg.STALLED, "cam1") == 0
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 0
    assert value(reading, ffmpeg.LAST_UPDATE, "cam1") == streams.clock.time()


async def test_rates_look_back_five_seconds(streams: Streams) -> None:
    """A stream that slowed down shows its pace of the last 5 s, not its mean since the start."""
    feed = streams.collector.open_feed("cam1")
    await streams.live(feed, [report(60 * n, 1000 * n, 2.0 * n) for n in range(61)], every=1.0)
    streams.clock.advance(1.0)
    slow = [report(3600 + 10 * n, 60_000 + 500 * n, 120 + 0.25 * n) for n in range(1, 7)]
    reading = await streams.live(feed, slow, every=1.0)
    assert value(reading, ffmpeg.FPS, "cam1") == pytest.approx(10)
    assert value(reading, ffmpeg.SPEED, "cam1") == pytest.approx(0.25)
    assert value(reading, ffmpeg.BITRATE, "cam1") == pytest.approx(4)


async def test_one_report_has_no_rate(streams: Streams) -> None:
    """A first report gives totals and no rate."""
    reading = await streams.live(streams.collector.open_feed("cam1"), [report(15, 100, 0.5)])
    assert not any(has(reading, metric) for metric in RATES)
    assert value(reading, ffmpeg.FRAMES, "cam1") == 15


@pytest.mark.parametrize("name", ["progress_5.1_rtmp.txt", "progress_9.0.txt", "stderr_5.1_rtmp.log"])
async def test_body_sent_at_once(streams: Streams, name: str) -> None:
    """A whole run's progress sent afterwards gives its totals and no rate."""
    feed = streams.collector.open_feed("cam1")
    content = (CAPTURES / name).read_bytes()
    unended = content[: content.rindex(b"progress=end")] if b"progress=end" in content else content
    for at in range(0, len(unended), 700):
        feed.feed(unended[at : at + 700])
        streams.clock.advance(0.001)
    during = await streams.read()
    assert not any(has(during, metric) for metric in RATES)
    feed.feed(content[len(unended) :])
    assert feed.close() > 5
    reading = await streams.read()
    assert not any(has(reading, metric) for metric in RATES)
    assert value(reading, ffmpeg.FRAMES, "cam1") == (120 if "9.0" in name else 480)
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 0
    assert value(reading, ffmpeg.ACTIVE, "cam1") == 0
    assert value(reading, ffmpeg.STALLED, "cam1") == 0


async def test_burst_then_live(streams: Streams) -> None:
    """A connection that brings its backlog at once has rates again 5 s later."""
    feed = streams.collector.open_feed("cam1")
    for content in at_30_fps(200):
        feed.feed(content)
    at_once = await streams.read()
    assert not any(has(at_once, metric) for metric in RATES)
    streams.clock.advance(0.5)
    reading = await streams.live(feed, at_30_fps(12, start=200))
    assert value(reading, ffmpeg.FPS, "cam1") == pytest.approx(30)


async def test_points_are_bounded(streams: Streams) -> None:
    """However fast reports come, what is remembered of them stays small."""
    feed = streams.collector.open_feed("cam1")
    for n in range(20_000):
        feed.feed(report(n, n, n / 1000))
        streams.clock.advance(0.001)
    ((_, stream),) = streams.collector._streams.items()
    assert stream.remembered < 200


async def test_audio_only(streams: Streams) -> None:
    """An audio stream has no frame series, neither a total nor a rate."""
    feed = streams.collector.open_feed("cam1")
    reading = await streams.live(feed, [report(None, 5000 * n, 0.5 * n) for n in range(8)])
    assert not any(has(reading, metric) for metric in (ffmpeg.FPS, ffmpeg.RUN_FRAMES, ffmpeg.FRAMES))
    assert value(reading, ffmpeg.SPEED, "cam1") == pytest.approx(1)
    assert value(reading, ffmpeg.BITRATE, "cam1") == pytest.approx(80)


async def test_null_muxer(streams: Streams) -> None:
    """A stream whose output has no size has no bytes series and no bitrate, rather than 0."""
    feed = streams.collector.open_feed("cam1")
    reading = await streams.live(feed, [report(15 * n, None, 0.5 * n) for n in range(8)])
    assert not has(reading, ffmpeg.BYTES)
    assert not has(reading, ffmpeg.BITRATE)
    assert value(reading, ffmpeg.FPS, "cam1") == pytest.approx(30)


@pytest.mark.parametrize("name", ["progress_5.1_audio_only.txt", "progress_5.1_null_NA.txt"])
async def test_captures_without_a_figure(streams: Streams, name: str) -> None:
    """The real audio-only and null captures show the series that they have, and no other."""
    feed = streams.collector.open_feed("cam1")
    feed.feed((CAPTURES / name).read_bytes())
    feed.close()
    reading = await streams.read()
    assert has(reading, ffmpeg.FRAMES) is ("null" in name)
    assert has(reading, ffmpeg.BYTES) is ("audio" in name)


async def test_dropped_and_duplicated(streams: Streams) -> None:
    """Dropped and duplicated frames are counted, the run's own and over all runs."""
    for _ in range(2):
        feed = streams.collector.open_feed("cam1")
        await streams.live(feed, [report(10, 10, 1, dropped=2, duplicated=3, end=True)])
        feed.close()
    reading = await streams.read()
    assert value(reading, ffmpeg.RUN_DROPPED, "cam1") == 2
    assert value(reading, ffmpeg.DROPPED, "cam1") == 4
    assert value(reading, ffmpeg.DUPLICATED, "cam1") == 6


# -- runs --------------------------------------------------------------------------------------------


async def test_new_connection_is_a_restart(streams: Streams) -> None:
    """A second connection is a second run: its own figures start again, the totals go on."""
    first = streams.collector.open_feed("cam1")
    await streams.live(first, at_30_fps(9))
    first.close()
    second = streams.collector.open_feed("cam1")
    reading = await streams.live(second, [report(200, 500_000, 6.5)])
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 1
    assert value(reading, ffmpeg.RUN_FRAMES, "cam1") == 200
    assert value(reading, ffmpeg.FRAMES, "cam1") == 320
    assert value(reading, ffmpeg.BYTES, "cam1") == 900_000
    assert value(reading, ffmpeg.MEDIA, "cam1") == 10.5
    assert not any(has(reading, metric) for metric in RATES)


@pytest.mark.parametrize("back", [report(5, 600_000, 9), report(None, 10, 9)], ids=["frame", "size"])
async def test_going_back_is_a_restart(streams: Streams, back: bytes) -> None:
    """A frame count or size that goes back within a connection is a new run: totals go on, rates restart."""
    feed = streams.collector.open_feed("cam1")
    before = await streams.live(feed, at_30_fps(9))
    streams.clock.advance(0.5)
    reading = await streams.live(feed, [back])
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 1
    assert value(reading, ffmpeg.FRAMES, "cam1") >= value(before, ffmpeg.FRAMES, "cam1")
    assert value(reading, ffmpeg.BYTES, "cam1") > value(before, ffmpeg.BYTES, "cam1")
    assert not any(has(reading, metric) for metric in RATES)


async def test_report_after_the_end_is_a_restart(streams: Streams) -> None:
    """A report after `progress=end` on the same connection is another run."""
    feed = streams.collector.open_feed("cam1")
    await streams.live(feed, [report(30, 100, 1), report(60, 200, 2, end=True)])
    reading = await streams.live(feed, [report(90, 300, 3)])
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 1
    assert value(reading, ffmpeg.RUN_FRAMES, "cam1") == 90
    assert value(reading, ffmpeg.FRAMES, "cam1") == 150
    assert value(reading, ffmpeg.ACTIVE, "cam1") == 1


async def test_newest_of_a_name_wins(streams: Streams) -> None:
    """Two connections of one name: the newest has it, the older one is drained, ignored and counted."""
    old = streams.collector.open_feed("cam1")
    await streams.live(old, [report(100, 1000, 3)])
    new = streams.collector.open_feed("cam1")
    await streams.live(new, [report(10, 100, 1)])
    reading = await streams.live(old, [report(5000, 50_000, 300, end=True)])
    assert value(reading, ffmpeg.RUN_FRAMES, "cam1") == 10
    assert value(reading, ffmpeg.FRAMES, "cam1") == 110
    assert value(reading, ffmpeg.ACTIVE, "cam1") == 1
    assert value(reading, ffmpeg.REJECTED, "superseded") == 1
    assert old.close() == 2  # its reports were read all the same
    reading = await streams.live(new, [report(20, 200, 2)])
    assert value(reading, ffmpeg.RUN_FRAMES, "cam1") == 20
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 1


async def test_connection_without_reports_ends_nothing(streams: Streams) -> None:
    """A second connection that has said nothing yet has not restarted the stream."""
    await streams.live(streams.collector.open_feed("cam1"), [report(100, 1000, 3)])
    streams.collector.open_feed("cam1")
    reading = await streams.read()
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 0
    assert value(reading, ffmpeg.FRAMES, "cam1") == 100


@pytest.mark.parametrize("shown_kib", [38, 39], ids=["rounded down", "rounded up"])
async def test_both_forms_at_once_are_one_run(streams: Streams, shown_kib: int) -> None:
    """With `2>&1` the status line's rounded size after the block's exact one is not taken for a restart."""
    feed = streams.collector.open_feed("cam1")
    status = b"frame=   13 fps=0.0 q=29.0 size=%8dkB time=00:00:00.36 bitrate= 852.9kbits/s speed=0.7x    \r"
    reading = await streams.live(feed, [status % shown_kib + report(13, 39_500, 0.366667)])
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 0
    assert value(reading, ffmpeg.FRAMES, "cam1") == 13


@pytest.mark.parametrize(
    "name", sorted(path.name for path in CAPTURES.glob("[ps]*_*") if "wire" not in path.name)
)
async def test_captures_are_one_run_each(streams: Streams, name: str) -> None:
    """A real run is one run: nothing in it looks like a restart."""
    feed = streams.collector.open_feed("cam1")
    feed.feed((CAPTURES / name).read_bytes())
    feed.close()
    assert value(await streams.read(), ffmpeg.RESTARTS, "cam1") == 0


async def test_clips_in_turn_are_runs(streams: Streams) -> None:
    """A report after an end on one connection starts a run, whether the clips are alike or not."""
    feed = streams.collector.open_feed("cam1", run="1f")
    for _ in range(4):
        feed.feed(report(25, 5000, 1.0, end=True))
    reading = await streams.read()
    assert value(reading, ffmpeg.FRAMES, "cam1") == 100
    assert value(reading, ffmpeg.MEDIA, "cam1") == 4
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 3
    assert value(reading, ffmpeg.STALLED, "cam1") == 0


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "killed"])
async def test_radio_in_a_loop(streams: Streams, *, ended: bool) -> None:
    """Audio over HLS has neither frames nor size: a run is told by its end, or by its time that goes back."""
    feed = streams.collector.open_feed("cam1", run="1f")
    for loop in range(3):
        await streams.live(feed, [report(None, None, 0.5 * n) for n in range(20)])
        streams.clock.advance(0.5)
        if ended:
            feed.feed(report(None, None, 10.0, end=True))
            streams.clock.advance(6.0)
        reading = await streams.read()
        assert value(reading, ffmpeg.RESTARTS, "cam1") == loop
        assert value(reading, ffmpeg.STALLED, "cam1") == 0
    assert value(reading, ffmpeg.MEDIA, "cam1") == (30.0 if ended else 28.5)


async def test_a_time_that_slips_back_is_no_restart(streams: Streams) -> None:
    """A time that goes back by less than a second, as at the end of the longer of two streams, is one run."""
    feed = streams.collector.open_feed("cam1")
    reading = await streams.live(feed, [report(None, None, media) for media in (1.0, 1.5, 1.2, 1.4, 2.0)])
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 0
    assert value(reading, ffmpeg.MEDIA, "cam1") == 2.0


def kept_alive(_: int) -> Sender:
    return Sender(("10.0.0.7", 4000), ("10.0.0.1", 9510))


def each_its_own(number: int) -> Sender:
    return Sender(("10.0.0.7", 4000 + number), ("10.0.0.1", 9510))


def each_with_its_pid(number: int) -> Sender:
    return Sender(("10.0.0.7", 4000 + number), ("10.0.0.1", 9510), "77")


@pytest.mark.parametrize("sender", [kept_alive, each_its_own, each_with_its_pid, lambda _: None])
@pytest.mark.parametrize("size", [1, 3], ids=["a block", "three blocks"])
async def test_a_post_a_block_is_one_run(
    streams: Streams, sender: Callable[[int], Sender | None], size: int
) -> None:
    """Posts of a block or some at a time, over one connection or many, are one live run."""
    blocks = at_30_fps(21)
    for number in range(0, len(blocks), size):
        feed = streams.collector.open_feed("cam1", sender(number))
        feed.feed(b"".join(blocks[number : number + size]))
        assert feed.close() == size
        reading = await streams.read()
        streams.clock.advance(0.5 * size)
    assert value(reading, ffmpeg.FRAMES, "cam1") == value(reading, ffmpeg.RUN_FRAMES, "cam1") == 300
    assert value(reading, ffmpeg.MEDIA, "cam1") == 10
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 0
    assert value(reading, ffmpeg.REJECTED, "superseded") == 0
    assert value(reading, ffmpeg.ACTIVE, "cam1") == 1
    if size == 1:
        assert value(reading, ffmpeg.FPS, "cam1") == pytest.approx(30)


@pytest.mark.parametrize("sender", [kept_alive, each_its_own])
async def test_runs_that_are_posted_in_pieces_are_told_apart(
    streams: Streams, sender: Callable[[int], Sender]
) -> None:
    """A piece after the end, and one whose counters are behind, begin another run."""
    pieces = [report(50, 500, 2), report(100, 1000, 4, end=True), report(150, 1500, 6), report(10, 100, 0.5)]
    for number, piece in enumerate(pieces):
        feed = streams.collector.open_feed("cam1", sender(number))
        feed.feed(piece)
        feed.close()
        streams.clock.advance(1.0)
    reading = await streams.read()
    assert value(reading, ffmpeg.FRAMES, "cam1") == 100 + 150 + 10
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 2


@pytest.mark.parametrize(
    ("first", "second", "seconds"),
    [
        (each_its_own(1), Sender(("10.0.0.8", 4001), ("10.0.0.1", 9510)), 0.0),
        (each_with_its_pid(1), Sender(("10.0.0.7", 4002), ("10.0.0.1", 9510), "78"), 0.0),
        (each_its_own(1), each_its_own(2), 0.5),
    ],
    ids=["another machine", "another process", "a connection that lasted"],
)
async def test_another_senders_run_is_another(
    streams: Streams, first: Sender, second: Sender, seconds: float
) -> None:
    """Counters that go forward are not enough: another sender, or FFmpeg's own connection, is another run."""
    feed = streams.collector.open_feed("cam1", first)
    streams.clock.advance(seconds)
    feed.feed(report(15, 100, 0.5))
    feed.close()
    reading = await streams.live(streams.collector.open_feed("cam1", second), [report(20, 150, 0.7)])
    assert value(reading, ffmpeg.FRAMES, "cam1") == 35
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 1


async def test_an_offset_is_no_media(streams: Streams) -> None:
    """With the input's times (-copyts) a run counts what it wrote, and its speed is the real one."""
    for offset in (0.0, 1.4, 60.0, 1.76e9):
        feed = streams.collector.open_feed(f"from {offset}")
        live = [report(round(15 * n), 1000 * n, offset + 0.5 * n) for n in range(1, 13)]
        reading = await streams.live(feed, live)
        assert value(reading, ffmpeg.MEDIA, f"from {offset}") == pytest.approx(6.0, abs=0.01)
        assert value(reading, ffmpeg.SPEED, f"from {offset}") == pytest.approx(1.0)


async def test_a_time_that_is_not_credible_is_not_shown(streams: Streams) -> None:
    """The only report of a run that says the Unix time gives frames and no media, rather than 0."""
    feed = streams.collector.open_feed("cam1")
    reading = await streams.live(feed, [report(150, 90_000, 1.76e9, end=True)])
    assert value(reading, ffmpeg.FRAMES, "cam1") == 150
    assert not has(reading, ffmpeg.MEDIA)


# -- stalls and ends ---------------------------------------------------------------------------------


async def test_frozen_frame_is_a_stall(streams: Streams) -> None:
    """Reports that repeat one frame (9.0 with a stuck input) are active, stalled after 5 s, and 0 fps."""
    feed = streams.collector.open_feed("cam1")
    await streams.live(feed, at_30_fps(9))
    frozen = report(120, 400_000, 4)
    for _ in range(10):
        streams.clock.advance(0.5)
        reading = await streams.live(feed, [frozen])
        assert value(reading, ffmpeg.STALLED, "cam1") == 0
    streams.clock.advance(0.5)
    reading = await streams.live(feed, [frozen])
    assert value(reading, ffmpeg.STALLED, "cam1") == 1
    assert value(reading, ffmpeg.ACTIVE, "cam1") == 1
    assert [value(reading, metric, "cam1") for metric in RATES] == [0, 0, 0]
    streams.clock.advance(0.5)
    assert value(await streams.live(feed, [report(121, 400_000, 4)]), ffmpeg.STALLED, "cam1") == 0


async def test_silence_is_a_stall(streams: Streams) -> None:
    """Silence without an end (5.1 with a stuck input, a killed run) is inactive, stalled, without rates."""
    feed = streams.collector.open_feed("cam1")
    await streams.live(feed, at_30_fps(9))
    streams.clock.advance(5.0)
    assert value(await streams.read(), ffmpeg.ACTIVE, "cam1") == 1
    streams.clock.advance(0.1)
    for close in (False, True):
        if close:
            feed.close()
        reading = await streams.read()
        assert value(reading, ffmpeg.ACTIVE, "cam1") == 0
        assert value(reading, ffmpeg.STALLED, "cam1") == 1
        assert not any(has(reading, metric) for metric in RATES)
        assert value(reading, ffmpeg.FRAMES, "cam1") == 120


async def test_new_run_starts_unstalled(streams: Streams) -> None:
    """A run that begins long after the last one, with nothing encoded yet, has not stalled."""
    await streams.live(streams.collector.open_feed("cam1"), at_30_fps(9))
    streams.clock.advance(60.0)
    second = streams.collector.open_feed("cam1")
    assert value(await streams.live(second, [report(0, 0, 0)]), ffmpeg.STALLED, "cam1") == 0
    streams.clock.advance(5.5)
    assert value(await streams.live(second, [report(0, 0, 0)]), ffmpeg.STALLED, "cam1") == 1


async def test_end(streams: Streams) -> None:
    """After `progress=end` a stream is neither active nor stalled, and has totals alone."""
    feed = streams.collector.open_feed("cam1")
    await streams.live(feed, [*at_30_fps(9), report(130, 450_000, 4.4, end=True)])
    for _ in range(3):
        reading = await streams.read()
        assert value(reading, ffmpeg.ACTIVE, "cam1") == 0
        assert value(reading, ffmpeg.STALLED, "cam1") == 0
        assert not any(has(reading, metric) for metric in RATES)
        assert value(reading, ffmpeg.FRAMES, "cam1") == 130
        streams.clock.advance(20.0)


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "killed"])
async def test_expiry(streams: Streams, *, ended: bool) -> None:
    """A stream that is over leaves after 5 min, not before, and starts at 0 if it comes again."""
    feed = streams.collector.open_feed("cam1")
    await streams.live(feed, [report(100, 1000, 3, end=ended)])
    feed.close()
    streams.clock.advance(299.0)
    assert has(await streams.read(), ffmpeg.FRAMES)
    streams.clock.advance(1.5)
    assert not has(await streams.read(), ffmpeg.FRAMES)
    reading = await streams.live(streams.collector.open_feed("cam1"), [report(7, 10, 1)])
    assert value(reading, ffmpeg.FRAMES, "cam1") == 7


async def test_open_connection_keeps_its_totals(streams: Streams) -> None:
    """A stream that stalls for longer than 5 min on a connection that stays open is still shown, stalled."""
    feed = streams.collector.open_feed("cam1")
    await streams.live(feed, [report(100, 1000, 3)])
    streams.clock.advance(1000.0)
    assert value(await streams.read(), ffmpeg.STALLED, "cam1") == 1
    reading = await streams.live(feed, [report(130, 1300, 4)])
    assert value(reading, ffmpeg.FRAMES, "cam1") == 130
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 0


async def test_superseded_connection_does_not_bring_a_stream_back() -> None:
    """An old connection that outlives its stream's expiry changes nothing."""
    streams = await open_streams()
    old = streams.collector.open_feed("cam1")
    old.feed(report(5, 5, 0.5))
    new = streams.collector.open_feed("cam1")
    await streams.live(new, [report(10, 10, 1, end=True)])
    new.close()
    streams.clock.advance(301.0)
    await streams.read()
    again = streams.collector.open_feed("cam1")
    await streams.live(again, [report(1, 1, 1)])
    old.feed(report(900, 900, 90))
    old.close()
    reading = await streams.live(again, [report(2, 2, 2)])
    assert value(reading, ffmpeg.FRAMES, "cam1") == 2


# -- names -------------------------------------------------------------------------------------------


async def test_names_are_capped() -> None:
    """Past the cap a new name is refused and counted; known names go on; expired ones make room."""
    streams = await open_streams(max_streams=3)
    for n in range(3):
        feed = streams.collector.open_feed(f"cam{n}")
        await streams.live(feed, [report(1, 1, 1, end=True)])
        feed.close()
    for n in range(3, 5):
        with pytest.raises(IngestRejected) as rejected:
            streams.collector.open_feed(f"cam{n}")
        assert rejected.value.reason == "stream_limit"
    streams.collector.open_feed("cam0").close()
    reading = await streams.read()
    assert value(reading, ffmpeg.REJECTED, "stream_limit") == 2
    assert [trouble.limit for trouble in reading.troubles] == ["max_streams"]
    assert not (await streams.read()).troubles, "nobody was refused since"
    streams.clock.advance(301.0)
    streams.collector.open_feed("cam9")  # without a reading in between


async def test_silent_connections_do_not_use_up_names() -> None:
    """A connection that closed without a report leaves its name's place to others."""
    streams = await open_streams(max_streams=1)
    assert streams.collector.open_feed("a").close() == 0
    streams.collector.open_feed("b").feed(report(1, 1, 1))
    assert values(await streams.read(), ffmpeg.FRAMES) == {("b",): 1}


async def test_default_cap_is_a_thousand(streams: Streams) -> None:
    """A thousand names are taken, the next is not."""
    for n in range(1000):
        streams.collector.open_feed(f"cam{n}").feed(report(1, 1, 1))
    with pytest.raises(IngestRejected):
        streams.collector.open_feed("one too many")


async def test_long_names_are_cut(streams: Streams) -> None:
    """A name is cut at 200 characters, and two long ones stay two; what cannot be shown is replaced."""
    for name in ("é" * 300, "é" * 299 + "e", "a\x00b\n"):
        reading = await streams.live(streams.collector.open_feed(name), [report(1, 1, 1)])
    shown = [labels[0] for labels in values(reading, ffmpeg.FRAMES)]
    assert [len(name) for name in shown] == [200, 200, 4]
    assert len({*shown}) == 3
    assert shown[2] == "a\ufffdb\ufffd"


@pytest.mark.parametrize(
    "name",
    [
        "\ud800",
        "cam\udcff",
        "a\nb",
        'quo"te',
        "back\\slash",
        "\x00\x07\x1b[31m",
        "..",
        "\u202edecoy",
        "",
        "💡" * 201,
    ],
)
async def test_hostile_names(streams: Streams, name: str) -> None:
    """Whatever a client calls itself, its label is text that a page can hold, of at most 200 characters."""
    reading = await streams.live(streams.collector.open_feed(name), [report(1, 1, 1)])
    ((label,),) = values(reading, ffmpeg.FRAMES)
    assert len(label) <= 200
    label.encode("utf-8")


async def test_rejections_are_counted_by_reason(streams: Streams) -> None:
    """Every reason is a series from the start, and counts by itself."""
    streams.collector.count_rejected("forbidden")
    streams.collector.count_rejected("forbidden")
    streams.collector.count_rejected("no_progress")
    found = values(await streams.read(), ffmpeg.REJECTED)
    expected = {"forbidden": 2, "no_progress": 1, "path": 0, "stream_limit": 0, "superseded": 0}
    assert found == {(reason,): count for reason, count in expected.items()}


@pytest.mark.parametrize("odd", [b"x" * 200_000 + b"\n", b"frame=3\nprogress=maybe\n"], ids=["line", "block"])
async def test_what_cannot_be_read_is_counted(streams: Streams, odd: bytes) -> None:
    """An endless line or a block that FFmpeg does not write is counted once a connection, and said once."""
    with capture_logs() as logs:
        for name in ("cam1", "cam2"):
            feed = streams.collector.open_feed(name)
            feed.feed(report(1, 1, 1) + odd + odd + report(2, 2, 2))
            feed.close()
    reading = await streams.read()
    assert value(reading, ffmpeg.REJECTED, "unreadable") == 2
    assert value(reading, ffmpeg.FRAMES, "cam1") == 2
    assert [entry["stream"] for entry in logs] == ["cam1"]
    assert "remedy" in logs[0]


async def test_names_with_slashes(streams: Streams) -> None:
    """A name may hold slashes; one at its end does not make it another stream."""
    for name in ("live/cam1", "live/cam1/", "/", "a//b"):
        streams.collector.open_feed(name).feed(report(1, 1, 1, end=True))
    assert set(values(await streams.read(), ffmpeg.FRAMES)) == {("live/cam1",), ("/",), ("a//b",)}


async def test_reload_keeps_the_streams(streams: Streams) -> None:
    """New options take effect, and no counter is lost to them."""
    await streams.live(streams.collector.open_feed("cam1"), [report(100, 1000, 3)])
    streams.collector.configure(ffmpeg.Options(max_streams=1, window=Seconds(2.0)))
    streams.clock.advance(2.5)
    reading = await streams.read()
    assert value(reading, ffmpeg.FRAMES, "cam1") == 100
    assert value(reading, ffmpeg.ACTIVE, "cam1") == 0
    with pytest.raises(IngestRejected):
        streams.collector.open_feed("cam2")


@pytest.mark.parametrize("key", ["max_streams", "max_name_length", "window", "expire"])
def test_options_have_a_floor(key: str) -> None:
    """A limit of 0 is refused when the configuration is read."""
    nothing = Seconds(0) if key in ("window", "expire") else 0
    assert [name for name, _ in ffmpeg.Options(**{key: nothing}).problems()] == [key]  # type: ignore[arg-type]


# -- any order of events -----------------------------------------------------------------------------

FIGURE = st.none() | st.integers(0, 1000)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from("ab")),
        st.tuples(st.just("close"), st.integers(0, 5)),
        st.tuples(st.just("wait"), st.floats(0, 90)),
        st.tuples(st.just("report"), st.integers(0, 5), FIGURE, FIGURE, FIGURE, st.booleans()),
        st.tuples(st.just("bytes"), st.integers(0, 5), st.binary(max_size=40)),
    ),
    max_size=40,
)


@given(events=EVENTS)
async def test_totals_never_decrease(events: list[tuple[Any, ...]]) -> None:  # noqa: C901 - a branch an event
    """For any order of connections, reports, ends and noise, no `_total` counter ever falls."""
    streams = await open_streams(expire=100_000.0)
    feeds: list[Feed] = []
    latest: dict[tuple[Metric, tuple[str, ...]], float] = {}
    for what, *given_ in events:
        if what == "open":
            feeds.append(streams.collector.open_feed(given_[0]))
        elif what == "wait":
            streams.clock.advance(given_[0])
        elif feeds:
            feed = feeds[given_[0] % len(feeds)]
            if what == "close":
                feed.close()
            elif what == "bytes":
                feed.feed(given_[1])
            else:
                frame, size, media, end = given_[1:]
                feed.feed(b"\n" + report(frame, size, media, dropped=frame or 0, end=end))
        reading = await streams.read()
        for sample in reading.samples:
            if sample.metric.kind == "counter":
                series = (sample.metric, sample.labels)
                assert sample.value >= latest.get(series, 0)
                latest[series] = sample.value
        for metric in RATES:
            assert all(rate >= 0 for rate in values(reading, metric).values())
        for metric in (ffmpeg.ACTIVE, ffmpeg.STALLED):
            assert set(values(reading, metric).values()) <= {0, 1}
    for metric in TOTALS:
        assert {series[1] for series in latest if series[0] is metric} <= {("a",), ("b",)}


async def test_a_backlog_after_a_freeze_is_no_rate(streams: Streams) -> None:
    """Reports that piled up while the agent stood still arrive at once: totals rise, but there is no rate."""
    feed = streams.collector.open_feed("cam1")
    await streams.live(feed, at_30_fps(4))
    streams.clock.advance(8.0)
    for content in list(at_30_fps(21))[4:]:
        feed.feed(content)
    reading = await streams.read()
    assert value(reading, ffmpeg.FRAMES, "cam1") == 300
    assert ffmpeg.FPS not in {sample.metric for sample in reading.samples}
    for content in list(at_30_fps(24))[21:]:
        streams.clock.advance(0.5)
        feed.feed(content)
    assert value(await streams.read(), ffmpeg.FPS, "cam1") == pytest.approx(30)


async def test_a_connection_that_reports_nothing_takes_no_name(streams: Streams) -> None:
    """An empty POST under a live stream's name changes nothing of it."""
    live = streams.collector.open_feed("cam1")
    await streams.live(live, at_30_fps(4))
    empty = streams.collector.open_feed("cam1")
    assert empty.close() == 0
    streams.clock.advance(0.5)
    live.feed(list(at_30_fps(5))[4])
    reading = await streams.read()
    assert value(reading, ffmpeg.FRAMES, "cam1") == 60
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 0


# -- who sends ---------------------------------------------------------------------------------------


async def test_a_run_goes_on_over_connections(streams: Streams) -> None:
    """A connection that gives its predecessor's run is not a restart, and nothing counts twice."""
    first = streams.collector.open_feed("cam1", run="1f")
    await streams.live(first, at_30_fps(4))
    streams.clock.advance(0.5)
    second = streams.collector.open_feed("cam1", run="1f")  # before the agent knows that the first is dead
    reading = await streams.live(second, at_30_fps(6)[4:])
    assert value(reading, ffmpeg.FRAMES, "cam1") == value(reading, ffmpeg.RUN_FRAMES, "cam1") == 75
    assert value(reading, ffmpeg.FPS, "cam1") == pytest.approx(30)
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 0
    assert value(reading, ffmpeg.REJECTED, "superseded") == 0
    first.feed(report(9000))
    assert first.close() == 5
    streams.clock.advance(0.5)
    reading = await streams.live(second, at_30_fps(7)[6:])
    assert value(reading, ffmpeg.FRAMES, "cam1") == 90


async def test_a_run_goes_on_after_a_pause(streams: Streams) -> None:
    """The same, if the first connection was closed and nothing came for a while."""
    first = streams.collector.open_feed("cam1", run="1f")
    await streams.live(first, at_30_fps(4))
    first.close()
    streams.clock.advance(20.0)
    reading = await streams.live(streams.collector.open_feed("cam1", run="1f"), [report(600, 10**6, 20.0)])
    assert value(reading, ffmpeg.FRAMES, "cam1") == 600
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 0


@pytest.mark.parametrize(("one", "other"), [("1f", "2e"), ("1f", ""), ("", "1f"), ("", "")])
async def test_another_run_starts_at_zero(streams: Streams, one: str, other: str) -> None:
    """A connection of another run, or of none, counts from 0 on top of what was: a restart."""
    await streams.live(streams.collector.open_feed("cam1", run=one), at_30_fps(4))
    streams.clock.advance(0.5)
    reading = await streams.live(streams.collector.open_feed("cam1", run=other), [report(60, 300_000, 2.0)])
    assert value(reading, ffmpeg.FRAMES, "cam1") == 45 + 60
    assert value(reading, ffmpeg.RUN_FRAMES, "cam1") == 60
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 1
    assert value(reading, ffmpeg.REJECTED, "superseded") == 1


async def test_a_streams_process_is_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pid that a connection gave is followed from its first report on, until the stream expires."""
    monkeypatch.setattr(encoders, "_PATIENCE", 20.0)
    proc = Processes(tmp_path / "proc", FakeClock())
    collector = ffmpeg.FFmpeg(ffmpeg.Options(interval=Seconds(80)), proc.host)
    proc.start(50)
    proc.connections(proc.procfs / "50/net", Connection())
    feed = collector.open_feed("cam1", Connection().sender("50"))
    assert (await collector.read()).claims == []
    feed.feed(report(1))
    assert (await collector.read()).claims == [("stream", "cam1", ffmpeg.ENERGY, 0.0, "", (50,))]
    proc.work(50, 2.0)
    feed.feed(report(2, end=True))
    feed.close()
    assert (await collector.read()).claims == [("stream", "cam1", ffmpeg.ENERGY, 2.0, "", (50,))]
    proc.advance(301.0)
    assert (await collector.read()).claims == []
    await collector.aclose()


async def test_a_last_report_sent_again_is_no_other_run(streams: Streams) -> None:
    """A forwarder that repeats its last report after the end starts no new run: nothing counts twice."""
    first = streams.collector.open_feed("cam1", None, "a1")
    await streams.live(first, [report(100, 1000, 3), report(200, 2000, 6, end=True)])
    first.close()
    again = streams.collector.open_feed("cam1", None, "a1")
    reading = await streams.live(again, [report(200, 2000, 6, end=True)])
    assert value(reading, ffmpeg.FRAMES, "cam1") == 200
    assert value(reading, ffmpeg.RESTARTS, "cam1") == 0
    assert value(reading, ffmpeg.ACTIVE, "cam1") == 0
