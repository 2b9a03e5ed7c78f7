"""Cost of keeping what is encoded for its score: CPU time of a stream with --quality, and without it.

The same stream runs in alternating pairs, with the sink that receives it and with the process that counts and
keeps it. The encoder's own CPU time differs from run to run by more than keeping takes, so what the sink and
this process use beside it is told apart: that can be known well.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import uvloop

from powerbench_agent.bench.load.ffmpeg import find_ffmpeg
from powerbench_agent.bench.load.outlets import Way
from powerbench_agent.bench.load.streams import streaming
from powerbench_agent.bench.plan.scenario import Resolution, Scenario
from powerbench_agent.bench.run.keeping import taps_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.meter.client import AgentClient

SECONDS = 8.0
WARM_UP = 2.0
PAIRS = 5
STREAM = Scenario(
    name="stream",
    type="single",
    duration=SECONDS,
    stabilization=WARM_UP,
    video_kbps=2500.0,
    resolution=Resolution(1280, 720),
    fps=30,
    encoder="h264",
    preset="medium",
)


class Nobody:
    """An agent that takes progress in, and does nothing with it."""

    async def ingest(self, _: str, chunks: AsyncIterator[bytes], *__: object) -> None:
        """Take it."""
        async for _chunk in chunks:
            pass


class Used(NamedTuple):
    """CPU seconds of a window."""

    encoder: float
    beside: float  # of the sink and of this process

    @property
    def total(self) -> float:
        """All of it."""
        return self.encoder + self.beside


async def used(ffmpeg: Ffmpeg, sink: str, keep_in: Path | None) -> Used:
    """Return what a window takes."""
    nobody = cast("AgentClient", cast("Any", Nobody()))
    async with streaming(ffmpeg, STREAM, Way(sink, nobody, keep_in)) as (stream,):
        await asyncio.sleep(WARM_UP)
        before, own = stream.cpu_seconds(), time.process_time()
        await asyncio.sleep(SECONDS)
        after, own = stream.cpu_seconds(), time.process_time() - own
        found = {end: after[end] - before[end] for end in after}
        for tap in taps_of([stream]):
            tap.forget()
    return Used(found["encoder"], found.get("sink", 0.0) + own)


async def pairs(ffmpeg: Ffmpeg, sink: str, directory: Path) -> list[tuple[Used, Used]]:
    """Return (without, with) of some pairs."""
    return [(await used(ffmpeg, sink, None), await used(ffmpeg, sink, directory)) for _ in range(PAIRS)]


def main() -> None:
    """Measure and print."""
    ffmpeg = uvloop.run(find_ffmpeg())
    print(f"keeping the output for its score, 720p30 h264 medium, ffmpeg {ffmpeg.version}, CPU ms a second:")
    print(f"{'':24} {'without':>10} {'with':>10} {'of the encode':>14}  budget")
    with tempfile.TemporaryDirectory() as directory:
        for sink, what in (("embedded", "embedded, over RTMP"), ("null", "null")):
            both = uvloop.run(pairs(ffmpeg, sink, Path(directory)))
            without = [one for one, _ in both]
            encode = statistics.median(one.encoder for one in without)
            for part in ("beside", "total"):
                plain = statistics.median(getattr(one, part) for one in without)
                more = statistics.median(getattr(b, part) - getattr(a, part) for a, b in both)
                name = what if part == "beside" else "  with the encoder"
                share = f"{more / encode:+14.2%}"
                row = (
                    f"{name:24} {plain / SECONDS * 1e3:10.2f} {(plain + more) / SECONDS * 1e3:10.2f} {share}"
                )
                print(f"{row}  {'<= 1 %' if part == 'beside' else ''}")


if __name__ == "__main__":
    main()
