"""Scores the picture of a scenario's streams, after the window: a short encode with the same settings.

Ten seconds are encoded as the stream was, from the same source and from its first frame on, and compared
with that source frame by frame. What has no counterpart in the source gets no score, and the reason instead.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from powerbench_agent.bench.load.child import Child
from powerbench_agent.bench.load.containers import choose_container
from powerbench_agent.bench.load.encoder import score_command
from powerbench_agent.bench.plan import frame_rate
from powerbench_agent.bench.quality.call import NotScored, private_directory
from powerbench_agent.bench.quality.count import count_loop
from powerbench_agent.bench.quality.score import score
from powerbench_agent.bench.quality.side import Side

if TYPE_CHECKING:
    from collections.abc import Sequence

    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.plan.scenario import Scenario
    from powerbench_agent.bench.quality.choose import Scorer
    from powerbench_agent.core.scores import Scores

_SECONDS = 10
_PATIENCE = 1800.0  # seconds for the encode: the slowest presets take one for a frame
_MARGIN = 2.0  # seconds that a clip must be longer to be taken without a loop


async def score_streams(
    ffmpeg: Ffmpeg, scorer: Scorer, scenario: Scenario, measures: Sequence[str]
) -> dict[str, Any]:
    """Return the scores of a scenario's streams as the results file holds them, each setting once."""
    scored, missing = [], {}
    streams = {stream.video_kbps: stream for stream in reversed(scenario.streams)}
    for stream in reversed(streams.values()):
        try:
            found = await _score(ffmpeg, scorer, stream, measures)
            scored.append({"name": stream.name, **msgspec.to_builtins(found)})
        except (NotScored, OSError) as failed:
            missing[stream.name] = str(failed)
    of = f"{_SECONDS} s encoded with the same settings, after the window"
    return {"of": of, "streams": scored, **({"missing": missing} if missing else {})}


async def _score(ffmpeg: Ffmpeg, scorer: Scorer, stream: Scenario, measures: Sequence[str]) -> Scores:
    """Return the scores of one stream. Raises: NotScored, OSError."""
    frames = frame_rate.frames_in(stream.fps, _SECONDS)
    source = await _source(scorer, stream)
    container = choose_container(stream.asked.row.codec, "null", ffmpeg.number)
    with private_directory() as directory:
        file = directory / "encoded"
        encoder = Child(
            "the encode for the score", score_command(ffmpeg, stream, container, str(file), frames)
        )
        try:
            await encoder.start()
            async with asyncio.timeout(_PATIENCE):
                await encoder.wait()
        except TimeoutError:
            raise NotScored(f"{encoder.name} was not done within {_PATIENCE:g} s") from None
        finally:
            await encoder.kill()
        if encoder.exit_code:
            raise NotScored(f"{encoder.name} failed: {encoder.last_words()}")
        return await score(scorer, Side.of_file(file), source, frames, measures)


async def _source(scorer: Scorer, stream: Scenario) -> Side:
    """Return what a stream was encoded from. Raises: NotScored if its frames have no counterpart there."""
    picture = stream.picture
    if not stream.input:
        graph = f"testsrc2=size={stream.resolution}:rate={stream.fps},format={stream.pix_fmt}"
        return Side.of_picture(graph)
    if stream.asked.row.name == "copy":
        raise NotScored("it was not encoded: its picture is the clip's own")
    if picture is None or picture.variable or picture.rate != stream.fps:
        raise NotScored("its frame rate is not the clip's, so its frames have no counterpart in the clip")
    if picture.duration is not None and picture.duration >= _SECONDS + _MARGIN:
        return Side.of_file(stream.input)
    loop = await count_loop(scorer.path, stream.input)
    return Side.of_file(stream.input, loop_frames=loop)
