"""`powerbench analyze --all`: every results file below a directory, as one table of runs and groups.

Each file is parsed, condensed to its rows and dropped, so that thousands need no more memory than one. DuckDB
reads the power traces beside them, some at a time. Watts and joules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb

from powerbench_agent.bench import exits
from powerbench_agent.bench.analyze import export, tables
from powerbench_agent.bench.analyze.files import Refused, check_listable
from powerbench_agent.bench.run.record import trace_path
from powerbench_agent.bench.statistics.groups import groups_of
from powerbench_agent.bench.statistics.stats import Interval
from powerbench_agent.bench.statistics.stream_hour import spread
from powerbench_agent.core.grades import with_grade
from powerbench_agent.core.results import BadResults, ResultsFile, parse_results, repeats

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from powerbench_agent.bench.statistics.groups import Group

_FILES_AT_ONCE = 100  # so that thousands of traces need no more memory than these
_MEMORY = "256MB"

# The highest mean over about a second: of neighbouring readings alone it would be the counters' grain.
_PEAKS = """
WITH second AS (
    SELECT filename, scenario, agent, component, source, key, floor(monotonic) AS second,
        max(joules) AS joules, max(monotonic) AS moment
    FROM read_parquet($files, filename = true) WHERE phase = 'window' GROUP BY ALL),
step AS (
    SELECT *, lag(joules) OVER counter AS joules_before, lag(moment) OVER counter AS moment_before FROM second
    WINDOW counter AS (PARTITION BY filename, scenario, agent, component, source, key ORDER BY second)),
power AS (
    SELECT filename, scenario, second, sum((joules - joules_before) / (moment - moment_before)) AS watts
    FROM step WHERE moment - moment_before >= 0.5 GROUP BY ALL)
SELECT filename, scenario, max(watts) FROM power GROUP BY ALL;
"""
_REAL = "DOUBLE"
COLUMNS = {
    **dict.fromkeys(("run_id", "test_date", "group"), "VARCHAR"),
    **dict.fromkeys(("n", "streams"), "BIGINT"),
    "source": "VARCHAR",
    "measured": "BOOLEAN",
    **dict.fromkeys(("mean_watts", "mean_watts_low", "mean_watts_high", "peak_watts"), _REAL),
    "baseline_n": "BIGINT",
    "baseline_watts": _REAL,
    **dict.fromkeys(("delta_watts", "delta_watts_low", "delta_watts_high"), _REAL),
    **dict.fromkeys(("p_value", "detectable_watts"), _REAL),
    **dict.fromkeys(("joules_per_frame", "joules_per_frame_beyond_idle", "min_speed"), _REAL),
    "file": "VARCHAR",
    "grade": "VARCHAR",
}


class Survey(NamedTuple):
    """Many runs: a row a group, as COLUMNS has it, and what is to be known of them."""

    rows: list[dict[str, Any]]
    notes: list[str]


def main(flags: argparse.Namespace) -> int:
    """Print the table, and write the files that were asked for; return the exit code. Raises: Refused."""
    found = survey(flags.all)
    console = tables.make_console()
    tables.show(console, [_table(found.rows)] if found.rows else [], (f"Note: {n}." for n in found.notes))
    if not found.rows:
        return exits.fail(f"{flags.all}: no scenario went well: nothing to analyse", exits.FAILED)
    try:
        if flags.csv:
            export.write_csv(flags.csv, found.rows, COLUMNS)
        if flags.parquet:
            export.write_parquet(flags.parquet, found.rows, COLUMNS)
    except export.Failed as failed:
        return exits.fail(str(failed), exits.FAILED)
    tables.announce(console, {"CSV": flags.csv, "Parquet": flags.parquet})
    return exits.OK


def survey(directory: Path) -> Survey:
    """Return what all results files below a directory say. Raises: Refused if there is none."""
    check_listable(directory, "--all ")
    paths = sorted(directory.rglob("test_results_*.json"), key=str)
    if not paths:
        raise Refused(f"no test_results_*.json below {directory}", exits.UNAVAILABLE)
    peaks = _read_peaks([trace for path in paths if (trace := trace_path(path)).exists()])
    rows: list[dict[str, Any]] = []
    newer: list[str] = []
    old_ladders: list[str] = []
    broken = list(peaks.broken)
    for path in paths:
        try:
            found = parse_results(path.read_bytes(), path.stem)
        except OSError:
            broken.append(str(path))
        except BadResults as bad:
            (newer if bad.reason == "newer" else broken).append(str(path))
        else:
            rows += _rows(path, found, peaks.watts.get(str(trace_path(path)), {}))
            old_ladders += [str(path)] * any(scenario.one_stream_for for scenario in found.scenarios)
    notes = []
    if broken:
        notes.append(f"left out, no results in them: {', '.join(sorted(broken))}")
    if newer:
        notes.append(f"left out, of a newer format; update powerbench: {', '.join(newer)}")
    if old_ladders:
        notes.append(
            "their ladders were encoded as one stream by the version that wrote them, and have no J/frame; "
            f"measure again: {', '.join(old_ladders)}"
        )
    if any(row["measured"] is False for row in rows):
        notes.append("an estimate is a model of CPU time, not a measurement")
    return Survey(rows, notes)


@dataclass
class _Peaks:
    """The highest power of each scenario."""

    watts: dict[str, dict[str, float]] = field(default_factory=dict)  # by trace and scenario
    broken: list[str] = field(default_factory=list)  # traces that cannot be read


def _read_peaks(traces: Sequence[Path]) -> _Peaks:
    """Read the traces, some at once; if that fails, each alone."""
    found = _Peaks()
    names = [str(trace) for trace in traces]
    with duckdb.connect(config={"memory_limit": _MEMORY, "preserve_insertion_order": "false"}) as database:
        for begin in range(0, len(names), _FILES_AT_ONCE):
            some = names[begin : begin + _FILES_AT_ONCE]
            try:
                rows = database.execute(_PEAKS, {"files": some}).fetchall()
            except duckdb.Error:
                rows = _read_one_by_one(database, some, found.broken)
            for trace, scenario, watts in rows:
                found.watts.setdefault(trace, {})[scenario] = watts
    return found


def _read_one_by_one(
    database: duckdb.DuckDBPyConnection, traces: Sequence[str], broken: list[str]
) -> list[tuple[Any, ...]]:
    """Return the rows of the traces that can be read; `broken` takes the names of the others."""
    rows = []
    for trace in traces:
        try:
            rows += database.execute(_PEAKS, {"files": [trace]}).fetchall()
        except duckdb.Error:
            broken.append(trace)
    return rows


def _rows(path: Path, found: ResultsFile, peaks: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return a file's tests as COLUMNS has them: those with energy, then those without."""
    common = dict.fromkeys(COLUMNS) | {
        "run_id": found.run_id,
        "test_date": found.test_date or None,
        "file": str(path),
    }
    groups = groups_of(found.scenarios, resample=False)
    rows = [common | _row(group, peaks) for group in groups if not group.is_baseline]
    named = {row["group"] for row in rows}
    for same in repeats(found.scenarios):
        first = same.first
        if same.energies or first.is_baseline or (first.energy is not None and first.group in named):
            continue
        rows.append(common | {"group": first.group, "n": 0, "streams": first.streams})
    return sorted(rows, key=lambda row: (row["group"], row["source"] is None, row["source"]))


def _row(group: Group, peaks: Mapping[str, float]) -> dict[str, Any]:
    """Return what is known of a group."""
    measured = [peaks[window.name] for window in group.repeats if window.name in peaks]
    row = {
        "group": group.repeats[0].group,
        "n": group.watts.n,
        "streams": group.streams,
        "source": group.source,
        "measured": group.measured,
        "grade": group.grade or None,
        **spread("mean_watts", group.watts.mean, group.watts.interval),
        "peak_watts": max(measured, default=None),
        "min_speed": group.min_speed,
    }
    if group.idle is not None and group.versus is not None:
        row |= {
            "baseline_n": group.idle.n,
            "baseline_watts": group.idle.mean,
            **spread("delta_watts", group.versus.delta, group.versus.interval),
            "p_value": group.versus.p,
            "detectable_watts": group.versus.detectable,
        }
    if group.per_frame is not None:
        row["joules_per_frame"] = group.per_frame.whole.mean
        if group.per_frame.beyond is not None:
            row["joules_per_frame_beyond_idle"] = group.per_frame.beyond.delta
    return row


def _table(rows: Sequence[dict[str, Any]]) -> tables.Table:
    def with_half(row: dict[str, Any], name: str, form: str) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        interval = None if low is None else Interval(low, high)
        return "-" if row[name] is None else tables.spread(row[name], interval, form)

    heads = "n", "W", "ΔW ± 95 %", "J/frame, all of host"
    columns = [
        tables.Column("run", words=True),
        tables.Column("group", words=True),
        *map(tables.Column, heads),
    ]
    return tables.Table(
        "Runs and groups",
        [*columns, tables.Column("source", words=True)],
        [
            (
                row["run_id"].removeprefix("test_results_"),
                row["group"],
                str(row["n"]),
                tables.figure(row["mean_watts"]),
                with_half(row, "delta_watts", "+.3f"),
                tables.figure(row["joules_per_frame"], ".4f"),
                with_grade(row["source"], row["grade"]) if row["source"] else "-",
            )
            for row in rows
        ],
    )
