"""Cost of a beat over many containers: the docker collector on trees of cgroups, and attribution of energy.

No engine is involved, its list of containers is filled in here. What is measured is reading cgroups, making
samples and claims, and attribution. The peer opens and reads one file per container: the bare minimum.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path

from simulated import ManualClock

from powerbench_agent.agent.node import Node
from powerbench_agent.collectors.docker import collector as docker
from powerbench_agent.collectors.docker.engine import Container
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import CpuTime, Meter, Reading

BEATS = 20
STAT = "usage_usec {}\nuser_usec 1\nsystem_usec 1\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n"


def identity(number: int) -> str:
    """Return a container's id."""
    return f"{number:064x}"


def make_tree(root: Path, count: int) -> None:
    """Write version 2 cgroups in the layout of Docker's systemd driver."""
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory io pids\n")
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal: 65536000 kB\n")
    for number in range(count):
        directory = root / f"sys/fs/cgroup/system.slice/docker-{identity(number)}.scope"
        directory.mkdir(parents=True)
        for name, content in (
            ("cpu.stat", STAT.format(1_000_000)),
            ("memory.current", "73400320\n"),
            ("memory.stat", "anon 1\nfile 2\ninactive_file 4096\n" + "x 1\n" * 40),
            ("memory.max", "max\n"),
            ("pids.current", "7\n"),
            ("io.stat", "8:0 rbytes=1024 wbytes=2048 rios=1 wios=2 dbytes=0 dios=0\n"),
            ("cgroup.procs", f"{10_000 + number}\n"),
        ):
            (directory / name).write_text(content)
        network = root / f"proc/{10_000 + number}/net"
        network.mkdir(parents=True)
        (network / "dev").write_text("a\nb\n    lo: 1 1 0 0 0 0 0 0 1 1 0\n  eth0: 9 1 0 0 0 0 0 0 7 1 0\n")


async def measure(root: Path, count: int) -> tuple[float, float, float, float]:
    """Return (ms of a beat, ms of attribution, ms of the peer, bytes per container)."""
    clock = ManualClock()
    host = Host(sysfs=root / "sys", procfs=root / "proc", clock=clock)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    collector = docker.Docker(docker.Options(), host, "tcp://127.0.0.1:9")
    engine = collector._engine  # noqa: SLF001 - stands for the daemon's list
    for number in range(count):
        engine.containers[identity(number)] = Container(identity(number), f"c{number}", "image", "running")
    collector._following = asyncio.ensure_future(asyncio.sleep(3600))  # noqa: SLF001 - no daemon to follow
    engine.connected.set()
    await collector.read()
    bytes_each = (tracemalloc.get_traced_memory()[0] - before) / count
    tracemalloc.stop()
    node = Node()
    reads, shares, peers = [], [], []
    files = [root / f"sys/fs/cgroup/system.slice/docker-{identity(n)}.scope/cpu.stat" for n in range(count)]
    for beat in range(BEATS):
        clock.now += 1
        begun = time.process_time()
        reading = await collector.read()
        reads.append(time.process_time() - begun)
        meters = Reading([], [Meter("cpu", "rapl", "0", beat * 50.0)], taken=clock.now)
        cpu = CpuTime(beat * 1.0, beat * 4.0, beat * 0.01)
        begun = time.process_time()
        node.beat({"rapl": meters, "docker": reading}, (), ("rapl", "docker"), cpu, clock.now)
        shares.append(time.process_time() - begun)
        begun = time.process_time()
        for file in files:
            host.read(file)
        peers.append(time.process_time() - begun)
    await collector.aclose()
    return *(statistics.median(times) * 1e3 for times in (reads, shares, peers)), bytes_each


def main() -> None:
    """Measure and print."""
    for count, budget in ((100, "<= 10"), (1000, "<= 100")):
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            make_tree(root, count)
            read, share, peer, memory = asyncio.run(measure(root, count))
        what = f"docker: CPU of a beat, {count} containers"
        print(f"{what:44} {read:10.3f} {peer:10.3f} {read / peer:7.2f} ms   {budget}")
        print(f"{'  attribution of the energy':44} {share:10.3f} {'':18} ms")
        print(f"{'  memory per container':44} {memory / 1024:10.3f} {'':18} KiB  <= 4")


if __name__ == "__main__":
    main()
