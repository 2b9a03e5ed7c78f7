"""A container's figures from its cgroup, version 2 or 1.

Reads `/sys/fs/cgroup/…`. µs, ns, bytes in; seconds and bytes out. Privileges: none.

Where a container's cgroup is depends on the engine, its cgroup driver and parent. The known layouts are
tried; if none fits, the path that the kernel gives for one of the container's processes.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/
"""

from __future__ import annotations

import itertools
import os
import re
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.collectors.docker.block import Layers, Moved, count_once, parse_io_v1, parse_io_v2
from powerbench_agent.core.processes import namespace_pids
from powerbench_agent.core.procfs import WRAPPED
from powerbench_agent.core.sysfs import is_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from powerbench_agent.core.host import Host

# Docker with the systemd driver and with cgroupfs, Podman with either (its processes are in "container").
_LAYOUTS = (
    "system.slice/docker-{}.scope",
    "docker/{}",
    "machine.slice/libpod-{}.scope/container",
    "machine.slice/libpod-{}.scope",
    "libpod_parent/libpod-{}",
)
_WAY_UP = re.compile(r"^(/|\.\./)*")
_MAX_BELOW = 200  # cgroups within a container that are searched for a process
_MAX_PROCESSES = 1000  # likewise, processes that are compared
UNLIMITED = 2**60  # version 1 writes a number near 2^63 if there is no limit


class Memory(NamedTuple):
    """In bytes."""

    used: int  # without inactive page cache, as `docker stats` counts
    limit: int | None  # None: the container has no limit of its own


class Figures(NamedTuple):
    """What is read less often than CPU time; None if the controller is not there."""

    memory: Memory | None
    pids: int | None
    read_bytes: int | None
    written_bytes: int | None


class Cgroup:
    """One container's cgroup: one directory on version 2, one for each controller on version 1."""

    # There may be thousands.
    __slots__ = (
        "_cpu_file",
        "_host",
        "_inhabitant",
        "_io",
        "_layers",
        "_memory",
        "_moved",
        "_name",
        "_pids",
        "_unified",
    )

    def __init__(self, host: Host, directories: Sequence[Path], layers: Layers, *, unified: bool) -> None:
        """`directories`: of the controllers cpu, memory, pids and blkio; all the same if `unified`.

        `layers`: of the block devices.
        """
        cpu, self._memory, self._pids, self._io = directories
        self._host = host
        self._layers = layers
        self._unified = unified
        self._moved: dict[str, Moved] = {}  # by block device
        self._cpu_file = cpu / ("cpu.stat" if unified else "cpuacct.usage")
        # Podman's own child says nothing; "container" is a part of other paths too.
        named = cpu.parent if cpu.name == "container" else cpu
        self._name = named.name.encode()
        self._inhabitant: int | None = None  # the first of its processes

    def cpu_seconds(self) -> float:
        """Return the CPU time used since the cgroup was created. Raises: OSError, ValueError."""
        content = self._host.read(self._cpu_file)
        used, in_a_second = content.strip(), 1e9
        if self._unified:
            key, _, rest = content.partition(b" ")
            if key != b"usage_usec":
                raise ValueError(f"{self._cpu_file} does not begin with usage_usec")
            used, in_a_second = rest.partition(b"\n")[0], 1e6
        if not is_count(used) or int(used) >= WRAPPED:
            raise ValueError(f"{self._cpu_file} holds {used[:40]!r}, which is not a CPU time")
        return int(used) / in_a_second

    def figures(self) -> Figures:
        """Return the other figures; None for those that cannot be read."""
        read, written = self._io_bytes()
        return Figures(self._memory_bytes(), self._count(self._pids / "pids.current"), read, written)

    def first_process(self) -> int | None:
        """Return the id of one of the container's processes, in the reader's pid namespace.

        With systemd or an engine within, all processes may be in cgroups below the container's own. Some
        are in containers within: the first one in the outermost pid namespace is the container's own.
        """
        if self._inhabitant is None or not self._is_here(self._inhabitant):
            own = self._cpu_file.parent
            candidates = list(itertools.islice(self._processes_in(own), _MAX_PROCESSES))
            if not candidates:
                candidates = list(itertools.islice(self._processes_below(own), _MAX_PROCESSES))
            self._inhabitant = min(candidates, key=self._nesting, default=None)
        return self._inhabitant

    def exists(self) -> bool:
        """Return whether it is still there, which it is for as long as its container runs."""
        return self._cpu_file.exists()

    def _processes_in(self, directory: Path) -> Iterator[int]:
        """Yield the processes of one cgroup that the reader can see: others' ids are 0."""
        try:
            words = self._host.read(directory / "cgroup.procs").split()
        except OSError:
            return
        yield from (int(word) for word in words if is_count(word) and int(word) > 0)

    def _processes_below(self, top: Path) -> Iterator[int]:
        """Yield the processes of the cgroups below one, those of the upper levels first."""
        found = deque([top])
        for _ in range(_MAX_BELOW):
            if not found:
                return
            children = _children(found.popleft())
            for child in children:
                yield from self._processes_in(child)
            found.extend(children)

    def _nesting(self, pid: int) -> tuple[int, int]:
        """Return what is least for a container's first process."""
        numbers = namespace_pids(self._host, pid)
        return (len(numbers), numbers[-1]) if numbers else (_MAX_BELOW, 0)

    def _is_here(self, pid: int) -> bool:
        """Return whether a process is still in or below this cgroup; its id may be another's by now."""
        try:
            path = self._host.read(self._host.procfs / str(pid) / "cgroup")
        except OSError:
            return False
        return self._name in path

    def _count(self, file: Path) -> int | None:
        try:
            content = self._host.read(file).strip()
        except OSError:
            return None
        return int(content) if is_count(content) else None

    def _memory_bytes(self) -> Memory | None:
        if self._unified:
            used_file, limit_file, inactive_key = "memory.current", "memory.max", "inactive_file"
        else:
            used_file, limit_file = "memory.usage_in_bytes", "memory.limit_in_bytes"
            inactive_key = "total_inactive_file"
        used = self._count(self._memory / used_file)
        if used is None:
            return None
        limit = self._count(self._memory / limit_file)  # None for "max", which is not a number
        if limit is not None and limit >= UNLIMITED:
            limit = None
        return Memory(max(0, used - self._inactive(inactive_key)), limit)

    def _inactive(self, key: str) -> int:
        try:
            stat = self._host.read(self._memory / "memory.stat")
        except OSError:
            return 0
        _, found, rest = stat.partition(f"\n{key} ".encode())
        figure = rest.partition(b"\n")[0]
        return int(figure) if found and is_count(figure) else 0

    def _io_bytes(self) -> tuple[int | None, int | None]:
        name = "io.stat" if self._unified else "blkio.throttle.io_service_bytes"
        try:
            text = self._host.read(self._io / name).decode("ascii", "replace")
        except OSError:
            return None, None
        parse = parse_io_v2 if self._unified else parse_io_v1
        self._moved = parse(text, self._moved)
        return count_once(self._moved, self._layers.below)


def _children(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


class Layout:
    """Where the containers' cgroups are on this machine; the layout that fitted last is tried first."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._layers = Layers(host)
        self._root = host.sysfs / "fs/cgroup"
        self.unified = (self._root / "cgroup.controllers").exists()
        self._last = _LAYOUTS[0]
        self._roots = [self._root]
        if not self.unified:
            others = (self._root / name for name in ("memory", "pids", "blkio"))
            self._roots = [self._first("cpuacct", "cpu,cpuacct", "cpuacct,cpu"), *others]

    def _first(self, *names: str) -> Path:
        """Return the first of these directories that exists; if none does, the first."""
        for name in names:
            if (self._root / name).exists():
                return self._root / name
        return self._root / names[0]

    def find(self, container: str, pid: int | None = None) -> Cgroup | None:
        """Return a container's cgroup; `pid`: one of its processes, in case no known layout fits."""
        for place in self._places(container, pid):
            cpu = self._roots[0] / place
            if (cpu / "cgroup.procs").exists():
                others = [cpu] * 3 if self.unified else [root / place for root in self._roots[1:]]
                return Cgroup(self._host, [cpu, *others], self._layers, unified=self.unified)
        return None

    def running(self) -> set[str]:
        """Return the ids of the containers that have a cgroup in one of the known layouts."""
        found: set[str] = set()
        for layout in _LAYOUTS:
            place, _, _ = layout.partition("/container")
            parent, _, name = place.rpartition("/")
            named = re.compile(re.escape(name).replace(r"\{\}", "([0-9a-f]{64})"))
            for child in _children(self._roots[0] / parent):
                if match := named.fullmatch(child.name):
                    found.add(match[1])
        return found

    def _places(self, container: str, pid: int | None) -> Iterator[str]:
        yield self._last.format(container)
        for layout in _LAYOUTS:
            if layout != self._last and (self._roots[0] / layout.format(container)).exists():
                self._last = layout
                yield layout.format(container)
        if pid is not None:
            yield from self._places_of_process(container, pid)

    def _places_of_process(self, container: str, pid: int) -> Iterator[str]:
        try:
            text = self._host.read(self._host.procfs / str(pid) / "cgroup").decode("utf-8", "replace")
        except OSError:
            return
        for line in text.splitlines():
            _, _, line_rest = line.partition(":")  # "0::/path", or "4:cpu,cpuacct:/path"
            controllers, _, path = line_rest.partition(":")
            has_cpu = controllers == "" if self.unified else "cpuacct" in controllers.split(",")
            if not has_cpu or container not in path:
                continue
            # From within a cgroup namespace, a way up to the root comes first; what the container has
            # made below its own cgroup (systemd, an engine within) comes last.
            above, _, below = _WAY_UP.sub("", path).partition(container)
            own = above + container + below.partition("/")[0]
            yield f"{own}/container"
            yield own
