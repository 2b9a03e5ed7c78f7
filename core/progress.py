r"""FFmpeg's progress, from bytes to reports: a state machine that does no I/O.

Two forms, either cut at any place:

- blocks, as `-progress` writes them: `key=value` lines up to `progress=continue` or `progress=end`;
- status lines, as FFmpeg writes them to stderr, ended by a carriage return, with log lines in between.

Rules:

1. After the first block only blocks are read: with `2>&1` both forms arrive, and the status line rounds the
   figures that the block gives exactly.
2. `N/A`, nan, negative times and anything else that is not a figure is None, never 0.
3. `out_time_ms` is in microseconds, despite its name.
4. `fps`, `bitrate` and `speed` are means since the start of the run, so they are ignored.
5. A run's last status line is told from the others by any of these:
   - `Lsize=` or `Lq=`: FFmpeg marks the first figure after the frames, which audio alone does not have;
   - its end: FFmpeg ends the last one with \n and the others with \r. That counts only where \r was seen
     before, as a log may end every line with \n;
   - the summary (`video:21kB audio:...`), which follows it up to FFmpeg 6.0 and precedes it from then on.

core/logged.py takes off what loggers put around a line; core/identity.py reads what FFmpeg says of the stream
before it encodes, which comes with the reports that follow and ends with the run.

Source: print_report() in FFmpeg's fftools/ffmpeg.c, versions 4.2 to 9.0.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from powerbench_agent.core.identity import IdentityReader, StreamIdentity
from powerbench_agent.core.lines import LineSplitter
from powerbench_agent.core.logged import MAX_LINE, MAX_LOGGED, unwrap

__all__ = ["MAX_LINE", "ProgressParser", "Report"]

_KEYS = frozenset((b"frame", b"total_size", b"out_time_us", b"out_time_ms", b"dup_frames", b"drop_frames"))
_STATUS = re.compile(rb"(\w+)=\s*(\S+)")
_STATUS_START = re.compile(rb"\s*(?:frame|L?size)=")
_LAST_MARK = re.compile(rb"(?<!\w)L(?:size|q)=")
_SUMMARY = re.compile(rb"\s*(?:\[out#[^\]]{1,200}\] )?(?:\[\w{1,20}\] )?video:\S+ audio:\S+ subtitle:")
_CLOCK = re.compile(rb"(\d{1,6}):(\d\d):(\d\d(?:\.\d{1,9})?)")
_SIZE = re.compile(rb"(\d{1,18})(?:kB|KiB)")
_COUNT = re.compile(rb"\d{1,18}")


class Report(NamedTuple):
    """How far a run has come; None for what FFmpeg did not say."""

    frames: int | None  # encoded so far, of the first video stream
    size: int | None  # bytes written so far
    media: float | None  # seconds of media written so far
    dropped: int | None  # frames
    duplicated: int | None  # frames
    ended: bool  # the run says that this is its last report
    identity: StreamIdentity | None = None  # as far as FFmpeg's stderr has said it


def is_status(line: bytes) -> bool:
    """Return whether an unwrapped line is a status line."""
    return b" time=" in line and _STATUS_START.match(line) is not None


def is_summary(line: bytes) -> bool:
    """Return whether an unwrapped line is the summary with which FFmpeg ends."""
    return _SUMMARY.match(line) is not None


class StatusEnds:
    """Tells the last status line of a run from the others, by rule 5."""

    def __init__(self) -> None:
        self._returns = False  # whether a status line ended with a carriage return
        self._is_announced = False  # by a summary: the next status line is the last
        self._goes_on = False  # after the latest status line

    def status(self, line: bytes) -> bool:
        """Take a status line; return whether it is the last."""
        is_return = line.rstrip(b"\n").endswith(b"\r")
        is_line_feed = line.endswith(b"\n") and not is_return
        # A logger that cuts long texts may cut a status line as well; a whole one has its speed.
        is_final_end = self._returns and is_line_feed and b" speed=" in line
        is_last = self._is_announced or is_final_end or _LAST_MARK.search(line) is not None
        self._returns |= is_return
        self._is_announced = False
        self._goes_on = not is_last
        return is_last

    def summary(self, line: bytes) -> bool:
        """Take a summary; return whether it says that the status line before was the last after all."""
        if b"[out#" in line:
            self._is_announced = True
            return False
        went_on, self._goes_on = self._goes_on, False
        return went_on


class ProgressParser:
    """Reads the progress of one connection: of one run, or of several in turn."""

    def __init__(self) -> None:
        self._lines = LineSplitter(MAX_LOGGED)
        self._block: dict[bytes, bytes] = {}
        self._blocks = False  # whether there was a block
        self._odd_blocks = 0
        self._ends = StatusEnds()
        self._status: Report | None = None  # the latest status line's
        self._stderr = IdentityReader()  # of the current run

    @property
    def refused(self) -> int:
        """How many lines were too long, and how many blocks ended with a word that FFmpeg does not write."""
        return self._lines.dropped + self._odd_blocks

    def feed(self, data: bytes) -> list[Report]:
        """Take the next bytes; return the reports that are complete with them."""
        reports: list[Report] = []
        for logged in self._lines.feed(data):
            for line in unwrap(logged):
                report = self._line(line)
                if report is not None:
                    reports.append(report)
                    if report.ended:
                        self._stderr = IdentityReader()
        return reports

    def close(self) -> list[Report]:
        """Take the end of the bytes; return the report in an unfinished last line, if there is one."""
        return self.feed(b"\r")  # which ends no run, unlike a line feed

    def _line(self, line: bytes) -> Report | None:
        if is_status(line):
            return None if self._blocks else self._take_status(line)
        if is_summary(line):
            return None if self._blocks else self._take_summary(line)
        key, _, value = line.partition(b"=")
        key, value = key.strip(), value.strip()
        if key == b"progress":
            return self._end_block(value)
        if key in _KEYS:
            self._block[key] = value
        else:
            self._stderr.line(line)
        return None

    def _end_block(self, state: bytes) -> Report | None:
        block, self._block = self._block, {}
        if state not in (b"continue", b"end"):
            self._odd_blocks += 1
            return None
        is_first, self._blocks = not self._blocks, True
        report = _parse_block(block, self._stderr.identity, ended=state == b"end")
        if is_first and report.ended and self._status is not None and self._status.ended:
            self._stderr = IdentityReader()
            return None  # both forms of a short run's only report
        return report

    def _take_status(self, line: bytes) -> Report:
        self._status = _parse_status(line, self._stderr.identity, ended=self._ends.status(line))
        return self._status

    def _take_summary(self, line: bytes) -> Report | None:
        if self._ends.summary(line) and self._status is not None:
            self._status = self._status._replace(ended=True)
            return self._status
        return None


def _parse_block(block: dict[bytes, bytes], identity: StreamIdentity | None, *, ended: bool) -> Report:
    microseconds = _count(block.get(b"out_time_us") or block.get(b"out_time_ms"))
    return Report(
        frames=_count(block.get(b"frame")),
        size=_count(block.get(b"total_size")),
        media=None if microseconds is None else microseconds / 1e6,
        dropped=_count(block.get(b"drop_frames")),
        duplicated=_count(block.get(b"dup_frames")),
        ended=ended,
        identity=identity,
    )


def _parse_status(line: bytes, identity: StreamIdentity | None, *, ended: bool) -> Report:
    fields = dict(_STATUS.findall(line))
    size = _SIZE.fullmatch(fields.get(b"Lsize") or fields.get(b"size") or b"")
    clock = _CLOCK.fullmatch(fields.get(b"time", b""))
    return Report(
        frames=_count(fields.get(b"frame")),
        size=int(size[1]) * 1024 if size else None,
        media=int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) if clock else None,
        dropped=_count(fields.get(b"drop")),
        duplicated=_count(fields.get(b"dup")),
        ended=ended,
        identity=identity,
    )


def _count(value: bytes | None) -> int | None:
    return int(value) if value is not None and _COUNT.fullmatch(value) else None
