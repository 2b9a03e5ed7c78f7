"""In which container an output travels, and what each container takes. Pure."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal, NamedTuple

from powerbench_agent.bench.plan.sink import kind_of

Container = Literal["flv", "matroska", "mpegts", "nut", "mp4", "mov", "webm"]


class StreamTarget(NamedTuple):
    """Where an output goes."""

    url: str  # or "null"
    container: Container
    copy: str = ""  # the URL that gets the same packets
    copied_in: Container = "nut"  # in which it gets them


_HEVC_IN_FLV = (6, 1)  # the first release of FFmpeg with it
_SUFFIXES: dict[str, Container] = {
    ".flv": "flv",
    ".mkv": "matroska",
    ".mov": "mov",
    ".mp4": "mp4",
    ".nut": "nut",
    ".ts": "mpegts",
    ".webm": "webm",
}
# Codecs that each container takes. FFmpeg refuses some others; MPEG-TS takes AV1 and VP9, and no player
# finds a picture in it. What is not listed is found out when the encoder is tried.
_TAKES: dict[Container, tuple[str, ...]] = {
    "mpegts": ("h264", "hevc", "vvc", "mpeg2video"),
    "nut": ("h264", "hevc", "av1", "vp9", "mpeg2video"),
    "webm": ("av1", "vp9"),
}


def choose_container(
    codec: str,
    sink: str,
    release: tuple[int, int],
    *,
    direct: bool = False,
) -> Container:
    """Return the container of an output of this codec to this sink.

    `release`: of the ffmpeg at both ends, (0, 0) for a development build; `direct`: whether the embedded sink
    is this process and not an RTMP server. An RTMP server gets FLV; whether this ffmpeg puts the codec into
    it is found out when the encoder is tried. Elsewhere it is NUT, which takes nearly all: live Matroska
    refuses encoders that tell their headers late (libaom, rav1e), MPEG-TS loses AV1 and VP9 without a word.
    What older results were measured with stays: FLV over RTMP into the embedded sink, Matroska into none.
    """
    kind = kind_of(sink)
    if kind in ("rtmp", "rtmps", "nginx"):
        return "flv"
    if kind in ("srt", "udp"):
        return "mpegts"
    if kind == "file":
        return _SUFFIXES.get(PurePath(sink).suffix.lower(), "matroska")
    if kind == "null":
        return "matroska" if codec in ("h264", "hevc", "vvc") else "nut"
    over_rtmp = kind == "embedded" and not direct
    if over_rtmp and (codec == "h264" or (codec == "hevc" and _takes_hevc(release))):
        return "flv"
    return copy_container(codec)


def copy_container(codec: str) -> Container:
    """Return the container in which an output comes to this process."""
    return "mpegts" if codec == "vvc" else "nut"


def _takes_hevc(release: tuple[int, int]) -> bool:
    return release == (0, 0) or release >= _HEVC_IN_FLV


def misfit(codec: str, sink: str, container: Container, *, has_tone: bool = False) -> str:
    """Return why a container cannot take a stream, and what to do; "" if it can, or if only FFmpeg knows.

    `has_tone`: whether AAC comes beside the picture.
    """
    if kind_of(sink) == "file" and PurePath(sink).suffix.lower() not in _SUFFIXES:
        return f"name a file that ends in {', '.join(_SUFFIXES)}"
    if has_tone and container == "webm":
        return "webm does not take the tone beside a stream, which is AAC: use file:OUT.mkv, or --pace max"
    takes = _TAKES.get(container)
    if codec == "copy" or takes is None or codec in takes:
        return ""
    instead = "file:OUT.mkv" if kind_of(sink) == "file" else "embedded, tcp:// or file:OUT.mkv"
    return f"{container} does not take {codec}: use {instead}"
