"""What a measured command cost: figures over its runs. Pure. Durations in seconds, energy in joules."""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum, sqrt
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core.results import difference

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from powerbench_agent.bench.measure.command import Used
    from powerbench_agent.bench.measure.share import Share
    from powerbench_agent.core.results import Difference, Energy

# Student's t for 95 %, two-sided, by degrees of freedom. Source: NIST/SEMATECH e-Handbook, 1.3.6.7.2.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_T_BEYOND = ((120, 1.980), (60, 2.000), (40, 2.021))


class EnergyWindow(NamedTuple):
    """A span of time and the energy used in it."""

    start_time: float  # Unix seconds
    end_time: float
    energy: Energy


@dataclass(frozen=True)
class CommandRun:
    """One run of the command; `window` is None if its end could not be read."""

    used: Used
    window: EnergyWindow | None
    versus: Difference | None = None  # against the idle window
    share: Share | None = None
    capacity_seconds: float | None = None  # of the machine's CPUs, within the window
    problems: tuple[str, ...] = ()  # why energy is missing
    warnings: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether its figures may stand beside other runs'."""
        return self.used.code == 0 and self.window is not None and not self.problems


@dataclass(frozen=True)
class Measured:
    """Everything that one `powerbench measure` found."""

    command: tuple[str, ...]
    runs: tuple[CommandRun, ...]
    idle: EnergyWindow | None = None
    notes: tuple[str, ...] = ()  # what a reader of the figures should know

    @property
    def counted(self) -> list[CommandRun]:
        """The runs that the figures are based on: the good ones, else all that have energy."""
        good = [run for run in self.runs if run.good]
        return good or [run for run in self.runs if run.window is not None]


class Mean(NamedTuple):
    """A figure over several runs."""

    mean: float
    half_width: float | None  # of the 95 % confidence interval of the mean; None for one run
    deviation: float | None  # standard, of the runs
    runs: int


class Figure(NamedTuple):
    """One figure of all runs: joules (or joules per frame) and mean watts, one of each per run."""

    key: str  # in the file
    label: str  # in the report
    source: str
    joules: tuple[float, ...]
    watts: tuple[float, ...] = ()


class Attribution(NamedTuple):
    """Joules of one run, and where they come from."""

    joules: float
    source: str


def t_quantile(degrees: int) -> float:
    """Return Student's t for a two-sided 95 % interval; between two known values the wider."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    return next((t for known, t in _T_BEYOND if degrees >= known), _T[-1])


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of at least one value, and how certain it is."""
    count = len(values)
    if count < 2:
        return Mean(values[0], None, None, count)
    middle = fsum(values) / count
    deviation = sqrt(fsum((value - middle) ** 2 for value in values) / (count - 1))
    return Mean(middle, t_quantile(count - 1) * deviation / sqrt(count), deviation, count)


def against(window: EnergyWindow, idle: EnergyWindow | None) -> Difference | None:
    """Return what a window drew beyond the idle one; None if their sources differ."""
    return None if idle is None else difference(window.energy, [idle.energy])


# -- figures -----------------------------------------------------------------------------------------


def energy_figures(measured: Measured) -> Iterator[Figure]:
    """Yield what the runs used, in joules and watts."""
    runs = measured.counted
    energies = [run.window.energy for run in runs if run.window is not None]
    if not energies:
        return
    yield from _component_figures(energies)
    source = energies[0].source
    joules = tuple(energy.joules for energy in energies)
    watts = tuple(energy.watts for energy in energies)
    yield Figure("total", "total", source, joules, watts)
    versus = [run.versus for run in runs if run.versus is not None]
    if measured.idle is not None and versus:
        idle_watts = measured.idle.energy.watts
        as_long = tuple(idle_watts * energy.seconds for energy in energies)
        yield Figure("idle", "idle, same duration", source, as_long, (idle_watts,))
        joules = tuple(_delta_joules(each) for each in versus)
        watts = tuple(each.watts for each in versus)
        yield Figure("beyond_idle", "beyond idle", source, joules, watts)
    shares = [run.share for run in runs if run.share is not None and run.share.parts]
    if shares:
        joules = tuple(share.joules for share in shares)
        watts = tuple(share.watts for share in shares)
        yield Figure("share", "share of the command", shares[0].source, joules, watts)


def _component_figures(energies: Sequence[Energy]) -> Iterator[Figure]:
    """Yield a figure for each component and source."""
    every = [part for energy in energies for part in energy.parts]
    for component, source in sorted({part.origin for part in every}):
        parts = [part for part in every if part.origin == (component, source)]
        joules = tuple(part.joules for part in parts)
        watts = tuple(part.watts for part in parts)
        yield Figure(f"{component}_{source}", component, source, joules, watts)


def frame_figures(measured: Measured) -> Iterator[Figure]:
    """Yield joules per frame."""
    for key, label, attributed in (
        ("all_of_the_host", "all of the host", of_host),
        ("beyond_idle", "beyond idle", beyond_idle),
        ("share", "share of the command", of_command),
    ):
        source = ""
        per_frame: list[float] = []
        for run in measured.counted:
            found = attributed(run)
            if found is not None and run.used.frames:
                source = source or found.source
                per_frame.append(found.joules / run.used.frames)
        if per_frame:
            yield Figure(key, label, source, tuple(per_frame))


def of_host(run: CommandRun) -> Attribution | None:
    """Return the joules of the whole machine."""
    if run.window is None:
        return None
    return Attribution(run.window.energy.joules, run.window.energy.source)


def beyond_idle(run: CommandRun) -> Attribution | None:
    """Return the joules beyond those of the idle machine."""
    if run.versus is None or run.window is None:
        return None
    return Attribution(_delta_joules(run.versus), run.window.energy.source)


def of_command(run: CommandRun) -> Attribution | None:
    """Return the joules of the command's share."""
    if run.share is None or not run.share.parts:
        return None
    return Attribution(run.share.joules, run.share.source)


def _delta_joules(versus: Difference) -> float:
    return versus.watt_hours * 3600
