"""A command's share of a window's joules, by CPU time and GPU use. Pure.

The rule is that of agent/attribution.py, except that idle energy is not set apart. CPU and DRAM joules are
attributed by the command's part of the machine's CPU seconds, a GPU's by the seconds that the command used
its busiest engine within the window. The result is attributed, not measured.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from powerbench_agent.bench.meter.energy import counted
from powerbench_agent.core.model import UNTOLD
from powerbench_agent.core.results import Part

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from powerbench_agent.bench.meter.energy import Edge
    from powerbench_agent.core.results import Energy

BY_CPU_TIME = ("cpu", "dram")
GPU = "gpu"

Gpu = tuple[str, str, str]  # agent, source, key


class GpuGain(NamedTuple):
    """What one GPU's meter counted within a window."""

    gpu: Gpu
    joules: float
    seconds: float  # between its readings


class Share(NamedTuple):
    """A command's share of a window's energy."""

    parts: tuple[Part, ...]
    missing: tuple[str, ...] = ()  # what could not be attributed and is not in it

    @property
    def joules(self) -> float:
        """All parts together."""
        return sum(part.joules for part in self.parts)

    @property
    def watts(self) -> float:
        """Mean power of all parts together."""
        return sum(part.watts for part in self.parts)

    @property
    def source(self) -> str:
        """Where the attributed joules come from."""
        return " + ".join(sorted({part.source for part in self.parts}))


class GpuUse:
    """The seconds that a command's processes used each GPU, out of the agents' snapshots."""

    def __init__(self) -> None:
        self.seconds: defaultdict[Gpu, float] = defaultdict(float)
        self.told: set[Gpu] = set()  # GPUs whose processes the agent reports
        self._engines: dict[tuple[Gpu, int], dict[str, float]] = {}

    def take(self, agent: str, snapshot: Mapping[str, Any], pids: Collection[int]) -> None:
        """Add what a snapshot says of these processes; `agent` is its label.

        They started within the window, so everything that a process has used when first seen falls into it.
        """
        engines: defaultdict[tuple[Gpu, int], dict[str, float]] = defaultdict(dict)
        for state in snapshot["collectors"].values():
            for use in state.get("uses", ()):
                if use["component"] != GPU:
                    continue
                gpu = (agent, use["source"], use["key"])
                if use["engine"] != UNTOLD:
                    self.told.add(gpu)
                if use["pid"] in pids:
                    its = engines[gpu, use["pid"]]
                    its[use["engine"]] = its.get(use["engine"], 0.0) + use["seconds"]
        for process, now in engines.items():
            gpu, _ = process
            before = self._engines.get(process, {})
            # A process that used several engines at once counts with the busiest.
            used = [now[name] - before.get(name, 0.0) for name in now]
            self.seconds[gpu] += max(0.0, *used)
            self._engines[process] = {**before, **now}


def gpu_gains(begin: Edge, end: Edge) -> Iterator[GpuGain]:
    """Yield what each GPU counted between two edges, as far as `meters.window` counts it."""
    for key in counted(begin.marks):
        first, last = begin.marks[key], end.marks.get(key)
        if key.component != GPU or last is None:
            continue
        joules, seconds = last.joules - first.joules, last.monotonic - first.monotonic
        if joules >= 0 and seconds > 0:
            yield GpuGain((key.agent, key.source, key.key), joules, seconds)


def share(
    energy: Energy, gains: Iterable[GpuGain], used: GpuUse, cpu_seconds: float, capacity: float | None
) -> Share:
    """Return a command's share of a window's energy; never more than there is.

    `cpu_seconds`: the command's; `capacity`: all CPU seconds that the machine had within the window, None if
    unknown.
    """
    if capacity is None:
        missing = [f"{part.component} (no /proc/stat)" for part in energy.parts if part.component != GPU]
        by_cpu = Share((), tuple(missing))
    else:
        by_cpu = _share_by_cpu_time(energy, cpu_seconds, capacity)
    by_gpu = _share_by_gpu_use(gains, used)
    parts = sorted(by_cpu.parts + by_gpu.parts)
    return Share(tuple(parts), by_cpu.missing + by_gpu.missing)


def _share_by_cpu_time(energy: Energy, cpu_seconds: float, capacity: float) -> Share:
    """Return the share of the CPU and the memory."""
    whole = max(capacity, cpu_seconds)  # clocks of different resolution may disagree about the larger one
    ratio = cpu_seconds / whole if whole > 0 else 0.0
    parts = []
    missing = []
    for part in energy.parts:
        if part.component in BY_CPU_TIME:
            joules, watts = part.joules * ratio, part.watts * ratio
            parts.append(Part(part.component, part.source, joules, watts))
        elif part.component != GPU:
            missing.append(f"{part.component} ({part.source})")
    return Share(tuple(parts), tuple(missing))


def _share_by_gpu_use(gains: Iterable[GpuGain], used: GpuUse) -> Share:
    """Return the share of the GPUs: one part per source."""
    joules_of: defaultdict[str, float] = defaultdict(float)
    watts_of: defaultdict[str, float] = defaultdict(float)
    missing = []
    for gain in gains:
        _, source, key = gain.gpu
        if gain.gpu not in used.told:
            missing.append(f"gpu ({source} {key}: the agent does not report its processes)")
            continue
        seconds = used.seconds[gain.gpu]
        joules = gain.joules * seconds / max(gain.seconds, seconds)
        joules_of[source] += joules
        watts_of[source] += joules / gain.seconds
    parts = [Part(GPU, source, joules_of[source], watts_of[source]) for source in joules_of]
    return Share(tuple(parts), tuple(missing))
