"""Cost of a beat over GPUs: the NVML collector compared with bare calls of the binding; the drm collector.

NVML is the stub of tests/stubs, whose own time is in both columns; sysfs is a tree of files. The measurement
runs in a process of its own, because a process finds the library through LD_LIBRARY_PATH at its start.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from simulated import ManualClock

from powerbench_agent.collectors.drm import collector as drm
from powerbench_agent.collectors.nvml import collector as nvml
from powerbench_agent.core.host import Host

if TYPE_CHECKING:
    from collections.abc import Callable

    from powerbench_agent.core.model import Collector

GPUS = 8
CARDS = 4
BEATS = 60  # six of them slow ones
STUB = Path(__file__).parents[1] / "tests/stubs/nvml.c"
FAST = (
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetEncoderUtilization",
    "nvmlDeviceGetDecoderUtilization",
    "nvmlDeviceGetMemoryInfo",
)


def resident_kb() -> int:
    """Return this process's resident size in kB."""
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])


def make_tree(root: Path) -> None:
    """Create eight NVIDIA GPUs on a PCI bus, and four AMD cards."""
    for number in range(GPUS):
        device = root / f"bus/pci/devices/0000:{number:02x}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
    for number in range(CARDS):
        device = root / f"devices/pci0000:00/0000:{0x40 + number:02x}:00.0"
        hwmon = device / f"hwmon/hwmon{number}"
        hwmon.mkdir(parents=True)
        (device / "vendor").write_text("0x1002\n")
        for name in ("gpu_busy_percent", "vcn_busy_percent"):
            (device / name).write_text("40\n")
        for name in ("mem_info_vram_used", "mem_info_vram_total"):
            (device / name).write_text("17163091968\n")
        (hwmon / "name").write_text("amdgpu\n")
        (hwmon / "power1_average").write_text("150000000\n")
        (hwmon / "temp1_input").write_text("61000\n")
        (root / f"class/drm/card{number}").mkdir(parents=True)
        (root / f"class/drm/card{number}/device").symlink_to(device)


async def beats_ms(collector: Collector, clock: ManualClock) -> float:
    """Return the mean CPU time of a beat, in ms."""
    await collector.read()
    begun = time.process_time()
    for _ in range(BEATS):
        clock.now += 1
        await collector.read()
    spent = time.process_time() - begun
    await collector.aclose()
    return spent * 1e3 / BEATS


def bare_ms() -> float:
    """Return the CPU time of the same queries through the binding alone, in ms per beat of eight GPUs."""
    import pynvml  # noqa: PLC0415 - only in the process that has the stub

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(GPUS)]
    calls: list[Callable[..., object]] = [getattr(pynvml, name) for name in FAST]
    begun = time.process_time()
    for _ in range(BEATS):
        for handle in handles:
            for call in calls:
                call(handle)
            pynvml.nvmlDeviceGetTemperatureV(handle, 0)
            pynvml.nvmlDeviceGetProcessUtilization(handle, 0)
    spent = time.process_time() - begun
    pynvml.nvmlShutdown()
    return spent * 1e3 / BEATS


def measure() -> None:
    """Measure and print, in the process that finds the stub."""
    sysfs = Path(os.environ["POWERBENCH_BENCH_TREE"])
    clock = ManualClock()
    host = Host(sysfs=sysfs, procfs=sysfs / "proc", clock=clock)
    before = resident_kb()

    async def one(module: object) -> float:
        opened = await module.open_collector(module.Options(), host)  # type: ignore[attr-defined]
        return await beats_ms(opened, clock)

    ours = statistics.median(asyncio.run(one(nvml)) for _ in range(5))
    grown = (resident_kb() - before) / 1000
    bare = statistics.median(bare_ms() for _ in range(5))
    what = f"nvml: CPU of a beat, {GPUS} GPUs (stub)"
    print(f"{what:44} {ours:10.3f} {bare:10.3f} {ours / bare:7.2f} ms   <= 2 + driver")
    card = statistics.median(asyncio.run(one(drm)) for _ in range(5)) / CARDS
    print(f"{'drm: CPU of a beat, per card':44} {card:10.3f} {'':18} ms   <= 0.5")
    print(f"{'nvml: memory on a machine with a GPU':44} {grown:10.3f} {'':18} MB")


def main() -> None:
    """Build the stub, and measure in a process that finds it."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make_tree(root)
        library = root / "libnvidia-ml.so.1"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, STUB], check=True)  # noqa: S607 - any cc
        control = root / "control"
        lines = [f"gpus {GPUS}"]
        for number in range(GPUS):
            lines += [
                f"energy_mj {number} 123456789",
                f"power_mw {number} 250000",
                f"process {number} {4000 + number} 99 10 50 20",
            ]
        control.write_text("\n".join(lines) + "\n")
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": directory,
            "NVML_STUB_CONTROL": str(control),
            "POWERBENCH_BENCH_TREE": directory,
        }
        subprocess.run([sys.executable, __file__, "measure"], env=environment, check=True)


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["measure"] else main()
