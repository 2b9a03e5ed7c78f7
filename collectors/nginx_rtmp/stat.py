"""The page of nginx-rtmp's `rtmp_stat`: XML in, figures out. Pure, and bounded for any input.

Bytes and seconds out; the page gives a stream's time in milliseconds. The XML is never held as a tree, and a
document type is refused, and with it every entity.

What the module's source says about the page:

1. A live stream belongs to one application of one `server` block and has one publisher: a second one is
   refused. Its bytes are those of the stream's audio and video messages, not of a client. A name that appears
   twice means two streams, in two `server` blocks with the same application: bytes and clients are added.
2. `play` lists files on demand: names and clients, without bytes. Its clients are added.
3. HLS and DASH are fetched over HTTP and do not appear on the page.
4. `dropped` belongs to a client: the messages that did not fit into its queue. It disappears with the client.
5. Characters of a name that are not ASCII appear as blanks.
6. `uptime` counts from when the configuration was read and is the same in all workers; everything else is one
   worker's own.
7. nginx-http-flv-module writes the same page under another root, with its version under another name. It
   gives the frame rate as 30.000, and so do other forks.

A figure that is not a number costs that figure alone: it is not known, and `Page.odd` has what was said. A
client may send bytes that XML forbids as its version; they cost themselves alone. A page is recognised by its
root and a figure or an application in it; under another root, by the version of nginx and `uptime`.

Source: https://github.com/arut/nginx-rtmp-module, ngx_rtmp_stat_module.c and ngx_rtmp_live_module.c;
https://github.com/winshining/nginx-http-flv-module, ngx_rtmp_stat_module.c
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from powerbench_agent.core.labels import shorten

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

StreamKey = tuple[str, str]  # (application, stream), as the labels have them

MAX_DEPTH = 16  # the module's own is 8
MAX_TEXT = 4096  # characters of one figure or name; the module's names have 255
MAX_APPLICATIONS = 1000
_MAX_CODEC_WORD = 40
_MAX_DECIMALS = 3
_NUMBER = re.compile(r"(-?[0-9]{1,20})(?:\.([0-9]{1,20}))?")

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0

_ROOTS = ("rtmp", "http-flv")
_SERVER = "/rtmp"  # both roots, for what follows
_APPLICATION = "/rtmp/server/application"
_STREAMS = (f"{_APPLICATION}/live/stream", f"{_APPLICATION}/play/stream")
_CLIENT = f"{_STREAMS[0]}/client"  # those of files have no drops
_TAGS = {
    _SERVER: "nginx_version nginx_rtmp_version nginx_http_flv_version"
    " pid uptime naccepted bytes_in bytes_out",
    _APPLICATION: "name",
    _STREAMS[0]: "name time bytes_in bytes_out nclients publishing active",
    _STREAMS[1]: "name nclients active",
    _CLIENT: "id dropped",
    f"{_STREAMS[0]}/meta/video": "width height frame_rate codec profile level",
    f"{_STREAMS[0]}/meta/audio": "codec profile channels sample_rate",
}
_KEPT = frozenset(f"{parent}/{tag}" for parent, tags in _TAGS.items() for tag in tags.split())


class BadPage(Exception):  # noqa: N818 - a verdict
    """This is not a stat page; the text says why, as the second half of "the page of HOST ..."."""

    def __init__(self, why: str, remedy: str = "") -> None:
        """`remedy`: what to do; empty if the URL leads to the wrong page."""
        super().__init__(why)
        self.remedy = remedy


class Codec(NamedTuple):
    """How a stream is encoded; "" for what the publisher has not said."""

    video: str = ""
    video_profile: str = ""
    video_level: str = ""
    resolution: str = ""  # 1280x720
    fps: str = ""
    audio: str = ""
    audio_profile: str = ""
    channels: str = ""
    sample_rate: str = ""


UNTOLD = Codec()


@dataclass(slots=True)
class RtmpStream:
    """One name of one application; None for what the page does not say."""

    clients: int = 0  # publishers among them
    publishers: int = 0
    active: bool = False
    bytes_in: int | None = None
    bytes_out: int | None = None
    seconds: float | None = None  # since its first client came
    dropped: dict[int, int] | None = None  # by client number, only of clients that dropped something
    codec: Codec = UNTOLD

    def add(self, other: RtmpStream) -> None:
        """Take in another stream of the same name."""
        self.clients += other.clients
        self.publishers += other.publishers
        self.active |= other.active
        self.bytes_in = _sum(self.bytes_in, other.bytes_in)
        self.bytes_out = _sum(self.bytes_out, other.bytes_out)
        if self.seconds is None or (other.seconds is not None and other.seconds > self.seconds):
            self.seconds = other.seconds
        if other.dropped is not None:
            self.dropped = {**(self.dropped or {}), **other.dropped}
        if not any(self.codec):
            self.codec = other.codec


@dataclass(slots=True)
class Page:
    """What a page says; None or "" for what it does not say."""

    version: str
    rtmp_version: str
    pid: int | None  # of the worker that answered
    uptime: int | None  # seconds
    accepted: int | None
    bytes_in: int | None
    bytes_out: int | None
    streams: Mapping[StreamKey, RtmpStream]
    counts: Mapping[str, int]  # streams by application, as they stand on the page
    ignored: int  # streams beyond the limit
    odd: Mapping[str, str]  # what the page says, by field, where it should have been a number


class Limits(NamedTuple):
    """How much of a page is kept."""

    max_streams: int
    max_name_length: int


def parse_stat(body: bytes, limits: Limits, known: Collection[StreamKey] = ()) -> Page:
    """Return what a page says. Raises: BadPage.

    `known`: the streams of the last page, which keep their place before new ones.
    """
    try:
        return _parse(body, limits, known)
    except ParseError as error:
        cleaned = _clean(body)
        if cleaned != body:
            with suppress(ParseError):
                return _parse(cleaned, limits, known)
        if body.lstrip().startswith(b"{"):
            raise BadPage("is JSON", "set rtmp_stat_format xml in that location of nginx") from None
        # Without line and column, which change from one reading to the next: the message is logged once.
        reason = str(error).partition(": line")[0]
        raise BadPage(f"is not complete XML: {reason}") from None


def _clean(body: bytes) -> bytes:
    """Return a page without the characters that XML forbids, and nothing before its declaration."""
    return _FORBIDDEN.sub("\ufffd", body.decode("utf-8", "replace")).lstrip().encode()


def _parse(body: bytes, limits: Limits, known: Collection[StreamKey]) -> Page:
    """Return what a page says. Raises: BadPage; ParseError if it is not XML."""
    target = _Target(limits, known)
    parser = DefusedXMLParser(target=target, forbid_dtd=True)
    try:
        parser.feed(body)
        parser.close()
    except DefusedXmlException:
        raise BadPage("is HTML, or has a document type, so it is not a stat page") from None
    except ParseError:
        target.check_root()
        raise
    except (LookupError, ValueError):
        raise BadPage("is in an unknown encoding") from None
    return target.page()


class _Target:
    """Takes the elements as the XML parser meets them."""

    def __init__(self, limits: Limits, known: Collection[StreamKey]) -> None:
        self._limits = limits
        self._known = known
        self._room = limits.max_streams - len(known)  # for newcomers
        self._root = ""
        self._paths = [""]
        self._text: list[str] | None = None  # of the element, if it is one that is kept
        self._length = 0
        self._server: dict[str, str] = {}
        self._application = ""
        self._stream: dict[str, str] = {}
        self._client: dict[str, str] = {}
        self._dropped: dict[int, int] | None = None
        self._streams: dict[StreamKey, RtmpStream] = {}
        self._counts: dict[str, int] = {}
        self._ignored = 0
        self._odd: dict[str, str] = {}

    def start(self, tag: str, _attributes: Mapping[str, str]) -> None:
        tag = _local(tag)
        is_root = len(self._paths) == 1
        if is_root:
            self._root = tag
        path = _SERVER if is_root else f"{self._paths[-1]}/{tag}"
        if len(self._paths) > MAX_DEPTH:
            raise BadPage(f"is nested more than {MAX_DEPTH} deep, so it is not a stat page")
        self._paths.append(path)
        self._text = [] if path in _KEPT else None
        self._length = 0
        if path == _APPLICATION:
            self._application = ""
        elif path in _STREAMS:
            self._stream = {}
            self._dropped = None
        elif path == _CLIENT:
            self._client = {}

    def data(self, text: str) -> None:
        if self._text is None:
            return
        self._text.append(text)
        self._length += len(text)
        if self._length > MAX_TEXT:
            raise BadPage(f"has more than {MAX_TEXT} characters in one element, so it is not a stat page")

    def end(self, tag: str) -> None:
        path = self._paths.pop()
        if self._text is not None:
            self._keep(self._paths[-1], _local(tag), "".join(self._text))
            self._text = None
        elif path == _CLIENT:
            self._end_client()
        elif path in _STREAMS:
            self._end_stream()

    def close(self) -> None:
        """Nothing is left to do at the end of the page."""

    def _keep(self, parent: str, tag: str, text: str) -> None:
        if parent == _SERVER:
            self._server[tag] = text
        elif parent == _APPLICATION:
            self._application = shorten(text, self._limits.max_name_length)
            self._counts.setdefault(self._application, 0)
            if len(self._counts) > MAX_APPLICATIONS:
                raise BadPage(f"has more than {MAX_APPLICATIONS} applications, so it is not a stat page")
        elif parent == _CLIENT:
            self._client[tag] = text
        elif parent in _STREAMS:
            self._stream[tag] = text
        else:  # meta/video, meta/audio
            self._stream[f"{parent.rpartition('/')[2]} {tag}"] = text

    def _end_client(self) -> None:
        if self._dropped is None:
            self._dropped = {}
        number, dropped = self._whole(self._client, "id"), self._whole(self._client, "dropped")
        if number is not None and dropped:
            self._dropped[number] = dropped

    def _end_stream(self) -> None:
        texts = self._stream
        milliseconds = self._whole(texts, "time")
        stream = RtmpStream(
            clients=self._whole(texts, "nclients") or 0,
            publishers=int("publishing" in texts),
            active="active" in texts,
            bytes_in=self._whole(texts, "bytes_in"),
            bytes_out=self._whole(texts, "bytes_out"),
            seconds=None if milliseconds is None else milliseconds / 1000,
            dropped=self._dropped,
            codec=self._codec(texts),
        )
        self._counts[self._application] = self._counts.get(self._application, 0) + 1
        key = (self._application, shorten(texts.get("name", ""), self._limits.max_name_length))
        if key in self._streams:
            self._streams[key].add(stream)
        elif key in self._known:
            self._streams[key] = stream
        elif self._room > 0:
            self._room -= 1
            self._streams[key] = stream
        else:
            self._ignored += 1

    def check_root(self) -> None:
        """Check that this can be a stat page, by what it has said so far. Raises: BadPage."""
        is_likely = self._root in _ROOTS or {"nginx_version", "uptime"} <= self._server.keys()
        if self._root and not is_likely:
            raise BadPage(f"is <{self._root[:40]}>, not <rtmp>, so it is not a stat page")

    def page(self) -> Page:
        self.check_root()
        if not self._server and not self._counts:
            raise BadPage("has no <uptime>, so it is not a stat page")
        version = self._server.get("nginx_rtmp_version") or self._server.get("nginx_http_flv_version", "")
        return Page(
            version=shorten(self._server.get("nginx_version", ""), _MAX_CODEC_WORD),
            rtmp_version=shorten(version, _MAX_CODEC_WORD),
            pid=self._whole(self._server, "pid"),
            uptime=self._whole(self._server, "uptime"),
            accepted=self._whole(self._server, "naccepted"),
            bytes_in=self._whole(self._server, "bytes_in"),
            bytes_out=self._whole(self._server, "bytes_out"),
            streams=self._streams,
            counts=self._counts,
            ignored=self._ignored,
            odd=self._odd,
        )

    def _codec(self, texts: Mapping[str, str]) -> Codec:
        def word(name: str) -> str:
            return shorten(texts.get(name, "").strip(), _MAX_CODEC_WORD)

        def number(name: str) -> str:
            return str(self._whole(texts, name) or "")  # 0 is what the publisher has not said

        width, height = number("video width"), number("video height")
        return Codec(
            video=word("video codec"),
            video_profile=word("video profile"),
            video_level=word("video level"),
            resolution=f"{width}x{height}" if width and height else "",
            fps=self._rate(texts, "video frame_rate"),
            audio=word("audio codec"),
            audio_profile=word("audio profile"),
            channels=number("audio channels"),
            sample_rate=number("audio sample_rate"),
        )

    def _whole(self, texts: Mapping[str, str], name: str) -> int | None:
        """Return a count, without decimals; None if it is not said, or negative: a clock was set back."""
        found = self._number(texts, name)
        return None if found is None or found[1].startswith("-") else int(found[1])

    def _rate(self, texts: Mapping[str, str], name: str) -> str:
        """Return a rate as people write it, 30 or 29.97; "" for none."""
        found = self._number(texts, name)
        if found is None or found[1].startswith("-"):
            return ""
        decimals = (found[2] or "").rstrip("0")[:_MAX_DECIMALS]
        rate = f"{int(found[1])}.{decimals}".rstrip(".")
        return "" if rate == "0" else rate

    def _number(self, texts: Mapping[str, str], name: str) -> re.Match[str] | None:
        """Return a field's digits; None if it is missing, empty, or not a number, which is noted."""
        text = texts.get(name, "").strip()
        found = _NUMBER.fullmatch(text)
        if found is None and text:
            self._odd.setdefault(name, text[:40])
        return found


def _local(tag: str) -> str:
    """Return an element's name without its namespace."""
    return tag.rpartition("}")[2]


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one + (other or 0)
