"""Runs that benchmarks have left: their figures, the newest alone, and no harm from any file."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import CAPTURES
from structlog.testing import capture_logs
from trees import FakeClock, open_paths, values

from powerbench_agent.collectors.results import collector as results
from powerbench_agent.collectors.results import metrics
from powerbench_agent.collectors.results.collector import BEGAN, SCENARIOS, SKIPPED
from powerbench_agent.collectors.results.metrics import LABELS
from powerbench_agent.core import results as core_results
from powerbench_agent.core.host import Host
from powerbench_agent.core.labels import shorten
from powerbench_agent.core.model import Absent, Metric, ReadFailed, Reading
from powerbench_agent.core.results import BadResults, Rates, parse_results

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ABR = "results_scenario_"


class Directory(NamedTuple):
    path: Path
    collector: results.Results

    def write(self, name: str, content: str | bytes) -> Path:
        """Put a file there as the benchmark does: whole."""
        temporary = self.path / f".{name}.part"
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
        return temporary.replace(self.path / name)

    def write_run(self, stamp: str, watts: float = 45.0, scenarios: int = 1) -> str:
        """Put a run there; return its id."""
        name = f"test_results_{stamp}"
        self.write(
            f"{name}.json", json.dumps({"scenarios": [window(f"s{n}", watts) for n in range(scenarios)]})
        )
        return name

    async def read(self) -> Reading:
        return await self.collector.read()


def window(name: str, watts: float = 45.0, **keys: Any) -> dict[str, Any]:
    energy = {"source": "rapl", "seconds": 60.0, "joules": watts * 60, "mean_watts": watts}
    return {"name": name, "bitrate": "1M", "energy": energy, **keys}


def open_directory(path: Path, **options: Any) -> results.Results:
    return results.Results(results.Options(directory=str(path), **options), Host(clock=FakeClock()))


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Directory]:
    collector = open_directory(tmp_path)
    yield Directory(tmp_path, collector)
    await collector.aclose()


def capture(name: str) -> bytes:
    return (CAPTURES / f"results_{name}.json").read_bytes()


def figures(reading: Reading, scenario: str) -> dict[str, float]:
    """Return a scenario's figures, by what comes after `results_scenario_`."""
    found: dict[str, float] = {}
    for sample in reading.samples:
        if sample.metric.labels[: len(LABELS)] == LABELS and sample.labels[1] == scenario:
            name = sample.metric.name.removeprefix(ABR)
            name += f" {rendition}" if (rendition := "".join(sample.labels[len(LABELS) :])) else ""
            assert name not in found
            found[name] = sample.value
    return found


def labels_of(reading: Reading, scenario: str) -> dict[str, str]:
    """Return the labels that have a value, the same for each of a scenario's series."""
    (found,) = {
        sample.labels
        for sample in reading.samples
        if sample.metric.labels == LABELS and sample.labels[1] == scenario
    }
    return {label: value for label, value in zip(LABELS, found, strict=True) if value}


def runs(reading: Reading) -> dict[str, float]:
    return {run_id: count for (run_id,), count in values(reading, SCENARIOS).items()}


def skipped(reading: Reading) -> dict[str, float]:
    return {reason: count for (reason,), count in values(reading, SKIPPED).items() if count}


# -- figures -----------------------------------------------------------------------------------------


async def test_figures_of_a_run(directory: Directory) -> None:
    """A scenario has all figures of its file, in the units of their names, against its baseline."""
    directory.write("test_results_20260203_101112.json", capture("format1"))
    reading = await directory.read()
    assert figures(reading, "2500k_720p30_h264") == pytest.approx(
        {
            "delta_power_watts": 15,
            "delta_energy_wh": 0.25,
            "power_pct_increase": 50,
            "mean_power_watts": 45,
            "total_energy_joules": 2700,
            "total_energy_wh": 0.75,
            "duration_seconds": 60,
            "avg_fps": 30,
            "total_frames": 1800,
            "dropped_frames": 3,
            "energy_mj_per_frame": 1500,
            "energy_wh_per_mbps": 0.3,
            "energy_joules_per_content_minute": 2700,
            "repeats": 1,
        }
    )
    assert labels_of(reading, "2500k_720p30_h264") == {
        "run_id": "test_results_20260203_101112",
        "scenario": "2500k_720p30_h264",
        "bitrate": "2500k",
        "resolution": "1280x720",
        "fps": "30",
        "encoder": "libx264",
        "preset": "veryfast",
        "streams": "1",
        "source": "rapl",
        "grade": "1",
    }
    assert runs(reading) == {"test_results_20260203_101112": 2}


async def test_runs_say_when_they_began(tmp_path: Path) -> None:
    """A run began with its first window, whatever its file's name; one without times says nothing."""
    directory = Directory(tmp_path, open_directory(tmp_path, runs=2))
    timed = [window("a", start_time=1700000100.0), window("b", start_time=1700000000.0), window("c")]
    directory.write("test_results_20260203_101112.json", json.dumps({"scenarios": timed}))
    directory.write_run("20260203_101113")
    assert values(await directory.read(), BEGAN) == {("test_results_20260203_101112",): 1700000000.0}
    await directory.collector.aclose()


async def test_baselines_are_scenarios_without_deltas(directory: Directory) -> None:
    """The idle window shows what it drew, and no difference to itself; what it has not is left out."""
    directory.write("test_results_20260203_101112.json", capture("format1"))
    reading = await directory.read()
    assert figures(reading, "baseline") == pytest.approx(
        {
            "mean_power_watts": 30,
            "total_energy_joules": 1800,
            "total_energy_wh": 0.5,
            "duration_seconds": 60,
            "repeats": 1,
        }
    )
    assert set(labels_of(reading, "baseline")) == {
        *("run_id", "scenario", "bitrate", "streams", "source", "grade"),
    }


async def test_repeats_are_one_scenario(directory: Directory) -> None:
    """Figures are means over the repeats that hold, each against its own block's baseline."""
    directory.write("test_results_20260304_050607.json", capture("format2"))
    reading = await directory.read()
    assert figures(reading, "abr") == pytest.approx(
        {
            "delta_power_watts": (30 + 40) / 2,
            "delta_energy_wh": (0.5 + 40 / 60) / 2,
            "power_pct_increase": 100,
            "mean_power_watts": 70,
            "total_energy_joules": 4200,
            "total_energy_wh": 4200 / 3600,
            "duration_seconds": 60,
            "avg_fps": 60,
            "total_frames": 3600,
            "dropped_frames": 2,
            "energy_mj_per_frame": 70 / 60 * 1000,
            "energy_wh_per_mbps": 4200 / 3600 / 3,
            "cost": 4200 / 3.6e6 * 0.25,
            "co2e_grams": 4200 / 3.6e6 * 300,
            "repeats": 2,
        }
    )
    labels = labels_of(reading, "abr")
    assert (labels["bitrate"], labels["streams"]) == ("1000k,2000k", "2")
    assert runs(reading) == {"test_results_20260304_050607": 2}


async def test_how_sure_a_difference_is_comes_from_the_file(directory: Directory) -> None:
    """The interval that the run wrote down shows beside the mean, for its own group and source alone."""
    content = json.loads(capture("format2"))
    sure = {"group": "abr", "source": "rapl", "low": 21.5, "high": 48.5}
    content["conclusions"] = [sure, {**sure, "source": "estimate", "low": 1.0, "high": 2.0}]
    directory.write("test_results_20260304_050607.json", json.dumps(content).encode())
    shown = figures(await directory.read(), "abr")
    assert (shown["delta_power_ci_lower_watts"], shown["delta_power_ci_upper_watts"]) == (21.5, 48.5)


async def test_other_sources_are_not_compared(directory: Directory) -> None:
    """A measured window has no difference to an estimated baseline, and the estimate is called so."""
    idle = window("baseline", bitrate="0k")
    idle["energy"]["source"] = "estimate"
    directory.write("test_results_20260101_000000.json", json.dumps({"scenarios": [idle, window("a")]}))
    reading = await directory.read()
    assert "delta_power_watts" not in figures(reading, "a")
    assert labels_of(reading, "baseline")["source"] == "estimate"


async def test_other_components_are_not_compared(directory: Directory) -> None:
    """Windows of one source but other components are not compared either."""
    scenarios = [window("baseline", bitrate="0k"), window("a")]
    for scenario, component in zip(scenarios, ("cpu", "dram"), strict=True):
        part = {"component": component, "source": "rapl", "joules": 1.0, "watts": 1.0}
        scenario["energy"]["parts"] = [part]
    directory.write("test_results_20260101_000000.json", json.dumps({"scenarios": scenarios}))
    assert "delta_power_watts" not in figures(await directory.read(), "a")


async def test_repeats_of_two_sources_are_two_series(directory: Directory) -> None:
    """Means are never over a measurement and an estimate."""
    scenarios = [window("a", 40, group="a"), window("a#2", 60, group="a")]
    scenarios[1]["energy"]["source"] = "estimate"
    directory.write("test_results_20260101_000000.json", json.dumps({"scenarios": scenarios}))
    reading = await directory.read()
    found = {labels[-2:]: value for labels, value in values(reading, metrics.POWER).items()}
    assert found == {("rapl", "1"): 40, ("estimate", "E"): 60}
    assert runs(reading) == {"test_results_20260101_000000": 1}


async def test_most_repeats_have_the_series(directory: Directory) -> None:
    """Repeats that measured other components are not averaged: the larger set is shown, in any order."""
    scenarios = [window("a", 40, group="a"), window("a#2", 50, group="a"), window("a#3", 60, group="a")]
    for scenario, components in zip(scenarios, (["cpu"], ["cpu", "dram"], ["cpu", "dram"]), strict=True):
        joules = scenario["energy"]["joules"] / len(components)
        scenario["energy"]["parts"] = [
            {"component": component, "source": "rapl", "joules": joules, "watts": joules / 60}
            for component in components
        ]
    directory.write("test_results_20260101_000000.json", json.dumps({"scenarios": scenarios}))
    found = values(await directory.read(), metrics.POWER)
    assert list(found.values()) == [55]


async def test_a_baseline_of_another_file(directory: Directory) -> None:
    """A shard whose baseline lies elsewhere shows the difference that its file says."""
    versus = {"baseline": "elsewhere", "delta_watts": 7.0, "delta_wh": 0.1, "percent": None}
    scenario = window("a", versus_baseline=versus)
    directory.write("test_results_20260101_000000.json", json.dumps({"scenarios": [scenario]}))
    found = figures(await directory.read(), "a")
    assert (found["delta_power_watts"], found["delta_energy_wh"]) == (7, 0.1)
    assert "power_pct_increase" not in found


@pytest.mark.parametrize("status", ["failed", "interrupted", "anything"])
async def test_what_does_not_hold_is_not_shown(directory: Directory, status: str) -> None:
    """Scenarios that failed or were interrupted have no series and are not counted."""
    scenarios = [window("a"), window("b", status=status)]
    directory.write("test_results_20260101_000000.json", json.dumps({"scenarios": scenarios}))
    reading = await directory.read()
    assert figures(reading, "b") == {}
    assert runs(reading) == {"test_results_20260101_000000": 1}


async def test_rates_of_the_configuration(tmp_path: Path) -> None:
    """The configured price counts where a file says nothing, the file's own where it does, and 0 is none."""
    collector = open_directory(tmp_path, price_per_kwh=0.5, runs=2)
    directory = Directory(tmp_path, collector)
    directory.write_run("20260101_000000")
    content = {"rates": {"price_per_kwh": 0.0}, "scenarios": [window("own")]}
    directory.write("test_results_20260102_000000.json", json.dumps(content))
    reading = await directory.read()
    assert figures(reading, "s0")["cost"] == pytest.approx(2700 / 3.6e6 * 0.5)
    assert figures(reading, "own")["cost"] == 0
    assert values(reading, metrics.CO2E) == {}
    await collector.aclose()


SCORES = {
    "frames": 300,
    "size": "1280x720",
    "encoded_size": "1280x720",
    "pix_fmt": "yuv420p",
    "scaler": "",
    "scored_by": "9.0",
    "vmaf": {"mean": 93.25, "harmonic_mean": 93.0, "p1": 88.0, "minimum": 80.0},
    "psnr": {"average": 41.5, "y": 40.0, "u": 45.0, "v": 45.0},
    "ssim": {"average": 0.98, "y": 0.97},
}


@pytest.mark.parametrize(
    ("form", "streams", "shown"),
    [
        (3, [SCORES], {"vmaf_score": 93.25, "psnr_score": 41.5, "ssim_score": 0.98}),
        (
            3,
            [{**SCORES, "psnr": {"average": None, "y": None, "u": None, "v": None}, "vmaf": None}],
            {"ssim_score": 0.98},
        ),
        (3, [{**SCORES, "vmaf": True}, "x", {}], {}),
        (3, "x", {}),
        (2, [SCORES], {}),
    ],
)
async def test_scores_that_are_true_are_shown(
    directory: Directory, form: int, streams: object, shown: dict[str, float]
) -> None:
    """Those of this format that are numbers: identical planes have no PSNR, and older scores were wrong."""
    encode = {"seconds": 60.0, "quality": {"of": "10 s", "streams": streams}}
    content = {"format": form, "scenarios": [window("a", encode=encode)]}
    directory.write("test_results_20260101_000000.json", json.dumps(content))
    found = figures(await directory.read(), "a")
    assert {name: value for name, value in found.items() if name.endswith("_score")} == shown


async def shown_of(directory: Directory, form: int, *scenarios: dict[str, Any]) -> Reading:
    """Return what the page says of a file of these scenarios."""
    content = {"format": form, "scenarios": scenarios}
    directory.write("test_results_20260101_000000.json", json.dumps(content))
    return await directory.read()


async def test_each_rendition_of_a_ladder_has_its_scores(directory: Directory) -> None:
    """With the label rendition, as soon as there is a ladder; without one there is no such label."""
    renditions = [
        {**SCORES, "rendition": name, "vmaf": {**SCORES["vmaf"], "mean": mean}}
        for name, mean in (("1080p", 95.0), ("480p", 80.0))
    ]
    ladder = window("a", ladder="1920x1080:5M,854x480:1M", encode=scored(*renditions))
    one = window("b", ladder="1920x1080:5M", encode=scored(renditions[0]))
    plain = window("c", encode=scored(SCORES))
    reading = await shown_of(directory, 3, ladder, one, plain)
    names = ("vmaf_score 1080p", "vmaf_score 480p", "vmaf_score")
    assert [figures(reading, "a").get(name) for name in names] == [95, 80, None]
    assert [figures(reading, "b").get(name) for name in names] == [95, None, None]
    assert [figures(reading, "c").get(name) for name in names] == [None, None, 93.25]


def scored(*streams: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"seconds": 60.0, "quality": {"of": "the window's own encode", "streams": streams}, **more}


async def test_models_are_not_averaged(directory: Directory) -> None:
    """Repeats whose VMAF is of two models have the mean PSNR, and no VMAF."""
    old, new = ({**SCORES, "vmaf_model": model} for model in ("vmaf_v0.6.1", "vmaf_4k_v0.6.1"))
    windows = [window("a", group="a", encode=scored(old)), window("a#2", group="a", encode=scored(new))]
    found = figures(await shown_of(directory, 3, *windows), "a")
    assert (found.get("psnr_score"), found.get("vmaf_score")) == (41.5, None)


async def test_delivered_units(directory: Directory) -> None:
    """45 W at 2 megapixels and 2 content seconds a second are 22.5 J a megapixel, and 1350 J a minute."""
    encode = {"seconds": 60.0, "megapixels": 120.0, "media_seconds": 120.0, "speed": 2.0}
    found = figures(await shown_of(directory, 3, window("a", encode=encode)), "a")
    names = ("energy_joules_per_megapixel", "energy_joules_per_content_minute", "speed")
    assert [found[name] for name in names] == pytest.approx([22.5, 1350.0, 2.0])


async def test_a_part_of_the_work_encodes_nothing(directory: Directory) -> None:
    """A window that only decodes shows its power, and no frame encoded, under a name of its own."""
    encode = {"seconds": 60.0, "frames": 1800.0, "megabits": 1.0, "megapixels": 5.0, "speed": 1.0}
    windows = [
        window(name, group="a", part=part, encode=encode) for name, part in (("a", ""), ("b", "decode"))
    ]
    reading = await shown_of(directory, 3, *windows)
    assert figures(reading, "a")["avg_fps"] == 30
    assert figures(reading, "a (decode alone)").keys() == {
        *("mean_power_watts", "total_energy_joules", "total_energy_wh", "duration_seconds", "repeats"),
    }


async def test_an_old_ladder_has_power_alone(directory: Directory) -> None:
    """Versions before format 3 encoded one stream of it: none of its figures of an encode is shown."""
    outputs = [{"resolution": "1920x1080"}, {"resolution": "1280x720"}]
    encode = {"seconds": 60.0, "frames": 1800.0, "megabits": 150.0, "dropped": 0, "media_seconds": 60.0}
    ladder = window("a", outputs=outputs, encode=encode)
    one = window("b", outputs=outputs[:1], encode=encode)
    two = window("c", type="multi", streams=2, outputs=outputs, encode=encode)
    reading = await shown_of(directory, 2, ladder, one, two)
    assert figures(reading, "a").keys() == {
        *("mean_power_watts", "total_energy_joules", "total_energy_wh", "duration_seconds", "repeats"),
    }
    for name in "bc":
        assert figures(reading, name)["energy_mj_per_frame"] == 1500


async def test_conclusions_that_two_sets_share_are_shown_for_neither(directory: Directory) -> None:
    """Two sets of one name and source were measured by other meters: the file does not say whose is whose."""
    machine, gpu = (
        {**window(name)["energy"], "source": "http_json", "parts": [part]}
        for name, part in (
            ("a", {"component": "platform", "source": "http_json", "joules": 2700.0, "watts": 45.0}),
            ("a", {"component": "gpu", "source": "http_json", "joules": 2700.0, "watts": 45.0}),
        )
    )
    idle = [window("baseline", type="baseline", energy=machine), window("idle", type="baseline", energy=gpu)]
    tests = [window("a", group="a", energy=machine), window("a#2", group="a", energy=gpu)]
    told = [{"group": "a", "source": "http_json", "low": low, "high": low + 1} for low in (1.0, 5.0)]
    content = {"format": 3, "conclusions": told, "scenarios": [*idle, *tests]}
    directory.write("test_results_20260101_000000.json", json.dumps(content))
    reading = await directory.read()
    grades = [labels[-1] for labels in values(reading, metrics.POWER) if labels[1] == "a"]
    assert sorted(grades) == ["1", "3"]
    assert values(reading, metrics.LOW) == {}


@pytest.mark.parametrize(
    "energy",
    [
        {"source": "rapl", "seconds": 0, "joules": 5, "mean_watts": 5},
        {"source": "rapl", "seconds": 60, "joules": -5, "mean_watts": 5},
        {"source": "rapl", "seconds": 60, "joules": "nan", "mean_watts": 5},
        {"source": "rapl", "seconds": "inf", "joules": 5, "mean_watts": 5},
    ],
)
async def test_energy_that_cannot_be(directory: Directory, energy: dict[str, Any]) -> None:
    """Energy that no window has is left out, and the rest of the scenario stays."""
    scenario = {**window("a"), "energy": energy, "encode": {"seconds": 60, "frames": 60}}
    directory.write("test_results_20260101_000000.json", json.dumps({"scenarios": [scenario]}))
    found = figures(await directory.read(), "a")
    assert "mean_power_watts" not in found
    assert found["avg_fps"] == 1


async def test_names_are_cut(directory: Directory) -> None:
    """A label is at most 200 characters of valid text, and two long names stay two series."""
    long = "x" * 300
    names = [f"{long}1", f"{long}2", "\ud800"]
    scenarios = [window(name) for name in names]
    directory.write("test_results_20260101_000000.json", json.dumps({"scenarios": scenarios}))
    reading = await directory.read()
    shown = [shorten(name, 200) for name in names]
    assert [len(name) for name in shown] == [200, 200, 1]
    assert len(set(shown)) == 3
    for name in shown:
        assert figures(reading, name)["mean_power_watts"] == 45


# -- which files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["no directory", "no file", "a file", "not a name"])
async def test_without_a_file_there_is_no_source(tmp_path: Path, kind: str) -> None:
    """Without the directory, or a results file in it, the source is absent."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/other.json").write_text("{}")
    path = {"no directory": "nothing", "no file": "empty", "a file": "file", "not a name": "a\0b"}[kind]
    collector = open_directory(tmp_path / path)
    with pytest.raises(Absent):
        await collector.read()
    await collector.aclose()


async def test_opening_looks_at_nothing(tmp_path: Path) -> None:
    """A directory on a dead mount hangs a reading, which its thread bounds, and never the opening."""
    collector = await results.open_collector(results.Options(directory=str(tmp_path / "dead")), Host())
    with pytest.raises(Absent):
        await collector.read()
    await collector.aclose()


async def test_the_newest_run_alone(directory: Directory) -> None:
    """By default the newest run is shown; a newer one takes its place, and when that goes it is back."""
    old = directory.write_run("20260101_000000")
    assert set(runs(await directory.read())) == {old}
    new = directory.write_run("20260102_000000")
    assert set(runs(await directory.read())) == {new}
    (directory.path / f"{new}.json").unlink()
    assert set(runs(await directory.read())) == {old}
    (directory.path / f"{old}.json").unlink()
    with pytest.raises(Absent):
        await directory.read()


async def test_newest_is_told_by_the_name(tmp_path: Path) -> None:
    """The date in the name says what is newest; then, and without one, the time of the last writing."""
    collector = open_directory(tmp_path, runs=3)
    directory = Directory(tmp_path, collector)
    named = [
        directory.write_run(s) for s in ("20260103_000000", "20260102_000000", "20260102_000000_2", "mine")
    ]
    for name, written in zip(named, (1, 300, 200, 1_767_400_000), strict=True):  # the last: 2026-01-03
        os.utime(tmp_path / f"{name}.json", (written, written))
    assert list(runs(await directory.read())) == [named[3], named[0], named[1]]
    await collector.aclose()


async def test_a_run_that_grows(directory: Directory) -> None:
    """A file that is replaced by one with more scenarios shows them at the next beat."""
    name = directory.write_run("20260101_000000", scenarios=1)
    assert runs(await directory.read()) == {name: 1}
    directory.write_run("20260101_000000", scenarios=2)
    assert runs(await directory.read()) == {name: 2}


async def test_an_unchanged_file_is_read_once(directory: Directory) -> None:
    """As long as nothing has changed, the reading is the same object, which pages render once."""
    directory.write_run("20260101_000000")
    first = await directory.read()
    assert await directory.read() is first
    directory.write_run("20260101_000000", watts=50)
    assert await directory.read() is not first


async def test_other_files_are_not_looked_at(directory: Directory) -> None:
    """Only `test_results_*.json` counts: what is still hidden, a trace or a CSV does not."""
    name = directory.write_run("20260101_000000")
    for other in (
        ".test_results_1.json",
        "test_results_1.json.part",
        "test_results_1_trace.parquet",
        "x.json",
    ):
        directory.write(other, "nonsense")
    reading = await directory.read()
    assert set(runs(reading)) == {name}
    assert skipped(reading) == {}


async def test_scenarios_are_capped(tmp_path: Path) -> None:
    """All runs together show no more scenarios than configured, the newest first; the limit is said."""
    collector = open_directory(tmp_path, runs=3, max_scenarios=3)
    directory = Directory(tmp_path, collector)
    for day in (1, 2, 3):
        directory.write_run(f"2026010{day}_000000", scenarios=2)
    for _ in range(2):
        reading = await directory.read()
    assert runs(reading) == {"test_results_20260103_000000": 2, "test_results_20260102_000000": 2}
    assert len(values(reading, metrics.POWER)) == 3
    assert [trouble.limit for trouble in reading.troubles] == ["max_scenarios"]
    await collector.aclose()


# -- files that cannot be used -----------------------------------------------------------------------

BAD = {
    "half_written": '{"scenarios": [{"name": ',
    "broken": '{\n"scenarios": [}',
    "foreign": '{"a": 1}',
    "newer": '{"scenarios": [], "format": 99}',
    "too_large": '{"scenarios": []}' + " " * 2000,
}


@pytest.mark.parametrize("reason", BAD)
async def test_a_bad_file_is_counted_once(tmp_path: Path, reason: str) -> None:
    """Each bad version of a file is counted and logged once, with the remedy; the run before it is shown."""
    collector = open_directory(tmp_path, max_file_bytes=1000)
    directory = Directory(tmp_path, collector)
    good = directory.write_run("20260101_000000")
    directory.write("test_results_20260102_000000.json", BAD[reason])
    with capture_logs() as logs:
        for _ in range(3):
            reading = await directory.read()
    assert set(runs(reading)) == {good}
    assert skipped(reading) == {reason: 1}
    (entry,) = logs
    assert (entry["file"], entry["reason"]) == ("test_results_20260102_000000.json", reason)
    assert entry["error"]
    assert entry["remedy"]
    directory.write("test_results_20260102_000000.json", BAD[reason] + " ")
    assert skipped(await directory.read()) == {reason: 2}
    mended = directory.write_run("20260102_000000")
    assert set(runs(await directory.read())) == {mended}
    await collector.aclose()


async def test_a_broken_file_is_told_where(directory: Directory) -> None:
    """The log names the line and the column of what is broken."""
    directory.write("test_results_20260102_000000.json", BAD["broken"])
    with capture_logs() as logs:
        await directory.read()
    assert logs[0]["error"].startswith("line 2, column 15:")


async def test_a_reserved_name_is_no_fault(directory: Directory) -> None:
    """An empty file is a name that a run has reserved: neither shown nor counted."""
    directory.write("test_results_20260102_000000.json", "")
    reading = await directory.read()
    assert (runs(reading), skipped(reading)) == ({}, {})


@pytest.mark.parametrize("kind", ["outside", "inside", "dangling", "loop", "device", "fifo", "directory"])
async def test_what_is_no_file(
    directory: Directory, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    """Links, pipes, devices and directories are neither followed nor waited for, and counted once."""
    good = directory.write_run("20260101_000000")
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.json"
    secret.write_text(json.dumps({"scenarios": [window("secret")]}))
    path = directory.path / "test_results_20260102_000000.json"
    targets = {
        "outside": secret,
        "inside": directory.path / f"{good}.json",
        "dangling": directory.path / "nothing",
        "loop": path,
        "device": "/dev/zero",
    }
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(targets[kind])
    for _ in range(2):
        reading = await directory.read()
    assert set(runs(reading)) == {good}
    assert skipped(reading) == {"unreadable": 1}
    assert not [path for path in open_paths() if path.is_relative_to(directory.path)]


def test_a_link_that_comes_between(tmp_path: Path) -> None:
    """A file that has become a link or a pipe since it was listed is neither followed nor waited for."""
    path = tmp_path / "test_results_1.json"
    path.write_text("{}")
    (listed,) = results.list_files(str(tmp_path))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        results.read_bounded(str(path), listed, 10)
    path.symlink_to("/dev/zero")
    with pytest.raises(BadResults, match="symbolic link"):
        results.read_bounded(str(path), listed, 10)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadResults, match="not a regular file"):
        results.read_bounded(str(path), listed, 10)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """A file that is too large is not even opened; one that has grown since is read no further."""
    path = tmp_path / "test_results_1.json"
    path.write_text("x" * 11)
    (listed,) = results.list_files(str(tmp_path))
    path.unlink()
    with pytest.raises(BadResults, match="larger than 10 bytes"):
        results.read_bounded(str(path), listed, 10)
    path.write_text("x" * 10)
    (listed,) = results.list_files(str(tmp_path))
    assert results.read_bounded(str(path), listed, 10) == b"x" * 10
    path.write_text("x" * 11)
    with pytest.raises(BadResults, match="larger than 10 bytes"):
        results.read_bounded(str(path), listed, 10)


async def test_more_than_a_beat_can_read(tmp_path: Path) -> None:
    """Many new files are read over several beats, the newest first, and all are shown in the end."""
    collector = open_directory(tmp_path, runs=3)
    directory = Directory(tmp_path, collector)
    filling = " " * (12 * 2**20)
    for day in (1, 2, 3):
        content = json.dumps({"scenarios": [window("a")]}) + filling
        directory.write(f"test_results_2026010{day}_000000.json", content)
    assert len(runs(await directory.read())) == 2
    assert len(runs(await directory.read())) == 3
    await collector.aclose()


async def test_too_many_windows(directory: Directory) -> None:
    """A file with more scenarios than any run has is too large."""
    scenarios = [{"name": "a"}] * (results.MAX_WINDOWS_IN_FILE + 1)
    directory.write("test_results_20260101_000000.json", json.dumps({"scenarios": scenarios}))
    assert skipped(await directory.read()) == {"too_large": 1}


@pytest.mark.parametrize(
    "filling", ["[" + "{}," * 300_001 + "{}]", "{" + ",".join(f'"{n}":1.5' for n in range(300_002)) + "}"]
)
async def test_a_small_file_of_too_many_values_is_not_parsed(directory: Directory, filling: str) -> None:
    """A megabyte of empty objects would be a hundred in memory: it is refused by its commas."""
    good = directory.write_run("20260101_000000")
    directory.write("test_results_20260102_000000.json", f'{{"scenarios": [], "x": {filling}}}')
    with capture_logs() as logs:
        reading = await directory.read()
    assert (set(runs(reading)), skipped(reading)) == ({good}, {"too_large": 1})
    assert logs[0]["error"] == "it has more than 300,000 values"


async def test_the_longest_runs_are_shown(directory: Directory) -> None:
    """Two thousand scenarios with all that a run writes of them are within the bounds."""
    filling = {f"key {number}": number for number in range(90)}
    scenarios = [{**window("a"), **filling} for _ in range(2000)]
    directory.write("test_results_20260101_000000.json", json.dumps({"scenarios": scenarios}))
    assert skipped(await directory.read()) == {}


async def test_a_directory_of_too_many_files_is_down_with_a_remedy(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of them are the newest is not known: no figures, rather than those of just any."""
    monkeypatch.setattr(core_results, "MAX_LISTED", 3)
    for day in (1, 2, 3):
        directory.write_run(f"2026010{day}_000000")
    assert len(runs(await directory.read())) == 1
    (directory.path / "anything").touch()
    with pytest.raises(ReadFailed, match="it has more than 3 entries") as failed:
        await directory.read()
    assert failed.value.remedy == "move old results away"


# -- anything ----------------------------------------------------------------------------------------

number = st.floats() | st.integers() | st.sampled_from(["1", "nan", "inf", 10**400, 1e308, -1e308, 5e-324])
text = st.text(max_size=8) | st.sampled_from(["a", "N/A", "baseline", "0k", "\ud800", "x" * 300])
energies = st.fixed_dictionaries(
    {"source": text, "seconds": number, "joules": number, "mean_watts": number},
    optional={
        "parts": st.lists(
            st.fixed_dictionaries({"component": text, "source": text, "joules": number, "watts": number}),
            max_size=2,
        )
    },
)
pictures = st.fixed_dictionaries(
    {
        "frames": st.just(1),
        **dict.fromkeys(("size", "encoded_size", "pix_fmt", "scaler", "scored_by"), text),
        "vmaf": st.fixed_dictionaries(dict.fromkeys(("mean", "harmonic_mean", "p1", "minimum"), st.floats())),
        "rendition": text,
    },
    optional={"vmaf_model": text, "ssim": st.fixed_dictionaries({"average": st.floats(), "y": st.floats()})},
)
encodes = st.fixed_dictionaries(
    {"seconds": number},
    optional={
        "frames": number,
        "megabits": number,
        "dropped": st.integers(),
        "megapixels": number,
        "media_seconds": number,
        "speed": number,
        "cpu_seconds": st.dictionaries(st.sampled_from(["encoder", "sink"]), number | text),
        "quality": st.fixed_dictionaries({"streams": st.lists(pictures, max_size=3) | text}),
    },
)
scenarios = st.fixed_dictionaries(
    {"name": text},
    optional={
        "group": text, "type": st.sampled_from(["baseline", "single", ""]),
        "bitrate": text, "resolution": text,
        "fps": number, "streams": st.integers(), "bitrates": st.lists(text, max_size=2),
        "block": st.integers(0, 2),
        "pace": st.sampled_from(["max", "2x", "nanx", "infx", ""]),
        "sink": text, "part": text, "ladder": text,
        "outputs": st.lists(text, max_size=3) | number,
        "status": st.sampled_from(["ok", "ok", "failed"]), "start_time": number, "end_time": number,
        "duration": number, "energy": energies, "encode": encodes,
        "versus_baseline": st.fixed_dictionaries(
            {"delta_watts": number, "delta_wh": number}, optional={"percent": number, "baseline": text}),
    },
)  # fmt: skip
documents = st.fixed_dictionaries(
    {"scenarios": st.lists(scenarios, max_size=5)},
    optional={
        "format": st.integers(0, 3),
        "sink": text,
        "rates": st.fixed_dictionaries({"price_per_kwh": number, "gco2e_per_kwh": number}),
    },
)


@given(documents)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_document(document: Any) -> None:
    """Whatever a file says, every value is finite, every label is text, and no series comes twice."""
    try:
        found = parse_results(json.dumps(document).encode(), "run")
    except BadResults:
        return
    seen = set()
    for group in metrics.describe(found, "run", Rates(price_per_kwh=1.0), lambda _: None):
        for sample in group:
            assert math.isfinite(sample.value)
            "".join(sample.labels).encode()
            assert all(len(label) <= 200 for label in sample.labels)
            assert (sample.metric, sample.labels) not in seen
            seen.add((sample.metric, sample.labels))


@given(st.binary(max_size=200) | documents.map(lambda document: json.dumps(document).encode()))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_any_content(directory: Directory, content: bytes) -> None:
    """Whatever bytes a file holds, a reading is a reading."""
    directory.write("test_results_20260101_000000.json", content)
    assert all(math.isfinite(sample.value) for sample in (await directory.read()).samples)


# -- options and names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runs", 0),
        ("runs", 101),
        ("max_scenarios", 0),
        ("max_file_bytes", 0),
        ("price_per_kwh", -1.0),
        ("gco2e_per_kwh", math.nan),
        ("prometheus", "localhost:9090"),
        ("prometheus", "ftp://localhost"),
        ("prometheus", "http://"),
        ("prometheus", "http://localhost:99999"),
        ("prometheus", "http://localhost:9090/?a=b"),
        ("prometheus", "http://local host"),
        ("prometheus_match", 'instance="a"}'),
        ("prometheus_match", "instance"),
        ("prometheus_match", 'a="b" or c="d"'),
    ],
)
def test_options_are_checked(key: str, value: Any) -> None:
    """A value that cannot work is refused when the configuration is read."""
    assert [name for name, _ in results.Options(**{key: value}).problems()] == [key]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prometheus": "http://localhost:9090"},
        {"prometheus": "https://user:word@metrics.example/prom/"},
        {"prometheus": "http://[::1]:9090", "prometheus_match": 'instance="a:1", job=~"x|y\\"",'[:-1]},
        {"runs": 100, "price_per_kwh": 0.3},
    ],
)
def test_options_that_work(options: dict[str, Any]) -> None:
    """Values that can work are taken."""
    assert list(results.Options(**options).problems()) == []


def test_names_kinds_and_labels_are_fixed() -> None:
    """Names, kinds and labels are the ones that dashboards were written for."""
    declared = {metric.name: (metric.kind, metric.labels) for metric in results.METRICS}
    names = (
        "delta_power_watts delta_energy_wh power_pct_increase mean_power_watts total_energy_joules "
        "total_energy_wh duration_seconds avg_fps total_frames dropped_frames energy_mj_per_frame "
        "energy_wh_per_mbps energy_joules_per_megapixel energy_joules_per_content_minute speed "
        "cost co2e_grams delta_power_ci_lower_watts delta_power_ci_upper_watts repeats"
    )
    settings = ("bitrate", "rate", "resolution", "fps", "encoder", "preset", "streams")
    labels = ("run_id", "scenario", *settings, "source", "grade")
    scores = ("vmaf_score", "xpsnr_score", "psnr_score", "ssim_score")
    assert declared == {
        **{f"results_scenario_{name}": ("gauge", (*labels, "rendition")) for name in scores},
        **{f"results_scenario_{name}": ("gauge", labels) for name in names.split()},
        "results_scenarios": ("gauge", ("run_id",)),
        "results_run_timestamp_seconds": ("gauge", ("run_id",)),
        "results_files_skipped_total": ("counter", ("reason",)),
    }
    assert all(isinstance(metric, Metric) and metric.help.endswith(".") for metric in results.METRICS)
