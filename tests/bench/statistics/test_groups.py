"""A results file's groups, their figures by hand, and what is said of them."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from msgspec import structs

from powerbench_agent.bench.analyze import export
from powerbench_agent.bench.analyze.tables import analysis_tables, sentences, verdict
from powerbench_agent.bench.statistics.groups import Analysis, Overhead, analyze
from powerbench_agent.core.results import (
    Encode,
    Energy,
    Part,
    Rates,
    RecordedScenario,
    ResultsFile,
    Versus,
    parse_results,
)

if TYPE_CHECKING:
    from pathlib import Path

RATES = Rates(price_per_kwh=0.30, currency="EUR", gco2e_per_kwh=400, gco2e_source="a test")


def energy(watts: float, *sources: str) -> Energy:
    names = sources or ("rapl",)
    parts = tuple(Part("cpu", name, watts * 60 / len(names), watts / len(names)) for name in names)
    return Energy(" + ".join(names), 60.0, watts * 60, watts, "estimate" not in names, parts)


def idle(watts: float, block: int = 0, *sources: str) -> RecordedScenario:
    name = f"baseline#{block + 1}" if block else "baseline"
    return RecordedScenario(
        name=name, group="baseline", type="baseline", block=block, streams=0, energy=energy(watts, *sources)
    )


def encoded(
    name: str, watts: float, block: int = 0, *sources: str, streams: int = 1, **more: Any
) -> RecordedScenario:
    figures: dict[str, Any] = {
        "frames": 1800.0 * streams,
        "megabits": 150.0 * streams,
        "min_speed": 0.99,
        "dropped": 0,
    }
    figures |= more.pop("encode", {})
    return RecordedScenario(
        **{
            "name": f"{name}#{block + 1}" if block else name,
            "group": name,
            "type": "single",
            "block": block,
            "streams": streams,
            "bitrates": ("2500k",) * streams,
            "resolution": "1280x720",
            "fps": 30,
            "encoder": "h264",
            "preset": "veryfast",
            "energy": energy(watts, *sources),
            "encode": Encode(seconds=60.0, **figures),
            **more,
        }
    )


def analyzed(*scenarios: RecordedScenario) -> Analysis:
    return analyze(ResultsFile(scenarios=scenarios, run_id="run"))


def row(analysis: Analysis, group: str) -> dict[str, Any]:
    return next(row for row in export.rows(analysis, RATES) if row["group"] == group)


THREE = [
    *(idle(watts, block) for block, watts in enumerate((3.0, 4.0, 5.0))),
    *(encoded("a", watts, block) for block, watts in enumerate((6.0, 7.0, 8.0))),
]


def test_a_groups_figures_by_hand() -> None:
    """7 W over 4 W at 30 frames and 2.5 Mbit a second: per frame, per megabit, per hour, money, gas."""
    found = row(analyzed(*THREE), "a")
    expected = {
        "n": 3,
        "mean_watts": 7.0,
        "sd_watts": 1.0,
        "baseline_n": 3,
        "baseline_watts": 4.0,
        "delta_watts": 3.0,
        "hedges_g": 3.0 * (1 - 3 / 15),
        "joules_per_frame": 7 / 30,
        "joules_per_frame_beyond_idle": 3 / 30,
        "joules_per_megabit": 7 / 2.5,
        "joules_per_megabit_beyond_idle": 3 / 2.5,
        "wh_per_stream_hour_marginal": 3.0,
        "wh_per_stream_hour_attributional": 7.0,
        "cost_per_stream_hour_marginal": 0.0009,
        "gco2e_per_stream_hour_attributional": 2.8,
        "frames_per_second": 30.0,
        "kbps": 2500.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert (found["currency"], found["gco2e_source"], found["measured"], found["detected"]) == (
        "EUR",
        "a test",
        True,
        True,
    )


def test_the_interval_beyond_idle_is_that_of_the_watts() -> None:
    """At an even frame rate J/frame beyond idle has ΔW's interval, divided by the frames a second."""
    found = row(analyzed(*THREE), "a")
    for end in ("low", "high"):
        assert found[f"joules_per_frame_beyond_idle_{end}"] == pytest.approx(found[f"delta_watts_{end}"] / 30)


def test_a_group_stands_against_its_own_blocks() -> None:
    """A baseline of another block is not its own; without one of its own, all are taken."""
    scenarios = [idle(3.0, 0), idle(9.0, 1), encoded("a", 10.0, 1)]
    assert row(analyzed(*scenarios), "a")["delta_watts"] == pytest.approx(1.0)
    assert row(analyzed(*scenarios[:2], encoded("a", 10.0, 2)), "a")["delta_watts"] == pytest.approx(4.0)


def test_an_estimate_is_never_averaged_with_a_measurement() -> None:
    """Repeats of different sources are groups of their own, each against the baselines of its source."""
    found = analyzed(
        idle(3.0, 0), idle(1.0, 1, "estimate"), encoded("a", 5.0, 0), encoded("a", 2.0, 1, "estimate")
    )
    assert [(g.source, g.measured, g.watts.mean) for g in found.tests] == [
        ("rapl", True, 5.0),
        ("estimate", False, 2.0),
    ]
    assert [g.versus.delta for g in found.tests if g.versus] == [2.0, 1.0]
    assert any("an estimate is a model" in note for note in found.notes)


def test_baselines_of_other_sources_are_not_compared() -> None:
    """Joules of GPU and CPU are not compared with joules of the CPU alone; a note says so."""
    found = analyzed(idle(3.0), encoded("a", 5.0, 0, "rapl", "nvml"))
    assert found.tests[0].versus is None
    assert any("other sources" in note for note in found.notes)


def test_no_difference_is_said_in_those_words() -> None:
    """If p is 0.05 or more: no detectable difference, and the smallest that these repeats would show."""
    found = analyzed(
        *(idle(watts, block) for block, watts in enumerate((3.0, 4.0, 5.0))),
        *(encoded("a", watts, block) for block, watts in enumerate((3.5, 4.5, 5.5))),
    ).tests[0]
    assert found.versus is not None
    assert found.versus.detectable == pytest.approx(3.717 * math.sqrt(2 / 3), rel=1e-3)
    assert verdict(found.versus) == "no detectable difference (smallest detectable: 3.035 W)"


def test_one_run_is_an_illustration() -> None:
    """A single run has a difference without an interval, and the sentence."""
    found = analyzed(idle(3.0), encoded("a", 5.0))
    versus = found.tests[0].versus
    assert versus is not None
    assert (versus.delta, versus.interval, versus.p) == (2.0, None, None)
    assert any("one run is an illustration, not a result" in note for note in found.notes)
    assert any("fewer than 5 repeats" in note and "a (n = 1)" in note for note in found.notes)


def test_outliers_are_named_with_the_method_and_kept() -> None:
    """The repeat that stands out is named; the mean is of all."""
    watts = (5.0, 5.1, 4.9, 5.05, 9.0)
    found = analyzed(*(encoded("a", value, block) for block, value in enumerate(watts)))
    assert found.tests[0].outliers == ("a#5",)
    assert found.tests[0].watts.mean == pytest.approx(sum(watts) / 5)
    assert any("Iglewicz" in note and "a#5" in note for note in found.notes)


def test_the_best_joule_a_frame_is_first() -> None:
    """Rank 1 needs the fewest joules a frame beyond idle, whatever order the file has."""
    scenarios = [idle(3.0), encoded("dear", 9.0), encoded("cheap", 5.0), encoded("middle", 6.0)]
    found = analyzed(*scenarios)
    assert [(g.name, g.rank) for g in found.tests] == [("cheap", 1), ("middle", 2), ("dear", 3)]
    two = encoded("two", 8.0, streams=2)  # 5 W over 60 frames a second: less than 3 W over 30
    assert [g.name for g in analyzed(*scenarios, two).tests][:2] == ["cheap", "two"]


def test_streams_sustained_and_what_one_more_draws() -> None:
    """The slope is over the baseline at 0 and every repeat; the largest number that kept up is sustained."""
    scenarios = [
        *(idle(4.0 + 0.01 * block, block) for block in range(3)),
        *(encoded("x1", 5.0 + 0.01 * block, block) for block in range(3)),
        *(encoded("x2", 6.0 + 0.01 * block, block, streams=2) for block in range(3)),
        *(encoded("x4", 8.0 + 0.01 * b, b, streams=4, encode={"min_speed": 0.7}) for b in range(3)),
    ]
    (family,) = analyzed(*scenarios).families
    assert family.sustained == 2
    assert family.slope is not None
    assert family.slope.slope == pytest.approx(1.0)
    assert family.slope.interval is not None
    assert family.slope.interval.low < 1 < family.slope.interval.high


def test_one_slow_repeat_or_a_dropped_frame_is_not_sustained() -> None:
    """Every repeat must keep up and drop nothing; an unreported figure is unknown."""
    slow = analyzed(encoded("a", 5.0), encoded("a", 5.0, 1, encode={"min_speed": 0.97}))
    dropped = analyzed(encoded("a", 5.0, encode={"dropped": 1}))
    unknown = analyzed(encoded("a", 5.0, encode={"min_speed": None}))
    assert [found.families[0].sustained for found in (slow, dropped, unknown)] == [0, 0, None]


def test_other_settings_are_another_family() -> None:
    """Another preset, or streams of different bitrates, are not points on the same line."""
    mixed = encoded("mixed", 7.0, streams=2, bitrates=("1000k", "5000k"))
    found = analyzed(encoded("a", 5.0), encoded("b", 6.0, streams=2, preset="slow"), mixed)
    assert len(found.families) == 3
    assert all(family.slope is None for family in found.families)


def test_warnings_are_listed_once_a_kind() -> None:
    """Warnings that differ in their figures alone are one, with the names of all."""
    found = analyzed(
        encoded("a", 5.0, warnings=("speed 0.85: too slow",)),
        encoded("a", 5.0, 1, warnings=("speed 0.91: too slow", "hot")),
        encoded("b", 5.0, warnings=("hot",)),
    )
    assert [tuple(w) for w in found.warnings] == [
        ("speed 0.85: too slow", ("a", "a#2"), True),
        ("hot", ("a#2", "b"), False),
    ]


def test_what_failed_is_left_out_and_said() -> None:
    """A failed repeat is in no mean, and its error is printed."""
    failed = encoded("a", 99.0, 1, status="failed", error="ffmpeg exited with 1")
    found = analyzed(encoded("a", 5.0), failed)
    assert found.tests[0].watts.mean == 5.0
    assert "Left out, a#2: failed: ffmpeg exited with 1." in list(sentences(found, RATES))


def test_containers_are_beside_the_watts() -> None:
    """The engine's CPU is the mean over the repeats that have it."""
    overheads = {"a": Overhead(2.0, 10.0), "a#2": Overhead(4.0, None)}
    found = analyze(ResultsFile(scenarios=(encoded("a", 5.0), encoded("a", 5.0, 1))), overheads)
    assert found.tests[0].overhead == (3.0, 10.0)


@pytest.mark.parametrize("watts", [math.inf, -math.inf, math.nan])
def test_a_figure_that_is_none_is_named(watts: float) -> None:
    """A window of infinite watts is used nowhere, and is not reported as one without energy."""
    found = analyzed(encoded("a", watts))
    assert not found.tests
    assert not found.unmeasured
    ((named, why),) = found.impossible
    assert (named.name, why) == ("a", "its energy is impossible: joules is not finite")


@pytest.mark.parametrize(
    ("figure", "value", "why"),
    [
        ("mean_watts", -1.5, "mean_watts is -1.5"),
        ("joules", -2.0, "joules is -2"),
        ("seconds", -60.0, "seconds is -60"),
        ("seconds", 0.0, "seconds is 0"),
        ("joules", math.inf, "joules is not finite"),
        ("parts", (Part("cpu", "rapl", -3.0, 1.0),), "joules of cpu is -3"),
    ],
)
def test_energy_that_cannot_be_is_left_out_and_said(figure: str, value: Any, why: str) -> None:
    """Negative energy, power or time is in no mean, and what is wrong with it is printed."""
    bad = structs.replace(energy(5.0), **{figure: value})
    found = analyzed(encoded("a", 5.0), encoded("a", 5.0, 1, energy=bad))
    assert (found.tests[0].watts.n, found.tests[0].watts.mean) == (1, 5.0)
    assert f"Left out, a#2: its energy is impossible: {why}." in list(sentences(found, RATES))


def test_a_counter_that_stands_still_is_no_impossible_energy() -> None:
    """0 W is a figure, with a warning of its own."""
    assert analyzed(encoded("a", 0.0)).tests[0].watts.mean == 0.0


def test_other_films_are_other_settings() -> None:
    """Windows of one name that stream different clips are two groups, named after the clips."""
    one, other = ({"input": f"/films/{n}.mp4", "input_sha256": n * 64} for n in "ab")
    found = analyzed(encoded("x", 5.0, **one), encoded("x", 6.0, 1, **one), encoded("x", 9.0, 2, **other))
    assert [(g.name, g.watts.mean) for g in found.tests] == [("x (a.mp4)", 5.5), ("x (b.mp4)", 9.0)]
    assert len(found.families) == 2
    assert str(found.families[0].settings).endswith("veryfast a.mp4")
    rows = export.rows(found, RATES)
    assert [(r["group"], r["input_sha256"]) for r in rows] == [("x", "a" * 64), ("x", "b" * 64)]


def test_a_film_is_its_content_whatever_its_path() -> None:
    """The same fingerprint is the same clip; without one, as in older files, the path decides."""
    moved = encoded("a", 5.0, 1, input="/b/film.mp4", input_sha256="1")
    assert len(analyzed(encoded("a", 5.0, input="/a/film.mp4", input_sha256="1"), moved).tests) == 1
    paths = [encoded("a", 5.0, block, input=path) for block, path in enumerate(("/a/f", "/b/f", "/a/f"))]
    assert [g.watts.n for g in analyzed(*paths).tests] == [2, 1]


def test_rates_that_nobody_said_are_no_bad_file() -> None:
    """Null rates, as `run` writes them, are read as unknown: no cost, no gas."""
    nulls = dict.fromkeys(("price_per_kwh", "currency", "gco2e_per_kwh", "gco2e_source"))
    results = parse_results(json.dumps({"format": 2, "scenarios": [], "rates": nulls}).encode(), "x")
    assert results.rates.price_per_kwh is None
    assert export.stream_hour(analyzed(*THREE).tests[0], results.rates).get("currency") is None


def test_the_csvs_columns_stay_as_they_are() -> None:
    """Names that programs rely on, in their order; a new one comes at the end."""
    assert list(export.COLUMNS)[:12] == [
        *("run_id", "group", "type", "rank", "n", "streams", "bitrate", "resolution", "fps", "encoder"),
        *("preset", "source"),
    ]
    for name in ("mean_watts", "delta_watts", "joules_per_frame", "wh_per_stream_hour_marginal"):
        assert {name, f"{name}_low", f"{name}_high"} <= set(export.COLUMNS)
    assert {"p_value", "hedges_g", "detectable_watts", "streams_sustained"} <= set(export.COLUMNS)


def test_csv_json_and_parquet_say_the_same(tmp_path: Path) -> None:
    """Three files, one row a group, the same names and figures, and names with commas and quotes whole."""
    found = analyzed(*THREE, encoded('x, "y"', 6.0))
    rows = export.rows(found, RATES)
    export.write_csv(tmp_path / "a.csv", rows, export.COLUMNS)
    export.write_json(tmp_path / "a.json", export.document(found, RATES))
    export.write_parquet(tmp_path / "a.parquet", rows, export.COLUMNS)
    table = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    groups = json.loads((tmp_path / "a.json").read_text())["groups"]
    query = duckdb.read_parquet(str(tmp_path / "a.parquet"))
    assert query.columns == list(export.COLUMNS) == list(table[0])
    parquet = [dict(zip(query.columns, values, strict=True)) for values in query.fetchall()]
    assert {row["group"] for row in table} == {"a", 'x, "y"', "baseline"}
    for ours, text, theirs, whole in zip(rows, table, parquet, groups, strict=True):
        assert theirs == ours
        assert float(text["mean_watts"]) == ours["mean_watts"] == whole["mean_watts"]
        assert [repeat["name"] for repeat in whole["repeats"]]


def test_a_versus_baseline_of_the_file_is_not_what_is_reckoned_with() -> None:
    """ΔW comes from the group's baselines: what one repeat wrote at its time does not matter."""
    odd = encoded("a", 5.0, versus_baseline=Versus(99.0, 9.0, 1.0, "baseline"))
    assert row(analyzed(idle(3.0), odd), "a")["delta_watts"] == pytest.approx(2.0)


# -- grades, paces, ladders, steps ---------------------------------------------------------------------


def test_an_estimate_is_never_ranked() -> None:
    """Nor is its order one: it is the file's. What was measured beside it is ranked."""
    scenarios = [encoded(name, watts, 0, "estimate") for name, watts in (("dear", 9.0), ("cheap", 5.0))]
    found = analyzed(*scenarios, encoded("measured", 7.0))
    assert [(g.name, g.grade, g.rank) for g in found.tests] == [
        ("measured", "1", 1),
        ("dear", "E", None),
        ("cheap", "E", None),
    ]


def test_only_what_the_same_meters_measured_is_one_ranking() -> None:
    """A machine's meter and a GPU's counters are two scales, though one source reads both."""
    parts = [Part(component, "http_json", 300.0, 5.0) for component in ("platform", "gpu")]
    machine, gpu = (
        encoded(name, 5.0, energy=Energy.of_parts([part], 60.0))
        for name, part in zip("ab", parts, strict=True)
    )
    found = analyzed(machine, gpu, encoded("c", 4.0, energy=Energy.of_parts([parts[0]], 60.0)))
    assert sorted((g.grade, g.rank) for g in found.tests) == [("1", 1), ("3", 1), ("3", 2)]


def test_delivered_units_by_hand() -> None:
    """7 W over 4 W, at 27.648 megapixels and a half minute of content a minute, with Welch's intervals."""
    figures = {"megapixels": 1658.88, "media_seconds": 30.0, "speed": 0.5, "cpu_seconds": {"encoder": 45.0}}
    scenarios = [
        structs.replace(s, encode=structs.replace(s.encode, **figures)) if s.encode else s for s in THREE
    ]
    found = row(analyzed(*scenarios), "a")
    expected = {
        "joules_per_megapixel": 7 / 27.648,
        "joules_per_megapixel_beyond_idle": 3 / 27.648,
        "joules_per_content_minute": 7 * 120,
        "joules_per_content_minute_beyond_idle": 3 * 120,
        "joules_per_content_minute_beyond_idle_low": found["delta_watts_low"] * 120,
        "speed": 0.5,
        "cpu_seconds_per_content_minute": 90.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    "other",
    [{"pace": "max"}, {"sink": "srt"}, {"part": "decode"}, {"ladder": "1920x1080:5M,854x480:1M"}],
    ids=lambda other: next(iter(other)),
)
def test_what_is_another_setting_is_never_averaged(other: dict[str, str]) -> None:
    """Repeats of one name that differ in pace, sink, part or ladder are groups with names of their own."""
    found = analyzed(encoded("a", 5.0, sink="null"), encoded("a", 7.0, 1, **{"sink": "null", **other}))
    assert sorted(g.watts.mean for g in found.tests) == [5.0, 7.0]
    assert len({g.name for g in found.tests}) == 2
    assert len([family for family in found.families if len(family.groups) > 1]) == 0


@pytest.mark.parametrize(
    ("pace", "speed", "sustained"),
    [("realtime", 0.98, 1), ("2x", 1.95, 0), ("2x", 1.96, 1), ("0.5x", 0.49, 1), ("max", 0.3, None)],
)
def test_what_is_sustained_depends_on_the_pace(pace: str, speed: float, sustained: int | None) -> None:
    """0.98 of what was asked for; as fast as it can is nothing to be sustained."""
    (family,) = analyzed(encoded("a", 5.0, pace=pace, encode={"min_speed": speed})).families
    assert family.sustained == sustained


def test_ladders_are_counted_as_ladders() -> None:
    """What one more of them draws has a name of its own, and no column of streams has it."""
    ladder = {"ladder": "1920x1080:5M,854x480:1M", "bitrates": ("5000k+1000k",)}
    found = analyzed(idle(4.0), encoded("x1", 5.0, **ladder), encoded("x2", 6.0, streams=2, **ladder))
    first = row(found, "x1")
    assert (first["ladders_sustained"], first["marginal_watts_per_ladder"]) == (2, pytest.approx(1.0))
    assert (first["streams_sustained"], first["marginal_watts_per_stream"]) == (None, None)
    assert str(found.families[0].settings) == "ladder 1920x1080:5M,854x480:1M 30 fps h264 veryfast"


@pytest.mark.parametrize("pace", ["max", "2x"])
def test_an_hour_of_a_stream_is_at_real_time(pace: str) -> None:
    """An hour at another pace is not an hour of what people watch."""
    assert row(analyzed(encoded("a", 5.0)), "a")["wh_per_stream_hour_attributional"] == 5.0
    assert row(analyzed(encoded("a", 5.0, pace=pace)), "a")["wh_per_stream_hour_attributional"] is None


def test_an_old_ladder_has_its_power_and_no_more() -> None:
    """One stream was encoded for it: no rank, no figure a unit, no family; the warning says why."""
    scenario = {
        "name": "abr",
        "bitrate": "5000k",
        "resolution": "1920x1080",
        "fps": 30,
        "outputs": [{"resolution": size} for size in ("1920x1080", "1280x720", "854x480")],
        "energy": {"source": "rapl", "seconds": 60.0, "joules": 600.0, "mean_watts": 10.0},
        "encode": {"frames": 1800.0, "megabits": 300.0, "seconds": 60.0, "min_speed": 1.0, "dropped": 0},
    }
    one = {**scenario, "name": "one", "outputs": scenario["outputs"][:1]}
    content = json.dumps({"format": 2, "scenarios": [scenario, one]}).encode()
    found = analyze(parse_results(content, "run"))
    assert [(g.name, g.rank) for g in found.tests] == [("one", 1), ("abr", None)]
    old = row(found, "abr")
    assert old["mean_watts"] == 10.0
    for name in ("joules_per_frame", "wh_per_stream_hour_attributional", "streams_sustained", "kbps"):
        assert old[name] is None
        assert row(found, "one")[name] is not None
    told = "its ladder of 3 outputs was encoded as one stream by the version that wrote it: measure it again"
    assert f"Warning, abr: {told}; it is not ranked." in list(sentences(found, RATES))


def test_bytes_of_two_kinds_are_said() -> None:
    """Where J/Mbit of a ranking are of different bytes a note names them; of one kind there is none."""
    flv, nut = ({"encode": {"bytes_of": kind}} for kind in ("flv as sent", "nut at the sink"))
    found = analyzed(encoded("a", 5.0, **flv), encoded("b", 6.0, **nut), encoded("c", 6.0, **nut))
    told = "flv as sent: a; nut at the sink: b, c"
    assert [note.partition("these: ")[2] for note in found.notes if "bytes" in note] == [told]
    alike = analyzed(encoded("b", 6.0, **nut), encoded("c", 6.0, **nut), encoded("d", 5.0, 0, "nvml", **flv))
    assert not [note for note in alike.notes if "bytes" in note]


def picture(vmaf: float, model: str = "vmaf_v0.6.1", rendition: str = "") -> dict[str, Any]:
    return {
        "frames": 300,
        "size": "1280x720",
        "encoded_size": "1280x720",
        "pix_fmt": "yuv420p",
        "scaler": "",
        "scored_by": "9.0",
        "vmaf_model": model,
        "rendition": rendition,
        "vmaf": {"mean": vmaf, "harmonic_mean": vmaf - 1, "p1": vmaf - 9, "minimum": 0.0},
        "ssim": {"average": 0.9, "y": 0.9},
    }


def scored(*pictures: dict[str, Any]) -> dict[str, Any]:
    return {"encode": {"quality": {"of": "the window's own encode", "streams": list(pictures)}}}


def test_scores_are_means_over_repeats() -> None:
    """VMAF with its harmonic mean, 1st percentile and model; what they are of is said below the tables."""
    found = analyzed(
        encoded("a", 5.0, **scored(picture(90.0))), encoded("a", 5.0, 1, **scored(picture(94.0)))
    )
    names = ("vmaf", "vmaf_harmonic", "vmaf_p1", "vmaf_model", "ssim")
    assert [row(found, "a")[name] for name in names] == [92.0, 91.0, 83.0, "vmaf_v0.6.1", 0.9]
    assert "Note: the picture scores are of the window's own encode: a." in list(sentences(found, RATES))


def test_scores_of_two_models_are_not_averaged() -> None:
    """There is no VMAF then, the note says why, and the other measures stay."""
    two = [scored(picture(90.0)), scored(picture(99.0, "vmaf_4k_v0.6.1"))]
    found = analyzed(*(encoded("a", 5.0, block, **one) for block, one in enumerate(two)))
    names = ("vmaf", "vmaf_p1", "vmaf_model", "ssim")
    assert [row(found, "a")[name] for name in names] == [None, None, None, 0.9]
    assert any("VMAF of a is of different models" in note for note in found.notes)


def test_each_rendition_has_scores_of_its_own() -> None:
    """A row of the CSV has none of a ladder's: JSON has them by rendition, and the table a line each."""
    ladder = scored(picture(95.0, rendition="1080p"), picture(80.0, rendition="480p"))
    found = analyzed(encoded("a", 5.0, ladder="1920x1080:5M,854x480:1M", **ladder))
    assert row(found, "a")["vmaf"] is None
    (group,) = export.document(found, RATES)["groups"]
    assert [(one["rendition"], one["vmaf"], one["vmaf_p1"]) for one in group["scores"]] == [
        ("1080p", 95.0, 86.0),
        ("480p", 80.0, 71.0),
    ]
    (table,) = (table for table in analysis_tables(found, RATES) if table.title.startswith("Picture"))
    assert [list(line[:3]) for line in table.rows] == [["a", "1080p", "95.00"], ["a", "480p", "80.00"]]


def test_a_part_of_the_work_is_ranked_nowhere() -> None:
    """A window that only decodes takes fewer joules a frame than any encode: it has no rank and no family."""
    found = analyzed(idle(4.0), encoded("a", 9.0), encoded("b", 5.0, part="decode"))
    assert [(g.name, g.rank) for g in found.tests] == [("a", 1), ("b", None)]
    assert [[group.name for group in family.groups] for family in found.families] == [["a"]]
    assert [title for title in titles(found, "b") if not title.startswith(("Power", "Beyond"))] == []


def titles(analysis: Analysis, group: str) -> list[str]:
    """Return the tables that have a group."""
    shown = analysis_tables(analysis, RATES)
    return [table.title for table in shown if any(group in line for line in table.rows)]
