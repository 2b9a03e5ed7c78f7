"""The streams of a scenario: started one after the other, each with its sink, all stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.load.child import StreamFailed
from powerbench_agent.bench.load.encoder import Encoder, identity_of
from powerbench_agent.bench.load.live_input import is_live, unreachable
from powerbench_agent.bench.load.outlets import open_outlets
from powerbench_agent.bench.load.redact import redact_url
from powerbench_agent.bench.load.sinks import Relay
from powerbench_agent.bench.plan.sink import OURS, kind_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from powerbench_agent.bench.load.child import Child
    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.load.outlets import Outlet, Way
    from powerbench_agent.bench.plan.scenario import Scenario

_CONNECT_SECONDS = 10.0  # for the embedded sink to come up, or a live input to come back
# What FFmpeg says if no one answers; of SRT, whose own words it keeps to itself, it is an error of any kind.
_UNREACHABLE = ("Connection refused", "Connection timed out", "No route to host", "Input/output error")
_START_SECONDS = 20.0  # for an encoder to send its first frame


class RunningStream(NamedTuple):
    """One stream that runs, or that is about to."""

    scenario: Scenario
    encoder: Encoder
    outlets: Sequence[Outlet]

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time of its two ends."""
        used = {"encoder": self.encoder.cpu_seconds()}
        sinks = [outlet.sink for outlet in self.outlets if outlet.sink is not None]
        if sinks:
            used["sink"] = sum(sink.cpu_seconds() for sink in sinks)
        return used


@contextlib.asynccontextmanager
async def streaming(ffmpeg: Ffmpeg, scenario: Scenario, way: Way) -> AsyncIterator[Sequence[RunningStream]]:
    """Run a scenario's streams for as long as the context lasts; all of them run when it begins.

    They start one after the other: at once, their first seconds would compete for the CPUs, and some would
    begin behind real time. Raises: StreamFailed.
    """
    async with contextlib.AsyncExitStack() as stack:
        streams: list[RunningStream] = []
        for stream, outlets, on_data in await _ways_out(stack, ffmpeg, scenario, way):
            streams.append(await _start(stack, ffmpeg, stream, outlets, on_data))
            for earlier in streams:
                earlier.encoder.check_alive()
        yield streams


@contextlib.asynccontextmanager
async def ready(ffmpeg: Ffmpeg, scenario: Scenario, way: Way) -> AsyncIterator[Sequence[RunningStream]]:
    """Prepare a scenario's streams, which the caller starts and this stops. Raises: StreamFailed."""
    async with contextlib.AsyncExitStack() as stack:
        streams = []
        for stream, outlets, on_data in await _ways_out(stack, ffmpeg, scenario, way):
            encoder = _encoder(ffmpeg, stream, outlets, on_data)
            stack.push_async_callback(encoder.stop)
            streams.append(RunningStream(stream, encoder, outlets))
        yield streams


async def _ways_out(
    stack: contextlib.AsyncExitStack, ffmpeg: Ffmpeg, scenario: Scenario, way: Way
) -> Sequence[tuple[Scenario, Sequence[Outlet], Callable[[int, bytes], None]]]:
    """Return each stream with its outlets, and what takes its progress. Raises: StreamFailed."""
    found = []
    streams = scenario.streams
    for number, one in enumerate(streams):
        place = number, len(streams)
        outlets = await open_outlets(stack, ffmpeg, one, way, place)
        container = outlets[0].container if outlets else "null"
        relay = Relay(way.client, one.name, identity_of(one, container))
        stack.push_async_callback(relay.close)
        found.append((one, outlets, relay.send))
    return found


def _encoder(
    ffmpeg: Ffmpeg, stream: Scenario, outlets: Sequence[Outlet], on_data: Callable[[int, bytes], None]
) -> Encoder:
    sinks = [outlet.sink for outlet in outlets if outlet.sink is not None]
    targets = [outlet.target for outlet in outlets]
    return Encoder(ffmpeg, stream, targets, on_data, sinks[0] if sinks else None)


async def _start(
    stack: contextlib.AsyncExitStack,
    ffmpeg: Ffmpeg,
    stream: Scenario,
    outlets: Sequence[Outlet],
    on_data: Callable[[int, bytes], None],
) -> RunningStream:
    """Return a stream that sends frames, for as long as the stack lasts. Raises: StreamFailed."""
    url = outlets[0].target.url if outlets else "null"
    give_up = time.monotonic() + _CONNECT_SECONDS
    while True:
        encoder = _encoder(ffmpeg, stream, outlets, on_data)
        if await _started(encoder, url):
            stack.push_async_callback(encoder.stop)
            return RunningStream(stream, encoder, outlets)
        # A listening ffmpeg takes one connection and must not be probed: so the encoder tries again. And a
        # live source of one client, which was looked at before, may need a moment to be there again.
        sink = next((outlet.sink for outlet in outlets if outlet.sink is not None), None)
        sink_ended = sink is not None and sink.exit_code is not None
        may_come = sink is not None or is_live(stream.input)
        if not may_come or sink_ended or time.monotonic() > give_up:
            failed: Child = sink if sink is not None and sink_ended else encoder
            why = unreachable(stream.input, failed.last_words()) or _explain(failed, url)
            raise StreamFailed(f"{failed.name} did not start: {why}")
        await asyncio.sleep(0.1)


async def _started(encoder: Encoder, target: str) -> bool:
    """Start an encoder; return whether it sends frames, or False once it has ended. Raises: StreamFailed."""
    async with contextlib.AsyncExitStack() as unless_it_runs:
        unless_it_runs.push_async_callback(encoder.stop)
        await encoder.start()
        give_up, where = time.monotonic() + _START_SECONDS, redact_url(target)
        while encoder.exit_code is None and not encoder.has_sent_a_frame:
            if time.monotonic() > give_up:
                source = encoder.scenario.input
                origin = f" from {redact_url(source)}" if is_live(source) else ""
                what = f"sent no frame within {_START_SECONDS:g} s{origin} to {where}"
                raise StreamFailed(f"{encoder.name} {what}")
            await asyncio.sleep(0.05)
        if encoder.exit_code is None:
            unless_it_runs.pop_all()
            return True
    return False


def _explain(child: Child, target: str) -> str:
    words = child.last_words()
    kind = kind_of(target)
    why = next((why for why in _UNREACHABLE if any(why in line for line in child.lines)), "")
    if not why or kind in (*OURS, "file", "udp"):
        return words
    server = "an RTMP server" if kind.startswith("rtmp") else "a receiver"
    hint = f"start {server} there, or omit --sink to use the embedded one"
    return f"nothing is listening at {redact_url(target)}; {hint} ({why})"
