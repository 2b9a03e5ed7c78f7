"""The values of a stub's GPU at each tick, and the samples expected from them: all differ, all change."""

from __future__ import annotations

import functools
from types import MappingProxyType
from typing import TYPE_CHECKING

from stubs.stub import BUSES, UUIDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stubs.stub import Answer, Machine

Series = tuple[str, frozenset[tuple[str, str]]]

MJ_PER_TICK = 1_370
CODECS = ("h264", "hevc", "av1")
FAST = {
    "nvidia_gpu_power_draw_watts": lambda g, t: (100_000 + 7_000 * g + 10 * t) / 1000,
    "nvidia_gpu_utilization_percent": lambda g, t: 10 + g + t % 17,
    "nvidia_gpu_memory_utilization_percent": lambda g, t: 30 + g + t % 17,
    "nvidia_gpu_encoder_utilization_percent": lambda g, t: 50 + g + t % 17,
    "nvidia_gpu_decoder_utilization_percent": lambda g, t: 70 + g + t % 17,
    "nvidia_gpu_memory_used_bytes": lambda g, t: 10**9 + 10**6 * g + t,
    "nvidia_gpu_memory_total_bytes": lambda g, t: 8 * 10**10 + 10**6 * g + t,
    "nvidia_gpu_temperature_celsius": lambda g, t: 31 + g + t % 19,
}
SLOW = frozenset(
    f"nvidia_gpu_{name}"
    for name in (
        "power_limit_watts",
        "clock_hertz",
        "throttled",
        "ecc_errors_total",
        "encoder_sessions",
        "encoder_session_fps",
    )
)
REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}


def throttle(tick: int) -> int:
    """Return throttle bits; idle (1) and user-set clocks (2) are always set and are not throttling."""
    return 0x03 | (0x14, 0x48, 0xA0)[tick % 3]


def tell(
    machine: Machine, tick: int, gpus: int = 1, more: Mapping[str, str | None] = MappingProxyType({})
) -> None:
    """Give every GPU its values at this tick; `more`: other lines to change at the same time."""
    said: dict[str, str | None] = {**more}
    for g in range(gpus):
        said |= {
            f"energy_mj {g}": str(5_000_000 + 10**6 * g + MJ_PER_TICK * tick),
            f"power_mw {g}": str(100_000 + 7_000 * g + 10 * tick),
            f"gpu_percent {g}": str(10 + g + tick % 17),
            f"memory_percent {g}": str(30 + g + tick % 17),
            f"encoder_percent {g}": str(50 + g + tick % 17),
            f"decoder_percent {g}": str(70 + g + tick % 17),
            f"memory_used {g}": str(10**9 + 10**6 * g + tick),
            f"memory_total {g}": str(8 * 10**10 + 10**6 * g + tick),
            f"celsius {g}": str(31 + g + tick % 19),
            f"limit_mw {g}": str(300_000 + 1_000 * g + tick),
            f"clock_mhz {g}": str(1_000 + 100 * g + 10 * tick),
            f"throttle {g}": str(throttle(tick)),
            f"ecc_corrected {g}": str(100 + 10 * g + tick),
            f"ecc_uncorrected {g}": str(10_000 + 10 * g + tick),
            f"session {g} 7": f"{600 + g} {tick % 3} 1920 1080 {25 + tick}",
            f"session {g} 8": f"{700 + g} 1 {1280 + tick} 720 {60 + tick}" if tick % 2 else None,
            f"process {g} {600 + g}": f"{1_000_000 * (tick + 1)} 40 20 10",
        }
    machine.say(said)


@functools.cache
def labels_of(gpu: int, **more: str) -> frozenset[tuple[str, str]]:
    """Return a GPU's labels."""
    return frozenset({"gpu": str(gpu), "uuid": UUIDS[gpu], **more}.items())


@functools.cache
def fast(gpu: int, tick: int) -> dict[Series, float]:
    """Return a GPU's samples of every beat, with the energy since tick 0."""
    own = labels_of(gpu)
    found: dict[Series, float] = {(name, own): float(of(gpu, tick)) for name, of in FAST.items()}
    found["nvidia_gpu_energy_joules_total", own] = MJ_PER_TICK * tick / 1000
    return found


@functools.cache
def slow(gpu: int, tick: int) -> dict[Series, float]:
    """Return a GPU's samples of a slow beat."""
    own = labels_of(gpu)
    found: dict[Series, float] = {
        ("nvidia_gpu_power_limit_watts", own): (300_000 + 1_000 * gpu + tick) / 1000
    }
    for number, clock in enumerate(("graphics", "sm", "memory", "video")):
        hertz = (1_000 + 100 * gpu + 10 * tick + number) * 1e6
        found["nvidia_gpu_clock_hertz", labels_of(gpu, clock=clock)] = hertz
    for bit, reason in REASONS.items():
        found["nvidia_gpu_throttled", labels_of(gpu, reason=reason)] = float(bool(throttle(tick) & bit))
    for kind, base in (("corrected", 100), ("uncorrected", 10_000)):
        found["nvidia_gpu_ecc_errors_total", labels_of(gpu, kind=kind)] = base + 10 * gpu + tick
    found["nvidia_gpu_encoder_sessions", own] = 1 + tick % 2
    sessions = [(600 + gpu, 7, CODECS[tick % 3], "1920x1080", 25 + tick)]
    if tick % 2:
        sessions.append((700 + gpu, 8, "hevc", f"{1280 + tick}x720", 60 + tick))
    for pid, session, codec, resolution, fps in sessions:
        which = {"pid": str(pid), "session": str(session), "codec": codec, "resolution": resolution}
        found["nvidia_gpu_encoder_session_fps", labels_of(gpu, **which)] = fps
    return found


def always(gpu: int, *, driver: str = "570.1.2", energy: str = "counter") -> dict[Series, float]:
    """Return the samples of an open GPU that need no answer."""
    bus = f"0000:{BUSES[gpu]}:00.0"
    info = labels_of(
        gpu, name=f"NVIDIA L{gpu + 4}", driver=driver, pci_bus_id=bus, energy=energy, covers="gpu"
    )
    return {
        ("nvidia_gpu_info", info): 1,
        ("nvidia_gpu_lost", labels_of(gpu, pci_bus_id=bus)): 0,
        ("nvidia_gpu_asleep", frozenset({("pci_bus_id", bus)})): 0,
    }


def whole(tick: int, slow_tick: int, gpus: int = 1) -> dict[Series, float]:
    """Return all samples of these GPUs when nothing is wrong."""
    found: dict[Series, float] = {}
    for gpu in range(gpus):
        found |= always(gpu) | fast(gpu, tick) | slow(gpu, slow_tick)
    return found


def rounded(answer: Answer) -> dict[Series, float]:
    """Return the samples, rounded, without the counted errors."""
    return {k: round(v, 9) for k, v in answer.samples.items() if k[0] != "nvidia_gpu_read_errors_total"}
