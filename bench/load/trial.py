"""Tries an ffmpeg out before anything is measured: what it cannot do is found before the first window."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from msgspec import structs

from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.load.child import Child
from powerbench_agent.bench.load.encoder import trial_command
from powerbench_agent.bench.load.ffmpeg import check_encoder, check_protocol, check_version

if TYPE_CHECKING:
    from collections.abc import Iterable

    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.plan.scenario import Scenario

_TRIAL_SECONDS = 5.0  # one that encodes for so long works, slowly


async def check_ffmpeg(ffmpeg: Ffmpeg, scenarios: Iterable[Scenario], sink: str) -> None:
    """Check that this ffmpeg can do all that the scenarios ask of it. Raises: NotHere."""
    streams = [scenario for scenario in scenarios if scenario.type != "baseline"]
    check_version(ffmpeg)
    for scenario in streams:
        check_encoder(ffmpeg, scenario, sink)
    if streams and sink != "null":
        await check_protocol(ffmpeg)
    # Clips are not tried: a broken one fails the scenario that streams it, and no other.
    tried = set()
    for scenario in streams:
        settings = (scenario.encoder, scenario.preset)
        if settings not in tried:
            tried.add(settings)
            await _try_out(ffmpeg, structs.replace(scenario.streams[0], input=""), sink)


async def _try_out(ffmpeg: Ffmpeg, stream: Scenario, sink: str) -> None:
    """Encode the first frames of a stream. Raises: NotHere if ffmpeg fails."""
    child = Child("trial", trial_command(ffmpeg, stream, sink))
    try:
        await child.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TRIAL_SECONDS):
                await child.wait()
        if child.exit_code:
            what = f"{ffmpeg.path} ({ffmpeg.version}) failed to encode a test picture"
            settings = f"--encoder {stream.encoder} --preset {stream.preset}"
            remedy = "name another ffmpeg with --ffmpeg"
            raise NotHere(f"{what} with {settings}: {child.last_words()}; {remedy}")
    finally:
        await child.stop()
