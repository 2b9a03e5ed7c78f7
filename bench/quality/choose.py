"""Which FFmpeg scores, and which measures it has: few are built with libvmaf, and XPSNR came with 7.1."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.load.ffmpeg import output_of, packaged_ffmpeg
from powerbench_agent.bench.quality.call import NotScored, call, private_directory

if TYPE_CHECKING:
    from collections.abc import Collection

_FILTERS = {"vmaf": "libvmaf", "xpsnr": "xpsnr", "psnr": "psnr", "ssim": "ssim"}
_MODEL_PATIENCE = 60.0  # seconds, to load a model and score one small picture
_REMEDY = "give --quality-ffmpeg PATH, or pip install 'powerbench-agent[ffmpeg]'"


class Scorer(NamedTuple):
    """An FFmpeg that scores."""

    path: str
    version: str
    measures: frozenset[str]  # some of core.scores.MEASURES

    def why_not(self, measure: str) -> str:
        """Return why it does not score by this measure, and what to do."""
        return f"ffmpeg {self.version} has no {_FILTERS[measure]}: {_REMEDY}"


class Choice(NamedTuple):
    """The FFmpeg that was chosen, and one line about it; "" if it is the one that encodes and has it all."""

    scorer: Scorer
    said: str


async def choose(encoding: str, measures: Collection[str], named: str = "") -> Choice:
    """Return the FFmpeg that scores by these measures, or by most of them.

    It is the one that was named, which is obeyed; else the one that encodes, unless it lacks some and the one
    that imageio-ffmpeg carries has more. `encoding`, `named`: paths. Raises: NotHere.
    """
    if named:
        scorer = await inspect(named, "--quality-ffmpeg")
        return Choice(scorer, _said(scorer, measures, f"Scoring with ffmpeg {scorer.version}, {scorer.path}"))
    own = await inspect(encoding, "--ffmpeg")
    lacked = _lacked(own, measures)
    if lacked:
        try:
            other = await inspect(packaged_ffmpeg(), "--quality-ffmpeg")
        except NotHere:
            other = own
        if len(_lacked(other, measures)) < len(lacked):
            why = f"ffmpeg {own.version}, which encodes, has no {_filters(lacked)}"
            used = f"Scoring with ffmpeg {other.version} of imageio-ffmpeg: {why}"
            return Choice(other, _said(other, measures, used))
    return Choice(own, _said(own, measures, ""))


async def inspect(path: str, flag: str) -> Scorer:
    """Return what an FFmpeg can score by. `flag`: by which another could be named. Raises: NotHere."""
    found = shutil.which(path)
    if found is None:
        raise NotHere(f"no ffmpeg at {path}: give the path of an ffmpeg to {flag}")
    found = _absolute(found)  # it is run in another directory
    version = re.match(r"ffmpeg version (\S+)", await output_of(found, "-hide_banner", "-version"))
    if version is None:
        raise NotHere(f"{found} is not ffmpeg; name another with {flag}")
    listing = await output_of(found, "-hide_banner", "-filters")
    filters = set(re.findall(r"^ [A-Z.|]+ (\w+) +\S+->", listing, re.MULTILINE))
    measures = {measure for measure, name in _FILTERS.items() if name in filters}
    if "vmaf" in measures:
        # Before 5.0 a model was a file, and its name meant nothing.
        options = await output_of(found, "-hide_banner", "-h", "filter=libvmaf")
        if not re.search(r"^ +model +<string>", options, re.MULTILINE):
            measures.discard("vmaf")
    return Scorer(found, version[1], frozenset(measures))


async def check_model(scorer: Scorer, model: str) -> None:
    """Check that a scorer that has VMAF has this model, by a score of one small picture. Raises: NotHere."""
    if "vmaf" not in scorer.measures:
        return
    picture = "testsrc2=size=64x64:rate=25"
    graph = f"[0:v][1:v]libvmaf=model=version={model}"
    inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", picture]
    try:
        if not is_model_name(model):
            raise NotScored("no model has such a name")
        with private_directory() as directory:
            trial = [*inputs, "-frames:v", "1", "-lavfi", graph, "-f", "null", "-"]
            await call(scorer.path, trial, directory, _MODEL_PATIENCE)
    except NotScored as error:
        raise NotHere(f"{model[:60]!r} is not a VMAF model of ffmpeg {scorer.version} ({error})") from None


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def is_model_name(text: str) -> bool:
    """Tell if this can be the name of a model, and nothing else in a filter graph."""
    return re.fullmatch(r"[A-Za-z0-9_.]+", text) is not None


def _lacked(scorer: Scorer, measures: Collection[str]) -> list[str]:
    return [name for name in measures if name not in scorer.measures]


def _filters(measures: list[str]) -> str:
    return ", ".join(_FILTERS[name] for name in measures)


def _said(scorer: Scorer, measures: Collection[str], used: str) -> str:
    """Return the line about a choice: what is used, then what it cannot do."""
    parts = [used] if used else []
    if lacked := _lacked(scorer, measures):
        which = "it" if used else f"ffmpeg {scorer.version}"
        parts.append(f"no {', '.join(lacked)}: {which} has no {_filters(lacked)}; {_REMEDY}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
