"""One side of a comparison: what FFmpeg opens, and which of its frames is the first one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_AT_ONCE = 20  # terms of one sum: FFmpeg refuses expressions that are more than a hundred deep


class Side(NamedTuple):
    """Input options, what they open, and the frame at which the comparison begins."""

    options: tuple[str, ...]  # before -i
    url: str  # not a relative path: FFmpeg runs in a directory of its own
    first_frame: int = 0
    loop_frames: int | None = None  # of one pass, if the options repeat the input for ever
    rate: str = ""  # frames a second to which it is brought before they are counted; "" leaves it as it is
    crop: str = ""  # the filter that cuts off what the encode never had
    without: tuple[int, ...] = ()  # frames that are left out, counted from the first one

    @classmethod
    def of_file(
        cls, path: Path | str, first_frame: int = 0, loop_frames: int | None = None, passes: int = 1
    ) -> Self:
        """Return a file as a side: so many passes of it, endless if `loop_frames` says how long one is.

        `loop_frames`: as count_loop() tells, which also finds out whether FFmpeg can repeat this file.
        """
        more = -1 if loop_frames is not None else passes - 1
        options = ("-stream_loop", str(more)) if more else ()
        # The prefix keeps a colon or a dash in the name from meaning anything.
        return cls(options, f"file:{Path(path).absolute()}", first_frame, loop_frames)

    @classmethod
    def of_picture(cls, graph: str, first_frame: int = 0) -> Self:
        """Return a generated picture as a side, such as `testsrc2=size=640x360:rate=30`."""
        return cls(("-f", "lavfi"), graph, first_frame)

    @property
    def skipped(self) -> int:
        """How many frames to pass over: those of whole passes of a loop are not decoded."""
        if self.loop_frames is None:
            return self.first_frame
        return self.first_frame % self.loop_frames

    def steps(self, count: int) -> list[str]:
        """Return the filters that pass on `count` of its frames, from the first one."""
        last = self.skipped + count + len(self.without)
        steps = [f"fps={self.rate}"] if self.rate else []
        steps += [self.crop] if self.crop else []
        steps.append(f"trim=start_frame={self.skipped}:end_frame={last}")
        if self.without:
            each = [f"eq(n\\,{number})" for number in self.without]
            sums = (f"({'+'.join(several)})" for several in _in_groups(each))
            steps.append(f"select=not({'+'.join(sums)})")
        return steps

    def arguments(self, rate: str | None = None) -> list[str]:
        """Return the arguments that open it as it is stored, not turned upright.

        `rate`: frames a second that FFmpeg is to assume, whatever the container says; not of a side that is
        brought to a rate of its own, as its times say where frames are missing.
        """
        forced = ["-r", rate] if rate is not None and not self.rate else []
        return ["-noautorotate", *forced, *self.options, "-i", self.url]


def _in_groups(terms: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(terms), _AT_ONCE):
        yield terms[first : first + _AT_ONCE]
