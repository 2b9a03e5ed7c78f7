"""The default suite."""

from __future__ import annotations

from powerbench_agent.bench.load.encoders.spelling import EncoderAsked
from powerbench_agent.bench.plan.suite import Times, suite

TIMES = Times(duration=120, stabilization=10, cooldown=10, baseline=60)


def test_the_suite_is_the_guides() -> None:
    """Idle; four bitrates, three resolutions, two frame rates, each setting once; 2 and 4 streams."""
    scenarios = suite(TIMES, EncoderAsked("h264", "veryfast"))
    assert [scenario.name for scenario in scenarios] == [
        "baseline",
        "1000k_720p30_h264",
        "2500k_720p30_h264",
        "5000k_720p30_h264",
        "10000k_720p30_h264",
        "2500k_480p30_h264",
        "2500k_1080p30_h264",
        "5000k_720p60_h264",
        "2x_2500k_720p30_h264",
        "4x_2500k_720p30_h264",
    ]
    assert [len(scenario.streams) for scenario in scenarios[-2:]] == [2, 4]
    assert scenarios[0].duration == 60
