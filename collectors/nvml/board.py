"""NVIDIA GPUs on the PCI bus, and what the agent keeps of each from one NVML session to the next."""

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

    from powerbench_agent.collectors.nvml.gpu import Gpu, ProcessUse
    from powerbench_agent.core.host import Host
    from powerbench_agent.core.model import Sample

FORGET_SECONDS = 60.0  # a process that has not used the GPU for this long is forgotten
ENGINES = ("sm", "encoder", "decoder")
_VENDOR, _DISPLAY = "0x10de", "0x03"
_GUEST_DRIVERS = ("vfio-pci", "pci-stub")


class ProcessTime:
    """What one process has used of one GPU, in seconds of each engine."""

    def __init__(self, container: str) -> None:
        """`container`: the id of the container that the process runs in, or empty."""
        self.container = container
        self.seconds = dict.fromkeys(ENGINES, 0.0)
        self.seen = 0.0

    def add(self, use: ProcessUse, span: float) -> None:
        """Add the process's mean utilisation over the last `span` seconds."""
        for engine, percent in (
            ("sm", use.sm_percent),
            ("encoder", use.encoder_percent),
            ("decoder", use.decoder_percent),
        ):
            self.seconds[engine] += min(percent, 100) / 100 * span


class Board:
    """One GPU over the agent's whole life."""

    def __init__(self, max_gap: float) -> None:
        """`max_gap`: seconds between two power readings that are still integrated."""
        self.counter = Counter(None)  # 64 bits: it does not wrap
        self.integral = Integral(max_gap)
        self.labels: tuple[str, str] = ("", "")
        self.pci_bus_id = ""
        self.name = ""
        self.xids: Tally[str] = Tally()
        self.processes: dict[int, ProcessTime] = {}
        self.used_until_us = 0
        self.used_at: float | None = None
        self.busy_seconds: float | None = None  # of the busiest engine, for all processes; None: unknown
        self.busy_at: float | None = None
        self.watts: float | None = None  # at the last beat
        self.gauges: list[Sample] = []  # of the last beat
        self.slow: list[Sample] = []  # of the last slow beat

    @property
    def joules(self) -> float:
        """Energy since the agent started, counted and integrated."""
        return self.counter.joules + self.integral.joules

    def identify(self, gpu: Gpu) -> None:
        """Take the labels that the GPU has in this session."""
        self.labels = (str(gpu.index), gpu.uuid)
        self.pci_bus_id = gpu.pci_bus_id
        self.name = gpu.name

    def interrupt(self) -> None:
        """Do not count the time until the next beat as use: the session has ended, or the GPU is asleep."""
        self.used_at = self.busy_at = None

    def clear(self) -> None:
        """Drop the samples of the last beats."""
        self.gauges, self.slow = [], []

    def note_busy(self, percent: float | None, now: float) -> None:
        """Add the time since the last beat during which the busiest engine was in use by any process."""
        if percent is None:
            self.busy_seconds = self.busy_at = None
            return
        span = 0.0 if self.busy_at is None else now - self.busy_at
        self.busy_seconds = (self.busy_seconds or 0.0) + min(100.0, percent) / 100 * span
        self.busy_at = now

    def note_processes(self, uses: list[ProcessUse] | None, now: float, host: Host) -> None:
        """Add what each process has used since the last beat; `uses` is None if that is unknown."""
        span = 0.0 if self.used_at is None else now - self.used_at
        self.used_at = None if uses is None else now
        for use in uses or ():
            self.used_until_us = max(self.used_until_us, use.taken_us)
            process = self.processes.get(use.pid)
            if process is None:
                process = self.processes[use.pid] = ProcessTime(container_of(host, use.pid))
            process.seen = now
            process.add(use, span)
        self._forget_processes(now)

    def _forget_processes(self, now: float) -> None:
        forgotten = [pid for pid, process in self.processes.items() if now - process.seen > FORGET_SECONDS]
        for pid in forgotten:
            del self.processes[pid]

    def uses(self, key: str) -> Iterator[Use]:
        """Yield the engine time of each process, and of all processes together."""
        for pid, process in self.processes.items():
            for engine, seconds in process.seconds.items():
                yield Use("gpu", "nvml", key, engine, pid, seconds, process.container)
        if self.busy_seconds is not None:
            engine = UNTOLD if self.used_at is None else "busiest"
            yield Use("gpu", "nvml", key, engine, ANYONE, self.busy_seconds)


def find_gpus(host: Host) -> list[Path]:
    """Return the NVIDIA GPUs on the PCI bus, except those that are passed through to a guest.

    Source: https://docs.kernel.org/PCI/sysfs-pci.html
    """
    try:
        devices = sorted((host.sysfs / "bus/pci/devices").iterdir())
    except OSError:
        return []
    return [device for device in devices if _is_gpu(host, device) and not _is_passed_through(device)]


def _is_gpu(host: Host, device: Path) -> bool:
    try:
        if sysfs.text(host, device / "vendor") != _VENDOR:
            return False
        return sysfs.text(host, device / "class").startswith(_DISPLAY)
    except OSError:
        return False


def _is_passed_through(device: Path) -> bool:
    driver = device / "driver"
    return driver.is_symlink() and driver.readlink().name in _GUEST_DRIVERS


def is_present(host: Host, devices: list[Path]) -> bool:
    """Return whether there is a GPU, or at least its driver: WSL and some containers show no device."""
    return bool(devices) or (host.procfs / "driver/nvidia/version").exists()
