r"""FFmpeg's own lines out of what loggers make of them: prefixes off, JSON undone. Does no I/O.

What may stand around a line of FFmpeg's progress:

1. FFmpeg's own prefixes: `[info]`, and the date and time, from `-loglevel level+datetime`.
2. The prefixes of `docker logs -t`, `docker compose logs`, `kubectl logs --timestamps`, journald and syslog.
3. The quotes of `msg="..."`, with more pairs behind it, and the brackets and commas of lists. In quotes a
   carriage return may be written as \r.
4. A JSON object a line, behind any of these prefixes, with FFmpeg's text in one of its fields at any depth:
   Docker's json-file, `journalctl -o json` (where a text with \r in it is a list of bytes), structured logs
   and what collectors of logs make of them. Such a text may hold many status lines, since loggers cut at \n
   and status lines end in \r.
5. Colours and the other escape sequences of terminals.

A line is taken by the shape of what FFmpeg writes and not by a list of prefixes, which has no end.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE = 4096  # bytes; a longer line is not part of FFmpeg's progress and is skipped
MAX_LOGGED = 64 * 1024  # bytes of a line with what stands around it; Docker cuts its texts at 16 KiB

_FIELDS = ("log", "MESSAGE", "message", "msg", "line", "text")  # which usually hold the text, in JSON
_MAX_DEPTH = 8  # of objects and lists in a line of JSON
_MAX_VALUES = 1000  # that are looked at
_ESCAPE = re.compile(rb"\x1b(?:\[[0-?]{0,40}[ -/]{0,4}[@-~]|[ -/]{1,4}[0-~])")
_OBJECT = re.compile(rb"\{\s*+\"")
_BARE = re.compile(rb"\s*+\w++\s*+=\s*+[^\s=]*+\s*+\Z")  # a pair of a block, with nothing before it
# A status line, or the summary with which FFmpeg ends: what comes before is not FFmpeg's.
_STATUS = re.compile(
    rb"(?<!\w)(?:frame=\s*+\d++\s++fps=|L?size=\s*+\S{1,40}+\s++time=|\[out#|video:\S{1,40}+ audio:\S)"
)
# What may be behind a pair: the end of a list, or of a quoted text and then more pairs.
_PAIR = re.compile(
    rb"(?<!\w)(frame|total_size|out_time_us|out_time_ms|dup_frames|drop_frames|progress)"
    rb"\s*+=\s*+([^\s\"'\],)}]{1,40}+)(?:[\"'\],)}]*+\s*+\Z|[\"']\s++[\w.-]++=)"
)


def unwrap(line: bytes) -> list[bytes]:
    """Return FFmpeg's lines in a line of a log, each with its end; other lines stay as they are."""
    opened = _OBJECT.search(line)
    text = None if opened is None else _json_text(line[opened.start() :])
    if text is None:
        text = line.replace(rb"\r", b"\r").replace(rb"\n", b"\n") if b"\\" in line else line
    inner = text.splitlines(keepends=True)
    return [_bare(one) for one in inner if len(one.rstrip(b"\r\n")) <= MAX_LINE]


def _bare(line: bytes) -> bytes:
    """Return a line without what stands before FFmpeg's part of it."""
    if b"\x1b" in line:
        line = _ESCAPE.sub(b"", line)
    if b"=" not in line and b"video:" not in line:
        return line  # most log lines
    if _BARE.match(line):
        return line
    if found := _STATUS.search(line):
        return line[found.start() :]
    if found := _PAIR.search(line):
        return found[1] + b"=" + found[2] + line[len(line.rstrip(b"\r\n")) :]
    return line


def _json_text(content: bytes) -> bytes | None:
    """Return FFmpeg's text in a JSON object, empty if there is none in it; None if it is not an object.

    Where no text is of its progress, it is the one that such objects usually have it in: FFmpeg may say what
    the stream is.
    """
    import json  # noqa: PLC0415 - most senders never need it, and there is a process beside every encoder

    try:
        found, _ = json.JSONDecoder().raw_decode(content.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    for count, value in enumerate(_values(found, _MAX_DEPTH)):
        if count == _MAX_VALUES:
            break
        text = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else _from_bytes(value)
        if any(map(_is_ffmpegs, text.splitlines())):
            return text
    usual = (found.get(field) for field in _FIELDS) if isinstance(found, dict) else ()
    said = next((text for text in usual if isinstance(text, str)), "")
    return said.encode("utf-8", "surrogatepass")


def _values(found: object, depth: int) -> Iterator[str | list[object]]:
    """Yield the texts in a JSON value, and lists that may be one: those that usually are FFmpeg's first."""
    if isinstance(found, dict):
        usual = [found[field] for field in _FIELDS if field in found]
        inner = [*usual, *(value for field, value in found.items() if field not in _FIELDS)]
    elif isinstance(found, list):
        if found and isinstance(found[0], int):
            yield found
            return
        inner = found
    else:
        if isinstance(found, str):
            yield found
        return
    if depth:
        for value in inner:
            yield from _values(value, depth - 1)


def _is_ffmpegs(line: bytes) -> bool:
    """Return whether a line of a text belongs to FFmpeg's progress."""
    return _STATUS.search(line) is not None or _PAIR.search(line) is not None


def _from_bytes(numbers: list[object]) -> bytes:
    """Return a text that journald gives as a list of its bytes; empty if it is none."""
    if all(isinstance(number, int) and 0 <= number < 256 for number in numbers):
        return bytes(numbers)  # type: ignore[arg-type]
    return b""
