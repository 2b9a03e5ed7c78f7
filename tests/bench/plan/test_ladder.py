"""Ladders as they are written, checked, and as scenarios of renditions; and what scenarios are called."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.bench.cli import parser
from powerbench_agent.bench.exits import BadFlag
from powerbench_agent.bench.load.encoders.rates import RateControl
from powerbench_agent.bench.plan import order
from powerbench_agent.bench.plan.batch_file import BadBatch, parse_batch
from powerbench_agent.bench.plan.ladder import (
    MAX_RENDITIONS,
    Rung,
    described,
    enlarged,
    largest,
    parse_ladder,
    rendition_names,
    renditions_of,
    with_ladder,
)
from powerbench_agent.bench.plan.pace import MAX, Pace
from powerbench_agent.bench.plan.picture import Picture
from powerbench_agent.bench.plan.plan import make_plan, outputs_of, parts_of
from powerbench_agent.bench.plan.scenario import (
    AUDIO_KBPS,
    MAX_NAME,
    Rendition,
    Resolution,
    Scenario,
    format_bitrates,
    format_resolution,
    named,
    with_suffix,
    with_unique_names,
)

HD, SD = Resolution(1280, 720), Resolution(640, 360)
PLAIN = Scenario(name="x", type="single", duration=60, resolution=HD, fps=25, encoder="h264", preset="fast")
sizes = st.builds(Resolution, *[st.integers(8, 2000).map(lambda half: 2 * half)] * 2)
by_bitrate = st.tuples(sizes, st.integers(10, 50_000)).map(lambda pair: Rung(pair[0], float(pair[1])))
by_quality = st.tuples(sizes, st.integers(0, 51)).map(
    lambda pair: Rung(pair[0], rate=RateControl("crf", float(pair[1])))
)
rungs = st.lists(by_bitrate | by_quality, min_size=1, max_size=MAX_RENDITIONS)


def ladder(text: str, scenario: Scenario = PLAIN, kbps: float = 0.0) -> Scenario:
    """Return a scenario with this ladder."""
    made, wrong = renditions_of(scenario, parse_ladder(text), kbps)
    assert wrong == []
    return with_ladder(scenario, made)


def in_batch(**entry: Any) -> Scenario:
    (made,) = parse_batch(json.dumps([entry]).encode(), "b.json")
    return made


def on_command_line(*words: str) -> Scenario:
    (made,) = make_plan(parser("run").parse_args(["run", "single", *words])).scenarios
    return made


# -- as it is written ----------------------------------------------------------------------------------


def test_a_rung_says_what_it_spends_or_is_worth() -> None:
    """A bitrate, a quality, or neither, which leaves it to the scenario."""
    assert parse_ladder("1280x720:2.5M, 640x360:crf=30,320x180") == (
        Rung(HD, 2500),
        Rung(SD, rate=RateControl("crf", 30)),
        Rung(Resolution(320, 180)),
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "1280x720:", "720:1M", "1280x720:vbr", "1280x720:crf=x", "1280x720:1M:2M", "1281x720:1M"),
        ",".join(["64x64:1M"] * (MAX_RENDITIONS + 1)),
    ],
)
def test_what_is_no_ladder_is_refused(text: str) -> None:
    """The message shows how one is written."""
    with pytest.raises(ValueError, match="write it like 1920x1080:5M"):
        parse_ladder(text)


@given(rungs)
def test_a_ladder_survives_being_written(asked: list[Rung]) -> None:
    """What results say of a ladder is read as the same renditions, in their order."""
    made, wrong = renditions_of(PLAIN, asked, 0.0)
    assert wrong == []
    text = described(with_ladder(PLAIN, made))
    assert renditions_of(PLAIN, parse_ladder(text), 0.0) == (made, [])
    assert described(PLAIN) == ""


@given(st.lists(sizes, max_size=MAX_RENDITIONS))
def test_no_two_renditions_have_one_name(listed: list[Resolution]) -> None:
    """Each is called by its height, and the second of a height 720p-2."""
    found = rendition_names(listed)
    assert len(set(found)) == len(listed)
    for name, size in zip(found, listed, strict=True):
        assert name.partition("-")[0] == f"{size.height}p"
    assert rendition_names([HD, SD, HD, HD]) == ["720p", "360p", "720p-2", "720p-3"]


# -- what a rendition has of its scenario -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate", "kbps", "got"),
    [
        ("640x360:1M", "cbr", 0, ("cbr", 1000)),
        ("640x360:1M", "vbr", 0, ("vbr", 1000)),
        ("640x360", "cbr", 800, ("cbr", 800)),
        ("640x360:crf=30", "cbr", 800, ("crf=30", 0)),
        ("640x360:1M", "crf=30", 0, ("cbr", 1000)),
        ("640x360", "crf=30", 0, ("crf=30", 0)),
    ],
)
def test_both_ways_in_give_one_ladder(text: str, rate: str, kbps: int, got: tuple[str, float]) -> None:
    """A rendition's own word goes before the scenario's, on the command line as in a batch file."""
    bitrate = {"bitrate": f"{kbps}k"} if kbps else {}
    flags = [word for key, value in bitrate.items() for word in (f"--{key}", value)]
    by_flags = on_command_line("--rate", rate, "--ladder", text, *flags)
    by_file = in_batch(rate=rate, ladder=text, **bitrate)
    assert by_flags.ladder == by_file.ladder
    (one,) = by_flags.ladder
    assert (str(one.rate), one.video_kbps) == got
    size, _, spent = text.partition(":")
    key = "rate" if "=" in spent else "bitrate"
    outputs = [{"resolution": size, **({key: spent} if spent else {})}] * 2
    assert in_batch(rate=rate, outputs=outputs, **bitrate).ladder[0] == one


def test_another_encoder_takes_nothing_that_was_meant_for_the_scenarios() -> None:
    """Its preset, rate, pixel format and options are its own or its defaults; the scenario's gop stays."""
    shared = {"preset": "fast", "pix_fmt": "yuv444p", "encoder_options": "tune=film", "gop": 7, "rate": "vbr"}
    rung = {"resolution": "640x360", "bitrate": "1M"}
    first, second = in_batch(outputs=[rung, {**rung, "encoder": "libsvtav1", "preset": "9"}], **shared).ladder
    assert (first.preset, first.pix_fmt, first.encoder_options) == ("fast", "yuv444p", (("tune", "film"),))
    assert (second.encoder, second.preset, second.pix_fmt) == ("libsvtav1", "9", "yuv420p")
    assert (second.encoder_options, first.gop, second.gop) == ((), 7, 7)
    assert second.rate.kind != "crf"


def test_what_no_ladder_can_have_is_named_with_its_place() -> None:
    """A rendition without a bitrate, with one too many, one that copies, and one that an encoder refuses."""
    asked = [
        Rung(SD),
        Rung(SD, 900, RateControl("crf", 30)),
        Rung(SD, encoder="copy"),
        Rung(SD, 900, preset="turbo"),
    ]
    made, wrong = renditions_of(PLAIN, asked, 0.0)
    assert made == ()
    assert [what.partition(": ")[2][:20] for what in wrong] == [
        "bitrate: a rendition",
        "bitrate: does not go",
        "encoder: copy does n",
        "preset: 'turbo' is n",
    ]
    assert [what.partition(":")[0] for what in wrong] == [f"rendition {number}" for number in (1, 2, 3, 4)]
    with pytest.raises(BadFlag, match="--ladder: rendition 1: bitrate: a rendition needs one"):
        on_command_line("--ladder", "64x64")
    with pytest.raises(BadBatch, match="outputs: rendition 2: encoder: copy does not scale"):
        in_batch(
            outputs=[{"resolution": "64x64", "bitrate": "1M"}, {"resolution": "64x64", "encoder": "copy"}]
        )


def test_filters_upload_to_one_device() -> None:
    """FFmpeg's filters know one device: a second one would silently do the first one's work."""
    one = Rung(SD, 900, encoder="h264_vaapi", device="/dev/dri/renderD128")
    other = one._replace(device="/dev/dri/renderD129")
    assert renditions_of(PLAIN, [one, one._replace(device=""), Rung(SD, 900)], 0.0)[1] == []
    assert renditions_of(PLAIN, [one, other], 0.0)[1] == [
        "device: 360p and 360p-2 must be encoded by one device"
    ]


# -- as a scenario -------------------------------------------------------------------------------------


@given(rungs)
def test_a_rendition_is_a_scenario_of_its_own(asked: list[Rung]) -> None:
    """It has its own settings, the ladder's picture, and the rest of its scenario."""
    made, _ = renditions_of(PLAIN, asked, 0.0)
    whole = with_ladder(PLAIN, made)
    found = whole.renditions
    assert [one.rendition for one in found] == [rung.rendition for rung in made]
    assert len({one.name for one in found}) == len(asked)
    for one, rung in zip(found, made, strict=True):
        assert {key: getattr(one, key) for key in msgspec.structs.asdict(rung)} == msgspec.structs.asdict(
            rung
        )
        assert (one.drawn, one.ladder, one.fps, one.duration) == (largest(made), (), 25, 60)
        assert one.renditions == (one,)
    assert whole.resolution == largest(made)
    pixels = [one.resolution.width * one.resolution.height for one in found]
    assert whole.resolution.width * whole.resolution.height == max(pixels)


def test_a_scenario_without_a_ladder_is_its_rendition() -> None:
    """Nothing is scaled or renamed."""
    assert PLAIN.renditions == (PLAIN,)


def test_what_a_ladder_is_asked_for() -> None:
    """All bitrates and a tone in each; no tone at the greatest pace, nothing if one goes by quality."""
    pair = ladder("1280x720:2M,640x360:1M")
    assert (pair.asked_kbps, pair.audio_kbps) == (3000 + 2 * AUDIO_KBPS, 2 * AUDIO_KBPS)
    assert ladder("1280x720:2M,640x360:1M", msgspec.structs.replace(PLAIN, pace=MAX)).asked_kbps == 3000
    assert ladder("1280x720:2M,640x360:crf=30").asked_kbps is None
    several = msgspec.structs.replace(pair, type="multi", bitrates=(0.0,) * 3)
    assert several.asked_kbps == 3 * (3000 + 2 * AUDIO_KBPS)
    assert [one.name for one in outputs_of(several)][:3] == ["x-1 720p", "x-1 360p", "x-2 720p"]
    assert format_bitrates(pair) == "2000k+1000k"
    assert format_bitrates(ladder("1280x720:2M,640x360:crf=30")) == ""
    assert format_resolution(pair) == "1280x720+640x360"


@pytest.mark.parametrize(
    ("pace", "part", "has_tone"),
    [
        (Pace(), "", True),
        (Pace(2), "", True),
        (MAX, "", False),
        (Pace(), "decode", False),
        (MAX, "decode+scale", False),
    ],
)
def test_a_tone_is_a_streams(pace: Pace, part: Any, *, has_tone: bool) -> None:
    """A file that is encoded, and a part of the work, have none; a part is asked for no bitrate."""
    scenario = msgspec.structs.replace(PLAIN, pace=pace, part=part, video_kbps=1000)
    assert scenario.has_tone is has_tone
    assert scenario.audio_kbps == (AUDIO_KBPS if has_tone else 0)
    assert scenario.asked_kbps == (None if part else 1000 + scenario.audio_kbps)


def test_what_is_larger_than_its_clip_is_known() -> None:
    """In width or height; of the test picture nothing is."""
    picture = Picture(width=1280, height=720, rate=25, pix_fmt="yuv420p")
    pair = ladder("1920x720:2M,1280x720:1M,640x722:1M")
    assert enlarged(pair) == []
    assert enlarged(msgspec.structs.replace(pair, picture=picture)) == ["720p", "722p"]


# -- names ---------------------------------------------------------------------------------------------


def wide(count: int, kbps: float = 900) -> tuple[Rendition, ...]:
    made, wrong = renditions_of(PLAIN, [Rung(Resolution(64, 1000 + 2 * n), kbps) for n in range(count)], 0.0)
    assert not wrong
    return made


@given(
    st.integers(1, MAX_RENDITIONS),
    st.sampled_from(["", "a" * 300 + ".mp4", "\x1b[31m.mp4", "é" * 300]),
    st.sampled_from([Pace(), MAX, Pace(2.5)]),
    st.lists(st.integers(10, 99_999).map(float), max_size=200),
)
def test_a_made_name_can_be_printed_and_is_not_too_long(
    count: int, clip: str, pace: Pace, bitrates: list[float]
) -> None:
    """Of any ladder, clip, pace and number of streams."""
    plain = msgspec.structs.replace(
        PLAIN,
        name="",
        input=clip,
        pace=pace,
        **({"type": "multi", "bitrates": tuple(bitrates)} if bitrates else {}),
    )
    for scenario in (plain, with_ladder(plain, wide(count))):
        name = named(scenario).name
        assert name.isprintable()
        assert 0 < len(name) <= MAX_NAME
        assert named(msgspec.structs.replace(scenario, name="own")).name == "own"


def test_two_ladders_of_one_name_are_two_groups() -> None:
    """Names that are cut alike, or that do not tell bitrates: #2, and no repeats of each other."""
    unnamed = msgspec.structs.replace(PLAIN, name="")
    both = [named(with_ladder(unnamed, wide(12, kbps))) for kbps in (900, 901)]
    assert both[0].name == both[1].name
    found = order.in_blocks([*both, both[0]], 2, "interleaved", 1)
    assert len({scenario.name for scenario in found}) == 6
    assert all(len(scenario.name) <= MAX_NAME for scenario in found)
    first, second, again = (scenario.group for scenario in found[:3])
    assert (first, again) == (both[0].name, both[0].name)
    assert second == with_suffix(first, "#2")
    assert [scenario.group for scenario in found[3:]] == [first, second, again]


@given(st.lists(st.sampled_from(["x", "x#2", "y" * MAX_NAME, "y" * (MAX_NAME - 2) + "#2"]), max_size=30))
def test_names_are_unique_and_not_too_long(given_names: list[str]) -> None:
    """Whatever they are called, those that look like a numbered one included."""
    found = with_unique_names(msgspec.structs.replace(PLAIN, name=name) for name in given_names)
    assert len({scenario.name for scenario in found}) == len(given_names)
    assert all(len(scenario.name) <= MAX_NAME for scenario in found)
    assert [scenario.group for scenario in found] == given_names


def test_the_parts_of_a_stream_come_before_it() -> None:
    """Decoding, and decoding and scaling, with names that tell them apart, however long; else itself."""
    split = msgspec.structs.replace(PLAIN, split=True, name="n" * MAX_NAME)
    decode, scale, whole = parts_of(split)
    assert (decode.part, scale.part, whole.part) == ("decode", "decode+scale", "")
    assert decode.name.endswith("n:decode")
    assert scale.name.endswith("n:decode+scale")
    assert len(decode.name) == len(scale.name) == MAX_NAME
    assert whole == split
    assert parts_of(PLAIN) == [PLAIN]
    assert outputs_of(decode) == []
