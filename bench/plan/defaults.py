"""The defaults of a scenario, shared by flags and batch files, written as on the command line.

RESOLUTION, FPS and PIX_FMT are the test picture's; a clip keeps its own.
"""

from __future__ import annotations

BITRATE = "2500k"
RESOLUTION = "1280x720"
FPS = "30"
PIX_FMT = "yuv420p"
ENCODER = "h264"
PRESET = "veryfast"

DURATION = "120"
STABILIZATION = "10"
COOLDOWN = "10"

BASELINE_DURATION = "60"
BASELINE_COOLDOWN = "0"  # an idle machine has not warmed up
