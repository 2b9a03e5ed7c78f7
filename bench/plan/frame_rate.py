"""Frame rates, exactly: 30000/1001 is a rate of its own, and 29.97 is how people write it. Pure.

A rate is a whole number or a Fraction; its `str` is what FFmpeg takes, `30` or `30000/1001`.
"""

from __future__ import annotations

import re
from fractions import Fraction

FrameRate = int | Fraction  # frames a second

MINIMUM, MAXIMUM = 1, 480  # that a stream can have
_DIGITS = 3  # behind the point, where people read a rate
_STORED_DIGITS = 5  # likewise, in results files
_NTSC = Fraction(1000, 1001)
_WRITTEN = re.compile(r"([0-9]{1,9})(?:/([0-9]{1,9})|\.([0-9]{1,9}))?")


def parse_fps(text: str) -> FrameRate:
    """Return frames a second from `30`, `12.5`, `29.97` or `30000/1001`. Raises: ValueError."""
    rate = parse_rational(text)
    if rate is None or not MINIMUM <= rate <= MAXIMUM:
        what = f"write frames a second from {MINIMUM} to {MAXIMUM}, like 30, 29.97 or 30000/1001"
        raise ValueError(f"{text!r} is not a frame rate; {what}")
    return rate


def parse_rational(text: str) -> FrameRate | None:
    """Return a rate of any size as people and FFmpeg write it; None for what is not one, and for 0/0.

    A decimal that rounds a whole rate times 1000/1001 is that rate: 23.976 and 23.98 are 24000/1001.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        return None
    whole, denominator, decimals = match.groups()
    if denominator is not None:
        return simplest(Fraction(int(whole), int(denominator))) if int(denominator) else None
    exact = Fraction(f"{whole}.{decimals or 0}")
    ntsc = round(exact / _NTSC) * _NTSC
    digits = len(decimals or "")
    is_ntsc = digits >= 2 and ntsc.denominator > 1 and round(ntsc, digits) == exact
    return simplest(ntsc if is_ntsc else exact)


def simplest(rate: Fraction) -> FrameRate:
    """Return a whole rate as a whole number."""
    return rate.numerator if rate.denominator == 1 else rate


def number(rate: FrameRate) -> float:
    """Return the number that stands for a rate in results files: 30, 29.97003."""
    return rate if isinstance(rate, int) else round(float(rate), _STORED_DIGITS)


def short(rate: FrameRate) -> str:
    """Return a rate as names have it: `30`, `29.97`, `12.5`."""
    return str(rate) if isinstance(rate, int) else f"{float(rate):.{_DIGITS}f}".rstrip("0").rstrip(".")


def full(rate: FrameRate) -> str:
    """Return a rate for people, with what a rounded one stands for: `30`, `12.5`, `29.97 (30000/1001)`."""
    rounded = short(rate)
    return rounded if Fraction(rounded) == rate else f"{rounded} ({rate})"


def frames_in(rate: FrameRate, seconds: float) -> int:
    """Return how many frames a stream has in so many seconds, rounded."""
    return round(rate * Fraction(seconds))
