"""What is known of each stream: its figures over all runs, its rates, and which connection it belongs to.

No I/O and no clock: the caller passes the time. Frames, bytes and seconds of media as FFmpeg counts
them; rates a second, by the time that reports arrived.

Rules:

1. What a run is: `StreamState.starts_run` says when a report begins another, `goes_on` when a connection
   goes on with the last one's run. With another run the `_total` counters go on, and the run's own figures
   start again.
2. A name belongs to the connection whose first report is the newest; an older connection is read on and
   ignored.
3. A rate needs reports at least 0.1 s apart on average: a file that is sent afterwards has totals only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import dropwhile
from typing import TYPE_CHECKING, NamedTuple

import structlog

from powerbench_agent.collectors.ffmpeg.identity import StreamPicture
from powerbench_agent.collectors.ffmpeg.media import MediaClock
from powerbench_agent.core.identity import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from powerbench_agent.core.identity import StreamIdentity
    from powerbench_agent.core.model import Sender
    from powerbench_agent.core.progress import Report

# Why a connection is not taken in: series from the start. Others, which are rarer, appear when they occur.
REASONS = ("forbidden", "no_progress", "path", "stream_limit", "superseded")

log = structlog.get_logger("ffmpeg")

_SIZE_ROUNDING = 1024  # bytes; a status line's kB may be rounded up
_TIME_SLIP = 1.0  # seconds by which a run's time may go back, when a stream that was ahead has ended
_POST_SECONDS = 0.3  # that a connection lasts at most if it brings a piece of a run; FFmpeg's lasts longer
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
    run: str  # connections that give the same one are one run; "" if it gives none
    opened: float = 0.0  # monotonic seconds
    stated: StreamIdentity = UNKNOWN  # what the stream is, according to its feeder
    was_brief: bool = False  # once it has been closed


def goes_on(last: IngestConnection, new: IngestConnection) -> bool:
    """Return whether a new connection goes on with the run of the last one, which has been closed.

    It does if both give the same `run=`. If neither gives one, it does if its sender posts a run in pieces:
    over one TCP connection that is kept alive, or over new ones from the same address with the same pid, the
    last of which was closed at once. Whether its counters go on as well is asked of each report.
    """
    if last.run or new.run:
        return last.run == new.run
    if last.sender is None or new.sender is None:
        is_same_host, is_kept_alive = last.sender is new.sender, False
    else:
        is_same_host = (last.sender.peer[0], last.sender.pid) == (new.sender.peer[0], new.sender.pid)
        is_kept_alive = is_same_host and last.sender.peer == new.sender.peer
    return is_kept_alive or (is_same_host and last.was_brief)


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

    def raised_to(self, report: Report, media: float) -> RunTotals:
        """Return the figures after a report; none goes back, and what it does not say stays.

        `media`: seconds, which the report's own time need not be.
        """
        return RunTotals(
            frames=max(self.frames, report.frames or 0),
            dropped=max(self.dropped, report.dropped or 0),
            duplicated=max(self.duplicated, report.duplicated or 0),
            size=max(self.size, report.size or 0),
            media=max(self.media, media),
        )

    def is_behind(self, later: RunTotals) -> bool:
        """Return whether `later` has a new frame or new output."""
        return (self.frames, self.size, self.media) != (later.frames, later.size, later.media)


class StreamRates(NamedTuple):
    """What a stream did a second over the last reports; None if they do not tell."""

    fps: float | None = None
    speed: float | None = None  # seconds of media
    kbps: float | None = None


class _Arrival(NamedTuple):
    at: float  # monotonic seconds
    report: Report
    media: float | None  # seconds since the run's first report
    reports: int  # how many reports this one stands for


class StreamState:
    """What is known of one stream."""

    def __init__(self) -> None:
        self.connection: IngestConnection | None = None  # the one that the name belongs to
        self.last_connection: IngestConnection | None = None
        self.sender: Sender | None = None  # of the last connection that said who it is
        self.new_sender: Sender | None = None  # the same, until its process is looked for
        self.run = RunTotals()
        self.picture = StreamPicture()
        self.said: set[str] = set()  # figures that FFmpeg gives for this stream; audio has no frames
        self.runs = 0
        self.run_ended = True
        self.last_report = 0.0  # monotonic seconds
        self.last_advance = 0.0
        self.last_update = 0.0  # Unix seconds
        self._earlier_runs = RunTotals()
        self._new_run = True
        self._may_repeat = False  # whether the next report may be the last one again
        self._latest: Report | None = None
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

    def belong_to(self, connection: IngestConnection, *, continues: bool) -> None:
        """Give the stream to a connection, which starts a run or continues the last one."""
        if not continues:
            self._new_run = self.run_ended = True
        elif connection.run:
            self._may_repeat = True
        else:
            connection.sender = self.sender  # its process is known, or cannot be found
        self.connection = self.last_connection = connection

    def take(self, report: Report, now: float, unix: float, window: float) -> None:
        """Take a report that arrived at monotonic second `now`, Unix second `unix`."""
        self.last_report, self.last_update = now, unix
        if self._is_repeat(report):
            return
        if self.starts_run(report):
            self._start_run(now)
        self._latest = report
        opened = now if self.connection is None else self.connection.opened
        self._media.take(report, now - opened)
        before = self.run
        self.run = before.raised_to(report, self._media.seconds or 0.0)
        if before.is_behind(self.run):
            self.last_advance = now
        stated = UNKNOWN if self.connection is None else self.connection.stated
        self.picture.take(stated, report.identity, self.run.frames)
        self._note_said(report)
        self.run_ended = report.ended
        self._remember(report, now, window)

    def _note_said(self, report: Report) -> None:
        for field in RunTotals._fields:
            is_said = self._media.seconds if field == "media" else getattr(report, field)
            if is_said is not None:
                self.said.add(field)

    def _is_repeat(self, report: Report) -> bool:
        """Return whether a forwarder that has reconnected says once more how the run ended."""
        may_repeat, self._may_repeat = self._may_repeat, False
        if not may_repeat or not self.run_ended or self._latest is None:
            return False
        return _figures(report) == _figures(self._latest)

    def starts_run(self, report: Report) -> bool:
        """Return whether a report is another run's than the ones before.

        It is the first of a connection that does not go on with the last one's run; or it comes after the
        run's end; or its frame count or size is behind the run's. Where it gives neither (radio over HLS),
        its time counts instead.
        """
        if self._new_run or self.run_ended:
            return True
        if report.frames is None and report.size is None:
            return self._is_earlier(report)
        fewer_frames = report.frames is not None and report.frames < self.run.frames
        smaller = report.size is not None and report.size + _SIZE_ROUNDING < self.run.size
        return fewer_frames or smaller

    def _is_earlier(self, report: Report) -> bool:
        if self._latest is None or self._latest.media is None or report.media is None:
            return False
        return report.media < self._latest.media - _TIME_SLIP

    def _start_run(self, now: float) -> None:
        self._new_run = False
        self._earlier_runs = self.totals
        self.run = RunTotals()
        self.picture.start_run()
        self.runs += 1
        self._media = MediaClock()
        self._arrivals.clear()
        self.last_advance = now

    def _remember(self, report: Report, now: float, window: float) -> None:
        media = None if report.media is None else self._media.moved
        last = self._arrivals[-1] if self._arrivals else None
        if last is not None and now - last.at < _MIN_SPACING:
            # Reports that were held up somewhere arrive at once: the last one says where the run is now.
            self._arrivals[-1] = _Arrival(now, report, media, last.reports + 1)
        else:
            self._arrivals.append(_Arrival(now, report, media, 1))
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
            speed=_rate(first.media, last.media, seconds),
            kbps=None if bytes_a_second is None else bytes_a_second * 8e-3,
        )

    def active(self, now: float, window: float) -> bool:
        """Return whether the run goes on and a report came in the last `window` seconds."""
        return not self.run_ended and now - self.last_report <= window

    def stalled(self, now: float, window: float) -> bool:
        """Return whether the run goes on without a new frame or new output in the last `window` seconds."""
        return not self.run_ended and now - self.last_advance > window


def _figures(report: Report) -> Report:
    """Return what a report counts, without what else it says."""
    return report._replace(ended=True, identity=None)


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

    def reject(self, reason: str) -> None:
        """Count a connection that is not taken in, or not all of it."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def note_unreadable(self, name: str) -> None:
        """Count a connection some of which cannot be read, and log the first one."""
        if "unreadable" not in self.rejected:
            log.warning(
                "some of what a stream sends is not FFmpeg's progress and was dropped",
                stream=name,
                remedy="send ffmpeg's -progress output or its stderr as it is; later ones are only counted,"
                " in ffmpeg_ingest_rejected_total",
            )
        self.reject("unreadable")

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
            self.reject("stream_limit")
            return
        stream = self._streams.setdefault(connection.stream, StreamState())
        continues = self._continues(stream, connection, now)
        if stream.connection is not None and not continues:
            self.reject("superseded")
        stream.belong_to(connection, continues=continues)

    def _continues(self, stream: StreamState, connection: IngestConnection, now: float) -> bool:
        """Return whether a connection goes on with a stream's run; one without `run=` only if it is free."""
        last = stream.last_connection
        if last is None or (stream.connection is not None and not connection.run):
            return False
        return not self.has_left(stream, now) and goes_on(last, connection)

    def take(self, connection: IngestConnection, report: Report, now: float, unix: float) -> None:
        """Take a report, if the stream still belongs to this connection."""
        stream = self._streams.get(connection.stream)
        if stream is None or stream.connection is not connection:
            return
        sender = connection.sender
        if sender is not None and (stream.sender is not sender or self.has_left(stream, now)):
            stream.sender = stream.new_sender = sender
        stream.take(report, now, unix, self.limits.window)

    def release(self, connection: IngestConnection, now: float) -> None:
        """Take the end of a connection."""
        connection.was_brief = now - connection.opened <= _POST_SECONDS
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
