"""A `powerbench measure` from its flags to its exit code: what to run, the report, the file."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import aiohttp

from powerbench_agent.agent import log
from powerbench_agent.bench import exits
from powerbench_agent.bench.exits import BadFile, BadFlag, NotHere
from powerbench_agent.bench.flags import read_token
from powerbench_agent.bench.measure import command, document
from powerbench_agent.bench.measure.command import Signals
from powerbench_agent.bench.measure.costs import Measured
from powerbench_agent.bench.measure.display import MeasureDisplay
from powerbench_agent.bench.measure.ffmpeg_words import find_ffmpeg_words
from powerbench_agent.bench.measure.report import report
from powerbench_agent.bench.measure.runs import Collected, CommandRunner
from powerbench_agent.bench.meter import choose, fingerprint
from powerbench_agent.bench.meter.client import AgentFailed
from powerbench_agent.bench.run import record

if TYPE_CHECKING:
    import argparse

    from powerbench_agent.bench.meter.meters import Meters

_NOTHING = "interrupted before anything was measured"


@dataclass(frozen=True)
class MeasurePlan:
    """What was asked for."""

    command: tuple[str, ...]
    repeat: int = 1
    idle: float = 0.0  # seconds
    path: Path | None = None  # of the JSON file
    agents: tuple[str, ...] = ()
    token: str = ""
    require_measured: bool = False


def run(flags: argparse.Namespace) -> int:
    """Measure the command that the flags name; return its exit code, or that of what prevented it."""
    log.set_up("console", "error")
    display = MeasureDisplay(progress=flags.progress)
    signals = Signals()
    try:
        plan = make_plan(flags)
        collected = asyncio.run(_measure(plan, signals, display))
        signals.ignore()  # all that is left is to report and write what there is
    except KeyboardInterrupt:
        return exits.fail(_NOTHING, exits.INTERRUPTED)
    except (BadFlag, BadFile, NotHere, AgentFailed) as refused:
        return exits.fail(str(refused), exits.code_of(refused))
    if not collected.runs:
        if collected.cannot_start is not None:
            return exits.fail(str(collected.cannot_start), collected.cannot_start.code)
        return exits.fail(_NOTHING, command.BY_SIGNAL + signals.received)
    return _finish(plan, collected, signals, display)


def _finish(plan: MeasurePlan, collected: Collected, signals: Signals, display: MeasureDisplay) -> int:
    """Print the report, write the file; return the exit code."""
    is_cut_short = len(collected.runs) < plan.repeat
    code = exit_code(collected, signals.received if is_cut_short else 0)
    runs, notes = tuple(collected.runs), tuple(collected.notes)
    measured = Measured(plan.command, runs, collected.idle, notes)
    display.report(report(measured))
    if plan.path is not None:
        try:
            _save(plan.path, measured, collected, code)
        except OSError as error:
            what = f"cannot write {plan.path}: {error.strerror or error}; only the report above is left"
            return exits.fail(what, code or exits.FAILED)
    return code


def exit_code(collected: Collected, cut_short: int) -> int:
    """Return the command's exit code if it failed, else that of the measurement.

    `cut_short`: the signal that prevented further runs, 0 for none.
    """
    if collected.cannot_start is not None:
        return collected.cannot_start.code
    if code := collected.runs[-1].used.code:
        return code
    if cut_short:
        return command.BY_SIGNAL + cut_short
    complete = all(each.window is not None and not each.problems for each in collected.runs)
    return exits.OK if complete else exits.UNAVAILABLE


def make_plan(flags: argparse.Namespace) -> MeasurePlan:
    """Return what the flags ask for. Raises: BadFlag, BadFile; NotHere if the file cannot be written."""
    if not flags.command:
        raise BadFlag("measure: COMMAND is missing; see powerbench measure --help")
    choose.check_urls(flags.agent)
    _check_output(flags.command, flags.repeat)
    path = None
    if flags.json is not None:
        path = flags.json.resolve()  # a symbolic link is written through, not replaced
        _check_file(path)
    return MeasurePlan(
        command=tuple(flags.command),
        repeat=flags.repeat,
        idle=flags.idle,
        path=path,
        agents=tuple(flags.agent),
        token=read_token(flags.token_file),
        require_measured=flags.require_measured,
    )


def _check_output(words: list[str], repeat: int) -> None:
    """Check that ffmpeg has nothing to ask: the answer would be waited for, and measured. Raises: BadFlag."""
    ffmpeg = find_ffmpeg_words(words)
    if ffmpeg is not None and ffmpeg.never_overwrites and ffmpeg.output and repeat > 1:
        what = f"with -n ffmpeg would not overwrite {ffmpeg.output} in the second run"
        raise BadFlag(f"measure: {what}: replace -n with -y, or leave out --repeat")
    if ffmpeg is None or not ffmpeg.may_ask or not (repeat > 1 or _is_terminal(sys.stdin)):
        return
    if ffmpeg.output and Path(ffmpeg.output).is_file():
        what = f"{ffmpeg.output} exists, and ffmpeg would ask whether to overwrite it"
        raise BadFlag(f"measure: {what}: add -y to its options, or remove the file")


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _check_file(path: Path) -> None:
    """Raise NotHere if the file cannot be written: before the command runs, not after."""
    hint = "choose another with --json"
    try:
        if path.exists() and not path.is_file():  # root would replace a device
            raise NotHere(f"cannot write {path}: it exists and is not a regular file; {hint}")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise NotHere(f"cannot write {path}: {error.strerror}; {hint}") from None


def _save(path: Path, measured: Measured, collected: Collected, code: int) -> None:
    """Write the whole file, or leave the old one. Raises: OSError."""
    found = collected.sources.found if collected.sources else {}
    content: dict[str, Any] = {
        "format": document.FORMAT,
        "kind": "measure",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": fingerprint.host(),
        "agents": list(collected.agents),
        "sources": {component: sorted(names) for component, names in sorted(found.items())},
        "exit_code": code,
        **document.describe(measured),
    }
    record.write_whole(path, record.encode(content))


async def _measure(plan: MeasurePlan, signals: Signals, display: MeasureDisplay) -> Collected:
    """Measure until done or a signal ends it. Raises: NotHere, AgentFailed before the first run."""
    signals.install()
    collected = Collected()
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        chosen: list[Meters] = []

        async def begin() -> None:
            chosen.append(await _choose_meters(plan, session, stack, collected))

        if await signals.interruptibly(begin()):
            runner = CommandRunner(plan.command, chosen[0], signals, display, collected)
            await runner.run_all(plan.repeat, plan.idle)
    return collected


async def _choose_meters(
    plan: MeasurePlan,
    session: aiohttp.ClientSession,
    stack: contextlib.AsyncExitStack,
    collected: Collected,
) -> Meters:
    """Return the meters, chosen as `powerbench run` does. Raises: NotHere, AgentFailed."""
    meters = await choose.choose(plan.agents, plan.token, session, stack, collected.notes.append)
    collected.sources = await meters.sources()
    choose.check(collected.sources, require_measured=plan.require_measured)
    # The first one names the sources, which stand in the table.
    collected.notes += choose.describe(collected.sources)[1:]
    collected.agents = tuple(client.label for client in meters.clients)
    return meters
