"""Which frame of its source each frame of an encode is: by the times that the container kept, whatever it is.

A stream at a constant rate has a frame at each tick. Containers round times and shift them all by the same
amount: so a frame's number is its distance to the first frame in ticks, rounded. A tick without a frame is a
dropped one, whose source is left out, too; two frames at one tick cannot be told apart. Pure but for listing.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.quality.call import NotScored, call, private_directory
from powerbench_agent.bench.quality.count import COUNT_PATIENCE, log_frames

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from powerbench_agent.bench.plan.frame_rate import FrameRate
    from powerbench_agent.bench.quality.side import Side

_TICKS = 90_000  # a second; of the times that are listed
_MOST_DROPPED = 200  # that are left out one by one, and
_MOST_DROPPED_SHARE = 0.05
_UNSURE = 16  # last frames of an output that was cut: the pictures that they lean on may be missing
_LINE = re.compile(r"frame:\d+ +pts:(-?\d+)")


class Mapped(NamedTuple):
    """A span of an encode, and the frames of its source that it shows."""

    first_encoded: int  # among the frames that a decoder gives
    first_source: int
    frames: int
    dropped: tuple[int, ...] = ()  # source frames without an encoded one, counted from first_source


async def list_numbers(ffmpeg: str, side: Side, rate: FrameRate) -> list[int]:
    """Return the number of each frame that a decoder gives of an encode, from 0. Raises: NotScored."""
    filters = f"settb=1/{_TICKS},{log_frames('times.log')}"
    arguments = [*side.arguments(), "-map", "0:V:0", "-vf", filters, "-f", "null", "-"]
    with private_directory() as directory:
        await call(ffmpeg, arguments, directory, COUNT_PATIENCE)
        return numbers_of(_times(directory / "times.log"), rate)


def _times(log: Path) -> list[int]:
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            return [int(found[1]) for line in lines if (found := _LINE.match(line))]
    except OSError as error:
        raise NotScored(f"ffmpeg did not write {log.name}: {error.strerror}") from None


def numbers_of(times: Sequence[int], rate: FrameRate) -> list[int]:
    """Return the number of each frame, from 0. `times`: of 90,000 a second, in their order."""
    tick = Fraction(_TICKS) / Fraction(rate)
    return [round((time - times[0]) / tick) for time in times]


def map_frames(numbers: Sequence[int], begin: int, end: int | None, *, is_cut: bool = False) -> Mapped:
    """Return which frames with numbers from `begin` to before `end` there are. Raises: NotScored.

    `is_cut`: whether the output ends where the encode went on.
    """
    last = len(numbers) - (_UNSURE if is_cut else 0)
    stop = math.inf if end is None else end
    span = [place for place in range(last) if begin <= numbers[place] < stop]
    if not span:
        raise NotScored("none of the window's frames was kept")
    kept = [numbers[place] for place in span]
    if any(later <= earlier for earlier, later in pairwise(kept)):
        raise NotScored("two of its frames have one time: which frames of the source they show is not known")
    first, there = kept[0], set(kept)
    ticks = kept[-1] + 1 - first
    missing = ticks - len(kept)
    if missing > min(_MOST_DROPPED, _MOST_DROPPED_SHARE * len(kept)):
        raise NotScored(f"{missing} of {ticks} frames were dropped: too many for a score")
    dropped = tuple(number for number in range(ticks) if first + number not in there)
    return Mapped(span[0], first, len(kept), dropped)
