"""An analysis as files: CSV, JSON and Parquet with the same names, each written whole or not at all.

A row is a group. Names carry their unit and stay as they are; new ones come at the end. `…_low` and `…_high`
are the ends of a 95 % interval. Power is in watts, energy in joules or Wh, `gco2e` in grams; a figure that
is not known is empty in CSV and null elsewhere. The scores of a ladder's renditions, and what the steps of
the work cost, are in JSON alone.
"""

from __future__ import annotations

import csv
import io
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerbench_agent.bench.run.record import encode, write_whole
from powerbench_agent.bench.statistics import stats
from powerbench_agent.bench.statistics.groups import ENOUGH_REPEATS
from powerbench_agent.bench.statistics.stream_hour import spread, stream_hour
from powerbench_agent.core.results import settings_of
from powerbench_agent.core.scores import mean_scores

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from powerbench_agent.bench.statistics.groups import Analysis, Family, Group
    from powerbench_agent.bench.statistics.split import Split
    from powerbench_agent.bench.statistics.stats import Comparison
    from powerbench_agent.core.results import Rates, RecordedScenario, Settings
    from powerbench_agent.core.scores import MeanScores

FORMAT = 1  # of the JSON file

_TEXT, _REAL, _WHOLE, _BOOL = "VARCHAR", "DOUBLE", "BIGINT", "BOOLEAN"


def _interval(name: str) -> dict[str, str]:
    return {name: _REAL, f"{name}_low": _REAL, f"{name}_high": _REAL}


COLUMNS = {
    **dict.fromkeys(("run_id", "group", "type"), _TEXT),
    **dict.fromkeys(("rank", "n", "streams"), _WHOLE),
    **dict.fromkeys(("bitrate", "resolution"), _TEXT),
    "fps": _REAL,
    **dict.fromkeys(("encoder", "preset", "source"), _TEXT),
    "measured": _BOOL,
    "seconds": _REAL,
    **_interval("mean_watts"),
    "sd_watts": _REAL,
    "baseline_n": _WHOLE,
    "baseline_watts": _REAL,
    **_interval("delta_watts"),
    "delta_watts_bootstrap_low": _REAL,
    "delta_watts_bootstrap_high": _REAL,
    **dict.fromkeys(("t", "df", "p_value", "hedges_g", "detectable_watts"), _REAL),
    "detected": _BOOL,
    **_interval("joules_per_frame"),
    **_interval("joules_per_frame_beyond_idle"),
    **_interval("joules_per_megabit"),
    **_interval("joules_per_megabit_beyond_idle"),
    **_interval("wh_per_stream_hour_marginal"),
    **_interval("wh_per_stream_hour_attributional"),
    **dict.fromkeys(("cost_per_stream_hour_marginal", "cost_per_stream_hour_attributional"), _REAL),
    "currency": _TEXT,
    **dict.fromkeys(("gco2e_per_stream_hour_marginal", "gco2e_per_stream_hour_attributional"), _REAL),
    "gco2e_source": _TEXT,
    **dict.fromkeys(("min_speed", "frames_per_second", "kbps"), _REAL),
    "dropped_frames": _WHOLE,
    "streams_sustained": _WHOLE,
    **_interval("marginal_watts_per_stream"),
    **dict.fromkeys(("vmaf", "psnr_db", "ssim"), _REAL),
    **dict.fromkeys(("docker_engine_cpu_percent", "docker_containers_cpu_percent"), _REAL),
    **dict.fromkeys(("outliers", "input", "input_sha256", "rate"), _TEXT),
    "xpsnr_db": _REAL,
    **dict.fromkeys(("grade", "pace", "sink", "part", "ladder"), _TEXT),
    **_interval("joules_per_megapixel"),
    **_interval("joules_per_megapixel_beyond_idle"),
    **_interval("joules_per_content_minute"),
    **_interval("joules_per_content_minute_beyond_idle"),
    **dict.fromkeys(("speed", "cpu_seconds_per_content_minute"), _REAL),
    "ladders_sustained": _WHOLE,
    **_interval("marginal_watts_per_ladder"),
    **dict.fromkeys(("vmaf_harmonic", "vmaf_p1"), _REAL),
    **dict.fromkeys(("vmaf_model", "rendition"), _TEXT),
}
RENDITION = "rendition"  # the type of a row about one picture of the ladder whose row is before it


class Failed(Exception):  # noqa: N818 - a verdict
    """A file that could not be written."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"cannot write {path}: {why}")
        self.path = path


def rows(analysis: Analysis, rates: Rates) -> list[dict[str, Any]]:
    """Return a row a group, the tests' best first, then the baselines, then what has no energy.

    After a ladder's row there is one for each of its renditions: bytes and scores, as energy is the ladder's.
    """
    found: list[dict[str, Any]] = []
    for row, its in _groups(analysis, rates):
        found += [row, *({**row, **one} for one in _renditions(row, its))]
    return found


def _groups(analysis: Analysis, rates: Rates) -> list[tuple[dict[str, Any], tuple[RecordedScenario, ...]]]:
    """Return a row a group, and its repeats."""
    family = {id(group): one for one in analysis.families for group in one.groups}
    groups = (*analysis.tests, *analysis.baselines)
    found = [(_row(group, family.get(id(group)), rates), group.repeats) for group in groups]
    found += [(_bare(scenario), (scenario,)) for scenario in analysis.unmeasured]
    common = {**dict.fromkeys(COLUMNS), "run_id": analysis.results.run_id}
    return [({**common, **row}, its) for row, its in found]


def _renditions(row: dict[str, Any], its: Sequence[RecordedScenario]) -> list[dict[str, Any]]:
    """Return what is known of each rendition of a ladder by itself; nothing of a plain stream."""
    outputs = its[0].outputs if its[0].ladder and isinstance(its[0].outputs, list) else []
    encodes = [scenario.encode for scenario in its if scenario.encode is not None]
    scores = {one.rendition: one for one in mean_scores(s for encode in encodes for s in encode.scores)}
    known = ("run_id", "group", "n", "fps", "input", "input_sha256", "pace", "sink")
    found = []
    for output in outputs:
        name = output.get("rendition") if isinstance(output, dict) else None
        if not isinstance(name, str):
            continue
        kbps = [rate for encode in encodes for rate in encode.rendition_kbps.get(name, ())]
        found.append(
            {
                **dict.fromkeys(COLUMNS),
                **{key: row[key] for key in known},
                "type": RENDITION,
                "rendition": name,
                **{key: output.get(key) for key in ("resolution", "encoder", "preset", "bitrate", "rate")},
                "kbps": statistics.fmean(kbps) if kbps else None,
                **(_scores(scores[name]) if name in scores else {}),
            }
        )
    return found


def _bare(scenario: RecordedScenario) -> dict[str, Any]:
    return {
        "group": scenario.group,
        "type": scenario.type,
        "n": 1,
        "streams": scenario.streams,
        "bitrate": "+".join(settings_of(scenario).bitrates) or None,
        "rate": scenario.rate or None,
        "resolution": scenario.resolution or None,
        "fps": scenario.fps,
        "encoder": scenario.encoder or None,
        "preset": scenario.preset or None,
        "input": scenario.input or None,
        "input_sha256": scenario.input_sha256 or None,
        **({} if scenario.is_baseline else _how(settings_of(scenario))),
    }


def _how(settings: Settings) -> dict[str, str | None]:
    """Return how a stream is encoded, beyond what its encoder was asked."""
    return {
        "pace": settings.pace,
        "sink": settings.sink or None,
        "part": settings.part or None,
        "ladder": settings.ladder or None,
    }


def _row(group: Group, family: Family | None, rates: Rates) -> dict[str, Any]:
    row: dict[str, Any] = {
        **_bare(group.repeats[0]),
        "rank": group.rank,
        "n": group.watts.n,
        "source": group.source,
        "measured": group.measured,
        "grade": group.grade or None,
        "seconds": sum(s.energy.seconds for s in group.repeats if s.energy is not None),
        **spread("mean_watts", group.watts.mean, group.watts.interval),
        "sd_watts": group.watts.sd,
        "min_speed": group.min_speed,
        "frames_per_second": group.mean(lambda encode: encode.fps),
        "kbps": group.mean(lambda encode: encode.kbps),
        "dropped_frames": group.dropped,
        "speed": group.mean(lambda encode: encode.speed),
        "cpu_seconds_per_content_minute": group.cpu_seconds_per_minute,
        **(_scores(group.scores[0]) if len(group.scores) == 1 else {}),
        "docker_engine_cpu_percent": group.overhead.engine_cpu_percent,
        "docker_containers_cpu_percent": group.overhead.containers_cpu_percent,
        "outliers": " ".join(group.outliers) or None,
        **stream_hour(group, rates),
    }
    if group.idle is not None:
        row |= {"baseline_n": group.idle.n, "baseline_watts": group.idle.mean}
    if (versus := group.versus) is not None:
        low, high = versus.bootstrap or (None, None)
        row |= {
            **spread("delta_watts", versus.delta, versus.interval),
            "delta_watts_bootstrap_low": low,
            "delta_watts_bootstrap_high": high,
            "t": versus.t,
            "df": versus.df,
            "p_value": versus.p,
            "hedges_g": versus.hedges_g,
            "detectable_watts": versus.detectable,
            "detected": versus.detected if versus.p is not None else None,
        }
    for unit, cost in group.costs.items():
        if cost is not None:
            row |= spread(f"joules_per_{unit}", cost.whole.mean, cost.whole.interval)
            if cost.beyond is not None:
                row |= spread(f"joules_per_{unit}_beyond_idle", cost.beyond.delta, cost.beyond.interval)
    if family is not None:
        row |= _at_once(family)
    return row


def _at_once(family: Family) -> dict[str, Any]:
    """Return how many streams or ladders are sustained, and what one more of them draws."""
    row: dict[str, Any] = {f"{family.counts}_sustained": family.sustained}
    if family.slope is not None:
        one_more = f"marginal_watts_per_{family.counts.removesuffix('s')}"
        row |= spread(one_more, family.slope.slope, family.slope.interval)
    return row


def _scores(scores: MeanScores) -> dict[str, Any]:
    """Return the scores of a picture under the names that files give them."""
    units = {"vmaf": "vmaf", "xpsnr": "xpsnr_db", "psnr": "psnr_db", "ssim": "ssim"}
    return {
        **{units[measure]: figure for measure, figure in scores.figures.items()},
        "vmaf_harmonic": scores.vmaf_harmonic,
        "vmaf_p1": scores.vmaf_p1,
        "vmaf_model": scores.vmaf_model,
    }


def document(analysis: Analysis, rates: Rates) -> dict[str, Any]:
    """Return everything with statistics, for JSON: the rows of CSV, and what does not fit into a row."""
    results = analysis.results
    groups = [
        {**row, "scores": _listed_scores(its), "repeats": [_repeat(scenario) for scenario in its]}
        for row, its in _groups(analysis, rates)
    ]
    return {
        "kind": "analysis",
        "format": FORMAT,
        "run_id": results.run_id,
        "test_date": results.test_date,
        "host": results.host,
        "ffmpeg": results.ffmpeg,
        "sink": results.sink,
        "rates": rates,
        "method": {
            "confidence": stats.CONFIDENCE,
            "power": stats.POWER,
            "test": "Welch",
            "bootstrap": f"BCa, {stats.RESAMPLES} resamples, seed {stats.SEED}",
            "outliers": stats.OUTLIER_METHOD,
            "enough_repeats": ENOUGH_REPEATS,
        },
        "groups": groups,
        "families": [
            {
                **_settings(family.settings),
                "source": family.source,
                "measured": family.measured,
                "grade": family.grade,
                "groups": [group.name for group in family.groups],
                family.counts: [group.streams for group in family.groups],
                **_at_once(family),
            }
            for family in analysis.families
        ],
        "splits": [_split(split) for split in analysis.splits],
        "warnings": [warned._asdict() for warned in analysis.warnings],
        "notes": list(analysis.notes),
        "left_out": [
            *({"name": s.name, "status": s.status, "error": s.error} for s in analysis.failed),
            *({"name": s.name, "status": s.status, "error": why} for s, why in analysis.impossible),
        ],
    }


def _settings(settings: Settings) -> dict[str, Any]:
    """Return what a stream is; `film` is what this file calls a clip."""
    return {
        "bitrates": settings.bitrates,
        "resolution": settings.resolution,
        "fps": settings.fps,
        "encoder": settings.encoder,
        "preset": settings.preset,
        "rate": settings.rate,
        "more": settings.more,
        "input": settings.input,
        "film": settings.clip,
        **_how(settings),
    }


def _listed_scores(its: Sequence[RecordedScenario]) -> list[dict[str, Any]]:
    found = mean_scores(score for one in its if one.encode for score in one.encode.scores)
    return [{"rendition": scores.rendition or None, **_scores(scores)} for scores in found]


def _split(split: Split) -> dict[str, Any]:
    """Return where the joules and CPU seconds of a frame go."""
    return {
        "group": split.name,
        "source": split.source or None,
        "grade": split.grade or None,
        "beyond_idle": split.beyond_idle,
        "steps": [
            {
                "step": step.name,
                **_difference("joules_per_frame", step.joules),
                **_difference("cpu_seconds_per_frame", step.cpu_seconds),
            }
            for step in split.steps
        ],
    }


def _difference(name: str, found: Comparison | None) -> dict[str, float | None]:
    if found is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return spread(name, found.delta, found.interval)


def _repeat(scenario: RecordedScenario) -> dict[str, Any]:
    return {
        "name": scenario.name,
        "block": scenario.block,
        "start_time": scenario.start_time,
        "end_time": scenario.end_time,
        "energy": scenario.energy,
    }


# -- files -------------------------------------------------------------------------------------------


def write_csv(path: Path, table: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Write rows as CSV. Raises: Failed."""
    _write(path, _csv(table, columns))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a document as JSON for people, too. Raises: Failed."""
    _write(path, encode(content))


def write_parquet(path: Path, table: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Write rows as Parquet; `columns`: DuckDB's type of each. Raises: Failed."""
    import duckdb  # noqa: PLC0415 - heavy

    try:
        with tempfile.TemporaryDirectory(prefix="powerbench-") as room, duckdb.connect() as database:
            # DuckDB reads CSV a thousand times as fast as it takes rows from Python.
            source, made = Path(room, "rows.csv"), Path(room, "rows.parquet")
            source.write_bytes(_csv(table, columns))
            kinds = ", ".join(f"'{name}': '{kind}'" for name, kind in columns.items())
            read = (
                f"read_csv(?, header = true, delim = ',', quote = '\"', escape = '\"', columns = {{{kinds}}})"
            )
            query = f"COPY (SELECT * FROM {read}) TO '{made}' (FORMAT parquet, COMPRESSION zstd)"  # noqa: S608 - constants
            database.execute(query, [str(source)])
            _write(path, made.read_bytes())
    except (duckdb.Error, OSError) as error:
        raise Failed(path, str(error)) from None


def _csv(table: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> bytes:
    out = io.StringIO(newline="")
    names = list(columns)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in table:
        writer.writerow([_cell(row.get(name)) for name in names])
    # What is not text (a lone surrogate in a name) becomes a question mark instead of a failure.
    return out.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _write(path: Path, content: bytes) -> None:
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe: nothing to be put in its place
            path.write_bytes(content)
        else:
            write_whole(path, content)
    except OSError as error:
        raise Failed(path, error.strerror or str(error)) from None
