"""Lines out of bytes that arrive in pieces: no I/O, and bounded however long a line gets."""

from __future__ import annotations


class LineSplitter:
    r"""Joins pieces of bytes and cuts them into lines, which end with \n, \r or \r\n.

    A line longer than the bound is dropped, and no more of it is held than the bound and one piece. If \r and
    \n arrive in different pieces, the \n counts as an empty line of its own.
    """

    def __init__(self, longest: int) -> None:
        """`longest`: bytes of a line, without its end."""
        self._longest = longest
        self._skipping = False  # the rest of a line that was too long
        self.tail = b""  # of a line whose end has not arrived
        self.dropped = 0  # lines that were too long

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the lines that they complete, with their ends."""
        lines = (self.tail + data).splitlines(keepends=True)
        unfinished = bool(lines) and not lines[-1].endswith((b"\r", b"\n"))
        self.tail = lines.pop() if unfinished else b""
        if lines and self._skipping:
            del lines[0]
            self._skipping = False
        if len(self.tail) > self._longest:
            self.dropped += not self._skipping
            self._skipping = True
        if self._skipping:
            self.tail = b""
        kept = [line for line in lines if len(line.rstrip(b"\r\n")) <= self._longest]
        self.dropped += len(lines) - len(kept)
        return kept
