"""What of a window is kept for its scores: which frames, for how long, and in how much room."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.load.containers import StreamTarget
from powerbench_agent.bench.load.encoder import Point
from powerbench_agent.bench.load.outlets import Outlet
from powerbench_agent.bench.load.tap import MOST_KEPT, Tap
from powerbench_agent.bench.plan.ladder import Rung, renditions_of, with_ladder
from powerbench_agent.bench.plan.pace import MAX, Pace
from powerbench_agent.bench.plan.scenario import Resolution, Scenario
from powerbench_agent.bench.run import keeping
from powerbench_agent.core.progress import Report

PLAIN = Scenario(
    name="x",
    type="single",
    duration=60,
    stabilization=10,
    video_kbps=1000,
    resolution=Resolution(320, 180),
    fps=30,
    encoder="h264",
)
HERE = Path("/results")


def ladder(scenario: Scenario, *kbps: float) -> Scenario:
    made, wrong = renditions_of(scenario, [Rung(Resolution(320, 180), rate) for rate in kbps], 0.0)
    assert wrong == []
    return with_ladder(scenario, made)


def reports(fps: float, seconds: float = 60.0, since: float = 100.0) -> list[Point]:
    """Return a report each half second, with the frames until then."""
    steps = range(1, int(seconds * 2) + 1)
    return [Point(since + n / 2, Report(int(n * fps / 2), n * 1000, n / 2, 0, 0, ended=False)) for n in steps]


def stream(points: list[Point], *outlets: Outlet, scenario: Scenario = PLAIN) -> Any:
    return SimpleNamespace(scenario=scenario, encoder=SimpleNamespace(points=points), outlets=outlets)


def file(path: str = "/out.mkv", scenario: Scenario = PLAIN) -> Outlet:
    return Outlet(scenario, StreamTarget(f"file:{path}", "matroska"), None, None, "")


def nowhere() -> Outlet:
    return Outlet(PLAIN, StreamTarget("null", "nut"), None, None, "")


@given(st.floats(101, 130), st.floats(1, 29), st.floats(1, 120))
def test_a_windows_frames_are_those_encoded_within_it(began: float, length: float, fps: float) -> None:
    """From the first whole one on, to the last one before its end or of its first 20 s."""
    ended = began + length
    (kept,) = keeping.of_window([stream(reports(fps), file())], began, ended)
    assert kept.end is not None
    assert 0 <= kept.begin - (began - 100) * fps + 1 <= 2 + 1e-6  # reports count whole frames
    last = min(length, keeping.STREAM_SECONDS)
    assert kept.end - kept.begin == pytest.approx(last * fps, abs=3)
    assert (kept.path, kept.stream, kept.tap, kept.problem, kept.is_cut) == ("/out.mkv", "x", None, "", False)


def test_a_window_that_never_opened_has_no_frames() -> None:
    """Nor one of a stream that had reported nothing yet; an output that is not kept has nothing to score."""
    assert keeping.of_window([stream(reports(30), file())], 0.0, 0.0) == []
    assert keeping.of_window([stream([], file())], 110, 120) == []
    assert keeping.of_window([stream(reports(30), nowhere())], 110, 120) == []


def test_an_encode_is_kept_from_its_first_frame() -> None:
    """With how many there are, if it said so; each rendition apart."""
    first, second = file("/a.mkv"), file("/b.mkv")
    found = keeping.of_encode([stream(reports(30, 10), first, second)])
    assert [(one.path, one.begin, one.end, one.encoded) for one in found] == [
        ("/a.mkv", 0, None, 300),
        ("/b.mkv", 0, None, 300),
    ]
    (silent,) = keeping.of_encode([stream([], first)])
    assert silent.encoded is None


@pytest.mark.parametrize(("seconds", "is_over"), [(62.9, False), (63.5, True)])
def test_the_keeping_of_an_encode_ends_once_there_is_enough(seconds: float, *, is_over: bool) -> None:
    """Enough is a minute of content, and what a sink may be late by; a file that stays is left alone."""
    tap: Any = Tap()
    tap._keeps = True
    outlet = Outlet(PLAIN, StreamTarget("tcp://h:1", "nut"), tap, None, "")
    keeping.end_when_enough([stream(reports(30, seconds), outlet, file()), stream([], file())])
    assert tap.is_cut is is_over


# -- room ----------------------------------------------------------------------------------------------


def kilobytes(seconds: float, kbps: float) -> float:
    return seconds * kbps * 1.2 / 8


@pytest.mark.parametrize(
    ("scenario", "kbytes"),
    [
        (PLAIN, kilobytes(20 + 20 + 3, 1096)),
        (structs.replace(PLAIN, pace=Pace(2)), kilobytes(2 * 43, 1096)),
        (structs.replace(PLAIN, pace=MAX), kilobytes(60, 1000)),
        (structs.replace(PLAIN, pace=MAX, video_kbps=0.0), kilobytes(60, 20_000)),
        (structs.replace(PLAIN, type="multi", bitrates=(1000.0, 500.0)), kilobytes(43, 1692)),
        (ladder(PLAIN, 1000, 500), kilobytes(43, 1692)),
        (ladder(structs.replace(PLAIN, type="multi", bitrates=(0.0, 0.0)), 1000), kilobytes(43, 2192)),
        (structs.replace(PLAIN, part="decode"), 0),
        (structs.replace(PLAIN, type="baseline"), 0),
        (structs.replace(PLAIN, stabilization=7 * 86_400.0), MOST_KEPT / 1000),
    ],
)
def test_the_room_is_that_of_all_outputs(scenario: Scenario, kbytes: float) -> None:
    """From the first frame of the warm-up on, with the tone; never more than is kept of one."""
    assert keeping.room_for(scenario) == pytest.approx(kbytes * 1000, rel=1e-6)


def test_too_little_room_is_refused_before_anything_is_measured() -> None:
    """The largest scenario decides; the message has it, what it needs, what there is and what to do."""
    large = structs.replace(PLAIN, name="large", video_kbps=100_000)
    needed = keeping.room_for(large)
    keeping.check_room(HERE, [PLAIN, large], free=needed)
    keeping.check_room(HERE, [], free=0)
    with pytest.raises(NotHere) as refused:
        keeping.check_room(HERE, [PLAIN, large], free=needed - 2**20)
    assert "no room in /results to keep what large encodes" in str(refused.value)
    assert f"{needed / 2**20:,.0f} MiB are needed" in str(refused.value)
    assert "--output-dir, or --quality none" in str(refused.value)


def test_the_room_is_the_directorys(tmp_path: Path) -> None:
    """Unless it is said, it is asked of the file system."""
    keeping.check_room(tmp_path, [structs.replace(PLAIN, stabilization=0, video_kbps=10)])
