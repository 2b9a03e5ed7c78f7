"""Large bodies: whole for who reads them, and bounded in memory whoever does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from powerbench_agent.agent.sending import PIECE, Sending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LARGE = 32 << 20  # more than the kernel buffers of a connection hold


class Server:
    """Serves the body of a size, at /SIZE, the same one each time; /new/SIZE is another each time."""

    def __init__(self, sending: Sending) -> None:
        self.sending = sending
        self._bodies: dict[int, bytes] = {}
        app = web.Application()
        app.router.add_get("/{size}", self.same)
        app.router.add_get("/new/{size}", self.new)
        self.client = TestClient(TestServer(app))

    async def same(self, request: web.Request) -> web.StreamResponse:
        size = int(request.match_info["size"])
        body = self._bodies.setdefault(size, bytes(range(251)) * (size // 251 + 1))
        return await self.sending.respond(request, body, {"Content-Type": "text/plain"})

    async def new(self, request: web.Request) -> web.StreamResponse:
        body = bytes(int(request.match_info["size"]))
        return await self.sending.respond(request, body, {"Content-Type": "text/plain"})

    async def ask(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask, and read no more than the beginning of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.client.port, limit=1)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(10):
            assert await reader.read(13) == b"HTTP/1.1 200 "
        return reader, writer


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(Sending(max_bytes=4 * LARGE))
    await server.client.start_server()
    yield server
    await server.client.close()


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE, LARGE])
async def test_a_body_arrives_whole(server: Server, size: int) -> None:
    """Whatever its size; HEAD has its length and nothing else; the connection goes on."""
    for _ in range(2):
        response = await server.client.get(f"/{size}")
        body = await response.read()
        assert body == bytes(range(251)) * (size // 251 + 1)
        assert response.headers["Content-Length"] == str(len(body))
        head = await server.client.head(f"/{size}")
        assert (head.headers["Content-Length"], await head.read()) == (str(len(body)), b"")
    assert server.sending.bytes == 0


async def test_a_body_counts_once_however_many_read_it(server: Server) -> None:
    """Ten clients that do not read hold the same body, until they go."""
    deaf = [await server.ask(f"/{LARGE}") for _ in range(10)]
    assert server.sending.bytes < 2 * LARGE
    assert len(await (await server.client.get(f"/{LARGE}")).read()) > LARGE
    for _, writer in deaf:
        writer.transport.abort()
    async with asyncio.timeout(10):
        while server.sending.bytes:  # noqa: ASYNC110 - a counter, not an event
            await asyncio.sleep(0)


async def test_the_readers_of_the_oldest_bodies_are_cut(server: Server) -> None:
    """Past the limit of different bodies the oldest go; the newest is always sent."""
    deaf = [await server.ask(f"/new/{LARGE}") for _ in range(6)]
    assert server.sending.bytes <= 4 * LARGE
    for reader, _ in deaf[:2]:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(LARGE)
    assert len(await (await server.client.get(f"/new/{5 * LARGE}")).read()) == 5 * LARGE
    assert server.sending.bytes == 0
    for _, writer in deaf:
        writer.transport.abort()
