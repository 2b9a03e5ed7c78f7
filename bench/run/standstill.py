"""Whether a stream stands still: it runs, and encodes nothing. Pure.

Its window would measure an idle machine. A slow stream is none of these: it still encodes a frame now and
then, and its speed is warned of.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from powerbench_agent.bench.load.child import StreamFailed
from powerbench_agent.bench.load.live_input import is_live
from powerbench_agent.bench.load.redact import redact_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from powerbench_agent.bench.load.encoder import Encoder, Point
    from powerbench_agent.core.results import Encode

PATIENCE = 5.0  # seconds without a new frame
LONG_PATIENCE = 300.0  # of an encode that is held to no pace: the slowest presets look far ahead
_SHORT_PATIENCE = 3.0  # in a short phase; a stream of 1 fps at 0.4 of real time keeps within it
_SHARE_OF_PHASE = 0.25


def patience(phase_seconds: float) -> float:
    """Return for how many seconds a stream may make no new frame, in a phase of such a length."""
    return min(PATIENCE, max(_SHORT_PATIENCE, phase_seconds * _SHARE_OF_PHASE))


def check_moving(encoder: Encoder, now: float, limit: float, began: float | None = None) -> None:
    """Check that an encoder has made a frame within the last `limit` seconds. Raises: StreamFailed.

    `now`: monotonic seconds; `began`: when it was started, if that counts until its first frame.
    """
    latest = last_new_frame(encoder.points)
    latest = began if latest is None else latest
    if latest is None or now - latest < limit:
        return
    silent = now - latest
    since = datetime.now().astimezone() - timedelta(seconds=silent)
    source = encoder.scenario.input
    of = f" {redact_url(source)}" if is_live(source) else ""
    raise StreamFailed(
        f"{encoder.name} stands still: no new frame since {since:%H:%M:%S} ({silent:.0f} s); "
        f"look whether its input{of} has ended or is damaged, whether the sink still reads, and whether its "
        f"ffmpeg was stopped. Its last words: {encoder.last_words()}"
    )


def last_new_frame(points: Sequence[Point]) -> float | None:
    """Return when a report counted more frames than the one before; None if none did."""
    counted = [point for point in points if point.report.frames is not None]
    for later, earlier in pairwise(reversed(counted)):
        if (later.report.frames or 0) > (earlier.report.frames or 0):
            return later.at
    return counted[0].at if counted else None


def fault(name: str, encode: Encode) -> str:
    """Return what a stream failed to do in its window; "" if it encoded and wrote something."""
    if encode.frames == 0:
        return f"{name} encoded no frame in the window: look at its input"
    if encode.megabits == 0:
        return f"{name} wrote nothing in the window: look at its sink"
    return ""
