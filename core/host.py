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


MAX_FILE_BYTES = 4 << 20  # /proc/stat of 2,000 CPUs is 100 KiB; no list that is read here gets near it
_CHUNK_BYTES = 65536


def read_file(path: Path) -> bytes:
    """Return the whole of a file of sysfs or procfs. Raises: OSError, also for one beyond `MAX_FILE_BYTES`.

    The kernel may give a long list in pieces of a page, so only an empty piece is the end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        content = os.read(descriptor, _CHUNK_BYTES)
        while piece := os.read(descriptor, _CHUNK_BYTES):
            content += piece
            if len(content) > MAX_FILE_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return content
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Host:
    """The machine as a collector sees it. Tests pass trees of files, a clock and errors of their own."""

    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")
    clock: Clock = field(default_factory=SystemClock)
    read: Callable[[Path], bytes] = read_file
