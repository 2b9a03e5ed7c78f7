"""Tries an ffmpeg out before anything is measured: what it cannot do is found before the first window."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from msgspec import structs

from powerbench_agent.bench.exits import BadFlag, NotHere
from powerbench_agent.bench.load.child import Child
from powerbench_agent.bench.load.containers import misfit
from powerbench_agent.bench.load.encoder import trial_command
from powerbench_agent.bench.load.encoders.spelling import default_rate
from powerbench_agent.bench.load.encoders.table import ROWS
from powerbench_agent.bench.load.ffmpeg import (
    check_device,
    check_encoder,
    check_hwaccel,
    check_protocol,
    check_readrate,
    check_version,
)
from powerbench_agent.bench.load.outlets import container_of
from powerbench_agent.bench.load.redact import redact_url
from powerbench_agent.bench.plan.pace import MAX, REALTIME
from powerbench_agent.bench.plan.scenario import Resolution, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from powerbench_agent.bench.load.containers import Container
    from powerbench_agent.bench.load.encoders.table import EncoderRow
    from powerbench_agent.bench.load.ffmpeg import Ffmpeg

_TRIAL_SECONDS = 10.0  # three small frames take less than one; what hangs ignores SIGTERM
_TINY = Resolution(128, 128)
# What ffmpeg says, and then goes on without it, with exit code 0.
_IGNORED = re.compile(
    r"has not been used for any stream|Incompatible pixel format|Error parsing option|Error setting option"
)
_CHATTER = re.compile(r"Svt\[\w+\]|x26[45] \[(info|warning)\]|.*deprecated|.*Past duration", re.IGNORECASE)
_SPEAKER = re.compile(r"^(\[[^\]]*\] )+")  # of a line, with an address in memory


async def check_ffmpeg(ffmpeg: Ffmpeg, scenarios: Iterable[Scenario], sink: str) -> None:
    """Check that this ffmpeg can do all that the scenarios ask of it. Raises: NotHere."""
    whole = [scenario.streams[0] for scenario in scenarios if scenario.type != "baseline"]
    streams = [rendition for stream in whole for rendition in stream.renditions]
    check_version(ffmpeg)
    if any(stream.pace not in (REALTIME, MAX) for stream in streams):
        check_readrate(ffmpeg)
    for stream in streams:
        check_encoder(ffmpeg, stream)
        check_device(stream.device or stream.asked.row.family.default_device)
    for hwaccel in {stream.hwaccel for stream in streams if stream.hwaccel}:
        await check_hwaccel(ffmpeg, hwaccel)
    for stream in streams:
        container = container_of(ffmpeg, stream, sink)
        if problem := misfit(stream.asked.row.codec, sink, container, has_tone=stream.has_tone):
            raise BadFlag(f"--sink {redact_url(sink)}: {problem}")
    containers = {container_of(ffmpeg, stream, sink) for stream in streams}
    if "flv" in containers:
        await check_protocol(ffmpeg)
    # Clips are not tried: a broken one fails the scenario that streams it, and no other.
    tried = set()
    for stream in streams:
        settings = (stream.asked, stream.video_kbps)
        if settings not in tried and stream.asked.row.name != "copy":
            tried.add(settings)
            await _try_out(ffmpeg, stream, container_of(ffmpeg, stream, sink))


async def _try_out(ffmpeg: Ffmpeg, stream: Scenario, container: Container) -> None:
    """Encode the first frames of a stream. Raises: NotHere if that fails."""
    reason = await open_encoder(ffmpeg, stream, container)
    if not reason:
        return
    asked = f"--encoder {stream.encoder}" + (f" --preset {stream.preset}" if stream.preset else "")
    what = f"{ffmpeg.path} ({ffmpeg.version}) failed to encode a test picture with {asked}: {reason}"
    row = stream.asked.row
    others = [other.known_as for other in await opening(ffmpeg, row.codec) if other != row]
    can = "name another ffmpeg with --ffmpeg"
    if others:
        can = f"for {row.codec}, {' and '.join(others)} can be used here"
    raise NotHere(f"{what}; {can}")


async def opening(ffmpeg: Ffmpeg, codec: str) -> list[EncoderRow]:
    """Return the encoders of a codec that open on this machine."""
    rows = [row for row in ROWS if row.codec == codec and row.name in ffmpeg.encoders]
    return [row for row in rows if not await open_row(ffmpeg, row)]


async def open_row(ffmpeg: Ffmpeg, row: EncoderRow) -> str:
    """Return why an encoder does not open here with its defaults; "" if it does."""
    plain = Scenario(
        name=row.name,
        type="single",
        duration=1.0,
        video_kbps=500.0,
        resolution=_TINY if row.is_software else Resolution(640, 360),
        fps=30,
        encoder=row.known_as,
        rate=default_rate(row.name),
    )
    try:
        check_device(row.family.default_device)
    except NotHere as missing:
        return str(missing).removeprefix("--device ")
    return await open_encoder(ffmpeg, plain, container_of(ffmpeg, plain, "null"))


async def open_encoder(
    ffmpeg: Ffmpeg, stream: Scenario, container: Container, seconds: float = _TRIAL_SECONDS
) -> str:
    """Return why a stream's encoder does not open, or what it ignores; "" if it does as it is told.

    One that has not ended after `seconds` is killed.
    """
    child = Child(
        "trial",
        trial_command(ffmpeg, _tried(stream), container),
    )
    try:
        await child.start()
        async with asyncio.timeout(seconds):
            await child.wait()
    except TimeoutError:
        return f"it did not encode three frames within {seconds:g} s into {container}"
    finally:
        await child.kill()
    return refusal(child.exit_code or 0, child.lines)


def _tried(stream: Scenario) -> Scenario:
    """Return a stream of the test picture with the same encoder, in its pace or faster."""
    size = _TINY if stream.asked.row.is_software else stream.resolution
    pace = REALTIME if stream.has_tone else MAX
    plain = structs.replace(stream, input="", picture=None, resolution=size, pace=pace, part="", to_end=False)
    return structs.replace(plain, drawn=Resolution(0, 0))


def refusal(exit_code: int, printed: Iterable[str]) -> str:
    """Return ffmpeg's first reason for not doing as it was told; "" if it did.

    The first, as what follows are its consequences. An exit code of 0 is no proof: an option that an encoder
    lacks, or a pixel format that it does not take, is a warning.
    """
    said = [_SPEAKER.sub("", line).strip() for line in printed if line.strip()]
    ignored = [line for line in said if _IGNORED.search(line)]
    if exit_code == 0:
        return _short(ignored)
    causes = [line for line in said if not _CHATTER.match(line)]
    return _short(causes) or f"it printed nothing, and ended with {exit_code}"


def _short(lines: Sequence[str]) -> str:
    """Return the first line, without what ffmpeg explains of its options and guesses about its causes."""
    if not lines:
        return ""
    cause = lines[0].partition(". The")[0]
    return re.sub(r" \(.*\)( specified for output file .*?)? has not", " has not", cause)
