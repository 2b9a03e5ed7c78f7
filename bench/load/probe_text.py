"""What ffprobe and ffmpeg say of a clip, parsed. Pure.

ffprobe's JSON is exact; where there is no ffprobe, the lines that `ffmpeg -i` prints say nearly as much. What
its frames are is said by FFmpeg's filter `showinfo`, whose lines are alike from 4.1 to 9.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from powerbench_agent.bench.plan.frame_rate import parse_rational
from powerbench_agent.bench.plan.picture import Colour

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from powerbench_agent.bench.plan.frame_rate import FrameRate

_STREAM = re.compile(r"^  Stream #0:\d+[^:]*: (Video|Audio): (.*)$", re.MULTILINE)
_INPUT = re.compile(r"^Input #0, (.+), from '", re.MULTILINE)
_DURATION = re.compile(r"^  Duration: (\d{1,6}):(\d\d):(\d\d\.\d{1,9})", re.MULTILINE)
_ROTATION = re.compile(r"display ?matrix: rotation of (-?\d{1,4}(?:\.\d{1,9})?) degrees", re.IGNORECASE)
_SIZE = re.compile(r"[ ,](\d{1,6})x(\d{1,6})(?:[ ,\[]|$)")
_FORMAT = re.compile(r", (\w+)(?:\(([^)]*)\))?, \d+x\d+")
_RATES = re.compile(r"([\d.]+k?) (fps|tbr)\b")
_FRAME = re.compile(r" n: *\d+ pts:.* fmt:(\w+) .*\bs:(\d+)x(\d+) i:(\w)")
_CONFIG = re.compile(r"config in time_base: \S+, frame_rate: (\d+/\d+)")
_TAGS = re.compile(r"color_range:(\S+) color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)")
_MASTERING = re.compile(r"side data - mastering display", re.IGNORECASE)
_LIGHT = re.compile(r"side data - content light level", re.IGNORECASE)
_UNKNOWN = ("unknown", "unspecified", "reserved", "N/A", "gbr")
_RANGES = {"tv": "tv", "pc": "pc", "mpeg": "tv", "jpeg": "pc"}
_FIELDS = {"tt": "tff", "tb": "tff", "bb": "bff", "bt": "bff", "top": "tff", "bottom": "bff"}
_FIRST_FIELD = {"T": "tff", "B": "bff"}

# What reading a document of another form raises, wherever in it that is.
_MALFORMED = (
    *(LookupError, ValueError, TypeError, AttributeError, ArithmeticError),
    *(StopIteration, RecursionError),
)


class StreamFacts(NamedTuple):
    """What a container and the header of its first video stream say."""

    container: str = ""
    codec: str = ""
    width: int = 0  # as it is stored
    height: int = 0
    base: FrameRate | None = None
    average: FrameRate | None = None
    pix_fmt: str = ""
    colour: Colour = Colour()
    field_order: str = "progressive"
    rotation: int = 0
    duration: float | None = None
    frames: int | None = None
    audio: bool = False


class FrameFacts(NamedTuple):
    """What the first frames are as filters get them: decoded, and upright."""

    number: int  # of those that were looked at
    width: int
    height: int
    pix_fmt: str
    rate: FrameRate | None
    colour: Colour
    field_order: str
    mastering_display: bool
    content_light: bool


def parse_ffprobe(text: str) -> StreamFacts | None:
    """Return what ffprobe's JSON of streams and format says; None if that is not a video it understands."""
    try:
        document = json.loads(text)
        streams = [stream for stream in document["streams"] if isinstance(stream, dict)]
        video = next(stream for stream in streams if _is_video(stream))
        return _of_stream(video, streams, document.get("format") or {})
    except (
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        StopIteration,
        RecursionError,
    ):
        return None


def _is_video(stream: Mapping[str, Any]) -> bool:
    """Return whether it is a video and no cover picture."""
    is_cover = (stream.get("disposition") or {}).get("attached_pic")
    return stream.get("codec_type") == "video" and not is_cover and int(stream.get("width", 0)) > 0


def _of_stream(video: Mapping[str, Any], streams: list[Any], container: Mapping[str, Any]) -> StreamFacts:
    names = ("color_range", "color_space", "color_primaries", "color_transfer")
    duration = video.get("duration", container.get("duration"))
    rotations = [side["rotation"] for side in video.get("side_data_list") or () if "rotation" in side]
    frames = video.get("nb_frames")
    return StreamFacts(
        container=str(container.get("format_name", "")),
        codec=str(video.get("codec_name", "")),
        width=int(video["width"]),
        height=int(video["height"]),
        base=parse_rational(str(video.get("r_frame_rate", ""))) or None,
        average=parse_rational(str(video.get("avg_frame_rate", ""))) or None,
        pix_fmt=str(video.get("pix_fmt", "")),
        colour=Colour(*(_tag(str(video.get(name, ""))) for name in names)),
        field_order=_FIELDS.get(str(video.get("field_order", "")), "progressive"),
        rotation=_degrees(float(rotations[0])) if rotations else 0,
        duration=float(duration) if duration is not None else None,
        frames=int(frames) if frames is not None else None,
        audio=any(stream.get("codec_type") == "audio" for stream in streams),
    )


def parse_banner(text: str) -> StreamFacts | None:
    """Return what the lines of `ffmpeg -i` say; None if it found no video."""
    container = _INPUT.search(text)
    streams = [(kind, rest) for kind, rest in _STREAM.findall(text.partition("\nOutput #0")[0])]
    video = next((rest for kind, rest in streams if kind == "Video" and "(attached pic)" not in rest), None)
    if container is None or video is None:
        return None
    size = _SIZE.search(video)
    pixels = _FORMAT.search(video)
    rates = {name: parse_rational(value.replace("k", "000")) for value, name in _RATES.findall(video)}
    words = (pixels[2] or "").replace("/", " / ").split() if pixels else []
    tags = (pixels[2] or "") if pixels else ""
    rotation = _ROTATION.search(text)
    duration = _DURATION.search(text)
    return StreamFacts(
        container=container[1],
        codec=codec[0] if (codec := re.match(r"\w+", video)) else "",
        width=int(size[1]) if size else 0,
        height=int(size[2]) if size else 0,
        base=rates.get("tbr") or None,
        average=rates.get("fps") or None,
        pix_fmt=pixels[1] if pixels else "",
        colour=_colour_in_brackets(tags),
        field_order=next((_FIELDS[word] for word in words if word in ("top", "bottom")), "progressive"),
        rotation=_degrees(float(rotation[1])) if rotation else 0,
        duration=_seconds(*duration.groups()) if duration else None,
        audio=any(kind == "Audio" for kind, _ in streams),
    )


def _colour_in_brackets(tags: str) -> Colour:
    """Return the colour of `tv, bt2020nc/bt2020/smpte2084, progressive`; one name stands for all three."""
    found = ""
    names = ["", "", ""]
    for word in tags.split(", "):
        if word in _RANGES:
            found = _RANGES[word]
        elif word.count("/") == 2:
            names = [_tag(name) for name in word.split("/")]
        elif re.fullmatch(r"[a-z]+[0-9]\w*", word):
            names = [word] * 3
    return Colour(found, *names)


def parse_frames(text: str) -> FrameFacts | None:
    """Return what `showinfo` says of the first frames; None if none was decoded."""
    frames = list(_frames(text))
    if not frames:
        return None
    pix_fmt, width, height, field = frames[0]
    config, tags = _CONFIG.search(text), _TAGS.search(text)
    return FrameFacts(
        number=len(frames),
        width=int(width),
        height=int(height),
        pix_fmt=pix_fmt,
        rate=parse_rational(config[1]) or None if config else None,
        colour=Colour(*(_tag(tag) for tag in tags.groups())) if tags else Colour(),
        field_order=_FIRST_FIELD.get(field, "progressive"),
        mastering_display=_MASTERING.search(text) is not None,
        content_light=_LIGHT.search(text) is not None,
    )


def _frames(text: str) -> Iterator[tuple[str, str, str, str]]:
    for line in text.splitlines():
        if "showinfo" in line and (match := _FRAME.search(line)):
            yield match[1], match[2], match[3], match[4]


def first_reason(text: str) -> str:
    """Return the first line in which ffmpeg says what is wrong, without what it is about; "" if none does."""
    lines = [re.sub(r"^(\[[^\]]*\] ?)+", "", line).strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith(("Last message repeated", "Input #"))]
    return said[0][:200] if said else ""


def last_reason(text: str) -> str:
    """Return what ffmpeg says last: why it gave up, without what it is about; "" if it says nothing."""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return said[-1].rpartition(": ")[2][:200] if said else ""


def _tag(name: str) -> str:
    """Return a colour's name; "" for one that says nothing."""
    return "" if name in _UNKNOWN else _RANGES.get(name, name)


def _degrees(rotation: float) -> int:
    return round(rotation) % 360


def _seconds(hours: str, minutes: str, seconds: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
