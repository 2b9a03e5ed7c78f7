"""A results file as metrics: means over repeats, against the baseline. Pure.

Joules, watts, seconds, and watt-hours where a name says so.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from powerbench_agent.collectors.results.window_query import can_be_asked
from powerbench_agent.core.labels import shorten
from powerbench_agent.core.model import Metric, Sample
from powerbench_agent.core.prometheus_windows import PastWindow
from powerbench_agent.core.results import (
    baselines_of,
    difference,
    energies_of,
    mean,
    per_unit,
    repeats,
    valid,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from powerbench_agent.core.results import Encode, Energy, Rates, RecordedScenario, Repeats, ResultsFile

MAX_NAME = 200  # characters of a label
LABELS = (
    "run_id",
    "scenario",
    "bitrate",
    "rate",
    "resolution",
    "fps",
    "encoder",
    "preset",
    "streams",
    "source",
    "grade",
)


def _gauge(name: str, what: str) -> Metric:
    return Metric(f"results_scenario_{name}", "gauge", f"{what}; mean over repeats.", LABELS)


DELTA_POWER = _gauge("delta_power_watts", "Mean power beyond the baseline of the same block")
DELTA_ENERGY = _gauge("delta_energy_wh", "Energy in Wh beyond the baseline, over the test's own window")
PERCENT = _gauge("power_pct_increase", "Mean power beyond the baseline, in percent of it")
POWER = _gauge("mean_power_watts", "Mean power of the host over the window")
JOULES = _gauge("total_energy_joules", "Energy of the host over the window")
WATT_HOURS = _gauge("total_energy_wh", "The same in Wh")
DURATION = _gauge("duration_seconds", "Length of the window")
FPS = _gauge("avg_fps", "Frames encoded a second, of all streams together")
FRAMES = _gauge("total_frames", "Frames encoded in the window, of all streams together")
DROPPED = _gauge("dropped_frames", "Frames dropped in the window, of all streams together")
MJ_PER_FRAME = _gauge("energy_mj_per_frame", "Energy of the host in mJ a frame encoded")
WH_PER_MBPS = _gauge(
    "energy_wh_per_mbps", "Energy of the host over the window in Wh, divided by the achieved rate in Mbit/s"
)
# Of a difference there is one interval, and of repeats one number: neither is a mean.
LOW = Metric(
    "results_scenario_delta_power_ci_lower_watts",
    "gauge",
    "Lower end of the 95 % interval of the mean power beyond the baselines (Welch); with repeats alone.",
    LABELS,
)
HIGH = Metric(
    "results_scenario_delta_power_ci_upper_watts",
    "gauge",
    "Upper end of the 95 % interval of the mean power beyond the baselines (Welch); with repeats alone.",
    LABELS,
)
REPEATS = Metric("results_scenario_repeats", "gauge", "Windows that the figures are means of.", LABELS)
_OF = "of what the window encoded, or of ten seconds with the same settings, as the results file says"
SCORES = {
    measure: Metric(
        f"results_scenario_{measure}_score",
        "gauge",
        f"{what} {_OF}; mean over streams and repeats.",
        (*LABELS, "rendition"),
    )
    for measure, what in {
        "vmaf": "Mean VMAF, 0 to 100,",
        "xpsnr": "XPSNR in dB, of the worst plane,",
        "psnr": "PSNR in dB",
        "ssim": "SSIM, at most 1,",
    }.items()
}
PER_MEGAPIXEL = _gauge("energy_joules_per_megapixel", "Energy of the host a million pixels encoded")
PER_MINUTE = _gauge("energy_joules_per_content_minute", "Energy of the host a minute of content encoded")
SPEED = _gauge("speed", "Seconds of content a second, the mean of the streams")
COST = _gauge("cost", "Energy of the host at the price of a kWh, in the price's currency")
CO2E = _gauge("co2e_grams", "Energy of the host at the grid's g CO2e a kWh")
METRICS = (
    *(DELTA_POWER, DELTA_ENERGY, PERCENT, POWER, JOULES, WATT_HOURS, DURATION, FPS, FRAMES, DROPPED),
    *SCORES.values(),
    *(MJ_PER_FRAME, WH_PER_MBPS, PER_MEGAPIXEL, PER_MINUTE, SPEED, COST, CO2E, LOW, HIGH, REPEATS),
)


def window_of(scenario: RecordedScenario) -> PastWindow | None:
    """Return the window whose energy the file does not hold; None if it does, or has no window."""
    if not scenario.went_well or valid(scenario):
        return None
    if scenario.start_time is None or scenario.end_time is None:
        return None
    window = PastWindow(scenario.start_time, scenario.end_time)
    return window if can_be_asked(window) else None


def describe(
    found: ResultsFile, run_id: str, rates: Rates, answer: Callable[[PastWindow], Energy | None]
) -> Iterator[list[Sample]]:
    """Yield the samples of each set of repeats, sources apart; no series comes twice.

    `rates`: for a file that names none; `answer`: the energy of a window that the file has none of.
    """
    scenarios = [_with_energy(scenario, answer) for scenario in found.scenarios]
    rates = msgspec.structs.replace(
        found.rates,
        price_per_kwh=_first(found.rates.price_per_kwh, rates.price_per_kwh),
        gco2e_per_kwh=_first(found.rates.gco2e_per_kwh, rates.gco2e_per_kwh),
    )
    told = Counter((one.group, one.source) for one in found.conclusions)
    # Two of one name and source are of different meters: the file does not say which is whose.
    conclusions = {key: one for one in found.conclusions if told[key := (one.group, one.source)] == 1}
    baselines = [scenario for scenario in scenarios if scenario.is_baseline and valid(scenario)]
    shown: dict[tuple[str, ...], Repeats] = {}
    for same in repeats(scenarios):
        labels: tuple[str, ...] = (
            label(run_id),
            label(same.name),
            *_settings(same.first),
            label(same.source),
            same.grade,
        )
        # Sets that only their components tell apart have one series: the set with the most windows has it.
        if labels not in shown or len(same.windows) > len(shown[labels].windows):
            shown[labels] = same
    for labels, same in shown.items():
        idle = energies_of(baselines_of(same.windows, baselines))
        figures = _means(same, idle if baselines else None, rates)
        figures[REPEATS] = len(same.windows)
        conclusion = conclusions.get((same.name, same.source))
        if conclusion is not None and DELTA_POWER in figures:
            figures[LOW], figures[HIGH] = conclusion.low, conclusion.high
        samples = [metric.sample(value, *labels) for metric, value in figures.items() if math.isfinite(value)]
        yield samples + list(_scores(same, labels))


def _scores(same: Repeats, labels: Sequence[str]) -> Iterator[Sample]:
    """Yield the scores, those of each rendition of a ladder."""
    several = len(same.scores) > 1 or same.first.ladder
    by_name = {label(scores.rendition) if several else "": scores for scores in same.scores}
    for rendition, scores in by_name.items():
        for measure, figure in scores.figures.items():
            yield SCORES[measure].sample(figure, *labels, rendition)


def _with_energy(
    scenario: RecordedScenario, answer: Callable[[PastWindow], Energy | None]
) -> RecordedScenario:
    window = window_of(scenario)
    energy = None if window is None else answer(window)
    return scenario if energy is None else msgspec.structs.replace(scenario, energy=energy)


def _means(same: Repeats, idle: Sequence[Energy] | None, rates: Rates) -> dict[Metric, float]:
    """Return the mean of each figure over the repeats that have it.

    `idle`: what they are compared with; None if the file has no baseline, of whatever source.
    """
    values: dict[Metric, list[float]] = {}
    for window in same.windows:
        for metric, value in _figures(window, idle, rates):
            if value is not None and math.isfinite(value):
                values.setdefault(metric, []).append(value)
    return {metric: mean(its) for metric, its in values.items()}


def _figures(
    window: RecordedScenario, idle: Sequence[Energy] | None, rates: Rates
) -> Iterator[tuple[Metric, float | None]]:
    energy, encode = window.energy if valid(window) else None, window.encode
    if encode is not None and (window.part or not 0 < encode.seconds < math.inf):
        encode = None  # a part of the work encodes nothing
    yield DURATION, _seconds(window, energy, encode)
    if energy is not None:
        yield from _energy_figures(energy, rates)
        if not window.is_baseline:
            yield from _said(window) if idle is None else _versus(energy, idle)
    if encode is not None:
        yield from _encode_figures(encode)
        if energy is not None:
            yield from _efficiency_figures(energy, encode)


def _energy_figures(energy: Energy, rates: Rates) -> Iterator[tuple[Metric, float | None]]:
    yield POWER, energy.mean_watts
    yield JOULES, energy.joules
    yield WATT_HOURS, energy.watt_hours
    kilowatt_hours = energy.watt_hours / 1000
    if rates.price_per_kwh is not None:
        yield COST, kilowatt_hours * rates.price_per_kwh
    if rates.gco2e_per_kwh is not None:
        yield CO2E, kilowatt_hours * rates.gco2e_per_kwh


def _said(window: RecordedScenario) -> Iterator[tuple[Metric, float | None]]:
    """Yield the difference that the file says: its baseline is in another file."""
    said = window.versus_baseline
    if said is not None:
        yield DELTA_POWER, said.delta_watts
        yield DELTA_ENERGY, said.delta_wh
        yield PERCENT, said.percent


def _versus(energy: Energy, idle: Sequence[Energy]) -> Iterator[tuple[Metric, float | None]]:
    found = difference(energy, idle)
    if found is not None:
        yield DELTA_POWER, found.watts
        yield DELTA_ENERGY, found.watt_hours
        yield PERCENT, found.percent


def _encode_figures(encode: Encode) -> Iterator[tuple[Metric, float | None]]:
    yield FRAMES, encode.frames
    yield DROPPED, _number(encode.dropped)
    yield FPS, encode.fps
    yield SPEED, encode.speed


def _efficiency_figures(energy: Energy, encode: Encode) -> Iterator[tuple[Metric, float | None]]:
    joules = per_unit(energy.mean_watts, encode.frames, encode.seconds)
    yield MJ_PER_FRAME, None if joules is None else joules * 1000
    if encode.kbps:
        yield WH_PER_MBPS, energy.watt_hours / (encode.kbps / 1000)
    yield PER_MEGAPIXEL, per_unit(energy.mean_watts, encode.megapixels, encode.seconds)
    yield PER_MINUTE, per_unit(energy.mean_watts, encode.content_minutes, encode.seconds)


def _seconds(window: RecordedScenario, energy: Energy | None, encode: Encode | None) -> float | None:
    if energy is not None:
        return energy.seconds
    if encode is not None:
        return encode.seconds
    if window.start_time is not None and window.end_time is not None:
        seconds = window.end_time - window.start_time
    else:
        seconds = window.duration
    return seconds if seconds > 0 else None


def _settings(window: RecordedScenario) -> tuple[str, ...]:
    """Return the labels that say what was asked for."""
    return (
        label(window.bitrate or ",".join(window.bitrates)),
        "" if window.rate == "cbr" else label(window.rate),
        label(window.resolution),
        f"{window.fps:g}" if 0 < window.fps < math.inf else "",
        label(window.encoder),
        label(window.preset),
        label(str(window.streams)),
    )


def label(text: str) -> str:
    """Return a label that every page can hold; "" for one without a value."""
    return "" if text == "N/A" else shorten(text, MAX_NAME)


def _number(value: object) -> float | None:
    """Return a number that a file holds where anything might be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _first(one: float | None, other: float | None) -> float | None:
    return other if one is None else one
