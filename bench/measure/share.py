"""Which part of a window's joules was a command's: by CPU time and GPU use. Pure.

The rule is that of agent/attribution.py, idle apart: CPU and DRAM joules by the CPU seconds of the command
out of all that the machine has, a GPU's by the seconds of its busiest engine out of the window's. It is a
share, not a measurement.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from powerbench_agent.bench.meter.client import Part, counted
from powerbench_agent.core.model import UNTOLD

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from powerbench_agent.bench.meter.client import Edge, Energy

BY_CPU_TIME = ("cpu", "dram")
GPU = "gpu"

Gpu = tuple[str, str, str]  # agent, source, key


class Gain(NamedTuple):
    """What one GPU's meter counted within a window."""

    gpu: Gpu
    joules: float
    seconds: float  # between its readings


class Share(NamedTuple):
    """A command's share of a window's energy."""

    parts: tuple[Part, ...]
    missing: tuple[str, ...] = ()  # components that cannot be shared, and are not in it

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
        """Where the joules that are shared come from."""
        return " + ".join(sorted({part.source for part in self.parts}))


class GpuUse:
    """The seconds that a command's processes had of each GPU, out of the agents' snapshots."""

    def __init__(self) -> None:
        self.seconds: defaultdict[Gpu, float] = defaultdict(float)
        self.told: set[Gpu] = set()  # those whose processes the agent tells of
        self._engines: dict[tuple[Gpu, int], dict[str, float]] = {}

    def take(self, agent: str, snapshot: Mapping[str, Any], pids: Collection[int]) -> None:
        """Add what a snapshot says of these processes; `agent` is its label.

        They started within the window, so all that is said of one that was not seen before falls into it.
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
            before = self._engines.get(process, {})
            # One that used several engines at once counts with the busiest.
            self.seconds[process[0]] += max(max(0.0, now[name] - before.get(name, 0.0)) for name in now)
            self._engines[process] = {**before, **now}


def gpu_gains(begin: Edge, end: Edge) -> Iterator[Gain]:
    """Yield what each GPU counted between two edges, as far as `meters.window` counts it."""
    for key in counted(begin.marks):
        first, last = begin.marks[key], end.marks.get(key)
        if key.component != GPU or last is None:
            continue
        joules, seconds = last.joules - first.joules, last.monotonic - first.monotonic
        if joules >= 0 and seconds > 0:
            yield Gain((key.agent, key.source, key.key), joules, seconds)


def share(
    energy: Energy, gains: Iterable[Gain], used: GpuUse, cpu_seconds: float, capacity: float | None
) -> Share:
    """Return a command's share of a window's energy; never more than there is.

    `cpu_seconds`: the command's; `capacity`: all CPU seconds that the machine had within the window, None
    where nobody knows.
    """
    parts = []
    missing = []
    if capacity is None:
        missing = [f"{part.component} (no /proc/stat)" for part in energy.parts if part.component != GPU]
    else:
        # Clocks of different grain may disagree about who is larger.
        ratio = cpu_seconds / whole if (whole := max(capacity, cpu_seconds)) > 0 else 0.0
        for part in energy.parts:
            if part.component in BY_CPU_TIME:
                parts.append(part._replace(joules=part.joules * ratio, watts=part.watts * ratio))
            elif part.component != GPU:
                missing.append(f"{part.component} ({part.source})")
    of_source: dict[str, tuple[float, float]] = {}
    for gain in gains:
        if gain.gpu not in used.told:
            missing.append(f"gpu ({gain.gpu[1]} {gain.gpu[2]}: the agent tells of no process on it)")
            continue
        seconds = used.seconds[gain.gpu]
        joules = gain.joules * seconds / max(gain.seconds, seconds)
        before = of_source.get(gain.gpu[1], (0.0, 0.0))
        of_source[gain.gpu[1]] = before[0] + joules, before[1] + joules / gain.seconds
    parts += [Part(GPU, source, *figures) for source, figures in of_source.items()]
    return Share(tuple(sorted(parts)), tuple(missing))
