"""A flood of connections is bounded; the silent, the stuck and the deaf ones are closed."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from powerbench_agent.agent.connections import (
    HANDSHAKE_SECONDS,
    HEAD_SECONDS,
    SEND_SECONDS,
    Connections,
    Guarded,
    Listener,
    foreign_protocol,
    raise_descriptor_limit,
)
from powerbench_agent.agent.rejections import REASONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HERE = "127.0.0.1"


class Inner(asyncio.Protocol):
    """What stands behind: it notes what reaches it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert transport is not None
        self.seen.append("made")

    def data_received(self, data: bytes) -> None:
        self.seen.append(data.decode("latin-1"))

    def eof_received(self) -> bool:
        self.seen.append("eof")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None
        self.seen.append("lost")

    def pause_writing(self) -> None:
        self.seen.append("pause")

    def resume_writing(self) -> None:
        self.seen.append("resume")


class Transport(asyncio.Transport):
    """A connection that can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False
        self.limits: tuple[int | None, int | None] = (None, None)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = (low, high)

    def abort(self) -> None:
        self.aborted = True


class Connected:
    """One guarded connection from this address."""

    def __init__(self, connections: Connections, address: str = HERE) -> None:
        self.inner, self.transport = Inner(), Transport()
        self.noted: list[tuple[str, str]] = []
        place = connections.admit(address)
        assert place is not None
        self.outer = Guarded(self.inner, address, place, lambda *what: self.noted.append(what))
        self.outer.connection_made(self.transport)


async def at(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    reached = loop.create_future()
    loop.call_at(seconds, reached.set_result, None)
    await reached


async def test_everything_of_a_good_connection_reaches_the_server() -> None:
    """Between the socket and the server nothing is lost or changed."""
    connections = Connections()
    good = Connected(connections)
    good.outer.data_received(b"GET")
    good.outer.pause_writing()
    good.outer.resume_writing()
    assert good.outer.eof_received() is True
    assert connections.open == 1
    good.outer.connection_lost(None)
    assert good.inner.seen == ["made", "GET", "pause", "resume", "eof", "lost"]
    assert connections.open == 0
    assert good.noted == []


def test_beyond_the_limit_there_is_no_place_until_one_is_given_back() -> None:
    """A place that is given back twice counts once."""
    connections = Connections(limit=1)
    place = connections.admit(HERE)
    assert place is not None
    assert connections.admit(HERE) is None
    place.release()
    place.release()
    assert connections.open == 0
    assert connections.admit(HERE) is not None
    assert connections.admit(HERE) is None


@pytest.mark.parametrize(
    ("flood", "other"),
    [
        (["192.0.2.1"], "192.0.2.2"),
        (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::"], "2001:db8:0:1::1"),
        (["fe80::1%eth0"], HERE),
        (["not an address"], HERE),
    ],
)
def test_one_peer_cannot_have_all_places(flood: list[str], other: str) -> None:
    """A quarter is left for others; an IPv6 peer is its /64, or it would have addresses without end."""
    connections = Connections(limit=16)
    admitted = [connections.admit(flood[number % len(flood)]) for number in range(20)]
    assert len([place for place in admitted if place]) == 12
    assert connections.admit(other) is not None
    assert admitted[0] is not None
    admitted[0].release()
    assert connections.admit(flood[0]) is not None


@pytest.mark.looptime
async def test_a_connection_that_says_nothing_is_cut() -> None:
    """Ten seconds without a request end it, without a word: that is how a port is probed."""
    silent = Connected(Connections())
    await at(HEAD_SECONDS + 1)
    assert silent.transport.aborted
    assert silent.noted == []


@pytest.mark.looptime
@pytest.mark.parametrize("drop", [b"GET /metrics HTTP/1.1\r\nX: ", b"G", b"\r\n", b"X-A: b\r\n"])
async def test_a_request_that_comes_slowly_is_cut(drop: bytes) -> None:
    """Its head has to be there ten seconds after the connection, however many bytes come meanwhile."""
    slow = Connected(Connections())
    for second in range(int(HEAD_SECONDS)):
        await at(second)
        slow.outer.data_received(drop)
        assert not slow.transport.aborted
    await at(HEAD_SECONDS + 1)
    assert slow.transport.aborted
    assert ("slow_request", HERE) in slow.noted


@pytest.mark.looptime
async def test_a_later_request_that_comes_slowly_is_cut() -> None:
    """The ten seconds of a request on a connection that stays open start with its first byte."""
    kept = Connected(Connections())
    kept.outer.data_received(b"GET / HTTP/1.1\r\n\r\n")
    kept.outer.begin_request()
    kept.outer.end_request()
    await at(50)
    kept.outer.data_received(b"G")
    await at(50 + HEAD_SECONDS - 1)
    kept.outer.data_received(b"E")
    assert not kept.transport.aborted
    await at(50 + HEAD_SECONDS + 1)
    assert kept.transport.aborted
    assert kept.noted == [("slow_request", HERE)]


@pytest.mark.looptime
async def test_a_request_under_way_and_a_kept_connection_may_take_their_time() -> None:
    """An encoder's body lasts for days, a scraper is silent between two scrapes, some send an empty line."""
    encoder, scraper = Connected(Connections()), Connected(Connections())
    for client in (encoder, scraper):
        client.outer.data_received(b"POST /ingest HTTP/1.1\r\n\r\n")
        client.outer.begin_request()
    scraper.outer.end_request()
    scraper.outer.data_received(b"\r\n")
    for minute in range(1, 60):
        await at(60 * minute)
        encoder.outer.data_received(b"frame=1\n")
    for client in (encoder, scraper):
        assert not client.transport.aborted
        assert client.noted == []


@pytest.mark.looptime
async def test_a_client_that_does_not_read_its_answer_is_cut() -> None:
    """What is written has to be taken in ten seconds, all of it; a slow reader that takes it may stay."""
    connections = Connections()
    deaf, slow = Connected(connections), Connected(connections)
    assert deaf.transport.limits == (0, 1), "writing pauses for anything that is left over"
    for client in (deaf, slow):
        client.outer.data_received(b"GET /metrics")
        client.outer.begin_request()
        client.outer.pause_writing()
    for seconds in (9, 18, 27):
        await at(seconds)
        slow.outer.resume_writing()
        slow.outer.pause_writing()
    assert deaf.transport.aborted
    assert deaf.noted == [("not_read", HERE)]
    slow.outer.connection_lost(None)
    await at(27 + SEND_SECONDS + 1)
    assert not slow.transport.aborted
    assert slow.noted == []


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", ""),
        (b"P", ""),
        (b"BREW /pot HTTP/1.1\r\n", ""),
        (b"frame=1\nfps=0.00\n", "raw_progress"),
        (b"bitrate=  2000.1kbits/s\ntotal_size=1\n", "raw_progress"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "tls"),
        (b"\x16\x03", "tls"),
        (b"frame=   12 fps=0.0 q=-1.0\r", "not_http"),
        (b"\x00\x01", "not_http"),
        (b"hello\n", "not_http"),
        (b"\x16\xff", "not_http"),
    ],
)
async def test_what_is_not_http_is_recognized(first: bytes, reason: str) -> None:
    """The first bytes tell raw progress and TLS from HTTP; each connection is noted once."""
    assert foreign_protocol(first) == reason
    assert not reason or reason in REASONS
    client = Connected(Connections())
    for _ in range(2):
        client.outer.data_received(first)
    assert client.noted == ([(reason, HERE)] if reason else [])
    assert client.inner.seen[1:] == [first.decode("latin-1")] * 2


# -- real sockets ------------------------------------------------------------------------------------


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Port:
    """A listening socket with these limits."""

    def __init__(self, connections: Connections, tls: ssl.SSLContext | None) -> None:
        listening = socket.create_server((HERE, 0))
        listening.setblocking(False)  # noqa: FBT003 - socket's own signature
        self.number = listening.getsockname()[1]
        self.connections = connections
        self.noted: asyncio.Queue[str] = asyncio.Queue()
        self.listener = Listener(
            listening, connections, Echo, lambda reason, _: self.noted.put_nowait(reason), tls
        )

    async def counts(self, number: int) -> None:
        """Wait until that many connections are open."""
        async with asyncio.timeout(10):
            while self.connections.open != number:  # noqa: ASYNC110 - a counter, not an event
                await asyncio.sleep(0)


@pytest.fixture
async def serve_echo() -> AsyncIterator[Callable[..., Port]]:
    ports = []

    def start(limit: int = 16, tls: ssl.SSLContext | None = None) -> Port:
        ports.append(Port(Connections(limit), tls))
        return ports[-1]

    yield start
    for port in ports:
        await port.listener.close()


@pytest.fixture
def server_tls(certificate: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


async def echoed(port: Port, tls: ssl.SSLContext | None = None) -> bytes:
    reader, writer = await asyncio.open_connection(HERE, port.number, ssl=tls)
    writer.write(b"HELLO\n")
    async with asyncio.timeout(10):
        answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_connections_past_the_limit_are_closed_at_once(serve_echo: Callable[..., Port]) -> None:
    """The newcomer is closed and noted; when others leave, the port serves again."""
    port = serve_echo(limit=4)
    held = [await asyncio.open_connection(HERE, port.number) for _ in range(3)]
    await port.counts(3)
    reader, writer = await asyncio.open_connection(HERE, port.number)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
        assert await port.noted.get() == "connection_limit"
    writer.close()
    for _, held_writer in held:
        held_writer.close()
    await port.counts(0)
    assert await echoed(port) == b"HELLO\n"
    await port.counts(0)


async def test_handshakes_count_before_they_are_finished(
    serve_echo: Callable[..., Port], server_tls: ssl.SSLContext
) -> None:
    """Clients that never shake hands use up the limit like any other, and leave their places when they go."""
    port = serve_echo(limit=8, tls=server_tls)
    idle = [await asyncio.open_connection(HERE, port.number) for _ in range(3)]
    started = [await asyncio.open_connection(HERE, port.number) for _ in range(3)]
    for _, writer in started:
        writer.write(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
    await port.counts(6)
    reader, writer = await asyncio.open_connection(HERE, port.number)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    for _, each in (*idle, *started, (reader, writer)):
        each.close()
    await port.counts(0)
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    assert await echoed(port, trusting) == b"HELLO\n"
    await port.counts(0)


async def test_plain_http_on_a_tls_port_is_noted(
    serve_echo: Callable[..., Port], server_tls: ssl.SSLContext
) -> None:
    """An encoder that was given http:// instead of https:// leaves a trace, and no place behind."""
    port = serve_echo(tls=server_tls)
    _, writer = await asyncio.open_connection(HERE, port.number)
    writer.write(b"POST /ingest?stream=cam1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(10):
        assert await port.noted.get() == "plain_http"
    writer.close()
    await port.counts(0)


async def test_closing_gives_up_handshakes(
    serve_echo: Callable[..., Port], server_tls: ssl.SSLContext
) -> None:
    """A stop does not wait for clients that never shake hands."""
    port = serve_echo(tls=server_tls)
    _, writer = await asyncio.open_connection(HERE, port.number)
    await port.counts(1)
    async with asyncio.timeout(HANDSHAKE_SECONDS / 2):
        await port.listener.close()
    assert port.connections.open == 0, "a reload can close a port, and its places go to the others"
    writer.close()
    await writer.wait_closed()


def test_the_collectors_keep_descriptors_of_their_own() -> None:
    """However many connections are allowed, the limit of descriptors lies beyond them."""
    allowed = raise_descriptor_limit()
    assert 16 <= allowed < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
