"""Which machine this is, in the properties that two results must share to be compared.

Source: proc(5), https://docs.kernel.org/admin-guide/pm/cpufreq.html
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from powerbench_agent.agent import __version__


def host(sysfs: Path = Path("/sys"), procfs: Path = Path("/proc")) -> dict[str, Any]:
    """Return the host's fingerprint; None means unknown."""
    cpufreq = sysfs / "devices/system/cpu"
    return {
        "hostname": platform.node(),
        "cpu_model": _cpu_model(procfs),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "governor": _text(cpufreq / "cpu0/cpufreq/scaling_governor"),
        "turbo": _turbo(cpufreq),
        "virtual": "hypervisor" in (_text(procfs / "cpuinfo") or ""),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "powerbench": __version__,
        "python": platform.python_version(),
    }


def _turbo(cpu: Path) -> bool | None:
    """Return whether turbo is on: intel_pstate has no_turbo, acpi-cpufreq and amd_pstate have boost."""
    if (no_turbo := _text(cpu / "intel_pstate/no_turbo")) is not None:
        return no_turbo == "0"
    if (boost := _text(cpu / "cpufreq/boost")) is not None:
        return boost == "1"
    return None


def _cpu_model(procfs: Path) -> str | None:
    for line in (_text(procfs / "cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
