"""The joules between two edges of a window. Pure.

A window's energy is the difference of counters, and its length the time between their readings, which the
agent stamps; so neither the network's delay nor the agent's reading interval is in the figure.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import msgspec

from powerbench_agent.bench.meter.client import AgentFailed
from powerbench_agent.core.model import ESTIMATE
from powerbench_agent.core.results import Energy, Part


class MeterKey(NamedTuple):
    """Which counter it is."""

    agent: str  # its label
    collector: str
    component: str
    source: str
    key: str

    def __str__(self) -> str:
        """Return it as warnings name it."""
        return f"{self.component} ({self.source} {self.key})"


class Mark(NamedTuple):
    """A counter's value, and when it was read, by the agent's own monotonic clock."""

    joules: float
    monotonic: float


class Edge(NamedTuple):
    """Every counter at one moment."""

    time: float  # Unix seconds here
    marks: dict[MeterKey, Mark]


class MeteredEnergy(Energy, frozen=True):
    """A window's energy as the agents' counters have it; `problems` say what is missing of it."""

    problems: tuple[str, ...] = ()


def counted(marks: dict[MeterKey, Mark]) -> list[MeterKey]:
    """Return the counters that add up: an estimate only if its agent measures nothing of the component."""
    measured = {(key.agent, key.component) for key in marks if key.source != ESTIMATE}
    return [key for key in marks if key.source != ESTIMATE or (key.agent, key.component) not in measured]


def energy_between(begin: Edge, end: Edge) -> MeteredEnergy:
    """Return the energy between two edges. Raises: AgentFailed if no counter gives any."""
    problems: list[str] = []
    joules: defaultdict[tuple[str, str], float] = defaultdict(float)
    watts: defaultdict[tuple[str, str], float] = defaultdict(float)
    spans: list[float] = []
    for key in counted(begin.marks):
        first, last = begin.marks[key], end.marks.get(key)
        if last is None or not _is_gain(first, last):
            problems.append(f"{key} of {key.agent} {_complaint(first, last)}: its energy is missing")
            continue
        gained = last.joules - first.joules
        span = last.monotonic - first.monotonic
        joules[key.component, key.source] += gained
        watts[key.component, key.source] += gained / span
        spans.append(span)
    appeared = [key for key in counted(end.marks) if key not in begin.marks]
    problems += [f"{key} appeared within the window: its energy is missing" for key in appeared]
    if not joules:
        raise AgentFailed("; ".join(problems) or "the agent has no energy counter; see its /health")
    parts = [Part(*origin, total, watts[origin]) for origin, total in sorted(joules.items())]
    energy = MeteredEnergy.of_parts(parts, sum(spans) / len(spans))
    return msgspec.structs.replace(energy, problems=tuple(problems))


def _is_gain(first: Mark, last: Mark) -> bool:
    """Return whether the difference of two readings is energy over a time."""
    return last.joules >= first.joules and last.monotonic > first.monotonic


def _complaint(first: Mark, last: Mark | None) -> str:
    """Return what is wrong with a counter whose readings give no energy."""
    if last is None:
        return "could not be read at the window's end"
    if last.joules < first.joules:
        return "started again from zero within the window (an agent restarted?)"
    return "was not read within the window"
