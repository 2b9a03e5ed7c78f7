"""The machine's conditions around a window: what makes its figures doubtful, and what to do about it.

Reads /proc/stat, /proc/cpuinfo, /sys cpufreq, thermal_throttle, hwmon, powercap and power_supply.
Privileges: none. If the agents are on another machine, this is about the machine that encodes, but for the
GPUs: those are the agents'.

Source: https://docs.kernel.org/admin-guide/pm/cpufreq.html,
https://docs.kernel.org/admin-guide/abi-testing.html (thermal_throttle),
https://docs.kernel.org/power/power_supply_class.html
"""

from __future__ import annotations

import asyncio
import re
from statistics import fmean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from powerbench_agent.bench.meter import fingerprint
from powerbench_agent.bench.meter.gpus import MAX_WARMER, describe_gpus, gpu_warnings
from powerbench_agent.core.powercap import read_power_limits
from powerbench_agent.core.procfs import read_cpu_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from powerbench_agent.bench.meter.gpus import GpuState
    from powerbench_agent.bench.meter.meters import Meters
    from powerbench_agent.core.host import Host

MAX_OTHER_LOAD = 0.05  # of the machine's CPUs
_COLDEST, _HOTTEST = -100_000, 250_000  # m°C; beyond them the value is a driver's sentinel
_MHZ = re.compile(r"^cpu MHz\s*:\s*([0-9]{1,5}(?:\.[0-9]{1,6})?)$", re.MULTILINE)
_MOST_KHZ = 100_000_000
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")


NO_GPUS: Mapping[str, GpuState] = MappingProxyType({})


class Conditions(NamedTuple):
    """The machine at one moment; None means unknown."""

    busy: float | None  # CPU seconds so far
    capacity: float | None
    own: float  # of busy, this process's
    governor: str | None
    turbo: bool | None
    throttled: int | None  # times, all CPUs together
    celsius: float | None  # the hottest CPU sensor
    on_battery: bool | None
    # Only at a window's edge, as they take longer to read:
    mhz: float | None = None  # the mean of all CPUs
    power_limits: Mapping[str, Mapping[str, float]] | None = None  # watts, by zone and constraint
    gpus: Mapping[str, GpuState] = NO_GPUS


def read_conditions(host: Host) -> Conditions:
    """Return the machine's state now."""
    cpu = read_cpu_time(host)
    return Conditions(
        busy=cpu.busy if cpu else None,
        capacity=cpu.capacity if cpu else None,
        own=cpu.agent if cpu else 0.0,
        governor=fingerprint.governor(host.sysfs),
        turbo=fingerprint.turbo(host.sysfs),
        throttled=_throttled(host.sysfs),
        celsius=_celsius(host.sysfs),
        on_battery=_on_battery(host.sysfs),
    )


async def read_at_edge(host: Host, meters: Meters) -> Conditions:
    """Return the machine's state just outside of a window, with what takes longer to read, and the GPUs."""
    gpus = await meters.gpus()
    mhz, limits = await asyncio.to_thread(lambda: (_mhz(host), read_power_limits(host)))
    return read_conditions(host)._replace(mhz=mhz, power_limits=limits, gpus=gpus)


def first_of(first: Conditions, before: Conditions) -> Conditions:
    """Return the run's first conditions, with what is read only at edges as it was when first read."""
    limits = before.power_limits if first.power_limits is None else first.power_limits
    return first._replace(power_limits=limits, gpus={**before.gpus, **first.gpus})


def warnings_of(before: Conditions, after: Conditions, first: Conditions, ours: float) -> list[str]:
    """Return what disturbed a window; `first`: at the run's start; `ours`: our children's CPU seconds."""
    found = []
    others = other_load(before, after, ours)
    if others is not None and others > MAX_OTHER_LOAD:
        found.append(
            f"other programs used {others:.0%} of the machine's CPUs in the window: "
            "stop them, or measure when they are idle"
        )
    if after.governor != first.governor:
        what = f"the CPU governor changed from {first.governor} to {after.governor}"
        found.append(f"{what}: keep it the same for the run")
    if after.turbo != first.turbo:
        found.append("turbo was switched within the run: keep it the same for the run")
    if before.throttled is not None and after.throttled is not None and after.throttled > before.throttled:
        times = after.throttled - before.throttled
        found.append(
            f"heat throttled the CPU {times} times in the window: cool it better, or reduce the load"
        )
    if before.celsius is not None and first.celsius is not None:
        warmer = before.celsius - first.celsius
        if warmer > MAX_WARMER:
            found.append(
                f"the window began {warmer:.0f} °C warmer than the run: "
                "give more --cooldown or --stabilization"
            )
    found += _limit_warnings(before, after, first)
    found += gpu_warnings(before.gpus, after.gpus, first.gpus)
    if after.on_battery:
        found.append("the machine runs on battery, which limits its power: plug it in")
    return found


def _limit_warnings(before: Conditions, after: Conditions, first: Conditions) -> Iterator[str]:
    """Yield which of the CPU's power limits are not what they were when the run began."""
    for zone, constraints in (first.power_limits or before.power_limits or {}).items():
        for constraint, watts in constraints.items():
            now = (after.power_limits or {}).get(zone, {}).get(constraint, watts)
            if now != watts:
                what = f"the power limit {constraint} of {zone} changed from {watts:g} to {now:g} W"
                yield f"{what}: keep it the same for the run"


def other_load(before: Conditions, after: Conditions, ours: float) -> float | None:
    """Return the share of the CPUs that others used between two moments; None if unknown."""
    if before.busy is None or before.capacity is None or after.busy is None or after.capacity is None:
        return None
    capacity = after.capacity - before.capacity
    if capacity <= 0:
        return None
    own = after.own - before.own
    others = after.busy - before.busy - own - ours
    return max(0.0, others) / capacity


def describe(before: Conditions, after: Conditions, ours: float) -> Mapping[str, Any]:
    """Return the window's conditions as the results file holds them."""
    return {
        "governor": after.governor,
        "turbo": after.turbo,
        "celsius_before": before.celsius,
        "celsius_after": after.celsius,
        "mhz_before": before.mhz,
        "mhz_after": after.mhz,
        "power_limits": after.power_limits,
        "gpus": describe_gpus(before.gpus, after.gpus),
        "other_load": other_load(before, after, ours),
        "on_battery": after.on_battery,
    }


def _mhz(host: Host) -> float | None:
    """Return the CPUs' mean frequency in MHz, in whole ones.

    Of /proc/cpuinfo where it has them (x86): the kernel then waits once for all CPUs, and not for each.
    """
    try:
        text = host.read(host.procfs / "cpuinfo").decode("utf-8", "replace")
    except OSError:
        text = ""
    found = [float(number) for number in _MHZ.findall(text)]
    if not found:
        files = host.sysfs.glob("devices/system/cpu/cpufreq/policy*/scaling_cur_freq")
        found = [khz / 1000 for file in files if (khz := _number(file)) is not None and 0 < khz < _MOST_KHZ]
    return round(fmean(found)) if found else None


def _throttled(sysfs: Path) -> int | None:
    files = sysfs.glob("devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = [count for file in files if (count := _number(file)) is not None and count >= 0]
    return sum(counts) if counts else None


def _celsius(sysfs: Path) -> float | None:
    """Return the hottest of the CPUs' own sensors."""
    found = []
    for hwmon in sysfs.glob("class/hwmon/hwmon*"):
        if _text(hwmon / "name") not in _CPU_SENSORS:
            continue
        for file in hwmon.glob("temp*_input"):
            millidegrees = _number(file)
            if millidegrees is not None and _COLDEST < millidegrees < _HOTTEST:
                found.append(millidegrees / 1000)
    return max(found, default=None)


def _on_battery(sysfs: Path) -> bool | None:
    """Return whether mains power is off; None for a machine without a battery."""
    online = []
    battery = False
    for supply in sysfs.glob("class/power_supply/*"):
        kind = _text(supply / "type")
        battery |= kind == "Battery"
        if kind == "Mains" and (is_online := _text(supply / "online")):
            online.append(is_online == "1")
    return not any(online) if battery and online else None


def _number(file: Path) -> int | None:
    """Return a file's whole number; None if it has none, or cannot be read."""
    try:
        return int(_text(file))
    except ValueError:
        return None


def _text(file: Path) -> str:
    """Return a file's text without its line end; "" if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
