"""Reports and joules to figures: with streams whose figures are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.bench.load.encoder import Point
from powerbench_agent.bench.run.figures import (
    at,
    encode_figures,
    smallest_speed,
    warnings_of,
)
from powerbench_agent.core.progress import Report


def stream(
    *, seconds: float = 30.0, fps: float = 30.0, speed: float = 1.0, kbps: float = 2000.0
) -> list[Point]:
    """Return a stream that reports every half second from second 100 on."""
    points = []
    for step in range(int(seconds * 2) + 1):
        t = step / 2
        report = Report(int(t * fps), int(t * kbps * 125), t * speed, 0, 0, ended=False)
        points.append(Point(100.0 + t, report))
    return points


@given(st.floats(101, 110), st.floats(1, 15))
def test_a_steady_stream_has_its_figures_whatever_the_window(begin: float, length: float) -> None:
    """Edges between two reports are interpolated: no half second is lost or won."""
    encode = encode_figures(stream(), begin, begin + length)
    assert encode.frames == pytest.approx(length * 30, abs=1e-6)
    assert encode.kbps == pytest.approx(2000, rel=1e-6)
    assert encode.fps == pytest.approx(30, rel=1e-6)
    assert encode.min_speed == pytest.approx(1.0, rel=1e-6)


def test_a_freeze_of_a_few_seconds_shows_in_the_smallest_speed() -> None:
    """Eight frozen seconds in thirty leave 0.2 in the worst ten, where the mean since start says 0.73."""
    points = [p for p in stream() if not 110 < p.at < 118]
    frozen = [
        Point(
            p.at,
            p.report._replace(
                media=min(p.report.media or 0, 10.0) if p.at <= 118 else (p.report.media or 0) - 8
            ),
        )
        for p in points
    ]
    assert smallest_speed(frozen, 100.0, 130.0) == pytest.approx(0.2, abs=0.01)


def test_a_window_shorter_than_ten_seconds_is_judged_whole() -> None:
    """With less than 10 s there is one span: the window."""
    assert smallest_speed(stream(speed=0.9), 102.0, 106.0) == pytest.approx(0.9)


def test_what_ffmpeg_did_not_say_is_not_made_up() -> None:
    """Without sizes there is no bitrate, without reports nothing."""
    silent = [Point(p.at, p.report._replace(size=None)) for p in stream()]
    assert encode_figures(silent, 101, 111).kbps is None
    empty = encode_figures([], 101, 111)
    assert (empty.frames, empty.min_speed, empty.dropped) == (None, None, None)


def test_after_the_last_report_nothing_is_known_to_have_come() -> None:
    """A dead encoder's figures stop at its last report."""
    known = [(1.0, 10.0), (2.0, 20.0)]
    assert at(known, 0.5) is None
    assert at(known, 1.5) == 15.0
    assert at(known, 9.0) == 20.0


@pytest.mark.parametrize(
    ("kbps", "speed", "said"),
    [(2000, 1.0, []), (1700, 1.0, ["1700 kbps"]), (2300, 1.0, ["2300 kbps"]), (2000, 0.9, ["real time"])],
)
def test_a_stream_other_than_asked_is_warned_of(kbps: float, speed: float, said: list[str]) -> None:
    """More than a tenth off the asked bitrate, or below 0.98 of real time, is a warning."""
    found = warnings_of(encode_figures(stream(kbps=kbps, speed=speed), 101, 125), 2000.0)
    assert [words for words in said if not any(words in warning for warning in found)] == []
    assert len(found) == len(said)


def test_dropped_frames_are_warned_of() -> None:
    """A frame dropped within the window is a warning; one before it is not."""
    points = [Point(p.at, p.report._replace(dropped=3 if p.at >= 105 else 0)) for p in stream()]
    assert any("3 frames" in warning for warning in warnings_of(encode_figures(points, 101, 120), 2000.0))
    assert warnings_of(encode_figures(points, 106, 120), 2000.0) == []
