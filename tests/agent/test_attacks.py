"""Hostile clients against a real agent: a scraper gets its page within a second, and reports are taken in."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from conftest import AgentProcess

    Launch = Callable[..., Awaitable[AgentProcess]]

HERE = "127.0.0.1"
BLOCK = b"frame=%d\ntotal_size=%d\nprogress=continue\n"
SECOND = 1.0
WEB_SOCKET = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
ODD_TARGETS = (  # no page is there, or they are no targets at all
    b"//metrics", b"/%00", b"/metrics%00", b"/%", b"/%zz", b"*", b"metrics", b"?", b"//[::1", b"a:b",
    b"http://", b"http://[::1", b"http://xn--/metrics", b"http://a.xn--zz-/", b"https://a:99999/metrics",
    "/metrics/é".encode(), "/\u202e".encode(), b"/" + b"a" * 16384, b"/metrics?" + b"a" * 16384,
    b"/metrics?collect[]=", b"/metrics?collect[]=%ff", b"/metrics?" + b"collect[]=x&" * 500,
)  # fmt: skip


def resident(agent: AgentProcess) -> int:
    """Return the agent's resident memory in bytes."""
    pages = Path(f"/proc/{agent.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Scraper:
    """What has to go on: a scrape that is answered within a second, and an encoder's reports."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._sent = 0

    async def scrape(self) -> str:
        async with asyncio.timeout(SECOND), self._session.get(self._url + "/metrics") as response:
            assert response.status == 200
            return await response.text()

    async def goes_on(self) -> None:
        """Send a report, and see it on the page."""
        self._sent += 1
        async with asyncio.timeout(SECOND):
            response = await self._session.post(
                self._url + "/ingest/live/cam1?run=1", data=BLOCK % (self._sent, self._sent)
            )
        assert response.status == 204
        expected = f'ffmpeg_total_frames{{stream="live/cam1"}} {self._sent}.0'
        async with asyncio.timeout(5 * SECOND):  # the page is the last beat's
            while expected not in await self.scrape():
                pass


class World:
    """An agent on a bare host, its scraper and encoder, and its other clients."""

    def __init__(self, launch: Launch, flags: list[str], session: aiohttp.ClientSession, port: int) -> None:
        self._launch = launch
        self._flags = flags
        self._session = session
        self.listen = f"{HERE}:{port}"
        self.opened: list[asyncio.StreamWriter] = []

    async def start(self, *flags: str, **how: Any) -> AgentProcess:
        return await self._launch(*flags, *self._flags, **how)

    def scraper(self, scheme: str = "http") -> Scraper:
        return Scraper(self._session, f"{scheme}://{self.listen}")

    async def connect(self, number: int, first: bytes) -> None:
        """Open connections, send this over each, and read nothing."""
        host, _, port = self.listen.rpartition(":")
        for _ in range(number):
            _, writer = await asyncio.open_connection(host, int(port), limit=1)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(first)
            self.opened.append(writer)


@pytest.fixture
async def world(launch: Launch, bare_host: list[str], free_port: int) -> AsyncIterator[World]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
        world = World(launch, bare_host, session, free_port)
        yield world
        for writer in world.opened:
            writer.transport.abort()


@pytest.fixture
def large_page(tmp_path: Path, world: World) -> list[str]:
    """Return the flags of an agent whose page has 4 MB."""
    directory = tmp_path / "textfile"
    directory.mkdir()
    for file in range(5):
        lines = [
            f'large_value{{file="{file}",number="{number}",text="{"x" * 200}"}} 1\n' for number in range(3500)
        ]
        (directory / f"{file}.prom").write_text("".join(lines))
    config = tmp_path / "agent.toml"
    config.write_text(
        f"[agent]\nlisten = '{world.listen}'\n[collectors.textfile]\ndirectory = '{directory}'\n"
        "interval = '60s'\n"
    )
    return ["--config", str(config)]


async def test_clients_that_never_read(
    world: World,
    large_page: list[str],
) -> None:
    """Three hundred of them, over several pages, formats and combinations, cost less than 150 MB."""
    agent = await world.start(*large_page)
    await agent.logged("listening")
    scraper = world.scraper()
    while "large_value{" not in await scraper.scrape():
        pass
    await scraper.goes_on()
    before = resident(agent)
    for path in ("/metrics", "/metrics?collect[]=textfile&collect[]=ffmpeg", "/api/v1/snapshot"):
        for accept in ("*/*", "application/openmetrics-text"):
            request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
            await world.connect(50, request.encode())
        await scraper.goes_on()
    assert resident(agent) - before < 150e6
    said = await agent.logged("a client did not read its answer and was disconnected")
    assert said["peer"] == HERE
    await scraper.goes_on()


# A WebSocket of its own that asks for a hundred readings two thousand times; 0: not masked in effect.
WATCHING = (
    b"GET /api/v1/watch HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
) + b"\x81\x85\0\0\0\x00100 0" * 2000


async def test_watchers_and_pipeliners_that_never_read(
    world: World,
) -> None:
    """Small answers without end are not queued without end: the next one waits for the last to be read."""
    agent = await world.start("--listen", world.listen)
    await agent.logged("listening")
    scraper = world.scraper()
    await scraper.goes_on()
    before = resident(agent)
    await world.connect(20, WATCHING)
    await world.connect(20, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
    await scraper.goes_on()
    await agent.logged("a client did not read its answer and was disconnected")
    assert resident(agent) - before < 50e6
    await scraper.goes_on()


async def test_targets_that_are_no_targets(world: World) -> None:
    """Each is answered, with the client's error and not the server's; nothing of them is in the log."""
    agent = await world.start("--listen", world.listen)
    await agent.logged("listening")
    for target in ODD_TARGETS:
        reader, writer = await asyncio.open_connection(*world.listen.split(":"))
        writer.write(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(SECOND):
            answer = await reader.read()
        writer.close()
        assert answer.split()[1].startswith(b"4"), target[:80]
    await world.scraper().goes_on()
    agent.signal(signal.SIGTERM)
    code, _, said = await agent.ended()
    assert code == 0
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "headers",
    [
        b"GET /api/v1/watch HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + WEB_SOCKET,
        b"POST /ingest HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n",
        b"GET /metrics HTTP/1.1\r\n",
    ],
    ids=["watch", "ingest", "metrics"],
)
async def test_clients_that_hang_up(world: World, headers: bytes) -> None:
    """A request whose sender does not wait for the answer leaves no traceback in the log."""
    agent = await world.start("--listen", world.listen)
    await agent.logged("listening")
    host, _, port = world.listen.rpartition(":")
    for _ in range(30):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(headers + b"Host: localhost\r\n\r\n")
        writer.write_eof()
        await reader.read()
        writer.close()
    await world.scraper().goes_on()
    agent.signal(signal.SIGTERM)
    code, _, said = await agent.ended()
    assert code == 0
    assert "Traceback" not in said


async def test_requests_that_never_end(world: World) -> None:
    """Heads that are not finished are cut, on new connections and on kept ones; a body may take its time."""
    agent = await world.start("--listen", world.listen)
    await agent.logged("listening")
    scraper = world.scraper()
    await scraper.goes_on()
    host, _, port = world.listen.rpartition(":")
    encoder_reads, encoder = await asyncio.open_connection(host, int(port))
    encoder.write(b"POST /ingest/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 39\r\n\r\nframe=1\n")
    kept_reads, kept = await asyncio.open_connection(host, int(port))
    kept.write(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await kept_reads.readuntil(b"}")
    kept.write(b"GET /rea")
    await world.connect(50, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n")
    await agent.logged("a client did not finish the head of its request and was disconnected")
    await scraper.goes_on()
    async with asyncio.timeout(5 * SECOND):
        assert await kept_reads.read() == b""
        while 'rejected_total{reason="slow_request"} 51.0' not in await scraper.scrape():
            pass
    encoder.write(b"total_size=1\nprogress=continue\n")
    async with asyncio.timeout(SECOND):
        assert (await encoder_reads.readline()).startswith(b"HTTP/1.1 204")
    for writer in (encoder, kept):
        writer.close()


async def test_handshakes_that_never_end(
    world: World,
    tmp_path: Path,
    certificate: tuple[str, str],
) -> None:
    """Two hundred half-open TLS connections, and encoders that speak plain HTTP, keep nobody out."""
    config = tmp_path / "agent.toml"
    cert, key = certificate
    config.write_text(
        f"[agent]\nlisten = '{world.listen}'\n[agent.web]\ntls_cert = '{cert}'\ntls_key = '{key}'\n"
    )
    agent = await world.start("--config", str(config))
    await agent.logged("listening")
    scraper = world.scraper("https")
    await scraper.goes_on()
    await world.connect(100, b"")
    await world.connect(100, b"\x16\x03\x01\x02\x00\x01")
    await scraper.goes_on()
    await world.connect(1, b"POST /ingest?stream=cam1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert "https://" in (await agent.logged("a plain client on a port that serves HTTPS"))["remedy"]
    await scraper.goes_on()
    page = await scraper.scrape()
    assert 'powerbench_http_rejected_total{reason="plain_http"} 1.0' in page


async def test_reports_over_plain_tcp_are_refused_aloud(
    world: World,
) -> None:
    """`-progress tcp://` is not HTTP: the log says what to use instead, once, and each one counts."""
    agent = await world.start("--listen", world.listen)
    await agent.logged("listening")
    scraper = world.scraper()
    await world.connect(5, BLOCK % (1, 1))
    said = await agent.logged("FFmpeg progress sent over plain TCP")
    assert "http://HOST:PORT/ingest?stream=NAME" in said["remedy"]
    while 'powerbench_http_rejected_total{reason="raw_progress"} 5.0' not in await scraper.scrape():
        pass
    await scraper.goes_on()


@pytest.fixture
def stalled_pipe() -> Iterator[int]:
    """Return the writing end of a pipe that is full and that nobody reads."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b".")
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


async def test_a_log_that_nobody_reads(
    world: World,
    stalled_pipe: int,
) -> None:
    """Standard error is a full pipe: pages, reports, and the end within two seconds, as ever."""
    program = (
        f"import os, runpy; os.dup2({stalled_pipe}, 2); "
        "runpy.run_module('powerbench_agent.agent.cli', run_name='__main__')"
    )
    command = (sys.executable, "-c", program)
    agent = await world.start("--listen", world.listen, command=command, pass_fds=(stalled_pipe,))
    scraper = world.scraper()
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                await scraper.goes_on()
                break
    await world.connect(5, BLOCK % (1, 1))
    await scraper.goes_on()
    loop = asyncio.get_running_loop()
    asked = loop.time()
    agent.signal(signal.SIGTERM)
    code, _, _ = await agent.ended()
    assert (code, loop.time() - asked < 2) == (0, True)
