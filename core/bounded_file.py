"""Reads a file that somebody else may have written: no more of it than a limit, and without waiting for it.

Bytes. Privileges: reading the file.
"""

from __future__ import annotations

import os
import stat

# What a shell's `<(...)` and `-` stand for: a pipe that we were started with, and so has a writer.
_INHERITED = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


class UnfitFile(Exception):  # noqa: N818 - a verdict
    """A file that is not to be read; the text says why: `is larger than 10 bytes`."""

    def __init__(self, why: str, *, too_large: bool = False) -> None:
        super().__init__(why)
        self.too_large = too_large


def read_bounded_file(path: str | os.PathLike[str], limit: int, *, follow: bool = True) -> bytes:
    """Return the content of a regular file, or of a pipe that we were started with.

    `follow`: whether it may be a symbolic link. Raises: UnfitFile for anything else, or a file that is larger
    than the limit; OSError.
    """
    no_link = 0 if follow else os.O_NOFOLLOW
    # Opening a FIFO would wait for its writer, opening a device may do something.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | no_link)
    with os.fdopen(descriptor, "rb") as opened:
        mode = os.fstat(descriptor).st_mode
        is_ours = stat.S_ISFIFO(mode) and os.fspath(path).startswith(_INHERITED)
        if not stat.S_ISREG(mode) and not is_ours:
            raise UnfitFile("is not a regular file")
        os.set_blocking(descriptor, True)
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise UnfitFile(f"is larger than {limit:,} bytes", too_large=True)
    return content
