"""Accepts connections, within limits, so that a flood of them cannot stop the measurement.

A port may be open to everyone, and connections use file descriptors, which reading sysfs needs too. So there
is a limit over all ports, of which one peer gets no more than three quarters. A connection counts from before
its TLS handshake, and is closed if it does not finish that, does not finish the head of a request, or does
not read its answer.

Source of the limit: getrlimit(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import resource
import socket
from collections import Counter
from typing import TYPE_CHECKING, cast

import structlog

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    Note = Callable[[str, str], None]  # takes a reason of `rejections` and the peer's address

log = structlog.get_logger("http")

MAX_CONNECTIONS = 8192
HEAD_SECONDS = 10.0  # from connecting, or from the first byte of a later request, to the end of its head
HANDSHAKE_SECONDS = 10.0  # from connecting to the end of a TLS handshake
SEND_SECONDS = 10.0  # for a client to take what has been written to it, at most 64 KiB at a time
_KERNEL_BUFFER = 1 << 18  # bytes, each way; the kernel's own maximum is several MB for each connection
_RETRY_SECONDS = 1.0  # after a failure to accept, as when there are no descriptors left
_RESERVED = 256  # descriptors reserved for collectors, the log and the listening sockets
_TLS_HANDSHAKE = b"\x16\x03"  # RFC 8446, 5.1: a record of type handshake
_PROGRESS = re.compile(rb"[a-z_0-9]+= *[^\s]*\n")  # FFmpeg's -progress starts with frame= or bitrate=


class Connections:
    """Counts open connections; `limit` is over all ports of the process."""

    def __init__(self, limit: int = MAX_CONNECTIONS) -> None:
        self.limit = limit
        self.open = 0
        self._most_of_one = max(1, limit * 3 // 4)
        self._origins: Counter[str] = Counter()

    def admit(self, address: str) -> Place | None:
        """Return a place for a connection from this address; None if there is none left."""
        origin = _origin(address)
        if self.open >= self.limit or self._origins[origin] >= self._most_of_one:
            return None
        self.open += 1
        self._origins[origin] += 1
        return Place(self, origin)

    def leave(self, origin: str) -> None:
        """Give a place back."""
        self.open -= 1
        self._origins[origin] -= 1
        if not self._origins[origin]:
            del self._origins[origin]


class Place:
    """The place of one open connection."""

    def __init__(self, connections: Connections, origin: str) -> None:
        self._connections = connections
        self._origin = origin
        self._held = True

    def release(self) -> None:
        """Give the place back, once."""
        if self._held:
            self._held = False
            self._connections.leave(self._origin)


def _origin(address: str) -> str:
    """Return what counts as one peer: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))


class Listener:
    """Accepts the connections of one listening socket."""

    def __init__(
        self,
        listener: socket.socket,
        connections: Connections,
        protocol: Callable[[], asyncio.Protocol],
        note: Note,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Start to accept; `protocol` makes the server's protocol for a connection."""
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # its connections inherit them
            listener.setsockopt(socket.SOL_SOCKET, buffer, _KERNEL_BUFFER)
        self._socket = listener
        self._connections = connections
        self._protocol = protocol
        self._note = note
        self._tls = tls
        self._connecting: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.ensure_future(self._accept())

    async def close(self) -> None:
        """Accept no more, and give up the handshakes under way; connections that are open stay."""
        tasks = [self._accepting, *self._connecting]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(self._socket)
            except ConnectionError:  # the client has gone already
                continue
            except OSError as error:
                remedy = "raise LimitNOFILE of the unit, or find who opens the connections with ss -tnp"
                log.warning("cannot accept a connection", error=error.strerror, remedy=remedy)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            place = self._connections.admit(peer[0])
            if place is None:
                accepted.close()
                self._note("connection_limit", peer[0])
                continue
            connecting = asyncio.ensure_future(self._connect(accepted, peer[0], place))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket, peer: str, place: Place) -> None:
        connected = False
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Guarded(self._protocol(), peer, place, self._note),
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if self._tls else None,
            )
            connected = True
        except OSError as error:  # a handshake that failed or took too long
            if getattr(error, "reason", None) == "HTTP_REQUEST":
                self._note("plain_http", peer)
        finally:
            if not connected:
                place.release()


class Guarded(asyncio.Protocol):
    """Wraps a server's protocol: holds the place of its connection and the deadlines."""

    def __init__(self, inner: asyncio.Protocol, peer: str, place: Place, note: Note) -> None:
        self._inner = inner
        self._peer = peer
        self._place = place
        self._note = note
        self._transport: asyncio.Transport | None = None
        self._heard = False  # whether anything has come
        self._busy = False  # a request is under way: what comes is its body, or waits for its answer
        self._head: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadlines."""
        self._transport = cast("asyncio.Transport", transport)
        # So that writing pauses whenever anything is left over, and the deadline covers all of it.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._await_head()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass the bytes on; note what the first ones are if they are not HTTP."""
        if not self._heard:
            self._heard = True
            foreign = foreign_protocol(data)
            if foreign:
                self._note(foreign, self._peer)
        # Empty lines between requests do not start one: RFC 9112, 2.2.
        if not self._busy and self._head is None and data.strip(b"\r\n"):
            self._await_head()
        self._inner.data_received(data)

    def begin_request(self) -> None:
        """Note that the head of a request is complete."""
        self._busy = True
        self._stop_waiting()

    def end_request(self) -> None:
        """Note that a request has been handled, and all of its body has come."""
        self._busy = False

    def eof_received(self) -> bool | None:
        """Pass the end of the client's half on."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._stop_waiting()
        if self._sending is not None:
            self._sending.cancel()
        self._place.release()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Give the client some seconds to read what has been written."""
        self._sending = asyncio.get_running_loop().call_later(SEND_SECONDS, self._give_up)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Note that the client has read all of it."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        self._inner.resume_writing()

    def _await_head(self) -> None:
        self._head = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._give_up_head)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up_head(self) -> None:
        if self._heard:  # to connect and say nothing is what a probe of the port does
            self._note("slow_request", self._peer)
        self._abort()

    def _give_up(self) -> None:
        self._note("not_read", self._peer)
        self._abort()

    def _abort(self) -> None:
        assert self._transport is not None  # noqa: S101 - the deadlines start with the connection
        self._transport.abort()


def foreign_protocol(data: bytes) -> str:
    """Return what a connection's first bytes are if they are not HTTP, as a reason of `rejections`.

    The server answers 400 to all of these; this is for the log.
    """
    if data[:1].isupper():  # an HTTP method
        return ""
    if data.startswith(_TLS_HANDSHAKE):
        return "tls"
    if _PROGRESS.match(data):
        return "raw_progress"
    return "not_http"


def raise_descriptor_limit() -> int:
    """Raise the soft limit of file descriptors to the hard one; return how many connections that allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(16, min(MAX_CONNECTIONS, soft - _RESERVED))
