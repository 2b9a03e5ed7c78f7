"""Which windows a run has, in which order: the default suite, repeats, blocks, shards. Pure."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

import msgspec

from powerbench_agent.bench.plan.scenario import (
    Resolution,
    Scenario,
    default_name,
    format_bitrate,
    of_clip,
    with_unique_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Order = Literal["sequential", "interleaved", "random"]
ORDERS: tuple[Order, ...] = ("sequential", "interleaved", "random")

_720P = Resolution(1280, 720)


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each phase of a window."""

    duration: float
    stabilization: float
    cooldown: float
    baseline: float  # of the idle window


def baseline(times: Times) -> Scenario:
    """Return an idle window."""
    return Scenario(
        name="baseline", type="baseline", duration=times.baseline, stabilization=times.stabilization
    )


def suite(times: Times, encoder: str, preset: str) -> list[Scenario]:
    """Return the default suite: bitrates, resolutions, frame rates, then several streams, and idle before."""
    singles = [
        *((kbps, _720P, 30) for kbps in (1000, 2500, 5000, 10000)),
        *((2500, resolution, 30) for resolution in (Resolution(854, 480), _720P, Resolution(1920, 1080))),
        *((5000, _720P, fps) for fps in (30, 60)),
    ]
    return [
        baseline(times),
        *(
            Scenario(
                name=default_name(kbps, resolution, fps, encoder),
                type="single",
                duration=times.duration,
                stabilization=times.stabilization,
                cooldown=times.cooldown,
                video_kbps=kbps,
                resolution=resolution,
                fps=fps,
                encoder=encoder,
                preset=preset,
            )
            # A setting that two of the series share is measured once.
            for kbps, resolution, fps in dict.fromkeys(singles)
        ),
        *(
            Scenario(
                name=multi_name((2500.0,) * count, _720P, 30, encoder),
                type="multi",
                duration=times.duration,
                stabilization=times.stabilization,
                cooldown=times.cooldown,
                bitrates=(2500.0,) * count,
                resolution=_720P,
                fps=30,
                encoder=encoder,
                preset=preset,
            )
            for count in (2, 4)
        ),
    ]


def multi_name(
    bitrates: Sequence[float], resolution: Resolution, fps: int, encoder: str, clip: str = ""
) -> str:
    """Return the name of several streams where nobody gave one; `clip`: the path of what is streamed."""
    rates = [format_bitrate(kbps) for kbps in bitrates]
    mixed = "+".join(rates) if len(set(rates)) > 1 else rates[0]
    return f"{len(rates)}x_{mixed}_{resolution.height}p{fps}_{encoder}{of_clip(clip)}"


def in_blocks(scenarios: Iterable[Scenario], repeat: int, order: Order, seed: int) -> list[Scenario]:
    """Return every scenario `repeat` times, in this order, with unique names.

    A block is one time each, idle windows among them; drift of the machine (heat, other load) is then in
    tests and baselines alike. `sequential` measures each scenario's repeats in a row instead.
    """
    once = list(scenarios)
    blocks = [
        [
            msgspec.structs.replace(scenario, block=block, group=scenario.group or scenario.name)
            for scenario in once
        ]
        for block in range(repeat)
    ]
    if order == "sequential":
        return with_unique_names(scenario for repeats in zip(*blocks, strict=True) for scenario in repeats)
    if order == "random":
        chance = random.Random(seed)  # noqa: S311 - an order, no secret
        blocks = [_shuffled(block, chance) for block in blocks]
    return with_unique_names(scenario for block in blocks for scenario in block)


def _shuffled(block: list[Scenario], chance: random.Random) -> list[Scenario]:
    """Return a block in another order, idle windows where they were: tests are compared with one before."""
    tests = [scenario for scenario in block if scenario.type != "baseline"]
    chance.shuffle(tests)
    rest = iter(tests)
    return [scenario if scenario.type == "baseline" else next(rest) for scenario in block]


def shard(scenarios: Sequence[Scenario], number: int, count: int) -> list[Scenario]:
    """Return what machine `number` of `count` measures once: every idle window, and tests in turn.

    Before in_blocks: each machine then has its tests with all their repeats, and idle windows to every block.
    """
    tests = [scenario for scenario in scenarios if scenario.type != "baseline"]
    ours = {id(scenario) for scenario in tests[number - 1 :: count]}
    return [scenario for scenario in scenarios if scenario.type == "baseline" or id(scenario) in ours]
