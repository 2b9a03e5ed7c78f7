"""The GPUs around a window: as agents give them, as results hold them, and what makes them doubtful."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from powerbench_agent.bench.meter.gpus import GpuState, describe_gpus, gpu_warnings, parse_gpus
from powerbench_agent.collectors.drm import metrics as drm
from powerbench_agent.collectors.nvml import metrics as nvml

if TYPE_CHECKING:
    from powerbench_agent.core.model import Sample

NVIDIA = ("0", "GPU-2f")
AMD = ("card1", "amd", "0000:03:00.0")


def described(sample: Sample) -> dict[str, Any]:
    """Return a sample as an agent's snapshot has it."""
    metric, texts, value = sample
    return {"name": metric.name, "labels": dict(zip(metric.labels, texts, strict=True)), "value": value}


def snapshot(**samples: list[Any]) -> dict[str, Any]:
    return {"collectors": {name: {"up": True, "samples": listed} for name, listed in samples.items()}}


def test_the_gpus_of_both_collectors_are_read() -> None:
    """Each by its number and its lasting name; clocks by their names; other samples are not theirs."""
    info = nvml.INFO.sample(1, *NVIDIA, "H200", "570.1", "0000:44:00.0", "counter", "gpu")
    of_nvml = [
        info,
        nvml.CLOCK.sample(1.98e9, *NVIDIA, "sm"),
        nvml.CLOCK.sample(3.2e9, *NVIDIA, "memory"),
        nvml.LIMIT.sample(700.0, *NVIDIA),
        nvml.TEMPERATURE.sample(31, *NVIDIA),
        nvml.POWER.sample(75.5, *NVIDIA),
    ]
    of_drm = [
        drm.INFO.sample(1, *AMD, "amdgpu", "discrete", "integrated"),
        drm.POWER_LIMIT.sample(220.0, *AMD),
        drm.TEMPERATURE.sample(45.0, *AMD),
    ]
    found = parse_gpus(snapshot(nvml=[*map(described, of_nvml)], drm=[*map(described, of_drm)], rapl=[]))
    assert found == {
        "0 (GPU-2f)": GpuState({"sm": 1.98e9, "memory": 3.2e9}, 700.0, 31, "H200", "570.1"),
        "card1 (0000:03:00.0)": GpuState({}, 220.0, 45.0, None, "amdgpu"),
    }


def test_the_gpus_of_several_agents_are_told_apart() -> None:
    """Two machines may have a GPU at the same place."""
    one = snapshot(drm=[described(drm.TEMPERATURE.sample(45.0, *AMD))])
    assert list(parse_gpus(one, "http://w1:9510")) == ["http://w1:9510: card1 (0000:03:00.0)"]


GOOD = described(nvml.TEMPERATURE.sample(31, *NVIDIA))


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"collectors": []},
        {"collectors": {"nvml": None}},
        {"collectors": {"nvml": {"samples": None}}},
        {"collectors": {"nvml": {"samples": [None, 5, {"name": []}, GOOD | {"labels": None}]}}},
        {"collectors": {"nvml": {"samples": [GOOD | {"value": None}, GOOD | {"value": "31"}]}}},
    ],
)
def test_what_is_not_a_sample_says_nothing(odd: dict[str, Any]) -> None:
    """An agent of another version, or one that could not read its GPUs, ends no run."""
    assert parse_gpus(odd) == {}


def test_a_window_has_each_gpu_before_and_after() -> None:
    """Null where it was not read at that end, and a GPU that was seen once is there."""
    before = {"0": GpuState({"sm": 1e9}, 700.0, 30.0, "H200", "570")}
    after = {"0": GpuState({"sm": 2e9}, 600.0, 50.0), "1": GpuState({}, celsius=20.0)}
    found = describe_gpus(before, after)
    assert found["0"] == {
        "name": "H200",
        "driver": "570",
        "clock_hertz_before": {"sm": 1e9},
        "clock_hertz_after": {"sm": 2e9},
        "power_limit_watts_before": 700.0,
        "power_limit_watts_after": 600.0,
        "celsius_before": 30.0,
        "celsius_after": 50.0,
    }
    assert (found["1"]["celsius_before"], found["1"]["celsius_after"]) == (None, 20.0)


COLD = {"0": GpuState({}, 700.0, 30.0)}


@pytest.mark.parametrize(
    ("before", "after", "first", "words"),
    [
        (GpuState({}, 700.0, 40.0), GpuState({}, 700.0, 70.0), COLD, []),
        (GpuState({}, 700.0, 40.1), GpuState({}, 700.0, 70.0), COLD, ["GPU 0 10 °C warmer"]),
        (GpuState({}, 700.0, 30.0), GpuState({}, 500.0, 30.0), COLD, ["changed from 700 to 500 W"]),
        (GpuState({}, 500.0, 30.0), GpuState({}, 500.0, 30.0), COLD, ["changed from 700 to 500 W"]),
        (GpuState({}, 500.0, 30.0), GpuState({}, 700.0, 30.0), COLD, ["changed from 700 to 500 W"]),
        (GpuState({}), GpuState({}), COLD, []),
        (GpuState({}, 500.0, 90.0), GpuState({}, 500.0, 90.0), {}, []),
    ],
)
def test_a_gpu_unlike_that_of_the_first_window_is_a_warning(
    before: GpuState, after: GpuState, first: dict[str, GpuState], words: list[str]
) -> None:
    """Its limit, and how warm it began; what is unknown is not warned of."""
    warnings = list(gpu_warnings({"0": before}, {"0": after}, first))
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))
