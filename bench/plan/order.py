"""In which order a run measures its scenarios: repeats, blocks, shards. Pure."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from powerbench_agent.bench.plan.scenario import Scenario, with_suffix, with_unique_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Order = Literal["sequential", "interleaved", "random"]
ORDERS: tuple[Order, ...] = get_args(Order)


def in_blocks(scenarios: Iterable[Scenario], repeat: int, order: Order, seed: int) -> list[Scenario]:
    """Return every scenario `repeat` times, in this order, with unique names.

    A block is one time each, idle windows among them; drift of the machine (heat, other load) is then in
    tests and baselines alike. `sequential` measures each scenario's repeats in a row instead.
    """
    once = _grouped(scenarios)
    blocks = [[_in_block(scenario, block) for scenario in once] for block in range(repeat)]
    if order == "sequential":
        return with_unique_names(scenario for repeats in zip(*blocks, strict=True) for scenario in repeats)
    if order == "random":
        chance = random.Random(seed)  # noqa: S311 - an order, not a secret
        blocks = [_shuffled(block, chance) for block in blocks]
    return with_unique_names(scenario for block in blocks for scenario in block)


def _grouped(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """Return the scenarios, each with a group: only equal settings are repeats of each other.

    Two scenarios of one name that differ are NAME and NAME#2.
    """
    settings: dict[str, Scenario] = {}
    grouped = []
    for scenario in scenarios:
        name = scenario.group or scenario.name
        plain, group, number = msgspec.structs.replace(scenario, name=name, group=""), name, 2
        while settings.setdefault(group, plain) != plain:
            group, number = with_suffix(name, f"#{number}"), number + 1
        grouped.append(msgspec.structs.replace(scenario, group=group))
    return grouped


def _in_block(scenario: Scenario, block: int) -> Scenario:
    return msgspec.structs.replace(scenario, block=block)


def _shuffled(block: list[Scenario], chance: random.Random) -> list[Scenario]:
    """Return a block in another order, with idle windows where they were: tests follow their baseline."""
    tests = [scenario for scenario in block if scenario.type != "baseline"]
    chance.shuffle(tests)
    rest = iter(tests)
    return [scenario if scenario.type == "baseline" else next(rest) for scenario in block]


def shard(scenarios: Sequence[Scenario], number: int, count: int) -> list[Scenario]:
    """Return what machine `number` of `count` measures once: every idle window, and its share of the tests.

    Before in_blocks: each machine then has its tests with all their repeats, and idle windows in every block.
    """
    tests = [scenario for scenario in scenarios if scenario.type != "baseline"]
    ours = {id(scenario) for scenario in tests[number - 1 :: count]}
    return [scenario for scenario in scenarios if scenario.type == "baseline" or id(scenario) in ours]
