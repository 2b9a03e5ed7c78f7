"""Scores a file against its source: frame n with frame n, in one run of FFmpeg that decodes each side once.

FFmpeg's filters pair frames by their times, and containers round those: Matroska and FLV to milliseconds. So
both sides get new times here, one step a frame. That alone would hide a lost frame, and so would the filters,
which repeat the last frame of the shorter side. So the frames of each side are counted, and a wrong number
has no score.
"""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from powerbench_agent.bench.quality.call import NotScored, call, count_lines, private_directory
from powerbench_agent.bench.quality.choose import is_model_name
from powerbench_agent.bench.quality.count import count_logged, log_frames, probe
from powerbench_agent.core.scores import DEFAULT_MODEL, Pooled, Psnr, Scores, Ssim, Xpsnr

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from powerbench_agent.bench.quality.choose import Scorer
    from powerbench_agent.bench.quality.count import StoredPicture
    from powerbench_agent.bench.quality.side import Side

PATIENCE = 3600.0  # seconds; VMAF does some 20 pictures of 1080p a second on one core
# Not the fastest: without these, the samples depend on which CPU scales them.
SCALER = "bicubic+accurate_rnd+full_chroma_int"

# The samples are compared, not the notes about them: containers and encoders lose and add those, and FFmpeg
# since 7.0 converts one side's colours if they differ, for a loss of several decibels.
_SAMPLES_ALONE = "setparams=colorspace=unknown:color_primaries=unknown:color_trc=unknown"

_MOST_THREADS = 16  # of libvmaf, each with pictures of its own in memory
_DEPTHS = (8, 10, 12, 16)  # bits a sample, that every filter takes
_UNKNOWN_RATE = 25.0
_TEST_LOG = "test.log"

ENCODED, SOURCE = "encoded", "source"  # what their labels and logs are called

# How each filter is asked, and what it is given first and second. XPSNR weighs the errors by the activity of
# its first input: by its authors' usage that is the source, whatever FFmpeg's documentation calls it.
_FILTERS = {
    "vmaf": "[encoded{n}][source{n}]libvmaf='model=version={model}\\:name=vmaf':n_threads={threads}"
    ":log_fmt=json:log_path=vmaf.json",
    "xpsnr": "[source{n}][encoded{n}]xpsnr=stats_file=xpsnr.log",
    "psnr": "[encoded{n}][source{n}]psnr=stats_file=psnr.log",
    "ssim": "[encoded{n}][source{n}]ssim=stats_file=ssim.log",
}
_DEPTH = re.compile(r"(9|10|12|14|16)[lb]e$")  # yuv420p10le, p010le, gray12be
_ODD_DEPTHS = {"rgb48": 16, "bgr48": 16, "rgba64": 16, "bgra64": 16, "xv36": 12, "nv20": 10}
_CHROMA = {
    "420": r"yuvj?a?420|nv12|nv21|p01\d|gray",
    "422": r"yuvj?a?422|nv16|nv20|p21\d|yuyv|uyvy|yvyu|y21\d",
}
_YUV = re.compile(r"yuv|nv\d|p\d\d\d|y2\d\d|xv|yuyv|uyvy|yvyu")
_XPSNR = re.compile(r"XPSNR average, \d+ frames +y: +(\S+) +u: +(\S+) +v: +(\S+) +\(minimum: +(\S+)\)")
_PSNR = re.compile(r"PSNR y:(\S+) u:(\S+) v:(\S+) average:(\S+)")
_SSIM = re.compile(r"SSIM Y:(\S+) .*All:(\S+)")


async def score(  # noqa: PLR0913 - the last two have defaults that hardly anyone changes
    scorer: Scorer,
    encoded: Side,
    source: Side,
    frames: int,
    measures: Collection[str],
    *,
    model: str = DEFAULT_MODEL,
    patience: float = PATIENCE,
) -> Scores:
    """Return the scores of so many frames, at the source's size.

    `measures`: some of core.scores.MEASURES; what the scorer lacks is among those missing. Frames of either
    side after the last of `frames` are not looked at. Raises: NotScored.
    """
    if frames < 1:
        raise NotScored("there are no frames to compare")
    if not is_model_name(model):
        raise NotScored(f"{model[:60]!r} is not the name of a VMAF model")
    pictures = await probe(scorer.path, encoded), await probe(scorer.path, source)
    check_turned(*pictures)
    possible = [name for name in measures if name in scorer.measures]
    if not possible:
        raise NotScored("; ".join(scorer.why_not(name) for name in measures) or "no measure was asked for")
    pairing = Pairing(*pictures, frames, possible, model)
    # The rate changes no pairing; XPSNR looks two frames back, not one, if it is 32 or more.
    rate = f"{pairing.source.rate or _UNKNOWN_RATE:g}"
    inputs = [*encoded.arguments(rate), *source.arguments(rate)]
    graph = pairing.graph(encoded, source)
    with private_directory() as directory:
        lines = await call(
            scorer.path, [*inputs, "-filter_complex", graph, *pairing.outputs()], directory, patience
        )
        pairing.check_counts(directory)
        found = pairing.read(directory, lines)
    missing = {name: scorer.why_not(name) for name in measures if name not in possible}
    if "xpsnr" in possible and "xpsnr" not in found:
        missing["xpsnr"] = (
            f"ffmpeg {scorer.version} misreads {pairing.pix_fmt} at {pairing.source.size}: "
            "its xpsnr finds a difference between a picture and itself"
        )
    return Scores(
        frames=frames,
        size=pairing.source.size,
        encoded_size=pairing.encoded.size,
        pix_fmt=pairing.pix_fmt,
        scaler="" if pairing.encoded.size == pairing.source.size else SCALER,
        scored_by=scorer.version,
        vmaf_model=model if "vmaf" in found else None,
        missing=missing,
        **found,
    )


class Pairing(NamedTuple):
    """What FFmpeg is to compare, as a filter graph, and how its answers are read."""

    encoded: StoredPicture
    source: StoredPicture
    frames: int
    measures: list[str]
    model: str

    @property
    def pix_fmt(self) -> str:
        """The format in which both sides are compared."""
        return common_format(self.encoded.pix_fmt, self.source.pix_fmt)

    @property
    def tests_xpsnr(self) -> bool:
        """Whether the source is also compared with itself by XPSNR.

        The filter takes lines of more than 8 bits a sample for as long as the picture is wide, which they are
        only at some widths (1920, 1280; not 854): elsewhere it reports 8 dB of a good picture.
        """
        return "xpsnr" in self.measures and not self.pix_fmt.endswith("p")

    def graph(self, encoded: Side, source: Side) -> str:
        """Return the filter graph, which compares the frames of both sides from the first ones on."""
        copies = [str(n) for n in range(len(self.measures))]
        extra = ["_self", "_same"] if self.tests_xpsnr else []
        parts = [
            self._side(0, ENCODED, encoded, copies),
            self._side(1, SOURCE, source, copies + extra),
        ]
        if self.tests_xpsnr:
            parts.append(f"[{SOURCE}_self][{SOURCE}_same]xpsnr=stats_file={_TEST_LOG}[tested]")
        threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
        for n, name in enumerate(self.measures):
            measure = _FILTERS[name].format(n=n, model=self.model, threads=threads)
            parts.append(f"{measure}[out{n}]")
        return ";".join(parts)

    def _side(self, index: int, name: str, side: Side, copies: list[str]) -> str:
        """Return the chain from an input to its copies, one for each measure."""
        colours = ""
        # RGB has no range of its own: FFmpeg converts it to limited range, here as when it encodes.
        is_yuv = all(_YUV.match(picture.pix_fmt) for picture in (self.encoded, self.source))
        if is_yuv and self.encoded.is_full_range != self.source.is_full_range:
            colours = f":out_range={'pc' if self.source.is_full_range else 'tv'}"
        steps = [
            f"[{index}:V:0]{','.join(side.steps(self.frames))}",
            "settb=AVTB,setpts=N*40000",
            log_frames(f"{name}.log"),
            _SAMPLES_ALONE,
            f"scale={self.source.width}:{self.source.height}:flags={SCALER}{colours}",
            f"format={self.pix_fmt}",
        ]
        if self.tests_xpsnr:
            steps.append("copy")  # into memory that is laid out alike for both sides, and for the test
        steps.append(f"split={len(copies)}")
        return ",".join(steps) + "".join(f"[{name}{copy}]" for copy in copies)

    def outputs(self) -> list[str]:
        """Return the arguments that let every measure see all frames."""
        labels = [f"[out{n}]" for n in range(len(self.measures))]
        if self.tests_xpsnr:
            labels.append("[tested]")
        return [word for label in labels for word in ("-map", label, "-f", "null", "-")]

    def check_counts(self, directory: Path) -> None:
        """Check that each side had every frame that was asked for. Raises: NotScored."""
        for side, what in ((ENCODED, "the encode"), (SOURCE, "the source")):
            count = count_logged(directory / f"{side}.log")
            if count != self.frames:
                raise NotScored(
                    f"{what} has {count} of the {self.frames} frames that were to be compared: "
                    "pairs after a lost frame would be wrong"
                )

    def read(self, directory: Path, lines: list[str]) -> dict[str, Any]:
        """Return the scores by their names in core.scores.Scores. Raises: NotScored."""
        found: dict[str, Any] = {}
        for name in self.measures:
            if name == "vmaf":
                found["vmaf"], found["libvmaf"] = read_vmaf(directory / "vmaf.json", self.frames)
                continue
            log = directory / f"{name}.log"
            logged = count_lines(log, "n:")
            if logged != self.frames:
                raise NotScored(
                    f"ffmpeg logged {logged} of {self.frames} frames in {log.name}: is its disk full?"
                )
            if name == "xpsnr":
                if not self.tests_xpsnr or self._finds_nothing(directory / _TEST_LOG):
                    found[name] = parse_xpsnr(log.read_text())
            else:
                found[name] = parse_psnr(lines) if name == "psnr" else parse_ssim(lines)
        return found

    def _finds_nothing(self, log: Path) -> bool:
        """Tell if XPSNR found no difference between the source and itself; of 16 bits it would overflow."""
        found = parse_xpsnr(log.read_text())
        return found.minimum is None and "p16" not in self.pix_fmt


def check_turned(encoded: StoredPicture, source: StoredPicture) -> None:
    """Check that the encode was not turned upright, which would be scaled back. Raises: NotScored."""
    was_wide = source.width > source.height and encoded.width < encoded.height
    was_tall = source.width < source.height and encoded.width > encoded.height
    if was_wide or was_tall:
        raise NotScored(f"the encode ({encoded.size}) is turned against its source ({source.size})")


def common_format(encoded: str, source: str) -> str:
    """Return the format in which to compare: the source's chroma, and the finer depth of the two.

    So an encode loses nothing before it is judged: 10 bits of an 8-bit source are not rounded to 8 again.
    """
    chroma, source_depth = layout(source)
    _, encoded_depth = layout(encoded)
    depth = max(source_depth, encoded_depth)
    if depth == 8:
        return f"yuvj{chroma}p" if source.startswith("yuvj") else f"yuv{chroma}p"
    return f"yuv{chroma}p{depth}le"


def layout(pix_fmt: str) -> tuple[str, int]:
    """Return (chroma, depth) of the nearest format that every filter takes: ("420", 10).

    RGB, and what is not known, is compared as 4:4:4.
    """
    found = _DEPTH.search(pix_fmt)
    bits = int(found[1]) if found else 8
    for start, known in _ODD_DEPTHS.items():
        if pix_fmt.startswith(start):
            bits = known
    depth = next(depth for depth in _DEPTHS if depth >= bits)
    for chroma, names in _CHROMA.items():
        if re.match(names, pix_fmt):
            return chroma, depth
    return "444", depth


class _VmafMetrics(msgspec.Struct):
    vmaf: float


class _VmafFrame(msgspec.Struct):
    metrics: _VmafMetrics


class _VmafLog(msgspec.Struct):
    version: str
    frames: list[_VmafFrame]


def read_vmaf(log: Path, frames: int) -> tuple[Pooled, str]:
    """Return libvmaf's scores of so many frames, and its version. Raises: NotScored."""
    try:
        content = msgspec.json.decode(log.read_bytes(), type=_VmafLog)
    except OSError as error:  # libvmaf says so in a warning, and goes on
        raise NotScored(f"libvmaf did not write {log.name}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise NotScored(f"libvmaf's {log.name} cannot be read: {error}") from None
    if len(content.frames) != frames:
        raise NotScored(f"libvmaf scored {len(content.frames)} of {frames} frames")
    return Pooled.of([frame.metrics.vmaf for frame in content.frames]), content.version


def parse_xpsnr(log: str) -> Xpsnr:
    """Return what the filter's log ends with. Raises: NotScored."""
    y, u, v, minimum = _found(_XPSNR, log, "xpsnr")
    return Xpsnr(minimum=decibels(minimum), y=decibels(y), u=decibels(u), v=decibels(v))


def parse_psnr(lines: list[str]) -> Psnr:
    """Return what the filter prints at its end. Raises: NotScored."""
    y, u, v, average = _found(_PSNR, "\n".join(lines), "psnr")
    return Psnr(average=decibels(average), y=decibels(y), u=decibels(u), v=decibels(v))


def parse_ssim(lines: list[str]) -> Ssim:
    """Return what the filter prints at its end. Raises: NotScored."""
    y, average = _found(_SSIM, "\n".join(lines), "ssim")
    return Ssim(average=float(average), y=float(y))


def _found(pattern: re.Pattern[str], text: str, name: str) -> tuple[str, ...]:
    if match := pattern.search(text):
        return match.groups()
    raise NotScored(f"ffmpeg printed no {name}: this release spells it in a way that is not known here")


def decibels(text: str) -> float | None:
    """Return a number as the filters print it; None for planes that are equal, whose PSNR is infinite."""
    number = float(text)
    return number if math.isfinite(number) else None
