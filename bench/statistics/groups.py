"""What a results file says: its repeats as groups, each with figures and how sure they are. Pure.

A group is the repeats under one name, of the same settings and the same sources of energy: an estimate is
never averaged with a measurement. Each test group stands against the baselines of its own blocks. A family
is the groups that differ in the number of streams only.

Units: watts, joules; intervals are 95 %. Every figure is of the host alone: no network, no viewer.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.run.figures import MIN_SPEED, kind_of_warning
from powerbench_agent.bench.statistics import stats
from powerbench_agent.core.results import Conclusion
from powerbench_agent.core.results import groups as by_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from powerbench_agent.bench.statistics.stats import Comparison, Slope, Summary
    from powerbench_agent.core.results import Encode, ResultsFile, Scenario

ENOUGH_REPEATS = 5
ILLUSTRATION = "one run is an illustration, not a result"
_QUALITIES = ("vmaf", "psnr_db", "ssim")

Sources = frozenset[tuple[str, str]]  # (component, source)


@dataclass(frozen=True)
class Settings:
    """What one stream is; `bitrates` is one where all streams have the same.

    A film is its content, whatever its name; where a file does not say which one it is, its path.
    """

    bitrates: tuple[str, ...]
    resolution: str
    fps: float
    encoder: str
    preset: str
    input: str = field(default="", compare=False)  # the film's name; "" for the test picture
    film: str = ""  # its SHA-256, or its path

    def __str__(self) -> str:
        rates = "+".join(self.bitrates)
        said = f"{rates} {self.resolution} {self.fps:g} fps {self.encoder} {self.preset} {self.input}"
        return said.strip()


class Overhead(NamedTuple):
    """What containers took of the CPUs, mean over a window; 100 is one core."""

    engine_cpu_percent: float | None = None
    containers_cpu_percent: float | None = None


_NO_OVERHEAD = Overhead()


class Cost(NamedTuple):
    """Joules a frame or a megabit: of all that the host drew, and of what it drew beyond idle."""

    whole: Summary
    beyond: Comparison | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Repeats of one thing."""

    name: str
    repeats: tuple[Scenario, ...]
    settings: Settings
    streams: int  # 0 for a baseline
    source: str
    measured: bool
    watts: Summary
    idle: Summary | None = None  # the baselines of the same blocks
    versus: Comparison | None = None  # watts against those
    per_frame: Cost | None = None
    per_megabit: Cost | None = None
    overhead: Overhead = _NO_OVERHEAD
    outliers: tuple[str, ...] = ()
    rank: int | None = None  # 1 needs the fewest joules a frame, among groups of the same source

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
        """Whether every stream kept up in every repeat; None where that is not known."""
        return None if self.min_speed is None else self.min_speed >= MIN_SPEED and not self.dropped

    def mean(self, figure: Callable[[Encode], float | None]) -> float | None:
        """Return the mean of an encode's figure over the repeats that have it."""
        known = [value for s in self.repeats if s.encode and (value := figure(s.encode)) is not None]
        return statistics.fmean(known) if known else None

    def quality(self) -> dict[str, float]:
        """Return the mean of each score that repeats have."""
        found = {}
        for name in _QUALITIES:
            scores = [s.encode.quality.get(name) for s in self.repeats if s.encode and s.encode.quality]
            if known := [score for score in scores if isinstance(score, float)]:
                found[name] = statistics.fmean(known)
        return found


@dataclass(frozen=True, kw_only=True)
class Family:
    """Groups that differ in the number of streams only."""

    settings: Settings
    source: str
    measured: bool
    groups: tuple[Group, ...]
    sustained: int | None  # the largest number of streams that kept up; 0: none did; None: not known
    slope: Slope | None  # watts over the number of streams, the baseline at 0; None of one number alone


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
    warnings: tuple[Warned, ...]
    notes: tuple[str, ...]  # what a person is to know of the figures
    unmeasured: tuple[Scenario, ...]  # went well, and have no energy
    impossible: tuple[tuple[Scenario, str], ...]  # went well, with energy that cannot be, and why
    failed: tuple[Scenario, ...]


def analyze(results: ResultsFile, overheads: Mapping[str, Overhead] | None = None) -> Analysis:
    """Return what the file says; `overheads` by the scenarios' names."""
    usable = [scenario for scenario in results.scenarios if scenario.status == "ok" and has_energy(scenario)]
    idle = [scenario for scenario in usable if scenario.is_baseline]
    found = _told_apart([_group(repeats, idle, overheads or {}) for repeats in split(usable)])
    tests = _ranked([group for group in found if not group.is_baseline])
    return Analysis(
        results=results,
        tests=tuple(tests),
        baselines=tuple(group for group in found if group.is_baseline),
        families=tuple(_families(tests, idle)),
        warnings=tuple(kinds_of_warnings(results.scenarios)),
        notes=tuple(_notes(tests, found)),
        unmeasured=tuple(s for s in results.scenarios if s.status == "ok" and s.energy is None),
        impossible=tuple(
            (s, f"its energy is impossible: {s.energy.impossible}")
            for s in results.scenarios
            if s.status == "ok" and s.energy is not None and s.energy.impossible
        ),
        failed=tuple(s for s in results.scenarios if s.status != "ok"),
    )


def conclude(results: ResultsFile) -> list[Conclusion]:
    """Return what each repeated test came to: for those who read the file and have no statistics."""
    usable = [scenario for scenario in results.scenarios if scenario.status == "ok" and has_energy(scenario)]
    idle = [scenario for scenario in usable if scenario.is_baseline]
    found = []
    for repeats in split(scenario for scenario in usable if not scenario.is_baseline):
        if not (resting := watts_of(idle_of(repeats, idle))):
            continue
        versus = stats.compare(watts_of(repeats), resting, resample=False)
        if versus.interval is not None and repeats[0].energy is not None:
            source = repeats[0].energy.source
            found.append(Conclusion(group=repeats[0].group, source=source, **versus.interval._asdict()))
    return found


def has_energy(scenario: Scenario) -> bool:
    """Return whether its window has a figure to reckon with."""
    return scenario.energy is not None and not scenario.energy.impossible


def sources_of(scenario: Scenario) -> Sources:
    """Return what a window's joules come from."""
    if scenario.energy is None:
        return frozenset()
    return frozenset((p.component, p.source) for p in scenario.energy.parts) or frozenset(
        {("", scenario.energy.source)}
    )


def settings_of(scenario: Scenario) -> Settings:
    """Return what one of its streams is."""
    rates = scenario.bitrates if len(set(scenario.bitrates)) > 1 else scenario.bitrates[:1]
    return Settings(
        rates,
        scenario.resolution,
        scenario.fps,
        scenario.encoder,
        scenario.preset,
        PurePath(scenario.input).name,
        scenario.input_sha256 or scenario.input,
    )


def split(scenarios: Iterable[Scenario]) -> list[list[Scenario]]:
    """Return the repeats of each group: of one name, one setting and one set of sources."""
    found: dict[object, list[Scenario]] = {}
    for name, repeats in by_name(scenarios).items():
        for scenario in repeats:
            what = name, scenario.is_baseline, settings_of(scenario), scenario.streams, sources_of(scenario)
            found.setdefault(what, []).append(scenario)
    return list(found.values())


def idle_of(repeats: Sequence[Scenario], idle: Iterable[Scenario]) -> list[Scenario]:
    """Return the baselines of the repeats' own blocks, of the same sources; else all of those sources."""
    blocks = {scenario.block for scenario in repeats}
    alike = [scenario for scenario in idle if sources_of(scenario) == sources_of(repeats[0])]
    return [scenario for scenario in alike if scenario.block in blocks] or alike


def watts_of(scenarios: Iterable[Scenario]) -> list[float]:
    """Return each window's mean watts."""
    return [scenario.energy.mean_watts for scenario in scenarios if scenario.energy is not None]


def _group(repeats: Sequence[Scenario], idle: Sequence[Scenario], overheads: Mapping[str, Overhead]) -> Group:
    first, watts = repeats[0], watts_of(repeats)
    resting = [] if first.is_baseline else watts_of(idle_of(repeats, idle))
    energies = [scenario.energy for scenario in repeats if scenario.energy is not None]
    return Group(
        name=first.group,
        repeats=tuple(repeats),
        settings=settings_of(first),
        streams=first.streams,
        source=energies[0].source,
        measured=all(energy.measured for energy in energies),
        watts=stats.summarize(watts),
        idle=stats.summarize(resting) if resting else None,
        versus=stats.compare(watts, resting) if resting else None,
        per_frame=cost(repeats, resting, lambda encode: encode.frames),
        per_megabit=cost(repeats, resting, lambda encode: encode.megabits),
        overhead=_overhead([overheads[s.name] for s in repeats if s.name in overheads]),
        outliers=tuple(repeats[place].name for place in stats.outliers(watts)),
    )


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """Return the groups, those of one name that stream different films with the film's name."""
    films: dict[str, set[str]] = {}
    for group in groups:
        films.setdefault(group.name, set()).add(group.settings.film)
    return [
        replace(group, name=f"{group.name} ({group.settings.input})")
        if len(films[group.name]) > 1 and group.settings.input
        else group
        for group in groups
    ]


def cost(
    repeats: Iterable[Scenario], resting: Sequence[float], amount: Callable[[Encode], float | None]
) -> Cost | None:
    """Return joules a unit: power by rate, so that the two windows need not be one to the millisecond.

    The idle machine's watts become joules at the repeats' own rate (their harmonic mean), so that the
    difference of the means is the mean of the differences, and Welch's interval knows both spreads.
    """
    figures, rates = [], []
    for scenario in repeats:
        encode = scenario.encode
        if encode is None or scenario.energy is None or encode.seconds <= 0:
            continue
        if (units := amount(encode)) and units > 0:
            rates.append(units / encode.seconds)
            figures.append(scenario.energy.mean_watts / rates[-1])
    if not figures:
        return None
    rate = statistics.harmonic_mean(rates)
    beyond = stats.compare(figures, [w / rate for w in resting], resample=False) if resting else None
    return Cost(stats.summarize(figures), beyond)


def _overhead(found: Sequence[Overhead]) -> Overhead:
    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    return Overhead(mean(o.engine_cpu_percent for o in found), mean(o.containers_cpu_percent for o in found))


def _ranked(tests: Sequence[Group]) -> list[Group]:
    """Return the groups best first: measured before estimated, those without a rank last.

    Where one of a source has no baseline, none of them is ranked beyond idle: the two are not one scale.
    """
    ranked: list[Group] = []
    for source in sorted({(not g.measured, g.source) for g in tests}):
        alike = [group for group in tests if (not group.measured, group.source) == source]
        known = [(group.per_frame, group) for group in alike if group.per_frame is not None]
        beyond = all(cost.beyond is not None for cost, _ in known)
        order = sorted(
            known, key=lambda item: item[0].beyond.delta if beyond and item[0].beyond else item[0].whole.mean
        )
        ranked += [replace(group, rank=place) for place, (_, group) in enumerate(order, 1)]
        ranked += [group for group in alike if group.per_frame is None]
    return ranked


def _families(tests: Sequence[Group], idle: Sequence[Scenario]) -> list[Family]:
    found: dict[object, list[Group]] = {}
    for group in tests:
        found.setdefault((group.settings, sources_of(group.repeats[0])), []).append(group)
    families = []
    for alike in found.values():
        members = sorted(alike, key=lambda group: group.streams)
        kept_up = [group.streams for group in members if group.sustained]
        known = any(group.sustained is not None for group in members)
        slope = None
        if len({group.streams for group in members}) > 1:
            repeats = [scenario for group in members for scenario in group.repeats]
            resting = watts_of(idle_of(repeats, idle))
            running = [(s.streams, s.energy.mean_watts) for s in repeats if s.energy is not None]
            slope = stats.fit([*((0.0, watts) for watts in resting), *running])
        families.append(
            Family(
                settings=members[0].settings,
                source=members[0].source,
                measured=members[0].measured,
                groups=tuple(members),
                sustained=max(kept_up, default=0) if known else None,
                slope=slope,
            )
        )
    return families


def kinds_of_warnings(scenarios: Iterable[Scenario]) -> list[Warned]:
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
        yield "an estimate is a model of CPU time, not a measurement: good for a shape, not to be published"
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
    if (doubtful := sum(g.versus is not None and g.versus.p is not None for g in tests)) >= 20:
        yield f"of {doubtful} comparisons, one in twenty shows a difference by chance alone"
