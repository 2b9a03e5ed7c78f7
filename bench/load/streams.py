"""Streams as a scenario has them: started one after the other, each with its sink, all ended together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.load.encoder import Encoder, Relay, Sink, StreamFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.meter.client import AgentClient
    from powerbench_agent.bench.plan.scenario import Scenario

_CONNECT_SECONDS = 10.0  # for the embedded sink to come up
_START_SECONDS = 20.0  # for an encoder to send its first frame


class Stream(NamedTuple):
    """One stream that runs."""

    scenario: Scenario
    encoder: Encoder
    receiver: Sink | None

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time of its two ends."""
        used = {"encoder": self.encoder.cpu_seconds()}
        if self.receiver is not None:
            used["sink"] = self.receiver.cpu_seconds()
        return used


@contextlib.asynccontextmanager
async def streaming(
    ffmpeg: Ffmpeg, scenario: Scenario, sink: str, client: AgentClient
) -> AsyncIterator[Sequence[Stream]]:
    """Run a scenario's streams for as long as the context lasts; all of them run when it begins.

    They start one after the other: at once, their first seconds would fight for the CPUs, and some would
    begin behind real time. `client`: whom their progress goes to. Raises: StreamFailed.
    """
    async with contextlib.AsyncExitStack() as stack:
        streams: list[Stream] = []
        for number, one in enumerate(scenario.streams, 1):
            relay = Relay(client, one.name)
            stack.push_async_callback(relay.close)
            several = len(scenario.streams) > 1 and sink.startswith("rtmp")
            running = _one(ffmpeg, one, f"{sink}-{number}" if several else sink, relay.send)
            streams.append(await stack.enter_async_context(running))
            for earlier in streams:
                earlier.encoder.check_alive()
        yield streams


@contextlib.asynccontextmanager
async def _one(
    ffmpeg: Ffmpeg, scenario: Scenario, sink: str, on_data: Callable[[int, bytes], None]
) -> AsyncIterator[Stream]:
    receiver: Sink | None = None
    encoder: Encoder | None = None
    try:
        if sink == "embedded":
            receiver = Sink(ffmpeg, scenario.name)
            await receiver.start()
        patience = time.monotonic() + _CONNECT_SECONDS
        while True:
            encoder = Encoder(ffmpeg, scenario, receiver.url if receiver else sink, on_data)
            encoder.sink = receiver
            await encoder.start()
            started = time.monotonic()
            while encoder.exit_code is None and not any((p.report.frames or 0) > 0 for p in encoder.points):
                if time.monotonic() > started + _START_SECONDS:
                    raise StreamFailed(f"{encoder.name} sent no frame within {_START_SECONDS:g} s to {sink}")
                await asyncio.sleep(0.05)
            if encoder.exit_code is None:
                break
            # A listening ffmpeg takes one connection and must not be probed: so the encoder tries again.
            await encoder.stop()
            if receiver is None or receiver.exit_code is not None or time.monotonic() > patience:
                who = receiver if receiver and receiver.exit_code is not None else encoder
                raise StreamFailed(f"{who.name} did not start: {_explain(who, sink)}")
            await asyncio.sleep(0.1)
        yield Stream(scenario, encoder, receiver)
    finally:
        if encoder is not None:
            await encoder.stop()
        if receiver is not None:
            await receiver.stop()


def _explain(child: Encoder | Sink, sink: str) -> str:
    words = child.last_words()
    if "Connection refused" in words and sink.startswith("rtmp"):
        return f"nobody listens at {sink}; start an RTMP server there, or leave --sink out ({words})"
    return words
