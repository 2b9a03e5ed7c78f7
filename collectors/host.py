"""The host: CPU time, frequency, load, memory, temperatures.

Reads `/proc/{stat,loadavg,meminfo}`, `/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq` (kHz) and
`/sys/class/hwmon/hwmon*/temp*_input` (m°C); seconds, hertz, bytes and °C out. Privileges: none.

Some sensors are slow (those of NVMe drives and disks) and some hang, so everything is read off the event
loop, each part within its own time (see `core/parts.py`). No device is woken for its temperature.

Source: https://docs.kernel.org/filesystems/proc.html, https://docs.kernel.org/admin-guide/pm/cpufreq.html,
https://docs.kernel.org/hwmon/sysfs-interface.html
"""

from __future__ import annotations

import errno
import functools
import math
from typing import TYPE_CHECKING

from powerbench_agent.core import hwmon, sysfs
from powerbench_agent.core.cpu_time import CpuCounters
from powerbench_agent.core.model import Metric, ReadFailed, Reading, Sample, Trouble
from powerbench_agent.core.options import Exclude, Seconds
from powerbench_agent.core.parts import Parts, Rota
from powerbench_agent.core.procfs import HERTZ, MODES, read_machine_stat

if TYPE_CHECKING:
    from collections.abc import Callable

    from powerbench_agent.core.host import Host

CPU_SECONDS = Metric(
    "host_cpu_seconds_total",
    "counter",
    "CPU time of all CPUs since boot, by mode; never decreases.",
    ("mode",),
)
FREQUENCY = Metric(
    "host_cpu_frequency_hertz",
    "gauge",
    "Current frequency of the CPUs: minimum, mean and maximum. "
    "On machines that answer slowly, of some of the CPUs, in turn.",
    ("stat",),
)
LOAD1 = Metric("host_load1", "gauge", "Load average of the last minute.")
MEMORY_AVAILABLE = Metric("host_memory_available_bytes", "gauge", "Memory available to programs.")
MEMORY_TOTAL = Metric("host_memory_total_bytes", "gauge", "Total memory.")
TEMPERATURE = Metric(
    "host_temperature_celsius",
    "gauge",
    "Temperature by sensor. A device that sleeps, or a disk without I/O in the last minute, is left alone.",
    ("chip", "sensor"),
)
METRICS = (CPU_SECONDS, FREQUENCY, LOAD1, MEMORY_AVAILABLE, MEMORY_TOTAL, TEMPERATURE)

_COLDEST, _HOTTEST = -100_000, 250_000  # m°C; beyond them the value is a driver's sentinel
_MAX_KHZ = 20_000_000  # likewise
_BUDGET = 0.5  # of the time until the reading is given up; the rest is for the event loop's other work
_MAX_WAIT = 5.0  # seconds after which a reading is given up, however long the interval
_PART = 0.2  # of the budget; what one part may take that can be read in stretches
# Not a fault: a radio is off, a probe is not connected, a device has just gone.
_NO_VALUE_NOW = (errno.ENODATA, errno.EAGAIN, errno.ENXIO, errno.ENODEV, errno.ENOENT)


class Options(Exclude, frozen=True, kw_only=True):
    """`[collectors.host]`. `exclude`: temperature sensors by chip, by the chip's hwmon name, or by sensor."""

    interval: Seconds = Seconds(5.0)


class HostCollector:
    """One machine's procfs and sysfs, a part at a time."""

    def __init__(self, options: Options, host: Host) -> None:
        self._host = host
        self._parts = Parts("host", host.clock)
        self._counters = CpuCounters()
        self._chips = hwmon.Chips(host)
        self.configure(options)

    def configure(self, options: Options) -> None:
        """Take the options of a reload; the counters go on."""
        self._options = options
        self._budget = _BUDGET * min(options.interval, _MAX_WAIT)
        self._frequencies = Rota(self._host.clock, _PART * self._budget)
        self._sensors: dict[hwmon.Chip, Rota] = {}

    async def read(self) -> Reading:
        """Return the host's figures as of now. Raises: ReadFailed if there are none."""
        jobs: dict[str, Callable[[], Reading]] = {
            "cpu": self._cpu,
            "memory": self._memory,
            "load": self._load,
            "frequency": self._frequency,
        }
        chips = self._chips.list()
        self._sensors = {
            chip: self._sensors.get(chip) or Rota(self._host.clock, _PART * self._budget) for chip in chips
        }
        for chip, turns in self._sensors.items():
            jobs[chip.number] = functools.partial(self._temperatures, chip, turns)
        reading = await self._parts.read(jobs, self._budget)
        if not reading.samples:
            what = "; ".join(trouble.error for trouble in reading.troubles)
            remedies = [trouble.remedy for trouble in reading.troubles if trouble.remedy]
            raise ReadFailed(f"nothing could be read: {what}", remedies[0] if remedies else "")
        return reading

    async def aclose(self) -> None:
        """Stop the threads."""
        self._parts.close()

    def _cpu(self) -> Reading:
        stat = read_machine_stat(self._host)
        left_out = self._counters.advance(stat, self._host.clock.monotonic())
        ticks = self._counters.ticks
        samples = [CPU_SECONDS.sample(ticks[mode] / HERTZ, mode) for mode in MODES if mode in stat.ticks]
        troubles = []
        missing = [mode for mode in MODES if mode not in stat.ticks]
        if missing:
            what = f"/proc/stat has no count of {', '.join(missing)}"
            troubles.append(Trouble("cpu", what, "the kernel or the container's view of /proc is at fault"))
        elif left_out:
            what = f"{', '.join(left_out)} in /proc/stat fell, or rose more than the CPUs can have spent"
            troubles.append(Trouble("cpu", what, "it counts again from its new value"))
        return Reading(samples, troubles=troubles)

    def _memory(self) -> Reading:
        kibibytes: dict[bytes, int] = {}
        for line in self._proc("meminfo").splitlines():
            key, _, value = line.partition(b":")
            words = value.split()
            if words and sysfs.is_count(words[0]):
                kibibytes.setdefault(key, int(words[0]))
        samples = []
        missing = []
        troubles = []
        most = kibibytes.get(b"MemTotal", math.inf)
        for metric, name in ((MEMORY_TOTAL, "MemTotal"), (MEMORY_AVAILABLE, "MemAvailable")):
            number = kibibytes.get(name.encode())
            if number is None:
                missing.append(name)
            elif number > most:
                what = "/proc/meminfo has more MemAvailable than MemTotal"
                troubles.append(Trouble("memory", what, "the container's view of /proc is at fault"))
            else:
                samples.append(metric.sample(number * 1024))
        if missing:
            what = f"/proc/meminfo has no {' and no '.join(missing)}"
            troubles.append(Trouble("memory", what, "use a kernel, or a container runtime, that shows it"))
        return Reading(samples, troubles=troubles)

    def _load(self) -> Reading:
        word = self._proc("loadavg").partition(b" ")[0]
        try:
            load1 = float(word)
        except ValueError:
            load1 = math.nan
        if not 0 <= load1 < math.inf:
            raise ValueError(f"/proc/loadavg begins with {word[:40]!r}, which is not a load average")
        return Reading([LOAD1.sample(load1)])

    def _proc(self, name: str) -> bytes:
        return self._host.read(self._host.procfs / name)

    def _frequency(self) -> Reading:
        paths = sorted(self._host.sysfs.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
        hertz = []
        asked = 0
        for path in self._frequencies.stretch(paths):
            asked += 1
            try:
                khz = sysfs.integer(self._host, path)
            except (OSError, ValueError):
                continue  # the CPU is offline
            if 0 < khz < _MAX_KHZ:
                hertz.append(khz * 1000)
        troubles = []
        if asked < len(paths):
            what = f"only {asked} of {len(paths)} CPUs answered in time: the figures are of these"
            troubles.append(Trouble("frequency", what, "a newer kernel may answer faster"))
        if not hertz:
            return Reading((), troubles=troubles)
        samples = [
            FREQUENCY.sample(min(hertz), "min"),
            FREQUENCY.sample(sum(hertz) / len(hertz), "mean"),
            FREQUENCY.sample(max(hertz), "max"),
        ]
        return Reading(samples, troubles=troubles)

    def _temperatures(self, chip: hwmon.Chip, turns: Rota) -> Reading:
        """Return one chip's temperatures; none if its device sleeps, or would be kept from sleeping."""
        if chip.is_asleep():
            return Reading(())
        if self._options.excludes(chip.label(), chip.name()):
            return Reading(())
        if chip.name() == hwmon.DISKS and not chip.disk.is_in_use():
            return Reading(())
        sensors = chip.temperatures()
        wanted = [sensor for sensor in sensors if not self._options.excludes(sensor.label)]
        samples = []
        faults = []
        asked = 0
        for sensor in turns.stretch(wanted):
            asked += 1
            try:
                samples.append(self._temperature(chip, sensor))
            except ValueError as error:
                faults.append(str(error))
            except OSError as error:
                if error.errno not in _NO_VALUE_NOW:
                    faults.append(f"{sensor.label}: {error.strerror}")
        if asked < len(wanted):
            faults.append(f"only {asked} of {len(wanted)} sensors answered in time")
        if not faults:
            return Reading(samples)
        what = f"{chip.label()}: {'; '.join(faults)}"
        remedy = "if this is no fault of the device, name the sensor in [collectors.host] exclude"
        return Reading(samples, troubles=[Trouble(chip.number, what, remedy)])

    def _temperature(self, chip: hwmon.Chip, sensor: hwmon.Sensor) -> Sample:
        """Return a sensor's temperature. Raises: OSError; ValueError if it cannot be true."""
        millidegrees = sysfs.integer(self._host, sensor.path)
        if not _COLDEST < millidegrees < _HOTTEST:
            raise ValueError(f"{sensor.label} reads {str(millidegrees)[:20]} m°C, which cannot be true")
        return TEMPERATURE.sample(millidegrees / 1000, chip.label(), sensor.label)


async def open_collector(options: Options, host: Host) -> HostCollector:
    """Return the collector; it is always there."""
    return HostCollector(options, host)
