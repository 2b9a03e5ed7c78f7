"""Tables and sentences for people: boxed and coloured in a terminal, aligned plain lines elsewhere.

Figures are never cut: names fold, and a terminal too narrow for a table gets its plain lines. Every table of
energy has a column that says where its joules come from.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.statistics.stream_hour import stream_hour
from powerbench_agent.bench.warnings import MIN_SPEED
from powerbench_agent.core.results import settings_of
from powerbench_agent.core.terminal import align, printable, width

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from powerbench_agent.bench.statistics.groups import Analysis, Family, Group
    from powerbench_agent.bench.statistics.stats import Comparison, Interval
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
        _energies_a_unit(analysis),
        *_stream_hours(analysis, rates),
        _families(analysis),
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
    return Table(title, columns, [_power(group) for group in groups]) if groups else None


def _certainties(analysis: Analysis) -> Table | None:
    judged = [group for group in analysis.tests if group.versus and group.versus.p is not None]
    rows = [_certainty(group, group.versus) for group in judged if group.versus]
    columns = [_GROUP, Column("p"), Column("Hedges g"), Column("bootstrap, W"), _SOURCE]
    return Table("Beyond idle (Welch; bootstrap BCa)", columns, rows) if rows else None


def _energies_a_unit(analysis: Analysis) -> Table | None:
    if not any(group.per_frame or group.per_megabit for group in analysis.tests):
        return None
    heads = ("J/frame\nall of host", "J/frame\nbeyond idle", "J/Mbit\nall of host", "J/Mbit\nbeyond idle")
    columns = [_GROUP, *map(Column, heads), _SOURCE]
    return Table("Energy a unit", columns, [_units(group) for group in analysis.tests])


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
            rows.append((group.name, str(group.streams), *figures, group.source))
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
        group.source,
    )


def _certainty(group: Group, versus: Comparison) -> Sequence[str]:
    g = figure(versus.hedges_g, "+.2f")
    return group.name, p_value(versus.p), g, _both(versus.bootstrap), group.source


def _units(group: Group) -> Sequence[str]:
    cells = []
    for cost in (group.per_frame, group.per_megabit):
        cells += [
            figure(cost.whole.mean if cost else None, ".4f"),
            figure(cost.beyond.delta if cost and cost.beyond else None, "+.4f"),
        ]
    return group.name, *cells, group.source


def _families(analysis: Analysis) -> Table | None:
    families = analysis.families
    if not any(family.sustained is not None or family.slope for family in families):
        return None
    heads = ("tried", "sustained", "W a stream\n(slope ± 95 %)")
    return Table(
        f"Streams at once: sustained (speed ≥ {MIN_SPEED}, no drops), and what one more draws",
        [Column("settings", words=True), *map(Column, heads), _SOURCE],
        [_family(family) for family in families],
    )


def _family(family: Family) -> Sequence[str]:
    tried = dict.fromkeys(str(group.streams) for group in family.groups)
    slope = spread(family.slope.slope, family.slope.interval, "+.3f") if family.slope else "-"
    return str(family.settings), " ".join(tried), figure(family.sustained, "d"), slope, family.source


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
    if results.sink:
        parts.append(f"sink {results.sink}")
    return "; ".join(parts)


def sentences(analysis: Analysis, rates: Rates) -> Iterator[str]:
    """Yield what stands below the tables: rates, notes, warnings once a kind, what failed."""
    for group in analysis.tests:
        if group.versus is not None and (said := verdict(group.versus)):
            yield f"{group.name} ({group.source}): {said}."
    if rates.price_per_kwh is not None:
        yield f"A kWh costs {rates.price_per_kwh:g} {rates.currency or '(of no named currency)'}."
    if rates.gco2e_per_kwh is not None:
        yield f"A kWh emits {rates.gco2e_per_kwh:g} gCO2e (source: {rates.gco2e_source or 'not given'})."
    for note in analysis.notes:
        yield f"Note: {note}."
    for text, names, differs in analysis.warnings:
        rest = f" (with other figures: {', '.join(names[1:])})" if differs and names[1:] else ""
        yield f"Warning, {names[0] if differs else ', '.join(names)}{rest}: {text}."
    for scenario, why in analysis.impossible:
        yield f"Left out, {scenario.name}: {why}."
    for scenario in analysis.failed:
        yield f"Left out, {scenario.name}: {scenario.status}{': ' if scenario.error else ''}{scenario.error}."


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
