"""What a side holds: its pictures' size, format and rate, and how many there are, as FFmpeg decodes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.quality.call import NotScored, call, count_lines, private_directory
from powerbench_agent.bench.quality.side import Side

if TYPE_CHECKING:
    from pathlib import Path

PROBE_PATIENCE = 60.0  # seconds, to decode one frame
COUNT_PATIENCE = 1800.0  # seconds, to decode them all

# FFmpeg's line about what it gives to its null output: the frames as decoded. What stands in the brackets may
# have brackets of its own: yuv420p(tv, bottom coded first (swapped)).
_VIDEO = re.compile(r"Video: wrapped_avframe, (\w+)(?:\((.*?)\))?, (\d+)x(\d+)(.*)")
_RATE = re.compile(r", ([0-9.]+)(k?) fps")


class StoredPicture(NamedTuple):
    """What the first frame is like."""

    width: int
    height: int
    pix_fmt: str
    is_full_range: bool  # samples from 0 to 255, not from 16 to 235
    rate: float | None  # frames a second, as FFmpeg rounds them: 29.97

    @property
    def size(self) -> str:
        """Its size as FFmpeg spells it."""
        return f"{self.width}x{self.height}"


async def probe(ffmpeg: str, side: Side, patience: float = PROBE_PATIENCE) -> StoredPicture:
    """Return what a side's pictures are like, by decoding the first. Raises: NotScored."""
    crop = ["-vf", side.crop] if side.crop else []
    arguments = [*side.arguments(), "-map", "0:V:0", *crop, "-frames:v", "1", "-f", "null", "-"]
    with private_directory() as directory:
        try:
            picture = parse_picture(await call(ffmpeg, arguments, directory, patience))
        except NotScored as error:
            raise NotScored(f"{side.url}: {error}") from None
    if picture is None:
        raise NotScored(f"{side.url}: ffmpeg decodes no picture")
    return picture


def parse_picture(lines: list[str]) -> StoredPicture | None:
    """Return what FFmpeg says of the pictures that it decodes; None if it decodes none."""
    for line in lines:
        if found := _VIDEO.search(line):
            pix_fmt, colour, width, height, rest = found.groups()
            is_full = pix_fmt.startswith("yuvj") or (colour or "").split(", ")[0] == "pc"
            rate = _RATE.search(rest)
            fps = float(rate[1]) * (1000 if rate[2] else 1) if rate else None
            return StoredPicture(int(width), int(height), pix_fmt, is_full, fps)
    return None


async def count_loop(
    ffmpeg: str, path: Path | str, patience: float = COUNT_PATIENCE, *, rate: str = ""
) -> int:
    """Return the number of frames in one pass of a file that is to repeat, if every pass has as many.

    `rate`: frames a second to which it is brought before they are counted.

    FFmpeg repeats by seeking to the beginning, which fails in MPEG-TS and raw streams. Raises: NotScored.
    """
    once = await count_frames(ffmpeg, Side.of_file(path)._replace(rate=rate), patience)
    twice = await count_frames(ffmpeg, Side.of_file(path, passes=2)._replace(rate=rate), patience)
    if twice != 2 * once:
        raise NotScored(
            f"{path} does not repeat exactly: {once} frames in one pass, {twice} in two; "
            "copy it to MP4 or Matroska (ffmpeg -i FILE -c copy FILE.mkv)"
        )
    return once


async def count_frames(ffmpeg: str, side: Side, patience: float = COUNT_PATIENCE) -> int:
    """Return the number of frames that a file's decoder gives, whatever its index says.

    `side`: one that ends: no loop and no generated picture. Raises: NotScored.
    """
    # Counted in the graph: what comes after it repeats and drops frames to hold a rate.
    steps = ",".join([*([f"fps={side.rate}"] if side.rate else []), log_frames("frames.log")])
    arguments = [*side.arguments(), "-map", "0:V:0", "-vf", steps, "-f", "null", "-"]
    with private_directory() as directory:
        await call(ffmpeg, arguments, directory, patience)
        return count_logged(directory / "frames.log")


def log_frames(log: str) -> str:
    """Return a filter that writes about each frame that passes; without a tag it would be silent."""
    return f"metadata=mode=add:key=n:value=1,metadata=mode=print:file={log}"


def count_logged(log: Path) -> int:
    """Return how many frames have passed. Raises: NotScored."""
    return count_lines(log, "frame:")
