"""The node's energy: the collectors' meters added up without overlaps, and shared. Pure: no I/O, no clock.

An estimate counts only while nothing measures its component. A part's power is a gap while that of one of its
meters is unknown: the sum of the others would be too low.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from powerbench_agent.agent import attribution
from powerbench_agent.agent.attribution import MeterGain, Shares
from powerbench_agent.core.counters import Rate
from powerbench_agent.core.model import ESTIMATE, PART_LABELS, Meter, Metric, Reading, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from powerbench_agent.agent.attribution import Idle, PartKey
    from powerbench_agent.core.model import CpuTime

NODE_ENERGY = Metric(
    "powerbench_node_energy_joules_total",
    "counter",
    "Energy of the node since the agent started, from parts that do not overlap. "
    "source=estimate is a model's figure, not a measurement.",
    PART_LABELS,
)
NODE_POWER = Metric(
    "powerbench_node_power_watts",
    "gauge",
    "Mean power of the node over the last interval, from parts that do not overlap. "
    "source=estimate is a model's figure, not a measurement.",
    PART_LABELS,
)
NODE_METRICS = (NODE_ENERGY, NODE_POWER, *attribution.METRICS)

_SUSPEND_SECONDS = 0.1  # the two clocks are read one after the other

_MeterKey = tuple[str, str, str]  # component, source, key


class _Metered:
    """A meter: what it showed last, and its power."""

    def __init__(self) -> None:
        self.joules = 0.0  # as it last showed
        self.gained = 0.0  # since it first showed, whenever it started at 0 again
        self.taken = math.inf  # monotonic seconds; infinite: not in the last readings
        self.asleep = 0.0  # seconds that the machine had been suspended by then
        self.rate = Rate()
        self.watts: float | None = None


class Node:
    """Adds the collectors' meters up, once a beat, by component and source; and shares them."""

    def __init__(self, idle: Idle = "apart") -> None:
        self.shares = Shares(idle)
        self.asleep = 0.0  # seconds that the machine has been suspended since boot, as of the next beat
        self._meters: dict[_MeterKey, _Metered] = {}
        self._joules: defaultdict[PartKey, float] = defaultdict(float)

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
        estimate of such a component is not part of the node. `present`, `cpu`, `now`: as Shares.beat.
        """
        gains = self._advance_meters(readings, measured)
        samples = self._add_up(gains)
        samples += self.shares.beat(gains, readings, present, cpu, now)
        return Reading(samples)

    def _advance_meters(self, readings: Mapping[str, Reading], measured: Iterable[str]) -> list[MeterGain]:
        """Take every meter; return what those that count have gained since they were last taken."""
        all_measured = set(measured)
        for reading in readings.values():
            all_measured.update(meter.component for meter in reading.meters if meter.source != ESTIMATE)
        gains: list[MeterGain] = []
        seen: set[_MeterKey] = set()
        for reading in readings.values():
            taken = reading.taken or 0.0
            for meter in reading.meters:
                seen.add((meter.component, meter.source, meter.key))
                gain = self._advance_meter(meter, taken, reading.powers)
                if meter.source != ESTIMATE or meter.component not in all_measured:
                    gains.append(gain)
        for key in self._meters.keys() - seen:  # no mean over a gap: its next reading opens a window
            self._meters[key].taken = math.inf
            self._meters[key].rate.restart()
        return gains

    def _advance_meter(self, meter: Meter, taken: float, powers: Mapping[Meter, float | None]) -> MeterGain:
        key = (meter.component, meter.source, meter.key)
        metered = self._meters.setdefault(key, _Metered())
        # A meter starts at 0 when it first shows, and again after its collector was reopened.
        start = metered.joules if metered.joules <= meter.joules else 0.0
        joules, metered.joules = meter.joules - start, meter.joules
        metered.gained += joules
        seconds = 0.0
        if taken != metered.taken:
            seconds = max(0.0, taken - metered.taken)
            if self.asleep - metered.asleep > _SUSPEND_SECONDS:
                metered.rate.restart()  # who drew what while the machine slept is not known
            metered.taken, metered.asleep = taken, self.asleep
            metered.rate.beat(metered.gained, taken)
        metered.watts = powers.get(meter, metered.rate.watts)
        return MeterGain((meter.component, meter.source), meter.key, joules, seconds)

    def _add_up(self, gains: Iterable[MeterGain]) -> list[Sample]:
        """Add the gains to the node's sums; return its energy and power."""
        gains_of: defaultdict[PartKey, list[MeterGain]] = defaultdict(list)
        for gain in gains:
            gains_of[gain.part].append(gain)
        samples: list[Sample] = []
        for part, part_gains in sorted(gains_of.items()):
            self._joules[part] += sum(gain.joules for gain in part_gains)
            samples.append(NODE_ENERGY.sample(self._joules[part], *part))
            powers = [self._meters[(*part, gain.key)].watts for gain in part_gains]
            known = [watts for watts in powers if watts is not None]
            if len(known) == len(powers):
                samples.append(NODE_POWER.sample(sum(known), *part))
        return samples
