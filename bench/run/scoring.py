"""The scores of a window's pictures: what was encoded in it, against the frames that it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from powerbench_agent.bench.load.clip_filters import cropping
from powerbench_agent.bench.load.live_input import is_live
from powerbench_agent.bench.plan import frame_rate
from powerbench_agent.bench.quality.call import NotScored
from powerbench_agent.bench.quality.count import count_frames, count_loop
from powerbench_agent.bench.quality.frames import list_numbers, map_frames
from powerbench_agent.bench.quality.score import score
from powerbench_agent.bench.quality.side import Side
from powerbench_agent.bench.run.keeping import FILE_SECONDS, STREAM_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from powerbench_agent.bench.plan.scenario import Scenario
    from powerbench_agent.bench.quality.choose import Scorer
    from powerbench_agent.bench.quality.frames import Mapped
    from powerbench_agent.bench.run.keeping import KeptOutput

_OF_STREAM = f"the output itself: up to {STREAM_SECONDS:g} s from the window's beginning"
_OF_ENCODE = f"the output itself: up to {FILE_SECONDS:g} s from its beginning"


async def score_outputs(
    scorer: Scorer, kept: Sequence[KeptOutput], measures: Sequence[str]
) -> dict[str, Any]:
    """Return the scores of what was kept as the results file holds them.

    Streams of the same settings were made from the same frames: the first of each is scored.
    """
    scored, missing = [], {}
    first_of: dict[Scenario, KeptOutput] = {}
    for output in kept:
        first_of.setdefault(msgspec.structs.replace(output.rendition, name=""), output)
    for output in first_of.values():
        try:
            scored.append(await _described(scorer, output, measures))
        except (NotScored, OSError) as failed:
            missing[output.rendition.name] = str(failed)
    of = _OF_ENCODE if kept and kept[0].rendition.pace.is_max else _OF_STREAM
    return {"of": of, "streams": scored, **({"missing": missing} if missing else {})}


async def _described(scorer: Scorer, output: KeptOutput, measures: Sequence[str]) -> dict[str, Any]:
    """Return the scores of one output, with which of its frames they are of. Raises: NotScored, OSError."""
    if output.problem:
        raise NotScored(output.problem)
    rendition = output.rendition
    source = await _source(scorer, rendition)
    encoded = Side.of_file(output.path)
    numbers = await list_numbers(scorer.path, encoded, rendition.fps)
    most = output.end
    if rendition.pace.is_max:
        await _check_count(scorer, output, source, len(numbers))
        most = frame_rate.frames_in(rendition.fps, FILE_SECONDS)
    mapped = map_frames(numbers, output.begin, most, is_cut=output.is_cut)
    scores = await score(scorer, *_sides(encoded, source, mapped), mapped.frames, measures)
    return {
        "name": output.stream,
        "first_frame": mapped.first_source,
        "dropped": len(mapped.dropped),
        **msgspec.to_builtins(msgspec.structs.replace(scores, rendition=rendition.rendition)),
    }


def _sides(encoded: Side, source: Side, mapped: Mapped) -> tuple[Side, Side]:
    return (
        encoded._replace(first_frame=mapped.first_encoded),
        source._replace(first_frame=mapped.first_source, without=mapped.dropped),
    )


async def _check_count(scorer: Scorer, output: KeptOutput, source: Side, there: int) -> None:
    """Check that an encode has every frame of its source. Raises: NotScored."""
    encoded = output.encoded
    if not output.is_cut and encoded is not None and there != encoded:
        raise NotScored(f"{encoded} frames were encoded, and {there} are in the output")
    if output.rendition.to_end:
        whole = await count_frames(scorer.path, source)
        if encoded is not None and whole != encoded:
            raise NotScored(f"the clip has {whole} frames, and {encoded} were encoded")


async def _source(scorer: Scorer, rendition: Scenario) -> Side:
    """Return what a rendition was encoded from. Raises: NotScored if its frames have no counterpart there."""
    picture = rendition.picture
    if not rendition.input:
        size = rendition.drawn if any(rendition.drawn) else rendition.resolution
        graph = f"testsrc2=size={size}:rate={rendition.fps},format={rendition.pix_fmt}"
        return Side.of_picture(graph)
    if is_live(rendition.input):
        raise NotScored("its input is a live source, which cannot be read a second time")
    if rendition.asked.row.name == "copy":
        raise NotScored("it was not encoded: its picture is the clip's own")
    if picture is None or picture.variable or picture.rate != rendition.fps:
        raise NotScored("its frame rate is not the clip's, so its frames have no counterpart in the clip")
    rate, crop = str(rendition.fps), cropping(rendition)
    if rendition.to_end:
        return Side.of_file(rendition.input)._replace(rate=rate, crop=crop)
    loop = await count_loop(scorer.path, rendition.input, rate=rate)
    return Side.of_file(rendition.input, loop_frames=loop)._replace(rate=rate, crop=crop)
