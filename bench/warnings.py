"""What makes a window doubtful, and from which figure on."""

from __future__ import annotations

import re

SPEED_SPAN = 10.0  # seconds; over less, a healthy stream on a busy machine dips below any useful bound
MIN_SPEED = 0.98  # of the pace that was asked for, over that span
MAX_BITRATE_MISS = 0.10  # of the requested bitrate


def least_speed(asked: float | None) -> float | None:
    """Return the speed below which a stream does not keep its pace; None if it has none to keep.

    `asked`: content seconds a second; None for as fast as it can.
    """
    return None if asked is None else MIN_SPEED * asked


def kind_of_warning(text: str) -> str:
    """Return what warnings that differ in their figures alone have in common."""
    return re.sub(r"\d+(\.\d+)?", "#", text)
