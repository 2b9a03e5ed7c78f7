"""What the machine's CPUs have done so far, and what of it was this process: the measure of attribution.

Reads /proc/stat. Clock ticks in, CPU seconds out. Privileges: none.

Source: proc(5)
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from powerbench_agent.core.model import CpuTime

if TYPE_CHECKING:
    from powerbench_agent.core.host import Host

_HERTZ = os.sysconf("SC_CLK_TCK")
_CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def read_cpu_time(host: Host) -> CpuTime | None:
    """Return it; None where /proc/stat does not say."""
    try:
        busy, capacity = parse_stat(host.read(host.procfs / "stat"))
    except (OSError, ValueError):
        return None
    return CpuTime(busy, capacity, time.process_time(), own_container(host))


def own_container(host: Host) -> str:
    """Return the id of the container that this process lies in, "" for none.

    In a cgroup namespace of its own the cgroup is "/"; then the engine's mounts say the id.
    """
    for name, find in (("cgroup", container_id), ("mountinfo", _mounted_container)):
        try:
            if found := find(host.read(host.procfs / "self" / name).decode("ascii", "replace")):
                return found
        except OSError:
            continue
    return ""


def _mounted_container(mountinfo: str) -> str:
    """Return the id in the source of /etc/hostname or /etc/resolv.conf, which engines mount."""
    for line in mountinfo.splitlines():
        fields = line.split()
        ours = len(fields) > 4 and fields[4] in ("/etc/hostname", "/etc/resolv.conf", "/etc/hosts")
        if ours and (found := container_id(fields[3])):
            return found
    return ""


def container_id(cgroup: str) -> str:
    """Return the id of a container in a cgroup's path, or in the text of /proc/PID/cgroup; "" for none.

    Docker's, containerd's and Podman's ids are 64 hexadecimal digits; of nested ones the innermost counts.
    """
    found = _CONTAINER_ID.findall(cgroup)
    return found[-1] if found else ""


def parse_stat(content: bytes) -> tuple[float, float]:
    """Return (busy, busy and idle) in CPU seconds out of /proc/stat. Raises: ValueError.

    Busy is user + nice + system + irq + softirq: guest time is within user, stolen time is others'.
    """
    label, *fields = content.partition(b"\n")[0].split()
    if label != b"cpu" or len(fields) < 7:
        raise ValueError("the first line of /proc/stat is no sum over the CPUs")
    user, nice, system, idle, iowait, irq, softirq, *rest = map(int, fields)
    busy = user + nice + system + irq + softirq
    steal = rest[0] if rest else 0
    return busy / _HERTZ, (busy + idle + iowait + steal) / _HERTZ
