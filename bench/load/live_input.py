"""A live URL as the input of a stream: which ones, how FFmpeg reads each, and how it is shown. Pure.

Source: ffmpeg-protocols(1). The options are those that all releases from 4.1 to 9 have.
A URL may hold a stream key, a password or a passphrase: only the command line of an ffmpeg has all of it.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from powerbench_agent.bench.load.redact import redact_url
from powerbench_agent.bench.nearest import nearest
from powerbench_agent.core.terminal import printable

SILENT_SECONDS = 10  # that a source may send nothing; a run notices a stream that stands still sooner
_CONNECT_SECONDS = 5
_RECONNECT_SECONDS = 4  # the longest pause between two tries to reconnect over HTTP
_UDP_PACKETS = 65_536  # of 188 bytes, between the socket and the decoder
_QUEUED_PACKETS = 512  # between what is read and what is decoded
_SHORTEST_QUEUE = (6, 0)  # the first release of FFmpeg whose -shortest has a queue
_MAX_URL = 2048

_LIVE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_MICROSECONDS = 1_000_000


class _Protocol(NamedTuple):
    """How FFmpeg reads one scheme."""

    opens: str  # the protocols that it may open, whatever a playlist asks for
    options: tuple[tuple[str, str], ...] = ()
    has_query_options: bool = False  # whether `?name=value` of the URL is FFmpeg's, and not the server's
    needs_port: bool = False
    may_listen: bool = False  # whether the host may be left out: every address of this machine
    paces_itself: bool = True


_SILENCE = f"{SILENT_SECONDS * _MICROSECONDS}"
_RTMP = (("rw_timeout", _SILENCE),)
_HTTP = (
    ("rw_timeout", _SILENCE),
    ("reconnect", "1"),
    ("reconnect_streamed", "1"),
    ("reconnect_delay_max", f"{_RECONNECT_SECONDS}"),
)
_SRT = (("connect_timeout", f"{_CONNECT_SECONDS * 1000}"), ("timeout", _SILENCE))
_UDP = (("timeout", _SILENCE), ("fifo_size", f"{_UDP_PACKETS}"), ("overrun_nonfatal", "1"))
# A web server sends as fast as it is read, and HLS whole segments at once: both are read in real time.
_WEB = _Protocol("http,https,httpproxy,tls,tcp,crypto", _HTTP, paces_itself=False)
# RTSP's time limit has another meaning, and RTP's another name, before FFmpeg 5: neither is given.
_PROTOCOLS = {
    "rtmp": _Protocol("rtmp,tcp", _RTMP),
    "rtmps": _Protocol("rtmps,tls,tcp", _RTMP),
    "srt": _Protocol("srt", _SRT, has_query_options=True, needs_port=True, may_listen=True),
    "udp": _Protocol("udp", _UDP, has_query_options=True, needs_port=True, may_listen=True),
    "rtp": _Protocol("rtp,udp", has_query_options=True, needs_port=True, may_listen=True),
    "rtsp": _Protocol("rtp,udp,tcp", (("rtsp_transport", "tcp"),)),
    "tcp": _Protocol("tcp", (("timeout", _SILENCE),), has_query_options=True, needs_port=True),
    "http": _WEB,
    "https": _WEB,
}
SCHEMES = tuple(_PROTOCOLS)


def is_live(text: str) -> bool:
    """Return whether an input is a URL, and not the path of a clip."""
    return _LIVE.match(text) is not None


def parse_input(text: str) -> str:
    """Return an input as a scenario has it: a path as it stands, a URL checked. Raises: ValueError."""
    match = _LIVE.match(text)
    if match is None:
        return text
    scheme = match[1].lower()
    if scheme == "file":
        raise ValueError("file://: a clip is given as its path, without a scheme")
    if scheme not in _PROTOCOLS:
        known = ", ".join(SCHEMES)
        raise ValueError(f"{scheme[:20]}:// cannot be read; use one of {known}{nearest(scheme, SCHEMES)}")
    if len(text) > _MAX_URL or not text.isprintable() or " " in text:
        what = f"has at most {_MAX_URL} printable characters, and no space"
        raise ValueError(f"{printable(redact_url(text)[:60])}: a URL {what}; write a space as %20")
    url = scheme + text[len(scheme) :]
    _check_address(url, scheme)
    return url


def _check_address(url: str, scheme: str) -> None:
    """Check that there is a host, and a port. Raises: ValueError."""
    protocol = _PROTOCOLS[scheme]
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"{scheme}://: the host or the port of the URL cannot be understood") from None
    if protocol.needs_port and not port:
        raise ValueError(f"{redact_url(url)}: lacks a port; write it like {scheme}://HOST:PORT")
    if not parts.hostname and not (protocol.may_listen and port):
        raise ValueError(f"{redact_url(url)}: lacks a host; write it like {scheme}://HOST/…")


def shown_input(name: str) -> str:
    """Return any input for people and for files: a clip by its path."""
    return redact_url(name) if is_live(name) else name


def source_name(url: str) -> str:
    """Return what a source adds to the name of a scenario: its host, else its scheme and port."""
    parts = urlsplit(url)
    return parts.hostname or f"{parts.scheme}-{parts.port}"


def reading(name: str) -> list[str]:
    """Return FFmpeg's options that read an input, a clip or a URL, and `-i`.

    A clip is opened by a protocol that is named, so that no path is taken for a URL.
    """
    if not is_live(name):
        return ["-i", f"file:{name}"]
    protocol = _PROTOCOLS[urlsplit(name).scheme]
    own = {key for key, _ in parse_qsl(urlsplit(name).query)} if protocol.has_query_options else set()
    # With the 8 packets of older releases a source waits for the encoder, and what is not read is lost.
    options = ["-thread_queue_size", f"{_QUEUED_PACKETS}", "-protocol_whitelist", protocol.opens]
    for key, value in protocol.options:
        if key not in own:
            options += [f"-{key}", value]
    return [*options, "-i", name]


def paces_itself(name: str) -> bool:
    """Return whether a source sends in real time; what does not is read with -re."""
    return is_live(name) and _PROTOCOLS[urlsplit(name).scheme].paces_itself


def end_options(name: str, release: tuple[int, int]) -> list[str]:
    """Return the output options that end a stream with its live input: its tone would go on without it.

    `release`: of the ffmpeg, (0, 0) for a development build.
    """
    if not is_live(name):
        return []
    # Since 6.0 the streams wait for each other in a queue. With its usual 10 s, a source that sends in real
    # time and a tone that is read with -re block each other for good.
    has_queue = release == (0, 0) or release >= _SHORTEST_QUEUE
    return ["-shortest", *(["-shortest_buf_duration", "0.5"] if has_queue else [])]


def ended(name: str, seconds: float) -> str:
    """Return that a stream's live input has gone, after so many seconds of the stream; "" if it has none."""
    if not is_live(name):
        return ""
    return f"its input {redact_url(name)} ended, or cut the connection, after {seconds:.0f} s"


def unreachable(name: str, words: str) -> str:
    """Return that a stream's live input could not be opened; "" if ffmpeg's words are not about that."""
    if not is_live(name) or redact_url(name) not in words:
        return ""
    return f"its input {redact_url(name)} could not be read; look whether the source is still there ({words})"
