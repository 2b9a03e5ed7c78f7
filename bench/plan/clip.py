"""A clip that is streamed instead of the test picture; its content identifies it, not its name."""

from __future__ import annotations

import hashlib
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHOLE_BYTES = 2**31  # a longer clip is hashed at both ends, half of this at each
_CHUNK_BYTES = 2**20


class Clip(NamedTuple):
    """What tells two clips apart."""

    size: int  # bytes
    sha256: str  # of the first and the last bytes if hashed_bytes is less than the size
    hashed_bytes: int


def fingerprint(path: Path, most: int = WHOLE_BYTES) -> Clip:
    """Return which clip a file is; one longer than `most` bytes is known by its two ends. Raises: OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size <= most:
            _feed(digest.update, file, size)
            return Clip(size, digest.hexdigest(), size)
        end = most // 2
        _feed(digest.update, file, end)
        file.seek(-end, 2)
        _feed(digest.update, file, end)
        return Clip(size, digest.hexdigest(), end * 2)


def _feed(take: Callable[[bytes], object], file: IO[bytes], count: int) -> None:
    """Pass the next `count` bytes on, in chunks."""
    while count > 0 and (chunk := file.read(min(count, _CHUNK_BYTES))):
        take(chunk)
        count -= len(chunk)
