"""The GPUs around a window: what an agent's latest samples say of clocks, limits and temperatures. Pure.

Hertz, watts, °C. The agent asks for NVIDIA's clocks and limits every 10 s, so they may be that old.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_WARMER = 10.0  # °C above the run's first window; of CPUs, too

_CLOCK = "nvidia_gpu_clock_hertz"
_LIMITS = ("nvidia_gpu_power_limit_watts", "drm_gpu_power_limit_watts")
_TEMPERATURES = ("nvidia_gpu_temperature_celsius", "drm_gpu_temperature_celsius")
_INFOS = ("nvidia_gpu_info", "drm_gpu_info")
_KNOWN = (_CLOCK, *_LIMITS, *_TEMPERATURES, *_INFOS)


class GpuState(NamedTuple):
    """One GPU at one moment; None means unknown."""

    clocks: Mapping[str, float]  # hertz, by clock: graphics, sm, memory, video
    limit: float | None = None  # watts
    celsius: float | None = None
    name: str | None = None
    driver: str | None = None


class _Known(NamedTuple):
    """What a sample says of a GPU."""

    gpu: str
    metric: str
    labels: Mapping[str, str]
    value: float


def parse_gpus(snapshot: Mapping[str, Any], agent: str = "") -> dict[str, GpuState]:
    """Return the GPUs in an agent's snapshot, called as `0 (GPU-2f…)`, after the agent's name if it is given.

    A sample that is not as agents give them says nothing.
    """
    found: dict[str, GpuState] = {}
    for sample in _known(snapshot, f"{agent}: " if agent else ""):
        gpu = found.get(sample.gpu) or GpuState({})
        if sample.metric in _INFOS:
            # A GPU that the drm collector reads has no name but its driver's.
            gpu = gpu._replace(name=sample.labels.get("name"), driver=sample.labels.get("driver"))
        elif sample.metric in _LIMITS:
            gpu = gpu._replace(limit=sample.value)
        elif sample.metric in _TEMPERATURES:
            gpu = gpu._replace(celsius=sample.value)
        elif clock := sample.labels.get("clock"):
            gpu = gpu._replace(clocks={**gpu.clocks, clock: sample.value})
        found[sample.gpu] = gpu
    return found


def _known(snapshot: Mapping[str, Any], prefix: str) -> Iterator[_Known]:
    """Yield the samples that are about GPUs."""
    collectors = snapshot.get("collectors")
    for state in collectors.values() if isinstance(collectors, dict) else ():
        samples = state.get("samples") if isinstance(state, dict) else None
        for sample in samples if isinstance(samples, list) else ():
            if not isinstance(sample, dict) or sample.get("name") not in _KNOWN:
                continue
            labels, value = sample.get("labels"), sample.get("value")
            if not isinstance(labels, dict) or not isinstance(value, int | float):
                continue
            number, place = labels.get("gpu", ""), labels.get("uuid") or labels.get("pci_bus_id")
            gpu = f"{prefix}{number} ({place})" if place else f"{prefix}{number}"
            yield _Known(gpu, sample["name"], labels, value)


def describe_gpus(before: Mapping[str, GpuState], after: Mapping[str, GpuState]) -> dict[str, Any]:
    """Return the GPUs around a window as the results file holds them; null where one was not read."""
    unknown = GpuState({})
    described = {}
    for gpu in sorted({*before, *after}):
        begin, end = before.get(gpu, unknown), after.get(gpu, unknown)
        described[gpu] = {
            "name": end.name or begin.name,
            "driver": end.driver or begin.driver,
            "clock_hertz_before": dict(begin.clocks) or None,
            "clock_hertz_after": dict(end.clocks) or None,
            "power_limit_watts_before": begin.limit,
            "power_limit_watts_after": end.limit,
            "celsius_before": begin.celsius,
            "celsius_after": end.celsius,
        }
    return described


def gpu_warnings(
    before: Mapping[str, GpuState], after: Mapping[str, GpuState], first: Mapping[str, GpuState]
) -> Iterator[str]:
    """Yield what makes a window's GPUs other than those of the run's first window."""
    for gpu, begin in before.items():
        start = first.get(gpu, begin)
        end = after.get(gpu, begin)
        limits = [limit for limit in (start.limit, begin.limit, end.limit) if limit is not None]
        if len(set(limits)) > 1:
            changed = next(limit for limit in reversed(limits) if limit != limits[0])
            what = f"the power limit of GPU {gpu} changed from {limits[0]:g} to {changed:g} W"
            yield f"{what}: keep it the same for the run"
        if begin.celsius is not None and start.celsius is not None:
            warmer = begin.celsius - start.celsius
            if warmer > MAX_WARMER:
                yield (
                    f"the window began with GPU {gpu} {warmer:.0f} °C warmer than the run's first: "
                    "give more --cooldown or --stabilization"
                )
