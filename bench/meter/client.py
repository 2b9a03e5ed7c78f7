"""Reads the agents' energy counters over HTTP: at both edges of a window, and between them as a trace.

A window's energy is the difference of counters, its length that of the moments at which they were read,
which the agent stamps; so neither the network nor the beat is in the figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import msgspec
from yarl import URL

from powerbench_agent.core.model import ESTIMATE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

TRACE_HERTZ = 10.0
BEAT_HERTZ = 1.0
_EDGE_SECONDS = 3.0  # that an edge waits for what is not there at once
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_WATCH_CLOSE = aiohttp.ClientWSTimeout(ws_close=0.1)


class AgentFailed(Exception):  # noqa: N818 - a verdict
    """An agent that does not answer, or not with what was asked; the text says what to do."""


class MeterKey(NamedTuple):
    """What one counter is of."""

    agent: str  # its label
    collector: str
    component: str
    source: str
    key: str


class Mark(NamedTuple):
    """A counter, and when it was read, by the agent's own monotonic clock."""

    joules: float
    monotonic: float


class Edge(NamedTuple):
    """Every counter at one moment."""

    time: float  # Unix seconds here
    marks: dict[MeterKey, Mark]


class Part(NamedTuple):
    """One component's energy over a window, by what measured it."""

    component: str
    source: str
    joules: float
    watts: float  # mean


class Energy(NamedTuple):
    """A window's energy: parts that do not overlap."""

    parts: tuple[Part, ...]
    seconds: float  # between the readings at its edges
    problems: tuple[str, ...] = ()

    @property
    def joules(self) -> float:
        """All parts together."""
        return sum(part.joules for part in self.parts)

    @property
    def watts(self) -> float:
        """Mean power of all parts together."""
        return sum(part.watts for part in self.parts)

    @property
    def watt_hours(self) -> float:
        """All parts together."""
        return self.joules / 3600

    @property
    def measured(self) -> bool:
        """Whether no part is an estimate."""
        return all(part.source != ESTIMATE for part in self.parts)

    @property
    def source(self) -> str:
        """Where the joules come from: `rapl`, `nvml + rapl`, `estimate`."""
        return " + ".join(sorted({part.source for part in self.parts}))


class AgentClient:
    """One agent."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str = "", label: str = "") -> None:
        """`label`: what results call it, where not by its URL."""
        self.url = url.rstrip("/")
        self.label = label or self.url
        self.knows_us = bool(token)
        self._session = session
        # Built once: they are asked for ten times a second.
        self._latest = URL(f"{self.url}/api/v1/snapshot?samples=0")
        self._fresh = self._latest.update_query(fresh="1")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def snapshot(self, *, fresh: bool = False) -> dict[str, Any]:
        """Return `/api/v1/snapshot`. Raises: AgentFailed."""
        url = self._fresh if fresh else self._latest
        try:
            async with self._session.get(url, headers=self._headers, timeout=_TIMEOUT) as answer:
                if answer.status != 200:
                    raise self._refused(answer.status)
                body = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._gone(error) from None
        return self._checked(self._decoded(body))

    async def watch(self, count: int, seconds: float) -> list[dict[str, Any]]:
        """Return the meters of so many moments to come, so far apart. Raises: AgentFailed."""
        socket, self._socket = self._socket, None
        try:
            async with asyncio.timeout(_EDGE_SECONDS + count * seconds):
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
            if socket is not None and self._socket is None:  # out of step, or gone: not to be asked again
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

    def _stranger(self) -> AgentFailed:
        return AgentFailed(f"what is at {self.url} is no powerbench agent")

    def _refused(self, status: int) -> AgentFailed:
        if status in (401, 403) and self.knows_us:
            return AgentFailed(
                f"{self.url} refuses the token of --token-file: it must be the one of its own "
                "[agent.web] token_file"
            )
        if status == 403:
            return AgentFailed(
                f"{self.url} does not let this machine in: give --token-file, or add its network to "
                "[agent.web] trusted there"
            )
        return AgentFailed(f"{self.url} answers {status}: is it a powerbench agent of this version?")

    async def ready(self) -> None:
        """Wait until the agent has tried every collector. Raises: AgentFailed."""
        patience = time.monotonic() + 10.0
        while True:
            try:
                async with self._session.get(f"{self.url}/ready", timeout=_TIMEOUT) as answer:
                    if answer.status != 503:
                        return
            except (aiohttp.ClientError, OSError) as error:
                raise self._gone(error) from None
            if time.monotonic() > patience:
                raise AgentFailed(f"the agent at {self.url} is not ready after 10 s; see {self.url}/health")
            await asyncio.sleep(0.05)

    def _gone(self, error: Exception) -> AgentFailed:
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, socket.gaierror):
            if error.os_error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                return AgentFailed(f"no agent at {self.url}: the name {error.host} is unknown; check --agent")
            what = str(error.os_error.strerror).lower()
        elif isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
            what = os.strerror(error.os_error.errno).lower()
        else:
            what = str(error) or type(error).__name__
        return AgentFailed(f"no agent at {self.url}: {what}; start one there with: powerbench-agent")

    async def ingest(self, stream: str, chunks: AsyncIterator[bytes], pid: int) -> None:
        """Send that process's progress until the chunks end; an agent that is away loses it, no more."""
        timeout = aiohttp.ClientTimeout(total=None, connect=2.0)
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with self._session.post(
                f"{self.url}/ingest",
                params={"stream": stream, "pid": str(pid)},
                data=chunks,
                headers=self._headers,
                timeout=timeout,
            ):
                pass


class Sources(NamedTuple):
    """What the agents read energy from."""

    found: dict[str, set[str]]  # component → the sources that count
    missing: tuple[str, ...]  # why there is no more


class Meters:
    """The energy counters of all agents of a run."""

    def __init__(self, clients: Sequence[AgentClient]) -> None:
        self.clients = tuple(clients)
        # An agent that does not know us gives few fresh readings: they are kept for the edges.
        self._frequent = all(client.knows_us for client in self.clients)
        self.hertz = TRACE_HERTZ if self._frequent else BEAT_HERTZ

    async def ready(self) -> None:
        """Wait for all of them. Raises: AgentFailed."""
        await asyncio.gather(*(client.ready() for client in self.clients))

    async def edge(self, begin: Edge | None = None) -> Edge:
        """Read every counter now, for the edge of a window. Raises: AgentFailed.

        Waits a moment for what is not there at once: an agent that does not answer or has spent its fresh
        readings on other scrapers, a counter that was there when the window began.
        """
        patience = time.monotonic() + _EDGE_SECONDS
        while True:
            late = time.monotonic() > patience
            try:
                edge, fresh = await self._read(fresh=True)
            except AgentFailed:
                if late:
                    raise
            else:
                if late or (fresh and (begin is None or begin.marks.keys() <= edge.marks.keys())):
                    return edge
            await asyncio.sleep(0.1)

    async def glance(self) -> Edge:
        """Read every counter: now, or as of the agent's last beat. Raises: AgentFailed."""
        edge, _ = await self._read(fresh=self._frequent)
        return edge

    async def follow(self, seconds: float, hertz: float) -> list[Edge]:
        """Return the trace of these next seconds, when they are over. Raises: AgentFailed."""
        count = int(seconds * hertz + 1e-6)
        if count < 1 or not self._frequent:
            await asyncio.sleep(seconds if count < 1 else 1 / hertz)
            return [await self.glance()] if count else []
        rows = await asyncio.gather(*(client.watch(count, 1 / hertz) for client in self.clients))
        now = time.time()
        edges = [self._edge(snapshots) for snapshots in zip(*rows, strict=False)]
        # They came together; each was taken in its turn. By our own clock: every agent has another.
        return [e._replace(time=now - (len(edges) - n) / hertz) for n, e in enumerate(edges, 1)]

    async def sources(self) -> Sources:
        """Return what there is to read. Raises: AgentFailed."""
        snapshots = await asyncio.gather(*(client.snapshot() for client in self.clients))
        found: defaultdict[str, set[str]] = defaultdict(set)
        missing: list[str] = []
        for client, snapshot in zip(self.clients, snapshots, strict=True):
            for key in counted(parse_marks(client.label, snapshot)):
                found[key.component].add(key.source)
            if why := snapshot.get("absent", {}).get("rapl"):
                missing.append(f"rapl: {why}")
            down = {name: state for name, state in snapshot["collectors"].items() if not state["up"]}
            missing += [f"{name}: {state.get('error', 'down')}" for name, state in down.items()]
        return Sources(dict(found), tuple(missing))

    async def _read(self, *, fresh: bool) -> tuple[Edge, bool]:
        """Return the counters, and whether every agent has read them for us."""
        snapshots = await asyncio.gather(*(client.snapshot(fresh=fresh) for client in self.clients))
        return self._edge(snapshots), all(snapshot.get("fresh", True) for snapshot in snapshots)

    def _edge(self, snapshots: Sequence[dict[str, Any]]) -> Edge:
        marks: dict[MeterKey, Mark] = {}
        for client, snapshot in zip(self.clients, snapshots, strict=True):
            marks.update(parse_marks(client.label, snapshot))
        return Edge(time.time(), marks)


def parse_marks(agent: str, snapshot: dict[str, Any]) -> dict[MeterKey, Mark]:
    """Return the counters in an agent's snapshot."""
    return {
        MeterKey(agent, name, meter["component"], meter["source"], meter["key"]): Mark(
            meter["joules"], state["monotonic"]
        )
        for name, state in snapshot["collectors"].items()
        for meter in state["meters"]
    }


def counted(marks: dict[MeterKey, Mark]) -> list[MeterKey]:
    """Return the counters that add up: an estimate only where its agent measures nothing of the component."""
    measured = {(key.agent, key.component) for key in marks if key.source != ESTIMATE}
    return [key for key in marks if key.source != ESTIMATE or (key.agent, key.component) not in measured]


def window(begin: Edge, end: Edge) -> Energy:
    """Return the energy between two edges. Raises: AgentFailed where there is none to be had."""
    problems: list[str] = []
    joules: defaultdict[tuple[str, str], float] = defaultdict(float)
    watts: defaultdict[tuple[str, str], float] = defaultdict(float)
    spans: list[float] = []
    for key in counted(begin.marks):
        first, last = begin.marks[key], end.marks.get(key)
        name = f"{key.component} ({key.source} {key.key}) of {key.agent}"
        if last is None:
            problems.append(f"{name} could not be read at the window's end: its energy is missing")
        elif last.joules < first.joules:
            problems.append(
                f"{name} started anew within the window (an agent restarted?): its energy is missing"
            )
        elif last.monotonic <= first.monotonic:
            problems.append(f"{name} was not read within the window: its energy is missing")
        else:
            gained, span = last.joules - first.joules, last.monotonic - first.monotonic
            joules[key.component, key.source] += gained
            watts[key.component, key.source] += gained / span
            spans.append(span)
    problems += [
        f"{key.component} ({key.source} {key.key}) appeared within the window: its energy is missing"
        for key in counted(end.marks)
        if key not in begin.marks
    ]
    if not joules:
        raise AgentFailed("; ".join(problems) or "the agent has no energy counter; see its /health")
    parts = tuple(Part(*which, total, watts[which]) for which, total in sorted(joules.items()))
    return Energy(parts, sum(spans) / len(spans), tuple(problems))
