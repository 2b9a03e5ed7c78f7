"""Where a stream goes, and where its progress goes: an RTMP server of our own, and an agent's /ingest.

The private nginx of `--sink nginx` is in nginx.py, and what is received by this process in tap.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import aiohttp

from powerbench_agent.bench.load.child import Child

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.meter.client import AgentClient
    from powerbench_agent.core.identity import StreamIdentity

_LISTEN_SECONDS = 60  # that a sink waits for its publisher
_CLOSE_SECONDS = 1.0  # for the last reports to reach the agent
_MAX_QUEUED = 256  # chunks of progress


class Sink(Child):
    """A second ffmpeg: an RTMP server that takes one sender, and discards what it receives, undecoded."""

    def __init__(self, ffmpeg: Ffmpeg, name: str, copy: str = "") -> None:
        """`copy`: the URL that gets what is received, in NUT."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"rtmp://127.0.0.1:{port}/live/stream"
        command = [ffmpeg.path, "-hide_banner", "-nostdin", "-loglevel", "warning"]
        listening = ["-listen", "1", "-timeout", f"{_LISTEN_SECONDS}"]
        command += ["-f", "flv", *listening, "-i", self.url, "-c", "copy"]
        # The copy is kept and not counted: it may come in whole buffers.
        command += ["-f", "nut", "-flush_packets", "0", copy] if copy else ["-f", "null", "-"]
        super().__init__(f"sink of {name}", command)


class Relay:
    """Passes raw progress on to an agent's /ingest, over one connection a run; never delays the encoder."""

    def __init__(self, client: AgentClient, stream: str, identity: StreamIdentity) -> None:
        self._client = client
        self._stream = stream
        self._identity = identity
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_QUEUED)
        self._task: asyncio.Task[None] | None = None

    def send(self, pid: int, data: bytes) -> None:
        """Queue the bytes; if the agent does not accept them they are lost, and the encoder goes on."""
        if self._task is None:
            sending = self._client.ingest(self._stream, self._chunks(), pid, self._identity)
            self._task = asyncio.ensure_future(sending)
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(data)

    async def close(self) -> None:
        """Send what is queued, for a second at most."""
        if self._task is None:
            return
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(None)
        await asyncio.wait([self._task], timeout=_CLOSE_SECONDS)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError, OSError):
            await self._task

    async def _chunks(self) -> AsyncIterator[bytes]:
        while (data := await self._queue.get()) is not None:
            yield data
