"""Where streams go, as --sink names it: one of ours, a server's URL, or a file. Pure."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from powerbench_agent.bench.load.redact import redact_url
from powerbench_agent.bench.nearest import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

OURS = ("embedded", "null", "nginx")
SCHEMES = ("rtmp", "rtmps", "srt", "udp", "tcp", "file")
PLACE = "{}"  # in a file's name: that of the stream or rendition comes here
_MAX_LENGTH = 500
_MAX_SHOWN = 40
_LAST_PORT = 65_535
_ADDED = re.compile(r"[^\w.+-]+")  # what a file's name does not take of a scenario's
_FORMS = (
    "embedded, null, nginx, rtmp://HOST/APP/STREAM, srt://HOST:PORT, udp://HOST:PORT, tcp://HOST:PORT "
    "or file:FILE"
)


def kind_of(sink: str) -> str:
    """Return what a sink is, in one word of OURS and SCHEMES."""
    return sink.partition(":")[0]


def parse_sink(text: str) -> str:
    """Return a sink as it stands. Raises: ValueError for what is none."""
    kind, colon, rest = text.partition(":")
    if len(text) > _MAX_LENGTH or not text.isprintable():
        raise ValueError(f"{_shown(text)!r}: has more than {_MAX_LENGTH} characters, or unprintable ones")
    if not colon and kind in OURS:
        return text
    if kind not in SCHEMES or not colon:
        raise ValueError(f"{_shown(text)!r}: is not {_FORMS}{nearest(kind, (*OURS, *SCHEMES))}")
    if kind == "file":
        return f"file:{_file(rest)}"
    _check_url(text, kind)
    return text


def _check_url(text: str, kind: str) -> None:
    """Check that a sink is a URL as its kind needs it. Raises: ValueError."""
    if " " in text:
        raise ValueError(f"{_shown(text)!r}: has spaces")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"{_shown(text)!r}: is not a URL: {_FORMS}") from None
    if not text.startswith(f"{kind}://") or not parts.hostname:
        raise ValueError(f"{_shown(text)!r}: must be like {_form(kind)}")
    if kind.startswith("rtmp"):
        if not parts.path.strip("/"):
            raise ValueError(f"{_shown(text)!r}: must be like {_form(kind)}")
    elif not port:
        raise ValueError(f"{_shown(text)!r}: needs a port, like {kind}://{parts.hostname}:9000")


def _shown(text: str) -> str:
    """Return the beginning of what was written, without its secrets."""
    return redact_url(text)[:_MAX_SHOWN]


def _form(kind: str) -> str:
    return f"{kind}://HOST{'/APP/STREAM' if kind.startswith('rtmp') else ':PORT'}"


def _file(name: str) -> str:
    """Return the path of a file that is kept, from the root. Raises: ValueError."""
    if not PurePath(name).name or name.endswith("/"):
        raise ValueError(f"file:{name[:40]}: name a file, like file:out.mkv")
    return str(Path(name).absolute())


def with_place(sink: str, outputs: int) -> str:
    """Return a sink that has a place for each of so many outputs: a file's name gets their names."""
    if kind_of(sink) != "file" or outputs == 1 or PLACE in sink:
        return sink
    path = PurePath(sink.removeprefix("file:"))
    return f"file:{path.with_name(f'{path.stem}_{PLACE}{path.suffix}')}"


def check_ports(sink: str, outputs: int) -> None:
    """Check that there is a port for each of so many outputs. Raises: ValueError."""
    if kind_of(sink) not in ("srt", "udp", "tcp"):
        return
    first = urlsplit(sink).port or 0
    if first + outputs - 1 > _LAST_PORT:
        shown = redact_url(sink)
        raise ValueError(f"{shown}: {outputs} outputs take as many ports from {first} on; name a lower one")


def output_url(sink: str, number: int, name: str, several: bool) -> str:  # noqa: FBT001 - named at its call
    """Return where one output of a scenario goes.

    `number`: which one of the scenario, from 0; `name`: its own; `several`: whether the scenario has more.
    A server gets them as STREAM-1, STREAM-2; of plain ports they take the next ones.
    """
    kind = kind_of(sink)
    if kind == "file":
        return sink.replace(PLACE, _ADDED.sub("_", name))
    if not several or kind in OURS:
        return sink
    parts = urlsplit(sink)
    if kind.startswith("rtmp"):  # a key or token may follow the stream's name
        return parts._replace(path=f"{parts.path}-{number + 1}").geturl()
    port = (parts.port or 0) + number
    return parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl()


def files_of(sink: str, names: Iterable[str]) -> list[Path]:
    """Return the files that outputs of these names are written to; none of a sink that is no file."""
    if kind_of(sink) != "file":
        return []
    return [Path(output_url(sink, 0, name, several=False).removeprefix("file:")) for name in names]
