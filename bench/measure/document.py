"""What the JSON file of `powerbench measure` holds. Pure.

History of `format`:

1. `kind` ("measure"), `date`, `host`, `agents`, `sources`, `exit_code`, `command`, `idle`, `runs[]`,
   `statistics`, `notes`.

Times are Unix seconds, durations seconds, energy joules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import structs

from powerbench_agent.bench.load.redact import redact_command
from powerbench_agent.bench.measure.costs import (
    Measured,
    beyond_idle,
    energy_figures,
    frame_figures,
    mean,
)
from powerbench_agent.bench.measure.report import A_SHARE, hints
from powerbench_agent.core.results import describe_energy

if TYPE_CHECKING:
    from powerbench_agent.bench.measure.costs import CommandRun, EnergyWindow
    from powerbench_agent.bench.measure.share import Share

FORMAT = 1


def describe(measured: Measured) -> dict[str, Any]:
    """Return the command, the runs and the statistics."""
    return {
        "command": [_text(word) for word in redact_command(measured.command)],
        "idle": _describe_window(measured.idle) if measured.idle else None,
        "runs": [_describe_run(run) for run in measured.runs],
        "statistics": _statistics(measured),
        "notes": list(hints(measured)),
    }


def _text(argument: str) -> str:
    """Return an argument with bytes that are not UTF-8 replaced: JSON cannot hold them."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _describe_window(window: EnergyWindow | None) -> dict[str, Any]:
    if window is None:
        return {"start_time": None, "end_time": None, "energy": None}
    return {
        "start_time": window.start_time,
        "end_time": window.end_time,
        "energy": describe_energy(window.energy),
    }


def _describe_run(run: CommandRun) -> dict[str, Any]:
    used = run.used
    return {
        "exit_code": used.code,
        "signal": used.signal or None,
        "seconds": used.seconds,
        **_describe_window(run.window),
        "cpu_seconds": {
            "user": used.user_seconds,
            "system": used.system_seconds,
            "tree": used.cpu_seconds,
            "machine": run.capacity_seconds,
        },
        "beyond_idle": _describe_beyond_idle(run),
        "share": _describe_share(run.share) if run.share is not None else None,
        "frames": used.frames,
        "joules_per_frame": _describe_per_frame(run),
        "problems": list(run.problems),
        "warnings": list(run.warnings),
    }


def _describe_beyond_idle(run: CommandRun) -> dict[str, Any] | None:
    found = beyond_idle(run)
    if found is None or run.versus is None:
        return None
    return {
        "delta_watts": run.versus.watts,
        "delta_joules": found.joules,
        "percent": run.versus.percent,
        "source": found.source,
    }


def _describe_share(share: Share) -> dict[str, Any]:
    return {
        "what": A_SHARE,
        "joules": share.joules,
        "mean_watts": share.watts,
        "source": share.source,
        "parts": [structs.asdict(part) for part in share.parts],
        "missing": list(share.missing),
    }


def _describe_per_frame(run: CommandRun) -> dict[str, Any]:
    alone = Measured((), (run,))
    described = {}
    for figure in frame_figures(alone):
        described[figure.key] = {"joules": figure.joules[0], "source": figure.source}
    return described


def _statistics(measured: Measured) -> dict[str, Any]:
    runs = measured.counted
    figures: dict[str, Any] = {}
    if runs:
        figures["seconds"] = mean([run.used.seconds for run in runs])._asdict()
        figures["cpu_seconds"] = mean([run.used.cpu_seconds for run in runs])._asdict()
    for figure in energy_figures(measured):
        figures[figure.key] = {
            "source": figure.source,
            "joules": mean(figure.joules)._asdict(),
            "watts": mean(figure.watts)._asdict(),
        }
    for figure in frame_figures(measured):
        per_frame = mean(figure.joules)._asdict()
        figures[f"joules_per_frame_{figure.key}"] = {"source": figure.source, **per_frame}
    return {
        "of_runs": [number for number, run in enumerate(measured.runs, 1) if run in runs],
        "confidence": 0.95,
        "figures": figures,
    }
