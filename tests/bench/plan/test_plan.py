"""`powerbench run`: flags to a plan."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from msgspec import structs

from powerbench_agent.bench.cli import parser
from powerbench_agent.bench.exits import UNAVAILABLE, USAGE, BadFile, BadFlag, NotHere, code_of
from powerbench_agent.bench.load.probe import NotAClip
from powerbench_agent.bench.load.redact import redact_url
from powerbench_agent.bench.plan.clip import Clip
from powerbench_agent.bench.plan.picture import Picture
from powerbench_agent.bench.plan.plan import make_plan
from powerbench_agent.bench.run.outcome import Outcome, describe
from powerbench_agent.bench.run.resume import check_settings

if TYPE_CHECKING:
    from powerbench_agent.bench.plan.plan import Plan
    from powerbench_agent.bench.plan.scenario import Scenario


class Looks:
    """What looks at clips, in place of an ffmpeg: every clip has one picture, unless its name is known."""

    def __init__(self, **pictures: Picture) -> None:
        self.pictures = pictures
        self.lost_by = ""  # the encoder that loses the clip's HDR metadata

    def picture(self, path: str) -> Picture:
        stem = Path(path).stem
        if stem == "song":
            raise NotAClip("has no video: give a clip that has a picture")
        return self.pictures.get(stem, PICTURE)

    def taken_by(self, encoder: str) -> list[str]:
        return ["yuv420p", "yuv420p10le"] if encoder == "h265" else ["yuv420p", "yuv444p", "yuv420p10le"]

    def lost(self, scenario: Scenario, sink: str) -> tuple[str, ...]:
        assert sink == "embedded"
        return ("mastering display",) if scenario.encoder == self.lost_by else ()


PICTURE = Picture(width=320, height=180, rate=Fraction(30000, 1001), pix_fmt="yuv420p")


def plan(*words: str, looks: Looks | None = None) -> Plan:
    return make_plan(parser("run").parse_args(["run", *words]), looks or Looks())


def clip_at(path: Path, content: bytes = b"frames") -> str:
    path.write_bytes(content)
    return str(path)


def batch(path: Path, *names: str) -> str:
    entries = [{"type": "baseline"}, *({"name": name} for name in names)]
    path.write_text(json.dumps(entries))
    return str(path)


@pytest.mark.parametrize("order", ["sequential", "interleaved", "random"])
def test_a_shard_has_its_tests_with_all_their_repeats(tmp_path: Path, order: str) -> None:
    """A third of the scenarios, each three times and with three idle windows; together it is all of them."""
    file = batch(tmp_path / "b.json", *"abcdef")
    found = Counter[str]()
    for part in (1, 2, 3):
        words = ("--repeat", "3", "--order", order, "batch", "--file", file, "--shard", f"{part}/3")
        groups = Counter(scenario.group for scenario in plan(*words).scenarios)
        assert groups.pop("baseline") == 3
        assert list(groups.values()) == [3, 3]
        found += groups
    assert found == dict.fromkeys("abcdef", 3)


def test_a_shard_without_a_test_is_refused(tmp_path: Path) -> None:
    """With more parts than tests, a part that would measure only the idle machine is refused."""
    file = batch(tmp_path / "b.json", "a", "b")
    with pytest.raises(BadFlag, match="shard 5 of 5 has nothing: the batch has 2 tests"):
        plan("batch", "--file", file, "--shard", "5/5")
    assert [s.name for s in plan("batch", "--file", file, "--shard", "2/5").scenarios] == ["baseline", "b"]


def test_a_clip_is_known_before_anything_is_measured(tmp_path: Path) -> None:
    """--input and a batch's inputs have fingerprints in the plan, and default names contain the clip's."""
    clip = tmp_path / "a clip.mp4"
    clip.write_bytes(b"frames")
    (single,) = plan("single", "--input", str(clip)).scenarios
    assert single.clip == Clip(6, hashlib.sha256(b"frames").hexdigest(), 6)
    assert single.name == "2500k_180p29.97_h264_a clip"
    entries = [{"input": str(clip)}, {"count": 2, "input": str(clip)}, {}]
    (tmp_path / "b.json").write_text(json.dumps(entries))
    streamed, several, picture = plan("batch", "--file", str(tmp_path / "b.json")).scenarios
    assert streamed.clip == several.clip == several.streams[1].clip == single.clip
    assert several.name == "2x_2500k_180p29.97_h264_a clip"
    assert (picture.clip, picture.name) == (None, "2500k_720p30_h264")
    described = describe(Outcome(single, "ok"))
    assert described["input_sha256"] == hashlib.sha256(b"frames").hexdigest()
    assert (described["input_size"], described["input_hashed_bytes"]) == (6, 6)


def test_a_clip_keeps_what_nobody_asked_to_change(tmp_path: Path) -> None:
    """Size, rate and pixel format are its own, each but for the flag that says otherwise."""
    clip = clip_at(tmp_path / "c.mkv")

    def made(*words: str) -> tuple[str, str, str, str]:
        (scenario,) = plan("single", "--input", clip, *words).scenarios
        return scenario.name, str(scenario.resolution), str(scenario.fps), scenario.pix_fmt

    assert made() == ("2500k_180p29.97_h264_c", "320x180", "30000/1001", "yuv420p")
    assert made("--fps", "25") == ("2500k_180p25_h264_c", "320x180", "25", "yuv420p")
    assert made("--resolution", "640x480") == ("2500k_480p29.97_h264_c", "640x480", "30000/1001", "yuv420p")
    ten_bits = "2500k_180p29.97_h264_c_yuv420p10le", "320x180", "30000/1001", "yuv420p10le"
    assert made("--pix-fmt", "yuv420p10le") == ten_bits


def test_a_batchs_clips_keep_theirs_and_say_what_is_changed(tmp_path: Path) -> None:
    """Two clips of one batch; a default of the file is asked for, and the results have what was encoded."""
    odd = Picture(width=321, height=241, rate=25, pix_fmt="yuv444p12le", field_order="tff")
    looks = Looks(odd=odd)
    looks.lost_by = "h265"
    names = [clip_at(tmp_path / "odd.mkv"), clip_at(tmp_path / "other.mkv")]
    entries = [*({"input": name} for name in names), {"input": names[0], "encoder": "h265", "fps": "29.97"}]
    (tmp_path / "b.json").write_text(json.dumps({"scenarios": entries}))
    scenarios = plan("batch", "--file", str(tmp_path / "b.json"), looks=looks).scenarios
    first, second, third = (describe(Outcome(scenario, "ok")) for scenario in scenarios)
    assert first["name"] == "2500k_241p25_h264_odd_yuv444p"
    assert (first["resolution"], first["fps"], first["pix_fmt"]) == ("321x241", 25, "yuv444p")
    assert "frame_rate" not in first
    assert first["changes"] == ["pixel format yuv444p12le → yuv444p"]
    assert (second["fps"], second["frame_rate"], second["changes"]) == (29.97003, "30000/1001", [])
    assert second["outputs"][0]["frame_rate"] == "30000/1001"
    assert second["input_picture"]["rate"] == "30000/1001"
    assert (third["resolution"], third["pix_fmt"]) == ("320x240", "yuv420p10le")
    assert third["changes"] == [
        "size 321x241 → 320x240 (cropped: yuv420p10le needs even sides)",
        "frame rate 25 → 29.97 (30000/1001)",
        "pixel format yuv444p12le → yuv420p10le",
        "interlaced → whole frames: h265 has no fields",
        "HDR metadata (mastering display) → none: this ffmpeg does not pass it on",
    ]


def test_a_run_is_gone_on_with_by_its_fraction(tmp_path: Path) -> None:
    """--resume compares the number that the file has; another rate, size or pixel format is refused."""
    clip = clip_at(tmp_path / "c.mkv")

    def described(*words: str) -> tuple[Scenario, dict[str, object]]:
        (scenario,) = plan("single", "--name", "x", "--input", clip, *words).scenarios
        entry: dict[str, object] = json.loads(msgspec.json.encode(describe(Outcome(scenario, "ok"))))
        return scenario, entry

    scenario, entry = described()
    check_settings([scenario], {"x": entry}, tmp_path)
    for words in (("--fps", "30"), ("--resolution", "640x360"), ("--pix-fmt", "yuv444p")):
        with pytest.raises(BadFile, match="has other settings"):
            check_settings([described(*words)[0]], {"x": entry}, tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pix-fmt", "yuv402p"), "--pix-fmt: h264 takes .*, and not 'yuv402p'; did you mean yuv42"),
        (
            ("--encoder", "av1", "--pix-fmt", "yuv422p"),
            "libsvtav1 takes yuv420p, yuv420p10le, and not 'yuv422p'",
        ),
    ],
)
def test_a_pixel_format_is_one_that_the_encoder_has(words: tuple[str, ...], said: str) -> None:
    """Checked by name before anything is measured, with the nearest, and with those that could be used."""
    with pytest.raises(BadFlag, match=said):
        plan("single", *words)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("song.m4a", b"x", "has no video"),
        ("empty.mp4", b"", "is empty"),
        ("locked.mp4", b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x0cmoovencv", "is encrypted"),
        ("cut.mp4", b"\0\0\0\x10ftypisom", "is cut off: it has 12 of its 16 bytes"),
        ("tiny.mkv", b"x", "its size 8x8 is not from 16 to 16384 pixels; give another resolution"),
        ("slow.mkv", b"x", "its frame rate 1/2 is not from 1 to 480 a second; give another fps"),
    ],
)
def test_a_clip_that_cannot_be_streamed_is_a_bad_file(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    """One line with its name, by flag and in a batch."""
    looks = Looks(
        tiny=Picture(width=8, height=8, rate=25, pix_fmt="yuv420p"),
        slow=Picture(width=80, height=80, rate=Fraction(1, 2), pix_fmt="yuv420p"),
    )
    clip = clip_at(tmp_path / name, content)
    with pytest.raises(BadFile, match=said) as refused:
        plan("single", "--input", clip, looks=looks)
    assert str(refused.value).startswith(f"--input {clip!r}: ")
    (tmp_path / "b.json").write_text(json.dumps([{"input": clip}]))
    with pytest.raises(BadFile, match=said) as refused:
        plan("batch", "--file", str(tmp_path / "b.json"), looks=looks)
    assert str(refused.value).startswith(f"{tmp_path}/b.json: input: {clip!r}: ")


def test_a_clip_that_is_not_there_is_a_bad_file(tmp_path: Path) -> None:
    """The name is quoted as it cannot harm a terminal, by flag and in a batch."""
    with pytest.raises(BadFile, match="is not a file"):
        plan("single", "--input", str(tmp_path))
    (tmp_path / "b.json").write_text(json.dumps([{"input": "/no\x1b[2J"}]))
    with pytest.raises(BadFile, match=r"input: '/no\\x1b\[2J': is not a file"):
        plan("batch", "--file", str(tmp_path / "b.json"))


def test_a_live_source_is_an_input_like_a_clip(tmp_path: Path) -> None:
    """Its size, rate and format are kept; its name is the host's, and its key is in no record."""
    url = "rtmp://media.example/live/s3cr3t"
    looks = Looks()
    looks.lost_by = "h264"  # not asked: a trial encode would be one more client of the source
    (single,) = plan("single", "--input", url, looks=looks).scenarios
    assert (single.input, single.clip, single.picture, single.lost) == (url, None, PICTURE, ())
    assert single.name == "2500k_180p29.97_h264_media.example"
    (tmp_path / "b.json").write_text(json.dumps([{"input": url, "encoder": "copy"}]))
    (copied,) = plan("batch", "--file", str(tmp_path / "b.json")).scenarios
    assert (copied.name, copied.input) == ("copy_180p29.97_media.example", url)
    described = describe(Outcome(single, "ok"))
    assert (described["input"], described["input_kind"]) == ("rtmp://media.example/live/***", "live")
    assert not {"input_sha256", "input_size"} & described.keys()
    assert "s3cr3t" not in json.dumps(described)
    check_settings([single], {single.name: described}, tmp_path)
    elsewhere = plan("single", "--name", single.name, "--input", "rtmp://other/live/s3cr3t").scenarios
    with pytest.raises(BadFile, match=r"input 'rtmp://media\.example/live/"):
        check_settings(elsewhere, {single.name: described}, tmp_path)


def test_a_live_source_that_cannot_be_streamed_is_not_here(tmp_path: Path) -> None:
    """No video, or a recording that ends before the window does: exit 69, in one line without the key."""
    looks = Looks(short=structs.replace(PICTURE, duration=12.0))
    short = "http://h/a/short.mp4"
    cases = {
        "rtmp://h/live/song": "has no video",
        short: "is 12 s long, and .* take at least 130 s; a URL is not read in",
    }
    for url, said in cases.items():
        (tmp_path / "b.json").write_text(json.dumps([{}, {"input": url}]))
        for words in (("single", "--input", url), ("batch", "--file", str(tmp_path / "b.json"))):
            with pytest.raises(NotHere, match=f"^input: {re.escape(redact_url(url))}: {said}") as refused:
                plan(*words, looks=looks)
            assert code_of(refused.value) == UNAVAILABLE
    assert plan("single", "--input", short, "--duration", "5", "--stabilization", "5", looks=looks)


def test_a_url_that_cannot_be_read_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 for the flag, 78 for a batch, each in one line with the nearest scheme."""
    with pytest.raises(SystemExit) as ended:
        plan("single", "--input", "rtmpx://h/live/s3cr3t")
    assert ended.value.code == USAGE
    said = capsys.readouterr().err
    assert "argument --input: rtmpx:// cannot be read; " in said
    assert "did you mean rtmp?" in said
    assert "s3cr3t" not in said
    (tmp_path / "b.json").write_text(json.dumps([{"input": "rtmpx://h/live/s3cr3t"}]))
    with pytest.raises(BadFile, match=r"scenario 1: input: rtmpx:// cannot be read; .* did you mean rtmp"):
        plan("batch", "--file", str(tmp_path / "b.json"))


def test_several_outputs_are_a_ladder(tmp_path: Path) -> None:
    """Each is encoded, with the settings that it has of its own; one output says what its stream is."""
    file = tmp_path / "b.json"
    rungs = [
        {"resolution": "1280x720", "bitrate": "3M"},
        {"resolution": "640x360", "rate": "crf=30", "encoder": "av1"},
    ]
    entries = [
        {"name": "one", "outputs": [{"bitrate": "1M"}]},
        {"name": "two", "preset": "fast", "outputs": rungs},
    ]
    file.write_text(json.dumps(entries))
    one, two = plan("batch", "--file", str(file)).scenarios
    assert one.video_kbps == 1000
    first, second = two.renditions
    assert (first.rendition, first.video_kbps, first.encoder, first.preset) == ("720p", 3000, "h264", "fast")
    assert (second.rendition, str(second.rate), second.encoder, second.preset) == (
        "360p",
        "crf=30",
        "libsvtav1",
        "8",
    )
    assert two.asked_kbps is None
    assert str(two.resolution) == "1280x720"


SETTINGS = ("duration", "stabilization", "cooldown", "encoder", "preset", "resolution", "fps", "bitrate")


def settings_of(scenario: Scenario) -> dict[str, object]:
    rates = {stream.video_kbps for stream in scenario.streams}
    return {key: min(rates) if key == "bitrate" else getattr(scenario, key) for key in SETTINGS}


def test_defaults_are_the_same_however_a_scenario_is_asked_for(tmp_path: Path) -> None:
    """Every kind, no kind at all and a batch file have the same defaults, of tests and of idle windows."""
    idle, single = plan("single", "--with-baseline").scenarios
    assert settings_of(single) == {
        "duration": 120,
        "stabilization": 10,
        "cooldown": 10,
        "encoder": "h264",
        "preset": "veryfast",
        "resolution": (1280, 720),
        "fps": 30,
        "bitrate": 2500,
    }
    assert (idle.duration, idle.stabilization, idle.cooldown) == (60, 10, 0)

    idle_of_multi, multi = plan("multi", "--count", "2", "--with-baseline").scenarios
    entries = [{"type": "baseline"}, {}, {"type": "multi", "count": 2}]
    (tmp_path / "b.json").write_text(json.dumps(entries))
    idle_of_batch, in_batch, multi_in_batch = plan("batch", "--file", str(tmp_path / "b.json")).scenarios
    assert idle_of_multi == idle
    assert idle_of_batch == idle
    assert [settings_of(other) for other in (multi, in_batch, multi_in_batch)] == [settings_of(single)] * 3

    without_a_kind, suite = plan(), plan("suite")
    assert without_a_kind == suite
    assert suite.settings["kind"] == "suite"
    assert suite.scenarios[0] == idle
    assert settings_of(suite.scenarios[2]) == settings_of(single)


def test_flags_may_stand_before_the_kind_or_after_it() -> None:
    """A flag after the kind wins; one that is not repeated there keeps its value from before the kind."""
    flags = parser("run").parse_args(["run", "--repeat", "2", "--sink", "null", "single", "--repeat", "3"])
    assert (flags.repeat, flags.sink, flags.order) == (3, "null", "sequential")
    assert plan("--no-progress", "single", "--order", "random").settings["order"] == "random"
