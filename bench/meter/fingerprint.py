"""Which machine this is: what two results must share to be compared, and what a reviewer asks for.

Reads /proc/cpuinfo, /proc/device-tree, sysfs (cpufreq, microcode, smt, topology, powercap) and os-release(5).
Watts and bytes out. Privileges: none.

Source: proc(5), os-release(5), https://docs.kernel.org/admin-guide/pm/cpufreq.html,
https://docs.kernel.org/admin-guide/abi-testing.html (smt, thread_siblings_list),
https://docs.kernel.org/arch/x86/microcode.html, https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import os
import platform
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerbench_agent.agent import __version__
from powerbench_agent.core.bounded_file import UnfitFile, read_bounded_file
from powerbench_agent.core.host import Host
from powerbench_agent.core.powercap import read_power_limits

if TYPE_CHECKING:
    from collections.abc import Iterator

_CPUS = "devices/system/cpu"
_MOST_BYTES = 65_536  # of an os-release
_MOST_CPUS = 8192
_ARM_CORE = re.compile(r"^CPU (implementer|part)\s*:\s*(0x[0-9a-fA-F]+)\s*$", re.MULTILINE)


def host(sysfs: Path = Path("/sys"), procfs: Path = Path("/proc"), root: Path = Path("/")) -> dict[str, Any]:
    """Return the host's fingerprint; None means unknown. `root`: below which its os-release is."""
    cpuinfo = _text(procfs / "cpuinfo") or ""
    return {
        "hostname": platform.node(),
        "cpu_model": _cpu_model(cpuinfo, procfs),
        "cpus": os.cpu_count(),
        "threads_per_core": _threads_per_core(sysfs),
        "smt": _smt(sysfs),
        "microcode": _field(cpuinfo, "microcode") or _text(sysfs / _CPUS / "cpu0/microcode/version"),
        "kernel": platform.release(),
        "os_release": _os_release(root),
        "machine": platform.machine(),
        "governor": governor(sysfs),
        "turbo": turbo(sysfs),
        "power_limits": read_power_limits(Host(sysfs, procfs)),
        "virtual": "hypervisor" in cpuinfo,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "powerbench": __version__,
        "python": platform.python_version(),
    }


def governor(sysfs: Path) -> str | None:
    """Return what chooses the CPU's frequency."""
    return _text(sysfs / _CPUS / "cpu0/cpufreq/scaling_governor")


def turbo(sysfs: Path) -> bool | None:
    """Return whether turbo is on: intel_pstate has no_turbo, acpi-cpufreq and amd_pstate have boost."""
    if (no_turbo := _text(sysfs / _CPUS / "intel_pstate/no_turbo")) is not None:
        return no_turbo == "0"
    if (boost := _text(sysfs / _CPUS / "cpufreq/boost")) is not None:
        return boost == "1"
    return None


def _smt(sysfs: Path) -> bool | None:
    """Return whether a core runs several threads now."""
    return {"1": True, "0": False}.get(_text(sysfs / _CPUS / "smt/active") or "")


def _threads_per_core(sysfs: Path) -> int | None:
    """Return how many CPUs a core is, the most where cores differ."""
    lists = (sysfs / _CPUS).glob("cpu[0-9]*/topology/thread_siblings_list")
    counts = [len(set(_numbers(_text(file) or ""))) for file in lists]
    return max(counts, default=0) or None


def _numbers(listed: str) -> Iterator[int]:
    """Yield the CPUs in a list like `0-1,64`; nothing of what is not one."""
    for part in listed.split(","):
        if match := re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip()):
            first, last = int(match[1]), int(match[2] or match[1])
            yield from range(first, min(last, first + _MOST_CPUS) + 1)


def _os_release(root: Path) -> str | None:
    """Return the operating system's name and version, as it calls itself."""
    for file in ("etc/os-release", "usr/lib/os-release"):
        try:
            text = read_bounded_file(root / file, _MOST_BYTES).decode("utf-8", "replace")
        except (OSError, UnfitFile):
            continue
        if match := re.search(r"^PRETTY_NAME=(.*)$", text, re.MULTILINE):
            return _unquoted(match[1].strip()) or None
    return None


def _unquoted(value: str) -> str:
    """Return a shell's value as it is meant."""
    try:
        return " ".join(shlex.split(value))
    except ValueError:
        return value


def _cpu_model(cpuinfo: str, procfs: Path) -> str | None:
    """Return the CPU's name; on ARM the machine's name, or else what its cores say of themselves.

    ARM's /proc/cpuinfo has no name: a device tree has the machine's, and servers without one have numbers.
    """
    if name := _field(cpuinfo, "model name"):
        return name
    if machine := (_text(procfs / "device-tree/model") or "").strip("\0 \n"):
        return machine
    cores: list[str] = []
    implementer = ""
    for what, number in _ARM_CORE.findall(cpuinfo):
        if what == "implementer":
            implementer = number
        elif implementer and (core := f"implementer {implementer} part {number}") not in cores:
            cores.append(core)
    return ", ".join(cores) or None


def _field(cpuinfo: str, wanted: str) -> str | None:
    """Return a field of the first CPU that has it."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted and value.strip():
            return value.strip()
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
