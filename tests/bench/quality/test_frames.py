"""Which frame of its source each frame of an encode is."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.bench.plan.frame_rate import MAXIMUM, MINIMUM, FrameRate
from powerbench_agent.bench.quality.call import NotScored
from powerbench_agent.bench.quality.frames import Mapped, map_frames, numbers_of
from powerbench_agent.bench.quality.side import Side

if TYPE_CHECKING:
    from pathlib import Path

NTSC = Fraction(1000, 1001)
rates = (
    st.integers(MINIMUM, MAXIMUM)
    | st.integers(2, MAXIMUM).map(lambda whole: whole * NTSC)
    | st.fractions(MINIMUM, MAXIMUM, max_denominator=1001)
)
# Numbers of the frames that are there; the first one always is, which is what the others are counted from.
frames = st.sets(st.integers(1, 5000), max_size=200).map(lambda later: [0, *sorted(later)])
late = st.integers(0, 7 * 86_400 * MAXIMUM)


def stored(numbers: list[int], rate: FrameRate, shift: Fraction, a_second: int) -> list[int]:
    """Return the times that a container keeps, with so many units a second, as times of 90,000 a second."""
    return [
        round(Fraction(round((n / Fraction(rate) + shift) * a_second), a_second) * 90_000) for n in numbers
    ]


@given(rates, frames, st.fractions(-10, 100_000), st.sampled_from([1000, 90_000, 12_800]))
def test_a_frames_number_is_exact_whatever_its_container_does_to_times(
    rate: FrameRate, numbers: list[int], shift: Fraction, a_second: int
) -> None:
    """Rounded to milliseconds (FLV, Matroska), to 90 kHz (MPEG-TS), shifted, with frames dropped."""
    assert numbers_of(stored(numbers, rate, shift, a_second), rate) == numbers


@given(rates, late, st.sampled_from([1000, 90_000]))
def test_a_week_later_it_is_exact_still(rate: FrameRate, number: int, a_second: int) -> None:
    """Ticks are fractions: nothing adds up."""
    assert numbers_of(stored([0, number], rate, Fraction(1, 3), a_second), rate)[1] == number


def test_no_frames_have_no_numbers() -> None:
    """An output without a picture is no error here."""
    assert numbers_of([], 30) == []


@given(st.sets(st.integers(0, 3000), min_size=1), st.integers(0, 3000), st.integers(1, 3000))
def test_a_span_is_what_of_it_is_there(there: set[int], begin: int, length: int) -> None:
    """The frames and the dropped ones together are the source's, from the first one to the last."""
    numbers = sorted(there)
    try:
        found = map_frames(numbers, begin, begin + length)
    except NotScored as refused:
        said = str(refused)
        inside = [number for number in numbers if begin <= number < begin + length]
        gaps = inside[-1] - inside[0] + 1 - len(inside) if inside else 0
        assert ("none of the window" in said) == (not inside)
        assert not inside or gaps > min(200, 0.05 * len(inside))
        return
    shown = [
        found.first_source + n for n in range(found.frames + len(found.dropped)) if n not in found.dropped
    ]
    assert shown == [number for number in numbers if begin <= number < begin + length]
    assert numbers[found.first_encoded] == found.first_source
    assert len(found.dropped) <= min(200, 0.05 * found.frames)


def test_dropped_frames_are_counted_from_the_spans_first() -> None:
    """The source leaves out the same ones."""
    numbers = [n for n in range(100) if n not in (3, 40, 41)]
    assert map_frames(numbers, 10, None) == Mapped(9, 10, 88, (30, 31))
    assert map_frames(numbers, 0, 30) == Mapped(0, 0, 29, (3,))
    assert map_frames(numbers, 40, 60) == Mapped(39, 42, 18)  # what is dropped at an edge is not in the span


def test_the_last_frames_of_what_was_cut_are_not_sure() -> None:
    """The pictures that they lean on may be missing; without a cut all count."""
    assert map_frames(list(range(100)), 0, None, is_cut=True).frames == 84
    assert map_frames(list(range(100)), 0, 50, is_cut=True).frames == 50
    assert map_frames(list(range(100)), 0, None).frames == 100
    with pytest.raises(NotScored, match="none of the window's frames"):
        map_frames(list(range(16)), 0, None, is_cut=True)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([], "none of the window's frames was kept"),
        ([0, 1, 2], "none of the window's frames was kept"),
        ([8, 9, 10, 10, 11, 12], "two of its frames have one time"),
        ([8, 10, 9, 11], "two of its frames have one time"),
        ([5, 6, 8], "1 of 4 frames were dropped"),
        ([*range(5, 100), 2**60], "of .* frames were dropped"),
        ([*range(5, 9000), *range(9201, 20_000)], "201 of 19995 frames were dropped"),
    ],
)
def test_what_cannot_be_told_is_not_scored(numbers: list[int], said: str) -> None:
    """Nothing there, times that do not tell frames apart, or too much missing; however far a time jumps."""
    with pytest.raises(NotScored, match=said):
        map_frames(numbers, 5, None)


def test_the_filters_of_a_side_pass_on_what_is_asked() -> None:
    """So many frames beside those that are left out, which are counted from the first one."""
    side = Side.of_picture("testsrc2", first_frame=7)
    assert side.steps(10) == ["trim=start_frame=7:end_frame=17"]
    without = side._replace(without=(2, 5), rate="30000/1001")
    assert without.steps(10) == [
        "fps=30000/1001",
        "trim=start_frame=7:end_frame=19",
        "select=not((eq(n\\,2)+eq(n\\,5)))",
    ]
    looped = Side.of_file("/a.mp4", first_frame=107, loop_frames=50)
    assert looped.steps(3) == ["trim=start_frame=7:end_frame=10"]


def test_ffmpeg_leaves_out_as_many_frames_as_may_be_dropped(tmp_path: Path) -> None:
    """Its expressions have a greatest depth, which a plain sum of two hundred exceeds."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("no ffmpeg here")
    picture = "testsrc2=size=16x16:rate=30"
    side = Side.of_picture(picture, 7)._replace(without=tuple(range(3, 1003, 5)))
    output = [*("-vf", ",".join(side.steps(850))), *("-f", "framecrc", "-")]
    command = [ffmpeg, "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", picture, *output]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
    numbers = [int(line.split(",")[1]) for line in done.stdout.splitlines() if not line.startswith("#")]
    assert [number - numbers[0] for number in numbers] == [n for n in range(1050) if n not in side.without]
