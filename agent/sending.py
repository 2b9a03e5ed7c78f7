"""Sends large bodies in pieces: one copy in memory however many clients read it, and a limit over all.

aiohttp copies a body for each client and holds the copies until the clients have read them. Here a client
holds a view of the one body. Bodies of earlier snapshots stay in memory while somebody is still reading them,
so beyond a limit the clients of the oldest are disconnected.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping

PIECE = 1 << 16  # bytes
MAX_BYTES = 64 << 20  # of different bodies at a time
MAX_SECONDS = 60.0  # for one body; Prometheus waits 10 s unless configured otherwise


class _Outgoing(NamedTuple):
    """A body that is being sent, and the connections that it is sent over."""

    body: bytes
    transports: set[asyncio.Transport]


class Sending:
    """The large bodies that are being sent, oldest first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._outgoing: dict[int, _Outgoing] = {}  # by the id of the body

    async def respond(
        self, request: web.Request, body: bytes, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Send a body; it may be sent over several connections at a time."""
        if len(body) <= PIECE or request.method == "HEAD" or request.transport is None:
            return web.Response(body=body, headers=headers)
        response = web.StreamResponse(headers=headers)
        response.content_length = len(body)
        transport = request.transport
        self._begin(body, transport)
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await response.prepare(request)
                view = memoryview(body)
                for start in range(0, len(body), PIECE):
                    await response.write(view[start : start + PIECE])
                    await request.writer.drain()
        except TimeoutError:
            transport.abort()
        finally:
            self._end(body, transport)
        return response

    def _begin(self, body: bytes, transport: asyncio.Transport) -> None:
        outgoing = self._outgoing.get(id(body))
        if outgoing is None:
            outgoing = self._outgoing[id(body)] = _Outgoing(body, set())
            self.bytes += len(body)
        outgoing.transports.add(transport)
        excess = self.bytes - self._max_bytes
        for oldest in list(self._outgoing.values()):
            if excess <= 0 or oldest is outgoing:
                break
            excess -= len(oldest.body)
            for reader in oldest.transports:
                reader.abort()

    def _end(self, body: bytes, transport: asyncio.Transport) -> None:
        outgoing = self._outgoing[id(body)]
        outgoing.transports.discard(transport)
        if not outgoing.transports:
            del self._outgoing[id(body)]
            self.bytes -= len(body)
