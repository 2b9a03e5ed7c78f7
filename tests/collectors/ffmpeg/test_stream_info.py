"""The info series of each stream, and the pixels that it has encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from places import CAPTURES
from trees import FakeClock, values

from powerbench_agent.collectors.ffmpeg import collector as ffmpeg
from powerbench_agent.collectors.ffmpeg.identity import INFO, MEGAPIXELS
from powerbench_agent.core.host import Host
from powerbench_agent.core.identity import UNKNOWN, StreamIdentity, tell

if TYPE_CHECKING:
    from powerbench_agent.core.model import Feed

HD = StreamIdentity("h264", "libx264", "veryfast", "1280x720", "30", "flv")
HD_PIXELS = 1280 * 720
SD = StreamIdentity("hevc", "libx265", "", "640x360", "25", "mpegts")
SD_PIXELS = 640 * 360
SD_LINES = tell(SD)


def report(frame: int, *, end: bool = False) -> bytes:
    return b"frame=%d\nprogress=%s\n" % (frame, b"end" if end else b"continue")


class Streams(NamedTuple):
    clock: FakeClock
    collector: ffmpeg.FFmpeg

    def open(self, stated: StreamIdentity = UNKNOWN, run: str = "") -> Feed:
        return self.collector.open_feed("cam1", run=run, stated=stated)

    async def info(self) -> StreamIdentity | None:
        """Return what the one stream's info says; None without the series."""
        found = values(await self.collector.read(), INFO)
        assert set(found.values()) <= {1}
        assert len(found) <= 1
        return next((StreamIdentity(*labels[1:]) for labels in found), None)

    async def pixels(self) -> int | None:
        """Return the pixels of the one stream's counter; None without it."""
        found = values(await self.collector.read(), MEGAPIXELS)
        return round(found["cam1",] * 1e6) if found else None


@pytest.fixture
async def streams() -> Streams:
    clock = FakeClock()
    return Streams(clock, await ffmpeg.open_collector(ffmpeg.Options(), Host(clock=clock)))


async def test_with_nothing_known_there_is_no_series(streams: Streams) -> None:
    """A stream whose feeder and stderr say nothing has no info and no pixels."""
    streams.open().feed(report(30))
    assert await streams.info() is None
    assert await streams.pixels() is None


async def test_what_is_stated_is_shown(streams: Streams) -> None:
    """A feeder that states what it sends is believed from the first report on."""
    feed = streams.open(HD)
    assert await streams.info() is None
    feed.feed(report(30))
    assert await streams.info() == HD
    assert await streams.pixels() == 30 * HD_PIXELS


async def test_what_ffmpeg_says_is_shown(streams: Streams) -> None:
    """A log tells it by itself; frames are those of the first output."""
    streams.open().feed((CAPTURES / "stderr_5.1_rtmp.log").read_bytes())
    assert await streams.info() == HD._replace(preset="")
    assert await streams.pixels() == 480 * HD_PIXELS


async def test_the_feeder_counts_first(streams: Streams) -> None:
    """What is stated counts before what stderr says, field by field."""
    streams.open(StreamIdentity(preset="fast", fps="24")).feed(SD_LINES + report(1))
    assert await streams.info() == SD._replace(preset="fast", fps="24")


async def test_what_is_known_late_counts_all_frames(streams: Streams) -> None:
    """Frames that came before the size was known are counted once it is; until then nothing is."""
    feed = streams.open(StreamIdentity(preset="fast"))
    feed.feed(report(10))
    assert await streams.info() == StreamIdentity(preset="fast")
    assert await streams.pixels() is None
    feed.feed(SD_LINES + report(12))
    assert await streams.pixels() == 12 * SD_PIXELS


async def test_another_run_is_another_stream(streams: Streams) -> None:
    """A new run shows its own settings alone, and the pixels go on."""
    first = streams.open(HD)
    first.feed(report(30))
    first.close()
    streams.open(SD).feed(report(5))
    assert await streams.info() == SD
    assert await streams.pixels() == 30 * HD_PIXELS + 5 * SD_PIXELS


async def test_a_run_of_which_nothing_is_known(streams: Streams) -> None:
    """It does not inherit what the last run was; its frames are missing, and nothing goes back."""
    first = streams.open(HD)
    first.feed(report(30))
    streams.clock.advance(1)
    first.close()
    second = streams.open()
    second.feed(report(500))
    assert await streams.info() is None
    assert await streams.pixels() is None
    streams.clock.advance(1)
    second.close()
    streams.open(HD).feed(report(1))
    assert await streams.pixels() == 31 * HD_PIXELS


async def test_several_runs_on_one_connection(streams: Streams) -> None:
    """Runs in turn through one pipe are told apart, even if all of it arrives at once."""
    content = SD_LINES + report(9) + report(10, end=True) + tell(HD) + report(2)
    streams.open().feed(content)
    assert await streams.info() == HD._replace(preset="")
    assert await streams.pixels() == 10 * SD_PIXELS + 2 * HD_PIXELS


async def test_a_run_that_begins_again_keeps_what_is_stated(streams: Streams) -> None:
    """With blocks alone, a run whose frames begin again is what the connection's query says."""
    feed = streams.open(HD)
    for frame in (30, 60, 10):
        feed.feed(report(frame))
    assert await streams.info() == HD
    assert await streams.pixels() == 70 * HD_PIXELS


async def test_a_connection_that_goes_on(streams: Streams) -> None:
    """A second connection of the same run need not say again what the run is."""
    first = streams.open(run="1f")
    first.feed(SD_LINES + report(10))
    first.close()
    streams.open(run="1f").feed(report(20))
    assert await streams.info() == SD
    assert await streams.pixels() == 20 * SD_PIXELS


async def test_the_last_report_again_is_no_new_run(streams: Streams) -> None:
    """A forwarder that has reconnected and knows no more than the figures repeats the end, not the run."""
    first = streams.open(run="1f")
    first.feed(SD_LINES + report(10, end=True))
    first.close()
    streams.open(run="1f").feed(report(10, end=True))
    assert await streams.info() == SD
    assert await streams.pixels() == 10 * SD_PIXELS


async def test_another_size_counts_from_there_on(streams: Streams) -> None:
    """If a run says another size, what was counted stays counted."""
    feed = streams.open()
    feed.feed(SD_LINES + report(10))
    feed.feed(b"  Stream #0:0: Video: hevc, yuv420p, 1280x720, 25 fps\n" + report(11))
    assert await streams.info() == SD._replace(resolution="1280x720")
    assert await streams.pixels() == 10 * SD_PIXELS + HD_PIXELS


async def test_a_stream_without_frames_has_no_pixels(streams: Streams) -> None:
    """Audio is not counted in pixels, whatever its feeder states."""
    streams.open(HD).feed(b"total_size=5\nprogress=continue\n")
    assert await streams.pixels() is None


async def test_a_stream_that_has_left_takes_its_info_along(streams: Streams) -> None:
    """The info lives as long as the stream's other series."""
    feed = streams.open(HD)
    feed.feed(report(10, end=True))
    feed.close()
    streams.clock.advance(299)
    assert await streams.info() == HD
    streams.clock.advance(2)
    assert await streams.info() is None
    assert await streams.pixels() is None
