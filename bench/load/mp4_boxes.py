"""Whether an MP4 is encrypted: FFmpeg reads it without its key all the same, and decodes noise.

Source: ISO/IEC 14496-12, 4.2 (boxes) and 8.12 (sample entry `encv` of a protected video).
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MOST_BOXES = 1000  # of a file; a fragmented one has many after the first
_MOST_BYTES = 16 * 2**20  # of the movie box, which holds a description of every sample
_HEAD, _LONG = 8, 16  # bytes of a box's header, and of one whose size has 64 bits


def is_encrypted(path: Path) -> bool:
    """Return whether a file is an MP4 with an encrypted video; False for any other. Raises: OSError."""
    with path.open("rb") as file:
        return b"encv" in _movie_box(file)


def _movie_box(file: IO[bytes]) -> bytes:
    """Return the content of the box `moov`, or its beginning; empty if there is none."""
    at = 0
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(_LONG)
        size, kind = int.from_bytes(head[:4]), head[4:_HEAD]
        if size == 1:
            size = int.from_bytes(head[_HEAD:])
        if size < _HEAD or not kind.isalnum():
            return b""
        if kind == b"moov":
            file.seek(at + _HEAD)
            return file.read(min(size, _MOST_BYTES))
        at += size
    return b""
