"""What a results file says: its repeats as groups, each with figures and how sure they are. Pure.

A group is the repeats under one name, of the same settings and the same sources of energy: an estimate is
never averaged with a measurement. Each test group stands against the baselines of its own blocks. A family
is the groups that differ in the number of streams only; where a stream is a ladder of renditions, in that of
ladders. A group that did only a part of the work, decoding for example, is in no ranking and no family.

Units: watts, joules; intervals are 95 %. Every figure is of the host alone: no network, no viewer.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.statistics import stats
from powerbench_agent.bench.statistics.split import incomplete_splits, splits_of
from powerbench_agent.bench.warnings import kind_of_warning, least_speed
from powerbench_agent.core.grades import ESTIMATED, with_grade
from powerbench_agent.core.results import (
    Conclusion,
    baselines_of,
    energies_of,
    origins_of,
    per_unit,
    repeats,
    settings_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from powerbench_agent.bench.statistics.split import Incomplete, Split
    from powerbench_agent.bench.statistics.stats import Comparison, Slope, Summary
    from powerbench_agent.core.results import (
        Encode,
        Origin,
        RecordedScenario,
        Repeats,
        ResultsFile,
        Settings,
    )
    from powerbench_agent.core.scores import MeanScores

ENOUGH_REPEATS = 5
ILLUSTRATION = "one run is an illustration, not a result"


class Overhead(NamedTuple):
    """What containers took of the CPUs, mean over a window; 100 is one core."""

    engine_cpu_percent: float | None = None
    containers_cpu_percent: float | None = None


_NO_OVERHEAD = Overhead()


class Cost(NamedTuple):
    """Joules a frame or another unit: of all that the host drew, and of what it drew beyond idle."""

    whole: Summary
    beyond: Comparison | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Repeats of one thing."""

    name: str
    repeats: tuple[RecordedScenario, ...]
    settings: Settings
    streams: int  # 0 for a baseline
    source: str
    grade: str
    watts: Summary
    idle: Summary | None = None  # the baselines of the same blocks
    versus: Comparison | None = None  # watts against those
    per_frame: Cost | None = None
    per_megabit: Cost | None = None
    per_megapixel: Cost | None = None
    per_minute: Cost | None = None  # of content
    scores: tuple[MeanScores, ...] = ()  # by rendition
    overhead: Overhead = _NO_OVERHEAD
    outliers: tuple[str, ...] = ()
    rank: int | None = None  # 1 needs the fewest joules a frame, among groups that the same meters measured

    @property
    def measured(self) -> bool:
        """Whether nothing of it is an estimate."""
        return self.grade != ESTIMATED

    @property
    def graded_source(self) -> str:
        """Where its joules come from, and how good that is: "rapl (1)"."""
        return with_grade(self.source, self.grade)

    @property
    def is_whole(self) -> bool:
        """Whether it did what its settings say: neither a part of the work, nor a ladder as one stream."""
        return not self.settings.part and not self.repeats[0].one_stream_for

    @property
    def costs(self) -> dict[str, Cost | None]:
        """Joules a unit, by the unit."""
        return {
            "frame": self.per_frame,
            "megabit": self.per_megabit,
            "megapixel": self.per_megapixel,
            "content_minute": self.per_minute,
        }

    @property
    def is_baseline(self) -> bool:
        """Whether it is the idle machine."""
        return self.repeats[0].is_baseline

    @property
    def min_speed(self) -> float | None:
        """The slowest stream's in any repeat; None where a repeat does not say."""
        speeds = [s.encode.min_speed if s.encode else None for s in self.repeats]
        known = [speed for speed in speeds if speed is not None]
        return min(known) if len(known) == len(speeds) else None

    @property
    def dropped(self) -> int | None:
        """Frames dropped in all repeats together."""
        known = [s.encode.dropped for s in self.repeats if s.encode and s.encode.dropped is not None]
        return sum(known) if known else None

    @property
    def sustained(self) -> bool | None:
        """Whether every stream kept its pace in every repeat; None if it has none, or that is not known."""
        least = least_speed(self.repeats[0].asked_speed)
        if least is None or self.min_speed is None:
            return None
        return self.min_speed >= least and not self.dropped

    def mean(self, figure: Callable[[Encode], float | None]) -> float | None:
        """Return the mean of an encode's figure over the repeats that have it."""
        known = [value for s in self.repeats if s.encode and (value := figure(s.encode)) is not None]
        return statistics.fmean(known) if known else None

    @property
    def cpu_seconds_per_minute(self) -> float | None:
        """CPU time of the encoders for a minute of content."""
        return self.mean(lambda encode: _quotient(encode.encoder_cpu_seconds, encode.content_minutes))


def _quotient(amount: float | None, of: float | None) -> float | None:
    return amount / of if amount is not None and of is not None and 0 < of < math.inf else None


@dataclass(frozen=True, kw_only=True)
class Family:
    """Groups that differ in the number of streams only."""

    settings: Settings
    source: str
    grade: str
    groups: tuple[Group, ...]
    sustained: int | None  # the largest number of streams that kept their pace; 0: none did; None: not known
    slope: Slope | None  # watts over the number of streams, the baseline at 0; None of one number alone

    @property
    def measured(self) -> bool:
        """Whether nothing of it is an estimate."""
        return self.grade != ESTIMATED

    @property
    def graded_source(self) -> str:
        """Where its joules come from, and how good that is: "rapl (1)"."""
        return with_grade(self.source, self.grade)

    @property
    def counts(self) -> str:
        """What its numbers are of: "streams", or "ladders"."""
        return "ladders" if self.settings.ladder else "streams"


class Warned(NamedTuple):
    """A kind of warning: its text in the first scenario that has it, and all that have it."""

    text: str
    scenarios: tuple[str, ...]
    differs: bool  # the others' figures do


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that a results file says."""

    results: ResultsFile
    tests: tuple[Group, ...]  # best first
    baselines: tuple[Group, ...]
    families: tuple[Family, ...]
    splits: tuple[Split, ...]  # of what was measured step by step
    incomplete: tuple[Incomplete, ...]  # of what was to be
    warnings: tuple[Warned, ...]
    notes: tuple[str, ...]  # what a person is to know of the figures
    unmeasured: tuple[RecordedScenario, ...]  # went well, and have no energy
    impossible: tuple[tuple[RecordedScenario, str], ...]  # went well, with impossible energy, and why
    failed: tuple[RecordedScenario, ...]


def analyze(results: ResultsFile, overheads: Mapping[str, Overhead] | None = None) -> Analysis:
    """Return what the file says; `overheads` by the scenarios' names."""
    scenarios = results.scenarios
    found = groups_of(scenarios, overheads or {})
    tests = _ranked([group for group in found if not group.is_baseline])
    well = [scenario for scenario in scenarios if scenario.went_well]
    return Analysis(
        results=results,
        tests=tuple(tests),
        baselines=tuple(group for group in found if group.is_baseline),
        families=tuple(_families(tests, scenarios)),
        splits=tuple(splits_of(scenarios)),
        incomplete=tuple(incomplete_splits(scenarios)),
        warnings=tuple(kinds_of_warnings(scenarios)),
        notes=tuple(_notes(tests, found)),
        unmeasured=tuple(scenario for scenario in well if scenario.energy is None),
        impossible=tuple(_impossible(well)),
        failed=tuple(scenario for scenario in scenarios if not scenario.went_well),
    )


def _impossible(scenarios: Iterable[RecordedScenario]) -> Iterator[tuple[RecordedScenario, str]]:
    """Yield the scenarios whose energy is impossible, each with what is wrong with it."""
    for scenario in scenarios:
        if scenario.energy is not None and scenario.energy.impossible:
            yield scenario, f"its energy is impossible: {scenario.energy.impossible}"


def groups_of(
    scenarios: Sequence[RecordedScenario],
    overheads: Mapping[str, Overhead] | None = None,
    *,
    resample: bool = True,
) -> list[Group]:
    """Return the groups that have valid energy; `resample`: with an interval by bootstrap as well."""
    idle = [scenario for scenario in scenarios if scenario.is_baseline]
    found = []
    for same in repeats(scenarios):
        if same.energies:
            resting = watts_of(baselines_of(same.windows, idle))
            found.append(_group(same, resting, overheads or {}, resample=resample))
    return found


def conclude(scenarios: Sequence[RecordedScenario]) -> list[Conclusion]:
    """Return how sure the difference of each repeated test is: for readers of the file without statistics."""
    idle = [scenario for scenario in scenarios if scenario.is_baseline]
    found = []
    for same in repeats(scenarios):
        resting = watts_of(baselines_of(same.windows, idle)) if same.energies else []
        if not resting:
            continue
        versus = stats.compare(watts_of(same.windows), resting, resample=False)
        if versus.interval is not None:
            low, high = versus.interval
            found.append(Conclusion(group=same.name, source=same.source, low=low, high=high))
    return found


def watts_of(scenarios: Iterable[RecordedScenario]) -> list[float]:
    """Return each valid window's mean watts."""
    return [energy.mean_watts for energy in energies_of(scenarios)]


def _group(
    same: Repeats, resting: Sequence[float], overheads: Mapping[str, Overhead], *, resample: bool
) -> Group:
    windows, watts = same.windows, watts_of(same.windows)
    outliers = stats.outliers(watts)
    return Group(
        name=same.name,
        repeats=windows,
        settings=settings_of(same.first),
        streams=same.first.streams,
        source=same.source,
        grade=same.grade,
        watts=stats.summarize(watts),
        idle=stats.summarize(resting) if resting else None,
        versus=stats.compare(watts, resting, resample=resample) if resting else None,
        per_frame=cost(windows, resting, lambda encode: encode.frames),
        per_megabit=cost(windows, resting, lambda encode: encode.megabits),
        per_megapixel=cost(windows, resting, lambda encode: encode.megapixels),
        per_minute=cost(windows, resting, lambda encode: encode.content_minutes),
        scores=tuple(same.scores),
        overhead=_overhead([overheads[window.name] for window in windows if window.name in overheads]),
        outliers=tuple(windows[place].name for place in outliers),
    )


def cost(
    windows: Iterable[RecordedScenario], resting: Sequence[float], amount: Callable[[Encode], float | None]
) -> Cost | None:
    """Return joules a unit: power by rate, so that the two windows need not be one to the millisecond.

    The idle machine's watts become joules at the repeats' own rate (their harmonic mean), so that the
    difference of the means is the mean of the differences, and Welch's interval knows both spreads.
    """
    figures, rates = [], []
    for window in windows:
        encode, energy = window.encode, window.energy
        if encode is None or energy is None:
            continue
        units = amount(encode)
        joules = per_unit(energy.mean_watts, units, encode.seconds)
        if joules is not None and units is not None:
            figures.append(joules)
            rates.append(units / encode.seconds)
    if not figures:
        return None
    whole = stats.summarize(figures)
    if not resting:
        return Cost(whole, None)
    seconds_per_unit = 1 / statistics.harmonic_mean(rates)
    idle = [watts * seconds_per_unit for watts in resting]
    return Cost(whole, stats.compare(figures, idle, resample=False))


def _overhead(found: Sequence[Overhead]) -> Overhead:
    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    return Overhead(mean(o.engine_cpu_percent for o in found), mean(o.containers_cpu_percent for o in found))


def _ranked(tests: Sequence[Group]) -> list[Group]:
    """Return the groups best first: measured before estimated, those without a rank last.

    Only what the same meters measured is one scale, and an estimate is none. Where one of them has no
    baseline, none is ranked beyond idle: the two are not one scale either.
    """
    ranked: list[Group] = []
    for scale in sorted({_scale(group) for group in tests}):
        alike = [group for group in tests if _scale(group) == scale]
        known = [
            (group.per_frame, group) for group in alike if group.per_frame is not None and _may_rank(group)
        ]
        beyond = all(cost.beyond is not None for cost, _ in known)
        order = sorted(
            known, key=lambda item: item[0].beyond.delta if beyond and item[0].beyond else item[0].whole.mean
        )
        ranked += [replace(group, rank=place) for place, (_, group) in enumerate(order, 1)]
        ranked += [group for group in alike if group.per_frame is None or not _may_rank(group)]
    return ranked


def _scale(group: Group) -> tuple[bool, str, tuple[Origin, ...]]:
    """Return what groups must share for their joules to be compared."""
    return not group.measured, group.source, tuple(sorted(origins_of(group.repeats[0])))


def _may_rank(group: Group) -> bool:
    return group.measured and group.is_whole


def _families(tests: Sequence[Group], scenarios: Sequence[RecordedScenario]) -> list[Family]:
    found: dict[object, list[Group]] = {}
    for group in tests:
        if group.is_whole:
            found.setdefault((group.settings, origins_of(group.repeats[0])), []).append(group)
    families = []
    for alike in found.values():
        members = sorted(alike, key=lambda group: group.streams)
        first = members[0]
        kept_up = [group.streams for group in members if group.sustained]
        known = any(group.sustained is not None for group in members)
        family = Family(
            settings=first.settings,
            source=first.source,
            grade=first.grade,
            groups=tuple(members),
            sustained=max(kept_up, default=0) if known else None,
            slope=_slope(members, scenarios),
        )
        families.append(family)
    return families


def _slope(members: Sequence[Group], scenarios: Sequence[RecordedScenario]) -> Slope | None:
    """Return what one stream more draws; None if all members have as many streams."""
    if len({group.streams for group in members}) < 2:
        return None
    windows = [window for group in members for window in group.repeats]
    points = [(0.0, watts) for watts in watts_of(baselines_of(windows, scenarios))]
    for group in members:
        points += [(float(group.streams), watts) for watts in watts_of(group.repeats)]
    return stats.fit(points)


def kinds_of_warnings(scenarios: Iterable[RecordedScenario]) -> list[Warned]:
    """Return the scenarios' warnings, those that differ in figures only as one."""
    found: dict[str, list[tuple[str, str]]] = {}
    for scenario in scenarios:
        for text in scenario.warnings:
            found.setdefault(kind_of_warning(text), []).append((text, scenario.name))
    return [
        Warned(
            same[0][0], tuple(dict.fromkeys(name for _, name in same)), len({text for text, _ in same}) > 1
        )
        for same in found.values()
    ]


def _notes(tests: Sequence[Group], every: Sequence[Group]) -> Iterable[str]:
    if not all(group.measured for group in every):
        yield (
            "an estimate is a model of CPU time, not a measurement: good for a shape, not to be published, "
            "and never ranked"
        )
    if any(group.watts.n == 1 for group in tests):
        yield f"{ILLUSTRATION}: repeat it, with longer windows, before you conclude"
    few = [f"{group.name} (n = {group.watts.n})" for group in every if group.watts.n < ENOUGH_REPEATS]
    if few:
        yield f"fewer than {ENOUGH_REPEATS} repeats, so intervals are wide: {', '.join(few)}"
    for group in every:
        if group.outliers:
            names = ", ".join(group.outliers)
            yield f"outliers of {group.name}, counted all the same ({stats.OUTLIER_METHOD}): {names}"
    alone = [g.name for g in tests if g.versus is None]
    if alone and any(group.is_baseline for group in every):
        yield f"the baselines' joules come from other sources, they are not compared: {', '.join(alone)}"
    elif alone:
        yield f"no baseline: {', '.join(alone)}; give --with-baseline to know what is beyond idle"
    yield from _unlike_bytes(tests)
    yield from _unlike_models(tests)
    if (doubtful := sum(g.versus is not None and g.versus.p is not None for g in tests)) >= 20:
        yield f"of {doubtful} comparisons, one in twenty shows a difference by chance alone"


def _unlike_bytes(tests: Sequence[Group]) -> Iterable[str]:
    """Yield what the bytes are of where that differs between groups that stand beside each other."""
    for scale in sorted({_scale(group) for group in tests}):
        kinds: dict[str, list[str]] = {}
        for group in tests:
            if _scale(group) == scale and group.is_whole and group.per_megabit is not None:
                counted = {window.encode.counted for window in group.repeats if window.encode}
                kinds.setdefault(" and ".join(sorted(filter(None, counted))), []).append(group.name)
        kinds.pop("", None)
        if len(kinds) > 1:
            told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items())
            yield f"the bytes are not of one kind, so compare no kbps and no J/Mbit across these: {told}"


def _unlike_models(tests: Sequence[Group]) -> Iterable[str]:
    """Yield whose VMAF is not averaged, because different models gave it."""
    for group in tests:
        models = sorted(
            {model for scores in group.scores if len(scores.models) > 1 for model in scores.models}
        )
        if models:
            yield f"VMAF of {group.name} is of different models, so it is not averaged: {', '.join(models)}"
