"""The streams of a scenario: started one after the other, each with its sink, all stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.load.child import StreamFailed
from powerbench_agent.bench.load.containers import StreamTarget, choose_container
from powerbench_agent.bench.load.encoder import Encoder, identity_of
from powerbench_agent.bench.load.sinks import Relay, Sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from powerbench_agent.bench.load.child import Child
    from powerbench_agent.bench.load.containers import Container
    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.meter.client import AgentClient
    from powerbench_agent.bench.plan.scenario import Scenario

_CONNECT_SECONDS = 10.0  # for the embedded sink to come up
_START_SECONDS = 20.0  # for an encoder to send its first frame


class RunningStream(NamedTuple):
    """One stream that runs."""

    scenario: Scenario
    encoder: Encoder
    sink: Sink | None
    container: Container

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time of its two ends."""
        used = {"encoder": self.encoder.cpu_seconds()}
        if self.sink is not None:
            used["sink"] = self.sink.cpu_seconds()
        return used


@contextlib.asynccontextmanager
async def streaming(
    ffmpeg: Ffmpeg, scenario: Scenario, sink: str, client: AgentClient
) -> AsyncIterator[Sequence[RunningStream]]:
    """Run a scenario's streams for as long as the context lasts; all of them run when it begins.

    They start one after the other: at once, their first seconds would compete for the CPUs, and some would
    begin behind real time. `client`: the agent that gets their progress. Raises: StreamFailed.
    """
    several = len(scenario.streams) > 1 and sink.startswith("rtmp")
    async with contextlib.AsyncExitStack() as stack:
        streams: list[RunningStream] = []
        for number, one in enumerate(scenario.streams, 1):
            container = choose_container(one.asked.row.codec, sink, ffmpeg.number)
            target = StreamTarget(f"{sink}-{number}" if several else sink, container)
            relay = Relay(client, one.name, identity_of(one, container))
            stack.push_async_callback(relay.close)
            streams.append(await stack.enter_async_context(_stream(ffmpeg, one, target, relay.send)))
            for earlier in streams:
                earlier.encoder.check_alive()
        yield streams


@contextlib.asynccontextmanager
async def _stream(
    ffmpeg: Ffmpeg, scenario: Scenario, target: StreamTarget, on_data: Callable[[int, bytes], None]
) -> AsyncIterator[RunningStream]:
    """Run one stream for as long as the context lasts. Raises: StreamFailed."""
    url, container = target
    async with contextlib.AsyncExitStack() as stack:
        sink: Sink | None = None
        if url == "embedded":
            sink = Sink(ffmpeg, scenario.name, container)
            stack.push_async_callback(sink.stop)
            await sink.start()
        give_up = time.monotonic() + _CONNECT_SECONDS
        while True:
            reached = StreamTarget(sink.url, container) if sink else target
            encoder = Encoder(ffmpeg, scenario, reached, on_data, sink)
            if await _started(encoder, url):
                stack.push_async_callback(encoder.stop)
                break
            # A listening ffmpeg takes one connection and must not be probed: so the encoder tries again.
            sink_ended = sink is not None and sink.exit_code is not None
            if sink is None or sink_ended or time.monotonic() > give_up:
                failed: Child = sink if sink is not None and sink_ended else encoder
                raise StreamFailed(f"{failed.name} did not start: {_explain(failed, url)}")
            await asyncio.sleep(0.1)
        yield RunningStream(scenario, encoder, sink, container)


async def _started(encoder: Encoder, target: str) -> bool:
    """Start an encoder; return whether it sends frames, or False once it has ended. Raises: StreamFailed."""
    async with contextlib.AsyncExitStack() as unless_it_runs:
        unless_it_runs.push_async_callback(encoder.stop)
        await encoder.start()
        give_up = time.monotonic() + _START_SECONDS
        while encoder.exit_code is None and not encoder.has_sent_a_frame:
            if time.monotonic() > give_up:
                raise StreamFailed(f"{encoder.name} sent no frame within {_START_SECONDS:g} s to {target}")
            await asyncio.sleep(0.05)
        if encoder.exit_code is None:
            unless_it_runs.pop_all()
            return True
    return False


def _explain(child: Child, target: str) -> str:
    words = child.last_words()
    if "Connection refused" in words and target.startswith("rtmp"):
        hint = "start an RTMP server there, or omit --sink to use the embedded one"
        return f"nothing is listening at {target}; {hint} ({words})"
    return words
