"""Whether a process id that NVML gives is the process with that number here.

NVML's ids are those of the machine's first pid namespace. In a container the same number is another
process's, unless the container shares the machine's namespace or was given the machine's procfs.

Source: pid_namespaces(7), proc_pid_fd(5); PROC_PID_INIT_INO in Linux include/linux/proc_ns.h
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from powerbench_agent.core import sysfs

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.core.host import Host

_DEVICES = ("/dev/nvidia", "/dev/nvhost", "/dev/nvmap", "/dev/dxg")  # servers, Jetson, WSL2
_FIRST_NAMESPACE = "pid:[4026531836]"
_KERNEL_THREADS = "kthreadd"  # process 2 of the first namespace, and of no other


def may_use_gpu(host: Host, pid: int) -> bool:
    """Return whether the process with this number can be one that uses an NVIDIA GPU.

    The files that it has open tell, if we may see them; else the namespace does.
    """
    process = host.procfs / str(pid)
    try:
        descriptors = os.listdir(process / "fd")  # noqa: PTH208 - 5x faster
    except PermissionError:
        return not _is_foreign(host)
    except OSError:
        if process.exists():
            return False
        return not _is_foreign(host)  # it has ended
    return any(_link(process / "fd" / name).startswith(_DEVICES) for name in descriptors)


def _is_foreign(host: Host) -> bool:
    """Return whether `host.procfs` shows another pid namespace than the machine's first."""
    namespace = _link(host.procfs / "self/ns/pid")
    if namespace in ("", _FIRST_NAMESPACE):
        return False
    try:
        return sysfs.text(host, host.procfs / "2/comm") != _KERNEL_THREADS
    except OSError:
        return True


def _link(path: Path) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - a Path costs more than the call
    except OSError:
        return ""
