"""The phases of a scenario: waiting, settling, and the window itself, whose edges are exact readings."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from powerbench_agent.bench.load.child import StreamFailed
from powerbench_agent.bench.meter import conditions
from powerbench_agent.bench.meter.client import AgentFailed
from powerbench_agent.bench.meter.energy import Edge, MeteredEnergy, energy_between
from powerbench_agent.bench.run import standstill
from powerbench_agent.bench.run.figures import encode_figures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from powerbench_agent.bench.load.encoder import Encoder
    from powerbench_agent.bench.meter.meters import Meters
    from powerbench_agent.bench.run.display import PhaseDisplay
    from powerbench_agent.bench.run.record import Trace
    from powerbench_agent.core.host import Host
    from powerbench_agent.core.results import Encode

SETTLE_SPAN = 5.0  # seconds; two such spans in a row are compared
STEADY_SHARE = 0.03  # by which their powers may differ, or
STEADY_WATTS = 0.5  # by this, whichever is more
STEADY_CELSIUS = 1.0
MAX_SETTLE = 60.0  # seconds, and never longer than the warm-up itself
_RECENT_SECONDS = 5.0  # that live figures are of
_NEXT_REPORT_SECONDS = 1.0  # they come every half second
_LOOK_SECONDS = 0.02
_FOLLOW_SECONDS = 1.0  # the length of the readings that an agent sends together


class Settling(NamedTuple):
    """How long a scenario settled before its window."""

    seconds: float  # beyond the warm-up
    settled: bool


class OpenWindow:
    """A window while it is open: its edges so far."""

    def __init__(self) -> None:
        self.begin: Edge | None = None
        self.end: Edge | None = None
        self.began = self.ended = 0.0  # monotonic seconds here
        self.readings = 0

    def open(self, edge: Edge) -> None:
        """Take the first reading."""
        self.begin, self.began = edge, time.monotonic()

    def move(self, edge: Edge) -> None:
        """Take a reading that may be the last."""
        self.end, self.ended = edge, time.monotonic()

    @property
    def hertz(self) -> float | None:
        """How often its counters were read."""
        seconds = self.ended - self.began
        return round(self.readings / seconds, 2) if seconds > 0 else None

    def energy(self) -> MeteredEnergy | None:
        """Return the energy between its edges; None if it is not known."""
        if self.begin is None or self.end is None or self.ended <= self.began:
            return None
        with contextlib.suppress(AgentFailed):
            return energy_between(self.begin, self.end)
        return None


class Phases:
    """Runs the phases of scenarios, which share the meters, the trace and the display."""

    def __init__(self, meters: Meters, trace: Trace, display: PhaseDisplay, host: Host) -> None:
        self._meters = meters
        self._trace = trace
        self._display = display
        self._host = host
        self.notes: list[str] = []  # of the scenario that is running

    async def wait(self, title: str, seconds: float, encoders: Sequence[Encoder] = ()) -> None:
        """Wait. Raises: StreamFailed if a stream dies or stands still."""
        if seconds > 0:
            await self._poll(title, seconds, encoders, lambda _: False)
            self._finish(seconds)

    async def settle(self, warm_up: float, encoders: Sequence[Encoder] = ()) -> Settling:
        """Wait until power and temperature are steady, at most for as long as the warm-up was."""
        limit = min(MAX_SETTLE, warm_up)
        if limit < 2 * SETTLE_SPAN:
            return Settling(0.0, settled=False)  # too short to tell, and no longer was asked for
        begun = time.monotonic()
        edges: deque[tuple[Edge, float | None]] = deque()
        steady = False

        def look(edge: Edge) -> bool:
            nonlocal steady
            edges.append((edge, conditions.read_conditions(self._host).celsius))
            while len(edges) > 2 and edges[1][0].time <= edge.time - 2 * SETTLE_SPAN:
                edges.popleft()
            steady = is_steady(edges)
            return steady

        # A reading at each end too: the shortest time allowed is exactly two spans.
        with contextlib.suppress(AgentFailed):
            look(await self._meters.glance())
        await self._poll("settling", limit, encoders, look, slowly=True)
        self._finish(limit)
        if not steady:
            with contextlib.suppress(AgentFailed):
                look(await self._meters.glance())
        if not steady:
            self.notes.append(
                f"power was not steady {limit:g} s after the warm-up: increase --stabilization, "
                "or stop what runs on this machine from time to time"
            )
        return Settling(round(time.monotonic() - begun, 2), steady)

    async def measure(
        self, title: str, name: str, seconds: float, opened: OpenWindow, encoders: Sequence[Encoder] = ()
    ) -> None:
        """Measure one window and keep its trace. Raises: StreamFailed, AgentFailed."""
        opened.open(await self._meters.edge())
        assert opened.begin is not None  # noqa: S101 - opened
        self._trace.take(name, "window", opened.begin)

        def keep(edge: Edge) -> bool:
            opened.move(edge)
            opened.readings += self._trace.take(name, "window", edge)
            return False

        try:
            await self._poll(title, seconds, encoders, keep)
        except asyncio.CancelledError:  # what was measured until now is kept, up to now
            with contextlib.suppress(AgentFailed):
                keep(await self._meters.glance())
            raise
        keep(await self._meters.edge(opened.begin))
        _check_running(encoders, standstill.patience(seconds))
        whole = opened.energy()
        self._finish(seconds, f"{whole.watts:.2f} W ({whole.source})" if whole else "")

    async def measure_encodes(
        self,
        name: str,
        frames: int | None,
        opened: OpenWindow,
        encoders: Sequence[Encoder],
        look: Callable[[], None],
    ) -> None:
        """Start some encoders, and measure until all of them have ended; that is the window.

        `frames`: that each is to encode, if it is known; `look` is called now and then. Raises: StreamFailed,
        AgentFailed.
        """
        opened.open(await self._meters.edge())
        assert opened.begin is not None  # noqa: S101 - opened
        self._trace.take(name, "window", opened.begin)

        def keep(edge: Edge) -> None:
            opened.move(edge)
            opened.readings += self._trace.take(name, "window", edge)

        total = float(frames) if frames else 1.0
        self._display.begin(name, total, "frames" if frames else "")
        for encoder in encoders:
            await encoder.start()
        ending = asyncio.ensure_future(_all_ended(encoders))
        try:
            before = opened.begin
            while not ending.done():
                for edge in await self._follow_until(ending):
                    keep(edge)
                look()
                _check_encoding(encoders, opened.began)
                news = _news(before, opened.end, encoders) if opened.end is not None else ""
                self._display.update(min(total, _done(encoders)) if frames else 0.0, news)
            keep(await self._meters.edge(opened.begin))
        except asyncio.CancelledError:  # what was measured until now is kept, up to now
            with contextlib.suppress(AgentFailed):
                keep(await self._meters.glance())
            raise
        finally:
            ending.cancel()
        _check_encoding(encoders, opened.began)
        whole = opened.energy()
        self._finish(total, f"{whole.watts:.2f} W ({whole.source})" if whole else "")

    async def _follow_until(self, ending: asyncio.Future[None]) -> list[Edge]:
        """Return the trace of the next second; nothing if the end comes before that is over."""
        following = asyncio.ensure_future(self._meters.follow(_FOLLOW_SECONDS, self._meters.hertz))
        try:
            waiting: list[asyncio.Future[Any]] = [following, ending]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if ending.done() or not following.done():
                return []
            return following.result()
        except AgentFailed as failed:  # the window's edges are exact all the same
            if (note := f"the trace has a gap: {failed}") not in self.notes:
                self.notes.append(note)
            await asyncio.wait([ending], timeout=1 / self._meters.hertz)
            return []
        finally:
            following.cancel()
            await asyncio.wait([following])  # awaited itself, it would pass its end off as an interruption
            if not following.cancelled():
                following.exception()

    @staticmethod
    async def hear_beyond(encoders: Sequence[Encoder], moment: float) -> None:
        """Wait, for a second at most, until encoders have reported after a monotonic second.

        What they did until then lies between two reports. The one that an encoder ends with is none of these:
        it counts at once all frames that were held back.
        """
        give_up = moment + _NEXT_REPORT_SECONDS
        while time.monotonic() < give_up:
            if all(encoder.points[-1].at > moment for encoder in encoders if encoder.points):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _finish(self, seconds: float, news: str = "") -> None:
        """End a phase; its latest figures do not stand for all of it."""
        self._display.update(seconds, news)
        self._display.end()

    async def _poll(
        self,
        title: str,
        seconds: float,
        encoders: Sequence[Encoder],
        look: Callable[[Edge], bool],
        *,
        slowly: bool = False,
    ) -> None:
        """Watch the meters and the encoders until the time is up or `look` has seen enough.

        `slowly`: once a second is enough. Raises: StreamFailed.
        """
        self._display.begin(title, seconds)
        begun = last_shown = time.monotonic()
        hertz = min(1.0, self._meters.hertz) if slowly else self._meters.hertz
        before: Edge | None = None
        while (left := seconds - (time.monotonic() - begun)) > 0:
            edges: list[Edge] = []
            try:
                edges = await self._meters.follow(min(left, _FOLLOW_SECONDS), hertz)
            except AgentFailed as failed:  # the window's edges are exact all the same
                if (note := f"the trace has a gap: {failed}") not in self.notes:
                    self.notes.append(note)
                await asyncio.sleep(min(left, 1 / hertz))
            _check_running(encoders, standstill.patience(seconds))
            seen = [look(edge) for edge in edges]
            if any(seen):
                break
            if not edges:
                continue
            if before is None:
                before = edges[0]
            if time.monotonic() - last_shown >= _FOLLOW_SECONDS / 2:
                self._display.update(time.monotonic() - begun, _news(before, edges[-1], encoders))
                before, last_shown = edges[-1], time.monotonic()


def _check_running(encoders: Sequence[Encoder], limit: float) -> None:
    """Check that the streams run, with a new frame within `limit` seconds. Raises: StreamFailed."""
    for encoder in encoders:
        encoder.check_alive()
        standstill.check_moving(encoder, time.monotonic(), limit)


async def _all_ended(encoders: Sequence[Encoder]) -> None:
    for encoder in encoders:
        await encoder.wait()


def _check_encoding(encoders: Sequence[Encoder], began: float) -> None:
    """Check that encodes which are held to no pace come on, or have ended well. Raises: StreamFailed."""
    for encoder in encoders:
        if encoder.exit_code:
            what = f"{encoder.name} failed (ffmpeg's exit code {encoder.exit_code})"
            raise StreamFailed(f"{what}: {encoder.last_words()}")
        if encoder.exit_code is None:
            standstill.check_moving(encoder, time.monotonic(), standstill.LONG_PATIENCE, began)


def _done(encoders: Sequence[Encoder]) -> float:
    """Return how many frames the slowest encoder has encoded."""
    counts = [encoder.points[-1].report.frames if encoder.points else 0 for encoder in encoders]
    return float(min((count or 0 for count in counts), default=0))


def is_steady(readings: Sequence[tuple[Edge, float | None]]) -> bool:
    """Return whether the last two spans had the same power and the same temperature.

    `readings`: edges, each with the temperature in °C if it is known.
    """
    edges = [edge for edge, _ in readings]
    if edges[-1].time - edges[0].time < 2 * SETTLE_SPAN * 0.95:
        return False
    half_way = edges[-1].time - SETTLE_SPAN
    middle = min(range(len(edges)), key=lambda number: abs(edges[number].time - half_way))
    if not 0 < middle < len(edges) - 1:
        return False
    try:
        first = energy_between(edges[0], edges[middle]).watts
        last = energy_between(edges[middle], edges[-1]).watts
    except AgentFailed:
        return False
    if abs(last - first) > max(STEADY_WATTS, STEADY_SHARE * first):
        return False
    temperatures = [celsius for _, celsius in readings]
    early = [celsius for celsius in temperatures[: middle + 1] if celsius is not None]
    late = [celsius for celsius in temperatures[middle:] if celsius is not None]
    if not early or not late:
        return True
    return abs(fmean(late) - fmean(early)) <= STEADY_CELSIUS


def _news(before: Edge, now: Edge, encoders: Sequence[Encoder]) -> str:
    """Return one line of live figures."""
    parts = []
    with contextlib.suppress(AgentFailed):
        energy = energy_between(before, now)
        parts.append(f"{energy.watts:.2f} W ({energy.source})")
    recent = [figures for encoder in encoders if (figures := _recent(encoder)) is not None]
    if fps := [figures.fps for figures in recent if figures.fps is not None]:
        parts.append(f"{fps[0]:.1f} fps" if len(fps) == 1 else f"{len(fps)} streams, {min(fps):.1f} fps")
    kbps = [figures.kbps for figures in recent if figures.kbps is not None]
    if kbps and not encoders[0].scenario.pace.is_max:  # else a second of wall clock is none of content
        parts.append(f"{sum(kbps):.0f} kbps")
    return ", ".join(parts)


def _recent(encoder: Encoder) -> Encode | None:
    """Return what an encoder did lately; None if it has not reported twice."""
    points = encoder.points
    if len(points) < 2:
        return None
    end = points[-1].at
    begin = max(points[0].at, end - _RECENT_SECONDS)
    return encode_figures(points, begin, end) if end > begin else None
