"""An encoder that streams in real time, and its command line.

Its progress comes over a pipe of its own, so that no token appears in its arguments and no agent can block
it; `Relay` passes the progress on to an agent's /ingest.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.load.child import Child, StreamFailed
from powerbench_agent.bench.load.clip_filters import clip_filters, field_options
from powerbench_agent.bench.load.containers import StreamTarget, choose_container
from powerbench_agent.bench.load.encoders.spelling import global_options, upload_filter, video_options
from powerbench_agent.bench.load.inputs import picture_input
from powerbench_agent.bench.plan.scenario import AUDIO_KBPS, format_bitrate
from powerbench_agent.core.identity import StreamIdentity, stated
from powerbench_agent.core.progress import ProgressParser, Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from powerbench_agent.bench.load.containers import Container
    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.plan.scenario import Scenario


_SAMPLE_FRAMES = 3


class Point(NamedTuple):
    """A report, and when it arrived."""

    at: float  # monotonic seconds
    report: Report


class Encoder(Child):
    """An encoder in real time, and the reports it has sent."""

    def __init__(
        self,
        ffmpeg: Ffmpeg,
        scenario: Scenario,
        target: StreamTarget,
        on_data: Callable[[int, bytes], None] = lambda *_: None,
        sink: Child | None = None,
    ) -> None:
        """`on_data` gets its pid and the raw progress.

        `sink`: the process at the other end of the stream, if it is ours.
        """
        self._read_fd, self._write_fd = os.pipe()
        command = encoder_command(ffmpeg, scenario, target, self._write_fd)
        super().__init__(scenario.name, command, (self._write_fd,))
        self.points: list[Point] = []
        self._on_data = on_data
        self._sink = sink
        self._parser = ProgressParser()
        self._transport: asyncio.ReadTransport | None = None

    @property
    def has_sent_a_frame(self) -> bool:
        """Whether one of its reports counts a frame."""
        return any((point.report.frames or 0) > 0 for point in self.points)

    async def start(self) -> None:
        """Start it, and take in its progress as it arrives."""
        try:
            await super().start()
        finally:
            os.close(self._write_fd)
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(self._read_fd, "rb", 0)
        self._transport, _ = await loop.connect_read_pipe(lambda: _Progress(self._take), pipe)

    def check_alive(self) -> None:
        """Raise StreamFailed if the stream has died, naming the end that died first."""
        if self.exit_code is None:
            return
        dead: Child = self
        # An encoder that is killed takes its sink along; a sink that ends well has lost its encoder.
        was_killed = self.exit_code < 0
        if self._sink is not None and self._sink.exit_code not in (None, 0) and not was_killed:
            dead = self._sink
        how = "died" if dead.exit_code else "ended too early"
        raise StreamFailed(f"{dead.name} {how} (ffmpeg's exit code {dead.exit_code}): {dead.last_words()}")

    async def stop(self) -> None:
        """Stop it, and close its pipe."""
        await super().stop()
        if self._transport is not None:
            self._transport.close()

    def _take(self, data: bytes) -> None:
        now = time.monotonic()
        self.points.extend(Point(now, report) for report in self._parser.feed(data))
        if self._process is not None:
            self._on_data(self._process.pid, data)


class _Progress(asyncio.Protocol):
    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def data_received(self, data: bytes) -> None:
        self._take(data)


def encoder_command(ffmpeg: Ffmpeg, scenario: Scenario, target: StreamTarget, progress_fd: int) -> list[str]:
    """Return the command line of a stream: picture and tone, in real time."""
    planned = scenario.stabilization + scenario.duration
    # Windows are wall clock and a signal ends them; this ends an encoder that has been left behind.
    seconds = f"{planned * 2 + 120:.0f}"
    return [*_encoding(ffmpeg, scenario, progress_fd), "-t", seconds, *_output(target)]


def identity_of(scenario: Scenario, container: Container) -> StreamIdentity:
    """Return what a stream's feeder states of it."""
    row = scenario.asked.row
    return stated(
        {
            "codec": "" if row.name == "copy" else row.codec,
            "encoder": row.name,
            "preset": scenario.preset,
            "resolution": str(scenario.resolution),
            "fps": str(scenario.fps),
            "container": container,
        }
    )


def trial_command(ffmpeg: Ffmpeg, scenario: Scenario, container: Container) -> list[str]:
    """Return the command line of a stream's first frames, with the same options but to no one."""
    return [
        *_encoding(ffmpeg, scenario, 1),
        "-frames:v",
        "3",
        "-y",
        *_output(StreamTarget(os.devnull, container)),
    ]


def sample_command(ffmpeg: Ffmpeg, scenario: Scenario, sink: str, file: str) -> list[str]:
    """Return the command line that puts a stream's first frames into a file, as its sink would get them."""
    container = choose_container(scenario.asked.row.codec, sink, ffmpeg.number)
    frames = ["-frames:v", f"{_SAMPLE_FRAMES}", "-t", "5"]
    return [*_encoding(ffmpeg, scenario.streams[0], 1), *frames, *_format(container), "-y", file]


def score_command(
    ffmpeg: Ffmpeg, scenario: Scenario, container: Container, file: str, frames: int
) -> list[str]:
    """Return the command line that encodes a stream's first frames to be scored: as fast as it goes."""
    command = [ffmpeg.path, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "warning"]
    command += [*global_options(scenario.asked), *picture_input(scenario, ())]
    command += ["-map", "0:V:0" if scenario.input else "0:v:0", *_picture_output(scenario)]
    return [*command, "-frames:v", f"{frames}", *_format(container), "-y", file]


def _picture_output(scenario: Scenario) -> list[str]:
    """Return the options that make the encoded picture."""
    filters = _filters(scenario)
    return [
        *(("-vf", filters) if filters else ()),
        *video_options(scenario.asked, scenario.video_kbps),
        *field_options(scenario),
    ]


def _encoding(ffmpeg: Ffmpeg, scenario: Scenario, progress_fd: int) -> list[str]:
    command = [ffmpeg.path, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "warning"]
    # Reports come every half second unless -stats_period says otherwise, which FFmpeg before 4.4 lacks.
    command += ["-progress", f"pipe:{progress_fd}"]
    command += [*global_options(scenario.asked), *picture_input(scenario)]
    # A file's own sound may be missing, or end before the picture: the tone is the same for all.
    command += ["-re", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000"]
    command += ["-map", "0:V:0" if scenario.input else "0:v:0", "-map", "1:a:0", *_picture_output(scenario)]
    return [*command, "-c:a", "aac", "-b:a", format_bitrate(AUDIO_KBPS)]


def _filters(scenario: Scenario) -> str:
    """Return the filters between the picture and its encoder, "" if there are none."""
    is_encoded = scenario.asked.row.name != "copy"
    filters = clip_filters(scenario) if scenario.input and is_encoded else []
    filters += [upload] if (upload := upload_filter(scenario.asked)) else []
    return ",".join(filters)


def _output(target: StreamTarget) -> list[str]:
    """Return the options that write the stream."""
    url, container = target
    if url == "null":  # /dev/null and not the null muxer, which counts no bytes
        return [*_format(container), "-y", os.devnull]
    return [*_format(container), url]


def _format(container: Container) -> list[str]:
    if container == "flv":
        return ["-f", "flv", "-flvflags", "no_duration_filesize"]
    if container in ("mpegts", "nut"):
        return ["-f", container, "-flush_packets", "1"]
    # Short clusters: a stream whose bytes are counted once a group of pictures has no bitrate in between.
    return ["-f", "matroska", "-live", "1", "-cluster_time_limit", "100", "-flush_packets", "1"]
