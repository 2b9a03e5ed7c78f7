"""A film that is streamed instead of the test picture: which one it is, its content says and not its name."""

from __future__ import annotations

import hashlib
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

WHOLE_BYTES = 2**31  # a longer film is hashed at both ends, half of this at each
_CHUNK_BYTES = 2**20


class Film(NamedTuple):
    """What tells two films apart."""

    size: int  # bytes
    sha256: str  # of the first and the last bytes where hashed_bytes is less than the size
    hashed_bytes: int


def fingerprint(path: Path, most: int = WHOLE_BYTES) -> Film:
    """Return which film a file is; of one longer than `most` bytes by its two ends. Raises: OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size <= most:
            return Film(size, _digest(file, size, digest), size)
        _digest(file, most // 2, digest)
        file.seek(-(most // 2), 2)
        return Film(size, _digest(file, most // 2, digest), most // 2 * 2)


def _digest(file: IO[bytes], count: int, digest: hashlib._Hash) -> str:
    """Take the next bytes; return the digest of all until then."""
    while count > 0 and (chunk := file.read(min(count, _CHUNK_BYTES))):
        digest.update(chunk)
        count -= len(chunk)
    return digest.hexdigest()
