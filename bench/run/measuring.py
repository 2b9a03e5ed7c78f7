"""Measures one scenario: idle or stream, warm-up, window, and what makes its figures doubtful.

What goes wrong in a scenario ends that scenario; what was measured until then is kept, and reported.
"""

from __future__ import annotations

import asyncio
import math
import resource
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import structs

from powerbench_agent.bench.load.child import StreamFailed
from powerbench_agent.bench.load.outlets import Way
from powerbench_agent.bench.load.streams import ready, streaming
from powerbench_agent.bench.meter.client import AgentFailed
from powerbench_agent.bench.meter.conditions import describe as describe_conditions
from powerbench_agent.bench.meter.conditions import first_of, read_at_edge, read_conditions, warnings_of
from powerbench_agent.bench.plan import frame_rate
from powerbench_agent.bench.run import keeping
from powerbench_agent.bench.run.figures import (
    combine,
    completed,
    encode_figures,
    input_faults,
    rendition_figures,
    whole_figures,
)
from powerbench_agent.bench.run.outcome import Outcome, judge
from powerbench_agent.bench.run.phases import OpenWindow, Phases
from powerbench_agent.bench.run.scoring import score_outputs
from powerbench_agent.core.host import Host
from powerbench_agent.core.results import baselines_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from powerbench_agent.bench.load.encoder import Point
    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.load.streams import RunningStream
    from powerbench_agent.bench.meter.conditions import Conditions
    from powerbench_agent.bench.meter.meters import Meters
    from powerbench_agent.bench.plan.plan import Plan
    from powerbench_agent.bench.plan.scenario import Scenario
    from powerbench_agent.bench.quality.choose import Scorer
    from powerbench_agent.bench.run.display import PhaseDisplay
    from powerbench_agent.bench.run.keeping import KeptOutput
    from powerbench_agent.bench.run.phases import Settling
    from powerbench_agent.bench.run.record import Trace
    from powerbench_agent.core.results import RecordedScenario

CLOCK_STEP_SECONDS = 0.5
MAX_BASELINE_AGE = 3600.0  # seconds
_DRAIN_SECONDS = 2.0  # for the last bytes of an encode to arrive


class _Attempt:
    """What is known of a scenario while it runs, whatever ends it."""

    def __init__(self) -> None:
        self.status, self.error = "ok", ""
        self.window = OpenWindow()
        self.points: dict[str, list[Point]] = {}  # by stream
        self.cpu: dict[str, float] = {}  # seconds of encoders and sinks
        self.streams: Sequence[RunningStream] = ()
        self.kept: list[KeptOutput] = []  # for the scores
        self.settling: Settling | None = None
        self.before: Conditions | None = None
        self.after: Conditions | None = None
        self.clock_step = 0.0  # seconds by which the wall clock was set

    @property
    def containers(self) -> tuple[str, ...]:
        """In which its outputs travel."""
        outlets = [outlet for stream in self.streams for outlet in stream.outlets]
        return tuple(dict.fromkeys(outlet.container for outlet in outlets))

    @property
    def bytes_of(self) -> tuple[str, ...]:
        """What the bytes of its outputs are of."""
        outlets = [outlet for stream in self.streams for outlet in stream.outlets]
        return tuple(dict.fromkeys(outlet.bytes_of for outlet in outlets))

    @property
    def commands(self) -> tuple[tuple[str, str], ...]:
        """The command line of each stream as it was run, and of what it was sent to, without secrets."""
        found = []
        for stream in self.streams:
            sinks = [outlet.sink for outlet in stream.outlets if outlet.sink is not None]
            found += [(child.name, child.command) for child in (stream.encoder, *sinks)]
        return tuple(found)

    def add_cpu(self, streams: Sequence[RunningStream], before: Sequence[Mapping[str, float]]) -> None:
        """Add the CPU time that the ends of the streams have used since then."""
        for stream, earlier in zip(streams, before, strict=True):
            for end, seconds in stream.cpu_seconds().items():
                used = max(0.0, seconds - earlier[end])
                self.cpu[end] = self.cpu.get(end, 0.0) + used


class EncodingTools(NamedTuple):
    """The programs of a run."""

    ffmpeg: Ffmpeg
    scorer: Scorer | None = None  # what scores pictures; None if nothing is scored


class Measuring:
    """Measures scenarios, one at a time."""

    def __init__(
        self, plan: Plan, tools: EncodingTools, meters: Meters, display: PhaseDisplay, trace: Trace
    ) -> None:
        self._plan = plan
        self._ffmpeg, self._scorer = tools
        self._meters = meters
        self._display = display
        self._host = Host()
        self._phases = Phases(meters, trace, display, self._host)
        self._first = read_conditions(self._host)
        self._kept: list[KeptOutput] = []  # of the latest scenario

    async def measure(self, scenario: Scenario, baselines: Sequence[RecordedScenario]) -> Outcome:
        """Return a scenario, measured and judged; `baselines`: the idle windows of the run so far."""
        self._forget()
        attempt = await self._attempt(scenario)
        self._kept = attempt.kept
        wanted = [output.tap for output in attempt.kept]
        for tap in keeping.taps_of(attempt.streams):
            if tap not in wanted:
                tap.forget()
        outcome = self._outcome(scenario, attempt)
        warnings = (*outcome.warnings, *_age_of_baselines(outcome, baselines))
        return judge(replace(outcome, warnings=warnings), baselines, strict=self._plan.strict)

    async def finish(self, outcome: Outcome) -> tuple[Outcome, bool]:
        """Do what comes after a window, once its figures are safe: score the picture, cool down.

        Returns the outcome with its scores, and whether the run was interrupted here.
        """
        if outcome.encode is None:
            self._forget()
            return outcome, False  # what never ran has warmed nothing up
        try:
            if self._scorer is not None and outcome.status == "ok" and self._kept:
                self._display.say("Scoring the picture, after the window.")
                scores = await score_outputs(self._scorer, self._kept, self._plan.quality)
                outcome = replace(outcome, quality=scores)
            self._forget()
            await self._phases.wait("cooling down", outcome.scenario.cooldown)
        except asyncio.CancelledError:
            _uncancel()
            return outcome, True
        return outcome, False

    def _forget(self) -> None:
        """Drop what was kept for the scores."""
        for output in self._kept:
            output.forget()
        self._kept = []

    async def _attempt(self, scenario: Scenario) -> _Attempt:
        """Run one scenario, whatever happens in it."""
        attempt = _Attempt()
        self._phases.notes.clear()
        wall_clock, monotonic = time.time(), time.monotonic()
        try:
            if scenario.type == "baseline":
                await self._idle(scenario, attempt)
            elif scenario.pace.is_max:
                await self._encode(scenario, attempt)
            else:
                await self._stream(scenario, attempt)
        except (StreamFailed, AgentFailed) as failure:
            attempt.status, attempt.error = "failed", str(failure)
        except asyncio.CancelledError:
            attempt.status, attempt.error = "interrupted", "what was measured until then is kept"
            _uncancel()
        attempt.clock_step = (time.time() - wall_clock) - (time.monotonic() - monotonic)
        return attempt

    async def _idle(self, scenario: Scenario, attempt: _Attempt) -> None:
        await self._phases.wait("resting", scenario.stabilization)
        attempt.settling = await self._phases.settle(scenario.stabilization)
        attempt.before = await self._read_begin()
        try:
            await self._phases.measure("idle baseline", scenario.name, scenario.duration, attempt.window)
        finally:
            attempt.after = await read_at_edge(self._host, self._meters)

    def _way(self) -> Way:
        keep_in = self._plan.output_dir if self._scorer is not None else None
        return Way(self._plan.sink, self._meters.clients[0], keep_in)

    async def _stream(self, scenario: Scenario, attempt: _Attempt) -> None:
        async with streaming(self._ffmpeg, scenario, self._way()) as streams:
            encoders = [stream.encoder for stream in streams]
            attempt.streams = streams
            attempt.points = {stream.scenario.name: stream.encoder.points for stream in streams}
            await self._phases.wait("warming up", scenario.stabilization, encoders)
            attempt.settling = await self._phases.settle(scenario.stabilization, encoders)
            cpu_before = [stream.cpu_seconds() for stream in streams]
            attempt.before = await self._read_begin()
            name = scenario.name
            timers = keeping.end_in_time(streams)
            keeping.mark(streams)
            try:
                await self._phases.measure(name, name, scenario.duration, attempt.window, encoders)
            finally:
                keeping.mark(streams)
                attempt.add_cpu(streams, cpu_before)
                for timer in timers:
                    timer.cancel()
                attempt.after = await read_at_edge(self._host, self._meters)
            await self._phases.hear_beyond(encoders, attempt.window.ended)
            attempt.kept = keeping.of_window(streams, attempt.window.began, attempt.window.ended)

    async def _encode(self, scenario: Scenario, attempt: _Attempt) -> None:
        """Encode from the first frame to the last: the window is the encode."""
        async with ready(self._ffmpeg, scenario, self._way()) as streams:
            attempt.streams = streams
            attempt.points = {stream.scenario.name: stream.encoder.points for stream in streams}
            await self._phases.wait("resting", scenario.stabilization)
            attempt.settling = await self._phases.settle(scenario.stabilization)
            encoders = [stream.encoder for stream in streams]
            attempt.before = await self._read_begin()
            cpu_before = _cpu_of_children()
            try:
                await self._phases.measure_encodes(
                    scenario.name,
                    frames_to_encode(scenario),
                    attempt.window,
                    encoders,
                    lambda: keeping.end_when_enough(streams),
                )
            finally:
                running = [encoder for encoder in encoders if encoder.exit_code is None]
                attempt.cpu["encoder"] = _cpu_of_children() - cpu_before
                attempt.cpu["encoder"] += sum(encoder.cpu_seconds() for encoder in running)
                attempt.after = await read_at_edge(self._host, self._meters)
                if not running:  # else they are stopped first, by whoever prepared them
                    await asyncio.gather(*(tap.drained(_DRAIN_SECONDS) for tap in keeping.taps_of(streams)))
                keeping.mark(streams)
                attempt.kept = keeping.of_encode(streams)

    async def _read_begin(self) -> Conditions:
        """Return the machine's conditions before a window, which may be the run's first."""
        before = await read_at_edge(self._host, self._meters)
        self._first = first_of(self._first, before)
        return before

    def _outcome(self, scenario: Scenario, attempt: _Attempt) -> Outcome:
        """Return an attempt's figures and doubts, not yet judged."""
        window = attempt.window
        energy = window.energy()
        per_stream, renditions = {}, []
        for stream in attempt.streams if energy is not None else ():
            one, outlets = stream.scenario, stream.outlets
            begin, end = window.began, window.ended
            if scenario.pace.is_max:
                found = whole_figures(attempt.points[one.name], begin, end, one)
                found = structs.replace(found, whole=attempt.status == "ok")
                end = math.inf  # what was encoded may have arrived since
            else:
                found = encode_figures(attempt.points[one.name], begin, end)
            found = per_stream[one.name] = completed(found, one, outlets, begin, end)
            renditions += rendition_figures(one.name, found, outlets, begin, end)
        return Outcome(
            scenario,
            attempt.status,
            attempt.error,
            energy=energy,
            encode=combine(list(per_stream.values())) if per_stream else None,
            warnings=(*self._doubts(attempt), *_input_faults(scenario, attempt)),
            start_time=window.begin.time if window.begin else None,
            end_time=window.end.time if window.end else None,
            trace={"asked_hz": self._meters.hertz, "readings": window.readings, "hz": window.hertz},
            cpu_seconds=attempt.cpu,
            per_stream=per_stream,
            renditions=tuple(renditions),
            containers=attempt.containers,
            bytes_of=attempt.bytes_of,
            commands=attempt.commands,
            sink="" if scenario.type == "baseline" or scenario.part else self._plan.sink_kind,
            settle=attempt.settling._asdict() if attempt.settling else None,
            conditions=_conditions(attempt),
        )

    def _doubts(self, attempt: _Attempt) -> list[str]:
        """Return what makes the figures doubtful, apart from the figures themselves."""
        doubts = list(self._phases.notes)
        if abs(attempt.clock_step) > CLOCK_STEP_SECONDS:
            what = f"the clock was set by {attempt.clock_step:+.1f} s"
            doubts.append(f"{what}: the start and end times are off")
        if attempt.before is not None and attempt.after is not None:
            ours = sum(attempt.cpu.values())
            doubts += warnings_of(attempt.before, attempt.after, self._first, ours)
        return doubts


def _cpu_of_children() -> float:
    """Return the CPU seconds of all children that have ended: encoders, at the end of a window."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def frames_to_encode(scenario: Scenario) -> int | None:
    """Return how many frames an encode has; None of a clip that does not say."""
    picture = scenario.picture
    if scenario.to_end and picture is not None:
        shown = frame_rate.frames_in(scenario.fps, picture.duration) if picture.duration else None
        if picture.variable or picture.rate != scenario.fps or not picture.frames:
            return shown
        return min(picture.frames, shown or picture.frames)  # an edit list hides some
    return frame_rate.frames_in(scenario.fps, scenario.duration)


def _input_faults(scenario: Scenario, attempt: _Attempt) -> list[str]:
    """Return what tells that a scenario's clip is damaged."""
    found: dict[str, None] = {}
    for stream in attempt.streams if scenario.input else ():
        points = stream.encoder.points
        is_whole = scenario.pace.is_max and attempt.status == "ok" and points
        frames = points[-1].report.frames if is_whole else None
        expected = frames_to_encode(scenario)
        if expected and scenario.to_end and not (scenario.picture and scenario.picture.frames):
            expected -= round(scenario.fps)  # the sound may be longer than the picture
        found |= dict.fromkeys(input_faults(frames, expected, stream.encoder.said))
    return list(found)


def _conditions(attempt: _Attempt) -> Mapping[str, Any] | None:
    """Return the machine's conditions around the window, as the results file holds them."""
    if attempt.before is None or attempt.after is None:
        return None
    return describe_conditions(attempt.before, attempt.after, sum(attempt.cpu.values()))


def _age_of_baselines(outcome: Outcome, baselines: Sequence[RecordedScenario]) -> list[str]:
    """Return a warning if what a test is compared with was measured long before it."""
    own = baselines_of([outcome.recorded], baselines)
    ended = [baseline.end_time for baseline in own if baseline.end_time is not None]
    began = time.time() if outcome.start_time is None else outcome.start_time
    if not ended or began - max(ended) <= MAX_BASELINE_AGE:
        return []
    minutes = (began - max(ended)) / 60
    return [f"its baseline is {minutes:.0f} minutes old: measure one in every block"]


def _uncancel() -> None:
    """Accept the interruption: from here on the run ends in good order."""
    if task := asyncio.current_task():
        task.uncancel()
