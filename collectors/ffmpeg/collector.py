"""FFmpeg's live progress, pushed by `POST /ingest`: who encodes, how fast, how much.

Reads nothing by itself: `open_feed` takes each connection's bytes, `read` looks at what they said.
Units: frames, bytes and seconds of media as FFmpeg counts them; rates over the last reports, by the time
they arrived. Privileges: none.

identity.py says what a stream is; streams.py what a run is, which connection a stream belongs to, and when
there is a rate.

Source: FFmpeg's `-progress` (https://ffmpeg.org/ffmpeg.html#Main-options).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powerbench_agent.collectors.ffmpeg.encoders import ENERGY, Encoders
from powerbench_agent.collectors.ffmpeg.identity import INFO, MEGAPIXELS
from powerbench_agent.collectors.ffmpeg.streams import (
    IngestConnection,
    StreamLimits,
    StreamState,
    StreamTable,
)
from powerbench_agent.core.identity import UNKNOWN
from powerbench_agent.core.labels import shorten
from powerbench_agent.core.model import IngestRejected, Metric, Reading, Sample, Trouble
from powerbench_agent.core.options import CollectorOptions, Seconds
from powerbench_agent.core.progress import ProgressParser, Report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from powerbench_agent.core.host import Clock, Host
    from powerbench_agent.core.identity import StreamIdentity
    from powerbench_agent.core.model import Sender

_STREAM = ("stream",)
FPS = Metric("ffmpeg_fps", "gauge", "Frames encoded per second, over the configured window.", _STREAM)
SPEED = Metric(
    "ffmpeg_speed",
    "gauge",
    "Seconds of media encoded per second, over the configured window; 1 is real time.",
    _STREAM,
)
BITRATE = Metric(
    "ffmpeg_bitrate_kbps", "gauge", "Output in kilobits per second, over the configured window.", _STREAM
)
RUN_FRAMES = Metric("ffmpeg_total_frames", "unknown", "Frames encoded in the current run.", _STREAM)
RUN_DROPPED = Metric("ffmpeg_dropped_frames", "unknown", "Frames dropped in the current run.", _STREAM)
ACTIVE = Metric(
    "ffmpeg_stream_active",
    "gauge",
    "1 if a report arrived within the configured window and the run has not ended, else 0.",
    _STREAM,
)
STALLED = Metric(
    "ffmpeg_stream_stalled",
    "gauge",
    "1 if the run has not ended but gave no new frame or output for the configured window, else 0.",
    _STREAM,
)
FRAMES = Metric("ffmpeg_frames_total", "counter", "Frames encoded over all runs.", _STREAM)
DROPPED = Metric("ffmpeg_frames_dropped_total", "counter", "Frames dropped over all runs.", _STREAM)
DUPLICATED = Metric("ffmpeg_frames_duplicated_total", "counter", "Frames duplicated over all runs.", _STREAM)
BYTES = Metric("ffmpeg_output_bytes_total", "counter", "Bytes written over all runs.", _STREAM)
MEDIA = Metric("ffmpeg_media_seconds_total", "counter", "Seconds of media written over all runs.", _STREAM)
RESTARTS = Metric("ffmpeg_stream_restarts_total", "counter", "Runs after the first one.", _STREAM)
LAST_UPDATE = Metric(
    "ffmpeg_stream_last_update_timestamp_seconds",
    "gauge",
    "Unix time at which the last report arrived.",
    _STREAM,
)
REJECTED = Metric(
    "ffmpeg_ingest_rejected_total",
    "counter",
    "Connections to /ingest whose reports were not accepted.",
    ("reason",),
)
METRICS = (
    FPS,
    SPEED,
    BITRATE,
    RUN_FRAMES,
    RUN_DROPPED,
    ACTIVE,
    STALLED,
    FRAMES,
    DROPPED,
    DUPLICATED,
    BYTES,
    MEDIA,
    RESTARTS,
    LAST_UPDATE,
    INFO,
    MEGAPIXELS,
    REJECTED,
)
SHARES = (ENERGY,)  # what the node calls the shares of our claims
_TOO_MANY = Trouble(
    "streams", "a stream was refused", "raise [collectors.ffmpeg] max_streams", limit="max_streams"
)


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.ffmpeg]`."""

    max_streams: int = 1000
    max_name_length: int = 200
    window: Seconds = Seconds(5.0)  # rates look this far back; silence for this long is a stall
    expire: Seconds = Seconds(300.0)  # an ended stream's series leave after this long

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        for key in ("max_streams", "max_name_length"):
            if getattr(self, key) < 1:
                yield key, "must be at least 1"
        for key in ("window", "expire"):
            if not 1 <= getattr(self, key) <= 86400:
                yield key, "must be between 1s and 24h"

    def limits(self) -> StreamLimits:
        """Return what the streams' state needs of these options."""
        return StreamLimits(self.max_streams, self.window, self.expire)


class ProgressFeed:
    """One connection's bytes; it has its stream from its first report on, until a newer one's first."""

    def __init__(self, connection: IngestConnection, streams: StreamTable, clock: Clock) -> None:
        self._connection = connection
        self._streams = streams
        self._clock = clock
        self._parser = ProgressParser()
        self._reports = 0
        self._is_odd = False  # whether something in it could not be read

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        self._take(self._parser.feed(data))
        if self._parser.refused and not self._is_odd:
            self._is_odd = True
            self._streams.note_unreadable(self._connection.stream)

    def close(self) -> int:
        """Take the end of the connection; return how many reports it held."""
        self._take(self._parser.close())
        self._streams.release(self._connection, self._clock.monotonic())
        return self._reports

    def _take(self, reports: list[Report]) -> None:
        for report in reports:
            now = self._clock.monotonic()
            if self._reports == 0:
                self._streams.hand_over(self._connection, now)
            self._reports += 1
            self._streams.take(self._connection, report, now, self._clock.time())


class FFmpeg:
    """The streams that send their progress."""

    def __init__(self, options: Options, host: Host) -> None:
        self._options = options
        self._clock = host.clock
        self._encoders = Encoders(host, options.interval)
        self._streams = StreamTable(options.limits())
        self._full = False  # a stream was refused since the last reading

    def configure(self, options: Options) -> None:
        """Take a reload's limits; the streams stay."""
        self._options = options
        self._streams.limits = options.limits()

    def open_feed(
        self, stream: str, sender: Sender | None = None, run: str = "", stated: StreamIdentity = UNKNOWN
    ) -> ProgressFeed:
        """Return where one connection's bytes go. Raises: IngestRejected at the limit of names."""
        # /ingest/cam4/ is the stream of /ingest/cam4.
        name = shorten(stream.rstrip("/") or stream, self._options.max_name_length)
        if not self._streams.has_room(name, self._clock.monotonic()):
            self.count_rejected("stream_limit")
            self._full = True
            what = f"{self._options.max_streams} streams are known already"
            raise IngestRejected("stream_limit", f"{what}; raise [collectors.ffmpeg] max_streams")
        connection = IngestConnection(name, sender, run, self._clock.monotonic(), stated)
        return ProgressFeed(connection, self._streams, self._clock)

    def count_rejected(self, reason: str) -> None:
        """Count a connection that is read but not taken in."""
        self._streams.reject(reason)

    async def read(self) -> Reading:
        """Return every stream's figures as of now."""
        now = self._clock.monotonic()
        self._streams.expire(now)
        for name in self._streams.take_departed():
            self._encoders.part(name)
        samples = [REJECTED.sample(count, reason) for reason, count in self._streams.rejected.items()]
        for name, stream in self._streams.items():
            sender, stream.new_sender = stream.new_sender, None
            if self._streams.has_left(stream, now):
                self._encoders.part(name)
                continue
            if sender is not None:
                self._encoders.meet(name, sender)
            samples.extend(_samples(name, stream, now, self._options.window))
        troubles = (_TOO_MANY,) if self._full else ()
        self._full = False
        return Reading(samples, taken=now, claims=await self._encoders.claims(), troubles=troubles)

    async def aclose(self) -> None:
        """Stop the threads that look for and at processes."""
        self._encoders.close()


def _samples(name: str, stream: StreamState, now: float, window: float) -> Iterator[Sample]:
    active = stream.active(now, window)
    yield ACTIVE.sample(active, name)
    yield STALLED.sample(stream.stalled(now, window), name)
    totals = stream.totals
    for field, metric, value in (
        ("frames", RUN_FRAMES, stream.run.frames),
        ("dropped", RUN_DROPPED, stream.run.dropped),
        ("frames", FRAMES, totals.frames),
        ("dropped", DROPPED, totals.dropped),
        ("duplicated", DUPLICATED, totals.duplicated),
        ("size", BYTES, totals.size),
        ("media", MEDIA, totals.media),
    ):
        if field in stream.said:
            yield metric.sample(value, name)
    yield RESTARTS.sample(stream.runs - 1, name)
    yield LAST_UPDATE.sample(stream.last_update, name)
    yield from stream.picture.samples(name, has_frames="frames" in stream.said)
    if active:
        rates = stream.rates(now, window)
        for metric, rate in ((FPS, rates.fps), (SPEED, rates.speed), (BITRATE, rates.kbps)):
            if rate is not None:
                yield metric.sample(rate, name)


async def open_collector(options: Options, host: Host) -> FFmpeg:
    """Return the collector; it is always there."""
    return FFmpeg(options, host)
