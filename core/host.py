"""The machine that a collector reads: its directories, its clock, and how a file is read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable  # noqa: TC003 - a plug-in may evaluate these hints
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Time as the agent sees it; the `time` module is such a clock."""

    def monotonic(self) -> float:
        """Return seconds that never step."""

    def time(self) -> float:
        """Return Unix seconds."""


def read_file(path: Path) -> bytes:
    """Return the first 64 KiB of a file, more than any sysfs or procfs file read here has.

    Raises: OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 65536)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Host:
    """Where a collector finds the machine. Tests pass directory trees, a clock and errors of their own."""

    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")
    clock: Clock = time
    read: Callable[[Path], bytes] = read_file
