"""The machine that a collector reads: where its files are, its clock, and how a file is read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable  # noqa: TC003 - a plug-in may look at these hints
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Time as the agent sees it; the `time` module is one."""

    def monotonic(self) -> float:
        """Seconds that never step."""

    def time(self) -> float:
        """Unix seconds."""


def read_file(path: Path) -> bytes:
    """Return the first 64 KiB of a file, enough for every sysfs and procfs attribute that is read here.

    Raises: OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 65536)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Host:
    """The machine as a collector sees it. Tests pass trees of files, a clock and errors of their own."""

    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")
    clock: Clock = time
    read: Callable[[Path], bytes] = read_file
