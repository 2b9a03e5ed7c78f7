"""GPUs made of files: sysfs as the amdgpu, i915 and xe drivers lay it out, and procfs with their clients.

Source: Linux drivers/gpu/drm/amd/pm/amdgpu_pm.c, i915/i915_hwmon.c and xe/xe_hwmon.c, and
https://docs.kernel.org/gpu/drm-usage-stats.html.
"""

from __future__ import annotations

import shutil
import struct
from typing import TYPE_CHECKING

from msgspec import structs
from trees import FakeClock, Faults

from powerbench_agent.collectors.drm import collector as drm
from powerbench_agent.core.host import Host
from powerbench_agent.core.options import Seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from powerbench_agent.core.model import Reading

DGPU = "0000:03:00.0"
SECOND = "0000:44:00.0"
THIRD = "0000:83:00.0"
APU = "0000:c4:00.0"
# What a card at rest may be asked without waking it.
HARMLESS = {"vendor", "device", "runtime_status", "name", "in1_label"}


class Recorder(Faults):
    """A reader that writes down what it was asked for, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Path] = []
        self.hooks: dict[str, Callable[[], None]] = {}  # by the end of the path: what happens there, once

    def __call__(self, path: Path) -> bytes:
        self.asked.append(path)
        for end in list(self.hooks):
            if str(path).endswith(end):
                self.hooks.pop(end)()
        return super().__call__(path)


class Gpus:
    """`/sys/class/drm`: links to the cards, which lie within their PCI devices, beside other nodes."""

    def __init__(self, sysfs: Path) -> None:
        self.sysfs = sysfs
        self._links = sysfs / "class/drm"
        self._bus = sysfs / "devices/pci0000:00"
        self._drivers = sysfs / "bus/pci/drivers"
        self._hwmons = 0
        self._links.mkdir(parents=True)
        (self._links / "version").write_text("drm 1.1.0 20060810\n")

    def add(
        self,
        card: int,
        bus_id: str,
        ids: tuple[str, str, str],
        hwmons: Mapping[str, Mapping[str, object]],
        files: Mapping[str, object],
    ) -> None:
        """Add a card. `ids`: vendor, device, driver; `hwmons`: name → attributes."""
        vendor, model, driver = ids
        device = self._bus / bus_id
        (device / "power").mkdir(parents=True)
        (self._drivers / driver).mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(self._drivers / driver)
        every = {"vendor": vendor, "device": model, "power/runtime_status": "active", **files}
        for name, content in every.items():
            if isinstance(content, bytes):
                (device / name).write_bytes(content)
            else:
                (device / name).write_text(f"{content}\n")
        for name, sensors in hwmons.items():
            self._hwmons += 1
            hwmon = device / f"hwmon/hwmon{self._hwmons}"
            hwmon.mkdir(parents=True)
            for sensor, content in {"name": name, **sensors}.items():
                (hwmon / sensor).write_text(f"{content}\n")
        self.number(bus_id, card)

    def number(self, bus_id: str, card: int) -> None:
        """Give a card its number, and its connector and render node theirs."""
        device = self._bus / bus_id
        connector = f"card{card}-HDMI-A-1"
        for link in list(self._links.iterdir()):
            if link.is_symlink() and link.readlink().is_relative_to(device):
                link.unlink()
        shutil.rmtree(device / "drm", ignore_errors=True)
        for node in (f"card{card}", f"renderD{128 + card}"):
            (device / "drm" / node).mkdir(parents=True)
            (device / "drm" / node / "device").symlink_to(device)
            (self._links / node).symlink_to(device / "drm" / node)
        (device / f"drm/card{card}" / connector).mkdir()
        (device / f"drm/card{card}" / connector / "device").symlink_to(device / f"drm/card{card}")
        (self._links / connector).symlink_to(device / f"drm/card{card}" / connector)

    def amd(self, card: int, bus_id: str = DGPU, watts: float = 100.0, **more: object) -> None:
        """Add a Radeon; `more`: hwmon attributes on top, None for one that it has not."""
        sensors = {"power1_average": round(watts * 1e6), "temp1_input": 51000, "temp2_input": 63000}
        self._amd(card, bus_id, "0x744c", {**sensors, "in0_label": "vddgfx", **more}, gpu_metrics(1, 3))

    def mi250(self, card: int, bus_id: str = DGPU) -> None:
        """Add an Instinct: no edge temperature, and power under its newer name."""
        sensors = {"power1_input": 300_000_000, "temp2_input": 63000, "in0_label": "vddgfx"}
        self._amd(card, bus_id, "0x740c", sensors, gpu_metrics(1, 4))

    def mi300a(self, card: int, bus_id: str = APU) -> None:
        """Add an MI300A, which looks like a discrete GPU and is none."""
        sensors = {"power1_input": 400_000_000, "temp2_input": 58000}
        self._amd(card, bus_id, "0x74a0", sensors, gpu_metrics(1, 5))

    def apu(self, card: int, bus_id: str = APU, *, vddnb: bool = True, metrics: int | None = 2) -> None:
        """Add an APU, known by the label of its north bridge's voltage, by its metrics' format, or both."""
        sensors: dict[str, object] = {"power1_average": 15_000_000, "temp1_input": 45000}
        if vddnb:
            sensors["in1_label"] = "vddnb"
        self._amd(card, bus_id, "0x15bf", sensors, gpu_metrics(metrics, 2) if metrics else None)

    def _amd(
        self, card: int, bus_id: str, model: str, sensors: Mapping[str, object], metrics: bytes | None
    ) -> None:
        files: dict[str, object] = {"gpu_busy_percent": 37, "vcn_busy_percent": 12}
        files |= {"mem_info_vram_used": 2_000_000_000, "mem_info_vram_total": 16_000_000_000}
        if metrics is not None:
            files["gpu_metrics"] = metrics
        there = {name: content for name, content in sensors.items() if content is not None}
        self.add(card, bus_id, ("0x1002", model, "amdgpu"), {"amdgpu": there}, files)

    def i915(self, card: int, bus_id: str = DGPU, joules: float = 0.0) -> None:
        """Add a discrete Intel GPU whose tiles have hwmons, and energies, of their own."""
        tile = {"energy1_input": round(joules * 5e5)}
        card_wide = {"energy1_input": round(joules * 1e6), "power1_max": 300_000_000, "in0_input": 700}
        hwmons = {"i915_gt0": tile, "i915_gt1": tile, "i915": card_wide}
        self.add(card, bus_id, ("0x8086", "0x56c0", "i915"), hwmons, {})

    def xe(self, card: int, bus_id: str = DGPU, joules: float = 0.0, *, card_wide: bool = True) -> None:
        """Add an Intel GPU under the newer driver; `card_wide`: not with the package's energy alone."""
        sensors: dict[str, object] = {"energy2_input": round(joules * 9e5), "energy2_label": "pkg"}
        sensors |= {"temp2_input": 47000, "temp2_label": "pkg"}
        if card_wide:
            sensors |= {"energy1_input": round(joules * 1e6), "energy1_label": "card"}
        self.add(card, bus_id, ("0x8086", "0xe20b", "xe"), {"xe": sensors}, {})

    def integrated_intel(self, card: int, bus_id: str = "0000:00:02.0") -> None:
        """Add the GPU in an Intel CPU: no hwmon."""
        self.add(card, bus_id, ("0x8086", "0x46a6", "i915"), {}, {})

    def nvidia(self, card: int, bus_id: str = "0000:65:00.0") -> None:
        """Add an NVIDIA card, as its own driver and nouveau show it."""
        sensors = {"nouveau": {"power1_average": 70_000_000, "temp1_input": 40000}}
        self.add(card, bus_id, ("0x10de", "0x2684", "nvidia"), sensors, {})

    def file(self, bus_id: str, name: str) -> Path:
        """Return where a card's attribute lies: the device's, or its own hwmon's."""
        device = self._bus / bus_id
        hwmons = [hwmon for hwmon in device.glob("hwmon/hwmon*") if (hwmon / name).exists()]
        own = [hwmon for hwmon in hwmons if "_gt" not in (hwmon / "name").read_text()]
        return own[0] / name if own else device / name

    def set(self, bus_id: str, **contents: object) -> None:
        """Write attributes."""
        for name, content in contents.items():
            self.file(bus_id, name).write_text(f"{content}\n")

    def set_watts(self, bus_id: str, watts: float) -> None:
        """Set an AMD card's power."""
        self.set(bus_id, power1_average=round(watts * 1e6))

    def set_joules(self, bus_id: str, joules: float) -> None:
        """Set an Intel card's counter."""
        self.set(bus_id, energy1_input=round(joules * 1e6))

    def runtime_status(self, bus_id: str, status: str) -> None:
        """Say what runtime power management has made of a card."""
        (self._bus / bus_id / "power/runtime_status").write_text(f"{status}\n")

    def remove(self, bus_id: str) -> None:
        """Take a card away, with all its nodes."""
        device = self._bus / bus_id
        for link in list(self._links.iterdir()):
            if link.is_symlink() and link.readlink().is_relative_to(device):
                link.unlink()
        shutil.rmtree(device)


def gpu_metrics(format_revision: int, content_revision: int) -> bytes:
    """Return the binary table: size, format, content, and then numbers."""
    return struct.pack("<HBB", 120, format_revision, content_revision) + b"\xff" * 116


class DrmClients:
    """`/proc`, as far as processes with open GPUs are concerned."""

    def __init__(self, procfs: Path) -> None:
        self.procfs = procfs
        procfs.mkdir(parents=True)
        for name in ("self", "sys", "driver"):
            (procfs / name).mkdir()

    def start(self, pid: int) -> None:
        """Start a process that has standard input and a socket open."""
        (self.procfs / str(pid) / "fd").mkdir(parents=True)
        (self.procfs / str(pid) / "fdinfo").mkdir()
        self.open(pid, 0, "pos:\t0\nflags:\t0100000\nmnt_id:\t24\n", "/dev/null")
        self.open(pid, 1, "pos:\t0\nflags:\t02\nmnt_id:\t9\n", "socket:[4242]")

    def open(self, pid: int, fd: int, fdinfo: str, target: str = "/dev/dri/renderD128") -> None:
        """Open a file, or rewrite its fdinfo."""
        process = self.procfs / str(pid)
        if not process.exists():
            self.start(pid)
        (process / "fd" / str(fd)).unlink(missing_ok=True)
        (process / "fd" / str(fd)).symlink_to(target)
        (process / "fdinfo" / str(fd)).write_text(fdinfo)

    def close(self, pid: int, fd: int) -> None:
        """Close a file."""
        (self.procfs / str(pid) / "fd" / str(fd)).unlink()
        (self.procfs / str(pid) / "fdinfo" / str(fd)).unlink()

    def end(self, pid: int) -> None:
        """End a process."""
        shutil.rmtree(self.procfs / str(pid))


_HEAD = "pos:\t0\nflags:\t02100002\nmnt_id:\t25\nino:\t1082\n"


def engines_fdinfo(bus_id: str, client: int, driver: str = "amdgpu", **seconds: float) -> str:
    """Return what amdgpu and i915 write: engines' time in ns, and on i915 how many of them there are."""
    lines = [f"drm-driver:\t{driver}", f"drm-client-id:\t{client}", f"drm-pdev:\t{bus_id}", "pasid:\t32771"]
    lines += ["drm-memory-vram:\t5120 KiB", "drm-shared-vram:\t0 KiB"]
    lines += [f"drm-engine-{engine}:\t{round(used * 1e9)} ns" for engine, used in seconds.items()]
    if driver == "i915":
        lines += [f"drm-engine-capacity-{engine}:\t2" for engine in seconds]
    return _HEAD + "\n".join(lines) + "\n"


def cycles_fdinfo(bus_id: str, client: int, **cycles: tuple[int, int]) -> str:
    """Return what xe writes: an engine's cycles for the client, and its cycles in all."""
    lines = ["drm-driver:\txe", f"drm-client-id:\t{client}", f"drm-pdev:\t{bus_id}"]
    for engine, (own, total) in cycles.items():
        lines += [f"drm-cycles-{engine}:\t{own}", f"drm-total-cycles-{engine}:\t{total}"]
        lines += [f"drm-engine-capacity-{engine}:\t1"]
    return _HEAD + "\n".join(lines) + "\n"


class GpuMachine:
    """A machine with GPUs, a clock and faults; what is opened on it is closed with it."""

    def __init__(self, path: Path) -> None:
        self.gpus = Gpus(path / "sys")
        self.clients = DrmClients(path / "proc")
        self.clock = FakeClock()
        self.reader = Recorder()
        self.host = Host(path / "sys", path / "proc", self.clock, self.reader)
        self.options = drm.Options()
        self._opened: list[drm.Drm] = []

    async def open(self, interval: float = 1.0) -> drm.Drm:
        """Return the collector."""
        options = structs.replace(self.options, interval=Seconds(interval))
        collector = await drm.open_collector(options, self.host)
        self._opened.append(collector)
        return collector

    async def beat(self, collector: drm.Drm, seconds: float = 1.0) -> Reading:
        """Let time pass, and read."""
        self.clock.advance(seconds)
        return await collector.read()

    async def close(self) -> None:
        for collector in self._opened:
            await collector.aclose()


def meters(reading: Reading) -> dict[str, float]:
    """Return the joules by PCI address."""
    assert all(meter[:2] == ("gpu", "drm") for meter in reading.meters)
    found = {meter.key: meter.joules for meter in reading.meters}
    assert len(found) == len(reading.meters)
    return found


async def gpu_machine(tmp_path: Path) -> AsyncIterator[GpuMachine]:
    """Yield a machine without a GPU so far: a fixture, where a test file makes it one."""
    machine = GpuMachine(tmp_path)
    yield machine
    await machine.close()
