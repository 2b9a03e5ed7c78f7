"""One agent over HTTP: its snapshots, its watch, and where progress is sent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
from yarl import URL

from powerbench_agent.bench.load.redact import redact_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from powerbench_agent.core.identity import StreamIdentity

_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_INGEST_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=2.0)
_LATE_SECONDS = 3.0  # that a watch may come late
_READY_SECONDS = 10.0
_WATCH_CLOSE = aiohttp.ClientWSTimeout(ws_close=0.1)


class AgentFailed(Exception):  # noqa: N818 - a verdict
    """An agent does not answer, or not with what was asked; the text says what to do."""


class AgentClient:
    """One agent."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str = "", label: str = "") -> None:
        """`label`: what results call it, if not by its URL."""
        self.url = url.rstrip("/")
        self._shown = redact_url(self.url)
        self.label = label or self._shown
        self.knows_us = bool(token)
        self._session = session
        # Built once: they are asked for ten times a second.
        self._whole = URL(f"{self.url}/api/v1/snapshot")
        self._latest = self._whole.update_query(samples="0")
        self._fresh = self._latest.update_query(fresh="1")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def snapshot(self, *, fresh: bool = False) -> dict[str, Any]:
        """Return `/api/v1/snapshot` without its samples. Raises: AgentFailed."""
        return await self._snapshot(self._fresh if fresh else self._latest)

    async def samples(self) -> dict[str, Any]:
        """Return `/api/v1/snapshot`, the latest, with its samples. Raises: AgentFailed."""
        return await self._snapshot(self._whole)

    async def _snapshot(self, url: URL) -> dict[str, Any]:
        try:
            async with self._session.get(url, headers=self._headers, timeout=_TIMEOUT) as answer:
                if answer.status != 200:
                    raise self._refused(answer.status)
                body = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._gone(error) from None
        return self._checked(self._decoded(body))

    async def watch(self, count: int, seconds: float) -> list[dict[str, Any]]:
        """Return the next `count` snapshots, taken this many seconds apart. Raises: AgentFailed."""
        socket, self._socket = self._socket, None
        try:
            async with asyncio.timeout(_LATE_SECONDS + count * seconds):
                if socket is None or socket.closed:
                    socket = await self._session.ws_connect(
                        f"{self.url}/api/v1/watch",
                        headers=self._headers,
                        max_msg_size=0,
                        timeout=_WATCH_CLOSE,
                    )
                await socket.send_str(f"{count} {seconds:g}")
                body = await socket.receive_bytes()
                self._socket = socket
        except aiohttp.WSServerHandshakeError as refused:
            raise self._refused(refused.status) from None
        except (aiohttp.ClientError, aiohttp.WSMessageTypeError, OSError) as error:
            raise self._gone(error) from None
        finally:
            if socket is not None and self._socket is None:  # out of step, or gone: it is not used again
                await socket.close()
        readings = self._decoded(body)
        if not isinstance(readings, list) or not readings:
            raise self._stranger()
        return [self._checked(reading) for reading in readings]

    def _decoded(self, body: bytes) -> Any:
        try:
            return msgspec.json.decode(body)
        except ValueError as error:
            raise self._gone(error) from None

    def _checked(self, content: Any) -> dict[str, Any]:
        if not isinstance(content, dict) or "collectors" not in content:
            raise self._stranger()
        return content

    async def ready(self) -> None:
        """Wait until the agent has tried every collector. Raises: AgentFailed."""
        give_up = time.monotonic() + _READY_SECONDS
        while True:
            try:
                async with self._session.get(f"{self.url}/ready", timeout=_TIMEOUT) as answer:
                    if answer.status != 503:
                        return
            except (aiohttp.ClientError, OSError) as error:
                raise self._gone(error) from None
            if time.monotonic() > give_up:
                what = f"the agent at {self._shown} is not ready after {_READY_SECONDS:g} s"
                raise AgentFailed(f"{what}; see {self._shown}/health")
            await asyncio.sleep(0.05)

    async def ingest(
        self, stream: str, chunks: AsyncIterator[bytes], pid: int, identity: StreamIdentity
    ) -> None:
        """Send that process's progress until the chunks end; if the agent is away, it is lost."""
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with self._session.post(
                f"{self.url}/ingest",
                params={"stream": stream, "pid": str(pid), **identity.known()},
                data=chunks,
                headers=self._headers,
                timeout=_INGEST_TIMEOUT,
            ):
                pass

    def _stranger(self) -> AgentFailed:
        return AgentFailed(f"{self._shown} is not a powerbench agent; check --agent")

    def _refused(self, status: int) -> AgentFailed:
        if status in (401, 403) and self.knows_us:
            return AgentFailed(
                f"{self._shown} refuses the token of --token-file: give the one that is in its "
                "[agent.web] token_file"
            )
        if status == 403:
            return AgentFailed(
                f"{self._shown} refuses this machine: give --token-file, or add this network to "
                "[agent.web] trusted there"
            )
        return AgentFailed(
            f"{self._shown} answers {status}: check that it is a powerbench agent of this version"
        )

    def _gone(self, error: Exception) -> AgentFailed:
        what = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ClientConnectorError):
            cause = error.os_error
            if isinstance(cause, socket.gaierror):
                if cause.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                    return AgentFailed(
                        f"no agent at {self._shown}: the name {error.host} is unknown; check --agent"
                    )
                what = str(cause.strerror).lower()
            elif cause.errno:
                what = os.strerror(cause.errno).lower()
        return AgentFailed(f"no agent at {self._shown}: {what}; start one there with: powerbench-agent")
