"""AMD and Intel GPUs in `/sys/class/drm`: finding them, their sensors' files, and their kind.

Source: https://docs.kernel.org/gpu/amdgpu/thermal.html
"""

from __future__ import annotations

import errno
import re
from collections import Counter as Tally
from typing import TYPE_CHECKING

from powerbench_agent.collectors.drm.metrics import BUSY, ENCODER_BUSY, MEMORY_TOTAL, MEMORY_USED
from powerbench_agent.core import sysfs
from powerbench_agent.core.counters import PLAUSIBLE_WATTS, Counter, Integral, Rate
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
_SKIPPED = (*GONE, errno.ENODEV, errno.EACCES, errno.EPERM)
_INTEL_RANGE_UJ = 2**32 * 1_000_000 // 2**14  # 32 bits of 2^-14 J
_HEADROOM = 2.0  # how far beyond its highest limit a card may be for a moment
_LIMIT_FILES = ("power1_cap_max", "power1_rated_max", "power1_max", "power1_crit")  # of amdgpu, i915, xe
_AMD_FILES = (
    (BUSY, "busy", "gpu_busy_percent"),
    (ENCODER_BUSY, "encoder_busy", "vcn_busy_percent"),
    (MEMORY_USED, "memory_used", "mem_info_vram_used"),
    (MEMORY_TOTAL, "memory_total", "mem_info_vram_total"),
)


class Card:
    """One GPU, known by its PCI address: the number in its card's name may change."""

    def __init__(self, bus_id: str, vendor: str, max_gap: float) -> None:
        self.bus_id = bus_id
        self.vendor = vendor
        self.counter = Counter(_INTEL_RANGE_UJ)
        self.integral = Integral(max_gap)
        self.rate = Rate()
        self.watts: float | None = None
        self.has_leapt = False  # its counter, between the last two beats
        self._resets = 0  # of its counter, at the last beat
        self.gauges: list[Sample] = []
        self.busy_seconds: float | None = None  # of its busier engine, for all processes; None: unknown
        self.busy_at: float | None = None
        self.errors: Tally[tuple[str, str]] = Tally()  # by sensor and reason
        self.logged: dict[str, str] = {}  # the reason that was logged, by sensor
        # Its present place:
        self.name = ""  # "card0"
        self.device: Path
        self.driver = ""
        self.integrated = False
        self.identified = False  # whether `integrated` is known, which takes a card that is awake
        self.most_watts: float | None = None  # that can be true; None: not read, likewise
        self.energy_file: Path | None = None
        self.power_file: Path | None = None
        self.temperature_file: Path | None = None
        self.limit_file: Path | None = None
        self.others: list[tuple[Metric, str, Path]] = []  # metric, sensor, file; no conversion

    @property
    def labels(self) -> tuple[str, str, str]:
        """Its labels: gpu, vendor, pci_bus_id."""
        return self.name, self.vendor, self.bus_id

    @property
    def has_energy(self) -> bool:
        """Whether it has an energy counter, or power to integrate."""
        return self.energy_file is not None or self.power_file is not None

    @property
    def has_sensors(self) -> bool:
        """Whether there is anything to read of it."""
        return self.has_energy or bool(self.others)

    @property
    def counts(self) -> bool:
        """Whether its joules are part of the node's sum."""
        return self.identified and not self.integrated and self.has_energy

    def advance(self, energy_uj: int, now: float, slept: float, *, beat: bool) -> float:
        """Take the energy counter; return joules since the start. A beat also sets the power.

        `slept`: see Counter.advance.
        """
        joules = self.counter.advance(energy_uj, now, slept)
        if beat:
            self.rate.follow(self.counter, now)
            self.watts = self.rate.watts
            self.has_leapt = self.counter.resets != self._resets
            self._resets = self.counter.resets
        return joules

    def forget(self) -> None:
        """Do not count what it uses until its next reading."""
        self.counter.forget()
        self.has_leapt = False
        self.integral.forget()
        self.forget_power()

    def forget_power(self) -> None:
        """Have no power until two readings in a row have given a mean."""
        self.rate.restart()
        self.watts = None


def find_gpus(host: Host) -> Iterator[tuple[Path, str]]:
    """Yield (`/sys/class/drm/cardN/device`, "amd" or "intel") of every card, with or without sensors."""
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
            if error.errno not in _SKIPPED:
                raise ReadFailed(f"{device}: {error.strerror}", "see the kernel log") from None
            continue
        if vendor is not None:
            yield device, vendor


def find_hwmon(host: Host, device: Path) -> Path | None:
    """Return the hwmon directory of the card as a whole; each tile has one as well."""
    try:
        directories = sorted((device / "hwmon").iterdir())
    except OSError:
        return None
    for directory in directories:
        try:
            if not _TILE.fullmatch(sysfs.text(host, directory / "name")):
                return directory
        except OSError as error:
            if error.errno not in _SKIPPED:
                raise ReadFailed(f"{directory}: {error.strerror}", "see the kernel log") from None
    return None


def is_apu(host: Host, device: Path, hwmon: Path | None) -> bool | None:
    """Return whether an AMD GPU shares its package with the CPU; None if that cannot be told now.

    Source: Linux drivers/gpu/drm/amd/pm/amdgpu_pm.c (only APUs have vddnb) and
    include/kgd_pp_interface.h (only APUs have gpu_metrics of format 2 or 3).
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


def find_sensors(host: Host, card: Card) -> None:
    """Set the files of the card's sensors, and whether it is integrated."""
    device = card.device
    driver = device / "driver"
    card.driver = driver.resolve().name if driver.exists() else ""
    hwmon = find_hwmon(host, device)
    card.energy_file = card.power_file = card.temperature_file = card.limit_file = None
    if hwmon is not None:
        if card.vendor == "intel":
            card.energy_file = first_file(hwmon, "energy1_input", "energy2_input")  # card, package
            card.limit_file = first_file(hwmon, "power1_max")
        else:
            card.power_file = first_file(hwmon, "power1_average", "power1_input")
            card.limit_file = first_file(hwmon, "power1_cap")
        card.temperature_file = first_file(hwmon, "temp1_input", "temp2_input")
    if not card.identified:
        _identify(host, card, hwmon)
    if card.most_watts is None and hwmon is not None and not sysfs.asleep(host, device):
        card.most_watts = card.counter.most_watts = find_most_watts(host, hwmon)
    card.others = []
    if card.vendor == "amd":
        for metric, sensor, name in _AMD_FILES:
            if (device / name).exists():
                card.others.append((metric, sensor, device / name))


def find_most_watts(host: Host, hwmon: Path) -> float:
    """Return what a card cannot exceed even for a moment; some drivers wake it to answer."""
    highest = 0
    for name in _LIMIT_FILES:
        try:
            highest = max(highest, sysfs.natural(host, hwmon / name))
        except (OSError, ValueError):
            continue
    if not 0 < highest / 1e6 <= PLAUSIBLE_WATTS:
        return PLAUSIBLE_WATTS
    return _HEADROOM * highest / 1e6


def _identify(host: Host, card: Card, hwmon: Path | None) -> None:
    integrated = is_apu(host, card.device, hwmon) if card.vendor == "amd" else False
    card.identified = integrated is not None
    card.integrated = bool(integrated)


def first_file(directory: Path, *names: str) -> Path | None:
    """Return the first of these files that exists."""
    for name in names:
        path = directory / name
        if path.exists():
            return path
    return None
