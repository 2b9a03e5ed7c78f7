"""Why RAPL cannot be had here, and what to do about it: each cause has a remedy of its own.

Reads /proc/cpuinfo and /proc/self/uid_map. Source: proc(5), user_namespaces(7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.core.host import Host

_MASKED = (
    "its links lead nowhere, because a container engine masks /sys/devices/virtual/powercap: "
    "mount the host's /sys (docker run --volume /sys:/host/sys:ro) and start the agent with --sysfs /host/sys"
)
_ARM = (
    "ARM processors do not have it: use a meter of the machine or sensors of the board; "
    "until then energy is estimated"
)
_OTHER_PROCESSOR = (
    "this processor does not have it: use a meter of the machine; until then energy is estimated"
)
_VIRTUAL = "a virtual machine whose hypervisor does not pass it on: run the agent on the host as well"
_NOT_LOADED = (
    "load the module intel_rapl_msr, on AMD too (on new Intel servers intel_rapl_tpmi), "
    "or enable RAPL in the firmware"
)
_UNKNOWN = "a virtual machine, or the module intel_rapl_msr is not loaded"

_PERMISSION = (
    "give the agent's user access to energy_uj: root, the powercap group or CAP_DAC_READ_SEARCH; "
    "see docs/guide.md, access to RAPL"
)
_USER_NAMESPACE = (
    "the agent runs in a user namespace (a rootless or remapped container), where root is an ordinary user: "
    "run it outside of one (docker run --userns=host, podman as root), or on the host let all users read "
    "energy_uj instead of only root and the powercap group; see docs/guide.md, access to RAPL"
)


def why_no_zones(host: Host, root: Path, *, dangling: bool) -> str:
    """Return why `root` shows no zone. `dangling`: it has zones that lead nowhere."""
    why = _MASKED if dangling else _why_no_rapl(_read(host, "cpuinfo"))
    return f"no RAPL: {root} has no intel-rapl zone ({why})"


def permission_remedy(host: Host) -> str:
    """Return what to do when the kernel refuses a counter."""
    ranges = [line.split() for line in _read(host, "self/uid_map").splitlines()]
    # In a sandbox of systemd (PrivateUsers=) every user is itself: ordinary permissions count there.
    if any(len(fields) == 3 and fields[0] != fields[1] for fields in ranges):
        return _USER_NAMESPACE
    return _PERMISSION


def _why_no_rapl(cpuinfo: str) -> str:
    if "CPU implementer" in cpuinfo or "CPU architecture" in cpuinfo:
        return _ARM
    if "flags\t" not in cpuinfo and "flags " not in cpuinfo:
        return _OTHER_PROCESSOR if cpuinfo else _UNKNOWN
    _, _, flags = cpuinfo.partition("flags")
    words = flags.partition("\n")[0].split()
    return _VIRTUAL if "hypervisor" in words else _NOT_LOADED


def _read(host: Host, name: str) -> str:
    """Return a file of procfs; "" if it cannot be read."""
    try:
        return host.read(host.procfs / name).decode("utf-8", "replace")
    except OSError:
        return ""
