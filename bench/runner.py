"""Runs scenarios one after the other: idle or stream, warm-up, window, record.

What goes wrong in a scenario ends that scenario; what was measured until then is kept, and said.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import aiohttp

from powerbench.bench import agents, fingerprint, load, quality
from powerbench.bench import ffmpeg as binaries
from powerbench.bench.ffmpeg import NotHere
from powerbench.bench.figures import encode_figures
from powerbench.bench.load import Encoder, Relay, Sink, StreamFailed
from powerbench.bench.meters import AgentFailed, Edge, Energy, Meters, window
from powerbench.bench.outcome import Outcome, describe, judge
from powerbench.bench.record import Results, Trace, trace_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from powerbench.bench.display import Display
    from powerbench.bench.ffmpeg import Ffmpeg
    from powerbench.bench.scenario import Scenario

CLOCK_STEP_SECONDS = 0.5


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    scenarios: tuple[Scenario, ...]
    output_dir: Path
    agents: tuple[str, ...] = ()
    token: str = ""
    sink: str = "embedded"
    ffmpeg: str = ""
    require_measured: bool = False
    compute_quality: bool = False


@dataclass
class Run:
    """What a run has come to."""

    outcomes: list[Outcome] = field(default_factory=list)
    path: Path | None = None
    trace: Path | None = None
    interrupted: bool = False
    unsaved: str = ""  # why something of it could not be written


class _Window:
    """A window while it is open: its edges so far."""

    def __init__(self) -> None:
        self.begin: Edge | None = None
        self.end: Edge | None = None
        self.began = self.ended = 0.0  # monotonic seconds here
        self.readings = 0

    def open(self, edge: Edge) -> None:
        self.begin, self.began = edge, time.monotonic()

    def move(self, edge: Edge) -> None:
        self.end, self.ended = edge, time.monotonic()

    @property
    def hertz(self) -> float | None:
        seconds = self.ended - self.began
        return round(self.readings / seconds, 2) if seconds > 0 else None

    def energy(self) -> Energy | None:
        if self.begin is None or self.end is None or self.ended <= self.began:
            return None
        with contextlib.suppress(AgentFailed):
            return window(self.begin, self.end)
        return None


async def run(plan: Plan, display: Display) -> Run:
    """Run every scenario of the plan. Raises: NotHere, AgentFailed before anything is measured."""
    ffmpeg = await binaries.find_ffmpeg(plan.ffmpeg)
    for scenario in plan.scenarios:
        if scenario.type != "baseline":
            binaries.check_encoder(ffmpeg, scenario, plan.sink)
    binaries.check_sink(plan.sink)
    if not plan.ffmpeg and shutil.which("ffmpeg") != ffmpeg.path:
        display.say(f"No ffmpeg on the PATH: {ffmpeg.version} of imageio-ffmpeg is used.")
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        meters = await agents.choose(plan.agents, plan.token, session, stack, display.say)
        sources = await meters.sources()
        agents.check(sources, require_measured=plan.require_measured)
        for line in agents.describe(sources):
            display.say(line)
        _check_directory(plan.output_dir)
        head = {
            "host": fingerprint.host(),
            "ffmpeg": {"path": ffmpeg.path, "version": ffmpeg.version, "sha256": ffmpeg.sha256},
            "sink": plan.sink,
            "agents": [client.label for client in meters.clients],
        }
        return await _Runner(plan, ffmpeg, meters, display, Results(plan.output_dir, head)).run()


def _check_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".powerbench-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise NotHere(
            f"cannot write results to {directory}: {error.strerror}; choose another with --output-dir"
        ) from None


class _Runner:
    """One run's moving parts."""

    def __init__(
        self, plan: Plan, ffmpeg: Ffmpeg, meters: Meters, display: Display, results: Results
    ) -> None:
        self._plan = plan
        self._ffmpeg = ffmpeg
        self._meters = meters
        self._display = display
        self._results = results
        self._trace = Trace()
        self._baseline: Outcome | None = None
        self._notes: list[str] = []  # of the scenario that is running

    async def run(self) -> Run:
        done = Run()
        try:
            for scenario in self._plan.scenarios:
                outcome = await self._scenario(scenario)
                done.outcomes.append(outcome)
                self._save(done)
                if outcome.status == "ok" and scenario.type == "baseline":
                    self._baseline = outcome
                if outcome.status != "interrupted":
                    outcome = done.outcomes[-1] = await self._after(outcome)
                    self._save(done)
                if outcome.status == "interrupted":
                    done.interrupted = True
                    break
            self._save_trace(done)
        finally:
            self._trace.close()
        return done

    def _save(self, done: Run) -> None:
        """Write the results file anew. A full disk is no reason to lose the table."""
        baseline = self._baseline.scenario.name if self._baseline else None
        try:
            self._results.save([describe(outcome, baseline) for outcome in done.outcomes])
        except OSError as error:
            done.unsaved = f"cannot write {self._results.path}: {error.strerror or error}"
        else:
            done.path = self._results.path

    def _save_trace(self, done: Run) -> None:
        if not self._trace.rows:
            return
        path = trace_path(self._results.path)
        try:
            self._trace.save(path, self._results.run_id)
        except OSError as error:
            done.unsaved = done.unsaved or f"cannot write {path}: {error.strerror or error}"
        else:
            done.trace = path

    async def _scenario(self, scenario: Scenario) -> Outcome:
        """Run one scenario, whatever happens in it."""
        opened = _Window()
        status, error = "ok", ""
        points: list[load.Point] = []
        cpu: dict[str, float] = {}
        self._notes.clear()
        began = time.time(), time.monotonic()
        try:
            if scenario.type == "baseline":
                await self._wait("settling", scenario.stabilization)
                await self._measure("idle baseline", scenario, opened)
            else:
                await self._stream(scenario, opened, points, cpu)
        except (StreamFailed, AgentFailed) as failure:
            status, error = "failed", str(failure)
        except asyncio.CancelledError:
            status, error = "interrupted", "what was measured until then is kept"
            _uncancel()
        stepped = (time.time() - began[0]) - (time.monotonic() - began[1])
        if abs(stepped) > CLOCK_STEP_SECONDS:
            self._notes.append(f"the clock was set by {stepped:+.1f} s: the start and end times are off")
        energy = opened.energy()
        encode = None
        if scenario.type != "baseline" and energy is not None:
            encode = encode_figures(points, opened.began, opened.ended)
        outcome = Outcome(
            scenario,
            status,
            error,
            energy,
            encode,
            warnings=tuple(self._notes),
            start_time=opened.begin.time if opened.begin else None,
            end_time=opened.end.time if opened.end else None,
            trace={"asked_hz": self._meters.hertz, "readings": opened.readings, "hz": opened.hertz},
            cpu_seconds=cpu,
        )
        return judge(outcome, self._baseline.energy if self._baseline else None)

    async def _after(self, outcome: Outcome) -> Outcome:
        """Do what comes after a window, when its figures are safe: score the picture, cool down."""
        scenario = outcome.scenario
        try:
            if self._plan.compute_quality and outcome.encode is not None and outcome.status == "ok":
                self._display.say("Scoring the picture, after the window.")
                outcome = replace(outcome, quality=await self._scores(scenario))
            await self._wait("cooling down", scenario.cooldown)
        except asyncio.CancelledError:
            _uncancel()
            return replace(outcome, status="interrupted", error="after its window, whose figures hold")
        return outcome

    async def _stream(
        self, scenario: Scenario, opened: _Window, points: list[load.Point], cpu: dict[str, float]
    ) -> None:
        relay = Relay(self._meters.clients[0], scenario.name)
        try:
            async with load.streaming(self._ffmpeg, scenario, self._plan.sink, relay.send) as (
                encoder,
                receiver,
            ):
                encoder.points, already = points, encoder.points
                points.extend(already)
                await self._wait("warming up", scenario.stabilization, encoder)
                before = _cpu(encoder, receiver)
                try:
                    await self._measure(scenario.name, scenario, opened, encoder)
                finally:
                    after = _cpu(encoder, receiver)
                    cpu.update(
                        {name: after[name] - before[name] for name in after if after[name] >= before[name]}
                    )
        finally:
            await relay.close()

    async def _wait(self, title: str, seconds: float, encoder: Encoder | None = None) -> None:
        if seconds > 0:
            await self._poll(title, seconds, encoder, lambda _: None)

    async def _measure(
        self, title: str, scenario: Scenario, opened: _Window, encoder: Encoder | None = None
    ) -> None:
        """Open the window, keep the trace, close it: exact readings at both edges."""
        opened.open(await self._meters.edge())
        assert opened.begin is not None  # noqa: S101 - opened
        self._trace.take(scenario.name, "window", opened.begin)

        def keep(edge: Edge) -> None:
            opened.move(edge)
            opened.readings += self._trace.take(scenario.name, "window", edge)

        await self._poll(title, scenario.duration, encoder, keep)
        keep(await self._meters.edge(opened.begin))

    async def _poll(
        self, title: str, seconds: float, encoder: Encoder | None, keep: Callable[[Edge], None]
    ) -> None:
        """Look at the meters, and after the encoder, until the time is up."""
        self._display.begin(title, seconds)
        begun = last_shown = time.monotonic()
        hertz = self._meters.hertz
        before: Edge | None = None
        ticks = 0
        while (elapsed := time.monotonic() - begun) < seconds:
            ticks = max(ticks + 1, int(elapsed * hertz) + 1)
            await asyncio.sleep(min(ticks / hertz, seconds) - elapsed)
            if encoder is not None:
                encoder.check_alive()
            if time.monotonic() - begun >= seconds:
                break
            try:
                edge = await self._meters.glance()
            except AgentFailed as failed:  # the counters make up for it at the edge; the trace has a gap
                if (note := f"the trace has a gap: {failed}") not in self._notes:
                    self._notes.append(note)
                continue
            keep(edge)
            if before is None:
                before = edge
            elif time.monotonic() - last_shown >= 1:
                self._display.update(time.monotonic() - begun, _news(before, edge, encoder))
                before, last_shown = edge, time.monotonic()
        self._display.end()

    async def _scores(self, scenario: Scenario) -> dict[str, Any]:
        try:
            return dict(await quality.score(self._ffmpeg, scenario))
        except (StreamFailed, OSError) as failed:
            return {"missing": str(failed)}


def _uncancel() -> None:
    """Take the interruption: from here on the run goes on to its end in order."""
    if task := asyncio.current_task():
        task.uncancel()


def _cpu(encoder: Encoder, receiver: Sink | None) -> dict[str, float]:
    used = {"encoder": encoder.cpu_seconds()}
    if receiver is not None:
        used["sink"] = receiver.cpu_seconds()
    return used


def _news(before: Edge, now: Edge, encoder: Encoder | None) -> str:
    """Return one line of live figures."""
    parts = []
    with contextlib.suppress(AgentFailed):
        energy = window(before, now)
        parts.append(f"{energy.watts:.2f} W ({energy.source})")
    if encoder is not None and len(encoder.points) > 1:
        end = encoder.points[-1].at
        begin = max(encoder.points[0].at, end - 5)
        if end > begin:
            lately = encode_figures(encoder.points, begin, end)
            if lately.fps is not None:
                parts.append(f"{lately.fps:.1f} fps")
            if lately.kbps is not None:
                parts.append(f"{lately.kbps:.0f} kbps")
    return ", ".join(parts)
