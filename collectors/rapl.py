"""CPU and DRAM energy from RAPL, Intel and AMD, through the kernel's powercap.

Reads `/sys/class/powercap/intel-rapl*/{name,energy_uj,max_energy_range_uj,constraint_*}`. µJ and µW in,
joules and watts out. Privileges: `energy_uj` is 0400 root since Linux 5.10; the `powercap` group or
CAP_DAC_READ_SEARCH opens it (docs/guide.md).

Every zone is shown; only zones that do not overlap are metered (`Reading.meters`):

- cpu: one package zone a socket and die, `intel-rapl` before its `intel-rapl-mmio` twin;
- dram: likewise; on servers it lies beside the package, not in it;
- core, uncore and psys never: a package holds the first two, psys holds packages;
- dies of one socket that mirror each other (AMD Zen 1 and 2) once.

A package or dram zone that cannot be read fails the whole reading: a sum without it would be too low.
Another zone that cannot be read is left out.

Source: https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, NamedTuple

import structlog

from powerbench_agent.core import sysfs
from powerbench_agent.core.counters import PLAUSIBLE_WATTS, Counter, Rate
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
WRAPS = Metric("rapl_wraps_total", "counter", "Times that the zone's counter wrapped around.", _ZONE)
RESETS = Metric(
    "rapl_resets_total",
    "counter",
    "Times that the zone's counter jumped implausibly; such a jump adds no energy.",
    _ZONE,
)
LIMIT = Metric("rapl_power_limit_watts", "gauge", "Power limit of the zone.", (*_ZONE, "constraint"))
ZONES = Metric("rapl_zones_discovered", "gauge", "Zones found, twins and subsets among them.")
AVAILABLE = Metric("rapl_available", "gauge", "1 while RAPL can be read.")
METRICS = (POWER, ENERGY, WRAPS, RESETS, LIMIT, ZONES, AVAILABLE)

MAX_INTERVAL = 30.0  # seconds; a 65 kJ counter wraps in 100 s at 650 W
RESCAN_SECONDS = 10.0
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)
_SCAN_REMEDY = "see the kernel log, and the limit of open files"
_UPDATE_SECONDS = 0.002  # a counter is at most this old when it is read

_DIRECTORY = re.compile(r"intel-rapl(-mmio)?(:[0-9a-f]+)+")
_PACKAGE = re.compile(r"package-(\d+)(?:-die-(\d+))?")
_REMEDY = (
    "give the agent's user access to energy_uj: root, the powercap group, or CAP_DAC_READ_SEARCH; "
    "see docs/guide.md, access to RAPL"
)


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.rapl]`."""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        if self.interval > MAX_INTERVAL:
            yield "interval", "must be at most 30s: the counter wraps, and a wrap that nobody sees is lost"


class _Identity(NamedTuple):
    path: str  # the powercap directory, "intel-rapl:0:2"
    name: str  # what its name file says, "dram"
    package: str  # the socket's number; "" for psys
    die: str
    kind: str  # package, core, uncore, dram, psys

    @property
    def labels(self) -> tuple[str, str, str]:
        return self.package, self.kind, self.path

    @property
    def is_mmio(self) -> bool:
        """Whether it is the second view of a zone, through MMIO registers."""
        return self.path.startswith("intel-rapl-mmio")

    @property
    def place(self) -> tuple[str, str, str]:
        """Where it is, whoever reports it: a twin shares it."""
        return self.kind, self.package, self.die


class _Zone:
    """One zone and what its counter has said so far."""

    def __init__(self, identity: _Identity, directory: Path, range_uj: int | None) -> None:
        self.identity = identity
        self.energy_file = directory / "energy_uj"
        self.counter = Counter(range_uj)
        self.rate = Rate()
        self.limits: dict[str, float] = {}
        self.raw_uj = 0
        self.read_at = 0.0
        self.readable = True


class _Mirror:
    """Whether a die's counter is its sibling's under another name. Told from two readings in a row."""

    def __init__(self) -> None:
        self.alike = 0
        self.unlike = 0
        self.verdict: bool | None = None

    def look(self, first: _Zone, other: _Zone) -> None:
        apart = abs(other.read_at - first.read_at) + _UPDATE_SECONDS
        if abs(other.raw_uj - first.raw_uj) <= apart * PLAUSIBLE_WATTS * 1e6:
            self.alike, self.unlike = self.alike + 1, 0
        else:
            self.alike, self.unlike = 0, self.unlike + 1
        if self.unlike >= 2:
            self.verdict = False  # for good: independent counters may cross, mirrored ones never part
        elif self.alike >= 2 and self.verdict is None:
            self.verdict = True


class _Place:
    """A package's or dram's joules, whichever of its zones they come from."""

    def __init__(self, path: str) -> None:
        self.key = path  # of the zone that stood for it first
        self.joules = 0.0
        self._path = path
        self._counted = 0.0  # that zone's joules when they were added

    def follow(self, zone: _Zone) -> None:
        """Add what the zone has gained; one that takes over brings none of its past along."""
        if zone.identity.path == self._path:
            self.joules += zone.counter.joules - self._counted
        self._path, self._counted = zone.identity.path, zone.counter.joules


class Rapl:
    """The zones of one machine."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._root = host.sysfs / "class/powercap"
        self._zones: list[_Zone] = []
        self._known: dict[tuple[str, str], _Zone] = {}  # also those that have vanished: their counters go on
        self._mirrors: dict[str, _Mirror] = {}
        self._metered: dict[tuple[str, str, str], _Place] = {}
        self._rescan_at = 0.0

    async def read(self) -> Reading:
        """Read every zone, and close the window of the power gauges."""
        try:
            if self._host.clock.monotonic() >= self._rescan_at or not self._zones:
                self.scan()
            zones = self._read_zones()
        except (ReadFailed, Absent):
            for zone in self._known.values():
                zone.rate = Rate()  # a mean over the gap would be none of the last interval
            raise
        for zone in zones:
            zone.rate.beat(zone.counter.joules, zone.read_at)
        for first, other in self._siblings(zones):
            self._mirrors.setdefault(other.identity.path, _Mirror()).look(first, other)
        return self._reading(zones)

    async def refresh(self) -> Reading:
        """Read every zone; the power gauges stay the beat's."""
        return self._reading(self._read_zones())

    async def aclose(self) -> None:
        """Nothing is held open."""

    def scan(self) -> None:
        """Find the zones. Raises: Absent where there are none."""
        try:
            names = sorted(entry.name for entry in self._root.iterdir() if _DIRECTORY.fullmatch(entry.name))
        except OSError as error:
            if error.errno not in _GONE:
                raise ReadFailed(f"cannot list {self._root}: {error.strerror}", _SCAN_REMEDY) from None
            names = []
        zones = []
        identities: dict[str, _Identity] = {}
        for path in names:  # sorted: a parent comes before its children
            if (identity := self._identify(path, identities)) is None:
                continue
            identities[path] = identity
            key = (path, identity.name)
            if (zone := self._known.get(key)) is None:
                zone = self._known[key] = self._new_zone(identity)
            zone.limits = dict(self._limits(self._root / path))
            if zone.limits:  # a part may exceed its limits, for moments; not three times over
                zone.counter.wrap_watts = min(PLAUSIBLE_WATTS, max(100.0, 3 * max(zone.limits.values())))
            zones.append(zone)
        for zone in self._known.values():
            if zone not in zones:  # it may come back: what it counts meanwhile, others may have counted
                zone.counter.forget()
        if not zones:
            self._zones = []
            raise Absent(
                f"no RAPL: {self._root} has no intel-rapl zone "
                "(a virtual machine, or the module intel_rapl_msr is not loaded)"
            )
        self._zones = zones
        self._rescan_at = self._host.clock.monotonic() + RESCAN_SECONDS

    def _identify(self, path: str, parents: dict[str, _Identity]) -> _Identity | None:
        try:
            name = sysfs.text(self._host, self._root / path / "name")
        except OSError as error:
            if error.errno not in _GONE:
                raise ReadFailed(f"cannot read {self._root / path}: {error.strerror}", _SCAN_REMEDY) from None
            return None  # it has vanished between the listing and now
        if match := _PACKAGE.fullmatch(name):
            return _Identity(path, name, match[1], match[2] or "", "package")
        parent = parents.get(path.rpartition(":")[0])
        return _Identity(path, name, parent.package if parent else "", parent.die if parent else "", name)

    def _new_zone(self, identity: _Identity) -> _Zone:
        directory = self._root / identity.path
        try:
            range_uj: int | None = sysfs.integer(self._host, directory / "max_energy_range_uj")
        except (OSError, ValueError):
            range_uj = None
        if range_uj is None or range_uj <= 0:
            range_uj = None
            log.warning("zone without a range: its wraps count as resets", zone=identity.path)
        return _Zone(identity, directory, range_uj)

    def _limits(self, directory: Path) -> Iterator[tuple[str, float]]:
        for number in range(10):
            try:
                name = sysfs.text(self._host, directory / f"constraint_{number}_name")
                limit_uw = sysfs.integer(self._host, directory / f"constraint_{number}_power_limit_uw")
            except FileNotFoundError:
                return
            except (OSError, ValueError):
                continue
            if limit_uw > 0:
                yield name, limit_uw / 1e6

    def _read_zones(self) -> list[_Zone]:
        """Return the zones that could be read, their counters advanced. Raises: ReadFailed, Absent."""
        read: list[_Zone] = []
        vanished = False
        for zone in self._zones:
            try:
                now = self._host.clock.monotonic()
                raw_uj = sysfs.natural(self._host, zone.energy_file)
            except (OSError, ValueError) as error:
                zone.rate = Rate()
                if isinstance(error, OSError) and error.errno in _GONE:
                    vanished = True
                elif self._counts(zone):
                    raise self._failure(zone, error) from None
                elif zone.readable:
                    zone.readable = False
                    log.warning("zone left out", zone=zone.identity.path, error=str(error))
                continue
            zone.readable = True
            zone.raw_uj, zone.read_at = raw_uj, now
            resets = zone.counter.resets
            zone.counter.advance(raw_uj, now)
            if zone.counter.resets != resets:
                zone.rate = Rate()  # what was used meanwhile is not known: no 0 W
            read.append(zone)
        if vanished:
            self.scan()
        if not read:
            raise ReadFailed("no zone of RAPL can be read", "see the kernel log")
        return read

    def _counts(self, zone: _Zone) -> bool:
        """Return whether a sum without this zone would be too low: a package or dram, and no mere twin."""
        if zone.identity.kind not in ("package", "dram"):
            return False
        twins = (z for z in self._zones if z.identity.place == zone.identity.place)
        return not zone.identity.is_mmio or all(twin.identity.is_mmio for twin in twins)

    def _failure(self, zone: _Zone, error: OSError | ValueError) -> ReadFailed:
        if isinstance(error, PermissionError):
            return ReadFailed(f"may not read {zone.energy_file}", _REMEDY)
        why = error.strerror if isinstance(error, OSError) else error
        return ReadFailed(
            f"cannot read {zone.energy_file}: {why}", "see the kernel log; reload intel_rapl_msr"
        )

    def _siblings(self, zones: list[_Zone]) -> Iterator[tuple[_Zone, _Zone]]:
        """Yield (a socket's first die, another of its dies)."""
        firsts: dict[tuple[str, str], _Zone] = {}
        for zone in zones:
            if zone.identity.kind == "package" and zone.identity.die and not zone.identity.is_mmio:
                key = (zone.identity.package, zone.identity.kind)
                if (first := firsts.setdefault(key, zone)) is not zone:
                    yield first, zone

    def _meters(self, zones: list[_Zone]) -> Iterator[Meter]:
        # A die that mirrors its sibling, or may turn out to, stands for nothing of its own.
        mirrored = {
            (other.identity.package, other.identity.die)
            for _, other in self._siblings(zones)
            if (mirror := self._mirrors.get(other.identity.path)) is None or mirror.verdict is not False
        }
        metered: set[tuple[str, str, str]] = set()
        for zone in sorted(zones, key=lambda zone: zone.identity.is_mmio):  # a twin comes last
            identity = zone.identity
            if identity.kind not in ("package", "dram") or identity.place in metered:
                continue
            if (identity.package, identity.die) in mirrored:
                continue
            metered.add(identity.place)
            component = "cpu" if identity.kind == "package" else "dram"
            place = self._metered.setdefault(identity.place, _Place(identity.path))
            place.follow(zone)
            yield Meter(component, "rapl", place.key, place.joules)

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


async def open_collector(options: Options, host: Host) -> Rapl:
    """Return the collector. Raises: Absent where the machine has no zone."""
    del options
    rapl = Rapl(host)
    rapl.scan()
    return rapl
