"""The meters of a run: the energy counters of all its agents, read at edges and in between as a trace."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from powerbench_agent.bench.meter.client import AgentFailed
from powerbench_agent.bench.meter.energy import Edge, Mark, MeterKey, counted
from powerbench_agent.bench.meter.gpus import GpuState, parse_gpus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from powerbench_agent.bench.meter.client import AgentClient

TRACE_HERTZ = 10.0
_LATEST_HERTZ = 1.0  # of an agent that gives only its latest readings
_GPU_SECONDS = 1.0  # that a look at the GPUs waits: no figure depends on it
_EDGE_SECONDS = 3.0  # that an edge waits for what is not there at once


class Sources(NamedTuple):
    """What the agents read energy from."""

    found: dict[str, set[str]]  # component → the sources that count
    missing: tuple[str, ...]  # why there are no more


class Meters:
    """The energy counters of all agents of a run."""

    def __init__(self, clients: Sequence[AgentClient]) -> None:
        self.clients = tuple(clients)
        # An agent that does not know us gives few fresh readings: they are kept for the edges.
        self._frequent = all(client.knows_us for client in self.clients)
        self.hertz = TRACE_HERTZ if self._frequent else _LATEST_HERTZ

    async def ready(self) -> None:
        """Wait for all of them. Raises: AgentFailed."""
        await asyncio.gather(*(client.ready() for client in self.clients))

    async def edge(self, begin: Edge | None = None) -> Edge:
        """Read every counter now, for the edge of a window. Raises: AgentFailed.

        Waits a moment for what is not there at once: an agent that does not answer or has spent its fresh
        readings on other scrapers, a counter that was there when the window began.
        """
        give_up = time.monotonic() + _EDGE_SECONDS
        while True:
            late = time.monotonic() > give_up
            try:
                edge, fresh = await self._read(fresh=True)
            except AgentFailed:
                if late:
                    raise
            else:
                complete = begin is None or begin.marks.keys() <= edge.marks.keys()
                if late or (fresh and complete):
                    return edge
            await asyncio.sleep(0.1)

    async def glance(self) -> Edge:
        """Read every counter: now, or as of the agent's last reading. Raises: AgentFailed."""
        edge, _ = await self._read(fresh=self._frequent)
        return edge

    async def follow(self, seconds: float, hertz: float) -> list[Edge]:
        """Return the trace of the next seconds, once they are over. Raises: AgentFailed."""
        count = int(seconds * hertz + 1e-6)
        if count < 1:
            await asyncio.sleep(seconds)
            return []
        if not self._frequent:
            await asyncio.sleep(1 / hertz)
            return [await self.glance()]
        by_client = await asyncio.gather(*(client.watch(count, 1 / hertz) for client in self.clients))
        now = time.time()
        edges = [self._edge(snapshots) for snapshots in zip(*by_client, strict=False)]
        # They came together, and each was taken in its turn. By our own clock: every agent has another.
        return [
            edge._replace(time=now - (len(edges) - number) / hertz) for number, edge in enumerate(edges, 1)
        ]

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
            for name, state in snapshot["collectors"].items():
                if not state["up"]:
                    missing.append(f"{name}: {state.get('error', 'down')}")
        return Sources(dict(found), tuple(missing))

    async def gpus(self) -> dict[str, GpuState]:
        """Return the GPUs as the agents have last read them; nothing of an agent that does not answer."""
        several = len(self.clients) > 1
        found: dict[str, GpuState] = {}
        for client, snapshot in zip(
            self.clients, await asyncio.gather(*map(_samples_of, self.clients)), strict=True
        ):
            found |= parse_gpus(snapshot, client.label if several else "")
        return found

    async def _read(self, *, fresh: bool) -> tuple[Edge, bool]:
        """Return the counters, and whether every agent has read them for us."""
        snapshots = await asyncio.gather(*(client.snapshot(fresh=fresh) for client in self.clients))
        return self._edge(snapshots), all(snapshot.get("fresh", True) for snapshot in snapshots)

    def _edge(self, snapshots: Sequence[dict[str, Any]]) -> Edge:
        marks: dict[MeterKey, Mark] = {}
        for client, snapshot in zip(self.clients, snapshots, strict=True):
            marks.update(parse_marks(client.label, snapshot))
        return Edge(time.time(), marks)


async def _samples_of(client: AgentClient) -> dict[str, Any]:
    """Return an agent's snapshot with its samples; nothing if it does not answer at once."""
    try:
        async with asyncio.timeout(_GPU_SECONDS):
            return await client.samples()
    except (AgentFailed, TimeoutError):
        return {}


def parse_marks(agent: str, snapshot: dict[str, Any]) -> dict[MeterKey, Mark]:
    """Return the counters in an agent's snapshot."""
    marks: dict[MeterKey, Mark] = {}
    for collector, state in snapshot["collectors"].items():
        for meter in state["meters"]:
            key = MeterKey(agent, collector, meter["component"], meter["source"], meter["key"])
            marks[key] = Mark(meter["joules"], state["monotonic"])
    return marks
