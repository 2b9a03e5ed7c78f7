"""NVIDIA GPUs as they outlast NVML's sessions: where they sit on the PCI bus, what they have counted."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

from powerbench_agent.core import sysfs
from powerbench_agent.core.counters import Counter, Integral
from powerbench_agent.core.model import ANYONE, UNTOLD, Use
from powerbench_agent.core.processes import container_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from powerbench_agent.collectors.nvml.gpu import ProcessUse
    from powerbench_agent.core.host import Host
    from powerbench_agent.core.model import Sample

FORGET_SECONDS = 60.0  # a process that has not used the GPU for so long
ENGINES = ("sm", "encoder", "decoder")
_VENDOR, _DISPLAY = "0x10de", "0x03"
_PASSED_ON = ("vfio-pci", "pci-stub")


class Process:
    """What one process has used of one GPU, in seconds of each engine."""

    def __init__(self, container: str) -> None:
        self.container = container  # its id
        self.seconds = dict.fromkeys(ENGINES, 0.0)
        self.seen = 0.0


class Board:
    """One GPU over the agent's whole life, across sessions."""

    def __init__(self, max_gap: float) -> None:
        self.counter = Counter(None)  # 64 bits: it does not wrap
        self.integral = Integral(max_gap)
        self.labels: tuple[str, str] = ("", "")
        self.pci_bus_id = ""
        self.name = ""
        self.xids: Tally[str] = Tally()
        self.processes: dict[int, Process] = {}
        self.used_until_us = 0
        self.used_at: float | None = None
        self.busy_seconds: float | None = None  # of its busiest engine, whoever used it; None: nobody knows
        self.watts: float | None = None  # of the last beat
        self.seen_at: float | None = None
        self.gauges: list[Sample] = []  # the last beat's
        self.slow: list[Sample] = []  # of the last slow beat

    def note_busy(self, percent: float | None, now: float) -> None:
        """Add the time since the last beat that the busiest engine was in use, whoever used it."""
        if percent is None:
            self.busy_seconds = self.seen_at = None
            return
        span = 0.0 if self.seen_at is None else now - self.seen_at
        self.busy_seconds = (self.busy_seconds or 0.0) + min(100.0, percent) / 100 * span
        self.seen_at = now

    def note_processes(self, used: list[ProcessUse] | None, now: float, host: Host) -> None:
        """Add what each process has used since the last beat: a percentage of the time between them."""
        span = 0.0 if self.used_at is None else now - self.used_at
        self.used_at = None if used is None else now
        for process in used or ():
            self.used_until_us = max(self.used_until_us, process.taken_us)
            of = self.processes.get(process.pid)
            if of is None:
                of = self.processes[process.pid] = Process(container_of(host, process.pid))
            of.seen = now
            percent = (process.sm_percent, process.encoder_percent, process.decoder_percent)
            for engine, value in zip(ENGINES, percent, strict=True):
                of.seconds[engine] += min(value, 100) / 100 * span
        for pid in [pid for pid, of in self.processes.items() if now - of.seen > FORGET_SECONDS]:
            del self.processes[pid]

    def uses(self, key: str) -> Iterator[Use]:
        """Yield what each process, and all of them together, have had of its engines."""
        for pid, process in self.processes.items():
            for engine, seconds in process.seconds.items():
                yield Use("gpu", "nvml", key, engine, pid, seconds, process.container)
        if self.busy_seconds is not None:
            engine = UNTOLD if self.used_at is None else "busiest"
            yield Use("gpu", "nvml", key, engine, ANYONE, self.busy_seconds)


def find_gpus(host: Host) -> list[Path]:
    """Return the NVIDIA GPUs on the PCI bus, without those that are passed on to a guest.

    Source: https://docs.kernel.org/PCI/sysfs-pci.html
    """
    found = []
    try:
        devices = sorted((host.sysfs / "bus/pci/devices").iterdir())
    except OSError:
        return []
    for device in devices:
        try:
            if sysfs.text(host, device / "vendor") != _VENDOR:
                continue
            if not sysfs.text(host, device / "class").startswith(_DISPLAY):
                continue
        except OSError:
            continue
        driver = device / "driver"
        if not (driver.is_symlink() and driver.readlink().name in _PASSED_ON):
            found.append(device)
    return found


def is_present(host: Host, devices: list[Path]) -> bool:
    """Return whether there is a GPU, or the driver of one that sysfs does not show."""
    return bool(devices) or (host.procfs / "driver/nvidia/version").exists()
