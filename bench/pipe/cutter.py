"""Bytes of FFmpeg progress, split anywhere, to whole reports. Does no I/O."""

from __future__ import annotations

import re

from powerbench_agent.core.identity import IdentityReader, StreamIdentity, tell
from powerbench_agent.core.lines import LineSplitter
from powerbench_agent.core.logged import MAX_LOGGED, unwrap
from powerbench_agent.core.progress import StatusEnds, is_status, is_summary

MAX_BLOCK = 16 * 1024  # bytes; FFmpeg writes no longer block

_PAIR = re.compile(rb"\s*\w+\s*=")


class Cutter:
    """Cuts FFmpeg's bytes, split anywhere, into whole reports.

    A report is a block of `-progress` or a status line of FFmpeg's stderr, with its line ends and without
    what a logger has put around it. A summary is kept if nothing else says that the run has ended. What
    FFmpeg says of the stream comes before the next report, in lines of our own. Everything else is dropped,
    and so are status lines once there are blocks: from then on the agent reads only blocks, and a new
    connection must not begin with rounded figures.
    """

    def __init__(self) -> None:
        self._lines = LineSplitter(MAX_LOGGED)
        self._block: list[bytes] = []
        self._size = 0  # of the block, including what was too long to keep
        self._has_blocks = False
        self._ends = StatusEnds()
        self._announcement = b""  # a summary, for the status line that comes next
        self._stderr = IdentityReader()  # of the current run
        self._told: StreamIdentity | None = None  # with the latest report that said it
        self._is_new_run = False  # since an earlier run's last report

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
        self._stderr.line(line)
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
        return self._identified(block, ended=value.strip() == b"end")

    def _status(self, line: bytes) -> bytes:
        """Return a status line, with the summary that announced it."""
        ended = self._ends.status(line)
        announcement, self._announcement = self._announcement, b""
        return self._identified(announcement + line, ended=ended)

    def _summary(self, line: bytes) -> bytes:
        """Return a summary if it ends the run; hold it if it announces the last status line."""
        if self._ends.summary(line):
            return self._identified(line, ended=True)
        self._announcement = line if b"[out#" in line else b""
        return b""

    def _identified(self, report: bytes, *, ended: bool) -> bytes:
        """Return a report after what is known of the stream, if the agent does not know that already.

        With a run's last report the agent forgets it.
        """
        known = self._stderr.identity
        is_news = known != self._told or (known is not None and self._is_new_run)
        self._is_new_run = ended
        if ended:
            self._stderr = IdentityReader()
        if not is_news:
            return report
        self._told = known
        return tell(known) + report


def _ended(line: bytes) -> bytes:
    """Return a line with the end that it has at once: a line feed after a carriage return may come later."""
    if line.endswith(b"\r\n"):
        return line[:-1]
    return line if line.endswith((b"\r", b"\n")) else line + b"\r"
