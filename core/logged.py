r"""FFmpeg's own lines out of what loggers make of them: prefixes off, JSON undone. Does no I/O.

What may stand around a line of FFmpeg's progress:

1. FFmpeg's own prefixes: `[info]`, and the date and time, from `-loglevel level+datetime`.
2. The prefixes of `docker logs -t`, `docker compose logs`, `kubectl logs --timestamps`, journald and syslog.
3. The quotes of `msg="..."`.
4. A JSON object a line, with FFmpeg's text in one of its fields: Docker's json-file, `journalctl -o json`
   (where a text with \r in it is a list of bytes), and the usual ones of structured logs. Such a text may
   hold many status lines, since loggers cut at \n and status lines end in \r.
5. Colours.

A line is taken by the shape of what FFmpeg writes and not by a list of prefixes, which has no end.
"""

from __future__ import annotations

import re

MAX_LINE = 4096  # bytes; a longer line is not part of FFmpeg's progress and is skipped
MAX_LOGGED = 64 * 1024  # bytes of a line with what stands around it; Docker cuts its texts at 16 KiB

_FIELDS = ("log", "MESSAGE", "message", "msg", "line", "text")  # which hold the text, in JSON
_COLOUR = re.compile(rb"\x1b\[[0-9;]{0,20}m")
_BARE = re.compile(rb"\s*+\w++\s*+=\s*+[^\s=]*+\s*+\Z")  # a pair of a block, with nothing before it
# A status line, or the summary with which FFmpeg ends: what comes before is not FFmpeg's.
_STATUS = re.compile(
    rb"(?<!\w)(?:frame=\s*+\d++\s++fps=|L?size=\s*+\S{1,40}+\s++time=|\[out#|video:\S{1,40}+ audio:\S)"
)
_PAIR = re.compile(
    rb"(?<!\w)(frame|total_size|out_time_us|out_time_ms|dup_frames|drop_frames|progress)"
    rb"\s*+=\s*+([^\s\"']{1,40}+)[\"']?\s*+\Z"
)


def unwrap(line: bytes) -> list[bytes]:
    """Return FFmpeg's lines in a line of a log, each with its end; other lines stay as they are."""
    is_json = line.lstrip().startswith(b"{")
    inner = _text(line).splitlines(keepends=True) if is_json else [line]
    return [_bare(one) for one in inner if len(one.rstrip(b"\r\n")) <= MAX_LINE]


def _bare(line: bytes) -> bytes:
    """Return a line without what stands before FFmpeg's part of it."""
    if b"\x1b" in line:
        line = _COLOUR.sub(b"", line)
    if b"=" not in line and b"video:" not in line:
        return line  # most log lines
    if _BARE.match(line):
        return line
    if found := _STATUS.search(line):
        return line[found.start() :]
    if found := _PAIR.search(line):
        return found[1] + b"=" + found[2] + line[len(line.rstrip(b"\r\n")) :]
    return line


def _text(line: bytes) -> bytes:
    """Return the text in a JSON object; empty if there is none."""
    import json  # noqa: PLC0415 - most senders never need it, and there is a process beside every encoder

    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return b""
    for field in _FIELDS:
        text = found.get(field)
        if isinstance(text, str):
            return text.encode("utf-8", "surrogatepass")
        if isinstance(text, list):
            return _from_bytes(text)
    return b""


def _from_bytes(numbers: list[object]) -> bytes:
    """Return a text that journald gives as a list of its bytes; empty if it is none."""
    if all(isinstance(number, int) and 0 <= number < 256 for number in numbers):
        return bytes(numbers)  # type: ignore[arg-type]
    return b""
