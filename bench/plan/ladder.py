"""Ladders: the renditions of one picture, as --ladder and the outputs of a batch file write them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from powerbench_agent.bench.load.encoders.rates import RateControl, parse_rate
from powerbench_agent.bench.plan.scenario import (
    Rendition,
    Resolution,
    Scenario,
    parse_bitrate,
    parse_resolution,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_RENDITIONS = 12
_FORM = "write it like 1920x1080:5M,1280x720:2500k,854x480:1M, or with crf=23 in place of a bitrate"


class Rung(NamedTuple):
    """A rendition as it is asked for: a size, and what it may spend or be worth."""

    resolution: Resolution
    video_kbps: float = 0.0  # 0: not said
    rate: RateControl | None = None  # None: the ladder's


def parse_ladder(text: str) -> tuple[Rung, ...]:
    """Return the renditions of `1920x1080:5M,1280x720:crf=23,854x480`. Raises: ValueError."""
    parts = [part.strip() for part in text.split(",")]
    if not 1 <= len(parts) <= MAX_RENDITIONS:
        raise ValueError(f"a ladder has 1 to {MAX_RENDITIONS} renditions; {_FORM}")
    rungs = []
    for part in parts:
        size, colon, spent = part.partition(":")
        try:
            resolution = parse_resolution(size)
            if not colon:
                rungs.append(Rung(resolution))
            elif "=" in spent:
                rungs.append(Rung(resolution, rate=parse_rate(spent)))
            else:
                rungs.append(Rung(resolution, parse_bitrate(spent)))
        except ValueError as error:
            raise ValueError(f"{error}; {_FORM}") from None
    return tuple(rungs)


def rendition_names(sizes: Sequence[Resolution]) -> list[str]:
    """Return what the renditions are called: 720p, and 720p-2 for the second one of that height."""
    names: list[str] = []
    for size in sizes:
        name = f"{size.height}p"
        same = sum(other.partition("-")[0] == name for other in names)
        names.append(f"{name}-{same + 1}" if same else name)
    return names


def largest(ladder: Sequence[Rendition]) -> Resolution:
    """Return the size of the largest picture: of what a ladder without a clip is made of."""
    return max((rung.resolution for rung in ladder), key=lambda size: size.width * size.height)


def described(scenario: Scenario) -> str:
    """Return a ladder as --ladder writes it; "" of a scenario that has none."""
    texts = []
    for one in scenario.renditions if scenario.ladder else ():
        spent = f"{one.video_kbps:g}k" if one.rate.has_bitrate else str(one.rate)
        texts.append(f"{one.resolution}:{spent}")
    return ",".join(texts)


def enlarged(scenario: Scenario) -> list[str]:
    """Return the renditions that are larger than the clip that they are made of."""
    source = scenario.picture
    if source is None:
        return []
    return [
        rung.rendition
        for rung in scenario.ladder
        if rung.resolution.height > source.height or rung.resolution.width > source.width
    ]


def renditions_of(scenario: Scenario, rungs: Sequence[Rung], kbps: float) -> tuple[Rendition, ...]:
    """Return a scenario's ladder, whose renditions have its settings but for what they say themselves.

    `kbps`: of a rendition by bitrate that names none.
    """
    names = rendition_names([rung.resolution for rung in rungs])
    made = []
    for name, rung in zip(names, rungs, strict=True):
        rate = rung.rate or scenario.rate
        if rung.video_kbps and rung.rate is None and not rate.has_bitrate:
            rate = RateControl("vbr" if "cbr" not in scenario.asked.row.rates else "cbr")
        made.append(
            Rendition(
                rendition=name,
                resolution=rung.resolution,
                video_kbps=(rung.video_kbps or kbps) if rate.has_bitrate else 0.0,
                encoder=scenario.encoder,
                preset=scenario.preset,
                rate=rate,
                pix_fmt=scenario.pix_fmt,
                gop=scenario.gop,
                encoder_options=scenario.encoder_options,
                device=scenario.device,
            )
        )
    return tuple(made)


def with_ladder(scenario: Scenario, ladder: tuple[Rendition, ...]) -> Scenario:
    """Return a scenario that encodes a ladder; what it is called by is the first rendition's."""
    first = ladder[0]
    return msgspec.structs.replace(
        scenario,
        ladder=ladder,
        resolution=largest(ladder),
        video_kbps=0.0,
        bitrates=(0.0,) * len(scenario.bitrates),
        encoder=first.encoder,
        preset=first.preset,
        rate=first.rate,
        pix_fmt=first.pix_fmt,
    )
