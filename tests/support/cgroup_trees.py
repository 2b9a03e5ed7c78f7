"""Machines with containers, made of files: cgroups of either version, processes; a collector on its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from trees import FakeClock, Faults, Procfs

from powerbench_agent.collectors.docker import collector as docker
from powerbench_agent.collectors.docker.engine import Container
from powerbench_agent.core.host import Host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from powerbench_agent.core.model import Claim, Reading

SYSTEMD = "system.slice/docker-{}.scope"
CGROUPFS = "docker/{}"
NO_LIMIT_V1 = 9223372036854771712  # 2^63 in whole pages
MACHINE_BYTES = 2048 * 1024  # of Procfs
# Two devices: 1003 bytes read, 24 written.
IO_V2 = "8:0 rbytes=1000 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=3 wbytes=4 rios=1 wios=1\n"
IO_V1 = "8:0 Read 1000\n8:0 Write 20\n8:0 Sync 1020\n8:0 Total 1020\n8:16 Read 3\n8:16 Write 4\nTotal 1027\n"
NET_DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls \
carrier compressed
    lo: 5000 1 0 0 0 0 0 0 5000 1 0 0 0 0 0 0
  eth0: {} 4 0 0 0 0 0 0 {} 3 0 0 0 0 0 0
"""


def identity(number: int) -> str:
    """Return a container's id."""
    return f"{number:064x}"


class Machine:
    """`/sys/fs/cgroup` of one version, `/proc`, and whatever runs there."""

    def __init__(self, root: Path, *, unified: bool = True, cpuacct: str = "cpuacct") -> None:
        """`cpuacct`: what the hierarchy of version 1 that counts CPU time is called."""
        self.clock = FakeClock()
        self.faults = Faults()
        self.procfs = root / "proc"
        Procfs(self.procfs)
        self.set_network(1, 10**9, 10**9)
        self.unified = unified
        self.cgroups = root / "sys/fs/cgroup"
        self.cgroups.mkdir(parents=True)
        self._cpuacct = cpuacct
        self.host = Host(sysfs=root / "sys", procfs=self.procfs, clock=self.clock, read=self.faults)
        if unified:
            (self.cgroups / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
        else:
            for name in (cpuacct, "memory", "pids", "blkio"):
                (self.cgroups / name).mkdir()

    def directory(self, place: str, controller: str) -> Path:
        """Return where a controller's files of a cgroup lie."""
        if self.unified:
            return self.cgroups / place
        return self.cgroups / {"cpu": self._cpuacct, "io": "blkio"}.get(controller, controller) / place

    def add(self, place: str, cpu_seconds: float = 0.0, pid: int | None = None) -> None:
        """Make a container's cgroup, with every file that is read."""
        for controller in ("cpu", "memory", "pids", "io"):
            self.directory(place, controller).mkdir(parents=True, exist_ok=True)
        self.set_cpu(place, cpu_seconds)
        self.set_memory(place)
        (self.directory(place, "pids") / "pids.current").write_text("7\n")
        if self.unified:
            (self.directory(place, "io") / "io.stat").write_text(IO_V2)
        else:
            (self.directory(place, "io") / "blkio.throttle.io_service_bytes").write_text(IO_V1)
        (self.directory(place, "cpu") / "cgroup.procs").write_text("" if pid is None else f"{pid}\n")
        if pid is not None:
            self.set_network(pid, 100, 50)

    def cpu_file(self, place: str) -> Path:
        return self.directory(place, "cpu") / ("cpu.stat" if self.unified else "cpuacct.usage")

    def set_cpu(self, place: str, seconds: float) -> None:
        """Set what a cgroup has used."""
        text = (
            f"usage_usec {round(seconds * 1e6)}\nuser_usec 1\nsystem_usec 1\nnr_periods 0\n"
            if self.unified
            else f"{round(seconds * 1e9)}\n"
        )
        self.cpu_file(place).write_text(text)

    def set_memory(
        self, place: str, used: int = 5000, inactive: int = 1000, limit: int | None = None
    ) -> None:
        """Set a cgroup's memory, in bytes; `limit` None for none."""
        directory = self.directory(place, "memory")
        if self.unified:
            files = {
                "memory.current": used,
                "memory.max": "max" if limit is None else limit,
                "memory.stat": f"anon 1\nfile 2\ninactive_anon 9\ninactive_file {inactive}\nactive_file 3\n",
            }
        else:
            stat = f"cache 2\ninactive_file 1\nhierarchical_memory_limit 1\ntotal_inactive_file {inactive}\n"
            files = {
                "memory.usage_in_bytes": used,
                "memory.limit_in_bytes": NO_LIMIT_V1 if limit is None else limit,
                "memory.stat": stat,
            }
        for name, content in files.items():
            (directory / name).write_text(f"{content}\n")

    def set_network(self, pid: int, received: int, transmitted: int) -> None:
        """Give a process a network namespace of its own, or set what it counts."""
        net = self.procfs / str(pid) / "net"
        net.mkdir(parents=True, exist_ok=True)
        (net / "dev").write_text(NET_DEV.format(received, transmitted))

    def share_network(self, pid: int, other: int) -> None:
        """Put a process into another's network namespace: both see the same file."""
        net = self.procfs / str(pid) / "net"
        net.mkdir(parents=True, exist_ok=True)
        (net / "dev").unlink(missing_ok=True)
        (net / "dev").hardlink_to(self.procfs / str(other) / "net/dev")

    def add_process(self, pid: int, comm: str, ticks: int = 0, pages: int = 100, start: int = 500) -> None:
        """Make a process, or set what it has used."""
        directory = self.procfs / str(pid)
        directory.mkdir(exist_ok=True)
        (directory / "comm").write_text(f"{comm}\n")
        fields = f"S 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0 {start} 0 0\n"
        (directory / "stat").write_text(f"{pid} ({comm}) {fields}")
        (directory / "statm").write_text(f"9999 {pages} 10 1 0 10 0\n")


class Driven(NamedTuple):
    """The collector on such a machine; its list of containers is a test's to write."""

    machine: Machine
    collector: docker.Docker
    containers: dict[str, Container]

    def start(
        self,
        number: int,
        name: str = "",
        *,
        cpu_seconds: float = 0.0,
        seen: bool = False,
        state: str = "running",
    ) -> Container:
        """Let a container run; `seen`: its start was an event."""
        key = identity(number)
        self.machine.add(SYSTEMD.format(key), cpu_seconds, pid=10_000 + number)
        self.containers[key] = Container(key, name or f"c{number}", "image", state, started_here=seen)
        return self.containers[key]

    def use(self, number: int, cpu_seconds: float) -> None:
        """Set what a container has used so far."""
        self.machine.set_cpu(SYSTEMD.format(identity(number)), cpu_seconds)

    async def beat(self, seconds: float = 1.0) -> Reading:
        """Let time pass, and read."""
        self.machine.clock.advance(seconds)
        return await self.collector.read()

    async def claims(self, seconds: float = 1.0) -> dict[str, Claim]:
        """Let time pass, and return the claims by name."""
        return {claim.name: claim for claim in (await self.beat(seconds)).claims}


async def drive(machine: Machine, **options: int) -> AsyncIterator[Driven]:
    """Make a collector that takes itself for connected: nobody is asked anything."""
    collector = docker.Docker(docker.Options(**options), machine.host, "tcp://127.0.0.1:9")
    collector._following = asyncio.ensure_future(asyncio.Event().wait())
    collector._engine.connected.set()
    yield Driven(machine, collector, collector._engine.containers)
    await collector.aclose()
