"""Bytes of FFmpeg progress, split anywhere, to whole reports. Does no I/O."""

from __future__ import annotations

import re

from powerbench_agent.core.lines import LineSplitter
from powerbench_agent.core.progress import MAX_LINE, unwrapped

MAX_BLOCK = 16 * 1024  # bytes; FFmpeg writes no longer block

_PAIR = re.compile(rb"\s*\w+\s*=")
_STATUS = re.compile(rb"\s*(?:frame|L?size)=")


class Cutter:
    """Cuts a run's bytes, split anywhere, into whole reports.

    A report is a block of `-progress` or a status line of FFmpeg's stderr, unchanged, with its line ends.
    Everything between them is dropped, and so are status lines once there are blocks: from then on the agent
    reads only blocks, and a new connection must not begin with rounded figures.
    """

    def __init__(self) -> None:
        self._lines = LineSplitter(MAX_LINE)
        self._block: list[bytes] = []
        self._size = 0  # of the block, including what was too long to keep
        self._has_blocks = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the reports that they complete."""
        reports = []
        for line in self._lines.feed(data):
            reports += [self._line(text) for text in unwrapped(line)]
        return [report for report in reports if report]

    def close(self) -> list[bytes]:
        """Take the end of the bytes; return the last block if it lacks only its last line end."""
        return self.feed(b"\n") if self._lines.tail.startswith(b"progress=") else []

    def _line(self, line: bytes) -> bytes:
        """Return the report that a line completes; empty if it completes none."""
        # The line feed may come later, in a piece of its own: it is not waited for.
        line = line[:-1] if line.endswith(b"\r\n") else line
        if b" time=" in line and _STATUS.match(line):
            return b"" if self._has_blocks else line
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
