"""What an encoder reads its picture from, as options of FFmpeg: a clip in a loop, or a test picture. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from powerbench_agent.bench.plan.scenario import Scenario

REALTIME = ("-re",)


def picture_input(scenario: Scenario, pace: Sequence[str] = REALTIME) -> list[str]:
    """Return the options that read a scenario's picture; `pace`: those that hold a speed."""
    if scenario.input:
        decoder = ["-hwaccel", scenario.hwaccel] if scenario.hwaccel else []
        return ["-stream_loop", "-1", *decoder, *pace, "-i", f"file:{scenario.input}"]
    # testsrc2, as plain testsrc does not fill 2 Mbps and every rate above it would be the same stream.
    source = f"testsrc2=size={scenario.resolution}:rate={scenario.fps}"
    return [*pace, "-f", "lavfi", "-i", source]
