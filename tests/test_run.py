"""`powerbench run`: flags to a plan."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from powerbench.bench.cli import parser
from powerbench.bench.exits import BadFlag
from powerbench.bench.run import make_plan

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench.bench.runner import Plan


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
