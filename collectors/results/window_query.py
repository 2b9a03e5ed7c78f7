"""Asks Prometheus or VictoriaMetrics for the energy of past windows, for results files that hold none.

Asks `/api/v1/query` for raw samples (`name[…s]`) around a window, one metric after another, until one has
samples in the window; core/prometheus_windows.py says what energy that is. Both servers answer such a query
with the samples as they were scraped. Unix seconds, joules. Privileges: reaching that server.

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

import structlog

from powerbench_agent.core.prometheus_windows import (
    NODE,
    POWER,
    RAPL,
    NotPrometheus,
    SeveralMachines,
    energy_of,
    parse_answer,
    range_query,
)
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import aiohttp

    from powerbench_agent.core.host import Clock
    from powerbench_agent.core.prometheus_windows import PastWindow, WindowEnergy
    from powerbench_agent.core.results import Energy

log = structlog.get_logger("results")

WINDOWS_AT_ONCE = 5
TIMEOUT_SECONDS = 5.0
MAX_ANSWER_BYTES = 4 * 2**20
MAX_WINDOW_SECONDS = 7 * 86400.0
MAX_WARNINGS = 100
NO_DATA_SECONDS = (30.0, 3600.0)  # first and longest wait before a window is asked for again
UNANSWERED_SECONDS = (10.0, 300.0)  # likewise, for the server as a whole

_ZONES = 'zone=~"(package|dram).*"'
_MATCHERS = {NODE: 'component=~"cpu|dram|gpu"', RAPL: _ZONES, POWER: _ZONES}


class Unanswered(Exception):  # noqa: N818 - a verdict
    """The server does not answer, whatever the window; the text says what to do."""


class NoEnergy(Exception):  # noqa: N818 - a verdict
    """A window has no energy; with a text if the user can do something about it."""


class _Wait(NamedTuple):
    """How long not to ask again."""

    until: float = -math.inf  # on the monotonic clock
    seconds: float = 0.0

    def longer(self, bounds: tuple[float, float], now: float) -> _Wait:
        """Return the next wait, twice as long within the bounds."""
        first, longest = bounds
        seconds = min(max(self.seconds * 2, first), longest)
        return _Wait(now + seconds, seconds)


_NO_WAIT = _Wait()


def can_be_asked(window: PastWindow) -> bool:
    """Return whether a window is possible, and not too long to ask for its samples."""
    return window.is_possible and window.seconds <= MAX_WINDOW_SECONDS


class WindowQuery:
    """One server, what it has answered, and what to ask it next."""

    def __init__(self, url: str, match: str, clock: Clock) -> None:
        """`match`: matchers for every query, like `instance="a:9510"`; "" for none."""
        self._url = f"{url.rstrip('/')}/api/v1/query"
        self._server = urlsplit(url).hostname or ""  # for the log: the URL may hold a password
        self._match = match
        self._clock = clock
        self._worker = Worker("results-query")
        self._tls: ssl.SSLContext | None = None
        self._answers: dict[PastWindow, Energy] = {}
        self._waits: dict[PastWindow, _Wait] = {}
        self._pause = _NO_WAIT
        self._said: set[str] = set()
        self.generation = 0  # changes with every answer
        self.asking: asyncio.Task[None] | None = None

    def answer(self, window: PastWindow) -> Energy | None:
        """Return a window's energy; None as long as it is not known. Any thread may ask."""
        return self._answers.get(window)

    def want(self, windows: Iterable[PastWindow]) -> None:
        """Ask for some of these windows, in the background; forget all others."""
        wanted = dict.fromkeys(windows)
        self._answers = {window: energy for window, energy in self._answers.items() if window in wanted}
        self._waits = {window: wait for window, wait in self._waits.items() if window in wanted}
        now = self._clock.monotonic()
        busy = self.asking is not None and not self.asking.done()
        if busy or now < self._pause.until:
            return
        unknown = [window for window in wanted if window not in self._answers]
        due = [window for window in unknown if now >= self._waits.get(window, _NO_WAIT).until]
        if due:
            self.asking = asyncio.ensure_future(self._ask(due[:WINDOWS_AT_ONCE]))

    async def aclose(self) -> None:
        """Stop asking."""
        if self.asking is not None:
            self.asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.asking
        self._worker.close()

    async def _ask(self, batch: Sequence[PastWindow]) -> None:
        try:
            async with await self._session() as session:
                for window in batch:
                    await self._settle(session, window)
        except Unanswered as why:
            self._say(str(why))
            self._pause = self._pause.longer(UNANSWERED_SECONDS, self._clock.monotonic())
        except Exception:
            log.exception("bug in asking for windows")
            longest = UNANSWERED_SECONDS[1]
            self._pause = _Wait(self._clock.monotonic() + longest, longest)
        else:
            self._pause = _NO_WAIT

    async def _session(self) -> aiohttp.ClientSession:
        import aiohttp  # noqa: PLC0415 - the daemon has it loaded; other users of this module need not

        if self._url.startswith("https") and self._tls is None:
            self._tls = await self._worker.call(ssl.create_default_context)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls or True, limit=1),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            # The size of an answer is bounded as it arrives: it must not grow afterwards.
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
        )

    async def _settle(self, session: aiohttp.ClientSession, window: PastWindow) -> None:
        """Find a window's energy, or when to ask again. Raises: Unanswered."""
        try:
            self._answers[window] = await self._energy(session, window)
        except NoEnergy as why:
            if str(why):
                self._say(str(why))
            wait = self._waits.get(window, _NO_WAIT)
            self._waits[window] = wait.longer(NO_DATA_SECONDS, self._clock.monotonic())
        else:
            self._waits.pop(window, None)
            self.generation += 1

    async def _energy(self, session: aiohttp.ClientSession, window: PastWindow) -> Energy:
        """Return a window's energy. Raises: NoEnergy, Unanswered."""
        for metric, matchers in _MATCHERS.items():
            both = f"{matchers},{self._match}" if self._match else matchers
            query = range_query(f"{metric}{{{both}}}", window, self._clock.time())
            body = await self._get(session, query)
            found = await self._worker.call(functools.partial(self._found, body, window))
            if found.energy is not None:
                return found.energy
            if found.metric:  # its samples do not cover the window, and another metric may lack a part
                break
        raise NoEnergy

    def _found(self, body: bytes, window: PastWindow) -> WindowEnergy:
        """Return what an answer says about a window. Raises: NoEnergy, Unanswered."""
        try:
            answer = parse_answer(body)
        except NotPrometheus as error:
            remedy = "see [collectors.results] prometheus"
            raise Unanswered(f"{self._server} does not answer like Prometheus: {error}; {remedy}") from None
        if answer.error:  # a query that it does not accept: too many samples, say
            raise NoEnergy(f"{self._server} refuses the query: {answer.error[:200]}")
        try:
            return energy_of(answer.series, window)
        except SeveralMachines as several:
            example = f"prometheus_match = '{several.label}=\"{several.values[0]}\"'"
            raise NoEnergy(f"{several}: set [collectors.results] {example}") from None

    async def _get(self, session: aiohttp.ClientSession, query: dict[str, str]) -> bytes:
        """Return the body of an answer. Raises: NoEnergy, Unanswered."""
        import aiohttp  # noqa: PLC0415 - it is loaded by now

        try:
            async with session.get(self._url, params=query, allow_redirects=False) as answer:
                body = bytearray()
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        what = f"sends more than {MAX_ANSWER_BYTES} bytes for one window"
                        raise NoEnergy(f"{self._server} {what}: set [collectors.results] prometheus_match")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            what = str(error) or type(error).__name__
            remedy = "see [collectors.results] prometheus"
            raise Unanswered(f"no answer from {self._server}: {what}; {remedy}") from None
        if answer.status not in (200, 400, 422):  # these two hold the reason of a refusal
            remedy = "set [collectors.results] prometheus to the address of the API itself"
            raise Unanswered(f"{self._server} answers {answer.status}; {remedy}")
        return bytes(body)

    def _say(self, what: str) -> None:
        if what not in self._said and len(self._said) < MAX_WARNINGS:
            self._said.add(what)
            log.warning("no energy for a window", error=what)
