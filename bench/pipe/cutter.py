"""Bytes of FFmpeg progress, split anywhere, to whole reports. Does no I/O."""

from __future__ import annotations

import re

from powerbench_agent.core.progress import MAX_LINE

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
        self._tail = b""
        self._skipping = False  # within the rest of a line that was too long
        self._block: list[bytes] = []
        self._size = 0  # of the block, including what was too long to keep
        self._has_blocks = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the reports that they complete."""
        lines = (self._tail + data).splitlines(keepends=True)
        self._tail = lines.pop() if lines and lines[-1][-1:] not in b"\r\n" else b""
        if lines and self._skipping:
            del lines[0]
            self._skipping = False
        if len(self._tail) > MAX_LINE:
            self._skipping = True
        if self._skipping:
            self._tail = b""
        return [report for line in lines if (report := self._line(line))]

    def close(self) -> list[bytes]:
        """Take the end of the bytes; return the last block if it lacks only its last line end."""
        return self.feed(b"\n") if self._tail.startswith(b"progress=") else []

    def _line(self, line: bytes) -> bytes:
        """Return the report that a line completes; empty if it completes none."""
        # The line feed may come later, in a piece of its own: it is not waited for.
        line = line[:-1] if line.endswith(b"\r\n") else line
        if len(line) > MAX_LINE + 1:
            return b""
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
