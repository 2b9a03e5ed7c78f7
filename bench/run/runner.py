"""Runs a plan: its scenarios one after the other, each measured, compared with its baseline and saved."""

from __future__ import annotations

import contextlib
import shutil
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import aiohttp

from powerbench_agent.bench.exits import BadFlag, NotHere
from powerbench_agent.bench.load import ffmpeg as binaries
from powerbench_agent.bench.load.clip_filters import changes_of
from powerbench_agent.bench.load.nginx import private_nginx
from powerbench_agent.bench.load.redact import describe_command, redact_url
from powerbench_agent.bench.load.trial import check_ffmpeg
from powerbench_agent.bench.meter import choose, fingerprint
from powerbench_agent.bench.plan.plan import outputs_of
from powerbench_agent.bench.plan.sink import files_of, kind_of
from powerbench_agent.bench.quality.choose import check_model
from powerbench_agent.bench.quality.choose import choose as choose_scorer
from powerbench_agent.bench.run import keeping, resume
from powerbench_agent.bench.run.measuring import EncodingTools, Measuring
from powerbench_agent.bench.run.outcome import compare
from powerbench_agent.bench.run.record import ResultsRecord, Trace
from powerbench_agent.bench.run.saver import Saver
from powerbench_agent.core.results import parse_scenario, valid
from powerbench_agent.core.scores import DEFAULT_MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.meter.meters import Meters
    from powerbench_agent.bench.plan.plan import Plan
    from powerbench_agent.bench.plan.scenario import Scenario
    from powerbench_agent.bench.quality.choose import Scorer
    from powerbench_agent.bench.run.display import PhaseDisplay
    from powerbench_agent.bench.run.outcome import Outcome


@dataclass
class Run:
    """The outcome of a run."""

    outcomes: list[Outcome] = field(default_factory=list)
    path: Path | None = None
    trace: Path | None = None
    interrupted: bool = False
    repeats: int = 0  # windows that the file holds of a test, at most
    unsaved: str = ""  # why something of it could not be written


async def run(plan: Plan, display: PhaseDisplay) -> Run:
    """Run every scenario of the plan. Raises: NotHere, AgentFailed before anything is measured."""
    ffmpeg = await _checked_ffmpeg(plan, display)
    scorer = await _checked_scorer(plan, ffmpeg, display)
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        meters = await choose.choose(plan.agents, plan.token, session, stack, display.say)
        sources = await meters.sources()
        choose.check(sources, require_measured=plan.require_measured)
        for line in choose.describe(sources):
            display.say(line)
        for line in _clip_lines(plan.scenarios):
            display.say(line)
        _check_directory(plan.output_dir)
        if scorer is not None and kind_of(plan.sink) != "file":  # a file is there to be scored itself
            keeping.check_room(plan.output_dir, plan.scenarios)
        head = _head(plan, ffmpeg, meters)
        if plan.resume is not None:
            results = ResultsRecord.resumed(plan.resume, head)
        else:
            results = ResultsRecord(plan.output_dir, head, plan.suffix)
        if plan.sink == "nginx":
            plan = replace(plan, sink=await stack.enter_async_context(private_nginx()))
        tools = EncodingTools(ffmpeg, scorer)
        return await Runner(plan, tools, meters, display, results).run()


async def _checked_ffmpeg(plan: Plan, display: PhaseDisplay) -> Ffmpeg:
    """Return the ffmpeg that can do what the plan asks. Raises: NotHere."""
    ffmpeg = await binaries.find_ffmpeg(plan.ffmpeg)
    await check_ffmpeg(ffmpeg, plan.scenarios, plan.sink)
    binaries.check_sink(plan.sink)
    if plan.resume is None:
        _check_files(plan)
    if not plan.ffmpeg and shutil.which("ffmpeg") != ffmpeg.path:
        display.say(f"No ffmpeg on the PATH: using {ffmpeg.version} of imageio-ffmpeg.")
    return ffmpeg


async def _checked_scorer(plan: Plan, ffmpeg: Ffmpeg, display: PhaseDisplay) -> Scorer | None:
    """Return the ffmpeg that scores what the plan asks for; None if that is nothing. Raises: NotHere."""
    if not plan.quality:
        return None
    scorer, said = await choose_scorer(ffmpeg.path, plan.quality, plan.quality_ffmpeg)
    if said:
        display.say(said)
    if "vmaf" in plan.quality and "vmaf" in scorer.measures:
        await check_model(scorer, DEFAULT_MODEL)
    return scorer


def _check_files(plan: Plan) -> None:
    """Check that files which streams are written to can be made, and are not there yet. Raises: BadFlag."""
    names = [one.name for scenario in plan.scenarios for one in outputs_of(scenario)]
    seen: set[Path] = set()
    for path in files_of(plan.sink, names):
        try:
            is_there = path.exists()
        except OSError as error:  # too long a name
            raise BadFlag(f"--sink: {path}: {error.strerror}") from None
        if is_there:
            raise BadFlag(f"--sink: {path} is there already: remove it, or name another file")
        if path in seen:
            raise BadFlag(f"--sink: two outputs would be written to {path}: give their scenarios other names")
        if not path.parent.is_dir():
            raise BadFlag(f"--sink: {path.parent} is not a directory: make it first")
        seen.add(path)


def _clip_lines(scenarios: Sequence[Scenario]) -> list[str]:
    """Return a line for each group whose clip is not streamed as it is: what is changed."""
    changed = {scenario.group or scenario.name: changes_of(scenario) for scenario in scenarios}
    return [f"{name}: differs from its clip: {'; '.join(what)}." for name, what in changed.items() if what]


def _check_directory(directory: Path) -> None:
    """Check that results can be written there. Raises: NotHere."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".powerbench-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise NotHere(
            f"cannot write results to {directory}: {error.strerror}; choose another with --output-dir"
        ) from None


def _head(plan: Plan, ffmpeg: Ffmpeg, meters: Meters) -> dict[str, Any]:
    """Return what the results file holds beside its scenarios."""
    return {
        "host": fingerprint.host(),
        "ffmpeg": ffmpeg.describe(),
        "command": describe_command(["powerbench", *sys.argv[1:]]),
        "sink": redact_url(plan.sink),
        "agents": [client.label for client in meters.clients],
        "settings": dict(plan.settings),
        "rates": dict(plan.rates),
    }


class Runner:
    """Runs the scenarios of a plan that the results file does not hold yet."""

    def __init__(
        self, plan: Plan, tools: EncodingTools, meters: Meters, display: PhaseDisplay, results: ResultsRecord
    ) -> None:
        """Take what the file holds already. Raises: BadFile if it has a scenario with other settings."""
        # What an earlier run of the same file has finished, as it stands there.
        self._kept = resume.finished(results.earlier)
        resume.check_settings(plan.scenarios, self._kept, results.path)
        self._scenarios = [scenario for scenario in plan.scenarios if scenario.name not in self._kept]
        if results.earlier:
            there = len(plan.scenarios) - len(self._scenarios)
            display.say(f"{there} of {len(plan.scenarios)} scenarios are there already.")
        kept = [parse_scenario(entry) for entry in self._kept.values()]
        self._baselines = [scenario for scenario in kept if scenario.is_baseline and valid(scenario)]
        self._trace = Trace()
        self._saver = Saver(results, self._trace, plan.scenarios, self._kept)
        self._measuring = Measuring(plan, tools, meters, display, self._trace)

    async def run(self) -> Run:
        """Run them, and save each as soon as it is measured."""
        done = Run()
        try:
            for scenario in self._scenarios:
                await self._run_one(scenario, done)
                if done.interrupted:
                    break
        finally:
            self._trace.close()
        done.path, done.trace, done.unsaved = self._saver.path, self._saver.trace, self._saver.unsaved
        done.repeats = self._repeats(done.outcomes)
        return done

    async def _run_one(self, scenario: Scenario, done: Run) -> None:
        """Measure a scenario and save it, then score it and cool down."""
        outcome = await self._measuring.measure(scenario, self._baselines)
        done.outcomes.append(outcome)
        self._saver.save_trace(done.outcomes)  # first: a scenario that is in the results has its trace
        self._saver.save(done.outcomes)
        if outcome.status == "interrupted":
            done.interrupted = True
            return
        if scenario.type == "baseline" and outcome.status == "ok":
            self._baselines.append(outcome.recorded)
            done.outcomes = [compare(each, self._baselines) for each in done.outcomes]
        done.outcomes[-1], done.interrupted = await self._measuring.finish(done.outcomes[-1])
        self._saver.save(done.outcomes)

    def _repeats(self, outcomes: list[Outcome]) -> int:
        """Return in how many blocks the file has a test."""
        blocks = {outcome.scenario.block for outcome in outcomes if outcome.encode is not None}
        blocks |= {entry.get("block", 0) for entry in self._kept.values() if entry.get("encode")}
        return len(blocks)
