"""The newest whole reports, waiting for the agent, and the bell that wakes their sender."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from powerbench_agent.core.identity import told

if TYPE_CHECKING:
    from collections.abc import Callable


HELD = 64 * 1024  # bytes of reports kept for an agent that is slow or away


class Bell:
    """Wakes the poll() of one thread: from another one, or from a signal."""

    def __init__(self) -> None:
        self.fd, self.push_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ring(self) -> None:
        """Wake it; harmless if it is awake already."""
        with suppress(BlockingIOError):
            os.write(self.push_fd, b"\0")

    def hush(self) -> None:
        """Forget the rings so far."""
        with suppress(BlockingIOError):
            os.read(self.fd, 4096)


class Backlog:
    """The newest whole reports, for another thread to take: at most `limit` bytes, or one report."""

    def __init__(self, ring: Callable[[], None], limit: int = HELD) -> None:
        self.newest = b""  # kept when it is taken
        self.told = b""  # what the reports before those held have said of the stream
        self.ended_at: float | None = None  # monotonic seconds; the input's end
        self._ring = ring
        self._limit = limit
        self._reports: deque[bytes] = deque()
        self._size = 0
        self._lock = threading.Lock()

    def put(self, reports: list[bytes]) -> None:
        """Add whole reports, the newest last; the oldest are dropped if there is no room."""
        if not reports:
            return
        with self._lock:
            self.newest = reports[-1]
            self._reports.extend(reports)
            self._size += sum(map(len, reports))
            self._trim(self._limit)
        self._ring()

    def end(self) -> None:
        """Mark the end: nothing more will come."""
        self.ended_at = time.monotonic()
        self._ring()

    def take(self, size: int) -> bytes:
        """Remove the oldest reports, up to about this many bytes; empty if there are none."""
        taken = bytearray()
        with self._lock:
            while self._reports and (not taken or len(taken) + len(self._reports[0]) <= size):
                taken += self._pop()
        return bytes(taken)

    def keep_newest(self) -> None:
        """Drop all but the newest report."""
        with self._lock:
            self._trim(0)

    def _trim(self, limit: int) -> None:
        while self._size > limit and len(self._reports) > 1:
            self._pop()

    def _pop(self) -> bytes:
        oldest = self._reports.popleft()
        self._size -= len(oldest)
        self.told = told(oldest) or self.told
        return oldest
