"""FFmpeg's progress, from bytes to reports: a state machine that does no I/O.

Two forms, either cut at any place:

- blocks, as `-progress` writes them: `key=value` lines up to `progress=continue` or `progress=end`;
- status lines, as FFmpeg writes them to stderr, ended by a carriage return, with log lines in between.

Rules:

1. After the first block only blocks are read: with `2>&1` both forms arrive, and the status line rounds the
   figures that the block gives exactly.
2. `N/A`, nan, negative times and anything else that is not a figure is None, never 0.
3. `out_time_ms` is in microseconds, despite its name.
4. `fps`, `bitrate` and `speed` are means since the start of the run, so they are ignored.

Source: print_report() in FFmpeg's fftools/ffmpeg.c, versions 5.1 to 9.0.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from powerbench_agent.core.lines import LineSplitter

MAX_LINE = 4096  # bytes; a longer line is not part of FFmpeg's progress and is skipped

_KEYS = frozenset(
    (b"frame", b"total_size", b"out_time_us", b"out_time_ms", b"dup_frames", b"drop_frames", b"progress")
)
_STATUS = re.compile(rb"(\w+)=\s*(\S+)")
_STATUS_START = re.compile(rb"\s*(?:frame|L?size)=")
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

    def feed(self, data: bytes) -> list[Report]:
        """Take the next bytes; return the reports that are complete with them."""
        found = (self._line(line) for line in self._lines.feed(data))
        return [report for report in found if report is not None]

    def close(self) -> list[Report]:
        """Take the end of the bytes; return the report in an unfinished last line, if there is one."""
        return self.feed(b"\n")

    def _line(self, line: bytes) -> Report | None:
        if _STATUS_START.match(line) and b" time=" in line:
            return None if self._blocks else _parse_status(line)
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


def _parse_status(line: bytes) -> Report:
    fields = dict(_STATUS.findall(line))
    size = _SIZE.fullmatch(fields.get(b"Lsize") or fields.get(b"size") or b"")
    clock = _CLOCK.fullmatch(fields.get(b"time", b""))
    return Report(
        frames=_count(fields.get(b"frame")),
        size=int(size[1]) * 1024 if size else None,
        media=int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) if clock else None,
        dropped=_count(fields.get(b"drop")),
        duplicated=_count(fields.get(b"dup")),
        ended=b"Lsize" in fields,
    )


def _count(value: bytes | None) -> int | None:
    return int(value) if value is not None and _COUNT.fullmatch(value) else None
