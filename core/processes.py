"""Processes: which one a connection comes from, and which container a process runs in.

Reads /proc/PID/{stat,status,cgroup,fd,fdinfo,net/tcp}. Clock ticks in, seconds out. Privileges: none for
the agent's own processes and for what is public; finding the owner of another user's connection needs root
or CAP_SYS_PTRACE.

Source: proc(5), https://docs.kernel.org/networking/proc_net_tcp.html
"""

from __future__ import annotations

import ipaddress
import os
import re
import struct
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core.procfs import container_id, own_container, read_process_stat

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from powerbench_agent.core.host import Host
    from powerbench_agent.core.model import Sender

_PID = re.compile(r"[0-9]{1,10}")
_SLACK = 0.1  # seconds, more than the resolution of start times
_IPV4_MAPPED = b"\0" * 10 + b"\xff\xff"  # what precedes an IPv4 address in an IPv6 socket
_ENCODER = "ffmpeg"  # part of a process's name
WRITES = 0o3  # bits of the flags in fdinfo that say whether the file was opened for writing
_SAY_PID = "give the pid with the stream: /ingest?stream=NAME&pid=PID, or use powerbench pipe"


class Unresolved(Exception):  # noqa: N818 - a verdict
    """The process of a stream cannot be found; `remedy` says how to make it known."""

    def __init__(self, what: str, remedy: str = _SAY_PID) -> None:
        super().__init__(what)
        self.remedy = remedy


class _Connection(NamedTuple):
    inode: str
    uid: int


def container_of(host: Host, pid: int) -> str:
    """Return the id of the container that a process runs in, "" if it runs in none or this is not known."""
    try:
        text = host.read(host.procfs / str(pid) / "cgroup").decode("ascii", "replace")
    except OSError:
        return ""
    if text.strip() == "0::/":  # seen from our own cgroup namespace, this is the cgroup that we are in
        return own_container(host)
    return container_id(text)


def uptime(host: Host) -> float:
    """Return the seconds since boot, on the clock of start times. Raises: OSError, ValueError."""
    return float(host.read(host.procfs / "uptime").partition(b" ")[0])


def own_pid(host: Host) -> int | None:
    """Return this process's id in `host.procfs`, which in a container may be the procfs of the host."""
    try:
        return int(os.readlink(host.procfs / "self"))  # noqa: PTH115 - a Path would only be turned into a number
    except (OSError, ValueError):
        return None


def pids(host: Host) -> list[int]:
    """Return the ids of all processes."""
    try:
        return [int(name) for name in os.listdir(host.procfs) if name.isdigit()]  # noqa: PTH208 - 5x faster
    except OSError:
        return []


class Index:
    """All processes by their inner pid and by their open sockets and pipes, for finding many streams."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pids = pids(host)
        self._inner: dict[int, list[int]] | None = None
        self._files: dict[str, list[tuple[int, str]]] | None = None

    def numbered(self, number: int) -> list[int]:
        """Return the processes that have this number in their own pid namespace."""
        if self._inner is None:
            self._inner = {}
            for pid in self._pids:
                numbers = namespace_pids(self._host, pid)
                if numbers:
                    self._inner.setdefault(numbers[-1], []).append(pid)
        return self._inner.get(number, [])

    def having(self, target: str, *, writable: bool = False) -> list[int]:
        """Return the processes that have a file open ("socket:[1234]"), as far as we are allowed to see."""
        if self._files is None:
            self._files = self._list_files()
        found: list[int] = []
        for pid, descriptor in self._files.get(target, []):
            fdinfo = self._host.procfs / str(pid) / "fdinfo" / descriptor
            if pid not in found and (not writable or _writes(self._host, fdinfo)):
                found.append(pid)
        return found

    def _list_files(self) -> dict[str, list[tuple[int, str]]]:
        """Return (pid, descriptor) of every open socket and pipe, by what the descriptor leads to."""
        files: dict[str, list[tuple[int, str]]] = {}
        for pid in self._pids:
            for descriptor, link in _open_files(self._host, pid):
                if link.startswith(("socket:", "pipe:")):
                    files.setdefault(link, []).append((pid, descriptor))
        return files


def find_sender(host: Host, sender: Sender, index: Index) -> int:
    """Return the process that a stream comes from. Raises: Unresolved.

    A pid that the sender gives is accepted if that process's network namespace has the sender's end of the
    connection, under the same user, and the process is older than the connection. So a sender elsewhere
    cannot claim another's process.
    """
    if sender.pid:
        return _find_given(host, sender, index)
    # An agent in a network namespace of its own may serve sockets that it was given: then the sender's end is
    # in the machine's namespace.
    connection = _find_connection(host, host.procfs / "net", sender)
    if connection is None:
        connection = _find_connection(host, host.procfs / "1/net", sender)
    if connection is None:
        raise Unresolved("its connection is neither in the agent's network namespace nor in the machine's")
    owner = index.having(f"socket:[{connection.inode}]")
    if not owner:
        raise Unresolved("its connection has closed, or its owner is not visible to the agent's user")
    pid = owner[0]
    own = own_pid(host)
    if pid == own:
        raise Unresolved("its connection comes from the agent's own process")
    stat = read_process_stat(host, pid)
    if stat is not None and _ENCODER in stat.comm:
        return pid  # its input may be a pipe too, from a process that controls it or gives it media
    # A forwarder is not what uses the energy: the process that writes into its input is.
    pipe = _link(host.procfs / str(pid) / "fd/0")
    if not pipe.startswith("pipe:"):
        return pid
    writers = [writer for writer in index.having(pipe, writable=True) if writer not in (pid, own)]
    return preferred(host, writers) or pid


def _find_given(host: Host, sender: Sender, index: Index) -> int:
    if not _PID.fullmatch(sender.pid) or not 0 < int(sender.pid) < 2**31:
        raise Unresolved(f"pid={sender.pid[:20]!r} is not a process id")
    number = int(sender.pid)
    # A process in a container has another number outside, where its inner number may be another process's.
    agreeing = [pid for pid in index.numbered(number) if _agrees(host, pid, sender)]
    found = [pid for pid in agreeing if container_of(host, pid) == _home(host, sender, pid, index)]
    if len(found) > 1:
        raise Unresolved(f"pid={number} could be any of the processes {', '.join(map(str, found))}")
    if not found:
        raise Unresolved(
            f"pid={number} is not a process that this connection can come from",
            "give the pid of a process on this machine, as its own container sees it",
        )
    return found[0]


def _home(host: Host, sender: Sender, pid: int, index: Index) -> str:
    """Return the container of the connection's owner if it can be seen, else the container of `pid`.

    Containers on the host's own network share one network namespace.
    """
    connection = _find_connection(host, host.procfs / str(pid) / "net", sender)
    owners = index.having(f"socket:[{connection.inode}]") if connection else []
    return container_of(host, owners[0] if owners else pid)


def _agrees(host: Host, pid: int, sender: Sender) -> bool:
    stat = read_process_stat(host, pid)
    connection = _find_connection(host, host.procfs / str(pid) / "net", sender)
    if stat is None or connection is None:
        return False
    try:
        process_age = uptime(host) - stat.start
    except (OSError, ValueError):
        return False
    connection_age = host.clock.monotonic() - sender.connected
    is_older = process_age + _SLACK >= connection_age
    return is_older and connection.uid in (0, _uid(host, pid))


def _status(host: Host, pid: int, key: str) -> list[str]:
    try:
        text = host.read(host.procfs / str(pid) / "status").decode("ascii", "replace")
    except OSError:
        return []
    return text.partition(f"\n{key}:")[2].partition("\n")[0].split()


def namespace_pids(host: Host, pid: int) -> list[int]:
    """Return a process's ids in the nested pid namespaces, outermost first."""
    try:
        return [int(word) for word in _status(host, pid, "NSpid")]
    except ValueError:
        return []


def _uid(host: Host, pid: int) -> int:
    effective = _status(host, pid, "Uid")[1:2]
    return int(effective[0]) if effective and effective[0].isdigit() else -1


def _find_connection(host: Host, net: Path, sender: Sender) -> _Connection | None:
    """Return the sender's end of its connection if it is in this network namespace."""
    for table, version in (("tcp", 4), ("tcp6", 6)):
        wanted = _row(sender.peer, version), _row(sender.local, version)
        try:
            lines = host.read(net / table).decode("ascii", "replace").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and (fields[1], fields[2]) == wanted and fields[7].isdigit():
                return _Connection(fields[9], int(fields[7]))
    return None


def _row(end: tuple[str, int], version: int) -> str:
    """Return an address and port as /proc/net/tcp and tcp6 write them: words in the host's byte order."""
    try:
        address = ipaddress.ip_address(end[0].partition("%")[0])
    except ValueError:
        return ""
    if version == 4:
        address = getattr(address, "ipv4_mapped", None) or address
        if address.version != 4:
            return ""
        packed = address.packed
    elif address.version == 6:
        packed = address.packed
    else:
        packed = _IPV4_MAPPED + address.packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{end[1]:04X}"


def _open_files(host: Host, pid: int) -> Iterator[tuple[str, str]]:
    """Yield (descriptor, target) of a process's open files; nothing if we are not allowed to see them."""
    directory = host.procfs / str(pid) / "fd"
    try:
        descriptors = os.listdir(directory)  # noqa: PTH208 - 5x faster
    except OSError:
        return
    for descriptor in descriptors:
        yield descriptor, _link(directory / descriptor)


def preferred(host: Host, candidates: Collection[int]) -> int | None:
    """Return which writer of a pipe is the encoder: ffmpeg, else the youngest (shells are older)."""
    ranks: dict[int, tuple[bool, float]] = {}
    for pid in candidates:
        stat = read_process_stat(host, pid)
        if stat is not None:
            ranks[pid] = (_ENCODER in stat.comm, stat.start)
    return max(ranks, key=ranks.__getitem__, default=None)


def _writes(host: Host, fdinfo: Path) -> bool:
    try:
        text = host.read(fdinfo).decode("ascii", "replace")
        flags = text.partition("flags:")[2].split()[0]
        return int(flags, 8) & WRITES != 0
    except (OSError, ValueError, IndexError):
        return False


def _link(path: Path) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - called very often, and a Path costs more than the call
    except OSError:
        return ""
