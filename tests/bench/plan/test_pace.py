"""Paces as they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.bench.plan.pace import MAX, REALTIME, Pace, parse_pace


@pytest.mark.parametrize(
    ("text", "pace"),
    [
        ("realtime", REALTIME),
        (" RealTime ", REALTIME),
        ("1x", REALTIME),
        ("1.000x", REALTIME),
        ("max", MAX),
        ("2x", Pace(2)),
        ("0.1x", Pace(0.1)),
        ("100X", Pace(100)),
    ],
)
def test_a_pace_is_read_as_people_write_it(text: str, pace: Pace) -> None:
    """A word, or times real time; one time real time is real time."""
    assert parse_pace(text) == pace


@pytest.mark.parametrize(
    "text", ["", "x", "2", "0x", "0.099x", "100.1x", "-1x", "1e1x", "infx", "nanx", "2 x", "٢x", "1.0000x"]
)
def test_what_is_no_pace_is_refused(text: str) -> None:
    """The message shows how one is written, and between which limits."""
    with pytest.raises(ValueError, match=r"realtime, max, or times real time from 0\.1x to 100x"):
        parse_pace(text)


@given(st.integers(100, 100_000).map(lambda thousandths: Pace(thousandths / 1000)) | st.just(MAX))
def test_a_pace_survives_being_written(pace: Pace) -> None:
    """What results and names say of a pace is read as the same pace."""
    assert parse_pace(str(pace)) == pace
    assert pace.is_max == (str(pace) == "max")


@given(st.text(max_size=12))
def test_any_text_is_a_pace_or_refused(text: str) -> None:
    """No text is an error of another kind, and every pace is within its limits."""
    try:
        pace = parse_pace(text)
    except ValueError as error:
        said = str(error)
    else:
        said = ""
        assert pace.is_max or 0.1 <= pace.speed <= 100
    assert "\n" not in said
