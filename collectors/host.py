"""The host: CPU time, frequency, load, memory, temperatures.

Reads `/proc/{stat,loadavg,meminfo}`, `/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq` (kHz) and
`/sys/class/hwmon/hwmon*/temp*_input` (m°C); seconds, hertz, bytes and °C out. Privileges: none.

Each part fails alone: one odd file, or one slow bus, costs its own figures. Frequencies and sensors can be
slow (a firmware call a CPU; NVMe drives and disks), so each has a thread and a time limit of its own.
Devices that sleep are left asleep.

Source: https://docs.kernel.org/filesystems/proc.html, https://docs.kernel.org/admin-guide/pm/cpufreq.html,
https://docs.kernel.org/hwmon/sysfs-interface.html, https://docs.kernel.org/power/runtime_pm.html
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core import sysfs
from powerbench_agent.core.model import Metric, ReadFailed, Reading, Sample, Trouble
from powerbench_agent.core.options import Exclude, Seconds
from powerbench_agent.core.procfs import HERTZ, TickGuard, read_machine_stat
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from powerbench_agent.core.host import Host

CPU_SECONDS = Metric(
    "host_cpu_seconds_total", "counter", "CPU time of all CPUs since boot, by mode.", ("mode",)
)
FREQUENCY = Metric(
    "host_cpu_frequency_hertz",
    "gauge",
    "Current frequency of the CPUs: minimum, mean and maximum. Where reading is slow, of some CPUs in turn.",
    ("stat",),
)
LOAD1 = Metric("host_load1", "gauge", "Load average of the last minute.")
MEMORY_AVAILABLE = Metric("host_memory_available_bytes", "gauge", "Memory available to programs.")
MEMORY_TOTAL = Metric("host_memory_total_bytes", "gauge", "Total memory.")
TEMPERATURE = Metric("host_temperature_celsius", "gauge", "Temperature by sensor.", ("chip", "sensor"))
METRICS = (CPU_SECONDS, FREQUENCY, LOAD1, MEMORY_AVAILABLE, MEMORY_TOTAL, TEMPERATURE)

PART_SECONDS = 2.0  # what a part may take; the whole has the interval, 5 s
FREQUENCY_SECONDS = 0.25  # after this the remaining CPUs wait for the next reading
_COLDEST, _HOTTEST = -100.0, 250.0  # °C; beyond them the value is a driver's sentinel
_SLOW = "check the kernel log for a slow or stuck driver; exclude leaves a sensor out"


class Options(Exclude, frozen=True, kw_only=True):
    """`[collectors.host]`; `exclude` goes by a sensor's chip, its driver's name, hwmonN or its label."""

    interval: Seconds = Seconds(5.0)


class _Part(NamedTuple):
    """One part of the figures, and the thread that reads it."""

    name: str
    read: Callable[[], list[Sample]]
    worker: Worker


class HostCollector:
    """One machine's procfs and sysfs."""

    def __init__(self, options: Options, host: Host) -> None:
        self._options = options
        self._host = host
        self._guard = TickGuard()
        self._next_cpu = 0  # where the frequencies go on, if they could not all be read
        files = Worker("host")
        self._files = (
            _Part("cpu time", self._cpu, files),
            _Part("load", self._load, files),
            _Part("total memory", lambda: self._memory("MemTotal", MEMORY_TOTAL), files),
            _Part("available memory", lambda: self._memory("MemAvailable", MEMORY_AVAILABLE), files),
        )
        self._slow = (
            _Part("frequency", self._frequencies, Worker("host-frequency")),
            _Part("temperatures", lambda: list(self._temperatures()), Worker("host-sensors")),
        )

    def configure(self, options: Options) -> None:
        """Take the options of a reload."""
        self._options = options

    async def read(self) -> Reading:
        """Return the host's figures as of now. Raises: ReadFailed if nothing of /proc can be read."""
        results = await asyncio.gather(self._read_files(), *(self._read_slow(part) for part in self._slow))
        samples: list[Sample] = []
        troubles: list[Trouble] = []
        for part_samples, part_troubles in results:
            samples += part_samples
            troubles += part_troubles
        return Reading(samples, troubles=troubles)

    async def aclose(self) -> None:
        """Stop the threads."""
        for part in (self._files[0], *self._slow):
            part.worker.close()

    async def _read_files(self) -> tuple[list[Sample], list[Trouble]]:
        """Return what /proc says. Raises: ReadFailed if none of it can be used."""
        return await self._files[0].worker.call(self._read_procfs)

    def _read_procfs(self) -> tuple[list[Sample], list[Trouble]]:
        samples: list[Sample] = []
        troubles: list[Trouble] = []
        for part in self._files:
            try:
                samples += part.read()
            except (OSError, ValueError, IndexError, KeyError) as error:
                troubles.append(Trouble(part.name, f"cannot use {self._host.procfs}: {error}"))
        if not samples:
            raise ReadFailed(troubles[0].error)
        return samples, troubles

    async def _read_slow(self, part: _Part) -> tuple[list[Sample], list[Trouble]]:
        """Return the samples of a part that may hang, or what is wrong with it."""
        try:
            async with asyncio.timeout(PART_SECONDS):
                return await part.worker.call(part.read), []
        except TimeoutError:
            return [], [Trouble(part.name, f"no answer within {PART_SECONDS:g} s", _SLOW)]
        except ReadFailed as failed:  # the call before has not returned yet
            return [], [Trouble(part.name, str(failed), _SLOW)]
        except OSError as error:
            return [], [Trouble(part.name, f"cannot use {self._host.sysfs}: {error}", _SLOW)]

    # -- /proc -----------------------------------------------------------------------------------

    def _proc(self, name: str) -> str:
        return self._host.read(self._host.procfs / name).decode("utf-8", "replace")

    def _cpu(self) -> list[Sample]:
        stat = self._guard.advance(read_machine_stat(self._host), self._host.clock.monotonic())
        return [CPU_SECONDS.sample(ticks / HERTZ, mode) for mode, ticks in stat.ticks.items()]

    def _load(self) -> list[Sample]:
        return [LOAD1.sample(float(self._proc("loadavg").split()[0]))]

    def _memory(self, key: str, metric: Metric) -> list[Sample]:
        """Return one field of meminfo. Raises: OSError; ValueError if it is missing or not in kB."""
        for line in self._proc("meminfo").splitlines():
            name, _, value = line.partition(":")
            amount, _, unit = value.strip().partition(" ")
            if name == key and amount.isdigit() and unit in ("kB", ""):
                return [metric.sample(int(amount) * 1024)]
        raise ValueError(f"meminfo has no {key}")

    # -- frequencies -----------------------------------------------------------------------------

    def _frequencies(self) -> list[Sample]:
        paths = sorted(self._host.sysfs.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
        clock = self._host.clock
        begun = clock.monotonic()
        hertz = []
        for _ in range(len(paths)):
            self._next_cpu = (self._next_cpu + 1) % len(paths)
            try:
                hertz.append(sysfs.natural(self._host, paths[self._next_cpu]) * 1000)
            except (OSError, ValueError):
                continue  # the CPU is offline
            if clock.monotonic() - begun > FREQUENCY_SECONDS:
                break
        if not hertz:
            return []
        return [
            FREQUENCY.sample(min(hertz), "min"),
            FREQUENCY.sample(sum(hertz) / len(hertz), "mean"),
            FREQUENCY.sample(max(hertz), "max"),
        ]

    # -- sensors ---------------------------------------------------------------------------------

    def _temperatures(self) -> Iterator[Sample]:
        hwmons = sorted(self._host.sysfs.glob("class/hwmon/hwmon*"))
        names = {hwmon: self._text(hwmon / "name") for hwmon in hwmons}
        for hwmon, chip in _chips(names, (self._host.sysfs / "devices").resolve()).items():
            if self._options.excludes(chip, names[hwmon], hwmon.name) or self._sleeps(hwmon):
                continue
            for path, sensor in self._sensors(hwmon):
                if self._options.excludes(sensor):
                    continue
                try:
                    celsius = sysfs.integer(self._host, path) / 1000
                except (OSError, ValueError):
                    continue  # the sensor does not answer now
                if _COLDEST < celsius < _HOTTEST:
                    yield TEMPERATURE.sample(celsius, chip, sensor)

    def _sleeps(self, hwmon: Path) -> bool:
        """Return whether a sensor's device, or a bus on the way to it, is suspended: a reading wakes it."""
        devices = (self._host.sysfs / "devices").resolve()
        device = _device(hwmon)
        while devices in device.parents:
            if sysfs.asleep(self._host, device):
                return True
            device = device.parent
        return False

    def _sensors(self, hwmon: Path) -> list[tuple[Path, str]]:
        """Return (file, name) of each temperature of a chip; the names differ."""
        inputs = sorted(hwmon.glob("temp*_input"))
        labels = []
        for path in inputs:
            name = path.name.removesuffix("_input")
            labels.append(self._text(path.with_name(f"{name}_label")) or name)
        times = Counter(labels)
        sensors = []
        for path, label in zip(inputs, labels, strict=True):
            is_unique = times[label] == 1
            sensor = label if is_unique else f"{label} ({path.name.removesuffix('_input')})"
            sensors.append((path, sensor))
        return sensors

    def _text(self, path: Path) -> str:
        try:
            return sysfs.text(self._host, path)
        except OSError:
            return ""


def _device(hwmon: Path) -> Path:
    """Return the device of an hwmon directory; itself if it has none."""
    device = hwmon / "device"
    return (device if device.exists() else hwmon).resolve()


def _chips(names: dict[Path, str], devices: Path) -> dict[Path, str]:
    """Return what each hwmon directory is called: its device's path, which differs between chips of one name.

    Several of one device have their driver's names behind it, or else their own.
    """
    paths = {}
    for hwmon in names:
        device = _device(hwmon)
        is_below = devices in device.parents
        paths[hwmon] = str(device.relative_to(devices)) if is_below else device.name
    sharing = Counter(paths.values())
    named = Counter((paths[hwmon], name) for hwmon, name in names.items())
    chips = {}
    for hwmon, path in paths.items():
        name = names[hwmon]
        if sharing[path] == 1:
            chips[hwmon] = path
        elif name and named[path, name] == 1:
            chips[hwmon] = f"{path} ({name})"
        else:
            chips[hwmon] = f"{path} ({hwmon.name})"
    return chips


async def open_collector(options: Options, host: Host) -> HostCollector:
    """Return the collector; it is always there."""
    return HostCollector(options, host)
