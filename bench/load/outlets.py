"""The ways out of an encoder: for each rendition where it goes, what counts its bytes, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.load.child import StreamFailed
from powerbench_agent.bench.load.containers import StreamTarget, choose_container, copy_container
from powerbench_agent.bench.load.sinks import Sink
from powerbench_agent.bench.load.tap import FileCounter, Tap
from powerbench_agent.bench.plan.sink import kind_of, output_url

if TYPE_CHECKING:
    import contextlib

    from powerbench_agent.bench.load.containers import Container
    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.load.tap import ByteCounter
    from powerbench_agent.bench.meter.client import AgentClient
    from powerbench_agent.bench.plan.scenario import Scenario


_DRAIN_SECONDS = 1.0


class Outlet(NamedTuple):
    """One rendition's way out."""

    rendition: Scenario
    target: StreamTarget
    counter: ByteCounter | None  # None: FFmpeg's progress counts its bytes
    sink: Sink | None  # the process at its other end, if it is ours
    bytes_of: str  # what its bytes are of, for results

    @property
    def container(self) -> Container:
        """In which it travels."""
        return self.target.container

    @property
    def kept(self) -> str:
        """The path of what of it is kept from its first frame on; "" if nothing is."""
        if isinstance(self.counter, Tap) and self.counter.kept:
            return self.counter.kept
        return self.target.url if self.target.url.startswith("file:") else ""


class Way(NamedTuple):
    """Where the streams of a run go."""

    sink: str
    client: AgentClient  # the agent that gets their progress
    keep_in: Path | None = None  # the directory in which what they encode is kept


def is_direct(scenario: Scenario, sink: str) -> bool:
    """Return whether this process itself is the embedded sink, and not an RTMP server of ours.

    A ladder's renditions are counted apart, and a file that is encoded is no live stream.
    """
    return sink == "embedded" and (bool(scenario.ladder or scenario.rendition) or scenario.pace.is_max)


def container_of(ffmpeg: Ffmpeg, rendition: Scenario, sink: str) -> Container:
    """Return the container in which a rendition travels to such a sink."""
    codec = rendition.asked.row.codec
    return choose_container(codec, sink, ffmpeg.number, direct=is_direct(rendition, sink))


async def open_outlets(
    stack: contextlib.AsyncExitStack, ffmpeg: Ffmpeg, stream: Scenario, way: Way, place: tuple[int, int]
) -> list[Outlet]:
    """Return the outlets of a stream, whose other ends listen for as long as the stack lasts.

    `place`: (which stream of the scenario it is, from 0, how many there are). Raises: StreamFailed.
    """
    if stream.part:
        return []
    number, streams = place
    renditions = stream.renditions
    outlets = []
    for index, rendition in enumerate(renditions):
        which = number * len(renditions) + index
        url = output_url(way.sink, which, rendition.name, several=streams * len(renditions) > 1)
        outlets.append(await _open(stack, ffmpeg, rendition, url, way.keep_in))
    return outlets


async def _open(
    stack: contextlib.AsyncExitStack, ffmpeg: Ffmpeg, rendition: Scenario, url: str, keep_in: Path | None
) -> Outlet:
    container = container_of(ffmpeg, rendition, url)
    sent = f"{container} as sent"
    if kind_of(url) == "file":
        counter = FileCounter(Path(url.removeprefix("file:"))) if rendition.rendition else None
        return Outlet(rendition, StreamTarget(url, container), counter, None, f"{container} file")
    if url == "embedded" and container == "flv":
        tap = await _tap(stack, keep_in) if keep_in is not None else None
        sink = Sink(ffmpeg, rendition.name, tap.url if tap else "")
        stack.push_async_callback(sink.stop)
        if tap is not None:  # what the server still holds comes before it is stopped
            stack.push_async_callback(tap.drained, _DRAIN_SECONDS)
        await sink.start()
        return Outlet(rendition, StreamTarget(sink.url, container), tap, sink, sent)
    if url == "embedded":
        tap = await _tap(stack, keep_in)
        counted = f"{container} at the sink" if is_direct(rendition, url) else sent
        return Outlet(rendition, StreamTarget(tap.url, container), tap, None, counted)
    unseen = "; what arrived is not counted" if kind_of(url) in ("srt", "udp") else ""
    if keep_in is not None or rendition.rendition:
        tap = await _tap(stack, keep_in)
        # In MPEG-TS too if the stream is: it takes many bytes more than NUT.
        copied = container if container == "mpegts" else copy_container(rendition.asked.row.codec)
        target = StreamTarget(url, container, tap.url, copied)
        return Outlet(rendition, target, tap, None, f"{copied}, a copy{unseen}")
    return Outlet(rendition, StreamTarget(url, container), None, None, f"{sent}{unseen}")


async def _tap(stack: contextlib.AsyncExitStack, keep_in: Path | None) -> Tap:
    """Return a tap that listens. Raises: StreamFailed."""
    tap = Tap()
    try:
        await tap.start(keep_in)
    except OSError as error:
        raise StreamFailed(f"what is encoded cannot be kept in {keep_in}: {error.strerror}") from None
    stack.push_async_callback(tap.stop)

    def forget_if_it_failed(_: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            tap.forget()

    stack.push(forget_if_it_failed)
    return tap
