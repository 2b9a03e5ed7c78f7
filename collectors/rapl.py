"""CPU and DRAM energy from RAPL, Intel and AMD, through the kernel's powercap interface.

Reads `/sys/class/powercap/intel-rapl*/{name,energy_uj,max_energy_range_uj,constraint_*}`. µJ and µW in,
joules and watts out. Privileges: `energy_uj` is 0400 root since Linux 5.10; the `powercap` group or
CAP_DAC_READ_SEARCH opens it (docs/guide.md).

Every zone is shown; only zones that do not overlap are metered (`Reading.meters`):

- cpu: one package zone per socket and die, preferring `intel-rapl` to its twin in `intel-rapl-mmio`;
- dram: likewise; on servers it is not part of the package zone;
- core, uncore and psys never: a package includes the first two, and psys includes the packages;
- dies of one socket that mirror each other (AMD Zen 1 and 2) are metered once.

A package or dram zone that cannot be read fails the whole reading, since a sum without it would be too low.
Any other zone that cannot be read is left out.

Source: https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, NamedTuple

import structlog

from powerbench_agent.core import sysfs
from powerbench_agent.core.counters import Counter, Rate
from powerbench_agent.core.model import Absent, Meter, Metric, ReadFailed, Reading, Sample
from powerbench_agent.core.options import CollectorOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from powerbench_agent.core.host import Host

log = structlog.get_logger("rapl")

_ZONE = ("package", "zone", "path")
POWER = Metric("rapl_power_watts", "gauge", "Mean power of the zone over the last full interval.", _ZONE)
ENERGY = Metric("rapl_energy_joules_total", "counter", "Energy of the zone since the agent started.", _ZONE)
WRAPS = Metric("rapl_wraps_total", "counter", "Number of times the zone's counter wrapped around.", _ZONE)
RESETS = Metric(
    "rapl_resets_total",
    "counter",
    "Number of implausible jumps of the zone's counter; such a jump adds no energy.",
    _ZONE,
)
LIMIT = Metric("rapl_power_limit_watts", "gauge", "Power limit of the zone.", (*_ZONE, "constraint"))
ZONES = Metric(
    "rapl_zones_discovered", "gauge", "Number of zones found, including twins and parts of other zones."
)
AVAILABLE = Metric("rapl_available", "gauge", "1 while RAPL can be read.")
METRICS = (POWER, ENERGY, WRAPS, RESETS, LIMIT, ZONES, AVAILABLE)

MAX_INTERVAL = 30.0  # seconds; a 65 kJ counter wraps in 100 s at 650 W
RESCAN_SECONDS = 10.0
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)
_SCAN_REMEDY = "see the kernel log, and check the agent's limit of open files"
_UPDATE_SECONDS = 0.002  # a counter is at most this old when it is read
_MAX_CONSTRAINTS = 10
_MOST_WATTS = 2000.0  # of one zone: four times the largest socket of 2026

_DIRECTORY = re.compile(r"intel-rapl(-mmio)?(:[0-9a-f]+)+")
_PACKAGE = re.compile(r"package-(\d+)(?:-die-(\d+))?")
_REMEDY = (
    "give the agent's user access to energy_uj: root, the powercap group or CAP_DAC_READ_SEARCH; "
    "see docs/guide.md, access to RAPL"
)


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.rapl]`."""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        if self.interval > MAX_INTERVAL:
            yield (
                "interval",
                "must be at most 30s: the counter wraps, and a missed wrap loses energy",
            )


class _Identity(NamedTuple):
    path: str  # the powercap directory, "intel-rapl:0:2"
    name: str  # the content of its name file, "dram"
    package: str  # the socket's number; "" for psys
    die: str
    kind: str  # package, core, uncore, dram, psys

    @property
    def labels(self) -> tuple[str, str, str]:
        return self.package, self.kind, self.path

    @property
    def is_mmio(self) -> bool:
        """Whether it shows a zone a second time, read through MMIO registers."""
        return self.path.startswith("intel-rapl-mmio")

    @property
    def is_metered_kind(self) -> bool:
        """Whether zones of its kind are parts of the node's sum."""
        return self.kind in ("package", "dram")

    @property
    def place(self) -> tuple[str, str, str]:
        """The part of the machine that it measures; twins have the same."""
        return self.kind, self.package, self.die


class _Zone:
    """One zone and the readings of its counter."""

    def __init__(self, identity: _Identity, directory: Path, range_uj: int | None) -> None:
        self.identity = identity
        self.energy_file = directory / "energy_uj"
        self.counter = Counter(range_uj)
        self.counter.most_watts = _MOST_WATTS
        self.rate = Rate()
        self.limits: dict[str, float] = {}  # watts, by the constraint's name
        self.raw_uj = 0
        self.read_at = 0.0
        self.readable = True

    def advance(self, raw_uj: int, now: float) -> None:
        """Take the raw counter that was read at monotonic second `now`."""
        self.readable = True
        self.raw_uj, self.read_at = raw_uj, now
        resets = self.counter.resets
        self.counter.advance(raw_uj, now)
        if self.counter.resets != resets:
            self.rate = Rate()  # the energy used meanwhile is unknown: no power rather than 0 W

    def set_limits(self, limits: dict[str, float]) -> None:
        """Take the power limits; what is plausible for a wrap depends on them."""
        self.limits = limits
        if limits:  # a part may exceed its limits for moments, but not threefold
            bound = max(100.0, 3 * max(limits.values()))
            self.counter.most_watts = min(_MOST_WATTS, bound)


class _Mirror:
    """Whether a die's counter repeats that of the socket's first die; two readings in a row decide."""

    def __init__(self) -> None:
        self.alike = 0
        self.unlike = 0
        self.verdict: bool | None = None

    def compare(self, first: _Zone, other: _Zone) -> None:
        seconds_apart = abs(other.read_at - first.read_at) + _UPDATE_SECONDS
        if abs(other.raw_uj - first.raw_uj) <= seconds_apart * _MOST_WATTS * 1e6:
            self.alike += 1
            self.unlike = 0
        else:
            self.alike = 0
            self.unlike += 1
        if self.unlike >= 2:
            self.verdict = False  # for good: independent counters may cross, mirrored ones never differ
        elif self.alike >= 2 and self.verdict is None:
            self.verdict = True


class _Place:
    """Joules of one package or dram, whichever of its twin zones they are read from."""

    def __init__(self, path: str) -> None:
        self.key = path  # of the zone that was metered first
        self.joules = 0.0
        self._path = path
        self._counted = 0.0  # that zone's joules when they were last added

    def follow(self, zone: _Zone) -> None:
        """Add what the zone has gained; when its twin takes over, nothing is added at first."""
        joules = zone.counter.joules
        if zone.identity.path == self._path:
            self.joules += joules - self._counted
        self._path = zone.identity.path
        self._counted = joules


class Rapl:
    """The zones of one machine."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._root = host.sysfs / "class/powercap"
        self._zones: list[_Zone] = []
        self._known: dict[tuple[str, str], _Zone] = {}  # including those that have vanished: counters go on
        self._mirrors: dict[str, _Mirror] = {}
        self._metered: dict[tuple[str, str, str], _Place] = {}
        self._rescan_at = 0.0

    async def read(self) -> Reading:
        """Read every zone, and end the interval of the power gauges. Raises: ReadFailed, Absent."""
        try:
            if self._host.clock.monotonic() >= self._rescan_at or not self._zones:
                self.scan()
            zones = self._read_zones()
        except (ReadFailed, Absent):
            for zone in self._known.values():
                zone.rate = Rate()  # the next mean would include the gap
            raise
        for zone in zones:
            zone.rate.beat(zone.counter.joules, zone.read_at)
        for first, other in _siblings(zones):
            mirror = self._mirrors.setdefault(other.identity.path, _Mirror())
            mirror.compare(first, other)
        return self._reading(zones)

    async def refresh(self) -> Reading:
        """Read every zone; the power gauges stay those of the last beat. Raises: ReadFailed, Absent."""
        return self._reading(self._read_zones())

    async def aclose(self) -> None:
        """Nothing is held open."""

    # -- finding zones ---------------------------------------------------------------------------

    def scan(self) -> None:
        """Find the zones. Raises: Absent if the machine has none; ReadFailed."""
        zones = []
        identities: dict[str, _Identity] = {}
        for path in self._list_directories():  # sorted: a parent comes before its children
            identity = self._identify(path, identities)
            if identity is None:
                continue
            identities[path] = identity
            zone = self._zone(identity)
            zone.set_limits(dict(self._limits(self._root / path)))
            zones.append(zone)
        for zone in self._known.values():
            if (
                zone not in zones
            ):  # it may come back; until then its energy is counted by its twin, or unknown
                zone.counter.forget()
        self._zones = zones
        if not zones:
            raise Absent(
                f"no RAPL: {self._root} has no intel-rapl zone "
                "(a virtual machine, or the module intel_rapl_msr is not loaded)"
            )
        self._rescan_at = self._host.clock.monotonic() + RESCAN_SECONDS

    def _list_directories(self) -> list[str]:
        try:
            names = [entry.name for entry in self._root.iterdir()]
        except OSError as error:
            if error.errno in _GONE:
                return []
            raise ReadFailed(f"cannot list {self._root}: {error.strerror}", _SCAN_REMEDY) from None
        return sorted(name for name in names if _DIRECTORY.fullmatch(name))

    def _identify(self, path: str, parents: dict[str, _Identity]) -> _Identity | None:
        try:
            name = sysfs.text(self._host, self._root / path / "name")
        except OSError as error:
            if error.errno in _GONE:
                return None  # it has vanished since the directories were listed
            raise ReadFailed(f"cannot read {self._root / path}: {error.strerror}", _SCAN_REMEDY) from None
        if match := _PACKAGE.fullmatch(name):
            return _Identity(path, name, match[1], match[2] or "", "package")
        parent = parents.get(path.rpartition(":")[0])
        if parent is None:
            return _Identity(path, name, "", "", name)
        return _Identity(path, name, parent.package, parent.die, name)

    def _zone(self, identity: _Identity) -> _Zone:
        """Return the zone, whose counter goes on if it was known before."""
        key = (identity.path, identity.name)
        zone = self._known.get(key)
        if zone is None:
            zone = self._known[key] = self._new_zone(identity)
        return zone

    def _new_zone(self, identity: _Identity) -> _Zone:
        directory = self._root / identity.path
        try:
            range_uj: int | None = sysfs.integer(self._host, directory / "max_energy_range_uj")
        except (OSError, ValueError):
            range_uj = None
        if range_uj is None or range_uj <= 0:
            range_uj = None
            log.warning("zone's range is unknown: wraps count as resets", zone=identity.path)
        return _Zone(identity, directory, range_uj)

    def _limits(self, directory: Path) -> Iterator[tuple[str, float]]:
        for number in range(_MAX_CONSTRAINTS):
            try:
                name = sysfs.text(self._host, directory / f"constraint_{number}_name")
                limit_uw = sysfs.integer(self._host, directory / f"constraint_{number}_power_limit_uw")
            except FileNotFoundError:
                return
            except (OSError, ValueError):
                continue
            if limit_uw > 0:
                yield name, limit_uw / 1e6

    # -- reading counters ------------------------------------------------------------------------

    def _read_zones(self) -> list[_Zone]:
        """Return the zones that could be read, their counters advanced. Raises: ReadFailed, Absent."""
        read: list[_Zone] = []
        vanished = False
        for zone in self._zones:
            now = self._host.clock.monotonic()
            try:
                raw_uj = sysfs.natural(self._host, zone.energy_file)
            except (OSError, ValueError) as error:
                zone.rate = Rate()
                if isinstance(error, OSError) and error.errno in _GONE:
                    vanished = True
                else:
                    self._leave_out(zone, error)
                continue
            zone.advance(raw_uj, now)
            read.append(zone)
        if vanished:
            self.scan()
        if not read:
            raise ReadFailed("no RAPL zone can be read", "see the kernel log")
        return read

    def _leave_out(self, zone: _Zone, error: OSError | ValueError) -> None:
        """Log that a zone is left out. Raises: ReadFailed if a sum without it would be too low."""
        if self._is_indispensable(zone):
            raise _failure(zone, error) from None
        if zone.readable:
            zone.readable = False
            log.warning("zone left out", zone=zone.identity.path, error=str(error))

    def _is_indispensable(self, zone: _Zone) -> bool:
        """Return whether it is a package or dram zone, and not the MMIO twin of another zone."""
        identity = zone.identity
        if not identity.is_metered_kind:
            return False
        if not identity.is_mmio:
            return True
        twins = [other.identity for other in self._zones if other.identity.place == identity.place]
        return all(twin.is_mmio for twin in twins)

    # -- the reading -----------------------------------------------------------------------------

    def _meters(self, zones: list[_Zone]) -> Iterator[Meter]:
        mirrored = self._mirrored(zones)
        metered: set[tuple[str, str, str]] = set()
        for zone in sorted(zones, key=lambda zone: zone.identity.is_mmio):  # twins last
            identity = zone.identity
            if not identity.is_metered_kind or identity.place in metered:
                continue
            if (identity.package, identity.die) in mirrored:
                continue
            metered.add(identity.place)
            component = "cpu" if identity.kind == "package" else "dram"
            place = self._metered.setdefault(identity.place, _Place(identity.path))
            place.follow(zone)
            yield Meter(component, "rapl", place.key, place.joules)

    def _mirrored(self, zones: list[_Zone]) -> set[tuple[str, str]]:
        """Return (package, die) of the dies that repeat their sibling, or may turn out to."""
        mirrored = set()
        for _, other in _siblings(zones):
            mirror = self._mirrors.get(other.identity.path)
            if mirror is None or mirror.verdict is not False:
                mirrored.add((other.identity.package, other.identity.die))
        return mirrored

    def _reading(self, zones: list[_Zone]) -> Reading:
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
        return Reading(samples, tuple(self._meters(zones)), taken=zones[0].read_at)


def _siblings(zones: list[_Zone]) -> Iterator[tuple[_Zone, _Zone]]:
    """Yield (a socket's first die, another of its dies)."""
    firsts: dict[str, _Zone] = {}
    for zone in zones:
        identity = zone.identity
        if identity.kind != "package" or not identity.die or identity.is_mmio:
            continue
        first = firsts.setdefault(identity.package, zone)
        if first is not zone:
            yield first, zone


def _failure(zone: _Zone, error: OSError | ValueError) -> ReadFailed:
    if isinstance(error, PermissionError):
        return ReadFailed(f"may not read {zone.energy_file}", _REMEDY)
    why = error.strerror if isinstance(error, OSError) else error
    return ReadFailed(f"cannot read {zone.energy_file}: {why}", "see the kernel log; reload intel_rapl_msr")


async def open_collector(options: Options, host: Host) -> Rapl:
    """Return the collector. Raises: Absent if the machine has no zone; ReadFailed."""
    del options
    rapl = Rapl(host)
    rapl.scan()
    return rapl
