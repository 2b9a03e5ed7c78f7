"""Tables and sentences for people: boxed and coloured in a terminal, aligned plain lines elsewhere.

Figures are never cut: names fold, and a terminal too narrow for a table gets its plain lines. Every table of
energy has a column that says where its joules come from.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.statistics.split import incomplete_splits, splits_of
from powerbench_agent.bench.statistics.stats import Interval
from powerbench_agent.bench.statistics.stream_hour import stream_hour
from powerbench_agent.bench.warnings import MIN_SPEED
from powerbench_agent.core.results import REALTIME, settings_of
from powerbench_agent.core.terminal import align, printable, width

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from powerbench_agent.bench.statistics.groups import Analysis, Family, Group
    from powerbench_agent.bench.statistics.split import Incomplete, Split
    from powerbench_agent.bench.statistics.stats import Comparison
    from powerbench_agent.core.results import Rates, RecordedScenario, ResultsFile

_NAME_WIDTH = 8  # a name folds to no less
_BOXED_ROWS = 300  # more are for a file, and a box takes seconds to draw

_ORDER = "least J/frame (beyond idle, where known) first"


class Column(NamedTuple):
    """A column; one of words folds in a narrow terminal, one of figures does not."""

    head: str
    words: bool = False


class Table(NamedTuple):
    """One table."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


_GROUP = Column("group", words=True)
_SOURCE = Column("source", words=True)


# -- what to say -------------------------------------------------------------------------------------


def figure(value: float | None, form: str = ".3f") -> str:
    """Return a figure, or a dash where it is not known."""
    return "-" if value is None else format(value, form)


def spread(value: float, interval: Interval | None, form: str = ".3f") -> str:
    """Return a figure and half its interval's width, in the same digits."""
    half = (interval.high - interval.low) / 2 if interval else None
    return format(value, form) + (f" ± {half:{form.removeprefix('+')}}" if half is not None else "")


def p_value(p: float | None) -> str:
    """Return a p-value as papers have it."""
    return "-" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def verdict(versus: Comparison) -> str:
    """Return in words what the figures do not show; "" for a difference beyond chance."""
    if versus.p is None:
        return "no interval and no p: the group or its baseline was measured once"
    if versus.detected:
        return ""
    return f"no detectable difference (smallest detectable: {versus.detectable or 0:.3f} W)"


def _both(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.low:+.3f} to {interval.high:+.3f}"


def analysis_tables(analysis: Analysis, rates: Rates) -> Iterator[Table]:
    """Yield the tables of an analysis; none if no test has energy."""
    tables = [
        _powers(analysis),
        _certainties(analysis),
        *_energies_a_unit(analysis),
        _encoding(analysis),
        _scores(analysis),
        *_stream_hours(analysis, rates),
        _families(analysis),
        split_table(analysis.splits),
        _containers(analysis),
        _unmeasured(analysis),
    ]
    for table in tables:
        if table is not None:
            yield table


def _powers(analysis: Analysis) -> Table | None:
    groups = (*analysis.tests, *analysis.baselines)
    ranked = any(group.rank for group in analysis.tests)
    title = f"Power of the host, {_ORDER}" if ranked else "Power of the host"
    columns = [Column("#"), _GROUP, Column("n"), Column("W ± 95 %"), Column("ΔW ± 95 %"), _SOURCE]
    first = 0 if ranked else 1
    rows = [_power(group)[first:] for group in groups]
    return Table(title, columns[first:], rows) if groups else None


def _certainties(analysis: Analysis) -> Table | None:
    judged = [group for group in analysis.tests if group.versus and group.versus.p is not None]
    rows = [_certainty(group, group.versus) for group in judged if group.versus]
    columns = [_GROUP, Column("p"), Column("Hedges g"), Column("bootstrap, W"), _SOURCE]
    return Table("Beyond idle (Welch; bootstrap BCa)", columns, rows) if rows else None


def _energies_a_unit(analysis: Analysis) -> Iterator[Table]:
    """Yield joules a frame and a megabit, then a megapixel and a minute of content, as far as known."""
    tests = [group for group in analysis.tests if group.is_whole]
    for title, kinds in (
        ("Energy a unit", {"J/frame": "frame", "J/Mbit": "megabit"}),
        (
            "Energy a million pixels, and a minute of content",
            {"J/Mpixel": "megapixel", "J/min": "content_minute"},
        ),
    ):
        if not any(group.costs[unit] for group in tests for unit in kinds.values()):
            continue
        heads = [f"{head}\n{of}" for head in kinds for of in ("all of host", "beyond idle")]
        columns = [_GROUP, *map(Column, heads), _SOURCE]
        yield Table(title, columns, [_units(group, kinds.values()) for group in tests])


def _encoding(analysis: Analysis) -> Table | None:
    """Return how fast it went, and the CPU time that it took: what is known without any meter, too."""
    rows = []
    for group in analysis.tests:
        speed, cpu = group.mean(lambda encode: encode.speed), group.cpu_seconds_per_minute
        if group.is_whole and (speed is not None or cpu is not None):
            figures = speed, group.min_speed, group.mean(lambda encode: encode.fps)
            rows.append((group.name, *(figure(one) for one in figures), figure(cpu, ".2f")))
    heads = "speed", "smallest\nspeed", "frames\na second", "CPU s\na minute of content"
    columns = [_GROUP, *map(Column, heads)]
    return (
        Table("Speed (seconds of content a second), and CPU time of the encoders", columns, rows)
        if rows
        else None
    )


def _scores(analysis: Analysis) -> Table | None:
    """Return the scores of the pictures, a line a rendition."""
    scored = [(group, scores) for group in analysis.tests for scores in group.scores]
    if not scored:
        return None
    forms = {"vmaf": ".2f", "xpsnr": ".2f", "psnr": ".2f", "ssim": ".4f"}
    rows = []
    for group, scores in scored:
        vmaf, *others = (figure(scores.figures.get(measure), form) for measure, form in forms.items())
        pooled = vmaf, figure(scores.vmaf_harmonic, ".2f"), figure(scores.vmaf_p1, ".2f")
        rows.append((group.name, scores.rendition, *pooled, *others, scores.vmaf_model or ""))
    heads = "VMAF\nmean", "VMAF\nharmonic", "VMAF\n1st pct.", "XPSNR\ndB", "PSNR\ndB", "SSIM"
    columns = [_GROUP, Column("rendition"), *map(Column, heads), Column("VMAF model", words=True)]
    if not any(scores.rendition for _, scores in scored):
        columns.pop(1)
        rows = [(name, *figures) for name, _, *figures in rows]
    return Table("Picture, against the source", columns, rows)


def split_table(splits: Sequence[Split]) -> Table | None:
    """Return what each step of the work costs a frame; None without splits."""
    if not splits:
        return None
    metered = any(step.joules for split in splits for step in split.steps)
    rows = []
    for split in splits:
        whole = split.steps[-1]
        for step in split.steps:
            energy = [_per_frame(step.joules, ".2f"), _percent(step.joules, whole.joules)]
            cpu = [_per_frame(step.cpu_seconds, ".3f"), _percent(step.cpu_seconds, whole.cpu_seconds)]
            figures = [*(energy if metered else ()), *cpu, *([split.graded_source] if metered else ())]
            rows.append([split.name, step.name, *figures])
    energies = [Column("mJ/frame\n± 95 %"), Column("%")] if metered else []
    columns = [_GROUP, Column("step", words=True), *energies, Column("CPU ms/frame\n± 95 %"), Column("%")]
    what = "joules of a frame go" if metered else "CPU time of a frame goes"
    beyond = (
        " (beyond idle)" if metered and all(split.beyond_idle for split in splits if split.source) else ""
    )
    return Table(f"Where the {what}{beyond}", [*columns, *([_SOURCE] if metered else ())], rows)


def split_sentences(splits: Iterable[Split], incomplete: Iterable[Incomplete] = ()) -> Iterator[str]:
    """Yield what the table of steps does not show."""
    several = list(splits)
    if single := [split.name for split in several if not split.is_repeated]:
        yield f"Note: no interval for the steps of {', '.join(single)}: measured once; give --repeat 5."
    if idle := [split.name for split in several if split.source and not split.beyond_idle]:
        yield f"Note: no baseline for {', '.join(idle)}: decode and whole include the idle machine."
    for name, missing in incomplete:
        yield f"Note: {name} cannot be split into its steps: no window of {', '.join(missing)} went well."


def _per_frame(found: Comparison | None, form: str) -> str:
    """Return thousandths of a unit a frame."""
    if found is None:
        return "-"
    interval = found.interval and Interval(*(1000 * end for end in found.interval))
    return spread(1000 * found.delta, interval, form)


def _percent(part: Comparison | None, whole: Comparison | None) -> str:
    return f"{100 * part.delta / whole.delta:.0f}" if part and whole and whole.delta > 0 else "-"


def _stream_hours(analysis: Analysis, rates: Rates) -> Iterator[Table]:
    """Yield what a stream costs an hour: in energy, and in money and gas if there are rates."""
    hours = [(group, stream_hour(group, rates)) for group in analysis.tests]
    heads = ("streams", "marginal\n(beyond idle)", "attributional\n(all of host)")
    columns = [_GROUP, *map(Column, heads), _SOURCE]
    for key, unit, form in (
        ("wh", "Wh", ".3f"),
        ("cost", rates.currency or "money", ".6f"),
        ("gco2e", "gCO2e", ".3f"),
    ):
        marginal, whole = f"{key}_per_stream_hour_marginal", f"{key}_per_stream_hour_attributional"
        if not any(whole in hour for _, hour in hours):
            continue
        rows = []
        for group, hour in hours:
            figures = figure(hour.get(marginal), form), figure(hour.get(whole), form)
            if hour:
                rows.append((group.name, str(group.streams), *figures, group.graded_source))
        yield Table(f"A stream for an hour, {unit}", columns, rows)


def _containers(analysis: Analysis) -> Table | None:
    if not any(any(group.overhead) for group in analysis.tests):
        return None
    rows = []
    for group in analysis.tests:
        engine, containers = group.overhead
        rows.append((group.name, figure(engine, ".2f"), figure(containers, ".2f")))
    columns = [_GROUP, Column("engine, %"), Column("containers, %")]
    return Table("Containers, mean CPU (100 % is one core)", columns, rows)


def _power(group: Group) -> Sequence[str]:
    delta = spread(group.versus.delta, group.versus.interval, "+.3f") if group.versus else "-"
    return (
        str(group.rank or ""),
        group.name,
        str(group.watts.n),
        spread(group.watts.mean, group.watts.interval),
        "" if group.is_baseline else delta,
        group.graded_source,
    )


def _certainty(group: Group, versus: Comparison) -> Sequence[str]:
    g = figure(versus.hedges_g, "+.2f")
    return group.name, p_value(versus.p), g, _both(versus.bootstrap), group.graded_source


def _units(group: Group, units: Iterable[str]) -> Sequence[str]:
    cells = []
    for unit in units:
        cost, form = group.costs[unit], ".2f" if unit == "content_minute" else ".4f"
        cells += [
            figure(cost.whole.mean if cost else None, form),
            figure(cost.beyond.delta if cost and cost.beyond else None, f"+{form}"),
        ]
    return group.name, *cells, group.graded_source


def _families(analysis: Analysis) -> Table | None:
    families = analysis.families
    if not any(family.sustained is not None or family.slope for family in families):
        return None
    counts = [what for what in ("streams", "ladders") if any(family.counts == what for family in families)]
    paced = any(family.settings.pace != REALTIME for family in families)
    several_sinks = len({family.settings.sink for family in families}) > 1
    one_more = "W one more" if "ladders" in counts else "W a stream"
    return Table(
        f"{' and '.join(counts).capitalize()} at once: sustained (speed ≥ {MIN_SPEED}"
        f"{' of the pace' if paced else ''}, no drops), and what one more draws",
        [
            Column("settings", words=True),
            Column("tried"),
            Column("sustained"),
            Column(f"{one_more}\n(slope ± 95 %)"),
            _SOURCE,
        ],
        [_family(family, several_sinks=several_sinks) for family in families],
    )


def _family(family: Family, *, several_sinks: bool) -> Sequence[str]:
    tried = " ".join(dict.fromkeys(str(group.streams) for group in family.groups))
    slope = spread(family.slope.slope, family.slope.interval, "+.3f") if family.slope else "-"
    sink = f" to {family.settings.sink}" if several_sinks and family.settings.sink else ""
    sustained = figure(family.sustained, "d")
    if family.counts == "ladders" and family.sustained is not None:
        sustained += " ladder" if family.sustained == 1 else " ladders"
    return f"{family.settings}{sink}", tried, sustained, slope, family.graded_source


def _unmeasured(analysis: Analysis) -> Table | None:
    if not analysis.unmeasured:
        return None
    words = Column("settings", words=True)
    columns = [Column("scenario", words=True), Column("start"), Column("s"), words]
    rows = []
    for scenario in analysis.unmeasured:
        duration = figure(scenario.duration, "g")
        rows.append((scenario.name, _local_time(scenario.start_time), duration, _asked(scenario)))
    return Table("No energy in the file", columns, rows)


def _local_time(moment: float | None) -> str:
    if moment is None:
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    except (OverflowError, OSError, ValueError):
        return f"{moment:g}"


def _asked(scenario: RecordedScenario) -> str:
    if scenario.is_baseline:
        return "idle"
    return str(replace(settings_of(scenario), input=""))


def head(results: ResultsFile) -> str:
    """Return one line: which run, of what machine and ffmpeg."""
    count = len(results.scenarios)
    parts = [f"{results.run_id}: {count} scenario{'' if count == 1 else 's'}"]
    if model := results.host.get("cpu_model"):
        parts.append(f"{model}, {results.host.get('cpus')} CPUs, Linux {results.host.get('kernel')}")
    if version := results.ffmpeg.get("version"):
        parts.append(f"ffmpeg {version}")
    kinds = sorted({scenario.sink for scenario in results.scenarios if scenario.sink and not scenario.part})
    if len(kinds) > 1:
        parts.append(f"sinks {', '.join(kinds)}")
    elif results.sink:
        parts.append(f"sink {results.sink}")
    return "; ".join(parts)


def sentences(analysis: Analysis, rates: Rates) -> Iterator[str]:
    """Yield what stands below the tables: rates, notes, warnings once a kind, what failed."""
    for group in analysis.tests:
        if group.versus is not None and (said := verdict(group.versus)):
            yield f"{group.name}, {group.graded_source}: {said}."
    if rates.price_per_kwh is not None:
        yield f"A kWh costs {rates.price_per_kwh:g} {rates.currency or '(of no named currency)'}."
    if rates.gco2e_per_kwh is not None:
        yield f"A kWh emits {rates.gco2e_per_kwh:g} gCO2e (source: {rates.gco2e_source or 'not given'})."
    for note in (*analysis.notes, *_scored(analysis)):
        yield f"Note: {note}."
    yield from split_sentences(analysis.splits, analysis.incomplete)
    for text, names, differs in analysis.warnings:
        rest = f" (with other figures: {', '.join(names[1:])})" if differs and names[1:] else ""
        yield f"Warning, {names[0] if differs else ', '.join(names)}{rest}: {text}."
    for scenario, why in analysis.impossible:
        yield f"Left out, {scenario.name}: {why}."
    for scenario in analysis.failed:
        yield f"Left out, {scenario.name}: {scenario.status}{': ' if scenario.error else ''}{scenario.error}."


def _scored(analysis: Analysis) -> Iterator[str]:
    """Yield what the scores are of, and which could not be had."""
    scored: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    for group in analysis.tests:
        for window in group.repeats:
            quality = (window.encode and window.encode.quality) or {}
            if isinstance(of := quality.get("of"), str) and window.encode and window.encode.scores:
                scored.setdefault(of, []).append(group.name)
            reasons = quality.get("missing")
            for stream, why in reasons.items() if isinstance(reasons, dict) else ():
                missing.setdefault(str(why), []).append(f"{window.name} {stream}")
    for of, names in scored.items():
        yield f"the picture scores are of {of}: {', '.join(dict.fromkeys(names))}"
    for why, names in missing.items():
        yield f"no picture scores of {', '.join(dict.fromkeys(names))}: {why}"


# -- how it looks ------------------------------------------------------------------------------------


def make_console() -> Console:
    """Return standard output."""
    from rich.console import Console  # noqa: PLC0415 - of the extra

    return Console(file=sys.stdout)


def show(console: Console, tables: Iterable[Table], lines: Iterable[str] = ()) -> None:
    """Print tables and, below them, sentences."""
    for table in tables:
        if console.is_terminal and len(table.rows) <= _BOXED_ROWS and _needed(table) <= console.width:
            _show_boxed(console, table)
        else:
            console.file.write("\n".join(plain(table)) + "\n\n")
    for line in lines:
        say(console, line)


def show_splits(console: Console, scenarios: Sequence[RecordedScenario]) -> None:
    """Print where the joules and the CPU seconds of a frame go, as far as the scenarios tell."""
    splits = splits_of(scenarios)
    table = split_table(splits)
    show(console, [table] if table else [], split_sentences(splits, incomplete_splits(scenarios)))


def say(console: Console, line: str, *, whole: bool = False) -> None:
    """Print a line; a path stays `whole`: no line end comes into it."""
    unwrapped = whole or not console.is_terminal
    console.print(printable(line), highlight=False, markup=False, soft_wrap=unwrapped)


def announce(console: Console, written: Mapping[str, Path | None]) -> None:
    """Say which files were written; `written`: by the name of their format."""
    for name, path in written.items():
        if path is not None and path.is_file():  # and not /dev/stdout
            say(console, f"{name}: {path}", whole=True)


def plain(table: Table) -> list[str]:
    """Return aligned lines."""
    heads = [column.head.replace("\n", " ") for column in table.columns]
    figures = [place for place, column in enumerate(table.columns) if not column.words]
    return [table.title, *align([heads, *table.rows], figures)]


def _show_boxed(console: Console, table: Table) -> None:
    from rich import box  # noqa: PLC0415 - heavy
    from rich.table import Table as Boxed  # noqa: PLC0415 - heavy
    from rich.text import Text  # noqa: PLC0415 - heavy

    boxed = Boxed(title=Text(table.title, "bold"), box=box.ROUNDED, title_justify="left")
    for place, column in enumerate(table.columns):
        style = "bold" if column.words and place < 2 else "dim" if column.words else "green"
        boxed.add_column(
            Text(column.head),
            style=style,
            justify="left" if column.words else "right",
            overflow="fold",
            no_wrap=not column.words,
            min_width=_NAME_WIDTH if column.words else None,
        )
    for row in table.rows:
        boxed.add_row(*(Text(printable(cell)) for cell in row))
    console.print(boxed)


def _needed(table: Table) -> int:
    """Return the columns of a terminal that the box needs before a figure would be cut."""
    needed = 1
    for place, column in enumerate(table.columns):
        cells = [*column.head.split("\n"), *(row[place] for row in table.rows)]
        needed += 3 + (_NAME_WIDTH if column.words else max(map(width, cells)))
    return needed
