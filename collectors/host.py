"""The host: CPU time, frequency, load, memory, temperatures.

Reads `/proc/{stat,loadavg,meminfo}`, `/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq` (kHz) and
`/sys/class/hwmon/hwmon*/temp*_input` (m°C); seconds, hertz, bytes and °C out. Privileges: none.

Some sensors are slow (those of NVMe drives and disks), so everything is read in a thread of its own.

Source: https://docs.kernel.org/filesystems/proc.html, https://docs.kernel.org/admin-guide/pm/cpufreq.html,
https://docs.kernel.org/hwmon/sysfs-interface.html
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from powerbench_agent.core import sysfs
from powerbench_agent.core.model import Metric, ReadFailed, Reading, Sample
from powerbench_agent.core.options import CollectorOptions, Seconds
from powerbench_agent.core.procfs import HERTZ, read_machine_stat
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from powerbench_agent.core.host import Host

CPU_SECONDS = Metric(
    "host_cpu_seconds_total", "counter", "CPU time of all CPUs since boot, by mode.", ("mode",)
)
FREQUENCY = Metric(
    "host_cpu_frequency_hertz",
    "gauge",
    "Current frequency of the CPUs: minimum, mean and maximum.",
    ("stat",),
)
LOAD1 = Metric("host_load1", "gauge", "Load average of the last minute.")
MEMORY_AVAILABLE = Metric("host_memory_available_bytes", "gauge", "Memory available to programs.")
MEMORY_TOTAL = Metric("host_memory_total_bytes", "gauge", "Total memory.")
TEMPERATURE = Metric("host_temperature_celsius", "gauge", "Temperature by sensor.", ("chip", "sensor"))
METRICS = (CPU_SECONDS, FREQUENCY, LOAD1, MEMORY_AVAILABLE, MEMORY_TOTAL, TEMPERATURE)

_COLDEST, _HOTTEST = -100.0, 250.0  # °C; beyond them the value is a driver's sentinel


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.host]`."""

    interval: Seconds = Seconds(5.0)


class HostCollector:
    """One machine's procfs and sysfs."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._worker = Worker("host")

    async def read(self) -> Reading:
        """Return the host's figures as of now. Raises: ReadFailed if /proc cannot be read."""
        return await self._worker.call(self._read)

    async def aclose(self) -> None:
        """Stop the thread."""
        self._worker.close()

    def _read(self) -> Reading:
        try:
            samples = [*self._cpu(), *self._memory()]
            load1 = float(self._proc("loadavg").split()[0])
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise ReadFailed(f"cannot use {self._host.procfs}: {error}") from None
        samples.append(LOAD1.sample(load1))
        samples.extend(self._frequencies())
        samples.extend(self._temperatures())
        return Reading(samples)

    def _proc(self, name: str) -> str:
        return self._host.read(self._host.procfs / name).decode("utf-8", "replace")

    def _cpu(self) -> Iterator[Sample]:
        for mode, ticks in read_machine_stat(self._host).ticks.items():
            yield CPU_SECONDS.sample(ticks / HERTZ, mode)

    def _memory(self) -> Iterator[Sample]:
        fields: dict[str, str] = {}
        for line in self._proc("meminfo").splitlines():
            key, _, value = line.partition(":")
            fields[key] = value
        yield MEMORY_TOTAL.sample(int(fields["MemTotal"].split()[0]) * 1024)
        yield MEMORY_AVAILABLE.sample(int(fields["MemAvailable"].split()[0]) * 1024)

    def _frequencies(self) -> Iterator[Sample]:
        hertz = []
        for path in self._host.sysfs.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"):
            try:
                hertz.append(sysfs.integer(self._host, path) * 1000)
            except (OSError, ValueError):
                continue  # the CPU is offline
        if hertz:
            yield FREQUENCY.sample(min(hertz), "min")
            yield FREQUENCY.sample(sum(hertz) / len(hertz), "mean")
            yield FREQUENCY.sample(max(hertz), "max")

    def _temperatures(self) -> Iterator[Sample]:
        for hwmon in sorted(self._host.sysfs.glob("class/hwmon/hwmon*")):
            chip = self._chip(hwmon)
            inputs = sorted(hwmon.glob("temp*_input"))
            labels = [self._label(path) for path in inputs]
            times = Counter(labels)
            for path, label in zip(inputs, labels, strict=True):
                is_unique = times[label] == 1
                sensor = label if is_unique else f"{label} ({path.name.removesuffix('_input')})"
                try:
                    celsius = sysfs.integer(self._host, path) / 1000
                except (OSError, ValueError):
                    continue  # the sensor does not answer now
                if _COLDEST < celsius < _HOTTEST:
                    yield TEMPERATURE.sample(celsius, chip, sensor)

    def _chip(self, hwmon: Path) -> str:
        """Return the device's path below /sys/devices, which differs between chips of one name."""
        device = hwmon / "device"
        path = (device if device.exists() else hwmon).resolve()
        try:
            return str(path.relative_to((self._host.sysfs / "devices").resolve()))
        except ValueError:
            return path.name

    def _label(self, path: Path) -> str:
        name = path.name.removesuffix("_input")
        try:
            return sysfs.text(self._host, path.with_name(f"{name}_label")) or name
        except OSError:
            return name


async def open_collector(options: Options, host: Host) -> HostCollector:
    """Return the collector; it is always there."""
    del options
    return HostCollector(host)
