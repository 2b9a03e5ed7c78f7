"""What ffprobe and two releases of ffmpeg say of the same clips."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import CAPTURES

from powerbench_agent.bench.load.probe_text import (
    FrameFacts,
    StreamFacts,
    first_reason,
    parse_banner,
    parse_ffprobe,
    parse_frames,
)
from powerbench_agent.bench.plan.picture import Colour

if TYPE_CHECKING:
    from pathlib import Path

CLIPS = CAPTURES / "clips"
NTSC = Fraction(30000, 1001)
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
HDR = Colour("tv", "bt2020nc", "bt2020", "smpte2084")
STREAMS = {
    "hdr": StreamFacts(MP4, "hevc", 320, 180, NTSC, NTSC, "yuv420p10le", HDR, duration=1.001, frames=30),
    "inter": StreamFacts(
        MP4, "h264", 320, 180, 25, 25, "yuv420p", field_order="tff", duration=1.0, frames=25
    ),
    "p10": StreamFacts(MP4, "h264", 320, 180, NTSC, NTSC, "yuv420p10le", duration=1.001, frames=30),
    "rot": StreamFacts(MP4, "h264", 320, 180, NTSC, NTSC, "yuv420p", rotation=90, duration=1.001, frames=30),
    "vfr": StreamFacts(MP4, "h264", 320, 240, 30, Fraction(600, 29), "yuv420p", duration=1.933333, frames=40),
}
RELEASES = ("5.1", "9.0")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("clip", STREAMS)
def test_ffprobe_says_what_a_stream_is(clip: str) -> None:
    """Every fact of its JSON; the rates are exact."""
    assert parse_ffprobe(text(CLIPS / f"{clip}.ffprobe.json")) == STREAMS[clip]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("clip", STREAMS)
def test_the_banner_says_nearly_the_same(clip: str, release: str) -> None:
    """Without an ffprobe: hundredths of seconds and of the average rate, and no number of frames."""
    found = parse_banner(text(CLIPS / f"{clip}.{release}.txt"))
    exact = STREAMS[clip]
    assert found is not None
    assert found.duration == pytest.approx(exact.duration, abs=0.01)
    assert float(found.average or 0) == pytest.approx(float(exact.average or 0), abs=0.01)
    assert found._replace(duration=None, average=None) == exact._replace(
        duration=None, average=None, frames=None
    )


@pytest.mark.parametrize("release", RELEASES)
def test_frames_are_what_filters_get(release: str) -> None:
    """Upright, with their fields, the tags of their colour, and HDR10's metadata."""
    facts = {clip: parse_frames(text(CLIPS / f"{clip}.{release}.txt")) for clip in STREAMS}
    hdr = facts["hdr"]
    assert hdr is not None
    assert hdr == FrameFacts(hdr.number, 320, 180, "yuv420p10le", NTSC, HDR, "progressive", True, True)  # noqa: FBT003
    assert hdr.number >= 2
    rotated, interlaced = facts["rot"], facts["inter"]
    assert rotated is not None
    assert (rotated.width, rotated.height, rotated.content_light) == (180, 320, False)
    assert interlaced is not None
    assert interlaced.field_order == "tff"


@pytest.mark.parametrize("release", RELEASES)
def test_a_still_picture_is_one_frame(release: str) -> None:
    """A PNG has a single frame, and no colour space that a stream could have."""
    frames = parse_frames(text(CLIPS / f"still.{release}.txt"))
    assert frames is not None
    assert (frames.number, frames.pix_fmt, frames.colour) == (1, "rgb24", Colour("pc"))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("clip", ["audio", "trunc"])
def test_what_has_no_video_has_no_facts(clip: str, release: str) -> None:
    """Neither sound alone nor a file that is cut off before its index."""
    said = text(CLIPS / f"{clip}.{release}.txt")
    assert parse_banner(said) is None
    assert parse_frames(said) is None
    assert parse_ffprobe(text(CLIPS / f"{clip}.ffprobe.json")) is None


@pytest.mark.parametrize("release", RELEASES)
def test_the_reason_is_the_first_line(release: str) -> None:
    """The cause comes first, without the part of ffmpeg that says it; what follows repeats it."""
    assert first_reason(text(CLIPS / f"trunc.{release}.txt")) == "moov atom not found"
    assert first_reason("") == ""


def test_a_cover_picture_is_not_a_video() -> None:
    """A song with its cover is sound alone, for ffprobe and by ffmpeg's lines."""
    document = json.loads(text(CLIPS / "p10.ffprobe.json"))
    document["streams"][0]["disposition"]["attached_pic"] = 1
    assert parse_ffprobe(json.dumps(document)) is None
    banner = text(CLIPS / "p10.9.0.txt").replace("30k tbn (default)", "30k tbn (attached pic)")
    assert parse_banner(banner) is None


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt470bg"])
def test_one_name_in_the_banner_is_space_primaries_and_transfer(matrix: str) -> None:
    """Where all three are the same, ffmpeg prints it once."""
    banner = text(CLIPS / "p10.9.0.txt").replace("yuv420p10le(progressive)", f"yuv420p(pc, {matrix})")
    found = parse_banner(banner)
    assert found is not None
    assert found.colour == Colour("pc", matrix, matrix, matrix)


def test_video_that_ffprobe_does_not_understand_is_left_to_ffmpeg() -> None:
    """A codec that is newer than it has no size there."""
    stream = {"codec_type": "video", "width": 0, "height": 0, "disposition": {}}
    assert parse_ffprobe(json.dumps({"streams": [stream], "format": {}})) is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_no_answer_of_ffprobe_is_an_error_of_ours(data: st.DataObject) -> None:
    """Any value in any place of its JSON: facts, or none."""
    document: dict[str, Any] = json.loads(text(CLIPS / "rot.ffprobe.json"))
    stream = document["streams"][0]
    stream[data.draw(st.sampled_from(sorted(stream)))] = data.draw(_json)
    document[data.draw(st.sampled_from(["streams", "format", "else"]))] = data.draw(
        st.just(document["streams"]) | _json
    )
    found = parse_ffprobe(json.dumps(document))
    assert found is None or isinstance(found, StreamFacts)


@given(st.text(max_size=300), st.integers(0, 3000))
def test_no_words_of_ffmpeg_are_an_error_of_ours(words: str, place: int) -> None:
    """Whatever stands in its lines, or cuts them."""
    said = text(CLIPS / "hdr.5.1.txt")
    for broken in (said[:place], said[:place] + words + said[place:], words):
        parse_banner(broken)
        parse_frames(broken)
        first_reason(broken)
