"""Collectors' joules to the node's, without overlaps. Pure: no I/O, no clock."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.agent import attribution
from powerbench_agent.agent.attribution import Gain, Shares
from powerbench_agent.core.model import ESTIMATE, Metric, Reading, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from powerbench_agent.agent.attribution import Idle, Part
    from powerbench_agent.core.model import CpuTime


NODE_ENERGY = Metric(
    "powerbench_node_energy_joules_total",
    "counter",
    "Energy of the node's parts that do not overlap, since the agent started. "
    "source=estimate is a model's figure, not a measurement.",
    ("component", "source"),
)


NODE_POWER = Metric(
    "powerbench_node_power_watts",
    "gauge",
    "Mean power of the node's parts over the last beat. "
    "source=estimate is a model's figure, not a measurement.",
    ("component", "source"),
)


NODE_METRICS = (NODE_ENERGY, NODE_POWER, *attribution.METRICS)


class _Metered(NamedTuple):
    joules: float
    taken: float


class Node:
    """Adds the collectors' meters up, once a beat, by component and source; and shares them."""

    def __init__(self, idle: Idle = "apart") -> None:
        self.shares = Shares(idle)
        self._meters: dict[tuple[str, str, str], _Metered] = {}
        self._joules: defaultdict[Part, float] = defaultdict(float)
        self._watts: dict[Part, float] = {}

    def beat(
        self,
        readings: Mapping[str, Reading],
        measured: Iterable[str] = (),
        present: Collection[str] = (),
        cpu: CpuTime | None = None,
        now: float = 0.0,
    ) -> Reading:
        """Return the node's reading after these readings of its collectors, by name.

        `measured`: components that a measuring collector has, readable at this moment or not; the
        estimate of such a component is no part of the node. `present`, `cpu`, `now`: as Shares.beat.
        """
        meters = [(meter, reading.taken or 0.0) for reading in readings.values() for meter in reading.meters]
        kept = {meter.component for meter, _ in meters if meter.source != ESTIMATE} | set(measured)
        gains: list[Gain] = []
        watts: defaultdict[Part, float] = defaultdict(float)
        stood_still: set[Part] = set()
        for meter, taken in meters:
            part = (meter.component, meter.source)
            before = self._meters.get((*part, meter.key))
            # A meter starts at 0 when it first shows, and again when its collector was opened anew.
            start = before.joules if before and before.joules <= meter.joules else 0.0
            self._meters[*part, meter.key] = _Metered(meter.joules, taken)
            if meter.source == ESTIMATE and meter.component in kept:
                continue
            seconds = 0.0
            if before is None or taken <= before.taken:
                stood_still.add(part)
            else:
                seconds = taken - before.taken
                watts[part] += (meter.joules - start) / seconds
            gains.append(Gain(part, meter.key, meter.joules - start, seconds))

        samples: list[Sample] = []
        gained: defaultdict[Part, float] = defaultdict(float)
        for gain in gains:
            gained[gain.part] += gain.joules
        for part, joules in sorted(gained.items()):
            self._joules[part] += joules
            if part not in stood_still:
                self._watts[part] = watts[part]
            samples.append(NODE_ENERGY.sample(self._joules[part], *part))
            if part in self._watts:
                samples.append(NODE_POWER.sample(self._watts[part], *part))
        for part in [part for part in self._watts if part not in gained]:
            del self._watts[part]
        seen = {(*meter[:3],) for meter, _ in meters}
        for key in self._meters.keys() - seen:  # no mean over a gap: its next reading opens a window
            self._meters[key] = self._meters[key]._replace(taken=math.inf)
        samples += self.shares.beat(gains, readings, present, cpu, now)
        return Reading(samples)
