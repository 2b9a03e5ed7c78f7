"""A limit on open connections, so that a flood of them cannot stop the measurement.

A port may be open to everyone, and connections use file descriptors, which reading sysfs needs too. So there
is a limit over all ports, and a connection that sends nothing is closed.

Source of the limit: getrlimit(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CONNECTIONS = 8192
SILENT_SECONDS = 10.0  # from connecting to the first byte
_RESERVED = 256  # descriptors reserved for collectors, the log and the listening sockets


class Connections:
    """Counts open connections; `limit` is over all ports of the process."""

    def __init__(self, limit: int = MAX_CONNECTIONS) -> None:
        self.limit = limit
        self.open = 0

    def guard(self, protocol: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """Return a protocol factory for `create_server` whose connections are counted and bounded."""
        return lambda: _Guarded(self, protocol)


class _Guarded(asyncio.Protocol):
    """Wraps a server's protocol, which it creates only once the connection is admitted."""

    def __init__(self, connections: Connections, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._connections = connections
        self._make = protocol
        self._inner: asyncio.Protocol | None = None
        self._silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        if self._connections.open >= self._connections.limit:
            stream.abort()
            return
        self._connections.open += 1
        self._silence = asyncio.get_running_loop().call_later(SILENT_SECONDS, stream.abort)
        self._inner = self._make()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        if self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._silence is not None:
            self._silence.cancel()
        if self._inner is not None:
            self._connections.open -= 1
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()


def raise_descriptor_limit() -> int:
    """Raise the soft limit of file descriptors to the hard one; return how many connections that allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(16, min(MAX_CONNECTIONS, soft - _RESERVED))
