"""Which process used which GPU engine for how long: what DRM drivers write into `/proc/PID/fdinfo/FD`.

A GPU is used through an open /dev/dri file; its fdinfo says the engines' time in ns, or, on xe, in cycles
beside the engine's total. Finding those files costs most, so processes are looked
through when they are new and ever more rarely after; files that were found are read at every beat.

Source: https://docs.kernel.org/gpu/drm-usage-stats.html
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core.model import Use
from powerbench_agent.core.processes import container_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from powerbench_agent.core.host import Host

SCAN_SECONDS = 5.0
MAX_AGE_SECONDS = 160.0  # a process is looked through at least this often
MAX_CLIENTS = 4096
_DRM_DEVICES = "/dev/dri/"


class Engines(NamedTuple):
    """One client's fdinfo."""

    bus_id: str
    client: str
    nanoseconds: dict[str, int]  # by engine
    cycles: dict[str, tuple[int, int]]  # by engine: (its own, the engine's total)


class _Look(NamedTuple):
    """When a process was looked through, and when it is next."""

    last: float
    next: float


class _Client:
    """One DRM client of one process."""

    def __init__(self, pid: int, bus_id: str, container: str) -> None:
        self.pid = pid
        self.container = container  # its id
        self.bus_id = bus_id
        self.last_ns: dict[str, int] = {}
        self.last_cycles: dict[str, tuple[int, int]] = {}
        self.read_at = 0.0
        self.known = False  # it has been read before

    def advance(self, found: Engines, now: float, seconds: dict[str, float]) -> None:
        """Add what the engines have done for it since the last time to its process's `seconds`."""
        for engine, total_ns in found.nanoseconds.items():
            before = self.last_ns.get(engine, 0 if self.known else total_ns)
            seconds[engine] = seconds.get(engine, 0.0) + max(0, total_ns - before) / 1e9
            self.last_ns[engine] = max(before, total_ns)  # a driver may step back and catch up later
        for engine, (own, total) in found.cycles.items():
            own_before, total_before = self.last_cycles.get(engine, (own, total))
            if total > total_before and own >= own_before:
                share = min(1.0, (own - own_before) / (total - total_before))
                seconds[engine] = seconds.get(engine, 0.0) + share * (now - self.read_at)
            self.last_cycles[engine] = (max(own_before, own), max(total_before, total))
        self.read_at, self.known = now, True


class Clients:
    """The DRM clients of all processes that may be looked at."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._looks: dict[int, _Look] = {}
        self._files: dict[Path, None] = {}  # fdinfo files of /dev/dri files, in their order
        self._clients: dict[tuple[str, str], _Client] = {}  # by PCI address and client id
        # By PCI address, process and its container: of all its clients, those that have closed too.
        self._seconds: dict[tuple[str, int, str], dict[str, float]] = {}
        self._scan_at = 0.0

    def read(self, source: str, bus_ids: Collection[str], now: float) -> Iterator[Use]:
        """Return what every process has used of these GPUs, by now."""
        if now >= self._scan_at:
            self._scan_at = now + SCAN_SECONDS
            self._scan(now)
        seen: set[tuple[str, str]] = set()
        for path in list(self._files):
            try:
                found = parse_fdinfo(self._host.read(path).decode("ascii", "replace"))
            except OSError:
                found = None
            if found is None:  # closed, or its number is another file's by now
                del self._files[path]
                continue
            if found.bus_id not in bus_ids or (key := found[:2]) in seen:
                continue  # another GPU's, or a client with several files
            seen.add(key)
            pid = int(path.parts[-3])
            client = self._clients.get(key)
            if client is None or client.pid != pid:  # new, or its first process has ended
                client = self._clients[key] = _Client(pid, found.bus_id, container_of(self._host, pid))
            process = (client.bus_id, client.pid, client.container)
            client.advance(found, now, self._seconds.setdefault(process, {}))
        for key in self._clients.keys() - seen:
            del self._clients[key]
        here = {(client.bus_id, client.pid, client.container) for client in self._clients.values()}
        for process in self._seconds.keys() - here:
            del self._seconds[process]
        return self.uses(source)

    def uses(self, source: str) -> Iterator[Use]:
        """Return what `read` found last."""
        for (bus_id, pid, container), engines in self._seconds.items():
            for engine, seconds in engines.items():
                yield Use("gpu", source, bus_id, engine, pid, seconds, container)

    def _scan(self, now: float) -> None:
        """Look through processes that are new, or were looked through long ago."""
        try:
            pids = {int(name) for name in os.listdir(self._host.procfs) if name.isdigit()}  # noqa: PTH208 - 5x faster
        except OSError:
            return
        for pid in self._looks.keys() - pids:
            del self._looks[pid]
        for pid in pids:
            look = self._looks.get(pid)
            if look is not None and now < look.next:
                continue
            # Encoders open the GPU as they start; the longer a process has not, the less likely it will.
            wait = SCAN_SECONDS if look is None else min(MAX_AGE_SECONDS, 2 * (look.next - look.last))
            self._looks[pid] = _Look(now, now + wait)
            self._look_through(self._host.procfs / str(pid))

    def _look_through(self, process: Path) -> None:
        try:
            descriptors = os.listdir(process / "fd")  # noqa: PTH208 - 5x faster
        except OSError:
            return  # it has ended, or is another user's
        for descriptor in descriptors:
            try:
                target = os.readlink(process / "fd" / descriptor)  # noqa: PTH115 - likewise
            except OSError:
                continue
            if target.startswith(_DRM_DEVICES) and len(self._files) < MAX_CLIENTS:
                self._files.setdefault(process / "fdinfo" / descriptor)


def parse_fdinfo(text: str) -> Engines | None:
    """Return what a DRM file's fdinfo says; None where it is none of a PCI GPU."""
    bus_id = client = ""
    nanoseconds: dict[str, int] = {}
    own: dict[str, int] = {}
    total: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if not key.startswith("drm-"):
            continue
        words = value.split()
        first = words[0] if words else ""
        if key == "drm-pdev":
            bus_id = first
        elif key == "drm-client-id":
            client = first
        elif not (first.isascii() and first.isdigit()) or len(first) > 20:  # 64 bits
            continue
        elif key.startswith("drm-engine-") and not key.startswith("drm-engine-capacity-"):
            nanoseconds[key.removeprefix("drm-engine-")] = int(first)
        elif key.startswith("drm-cycles-"):
            own[key.removeprefix("drm-cycles-")] = int(first)
        elif key.startswith("drm-total-cycles-"):
            total[key.removeprefix("drm-total-cycles-")] = int(first)
    if not bus_id or not client:
        return None
    cycles = {engine: (own[engine], total[engine]) for engine in own if engine in total}
    return Engines(bus_id, client, nanoseconds, cycles)
