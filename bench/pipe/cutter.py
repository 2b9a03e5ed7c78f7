"""Bytes of FFmpeg progress, split anywhere, to whole reports. Does no I/O."""

from __future__ import annotations

import re

from powerbench_agent.core.lines import LineSplitter
from powerbench_agent.core.logged import MAX_LOGGED, unwrap
from powerbench_agent.core.progress import StatusEnds, is_status, is_summary

MAX_BLOCK = 16 * 1024  # bytes; FFmpeg writes no longer block

_PAIR = re.compile(rb"\s*\w+\s*=")


class Cutter:
    """Cuts FFmpeg's bytes, split anywhere, into whole reports.

    A report is a block of `-progress` or a status line of FFmpeg's stderr, with its line ends and without
    what a logger has put around it. A summary is kept if nothing else says that the run has ended. Everything
    else is dropped, and so are status lines once there are blocks: from then on the agent reads only blocks,
    and a new connection must not begin with rounded figures.
    """

    def __init__(self) -> None:
        self._lines = LineSplitter(MAX_LOGGED)
        self._block: list[bytes] = []
        self._size = 0  # of the block, including what was too long to keep
        self._has_blocks = False
        self._ends = StatusEnds()
        self._announcement = b""  # a summary, for the status line that comes next

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the reports that they complete."""
        reports: list[bytes] = []
        for logged in self._lines.feed(data):
            reports.extend(self._line(_ended(line)) for line in unwrap(logged))
        return [report for report in reports if report]

    def close(self) -> list[bytes]:
        """Take the end of the bytes; return the last block if it lacks only its last line end."""
        return self.feed(b"\n") if self._lines.tail.startswith(b"progress=") else []

    def _line(self, line: bytes) -> bytes:
        """Return the report that a line completes; empty if it completes none."""
        if is_status(line):
            return b"" if self._has_blocks else self._status(line)
        if is_summary(line):
            return b"" if self._has_blocks else self._summary(line)
        if not _PAIR.match(line):
            return b""
        key, _, value = line.partition(b"=")
        self._size += len(line)
        if self._size <= MAX_BLOCK:
            self._block.append(line)
        if key.strip() != b"progress":
            return b""
        block, size = b"".join(self._block), self._size
        self._block, self._size = [], 0
        if size > MAX_BLOCK or value.strip() not in (b"continue", b"end"):
            return b""
        self._has_blocks = True
        return block

    def _status(self, line: bytes) -> bytes:
        """Return a status line, with the summary that announced it."""
        self._ends.status(line)
        announcement, self._announcement = self._announcement, b""
        return announcement + line

    def _summary(self, line: bytes) -> bytes:
        """Return a summary if it ends the run; hold it if it announces the last status line."""
        if self._ends.summary(line):
            return line
        self._announcement = line if b"[out#" in line else b""
        return b""


def _ended(line: bytes) -> bytes:
    """Return a line with the end that it has at once: a line feed after a carriage return may come later."""
    if line.endswith(b"\r\n"):
        return line[:-1]
    return line if line.endswith((b"\r", b"\n")) else line + b"\r"
