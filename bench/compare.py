"""`powerbench compare`: what changed from one run to another, and whether that is beyond chance.

Groups of the same settings stand beside each other; every difference is B less A. Runs whose machines,
ffmpeg, sinks or sources of energy differ are refused: the difference would be theirs.

Exit codes: 0 compared; 1 refused, or nothing in common; 69 the extra is not there; 78 a file that is not
there, or is not a results file.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from powerbench_agent.bench import exits
from powerbench_agent.bench.analyze.files import Refused, need_extra, read
from powerbench_agent.bench.load.redact import redact_url
from powerbench_agent.core.grades import with_grade
from powerbench_agent.core.results import input_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from powerbench_agent.bench.analyze.tables import Table
    from powerbench_agent.bench.flags import Verbs
    from powerbench_agent.bench.statistics.groups import Analysis, Group
    from powerbench_agent.bench.statistics.stats import Comparison, Moments, Summary
    from powerbench_agent.core.results import ResultsFile, Settings

_HOST = ("machine", "cpu_model", "cpus", "kernel", "governor", "turbo")
_UNKNOWN = "unknown"


class Change(NamedTuple):
    """One figure of a group in both runs."""

    figure: str  # with its unit: a table's title
    unit: str
    form: str
    a: float
    b: float
    difference: Comparison  # B less A


class Pair(NamedTuple):
    """A group that both runs have."""

    name: str
    source: str
    changes: tuple[Change, ...]


def add_parser(verbs: Verbs) -> None:
    """Add the verb."""
    verb = verbs.add_parser(
        "compare",
        help="compare two results files",
        description="Print what changed from run A to run B, and whether that is beyond chance.\n"
        "Runs whose machines, ffmpeg, sinks or sources of energy differ are refused.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(verb)


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    verb.add_argument("a", metavar="A", type=Path, help="a results file: the run before")
    verb.add_argument("b", metavar="B", type=Path, help="a results file: the run after")
    verb.add_argument(
        "--force", action="store_true", help="compare them even if machines, ffmpeg or sources differ"
    )


def main(flags: argparse.Namespace) -> int:
    """Compare two files; return the exit code."""
    try:
        need_extra("compare")
        return _compare(flags)
    except Refused as refused:
        return exits.fail(str(refused), refused.code)


def _compare(flags: argparse.Namespace) -> int:
    from powerbench_agent.bench.analyze import tables  # noqa: PLC0415 - of the extra
    from powerbench_agent.bench.statistics import groups  # noqa: PLC0415 - of the extra

    first, second = read(flags.a), read(flags.b)
    differing = list(differences(first, second))
    if differing and not flags.force:
        what = "\n".join(f"  {line}" for line in differing)
        raise Refused(
            f"{flags.a} and {flags.b} are not comparable; --force compares them all the same. "
            f"What differs (A, B):\n{what}",
            exits.FAILED,
        )
    a, b = groups.analyze(first), groups.analyze(second)
    found, alone = list(pairs(a, b)), unpaired(a, b)
    if not found:
        without = [
            str(path) for path, one in ((flags.a, a), (flags.b, b)) if not one.tests and not one.baselines
        ]
        why = f"no energy in {' and '.join(without)}" if without else "no group with the same settings"
        raise Refused(f"{flags.a} and {flags.b} have nothing to compare: {why}", exits.FAILED)
    console = tables.make_console()
    for label, results in (("A", first), ("B", second)):
        tables.say(console, f"{label}: {tables.head(results)}")
    for line in differing:
        tables.say(console, f"Warning, they differ in {line}")
    tables.show(console, change_tables(found), sentences(found, alone))
    return exits.OK


# -- may they be compared? ---------------------------------------------------------------------------


def differences(a: ResultsFile, b: ResultsFile) -> Iterator[str]:
    """Yield what decides a figure and is not the same, or not known, in both runs."""
    for label, one, other in _decisive(a, b):
        if one != other or one.endswith(_UNKNOWN):
            yield f"{label}: {one}, {other}"


def _decisive(a: ResultsFile, b: ResultsFile) -> Iterator[tuple[str, str, str]]:
    def known(there: bool, value: Any) -> str:  # noqa: FBT001 - private, and named at its calls
        return (_UNKNOWN if value in (None, "") else str(value)) if there else _UNKNOWN

    if not a.host or not b.host:
        yield "host", known(bool(a.host), "known"), known(bool(b.host), "known")
    else:  # what this machine does not say of itself is null, and the same in both
        for key in _HOST:
            yield f"host {key}", str(a.host.get(key)), str(b.host.get(key))
    key = "sha256" if a.ffmpeg.get("sha256") and b.ffmpeg.get("sha256") else "version"
    yield (
        f"ffmpeg {key}",
        known(there=True, value=a.ffmpeg.get(key)),
        known(there=True, value=b.ffmpeg.get(key)),
    )
    yield "sink", known(there=True, value=redact_url(a.sink)), known(there=True, value=redact_url(b.sink))
    yield "energy from", _sources(a), _sources(b)
    ours, theirs = _clips(a), _clips(b)
    for name in sorted(ours.keys() & theirs.keys()):
        if not ours[name] & theirs[name] - {_UNKNOWN}:
            one, other = (f"SHA-256 {' '.join(sorted(its[name]))}" for its in (ours, theirs))
            yield f"input {name}", one, other


def _clips(results: ResultsFile) -> dict[str, set[str]]:
    """Return which clips were streamed under each name: a path says nothing of another machine's."""
    found: dict[str, set[str]] = {}
    for scenario in results.scenarios:
        if scenario.input and scenario.status == "ok":
            name = input_name(scenario.input)
            found.setdefault(name, set()).add(scenario.input_sha256[:12] or _UNKNOWN)
    return found


def _sources(results: ResultsFile) -> str:
    """Return where the joules come from, and their grade: an estimate and a measurement never compare."""
    found = set()
    for scenario in results.scenarios:
        if scenario.status == "ok" and scenario.energy is not None:
            energy = scenario.energy
            parts = [f"{part.component} {part.source}" for part in energy.parts] or [energy.source]
            found |= {with_grade(part, energy.grade) for part in parts}
    return " + ".join(sorted(found)) or _UNKNOWN


# -- what changed ------------------------------------------------------------------------------------


def pairs(a: Analysis, b: Analysis) -> Iterator[Pair]:
    """Yield the groups that both have: of the same settings and streams, then of the same name."""
    for one, other in _matched(a, b):
        ours, theirs = one.graded_source, other.graded_source
        source = ours if ours == theirs else f"{ours} in A, {theirs} in B"
        yield Pair(one.name, source, tuple(_changes(one, other)))


def unpaired(a: Analysis, b: Analysis) -> list[str]:
    """Return the groups that one run alone has, each with the run's letter."""
    matched = [id(group) for pair in _matched(a, b) for group in pair]
    return [
        f"{group.name} ({label})"
        for label, run in (("A", a), ("B", b))
        for group in (*run.tests, *run.baselines)
        if id(group) not in matched
    ]


def _matched(a: Analysis, b: Analysis) -> Iterator[tuple[Group, Group]]:
    left = [*b.tests, *b.baselines]
    for one in (*a.tests, *a.baselines):
        alike = [
            other
            for other in left
            if _alike(other.settings, one.settings, other_sinks=a.results.sink != b.results.sink)
            and (other.streams, other.is_baseline) == (one.streams, one.is_baseline)
        ]
        if alike:
            # The clip itself before another of its name, which --force alone lets through.
            alike.sort(key=lambda group: (group.settings != one.settings, group.name != one.name))
            other = alike[0]
            left.remove(other)
            yield one, other


def _alike(one: Settings, other: Settings, *, other_sinks: bool) -> bool:
    """Return whether two groups have the same settings; clips of one name stand beside each other.

    `other_sinks`: the runs have different sinks, which --force alone lets through; else a group's own counts.
    """
    if other_sinks:
        one, other = replace(one, sink=""), replace(other, sink="")
    return one == other or (one.input == other.input and replace(one, clip="") == replace(other, clip=""))


def _changes(one: Group, other: Group) -> Iterator[Change]:
    from powerbench_agent.bench.statistics import stats  # noqa: PLC0415 - of the extra

    yield _change("Power of the host, W", "W", ".3f", one.watts, other.watts)
    if one.idle is not None and other.idle is not None and one.versus and other.versus:
        # Four means, each with its own spread: Hedges' g needs a common one.
        found = stats.contrast(
            [_moments(other.watts), _moments(one.idle)], [_moments(other.idle), _moments(one.watts)]
        )
        yield Change("Power beyond idle, ΔW", "W", "+.3f", one.versus.delta, other.versus.delta, found)
    for figure, unit in (("J/frame", "frame"), ("J/Mpixel", "megapixel")):
        ours, theirs = one.costs[unit], other.costs[unit]
        if ours is not None and theirs is not None:
            yield _change(f"{figure}, all of the host", figure, ".4f", ours.whole, theirs.whole)


def _change(figure: str, unit: str, form: str, a: Summary, b: Summary) -> Change:
    from powerbench_agent.bench.statistics import stats  # noqa: PLC0415 - of the extra

    found = stats.contrast([_moments(b)], [_moments(a)])
    g = stats.effect(_moments(b), _moments(a))
    return Change(figure, unit, form, a.mean, b.mean, found._replace(hedges_g=g))


def _moments(summary: Summary) -> Moments:
    from powerbench_agent.bench.statistics import stats  # noqa: PLC0415 - of the extra

    return stats.Moments(summary.n, summary.mean, (summary.sd or 0.0) ** 2)


# -- what to say -------------------------------------------------------------------------------------


def change_tables(found: Iterable[Pair]) -> Iterator[Table]:
    """Yield a table for each figure and source of energy."""
    from powerbench_agent.bench.analyze import tables  # noqa: PLC0415 - of the extra

    rows: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for pair in found:
        for change in pair.changes:
            difference, form = change.difference, change.form
            signed = form if form.startswith("+") else f"+{form}"
            rows.setdefault((change.figure, pair.source), []).append(
                (
                    pair.name,
                    format(change.a, form),
                    format(change.b, form),
                    tables.spread(difference.delta, difference.interval, signed),
                    tables.p_value(difference.p),
                    tables.figure(difference.hedges_g, "+.2f"),
                )
            )
    heads = "A", "B", "B - A ± 95 %", "p", "g"
    columns = [tables.Column("group", words=True), *map(tables.Column, heads)]
    for (figure, source), its in rows.items():
        yield tables.Table(f"{figure}: {source}", columns, its)


def sentences(found: Iterable[Pair], alone: Iterable[str]) -> Iterator[str]:
    """Yield what the figures do not show, what cannot be judged, and what has no counterpart."""
    from powerbench_agent.bench.statistics.groups import ILLUSTRATION  # noqa: PLC0415 - of the extra

    single: list[str] = []
    for pair in found:
        for figure, unit, _, _, _, difference in pair.changes:
            if difference.p is None:
                single.append(pair.name)
            elif not difference.detected:
                seen = f"smallest detectable: {difference.detectable or 0:.4g} {unit}"
                what = f"{pair.name}, {figure.partition(',')[0]}, {pair.source}"
                yield f"{what}: no detectable difference ({seen})."
    if single:
        names = ", ".join(dict.fromkeys(single))
        yield f"Note: no interval for {names}: {ILLUSTRATION}; repeat both runs before you conclude."
    if left := list(alone):
        yield f"Note: in one run alone, or with other settings: {', '.join(left)}."
