"""Single-value attribute files of sysfs and procfs, through the host's reader.

Source: https://docs.kernel.org/filesystems/sysfs.html (one value a file).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.core.host import Host


def text(host: Host, path: Path) -> str:
    """Return an attribute's text without its line end. Raises: OSError."""
    return host.read(path).decode("utf-8", "replace").strip()


def natural(host: Host, path: Path) -> int:
    """Return an attribute's number that counts something. Raises: OSError; ValueError where it is none."""
    number = integer(host, path)
    if number < 0:
        raise ValueError(f"{path} holds {number}, which counts nothing")
    return number


def integer(host: Host, path: Path) -> int:
    """Return an attribute's whole number. Raises: OSError; ValueError where it is none."""
    content = host.read(path).strip()
    if not content.lstrip(b"-").isdigit():
        raise ValueError(f"{path} holds {content[:40]!r}, no whole number")
    return int(content)


def asleep(host: Host, device: Path) -> bool:
    """Return whether runtime power management has put a device to sleep: most questions would wake it.

    Source: https://docs.kernel.org/power/runtime_pm.html (`power/runtime_status`).
    """
    try:
        return text(host, device / "power/runtime_status") in ("suspended", "suspending")
    except OSError:
        return False
