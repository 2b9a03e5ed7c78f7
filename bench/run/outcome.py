"""What a scenario measured: judged, compared, and as the results file holds it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from powerbench_agent.bench.load.clip_filters import changes_of
from powerbench_agent.bench.load.live_input import is_live, shown_input
from powerbench_agent.bench.meter.energy import MeteredEnergy
from powerbench_agent.bench.plan import frame_rate
from powerbench_agent.bench.plan.ladder import described as described_ladder
from powerbench_agent.bench.plan.ladder import enlarged
from powerbench_agent.bench.plan.picture import describe_picture
from powerbench_agent.bench.plan.scenario import format_bitrate, format_bitrates, format_resolution
from powerbench_agent.bench.run import standstill
from powerbench_agent.bench.run.figures import warnings_of
from powerbench_agent.core.results import (
    BASELINE,
    RecordedScenario,
    baselines_of,
    comparable,
    describe_encode,
    describe_energy,
    describe_per_unit,
    describe_versus,
    difference,
    energies_of,
    mean_energy,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from powerbench_agent.bench.plan.scenario import Scenario
    from powerbench_agent.bench.run.figures import RenditionFigures
    from powerbench_agent.core.results import Difference, Encode, Energy

_SHORT = 2.0  # seconds of an encode; counters are written ten to a thousand times a second
_MAX_WINDOW_MISS = 0.02  # of the requested length, by the meters' own clock


@dataclass(frozen=True)
class Outcome:
    """One scenario's figures; `status` is ok, failed or interrupted."""

    scenario: Scenario
    status: str
    error: str = ""
    energy: MeteredEnergy | None = None
    encode: Encode | None = None
    versus: Difference | None = None
    idle: Energy | None = None  # what it is compared with: the mean of its baselines
    baselines: tuple[str, ...] = ()  # their names
    warnings: tuple[str, ...] = ()
    start_time: float | None = None  # Unix seconds of the window
    end_time: float | None = None
    trace: Mapping[str, Any] = field(default_factory=dict)
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)  # encoders and sinks
    per_stream: Mapping[str, Encode] = field(default_factory=dict)
    renditions: tuple[RenditionFigures, ...] = ()  # of ladders
    containers: tuple[str, ...] = ()  # in which the outputs travel
    bytes_of: tuple[str, ...] = ()  # what their bytes are of
    sink: str = ""  # of what kind
    commands: tuple[tuple[str, str], ...] = ()  # (stream, command line) as it was run
    settle: Mapping[str, Any] | None = None
    conditions: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """What is missing of its energy."""
        return self.energy.problems if isinstance(self.energy, MeteredEnergy) else ()

    @property
    def recorded(self) -> RecordedScenario:
        """The scenario as the rules about results files know it."""
        scenario = self.scenario
        return RecordedScenario(
            name=scenario.name,
            type=scenario.type,
            status=self.status,
            group=scenario.group or scenario.name,
            block=scenario.block,
            end_time=self.end_time,
            energy=self.energy,
        )


def judge(outcome: Outcome, baselines: Iterable[RecordedScenario] = (), *, strict: bool = False) -> Outcome:
    """Return the outcome with its verdict: difference to idle, warnings, whether it is usable.

    `baselines`: those of the run so far. A window that lacks part of its energy fails: its figures would
    pass for the whole. With `strict`, so does one that has any warning.
    """
    measured = list(baselines)
    status, error, encode = outcome.status, outcome.error, outcome.encode
    warnings = list(outcome.warnings)
    problem = "; ".join(outcome.problems) or _stream_fault(outcome)
    if outcome.energy is None:
        problem = "the window has no energy reading; see the agent's /health"
    if problem:
        if status == "ok":
            status, error = "failed", problem
        if outcome.energy is not None:
            encode = None
    judged = replace(outcome, status=status, error=error, encode=encode)
    if outcome.energy is not None and not problem:
        held = status == "ok" and not outcome.scenario.pace.is_max
        warnings += energy_warnings(outcome.energy, outcome.scenario.duration if held else None)
        judged = compare(judged, measured)
        idle = energies_of(measured)
        if idle and not any(comparable(outcome.energy, energy) for energy in idle):
            warnings.append("the baseline's joules come from other sources: they are not compared")
    if encode is not None and status != "failed":  # a stream that failed is not to be encoded faster
        warnings += _stream_warnings(outcome)
    if strict and status == "ok" and warnings:
        judged = replace(judged, status="failed", error=f"--strict: {'; '.join(warnings)}")
    return replace(judged, warnings=tuple(warnings))


def compare(outcome: Outcome, baselines: Iterable[RecordedScenario]) -> Outcome:
    """Return the outcome with its difference to those of the baselines that are its own."""
    energy = outcome.energy
    if energy is None or outcome.problems:
        return outcome
    own = baselines_of([outcome.recorded], baselines)
    idle = energies_of(own)
    if not idle:
        return outcome
    names = tuple(baseline.name for baseline in own)
    return replace(outcome, versus=difference(energy, idle), idle=mean_energy(idle), baselines=names)


def _stream_fault(outcome: Outcome) -> str:
    """Return which streams did nothing in the window; "" if all did something."""
    faults = [standstill.fault(name, encode) for name, encode in outcome.per_stream.items()]
    return "; ".join(fault for fault in faults if fault)


def _stream_warnings(outcome: Outcome) -> list[str]:
    """Return how streams differ from what was requested, by name if there are several."""
    found = []
    if lost := outcome.scenario.lost:
        what = f"the stream lacks the clip's HDR metadata ({', '.join(lost)})"
        found.append(f"{what}: this ffmpeg does not pass it on; name a newer one with --ffmpeg")
    for stream in outcome.scenario.streams:
        of = f"{stream.name}: " if len(outcome.per_stream) > 1 else ""
        if (one := outcome.per_stream.get(stream.name)) is not None:
            found += [of + warning for warning in warnings_of(one, stream.asked_kbps, stream.pace)]
    if larger := enlarged(outcome.scenario):
        what = f"{', '.join(larger)} of its ladder is larger than its clip"
        found.append(f"{what}: it is scaled up; give smaller renditions")
    if outcome.scenario.pace.is_max and outcome.energy is not None and outcome.energy.seconds < _SHORT:
        took = f"the encode took {outcome.energy.seconds:.2f} s"
        found.append(f"{took}: too short for its energy to be known well; give a longer clip or --duration")
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
            f"the meters were read {energy.seconds:.2f} s apart, requested {asked_seconds:g} s: "
            "give --token-file, so that the agent reads them at every request"
        )
    return found


def describe(outcome: Outcome) -> dict[str, Any]:
    """Return the scenario as the results file holds it."""
    scenario, energy = outcome.scenario, outcome.energy
    resolution = format_resolution(scenario) if scenario.type != BASELINE else "N/A"
    bitrate = format_bitrates(scenario)
    rates = _bitrates(scenario)
    fps = _describe_rate(scenario)
    return {
        "name": scenario.name,
        "type": scenario.type,
        "group": scenario.group or scenario.name,
        "block": scenario.block,
        "status": outcome.status,
        **({"error": outcome.error} if outcome.error else {}),
        **({"bitrate": bitrate} if bitrate else {}),
        **({"rate": _rate_of(scenario)} if scenario.type != BASELINE else {}),
        "resolution": resolution,
        **fps,
        "duration": scenario.duration,
        "stabilization": scenario.stabilization,
        "cooldown": scenario.cooldown,
        "encoder": _joined(one.encoder for one in scenario.renditions),
        "preset": _joined(one.preset for one in scenario.renditions),
        **({"pix_fmt": scenario.pix_fmt} if scenario.pix_fmt else {}),
        "streams": len(scenario.streams),
        "bitrates": rates,
        **_describe_asked(scenario),
        **_describe_input(scenario),
        "outputs": list(scenario.outputs) or _describe_outputs(scenario),
        **({"sink": outcome.sink} if outcome.sink else {}),
        "start_time": outcome.start_time,
        "end_time": outcome.end_time,
        "energy": describe_energy(energy) if energy else None,
        "warnings": list(outcome.warnings),
        "trace": dict(outcome.trace),
        "settle": outcome.settle,
        "conditions": outcome.conditions,
        **(
            {"commands": [{"stream": name, "command": text} for name, text in outcome.commands]}
            if outcome.commands
            else {}
        ),
        **_describe_comparison(outcome),
    }


def _rate_of(scenario: Scenario) -> str:
    return _joined(str(one.rate) for one in scenario.renditions)


def _joined(values: Iterable[str]) -> str:
    """Return what the renditions have, once if it is the same for all."""
    found = list(values)
    return "+".join(found) if len(set(found)) > 1 else found[0]


def _bitrates(scenario: Scenario) -> list[str]:
    """Return the bitrate of each stream; a ladder's in one text. Empty if they go by quality."""
    if scenario.ladder:
        text = format_bitrates(scenario)
        return [text] * len(scenario.streams) if text else []
    return [format_bitrate(s.video_kbps) for s in scenario.streams] if scenario.rate.has_bitrate else []


def _describe_outputs(scenario: Scenario) -> list[dict[str, Any]]:
    """Return each output of a scenario; a ladder's renditions once, however many ladders there are."""
    fps = _describe_rate(scenario)
    if not scenario.ladder:
        return [
            {**_describe_spent(one), "resolution": str(one.resolution), **fps} for one in scenario.streams
        ]
    return [
        {
            "rendition": one.rendition,
            "resolution": str(one.resolution),
            **fps,
            "encoder": one.encoder,
            "preset": one.preset,
            **_describe_spent(one),
            "pix_fmt": one.pix_fmt,
            **_describe_encoder_options(one),
        }
        for one in scenario.renditions
    ]


def _describe_spent(one: Scenario) -> dict[str, str]:
    if one.rate.has_bitrate:
        return {"bitrate": format_bitrate(one.video_kbps)}
    return {"rate": str(one.rate)}


def _describe_rate(scenario: Scenario) -> dict[str, Any]:
    """Return the frame rate: a number, and the fraction that it stands for if it is not whole."""
    rate = scenario.fps
    whole = isinstance(rate, int)
    return {"fps": frame_rate.number(rate), **({} if whole else {"frame_rate": str(rate)})}


def _describe_asked(scenario: Scenario) -> dict[str, Any]:
    """Return what was asked beyond preset and rate; nothing that was not asked."""
    asked = {
        **_describe_encoder_options(scenario),
        "hwaccel": scenario.hwaccel,
        "pace": "" if scenario.type == BASELINE else str(scenario.pace),
        "part": scenario.part,
        "ladder": described_ladder(scenario),
    }
    return {key: value for key, value in asked.items() if value}


def _describe_encoder_options(scenario: Scenario) -> dict[str, Any]:
    options = ":".join(f"{key}={value}" for key, value in scenario.encoder_options)
    asked = {"gop": scenario.gop, "encoder_options": options, "device": scenario.device}
    return {key: value for key, value in asked.items() if value}


def _describe_input(scenario: Scenario) -> dict[str, Any]:
    """Return which clip is streamed, what it is and what is changed of it; nothing for the test picture."""
    described: dict[str, Any] = {"input": shown_input(scenario.input)} if scenario.input else {}
    if is_live(scenario.input):
        described["input_kind"] = "live"
    if scenario.clip:
        for key, value in scenario.clip._asdict().items():
            described[f"input_{key}"] = value
    if scenario.picture:
        described["input_picture"] = describe_picture(scenario.picture)
        described["changes"] = changes_of(scenario)
    return described


def _describe_comparison(outcome: Outcome) -> dict[str, Any]:
    """Return what the streams did for the energy, and the difference to the baselines, if there are any."""
    energy, encode, versus = outcome.energy, outcome.encode, outcome.versus
    described: dict[str, Any] = {}
    if energy is None:
        return described
    if encode is not None:
        described["encode"] = _describe_encode(outcome, encode, energy)
    if versus is not None:
        described["versus_baseline"] = describe_versus(versus, outcome.baselines, energy, encode)
    return described


def _describe_encode(outcome: Outcome, encode: Encode, energy: Energy) -> dict[str, Any]:
    """Return what all streams of a scenario did together, and each of them."""
    scenario = outcome.scenario
    return {
        **describe_encode(encode),
        "achieved_kbps": encode.kbps,
        "asked_kbps": scenario.asked_kbps,
        "asked_audio_kbps": scenario.audio_kbps if scenario.asked_kbps is not None else None,
        "achieved_fps": encode.fps,
        **describe_per_unit(energy.watts, encode),
        "cpu_seconds": dict(outcome.cpu_seconds),
        "per_stream": [
            {"name": name, **describe_encode(one), "achieved_kbps": one.kbps, "achieved_fps": one.fps}
            for name, one in outcome.per_stream.items()
        ],
        "container": "+".join(outcome.containers),
        "bytes_of": "; ".join(outcome.bytes_of),
        **(
            {"renditions": [_describe_rendition(one) for one in outcome.renditions]}
            if scenario.ladder
            else {}
        ),
        "source": energy.source,
        "grade": energy.grade,
        **({"quality": dict(outcome.quality)} if outcome.quality is not None else {}),
    }


def _describe_rendition(one: RenditionFigures) -> dict[str, Any]:
    return {
        "stream": one.stream,
        "rendition": one.rendition,
        "megabits": one.megabits,
        "achieved_kbps": one.kbps,
        "bytes_of": one.bytes_of,
    }
