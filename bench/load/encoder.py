"""The load: an encoder that streams, a sink that takes the stream.

An encoder's progress comes over a pipe of its own, so that no token stands in its arguments and no agent
can block it; `Relay` passes it on to an agent's /ingest. Children have a session of their own: Ctrl-C in a
terminal reaches us alone, and we stop them, and nobody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

from powerbench_agent.bench.load.encoders import ENCODERS
from powerbench_agent.bench.plan.scenario import AUDIO_KBPS, format_bitrate
from powerbench_agent.core.progress import ProgressParser, Report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.meter.client import AgentClient
    from powerbench_agent.bench.plan.scenario import Scenario

STOP_SECONDS = 5.0  # for an encoder to write its last packet after SIGINT
_LISTEN_SECONDS = 60  # that a sink waits for its publisher
_STDERR_LINES = 40


class StreamFailed(Exception):  # noqa: N818 - a verdict
    """A stream that did not start, or died; the text ends in ffmpeg's own last lines."""


class Point(NamedTuple):
    """A report, and when it arrived."""

    at: float  # monotonic seconds
    report: Report


def _end_with_us() -> list[str]:
    """Return the command that has the kernel end a child when we are killed outright, where there is one."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


class _Child:
    """One ffmpeg that we started."""

    def __init__(self, name: str, command: list[str], pass_fds: tuple[int, ...] = ()) -> None:
        self.name = name
        self.lines: deque[str] = deque(maxlen=_STDERR_LINES)
        self._command = command
        self._pass_fds = pass_fds
        self._process: asyncio.subprocess.Process | None = None
        self._draining: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *_end_with_us(),
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=self._pass_fds,
            start_new_session=True,
        )
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        assert self._process is not None  # noqa: S101 - started
        assert self._process.stderr is not None  # noqa: S101 - asked for above
        with contextlib.suppress(ValueError):  # a line beyond all bounds: the rest is lost, the child is not
            async for line in self._process.stderr:
                self.lines.append(line.decode("utf-8", "replace").rstrip())
        while await self._process.stderr.read(65536):
            pass

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.returncode if self._process else None

    def cpu_seconds(self, procfs: Path = Path("/proc")) -> float:
        """Return the CPU time it has used; 0 once it has gone."""
        if self._process is None:
            return 0.0
        try:
            stat = (procfs / str(self._process.pid) / "stat").read_text()
        except OSError:
            return 0.0
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def stop(self) -> None:
        """End it: SIGINT, so that it closes its output, and SIGKILL if it will not."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.wait([self._draining])

    def last_words(self) -> str:
        """Return what it said last, on one line."""
        said = [line for line in self.lines if line.strip()]
        return " | ".join(said[-3:]) or "it said nothing"


class Sink(_Child):
    """A second ffmpeg that listens for one RTMP publisher and throws away what it gets, undecoded."""

    def __init__(self, ffmpeg: Ffmpeg, name: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"rtmp://127.0.0.1:{port}/live/stream"
        options = ["-hide_banner", "-nostdin", "-loglevel", "warning", "-f", "flv"]
        options += ["-listen", "1", "-timeout", f"{_LISTEN_SECONDS}"]
        super().__init__(
            f"sink of {name}", [ffmpeg.path, *options, "-i", self.url, "-c", "copy", "-f", "null", "-"]
        )


class Encoder(_Child):
    """An encoder in real time, and the reports it has sent."""

    def __init__(
        self,
        ffmpeg: Ffmpeg,
        scenario: Scenario,
        target: str,
        on_data: Callable[[int, bytes], None] = lambda *_: None,
    ) -> None:
        """`target`: an rtmp:// URL, or "null"; `on_data` gets its pid and the raw progress."""
        self._read_fd, self._write_fd = os.pipe()
        super().__init__(
            scenario.name, encoder_command(ffmpeg, scenario, target, self._write_fd), (self._write_fd,)
        )
        self.sink: Sink | None = None
        self.points: list[Point] = []
        self._on_data = on_data
        self._parser = ProgressParser()
        self._transport: asyncio.ReadTransport | None = None

    async def start(self) -> None:
        """Start it, and take in its progress as it comes."""
        try:
            await super().start()
        finally:
            os.close(self._write_fd)
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(self._read_fd, "rb", 0)
        self._transport, _ = await loop.connect_read_pipe(lambda: _Progress(self._take), pipe)

    def check_alive(self) -> None:
        """Raise StreamFailed where the stream has died, naming which end of it did."""
        if self.exit_code is not None:
            # An encoder that was killed takes its sink along, and a sink that ends well has lost its encoder.
            took_us = self.sink is not None and self.sink.exit_code not in (None, 0) and self.exit_code >= 0
            dead = self.sink if self.sink is not None and took_us else self
            raise StreamFailed(f"{dead.name} died (ffmpeg's exit code {dead.exit_code}): {dead.last_words()}")

    async def stop(self) -> None:
        """End it, and let its pipe go."""
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


def encoder_command(ffmpeg: Ffmpeg, scenario: Scenario, target: str, progress_fd: int) -> list[str]:
    """Return the command line of a stream: picture and tone, in real time, at a constant bitrate."""
    planned = scenario.stabilization + scenario.duration
    command = [ffmpeg.path, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "warning"]
    command += ["-stats_period", "0.5", "-progress", f"pipe:{progress_fd}"]
    if scenario.input:
        command += ["-stream_loop", "-1", "-re", "-i", f"file:{scenario.input}"]
    else:
        # testsrc2, as plain testsrc does not fill 2 Mbps and every rate above it would be the same stream.
        command += ["-re", "-f", "lavfi", "-i", f"testsrc2=size={scenario.resolution}:rate={scenario.fps}"]
    # A file's own sound may be missing, or end before the picture: the tone is the same for all.
    command += ["-re", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000"]
    command += ["-map", "0:v:0", "-map", "1:a:0"]
    if scenario.input:
        size = scenario.resolution
        command += ["-vf", f"scale={size.width}:{size.height},fps={scenario.fps}"]
    command += video_options(scenario)
    command += ["-c:a", "aac", "-b:a", format_bitrate(AUDIO_KBPS)]
    # Windows are wall clock and end by a signal; this is for an encoder that nobody is left to end.
    command += ["-t", f"{planned * 2 + 120:.0f}"]
    if target == "null":
        # Matroska into /dev/null counts bytes, which the null muxer does not; in short clusters, as a stream
        # that counts them a group of pictures at a time has no bitrate between two.
        live = ["-live", "1", "-cluster_time_limit", "100", "-flush_packets", "1"]
        return [*command, "-f", "matroska", *live, "-y", os.devnull]
    return [*command, "-f", "flv", "-flvflags", "no_duration_filesize", target]


def video_options(scenario: Scenario) -> list[str]:
    """Return the options of the video encoder: constant bitrate, a keyframe every two seconds."""
    options = ["-c:v", ENCODERS[scenario.encoder], "-preset", scenario.preset, "-pix_fmt", "yuv420p"]
    rate, buffer = format_bitrate(scenario.video_kbps), format_bitrate(scenario.video_kbps * 2)
    options += ["-b:v", rate, "-maxrate", rate, "-bufsize", buffer, "-g", str(scenario.fps * 2)]
    if scenario.encoder == "h265":
        options += ["-x265-params", "log-level=warning"]
    return options


class Relay:
    """Passes raw progress on to an agent's /ingest, one connection a run; never holds the encoder up."""

    def __init__(self, client: AgentClient, stream: str) -> None:
        self._client = client
        self._stream = stream
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=256)
        self._task: asyncio.Task[None] | None = None

    def send(self, pid: int, data: bytes) -> None:
        """Queue the bytes; where the agent does not take them, they are lost, and the encoder goes on."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._client.ingest(self._stream, self._chunks(), pid))
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(data)

    async def close(self) -> None:
        """Send what is queued, for a second at most."""
        if self._task is None:
            return
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(None)
        await asyncio.wait([self._task], timeout=1.0)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError, OSError):
            await self._task

    async def _chunks(self) -> AsyncIterator[bytes]:
        while (data := await self._queue.get()) is not None:
            yield data
