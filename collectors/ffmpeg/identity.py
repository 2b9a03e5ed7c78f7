"""What each stream is, and the megapixels that it has encoded: an info series and a counter.

No I/O and no clock. Pixels are frames x width x height, of the frames that FFmpeg counts.

Rules:

1. What the feeder states (in the query of /ingest) counts before what FFmpeg's stderr says; both count before
   what the run's earlier reports said, since a connection that goes on with a run may not say it again.
2. A run knows nothing of the one before: what neither source says is "", and with nothing said there is no
   series.
3. Frames that a run encoded before its size was known are counted once it is. Those of a run that ends
   without one are never counted.
4. If a run says another size, that one counts from there on; what was counted stays counted.
5. While the current run's size is not known there is no counter, rather than one that stands still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powerbench_agent.core.identity import UNKNOWN, StreamIdentity
from powerbench_agent.core.model import Metric, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator

INFO = Metric(
    "ffmpeg_stream_info",
    "gauge",
    "1; the labels say what the current or last run is, as far as it is known.",
    ("stream", *StreamIdentity._fields),
)
MEGAPIXELS = Metric(
    "ffmpeg_megapixels_total",
    "counter",
    "Millions of pixels encoded over all runs: frames x width x height; absent while the size is not known.",
    ("stream",),
)


class StreamPicture:
    """What one stream's current run is, and the pixels of all its runs."""

    def __init__(self) -> None:
        self.identity = UNKNOWN
        self._pixels = 0
        self._frame_pixels = 0  # of a frame of the current run; 0 if not known
        self._counted = 0  # frames of the current run
        self._sources: tuple[StreamIdentity, StreamIdentity | None] = (UNKNOWN, None)

    def start_run(self) -> None:
        """Forget what the last run was."""
        self.identity = UNKNOWN
        self._frame_pixels = self._counted = 0
        self._sources = (UNKNOWN, None)

    def take(self, stated: StreamIdentity, said: StreamIdentity | None, frames: int) -> None:
        """Take what the feeder states and FFmpeg says with a report.

        `frames`: of the run so far; they never go back.
        """
        if self._sources[0] is not stated or self._sources[1] is not said:
            self._sources = (stated, said)
            self.identity = stated.over(said or UNKNOWN).over(self.identity)
            self._frame_pixels = self.identity.pixels
        if self._frame_pixels:
            self._pixels += (frames - self._counted) * self._frame_pixels
            self._counted = frames

    def samples(self, stream: str, *, has_frames: bool) -> Iterator[Sample]:
        """Return the series; `has_frames`: whether FFmpeg counts any for this stream."""
        if self.identity != UNKNOWN:
            yield INFO.sample(1, stream, *self.identity)
        if self._frame_pixels and has_frames:
            yield MEGAPIXELS.sample(self._pixels / 1e6, stream)
