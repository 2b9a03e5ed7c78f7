"""What is wrong with a clip's file that FFmpeg does not say: it reads on, and decodes noise, or a part.

An MP4 may be encrypted (FFmpeg asks for no key), and both MP4 and Matroska say how long they are.

Sources: ISO/IEC 14496-12, 4.2 (boxes) and 8.12 (sample entry `encv` of a protected video); RFC 8794, 4 to 6
(EBML elements); RFC 9559 (Matroska's Segment).
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MOST_BOXES = 1000  # of a file; a fragmented one has many after the first
_MOST_BYTES = 16 * 2**20  # of the movie box, which holds a description of every sample
_HEAD, _LONG = 8, 16  # bytes of a box's header, and of one whose size has 64 bits
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def fault_of(path: Path) -> str:
    """Return what is wrong with a clip's file, and what to do; "" if nothing is known. Raises: OSError."""
    with path.open("rb") as file:
        there = file.seek(0, 2)
        file.seek(0)
        head = file.read(_HEAD)
        movie = b""
        if head[:4] == _EBML:
            end = _end_of_segment(file, there)
        elif head[4:] in _FIRST_BOXES:
            end, movie = _walk_boxes(file, there)
        else:
            return ""
    if b"encv" in movie:
        return "is encrypted: give a clip that plays without a key"
    if end > there:
        return f"is cut off: it has {there:,} of its {end:,} bytes; take a whole copy"
    return ""


def _walk_boxes(file: IO[bytes], there: int) -> tuple[int, bytes]:
    """Return where an MP4's last box ends, and its movie box, or the beginning of that."""
    at, movie = 0, b""
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(_LONG)
        size, kind = int.from_bytes(head[:4]), head[4:_HEAD]
        if size == 1:
            size = int.from_bytes(head[_HEAD:])
        if size < _HEAD or not kind.isalnum():  # to the end of the file, or no box at all
            return at, movie
        if kind == b"moov":
            file.seek(at + _HEAD)
            movie = file.read(min(size, _MOST_BYTES))
        at += size
        if at >= there:
            break
    return at, movie


def _end_of_segment(file: IO[bytes], there: int) -> int:
    """Return where a Matroska's Segment ends; 0 if it does not say, as a live one."""
    file.seek(len(_EBML))
    header = _size_of_element(file)
    if header is None or header > there:  # a file system need not seek as far as a header says
        return 0
    file.seek(header, 1)
    if file.read(len(_SEGMENT)) != _SEGMENT:
        return 0
    size = _size_of_element(file)
    return file.tell() + size if size is not None else 0


def _size_of_element(file: IO[bytes]) -> int | None:
    """Return the size that is written here, leading zero bits telling its length; None if it is unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    bits = 7 * length
    value = int.from_bytes(first + file.read(length - 1)) & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
