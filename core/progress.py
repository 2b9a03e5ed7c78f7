"""FFmpeg's progress, from bytes to reports: a state machine that does no I/O.

Two forms, either cut at any place:

- blocks, as `-progress` writes them: `key=value` lines up to `progress=continue` or `progress=end`;
- status lines, as FFmpeg writes them to stderr, ended by a carriage return, with log lines in between.

Rules:

1. After the first block only blocks are read: with `2>&1` both forms arrive, and the status line rounds the
   figures that the block gives exactly.
2. A status line is a run's last if it has `Lsize=` or `Lq=`, or ends in a line feed alone after others ended
   in a carriage return alone: FFmpeg overwrites all but the last.
3. What loggers put before a line is skipped: FFmpeg's level and date, the times of container engines. A line
   of JSON counts as the text of its message.
4. `N/A`, nan, negative times and anything else that is not a figure is None, never 0.
5. `out_time_ms` is in microseconds, despite its name.
6. `fps`, `bitrate` and `speed` are means since the start of the run, so they are ignored.

Source: print_report() in FFmpeg's fftools/ffmpeg.c, versions 5.1 to 9.0.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core.lines import LineSplitter

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE = 32768  # bytes; a container engine's logger cuts at 16 KiB. A longer line is skipped

_KEYS = frozenset(
    (b"frame", b"total_size", b"out_time_us", b"out_time_ms", b"dup_frames", b"drop_frames", b"progress")
)
_STATUS = re.compile(rb"(\w+)=\s*(\S+)")
_STATUS_START = re.compile(rb"\s*(?:frame|L?size)=")
_LOGGERS = re.compile(
    rb"(?:\x1b\[[0-9;]*m|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*\s+|std(?:out|err) [FP] |\[[^\]\r\n]*\]\s*)+"
)
_MESSAGES = ("log", "MESSAGE", "message", "msg")  # where loggers keep the text: Docker's first, the journal's
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


class ProgressParser:
    """Reads the progress of one run, or of one connection."""

    def __init__(self) -> None:
        self._lines = LineSplitter(MAX_LINE)
        self._block: dict[bytes, bytes] = {}
        self._blocks = False  # whether there was a block
        self._overwrites = False  # whether a status line ended in a carriage return alone
        self._returned = False  # whether the last line did, unless a line feed is still to come

    def feed(self, data: bytes) -> list[Report]:
        """Take the next bytes; return the reports that are complete with them."""
        found = []
        for line in self._lines.feed(data):
            for text in unwrapped(line):
                report = self._line(text)
                if report is not None:
                    found.append(report)
        return found

    def close(self) -> list[Report]:
        """Take the end of the bytes; return the report in an unfinished last line, if there is one."""
        return self.feed(b"\n")

    def _line(self, line: bytes) -> Report | None:
        if self._returned:
            self._overwrites |= line != b"\n"  # else it is the second half of the line's end
            self._returned = False
        if _STATUS_START.match(line) and b" time=" in line:
            return None if self._blocks else self._status(line)
        key, equals, value = line.partition(b"=")
        key = key.strip()
        if not equals or key not in _KEYS:
            return None
        if key != b"progress":
            self._block[key] = value.strip()
            return None
        block, self._block = self._block, {}
        value = value.strip()
        if value not in (b"continue", b"end"):
            return None
        self._blocks = True
        microseconds = _count(block.get(b"out_time_us") or block.get(b"out_time_ms"))
        return Report(
            frames=_count(block.get(b"frame")),
            size=_count(block.get(b"total_size")),
            media=None if microseconds is None else microseconds / 1e6,
            dropped=_count(block.get(b"drop_frames")),
            duplicated=_count(block.get(b"dup_frames")),
            ended=value == b"end",
        )

    def _status(self, line: bytes) -> Report:
        is_fed = line.endswith(b"\n") and not line.endswith(b"\r\n")
        self._returned = line.endswith(b"\r")
        return _parse_status(line, is_last=self._overwrites and is_fed)


def unwrapped(line: bytes) -> Iterator[bytes]:
    """Yield the lines in a logger's line, with their ends and without what the logger put before them."""
    if line.startswith(b"{"):
        yield from _messages(line)
        return
    prefix = _LOGGERS.match(line)
    yield line[prefix.end() :] if prefix else line


def _messages(line: bytes) -> Iterator[bytes]:
    """Yield the lines in the message of a line of JSON."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return
    for key in _MESSAGES:
        message = record.get(key)
        if isinstance(message, str):
            for text in message.encode("utf-8", "replace").splitlines(keepends=True):
                prefix = _LOGGERS.match(text)
                yield text[prefix.end() :] if prefix else text
            return


def _parse_status(line: bytes, *, is_last: bool) -> Report:
    fields = dict(_STATUS.findall(line))
    size = _SIZE.fullmatch(fields.get(b"Lsize") or fields.get(b"size") or b"")
    clock = _CLOCK.fullmatch(fields.get(b"time", b""))
    return Report(
        frames=_count(fields.get(b"frame")),
        size=int(size[1]) * 1024 if size else None,
        media=int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) if clock else None,
        dropped=_count(fields.get(b"drop")),
        duplicated=_count(fields.get(b"dup")),
        ended=is_last or b"Lsize" in fields or b"Lq" in fields,
    )


def _count(value: bytes | None) -> int | None:
    return int(value) if value is not None and _COUNT.fullmatch(value) else None
