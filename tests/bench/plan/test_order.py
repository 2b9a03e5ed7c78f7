"""Which windows a run has, in which order."""

from __future__ import annotations

from collections import Counter

import pytest

from powerbench_agent.bench.plan import order
from powerbench_agent.bench.plan.scenario import Scenario

ONCE = [
    Scenario(name="baseline", type="baseline", duration=60),
    *(Scenario(name=name, type="single", duration=9, video_kbps=1000) for name in "abcdef"),
]


@pytest.mark.parametrize("name", order.ORDERS)
def test_repeats_have_unique_names_and_one_group(name: order.Order) -> None:
    """Every scenario is there N times under names that differ, with its group and its block."""
    scenarios = order.in_blocks(ONCE, 3, name, 1)
    assert len({scenario.name for scenario in scenarios}) == len(scenarios) == 21
    assert Counter(scenario.group for scenario in scenarios) == dict.fromkeys("abcdef", 3) | {"baseline": 3}
    for group in "abcdef":
        assert sorted(s.block for s in scenarios if s.group == group) == [0, 1, 2]


def test_sequential_repeats_are_in_a_row() -> None:
    """Each scenario's repeats come one after the other."""
    names = [scenario.group for scenario in order.in_blocks(ONCE[:3], 2, "sequential", 1)]
    assert names == ["baseline", "baseline", "a", "a", "b", "b"]


def test_interleaved_repeats_are_block_by_block() -> None:
    """A block is one time each, with an idle window of its own."""
    scenarios = order.in_blocks(ONCE[:3], 2, "interleaved", 1)
    assert [scenario.name for scenario in scenarios] == ["baseline", "a", "b", "baseline#2", "a#2", "b#2"]


def test_random_blocks_keep_idle_first_and_are_the_seeds() -> None:
    """Tests are shuffled within a block after its idle window; one seed is one order."""
    scenarios = order.in_blocks(ONCE, 4, "random", 7)
    assert [scenario.group for scenario in scenarios[::7]] == ["baseline"] * 4
    assert [s.name for s in scenarios] == [s.name for s in order.in_blocks(ONCE, 4, "random", 7)]
    blocks = [tuple(s.group for s in scenarios[start : start + 7]) for start in range(0, 28, 7)]
    assert len(set(blocks)) > 1


def test_shards_are_all_of_it_and_each_has_idle() -> None:
    """The parts together are every test once, and every part has the idle windows."""
    parts = [order.shard(ONCE, number, 4) for number in range(1, 5)]
    tests = [scenario.name for part in parts for scenario in part if scenario.type != "baseline"]
    assert sorted(tests) == list("abcdef")
    assert all(part[0].type == "baseline" for part in parts)
