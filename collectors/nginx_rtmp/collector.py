"""Streams of an nginx with the rtmp module: bytes, clients, drops, codecs, from its stat page.

Reads the page of `rtmp_stat` over HTTP (stat.py says what is on it). Bytes and seconds out.
Privileges: access to that page.

Byte counters are the server's own and pass through: they restart at 0 when the stream does. The count of what
a client has dropped disappears with the client, so it is added up here at each reading; what a client drops
between the last reading and its leaving is not seen. Bit rates are left out: they are 0 in a stream's first
ten seconds, and `rate()` of the bytes says the same.

A page comes from one worker of nginx. If several workers answer in turn, the reading fails, as their counters
do not belong together.

Source: https://github.com/arut/nginx-rtmp-module/wiki/Directives#statistics
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from powerbench_agent.core.model import Absent, Metric, ReadFailed, Reading, Sample, Trouble
from powerbench_agent.core.options import CollectorOptions, Seconds
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import aiohttp

    from powerbench_agent.collectors.nginx_rtmp.stat import Page, RtmpStream, StreamKey
    from powerbench_agent.core.host import Host


_STREAM = ("application", "stream")
INFO = Metric(
    "nginx_rtmp_info",
    "gauge",
    "Always 1; the labels are the versions of nginx and its RTMP module.",
    ("version", "rtmp_version"),
)
UPTIME = Metric("nginx_rtmp_uptime_seconds", "gauge", "Seconds since nginx read its configuration.")
ACCEPTED = Metric("nginx_rtmp_connections_accepted_total", "counter", "RTMP connections accepted.")
SERVER_IN = Metric("nginx_rtmp_bytes_in_total", "counter", "Bytes received over RTMP by the whole server.")
SERVER_OUT = Metric("nginx_rtmp_bytes_out_total", "counter", "Bytes sent over RTMP by the whole server.")
STREAMS = Metric(
    "nginx_rtmp_streams",
    "gauge",
    "Streams that are published or waited for; a stream in two server blocks counts twice.",
    ("application",),
)
IGNORED = Metric(
    "nginx_rtmp_streams_ignored", "gauge", "Streams beyond max_streams, which have no series of their own."
)
BYTES_IN = Metric(
    "nginx_rtmp_stream_bytes_in_total",
    "counter",
    "Bytes of audio and video received from the publisher since the stream began.",
    _STREAM,
)
BYTES_OUT = Metric(
    "nginx_rtmp_stream_bytes_out_total",
    "counter",
    "Bytes of audio and video sent to all players, since the stream began.",
    _STREAM,
)
CLIENTS = Metric(
    "nginx_rtmp_stream_clients", "gauge", "Clients of the stream: publishers and players.", _STREAM
)
PUBLISHERS = Metric("nginx_rtmp_stream_publishers", "gauge", "Clients that publish the stream.", _STREAM)
PLAYERS = Metric(
    "nginx_rtmp_stream_players", "gauge", "Clients that play the stream, including relays.", _STREAM
)
PUBLISHING = Metric(
    "nginx_rtmp_stream_publishing", "gauge", "1 if a publisher is connected, else 0.", _STREAM
)
ACTIVE = Metric(
    "nginx_rtmp_stream_active", "gauge", "1 if the publisher has sent audio or video, else 0.", _STREAM
)
STREAM_UPTIME = Metric(
    "nginx_rtmp_stream_uptime_seconds", "gauge", "Seconds since the stream's first client connected.", _STREAM
)
DROPPED = Metric(
    "nginx_rtmp_stream_messages_dropped_total",
    "counter",
    "Audio and video messages dropped because a player was too slow, as far as the agent has seen.",
    _STREAM,
)
STREAM_INFO = Metric(
    "nginx_rtmp_stream_info",
    "gauge",
    "Always 1; the labels say what is published, according to the publisher.",
    (
        *_STREAM,
        *("video_codec", "video_profile", "video_level", "resolution", "fps"),
        *("audio_codec", "audio_profile", "audio_channels", "audio_sample_rate"),
    ),
)
METRICS = (
    INFO,
    UPTIME,
    ACCEPTED,
    SERVER_IN,
    SERVER_OUT,
    STREAMS,
    IGNORED,
    BYTES_IN,
    BYTES_OUT,
    CLIENTS,
    PUBLISHERS,
    PLAYERS,
    PUBLISHING,
    ACTIVE,
    STREAM_UPTIME,
    DROPPED,
    STREAM_INFO,
)

_MAX_DEADLINE_SECONDS = 5.0  # the scheduler's
_PATIENCE = 0.8  # of the scheduler's deadline, so that this collector's own message is given
_SAME_START_SECONDS = 3.0  # within which workers of one configuration agree on its start
_KEY = "[collectors.nginx_rtmp]"
_ODD = "that figure is left out and the rest is shown; report it with the version of the RTMP module"
_WRONG_PAGE = f"set {_KEY} url to the location of nginx that has rtmp_stat"


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.nginx_rtmp]`."""

    interval: Seconds = Seconds(5.0)
    url: str = ""  # of the stat page; the collector is absent without one
    max_streams: int = 1000
    max_name_length: int = 200
    max_body_bytes: int = 8_388_608  # of the page: about 30,000 clients

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        for key in ("max_streams", "max_name_length", "max_body_bytes"):
            if getattr(self, key) < 1:
                yield key, "must be at least 1"
        if self.url and not _is_page(self.url):
            yield "url", "must be a URL like http://127.0.0.1:8080/stat"


def _is_page(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = url.isprintable() and not set(url) & set(" #")
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


class _Drops(NamedTuple):
    """Messages of a stream that its clients have dropped."""

    total: int  # as far as was seen
    by_client: dict[int, int]  # at the last reading

    def advanced(self, by_client: dict[int, int]) -> _Drops:
        """Return the drops after another reading."""
        total = self.total
        for client, count in by_client.items():
            known = self.by_client.get(client, 0)
            is_another = count < known  # another client, whose number was used before
            total += count if is_another else count - known
        return _Drops(total, by_client)


class NginxRtmp:
    """One stat page."""

    def __init__(self, options: Options, host: Host, session: aiohttp.ClientSession) -> None:
        self._options = options
        self._clock = host.clock
        self._session = session
        self._where = urlsplit(options.url).hostname or ""  # for messages: the URL may hold a password
        self._patience = _PATIENCE * min(options.interval, _MAX_DEADLINE_SECONDS)
        self._worker = Worker("nginx_rtmp")
        self._tls: ssl.SSLContext | None = None
        self._one_worker = _OneWorker()
        self._shown: frozenset[StreamKey] = frozenset()
        self._drops: dict[StreamKey, _Drops] = {}

    async def read(self) -> Reading:
        """Return what the page says now. Raises: ReadFailed."""
        try:
            async with asyncio.timeout(self._patience):
                body = await self._fetch()
                # Off the loop: a thousand streams take a tenth of a second.
                return await self._worker.call(functools.partial(self._take, body))
        except TimeoutError:
            what = f"no stat page from {self._where} within {self._patience:g} s"
            raise ReadFailed(what, "check whether nginx still answers") from None

    async def aclose(self) -> None:
        """Close the connection and stop the thread."""
        self._worker.close()
        await self._session.close()

    async def _fetch(self) -> bytes:
        """Return the page's body. Raises: ReadFailed."""
        import aiohttp  # noqa: PLC0415 - it is loaded by now

        if self._tls is None and urlsplit(self._options.url).scheme == "https":
            self._tls = await self._worker.call(ssl.create_default_context)
        try:
            async with self._session.get(
                self._options.url, allow_redirects=False, ssl=self._tls or True
            ) as answer:
                if answer.status != 200:
                    answer.close()
                    raise self._refused(answer.status)
                return await self._body(answer)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise
            remedy = f"start nginx, or set {_KEY} url to where it is"
            raise ReadFailed(f"no stat page from {self._where}: {_why(error)}", remedy) from None

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > self._options.max_body_bytes:
                answer.close()
                what = f"{self._where} answers with more than {self._options.max_body_bytes} bytes"
                remedy = f"raise {_KEY} max_body_bytes, or leave out clients: rtmp_stat global live"
                raise ReadFailed(what, remedy)
        return bytes(body)

    def _refused(self, status: int) -> ReadFailed:
        remedy = _WRONG_PAGE
        if status in (401, 403):
            remedy = f"allow this machine in that location of nginx, or put USER:PASSWORD@ into {_KEY} url"
        return ReadFailed(f"{self._where} answers {status}", remedy)

    def _take(self, body: bytes) -> Reading:
        """Return what a body says. Raises: ReadFailed."""
        from powerbench_agent.collectors.nginx_rtmp import stat  # noqa: PLC0415 - it is loaded by now

        limits = stat.Limits(self._options.max_streams, self._options.max_name_length)
        try:
            page = stat.parse_stat(body, limits, self._shown)
        except stat.BadPage as verdict:
            raise ReadFailed(f"the page of {self._where} {verdict}", verdict.remedy or _WRONG_PAGE) from None
        self._one_worker.check(page, self._clock.monotonic())
        self._shown = frozenset(page.streams)
        troubles = [
            Trouble(f"field {name}", f"the page says {said!r}, which is not a number", _ODD)
            for name, said in page.odd.items()
        ]
        if page.ignored:
            what = f"{page.ignored} streams are not shown"
            troubles.append(Trouble("streams", what, f"raise {_KEY} max_streams", limit="max_streams"))
        return Reading(list(self._samples(page)), troubles=troubles)

    def _samples(self, page: Page) -> Iterator[Sample]:
        yield INFO.sample(1, page.version, page.rtmp_version)
        for metric, value in (
            (UPTIME, page.uptime),
            (ACCEPTED, page.accepted),
            (SERVER_IN, page.bytes_in),
            (SERVER_OUT, page.bytes_out),
        ):
            if value is not None:
                yield metric.sample(value)
        for application, count in page.counts.items():
            yield STREAMS.sample(count, application)
        yield IGNORED.sample(page.ignored)
        before, self._drops = self._drops, {}
        for key, stream in page.streams.items():
            yield from _describe(key, stream)
            if stream.dropped is not None:
                drops = before.get(key, _Drops(0, {})).advanced(stream.dropped)
                self._drops[key] = drops
                yield DROPPED.sample(drops.total, *key)


def _describe(key: StreamKey, stream: RtmpStream) -> Iterator[Sample]:
    yield CLIENTS.sample(stream.clients, *key)
    yield PUBLISHERS.sample(stream.publishers, *key)
    yield PLAYERS.sample(max(0, stream.clients - stream.publishers), *key)
    yield PUBLISHING.sample(int(stream.publishers > 0), *key)
    yield ACTIVE.sample(int(stream.active), *key)
    for metric, value in (
        (BYTES_IN, stream.bytes_in),
        (BYTES_OUT, stream.bytes_out),
        (STREAM_UPTIME, stream.seconds),
    ):
        if value is not None:
            yield metric.sample(value, *key)
    if any(stream.codec):
        yield STREAM_INFO.sample(1, *key, *stream.codec)


class _OneWorker:
    """Checks that all pages come from one worker of nginx.

    If a worker answers again after another one with the same configuration has, there are several. A worker
    that has died does not answer again, and after a reload the configuration is another one.
    """

    def __init__(self) -> None:
        self._began: float | None = None  # monotonic second at which the configuration was read
        self._pid: int | None = None
        self._before: set[int | None] = set()  # earlier workers of this configuration
        self._several = False

    def check(self, page: Page, now: float) -> None:
        """Take which worker a page came from. Raises: ReadFailed if there are several."""
        if page.uptime is None:
            return
        began = now - page.uptime
        if self._began is None or abs(began - self._began) > _SAME_START_SECONDS:
            self._pid = page.pid
            self._before.clear()
            self._several = False
        self._began = began
        self._several |= page.pid in self._before
        if page.pid != self._pid:
            self._before.add(self._pid)
            self._pid = page.pid
        if self._several:
            raise ReadFailed(
                "several workers of nginx answer in turn, each with only its own streams",
                "set worker_processes 1 in nginx.conf",
            )


def _why(error: Exception) -> str:
    """Return what went wrong: without the URL, and in the same words each time."""
    import aiohttp  # noqa: PLC0415 - it is loaded by now

    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer breaks off"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"the answer is not HTTP: {error.message}".partition("\n")[0].rstrip(" :")
    if isinstance(error, aiohttp.InvalidURL):
        return "the URL is not valid"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


async def open_collector(options: Options, host: Host) -> NginxRtmp:
    """Return the collector. Raises: Absent without a URL."""
    if not options.url:
        raise Absent(f"no url: set {_KEY} url, like http://127.0.0.1:8080/stat")
    import aiohttp  # noqa: PLC0415 - only needed with an nginx

    # Imported here and not in the thread: its XML parser swaps modules of the standard library when imported.
    from powerbench_agent.collectors.nginx_rtmp import stat  # noqa: F401, PLC0415 - likewise

    session = aiohttp.ClientSession(
        # A new connection for each reading: a kept one would hide that several workers answer.
        connector=aiohttp.TCPConnector(force_close=True, limit=1),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},  # the bound is on the bytes as they arrive
        auto_decompress=False,
    )
    return NginxRtmp(options, host, session)
