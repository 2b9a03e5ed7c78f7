"""Seconds of media out of times that need not begin at 0: an offset is no media, and what is media counts."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.collectors.ffmpeg.media import MediaClock
from powerbench_agent.core.progress import Report


class Kind(NamedTuple):
    """What a run writes a second of media, None for what it does not say, and how fast."""

    frames: float | None
    size: float | None
    speed: float = 1.0
    begins: float = 0.5  # seconds of media in its first report


KINDS = {
    "video": Kind(30, 200_000),
    "slow report": Kind(30, 200_000, begins=10.0),
    "null": Kind(25, None),
    "fast": Kind(25, 200_000, speed=60.0, begins=30.0),
    "slow": Kind(25, 200_000, speed=0.1, begins=0.04),
    "surveillance": Kind(4, 20_000),
    "time lapse": Kind(1, 20_000, speed=100.0, begins=50.0),
    "audio": Kind(None, 16_000),
    "audio, fast": Kind(None, 16_000, speed=100.0, begins=50.0),
    "radio": Kind(None, None),
    "radio, fast": Kind(None, None, speed=100.0, begins=50.0),
    "cover art": Kind(0, 16_000, speed=30.0, begins=15.0),
}


def times(kind: Kind, count: int = 13, every: float = 0.5) -> list[float]:
    return [kind.begins + kind.speed * every * n for n in range(count)]


def said(kind: Kind, media: float, offset: float = 0.0, *, ended: bool = False) -> Report:
    frames = None if kind.frames is None else max(1, round(kind.frames * media))
    size = None if kind.size is None else round(kind.size * media)
    return Report(frames, size, media + offset, 0, 0, ended=ended)


def clocked(kind: Kind, media: list[float], offset: float = 0.0, every: float = 0.5) -> MediaClock:
    clock = MediaClock()
    for number, seconds in enumerate(media):
        report = said(kind, seconds, offset, ended=number == len(media) - 1)
        clock.take(report, kind.begins / kind.speed + every * number)
    return clock


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_without_an_offset_everything_counts(kind: Kind) -> None:
    """Of a run that begins at 0, at any pace and whatever it says, all that it wrote is media."""
    media = times(kind)
    clock = clocked(kind, media)
    assert clock.seconds == pytest.approx(media[-1])
    assert clock.moved == pytest.approx(media[-1] - media[0])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_body_sent_at_once_counts_in_full(kind: Kind) -> None:
    """The same if all reports arrive together, when time says nothing of the pace."""
    media = times(kind)
    assert clocked(kind, media, every=1e-4).seconds == pytest.approx(media[-1])


@pytest.mark.parametrize("offset", [60.0, 3600.0, 95_443.0, 1.76e9])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_offset_does_not_count(kind: Kind, offset: float) -> None:
    """Of a run that begins at another time, only what it wrote is media."""
    media = times(kind)
    clock = clocked(kind, media, offset)
    assert clock.seconds is not None
    assert clock.seconds == pytest.approx(media[-1], rel=0.1, abs=0.6)
    assert clock.moved == pytest.approx(media[-1] - media[0])


@pytest.mark.parametrize("kind", [KINDS["video"], KINDS["null"], KINDS["audio"], KINDS["radio"]])
def test_joined_in_the_middle(kind: Kind) -> None:
    """What a run wrote before the agent was there counts if its frames or bytes say the same."""
    media = [7200 + seconds for seconds in times(kind)]
    seconds = clocked(kind, media).seconds
    assert seconds == pytest.approx(media[-1] if kind != KINDS["radio"] else 6.5)


@pytest.mark.parametrize(
    "first", [Report(0, 0, 0.0, 0, 0, ended=False), Report(1, 0, 0.0, 0, 0, ended=False)]
)
def test_an_offset_that_comes_with_the_first_frame(first: Report) -> None:
    """A first report of 0 before anything is encoded does not make media of the step to the input's time."""
    clock = MediaClock()
    clock.take(first, 0.1)
    for number in range(1, 12):
        clock.take(said(KINDS["video"], 0.5 * number, 1.76e9), 0.1 + 0.5 * number)
    assert clock.seconds == pytest.approx(5.5, abs=0.6)


@pytest.mark.parametrize("jump", [3600.0, 1.76e9, -95_443.0])
@pytest.mark.parametrize("kind", [KINDS["video"], KINDS["null"], KINDS["audio"], KINDS["radio"]])
def test_a_jump_is_no_media(kind: Kind, jump: float) -> None:
    """A discontinuity in the middle of a run, either way, counts as what the pace makes of that step."""
    clock = MediaClock()
    for number, seconds in enumerate(times(kind, 41)):
        offset = jump if number >= 20 else 0.0
        clock.take(said(kind, seconds, max(0.0, -jump) + offset), 0.5 + 0.5 * number)
    assert clock.seconds == pytest.approx(20.5, abs=0.6)
    assert clock.moved == pytest.approx(20.0, abs=0.1)


def test_a_gap_in_the_reports_counts() -> None:
    """Reports that are missing for an hour leave out no media: frames and time have gone on as well."""
    for kind in (KINDS["video"], KINDS["audio"], KINDS["radio"]):
        clock = MediaClock()
        for seconds in (0.5, 1.0, 1.5, 3601.5):
            clock.take(said(kind, seconds), seconds)
        assert clock.seconds == 3601.5


def test_a_still_picture_counts() -> None:
    """A variable frame rate's long frame is media: time says so, if frames do not."""
    clock = MediaClock()
    for seconds, frames in ((0.5, 15), (1.0, 30), (31.0, 31), (61.0, 32)):
        clock.take(Report(frames, 1000 * frames, seconds, 0, 0, ended=False), seconds)
    assert clock.seconds == 61.0


@pytest.mark.parametrize(
    ("report", "seconds"),
    [
        (Report(150, 900_000, 6.0, 0, 0, ended=True), 6.0),
        (Report(None, 2_900_000, 180.0, 0, 0, ended=True), 180.0),
        (Report(None, None, 180.0, 0, 0, ended=True), 180.0),
        (Report(150, 900_000, 65.9, 0, 0, ended=True), None),
        (Report(None, 96_000, 1.76e9, 0, 0, ended=True), None),
        (Report(None, None, 1.76e9, 0, 0, ended=True), None),
        (Report(9, 9, None, 0, 0, ended=True), None),
    ],
)
def test_the_only_report_counts_if_it_is_credible(report: Report, seconds: float | None) -> None:
    """A run of one report counts what it says, unless that cannot be media from 0 on."""
    clock = MediaClock()
    clock.take(report, 0.5)
    assert clock.seconds == seconds


REPORTS = st.builds(
    Report,
    st.none() | st.integers(0, 10**6),
    st.none() | st.integers(0, 10**9),
    st.none() | st.floats(0, 1e13),
    st.none(),
    st.none(),
    ended=st.booleans(),
)


@given(st.lists(st.tuples(REPORTS, st.floats(0, 1e6)), max_size=20))
def test_what_was_counted_stays(reports: list[tuple[Report, float]]) -> None:
    """Whatever is said, nothing raises, and the seconds never decrease."""
    clock, counted = MediaClock(), 0.0
    for report, age in reports:
        clock.take(report, age)
        assert (clock.seconds or 0.0) >= counted
        counted = clock.seconds or 0.0
