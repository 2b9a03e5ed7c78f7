"""The video encoders and presets that a scenario can ask for."""

from __future__ import annotations

# The name in flags and batch files, and FFmpeg's.
ENCODERS = {"h264": "libx264", "h265": "libx265"}
PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
)
