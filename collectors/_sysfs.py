"""Single-value attribute files of sysfs and procfs, through the host's reader.

Source: https://docs.kernel.org/filesystems/sysfs.html (one value a file).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench.agent.model import Host


def text(host: Host, path: Path) -> str:
    """Return an attribute's text without its line end. Raises: OSError."""
    return host.read(path).decode("utf-8", "replace").strip()


def integer(host: Host, path: Path) -> int:
    """Return an attribute's whole number. Raises: OSError; ValueError where it is none."""
    content = host.read(path).strip()
    if not content.lstrip(b"-").isdigit():
        raise ValueError(f"{path} holds {content[:40]!r}, no whole number")
    return int(content)
