"""`/proc` as far as processes are looked at: their figures, children, open files and connections."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Sender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trees import FakeClock

PATIENCE = 20.0  # seconds that another process may take
HERTZ = os.sysconf("SC_CLK_TCK")
AGENT_PID = 4000
TCP_HEAD = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
)
# State and flags, priority and niceness, limits and addresses as a kernel 6.x writes them.
STAT = "{pid} ({comm}) S {parent} 1 1 0 -1 4194304 114 583 0 1 {user} 0 {waited} 0 20 0 1 0 {start} 26 386\n"


class Connection(NamedTuple):
    """A TCP connection as its sender's end has it."""

    peer: tuple[str, int] = ("127.0.0.1", 40000)
    local: tuple[str, int] = ("127.0.0.1", 9101)
    inode: int = 777
    uid: int = 1000

    def row(self, version: int) -> str:
        """Return its row in /proc/net/tcp or tcp6, as a little-endian or big-endian kernel writes it."""
        ends = f"{_end(self.peer, version)} {_end(self.local, version)}"
        queues = "00000000:00000000 00:00000000 00000000"
        return f"   0: {ends} 01 {queues} {self.uid:5}        0 {self.inode} 1 0 20 4 30 10 -1\n"

    def sender(self, pid: str = "", connected: float = 1000.0) -> Sender:
        return Sender(self.peer, self.local, pid, connected)


def _end(end: tuple[str, int], version: int) -> str:
    address = ipaddress.ip_address(end[0])
    if version == 6 and address.version == 4:
        address = ipaddress.ip_address(f"::ffff:{end[0]}")
    words = struct.unpack(f"={len(address.packed) // 4}I", address.packed)
    return "".join(f"{word:08X}" for word in words) + f":{end[1]:04X}"


class Processes:
    """A procfs whose processes a test starts, lets work, and ends."""

    def __init__(self, procfs: Path, clock: FakeClock) -> None:
        self.procfs = procfs
        self.clock = clock
        self.host = Host(procfs=procfs, clock=clock)
        self._figures: dict[int, dict[str, float | str]] = {}
        self._parents: dict[int, int] = {}
        self.listing = procfs / "net"
        self.connections(self.listing)
        self.start(AGENT_PID, comm="powerbench-agen")
        (procfs / "self").symlink_to(str(AGENT_PID))
        self.tick()

    def tick(self) -> None:
        """Let the uptime be what the clock says: boot was at 0."""
        # At once, as the kernel has it: a search may read it on its thread meanwhile.
        new = self.procfs / "uptime.new"
        new.write_text(f"{self.clock.now:.2f} {self.clock.now:.2f}\n")
        new.rename(self.procfs / "uptime")

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.tick()

    def start(
        self,
        pid: int,
        parent: int = 1,
        comm: str = "ffmpeg",
        *,
        age: float = 100.0,
        seconds: float = 0.0,
        uid: int = 1000,
        inner: int | None = None,
        container: str = "",
    ) -> None:
        """Start a process `age` seconds ago; `inner`: its number in a container's pid namespace."""
        directory = self.procfs / str(pid)
        (directory / f"task/{pid}").mkdir(parents=True)
        (directory / "fd").mkdir()
        (directory / "fdinfo").mkdir()
        numbers = f"{pid}" if inner is None else f"{pid}\t{inner}"
        (directory / "status").write_text(
            f"Name:\t{comm}\nPid:\t{pid}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nNSpid:\t{numbers}\n"
        )
        place = f"/system.slice/docker-{container}.scope" if container else "/user.slice/session-2.scope"
        (directory / "cgroup").write_text(f"0::{place}\n")
        self.connections(directory / "net")
        self._figures[pid] = {"comm": comm, "start": self.clock.now - age, "own": seconds, "waited": 0.0}
        self._parents[pid] = parent
        self._write(pid)
        self._write_children(parent)

    def work(self, pid: int, seconds: float) -> None:
        """Let a process use the CPU."""
        self._figures[pid]["own"] = float(self._figures[pid]["own"]) + seconds
        self._write(pid)

    def end(self, pid: int, *, waited: bool = True) -> None:
        """End a process; `waited`: its parent takes over what it has used, as wait() has it."""
        figures, parent = self._figures.pop(pid), self._parents.pop(pid)
        if waited and parent in self._figures:
            used = float(figures["own"]) + float(figures["waited"])
            self._figures[parent]["waited"] = float(self._figures[parent]["waited"]) + used
            self._write(parent)
        for path in sorted((self.procfs / str(pid)).rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        (self.procfs / str(pid)).rmdir()
        self._write_children(parent)
        for child in [child for child, its in self._parents.items() if its == pid]:
            self._parents[child] = 1

    def thread(self, pid: int, number: int, *children: int) -> None:
        """Add a thread that has children of its own."""
        directory = self.procfs / f"{pid}/task/{number}"
        directory.mkdir(parents=True)
        (directory / "children").write_text("".join(f"{child} " for child in children))

    def opens(self, pid: int, descriptor: int, target: str, flags: int = 0o2) -> None:
        """Let a process have a file open."""
        (self.procfs / f"{pid}/fd/{descriptor}").symlink_to(target)
        (self.procfs / f"{pid}/fdinfo/{descriptor}").write_text(f"pos:\t0\nflags:\t0{flags:o}\nmnt_id:\t15\n")

    def connections(self, net: Path, *connections: Connection, version: int = 4) -> None:
        """Say which connections a network namespace holds."""
        net.mkdir(parents=True, exist_ok=True)
        for name, its in (("tcp", 4), ("tcp6", 6)):
            rows = [connection.row(its) for connection in connections] if its == version else []
            (net / name).write_text(TCP_HEAD + "".join(rows))

    def connects(self, pid: int, connection: Connection, version: int = 4, descriptor: int = 5) -> None:
        """Let a process send on a connection, in the agent's network namespace."""
        for net in (self.listing, self.procfs / f"{pid}/net"):
            self.connections(net, connection, version=version)
        self.opens(pid, descriptor, f"socket:[{connection.inode}]")

    def _write(self, pid: int) -> None:
        figures = self._figures[pid]
        text = STAT.format(
            pid=pid,
            comm=figures["comm"],
            parent=self._parents[pid],
            user=round(float(figures["own"]) * HERTZ),
            waited=round(float(figures["waited"]) * HERTZ),
            start=round(float(figures["start"]) * HERTZ),
        )
        (self.procfs / str(pid) / "stat").write_text(text)

    def _write_children(self, parent: int) -> None:
        file = self.procfs / f"{parent}/task/{parent}/children"
        if file.parent.is_dir():
            file.write_text("".join(f"{child} " for child, its in self._parents.items() if its == parent))


def forwarded(proc: Processes, *writers: tuple[int, str, float]) -> Sender:
    """Let curl forward what these (pid, name, age) write; return the sender as the agent sees it."""
    proc.start(50, comm="curl", age=10.0)
    proc.connects(50, Connection())
    proc.opens(50, 0, "pipe:[1234]", flags=0o0)
    proc.start(90, comm="tail", age=1.0)
    proc.opens(90, 0, "pipe:[1234]", flags=0o0)  # a reader is no writer
    for pid, comm, age in writers:
        proc.start(pid, comm=comm, age=age)
        proc.opens(pid, 3, "pipe:[1234]", flags=0o100001)
    return Connection().sender()


def _elsewhere(proc: Processes) -> None:
    proc.connections(proc.procfs / "50/net", Connection(peer=("127.0.0.1", 40001)))


def _too_young(proc: Processes) -> None:
    proc.end(50)
    proc.advance(10.0)
    proc.start(50, age=5.0)  # the connection is of 10 s ago
    proc.connections(proc.procfs / "50/net", Connection())


def _another_users(proc: Processes) -> None:
    proc.connections(proc.procfs / "50/net", Connection(uid=1001))


def _nowhere(proc: Processes) -> None:
    proc.end(50)


SPOILERS: tuple[Callable[[Processes], None], ...] = (_elsewhere, _too_young, _another_users, _nowhere)


WORKER = """
import os, socket, sys, time
family, port = getattr(socket, sys.argv[1]), int(sys.argv[2])
connection = socket.create_connection((sys.argv[3], port))
begun = time.process_time()
while time.process_time() - begun < 0.1:
    pass
child = os.fork()
if child == 0:
    begun = time.process_time()
    while time.process_time() - begun < 0.2:
        pass
    os._exit(0)
os.waitpid(child, 0)
connection.sendall(b"done")
sys.stdin.read()
"""


@contextmanager
def connected(family: str, address: str) -> Iterator[tuple[subprocess.Popen[bytes], Sender, socket.socket]]:
    """Yield a child that has connected to this process, and its connection as an agent would see it."""
    with socket.create_server((address, 0), family=getattr(socket, family)) as server:
        server.settimeout(PATIENCE)
        command = [sys.executable, "-c", WORKER, family, str(server.getsockname()[1]), address]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
            try:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(PATIENCE)
                    ends = connection.getpeername()[:2], connection.getsockname()[:2]
                    yield child, Sender(*ends, connected=time.monotonic()), connection
            finally:
                child.communicate()


def socket_of(pid: int) -> str:
    """Return the first socket that a process has open, as its descriptors' links call it."""
    links = [path.readlink().name for path in Path(f"/proc/{pid}/fd").iterdir()]
    return next(link for link in links if link.startswith("socket:"))
