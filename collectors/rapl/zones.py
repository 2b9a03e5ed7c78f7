"""One powercap zone: what it measures, and its counter.

Source: https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import structlog

from powerbench_agent.core import sysfs
from powerbench_agent.core.counters import Counter, Rate

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.core.host import Host

log = structlog.get_logger("rapl")

MOST_WATTS = 2000.0  # of one zone: four times the largest socket of 2026
STUCK_SECONDS = 8.0  # a hypervisor may update its counters seldom, but not as seldom as this
STUCK_CPU_SECONDS = 3.0  # the work during which a real counter must have moved
_ALWAYS_ON = ("package", "psys")  # kinds that always draw power
_PACKAGE = re.compile(r"package-(\d+)(?:-die-(\d+))?")
_NUMBERED = re.compile(r"([a-z]+)-(\d+)")  # psys-1: the TPMI driver numbers every zone


class Identity(NamedTuple):
    """What a zone measures."""

    path: str  # the powercap directory, "intel-rapl:0:2"
    name: str  # the content of its name file, "dram"
    package: str  # the socket's number; "" for psys
    die: str
    kind: str  # package, core, uncore, dram, psys

    @property
    def labels(self) -> tuple[str, str, str]:
        """Its labels: package, zone, path."""
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


def identify(path: str, name: str, parent: Identity | None) -> Identity:
    """Return what the zone of that name in that directory measures."""
    if match := _PACKAGE.fullmatch(name):
        return Identity(path, name, match[1], match[2] or "", "package")
    match = _NUMBERED.fullmatch(name)
    kind = match[1] if match else name
    if parent is not None:
        return Identity(path, name, parent.package, parent.die, kind)
    package = match[2] if match and kind != "psys" else ""
    return Identity(path, name, package, "", kind)


class Zone:
    """One zone and the readings of its counter."""

    def __init__(self, identity: Identity, directory: Path, range_uj: int | None) -> None:
        self.identity = identity
        self.energy_file = directory / "energy_uj"
        self.counter = Counter(range_uj)
        self.counter.most_watts = MOST_WATTS
        self.rate = Rate(at_rest=None if identity.kind in _ALWAYS_ON else 0.0)
        self.limits: dict[str, float] = {}  # watts, by the constraint's name
        self.raw_uj = 0
        self.read_at = 0.0
        self.is_stuck = False  # the CPUs work and it stands still
        self._highest_limit = 0.0
        self.stands = False  # the last reading was the same as the one before
        self._still_since: tuple[float, float] | None = None  # monotonic second, the CPUs' busy seconds

    def advance(self, raw_uj: int, now: float, asleep: float) -> None:
        """Take the raw counter that was read at monotonic second `now`."""
        self.stands = raw_uj == self.raw_uj
        if not self.stands:
            self._still_since = None
            self.is_stuck = False
        self.raw_uj, self.read_at = raw_uj, now
        self.counter.advance(raw_uj, now, asleep)

    def work(self, busy_seconds: float) -> None:
        """Take the CPUs' busy seconds so far: a counter that stands still while they work is stuck."""
        if self._still_since is None:
            self._still_since = (self.read_at, busy_seconds)
        since, busy_then = self._still_since
        is_long = self.read_at - since >= STUCK_SECONDS
        self.is_stuck = self.is_stuck or (is_long and busy_seconds - busy_then >= STUCK_CPU_SECONDS)

    def set_limits(self, limits: dict[str, float], highest: float) -> None:
        """Take the power limits, and the highest that can be set: what is plausible depends on it."""
        self.limits = limits
        # A limit that has just been lowered, or will be raised again, bounds nothing.
        self._highest_limit = max(self._highest_limit, highest, *limits.values())
        if self._highest_limit > 0:  # a part may exceed its limits for moments, but not threefold
            self.counter.most_watts = min(MOST_WATTS, max(100.0, 3 * self._highest_limit))


def open_zone(host: Host, identity: Identity, directory: Path) -> Zone:
    """Return a zone that has not been read yet."""
    try:
        range_uj: int | None = sysfs.integer(host, directory / "max_energy_range_uj")
    except (OSError, ValueError):
        range_uj = None
    if range_uj is None or range_uj <= 0:
        range_uj = None
        log.warning("zone's range is unknown: wraps count as resets", zone=identity.path)
    return Zone(identity, directory, range_uj)
