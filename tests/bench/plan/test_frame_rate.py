"""Frame rates as people, FFmpeg and results files write them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.bench.plan import frame_rate
from powerbench_agent.bench.plan.frame_rate import parse_fps

NTSC = Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("text", "rate", "said", "number"),
    [
        ("30", 30, "30", 30),
        ("25.0", 25, "25", 25),
        ("50/2", 25, "25", 25),
        (" 12.5 ", Fraction(25, 2), "12.5", 12.5),
        ("29.97", NTSC, "29.97 (30000/1001)", 29.97003),
        ("29.97003", NTSC, "29.97 (30000/1001)", 29.97003),
        ("30000/1001", NTSC, "29.97 (30000/1001)", 29.97003),
        ("23.976", Fraction(24000, 1001), "23.976 (24000/1001)", 23.97602),
        ("23.98", Fraction(24000, 1001), "23.976 (24000/1001)", 23.97602),
        ("59.94", Fraction(60000, 1001), "59.94 (60000/1001)", 59.94006),
        ("119.88", Fraction(120000, 1001), "119.88 (120000/1001)", 119.88012),
        ("29.9", Fraction(299, 10), "29.9", 29.9),
        ("29.95", Fraction(599, 20), "29.95", 29.95),
    ],
)
def test_a_rate_is_exact_however_it_is_written(text: str, rate: Fraction, said: str, number: float) -> None:
    """A decimal that rounds 1000/1001 of a whole rate is that rate; any other is what it says."""
    assert parse_fps(text) == rate
    assert frame_rate.full(parse_fps(text)) == said
    assert frame_rate.number(parse_fps(text)) == number


@pytest.mark.parametrize(
    "text", ["0", "fast", "481", "", "30/0", "0/1", "-25", "1e1", "30/1/1", "1/2", "nan"]
)
def test_what_is_not_a_rate_is_refused(text: str) -> None:
    """A word, nothing, less than one, or what no picture is made at is refused, with how to write one."""
    with pytest.raises(ValueError, match="30000/1001"):
        parse_fps(text)


def test_a_group_of_pictures_is_two_seconds_rounded() -> None:
    """29.97 has 60 frames in 2 s, 12.5 has 25, 23.976 has 48."""
    assert [frame_rate.frames_in(parse_fps(text), 2) for text in ("29.97", "12.5", "23.976", "25")] == [
        60,
        25,
        48,
        50,
    ]


@given(st.fractions(1, 480, max_denominator=9999))
def test_a_rate_survives_being_written(rate: Fraction) -> None:
    """What FFmpeg is given is what was parsed."""
    assert parse_fps(str(rate)) == rate
    assert str(parse_fps(str(rate))) == str(rate)
