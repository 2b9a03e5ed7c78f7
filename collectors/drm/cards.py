"""AMD and Intel GPUs in `/sys/class/drm`: which there are, where their sensors lie, what kind they are.

Source: https://docs.kernel.org/gpu/amdgpu/thermal.html
"""

from __future__ import annotations

import errno
import re
from collections import Counter as Tally
from typing import TYPE_CHECKING

from powerbench_agent.core import sysfs
from powerbench_agent.core.counters import Counter, Integral, Rate
from powerbench_agent.core.model import ReadFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from powerbench_agent.core.host import Host
    from powerbench_agent.core.model import Metric, Sample

_VENDORS = {"0x1002": "amd", "0x8086": "intel"}
_MI300A = "0x74a0"  # an APU that shows the attributes of a discrete GPU
_CARD = re.compile(r"card\d+")
_TILE = re.compile(r"i915_gt\d+")
GONE = (errno.ENOENT, errno.ENOTDIR)  # drivers answer ENODEV for a sensor that is off
_LEFT = (*GONE, errno.ENODEV, errno.EACCES, errno.EPERM)


_INTEL_RANGE_UJ = 2**32 * 1_000_000 // 2**14  # 32 bits of 2^-14 J


class Card:
    """One GPU; what it has counted outlives the number that its card has at the moment."""

    def __init__(self, bus_id: str, vendor: str, max_gap: float) -> None:
        self.bus_id = bus_id
        self.vendor = vendor
        self.counter = Counter(_INTEL_RANGE_UJ)
        self.integral = Integral(max_gap)
        self.rate = Rate()
        self.watts: float | None = None
        self.gauges: list[Sample] = []
        self.busy_seconds: float | None = None  # of its busier engine, whoever used it; None: nobody knows
        self.busy_at: float | None = None
        self.errors: Tally[tuple[str, str]] = Tally()  # by sensor and reason
        self.said: dict[str, str] = {}  # what was logged, by sensor
        # Where it is now:
        self.name = ""  # "card0"
        self.device: Path
        self.driver = ""
        self.integrated = False
        self.identified = False  # whether it is integrated: nobody asks it asleep
        self.energy_file: Path | None = None
        self.power_file: Path | None = None
        self.temperature_file: Path | None = None
        self.others: list[tuple[Metric, str, Path]] = []  # what is read as it is: metric, sensor, file

    @property
    def labels(self) -> tuple[str, str, str]:
        """Its labels: gpu, vendor, pci_bus_id."""
        return self.name, self.vendor, self.bus_id

    @property
    def counts(self) -> bool:
        """Whether its joules are a part of the node's."""
        return (
            self.identified
            and not self.integrated
            and (self.energy_file is not None or self.power_file is not None)
        )


def find_gpus(host: Host) -> Iterator[tuple[Path, str]]:
    """Yield (`/sys/class/drm/cardN/device`, "amd" or "intel"), no matter whether it has sensors."""
    root = host.sysfs / "class/drm"
    try:
        names = sorted(entry.name for entry in root.iterdir() if _CARD.fullmatch(entry.name))
    except OSError:
        return
    for name in names:
        device = root / name / "device"
        try:
            vendor = _VENDORS.get(sysfs.text(host, device / "vendor"))
        except OSError as error:
            if error.errno not in _LEFT:
                raise ReadFailed(f"{device}: {error.strerror}", "see the kernel log") from None
            continue
        if vendor is not None:
            yield device, vendor


def find_hwmon(host: Host, device: Path) -> Path | None:
    """Return the card's own hwmon directory, none of a tile."""
    try:
        directories = sorted((device / "hwmon").iterdir())
    except OSError:
        return None
    for directory in directories:
        try:
            if not _TILE.fullmatch(sysfs.text(host, directory / "name")):
                return directory
        except OSError as error:
            if error.errno not in _LEFT:
                raise ReadFailed(f"{directory}: {error.strerror}", "see the kernel log") from None
    return None


def is_apu(host: Host, device: Path, hwmon: Path | None) -> bool | None:
    """Return whether an AMD GPU shares its package with the CPU; None where it does not say now.

    Source: Linux drivers/gpu/drm/amd/pm/amdgpu_pm.c (vddnb is an APU's) and
    include/kgd_pp_interface.h (gpu_metrics of format 2 and 3 are APUs').
    """
    try:
        if hwmon and sysfs.text(host, hwmon / "in1_label") == "vddnb":
            return True
    except OSError:
        pass
    try:
        if sysfs.text(host, device / "device") == _MI300A:
            return True
    except OSError:
        pass
    if sysfs.asleep(host, device):
        return None  # gpu_metrics would wake it
    try:
        header = host.read(device / "gpu_metrics")
    except OSError as error:
        return False if error.errno in GONE else None
    return len(header) >= 4 and header[2] in (2, 3)


def first_file(directory: Path, *names: str) -> Path | None:
    """Return the first of these files that there is."""
    return next((directory / name for name in names if (directory / name).exists()), None)
