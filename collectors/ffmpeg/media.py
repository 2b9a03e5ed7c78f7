"""Seconds of media that a run has written, out of a time that need not begin at 0. Pure.

FFmpeg says at which time of the output it is. With `-copyts` (FFmpeg 4.2) that is the time of the input,
which may begin at a minute or at the Unix time; a discontinuity, or MPEG-TS's wrap after 26.5 h, moves it in
the middle of a run. An offset is no media, so what counts is what has passed since the first report.

Rules:

1. The first report's own time counts in full if the run's pace afterwards agrees: seconds a frame (a byte
   where there are no frames), or seconds a second since the connection began. If not, what that pace makes
   of the first report counts instead.
2. Until there is a pace, the first report's time counts only if it is credible by itself: at least 10 frames
   a second, or, once the run has ended, 4 kb/s. What is not credible is not counted.
3. A later step of more than 10 s must agree with the pace so far, by frames, bytes or time; if it does not,
   what that pace makes of it counts instead. A step back is one of those.
4. What was counted stays counted.

Source: print_report() in FFmpeg's fftools/ffmpeg.c; from 4.4 on it subtracts the first timestamp by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from powerbench_agent.core.progress import Report

_SLACK = 1.0  # seconds; how far sound may be ahead of the picture
_AGREES = 1.25  # times what the pace makes of the first report
_FREE_STEP = 10.0  # seconds that need no agreement
_STEP_AGREES = 2.0  # times what the pace makes of a step
_SECONDS_A_FRAME = 0.1
_BYTES_A_SECOND = 500.0
_LONGEST = 86400.0  # seconds of a run that gives no frames and no size


class _Mark(NamedTuple):
    media: float  # seconds, as FFmpeg says it
    frames: int | None
    size: int | None
    at: float  # seconds since the connection began


class MediaClock:
    """The media of one run."""

    def __init__(self) -> None:
        self.seconds: float | None = None  # counted so far; None if nothing credible was said
        self._first: _Mark | None = None
        self._last: _Mark | None = None
        self._skipped = 0.0  # seconds by which later steps moved the time without any media
        self._zero: float | None = None  # the time at which the media began, as far as is known
        self._is_settled = False  # whether a pace has confirmed it

    @property
    def moved(self) -> float:
        """The seconds since the first report; for rates, since it never holds an offset."""
        if self._first is None or self._last is None:
            return 0.0
        return self._last.media - self._first.media - self._skipped

    def take(self, report: Report, age: float) -> None:
        """Take a report that arrived `age` seconds after its connection began."""
        if report.media is None:
            return
        mark = _Mark(report.media, report.frames, report.size, age)
        if self._first is None or self._last is None:
            self._begin(mark)
        else:
            self._advance(self._first, self._last, mark)
        if self._zero is None and report.ended and _is_credible(mark, ended=True):
            self._zero = 0.0
        if self._zero is not None and self._last is not None:
            self.seconds = max(self.seconds or 0.0, self._last.media - self._skipped - self._zero)

    def _begin(self, mark: _Mark) -> None:
        self._first = self._last = mark
        self._zero = 0.0 if _is_credible(mark, ended=False) else None

    def _advance(self, first: _Mark, last: _Mark, mark: _Mark) -> None:
        step = mark.media - last.media
        if -_SLACK <= step < 0:
            return  # a stream that was ahead has ended
        is_start = self.moved <= 0 and _is_empty(first)
        if is_start and step > _FREE_STEP and not _is_credible(_since(last, mark), ended=True):
            self._begin(mark)  # before its first frame, the run's time was not the media's
            return
        self._skipped += step - self._counted(first, last, mark)
        self._last = mark
        if not self._is_settled and self.moved > 0:
            self._settle(first, mark)

    def _counted(self, first: _Mark, last: _Mark, mark: _Mark) -> float:
        """Return how much media a step is."""
        step = mark.media - last.media
        if 0 <= step <= _FREE_STEP:
            return step
        expected = _by_pace(self.moved, _since(first, last), _since(last, mark))
        if step > 0 and (not expected or step <= _STEP_AGREES * max(expected) + _FREE_STEP):
            return step
        return expected[0] if expected else 0.0

    def _settle(self, first: _Mark, mark: _Mark) -> None:
        """Decide what the first report's time counts, now that there is a pace."""
        expected = _by_pace(self.moved, _since(first, mark), first) or [self.moved]
        is_media = first.media <= _AGREES * max(expected) + _SLACK
        self._zero = 0.0 if is_media else first.media - expected[0]
        self._is_settled = True


def _since(earlier: _Mark, later: _Mark) -> _Mark:
    return _Mark(
        later.media - earlier.media,
        None if later.frames is None or earlier.frames is None else later.frames - earlier.frames,
        None if later.size is None or earlier.size is None else later.size - earlier.size,
        later.at - earlier.at,
    )


def _by_pace(seconds: float, done: _Mark, more: _Mark) -> list[float]:
    """Return what `more` is in seconds of media, if `done` took `seconds`: by what was written, by time."""
    found = []
    if done.frames and more.frames is not None:
        found.append(seconds * more.frames / done.frames)
    elif done.size and more.size:
        found.append(seconds * more.size / done.size)
    if done.at > 0 and more.at > 0:
        found.append(seconds * more.at / done.at)
    return found


def _is_empty(mark: _Mark) -> bool:
    return mark.media < _SLACK and (mark.frames or 0) <= 1


def _is_credible(mark: _Mark, *, ended: bool) -> bool:
    """Return whether a time can be media from 0 on, by itself."""
    if mark.media <= _SLACK:
        return True
    if mark.frames is not None and mark.frames > 1:
        return mark.media <= mark.frames * _SECONDS_A_FRAME + _SLACK
    if not ended:
        return False
    return mark.media <= (_LONGEST if mark.size is None else mark.size / _BYTES_A_SECOND)
