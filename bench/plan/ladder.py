"""Ladders: the renditions of one picture, as --ladder and the outputs of a batch file write them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from powerbench_agent.bench.load.encoders.rates import RateControl, parse_rate
from powerbench_agent.bench.load.encoders.spelling import (
    EncoderAsked,
    completed,
    default_rate,
    global_options,
    problems,
)
from powerbench_agent.bench.load.encoders.table import find_row
from powerbench_agent.bench.plan.scenario import (
    Rendition,
    Resolution,
    Scenario,
    parse_bitrate,
    parse_resolution,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_RENDITIONS = 12
_FORM = "write it like 1920x1080:5M,1280x720:2500k,854x480:1M, or with crf=23 in place of a bitrate"


class Rung(NamedTuple):
    """A rendition as it is asked for; what it leaves out is its scenario's, or its own encoder's default."""

    resolution: Resolution
    video_kbps: float = 0.0
    rate: RateControl | None = None
    encoder: str = ""
    preset: str = ""
    pix_fmt: str = ""
    gop: int = 0
    encoder_options: tuple[tuple[str, str], ...] = ()
    device: str = ""


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


def renditions_of(
    scenario: Scenario, rungs: Sequence[Rung], kbps: float
) -> tuple[tuple[Rendition, ...], list[str]]:
    """Return a scenario's ladder, and what is wrong with it.

    `kbps`: of a rendition by bitrate that names none; 0 if there is no such bitrate.
    """
    names = rendition_names([rung.resolution for rung in rungs])
    made, found = [], []
    for number, (name, rung) in enumerate(zip(names, rungs, strict=True), 1):
        asked = _asked(scenario, rung)
        spent = (rung.video_kbps or kbps) if asked.rate.has_bitrate else 0.0
        wrong = [*_wrong(rung, asked, spent), *problems(asked)]
        found += [f"rendition {number}: {key}: {what}" for key, what in wrong]
        if wrong:
            continue
        whole = completed(asked)
        made.append(
            Rendition(
                rendition=name,
                resolution=rung.resolution,
                encoder=whole.encoder,
                video_kbps=spent,
                preset=whole.preset,
                rate=whole.rate,
                pix_fmt=asked.pix_fmt if scenario.input else whole.pix_fmt,
                gop=whole.gop,
                encoder_options=whole.extra,
                device=whole.device,
            )
        )
    return tuple(made), found or _wrong_devices(made)


def _asked(scenario: Scenario, rung: Rung) -> EncoderAsked:
    """Return what is asked of a rendition's encoder. Raises: ValueError for one that is not in the table."""
    base = scenario.asked
    if rung.encoder:  # what is meant for another encoder is not for this one
        base = EncoderAsked(rung.encoder, rate=default_rate(rung.encoder))
    rate = rung.rate or base.rate
    if rung.video_kbps and rung.rate is None and not rate.has_bitrate:
        rate = RateControl("cbr" if "cbr" in base.row.rates else "vbr")
    return EncoderAsked(
        base.encoder,
        rung.preset or base.preset,
        rate,
        rung.pix_fmt or base.pix_fmt,
        rung.gop or scenario.gop,
        rung.encoder_options or base.extra,
        rung.device or base.device,
    )


def _wrong(rung: Rung, asked: EncoderAsked, kbps: float) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) with a rendition, beside what its encoder cannot be asked for."""
    rate = asked.rate
    if asked.row.name == "copy":
        yield "encoder", "copy does not scale, as a ladder must"
        return
    if rate.has_bitrate and not kbps:
        yield "bitrate", "a rendition needs one, or a rate by quality like crf=23"
    if rung.video_kbps and not rate.has_bitrate:
        yield "bitrate", f"does not go with rate {rate}, which spends what the picture takes"


def _wrong_devices(ladder: Sequence[Rendition]) -> list[str]:
    """Return what is wrong with the devices that the filters of one ffmpeg are to upload to: it has one."""
    uploading = [one for one in ladder if find_row(one.encoder).family.upload]
    devices = {tuple(global_options(EncoderAsked(one.encoder, device=one.device))) for one in uploading}
    if len(devices) < 2:
        return []
    return [f"device: {' and '.join(one.rendition for one in uploading)} must be encoded by one device"]


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
