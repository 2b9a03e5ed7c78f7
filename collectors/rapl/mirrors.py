"""Zones whose counters are one register under several names.

Dies of one socket (AMD Zen 1 and 2) and the packages that a hypervisor shows, one a virtual CPU. Counters of
their own differ in value, by thousands of joules; counters of one register never do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powerbench_agent.collectors.rapl.zones import MOST_WATTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from powerbench_agent.collectors.rapl.zones import Zone

_UPDATE_SECONDS = 0.002  # a counter is at most this old when it is read
_DECIDING = 2  # comparisons in a row


class _Likeness:
    """Whether a zone repeats another."""

    def __init__(self) -> None:
        self.alike = 0
        self.unlike = 0
        self.raw_uj: int | None = None  # when it was compared last

    @property
    def is_own(self) -> bool:
        """Whether it has a register of its own, for good: registers may cross, mirrors never differ."""
        return self.unlike >= _DECIDING

    @property
    def is_mirror(self) -> bool:
        """Whether it is metered as the other zone."""
        return self.alike >= _DECIDING

    def compare(self, zone: Zone, alike: Sequence[Zone]) -> None:
        """Take the zones that have the same value now, itself among them, in their order."""
        has_moved = zone.raw_uj != self.raw_uj  # those that stand still are alike by chance
        self.raw_uj = zone.raw_uj
        first = alike[0]
        if len(alike) == 1 or (first is zone and zone.identity.die):
            self.unlike += 1
            if not self.is_mirror:
                self.alike = 0
        elif first is not zone and has_moved:  # of another zone than before, if virtual CPUs wander
            self.alike += 1
            self.unlike = 0


class Mirrors:
    """Finds mirrors among zones of one kind; each of a few comparisons costs one sort."""

    def __init__(self) -> None:
        self._likenesses: dict[str, _Likeness] = {}  # by path

    def compare(self, zones: Sequence[Zone]) -> None:
        """Compare what the zones show at this beat."""
        for zone in zones:
            self._likenesses.setdefault(zone.identity.path, _Likeness())
        undecided = [zone for zone in zones if not self._likenesses[zone.identity.path].is_own]
        if not undecided:
            return
        alike = _alike(zones)
        for zone in undecided:
            path = zone.identity.path
            self._likenesses[path].compare(zone, alike[path])

    def find(self, zones: Iterable[Zone]) -> set[str]:
        """Return the paths of zones that repeat another, or, dies of one socket, may turn out to."""
        mirrors = set()
        first_dies: dict[str, str] = {}
        for zone in zones:
            identity = zone.identity
            likeness = self._likenesses.get(identity.path, _Likeness())
            is_later_die = bool(identity.die)
            if is_later_die:
                is_later_die = first_dies.setdefault(identity.package, identity.path) != identity.path
            if not likeness.is_own and (likeness.is_mirror or is_later_die):
                mirrors.add(identity.path)
        return mirrors


def _alike(zones: Sequence[Zone]) -> dict[str, list[Zone]]:
    """Return, by path, the zones that show the same value, itself among them, in their order."""
    order = {zone.identity.path: number for number, zone in enumerate(zones)}
    groups: list[list[Zone]] = []
    for zone in sorted(zones, key=lambda zone: zone.raw_uj):
        if groups and _is_alike(groups[-1][-1], zone):  # the next lower: many are read far apart
            groups[-1].append(zone)
        else:
            groups.append([zone])
    found: dict[str, list[Zone]] = {}
    for group in groups:
        group.sort(key=lambda zone: order[zone.identity.path])
        found.update((zone.identity.path, group) for zone in group)
    return found


def _is_alike(one: Zone, other: Zone) -> bool:
    seconds_apart = abs(other.read_at - one.read_at) + _UPDATE_SECONDS
    return abs(other.raw_uj - one.raw_uj) <= seconds_apart * MOST_WATTS * 1e6
