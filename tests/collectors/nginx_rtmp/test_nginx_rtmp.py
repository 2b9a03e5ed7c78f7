"""nginx-rtmp's streams out of its stat page: whatever the server answers."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from base64 import b64encode
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from places import CAPTURES
from trees import value, values

from powerbench_agent.collectors.nginx_rtmp import collector as nginx_rtmp
from powerbench_agent.collectors.nginx_rtmp.collector import (
    BYTES_IN,
    CLIENTS,
    DROPPED,
    IGNORED,
    METRICS,
    PLAYERS,
    PUBLISHING,
    STREAM_INFO,
    STREAMS,
    UPTIME,
)
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Absent, ReadFailed, Reading
from powerbench_agent.core.options import Seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import FakeClock

LIVE = (CAPTURES / "nginx_stat_live.xml").read_bytes()
CAM1, CAM2 = ("live", "cam1"), ("live", "cam2")

_STREAM = ("application", "stream")
FIXED = {
    "nginx_rtmp_info": ("gauge", ("version", "rtmp_version")),
    "nginx_rtmp_uptime_seconds": ("gauge", ()),
    "nginx_rtmp_connections_accepted_total": ("counter", ()),
    "nginx_rtmp_bytes_in_total": ("counter", ()),
    "nginx_rtmp_bytes_out_total": ("counter", ()),
    "nginx_rtmp_streams": ("gauge", ("application",)),
    "nginx_rtmp_streams_ignored": ("gauge", ()),
    "nginx_rtmp_stream_bytes_in_total": ("counter", _STREAM),
    "nginx_rtmp_stream_bytes_out_total": ("counter", _STREAM),
    "nginx_rtmp_stream_clients": ("gauge", _STREAM),
    "nginx_rtmp_stream_publishers": ("gauge", _STREAM),
    "nginx_rtmp_stream_players": ("gauge", _STREAM),
    "nginx_rtmp_stream_publishing": ("gauge", _STREAM),
    "nginx_rtmp_stream_active": ("gauge", _STREAM),
    "nginx_rtmp_stream_uptime_seconds": ("gauge", _STREAM),
    "nginx_rtmp_stream_messages_dropped_total": ("counter", _STREAM),
    "nginx_rtmp_stream_info": (
        "gauge",
        (
            *_STREAM,
            *("video_codec", "video_profile", "video_level", "resolution", "fps"),
            *("audio_codec", "audio_profile", "audio_channels", "audio_sample_rate"),
        ),
    ),
}


class Server:
    """A small nginx: it has one page, and answers as it is told to."""

    def __init__(self) -> None:
        self.body = LIVE
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked: list[web.BaseRequest] = []
        self.hangs: asyncio.Event | None = None
        self.endless = False
        self.sent = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        if self.hangs is not None:
            await self.hangs.wait()
        if not self.endless:
            return web.Response(status=self.status, body=self.body, headers=self.headers)
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b" " * 65536)
            self.sent += 65536


class Watched(NamedTuple):
    server: Server
    clock: FakeClock
    start: Callable[..., nginx_rtmp.NginxRtmp]

    async def fails(self, collector: nginx_rtmp.NginxRtmp) -> tuple[str, str]:
        """Return (what, remedy) of a reading that fails."""
        with pytest.raises(ReadFailed) as caught:
            await collector.read()
        assert str(caught.value).isprintable()
        return str(caught.value), caught.value.remedy


@pytest.fixture
async def watched(clock: FakeClock) -> AsyncIterator[Watched]:
    server = Server()
    application = web.Application()
    application.router.add_get("/stat", server.handle)
    opened = []

    async def start(url: str = "", **options: object) -> nginx_rtmp.NginxRtmp:
        known = nginx_rtmp.Options(url=url or server.url, **options)  # type: ignore[arg-type]
        assert not list(known.problems())
        opened.append(await nginx_rtmp.open_collector(known, Host(clock=clock)))
        return opened[-1]

    async with TestServer(application) as running:
        server.url = f"http://127.0.0.1:{running.port}/stat"
        yield Watched(server, clock, start)
        for collector in opened:
            await collector.aclose()


def with_drops(first: dict[int, int], *, uptime: int = 15, pid: int = 22285) -> bytes:
    """Return the captured page with other clients of cam1: their drops by number."""
    clients = "".join(f"<client><id>{n}</id><dropped>{d}</dropped></client>" for n, d in first.items())
    head, _, rest = LIVE.partition(b"<client>")
    page = head + clients.encode() + rest.partition(b"</client>")[2]
    page = page.replace(b"<uptime>15<", f"<uptime>{uptime}<".encode())
    return page.replace(b"<pid>22285<", f"<pid>{pid}<".encode())


# -- what is shown -----------------------------------------------------------------------------------


def test_names_kinds_and_labels_are_fixed() -> None:
    """Names, kinds and labels are the ones that dashboards and alert rules were written for."""
    assert {metric.name: (metric.kind, metric.labels) for metric in METRICS} == FIXED


async def test_a_page_is_a_reading(watched: Watched) -> None:
    """A live page shows every declared metric, each series once, with the page's own figures."""
    reading = await (await watched.start()).read()
    assert {sample.metric for sample in reading.samples} == set(METRICS)
    assert set(Counter((s.metric.name, s.labels) for s in reading.samples).values()) == {1}
    assert values(reading, BYTES_IN) == {CAM1: 3293831, CAM2: 3295616}
    assert values(reading, STREAMS) == {("live",): 2}
    assert value(reading, UPTIME) == 15
    codec = ("H264", "High", "3.1", "1280x720", "30", "AAC", "LC", "1", "48000")
    assert values(reading, STREAM_INFO) == {(*CAM1, *codec): 1, (*CAM2, *codec): 1}


async def test_without_a_url_there_is_no_such_source() -> None:
    """Without a URL the collector is absent, which is not an error, and says what to set."""
    with pytest.raises(Absent, match=r"no url: set \[collectors.nginx_rtmp\] url"):
        await nginx_rtmp.open_collector(nginx_rtmp.Options(), Host())


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8080/stat", "ftp://a/stat", "http:///stat", "http://a:0/stat", "http://a:x/stat"),
        *("http://a/st at", "http://a/stat\n", "http://a/#stat", "http://[a/stat", "unix:///run/nginx.sock"),
    ],
)
def test_a_bad_url_is_a_bad_configuration(url: str) -> None:
    """A URL that cannot be used is reported by --check, not at run time."""
    ((key, what),) = nginx_rtmp.Options(url=url).problems()
    assert (key, "http://127.0.0.1:8080/stat" in what) == ("url", True)


@pytest.mark.parametrize("key", ["max_streams", "max_name_length", "max_body_bytes"])
def test_a_cap_of_nothing_is_a_bad_configuration(key: str) -> None:
    """Each limit must be at least 1."""
    assert list(nginx_rtmp.Options(**{key: 0}).problems()) == [(key, "must be at least 1")]  # type: ignore[arg-type]


async def test_counters_are_the_servers_own(watched: Watched) -> None:
    """The counters of a stream that restarts begin at 0; a stream that has gone leaves no series."""
    collector = await watched.start()
    await collector.read()
    watched.server.body = LIVE.replace(b"3293831", b"7").replace(b"cam2", b"cam3")
    reading = await collector.read()
    assert values(reading, BYTES_IN) == {CAM1: 7, ("live", "cam3"): 3295616}


async def test_drops_never_decrease(watched: Watched) -> None:
    """A client that leaves takes no drops along; what others drop, and a number used again, is added."""
    collector = await watched.start()
    told = []
    for drops in ({1: 5}, {1: 5, 2: 3}, {1: 6}, {}, {3: 2}, {3: 1}):
        watched.server.body = with_drops({**drops, 99: 0})
        told.append(value(await collector.read(), DROPPED, *CAM1))
    assert told == [5, 8, 9, 9, 11, 12]


async def test_drops_go_on_after_a_gap(watched: Watched) -> None:
    """After a failed reading nothing is forgotten."""
    collector = await watched.start()
    watched.server.body = with_drops({1: 5})
    await collector.read()
    watched.server.status = 500
    await watched.fails(collector)
    watched.server.status = 200
    watched.server.body = with_drops({1: 7})
    assert value(await collector.read(), DROPPED, *CAM1) == 7


async def test_a_page_without_clients_shows_no_drops(watched: Watched) -> None:
    """Under `rtmp_stat global live` drops are not known: no series; players are known all the same."""
    watched.server.body = with_drops({}).replace(b"<nclients>1<", b"<nclients>4<", 1)
    reading = await (await watched.start()).read()
    assert CAM1 not in values(reading, DROPPED)
    assert values(reading, CLIENTS)[CAM1] == 4
    assert values(reading, PLAYERS)[CAM1] == 3
    assert values(reading, PUBLISHING)[CAM1] == 1


async def test_past_the_cap_it_is_said(watched: Watched) -> None:
    """The stream that was there first stays, the newcomer is counted, and it is said what to raise."""
    collector = await watched.start(max_streams=1)
    readings = [await collector.read() for _ in range(3)]
    assert [list(values(reading, CLIENTS)) for reading in readings] == [[CAM1]] * 3
    assert value(readings[-1], IGNORED) == 1
    assert value(readings[-1], STREAMS, "live") == 2
    for reading in readings:
        said = [(trouble.limit, trouble.remedy) for trouble in reading.troubles]
        assert said == [("max_streams", "raise [collectors.nginx_rtmp] max_streams")]


# -- several workers ---------------------------------------------------------------------------------


async def follow(watched: Watched, pages: list[tuple[int, int]]) -> list[bool]:
    """Return which readings succeed: the worker of each by its pid, and its uptime; 5 s apart."""
    collector = await watched.start()
    good = []
    for pid, uptime in pages:
        watched.server.body = with_drops({}, uptime=uptime, pid=pid)
        try:
            await collector.read()
        except ReadFailed as failed:
            assert "worker_processes 1" in failed.remedy  # noqa: PT017 - a reading that succeeds is as right
            good.append(False)
        else:
            good.append(True)
        watched.clock.advance(5)
    return good


async def test_workers_that_answer_in_turn_are_refused(watched: Watched) -> None:
    """Once a worker is back after another of its configuration no page is taken, until nginx is reloaded."""
    pages = [(1, 15), (2, 20), (1, 25), (2, 30), (2, 35), (3, 2), (3, 7)]
    assert await follow(watched, pages) == [True, True, False, False, False, True, True]


async def test_a_worker_that_follows_another_is_taken(watched: Watched) -> None:
    """A worker that replaces a dead one, reloads, and a pid used again later do not fail a reading."""
    pages = [(7, 15), (8, 20), (8, 25), (9, 1), (9, 6), (7, 0), (7, 5), (7, 10)]
    assert await follow(watched, pages) == [True] * 8


# -- what can go wrong -------------------------------------------------------------------------------

BOMB = b'<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><rtmp><uptime>&b;</uptime></rtmp>'
PAGES = {
    "redirect": (302, b"", "answers 302", "rtmp_stat"),
    "password": (401, b"", "answers 401", "USER:PASSWORD@"),
    "forbidden": (403, b"<html>", "answers 403", "allow this machine"),
    "not found": (404, b"<html>", "answers 404", "rtmp_stat"),
    "broken": (502, LIVE, "answers 502", "rtmp_stat"),
    "html": (200, b"<!DOCTYPE html><html></html>", "is HTML", "rtmp_stat"),
    "status": (200, b"Active connections: 1 \n", "is not complete XML", "rtmp_stat"),
    "truncated": (200, LIVE[:1000], "is not complete XML", "rtmp_stat"),
    "empty": (200, b"", "is not complete XML", "rtmp_stat"),
    "encoding": (200, LIVE.replace(b"utf-8", b"klingon"), "is in an unknown encoding", "rtmp_stat"),
    "bomb": (200, BOMB, "has a document type", "rtmp_stat"),
    "compressed": (200, gzip.compress(LIVE), "is not complete XML", "rtmp_stat"),
    "JSON": (200, b'{"http-flv":{}}', "is JSON", "rtmp_stat_format xml"),
    "large": (200, LIVE + b" " * 8_388_608, "more than 8388608 bytes", "max_body_bytes"),
}


@pytest.mark.parametrize(("status", "body", "what", "remedy"), PAGES.values(), ids=PAGES)
async def test_an_answer_that_is_no_stat_page(
    watched: Watched, status: int, body: bytes, what: str, remedy: str
) -> None:
    """It fails in one line with what to do, the same each time, and a page that is good is read again."""
    collector = await watched.start()
    watched.server.status, watched.server.body = status, body
    watched.server.headers = {"Location": "/stat"} if status == 302 else {}
    said = [await watched.fails(collector) for _ in range(2)]
    assert said[0] == said[1]
    assert what in said[0][0]
    assert "127.0.0.1" in said[0][0]
    assert remedy in said[0][1]
    assert len(watched.server.asked) == 2
    watched.server.status, watched.server.body = 200, LIVE
    assert values(await collector.read(), CLIENTS) == {CAM1: 1, CAM2: 1}


async def test_an_odd_label_costs_itself_alone(watched: Watched) -> None:
    """It is a trouble with what was said; every other figure of the page is there as before."""
    collector = await watched.start()
    good = await collector.read()
    watched.server.body = LIVE.replace(b"<frame_rate>30</frame_rate>", b"<frame_rate>30/1</frame_rate>", 1)
    reading = await collector.read()
    (trouble,) = reading.troubles
    assert trouble.part == "field video frame_rate"
    assert "'30/1'" in trouble.error
    others = [sample for sample in reading.samples if sample.metric is not STREAM_INFO]
    assert others == [sample for sample in good.samples if sample.metric is not STREAM_INFO]
    assert {labels[:2] for labels in values(reading, STREAM_INFO)} == {CAM1, CAM2}
    assert good.troubles == []


async def test_an_answer_without_end_is_cut(watched: Watched) -> None:
    """No more is read of it than the cap and what was on the way, and the connection is closed."""
    collector = await watched.start(max_body_bytes=1_000_000)
    watched.server.endless = True
    what, remedy = await watched.fails(collector)
    assert "more than 1000000 bytes" in what
    assert "max_body_bytes" in remedy
    assert watched.server.sent < 20_000_000


async def test_a_server_that_hangs(watched: Watched) -> None:
    """A reading ends before the scheduler's deadline, with a remedy of its own; the next one asks again."""
    collector = await watched.start(interval=Seconds(0.2))
    watched.server.hangs = asyncio.Event()
    what, remedy = await watched.fails(collector)
    assert "no stat page from 127.0.0.1 within 0.16 s" in what
    assert "nginx" in remedy
    watched.server.hangs.set()
    assert isinstance(await collector.read(), Reading)


async def test_nothing_listens(watched: Watched, free_port: int) -> None:
    """If nothing is listening, the message says so, without a password or token from the URL."""
    collector = await watched.start(f"http://user:secret@127.0.0.1:{free_port}/stat?token=secret")
    what, remedy = await watched.fails(collector)
    assert what == "no stat page from 127.0.0.1: connection refused"
    assert "start nginx" in remedy
    assert "secret" not in what + remedy


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "said",
    [
        *(b"", b"\x03" + bytes(1536), b"SSH-2.0-OpenSSH_9\r\n", HEAD),
        *(HEAD + b"Content-Length: 9000\r\n\r\n<rtmp>", HEAD + b"A: " + b"a" * 9000),
        *(HEAD + b"Transfer-Encoding: chunked\r\n\r\nx\r\n", HEAD + b"A: a\r\n" * 200),
    ],
    ids=range(8),
)
async def test_a_server_that_does_not_speak_http(watched: Watched, said: bytes) -> None:
    """An RTMP port, another protocol, half an answer and headers without end fail like no answer."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    what, remedy = await watched.fails(await watched.start(f"http://u:secret@127.0.0.1:{port}/stat?t=secret"))
    assert what.startswith("no stat page from 127.0.0.1: ")
    assert "url" in remedy
    assert "secret" not in what + remedy
    other.close()
    await other.wait_closed()


async def test_what_is_asked(watched: Watched) -> None:
    """The page is asked for as it is, with the URL's password and query; nothing of an answer is kept."""
    url = watched.server.url.replace("//", "//user:p%40ss@") + "?a=1"
    watched.server.headers = {"Set-Cookie": "a=1"}
    collector = await watched.start(url)
    for _ in range(2):
        await collector.read()
    assert len(watched.server.asked) == 2
    for asked in watched.server.asked:
        assert (asked.method, asked.path_qs) == ("GET", "/stat?a=1")
        assert asked.headers["Accept-Encoding"] == "identity"
        assert asked.headers["Authorization"] == f"Basic {b64encode(b'user:p@ss').decode()}"
        assert "Cookie" not in asked.headers


@pytest.mark.parametrize("trusted", [True, False])
async def test_https(
    watched: Watched, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch, *, trusted: bool
) -> None:
    """A certificate that the system trusts is taken, another one is refused and said."""
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    application = web.Application()
    application.router.add_get("/stat", watched.server.handle)
    server = TestServer(application)
    await server.start_server(ssl=context)
    collector = await watched.start(f"HTTPS://127.0.0.1:{server.port}/stat")
    if trusted:
        assert values(await collector.read(), CLIENTS) == {CAM1: 1, CAM2: 1}
    else:
        what, _ = await watched.fails(collector)
        assert "certificate" in what.lower()
    assert len(watched.server.asked) == int(trusted)
    await server.close()
