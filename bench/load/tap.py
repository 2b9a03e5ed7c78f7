"""The end of an output in this process: what arrives over TCP is counted and, as far as asked, kept.

It listens on a free loopback port for one sender. What is kept lies in a file without a name: a run that is
killed leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import os
import sys
import tempfile
import termios
import time
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pathlib import Path

MOST_KEPT = 2**30  # bytes of one output
_PAUSE_SECONDS = 0.05  # between two looks at what has come: an encoder writes each packet by itself
_LITTLE = 32_768  # bytes; a sender of more is never made to wait
_POINT_SECONDS = 0.1  # between two counts that are remembered, until there are
_MOST_POINTS = 20_000  # of them: half an hour's; a week is then remembered in steps of a minute


class ByteCounter:
    """How many bytes there were at which moment."""

    def __init__(self) -> None:
        self.total = 0
        self.is_whole = True  # False: some bytes are known to be missing
        self.points: list[tuple[float, float]] = []  # (monotonic seconds, bytes)
        self._marked: set[float] = set()  # moments that are not forgotten

    def mark(self) -> None:
        """Remember the count of this moment: at the edges of a window."""
        now = time.monotonic()
        self._marked.add(now)
        self.points.append((now, float(self.total)))


class FileCounter(ByteCounter):
    """Counts the bytes of a file that another process writes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def mark(self) -> None:
        """Remember how large the file is now."""
        try:
            self.total = self._path.stat().st_size
        except FileNotFoundError:  # not begun
            self.total = 0
        super().mark()


class Tap(ByteCounter):
    """A server for one sender."""

    def __init__(self) -> None:
        super().__init__()
        self.problem = ""  # why not all of what was asked for is kept
        self.is_cut = False  # whether keeping ended before the output did
        self._file: IO[bytes] | None = None
        self._keeps = False
        self._kept = 0
        self._server: asyncio.Server | None = None
        self._sender: asyncio.Transport | None = None
        self._latest = -math.inf
        self._apart = _POINT_SECONDS
        self._is_new = True  # whether nothing has come from this sender yet
        self._gone = asyncio.Event()
        self._gone.set()

    async def start(self, keep_in: Path | None = None) -> None:
        """Listen; `keep_in`: the directory in which what arrives is kept. Raises: OSError."""
        if keep_in is not None:
            self._file = tempfile.TemporaryFile("w+b", buffering=0, dir=keep_in)  # noqa: SIM115 - closed below
            self._keeps = True
        self._server = await asyncio.get_running_loop().create_server(lambda: _Sender(self), "127.0.0.1", 0)

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None  # noqa: S101 - started
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def kept(self) -> str:
        """The path of what is kept, for a child of this process; "" if nothing is."""
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}" if self._file is not None else ""

    def stop_keeping(self) -> None:
        """Go on counting alone."""
        self.is_cut = self.is_cut or self._keeps
        self._keeps = False

    def accept(self, transport: asyncio.Transport) -> bool:
        """Take a sender; with its first bytes all begins again, as one that found no server comes twice."""
        if self._sender is not None:
            return False
        self._sender = transport
        self._gone.clear()
        self._is_new = True
        return True

    def _begin_again(self) -> None:
        self._is_new = False
        self.total = self._kept = 0
        self.points.clear()
        self._marked.clear()
        self._latest, self._apart = -math.inf, _POINT_SECONDS
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()
            self._keeps, self.is_cut, self.problem = True, False, ""

    def take(self, data: bytes) -> None:
        """Count the bytes, and keep them."""
        if self._is_new:
            self._begin_again()
        self.total += len(data)
        now = time.monotonic()
        if now - self._latest >= self._apart:
            self._latest = now
            self.points.append((now, float(self.total)))
            if len(self.points) >= _MOST_POINTS:
                self._thin_out()
        if self._keeps and self._file is not None:
            self._keep(data)
        if len(data) < _LITTLE and self._sender is not None:
            self._sender.pause_reading()
            asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._look_again, self._sender)

    def _look_again(self, sender: asyncio.Transport) -> None:
        if sender is self._sender and not sender.is_closing():
            sender.resume_reading()

    def mark(self) -> None:
        """Remember the count of this moment, with what has come and has not been taken yet."""
        waiting = _waiting_bytes(self._sender) if self._sender is not None else 0
        self.total += waiting
        super().mark()
        self.total -= waiting

    def _thin_out(self) -> None:
        """Forget every second point, but no mark, and remember half as many from here on."""
        span = self.points[-1][0] - self.points[0][0]
        self._apart = 2 * span / len(self.points)
        kept, latest = [], -math.inf
        for point in self.points:
            if point[0] - latest >= self._apart:
                kept.append(point)
                latest = point[0]
            elif point[0] in self._marked:
                kept.append(point)
        self.points[:] = kept

    def _keep(self, data: bytes) -> None:
        if self._kept + len(data) > MOST_KEPT:
            self.problem = f"more than {MOST_KEPT // 2**20} MiB were to be kept"
            self.stop_keeping()
            return
        assert self._file is not None  # noqa: S101 - it keeps
        left = memoryview(data)
        try:
            while left:  # a disk that fills up takes a part before it refuses
                written = self._file.write(left)
                self._kept += written
                left = left[written:]
        except OSError as error:  # a full disk costs the score, never the stream
            self.problem = f"what was encoded could not be kept: {error.strerror}"
            self.stop_keeping()

    @property
    def has_sender(self) -> bool:
        """Whether something is being sent."""
        return self._sender is not None

    def lose(self, problem: str) -> None:
        """Note that not all of it came."""
        self.is_whole = False
        self.problem = self.problem or problem

    def end(self) -> None:
        """Note that the sender has gone."""
        self._sender = None
        self._gone.set()
        self.mark()

    async def drained(self, seconds: float) -> bool:
        """Wait until the sender has gone; return whether it has, within so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        return self._gone.is_set()

    async def stop(self) -> None:
        """Stop listening; what is kept stays until `forget`."""
        if self._server is not None:
            self._server.close()
        if self._sender is not None:
            self._sender.close()

    def forget(self) -> None:
        """Drop what was kept."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _waiting_bytes(sender: asyncio.Transport) -> int:
    """Return how many bytes of a connection the kernel holds for us."""
    held = bytearray(4)
    connection = sender.get_extra_info("socket")
    if connection is None or sender.is_closing():
        return 0
    fcntl.ioctl(connection.fileno(), termios.FIONREAD, held)
    return int.from_bytes(held, sys.byteorder)


class _Sender(asyncio.Protocol):
    """One connection to a tap."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._is_taken = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._is_taken = self._tap.accept(cast("asyncio.Transport", transport))  # uvloop's is no subclass
        if not self._is_taken:
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._is_taken:
            self._tap.take(data)

    def connection_lost(self, _: Exception | None) -> None:
        if self._is_taken:
            self._tap.end()
