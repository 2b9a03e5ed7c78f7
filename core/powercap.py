"""The power limits of powercap zones. Microwatts in, watts out. Privileges: none.

Source: https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powerbench_agent.core import sysfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from powerbench_agent.core.host import Host

_MAX_CONSTRAINTS = 10


def read_power_limits(host: Host) -> dict[str, dict[str, float]] | None:
    """Return the limits in watts of all zones that have some: by zone, then by constraint.

    A zone is called as `intel-rapl:0 (package-0)`. None without powercap, and if nothing of it can be read.
    """
    found: dict[str, dict[str, float]] = {}
    is_read = False
    for directory in sorted((host.sysfs / "class/powercap").glob("*:*")):
        try:
            name = sysfs.text(host, directory / "name")
        except OSError:
            continue
        is_read = True
        limits, _ = read_limits(host, directory)
        if limits:
            found[f"{directory.name} ({name})"] = limits
    return found if is_read else None


def read_limits(host: Host, directory: Path) -> tuple[dict[str, float], float]:
    """Return a zone's power limits in watts, by constraint, and the highest that can be set."""
    limits: dict[str, float] = {}
    highest = 0.0
    for number in range(_MAX_CONSTRAINTS):
        constraint = directory / f"constraint_{number}"
        try:
            name = sysfs.text(host, constraint.with_name(f"{constraint.name}_name"))
        except FileNotFoundError:
            break
        except OSError:
            continue
        for limit_uw in _microwatts(host, constraint.with_name(f"{constraint.name}_power_limit_uw")):
            limits[name] = limit_uw / 1e6
        for limit_uw in _microwatts(host, constraint.with_name(f"{constraint.name}_max_power_uw")):
            highest = max(highest, limit_uw / 1e6)
    return limits, highest


def _microwatts(host: Host, file: Path) -> Iterator[int]:
    """Yield a limit if it is there and set."""
    try:
        limit_uw = sysfs.integer(host, file)
    except (OSError, ValueError):
        return
    if 0 < limit_uw < 2**63:
        yield limit_uw
