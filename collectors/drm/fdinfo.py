"""Which process used which GPU engine for how long: what DRM drivers write into `/proc/PID/fdinfo/FD`.

A process uses a GPU through an open /dev/dri file. The fdinfo of that file has the time of each engine in ns;
on xe, the cycles used and the engine's total cycles. Finding these files is the expensive part, so a process
is searched when it is new and less and less often after that. Files that were found are read at every beat.

Source: https://docs.kernel.org/gpu/drm-usage-stats.html
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core.model import Use
from powerbench_agent.core.processes import container_of
from powerbench_agent.core.sysfs import is_count

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from powerbench_agent.core.host import Host

SCAN_SECONDS = 5.0
MAX_AGE_SECONDS = 160.0  # a process is searched at least this often
MAX_CLIENTS = 4096
_MOST_ENGINES = 16  # of one kind, if the driver does not say how many there are, as amdgpu
_MOST_CAPACITY = 1024  # that a driver is believed to have
_SLACK_SECONDS = 1.0  # between the time of a reading and the driver's own last update
_DRM_DEVICES = "/dev/dri/"


class Engines(NamedTuple):
    """The fdinfo of one DRM client."""

    bus_id: str
    client: str
    nanoseconds: dict[str, int]  # by engine
    cycles: dict[str, tuple[int, int]]  # by engine: (the client's own, the engine's total)
    capacity: dict[str, int]  # by engine: how many of its kind there are, if the driver says so


class _Process(NamedTuple):
    """The clients of one process on one GPU are added up."""

    bus_id: str
    pid: int
    container: str  # its id


class _Search(NamedTuple):
    """When a process was searched last, and when it is searched next."""

    last: float
    next: float


class _Client:
    """One DRM client of one process."""

    def __init__(self, process: _Process) -> None:
        self.process = process
        self.last_ns: dict[str, int] = {}
        self.last_cycles: dict[str, tuple[int, int]] = {}
        self.read_at = 0.0
        self.known = False  # it has been read before

    def advance(self, found: Engines, now: float, seconds: dict[str, float]) -> bool:
        """Add the engine time since the last reading to `seconds`, which are its process's.

        Return whether some of it could not be true; that is left out.
        """
        garbled = False
        elapsed = now - self.read_at
        for engine, total_ns in found.nanoseconds.items():
            most_ns = found.capacity.get(engine, _MOST_ENGINES) * (elapsed + _SLACK_SECONDS) * 1e9
            before_ns = self.last_ns.get(engine, 0 if self.known else total_ns)
            gained_ns = total_ns - before_ns
            is_far = abs(gained_ns) > most_ns  # it is not counted, and the next counts from here
            garbled |= is_far
            seconds.setdefault(engine, 0.0)
            if not is_far:
                seconds[engine] += max(0, gained_ns) / 1e9
            # A driver may step back a little and catch up later.
            self.last_ns[engine] = total_ns if is_far else max(before_ns, total_ns)
        for engine, (own, total) in found.cycles.items():
            own_before, total_before = self.last_cycles.get(engine, (own, total))
            gained, of = own - own_before, total - total_before
            # Twice, because the two are not read at one instant.
            if abs(gained) > 2 * found.capacity.get(engine, 1) * max(0, of):
                garbled |= of > 0 or gained > 0
                self.last_cycles[engine] = (own, total)
                continue
            if of > 0 and gained >= 0:
                share = min(found.capacity.get(engine, 1), gained / of)
                seconds[engine] = seconds.get(engine, 0.0) + share * elapsed
            self.last_cycles[engine] = (max(own_before, own), max(total_before, total))
        self.read_at = now
        self.known = True
        return garbled


class Clients:
    """The DRM clients of all processes that the agent may look at."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._searches: dict[int, _Search] = {}  # by pid
        self._files: dict[Path, None] = {}  # fdinfo files of /dev/dri files, an ordered set
        self._clients: dict[tuple[str, str], _Client] = {}  # by PCI address and client id
        self._seconds: dict[_Process, dict[str, float]] = {}  # by engine; includes clients that have closed
        self._search_at = 0.0
        self.garbled = False  # whether the last reading had a use that could not be true

    def read(self, source: str, bus_ids: Collection[str], now: float) -> Iterator[Use]:
        """Read what every process has used of these GPUs so far; return it."""
        if now >= self._search_at:
            self._search_at = now + SCAN_SECONDS
            self._search(now)
        seen: set[tuple[str, str]] = set()
        self.garbled = False
        for path in list(self._files):
            found = self._read_file(path)
            if found is None:  # closed, or the descriptor is another file's now
                del self._files[path]
                continue
            key = (found.bus_id, found.client)
            if found.bus_id not in bus_ids or key in seen:
                continue  # another GPU, or a client that has several files
            seen.add(key)
            client = self._client(key, pid=int(path.parts[-3]))
            used = self._seconds.setdefault(client.process, {})
            self.garbled |= client.advance(found, now, used)
        self._forget_all_but(seen)
        return self.uses(source)

    def uses(self, source: str) -> Iterator[Use]:
        """Return what `read` found last."""
        for process, engines in self._seconds.items():
            for engine, seconds in engines.items():
                yield Use("gpu", source, process.bus_id, engine, process.pid, seconds, process.container)

    def _read_file(self, path: Path) -> Engines | None:
        try:
            content = self._host.read(path)
        except OSError:
            return None
        return parse_fdinfo(content.decode("ascii", "replace"))

    def _client(self, key: tuple[str, str], pid: int) -> _Client:
        client = self._clients.get(key)
        if client is None or client.process.pid != pid:  # new, or its first process has ended
            bus_id, _ = key
            process = _Process(bus_id, pid, container_of(self._host, pid))
            client = self._clients[key] = _Client(process)
        return client

    def _forget_all_but(self, seen: set[tuple[str, str]]) -> None:
        for key in self._clients.keys() - seen:
            del self._clients[key]
        running = {client.process for client in self._clients.values()}
        for process in self._seconds.keys() - running:
            del self._seconds[process]

    def _search(self, now: float) -> None:
        """Search the processes that are new, or whose last search was long ago."""
        try:
            names = os.listdir(self._host.procfs)  # noqa: PTH208 - 5x faster
        except OSError:
            return
        pids = {int(name) for name in names if name.isdigit()}
        for pid in self._searches.keys() - pids:
            del self._searches[pid]
        for pid in pids:
            last = self._searches.get(pid)
            if last is not None and now < last.next:
                continue
            # Encoders open the GPU when they start; the longer a process has not, the less likely it will.
            wait = SCAN_SECONDS
            if last is not None:
                wait = min(MAX_AGE_SECONDS, 2 * (last.next - last.last))
            self._searches[pid] = _Search(now, now + wait)
            self._search_process(self._host.procfs / str(pid))

    def _search_process(self, process: Path) -> None:
        try:
            descriptors = os.listdir(process / "fd")  # noqa: PTH208 - 5x faster
        except OSError:
            return  # it has ended, or belongs to another user
        for descriptor in descriptors:
            try:
                target = os.readlink(process / "fd" / descriptor)  # noqa: PTH115 - likewise
            except OSError:
                continue
            if target.startswith(_DRM_DEVICES) and len(self._files) < MAX_CLIENTS:
                self._files.setdefault(process / "fdinfo" / descriptor)


def parse_fdinfo(text: str) -> Engines | None:
    """Return the content of a DRM file's fdinfo; None if the file does not belong to a PCI GPU."""
    words: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.startswith("drm-"):
            words[key.removeprefix("drm-")] = (value.split() or [""])[0]
    bus_id, client = words.get("pdev", ""), words.get("client-id", "")
    if not bus_id or not client:
        return None
    capacity = _by_engine(words, "engine-capacity-")
    own, total = _by_engine(words, "cycles-"), _by_engine(words, "total-cycles-")
    return Engines(
        bus_id,
        client,
        {kind: ns for kind, ns in _by_engine(words, "engine-").items() if not kind.startswith("capacity-")},
        {kind: (own[kind], total[kind]) for kind in own if kind in total},
        {kind: max(1, min(count, _MOST_CAPACITY)) for kind, count in capacity.items()},
    )


def _by_engine(words: Mapping[str, str], prefix: str) -> dict[str, int]:
    """Return the figures of one sort by engine, without those that are not counts."""
    found = {key.removeprefix(prefix): word for key, word in words.items() if key.startswith(prefix)}
    return {engine: int(word) for engine, word in found.items() if is_count(word)}
