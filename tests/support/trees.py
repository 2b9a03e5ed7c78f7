"""Machines made of files: sysfs and procfs trees, a clock for tests, counters known in closed form."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from powerbench_agent.core.host import Host, read_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from powerbench_agent.agent.node import Node
    from powerbench_agent.core.model import Metric, Reading

RANGE_61_UJ = 262143328850  # 2^32 units of 61 µJ, as the kernel rounds it
RANGE_15_UJ = 65532610987  # 2^32 units of 15.3 µJ: AMD, server DRAM


class FakeClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, monotonic: float = 1000.0, unix: float = 1_800_000_000.0) -> None:
        self.now = monotonic
        self.slept = 0.0  # seconds that the machine has been suspended
        self._unix = unix - monotonic

    def monotonic(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now + self.slept

    def time(self) -> float:
        return self._unix + self.now + self.slept

    def advance(self, seconds: float) -> float:
        self.now += seconds
        return self.now


class BusyClock(FakeClock):
    """A clock on which asking takes time: each look costs the next of some delays, over and over."""

    def __init__(self, costs: tuple[float, ...], monotonic: float = 1000.0) -> None:
        super().__init__(monotonic)
        self._costs = costs
        self._looks = 0

    def monotonic(self) -> float:
        now = self.now
        self.now += self._costs[self._looks % len(self._costs)]
        self._looks += 1
        return now

    def boottime(self) -> float:
        return self.now  # nothing sleeps while it is busy


class Faults:
    """A reader that fails where it is told to, and reads files elsewhere."""

    def __init__(self) -> None:
        self.errors: dict[str, OSError] = {}  # by the end of the path

    def __call__(self, path: Path) -> bytes:
        for end, error in self.errors.items():
            if str(path).endswith(end):
                raise error
        return read_file(path)


class SlowReader:
    """A reader whose clock moves on while some files are read, and that remembers what it was asked for."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}  # by the end of the path
        self.opened: list[Path] = []

    def __call__(self, path: Path) -> bytes:
        self.opened.append(path)
        for end, seconds in self.seconds.items():
            if str(path).endswith(end):
                self.clock.advance(seconds)
        return read_file(path)


def values(reading: Reading, metric: Metric) -> dict[tuple[str, ...], float]:
    """Return a metric's samples by their labels' values; a series given twice is a failure."""
    found: dict[tuple[str, ...], float] = {}
    for sample in reading.samples:
        if sample.metric is metric:
            assert sample.labels not in found, f"{metric.name}{sample.labels} twice"
            found[sample.labels] = sample.value
    return found


def value(reading: Reading, metric: Metric, *labels: str) -> float:
    """Return one series' value."""
    return values(reading, metric)[labels]


def add_up(node: Node, readings: Iterable[Reading], measured: Iterable[str] = ()) -> Reading:
    """Return the node's reading after one beat of these collectors."""
    return node.beat({f"collector {place}": reading for place, reading in enumerate(readings)}, measured)


NOBODY = 65534
_UNMAPPED = 77  # the exit status of a child that could not become nobody
_LET_GO = f"""
import os, sys
if os.geteuid() == 0:
    try:
        os.setgroups([])
        os.setgid({NOBODY})
        os.setuid({NOBODY})
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit({_UNMAPPED})
"""


def run_as_nobody(imports: str, script: str, directory: Path, *arguments: str) -> str:
    """Return what a script prints that has let go of root after its imports, standing in `directory`.

    So no directory above matters, which only this user may enter.
    """
    directory.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-P", "-c", imports + _LET_GO + script, *arguments],
        cwd=directory,
        # nobody cannot write this user's coverage data
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode == _UNMAPPED:
        pytest.skip(f"THE PERMISSION TEST DID NOT RUN: cannot become uid {NOBODY} here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def open_paths() -> set[Path]:
    """Return what this process has open."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            found.add(descriptor.readlink())
    return found


class Powercap:
    """`/sys/class/powercap` as the kernel lays it out: links to the zones, which lie within their parents."""

    def __init__(self, sysfs: Path) -> None:
        self.sysfs = sysfs
        self._links = sysfs / "class/powercap"
        self._devices = sysfs / "devices/virtual/powercap"
        self._links.mkdir(parents=True)
        for control in ("intel-rapl", "intel-rapl-mmio"):
            directory = self._devices / control
            directory.mkdir(parents=True)
            (directory / "enabled").write_text("1\n")
        self._link("intel-rapl", self._devices / "intel-rapl")

    def zone(
        self,
        path: str,
        name: str,
        energy_uj: float = 0,
        range_uj: str | int | None = RANGE_61_UJ,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        """Add a zone. `range_uj` None: without the file; `limits` in watts."""
        control, *numbers = path.split(":")
        directory = self._devices / control
        for depth in range(1, len(numbers) + 1):
            directory /= ":".join([control, *numbers[:depth]])
        directory.mkdir(parents=True)
        (directory / "name").write_text(f"{name}\n")
        (directory / "energy_uj").write_text(f"{int(energy_uj)}\n")
        if range_uj is not None:
            (directory / "max_energy_range_uj").write_text(f"{range_uj}\n")
        for number, (constraint, watts) in enumerate((limits or {}).items()):
            (directory / f"constraint_{number}_name").write_text(f"{constraint}\n")
            (directory / f"constraint_{number}_power_limit_uw").write_text(f"{int(watts * 1e6)}\n")
        self._link(path, directory)

    def _link(self, name: str, directory: Path) -> None:
        # Relative, as the kernel's: the tree may be mounted elsewhere.
        (self._links / name).symlink_to(os.path.relpath(directory, self._links))

    def file(self, path: str, name: str = "energy_uj") -> Path:
        """Return where a zone's attribute lies."""
        return (self._links / path).resolve() / name

    def set_joules(self, path: str, joules: float) -> None:
        """Set a zone's counter."""
        self.file(path).write_text(f"{round(joules * 1e6)}\n")

    @staticmethod
    def move(sysfs: Path, path: str, joules: float) -> None:
        """Set a counter of a tree that is there already."""
        (sysfs / "class/powercap" / path / "energy_uj").write_text(f"{round(joules * 1e6)}\n")

    def break_eio(self, path: str) -> None:
        """Let a zone's counter answer EIO, from the kernel itself."""
        file = self.file(path)
        file.unlink()
        file.symlink_to("/proc/self/mem")

    def mend(self, path: str, joules: float) -> None:
        """Undo `break_eio`."""
        self.file(path).unlink()
        self.set_joules(path, joules)

    def remove(self, path: str) -> None:
        """Take a zone away, with what lies in it."""
        directory = (self._links / path).resolve()
        for link in list(self._links.iterdir()):
            if link.resolve().is_relative_to(directory):
                link.unlink()
        shutil.rmtree(directory)


class Draw(NamedTuple):
    """Power over time: a mean, and a sine around it."""

    mean_watts: float
    swing_watts: float = 0.0
    period: float = 1.0  # seconds

    def joules(self, begin: float, end: float) -> float:
        """Return the energy between two monotonic seconds, in closed form."""
        turn = 2 * math.pi / self.period
        swing = self.swing_watts / turn * (math.cos(turn * begin) - math.cos(turn * end))
        return self.mean_watts * (end - begin) + swing


class RaplCounter:
    """A RAPL register and its driver: 32 bits of 2^-n J, updated every millisecond, shown in µJ.

    Source: Linux drivers/powercap/intel_rapl_common.c, rapl_check_unit_core() and rapl_unit_xlate().
    """

    def __init__(self, clock: FakeClock, draw: Draw, unit_bits: int, joules: float = 0.0) -> None:
        """`unit_bits`: 14 for 61 µJ, 16 for 15.3 µJ; `joules`: what the register holds by now."""
        self._clock = clock
        self._unit_bits = unit_bits
        self._unit_nj = 10**9 // 2**unit_bits  # the driver cuts the fraction off: 15.258 for 15.2588 µJ
        self.draw = draw
        self._since = clock.now
        self._joules = joules

    @property
    def range_uj(self) -> int:
        return (2**32 - 1) * self._unit_nj // 1000

    def reset(self) -> None:
        """Start at 0 again, as after a reload of the driver or a suspend."""
        self._since, self._joules = self._clock.now, 0.0

    def energy_uj(self) -> int:
        updated = max(self._since, math.floor(self._clock.now * 1000) / 1000)
        joules = self._joules + self.draw.joules(self._since, updated)
        return int(joules * 2**self._unit_bits) % 2**32 * self._unit_nj // 1000


class SimulatedHost:
    """A machine whose RAPL counters run by themselves as its clock moves."""

    def __init__(
        self, tmp_path: Path, clock: FakeClock, counters: Mapping[str, tuple[str, RaplCounter]]
    ) -> None:
        """`counters`: powercap path → (name, counter)."""
        self.powercap = Powercap(tmp_path)
        self.counters = {path: counter for path, (_, counter) in counters.items()}
        for path, (name, counter) in counters.items():
            limits = {"long_term": 300.0} if name.startswith("package") else None
            self.powercap.zone(path, name, range_uj=counter.range_uj, limits=limits)
        self.failing: set[str] = set()
        self.host = Host(sysfs=tmp_path, clock=clock, read=self._read)

    def _read(self, path: Path) -> bytes:
        if path.name != "energy_uj":
            return read_file(path)
        if path.parent.name in self.failing:
            raise OSError(5, "Input/output error")
        return b"%d\n" % self.counters[path.parent.name].energy_uj()


CPUINFO = """processor\t: 0
vendor_id\t: {vendor}
cpu family\t: {family}
model\t\t: {model}
model name\t: {name}
stepping\t: {stepping}
flags\t\t: fpu vme

"""


class Procfs:
    """`/proc`, as far as the collectors look at it."""

    def __init__(self, procfs: Path, cpus: int = 2) -> None:
        self.procfs = procfs
        self._cpus = cpus
        procfs.mkdir(parents=True)
        self.set_ticks()
        self.set_cpu()
        (procfs / "meminfo").write_text("MemTotal:       2048 kB\nMemFree:  12 kB\nMemAvailable:   1024 kB\n")
        (procfs / "loadavg").write_text("0.75 0.50 0.25 1/234 5678\n")

    def set_ticks(
        self,
        user: int = 0,
        nice: int = 0,
        system: int = 0,
        idle: int = 0,
        rest: Iterable[int] = (0, 0, 0, 0, 0, 0),
    ) -> None:
        """Set the sum over the CPUs; `rest`: iowait, irq, softirq, steal, guest, guest_nice."""
        figures = " ".join(map(str, (user, nice, system, idle, *rest)))
        each = "".join(f"cpu{number} 1 1 1 1 1 1 1 1 0 0\n" for number in range(self._cpus))
        (self.procfs / "stat").write_text(f"cpu  {figures}\n{each}intr 12345 0 0\nctxt 1\nbtime 1\n")

    def set_cpu(
        self,
        vendor: str = "GenuineIntel",
        family: int | str = 6,
        model: int = 0x8F,
        stepping: int = 8,
        name: str = "A CPU",
    ) -> None:
        """Say which CPU it is."""
        text = CPUINFO.format(vendor=vendor, family=family, model=model, stepping=stepping, name=name)
        (self.procfs / "cpuinfo").write_text(text * self._cpus)


def add_frequency(sysfs: Path, cpu: int, khz: str) -> None:
    """Add a CPU's current frequency."""
    directory = sysfs / f"devices/system/cpu/cpu{cpu}/cpufreq"
    directory.mkdir(parents=True)
    (directory / "scaling_cur_freq").write_text(khz)


def add_hwmon(
    sysfs: Path,
    number: int,
    device: str,
    sensors: Mapping[str, str],
    *,
    link: bool = True,
    name: str = "chip",
) -> Path:
    """Add a chip at `/sys/devices/DEVICE` with these attribute files; `link`: it has a parent device."""
    parent = sysfs / "devices" / device
    directory = parent / f"hwmon/hwmon{number}"
    directory.mkdir(parents=True)
    (directory / "name").write_text(f"{name}\n")
    for file, content in sensors.items():
        (directory / file).write_text(f"{content}\n")
    if link:
        (directory / "device").symlink_to(parent)
    links = sysfs / "class/hwmon"
    links.mkdir(parents=True, exist_ok=True)
    (links / f"hwmon{number}").symlink_to(directory)
    return directory
