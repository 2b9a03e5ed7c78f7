"""What a measured command came to: figures over its runs, the report, the file. Pure.

History of `format`:

1. `kind` ("measure"), `date`, `host`, `agents`, `sources`, `exit_code`, `command`, `idle`, `runs[]`,
   `statistics`, `notes`.

Times are Unix seconds, durations seconds, energy joules.
"""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass
from math import fsum, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

from powerbench_agent.bench.run.figures import difference, kind_of_warning
from powerbench_agent.bench.run.outcome import describe_energy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from powerbench_agent.bench.measure.command import Used
    from powerbench_agent.bench.measure.share import Share
    from powerbench_agent.bench.meter.client import Energy
    from powerbench_agent.bench.run.figures import Difference

FORMAT = 1
WIDTH = 80
A_SHARE = "a share by CPU time and GPU use, not a measurement"

# Student's t for 95 %, two-sided, by degrees of freedom. Source: NIST/SEMATECH e-Handbook, 1.3.6.7.2.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_T_BEYOND = ((120, 1.980), (60, 2.000), (40, 2.021))


class Window(NamedTuple):
    """Some time, and its energy."""

    start_time: float  # Unix seconds
    end_time: float
    energy: Energy


@dataclass(frozen=True)
class Run:
    """One run of the command; `window` is None where its end could not be read."""

    used: Used
    window: Window | None
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
    """Everything of one `powerbench measure`."""

    command: tuple[str, ...]
    runs: tuple[Run, ...]
    idle: Window | None = None
    notes: tuple[str, ...] = ()  # what a person is to know of the figures

    @property
    def counted(self) -> list[Run]:
        """The runs that the figures are of: the good ones, else whatever there is."""
        return [run for run in self.runs if run.good] or [run for run in self.runs if run.window is not None]


class Mean(NamedTuple):
    """A figure over several runs."""

    mean: float
    half_width: float | None  # of the 95 % confidence interval of the mean; None for one run
    deviation: float | None  # standard, of the runs
    runs: int


class Row(NamedTuple):
    """One figure of all runs: joules (or joules a frame) and mean watts, one a run."""

    key: str  # in the file
    label: str
    source: str
    joules: tuple[float, ...]
    watts: tuple[float, ...] = ()


def t_quantile(degrees: int) -> float:
    """Return Student's t for a two-sided 95 % interval; between two known ones the wider."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    return next((t for known, t in _T_BEYOND if degrees >= known), _T[-1])


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of at least one value, and how sure it is."""
    count = len(values)
    if count < 2:
        return Mean(values[0], None, None, count)
    middle = fsum(values) / count
    deviation = sqrt(fsum((value - middle) ** 2 for value in values) / (count - 1))
    return Mean(middle, t_quantile(count - 1) * deviation / sqrt(count), deviation, count)


def against(window: Window, idle: Window | None) -> Difference | None:
    """Return what a window drew beyond the idle one; None where they are not of the same sources."""
    if idle is None or {p[:2] for p in window.energy.parts} != {p[:2] for p in idle.energy.parts}:
        return None
    return difference(window.energy, idle.energy)


# -- figures -----------------------------------------------------------------------------------------


def energy_rows(measured: Measured) -> Iterator[Row]:
    """Yield what the runs drew, in joules and watts."""
    runs = measured.counted
    energies = [run.window.energy for run in runs if run.window is not None]
    if not energies:
        return
    for component, source in sorted({part[:2] for energy in energies for part in energy.parts}):
        parts = [p for energy in energies for p in energy.parts if p[:2] == (component, source)]
        joules, watts = tuple(p.joules for p in parts), tuple(p.watts for p in parts)
        yield Row(f"{component}_{source}", component, source, joules, watts)
    source = energies[0].source
    yield Row("total", "total", source, tuple(e.joules for e in energies), tuple(e.watts for e in energies))
    if measured.idle is not None and (versus := [run.versus for run in runs if run.versus is not None]):
        watts_idle = measured.idle.energy.watts
        as_long = tuple(watts_idle * energy.seconds for energy in energies)
        yield Row("idle", "idle, for as long", source, as_long, (watts_idle,))
        joules = tuple(v.watt_hours * 3600 for v in versus)
        yield Row("beyond_idle", "beyond idle", source, joules, tuple(v.watts for v in versus))
    if shares := [run.share for run in runs if run.share is not None and run.share.parts]:
        joules = tuple(s.joules for s in shares)
        yield Row("share", "share of the command", shares[0].source, joules, tuple(s.watts for s in shares))


def frame_rows(measured: Measured) -> Iterator[Row]:
    """Yield joules a frame."""
    runs = [run for run in measured.counted if run.used.frames]

    def row(key: str, label: str, joules: Callable[[Run], tuple[float, str] | None]) -> Iterator[Row]:
        found = [(its, run.used.frames) for run in runs if (its := joules(run)) is not None]
        if found:
            figures = tuple(its[0] / frames for its, frames in found if frames)
            yield Row(key, label, found[0][0][1], figures)

    yield from row(
        "all_of_the_host",
        "all of the host",
        lambda run: (run.window.energy.joules, run.window.energy.source) if run.window else None,
    )
    yield from row(
        "beyond_idle",
        "beyond idle",
        lambda run: (
            (run.versus.watt_hours * 3600, run.window.energy.source) if run.versus and run.window else None
        ),
    )
    yield from row(
        "share",
        "share of the command",
        lambda run: (run.share.joules, run.share.source) if run.share and run.share.parts else None,
    )


def hints(measured: Measured) -> Iterator[str]:
    """Yield what a person is to know beside the figures, each with what to do where something can be done."""
    count = len(measured.runs)
    for number, run in enumerate(measured.runs, 1):
        which = f"run {number} of {count}: " if count > 1 else ""
        if run.used.signal:
            yield f"{which}the command was killed by {run.used.signal}"
        elif run.used.code:
            yield f"{which}the command failed with exit code {run.used.code}"
        yield from (f"{which}{text}" for text in run.problems)
    counted = measured.counted
    if counted and len(counted) < count and counted[0].good:
        yield f"the figures are of the {len(counted)} run{'s' * (len(counted) > 1)} that went well"
    if len(counted) > 1:
        of_idle = "; the idle window was measured once" if measured.idle is not None else ""
        yield f"± is the 95 % confidence interval of the mean over {len(counted)} runs{of_idle}"
    alike: dict[str, list[str]] = {}
    for text in (text for run in counted for text in run.warnings):
        alike.setdefault(kind_of_warning(text), []).append(text)
    for texts in alike.values():
        others = f" (in {len(texts)} runs, with other figures)" if len(set(texts)) > 1 else ""
        yield f"{texts[0]}{others}"
    shares = [run.share for run in counted if run.share is not None]
    if any(share.parts for share in shares):
        yield f"the command's share is {A_SHARE}"
    for what in dict.fromkeys(text for share in shares for text in share.missing):
        yield f"not in the share: {what}"
    yield from measured.notes


# -- the report --------------------------------------------------------------------------------------


def report(measured: Measured) -> str:
    """Return the report for a person: plain text, 80 columns."""
    lines = [_shortened(f"Energy of: {readable(measured.command)}")]
    rows, frames = list(energy_rows(measured)), list(frame_rows(measured))
    if rows:
        pick = slice(None, None, 1 if len(measured.counted) > 1 else 2)  # with the ±, or without
        largest = max(abs(figure) for row in rows for figure in row.joules)
        digits = 3 if largest < 100 else 2 if largest < 100_000 else 0
        lines += ["", _line("", ("J", "±", "W", "±")[pick], "source")]
        for row in rows:
            if row.key == "total" and row.joules == rows[0].joules:
                continue  # of one part
            signed = row.key == "beyond_idle"
            cells = *_cells(row.joules, digits, signed=signed), *_cells(row.watts, 2, signed=signed)
            lines.append(_line(row.label, cells[pick], row.source))
        if frames:
            lines += ["", _line("", ("J/frame", "±", "", "")[pick])]
            for row in frames:
                cells = *_cells(row.joules, 4, signed=row.key == "beyond_idle"), "", ""
                lines.append(_line(row.label, cells[pick], row.source))
        lines += ["", *_elapsed(measured.counted)]
    if found := list(hints(measured)):
        lines.append("")
    for hint in found:
        sentence = f"{hint[0].upper()}{hint[1:]}{'' if hint.endswith('.') else '.'}"
        lines += textwrap.wrap(sentence, WIDTH, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def readable(command: Sequence[str]) -> str:
    """Return a command as a person would type it, on one line, and without what upsets a terminal."""
    return "".join(c if c.isprintable() else "?" for c in shlex.join(command))


def _shortened(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _line(label: str, cells: Sequence[str], source: str = "") -> str:
    """Return a line of the table; `cells`: joules, ±, watts, ±, or without the second and fourth."""
    widths = (11, 9, 10, 9) if len(cells) == 4 else (11, 10)
    figures = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    if len(source) > 17:
        source = source.replace(" ", "")
    return f"{label:22}{figures}  {source}".rstrip()


def _cells(values: Sequence[float], digits: int, *, signed: bool) -> tuple[str, str]:
    """Return a mean and its ±, as far as there are any."""
    if not values:
        return "", ""
    found = mean(values)
    half = "" if found.half_width is None else f"{found.half_width:.{digits}f}"
    return f"{found.mean:{'+' if signed else ''}.{digits}f}", half


def _elapsed(runs: Sequence[Run]) -> Iterator[str]:
    """Yield how long it took, what of the CPUs it had, what it encoded."""

    def said(values: Sequence[float], digits: int) -> str:
        figure, half = _cells(values, digits, signed=False)
        return f"{figure} ± {half}" if half else figure

    yield f"{said([run.used.seconds for run in runs], 3)} s elapsed"
    cpu = said([run.used.cpu_seconds for run in runs], 3)
    of = [100 * r.used.cpu_seconds / r.capacity_seconds for r in runs if r.capacity_seconds]
    share = f", {mean(of).mean:.1f} % of what the machine's CPUs have" if of else ""
    yield f"{cpu} s of CPU time{share}"
    if frames := [run.used.frames for run in runs if run.used.frames]:
        rates = [run.used.frames / run.used.seconds for run in runs if run.used.frames]
        yield f"{mean(frames).mean:.0f} frames, {said(rates, 1)} a second"


# -- the file ----------------------------------------------------------------------------------------


def describe(measured: Measured) -> dict[str, Any]:
    """Return the command, the runs and the statistics as the file holds them."""
    return {
        # What is no text in an argument cannot be in JSON either.
        "command": [
            word.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for word in measured.command
        ],
        "idle": _describe_window(measured.idle) if measured.idle else None,
        "runs": [_describe_run(run) for run in measured.runs],
        "statistics": _statistics(measured),
        "notes": list(hints(measured)),
    }


def _describe_window(window: Window) -> dict[str, Any]:
    return {
        "start_time": window.start_time,
        "end_time": window.end_time,
        "energy": describe_energy(window.energy),
    }


def _describe_run(run: Run) -> dict[str, Any]:
    used, energy = run.used, run.window.energy if run.window else None
    alone = Measured((), (run,))
    described: dict[str, Any] = {
        "exit_code": used.code,
        "signal": used.signal or None,
        "seconds": used.seconds,
        **(
            _describe_window(run.window)
            if run.window
            else {"start_time": None, "end_time": None, "energy": None}
        ),
        "cpu_seconds": {
            "user": used.user_seconds,
            "system": used.system_seconds,
            "tree": used.cpu_seconds,
            "machine": run.capacity_seconds,
        },
        "beyond_idle": None,
        "share": None,
        "frames": used.frames,
        "joules_per_frame": {
            row.key: {"joules": row.joules[0], "source": row.source} for row in frame_rows(alone)
        },
        "problems": list(run.problems),
        "warnings": list(run.warnings),
    }
    if run.versus is not None and energy is not None:
        described["beyond_idle"] = {
            "delta_watts": run.versus.watts,
            "delta_joules": run.versus.watt_hours * 3600,
            "percent": run.versus.percent,
            "source": energy.source,
        }
    if run.share is not None:
        described["share"] = {
            "what": A_SHARE,
            "joules": run.share.joules,
            "mean_watts": run.share.watts,
            "source": run.share.source,
            "parts": [part._asdict() for part in run.share.parts],
            "missing": list(run.share.missing),
        }
    return described


def _statistics(measured: Measured) -> dict[str, Any]:
    runs = measured.counted
    figures: dict[str, Any] = {}
    if runs:
        figures["seconds"] = mean([run.used.seconds for run in runs])._asdict()
        figures["cpu_seconds"] = mean([run.used.cpu_seconds for run in runs])._asdict()
    for row in energy_rows(measured):
        figures[row.key] = {
            "source": row.source,
            "joules": mean(row.joules)._asdict(),
            "watts": mean(row.watts)._asdict(),
        }
    for row in frame_rows(measured):
        figures[f"joules_per_frame_{row.key}"] = {"source": row.source, **mean(row.joules)._asdict()}
    return {
        "of_runs": [number for number, run in enumerate(measured.runs, 1) if run in runs],
        "confidence": 0.95,
        "figures": figures,
    }
