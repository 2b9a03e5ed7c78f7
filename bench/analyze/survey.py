"""`powerbench analyze --all`: every results file below a directory, as one table of runs and groups.

DuckDB reads the files, some at a time, and the power traces beside them; what it hands back is counts, means
and variances, which are all that Welch's test needs. Watts and joules.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb

from powerbench_agent.bench import exits
from powerbench_agent.bench.analyze import export, tables
from powerbench_agent.bench.analyze.cli import Refused, announce, listed
from powerbench_agent.bench.run.record import trace_path
from powerbench_agent.bench.statistics import stats
from powerbench_agent.core.results import BASELINE, NEWEST_FORMAT

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

_FILES_AT_ONCE = 100  # so that thousands of files need no more memory than these
_MEMORY = "256MB"

_STRUCTURE = (
    '{"format": "BIGINT", "run_id": "VARCHAR", "test_date": "VARCHAR", "scenarios": [{"name": "VARCHAR", '
    '"type": "VARCHAR", "status": "VARCHAR", "group": "VARCHAR", "block": "BIGINT", "bitrate": "VARCHAR", '
    '"streams": "BIGINT", "input": "VARCHAR", "input_sha256": "VARCHAR", '
    '"energy": {"source": "VARCHAR", "measured": "BOOLEAN", "mean_watts": "DOUBLE", "joules": "DOUBLE", '
    '"seconds": "DOUBLE"}, '
    '"encode": {"frames": "DOUBLE", "seconds": "DOUBLE", "min_speed": "DOUBLE"}}]}'
)
_TABLES = """
CREATE TABLE file (path VARCHAR, run_id VARCHAR, test_date VARCHAR, format BIGINT);
CREATE TABLE scenario (path VARCHAR, name VARCHAR, idle BOOLEAN, ok BOOLEAN, grp VARCHAR, block BIGINT,
    streams BIGINT, film VARCHAR, source VARCHAR, measured BOOLEAN, watts DOUBLE, per_watt DOUBLE,
    min_speed DOUBLE);
CREATE TABLE peak (path VARCHAR, name VARCHAR, watts DOUBLE);
"""
_READ = """
CREATE OR REPLACE TEMP TABLE seen AS
SELECT filename AS path, json_transform(content, $structure) AS found
FROM read_text($files) WHERE json_valid(content);
INSERT INTO file
SELECT path, found.run_id, found.test_date, coalesce(found.format, 0) FROM seen
WHERE found.scenarios IS NOT NULL;
INSERT INTO scenario
SELECT path, s.name,
    CASE WHEN nullif(s.type, '') IS NULL
        THEN contains(lower(s.name), $baseline) OR coalesce(s.bitrate, '') IN ('', '0', '0k')
        ELSE s.type = $baseline END,
    coalesce(s.status, 'ok') = 'ok', coalesce(nullif(s.group, ''), s.name), coalesce(s.block, 0),
    coalesce(s.streams, 1), coalesce(s.input_sha256, s.input, ''), s.energy.source,
    coalesce(s.energy.measured, true),
    CASE WHEN isfinite(s.energy.mean_watts) AND s.energy.mean_watts >= 0
        AND isfinite(s.energy.joules) AND s.energy.joules >= 0
        AND isfinite(s.energy.seconds) AND s.energy.seconds > 0
        THEN s.energy.mean_watts END,
    CASE WHEN s.encode.frames > 0 THEN s.encode.seconds / s.encode.frames END, s.encode.min_speed
FROM (SELECT path, unnest(found.scenarios) AS s FROM seen WHERE coalesce(found.format, 0) <= $newest);
"""
# The highest mean over about a second: of neighbouring readings alone it would be the counters' grain.
_PEAKS = r"""
INSERT INTO peak
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
SELECT regexp_replace(filename, '_trace\.parquet$', '.json'), scenario, max(watts) FROM power GROUP BY ALL;
"""
_GROUPS = """
WITH test AS (
    SELECT s.path, s.grp, s.film, s.source, any_value(s.streams) AS streams, bool_and(s.measured) AS measured,
        count(s.watts) AS n, avg(s.watts) AS mean, coalesce(var_samp(s.watts), 0) AS variance,
        max(p.watts) AS peak, avg(s.watts * s.per_watt) AS per_frame, avg(s.per_watt) AS per_watt,
        min(s.min_speed) AS min_speed, list(DISTINCT s.block) AS blocks
    FROM scenario s LEFT JOIN peak p ON p.path = s.path AND p.name = s.name
    WHERE s.ok AND NOT s.idle GROUP BY s.path, s.grp, s.film, s.source),
resting AS (SELECT * FROM scenario WHERE ok AND idle AND watts IS NOT NULL),
rested AS (SELECT path, source, list(DISTINCT block) AS blocks FROM resting GROUP BY ALL)
SELECT f.run_id, t.path, f.test_date, t.grp, t.film, t.source, t.streams, t.measured, t.n, t.mean,
    t.variance, t.peak, t.per_frame, t.per_watt, t.min_speed,
    count(i.watts) AS idle_n, avg(i.watts) AS idle_mean, coalesce(var_samp(i.watts), 0) AS idle_variance
FROM test t JOIN file f ON f.path = t.path
LEFT JOIN rested r ON r.path = t.path AND r.source = t.source
LEFT JOIN resting i ON i.path = t.path AND i.source = t.source
    AND (list_contains(t.blocks, i.block) OR NOT list_has_any(t.blocks, r.blocks))
GROUP BY ALL ORDER BY t.path, t.grp, t.film, t.source
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
    announce(console, flags.csv, None, flags.parquet)
    return exits.OK


def survey(directory: Path) -> Survey:
    """Return what all results files below a directory say. Raises: Refused where there is none."""
    listed(directory, "--all ")
    paths = sorted(str(path) for path in directory.rglob("test_results_*.json"))
    if not paths:
        raise Refused(f"no test_results_*.json below {directory}", exits.UNAVAILABLE)
    with duckdb.connect(config={"memory_limit": _MEMORY, "preserve_insertion_order": "false"}) as database:
        database.execute(_TABLES)

        def read(files: Sequence[str]) -> None:
            names = {"structure": _STRUCTURE, "baseline": BASELINE, "newest": NEWEST_FORMAT, "files": files}
            for statement in database.extract_statements(_READ):
                wanted = {name: names[name] for name in statement.named_parameters}
                database.execute(statement, wanted)

        broken = _each(database, paths, read)
        traces = [str(trace) for path in paths if (trace := trace_path(Path(path))).exists()]
        broken += _each(database, traces, lambda files: database.execute(_PEAKS, {"files": files}))
        known = dict(database.execute("SELECT path, format FROM file").fetchall())
        cursor = database.execute(_GROUPS)
        names = [column[0] for column in cursor.description or ()]
        rows = [_row(dict(zip(names, values, strict=True))) for values in cursor.fetchall()]
    notes = []
    if broken := sorted({*broken, *(path for path in paths if path not in known)}):
        notes.append(f"left out, no results in them: {', '.join(broken)}")
    if newer := [path for path, form in known.items() if form > NEWEST_FORMAT]:
        notes.append(f"left out, of a newer format; update powerbench: {', '.join(newer)}")
    if any(row["measured"] is False for row in rows):
        notes.append("an estimate is a model of CPU time, not a measurement")
    return Survey(rows, notes)


def _each(
    database: duckdb.DuckDBPyConnection, paths: Sequence[str], read: Callable[[Sequence[str]], object]
) -> list[str]:
    """Read files, some at once; return those that cannot be read, found one by one."""
    broken = []

    def wholly(files: Sequence[str]) -> None:
        database.begin()
        try:
            read(files)
        except duckdb.Error:
            database.rollback()
            raise
        database.commit()

    for begin in range(0, len(paths), _FILES_AT_ONCE):
        files = paths[begin : begin + _FILES_AT_ONCE]
        try:
            wholly(files)
        except duckdb.Error:
            for path in files:
                try:
                    wholly([path])
                except duckdb.Error:
                    broken.append(path)
    return broken


def _row(found: dict[str, Any]) -> dict[str, Any]:
    """Return a group as COLUMNS has it, with what its counts, means and variances say."""
    row = dict.fromkeys(COLUMNS) | {
        "run_id": found["run_id"] or Path(found["path"]).stem,
        "test_date": found["test_date"],
        "group": found["grp"],
        "n": found["n"],
        "streams": found["streams"],
        "min_speed": found["min_speed"],
        "file": found["path"],
    }
    if not found["n"]:  # of an old file: there is no energy in it
        return row
    test = stats.Moments(found["n"], found["mean"], found["variance"])
    mean = stats.contrast([test], [])
    row |= {
        "source": found["source"],
        "measured": found["measured"],
        "mean_watts": test.mean,
        "peak_watts": found["peak"],
        "joules_per_frame": found["per_frame"],
        **_ends("mean_watts", mean),
    }
    if found["idle_n"]:
        idle = stats.Moments(found["idle_n"], found["idle_mean"], found["idle_variance"])
        versus = stats.contrast([test], [idle])
        row |= {
            "baseline_n": idle.n,
            "baseline_watts": idle.mean,
            "delta_watts": versus.delta,
            **_ends("delta_watts", versus),
            "p_value": versus.p,
            "detectable_watts": versus.detectable,
        }
        if found["per_frame"] is not None:
            row["joules_per_frame_beyond_idle"] = found["per_frame"] - idle.mean * found["per_watt"]
    return row


def _ends(name: str, found: stats.Comparison) -> dict[str, float | None]:
    low, high = found.interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _table(rows: Sequence[dict[str, Any]]) -> tables.Table:
    def with_half(row: dict[str, Any], name: str, form: str) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        interval = None if low is None else stats.Interval(low, high)
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
                row["source"] or "-",
            )
            for row in rows
        ],
    )
