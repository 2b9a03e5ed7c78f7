"""A results file as metrics: means over repeats, against the baseline. Pure.

Joules, watts, seconds, and watt-hours where a name says so.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING

import msgspec

from powerbench_agent.collectors.results.window_query import Window
from powerbench_agent.core.labels import shorten
from powerbench_agent.core.model import Metric, Sample
from powerbench_agent.core.results import baseline_of, groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from powerbench_agent.core.results import Encode, Energy, Rates, ResultsFile, Scenario

MAX_NAME = 200  # characters of a label
LABELS = (
    "run_id",
    "scenario",
    "bitrate",
    "resolution",
    "fps",
    "encoder",
    "preset",
    "streams",
    "source",
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
VMAF = _gauge("vmaf_score", "VMAF of ten seconds with the same settings, 0 to 100")
PSNR = _gauge("psnr_score", "PSNR of ten seconds with the same settings, in dB")
COST = _gauge("cost", "Energy of the host at the price of a kWh, in the price's currency")
CO2E = _gauge("co2e_grams", "Energy of the host at the grid's g CO2e a kWh")
METRICS = (
    *(DELTA_POWER, DELTA_ENERGY, PERCENT, POWER, JOULES, WATT_HOURS, DURATION, FPS, FRAMES, DROPPED),
    *(MJ_PER_FRAME, WH_PER_MBPS, VMAF, PSNR, COST, CO2E, LOW, HIGH, REPEATS),
)


def window_of(scenario: Scenario) -> Window | None:
    """Return the window whose energy the file does not hold; None where it does, or has no window."""
    if scenario.status != "ok" or scenario.energy is not None:
        return None
    if scenario.start_time is None or scenario.end_time is None:
        return None
    window = Window(scenario.start_time, scenario.end_time)
    return window if window.can_be_asked else None


def describe(
    found: ResultsFile, run_id: str, rates: Rates, answer: Callable[[Window], Energy | None]
) -> Iterator[list[Sample]]:
    """Yield the samples of each group of windows that hold, sources apart; no series comes twice.

    `rates`: where the file says nothing; `answer`: a window's energy where the file holds none.
    """
    scenarios = [_with_energy(scenario, answer) for scenario in found.scenarios]
    idle = [s for s in scenarios if s.is_baseline and s.status == "ok" and s.energy is not None]
    rates = msgspec.structs.replace(
        found.rates,
        price_per_kwh=_first(found.rates.price_per_kwh, rates.price_per_kwh),
        gco2e_per_kwh=_first(found.rates.gco2e_per_kwh, rates.gco2e_per_kwh),
    )
    intervals = {(c.group, c.source): (c.low, c.high) for c in found.conclusions}
    seen = set()
    for name, repeats in groups(scenarios).items():
        for source in dict.fromkeys(_source(repeat) for repeat in repeats):
            windows = [repeat for repeat in repeats if _source(repeat) == source]
            labels = (label(run_id), label(name), *_settings(windows[0]), label(source))
            if labels in seen:  # two names that are one once they are cut
                continue
            seen.add(labels)
            figures: dict[Metric, list[float]] = {}
            for window in windows:
                for metric, value in _figures(window, idle, rates):
                    if value is not None and math.isfinite(value):
                        figures.setdefault(metric, []).append(value)
            figures[REPEATS] = [len(windows)]
            if (interval := intervals.get((name, source))) is not None and DELTA_POWER in figures:
                figures[LOW], figures[HIGH] = ([end] for end in interval)
            means = ((metric, _mean(values)) for metric, values in figures.items())
            yield [metric.sample(mean, *labels) for metric, mean in means if math.isfinite(mean)]


def _with_energy(scenario: Scenario, answer: Callable[[Window], Energy | None]) -> Scenario:
    energy = scenario.energy
    if energy is None:
        window = window_of(scenario)
        energy = None if window is None else answer(window)
        return scenario if energy is None else msgspec.structs.replace(scenario, energy=energy)
    sound = (
        all(math.isfinite(value) and value >= 0 for value in (energy.joules, energy.mean_watts))
        and 0 < energy.seconds < math.inf
    )
    return scenario if sound else msgspec.structs.replace(scenario, energy=None)


def _figures(window: Scenario, idle: list[Scenario], rates: Rates) -> Iterator[tuple[Metric, float | None]]:
    energy, encode = window.energy, window.encode
    if encode is not None and not 0 < encode.seconds < math.inf:
        encode = None
    yield DURATION, _seconds(window, energy, encode)
    if energy is not None:
        watt_hours = energy.joules / 3600
        yield POWER, energy.mean_watts
        yield JOULES, energy.joules
        yield WATT_HOURS, watt_hours
        if rates.price_per_kwh is not None:
            yield COST, watt_hours / 1000 * rates.price_per_kwh
        if rates.gco2e_per_kwh is not None:
            yield CO2E, watt_hours / 1000 * rates.gco2e_per_kwh
        if not window.is_baseline:
            yield from _versus(window, energy, idle)
    if encode is None:
        return
    frames = encode.frames
    yield FRAMES, frames
    yield DROPPED, _number(encode.dropped)
    yield FPS, None if frames is None else frames / encode.seconds
    if energy is not None:
        # Power by rate: the two windows need not be one to the millisecond.
        if frames is not None and frames > 0:
            yield MJ_PER_FRAME, energy.mean_watts * encode.seconds / frames * 1000
        if encode.megabits is not None and encode.megabits > 0:
            yield WH_PER_MBPS, energy.joules / 3600 * encode.seconds / encode.megabits
    quality = encode.quality or {}
    yield VMAF, _number(quality.get("vmaf"))
    yield PSNR, _number(quality.get("psnr_db"))


def _versus(window: Scenario, energy: Energy, idle: list[Scenario]) -> Iterator[tuple[Metric, float | None]]:
    baseline = baseline_of(window, idle)
    if baseline is None or baseline.energy is None:
        if (said := window.versus_baseline) is not None:  # the baseline is in another file
            yield DELTA_POWER, said.delta_watts
            yield DELTA_ENERGY, said.delta_wh
            yield PERCENT, said.percent
        return
    if not _comparable(energy, baseline.energy):
        return
    watts = energy.mean_watts - baseline.energy.mean_watts
    yield DELTA_POWER, watts
    yield DELTA_ENERGY, watts * energy.seconds / 3600
    if baseline.energy.mean_watts > 0:
        yield PERCENT, 100 * watts / baseline.energy.mean_watts


def _comparable(one: Energy, other: Energy) -> bool:
    """Return whether the same sources have measured the same components."""
    if one.parts and other.parts:
        return {(p.component, p.source) for p in one.parts} == {(p.component, p.source) for p in other.parts}
    return one.source == other.source


def _seconds(window: Scenario, energy: Energy | None, encode: Encode | None) -> float | None:
    if energy is not None:
        return energy.seconds
    if encode is not None:
        return encode.seconds
    if window.start_time is not None and window.end_time is not None:
        seconds = window.end_time - window.start_time
    else:
        seconds = window.duration
    return seconds if seconds > 0 else None


def _source(window: Scenario) -> str:
    return window.energy.source if window.energy is not None else ""


def _settings(window: Scenario) -> tuple[str, str, str, str, str, str]:
    """Return the labels that say what was asked for."""
    return (
        label(window.bitrate or ",".join(window.bitrates)),
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


def _mean(values: list[float]) -> float:
    try:
        return fmean(values)
    except OverflowError:
        return math.inf
