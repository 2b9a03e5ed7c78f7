"""Runs scenarios one after the other: idle or stream, warm-up, window, record.

What goes wrong in a scenario ends that scenario; what was measured until then is kept, and said.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from powerbench.agent import config, daemon, roster
from powerbench.bench import fingerprint, load, quality
from powerbench.bench.figures import Difference, Encode, difference, encode_figures, per, warnings_of
from powerbench.bench.load import Encoder, NotHere, Relay, Sink, StreamFailed
from powerbench.bench.meters import ESTIMATE, AgentClient, AgentFailed, Edge, Energy, Meters, Sources, window
from powerbench.bench.record import Results, Trace, trace_path
from powerbench.bench.scenario import AUDIO_KBPS, Scenario, format_bitrate

if TYPE_CHECKING:
    from collections.abc import Callable

    from powerbench.bench.display import Display
    from powerbench.bench.load import Ffmpeg

LOCAL_AGENT = f"http://127.0.0.1:{config.DEFAULT_PORT}"
CLOCK_STEP_SECONDS = 0.5

_ACCESS = (
    "run on bare metal with access to RAPL (docs/guide.md, access to RAPL), "
    "or name an agent that measures with --agent URL"
)


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


class Outcome(NamedTuple):
    """One scenario's figures, for the table."""

    scenario: Scenario
    status: str  # "ok", "failed", "interrupted"
    energy: Energy | None
    encode: Encode | None
    versus: Difference | None
    warnings: tuple[str, ...]
    error: str = ""


@dataclass
class Run:
    """What a run has come to."""

    outcomes: list[Outcome] = field(default_factory=list)
    path: Path | None = None
    trace: Path | None = None
    interrupted: bool = False


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

    def energy(self) -> Energy | None:
        if self.begin is None or self.end is None or self.ended <= self.began:
            return None
        with contextlib.suppress(AgentFailed):
            return window(self.begin, self.end)
        return None


async def run(plan: Plan, display: Display) -> Run:
    """Run every scenario of the plan. Raises: NotHere, AgentFailed before anything is measured."""
    ffmpeg = await load.find_ffmpeg(plan.ffmpeg)
    for scenario in plan.scenarios:
        if scenario.type != "baseline":
            load.check_encoder(ffmpeg, scenario, plan.sink)
    load.check_sink(plan.sink)
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        meters = await _meters(plan, session, stack, display)
        await _say_sources(plan, meters, display)
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


async def _meters(
    plan: Plan, session: aiohttp.ClientSession, stack: contextlib.AsyncExitStack, display: Display
) -> Meters:
    """Return the meters of the agents that were named, else of one in this process. Raises: AgentFailed."""
    if plan.agents:
        meters = Meters([AgentClient(session, url, plan.token) for url in plan.agents])
        await meters.ready()
        return meters
    modules = roster.load_modules()
    settings = config.load(None, roster.options_of(modules))
    inside = await stack.enter_async_context(daemon.embedded(settings, modules))
    meters = Meters([AgentClient(session, inside.url, inside.token, label="embedded")])
    await meters.ready()
    if _estimates(await meters.sources()):
        local = Meters([AgentClient(session, LOCAL_AGENT, plan.token)])
        with contextlib.suppress(AgentFailed):
            if not _estimates(await local.sources()):
                display.say(
                    f"This process could only estimate; the agent at {LOCAL_AGENT} measures: it is used."
                )
                return local
    return meters


def _estimates(sources: Sources) -> bool:
    """Return whether nothing measures the CPU."""
    return sources.found.get("cpu", {ESTIMATE}) == {ESTIMATE}


async def _say_sources(plan: Plan, meters: Meters, display: Display) -> None:
    """Say where the joules will come from. Raises: NotHere where they must be measured and are not."""
    sources = await meters.sources()
    missing = "; ".join(sources.missing)
    if _estimates(sources) and plan.require_measured:
        raise NotHere(f"nothing measures the CPU's energy here ({missing or 'no source'}): {_ACCESS}")
    if not sources.found:
        raise NotHere(f"the agent has no energy source ({missing or 'see its /health'}): {_ACCESS}")
    parts = sorted(sources.found.items())
    listed = ", ".join(f"{component}: {' + '.join(sorted(names))}" for component, names in parts)
    display.say(f"Joules come from {listed}.")
    if _estimates(sources):
        why = next((reason for reason in sources.missing if reason.startswith("rapl")), "no source")
        display.say(f"Nothing measures the CPU here ({why}): its energy is an estimate, a model of CPU time.")


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

    async def run(self) -> Run:
        done = Run()
        for scenario in self._plan.scenarios:
            outcome = await self._scenario(scenario)
            done.outcomes.append(outcome)
            if outcome.status == "ok" and scenario.type == "baseline":
                self._baseline = outcome
            if outcome.status == "interrupted":
                done.interrupted = True
                break
        done.path = self._results.path
        if self._trace.rows:
            done.trace = trace_path(done.path)
            self._trace.save(done.trace, self._results.run_id)
        self._trace.close()
        return done

    async def _scenario(self, scenario: Scenario) -> Outcome:
        """Run one scenario, and record what it came to, whatever happened."""
        opened = _Window()
        status, error = "ok", ""
        points: list[load.Point] = []
        cpu: dict[str, float] = {}
        started = time.time(), time.monotonic()
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
            if task := asyncio.current_task():
                task.uncancel()
        outcome = self._judge(scenario, opened, points, status, error)
        stepped = (time.time() - started[0]) - (time.monotonic() - started[1])
        if abs(stepped) > CLOCK_STEP_SECONDS:
            what = (
                f"the clock was set by {stepped:+.1f} s during the scenario: its start and end times are off"
            )
            outcome = outcome._replace(warnings=(*outcome.warnings, what))
        scores = await self._scores(scenario) if status == "ok" and self._plan.compute_quality else None
        self._results.add(self._describe(outcome, opened, cpu, scores))
        if status == "ok" and scenario.cooldown:
            try:
                await self._wait("cooling down", scenario.cooldown)
            except asyncio.CancelledError:
                return outcome._replace(status="interrupted")
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
        keep(await self._meters.edge())

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
                load.check_alive(encoder)
            if time.monotonic() - begun >= seconds:
                break
            edge = await self._meters.glance()
            keep(edge)
            if before is None:
                before = edge
            elif time.monotonic() - last_shown >= 1:
                self._display.update(time.monotonic() - begun, _news(before, edge, encoder))
                before, last_shown = edge, time.monotonic()
        self._display.end()

    def _judge(
        self, scenario: Scenario, opened: _Window, points: list[load.Point], status: str, error: str
    ) -> Outcome:
        energy = opened.energy()
        encode = None
        if scenario.type != "baseline" and energy is not None:
            encode = encode_figures(points, opened.began, opened.ended)
        versus = None
        warnings = list(energy.problems) if energy else []
        if energy is not None and self._baseline is not None and self._baseline.energy is not None:
            idle = self._baseline.energy
            if {part[:2] for part in energy.parts} == {part[:2] for part in idle.parts}:
                versus = difference(energy, idle)
            else:
                warnings.append(
                    "the baseline's joules come from other sources than the test's: they are not compared"
                )
        if encode is not None:
            warnings += warnings_of(encode, scenario.asked_kbps)
        if status == "ok" and energy is None:
            status, error = "failed", "the window has no energy reading; see the agent's /health"
        return Outcome(scenario, status, energy, encode, versus, tuple(warnings), error)

    async def _scores(self, scenario: Scenario) -> dict[str, Any] | None:
        if scenario.type == "baseline":
            return None
        self._display.say("Scoring the picture, after the window.")
        try:
            return dict(await quality.score(self._ffmpeg, scenario))
        except StreamFailed as failed:
            return {"missing": str(failed)}

    def _describe(
        self, outcome: Outcome, opened: _Window, cpu: dict[str, float], scores: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Return the scenario as the results file holds it."""
        scenario, energy, encode = outcome.scenario, outcome.energy, outcome.encode
        streams = scenario.type != "baseline"
        bitrate = format_bitrate(scenario.video_kbps) if streams else "0k"
        resolution = str(scenario.resolution) if streams else "N/A"
        described: dict[str, Any] = {
            "name": scenario.name,
            "type": scenario.type,
            "status": outcome.status,
            "bitrate": bitrate,
            "resolution": resolution,
            "fps": scenario.fps,
            "duration": scenario.duration,
            "stabilization": scenario.stabilization,
            "cooldown": scenario.cooldown,
            "encoder": scenario.encoder,
            "preset": scenario.preset,
            "outputs": [{"bitrate": bitrate, "resolution": resolution, "fps": scenario.fps}]
            if streams
            else [],
            "start_time": opened.begin.time if opened.begin else None,
            "end_time": opened.end.time if opened.end else None,
            "energy": _describe_energy(energy) if energy else None,
            "warnings": list(outcome.warnings),
            "trace": {"asked_hz": self._meters.hertz, "readings": opened.readings, "hz": _rate(opened)},
        }
        if outcome.error:
            described["error"] = outcome.error
        if streams and encode is not None and energy is not None:
            described["encode"] = {
                **encode._asdict(),
                "achieved_kbps": encode.kbps,
                "asked_kbps": scenario.asked_kbps,
                "asked_audio_kbps": AUDIO_KBPS,
                "achieved_fps": encode.fps,
                "joules_per_frame": per(energy.watts, encode.frames, encode.seconds),
                "joules_per_megabit": per(energy.watts, encode.megabits, encode.seconds),
                "cpu_seconds": cpu,
                "source": energy.source,
            }
            if scores is not None:
                described["encode"]["quality"] = scores
        if streams and outcome.versus is not None and self._baseline is not None and encode and energy:
            described["versus_baseline"] = {
                "baseline": self._baseline.scenario.name,
                "delta_watts": outcome.versus.watts,
                "delta_wh": outcome.versus.watt_hours,
                "percent": outcome.versus.percent,
                "joules_per_frame": per(outcome.versus.watts, encode.frames, encode.seconds),
                "joules_per_megabit": per(outcome.versus.watts, encode.megabits, encode.seconds),
                "source": energy.source,
            }
        return described


def _describe_energy(energy: Energy) -> dict[str, Any]:
    return {
        "source": energy.source,
        "measured": energy.measured,
        "seconds": energy.seconds,
        "joules": energy.joules,
        "wh": energy.watt_hours,
        "mean_watts": energy.watts,
        "parts": [part._asdict() for part in energy.parts],
    }


def _rate(opened: _Window) -> float | None:
    seconds = opened.ended - opened.began
    return round(opened.readings / seconds, 2) if seconds > 0 else None


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
