"""Names that others choose, as metric labels: printable, valid UTF-8, bounded, and still distinct."""

from __future__ import annotations

import zlib

_REPLACEMENT = "\ufffd"


def shorten(name: str, longest: int, identity: str = "") -> str:
    """Return a name of at most `longest` characters that can be shown in a label.

    A longer one is cut and ends in `~` and eight characters, so that two long names do not become one series:
    the beginning of `identity` if there is one, else a checksum. These nine characters are kept even where
    `longest` is less. What is not printable or not valid UTF-8 is replaced.
    """
    encoded = name.encode("utf-8", "replace")
    shown = encoded.decode()
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else _REPLACEMENT for char in shown)
    if len(shown) <= longest:
        return shown
    mark = identity[:8] or f"{zlib.crc32(encoded):08x}"
    kept = max(0, longest - len(mark) - 1)
    return f"{shown[:kept]}~{mark}"
