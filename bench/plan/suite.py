"""The scenarios of the default suite, and the idle window that tests are compared with. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from powerbench_agent.bench.load.encoders.spelling import completed
from powerbench_agent.bench.plan.scenario import Resolution, Scenario, named

if TYPE_CHECKING:
    from powerbench_agent.bench.load.encoders.spelling import EncoderAsked

_480P, _720P, _1080P = Resolution(854, 480), Resolution(1280, 720), Resolution(1920, 1080)
_FPS = 30
_KBPS = 2500.0  # where something else varies
_BITRATES = (1000.0, _KBPS, 5000.0, 10000.0)
_RESOLUTIONS = (_480P, _720P, _1080P)
_FRAME_RATES = (_FPS, 60)
_FAST_KBPS = 5000.0  # of the series of frame rates
_COUNTS = (2, 4)


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


def suite(times: Times, asked: EncoderAsked) -> list[Scenario]:
    """Return the default suite: idle, then bitrates, resolutions, frame rates and several streams."""
    settings = [(kbps, _720P, _FPS) for kbps in _BITRATES]
    settings += [(_KBPS, resolution, _FPS) for resolution in _RESOLUTIONS]
    settings += [(_FAST_KBPS, _720P, fps) for fps in _FRAME_RATES]
    common = Scenario(
        name="",
        type="single",
        duration=times.duration,
        stabilization=times.stabilization,
        cooldown=times.cooldown,
        resolution=_720P,
        fps=_FPS,
        encoder=asked.encoder,
        preset=asked.preset,
        rate=asked.rate,
        pix_fmt=completed(asked).pix_fmt,
        encoder_options=asked.extra,
        device=asked.device,
    )
    scenarios = [baseline(times)]
    for kbps, resolution, fps in dict.fromkeys(settings):  # what two series share is measured once
        single = msgspec.structs.replace(common, video_kbps=kbps, resolution=resolution, fps=fps)
        scenarios.append(named(single))
    for count in _COUNTS:
        bitrates = (_KBPS,) * count
        multi = msgspec.structs.replace(common, type="multi", bitrates=bitrates)
        scenarios.append(named(multi))
    return scenarios
