"""Energy of past windows out of Prometheus or VictoriaMetrics, for results files that hold none.

Asks `/api/v1/query` for the raw samples (`name[…s]`) around a window; what they mean is said in
core/prometheus_windows.py. Both servers answer such an instant query with the samples as they were scraped.
Unix seconds and joules. Privileges: reaching that server.

Source: https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries,
https://docs.victoriametrics.com/keyconcepts/#instant-query
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import ssl
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import msgspec
import structlog

from powerbench_agent.core.prometheus_windows import (
    COMPONENTS,
    NODE_ENERGY,
    RAPL_ENERGY,
    RAPL_POWER,
    SampledSeries,
    SeveralMachines,
    energy_of_window,
    touches,
)
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import aiohttp

    from powerbench_agent.core.host import Clock
    from powerbench_agent.core.results import Energy

log = structlog.get_logger("results")

WINDOWS_A_BEAT = 5
TIMEOUT_SECONDS = 5.0
MAX_ANSWER_BYTES = 4 * 2**20
MARGIN_SECONDS = 120.0  # asked for on both sides, so that a sample lies beyond each edge
MAX_WINDOW_SECONDS = 7 * 86400.0
NO_DATA_SECONDS = (30.0, 3600.0)  # first and longest wait before a window is asked for again
UNANSWERED_SECONDS = (10.0, 300.0)  # likewise, for the server as a whole


class Window(NamedTuple):
    """A span of Unix seconds."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.begin

    @property
    def can_be_asked(self) -> bool:
        """Whether there can be an answer."""
        return 0 < self.begin < self.end < 1e11 and self.seconds <= MAX_WINDOW_SECONDS


class Unanswered(Exception):  # noqa: N818 - a verdict
    """The server gives no answer, to any window; the text says what to do."""


class NoEnergy(Exception):  # noqa: N818 - a verdict
    """There is no energy for this window; a text where somebody can do something about it."""


class _Series(msgspec.Struct, frozen=True):
    """One series' raw samples, as the server writes them."""

    metric: dict[str, str]
    values: list[tuple[float, str]] = []


class _Data(msgspec.Struct, frozen=True):
    result: list[_Series] = []


class _Answer(msgspec.Struct, frozen=True):
    data: _Data = _Data()
    error: str = ""


_ZONES = 'zone=~"(package|dram).*"'  # older exporters' zones are package-0 or package_0
SELECTORS = {  # metric: its matchers
    NODE_ENERGY: f'component=~"{"|".join(COMPONENTS)}"',
    RAPL_ENERGY: _ZONES,
    RAPL_POWER: _ZONES,
}


class WindowQuery:
    """One server, what it has answered, and what it is to be asked next."""

    def __init__(self, url: str, match: str, clock: Clock) -> None:
        """`match`: matchers that every query gets, `instance="a:9510"`; "" for none."""
        self._url = f"{url.rstrip('/')}/api/v1/query"
        self._server = urlsplit(url).hostname or ""  # what the log says: the URL may hold a password
        self._match = match
        self._clock = clock
        self._worker = Worker("results-query")
        self._tls: ssl.SSLContext | None = None
        self._answers: dict[Window, Energy] = {}
        self._waits: dict[Window, tuple[float, float]] = {}  # (asked again from, after this wait)
        self._paused = (-math.inf, 0.0)  # likewise
        self._said: set[str] = set()
        self.generation = 0  # changes with every answer
        self.asking: asyncio.Task[None] | None = None

    def answer(self, window: Window) -> Energy | None:
        """Return a window's energy; None while nobody knows. Any thread may ask."""
        return self._answers.get(window)

    def want(self, windows: Iterable[Window]) -> None:
        """Ask for some of these windows, in the background; forget all others."""
        wanted = dict.fromkeys(windows)
        self._answers = {window: energy for window, energy in self._answers.items() if window in wanted}
        self._waits = {window: wait for window, wait in self._waits.items() if window in wanted}
        now = self._clock.monotonic()
        if now < self._paused[0] or (self.asking is not None and not self.asking.done()):
            return
        due = (w for w in wanted if w not in self._answers and now >= self._waits.get(w, _NEVER)[0])
        batch = [window for window, _ in zip(due, range(WINDOWS_A_BEAT), strict=False)]
        if batch:
            self.asking = asyncio.ensure_future(self._ask(batch))

    async def aclose(self) -> None:
        """Ask nothing more."""
        if self.asking is not None:
            self.asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.asking
        self._worker.close()

    async def _ask(self, batch: Sequence[Window]) -> None:
        import aiohttp  # noqa: PLC0415 - the daemon has it loaded; other users of this module need not

        try:
            if self._url.startswith("https") and self._tls is None:
                self._tls = await self._worker.call(ssl.create_default_context)
            connector = aiohttp.TCPConnector(ssl=self._tls or True, limit=1)
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
            # An answer is bounded as it comes, so it is not to swell here.
            plain = {"Accept-Encoding": "identity"}
            async with aiohttp.ClientSession(
                connector=connector, timeout=timeout, headers=plain, auto_decompress=False
            ) as session:
                for window in batch:
                    await self._settle(session, window)
        except Unanswered as why:
            self._say(str(why))
            wait = _longer(self._paused[1], UNANSWERED_SECONDS)
            self._paused = (self._clock.monotonic() + wait, wait)
        except Exception:
            log.exception("bug in asking for windows")
            self._paused = (self._clock.monotonic() + UNANSWERED_SECONDS[1], UNANSWERED_SECONDS[1])
        else:
            self._paused = (-math.inf, 0.0)

    async def _settle(self, session: aiohttp.ClientSession, window: Window) -> None:
        """Find a window's energy, or when to ask again. Raises: Unanswered."""
        try:
            self._answers[window] = await self._energy(session, window)
        except NoEnergy as why:
            if str(why):
                self._say(str(why))
            wait = _longer(self._waits.get(window, _NEVER)[1], NO_DATA_SECONDS)
            self._waits[window] = (self._clock.monotonic() + wait, wait)
        else:
            self._waits.pop(window, None)
            self.generation += 1

    async def _energy(self, session: aiohttp.ClientSession, window: Window) -> Energy:
        """Return a window's energy. Raises: NoEnergy, Unanswered."""
        until = min(window.end + MARGIN_SECONDS, max(self._clock.time(), window.end))
        span = math.ceil(until - window.begin + MARGIN_SECONDS)
        for metric, own_matchers in SELECTORS.items():
            matchers = ",".join(filter(None, (own_matchers, self._match)))
            query = {"query": f"{metric}{{{matchers}}}[{span}s]", "time": f"{until:.3f}"}
            body = await self._get(session, query)
            found = await self._worker.call(functools.partial(energy_in, body, window))
            if found is not None:
                return found
        raise NoEnergy

    async def _get(self, session: aiohttp.ClientSession, query: dict[str, str]) -> bytes:
        """Return the body of an answer. Raises: NoEnergy, Unanswered."""
        import aiohttp  # noqa: PLC0415 - it is loaded by now

        try:
            async with session.get(self._url, params=query, allow_redirects=False) as answer:
                body = bytearray()
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        what = f"has more than {MAX_ANSWER_BYTES} bytes for one window"
                        raise NoEnergy(f"{self._server} {what}: set [collectors.results] prometheus_match")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            what = str(error) or type(error).__name__
            raise Unanswered(
                f"no answer from {self._server}: {what}; see [collectors.results] prometheus"
            ) from None
        if answer.status in (400, 422):  # a query that it does not take: too many samples, say
            raise NoEnergy(f"{self._server} refuses: {_decode(bytes(body)).error[:200]}")
        if answer.status != 200:
            remedy = "set [collectors.results] prometheus to the address of the API itself"
            raise Unanswered(f"{self._server} answers {answer.status}; {remedy}")
        return bytes(body)

    def _say(self, what: str) -> None:
        if what not in self._said and len(self._said) < 100:
            self._said.add(what)
            log.warning("no energy for a window", error=what)


_NEVER = (-math.inf, 0.0)


def _longer(wait: float, bounds: tuple[float, float]) -> float:
    return min(max(wait * 2, bounds[0]), bounds[1])


def _decode(body: bytes) -> _Answer:
    """Return a server's answer. Raises: Unanswered."""
    try:
        return msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unanswered(
            f"the answer is not Prometheus's: {error}; see [collectors.results] prometheus"
        ) from None


def energy_in(body: bytes, window: Window) -> Energy | None:
    """Return a window's energy out of an answer; None if the answer has no samples in it.

    Raises: Unanswered if it is not an answer; NoEnergy if the samples are of several machines, or do not
    cover the window: another metric would be a part of the energy.
    """
    series = [SampledSeries(one.metric, points_of(one.values)) for one in _decode(body).data.result]
    try:
        energy = energy_of_window(series, *window)
    except SeveralMachines as several:
        raise NoEnergy(_explain(several)) from None
    if energy is None and any(touches(one, *window) for one in series):
        raise NoEnergy
    return energy


def _explain(several: SeveralMachines) -> str:
    names = [name[:100] for name in several.instances]
    example = f"prometheus_match = 'instance=\"{names[0]}\"'"
    return f"several machines answer ({', '.join(names[:3])}): set [collectors.results] {example}"


def points_of(values: Iterable[tuple[float, str]]) -> list[tuple[float, float]]:
    """Return a series' samples that are numbers."""
    points = []
    for moment, text in values:
        with contextlib.suppress(ValueError):
            value = float(text)
            if math.isfinite(moment) and math.isfinite(value):
                points.append((moment, value))
    return points
