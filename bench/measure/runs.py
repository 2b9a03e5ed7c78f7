"""The runs of a measured command: an idle window first if asked for, then one run after the other."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from ipaddress import ip_address
from signal import Signals as Number
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from powerbench_agent.bench.measure import command, costs
from powerbench_agent.bench.measure.command import CannotStart
from powerbench_agent.bench.measure.costs import CommandRun, EnergyWindow
from powerbench_agent.bench.measure.ffmpeg_words import answers_ffmpeg, find_ffmpeg_words, mentions_ffmpeg
from powerbench_agent.bench.measure.share import GPU, GpuUse, gpu_gains, share
from powerbench_agent.bench.meter.client import AgentFailed
from powerbench_agent.bench.meter.conditions import read_conditions, warnings_of
from powerbench_agent.bench.meter.energy import energy_between
from powerbench_agent.bench.meter.meters import TRACE_HERTZ
from powerbench_agent.bench.run.outcome import energy_warnings
from powerbench_agent.core.cpu_time import CpuTimes
from powerbench_agent.core.host import Host

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from powerbench_agent.bench.measure.command import Signals, Used
    from powerbench_agent.bench.measure.display import MeasureDisplay
    from powerbench_agent.bench.meter.energy import Edge, MeteredEnergy
    from powerbench_agent.bench.meter.meters import Meters, Sources

_INTERVAL_SECONDS = 2.5  # within which an agent has read all its collectors again
_REFILL_SECONDS = 1.0  # after which an agent that does not know us has two fresh readings to give again
_MIN_ESTIMATE_SECONDS = 0.5
_MIN_SHARE_SECONDS = 0.1  # the machine's CPU time is counted in hundredths of a second


@dataclass
class Collected:
    """What has been measured so far."""

    runs: list[CommandRun] = field(default_factory=list)
    idle: EnergyWindow | None = None
    notes: list[str] = field(default_factory=list)
    sources: Sources | None = None
    agents: tuple[str, ...] = ()
    cannot_start: CannotStart | None = None


class _Ended(NamedTuple):
    """A command that has ended, and what was read around it."""

    used: Used
    uses: GpuUse
    begin: Edge
    end: Edge
    energy: MeteredEnergy
    capacity: float | None  # seconds of all CPUs meanwhile; None if /proc/stat cannot be read


class CommandRunner:
    """Runs the command between two readings of the meters, again and again."""

    def __init__(
        self,
        argv: Sequence[str],
        meters: Meters,
        signals: Signals,
        display: MeasureDisplay,
        collected: Collected,
    ) -> None:
        self._argv = argv
        self._ffmpeg = find_ffmpeg_words(argv)
        self._meters = meters
        self._signals = signals
        self._display = display
        self._collected = collected
        self._elsewhere = [client.url for client in meters.clients if not is_here(client.url)]

    async def run_all(self, count: int, idle: float) -> None:
        """Measure the idle window, then the runs. Raises: AgentFailed before the first run."""
        collected = self._collected
        if idle > 0:
            await self._signals.interruptibly(self._measure_idle(idle))
        if self._elsewhere:
            where = ", ".join(self._elsewhere)
            collected.notes.append(f"the command has no share: the agent at {where} is on another machine")
        while len(collected.runs) < count and not self._signals.received:
            if not await self._run_next():
                break
            last = collected.runs[-1]
            if count > 1:
                self._display.progress(f"run {len(collected.runs)} of {count}: {_summary(last)}")
            if last.used.code:
                break
        collected.notes += self._notes_on_ffmpeg()
        if collected.runs and len(collected.runs) < count:
            by = f" by {Number(self._signals.received).name}" if self._signals.received else ""
            collected.notes.append(f"ended{by} after {len(collected.runs)} of {count} runs")

    def _notes_on_ffmpeg(self) -> Iterator[str]:
        """Yield what was changed for an ffmpeg, and why its frames are not known."""
        runs = len(self._collected.runs)
        ffmpeg = self._ffmpeg
        if ffmpeg is not None and ffmpeg.may_ask and ffmpeg.output and runs > 1:
            yield f"after the first run ffmpeg got -y, to overwrite {ffmpeg.output}"
        if not any(run.used.uncounted for run in self._collected.runs):
            return
        if ffmpeg is not None:
            yield "no joules per frame: ffmpeg has a -progress of its own; omit it to have frames counted"
            return
        remedy = "give ffmpeg itself as the command, with nice, timeout or env before it if need be"
        yield f"no joules per frame: the frames of the command's ffmpeg cannot be counted; {remedy}"
        if self._may_ask_in_a_script and runs > 1:
            yield "after the first run the command's input was empty; have its ffmpeg overwrite files with -y"

    @property
    def _may_ask_in_a_script(self) -> bool:
        """Whether an ffmpeg that is not found among the words asks before it overwrites a file."""
        return self._ffmpeg is None and mentions_ffmpeg(self._argv) and not answers_ffmpeg(self._argv)

    async def _run_next(self) -> bool:
        """Make one more run; return whether there is one. Raises: AgentFailed before the first run."""
        if self._collected.runs:
            await self._signals.interruptibly(self._pause())
        begun: list[Edge] = []
        if not await self._signals.interruptibly(self._read_begin(begun)) or not begun:
            return False
        try:
            self._collected.runs.append(await self._run_once(begun[0]))
        except CannotStart as cannot:
            self._collected.cannot_start = cannot
            return False
        return True

    async def _read_begin(self, begun: list[Edge]) -> None:
        """Read the meters at a run's begin. Raises: AgentFailed if there is no earlier run to keep."""
        try:
            begun.append(await self._meters.edge())
        except AgentFailed as failed:
            if not self._collected.runs:
                raise
            self._collected.notes.append(f"no more runs: {failed}")

    async def _pause(self) -> None:
        """Wait until the agent has fresh readings for both edges of a run: the window then fits it."""
        if self._meters.hertz < TRACE_HERTZ:
            await asyncio.sleep(_REFILL_SECONDS)

    async def _measure_idle(self, seconds: float) -> None:
        """Measure the machine before the command. Raises: AgentFailed."""
        around = read_conditions(Host())
        begin = await self._meters.edge()
        await self._display.countdown("idle window", seconds)
        end = await self._meters.edge(begin)
        energy = energy_between(begin, end)
        for warning in warnings_of(around, read_conditions(Host()), around, 0.0):
            self._collected.notes.append(f"idle window: {warning}")
        if energy.problems:
            raise AgentFailed(f"the idle window: {'; '.join(energy.problems)}")
        self._collected.idle = EnergyWindow(begin.time, end.time, energy)
        self._display.progress(f"idle: {energy.seconds:.1f} s, {energy.watts:.2f} W ({energy.source})")

    async def _run_once(self, begin: Edge) -> CommandRun:
        """Run the command between two readings. Raises: CannotStart."""
        uses = GpuUse()
        has_gpu = not self._elsewhere and any(key.component == GPU for key in begin.marks)
        pids_seen: Collection[int] = ()

        async def look(pids: Collection[int]) -> None:
            nonlocal pids_seen
            pids_seen = pids
            if has_gpu:
                await self._take_gpu_use(uses, pids)

        cpu_times = CpuTimes(Host())
        around, before = read_conditions(Host()), cpu_times.read()
        argv, has_input = self._argv, True
        if self._collected.runs:  # what the first run wrote is there by now
            if self._ffmpeg is not None and self._ffmpeg.may_ask:
                argv = self._ffmpeg.with_options("-y")
            has_input = not self._may_ask_in_a_script
        used = await command.run(argv, self._signals, look, has_input=has_input)
        try:
            end = await self._meters.edge(begin)
            energy = energy_between(begin, end)
        except AgentFailed as failed:
            return CommandRun(used, None, problems=(str(failed),))
        after = cpu_times.read()
        warnings = warnings_of(around, read_conditions(Host()), around, used.cpu_seconds)
        if has_gpu and not await self._has_read_gpus_since(end):
            warnings.append("the GPU's processes were not read after the command: its share lacks its end")
        await look(pids_seen)
        capacity = after.capacity - before.capacity if before and after else None
        return self._judge(_Ended(used, uses, begin, end, energy, capacity), warnings)

    def _judge(self, ended: _Ended, warnings: list[str]) -> CommandRun:
        """Return the run with the figures that it was long enough for."""
        used, energy = ended.used, ended.energy
        if not energy.measured and energy.seconds < _MIN_ESTIMATE_SECONDS:
            warnings.append("an estimate over so short a time is mostly chance: use a longer command")
        capacity, its_share = None, None
        if used.seconds < _MIN_SHARE_SECONDS:
            what = f"a command of less than {_MIN_SHARE_SECONDS:g} s has no share"
            warnings.append(f"{what}: use a longer one")
        else:
            warnings += energy_warnings(energy, used.seconds)
            if not self._elsewhere:
                capacity = ended.capacity
                gains = gpu_gains(ended.begin, ended.end)
                its_share = share(energy, gains, ended.uses, used.cpu_seconds, capacity)
        measured = EnergyWindow(ended.begin.time, ended.end.time, energy)
        return CommandRun(
            used,
            measured,
            versus=costs.against(measured, self._collected.idle),
            share=its_share,
            capacity_seconds=capacity,
            problems=energy.problems,
            warnings=tuple(warnings),
        )

    async def _take_gpu_use(self, uses: GpuUse, pids: Collection[int]) -> None:
        """Add what the agents say now of these processes' use of their GPUs."""
        for client in self._meters.clients:
            with contextlib.suppress(AgentFailed):  # the next look makes up for it
                uses.take(client.label, await client.snapshot(), pids)

    async def _has_read_gpus_since(self, end: Edge) -> bool:
        """Wait until the agents have read who used their GPUs after this reading of the counters."""
        read_at = {
            (key.agent, key.collector): mark.monotonic
            for key, mark in end.marks.items()
            if key.component == GPU
        }
        patience = asyncio.get_running_loop().time() + _INTERVAL_SECONDS
        while asyncio.get_running_loop().time() < patience:
            with contextlib.suppress(AgentFailed):
                if await self._are_read_since(read_at):
                    return True
            await asyncio.sleep(0.1)
        return False

    async def _are_read_since(self, read_at: Mapping[tuple[str, str], float]) -> bool:
        """Return whether each (agent, collector) has been read again since then. Raises: AgentFailed."""
        again = set()
        for client in self._meters.clients:
            snapshot = await client.snapshot()
            for name, state in snapshot["collectors"].items():
                collector = client.label, name
                if collector in read_at and state["monotonic"] > read_at[collector]:
                    again.add(collector)
        return again == read_at.keys()


def is_here(url: str) -> bool:
    """Return whether an agent is on this machine, as far as its URL tells."""
    name = urlsplit(url).hostname or ""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _summary(run: CommandRun) -> str:
    """Return a run's figures on one line."""
    if run.window is None:
        return f"{run.used.seconds:.2f} s, no energy"
    energy = run.window.energy
    return f"{run.used.seconds:.2f} s, {energy.joules:.2f} J, {energy.watts:.2f} W ({energy.source})"
