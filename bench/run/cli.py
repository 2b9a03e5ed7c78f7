"""`powerbench run`: makes the plan, runs it so that signals end it in good order, prints the tables."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

from powerbench_agent.agent import log
from powerbench_agent.bench import exits
from powerbench_agent.bench.exits import BadFile, BadFlag
from powerbench_agent.core.terminal import complain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from rich.console import Console

    from powerbench_agent.bench.plan.plan import Plan
    from powerbench_agent.bench.run.outcome import Outcome
    from powerbench_agent.bench.run.runner import Run

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FEW = 2  # streams whose tables are shown one by one
_PLAIN_WIDTH = 120  # of output that has no width of its own


def main(flags: argparse.Namespace) -> int:
    """Run the scenarios that the flags ask for; return the exit code."""
    try:
        import duckdb  # noqa: F401, PLC0415 - asked for before anything is measured, not after
        import rich  # noqa: F401, PLC0415 - likewise
    except ImportError as missing:
        hint = "pip install 'powerbench-agent[bench]'"
        return exits.fail(f"run needs {missing.name}, of the extra bench: {hint}", exits.UNAVAILABLE)

    from powerbench_agent.bench.exits import NotHere  # noqa: PLC0415 - after the extra is known to be there
    from powerbench_agent.bench.meter.client import AgentFailed  # noqa: PLC0415 - likewise
    from powerbench_agent.bench.plan.plan import make_plan  # noqa: PLC0415 - heavy

    log.set_up("console", "error")
    console = make_console()
    try:
        done = _execute(make_plan(flags), console, progress=flags.progress)
    except (BadFlag, BadFile, NotHere, AgentFailed) as refused:
        return exits.fail(str(refused), exits.code_of(refused))
    report(done, console)
    return exit_code(done)


def exit_code(done: Run) -> int:
    """Return the exit code of the run as a whole."""
    if done.interrupted:
        return exits.INTERRUPTED
    good = all(outcome.status == "ok" for outcome in done.outcomes) and not done.unsaved
    return exits.OK if good else exits.FAILED


def make_console() -> Console:
    """Return a console on standard output, as wide as the terminal or wide enough for the table."""
    from rich.console import Console  # noqa: PLC0415 - of the extra

    console = Console(file=sys.stdout)
    return console if console.is_terminal else Console(file=sys.stdout, width=_PLAIN_WIDTH)


def _execute(plan: Plan, console: Console, *, progress: bool | None) -> Run:
    """Run the plan; SIGINT, SIGTERM and SIGHUP end it in good order.

    Raises: KeyboardInterrupt if there is no result yet.
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
        for number in _SIGNALS:  # all that is left is to print the results
            signal.signal(number, signal.SIG_IGN)


def _show_tables(tests: list[Outcome], console: Console) -> None:
    from powerbench_agent.bench.run import table  # noqa: PLC0415 - of the extra

    if len(tests) > _FEW:
        table.show_all(console, tests)
        return
    for outcome in tests:
        table.show(console, outcome)


def _show_split(done: Run, console: Console) -> None:
    """Print what decoding, scaling and encoding take, if that was asked for."""
    if not any(outcome.scenario.part for outcome in done.outcomes):
        return
    from powerbench_agent.bench.analyze.tables import show_splits  # noqa: PLC0415 - of the extra
    from powerbench_agent.bench.run.outcome import describe  # noqa: PLC0415 - likewise
    from powerbench_agent.core.results import parse_scenario  # noqa: PLC0415 - likewise

    show_splits(console, [parse_scenario(describe(outcome)) for outcome in done.outcomes])


def _say_doubts(done: Run, say: Callable[[str], None]) -> None:
    for outcome in done.outcomes:
        for warning in outcome.warnings:
            say(f"Warning, {outcome.scenario.name}: {warning}.")
        if outcome.status != "ok":
            complain("powerbench", f"{outcome.scenario.name} {outcome.status}: {outcome.error}")


def report(done: Run, console: Console) -> None:
    """Print the tables, the warnings, what failed, and where the files are."""
    from powerbench_agent.bench.run import table  # noqa: PLC0415 - of the extra

    def say(text: str, *, whole: bool = False) -> None:
        """Print a line; `whole`: without wrapping it, so that a path can be copied."""
        unwrapped = whole or not console.is_terminal
        console.print(text, highlight=False, markup=False, soft_wrap=unwrapped)

    tests = [outcome for outcome in done.outcomes if outcome.encode is not None]
    _show_tables(tests, console)
    _show_split(done, console)
    _say_doubts(done, say)
    if tests:
        shortest = min(outcome.energy.seconds for outcome in tests if outcome.energy is not None)
        if doubt := table.doubt(done.repeats, shortest):
            say(doubt)
    if done.unsaved:
        complain("powerbench", done.unsaved)
    if done.path is not None:
        say(f"Results: {done.path}", whole=True)
        if done.interrupted:
            say(f"To continue, use the same flags and:  --resume {done.path}", whole=True)
        if len(tests) > 1:
            say(f"Next: powerbench analyze {done.path}", whole=True)
    if done.trace is not None:
        say(f"Power trace: {done.trace}", whole=True)
