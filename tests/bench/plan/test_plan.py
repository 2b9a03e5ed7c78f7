"""`powerbench run`: flags to a plan."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from powerbench_agent.bench.cli import parser
from powerbench_agent.bench.exits import BAD_FILE, BadFile, BadFlag, code_of
from powerbench_agent.bench.plan.clip import Clip
from powerbench_agent.bench.plan.plan import make_plan
from powerbench_agent.bench.run.outcome import Outcome, describe

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.bench.plan.plan import Plan
    from powerbench_agent.bench.plan.scenario import Scenario


def plan(*words: str) -> Plan:
    return make_plan(parser("run").parse_args(["run", *words]))


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
    assert single.name == "2500k_720p30_h264_a clip"
    entries = [{"input": str(clip)}, {"count": 2, "input": str(clip)}, {}]
    (tmp_path / "b.json").write_text(json.dumps(entries))
    streamed, several, picture = plan("batch", "--file", str(tmp_path / "b.json")).scenarios
    assert streamed.clip == several.clip == several.streams[1].clip == single.clip
    assert several.name == "2x_2500k_720p30_h264_a clip"
    assert (picture.clip, picture.name) == (None, "2500k_720p30_h264")
    described = describe(Outcome(single, "ok"))
    assert described["input_sha256"] == hashlib.sha256(b"frames").hexdigest()
    assert (described["input_size"], described["input_hashed_bytes"]) == (6, 6)


def test_a_clip_that_is_not_there_is_a_bad_file(tmp_path: Path) -> None:
    """The name is quoted as it cannot harm a terminal, by flag and in a batch."""
    with pytest.raises(BadFile, match="is not a file"):
        plan("single", "--input", str(tmp_path))
    (tmp_path / "b.json").write_text(json.dumps([{"input": "/no\x1b[2J"}]))
    with pytest.raises(BadFile, match=r"input: '/no\\x1b\[2J': is not a file"):
        plan("batch", "--file", str(tmp_path / "b.json"))


def test_more_than_one_output_is_refused(tmp_path: Path) -> None:
    """A second rendition is not encoded yet: the batch is a bad file, with one line that says what to do."""
    file = tmp_path / "b.json"
    entries = [{"name": "one", "outputs": [{"bitrate": "1M"}]}, {"name": "two", "outputs": [{}, {}]}]
    file.write_text(json.dumps(entries))
    with pytest.raises(BadFile) as refused:
        plan("batch", "--file", str(file))
    assert code_of(refused.value) == BAD_FILE == 78
    assert str(refused.value) == (
        f"{file}: scenario 2 (two): outputs: 2 outputs, but a stream is encoded once; "
        "give one output, or one scenario for each rendition"
    )


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
