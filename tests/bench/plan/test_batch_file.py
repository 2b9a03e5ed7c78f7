"""Batch files: what they may hold, and how what they may not hold is reported."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

from powerbench_agent.bench.load.encoders.rates import RateControl
from powerbench_agent.bench.plan.batch_file import KEYS, BadBatch, parse_batch
from powerbench_agent.bench.plan.pace import MAX
from powerbench_agent.bench.plan.scenario import Resolution, Scenario

if TYPE_CHECKING:
    from pathlib import Path

BATCHES = ROOT / "configs/batches"


def parse(document: Any) -> list[Scenario]:
    return parse_batch(json.dumps(document).encode(), "b.json")


def problems(document: Any) -> str:
    with pytest.raises(BadBatch) as bad:
        parse(document)
    return str(bad.value)


@pytest.mark.parametrize("file", sorted(BATCHES.glob("*.json")), ids=lambda path: path.stem)
def test_the_shipped_batches_can_be_run(file: Path) -> None:
    """Every shipped file parses, begins with an idle window, and has streams."""
    scenarios = parse_batch(file.read_bytes(), file.name)
    assert scenarios[0].type == "baseline"
    assert any(scenario.streams for scenario in scenarios)


def test_the_stress_matrix_is_the_guides() -> None:
    """1, 2 and 4 streams of 1000k, 2500k and 5000k, mixed bitrates, and a baseline."""
    scenarios = parse_batch((BATCHES / "stress-matrix.json").read_bytes(), "stress-matrix.json")
    same = {(len(s.streams), s.streams[0].video_kbps) for s in scenarios if s.name.partition("x_")[1]}
    assert same == {(count, kbps) for count in (1, 2, 4) for kbps in (1000, 2500, 5000)}
    assert any(len(set(scenario.bitrates)) > 1 for scenario in scenarios)


RUNG = {"resolution": "640x360", "bitrate": "1M"}


def test_an_entry_has_every_key_of_the_guide() -> None:
    """Every key is taken, written as on the command line; the one output is recorded as it is."""
    entry = {
        "type": "multi",
        "name": "mix",
        "bitrates": ["1000k", "2500", 5000],
        "count": 3,
        "resolution": "640x360",
        "fps": 25,
        "duration": "1m30s",
        "stabilization": 5,
        "cooldown": "2",
        "outputs": [{"url": "x"}],
        "encoder": "h265",
        "preset": "fast",
        "input": "in.mp4",
        "rate": "vbr",
        "pix_fmt": "yuv420p10le",
        "gop": 50,
        "encoder_options": "tune=zerolatency:x265-params=bframes=0\\:ref=1",
        "device": "0",
        "hwaccel": "cuda",
    }
    (made,) = parse([entry])
    assert made == Scenario(
        type="multi",
        name="mix",
        bitrates=(1000, 2500, 5000),
        resolution=Resolution(640, 360),
        fps=25,
        duration=90,
        stabilization=5,
        cooldown=2,
        outputs=({"url": "x"},),
        encoder="h265",
        preset="fast",
        input="in.mp4",
        rate=RateControl("vbr"),
        pix_fmt="yuv420p10le",
        gop=50,
        encoder_options=(("tune", "zerolatency"), ("x265-params", "bframes=0:ref=1")),
        device="0",
        hwaccel="cuda",
    )
    (ladder,) = parse(
        [{"input": "in.mp4", "pace": "max", "split": True, "ladder": "640x360:1M,320x180:crf=30"}]
    )
    assert (ladder.pace, ladder.to_end, ladder.split) == (MAX, True, True)
    assert [str(rung.rate) for rung in ladder.ladder] == ["cbr", "crf=30"]
    assert {*entry, "bitrate", "pace", "split", "ladder"} == set(KEYS)


def test_what_an_entry_leaves_to_its_clip_is_not_set() -> None:
    """Without its own or a default, size, rate and pixel format are the clip's, and so is the name."""
    clip, picture = parse([{"input": "a.mp4"}, {}])
    assert (clip.resolution, clip.fps, clip.pix_fmt, clip.name) == ((0, 0), 0, "", "")
    assert (picture.resolution, picture.fps, picture.pix_fmt) == ((1280, 720), 30, "yuv420p")
    (asked,) = parse({"defaults": {"fps": "29.97", "pix_fmt": "nv12"}, "scenarios": [{"input": "a.mp4"}]})
    assert (asked.resolution, asked.fps, asked.pix_fmt) == ((0, 0), Fraction(30000, 1001), "nv12")


def test_bitrates_may_be_one_text() -> None:
    """The command line's form of bitrates works too, and the type follows from it."""
    (made,) = parse({"scenarios": [{"bitrates": "1000k,2M"}]})
    assert (made.type, made.bitrates) == ("multi", (1000, 2000))


def test_an_entrys_own_bitrates_win_over_a_default_bitrate() -> None:
    """A default bitrate is for entries that say nothing of theirs, in either way."""
    entries = [{"type": "multi", "bitrates": ["1M", "2M"]}, {"type": "multi", "count": 2}]
    mixed, even = parse({"defaults": {"bitrate": "300k"}, "scenarios": entries})
    assert (mixed.bitrates, even.bitrates) == ((1000, 2000), (300, 300))


def test_defaults_are_for_all_entries() -> None:
    """The defaults fill in what an entry leaves out; the entry's own values win."""
    first, second = parse({"defaults": {"fps": 60, "duration": 9}, "scenarios": [{}, {"fps": 25}]})
    assert (first.fps, second.fps) == (60, 25)
    assert first.duration == second.duration == 9


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"scenario": []}, ["did you mean scenarios?", "must be a list"]),
        ([], ["1 to 10,000"]),
        (7, ["must be a list"]),
        ([7], ["scenario 1: must be an object"]),
        ([{"bitrte": "1M"}], ["scenario 1", "'bitrte'", "did you mean bitrate?"]),
        ([{"name": "a", "duration": -1}], ["scenario 1 (a)", "duration", "-1"]),
        ([{"duration": 0}], ["duration", "at least 1 s"]),
        ([{"type": "tripple"}], ["'tripple'", "baseline, single, multi"]),
        ([{"type": "multi", "count": 2, "bitrates": ["1M"]}], ["count: 2 streams, but 1 bitrates"]),
        ([{"type": "multi", "bitrate": "1M"}], ["count: a multi needs count"]),
        ([{"type": "single", "count": 3}], ["count: a single has one stream"]),
        ([{"type": "single", "bitrates": ["1M"]}], ["bitrates: a single has one bitrate"]),
        ([{"bitrates": ["1M"], "bitrate": "1M"}], ["not both"]),
        ([{"bitrates": []}], ["bitrates: must be a list"]),
        ([{"encoder": "libsvtav"}], ["encoder: 'libsvtav'", "did you mean libsvtav1?"]),
        ([{"preset": "turbo"}], ["preset: 'turbo'"]),
        ([{"encoder": "vvc", "rate": "crf=30"}], ["rate: libvvenc has no crf; it has vbr, qp"]),
        ([{"rate": "crf=30", "bitrate": "1M"}], ["bitrate: does not go with rate crf=30"]),
        (
            [{"rate": "crf=30", "type": "multi", "bitrates": ["1M"]}],
            ["bitrates: does not go with rate crf=30"],
        ),
        ([{"encoder_options": "crf=3"}], ["encoder_options: crf: use --rate"]),
        ([{"pix_fmt": "yuv411p"}], ["pix_fmt: h264 takes", "not 'yuv411p'", "did you mean yuv4"]),
        ([{"hwaccel": "cuda"}], ["hwaccel: decodes a clip"]),
        ([{"encoder": "copy"}], ["encoder: copy sends a clip on"]),
        ([{"gop": 0}], ["gop", "from 1 to 10000"]),
        ([{"fps": True}], ["fps: must be text or a number"]),
        ([{"resolution": [1, 2]}], ["resolution: must be text"]),
        ([{"outputs": "x"}], ["outputs: must be a list"]),
        (
            [{"name": "a", "outputs": [{}, {}]}],
            [
                "scenario 1 (a): outputs: rendition 1: resolution: every rendition needs one",
                "rendition 2: res",
            ],
        ),
        ([{"outputs": [1, 2, 3]}], ["scenario 1: outputs: rendition 3: must be an object, like"]),
        (
            [{"type": "multi", "outputs": [RUNG, RUNG]}],
            ["scenario 1: count: a multi of ladders needs one"],
        ),
        (
            {"defaults": {"outputs": [1, 2]}, "scenarios": [{}, {"outputs": [1]}]},
            ["scenario 1: outputs: rendition 1: must be an object"],
        ),
        ([{"outputs": [RUNG, {"resolution": "640x360"}]}], ["rendition 2: bitrate: a rendition needs one"]),
        ([{"outputs": [RUNG, {**RUNG, "url": "x"}]}], ["rendition 2: 'url' is not a key here"]),
        ([{"outputs": [RUNG, {**RUNG, "encoder": "h266x"}]}], ["rendition 2: encoder: 'h266x' is not"]),
        ([{"outputs": [RUNG, {**RUNG, "rate": "crf=20"}]}], ["rendition 2: bitrate: does not go with rate"]),
        ([{"outputs": [RUNG, {"resolution": "64x64", "rate": "crf=99"}]}], ["rendition 2: rate: crf=99"]),
        ([{"outputs": [RUNG] * 13}], ["outputs: must be at most 12 renditions"]),
        ([{"bitrate": "2M", "outputs": [RUNG]}], ["outputs: bitrate is 1M, and 2M in the scenario"]),
        ([{"resolution": "64x64", "outputs": [RUNG, RUNG]}], ["resolution: does not go with a ladder"]),
        ([{"count": 2, "type": "single", "outputs": [RUNG, RUNG]}], ["count: a single has one ladder"]),
        ([{"ladder": "640x360"}], ["ladder: rendition 1: bitrate: a rendition needs one"]),
        ([{"ladder": "640x360:x"}], ["ladder: 'x' is not a bitrate", "write it like 1920x1080:5M"]),
        ([{"ladder": "640x360:1M", "outputs": [RUNG]}], ["ladder: give a ladder or outputs, not both"]),
        ([{"encoder": "copy", "input": "a.mp4", "ladder": "640x360:1M"}], ["encoder: copy does not scale"]),
        ([{"pace": "fast"}], ["pace: 'fast' is not a pace: write realtime, max"]),
        ([{"split": 1}], ["split: must be true or false"]),
        ([{"split": True}], ["split: is about decoding a clip"]),
        ([{"input": 3}], ["input"]),
        ({"defaults": [], "scenarios": [{}]}, ["defaults: must be an object"]),
        ({"defaults": {"fpz": 1}, "scenarios": [{}]}, ["defaults: 'fpz'", "fps"]),
    ],
)
def test_what_is_wrong_is_named_with_its_place(document: Any, words: list[str]) -> None:
    """A message has the file, the scenario and the key, and what to write."""
    text = problems(document)
    assert text.startswith("b.json: ")
    assert all(word in text for word in words), text


def test_a_name_with_escapes_reaches_no_terminal() -> None:
    """What would colour or clear a terminal is a question mark in the message."""
    text = problems([{"name": "\x1b[31mred\x07", "fps": 0}, {"type": "\x1b[2J", "input\x1b": 1}])
    assert "scenario 1 (?[31mred?): " in text
    assert all(c == "\n" or c.isprintable() for c in text)


def test_every_problem_is_named_at_once() -> None:
    """Two bad entries are two lines."""
    assert len(problems([{"fps": 0}, {"bitrate": "x", "duration": "y"}]).splitlines()) == 3


def test_broken_json_has_its_line_and_column() -> None:
    """For text that is not JSON the place is named."""
    with pytest.raises(BadBatch, match=r"b\.json: line 2, column 3"):
        parse_batch(b"[\n  }", "b.json")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), _json, max_size=6), max_size=3) | _json)
def test_any_json_is_scenarios_or_problems(document: Any) -> None:
    """No document, however odd, is an error of ours."""
    try:
        found = parse(document)
    except BadBatch as bad:
        found = []
        said = str(bad)
    else:
        said = "b.json: nothing"
    assert all(isinstance(scenario, Scenario) for scenario in found)
    assert all(line.startswith("b.json: ") for line in said.splitlines())
