"""CPU and DRAM energy from RAPL, Intel and AMD, through the kernel's powercap interface.

Reads `/sys/class/powercap/intel-rapl*/{name,energy_uj,max_energy_range_uj,constraint_*}`. µJ and µW in,
joules and watts out. Privileges: `energy_uj` is 0400 root since Linux 5.10; the `powercap` group or
CAP_DAC_READ_SEARCH opens it (docs/guide.md).

Every zone is shown; only zones that do not overlap are metered (`Reading.meters`):

- cpu: one package zone per socket and die, preferring `intel-rapl` to its twin in `intel-rapl-mmio`;
- dram: likewise; on servers it is not part of the package zone;
- core, uncore and psys never: a package includes the first two, and psys includes the packages;
- zones of one register (dies of AMD Zen 1 and 2, a virtual machine's packages) are metered once;
- zones that the configuration excludes are neither shown nor metered.

A package or dram zone that cannot be read fails the whole reading, since a sum without it would be too low.
Any other zone that cannot be read is left out. A package whose counter stands still while the CPUs work
measures nothing: the reading fails, and an estimate takes its place.

Source: https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from powerbench_agent.collectors.rapl.metrics import (
    AVAILABLE,
    ENERGY,
    LIMIT,
    METRICS,
    POWER,
    RESETS,
    WRAPS,
    ZONES,
)
from powerbench_agent.collectors.rapl.mirrors import Mirrors
from powerbench_agent.collectors.rapl.reasons import permission_remedy, why_no_zones
from powerbench_agent.collectors.rapl.zones import Identity, Zone, identify, open_zone
from powerbench_agent.core import sysfs
from powerbench_agent.core.host import asleep
from powerbench_agent.core.model import Absent, Meter, ReadFailed, Reading, Sample, Trouble
from powerbench_agent.core.options import Exclude
from powerbench_agent.core.powercap import read_limits
from powerbench_agent.core.procfs import read_machine_stat

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from powerbench_agent.core.host import Host

__all__ = ["METRICS", "Options", "Rapl", "open_collector"]

MAX_INTERVAL = 30.0  # seconds; a 65 kJ counter wraps in 100 s at 650 W
RESCAN_SECONDS = 10.0
_SUSPEND_SECONDS = 0.1  # the two clocks are read one after the other
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)
_SCAN_REMEDY = "see the kernel log, and check the agent's limit of open files"
_DRIVER_REMEDY = "see the kernel log; reload intel_rapl_msr"
_STUCK_REMEDY = (
    "a hypervisor or the firmware shows RAPL without energy: exclude the zone in [collectors.rapl], "
    "or measure on the host; until then the CPU's energy is estimated"
)

_DIRECTORY = re.compile(r"intel-rapl(-mmio)?(:[0-9a-f]+)+")


class Options(Exclude, frozen=True, kw_only=True):
    """`[collectors.rapl]`; `exclude`: patterns of zones, by directory (intel-rapl:0:2) or name (dram)."""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        if self.interval > MAX_INTERVAL:
            yield (
                "interval",
                "must be at most 30s: the counter wraps, and a missed wrap loses energy",
            )


class _Place:
    """Joules of one package or dram, whichever of its twin zones they are read from."""

    def __init__(self, path: str) -> None:
        self.key = path  # of the zone that was metered first
        self.joules = 0.0
        self._path = path
        self._counted = 0.0  # that zone's joules when they were last added

    def follow(self, zone: Zone) -> None:
        """Add what the zone has gained; when its twin takes over, nothing is added at first."""
        joules = zone.counter.joules
        if zone.identity.path == self._path:
            self.joules += joules - self._counted
        self._path = zone.identity.path
        self._counted = joules


class Rapl:
    """The zones of one machine."""

    def __init__(self, host: Host, options: Options) -> None:
        self._host = host
        self._options = options
        self._root = host.sysfs / "class/powercap"
        self._zones: list[Zone] = []
        self._known: dict[tuple[str, str], Zone] = {}  # including those that have vanished: counters go on
        self._mirrors = {"package": Mirrors(), "dram": Mirrors()}
        self._metered: dict[tuple[str, str, str], _Place] = {}
        self._nameless: list[Trouble] = []
        self._asleep = asleep(host.clock)
        self._rescan_at = 0.0

    async def read(self) -> Reading:
        """Read every zone, and end the interval of the power gauges. Raises: ReadFailed, Absent."""
        slept = asleep(self._host.clock)
        if slept - self._asleep > _SUSPEND_SECONDS:
            self._restart_power()  # a mean over the night would be none of the last interval
        self._asleep = slept
        try:
            if self._host.clock.monotonic() >= self._rescan_at or not self._zones:
                self.scan()
            zones, troubles = self._read_zones(at_beat=True)
        except (ReadFailed, Absent):
            self._restart_power()  # the next mean would include the gap
            raise
        for zone in zones:
            zone.rate.follow(zone.counter, zone.read_at)
        for kind, mirrors in self._mirrors.items():
            mirrors.compare(_of_kind(kind, zones))
        return self._reading(zones, troubles)

    async def refresh(self) -> Reading:
        """Read every zone; the power gauges stay those of the last beat. Raises: ReadFailed, Absent."""
        return self._reading(*self._read_zones())

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _restart_power(self) -> None:
        for zone in self._known.values():
            zone.rate.restart()

    # -- finding zones ---------------------------------------------------------------------------

    def scan(self) -> None:
        """Find the zones. Raises: Absent if the machine has none; ReadFailed."""
        zones = []
        identities: dict[str, Identity] = {}
        self._nameless = []
        paths = self._list_directories()  # sorted: a parent comes before its children
        for path in paths:
            identity = self._identify(path, identities)
            if identity is None:
                continue
            identities[path] = identity
            if self._options.excludes(path, identity.name):
                continue
            zone = self._zone(identity)
            zone.set_limits(*read_limits(self._host, self._root / path))
            zones.append(zone)
        for zone in self._known.values():
            if zone not in zones:  # until it comes back, its energy is counted by its twin, or unknown
                zone.counter.forget()
        self._zones = zones
        if not zones:
            raise self._absence(paths, identities)
        self._rescan_at = self._host.clock.monotonic() + RESCAN_SECONDS

    def _absence(self, paths: list[str], identities: dict[str, Identity]) -> Absent:
        if identities:
            return Absent("every RAPL zone is excluded by `exclude` in [collectors.rapl]")
        return Absent(why_no_zones(self._host, self._root, dangling=bool(paths)))

    def _list_directories(self) -> list[str]:
        try:
            names = [entry.name for entry in self._root.iterdir()]
        except OSError as error:
            if error.errno in _GONE:
                return []
            raise ReadFailed(f"cannot list {self._root}: {error.strerror}", _SCAN_REMEDY) from None
        return sorted(name for name in names if _DIRECTORY.fullmatch(name))

    def _identify(self, path: str, identities: dict[str, Identity]) -> Identity | None:
        """Return what a directory measures; None if it has vanished, or has no name. Raises: ReadFailed."""
        directory = self._root / path
        try:
            name = sysfs.text(self._host, directory / "name")
        except OSError as error:
            if error.errno not in _GONE:
                raise ReadFailed(f"cannot read {directory}: {error.strerror}", _SCAN_REMEDY) from None
            if not (directory / "energy_uj").exists():
                return None  # it has vanished since the directories were listed
            name = ""
        parent_path = path.rpartition(":")[0]
        if name:
            return identify(path, name, identities.get(parent_path))
        what = f"{directory} has no name, so what it measures is unknown"
        if ":" not in parent_path:  # it may be a package: a sum without it would be too low
            raise ReadFailed(what, _DRIVER_REMEDY)
        self._nameless.append(Trouble(f"zone {path}", what, _DRIVER_REMEDY))
        return None

    def _zone(self, identity: Identity) -> Zone:
        """Return the zone, whose counter goes on if it was known before."""
        key = (identity.path, identity.name)
        zone = self._known.get(key)
        if zone is None:
            zone = self._known[key] = open_zone(self._host, identity, self._root / identity.path)
        return zone

    # -- reading counters ------------------------------------------------------------------------

    def _read_zones(self, *, at_beat: bool = False) -> tuple[list[Zone], list[Trouble]]:
        """Return the zones that could be read, their counters advanced, and what is wrong with the others.

        Raises: ReadFailed, Absent.
        """
        read: list[Zone] = []
        troubles = list(self._nameless)
        vanished = False
        for zone in self._zones:
            now = self._host.clock.monotonic()
            try:
                raw_uj = sysfs.natural(self._host, zone.energy_file)
            except (OSError, ValueError) as error:
                zone.rate.restart()
                if isinstance(error, OSError) and error.errno in _GONE:
                    vanished = True
                else:
                    troubles.append(self._leave_out(zone, error))
                continue
            zone.advance(raw_uj, now, self._asleep)
            read.append(zone)
        if vanished:
            self.scan()
        if not read:
            raise ReadFailed("no RAPL zone can be read", "see the kernel log")
        if at_beat:
            self._let_work(read)
        stuck = [zone for zone in read if zone.is_stuck]
        troubles += [self._leave_out_stuck(zone) for zone in stuck]
        return [zone for zone in read if not zone.is_stuck], troubles

    def _let_work(self, zones: list[Zone]) -> None:
        """Tell the zones that stand still how much the CPUs have worked."""
        standing = [zone for zone in zones if zone.stands and zone.identity.is_metered_kind]
        if not standing:
            return
        try:
            busy_seconds = read_machine_stat(self._host).busy
        except (OSError, ValueError):
            return  # then nothing is known of the CPUs
        for zone in standing:
            zone.work(busy_seconds)

    def _leave_out(self, zone: Zone, error: OSError | ValueError) -> Trouble:
        """Return why a zone is left out. Raises: ReadFailed if a sum without it would be too low."""
        what, remedy = f"cannot read {zone.energy_file}: {error}", _DRIVER_REMEDY
        if isinstance(error, PermissionError):
            what, remedy = f"may not read {zone.energy_file}", permission_remedy(self._host)
        elif isinstance(error, OSError):
            what = f"cannot read {zone.energy_file}: {error.strerror}"
        if self._is_indispensable(zone):
            raise ReadFailed(what, remedy) from None
        return Trouble(f"zone {zone.identity.path}", what, remedy)

    def _leave_out_stuck(self, zone: Zone) -> Trouble:
        """Return why a zone that stands still is left out. Raises: ReadFailed if it is a package."""
        what = f"{zone.energy_file} stands still while the CPUs work"
        if zone.identity.kind == "package" and not self._has_working_twin(zone):
            raise ReadFailed(what, _STUCK_REMEDY, measures=False)
        return Trouble(f"zone {zone.identity.path}", what, _STUCK_REMEDY)

    def _has_working_twin(self, zone: Zone) -> bool:
        place = zone.identity.place
        return any(other.identity.place == place and not other.stands for other in self._zones)

    def _is_indispensable(self, zone: Zone) -> bool:
        """Return whether it is a package or dram zone, and not the MMIO twin of another zone."""
        identity = zone.identity
        if not identity.is_metered_kind:
            return False
        if not identity.is_mmio:
            return True
        twins = [other.identity for other in self._zones if other.identity.place == identity.place]
        return all(twin.is_mmio for twin in twins)

    # -- the reading -----------------------------------------------------------------------------

    def _meters(self, zones: list[Zone]) -> Iterator[tuple[Meter, float | None]]:
        """Yield the parts of the node's sum that do not overlap, and their mean power."""
        mirrors = self._find_mirrors(zones)
        metered: set[tuple[str, str, str]] = set()
        for zone in sorted(zones, key=lambda zone: zone.identity.is_mmio):  # twins last
            identity = zone.identity
            if not identity.is_metered_kind or identity.place in metered or identity.place in mirrors:
                continue
            metered.add(identity.place)
            component = "cpu" if identity.kind == "package" else "dram"
            place = self._metered.setdefault(identity.place, _Place(identity.path))
            place.follow(zone)
            yield Meter(component, "rapl", place.key, place.joules), zone.rate.watts

    def _find_mirrors(self, zones: list[Zone]) -> set[tuple[str, str, str]]:
        """Return the places whose counter is another's, or may turn out to be."""
        places: set[tuple[str, str, str]] = set()
        for kind, mirrors in self._mirrors.items():
            candidates = _of_kind(kind, zones)
            found = mirrors.find(candidates)
            places.update(zone.identity.place for zone in candidates if zone.identity.path in found)
        return places

    def _reading(self, zones: list[Zone], troubles: list[Trouble]) -> Reading:
        samples: list[Sample] = []
        for zone in zones:
            labels = zone.identity.labels
            samples.append(ENERGY.sample(zone.counter.joules, *labels))
            if zone.rate.watts is not None:
                samples.append(POWER.sample(zone.rate.watts, *labels))
            samples.append(WRAPS.sample(zone.counter.wraps, *labels))
            samples.append(RESETS.sample(zone.counter.resets, *labels))
            samples.extend(LIMIT.sample(watts, *labels, name) for name, watts in zone.limits.items())
        samples.append(ZONES.sample(len(self._zones)))
        samples.append(AVAILABLE.sample(1))
        taken = zones[0].read_at if zones else None
        powers = dict(self._meters(zones))
        return Reading(samples, tuple(powers), taken=taken, troubles=troubles, powers=powers)


def _of_kind(kind: str, zones: Iterable[Zone]) -> list[Zone]:
    """Return the zones of a kind, without their twins."""
    return [zone for zone in zones if zone.identity.kind == kind and not zone.identity.is_mmio]


async def open_collector(options: Options, host: Host) -> Rapl:
    """Return the collector. Raises: Absent if the machine has no zone; ReadFailed."""
    rapl = Rapl(host, options)
    rapl.scan()
    return rapl
