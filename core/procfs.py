"""What the kernel says of CPU time: of the whole machine, of one process, and of our own container.

Reads /proc/stat, /proc/PID/stat and /proc/self/{cgroup,mountinfo}. These two formats are parsed here and
nowhere else. Clock ticks in, CPU seconds out. Privileges: none.

Source: proc(5)
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core.model import CpuTime
from powerbench_agent.core.sysfs import is_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from powerbench_agent.core.host import Host

HERTZ = os.sysconf("SC_CLK_TCK")
MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
BUSY_MODES = ("user", "nice", "system", "irq", "softirq")
_REQUIRED_MODES = 7  # every kernel since 2.6 has these; "steal" came later
WRAPPED = 2**63  # the kernel counts without a sign: from here on a count has fallen below 0
_CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_ENGINE_MOUNTS = ("/etc/hostname", "/etc/resolv.conf", "/etc/hosts")


# -- the machine -------------------------------------------------------------------------------------


class MachineStat(NamedTuple):
    """What /proc/stat says of all CPUs together since boot."""

    ticks: Mapping[
        str, int
    ]  # by mode, in the order of MODES; a mode that the kernel does not list is left out
    cpus: int  # logical CPUs online

    @property
    def busy(self) -> float:
        """CPU seconds of work: guest time is part of user and nice, stolen time is other machines'."""
        return sum(self.ticks.get(mode, 0) for mode in BUSY_MODES) / HERTZ

    @property
    def capacity(self) -> float:
        """CPU seconds of all modes, busy or not."""
        return sum(self.ticks.values()) / HERTZ


def read_machine_stat(host: Host) -> MachineStat:
    """Return what /proc/stat says now. Raises: OSError, ValueError."""
    return parse_machine_stat(host.read(host.procfs / "stat"))


def parse_machine_stat(content: bytes) -> MachineStat:
    """Return what the text of /proc/stat says. Raises: ValueError.

    In some containers' view of the file there are several lines of sums, of which all but one are zero.
    """
    first, _, rest = content.partition(b"\n")
    ticks = _parse_sum(first)
    if not any(ticks.values()):
        others = [_parse_sum(line) for line in rest.split(b"\n") if line.startswith(b"cpu ")]
        ticks = max(ticks, *others, key=_total) if others else ticks
    if not ticks:
        raise ValueError("/proc/stat has no line with the sum over all CPUs")
    cpus = content.count(b"\ncpu") - content.count(b"\ncpu ")  # 5x faster than a pattern
    return MachineStat(ticks, cpus)


def _parse_sum(line: bytes) -> dict[str, int]:
    """Return the ticks by mode of a sum over all CPUs; nothing if the line is not one.

    A figure that is not a count costs its own mode, as long as the line is otherwise what kernels write.
    """
    label, *fields = line.split() or [b""]
    figures = {mode: int(field) for mode, field in zip(MODES, fields, strict=False) if is_count(field)}
    if label != b"cpu" or len(figures) < _REQUIRED_MODES:
        return {}
    return {mode: ticks for mode, ticks in figures.items() if ticks < WRAPPED}


def _total(ticks: Mapping[str, int]) -> int:
    return sum(ticks.values())


def read_cpu_time(host: Host) -> CpuTime | None:
    """Return the CPU time of the machine and of this process; None if /proc/stat cannot be used."""
    try:
        stat = read_machine_stat(host)
    except (OSError, ValueError):
        return None
    return CpuTime(stat.busy, stat.capacity, time.process_time(), own_container(host))


# -- a process ---------------------------------------------------------------------------------------


class ProcessStat(NamedTuple):
    """What /proc/PID/stat says of a process."""

    comm: str
    state: str  # one letter; Z is a zombie, X is dead
    parent: int
    group: int
    own_ticks: int  # user and system time of its threads
    children_ticks: int  # user and system time of children that have ended and were waited for
    start_ticks: int  # since boot

    @property
    def own_seconds(self) -> float:
        """CPU time of the process and its threads."""
        return self.own_ticks / HERTZ

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the process, its threads, and its children that have ended and were waited for."""
        return (self.own_ticks + self.children_ticks) / HERTZ

    @property
    def start(self) -> float:
        """Seconds from boot to its start; together with its pid this identifies a process."""
        return self.start_ticks / HERTZ


def read_process_stat(host: Host, pid: int) -> ProcessStat | None:
    """Return what /proc/PID/stat says now; None if there is no such process."""
    try:
        content = host.read(host.procfs / str(pid) / "stat")
        return parse_process_stat(content.decode("utf-8", "replace"))
    except (OSError, ValueError):
        return None


def parse_process_stat(text: str) -> ProcessStat:
    """Return what the text of /proc/PID/stat says. Raises: ValueError."""
    head, parenthesis, tail = text.rpartition(")")  # a name may hold anything, even parentheses
    fields = tail.split()
    if not parenthesis or len(fields) < 20:
        raise ValueError("this is not the content of /proc/PID/stat")
    # proc(5) counts from 1 and has the pid and the name first: our field 0 is its field 3.
    user, system, children_user, children_system = (int(field) for field in fields[11:15])
    return ProcessStat(
        comm=head.partition("(")[2],
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        own_ticks=user + system,
        children_ticks=children_user + children_system,
        start_ticks=int(fields[19]),
    )


# -- the container around this process ---------------------------------------------------------------


def own_container(host: Host) -> str:
    """Return the id of the container that this process runs in, "" if it runs in none.

    In a cgroup namespace of its own the cgroup is "/"; then the mounts that the engine made show the id.
    """
    for name, find in (("cgroup", container_id), ("mountinfo", _mounted_container)):
        try:
            text = host.read(host.procfs / "self" / name).decode("ascii", "replace")
        except OSError:
            continue
        if found := find(text):
            return found
    return ""


def _mounted_container(mountinfo: str) -> str:
    """Return the id in the source of a file that container engines mount into /etc."""
    for line in mountinfo.splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[4] in _ENGINE_MOUNTS and (found := container_id(fields[3])):
            return found
    return ""


def container_id(cgroup: str) -> str:
    """Return the id of a container in a cgroup's path, or in the text of /proc/PID/cgroup; "" for none.

    The ids of Docker, containerd and Podman are 64 hexadecimal digits; of nested containers the innermost
    counts.
    """
    found = _CONTAINER_ID.findall(cgroup)
    return found[-1] if found else ""
