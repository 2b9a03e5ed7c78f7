"""Where the joules and the CPU seconds of a frame go, by differences worked out by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from powerbench_agent.bench.analyze.tables import split_sentences, split_table
from powerbench_agent.bench.statistics.split import Incomplete, incomplete_splits, splits_of
from powerbench_agent.core.results import Encode, Energy, Part, RecordedScenario

if TYPE_CHECKING:
    from powerbench_agent.bench.statistics.split import Split
    from powerbench_agent.bench.statistics.stats import Comparison

WATTS = {"decode": 6.0, "decode+scale": 7.0, "": 16.0}
FRAMES = {"decode": 1800.0, "decode+scale": 1800.0, "": 1800.0}
FAST = {"decode": 36_000.0, "decode+scale": 24_000.0, "": 6000.0}
CPU = {"decode": 9.0, "decode+scale": 18.0, "": 90.0}


def energy(watts: float) -> Energy:
    return Energy.of_parts([Part("cpu", "rapl", watts * 60, watts)], 60.0)


def idle(watts: float, block: int = 0) -> RecordedScenario:
    return RecordedScenario(
        name=f"baseline {block}", type="baseline", block=block, streams=0, energy=energy(watts)
    )


def window(
    part: str, block: int = 0, off: float = 0.0, frames: dict[str, float] | None = None, **more: Any
) -> RecordedScenario:
    settings: dict[str, Any] = {"type": "single", "group": "x", "encoder": "h264", "fps": 30}
    encode = Encode(
        60.0,
        (frames or FRAMES)[part],
        media_seconds=60.0,
        cpu_seconds={"encoder": CPU[part] + off, "sink": 99.0},
    )
    settings |= {
        "energy": energy(WATTS[part] + off),
        "encode": encode,
        "sink": "rtmp" if not part else "null",
    }
    return RecordedScenario(name=f"x {part} {block}", part=part, block=block, **settings | more)


def windows(repeats: int = 3, **more: Any) -> list[RecordedScenario]:
    """Return windows of all three kinds whose mean is that of the tables above."""
    found = []
    for block in range(repeats):
        off = (block - (repeats - 1) / 2) / 10
        found += [window(part, block, off, **more) for part in WATTS]
    return found


def joules(split: Split) -> dict[str, float]:
    return {step.name: step.joules.delta for step in split.steps if step.joules}


def width(found: Comparison | None) -> float:
    assert found is not None
    assert found.interval is not None
    return found.interval.high - found.interval.low


def test_each_step_is_a_difference_and_they_add_up() -> None:
    """Of 12 W beyond idle at 30 frames a second decoding takes 2 W, scaling 1 W, encoding 9 W."""
    (split,) = splits_of([*(idle(3.9 + block / 10, block) for block in range(3)), *windows()])
    assert joules(split) == pytest.approx({"decode": 2 / 30, "scale": 1 / 30, "encode": 9 / 30, "whole": 0.4})
    assert (split.graded_source, split.beyond_idle, split.is_repeated) == ("rapl (1)", True, True)
    *steps, whole = (step.joules for step in split.steps)
    assert sum(step.delta for step in steps if step) == pytest.approx(whole.delta if whole else 0)


def test_the_interval_is_that_of_welch() -> None:
    """SD 0.1 W in three repeats a side: half is t(0.975, 4) · 0.1 · sqrt(2/3) W, at 30 frames a second."""
    (split,) = splits_of([idle(4.0), *windows()])
    scale = next(step for step in split.steps if step.name == "scale")
    assert width(scale.joules) / 2 == pytest.approx(2.7764 * 0.1 * (2 / 3) ** 0.5 / 30, rel=1e-4)


def test_at_other_rates_the_idle_machine_is_taken_off_each() -> None:
    """At full speed a frame of decoding takes a tenth of the time, and of the idle machine's joules."""
    baselines = [idle(3.9 + block / 10, block) for block in range(3)]
    (split,) = splits_of([*baselines, *windows(frames=FAST, pace="max")])
    assert joules(split) == pytest.approx(
        {"decode": 2 / 600, "scale": 3 / 400 - 2 / 600, "encode": 12 / 100 - 3 / 400, "whole": 12 / 100}
    )
    alone = [idle(4.0), *windows(frames=FAST, pace="max")]
    assert not splits_of(alone)[0].is_repeated  # one baseline does not tell its own spread


def test_without_a_baseline_idle_is_in_it_and_that_is_said() -> None:
    """At one rate differences hold; at others they are not known."""
    (split,) = splits_of(windows())
    assert joules(split) == pytest.approx(
        {"decode": 6 / 30, "scale": 1 / 30, "encode": 9 / 30, "whole": 16 / 30}
    )
    (line,) = split_sentences([split])
    assert "no baseline for x" in line
    (fast,) = splits_of(windows(frames=FAST, pace="max"))
    assert set(joules(fast)) == {"decode", "whole"}


def test_measured_once_there_is_no_interval_and_that_is_said() -> None:
    """The differences stand alone."""
    (split,) = splits_of([idle(4.0), *windows(repeats=1)])
    assert joules(split)["encode"] == pytest.approx(9 / 30)
    assert [step.joules.interval for step in split.steps if step.joules] == [None] * 4
    assert "no interval for the steps of x: measured once" in next(iter(split_sentences([split])))


def test_cpu_seconds_need_no_meter() -> None:
    """Of 50 ms a frame decoding takes 5, scaling 5, encoding 40; the sink's are not counted."""
    (split,) = splits_of(windows(energy=None))
    cpu = {step.name: step.cpu_seconds.delta for step in split.steps if step.cpu_seconds}
    assert cpu == pytest.approx({"decode": 0.005, "scale": 0.005, "encode": 0.04, "whole": 0.05})
    assert (joules(split), split.source) == ({}, "")
    table = split_table([split])
    assert table is not None
    assert table.title == "Where the CPU time of a frame goes"
    assert [line[1] for line in table.rows] == ["decode", "scale", "encode", "whole"]
    assert table.rows[2][2].startswith("40.000 ± ")


def test_a_ladders_frame_is_one_of_the_content() -> None:
    """Three renditions of 1800 frames are encoded from 1800 frames, which were decoded once."""
    several = {**FRAMES, "": 5400.0}
    (split,) = splits_of([idle(4.0), *windows(frames=several, ladder="1920x1080:5M,1280x720:2M,854x480:1M")])
    assert joules(split)["whole"] == pytest.approx(12 / 30)


def test_settings_are_split_each_for_itself() -> None:
    """Another preset's decoding is not taken off; a setting without parts is not split."""
    slow = windows(preset="slow")
    found = splits_of([idle(4.0), *windows(), *slow, window("", preset="medium")])
    assert len(found) == 2
    assert splits_of([idle(4.0), window("", preset="medium")]) == []
    assert incomplete_splits([window("", preset="medium")]) == []


def test_what_is_missing_is_named() -> None:
    """A kind of windows that all failed leaves no split, and a sentence."""
    failed = [window(part, status="failed" if part == "decode" else "ok") for part in WATTS]
    assert splits_of(failed) == []
    assert incomplete_splits(failed) == [Incomplete("x", ("decode",))]
    (line,) = split_sentences([], incomplete_splits(failed))
    assert line == "Note: x cannot be split into its steps: no window of decode went well."
