"""What of a window is kept to be scored: the outputs from their first frame on, and which frames of them.

Frames are numbered as the source has them, from the stream's first: the warm-up's are kept too, so that the
number of each is known without a guess. Nothing depends on whether a window is scored once or each time.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.load.tap import MOST_KEPT, Tap
from powerbench_agent.bench.plan.scenario import AUDIO_KBPS
from powerbench_agent.bench.run.figures import at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from powerbench_agent.bench.load.encoder import Point
    from powerbench_agent.bench.load.streams import RunningStream
    from powerbench_agent.bench.plan.scenario import Scenario

STREAM_SECONDS = 20.0  # of a stream's window
FILE_SECONDS = 60.0  # of what is encoded as fast as it goes
_LATE_SECONDS = 3.0  # by which a sink may be behind its encoder
_LOST_COPY = "Slave muxer #1 failed"  # what FFmpeg's tee says when it goes on without the copy
_UNKNOWN_KBPS = 20_000.0  # of a stream that goes by quality, for the room that it may take
_OVER = 1.2  # by which a container and a rate control may go over


class KeptOutput(NamedTuple):
    """One rendition's output, and which frames of it are the window's."""

    stream: str
    rendition: Scenario
    path: str
    begin: int  # number of the first frame
    end: int | None  # behind the last one; None: to its end
    encoded: int | None = None  # how many frames there are, of an encode that is kept as a whole
    tap: Tap | None = None  # what keeps it; None of a file that stays

    @property
    def problem(self) -> str:
        """Why not all of it is there; "" if it is."""
        return self.tap.problem if self.tap is not None else ""

    @property
    def is_cut(self) -> bool:
        """Whether it ends before the encode did."""
        return self.tap is not None and self.tap.is_cut

    def forget(self) -> None:
        """Drop what was kept for the score alone."""
        if self.tap is not None:
            self.tap.forget()


def taps_of(streams: Sequence[RunningStream]) -> list[Tap]:
    """Return what keeps and counts the outputs of some streams."""
    counters = [outlet.counter for stream in streams for outlet in stream.outlets]
    return [counter for counter in counters if isinstance(counter, Tap)]


def mark(streams: Sequence[RunningStream]) -> None:
    """Have every counter remember what it has counted until now."""
    for stream in streams:
        for outlet in stream.outlets:
            if outlet.counter is not None:
                outlet.counter.mark()


def end_in_time(streams: Sequence[RunningStream]) -> list[asyncio.TimerHandle]:
    """End the keeping once enough of a window that begins now is there; returns what is to be cancelled."""
    loop = asyncio.get_running_loop()
    return [loop.call_later(STREAM_SECONDS + _LATE_SECONDS, tap.stop_keeping) for tap in taps_of(streams)]


def end_when_enough(streams: Sequence[RunningStream]) -> None:
    """End the keeping of encodes that have come far enough."""
    for stream in streams:
        points = stream.encoder.points
        frames = points[-1].report.frames if points else None
        if frames and frames > (FILE_SECONDS + _LATE_SECONDS) * stream.scenario.fps:
            for tap in taps_of([stream]):
                tap.stop_keeping()


def of_window(streams: Sequence[RunningStream], began: float, ended: float) -> list[KeptOutput]:
    """Return what is kept of a window between two monotonic seconds; its streams still run."""
    kept = []
    for stream in streams:
        _note_lost_copies(stream, are_running=True)
        last = min(ended, began + STREAM_SECONDS)
        first_frame, last_frame = (_frames_at(stream.encoder.points, moment) for moment in (began, last))
        if first_frame is not None and last_frame is not None:
            kept += _outputs(stream, math.ceil(first_frame), math.floor(last_frame))
    return kept


def of_encode(streams: Sequence[RunningStream]) -> list[KeptOutput]:
    """Return what is kept of encodes that have ended."""
    kept = []
    for stream in streams:
        _note_lost_copies(stream, are_running=False)
        points = stream.encoder.points
        frames = points[-1].report.frames if points else None
        kept += _outputs(stream, 0, None, None if frames is None else round(frames))
    return kept


def _note_lost_copies(stream: RunningStream, *, are_running: bool) -> None:
    """Note of each copy that ended before its encoder that it is not whole: FFmpeg goes on without it."""
    for tap in taps_of([stream]):
        said = [line for line in stream.encoder.said if _LOST_COPY in line]
        if said or (are_running and not tap.has_sender):
            tap.lose(f"the copy of its output ended early{f': {said[0]}' if said else ''}")


def _outputs(
    stream: RunningStream, begin: int, end: int | None, encoded: int | None = None
) -> list[KeptOutput]:
    return [
        KeptOutput(
            stream.scenario.name,
            outlet.rendition,
            outlet.kept.removeprefix("file:"),
            begin,
            end,
            encoded,
            outlet.counter if isinstance(outlet.counter, Tap) else None,
        )
        for outlet in stream.outlets
        if outlet.kept
    ]


def _frames_at(points: Sequence[Point], moment: float) -> float | None:
    """Return how many frames had been encoded at a monotonic second; None if that is not known."""
    known = [(point.at, float(frames)) for point in points if (frames := point.report.frames) is not None]
    return at(known, moment)


def check_room(directory: Path, scenarios: Iterable[Scenario], free: int | None = None) -> None:
    """Check that what is to be kept of each scenario has room there. Raises: NotHere.

    `free`: bytes; those of the directory's file system if it is None.
    """
    if free is None:
        free = shutil.disk_usage(directory).free
    needed, name = max(((room_for(scenario), scenario.name) for scenario in scenarios), default=(0, ""))
    if needed > free:
        raise NotHere(
            f"no room in {directory} to keep what {name} encodes for its score: {_mib(needed)} are needed, "
            f"{_mib(free)} are free; choose another --output-dir, or --quality none"
        )


def room_for(scenario: Scenario) -> int:
    """Return the bytes that are kept of a scenario at most, as far as its bitrates tell."""
    settled = 2 * scenario.stabilization
    seconds = FILE_SECONDS if scenario.pace.is_max else settled + STREAM_SECONDS + _LATE_SECONDS
    content = min(seconds * (1 if scenario.pace.is_max else scenario.pace.speed), 7 * 86400.0)
    outputs = [one for stream in scenario.streams if not stream.part for one in stream.renditions]
    tone = AUDIO_KBPS if scenario.has_tone else 0.0
    return sum(
        min(MOST_KEPT, round(((one.video_kbps or _UNKNOWN_KBPS) + tone) * _OVER * content * 125))
        for one in outputs
    )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
