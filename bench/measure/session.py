"""`powerbench measure`: any command, and the energy of the machine from right before it to right after."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address
from signal import Signals as Number
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

from powerbench_agent.agent import log
from powerbench_agent.bench import exits
from powerbench_agent.bench.exits import BadFile, BadFlag
from powerbench_agent.bench.load.ffmpeg import NotHere
from powerbench_agent.bench.measure import command, costs
from powerbench_agent.bench.measure.command import CannotStart, Signals
from powerbench_agent.bench.measure.costs import Measured, Run, Window
from powerbench_agent.bench.measure.share import GPU, GpuUse, gpu_gains, share
from powerbench_agent.bench.meter import choose, fingerprint
from powerbench_agent.bench.meter.client import TRACE_HERTZ, AgentFailed, window
from powerbench_agent.bench.meter.conditions import read_conditions, warnings_of
from powerbench_agent.bench.run import record
from powerbench_agent.bench.run.outcome import energy_warnings
from powerbench_agent.core.host import Host
from powerbench_agent.core.procfs import read_cpu_time

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection
    from pathlib import Path

    from powerbench_agent.bench.meter.client import Edge, Meters, Sources

_BEAT_SECONDS = 2.5  # in which an agent's beat comes
_REFILL_SECONDS = 1.0  # in which an agent that does not know us has two fresh readings again
_MIN_ESTIMATE_SECONDS = 0.5
_JUST_TICKS = 0.1  # seconds; the machine's CPU time is counted in hundredths


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    command: tuple[str, ...]
    repeat: int = 1
    idle: float = 0.0  # seconds
    path: Path | None = None  # of the JSON file
    agents: tuple[str, ...] = ()
    token: str = ""
    require_measured: bool = False


@dataclass
class Came:
    """What it has come to, until now."""

    runs: list[Run] = field(default_factory=list)
    idle: Window | None = None
    notes: list[str] = field(default_factory=list)
    sources: Sources | None = None
    agents: tuple[str, ...] = ()
    cannot_start: CannotStart | None = None


def main(flags: argparse.Namespace) -> int:
    """Measure the command that the flags name; return its exit code, or that of what kept us from it."""
    log.set_up("console", "error")
    show = _Show(progress=flags.progress)
    signals = Signals()
    try:
        plan = make_plan(flags)
        came = asyncio.run(_measure(plan, signals, show))
        signals.ignore()  # what is left is to say and write what there is
    except KeyboardInterrupt:
        return exits.fail("interrupted before anything was measured", exits.INTERRUPTED)
    except (BadFlag, BadFile, NotHere, AgentFailed) as refused:
        return exits.fail(str(refused), exits.code_of(refused))
    if came.cannot_start is not None and not came.runs:
        return exits.fail(str(came.cannot_start), came.cannot_start.code)
    if not came.runs:
        return exits.fail("interrupted before anything was measured", command.BY_SIGNAL + signals.received)
    measured = Measured(plan.command, tuple(came.runs), came.idle, tuple(came.notes))
    code = exit_code(came, signals.received if len(came.runs) < plan.repeat else 0)
    show.report(costs.report(measured))
    if plan.path is not None:
        try:
            _save(plan.path, measured, came, code)
        except OSError as error:
            what = f"cannot write {plan.path}: {error.strerror or error}; the figures above are all there is"
            return exits.fail(what, code or exits.FAILED)
    return code


def exit_code(came: Came, cut_short: int) -> int:
    """Return the command's exit code where it failed, else what the measurement came to.

    `cut_short`: the signal that kept runs from being made, 0 for none.
    """
    if came.cannot_start is not None:
        return came.cannot_start.code
    if code := came.runs[-1].used.code:
        return code
    if cut_short:
        return command.BY_SIGNAL + cut_short
    whole = all(run.window is not None and not run.problems for run in came.runs)
    return exits.OK if whole else exits.UNAVAILABLE


def make_plan(flags: argparse.Namespace) -> Plan:
    """Return what the flags ask for. Raises: BadFlag, BadFile; NotHere where the file cannot be written."""
    if not flags.command:
        raise BadFlag("measure: no COMMAND to run; see powerbench measure --help")
    choose.check_urls(flags.agent)
    if flags.json is not None:
        _check_file(flags.json.resolve())
    return Plan(
        command=tuple(flags.command),
        repeat=flags.repeat,
        idle=flags.idle,
        path=flags.json.resolve() if flags.json is not None else None,  # a link stays one
        agents=tuple(flags.agent),
        token=choose.read_token(flags.token_file),
        require_measured=flags.require_measured,
    )


def _check_file(path: Path) -> None:
    """Raise NotHere where the file cannot be put: before the command runs, not after."""
    try:
        if path.exists() and not path.is_file():  # a device would be replaced, by root
            raise NotHere(f"cannot write {path}: it is there and no file; choose another with --json")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise NotHere(f"cannot write {path}: {error.strerror}; choose another with --json") from None


def _save(path: Path, measured: Measured, came: Came, code: int) -> None:
    """Write the whole file, or leave what was. Raises: OSError."""
    found = came.sources.found if came.sources else {}
    content: dict[str, Any] = {
        "format": costs.FORMAT,
        "kind": "measure",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": fingerprint.host(),
        "agents": list(came.agents),
        "sources": {component: sorted(names) for component, names in sorted(found.items())},
        "exit_code": code,
        **costs.describe(measured),
    }
    record.write_whole(path, record.encode(content))


async def _measure(plan: Plan, signals: Signals, show: _Show) -> Came:
    """Measure, until it is done or a signal ends it. Raises: NotHere, AgentFailed before any run."""
    signals.install()
    came = Came()
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        begun: list[Meters] = []

        async def begin() -> None:
            begun.append(await _begin(plan, session, stack, came))

        if await signals.interruptibly(begin()):
            await _Runner(plan, begun[0], signals, show, came).run()
    return came


async def _begin(
    plan: Plan, session: aiohttp.ClientSession, stack: contextlib.AsyncExitStack, came: Came
) -> Meters:
    """Return the meters, as `powerbench run` chooses them. Raises: NotHere, AgentFailed."""
    meters = await choose.choose(plan.agents, plan.token, session, stack, came.notes.append)
    came.sources = await meters.sources()
    choose.check(came.sources, require_measured=plan.require_measured)
    came.notes += choose.describe(came.sources)[1:]  # where the joules come from, the table says
    came.agents = tuple(client.label for client in meters.clients)
    return meters


class _Runner:
    """The runs, one after the other."""

    def __init__(self, plan: Plan, meters: Meters, signals: Signals, show: _Show, came: Came) -> None:
        self._plan = plan
        self._meters = meters
        self._signals = signals
        self._show = show
        self._came = came
        self._here = all(is_here(client.url) for client in meters.clients)

    async def run(self) -> None:
        """Measure the idle window, then the runs. Raises: AgentFailed before the first run."""
        came, count = self._came, self._plan.repeat
        if self._plan.idle > 0:
            await self._signals.interruptibly(self._idle())
        if not self._here:
            which = ", ".join(client.url for client in self._meters.clients if not is_here(client.url))
            came.notes.append(f"there is no share of the command: the agent at {which} is on another machine")
        while len(came.runs) < count and not self._signals.received:
            if came.runs:
                await self._signals.interruptibly(self._pause())
            begun: list[Edge] = []
            if not await self._signals.interruptibly(self._edge(begun)) or not begun:
                break
            try:
                run = await self._run(begun[0])
            except CannotStart as cannot:
                came.cannot_start = cannot
                break
            came.runs.append(run)
            if count > 1:
                self._show.progress(f"run {len(came.runs)} of {count}: {_news(run)}")
            if run.used.code:
                break
        if came.runs and len(came.runs) < count:
            by = f" by {Number(self._signals.received).name}" if self._signals.received else ""
            came.notes.append(f"ended{by} after {len(came.runs)} of {count} runs")

    async def _edge(self, begun: list[Edge]) -> None:
        """Read the meters for a run's begin. Raises: AgentFailed where there is no run yet to be kept."""
        try:
            begun.append(await self._meters.edge())
        except AgentFailed as failed:
            if not self._came.runs:
                raise
            self._came.notes.append(f"no more runs: {failed}")

    async def _pause(self) -> None:
        """Wait until the agent has fresh readings for both edges of a run: each is then as long as it."""
        if self._meters.hertz < TRACE_HERTZ:
            await asyncio.sleep(_REFILL_SECONDS)

    async def _idle(self) -> None:
        """Measure the machine before the command."""
        around = read_conditions(Host())
        begin = await self._meters.edge()
        await self._show.countdown("idle window", self._plan.idle)
        end = await self._meters.edge(begin)
        energy = window(begin, end)
        for warning in warnings_of(around, read_conditions(Host()), around, 0.0):
            self._came.notes.append(f"idle window: {warning}")
        if energy.problems:
            raise AgentFailed(f"the idle window: {'; '.join(energy.problems)}")
        self._came.idle = Window(begin.time, end.time, energy)
        self._show.progress(f"idle: {energy.seconds:.1f} s, {energy.watts:.2f} W ({energy.source})")

    async def _has_beaten(self, end: Edge) -> bool:
        """Wait until the agents have read who used their GPUs after this reading of the counters."""
        patience = asyncio.get_running_loop().time() + _BEAT_SECONDS
        gpus = {(key.agent, key.collector): mark for key, mark in end.marks.items() if key.component == GPU}
        while asyncio.get_running_loop().time() < patience:
            with contextlib.suppress(AgentFailed):
                beaten = set()
                for client in self._meters.clients:
                    for name, state in (await client.snapshot())["collectors"].items():
                        mark = gpus.get((client.label, name))
                        if mark is not None and state["monotonic"] > mark.monotonic:
                            beaten.add((client.label, name))
                if beaten == gpus.keys():
                    return True
            await asyncio.sleep(0.1)
        return False

    async def _run(self, begin: Edge) -> Run:
        """Run the command between two readings. Raises: CannotStart."""
        uses = GpuUse()
        has_gpu = self._here and any(key.component == GPU for key in begin.marks)
        of_command: Collection[int] = ()

        async def look(pids: Collection[int]) -> None:
            nonlocal of_command
            of_command = pids
            for client in self._meters.clients if has_gpu else ():
                with contextlib.suppress(AgentFailed):  # the next look makes up for it
                    uses.take(client.label, await client.snapshot(), pids)

        around = read_conditions(Host())
        before = read_cpu_time(Host())
        used = await command.run(self._plan.command, self._signals, look)
        try:
            end = await self._meters.edge(begin)
            energy = window(begin, end)
        except AgentFailed as failed:
            return Run(used, None, problems=(str(failed),))
        after = read_cpu_time(Host())
        warnings = warnings_of(around, read_conditions(Host()), around, used.cpu_seconds)
        if not energy.measured and energy.seconds < _MIN_ESTIMATE_SECONDS:
            warnings.append("an estimate over so short a time is mostly chance: let the command do more")
        capacity, its_share = None, None
        if has_gpu and not await self._has_beaten(end):
            warnings.append("the GPU's processes were not read after the command: its share lacks its end")
        await look(of_command)
        if used.seconds < _JUST_TICKS:
            warnings.append(f"a command of less than {_JUST_TICKS:g} s has no share: let it do more")
        else:
            warnings += energy_warnings(energy, used.seconds)
            if self._here:
                capacity = after.capacity - before.capacity if before and after else None
                its_share = share(energy, gpu_gains(begin, end), uses, used.cpu_seconds, capacity)
        measured = Window(begin.time, end.time, energy)
        return Run(
            used,
            measured,
            costs.against(measured, self._came.idle),
            its_share,
            capacity,
            energy.problems,
            tuple(warnings),
        )


def is_here(url: str) -> bool:
    """Return whether an agent is on this machine, as far as its URL tells."""
    name = urlsplit(url).hostname or ""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _news(run: Run) -> str:
    """Return one line of a run's figures."""
    if run.window is None:
        return f"{run.used.seconds:.2f} s, no energy"
    energy = run.window.energy
    return f"{run.used.seconds:.2f} s, {energy.joules:.2f} J, {energy.watts:.2f} W ({energy.source})"


class _Show:
    """Standard error, which is the command's as well: it is ours only while the command does not run."""

    def __init__(self, *, progress: bool | None) -> None:
        self._out = log.Unbreakable(sys.stderr)
        self._live = self._out.isatty() and progress is not False
        self._lines = self._live or progress is True

    def progress(self, text: str) -> None:
        """Print a line of news."""
        if self._lines:
            self._out.write(f"powerbench: {text}\n")

    async def countdown(self, title: str, seconds: float) -> None:
        """Let the time go by; in a terminal, say how much has."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if not self._live:
            self.progress(f"{title}: {seconds:g} s")
        try:
            while (left := until - loop.time()) > 0:
                if self._live:
                    self._out.write(f"\r\x1b[Kpowerbench: {title}: {seconds - left:.0f} of {seconds:g} s")
                await asyncio.sleep(min(1.0, left))
        finally:
            if self._live:
                self._out.write("\r\x1b[K")

    def report(self, text: str) -> None:
        """Print the report."""
        self._out.write(f"\n{text}")
