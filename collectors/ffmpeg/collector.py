"""FFmpeg's live progress, pushed by `POST /ingest`: who encodes, how fast, how much.

Reads nothing by itself: `open_feed` takes each connection's bytes, `read` looks at what they said.
Units: frames, bytes and seconds of media as FFmpeg counts them; rates over the last reports, by the time
they arrived. Privileges: none.

Rules:

1. One connection is one run, unless it says that it goes on with another's (`run=`: a forwarder that has
   reconnected). A new connection, a report after `progress=end`, or a frame or size that
   goes back is another run: the `_total` counters go on, the run's own figures start again.
2. The newest connection of a name has it; the older one is read on and ignored.
3. A rate needs reports at least 0.1 s apart on average: a file sent afterwards has totals alone.

Source: FFmpeg's `-progress` (https://ffmpeg.org/ffmpeg.html#Main-options).
"""

from __future__ import annotations

from collections import deque
from itertools import dropwhile
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.collectors.ffmpeg.encoders import ENERGY, Encoders
from powerbench_agent.core.labels import shorten
from powerbench_agent.core.model import IngestRejected, Metric, Reading, Sample
from powerbench_agent.core.options import CollectorOptions, Seconds
from powerbench_agent.core.progress import ProgressParser, Report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from powerbench_agent.core.host import Host
    from powerbench_agent.core.model import Sender

_STREAM = ("stream",)
FPS = Metric("ffmpeg_fps", "gauge", "Frames encoded a second, over the last reports.", _STREAM)
SPEED = Metric("ffmpeg_speed", "gauge", "Seconds of media encoded a second, over the last reports.", _STREAM)
BITRATE = Metric("ffmpeg_bitrate_kbps", "gauge", "Kilobits written a second, over the last reports.", _STREAM)
RUN_FRAMES = Metric(
    "ffmpeg_total_frames", "unknown", "Frames that the stream's current run has encoded.", _STREAM
)
RUN_DROPPED = Metric(
    "ffmpeg_dropped_frames", "unknown", "Frames that the stream's current run has dropped.", _STREAM
)
ACTIVE = Metric(
    "ffmpeg_stream_active", "gauge", "Whether a report came lately and the run has not ended.", _STREAM
)
STALLED = Metric(
    "ffmpeg_stream_stalled",
    "gauge",
    "Whether the run goes on without a new frame or new output, or fell silent.",
    _STREAM,
)
FRAMES = Metric("ffmpeg_frames_total", "counter", "Frames encoded, over all runs.", _STREAM)
DROPPED = Metric("ffmpeg_frames_dropped_total", "counter", "Frames dropped, over all runs.", _STREAM)
DUPLICATED = Metric("ffmpeg_frames_duplicated_total", "counter", "Frames duplicated, over all runs.", _STREAM)
BYTES = Metric("ffmpeg_output_bytes_total", "counter", "Bytes written, over all runs.", _STREAM)
MEDIA = Metric("ffmpeg_media_seconds_total", "counter", "Seconds of media written, over all runs.", _STREAM)
RESTARTS = Metric("ffmpeg_stream_restarts_total", "counter", "Runs after the stream's first.", _STREAM)
LAST_UPDATE = Metric(
    "ffmpeg_stream_last_update_timestamp_seconds", "gauge", "When the last report arrived.", _STREAM
)
REJECTED = Metric(
    "ffmpeg_ingest_rejected_total",
    "counter",
    "Connections to /ingest that were read but not taken in.",
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
    REJECTED,
)
SHARES = (ENERGY,)  # what the node calls the shares of our claims
REASONS = ("forbidden", "no_progress", "stream_limit", "superseded")

_SIZE_ROUNDING = 1024  # bytes; a status line's kB may be rounded up
_MIN_SPACING = 0.1  # seconds between reports below which they were not written live


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


class _Figures(NamedTuple):
    """What counts up over a run."""

    frames: int = 0
    dropped: int = 0
    duplicated: int = 0
    size: int = 0
    media: float = 0.0


class _Point(NamedTuple):
    at: float  # monotonic seconds
    report: Report
    reports: int  # that this point stands for


class _Stream:
    """What is known of one name."""

    def __init__(self) -> None:
        self.feed: _Feed | None = None  # the connection that has the name
        self.before = _Figures()  # of all runs but the current one
        self.run = _Figures()
        self.said: set[str] = set()  # figures that FFmpeg gives for this stream; audio has no frames
        self.runs = 0
        self.run_id = ""
        self.sender: Sender | None = None  # whose process is known, or looked for
        self.new_run = True
        self.run_ended = True
        self.last_report = 0.0  # monotonic seconds
        self.last_advance = 0.0
        self.last_update = 0.0  # Unix seconds
        self.points: deque[_Point] = deque()

    def take(self, report: Report, now: float, unix: float, window: float) -> None:
        went_back = (report.frames is not None and report.frames < self.run.frames) or (
            report.size is not None and report.size + _SIZE_ROUNDING < self.run.size
        )
        # What goes on with a run may send its last report again, after its end too: that is no other run.
        if self.new_run or went_back or (self.run_ended and not self.run_id):
            self.new_run = False
            self.before = self.totals
            self.run = _Figures()
            self.runs += 1
            self.points.clear()
            self.last_advance = now
        run = _Figures(
            frames=max(self.run.frames, report.frames or 0),
            dropped=max(self.run.dropped, report.dropped or 0),
            duplicated=max(self.run.duplicated, report.duplicated or 0),
            size=max(self.run.size, report.size or 0),
            media=max(self.run.media, report.media or 0.0),
        )
        if (run.frames, run.size, run.media) != (self.run.frames, self.run.size, self.run.media):
            self.last_advance = now
        self.run = run
        self.said.update(field for field in _Figures._fields if getattr(report, field) is not None)
        self.run_ended = report.ended
        self.last_report, self.last_update = now, unix
        self._remember(report, now, window)

    def _remember(self, report: Report, now: float, window: float) -> None:
        points = self.points
        if points and now - points[-1].at < _MIN_SPACING:
            # What piled up somewhere comes at once: its last report says where the run is now.
            points[-1] = _Point(now, report, points[-1].reports + 1)
        else:
            points.append(_Point(now, report, 1))
        self.forget(now - window)

    def forget(self, before: float) -> None:
        while self.points and self.points[0].at < before:
            self.points.popleft()

    @property
    def totals(self) -> _Figures:
        """Over all runs."""
        return _Figures._make(a + b for a, b in zip(self.before, self.run, strict=True))

    def rates(self) -> tuple[float | None, float | None, float | None]:
        """Return (frames a second, seconds of media a second, kilobits a second) over the points."""
        # A pile is older than its arrival, nobody knows by how much: no window begins with one.
        points = list(dropwhile(lambda point: point.reports > 1, self.points))
        if len(points) < 2:
            return None, None, None
        first, last = points[0], points[-1]
        seconds = last.at - first.at
        reports = sum(point.reports for point in points) - first.reports
        if seconds / reports < _MIN_SPACING:
            return None, None, None
        old, new = first.report, last.report
        fps = None if old.frames is None or new.frames is None else (new.frames - old.frames) / seconds
        speed = None if old.media is None or new.media is None else max(0.0, new.media - old.media) / seconds
        kbps = None if old.size is None or new.size is None else max(0, new.size - old.size) * 8e-3 / seconds
        return fps, speed, kbps


class _Feed:
    """One connection; it has its stream from its first report on, until a newer one's first."""

    def __init__(self, collector: FFmpeg, name: str, sender: Sender | None, run: str) -> None:
        self.sender = sender
        self.run = run
        self._collector = collector
        self.name = name
        self._stream: _Stream | None = None
        self._parser = ProgressParser()
        self._reports = 0

    def feed(self, data: bytes) -> None:
        self._take(self._parser.feed(data))

    def close(self) -> int:
        self._take(self._parser.close())
        if self._stream is not None and self._stream.feed is self:
            self._stream.feed = None
        return self._reports

    def _take(self, reports: list[Report]) -> None:
        for report in reports:
            if self._reports == 0:
                self._stream = self._collector.hand_over(self.name, self)
            self._reports += 1
            if self._stream is not None and self._stream.feed is self:
                self._collector.take(self._stream, self, report)


class FFmpeg:
    """The streams that send their progress."""

    def __init__(self, options: Options, host: Host) -> None:
        self._options = options
        self._clock = host.clock
        self._encoders = Encoders(host, options.interval)
        self._streams: dict[str, _Stream] = {}
        self._rejected = dict.fromkeys(REASONS, 0)

    def configure(self, options: Options) -> None:
        """Take a reload's limits; the streams stay."""
        self._options = options

    def open_feed(self, stream: str, sender: Sender | None = None, run: str = "") -> _Feed:
        """Return where one connection's bytes go. Raises: IngestRejected at the cap of names."""
        name = shorten(stream, self._options.max_name_length)
        if not self._has_room(name):
            self.count_rejected("stream_limit")
            what = f"{self._options.max_streams} streams are known already"
            raise IngestRejected("stream_limit", f"{what}; raise [collectors.ffmpeg] max_streams")
        return _Feed(self, name, sender, run)

    def hand_over(self, name: str, feed: _Feed) -> _Stream | None:
        """Give the name to the connection whose first report came last; None where there is no room."""
        if not self._has_room(name):
            self.count_rejected("stream_limit")
            return None
        stream = self._streams.setdefault(name, _Stream())
        if not feed.run or feed.run != stream.run_id:
            if stream.feed is not None:
                self.count_rejected("superseded")
            stream.new_run = stream.run_ended = True
        stream.feed, stream.run_id = feed, feed.run
        return stream

    def _has_room(self, name: str) -> bool:
        if name not in self._streams and len(self._streams) >= self._options.max_streams:
            self._expire(self._clock.monotonic())
        return name in self._streams or len(self._streams) < self._options.max_streams

    def count_rejected(self, reason: str) -> None:
        """Count a connection that is read and not taken in."""
        self._rejected[reason] += 1

    def take(self, stream: _Stream, feed: _Feed, report: Report) -> None:
        """Take one report of the connection that has the stream."""
        now = self._clock.monotonic()
        if feed.sender is not None and (stream.sender is not feed.sender or self._has_left(stream, now)):
            stream.sender = feed.sender
            self._encoders.meet(feed.name, feed.sender)
        stream.take(report, now, self._clock.time(), self._options.window)

    async def read(self) -> Reading:
        """Return every stream's figures as of now."""
        now = self._clock.monotonic()
        self._expire(now)
        samples = [REJECTED.sample(count, reason) for reason, count in self._rejected.items()]
        for name, stream in self._streams.items():
            if self._has_left(stream, now):
                self._encoders.part(name)
            else:
                samples.extend(self._samples(name, stream, now))
        return Reading(samples, taken=now, claims=await self._encoders.claims())

    async def aclose(self) -> None:
        """Let the thread go that looks for processes."""
        self._encoders.close()

    def _has_left(self, stream: _Stream, now: float) -> bool:
        silent = now - stream.last_report > self._options.expire
        return silent and (stream.run_ended or stream.feed is None)

    def _expire(self, now: float) -> None:
        for name in [n for n, s in self._streams.items() if s.feed is None and self._has_left(s, now)]:
            del self._streams[name]
            self._encoders.part(name)

    def _samples(self, name: str, stream: _Stream, now: float) -> Iterable[Sample]:
        window = self._options.window
        active = not stream.run_ended and now - stream.last_report <= window
        stalled = not stream.run_ended and now - stream.last_advance > window
        yield ACTIVE.sample(active, name)
        yield STALLED.sample(stalled, name)
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
        if active:
            stream.forget(now - window)
            for metric, rate in zip((FPS, SPEED, BITRATE), stream.rates(), strict=True):
                if rate is not None:
                    yield metric.sample(rate, name)


async def open_collector(options: Options, host: Host) -> FFmpeg:
    """Return the collector; it is always there."""
    return FFmpeg(options, host)
