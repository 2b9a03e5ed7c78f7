"""An estimate of the CPU's energy for machines where nothing measures it: most virtual machines.

Reads `/proc/stat` (busy time) and `/proc/cpuinfo` (which CPU). Clock ticks in, joules out, by a model that is
linear in each logical CPU's busy time:

    joules = idle W x seconds x CPUs + (max W - idle W) x busy seconds

so the figure depends only on time and busy time, not on how often it is read. Time that the machine spends
suspended is not estimated. Every sample and meter of it
says `estimate`; the node counts it only while nothing measures the CPU. Privileges: none.

Source of the watts: Cloud Carbon Footprint, ccf-coefficients, coefficients-aws-use.csv fitted to SPECpower
of 2026-03-09 (https://github.com/cloud-carbon-footprint/ccf-coefficients). Their EPYC 5th Gen row is left
out, because 3.7 to 9.0 W per thread is four times that of its neighbours.
Source of the model numbers: Linux arch/x86/include/asm/intel-family.h, amd.c.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core.counters import Rate
from powerbench_agent.core.cpu_time import CpuCounters
from powerbench_agent.core.model import ESTIMATE, Absent, Meter, Metric, ReadFailed, Reading
from powerbench_agent.core.options import CollectorOptions
from powerbench_agent.core.procfs import HERTZ, read_machine_stat

if TYPE_CHECKING:
    from collections.abc import Iterable

    from powerbench_agent.core.host import Host

ENERGY = Metric(
    "estimate_energy_joules_total",
    "counter",
    "Estimated energy since the agent started: a linear model of CPU time, not a measurement.",
    ("component",),
)
POWER = Metric(
    "estimate_power_watts",
    "gauge",
    "Estimated mean power over the last interval: a linear model of CPU time, not a measurement.",
    ("component",),
)
MODEL = Metric(
    "estimate_model_info",
    "gauge",
    "Always 1; the labels are the estimate's model: watts per logical CPU, idle and busy, and their origin.",
    ("microarchitecture", "idle_watts_per_cpu", "max_watts_per_cpu", "cpus", "basis"),
)
METRICS = (ENERGY, POWER, MODEL)


class Watts(NamedTuple):
    """A logical CPU's power, idle and fully busy."""

    idle: float
    max: float


# Watts per logical CPU by microarchitecture; the module's docstring names the source.
COEFFICIENTS = {
    "Sandy Bridge": Watts(2.2122, 8.6309),
    "Ivy Bridge": Watts(1.7074, 5.5569),
    "Haswell": Watts(1.8574, 5.5954),
    "Broadwell": Watts(0.7128, 3.6853),
    "Skylake": Watts(0.6130, 4.1042),
    "Cascade Lake": Watts(0.6903, 4.0632),
    "Coffee Lake": Watts(1.1384, 5.4218),
    "Ice Lake": Watts(0.7668, 3.7582),
    "Sapphire Rapids": Watts(1.0363, 4.1605),
    "Emerald Rapids": Watts(0.8140, 4.4820),
    "Granite Rapids": Watts(0.5816, 2.5275),
    "EPYC 1st Gen": Watts(0.8468, 2.6042),
    "EPYC 2nd Gen": Watts(0.4743, 1.6930),
    "EPYC 3rd Gen": Watts(0.4556, 1.9573),
    "EPYC 4th Gen": Watts(0.7391, 2.2822),
}
MEAN = Watts(
    idle=round(fmean(watts.idle for watts in COEFFICIENTS.values()), 4),
    max=round(fmean(watts.max for watts in COEFFICIENTS.values()), 4),
)

_INTEL_MODELS = {
    **dict.fromkeys((0x2A, 0x2D), "Sandy Bridge"),
    **dict.fromkeys((0x3A, 0x3E), "Ivy Bridge"),
    **dict.fromkeys((0x3C, 0x3F, 0x45, 0x46), "Haswell"),
    **dict.fromkeys((0x3D, 0x47, 0x4F, 0x56), "Broadwell"),
    **dict.fromkeys((0x4E, 0x5E, 0x55), "Skylake"),
    **dict.fromkeys((0x8E, 0x9E), "Coffee Lake"),
    **dict.fromkeys((0x6A, 0x6C), "Ice Lake"),
    0x8F: "Sapphire Rapids",
    0xCF: "Emerald Rapids",
    **dict.fromkeys((0xAD, 0xAE), "Granite Rapids"),
}
_CASCADE_LAKE_STEPPINGS = range(5, 8)  # of model 0x55, which Skylake-SP shares


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.estimate]`: watts per logical CPU; 0 for those of the microarchitecture."""

    idle_watts_per_cpu: float = 0.0
    max_watts_per_cpu: float = 0.0

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        if self.idle_watts_per_cpu < 0 or self.max_watts_per_cpu < 0:
            yield "idle_watts_per_cpu", "watts cannot be negative"
        elif (self.idle_watts_per_cpu > 0) != (self.max_watts_per_cpu > 0):
            yield "max_watts_per_cpu", "set both idle_watts_per_cpu and max_watts_per_cpu, or neither"
        elif self.idle_watts_per_cpu > self.max_watts_per_cpu:
            yield "max_watts_per_cpu", "must not be below idle_watts_per_cpu"


class Model(NamedTuple):
    """The watts that are used, and where they come from."""

    watts: Watts
    microarchitecture: str
    basis: str  # "table", "mean of the table", "config"


class Estimate:
    """Applies the model to the CPUs' busy time."""

    def __init__(self, options: Options, host: Host) -> None:
        self._host = host
        self._microarchitecture = parse_microarchitecture(_read(host, "cpuinfo"))
        self._model = choose_model(options, self._microarchitecture)
        self._joules = 0.0
        self._counters = CpuCounters()
        self._last: tuple[float, float] | None = None  # monotonic seconds, busy seconds
        self._owed = 0.0  # busy seconds that did not fit into the time they were read in
        self._cpus = 0
        self._rate = Rate()

    def configure(self, options: Options) -> None:
        """Take the watts of a reload; the energy estimated so far stays."""
        self._model = choose_model(options, self._microarchitecture)

    async def read(self) -> Reading:
        """Advance the estimate, and close the window of the power gauge."""
        now = self._advance()
        self._rate.beat(self._joules, now)
        return self._reading(now)

    async def refresh(self) -> Reading:
        """Advance the estimate; the power gauge stays the beat's."""
        return self._reading(self._advance())

    async def aclose(self) -> None:
        """Do nothing: nothing is held open."""

    def _advance(self) -> float:
        now = self._host.clock.monotonic()
        try:
            stat = read_machine_stat(self._host)
            if not stat.cpus:
                raise ValueError("it lists no CPU")
        except (OSError, ValueError) as error:
            self._last, self._owed = None, 0.0
            self._rate = Rate()
            raise ReadFailed(f"cannot use {self._host.procfs}/stat: {error}") from None
        self._counters.advance(stat, now)
        busy = self._counters.busy
        self._cpus = stat.cpus
        if self._last is not None:
            then, busy_then = self._last
            self._add(now - then, busy - busy_then)
        self._last = (now, busy)
        return now

    def _add(self, seconds: float, busy_seconds: float) -> None:
        """Add the energy of some time, of which the CPUs say that they were busy for so many CPU seconds."""
        # Ticks are counted in lumps, so the busy time of a short while can exceed what fits into it. The
        # excess is carried over. Beyond two ticks a CPU it comes from a guest's two clocks, and is dropped.
        owed = self._owed + busy_seconds
        gained = min(owed, seconds * self._cpus)
        self._owed = min(owed - gained, 2 * self._cpus / HERTZ)
        watts = self._model.watts
        self._joules += watts.idle * seconds * self._cpus
        self._joules += (watts.max - watts.idle) * gained

    def _reading(self, now: float) -> Reading:
        watts, microarchitecture, basis = self._model
        samples = [
            ENERGY.sample(self._joules, "cpu"),
            MODEL.sample(1, microarchitecture, f"{watts.idle:g}", f"{watts.max:g}", str(self._cpus), basis),
        ]
        if self._rate.watts is not None:
            samples.append(POWER.sample(self._rate.watts, "cpu"))
        return Reading(samples, (Meter("cpu", ESTIMATE, "cpu", self._joules),), taken=now)


async def open_collector(options: Options, host: Host) -> Estimate:
    """Return the collector. Raises: Absent without a readable /proc."""
    try:
        return Estimate(options, host)
    except OSError as error:
        raise Absent(f"no {host.procfs}/cpuinfo: {error.strerror}") from None


def choose_model(options: Options, microarchitecture: str) -> Model:
    """Return the configured watts, else the microarchitecture's, else the mean of all."""
    if options.max_watts_per_cpu > 0:
        watts = Watts(options.idle_watts_per_cpu, options.max_watts_per_cpu)
        return Model(watts, microarchitecture or "unknown", "config")
    if watts_of := COEFFICIENTS.get(microarchitecture):
        return Model(watts_of, microarchitecture, "table")
    return Model(MEAN, microarchitecture or "unknown", "mean of the table")


def parse_microarchitecture(cpuinfo: str) -> str:
    """Return the microarchitecture's name in the table, else the CPU's model name, else ""."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    vendor = fields.get("vendor_id", "")
    try:
        family = int(fields.get("cpu family", "-1"))
        model = int(fields.get("model", "-1"))
        stepping = int(fields.get("stepping", "-1"))
    except ValueError:
        return fields.get("model name", "")
    found = None
    if vendor == "GenuineIntel" and family == 6:
        found = _INTEL_MODELS.get(model)
        if model == 0x55 and stepping in _CASCADE_LAKE_STEPPINGS:
            found = "Cascade Lake"
    elif vendor == "AuthenticAMD":
        found = _amd(family, model)
    return found or fields.get("model name", "")


def _amd(family: int, model: int) -> str | None:
    if family == 0x17:
        return "EPYC 1st Gen" if model < 0x30 else "EPYC 2nd Gen"
    if family == 0x19:
        is_zen4 = 0x10 <= model <= 0x1F or 0x60 <= model <= 0xAF
        return "EPYC 4th Gen" if is_zen4 else "EPYC 3rd Gen"
    return None


def _read(host: Host, name: str) -> str:
    return host.read(host.procfs / name).decode("utf-8", "replace")
