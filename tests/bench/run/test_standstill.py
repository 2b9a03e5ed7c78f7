"""A stream that stands still is told from one that is slow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from powerbench_agent.bench.load.child import StreamFailed
from powerbench_agent.bench.load.encoder import Point
from powerbench_agent.bench.run.standstill import check_moving, fault, last_new_frame, patience
from powerbench_agent.core.progress import Report
from powerbench_agent.core.results import Encode


def reports(*frames: int | None) -> list[Point]:
    """Return a report every half second, with these frames."""
    return [
        Point(number / 2, Report(count, 1000, number / 2, 0, 0, ended=False))
        for number, count in enumerate(frames)
    ]


def encoder(points: list[Point]) -> Any:
    scenario = SimpleNamespace(input="srt://10.0.0.1:9000?passphrase=secret")
    said = {"name": "cam", "points": points, "scenario": scenario, "last_words": lambda: "corrupt packet"}
    return cast("Any", SimpleNamespace(**said))


@pytest.mark.parametrize(
    ("points", "latest"),
    [
        ([], None),
        (reports(None, None), None),  # audio alone
        (reports(7), 0.0),
        (reports(1, 2, 3), 1.0),
        (reports(1, 2, 3, 3, 3), 1.0),  # reports go on, frames do not
        (reports(1, 2, None, 3), 1.5),
    ],
)
def test_the_latest_new_frame_is_the_last_that_was_counted(points: list[Point], latest: float | None) -> None:
    """Reports that repeat a count are not progress, whether they go on or fall silent."""
    assert last_new_frame(points) == latest


@pytest.mark.parametrize("frozen", [(), (3, 3, 3, 3, 3, 3, 3, 3)])
def test_a_stream_without_a_new_frame_is_named(frozen: tuple[int, ...]) -> None:
    """A silent encoder (5.1) and one that repeats its report (9.0) are the same, with where to look."""
    still = encoder(reports(1, 2, 3, *frozen))
    check_moving(still, 5.9, 5.0)
    source = r"srt://10.0.0.1:9000\?passphrase=\*\*\*"
    said = rf"^cam stands still: .* \(5 s\); .* input {source} has .* corrupt packet$"
    with pytest.raises(StreamFailed, match=said):
        check_moving(still, 6.0, 5.0)


@pytest.mark.parametrize("fps", [1, 15, 30])
def test_a_slow_stream_does_not_stand_still(fps: int) -> None:
    """At half of real time even one frame a second is progress, at every moment of a short window."""
    counts = [int(number / 2 * fps / 2) for number in range(60)]
    for number in range(4, 60):
        check_moving(encoder(reports(*counts[: number + 1])), number / 2 + 0.49, patience(8.0))


def test_nothing_is_known_of_a_stream_without_frames() -> None:
    """A stream whose reports count no frames is not judged by them."""
    check_moving(encoder([]), 100.0, 5.0)
    check_moving(encoder(reports(None, None)), 100.0, 5.0)


@pytest.mark.parametrize(("phase", "limit"), [(1, 3.0), (8, 3.0), (16, 4.0), (20, 5.0), (600, 5.0)])
def test_a_short_phase_has_less_patience(phase: float, limit: float) -> None:
    """Five seconds, a quarter of a shorter phase, and never less than three."""
    assert patience(phase) == limit


@pytest.mark.parametrize(
    ("frames", "megabits", "said"),
    [
        (0.0, 5.0, "cam encoded no frame in the window: look at its input"),
        (10.0, 0.0, "cam wrote nothing in the window: look at its sink"),
        (10.0, 0.1, ""),
        (None, None, ""),  # ffmpeg did not say
    ],
)
def test_a_window_without_a_frame_or_a_byte_is_a_fault(
    frames: float | None, megabits: float | None, said: str
) -> None:
    """Zero is a fault, unknown is not."""
    assert fault("cam", Encode(10.0, frames, megabits)) == said
