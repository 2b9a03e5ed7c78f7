"""Values of a scenario as people write them, and the streams of a multi."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.bench.plan import scenario


@pytest.mark.parametrize(
    ("text", "kbps"), [("2500k", 2500), ("5M", 5000), ("2500", 2500), (" 2.5M ", 2500), ("1m", 1000)]
)
def test_bitrates_are_read_as_people_write_them(text: str, kbps: float) -> None:
    """A bitrate is kbps, with k, M or nothing behind it."""
    assert scenario.parse_bitrate(text) == kbps


@pytest.mark.parametrize("text", ["fast", "", "-1k", "5G", "1", "0", "5MM", "nan", "1e9", "2000001k"])
def test_what_is_no_bitrate_is_said_to_be_none(text: str) -> None:
    """A word, a negative or an absurd number is refused in words that show how to write one."""
    with pytest.raises(ValueError, match="2500k"):
        scenario.parse_bitrate(text)


@given(st.integers(10, 999_999))
def test_a_bitrate_survives_being_written(kbps: int) -> None:
    """What format_bitrate writes, parse_bitrate reads."""
    assert scenario.parse_bitrate(scenario.format_bitrate(kbps)) == kbps


def test_a_resolution_is_width_by_height() -> None:
    """1280x720 is 1280 wide, and is written back the same."""
    resolution = scenario.parse_resolution("1280x720")
    assert resolution == (1280, 720)
    assert str(resolution) == "1280x720"


@pytest.mark.parametrize(
    "text", ["720", "1280", "1280x", "x720", "1280*720", "1281x720", "1280x721", "99999x99999", "2x2"]
)
def test_what_no_encoder_takes_is_no_resolution(text: str) -> None:
    """A missing side, an odd one, and one beyond the encoders' reach are refused."""
    with pytest.raises(ValueError, match=r"WIDTHxHEIGHT|even"):
        scenario.parse_resolution(text)


@pytest.mark.parametrize("text", ["0", "0s", "-5", "soon", "", "8000000"])
def test_a_window_has_a_length(text: str) -> None:
    """A duration of nothing, of less than nothing, or of months is refused."""
    with pytest.raises(ValueError, match=r"2m30s"):
        scenario.parse_duration(text)


def test_a_wait_may_be_none() -> None:
    """Stabilization and cooldown may be 0, durations may not."""
    assert scenario.parse_wait("0") == 0
    assert scenario.parse_wait("2m30s") == 150


@pytest.mark.parametrize("text", ["x" * 101, "a\nb", "\x1b[31m", "\udcff"])
def test_a_name_can_be_printed(text: str) -> None:
    """A name that a table, label or file could not hold is refused."""
    with pytest.raises(ValueError, match="printable"):
        scenario.parse_name(text)


def test_scenarios_of_one_name_are_told_apart() -> None:
    """The second of a name is #2, the third #3, before anything runs: file and trace agree."""
    same = [scenario.Scenario(name="x", type="baseline", duration=1) for _ in range(3)]
    assert [s.name for s in scenario.with_unique_names(same)] == ["x", "x#2", "x#3"]


def test_a_multi_is_its_streams() -> None:
    """Each stream has its bitrate and a name of its own; together they are asked for all of it."""
    multi = scenario.Scenario(name="m", type="multi", duration=9, bitrates=(1000, 2500))
    assert [(s.name, s.video_kbps, s.type) for s in multi.streams] == [
        ("m-1", 1000, "single"),
        ("m-2", 2500, "single"),
    ]
    assert multi.asked_kbps == 3500 + 2 * 96
