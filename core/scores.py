"""Picture quality of an encode, as results files hold it: the schema of scores, and how frames are pooled.

Every measure compares an encode with its source frame by frame, at the size of the source:

- VMAF, 0 to 100, of a named model; scores of different models are not comparable.
- XPSNR, PSNR: decibels, as FFmpeg's filters `xpsnr` and `psnr` sum them up. PSNR is that of the mean squared
  error over all frames, not the mean of the frames' PSNR (which libvmaf's psnr_y is). A plane that is equal
  in every frame has no number: None stands for it, as JSON has no infinity.
- SSIM, at most 1, the mean over the frames by FFmpeg's filter `ssim`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MEASURES = ("vmaf", "xpsnr", "psnr", "ssim")
DEFAULT_MODEL = "vmaf_v0.6.1"


class Pooled(msgspec.Struct, frozen=True):
    """The scores of many frames in four numbers."""

    mean: float
    harmonic_mean: float
    p1: float  # the 1st percentile: 99 % of the frames score higher
    minimum: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Self:
        """Return the pooled scores of frames, at least one, each 0 or more.

        The harmonic mean is libvmaf's: of the scores plus 1, less 1, so that a score of 0 has one.
        """
        count = len(scores)
        return cls(
            mean=math.fsum(scores) / count,
            harmonic_mean=count / math.fsum(1 / (score + 1) for score in scores) - 1,
            p1=percentile(scores, 1),
            minimum=min(scores),
        )


class Psnr(msgspec.Struct, frozen=True):
    """PSNR in dB; None for planes that are equal in every frame."""

    average: float | None  # of the planes' squared errors, each weighted by its number of samples
    y: float | None
    u: float | None
    v: float | None


class Xpsnr(msgspec.Struct, frozen=True):
    """XPSNR in dB, perceptually weighted by the source's activity; None for planes that are equal."""

    minimum: float | None  # of the planes: FFmpeg's one number
    y: float | None
    u: float | None
    v: float | None


class Ssim(msgspec.Struct, frozen=True):
    """SSIM, 1 for equal pictures."""

    average: float  # of the planes, each weighted by its number of samples; FFmpeg's "All"
    y: float


class Scores(msgspec.Struct, frozen=True):
    """How near an encode is to its source. A measure that is None was not asked for, or is in `missing`."""

    frames: int  # that were compared: frame n of the encode with frame n of the source
    size: str  # "1920x1080", of the source, at which all were compared
    encoded_size: str
    pix_fmt: str  # in which all were compared
    scaler: str  # flags of FFmpeg's scaler; "" if the encode has the source's size
    scored_by: str  # the version of the FFmpeg that scored
    vmaf: Pooled | None = None
    vmaf_model: str | None = None
    libvmaf: str | None = None  # its version
    xpsnr: Xpsnr | None = None
    psnr: Psnr | None = None
    ssim: Ssim | None = None
    missing: dict[str, str] = {}  # measure: why it was not scored
    rendition: str = ""  # of a ladder: "1080p"; "" for a stream that is one picture

    @property
    def figures(self) -> dict[str, float]:
        """One number a measure: mean VMAF, XPSNR's minimum, average PSNR and SSIM; without infinite ones."""
        found = {
            "vmaf": self.vmaf.mean if self.vmaf else None,
            "xpsnr": self.xpsnr.minimum if self.xpsnr else None,
            "psnr": self.psnr.average if self.psnr else None,
            "ssim": self.ssim.average if self.ssim else None,
        }
        return {
            name: figure for name, figure in found.items() if figure is not None and math.isfinite(figure)
        }


class MeanScores(NamedTuple):
    """The mean scores of one rendition over streams and repeats."""

    rendition: str  # "" if there is only one
    figures: dict[str, float]  # by MEASURES
    vmaf_harmonic: float | None = None  # the means of the harmonic means
    vmaf_p1: float | None = None  # and of the 1st percentiles
    vmaf_model: str | None = None
    models: tuple[str, ...] = ()  # several: none of their scores is in the means


def mean_scores(found: Iterable[Scores]) -> list[MeanScores]:
    """Return the mean of scores by rendition, in their order; VMAF of different models is not averaged."""
    by_rendition: dict[str, list[Scores]] = {}
    for scores in found:
        by_rendition.setdefault(scores.rendition, []).append(scores)
    return [_mean_scores(rendition, its) for rendition, its in by_rendition.items()]


def _mean_scores(rendition: str, found: Sequence[Scores]) -> MeanScores:
    figures: dict[str, float] = {}
    for measure in MEASURES:
        known = [scores.figures[measure] for scores in found if measure in scores.figures]
        if known and (mean := _mean(known)) is not None:
            figures[measure] = mean
    pooled = [scores.vmaf for scores in found if scores.vmaf is not None and "vmaf" in scores.figures]
    if not pooled:
        return MeanScores(rendition, figures)
    models = tuple(sorted({scores.vmaf_model or "unnamed" for scores in found if "vmaf" in scores.figures}))
    if len(models) > 1:
        del figures["vmaf"]
        return MeanScores(rendition, figures, models=models)
    return MeanScores(
        rendition,
        figures,
        vmaf_harmonic=_mean([one.harmonic_mean for one in pooled]),
        vmaf_p1=_mean([one.p1 for one in pooled]),
        vmaf_model=models[0],
        models=models,
    )


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean; None if a file has figures that are not finite."""
    if not all(map(math.isfinite, values)):
        return None
    return math.fsum(value / len(values) for value in values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile of one value or more, interpolated linearly between the two nearest ranks."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    low, high = ordered[below], ordered[above]
    return low + (high - low) * (rank - below)
