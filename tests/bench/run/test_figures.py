"""Reports and joules to figures: with streams whose figures are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from powerbench_agent.bench.load.containers import StreamTarget
from powerbench_agent.bench.load.encoder import Point
from powerbench_agent.bench.load.outlets import Outlet
from powerbench_agent.bench.load.tap import Tap
from powerbench_agent.bench.plan.ladder import Rung, renditions_of, with_ladder
from powerbench_agent.bench.plan.pace import MAX, Pace
from powerbench_agent.bench.plan.scenario import Resolution, Scenario
from powerbench_agent.bench.run import standstill
from powerbench_agent.bench.run.figures import (
    at,
    combine,
    completed,
    encode_figures,
    input_faults,
    rendition_figures,
    smallest_speed,
    warnings_of,
    whole_figures,
)
from powerbench_agent.core.progress import Report
from powerbench_agent.core.results import Encode


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


# -- whole encodes, ladders, parts ------------------------------------------------------------------------

SMALL, SMALLER = Resolution(320, 180), Resolution(160, 90)
PLAIN = Scenario(
    name="x", type="single", duration=60, video_kbps=900, resolution=SMALL, fps=30, encoder="h264", pace=MAX
)


def ladder() -> Scenario:
    made, wrong = renditions_of(PLAIN, [Rung(SMALL, 900), Rung(SMALLER, 500)], 0.0)
    assert wrong == []
    return with_ladder(PLAIN, made)


def outlet(scenario: Scenario, *points: tuple[float, float]) -> Outlet:
    """Return an outlet whose counter has these points: (monotonic seconds, bytes)."""
    tap = Tap()
    tap.points.extend(points)
    return Outlet(scenario, StreamTarget("tcp://h:1", "nut"), tap, None, "nut at the sink")


def uncounted(scenario: Scenario) -> Outlet:
    return Outlet(scenario, StreamTarget("null", "nut"), None, None, "nut as sent")


def test_a_whole_encode_is_judged_by_its_content() -> None:
    """Ten seconds of content encoded in two: bits a second of content, frames and content a second."""
    last = Report(300, 2_500_000, 9.9, 3, 0, ended=True)
    encode = completed(whole_figures([Point(2.0, last)], 0.0, 2.0, PLAIN), PLAIN, [], 0.0, 2.0)
    assert (encode.frames, encode.media_seconds, encode.megabits, encode.dropped) == (300, 10.0, 20.0, 3)
    assert encode.kbps == 2000
    assert (encode.fps, encode.speed) == (150, 5)
    assert encode.megapixels == pytest.approx(300 * 320 * 180 / 1e6)
    assert warnings_of(encode, 2000.0, MAX) == ["3 frames were dropped: the machine or the sink was too slow"]


def test_an_encode_that_said_nothing_has_no_figures() -> None:
    """Nothing is made up of it."""
    encode = completed(whole_figures([], 0.0, 2.0, PLAIN), PLAIN, [], 0.0, 2.0)
    assert (encode.frames, encode.megabits, encode.kbps, encode.speed, encode.megapixels) == (None,) * 5


def test_a_ladder_has_what_its_renditions_wrote() -> None:
    """FFmpeg tells the bytes of the first one alone; pixels are those of all."""
    whole = ladder()
    first, second = whole.renditions
    outlets = [outlet(first, (1.0, 0.0), (3.0, 2e6)), outlet(second, (1.5, 0.0), (3.0, 1e6))]
    encode = Encode(seconds=2.0, frames=300, megabits=99.0, media_seconds=10.0, content_seconds=10.0)
    found = completed(encode, whole, outlets, 1.0, 3.0)
    assert found.megabits == pytest.approx(24)
    assert found.megapixels == pytest.approx(300 * (320 * 180 + 160 * 90) / 1e6)
    each = rendition_figures("x", encode, outlets, 1.0, 3.0)
    assert [(one.rendition, one.megabits, one.kbps) for one in each] == [
        ("180p", pytest.approx(16), pytest.approx(1600)),
        ("90p", pytest.approx(8), pytest.approx(800)),
    ]
    window = Encode(seconds=2.0, frames=60, media_seconds=2.0)
    assert [one.kbps for one in rendition_figures("x", window, outlets, 1.0, 3.0)] == pytest.approx(
        [8000, 4000]
    )


@given(st.floats(10, 20), st.floats(1, 30))
def test_a_windows_bytes_are_those_between_its_edges(begin: float, length: float) -> None:
    """Counts are interpolated at the edges; before the first byte there was none."""
    points = [(n / 10, n * 1000.0) for n in range(600)]
    whole = structs.replace(ladder(), pace=Pace())
    outlets = [outlet(one, *points) for one in whole.renditions]
    for one in rendition_figures("x", Encode(seconds=length), outlets, begin, begin + length):
        assert one.kbps == pytest.approx(80, rel=1e-6)
    late = [outlet(one, *points[300:]) for one in whole.renditions]
    (first, _) = rendition_figures("x", Encode(seconds=30), late, 10, 40)
    assert first.megabits == pytest.approx(40 * 10_000 * 8e-6)


def test_what_is_not_counted_is_not_known() -> None:
    """One rendition without a counter leaves the whole unknown; what never began is unknown, and not 0."""
    whole = ladder()
    first, second = whole.renditions
    outlets = [outlet(first, (1.0, 9.0)), uncounted(second)]
    encode = Encode(seconds=2.0, frames=3, megabits=5.0)
    assert completed(encode, whole, outlets, 0.0, 3.0).megabits is None
    assert [one.kbps for one in rendition_figures("x", encode, outlets, 0.0, 3.0)][1] is None
    assert completed(encode, whole, [outlet(first), outlet(second)], 0.0, 3.0).megabits is None
    assert rendition_figures("x", encode, [outlet(PLAIN)], 0.0, 3.0) == []


def test_a_lone_stream_has_what_ffmpeg_tells() -> None:
    """Only where it tells nothing, as through tee, the counter stands in."""
    encode = Encode(seconds=2.0, frames=3, megabits=5.0)
    counted = [outlet(PLAIN, (0.0, 0.0), (2.0, 1e6))]
    assert completed(encode, PLAIN, counted, 0.0, 2.0).megabits == 5.0
    silent = structs.replace(encode, megabits=None)
    assert completed(silent, PLAIN, counted, 0.0, 2.0).megabits == 8.0
    assert completed(silent, PLAIN, [], 0.0, 2.0).megabits is None


@pytest.mark.parametrize("whole", [PLAIN, ladder()], ids=["plain", "ladder"])
def test_a_part_of_the_work_writes_nothing_and_is_no_fault(whole: Scenario) -> None:
    """It has no pixels that were encoded, no bytes, and does not fail for that."""
    part = structs.replace(whole, part="decode")
    found = completed(Encode(seconds=2.0, frames=60, media_seconds=2.0), part, [], 0.0, 2.0)
    assert (found.megabits, found.megapixels, found.speed) == (None, None, 1.0)
    assert standstill.fault("x", found) == ""


def test_a_pace_is_held_or_warned_of() -> None:
    """Twice real time is too slow at 1.9; at the greatest pace nothing is held."""
    encode = Encode(seconds=30, min_speed=1.9)
    (said,) = warnings_of(encode, None, Pace(2))
    assert "fell below 2 times real time" in said
    assert warnings_of(encode, None, Pace(1.5)) == []
    assert warnings_of(structs.replace(encode, min_speed=0.1), None, MAX) == []


@pytest.mark.parametrize(
    ("encoded", "expected", "said", "begins"),
    [
        (90, 90, [], []),
        (88, 90, [], []),  # lengths are rounded
        (87, 90, [], ["87 of the 90 frames"]),
        (None, 90, [], []),
        (90, None, ["deprecated pixel format used"], []),
        (90, 90, ["[h264 @ 0x1] error while decoding MB 3 1"], ["the clip is damaged, says ffmpeg ([h264"]),
    ],
)
def test_a_clip_that_is_damaged_is_warned_of(
    encoded: float | None, expected: int | None, said: list[str], begins: list[str]
) -> None:
    """By what is missing at its end, and by FFmpeg's words; each says how to look at it."""
    found = input_faults(encoded, expected, said)
    assert len(found) == len(begins)
    for fault, begin in zip(found, begins, strict=True):
        assert fault.startswith(begin)
        assert "ffmpeg -v error -i CLIP" in fault


def test_bytes_of_which_some_were_lost_are_not_known() -> None:
    """A copy that ended early has no bitrate, instead of a small one."""
    tap = Tap()
    tap.points += [(0.0, 0.0), (10.0, 1e6)]
    rendition = cast("Any", SimpleNamespace(rendition="720p"))
    outlet = Outlet(rendition, StreamTarget("null", "nut"), tap, None, "nut, a copy")
    encode = Encode(frames=300, media_seconds=10, megabits=None, seconds=10.0)
    (whole,) = rendition_figures("cam", encode, [outlet], 0.0, 10.0)
    assert whole.kbps == pytest.approx(800)
    tap.lose("the copy of its output ended early")
    (lost,) = rendition_figures("cam", encode, [outlet], 0.0, 10.0)
    assert lost.kbps is None
    assert tap.problem == "the copy of its output ended early"


def test_bitrates_are_of_content_at_any_pace() -> None:
    """Twice real time writes twice as much a second; three files at once are the sum, as streams are."""
    points = [Point(t / 2, Report(t * 30, t * 125_000, t, 0, 0, ended=False)) for t in range(41)]
    held = msgspec.structs.replace(PLAIN, pace=Pace(2.0))
    encode = completed(encode_figures(points, 5.0, 15.0), held, [], 5.0, 15.0)
    assert encode.kbps == pytest.approx(1000)
    assert encode.speed == pytest.approx(2)
    assert warnings_of(encode, 1000.0, Pace(2.0)) == []
    last = Report(300, 1_250_000, 10.0, 0, 0, ended=True)
    quick = completed(whole_figures([Point(2.0, last)], 0.0, 8.0, PLAIN), PLAIN, [], 0.0, 8.0)
    slow = completed(whole_figures([Point(8.0, last)], 0.0, 8.0, PLAIN), PLAIN, [], 0.0, 8.0)
    assert (quick.speed, slow.speed) == (5.0, 1.25)  # each by its own end
    both = combine([quick, slow])
    assert both.kbps == pytest.approx(2000)
    assert both.media_seconds == 20
