"""The machine that a collector reads: where its files are, its clock, and how a file is read."""

from __future__ import annotations

import errno
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
    clock: Clock = time
    read: Callable[[Path], bytes] = read_file
