"""A flood of connections is bounded, and the silent ones are closed."""

from __future__ import annotations

import asyncio
import resource

import pytest

from powerbench_agent.agent.connections import SILENT_SECONDS, Connections, raise_descriptor_limit


class Inner(asyncio.Protocol):
    """What stands behind: it notes what reaches it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert transport is not None
        self.seen.append("made")

    def data_received(self, data: bytes) -> None:
        self.seen.append(data.decode())

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

    def abort(self) -> None:
        self.aborted = True


def connect(connections: Connections) -> tuple[asyncio.Protocol, Inner, Transport]:
    inner, transport = Inner(), Transport()
    outer = connections.guard(lambda: inner)()
    outer.connection_made(transport)
    return outer, inner, transport


async def test_everything_of_a_good_connection_reaches_the_server() -> None:
    """Between the socket and the server nothing is lost or changed."""
    connections = Connections()
    outer, inner, _ = connect(connections)
    outer.data_received(b"GET")
    outer.pause_writing()
    outer.resume_writing()
    assert outer.eof_received() is True
    assert connections.open == 1
    outer.connection_lost(None)
    assert inner.seen == ["made", "GET", "pause", "resume", "eof", "lost"]
    assert connections.open == 0


async def test_beyond_the_limit_a_connection_is_cut_and_costs_nothing() -> None:
    """The newcomer is aborted before the server hears of it; when one leaves, there is room again."""
    connections = Connections(limit=1)
    first, _, _ = connect(connections)
    second, inner, transport = connect(connections)
    assert transport.aborted
    second.data_received(b"GET")
    second.connection_lost(None)
    assert inner.seen == []
    assert connections.open == 1
    first.connection_lost(None)
    _, _, transport = connect(connections)
    assert not transport.aborted


@pytest.mark.looptime
async def test_a_connection_that_says_nothing_is_cut() -> None:
    """Ten seconds without a byte end it; one that has spoken may stay."""
    connections = Connections()
    _, _, silent = connect(connections)
    talking, _, heard = connect(connections)
    talking.data_received(b"G")
    loop = asyncio.get_running_loop()
    later = loop.create_future()
    loop.call_later(SILENT_SECONDS + 1, later.set_result, None)
    await later
    assert silent.aborted
    assert not heard.aborted


def test_the_collectors_keep_descriptors_of_their_own() -> None:
    """However many connections are allowed, the limit of descriptors lies beyond them."""
    allowed = raise_descriptor_limit()
    assert 16 <= allowed < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
