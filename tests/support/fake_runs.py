"""Meters, a display and a run whose time is the loop's, for tests of the runner and its phases."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, cast

from powerbench_agent.bench.load.ffmpeg import Ffmpeg
from powerbench_agent.bench.meter.client import AgentFailed
from powerbench_agent.bench.meter.energy import Edge, Mark, MeterKey
from powerbench_agent.bench.plan.plan import Plan
from powerbench_agent.bench.run import runner
from powerbench_agent.bench.run.measuring import EncodingTools
from powerbench_agent.bench.run.record import ResultsRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from powerbench_agent.bench.meter.meters import Meters
    from powerbench_agent.bench.plan.scenario import Scenario
    from powerbench_agent.bench.run.runner import Run

KEY = MeterKey("here", "rapl", "cpu", "rapl", "0")
NOW = 1_800_000_000.0  # Unix seconds when the loop begins


class FakeMeters:
    """A counter that runs with the loop's time."""

    hertz = 10.0
    clients = (None,)

    def __init__(self) -> None:
        self.joules: Callable[[float], float] = lambda second: 30 * second
        self.away = (0.0, 0.0)  # from when to when it does not answer

    async def edge(self, _: Edge | None = None) -> Edge:
        now = asyncio.get_running_loop().time()
        return Edge(NOW + now, {KEY: Mark(self.joules(now), now)})

    async def glance(self) -> Edge:
        if self.away[0] < asyncio.get_running_loop().time() < self.away[1]:
            raise AgentFailed("it is away")
        return await self.edge()

    async def follow(self, seconds: float, hertz: float) -> list[Edge]:
        edges = []
        for _ in range(int(seconds * hertz + 1e-6)):
            await asyncio.sleep(1 / hertz)
            edges.append(await self.glance())
        if not edges:
            await asyncio.sleep(seconds)
        return edges


class FakeDisplay:
    """Knows which phases there were."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.totals: list[tuple[float, str]] = []
        self.updates: list[tuple[float, str]] = []
        self.cancel_in = ""
        self.cancel_after = 0.0  # seconds; half of the phase if it is 0

    def say(self, text: str) -> None:
        pass

    def begin(self, title: str, total: float, unit: str = "s") -> None:
        self.phases.append(title)
        self.totals.append((total, unit))
        task = asyncio.current_task()
        if title == self.cancel_in and task is not None:
            asyncio.get_running_loop().call_later(self.cancel_after or total / 2, task.cancel)

    def update(self, elapsed: float, news: str) -> None:
        self.updates.append((elapsed, news))

    def end(self) -> None:
        pass


class Bench:
    """A run to be, and what has come of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results = ResultsRecord(path, {})
        self.meters = FakeMeters()
        self.display = FakeDisplay()

    async def run(self, *scenarios: Scenario, strict: bool = False) -> Run:
        plan = Plan(scenarios=scenarios, output_dir=self.results.path.parent, strict=strict)
        tools = EncodingTools(Ffmpeg("ffmpeg", "5.1", "", frozenset()))
        return await runner.Runner(plan, tools, cast("Meters", self.meters), self.display, self.results).run()

    @property
    def written(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.results.path.read_text())["scenarios"]
        return found
