"""The rules about results files: what is compared with what, joules a frame, the newest file."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from powerbench_agent.core.results import (
    Encode,
    Energy,
    Part,
    RecordedScenario,
    baselines_of,
    comparable,
    describe_per_unit,
    difference,
    list_results,
    mean_energy,
    newest,
    parse_scenario,
    per_unit,
    repeats,
    settings_of,
    valid,
)

if TYPE_CHECKING:
    from pathlib import Path


def energy(watts: float, seconds: float, source: str = "rapl") -> Energy:
    return Energy.of_parts((Part("cpu", source, watts * seconds, watts),), seconds)


def idle(watts: float, block: int = 0, source: str = "rapl", **more: Any) -> RecordedScenario:
    return RecordedScenario(
        name=f"idle {watts:g}", type="baseline", block=block, energy=energy(watts, 60.0, source), **more
    )


def stream(watts: float, block: int = 0, source: str = "rapl", **more: Any) -> RecordedScenario:
    return RecordedScenario(
        name="x", group="x", type="single", block=block, energy=energy(watts, 60.0, source), **more
    )


def watts(scenarios: list[RecordedScenario]) -> list[float]:
    return [scenario.energy.watts for scenario in scenarios if scenario.energy is not None]


# -- baselines ---------------------------------------------------------------------------------------


def test_all_baselines_of_the_block_count_the_same() -> None:
    """Two idle windows of 10 W and 14 W are one baseline of 12 W, wherever they lie in the block."""
    one = stream(30.0)
    own = baselines_of([one], [idle(10.0), one, idle(14.0), idle(99.0, 1)])
    assert watts(own) == [10.0, 14.0]
    versus = difference(energy(30.0, 60.0), [energy(10.0, 60.0), energy(14.0, 60.0)])
    assert versus is not None
    assert versus.watts == 18.0


def test_repeats_have_the_baselines_of_all_their_blocks() -> None:
    """Windows of blocks 0 and 1 stand against the idle windows of both, and of no third."""
    scenarios = [idle(10.0), idle(20.0, 1), idle(99.0, 2)]
    assert watts(baselines_of([stream(1.0), stream(1.0, 1)], scenarios)) == [10.0, 20.0]


def test_a_block_without_a_baseline_has_all_of_the_file() -> None:
    """A failed or impossible window is not a baseline; a test whose block has none uses the others'."""
    broken = structs.replace(energy(1.0, 60.0), joules=-1.0)
    unusable = [idle(1.0, status="failed"), structs.replace(idle(1.0), energy=broken)]
    assert watts(baselines_of([stream(30.0)], [*unusable, idle(10.0, 1), idle(20.0, 2)])) == [10.0, 20.0]


def test_other_sources_or_components_are_never_compared() -> None:
    """An estimate is not the baseline of a measurement, nor the CPU alone that of CPU and memory."""
    parts = [Part("cpu", "rapl", 60.0, 1.0), Part("dram", "rapl", 60.0, 1.0)]
    both = Energy.of_parts(parts, 60.0)
    assert baselines_of([stream(30.0)], [idle(10.0, 0, "estimate")]) == []
    assert baselines_of([structs.replace(stream(30.0), energy=both)], [idle(10.0)]) == []
    assert difference(both, [energy(10.0, 60.0)]) is None
    assert comparable(both, structs.replace(both, joules=5.0))
    assert not comparable(both, energy(10.0, 60.0))


def test_an_idle_window_has_no_baseline() -> None:
    """It is what others are compared with."""
    assert baselines_of([idle(10.0)], [idle(14.0)]) == []


def test_the_difference_is_taken_over_the_tests_window() -> None:
    """A test twice as long as its baseline is not charged the baseline's joules but its watts."""
    versus = difference(energy(30.0, 60.0), [energy(20.0, 30.0)])
    assert versus is not None
    assert versus.watts == 10.0
    assert versus.watt_hours == pytest.approx(10.0 * 60 / 3600)
    assert versus.percent == pytest.approx(50.0)


def test_nothing_is_a_percentage_of_zero() -> None:
    """A baseline of 0 W has no percentage."""
    versus = difference(energy(1.0, 10.0), [energy(0.0, 10.0)])
    assert versus is not None
    assert versus.percent is None


def test_joules_a_frame_do_not_depend_on_the_windows_being_one() -> None:
    """30 W at 30 frames a second are 1 J a frame, over any length."""
    assert per_unit(30.0, 300.0, 10.0) == pytest.approx(1.0)
    assert per_unit(30.0, None, 10.0) is None
    assert per_unit(30.0, 0.0, 10.0) is None


def test_an_impossible_encode_has_no_joules_a_frame() -> None:
    """Negative frames, and no or endless time, make no figure and no error."""
    for frames, seconds in ((-1.0, 10.0), (300.0, 0.0), (300.0, math.inf), (math.nan, 10.0)):
        assert per_unit(30.0, frames, seconds) is None
    assert (Encode(0.0, 300.0, 20.0).fps, Encode(0.0, 300.0, 20.0).kbps) == (None, None)


def test_the_mean_of_windows_is_that_of_their_parts() -> None:
    """Joules, watts and seconds are means; the parts add up to the whole."""
    found = mean_energy([energy(10.0, 60.0), energy(14.0, 60.0)])
    assert (found.watts, found.joules, found.seconds) == (12.0, 720.0, 60.0)
    assert found.parts == (Part("cpu", "rapl", 720.0, 12.0),)
    assert found.measured


# -- repeats -----------------------------------------------------------------------------------------


def test_what_cannot_be_averaged_stands_apart() -> None:
    """A measurement, an estimate, and a window without valid energy are three sets of one name."""
    without = structs.replace(stream(5.0), energy=None)
    found = repeats([stream(5.0), stream(5.0, 1, "estimate"), without, stream(7.0, 2)])
    assert [(same.name, same.source, len(same.windows)) for same in found] == [
        ("x", "rapl", 2),
        ("x", "estimate", 1),
        ("x", "", 1),
    ]
    assert [valid(same.first) for same in found] == [True, True, False]


def test_streams_of_other_pixel_formats_are_not_averaged() -> None:
    """8 bits and 10 are two settings; a file that does not say was of 8."""
    ten_bits = {"pix_fmt": "yuv420p10le"}
    windows = [
        stream(30.0),
        stream(31.0, pix_fmt="yuv420p"),
        stream(40.0, **ten_bits),
        stream(41.0, **ten_bits),
    ]
    found = [(watts(list(group.windows)), str(settings_of(group.first))) for group in repeats(windows)]
    assert found == [([30.0, 31.0], "0 fps"), ([40.0, 41.0], "0 fps yuv420p10le")]


def test_live_sources_are_told_apart_by_their_whole_url() -> None:
    """What a URL ends with is hidden, and the same for all; a clip is called by its file's name."""
    names = ("rtmp://a/live/***", "rtmp://b/live/***", "/clips/a.mp4")
    windows = [stream(30.0, input=name) for name in names]
    assert [settings_of(window).input for window in windows] == [*names[:2], "a.mp4"]
    assert [group.name for group in repeats(windows)] == [f"x ({name})" for name in (*names[:2], "a.mp4")]


def test_repeats_of_a_fractional_rate_are_one_group() -> None:
    """29.97003 stands for 30000/1001 in every repeat, and is shown as both."""
    entry = {"name": "x", "type": "single", "fps": 29.97003, "frame_rate": "30000/1001"}
    windows = [parse_scenario(entry) for _ in range(2)]
    assert len(repeats(windows)) == 1
    assert windows[0].fps_text == "29.97 (30000/1001)"
    assert parse_scenario({"name": "x", "fps": 12.5, "frame_rate": "25/2"}).fps_text == "12.5"
    assert parse_scenario({"name": "x", "fps": 30}).fps_text == "30"


def test_clips_of_one_name_are_told_apart() -> None:
    """Two clips under one name are two sets, called by the clip's name."""
    found = repeats(
        [stream(5.0, input="/a.mp4", input_sha256="1"), stream(5.0, 1, input="/b.mp4", input_sha256="2")]
    )
    assert [same.name for same in found] == ["x (a.mp4)", "x (b.mp4)"]


# -- files -------------------------------------------------------------------------------------------


def test_the_date_in_the_name_tells_the_newest(tmp_path: Path) -> None:
    """A copy of an old run is not the newest; a name without a date has that of its last writing."""
    for name, written in (("20260103_000000", 1), ("20260102_000000", 300), ("mine", 1_767_225_600)):
        path = tmp_path / f"test_results_{name}.json"
        path.write_text("{}")
        os.utime(path, (written, written))
    (tmp_path / "test_results_20270101_000000.json").touch()  # a name that a run has just taken
    (tmp_path / "other.json").write_text("{}")
    listed = list_results(tmp_path)
    assert [file.run_id.removeprefix("test_results_") for file in listed] == [
        *("20270101_000000", "20260103_000000", "20260102_000000", "mine"),
    ]
    found = newest(listed)
    assert found is not None
    assert found.name == "test_results_20260103_000000.json"
    assert newest([]) is None


def test_a_windows_unit_costs() -> None:
    """10 W over 60 s: joules a frame, a megabit, a megapixel, and a minute of content of two streams."""
    encode = Encode(60.0, 1200.0, 300.0, 120.0, megapixels=240.0)
    assert describe_per_unit(10.0, encode) == {
        "joules_per_frame": 0.5,
        "joules_per_megabit": 2.0,
        "joules_per_megapixel": 2.5,
        "joules_per_content_minute": 300.0,
    }
    assert set(describe_per_unit(10.0, Encode(60.0)).values()) == {None}


@pytest.mark.parametrize(
    ("pace", "speed"),
    [(None, 1.0), ("realtime", 1.0), ("2x", 2.0), ("0.5x", 0.5), ("max", None), ("fast", 1.0), ("nanx", 1.0)],
)
def test_the_speed_that_a_pace_asks_for(pace: str | None, speed: float | None) -> None:
    """Real time where a file says nothing, or nothing that is known."""
    assert parse_scenario({"name": "x", "pace": pace}).asked_speed == speed


@pytest.mark.parametrize(
    ("cpu", "seconds"),
    [
        ({"encoder": 5}, 5.0),
        ({"sink": 3}, None),
        (None, None),
        *(({"encoder": odd}, None) for odd in ("5", -1, True, math.inf, 10**400)),
    ],
)
def test_the_encoders_cpu_seconds(cpu: dict[str, Any] | None, seconds: float | None) -> None:
    """What is no time is unknown, and the sink's are not the encoder's."""
    assert Encode(60.0, cpu_seconds=cpu).encoder_cpu_seconds == seconds


def test_names_tell_settings_apart_only_where_they_differ() -> None:
    """A pace that all repeats share is not in their name; parts of the work are named by what they do."""
    fast = [stream(5.0, block, pace="max", sink="null") for block in range(2)]
    assert [same.name for same in repeats(fast)] == ["x"]
    split = [stream(5.0, sink="rtmp"), *(stream(5.0, part=part) for part in ("decode", "decode+scale"))]
    assert [same.name for same in repeats(split)] == ["x", "x (decode alone)", "x (decode+scale alone)"]
    two = [stream(5.0, sink="rtmp"), stream(5.0, 1, sink="srt", pace="2x")]
    assert [same.name for same in repeats(two)] == ["x (to rtmp)", "x (pace 2x, to srt)"]
    assert str(settings_of(two[1])) == "0 fps pace 2x"


def test_baselines_are_one_whatever_was_to_come() -> None:
    """An idle window has no sink, pace or part."""
    (same,) = repeats([idle(4.0), idle(4.0, sink="srt", pace="max", part="decode")])
    assert len(same.windows) == 2
