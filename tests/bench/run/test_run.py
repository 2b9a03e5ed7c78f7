"""`powerbench run`: flags to a plan."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from powerbench_agent.bench.cli import parser
from powerbench_agent.bench.exits import BadFile, BadFlag
from powerbench_agent.bench.plan.clip import Clip
from powerbench_agent.bench.run.cli import make_plan
from powerbench_agent.bench.run.outcome import Outcome, describe

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.bench.run.runner import Plan


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
    """More parts than tests: the part that would measure the idle machine alone says so."""
    file = batch(tmp_path / "b.json", "a", "b")
    with pytest.raises(BadFlag, match="shard 5 of 5 has nothing: the batch has 2 tests"):
        plan("batch", "--file", file, "--shard", "5/5")
    assert [s.name for s in plan("batch", "--file", file, "--shard", "2/5").scenarios] == ["baseline", "b"]


def test_a_clip_is_known_before_anything_is_measured(tmp_path: Path) -> None:
    """--input and a batch's inputs have their fingerprints in the plan, and the clip in unsaid names."""
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
    described = describe(Outcome(single, "ok"), None)
    assert described["input_sha256"] == hashlib.sha256(b"frames").hexdigest()
    assert (described["input_size"], described["input_hashed_bytes"]) == (6, 6)


def test_a_clip_that_is_not_there_is_a_bad_file(tmp_path: Path) -> None:
    """The name is quoted as it cannot harm a terminal, by flag and in a batch."""
    with pytest.raises(BadFile, match="is no file"):
        plan("single", "--input", str(tmp_path))
    (tmp_path / "b.json").write_text(json.dumps([{"input": "/no\x1b[2J"}]))
    with pytest.raises(BadFile, match=r"input: '/no\\x1b\[2J': is no file"):
        plan("batch", "--file", str(tmp_path / "b.json"))
