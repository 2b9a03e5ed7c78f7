"""Writes the log from a thread of its own, so that nothing waits for whoever reads it."""

from __future__ import annotations

import io
import queue
import sys
import threading
from typing import TextIO, cast

import structlog

_MAX_LINES = 1000  # waiting to be written
_DRAIN_SECONDS = 0.5


class Writer:
    """A text stream whose writes never wait and never fail: a thread does the writing.

    The reader of a pipe may stall, as journald does on a slow disk, and the event loop must not wait for it.
    Lines that find no room, or that cannot be written, are counted, and the number is logged later.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """`stream`: None if the process was started without one."""
        self._stream = stream
        self._lines: queue.SimpleQueue[str | threading.Event | None] = queue.SimpleQueue()
        self._lost = 0
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> int:
        """Queue a line, or drop it if too many are waiting."""
        if self._lines.qsize() >= _MAX_LINES:
            self._lost += 1
            return len(text)
        self._lines.put(text)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()
        return len(text)

    def flush(self) -> None:
        """Do nothing: structlog calls this after every line, and must not wait for the stream."""

    def drain(self) -> None:
        """Wait until what is queued has been written, half a second at most."""
        if self._thread is not None:
            written = threading.Event()
            self._lines.put(written)
            written.wait(_DRAIN_SECONDS)

    def close(self) -> None:
        """End the thread once it has written what is queued."""
        self._lines.put(None)

    def _run(self) -> None:
        while (item := self._lines.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            elif not self._put(item):
                self._lost += 1
            elif self._lost and self._lines.qsize() < _MAX_LINES // 2:
                lost, self._lost = self._lost, 0
                structlog.get_logger().warning("log lines were lost: they could not be written", lines=lost)

    def _put(self, text: str) -> bool:
        """Write a line; return whether that worked: the disk may be full, or the reader gone."""
        try:
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()
        except (OSError, ValueError):
            return False
        return True


def standard_error() -> TextIO | None:
    """Return standard error without the lock of `sys.stderr`.

    If that were held by a write that has stalled, Python would abort when it flushes sys.stderr at its end.
    """
    try:
        raw = io.FileIO(sys.stderr.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):  # None, not a file, or closed
        return sys.stderr
    return io.TextIOWrapper(
        cast("io.BufferedWriter", raw), "utf-8", errors="backslashreplace", write_through=True
    )
