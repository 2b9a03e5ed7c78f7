"""NVIDIA GPUs on the PCI bus, and signs of GPUs that are not on it.

Source: https://docs.kernel.org/PCI/sysfs-pci.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core import sysfs

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.core.host import Host

_VENDOR, _DISPLAY = "0x10de", "0x03"
_STUBS = ("pci-stub", "pciback", "xen-pciback")  # beside those with vfio in their name


class Bus(NamedTuple):
    """The NVIDIA GPUs on the PCI bus."""

    drivers: dict[str, str]  # of every GPU, by its address; "" without a driver
    gpus: list[Path]  # without those that are passed through to a guest


def read_bus(host: Host) -> Bus:
    """Return the GPUs that are on the bus now."""
    bus = Bus({}, [])
    try:
        devices = sorted((host.sysfs / "bus/pci/devices").iterdir())
    except OSError:
        return bus
    for device in devices:
        if not _is_gpu(host, device):
            continue
        driver = _driver_of(device)
        bus.drivers[device.name] = driver
        if not _is_for_guests(driver):
            bus.gpus.append(device)
    return bus


def has_gpu(host: Host, bus: Bus) -> bool:
    """Return whether there is a GPU for us, or at least its driver: some containers show no device."""
    if bus.drivers:
        return bool(bus.gpus)
    return (host.procfs / "driver/nvidia/version").exists()


def may_have_gpu(host: Host) -> bool:
    """Return whether this machine keeps its GPUs off the PCI bus: WSL2, or a Jetson."""
    if (host.sysfs / "class/misc/dxg").exists():
        return True
    release = _text(host, host.procfs / "sys/kernel/osrelease") or _text(host, host.procfs / "version")
    if "microsoft" in release.lower():
        return True
    return "nvidia,tegra" in _text(host, host.procfs / "device-tree/compatible")


def _is_gpu(host: Host, device: Path) -> bool:
    if _text(host, device / "vendor") != _VENDOR:
        return False
    return _text(host, device / "class").startswith(_DISPLAY)


def _driver_of(device: Path) -> str:
    try:
        return (device / "driver").readlink().name
    except OSError:
        return ""


def _is_for_guests(driver: str) -> bool:
    return "vfio" in driver or driver in _STUBS


def _text(host: Host, path: Path) -> str:
    try:
        return sysfs.text(host, path)
    except OSError:
        return ""
