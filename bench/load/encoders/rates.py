"""RateControl control: what a stream may spend, or what its picture must be worth. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from powerbench_agent.bench.nearest import nearest

BY_BITRATE = {
    "cbr": "a constant bitrate",
    "vbr": "a mean bitrate, with peaks of twice as much",
}
BY_QUALITY = {
    "crf": "a constant rate factor",
    "qp": "a constant quantizer",
    "cq": "a constant quality, as hardware encoders have it",
}
KINDS = (*BY_BITRATE, *BY_QUALITY)
_QUALITY = re.compile(r"([a-z]+)=([0-9]{1,3}(?:\.[0-9]{1,2})?)")


class RateControl(NamedTuple):
    """One way to control the rate; written `cbr`, `vbr`, `crf=35`."""

    kind: str = "cbr"
    value: float = 0.0  # of a kind that is by quality

    @property
    def has_bitrate(self) -> bool:
        """Whether it goes by a bitrate."""
        return self.kind in BY_BITRATE

    def __str__(self) -> str:
        """Return it as it is written on the command line."""
        return f"{self.kind}={self.value:g}" if self.kind in BY_QUALITY else self.kind


def parse_rate(text: str) -> RateControl:
    """Return what `cbr`, `vbr`, `crf=23`, `qp=28` or `cq=30` says. Raises: ValueError."""
    said = text.strip().lower()
    if said in BY_BITRATE:
        return RateControl(said)
    match = _QUALITY.fullmatch(said)
    if match and match[1] in BY_QUALITY:
        return RateControl(match[1], float(match[2]))
    kind = said.partition("=")[0]
    if kind in BY_QUALITY:
        raise ValueError(f"{text!r}: {kind} needs a number, like {kind}=28")
    if kind in BY_BITRATE:
        raise ValueError(f"{text!r}: write --rate {kind}, and the bitrate as --bitrate 2500k")
    what = f"{text!r} is not a rate control: write cbr, vbr, crf=23, qp=28 or cq=30"
    raise ValueError(what + nearest(kind, KINDS))
