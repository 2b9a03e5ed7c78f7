"""What an encoder reads its picture from, as options of FFmpeg: a clip, a URL, or a test picture. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from powerbench_agent.bench.load.live_input import is_live, paces_itself, reading
from powerbench_agent.bench.plan import frame_rate
from powerbench_agent.bench.plan.pace import REALTIME

if TYPE_CHECKING:
    from powerbench_agent.bench.plan.pace import Pace
    from powerbench_agent.bench.plan.scenario import Scenario

_WITH_CATCHUP = (8, 0)
TONE = ("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000")


def picture_input(scenario: Scenario, release: tuple[int, int]) -> list[str]:
    """Return the options that read a scenario's picture at its pace.

    A stream's clip is repeated for ever; at the greatest pace it is read as often as its length asks for.
    `release`: of the ffmpeg.
    """
    pace = pace_options(scenario.pace, release)
    if scenario.input:
        loop = [] if scenario.to_end or is_live(scenario.input) else ["-stream_loop", "-1"]
        decoder = ["-hwaccel", scenario.hwaccel] if scenario.hwaccel else []
        held = [] if paces_itself(scenario.input) else pace
        return [*loop, *decoder, *held, *reading(scenario.input)]
    # testsrc2, as plain testsrc does not fill 2 Mbps and every rate above it would be the same stream.
    size = scenario.drawn if any(scenario.drawn) else scenario.resolution
    return [*pace, "-f", "lavfi", "-i", f"testsrc2=size={size}:rate={scenario.fps}"]


def pace_options(pace: Pace, release: tuple[int, int]) -> list[str]:
    """Return the options that hold an input to a pace; none at the greatest. `release`: of the ffmpeg."""
    if pace.is_max:
        return []
    held = ["-re"] if pace == REALTIME else ["-readrate", f"{pace.speed:g}"]
    # Newer ones make up for a slow start at 1.05 times their pace: for half a second lost, all of a window of
    # 10 s had 5 % too many frames. Older ones are as fast as they can, until they are in time again.
    catch_up = ["-readrate_catchup", f"{2 * pace.speed:g}"] if release >= _WITH_CATCHUP else []
    return [*held, *catch_up]


def length_options(scenario: Scenario) -> list[str]:
    """Return the options that end an output by itself."""
    if scenario.to_end:
        return []
    if scenario.pace.is_max:
        return ["-frames:v", str(frame_rate.frames_in(scenario.fps, scenario.duration))]
    # Windows are wall clock and a signal ends them; this ends an encoder that has been left behind.
    planned = (scenario.stabilization + scenario.duration) * scenario.pace.speed
    return ["-t", f"{planned * 2 + 120:.0f}"]
