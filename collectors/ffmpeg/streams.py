"""What is known of each stream: its figures over all runs, its rates, and which connection it belongs to.

No I/O and no clock: the caller passes the time. Frames, bytes and seconds of media as FFmpeg counts
them; rates a second, by the time that reports arrived.

Rules:

1. One connection is one run, unless it continues another's: it says so (`run=`: a forwarder that has
   reconnected), or it is a further request of a client that sends one report a request, whose figures go on
   from the last. A new connection, a report after an end, or a frame count or size that goes back starts
   another run: the `_total` counters go on, the run's own figures start again. Only a forwarder that has
   reconnected may repeat its last report.
2. A name belongs to the connection whose first report is the newest; an older connection is read on and
   ignored.
3. Timestamps may start anywhere and may jump: media counts by the frames that came with it (`MediaClock`).
4. A rate needs reports at least 0.1 s apart on average: a file that is sent afterwards has totals only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import dropwhile
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from powerbench_agent.core.model import Sender
    from powerbench_agent.core.progress import Report

REASONS = (
    "forbidden",
    "no_progress",
    "path",
    "stream_limit",
    "superseded",
)  # why a connection is not taken in

_SIZE_ROUNDING = 1024  # bytes; a status line's kB may be rounded up
_SLOWEST_FRAME = 2.0  # seconds; fewer frames than this are not video
_LONGEST_START = 3600.0  # seconds of media in a first report without frames
_LONGEST_GAP = 60.0  # seconds of media without a frame, as in a slide show
_LEAST_OFFSET = 1.0  # seconds; variable frame rates make as much
_JITTER = 1.0  # seconds that timestamps may step back
_MIN_SPACING = 0.1  # seconds between reports below which they were not written live


class StreamLimits(NamedTuple):
    """How many streams are kept, and for how long."""

    max_streams: int
    window: float  # seconds that rates look back; silence for this long is a stall
    expire: float  # seconds after which the series of an ended stream leave


@dataclass(slots=True, eq=False)
class IngestConnection:
    """One connection: which stream it reports on, and who is at its other end."""

    stream: str
    sender: Sender | None
    run: str  # connections that give the same one are one run; "" for a run of its own


class RunTotals(NamedTuple):
    """What counts up over a run."""

    frames: int = 0
    dropped: int = 0
    duplicated: int = 0
    size: int = 0
    media: float = 0.0

    def __add__(self, other: RunTotals) -> RunTotals:  # type: ignore[override]
        """Return the sums, figure by figure."""
        return RunTotals._make(one + another for one, another in zip(self, other, strict=True))

    def raised_to(self, report: Report) -> RunTotals:
        """Return the figures after a report; none goes back, and what it does not say stays."""
        return RunTotals(
            frames=max(self.frames, report.frames or 0),
            dropped=max(self.dropped, report.dropped or 0),
            duplicated=max(self.duplicated, report.duplicated or 0),
            size=max(self.size, report.size or 0),
            media=max(self.media, report.media or 0.0),
        )

    def is_behind(self, later: RunTotals) -> bool:
        """Return whether `later` has a new frame or new output."""
        return (self.frames, self.size, self.media) != (later.frames, later.size, later.media)


class MediaClock:
    """A run's seconds of media, from timestamps that may start anywhere, jump, or start again.

    With `-copyts`, or wall-clock timestamps, the first report says hours or decades. What a run's first
    frames were worth is known from the frames that follow; a figure that cannot be true waits for them.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None  # frames and seconds of the first report
        self._last: tuple[int, float] | None = None
        self._offset: float | None = None  # of the timestamps; None: not known yet

    def take(self, frames: int | None, media: float | None) -> float | None:
        """Return the seconds of media so far; None if they are not known."""
        if media is None:
            return None
        now = (frames or 0, media)
        if self._first is None or self._last is None:
            self._first = self._last = now
            is_plausible = media <= (now[0] * _SLOWEST_FRAME or _LONGEST_START)
            return media if is_plausible else None
        self._follow_jump(self._last, now)
        self._last = now
        if self._offset is None:
            self._offset = _offset(self._first, now)
        return None if self._offset is None else max(0.0, media - self._offset)

    def _follow_jump(self, last: tuple[int, float], now: tuple[int, float]) -> None:
        """Move the offset along if the timestamps went back, or further than the new frames explain."""
        new_frames = now[0] - last[0]
        passed = now[1] - last[1]
        is_jump = passed < -_JITTER or (now[0] > 0 and passed > new_frames * _SLOWEST_FRAME + _LONGEST_GAP)
        if is_jump:
            self._offset = passed + (self._offset or 0.0)


def _offset(first: tuple[int, float], now: tuple[int, float]) -> float | None:
    """Return where a run's timestamps start, from its first report and a later one; None: not known yet."""
    frames, media = first
    if frames == 0:  # no pictures
        return media if media > _LONGEST_START else 0.0
    if now[0] <= frames:
        return None
    frame_seconds = (now[1] - media) / (now[0] - frames)
    start = media - frames * frame_seconds
    is_offset = abs(start) > max(_LEAST_OFFSET, media / 2)
    return start if is_offset else 0.0


class StreamRates(NamedTuple):
    """What a stream did a second over the last reports; None if they do not tell."""

    fps: float | None = None
    speed: float | None = None  # seconds of media
    kbps: float | None = None


class _Arrival(NamedTuple):
    at: float  # monotonic seconds
    report: Report
    reports: int  # how many reports this one stands for


class StreamState:
    """What is known of one stream."""

    def __init__(self) -> None:
        self.connection: IngestConnection | None = None  # the one that the name belongs to
        self.run_id = ""
        self.sender: Sender | None = None  # of the last connection that said who it is
        self.new_sender: Sender | None = None  # the same, until its process is looked for
        self.run = RunTotals()
        self.said: set[str] = set()  # figures that FFmpeg gives for this stream; audio has no frames
        self.runs = 0
        self.run_ended = True
        self.last_report = 0.0  # monotonic seconds
        self.last_advance = 0.0
        self.last_update = 0.0  # Unix seconds
        self._earlier_runs = RunTotals()
        self._new_run = True
        self._may_repeat = False  # the next report may be the last one again
        self._media = MediaClock()
        self._arrivals: deque[_Arrival] = deque()

    @property
    def totals(self) -> RunTotals:
        """The figures over all runs."""
        return self._earlier_runs + self.run

    @property
    def remembered(self) -> int:
        """How many reports are kept for the rates."""
        return len(self._arrivals)

    def belong_to(self, connection: IngestConnection) -> None:
        """Give the stream to a connection, which starts a run or continues the last one."""
        continues = bool(connection.run) and connection.run == self.run_id
        self._may_repeat = continues
        if not continues and not self._is_next_request(connection):
            self._new_run = self.run_ended = True
        self.connection = connection
        self.run_id = connection.run

    def _is_next_request(self, connection: IngestConnection) -> bool:
        """Return whether a connection is another request over the one that the last reports came over."""
        if self.connection is not None or self.sender is None or connection.sender is None:
            return False
        same = (self.sender.peer, self.sender.local) == (connection.sender.peer, connection.sender.local)
        return same and connection.run == self.run_id

    def take(self, report: Report, now: float, unix: float, window: float) -> None:
        """Take a report that arrived at monotonic second `now`, Unix second `unix`."""
        if self._starts_run(report):
            self._start_run(now)
        self._may_repeat = False
        report = report._replace(media=self._media.take(report.frames, report.media))
        before = self.run
        self.run = before.raised_to(report)
        if before.is_behind(self.run):
            self.last_advance = now
        for field in RunTotals._fields:
            if getattr(report, field) is not None:
                self.said.add(field)
        self.run_ended = report.ended
        self.last_report, self.last_update = now, unix
        self._remember(report, now, window)

    def _starts_run(self, report: Report) -> bool:
        if self._new_run or (self.run_ended and not self._repeats(report)):
            return True
        fewer_frames = report.frames is not None and report.frames < self.run.frames
        smaller = report.size is not None and report.size + _SIZE_ROUNDING < self.run.size
        return fewer_frames or smaller

    def _repeats(self, report: Report) -> bool:
        """Return whether a forwarder that has reconnected says again what it said last."""
        return self._may_repeat and report.ended and not self.run.is_behind(self.run.raised_to(report))

    def _start_run(self, now: float) -> None:
        self._new_run = False
        self._media = MediaClock()
        self._earlier_runs = self.totals
        self.run = RunTotals()
        self.runs += 1
        self._arrivals.clear()
        self.last_advance = now

    def _remember(self, report: Report, now: float, window: float) -> None:
        last = self._arrivals[-1] if self._arrivals else None
        if last is not None and now - last.at < _MIN_SPACING:
            # Reports that were held up somewhere arrive at once: the last one says where the run is now.
            self._arrivals[-1] = _Arrival(now, report, last.reports + 1)
        else:
            self._arrivals.append(_Arrival(now, report, 1))
        self._forget(now - window)

    def _forget(self, before: float) -> None:
        while self._arrivals and self._arrivals[0].at < before:
            self._arrivals.popleft()

    def rates(self, now: float, window: float) -> StreamRates:
        """Return the rates over the reports of the last `window` seconds."""
        self._forget(now - window)
        # Reports that arrived together are older than their arrival, by an unknown time: a window does not
        # begin with them.
        arrivals = list(dropwhile(lambda arrival: arrival.reports > 1, self._arrivals))
        if len(arrivals) < 2:
            return StreamRates()
        first, last = arrivals[0], arrivals[-1]
        seconds = last.at - first.at
        reports = sum(arrival.reports for arrival in arrivals) - first.reports
        if seconds / reports < _MIN_SPACING:
            return StreamRates()
        old, new = first.report, last.report
        bytes_a_second = _rate(old.size, new.size, seconds)
        return StreamRates(
            fps=_rate(old.frames, new.frames, seconds),
            speed=_rate(old.media, new.media, seconds),
            kbps=None if bytes_a_second is None else bytes_a_second * 8e-3,
        )

    def active(self, now: float, window: float) -> bool:
        """Return whether the run goes on and a report came in the last `window` seconds."""
        return not self.run_ended and now - self.last_report <= window

    def stalled(self, now: float, window: float) -> bool:
        """Return whether the run goes on without a new frame or new output in the last `window` seconds."""
        return not self.run_ended and now - self.last_advance > window


def _rate(old: float | None, new: float | None, seconds: float) -> float | None:
    if old is None or new is None:
        return None
    return max(0.0, new - old) / seconds


class StreamTable:
    """All streams by name, up to the limit of names."""

    def __init__(self, limits: StreamLimits) -> None:
        self.limits = limits
        self.rejected = dict.fromkeys(REASONS, 0)  # connections
        self._streams: dict[str, StreamState] = {}
        self._departed: set[str] = set()  # names removed since `take_departed`

    def items(self) -> Iterable[tuple[str, StreamState]]:
        """Return every stream with its name."""
        return self._streams.items()

    def has_room(self, name: str, now: float) -> bool:
        """Return whether a stream of this name is known or can be taken in."""
        if name in self._streams:
            return True
        if len(self._streams) >= self.limits.max_streams:
            self.expire(now)
        return len(self._streams) < self.limits.max_streams

    def hand_over(self, connection: IngestConnection, now: float) -> None:
        """Give the name to a connection that has sent its first report, if there is room for the name."""
        if not self.has_room(connection.stream, now):
            self.rejected["stream_limit"] += 1
            return
        stream = self._streams.setdefault(connection.stream, StreamState())
        continues = bool(connection.run) and connection.run == stream.run_id
        if stream.connection is not None and not continues:
            self.rejected["superseded"] += 1
        stream.belong_to(connection)

    def take(self, connection: IngestConnection, report: Report, now: float, unix: float) -> None:
        """Take a report, if the stream still belongs to this connection."""
        stream = self._streams.get(connection.stream)
        if stream is None or stream.connection is not connection:
            return
        sender = connection.sender
        if sender is not None and (stream.sender is not sender or self.has_left(stream, now)):
            stream.sender = stream.new_sender = sender
        stream.take(report, now, unix, self.limits.window)

    def release(self, connection: IngestConnection) -> None:
        """Take the end of a connection."""
        stream = self._streams.get(connection.stream)
        if stream is not None and stream.connection is connection:
            stream.connection = None

    def has_left(self, stream: StreamState, now: float) -> bool:
        """Return whether a stream has been silent for so long that its series leave."""
        silent = now - stream.last_report > self.limits.expire
        return silent and (stream.run_ended or stream.connection is None)

    def expire(self, now: float) -> None:
        """Remove the streams that have left and that no connection belongs to."""
        for name, stream in list(self._streams.items()):
            if stream.connection is None and self.has_left(stream, now):
                del self._streams[name]
                self._departed.add(name)

    def take_departed(self) -> set[str]:
        """Return the names that were removed since the last call."""
        departed, self._departed = self._departed, set()
        return departed
