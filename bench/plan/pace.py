"""How fast a stream is encoded: in real time, at so many times that, or as fast as it goes. Pure."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_TIMES = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)x")
_SLOWEST, _FASTEST = 0.1, 100.0


class Pace(NamedTuple):
    """A pace; written `realtime`, `max`, `2x`."""

    speed: float = 1.0  # seconds of content a second; infinite: as fast as it goes

    @property
    def is_max(self) -> bool:
        """Whether nothing holds it: the picture is encoded from its first frame to its last."""
        return math.isinf(self.speed)

    def __str__(self) -> str:
        """Return it as it is written on the command line."""
        if self.is_max:
            return "max"
        return "realtime" if self.speed == 1 else f"{self.speed:g}x"


REALTIME = Pace()
MAX = Pace(math.inf)


def parse_pace(text: str) -> Pace:
    """Return what `realtime`, `max` or `2x` says. Raises: ValueError."""
    said = text.strip().lower()
    for pace in (REALTIME, MAX):
        if said == str(pace):
            return pace
    match = _TIMES.fullmatch(said)
    if match and _SLOWEST <= float(match[1]) <= _FASTEST:
        return Pace(float(match[1]))
    what = f"write realtime, max, or times real time from {_SLOWEST:g}x to {_FASTEST:g}x, like 2x"
    raise ValueError(f"{text[:40]!r} is not a pace: {what}")
