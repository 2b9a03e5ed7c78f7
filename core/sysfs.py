"""Attribute files of sysfs and procfs that hold a single value, read through `host.read`.

Source: https://docs.kernel.org/filesystems/sysfs.html (one value a file).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.core.host import Host


_MOST_DIGITS = len(str(2**64))


def text(host: Host, path: Path) -> str:
    """Return an attribute's text, without its line end. Raises: OSError."""
    return host.read(path).decode("utf-8", "replace").strip()


def natural(host: Host, path: Path) -> int:
    """Return an attribute's number, 0 or more. Raises: OSError; ValueError if it is not such a number."""
    number = integer(host, path)
    if number < 0:
        raise ValueError(f"{path} holds {number}, which is negative")
    return number


def integer(host: Host, path: Path) -> int:
    """Return an attribute's whole number. Raises: OSError; ValueError if it is not a whole number."""
    content = host.read(path).strip()
    if not content.lstrip(b"-").isdigit():
        raise ValueError(f"{path} holds {content[:40]!r}, which is not a whole number")
    return int(content)


def is_count(word: bytes | str) -> bool:
    """Return whether this is a count as the kernel writes it, in 64 bits, so that a float can hold it."""
    return word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS


def asleep(host: Host, device: Path) -> bool:
    """Return whether runtime power management has suspended a device, which most reads would wake.

    Source: https://docs.kernel.org/power/runtime_pm.html (`power/runtime_status`).
    """
    try:
        return text(host, device / "power/runtime_status") in ("suspended", "suspending")
    except OSError:
        return False
