"""Clocks and machines that the benchmarks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ZONES = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "core",
    "intel-rapl:0:1": "dram",
    "intel-rapl:1": "package-1",
    "intel-rapl:1:0": "core",
    "intel-rapl:1:1": "dram",
}
RANGE_UJ = 65_532_610_987


class ManualClock:
    """A clock that the benchmark moves by a second per beat."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the present second."""
        return self.now

    def time(self) -> float:
        """Return the same: nothing here needs the date."""
        return self.now


def make_rapl(sysfs: Path) -> None:
    """Create six RAPL zones."""
    for path, name in ZONES.items():
        zone = sysfs / "class/powercap" / path
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        (zone / "energy_uj").write_text("0\n")
