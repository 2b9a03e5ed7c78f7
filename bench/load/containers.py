"""In which container a stream travels: RTMP carries FLV, which not every codec fits into. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

Container = Literal["flv", "matroska", "mpegts", "nut"]


class StreamTarget(NamedTuple):
    """Where a stream goes."""

    url: str  # or "null"
    container: Container


_HEVC_IN_FLV = (6, 1)  # the first release of FFmpeg with it


def choose_container(codec: str, sink: str, release: tuple[int, int]) -> Container:
    """Return the container of a stream of this codec to this sink.

    `release`: of the ffmpeg at both ends, (0, 0) for a development build. An RTMP server gets FLV; whether
    this ffmpeg puts the codec into it is found out when the encoder is tried. Elsewhere it is NUT, which
    takes nearly all: live Matroska refuses encoders that tell their headers late (libaom, rav1e), MPEG-TS
    loses AV1 and VP9 without a word. What older results were measured with stays: FLV over RTMP into the
    embedded sink, Matroska into none.
    """
    if sink.startswith("rtmp"):
        return "flv"
    if sink != "embedded":
        return "matroska" if codec in ("h264", "hevc", "vvc") else "nut"
    if codec == "h264" or (codec == "hevc" and (release == (0, 0) or release >= _HEVC_IN_FLV)):
        return "flv"
    return "mpegts" if codec == "vvc" else "nut"
