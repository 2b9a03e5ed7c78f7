"""The machine that a collector reads: where its files are, its clock, and how a file is read."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable  # noqa: TC003 - a plug-in may look at these hints
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Time as the agent sees it. One that also has `boottime()` tells how long the machine was suspended."""

    def monotonic(self) -> float:
        """Seconds that never step, and stand still while the machine is suspended."""

    def time(self) -> float:
        """Unix seconds."""


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    @staticmethod
    def boottime() -> float:
        """Monotonic seconds and those in which the machine was suspended. Source: clock_gettime(2)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


def asleep(clock: Clock) -> float:
    """Return how many seconds the machine has been suspended since boot, to about a microsecond.

    0 for a clock without `boottime`, as those of plug-ins' tests are.
    """
    boottime = getattr(clock, "boottime", None)
    return 0.0 if boottime is None else boottime() - clock.monotonic()


_CHUNK_BYTES = 65536
_MAX_BYTES = 16 * 2**20  # /proc/cpuinfo of 8,192 CPUs, and far more than any other file that is read here


def read_file(path: Path) -> bytes:
    """Return a whole file of sysfs or procfs.

    The kernel hands out its tables a page or so at a time: a short read is not the end of the file, an empty
    one is. Raises: OSError, EFBIG for a file too long to be one of these.
    """
    chunks: list[bytes] = []
    size = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            chunks.append(chunk)
            size += len(chunk)
            if size > _MAX_BYTES:
                raise OSError(errno.EFBIG, f"longer than {_MAX_BYTES} bytes", str(path))
    finally:
        os.close(descriptor)
    return b"".join(chunks)


@dataclass(frozen=True, slots=True)
class Host:
    """The machine as a collector sees it. Tests pass trees of files, a clock and errors of their own."""

    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")
    clock: Clock = field(default_factory=SystemClock)
    read: Callable[[Path], bytes] = read_file
