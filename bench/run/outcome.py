"""What a scenario came to: judged, and as the results file holds it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from powerbench_agent.bench.meter.energy import MeteredEnergy, MeteredPart
from powerbench_agent.bench.plan.scenario import AUDIO_KBPS, format_bitrate, format_bitrates
from powerbench_agent.bench.run.figures import Difference, difference, per, warnings_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from powerbench_agent.bench.plan.scenario import Scenario
    from powerbench_agent.bench.run.figures import Encode

_MAX_WINDOW_MISS = 0.02  # of the asked length, by the meters' own clock


@dataclass(frozen=True)
class Outcome:
    """One scenario's figures; `status` is ok, failed or interrupted."""

    scenario: Scenario
    status: str
    error: str = ""
    energy: MeteredEnergy | None = None
    encode: Encode | None = None
    versus: Difference | None = None
    warnings: tuple[str, ...] = ()
    start_time: float | None = None  # Unix seconds of the window
    end_time: float | None = None
    trace: Mapping[str, Any] = field(default_factory=dict)
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)  # encoders and sinks
    per_stream: Mapping[str, Encode] = field(default_factory=dict)
    settle: Mapping[str, Any] | None = None
    conditions: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] | None = None


def judge(outcome: Outcome, idle: MeteredEnergy | None, *, strict: bool = False) -> Outcome:
    """Return the outcome with its verdict: what it drew beyond idle, what to be warned of, whether it holds.

    A window with part of its energy missing fails: its figures would pass for the whole. So does, where
    `strict`, one that there is anything to be warned of.
    """
    energy, encode, status, error = outcome.energy, outcome.encode, outcome.status, outcome.error
    warnings = list(outcome.warnings)
    versus = None
    if energy is None:
        if status == "ok":
            status, error = "failed", "the window has no energy reading; see the agent's /health"
    elif energy.problems:
        if status == "ok":
            status, error = "failed", "; ".join(energy.problems)
        encode = None
    else:
        warnings += energy_warnings(energy, outcome.scenario.duration if status == "ok" else None)
        if idle is not None and {part[:2] for part in energy.parts} == {part[:2] for part in idle.parts}:
            versus = difference(energy, idle)
        elif idle is not None:
            warnings.append("the baseline's joules come from other sources: they are not compared")
    if encode is not None:
        warnings += _stream_warnings(outcome)
    if outcome.scenario.type == "baseline":
        versus = None
    if strict and status == "ok" and warnings:
        status, error = "failed", f"--strict: {'; '.join(warnings)}"
    return replace(
        outcome, status=status, error=error, encode=encode, versus=versus, warnings=tuple(warnings)
    )


def _stream_warnings(outcome: Outcome) -> list[str]:
    """Return what makes streams other than they were asked to be, by name where there are several."""
    found = []
    for stream in outcome.scenario.streams:
        of = f"{stream.name}: " if len(outcome.per_stream) > 1 else ""
        if (one := outcome.per_stream.get(stream.name)) is not None:
            found += [of + warning for warning in warnings_of(one, stream.asked_kbps)]
    return found


def energy_warnings(energy: MeteredEnergy, asked_seconds: float | None) -> list[str]:
    """Return what is odd about a window's energy, each with what to do."""
    found = [
        f"{part.component} ({part.source}) counted nothing: its counter stands still; see the agent's page"
        for part in energy.parts
        if part.joules == 0
    ]
    if asked_seconds and abs(energy.seconds / asked_seconds - 1) > max(_MAX_WINDOW_MISS, 0.2 / asked_seconds):
        found.append(
            f"the meters were read {energy.seconds:.2f} s apart and not {asked_seconds:g} s: "
            "give --token-file, so that the agent reads them whenever it is asked"
        )
    return found


def describe(outcome: Outcome, baseline: str | None) -> dict[str, Any]:
    """Return the scenario as the results file holds it; `baseline` names what it is compared with."""
    scenario, energy, encode, versus = outcome.scenario, outcome.energy, outcome.encode, outcome.versus
    streams, clip = scenario.type != "baseline", scenario.clip
    bitrate = format_bitrates(scenario)
    resolution = str(scenario.resolution) if streams else "N/A"
    rates = [format_bitrate(stream.video_kbps) for stream in scenario.streams]
    ladder = [{"bitrate": rate, "resolution": resolution, "fps": scenario.fps} for rate in rates]
    described: dict[str, Any] = {
        "name": scenario.name,
        "type": scenario.type,
        "group": scenario.group or scenario.name,
        "block": scenario.block,
        "status": outcome.status,
        **({"error": outcome.error} if outcome.error else {}),
        "bitrate": bitrate,
        "resolution": resolution,
        "fps": scenario.fps,
        "duration": scenario.duration,
        "stabilization": scenario.stabilization,
        "cooldown": scenario.cooldown,
        "encoder": scenario.encoder,
        "preset": scenario.preset,
        "streams": len(scenario.streams),
        "bitrates": rates,
        **({"input": scenario.input} if scenario.input else {}),
        **({f"input_{key}": value for key, value in clip._asdict().items()} if clip else {}),
        "outputs": list(scenario.outputs) or ladder,
        "start_time": outcome.start_time,
        "end_time": outcome.end_time,
        "energy": describe_energy(energy) if energy else None,
        "warnings": list(outcome.warnings),
        "trace": dict(outcome.trace),
        "settle": outcome.settle,
        "conditions": outcome.conditions,
    }
    if encode is not None and energy is not None:
        described["encode"] = {
            **encode._asdict(),
            "achieved_kbps": encode.kbps,
            "asked_kbps": scenario.asked_kbps,
            "asked_audio_kbps": AUDIO_KBPS * len(scenario.streams),
            "achieved_fps": encode.fps,
            **_per_unit(energy.watts, encode),
            "cpu_seconds": dict(outcome.cpu_seconds),
            "per_stream": [
                {"name": name, **one._asdict(), "achieved_kbps": one.kbps, "achieved_fps": one.fps}
                for name, one in outcome.per_stream.items()
            ],
            "source": energy.source,
            **({"quality": dict(outcome.quality)} if outcome.quality is not None else {}),
        }
    if versus is not None and energy is not None:
        described["versus_baseline"] = {
            "baseline": baseline,
            "delta_watts": versus.watts,
            "delta_wh": versus.watt_hours,
            "percent": versus.percent,
            **(_per_unit(versus.watts, encode) if encode else {}),
            "source": energy.source,
        }
    return described


def energy_of(entry: Mapping[str, Any]) -> MeteredEnergy | None:
    """Return the energy of a scenario that a results file holds."""
    said = entry.get("energy")
    if not said:
        return None
    return MeteredEnergy(tuple(MeteredPart(**part) for part in said["parts"]), said["seconds"])


def _per_unit(watts: float, encode: Encode) -> dict[str, float | None]:
    return {
        "joules_per_frame": per(watts, encode.frames, encode.seconds),
        "joules_per_megabit": per(watts, encode.megabits, encode.seconds),
    }


def describe_energy(energy: MeteredEnergy) -> dict[str, Any]:
    """Return a window's energy as files hold it."""
    return {
        "source": energy.source,
        "measured": energy.measured,
        "seconds": energy.seconds,
        "joules": energy.joules,
        "wh": energy.watt_hours,
        "mean_watts": energy.watts,
        "parts": [part._asdict() for part in energy.parts],
    }
