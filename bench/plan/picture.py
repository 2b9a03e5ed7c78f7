"""The picture of a clip: what its video is, and what a stream of it keeps or changes. Pure."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from powerbench_agent.bench.plan import frame_rate
from powerbench_agent.bench.plan.frame_rate import FrameRate

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_SIDE, MAX_SIDE = 16, 16384  # pixels that an encoder takes
_SAME_RATE = Fraction(1, 100)  # of each other: the average of a clip that is cut is not exact
_ROUNDING = Fraction(1, 10_000)  # likewise: 30 and 29.97 are ten times as far apart
_MAX_BASE = 120  # fps; a larger base of a variable rate is the clock of its times, not a rate
_COMMON_RATES = tuple(
    rate
    for text in ("24000/1001", "24", "25", "30000/1001", "30", "48", "50", "60000/1001", "60", "120")
    if (rate := frame_rate.parse_rational(text)) is not None
)
_CHROMAS = ("400", "420", "422", "440", "444")  # in the order of how much colour they hold
_YUV = re.compile(r"yuv(a|j)?(420|422|440|444)p(\d+)?(?:le|be)?")
_RGB = re.compile(
    r"(?:gbra?p(?:f?(\d+))?|(?:a|0|x)?(?:rgb|bgr)(?:a|0)?(\d+)?|x2(?:rgb|bgr)(10)|pal8)(?:le|be)?"
)
_GRAY = re.compile(r"(?:gray|ya)(\d+)?(?:le|be)?|mono[bw]")
_SEMI_PLANAR = re.compile(r"p([024])(\d\d)(?:le|be)?")
_SEMI_PLANAR_CHROMA = {"0": "420", "2": "422", "4": "444"}
_NV = {
    **dict.fromkeys(("nv12", "nv21"), ("420", 8)),
    **dict.fromkeys(("nv16",), ("422", 8)),
    **dict.fromkeys(("nv20le", "nv20be"), ("422", 10)),
    **dict.fromkeys(("nv24", "nv42"), ("444", 8)),
}


class Colour(NamedTuple):
    """How a picture's numbers stand for colours, in FFmpeg's names; "" where the clip does not say."""

    range: str = ""
    space: str = ""
    primaries: str = ""
    transfer: str = ""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """What the video of a clip is. Pixels, frames a second, seconds."""

    width: int  # as it is shown: upright
    height: int
    rate: FrameRate  # that a stream of it has
    pix_fmt: str
    stored_width: int = 0  # before the rotation
    stored_height: int = 0
    rotation: int = 0  # degrees, from 0 to 359
    average_rate: FrameRate | None = None
    variable: bool = False  # whether its frames come at uneven times
    field_order: str = "progressive"  # or the first field: "tff", "bff"
    colour: Colour = Colour()
    mastering_display: bool = False  # HDR10's metadata
    content_light: bool = False
    codec: str = ""
    container: str = ""
    duration: float | None = None
    frames: int | None = None
    audio: bool = False

    @property
    def interlaced(self) -> bool:
        """Whether a frame of it is two fields."""
        return self.field_order != "progressive"

    @property
    def full_range(self) -> bool:
        """Whether its pixel format says that black is 0: FFmpeg's older way to say so."""
        return self.pix_fmt.startswith("yuvj")


def pixel_format(name: str) -> tuple[str, int]:
    """Return chroma and bits of FFmpeg's name of a pixel format: ("420", 10); ("", 0) for an unknown one."""
    if match := _YUV.fullmatch(name):
        return match[2], int(match[3] or 8)
    if match := _GRAY.fullmatch(name):
        return "400", int(match[1] or 8)
    if match := _RGB.fullmatch(name):
        bits = next((int(bits) for bits in match.groups() if bits), 8)
        return "444", {24: 8, 32: 8, 48: 16, 64: 16}.get(bits, bits)
    if match := _SEMI_PLANAR.fullmatch(name):
        return _SEMI_PLANAR_CHROMA[match[1]], int(match[2])
    return _NV.get(name, ("", 0))


def is_rgb(name: str) -> bool:
    """Return whether a pixel format is of red, green and blue."""
    return _RGB.fullmatch(name) is not None


def nearest_format(wanted: str, taken: Sequence[str]) -> str:
    """Return which of the formats that an encoder takes loses the least; the same one if it is among them.

    `taken`: FFmpeg's names; empty if the encoder does not say, which is then believed to take all.
    """
    if wanted in taken or not taken:
        return wanted
    chroma, bits = pixel_format(wanted)

    def loss(name: str) -> tuple[int, int, int, int]:
        its_chroma, its_bits = pixel_format(name)
        less = _CHROMAS.index(chroma or "420") - _CHROMAS.index(its_chroma)
        fewer = (bits or 8) - its_bits
        return max(0, less), max(0, fewer), abs(less), abs(fewer)

    planar = [name for name in taken if _YUV.fullmatch(name) and not re.match("yuv[aj]", name)]
    known = planar or [name for name in taken if pixel_format(name)[0] and not is_rgb(name)]
    return min(known, key=loss) if known else taken[0]


def rate_of(
    base: FrameRate | None, average: FrameRate | None, *, interlaced: bool
) -> tuple[FrameRate | None, bool]:
    """Return (the rate that a stream of a clip has, whether the clip's own is variable); None if it has none.

    `base`: the slowest rate whose ticks are the times of all frames (FFmpeg's r_frame_rate, tbr).
    """
    if not base or not average:
        known = base or average
        return _unrounded(known) if known else None, False
    if interlaced and _near(base, average * 2):  # it counts fields
        return _unrounded(Fraction(base) / 2), False
    if _near(base, average):
        return _unrounded(base), False
    if average < base <= min(_MAX_BASE, average * 2):
        return _unrounded(base), True
    near = [rate for rate in _COMMON_RATES if _near(rate, average)]
    above = [rate for rate in _COMMON_RATES if rate > average]
    return min(near or above[:1] or [average], key=lambda rate: abs(Fraction(rate) - average)), True


def _unrounded(rate: FrameRate) -> FrameRate:
    """Return the common rate that this one rounds: containers count in milliseconds, too."""
    rounded = (common for common in _COMMON_RATES if _near(rate, common, _ROUNDING))
    return next(rounded, frame_rate.simplest(Fraction(rate)))


def _near(one: FrameRate, other: FrameRate, within: Fraction = _SAME_RATE) -> bool:
    return abs(Fraction(one) / other - 1) <= within


def cropped(width: int, height: int, pix_fmt: str) -> tuple[int, int]:
    """Return the largest size within these sides that a pixel format can have: 4:2:0 needs even ones."""
    chroma, _ = pixel_format(pix_fmt)
    odd_width = chroma in ("420", "422", "")
    odd_height = chroma in ("420", "440", "")
    return width - (width % 2 if odd_width else 0), height - (height % 2 if odd_height else 0)


def describe_picture(picture: Picture) -> dict[str, Any]:
    """Return what a clip's video is, as the results file holds it; what is not known is left out."""
    chroma, bits = pixel_format(picture.pix_fmt)
    described = msgspec.structs.asdict(picture) | {
        "rate": str(picture.rate),
        "average_rate": str(picture.average_rate) if picture.average_rate is not None else None,
        "colour": {key: value for key, value in picture.colour._asdict().items() if value},
        "chroma": chroma,
        "bits": bits,
    }
    return {key: value for key, value in described.items() if value not in (None, "", {})}
