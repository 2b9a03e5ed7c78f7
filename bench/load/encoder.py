"""An encoder at work, and its command line.

Its progress comes over a pipe of its own, so that no token appears in its arguments and no agent can block
it; `Relay` passes the progress on to an agent's /ingest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.load.child import Child, StreamFailed
from powerbench_agent.bench.load.clip_filters import field_options, picture_filters
from powerbench_agent.bench.load.containers import StreamTarget, choose_container
from powerbench_agent.bench.load.encoders.spelling import global_options, video_options
from powerbench_agent.bench.load.inputs import TONE, length_options, pace_options, picture_input
from powerbench_agent.bench.load.live_input import end_options, ended
from powerbench_agent.bench.plan.scenario import AUDIO_KBPS, format_bitrate
from powerbench_agent.core.identity import StreamIdentity, stated
from powerbench_agent.core.progress import ProgressParser, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from powerbench_agent.bench.load.containers import Container
    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.plan.scenario import Scenario


_SAMPLE_FRAMES = 3
_LAST_REPORT_SECONDS = 1.0


class Point(NamedTuple):
    """A report, and when it arrived."""

    at: float  # monotonic seconds
    report: Report


class Chosen(NamedTuple):
    """A picture that is encoded: its name among those that are read or filtered, and filters of its own."""

    name: str
    filters: tuple[str, ...] = ()


class Encoder(Child):
    """An encoder, and the reports it has sent."""

    def __init__(
        self,
        ffmpeg: Ffmpeg,
        scenario: Scenario,
        targets: Sequence[StreamTarget],
        on_data: Callable[[int, bytes], None] = lambda *_: None,
        sink: Child | None = None,
    ) -> None:
        """`on_data` gets its pid and the raw progress.

        `sink`: the process at the other end of the stream, if it is ours.
        """
        self._read_fd, self._write_fd = os.pipe()
        command = encoder_command(ffmpeg, scenario, targets, self._write_fd)
        super().__init__(scenario.name, command, (self._write_fd,))
        self.scenario = scenario
        self.points: list[Point] = []
        self._on_data = on_data
        self._sink = sink
        self._parser = ProgressParser()
        self._transport: asyncio.ReadTransport | None = None
        self._told_all = asyncio.Event()

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
            self._write_fd = -1
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(self._read_fd, "rb", 0)
        self._transport, _ = await loop.connect_read_pipe(
            lambda: _Progress(self._take, self._told_all.set), pipe
        )

    async def wait(self) -> None:
        """Wait until it has ended, and all that it reported has been taken in."""
        await super().wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_REPORT_SECONDS):  # a grandchild may hold the pipe
                await self._told_all.wait()

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
        if dead is self and not self.exit_code and (gone := ended(self.scenario.input, self._seconds)):
            raise StreamFailed(f"{self.name}: {gone}: {self.last_words()}")
        raise StreamFailed(f"{dead.name} {how} (ffmpeg's exit code {dead.exit_code}): {dead.last_words()}")

    @property
    def _seconds(self) -> float:
        """For how long it has reported."""
        return self.points[-1].at - self.points[0].at if self.points else 0.0

    async def stop(self) -> None:
        """Stop it, and close its pipe."""
        await super().stop()
        if self._process is None and self._write_fd >= 0:  # it was never started
            os.close(self._read_fd)
            os.close(self._write_fd)
            self._write_fd = -1
        if self._transport is not None:
            self._transport.close()

    def _take(self, data: bytes) -> None:
        now = time.monotonic()
        self.points.extend(Point(now, report) for report in self._parser.feed(data))
        if self._process is not None:
            self._on_data(self._process.pid, data)


class _Progress(asyncio.Protocol):
    def __init__(self, take: Callable[[bytes], None], end: Callable[[], None]) -> None:
        self._take = take
        self._end = end

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._end()


def encoder_command(
    ffmpeg: Ffmpeg, scenario: Scenario, targets: Sequence[StreamTarget], progress_fd: int
) -> list[str]:
    """Return the command line of a stream at its pace: picture and tone to each of its targets.

    `targets`: of its renditions, in their order; none of a scenario that is a part of the work.
    """
    command = [*_head(ffmpeg, progress_fd), *_inputs(ffmpeg, scenario)]
    if scenario.part:
        return [*command, *_unencoded(scenario)]
    length = length_options(scenario)
    graph, pictures = _pictures(scenario)
    command += graph
    for rendition, picture, target in zip(scenario.renditions, pictures, targets, strict=True):
        ending = end_options(scenario.input, ffmpeg.number)
        command += [*_encoding(rendition, picture), *ending, *length, *_output(target)]
    return command


def identity_of(scenario: Scenario, container: str) -> StreamIdentity:
    """Return what a stream's feeder states of it."""
    first = scenario.renditions[0]
    row = first.asked.row
    encoder = "" if scenario.part else row.name
    return stated(
        {
            "codec": "" if encoder in ("", "copy") else row.codec,
            "encoder": encoder,
            "preset": "" if scenario.part else first.preset,
            "resolution": str(first.resolution),
            "fps": str(first.fps),
            "container": container,
        }
    )


def trial_command(ffmpeg: Ffmpeg, scenario: Scenario, container: Container) -> list[str]:
    """Return the command line of a rendition's first frames, with the same options but to no one."""
    command = [*_head(ffmpeg, 1), *_inputs(ffmpeg, scenario), *_encoding(scenario, _picture(scenario))]
    return [*command, "-frames:v", f"{_SAMPLE_FRAMES}", *_output(StreamTarget(os.devnull, container))]


def sample_command(ffmpeg: Ffmpeg, scenario: Scenario, sink: str, file: str) -> list[str]:
    """Return the command line that puts a stream's first frames into a file, as its sink would get them."""
    first = scenario.streams[0].renditions[0]
    container = choose_container(first.asked.row.codec, sink, ffmpeg.number)
    command = [*_head(ffmpeg, 1), *_inputs(ffmpeg, first), *_encoding(first, _picture(first))]
    return [*command, "-frames:v", f"{_SAMPLE_FRAMES}", "-t", "5", *_format(container), "-y", file]


def _head(ffmpeg: Ffmpeg, progress_fd: int) -> list[str]:
    # Reports come every half second unless -stats_period says otherwise, which FFmpeg before 4.4 lacks.
    quiet = ["-hide_banner", "-nostdin", "-nostats", "-loglevel", "warning"]
    return [ffmpeg.path, *quiet, "-progress", f"pipe:{progress_fd}"]


def _inputs(ffmpeg: Ffmpeg, scenario: Scenario) -> list[str]:
    """Return the options that choose devices and read the picture and the tone."""
    chosen = dict.fromkeys(tuple(global_options(rendition.asked)) for rendition in scenario.renditions)
    command = [*(word for options in chosen for word in options), *picture_input(scenario, ffmpeg.number)]
    # A file's own sound may be missing, or end before the picture: the tone is the same for all.
    if not scenario.has_tone:
        return command
    return [*command, *pace_options(scenario.pace, ffmpeg.number), *TONE]


def _picture(scenario: Scenario) -> Chosen:
    """Return the picture of a lone rendition."""
    filters = picture_filters(scenario)
    return Chosen(_source(scenario), ("-vf", ",".join(filters)) if filters else ())


def _source(scenario: Scenario) -> str:
    """Return the picture among what is read. `V`: no cover picture."""
    return "0:V:0" if scenario.input else "0:v:0"


def _pictures(scenario: Scenario) -> tuple[list[str], list[Chosen]]:
    """Return (the filter graph, if there is one, each rendition's picture).

    A ladder's picture is decoded once, and each rendition scaled from it.
    """
    renditions = scenario.renditions
    if len(renditions) == 1:
        return [], [_picture(renditions[0])]
    copies = "".join(f"[c{number}]" for number in range(len(renditions)))
    chains = [f"[{_source(scenario)}]split={len(renditions)}{copies}"]
    for number, rendition in enumerate(renditions):
        filters = picture_filters(rendition) or ["null"]
        chains.append(f"[c{number}]{','.join(filters)}[v{number}]")
    return ["-filter_complex", ";".join(chains)], [Chosen(f"[v{n}]") for n in range(len(renditions))]


def _encoding(rendition: Scenario, picture: Chosen) -> list[str]:
    """Return the options that encode one rendition, and its tone."""
    command = ["-map", picture.name, *(("-map", "1:a:0") if rendition.has_tone else ()), *picture.filters]
    command += [*video_options(rendition.asked, rendition.video_kbps), *field_options(rendition)]
    if rendition.has_tone:
        command += ["-c:a", "aac", "-b:a", format_bitrate(AUDIO_KBPS)]
    return command


def _unencoded(scenario: Scenario) -> list[str]:
    """Return the outputs of a scenario that decodes, and perhaps scales, and encodes nothing."""
    length = [*length_options(scenario), "-f", "null", "-"]
    if scenario.part == "decode":
        return ["-map", _source(scenario), *length]
    graph, pictures = _pictures(scenario)
    return [*graph, *(word for name, filters in pictures for word in ("-map", name, *filters, *length))]


def _output(target: StreamTarget) -> list[str]:
    """Return the options that write an output, and its copy if it has one."""
    url, container, copy, copied_in = target
    if url == "null":  # /dev/null and not the null muxer, which counts no bytes
        url = os.devnull
    if url.startswith("file:") and not copy:  # one that stays is written as players like it best
        return ["-f", container, "-flush_packets", "1", "-y", url]
    if not copy:
        return [*_format(container), *(["-y"] if url == os.devnull else []), url]
    form = ":".join(f"{key}={value}" for key, value in _pairs(_format(container)))
    # The stream itself must arrive; of the copy it is said what is missing.
    slaves = (
        f"[{form}:onfail=abort]{_in_tee(url)}|[f={copied_in}:flush_packets=1:onfail=ignore]{_in_tee(copy)}"
    )
    # By kind: without one it would replace what -flags:v says of an interlaced picture.
    headers = ["-flags:v", "+global_header", "-flags:a", "+global_header"]
    return [*headers, "-f", "tee", "-y", slaves]


def _in_tee(url: str) -> str:
    r"""Return a URL as tee takes it: `\`, `'` and `|` have a meaning there."""
    return re.sub(r"([\\'|])", r"\\\1", url)


def _pairs(options: Sequence[str]) -> list[tuple[str, str]]:
    keys = [option.removeprefix("-") for option in options[::2]]
    return list(zip(keys, options[1::2], strict=True))


def _format(container: Container) -> list[str]:
    if container == "flv":
        return ["-f", "flv", "-flvflags", "no_duration_filesize"]
    if container in ("mpegts", "nut"):
        return ["-f", container, "-flush_packets", "1"]
    if container != "matroska":
        return ["-f", container]
    # Short clusters: a stream whose bytes are counted once a group of pictures has no bitrate in between.
    return ["-f", "matroska", "-live", "1", "-cluster_time_limit", "100", "-flush_packets", "1"]
