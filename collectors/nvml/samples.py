"""Samples of one NVIDIA GPU from NVML's answers; no answer, no sample. mW and MHz in, W and Hz out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from powerbench_agent.collectors.nvml.gpu import THROTTLE_REASONS
from powerbench_agent.collectors.nvml.metrics import (
    CLOCK,
    DECODER,
    ECC,
    ENCODER,
    LIMIT,
    MEMORY_TOTAL,
    MEMORY_USED,
    MEMORY_UTILIZATION,
    SESSION_FPS,
    SESSIONS,
    TEMPERATURE,
    THROTTLED,
    UTILIZATION,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from powerbench_agent.collectors.nvml.gpu import EncoderSession, Gpu
    from powerbench_agent.core.model import Sample

    Labels = tuple[str, str]  # gpu, uuid


def fast_samples(gpu: Gpu, labels: Labels) -> Iterator[Sample]:
    """Ask what is asked at every beat, without energy and power. Raises: NvmlUnavailable."""
    utilisation = gpu.utilisation_percent()
    if utilisation is not None:
        processors, memory_bandwidth = utilisation
        yield UTILIZATION.sample(processors, *labels)
        yield MEMORY_UTILIZATION.sample(memory_bandwidth, *labels)
    encoder = gpu.encoder_percent()
    if encoder is not None:
        yield ENCODER.sample(encoder, *labels)
    decoder = gpu.decoder_percent()
    if decoder is not None:
        yield DECODER.sample(decoder, *labels)
    memory = gpu.memory_bytes()
    if memory is not None:
        used, total = memory
        yield MEMORY_USED.sample(used, *labels)
        yield MEMORY_TOTAL.sample(total, *labels)
    celsius = gpu.celsius()
    if celsius is not None:
        yield TEMPERATURE.sample(celsius, *labels)


def slow_samples(gpu: Gpu, labels: Labels) -> Iterator[Sample]:
    """Ask what is asked every 10 s. Raises: NvmlUnavailable."""
    limit_mw = gpu.power_limit_mw()
    if limit_mw is not None:
        yield LIMIT.sample(limit_mw / 1000, *labels)
    for clock, mhz in gpu.clocks_mhz():
        yield CLOCK.sample(mhz * 1e6, *labels, clock)
    reasons = gpu.throttle_reasons()
    if reasons is not None:
        for bit, reason in THROTTLE_REASONS.items():
            yield THROTTLED.sample(int(bool(reasons & bit)), *labels, reason)
    for kind, count in gpu.ecc_errors():
        yield ECC.sample(count, *labels, kind)
    sessions = gpu.encoder_sessions()
    if sessions is not None:
        yield from _session_samples(sessions, labels)


def _session_samples(sessions: list[EncoderSession], labels: Labels) -> Iterator[Sample]:
    yield SESSIONS.sample(len(sessions), *labels)
    for session in sessions:
        pid, number = str(session.pid), str(session.session)
        yield SESSION_FPS.sample(session.fps, *labels, pid, number, session.codec, session.resolution)
