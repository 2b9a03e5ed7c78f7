"""What a stream's reports say about a window. Pure.

Reports come every half second, windows begin and end between them: figures at an edge are interpolated.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from powerbench_agent.bench.plan.pace import REALTIME
from powerbench_agent.bench.warnings import MAX_BITRATE_MISS, SPEED_SPAN, least_speed
from powerbench_agent.core.results import Encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from powerbench_agent.bench.load.encoder import Point
    from powerbench_agent.bench.load.outlets import Outlet
    from powerbench_agent.bench.plan.pace import Pace
    from powerbench_agent.bench.plan.scenario import Scenario
    from powerbench_agent.core.progress import Report

_FRAMES_OFF = 2  # by which a clip's length may be rounded
_DAMAGE = re.compile(
    "error while decoding|corrupt|Error submitting packet to decoder|Invalid data found|ended prematurely",
    re.IGNORECASE,
)


def combine(encodes: Sequence[Encode]) -> Encode:
    """Return what streams of one window did together; a figure that one of them lacks is unknown for all."""

    def total(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    dropped = total([encode.dropped for encode in encodes])
    duplicated = total([encode.duplicated for encode in encodes])
    speed = total([encode.speed for encode in encodes])
    content = total([encode.content_seconds for encode in encodes])
    return Encode(
        frames=total([encode.frames for encode in encodes]),
        media_seconds=total([encode.media_seconds for encode in encodes]),
        megabits=total([encode.megabits for encode in encodes]),
        seconds=encodes[0].seconds,
        min_speed=min((e.min_speed for e in encodes if e.min_speed is not None), default=None),
        dropped=None if dropped is None else round(dropped),
        duplicated=None if duplicated is None else round(duplicated),
        megapixels=total([encode.megapixels for encode in encodes]),
        speed=None if speed is None else speed / len(encodes),
        whole=all(encode.whole for encode in encodes),
        content_seconds=None if content is None else content / len(encodes),
    )


def encode_figures(points: Sequence[Point], begin: float, end: float) -> Encode:
    """Return what the reports say of the window between two monotonic seconds."""

    def gained(value: Callable[[Report], float | None]) -> float | None:
        known = [(point.at, number) for point in points if (number := value(point.report)) is not None]
        first, last = at(known, begin), at(known, end)
        return None if first is None or last is None else last - first

    dropped, duplicated = gained(lambda r: r.dropped), gained(lambda r: r.duplicated)
    size = gained(lambda r: r.size)
    return Encode(
        frames=gained(lambda r: r.frames),
        media_seconds=gained(lambda r: r.media),
        megabits=None if size is None else size * 8e-6,
        seconds=end - begin,
        min_speed=smallest_speed(points, begin, end),
        dropped=None if dropped is None else round(dropped),
        duplicated=None if duplicated is None else round(duplicated),
    )


def whole_figures(points: Sequence[Point], began: float, ended: float, scenario: Scenario) -> Encode:
    """Return what the reports say of an encode that ran from its first frame to its last.

    `began`, `ended`: monotonic seconds of the window, in which others may have gone on for longer.
    """
    last = points[-1].report if points else None
    frames = last.frames if last else None
    media = None if frames is None else float(frames / scenario.fps)
    took = points[-1].at - began if points else 0.0
    return Encode(
        frames=frames,
        media_seconds=media,
        megabits=None if last is None or last.size is None else last.size * 8e-6,
        seconds=ended - began,
        speed=media / took if media is not None and took > 0 else None,
        content_seconds=media,
        dropped=None if last is None or last.dropped is None else round(last.dropped),
        duplicated=None if last is None or last.duplicated is None else round(last.duplicated),
        whole=True,
    )


class RenditionFigures(NamedTuple):
    """What one rendition of a ladder wrote in a window."""

    stream: str
    rendition: str
    megabits: float | None  # None: not counted
    seconds: float  # of its content
    bytes_of: str

    @property
    def kbps(self) -> float | None:
        """Kilobits written a second."""
        return None if self.megabits is None else self.megabits / self.seconds * 1000


def rendition_figures(
    stream: str, encode: Encode, outlets: Sequence[Outlet], begin: float, end: float
) -> list[RenditionFigures]:
    """Return what the renditions of a ladder wrote between two monotonic seconds; none of a plain stream.

    `encode`: what their stream did in that time.
    """
    content = encode.content_seconds or encode.seconds
    return [
        RenditionFigures(
            stream, outlet.rendition.rendition, _counted(outlet, begin, end), content, outlet.bytes_of
        )
        for outlet in outlets
        if outlet.rendition.rendition
    ]


def _counted(outlet: Outlet, begin: float, end: float) -> float | None:
    """Return the megabits that an outlet's counter has for a span; None if it has none, or lost some."""
    if outlet.counter is None or not outlet.counter.is_whole:
        return None
    points = outlet.counter.points
    first, last = at(points, begin), at(points, end)
    return None if last is None else (last - (first or 0.0)) * 8e-6  # before the first byte there was none


def completed(
    encode: Encode, stream: Scenario, outlets: Sequence[Outlet], begin: float, end: float
) -> Encode:
    """Return a stream's figures with what its outlets counted, its pixels, and its speed.

    `begin`, `end`: monotonic seconds, infinite for all that was ever counted.
    """
    megabits = encode.megabits
    if outlets and (stream.ladder or megabits is None):  # a part of the work has none, and writes nothing
        counted = [_counted(outlet, begin, end) for outlet in outlets]
        known = [amount for amount in counted if amount is not None]
        megabits = sum(known) if len(known) == len(outlets) else None
    pixels = sum(one.resolution.width * one.resolution.height for one in stream.renditions)
    return msgspec.structs.replace(
        encode,
        megabits=megabits,
        megapixels=None if encode.frames is None or stream.part else encode.frames * pixels / 1e6,
        speed=encode.speed
        if encode.speed is not None or encode.media_seconds is None
        else encode.media_seconds / encode.seconds,
        content_seconds=encode.content_seconds
        or (None if stream.pace == REALTIME or stream.pace.is_max else encode.seconds * stream.pace.speed),
    )


def at(known: Sequence[tuple[float, float]], moment: float) -> float | None:
    """Return the value at a moment, between the two points around it; None before the first.

    After the last point the last value stands: nothing is known to have come since.
    """
    index = bisect_right(known, (moment, float("inf")))
    if index == 0:
        return None
    before = known[index - 1]
    if index == len(known):
        return before[1]
    after = known[index]
    return before[1] + (after[1] - before[1]) * (moment - before[0]) / (after[0] - before[0])


def smallest_speed(points: Sequence[Point], begin: float, end: float) -> float | None:
    """Return the smallest media seconds a second over any 10 s of the window, or all of a shorter one."""
    known = [(p.at, p.report.media) for p in points if p.report.media is not None]
    span = min(SPEED_SPAN, end - begin)
    starts = [begin, *(moment for moment, _ in known if begin < moment <= end - span)]
    if end - span > begin:
        starts.append(end - span)
    speeds = [
        (last - first) / span
        for start in starts
        if (first := at(known, start)) is not None and (last := at(known, start + span)) is not None
    ]
    return min(speeds, default=None)


def warnings_of(encode: Encode, asked_kbps: float | None, pace: Pace = REALTIME) -> list[str]:
    """Return how the stream differs from what was requested, each with what to do.

    `asked_kbps`: None for a stream that goes by quality.
    """
    found = []
    if encode.kbps is not None and asked_kbps and abs(encode.kbps / asked_kbps - 1) > MAX_BITRATE_MISS:
        found.append(
            f"achieved {encode.kbps:.0f} kbps, requested {asked_kbps:.0f} kbps: "
            "compare it with others by the achieved rate, or choose a bitrate that suits the picture"
        )
    span = f"{SPEED_SPAN:g} s" if encode.seconds >= SPEED_SPAN else "the window"
    least = least_speed(None if pace.is_max else pace.speed)
    if least is not None and encode.min_speed is not None and encode.min_speed < least:
        found.append(
            f"the encoder fell below {_named(pace)} (smallest speed over {span}: {encode.min_speed:.3f}): "
            "choose a faster --preset, a smaller --resolution or --fps, or fewer other programs"
        )
    if encode.dropped:
        found.append(f"{encode.dropped} frames were dropped: the machine or the sink was too slow")
    return found


def input_faults(encoded: float | None, expected: int | None, said: Iterable[str]) -> list[str]:
    """Return what tells that a clip is damaged; FFmpeg goes on all the same, and ends with exit code 0.

    `encoded`: frames of an encode, and how many its clip has by its own account; None if that is not known;
    `said`: what FFmpeg printed.
    """
    found = []
    if encoded is not None and expected is not None and encoded < expected - _FRAMES_OFF:
        found.append(f"{encoded:.0f} of the {expected} frames that the clip says it has were encoded")
    if damage := next((line for line in said if _DAMAGE.search(line)), ""):
        found.append(f"the clip is damaged, says ffmpeg ({damage[:120]})")
    return [f"{what}: check it with ffmpeg -v error -i CLIP -f null -" for what in found]


def _named(pace: Pace) -> str:
    return "real time" if pace == REALTIME else f"{pace.speed:g} times real time"
