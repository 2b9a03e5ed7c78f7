"""Where the joules and the CPU seconds of a frame go: decoding, scaling, encoding, each by difference. Pure.

Three kinds of windows of one setting tell it: the whole, one that decodes and scales, and one that only
decodes. Each does all that the one before it does, so what it costs more is its last step. A frame is one of
the content: a ladder decodes it once, however many renditions it encodes.

What is beyond idle is the machine's mean power less that of its baselines, at each window's own rate. At one
rate the idle machine cancels out of a difference; at different rates (`--pace max`) it does not, and without
a baseline there is no figure then. Joules, CPU seconds; intervals are 95 % (Welch), from repeats alone.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.statistics import stats
from powerbench_agent.core.grades import with_grade
from powerbench_agent.core.results import (
    baselines_of,
    energies_of,
    origins_of,
    per_unit,
    repeats,
    settings_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from powerbench_agent.bench.statistics.stats import Comparison, Interval
    from powerbench_agent.core.results import RecordedScenario, Repeats

DECODE, SCALED, WHOLE = "decode", "decode+scale", ""  # what a window does
_LAST_STEPS = {DECODE: "decode", SCALED: "scale", WHOLE: "encode"}
_ALIKE = 0.001  # rates that differ by less: the idle machine's spread cancels out
_COMPARABLE = 0.01  # rates that differ by less are comparable without a baseline


class Step(NamedTuple):
    """What one step of the work costs a frame; None is what the windows do not tell."""

    name: str  # "decode", "scale", "encode"; "whole" for all three
    joules: Comparison | None
    cpu_seconds: Comparison | None


@dataclass(frozen=True, kw_only=True)
class Split:
    """One setting's steps, and the whole that they add up to."""

    name: str  # of the whole's group
    source: str  # "" without energy
    grade: str
    beyond_idle: bool  # else the idle machine is in the joules of decoding and of the whole
    steps: tuple[Step, ...]  # in the order of the work; the whole is the last

    @property
    def graded_source(self) -> str:
        """Where its joules come from, and how good that is: "rapl (1)"; "" without energy."""
        return with_grade(self.source, self.grade)

    @property
    def is_repeated(self) -> bool:
        """Whether its figures have intervals."""
        known = [figure for step in self.steps for figure in (step.joules, step.cpu_seconds) if figure]
        return all(figure.interval is not None for figure in known)


class Incomplete(NamedTuple):
    """A setting of which not all three kinds of windows are there."""

    name: str
    missing: tuple[str, ...]  # "decode", "decode+scale", "whole"


def splits_of(scenarios: Sequence[RecordedScenario]) -> list[Split]:
    """Return the split of each setting of which all three kinds of windows went well."""
    return [_split(*kinds, scenarios) for kinds in _kinds(scenarios) if isinstance(kinds, _Kinds)]


def incomplete_splits(scenarios: Sequence[RecordedScenario]) -> list[Incomplete]:
    """Return the settings that were to be split, and cannot be."""
    return [found for found in _kinds(scenarios) if isinstance(found, Incomplete)]


class _Kinds(NamedTuple):
    """The windows of one setting, by what they do."""

    decode: Repeats
    scaled: Repeats
    whole: Repeats


def _kinds(scenarios: Sequence[RecordedScenario]) -> Iterable[_Kinds | Incomplete]:
    """Yield the windows of each setting that has any part; a part goes to no sink, and is of every one."""
    settings: dict[object, dict[str, list[Repeats]]] = {}
    for same in repeats(scenarios):
        first = same.first
        if not first.is_baseline:
            key = replace(settings_of(first), part="", sink=""), first.streams, origins_of(first)
            settings.setdefault(key, {}).setdefault(first.part, []).append(same)
    for by_part in settings.values():
        if not {DECODE, SCALED} & by_part.keys():
            continue
        if missing := [part for part in _LAST_STEPS if part not in by_part]:
            name = next(iter(by_part.values()))[0].first.group
            yield Incomplete(name, tuple(part or "whole" for part in missing))
            continue
        for whole in by_part[WHOLE]:
            yield _Kinds(by_part[DECODE][0], by_part[SCALED][0], whole)


def _split(decode: Repeats, scaled: Repeats, whole: Repeats, scenarios: Sequence[RecordedScenario]) -> Split:
    windows = [window for same in (decode, scaled, whole) for window in same.windows]
    resting = energies_of(baselines_of(windows, scenarios)) if whole.energies else []
    idle = [energy.mean_watts for energy in resting]
    joules = [_joules(same.windows) for same in (decode, scaled, whole)]
    cpu = [_cpu_seconds(same.windows) for same in (decode, scaled, whole)]
    steps = [
        Step(name, _more(joules, place, idle), _more(cpu, place, []))
        for place, name in enumerate(_LAST_STEPS.values())
    ]
    steps.append(Step("whole", _beyond(joules[-1], None, idle), _beyond(cpu[-1], None, [])))
    return Split(
        name=whole.name,
        source=whole.source,
        grade=whole.grade,
        beyond_idle=bool(idle),
        steps=tuple(steps),
    )


class _Sample(NamedTuple):
    """What a frame cost in each repeat."""

    figures: list[float]
    seconds: float  # a frame; 0 for what the idle machine has no part in


def _joules(windows: Iterable[RecordedScenario]) -> _Sample | None:
    figures, rates = [], []
    for window in windows:
        frames, encode, energy = _frames(window), window.encode, window.energy
        if frames is None or encode is None or energy is None or energy.impossible:
            continue
        joules = per_unit(energy.mean_watts, frames, encode.seconds)
        if joules is not None:
            figures.append(joules)
            rates.append(frames / encode.seconds)
    return _Sample(figures, 1 / statistics.harmonic_mean(rates)) if figures else None


def _cpu_seconds(windows: Iterable[RecordedScenario]) -> _Sample | None:
    figures = []
    for window in windows:
        frames, encode = _frames(window), window.encode
        used = encode.encoder_cpu_seconds if encode else None
        if frames is not None and used is not None:
            figures.append(used / frames)
    return _Sample(figures, 0.0) if figures else None


def _frames(window: RecordedScenario) -> float | None:
    """Return how many frames of the content went through; None if that is not known."""
    encode = window.encode
    if encode is None:
        return None
    frames = encode.frames
    if window.ladder:  # its frames are those of one rendition, or of all
        frames = None if encode.media_seconds is None else encode.media_seconds * window.fps
    return frames if frames is not None and 0 < frames < math.inf else None


def _more(samples: Sequence[_Sample | None], place: int, idle: Sequence[float]) -> Comparison | None:
    """Return what a window costs a frame beyond the one before it."""
    before = samples[place - 1] if place else None
    if place and before is None:
        return None
    return _beyond(samples[place], before, idle)


def _beyond(work: _Sample | None, before: _Sample | None, idle: Sequence[float]) -> Comparison | None:
    """Return a sample beyond another, or beyond idle; `idle`: the baselines' watts, if there are any."""
    if work is None:
        return None
    plus, minus = [stats.moments(work.figures)], []
    seconds = work.seconds  # in which the idle machine drew power for nothing, a frame
    if before is not None:
        minus.append(stats.moments(before.figures))
        seconds -= before.seconds
    if not idle:
        unlike = before is not None and abs(seconds) > _COMPARABLE * work.seconds
        return None if unlike else stats.contrast(plus, minus)
    if abs(seconds) <= _ALIKE * work.seconds:
        return _shifted(stats.contrast(plus, minus), -seconds * statistics.fmean(idle))
    resting = stats.moments([watts * abs(seconds) for watts in idle])
    (minus if seconds > 0 else plus).append(resting)
    return stats.contrast(plus, minus)


def _shifted(found: Comparison, by: float) -> Comparison:
    interval: Interval | None = None
    if found.interval is not None:
        interval = stats.Interval(found.interval.low + by, found.interval.high + by)
    return found._replace(delta=found.delta + by, interval=interval)
