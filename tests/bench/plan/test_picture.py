"""What a clip's picture is, and which settings come nearest to it."""

from __future__ import annotations

from fractions import Fraction

import pytest

from powerbench_agent.bench.plan.picture import cropped, nearest_format, pixel_format, rate_of

X264 = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "yuv420p10le", "yuv444p10le", "gray")
SVT = ("yuv420p", "yuv420p10le")
NTSC, PAL = Fraction(30000, 1001), 25


@pytest.mark.parametrize(
    ("name", "chroma", "bits"),
    [
        ("yuv420p", "420", 8),
        ("yuvj444p", "444", 8),
        ("yuva422p12le", "422", 12),
        ("yuv440p10be", "440", 10),
        ("nv12", "420", 8),
        ("nv20le", "422", 10),
        ("p010le", "420", 10),
        ("p216le", "422", 16),
        ("gray10le", "400", 10),
        ("monow", "400", 8),
        ("rgb24", "444", 8),
        ("bgr0", "444", 8),
        ("rgb48le", "444", 16),
        ("gbrp12le", "444", 12),
        ("x2rgb10le", "444", 10),
        ("vaapi", "", 0),
    ],
)
def test_a_pixel_format_has_chroma_and_bits(name: str, chroma: str, bits: int) -> None:
    """Out of FFmpeg's own name; one that is not known has neither."""
    assert pixel_format(name) == (chroma, bits)


@pytest.mark.parametrize(
    ("own", "taken", "chosen"),
    [
        ("yuv420p10le", X264, "yuv420p10le"),
        ("yuvj420p", X264, "yuvj420p"),
        ("yuvj420p", SVT, "yuv420p"),
        ("yuv422p10le", X264, "yuv444p10le"),  # more colour rather than fewer bits
        ("yuv444p12le", X264, "yuv444p10le"),
        ("yuv444p12le", SVT, "yuv420p10le"),
        ("yuva420p", X264, "yuv420p"),
        ("rgb24", X264, "yuv444p"),
        ("pal8", SVT, "yuv420p"),
        ("p010le", X264, "yuv420p10le"),
        ("gray10le", SVT, "yuv420p10le"),
        ("vaapi", SVT, "yuv420p"),
        ("yuv444p", (), "yuv444p"),
        ("yuv444p", ("vaapi",), "vaapi"),
    ],
)
def test_the_nearest_format_loses_least(own: str, taken: tuple[str, ...], chosen: str) -> None:
    """Its own if the encoder takes that, else no less colour, then no fewer bits, then little more."""
    assert nearest_format(own, taken) == chosen


@pytest.mark.parametrize(
    ("base", "average", "interlaced", "rate", "variable"),
    [
        (NTSC, NTSC, False, NTSC, False),
        (NTSC, Fraction(2997, 100), False, NTSC, False),
        (Fraction(19001, 317), Fraction(60000, 1001), False, Fraction(60000, 1001), False),
        (Fraction(16683, 1000), None, False, Fraction(16683, 1000), False),
        (50, 25, True, 25, False),  # fields are counted
        (Fraction(60000, 1001), NTSC, True, NTSC, False),
        (50, 25, False, 50, True),
        (30, Fraction(600, 29), False, 30, True),
        (90000, Fraction(2999, 100), False, 30, True),  # the clock of a telephone
        (90000, Fraction(2996, 100), False, NTSC, True),
        (1000, Fraction(71, 10), False, Fraction(24000, 1001), True),
        (1000, 200, False, 200, True),
        (25, None, False, 25, False),
        (None, 25, False, 25, False),
        (None, None, False, None, False),
    ],
)
def test_a_clip_has_one_rate(
    base: Fraction | None,
    average: Fraction | None,
    rate: Fraction | None,
    *,
    interlaced: bool,
    variable: bool,
) -> None:
    """The base if that is its average; a variable one becomes the base, or the next common rate."""
    assert rate_of(base, average, interlaced=interlaced) == (rate, variable)


@pytest.mark.parametrize(
    ("pix_fmt", "size"),
    [("yuv420p", (320, 240)), ("yuv422p", (320, 241)), ("yuv444p", (321, 241)), ("gray", (321, 241))],
)
def test_an_odd_side_is_kept_where_the_format_can(pix_fmt: str, size: tuple[int, int]) -> None:
    """4:2:0 needs even sides, 4:2:2 an even width; of 4:4:4 nothing is cut off."""
    assert cropped(321, 241, pix_fmt) == size
