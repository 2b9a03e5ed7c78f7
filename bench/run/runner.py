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

from powerbench_agent.bench.exits import BadFile
from powerbench_agent.bench.load import ffmpeg as binaries
from powerbench_agent.bench.load import quality
from powerbench_agent.bench.load.child import StreamFailed
from powerbench_agent.bench.load.ffmpeg import NotHere
from powerbench_agent.bench.load.nginx import private_nginx
from powerbench_agent.bench.load.streams import streaming
from powerbench_agent.bench.meter import choose, fingerprint
from powerbench_agent.bench.meter.client import AgentFailed
from powerbench_agent.bench.meter.conditions import describe as describe_conditions
from powerbench_agent.bench.meter.conditions import read_conditions, warnings_of
from powerbench_agent.bench.run.figures import combine, encode_figures
from powerbench_agent.bench.run.outcome import Outcome, compare, describe, judge
from powerbench_agent.bench.run.phases import Phases, Window
from powerbench_agent.bench.run.record import Results, Trace, trace_path
from powerbench_agent.core.host import Host
from powerbench_agent.core.results import baselines_of, parse_scenario, valid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from powerbench_agent.bench.load.encoder import Point
    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.meter.conditions import Conditions
    from powerbench_agent.bench.meter.meters import Meters
    from powerbench_agent.bench.plan.plan import Plan
    from powerbench_agent.bench.plan.scenario import Scenario
    from powerbench_agent.bench.run.display import Display
    from powerbench_agent.bench.run.phases import Settling

CLOCK_STEP_SECONDS = 0.5
# What a scenario of one name must have in common to be the same.
_SETTINGS = (
    *("type", "bitrates", "resolution", "fps", "duration", "stabilization", "cooldown", "encoder", "preset"),
    *("outputs", "block"),
)
MAX_BASELINE_AGE = 3600.0  # seconds


@dataclass
class Run:
    """What a run has come to."""

    outcomes: list[Outcome] = field(default_factory=list)
    path: Path | None = None
    trace: Path | None = None
    interrupted: bool = False
    repeats: int = 0  # windows that the file holds of a test, at most
    unsaved: str = ""  # why something of it could not be written


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
        meters = await choose.choose(plan.agents, plan.token, session, stack, display.say)
        sources = await meters.sources()
        choose.check(sources, require_measured=plan.require_measured)
        for line in choose.describe(sources):
            display.say(line)
        _check_directory(plan.output_dir)
        head = {
            "host": fingerprint.host(),
            "ffmpeg": {"path": ffmpeg.path, "version": ffmpeg.version, "sha256": ffmpeg.sha256},
            "sink": plan.sink,
            "agents": [client.label for client in meters.clients],
            "settings": dict(plan.settings),
            "rates": dict(plan.rates),
        }
        if plan.resume is not None:
            results = Results.resumed(plan.resume, head)
        else:
            results = Results(plan.output_dir, head, plan.suffix)
        if plan.sink == "nginx":
            plan = replace(plan, sink=await stack.enter_async_context(private_nginx()))
        return await _Runner(plan, ffmpeg, meters, display, results).run()


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


class _Running:
    """What is known of a scenario while it runs, whatever ends it."""

    def __init__(self) -> None:
        self.window = Window()
        self.points: dict[str, list[Point]] = {}  # by stream
        self.cpu: dict[str, float] = {}  # seconds of encoders and sinks
        self.settling: Settling | None = None
        self.before: Conditions | None = None
        self.after: Conditions | None = None


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
        # What an earlier run of the same file has finished, as it stands there.
        self._kept = {entry["name"]: entry for entry in results.earlier if entry.get("status") == "ok"}
        self._check_kept()
        self._trace = Trace()
        self._unsaved: dict[str, str] = {}  # why, by which file
        self._saved = self._traced = 0  # outcomes that the results and the trace hold
        self._sink = plan.sink
        self._host = Host()
        self._phases = Phases(meters, self._trace, display, self._host)
        self._first = read_conditions(self._host)
        kept = [parse_scenario(entry) for entry in self._kept.values()]
        self._baselines = [scenario for scenario in kept if scenario.is_baseline and valid(scenario)]
        self._interrupted = False

    async def run(self) -> Run:
        done = Run(path=self._results.path if self._results.earlier else None)
        try:
            for scenario in self._plan.scenarios:
                if scenario.name in self._kept:
                    continue
                outcome = await self._scenario(scenario)
                done.outcomes.append(outcome)
                self._save_trace(done)  # first: a scenario that is in the results has its trace
                self._save(done)
                if outcome.status == "ok" and scenario.type == "baseline":
                    self._baselines.append(outcome.recorded)
                    done.outcomes = [compare(each, self._baselines) for each in done.outcomes]
                if outcome.status != "interrupted":
                    outcome = done.outcomes[-1] = await self._after(outcome)
                    self._save(done)
                if outcome.status == "interrupted" or self._interrupted:
                    done.interrupted = True
                    break
        finally:
            self._trace.close()
        blocks = {outcome.scenario.block for outcome in done.outcomes if outcome.encode is not None}
        blocks |= {entry.get("block", 0) for entry in self._kept.values() if entry.get("encode")}
        done.repeats = len(blocks)
        return done

    def _save(self, done: Run) -> None:
        """Write the results file anew. A full disk is no reason to lose the table."""
        try:
            new = {outcome.scenario.name: describe(outcome) for outcome in done.outcomes}
            described = self._kept | new
            order = list(dict.fromkeys([*(s.name for s in self._plan.scenarios), *described]))
            self._results.save([described[name] for name in order if name in described])
        except OSError as error:
            first, last = done.outcomes[min(self._saved, len(done.outcomes) - 1)], done.outcomes[-1]
            left = "the figures above are all there is of it"
            if self._saved == len(done.outcomes):
                left = f"the file holds {last.scenario.name} without its scores"
            elif self._saved or self._results.earlier:
                left = f"the file holds what was measured before {first.scenario.name}"
            what = f"cannot write {self._results.path}: {error.strerror or error}; {left}"
            self._unsaved["results"] = what
        else:
            self._unsaved.pop("results", None)  # it is written whole each time
            self._saved = len(done.outcomes)
            done.path = self._results.path
        self._say_unsaved(done)

    def _say_unsaved(self, done: Run) -> None:
        done.unsaved = self._unsaved.get("results") or self._unsaved.get("trace", "")

    def _check_kept(self) -> None:
        """Refuse to go on where a name means other settings by now. Raises: BadFile."""
        kept = [scenario for scenario in self._plan.scenarios if scenario.name in self._kept]
        for scenario in kept:
            now = describe(Outcome(scenario, "ok"))
            was = self._kept[scenario.name]
            changed = [
                f"{key} {was[key]} there and {now[key]} now"
                for key in _SETTINGS
                if key in was and was[key] != now[key]
            ]
            known = "input_sha256" if "input_sha256" in was else "input"  # a clip may have moved
            if was.get(known) != now.get(known):
                changed.append(f"input {_clip_text(was)} there and {_clip_text(now)} now")
            if changed:
                what = f"{scenario.name!r} has other settings: {', '.join(changed)}"
                raise BadFile(f"--resume {self._results.path}: {what}")
        if self._results.earlier:
            self._display.say(f"{len(kept)} of {len(self._plan.scenarios)} scenarios are there already.")

    def _save_trace(self, done: Run) -> None:
        if not self._trace.rows:
            return
        try:
            self._results.reserve()
        except OSError:
            return  # there is no name for it yet; the results say so
        path = trace_path(self._results.path)
        try:
            self._trace.save(path, self._results.run_id)
        except OSError as error:
            left = f"it lacks {done.outcomes[self._traced].scenario.name} and what came after"
            self._unsaved["trace"] = f"cannot write {path}: {error.strerror or error}; {left}"
        else:
            self._unsaved.pop("trace", None)  # what could not be written before is in it
            self._traced = len(done.outcomes)
            done.trace = path
        self._say_unsaved(done)

    async def _scenario(self, scenario: Scenario) -> Outcome:
        """Run one scenario, whatever happens in it."""
        running = _Running()
        status, error = "ok", ""
        notes = self._phases.notes
        notes.clear()
        began = time.time(), time.monotonic()
        try:
            if scenario.type == "baseline":
                await self._idle(scenario, running)
            else:
                await self._stream(scenario, running)
        except (StreamFailed, AgentFailed) as failure:
            status, error = "failed", str(failure)
        except asyncio.CancelledError:
            status, error = "interrupted", "what was measured until then is kept"
            _uncancel()
        stepped = (time.time() - began[0]) - (time.monotonic() - began[1])
        if abs(stepped) > CLOCK_STEP_SECONDS:
            notes.append(f"the clock was set by {stepped:+.1f} s: the start and end times are off")
        opened = running.window
        energy = opened.energy()
        per_stream = {}
        if energy is not None:
            per_stream = {
                name: encode_figures(points, opened.began, opened.ended)
                for name, points in running.points.items()
            }
        around = None
        if running.before is not None and running.after is not None:
            ours = sum(running.cpu.values())
            around = describe_conditions(running.before, running.after, ours)
            notes += warnings_of(running.before, running.after, self._first, ours)
        outcome = Outcome(
            scenario,
            status,
            error,
            energy,
            combine(list(per_stream.values())) if per_stream else None,
            start_time=opened.begin.time if opened.begin else None,
            end_time=opened.end.time if opened.end else None,
            trace={"asked_hz": self._meters.hertz, "readings": opened.readings, "hz": opened.hertz},
            cpu_seconds=running.cpu,
            per_stream=per_stream,
            settle=running.settling._asdict() if running.settling else None,
            conditions=around,
        )
        notes += self._age_of_baselines(outcome)
        return judge(replace(outcome, warnings=tuple(notes)), self._baselines, strict=self._plan.strict)

    def _age_of_baselines(self, outcome: Outcome) -> list[str]:
        """Return a warning if what a test is compared with was measured long before it."""
        own = baselines_of([outcome.recorded], self._baselines)
        ended = [baseline.end_time for baseline in own if baseline.end_time is not None]
        began = time.time() if outcome.start_time is None else outcome.start_time
        if not ended or began - max(ended) <= MAX_BASELINE_AGE:
            return []
        minutes = (began - max(ended)) / 60
        return [f"its baseline is {minutes:.0f} minutes old: measure one in every block"]

    async def _idle(self, scenario: Scenario, running: _Running) -> None:
        await self._phases.wait("resting", scenario.stabilization)
        running.settling = await self._phases.settle(scenario.stabilization)
        running.before = read_conditions(self._host)
        try:
            await self._phases.measure("idle baseline", scenario.name, scenario.duration, running.window)
        finally:
            running.after = read_conditions(self._host)

    async def _after(self, outcome: Outcome) -> Outcome:
        """Do what comes after a window, when its figures are safe: score the picture, cool down."""
        scenario = outcome.scenario
        try:
            if self._plan.compute_quality and outcome.encode is not None and outcome.status == "ok":
                self._display.say("Scoring the picture, after the window.")
                outcome = replace(outcome, quality=await self._scores(scenario))
            if outcome.encode is not None:  # what never ran has warmed nothing
                await self._phases.wait("cooling down", scenario.cooldown)
        except asyncio.CancelledError:
            _uncancel()
            self._interrupted = True  # the run; the scenario's figures are what they are
        return outcome

    async def _stream(self, scenario: Scenario, running: _Running) -> None:
        async with streaming(self._ffmpeg, scenario, self._sink, self._meters.clients[0]) as streams:
            encoders = [stream.encoder for stream in streams]
            running.points = {stream.scenario.name: stream.encoder.points for stream in streams}
            await self._phases.wait("warming up", scenario.stabilization, encoders)
            running.settling = await self._phases.settle(scenario.stabilization, encoders)
            before = [stream.cpu_seconds() for stream in streams]
            running.before = read_conditions(self._host)
            try:
                title = scenario.name
                await self._phases.measure(title, scenario.name, scenario.duration, running.window, encoders)
            finally:
                running.after = read_conditions(self._host)
                for stream, earlier in zip(streams, before, strict=True):
                    for end, seconds in stream.cpu_seconds().items():
                        used = max(0.0, seconds - earlier[end])
                        running.cpu[end] = running.cpu.get(end, 0.0) + used

    async def _scores(self, scenario: Scenario) -> dict[str, Any]:
        try:
            return dict(await quality.score(self._ffmpeg, scenario.streams[0]))
        except (StreamFailed, OSError) as failed:
            return {"missing": str(failed)}


def _clip_text(entry: Mapping[str, Any]) -> str:
    """Return what a scenario streams, as a file says it."""
    if not entry.get("input"):
        return "the test picture"
    sha256 = str(entry.get("input_sha256", ""))
    return f"{entry['input']!r}" + (f" (SHA-256 {sha256[:12]})" if sha256 else "")


def _uncancel() -> None:
    """Take the interruption: from here on the run goes on to its end in order."""
    if task := asyncio.current_task():
        task.uncancel()
