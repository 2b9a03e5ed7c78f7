"""`powerbench run`: flags to a plan, the plan under signals that end it in order, the table at its end."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from msgspec import structs

from powerbench_agent.agent import log
from powerbench_agent.bench import exits
from powerbench_agent.bench.exits import BadFile, BadFlag
from powerbench_agent.bench.flags import read_token
from powerbench_agent.bench.plan import plan as plans
from powerbench_agent.bench.plan.batch_file import BadBatch, parse_batch
from powerbench_agent.bench.plan.clip import fingerprint
from powerbench_agent.bench.plan.scenario import Scenario, default_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from rich.console import Console

    from powerbench_agent.bench.plan.clip import Clip
    from powerbench_agent.bench.run.outcome import Outcome
    from powerbench_agent.bench.run.runner import Plan, Run

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MAX_BATCH_BYTES = 16 * 2**20
_FEW = 2  # streams whose tables are shown one by one
_PLAIN_WIDTH = 120  # where nobody says how wide the output is


def main(flags: argparse.Namespace) -> int:
    """Run the scenarios that the flags ask for; return the exit code."""
    try:
        import duckdb  # noqa: F401, PLC0415 - asked for before anything is measured, not after
        import rich  # noqa: F401, PLC0415 - likewise
    except ImportError as missing:
        hint = "pip install 'powerbench-agent[bench]'"
        return exits.fail(f"run needs {missing.name}, of the extra bench: {hint}", exits.UNAVAILABLE)

    from powerbench_agent.bench.load.ffmpeg import NotHere  # noqa: PLC0415 - after the extra is known to be there
    from powerbench_agent.bench.meter.client import AgentFailed  # noqa: PLC0415 - likewise

    log.set_up("console", "error")
    console = make_console()
    try:
        done = _execute(make_plan(flags), console, progress=flags.progress)
    except (BadFlag, BadFile, NotHere, AgentFailed) as refused:
        return exits.fail(str(refused), exits.code_of(refused))
    report(done, console)
    return exit_code(done)


def exit_code(done: Run) -> int:
    """Return what the run as a whole came to."""
    if done.interrupted:
        return exits.INTERRUPTED
    good = all(outcome.status == "ok" for outcome in done.outcomes) and not done.unsaved
    return exits.OK if good else exits.FAILED


def make_console() -> Console:
    """Return standard output: as wide as the terminal, or wide enough for the table."""
    from rich.console import Console  # noqa: PLC0415 - of the extra

    out = cast("IO[str]", log.Unbreakable(sys.stdout))
    console = Console(file=out)
    return console if console.is_terminal else Console(file=out, width=_PLAIN_WIDTH)


def make_plan(flags: argparse.Namespace) -> Plan:
    """Return what the flags ask for. Raises: BadFlag, BadFile."""
    from powerbench_agent.bench.meter import choose  # noqa: PLC0415 - heavy
    from powerbench_agent.bench.plan import rates  # noqa: PLC0415 - heavy
    from powerbench_agent.bench.run.runner import Plan  # noqa: PLC0415 - of the extra

    if flags.sink not in ("embedded", "null", "nginx") and not re.match(r"rtmp://[^/]+/.+", flags.sink):
        raise BadFlag(f"--sink {flags.sink!r}: must be embedded, null, nginx, or like rtmp://HOST/APP/STREAM")
    choose.check_urls(flags.agent)
    once, suffix = _scenarios(flags), ""
    if part := getattr(flags, "shard", None):
        tests = sum(scenario.type != "baseline" for scenario in once)
        once = plans.shard(once, *part)
        if all(scenario.type == "baseline" for scenario in once):
            number, count = part
            has = f"{tests} test{'' if tests == 1 else 's'}"
            raise BadFlag(f"--shard: shard {number} of {count} has nothing: the batch has {has}")
        suffix = "_s{}of{}".format(*part)
    scenarios = plans.in_blocks(once, flags.repeat, flags.order, flags.seed)
    return Plan(
        scenarios=tuple(scenarios),
        output_dir=flags.output_dir,
        agents=tuple(flags.agent),
        token=read_token(flags.token_file),
        sink=flags.sink,
        ffmpeg=flags.ffmpeg,
        require_measured=flags.require_measured,
        compute_quality=getattr(flags, "compute_quality", False),
        strict=flags.strict,
        settings={
            "kind": flags.kind or "suite",
            "repeat": flags.repeat,
            "order": flags.order,
            "seed": flags.seed if flags.order == "random" else None,
            "strict": flags.strict,
        },
        rates=rates.load(flags.rates),
        suffix=suffix,
        resume=flags.resume,
    )


def _scenarios(flags: argparse.Namespace) -> list[Scenario]:
    """Return what is measured once. Raises: BadFlag, BadFile."""
    if flags.kind == "batch":
        try:
            with flags.file.open("rb") as file:
                content = file.read(_MAX_BATCH_BYTES + 1)
        except OSError as error:
            raise BadBatch(f"{flags.file}: cannot read it: {error.strerror}") from None
        if len(content) > _MAX_BATCH_BYTES:
            raise BadBatch(f"{flags.file}: has more than {_MAX_BATCH_BYTES:,} bytes: is it a batch?")
        scenarios = parse_batch(content, str(flags.file))
        lost = [
            scenario.input for scenario in scenarios if scenario.input and not Path(scenario.input).is_file()
        ]
        if lost:
            raise BadBatch(
                "\n".join(f"{flags.file}: input: {name!r}: is no file" for name in dict.fromkeys(lost))
            )
        return _with_clips(scenarios, str(flags.file))
    times = plans.Times(
        duration=getattr(flags, "duration", 120.0),
        stabilization=getattr(flags, "stabilization", 10.0),
        cooldown=getattr(flags, "cooldown", 10.0),
        baseline=getattr(flags, "baseline_duration", 60.0),
    )
    if flags.kind in (None, "suite"):
        return plans.suite(times, getattr(flags, "encoder", "h264"), getattr(flags, "preset", "veryfast"))
    idle = [plans.baseline(times)] if flags.with_baseline else []
    return [*idle, *_with_clips([_stream(flags)], "--input")]


def _with_clips(scenarios: list[Scenario], where: str) -> list[Scenario]:
    """Return the scenarios with which clips they stream; `where` they are named. Raises: BadFile."""
    clips: dict[str, Clip] = {}
    for name in dict.fromkeys(scenario.input for scenario in scenarios if scenario.input):
        try:
            clips[name] = fingerprint(Path(name))
        except OSError as error:
            raise BadFile(f"{where}: input: {name!r}: cannot read it: {error.strerror}") from None
    return [structs.replace(scenario, clip=clips.get(scenario.input)) for scenario in scenarios]


def _stream(flags: argparse.Namespace) -> Scenario:
    """Return the scenario of `single` or `multi`. Raises: BadFlag, BadFile."""
    bitrates: tuple[float, ...] = ()
    if flags.kind == "multi":
        bitrates = flags.bitrates or (flags.bitrate,) * (flags.count or 0)
        if not bitrates:
            raise BadFlag("multi: say how many streams with --count, or their --bitrates")
        if flags.bitrates and flags.count not in (None, len(bitrates)):
            what = f"--count {flags.count}, but {len(bitrates)} --bitrates"
            raise BadFlag(f"multi: {what}: make them agree, or leave --count out")
    if flags.input is not None and not flags.input.is_file():
        raise BadFile(f"--input {str(flags.input)!r}: is no file")
    settings = (flags.resolution, flags.fps, flags.encoder, str(flags.input or ""))
    name = plans.multi_name(bitrates, *settings) if bitrates else default_name(flags.bitrate, *settings)
    return Scenario(
        name=flags.name or name,
        type="multi" if bitrates else "single",
        duration=flags.duration,
        stabilization=flags.stabilization,
        cooldown=flags.cooldown,
        video_kbps=0.0 if bitrates else flags.bitrate,
        bitrates=bitrates,
        resolution=flags.resolution,
        fps=flags.fps,
        encoder=flags.encoder,
        preset=flags.preset,
        input=str(flags.input.resolve()) if flags.input else "",
    )


def _execute(plan: Plan, console: Console, *, progress: bool | None) -> Run:
    """Run the plan; SIGINT, SIGTERM and SIGHUP end it in order.

    Raises: KeyboardInterrupt where there is no result yet.
    """
    import uvloop  # noqa: PLC0415 - beside its only use

    from powerbench_agent.bench.run import runner  # noqa: PLC0415 - of the extra
    from powerbench_agent.bench.run.display import LiveDisplay, PlainDisplay  # noqa: PLC0415 - likewise

    async def inside() -> Run:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is one
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        if console.is_terminal and progress is not False:
            with LiveDisplay(console) as live:
                return await runner.run(plan, live)
        return await runner.run(plan, PlainDisplay(console, progress=progress is not False))

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:  # half of asyncio's own cost
            return loop.run(inside())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in _SIGNALS:  # what is left is to print what there is
            signal.signal(number, signal.SIG_IGN)


def _show_tables(done: Run, tests: list[Outcome], console: Console) -> None:
    from powerbench_agent.bench.run import table  # noqa: PLC0415 - of the extra

    if len(tests) > _FEW:
        table.show_all(console, tests)
        return
    for outcome in tests:
        table.show(console, outcome, done.baselines.get(outcome.scenario.name))


def _say_doubts(done: Run, say: Callable[[str], None]) -> None:
    for outcome in done.outcomes:
        for warning in outcome.warnings:
            say(f"Warning, {outcome.scenario.name}: {warning}.")
        if outcome.status != "ok":
            print(f"powerbench: {outcome.scenario.name} {outcome.status}: {outcome.error}", file=sys.stderr)  # noqa: T201 - for people


def report(done: Run, console: Console) -> None:
    """Print each stream's table, the warnings, what failed, and where the files are."""
    from powerbench_agent.bench.run import table  # noqa: PLC0415 - of the extra

    def say(text: str, *, whole: bool = False) -> None:
        """Print a line; a path stays `whole`: no line end comes into it."""
        unwrapped = whole or not console.is_terminal
        console.print(text, highlight=False, markup=False, soft_wrap=unwrapped)

    tests = [outcome for outcome in done.outcomes if outcome.encode is not None]
    _show_tables(done, tests, console)
    _say_doubts(done, say)
    if tests and (doubt := table.doubt(done.repeats, min(o.scenario.duration for o in tests))):
        say(doubt)
    if done.unsaved:
        print(f"powerbench: {done.unsaved}", file=sys.stderr)  # noqa: T201 - for people
    if done.path is not None:
        say(f"Results: {done.path}", whole=True)
        if done.interrupted:
            say(f"Go on, with the same flags and:  --resume {done.path}", whole=True)
        if len(tests) > 1:
            say(f"Next: powerbench analyze {done.path}", whole=True)
    if done.trace is not None:
        say(f"Power trace: {done.trace}", whole=True)
