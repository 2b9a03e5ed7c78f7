"""The routes, on every port: /metrics /health /ready /ingest /api/v1/snapshot /api/v1/watch and /.

Handlers use the scheduler's latest snapshot. All that they can request from hardware is a fresh reading of
what is cheap, limited by a token bucket: so a flood of scrapes stays cheap, and RAPL does not become a side
channel for everyone who can reach the port (PLATYPUS, https://platypusattack.com/).
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog
from aiohttp import ClientError, WSCloseCode, http_exceptions, web

from powerbench_agent.agent import __version__, exposition
from powerbench_agent.agent.bucket import Bucket
from powerbench_agent.agent.connections import Guarded
from powerbench_agent.agent.rejections import SEND_PROGRESS_TO, Rejections
from powerbench_agent.agent.sending import Sending
from powerbench_agent.core.identity import stated
from powerbench_agent.core.model import IngestRejected, Ingests, Reading, Sender
from powerbench_agent.core.options import Address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

    from aiohttp import http

    from powerbench_agent.agent.access import Access
    from powerbench_agent.agent.listen import Site
    from powerbench_agent.agent.scheduler import Scheduler
    from powerbench_agent.core.host import Clock
    from powerbench_agent.core.model import Feed, Sample, Snapshot, State

log = structlog.get_logger("http")

SCRAPE_FRESH_RATE, SCRAPE_FRESH_BURST = 2.0, 5.0  # fresh readings a second, for everyone
KNOWN_FRESH_RATE, KNOWN_FRESH_BURST = 50.0, 50.0  # for those who are authenticated
_WITH_BODY = ("POST", "PUT", "PATCH")
_MAX_WATCH_BYTES = 64  # of one message
MAX_WATCHED, MAX_WATCH_SECONDS = 100, 10.0  # readings for one message, and how long they may take
_BAD_WATCH = b"a message is the number of readings and the seconds between them, like: 10 0.1"

_FORBIDDEN = (
    "only loopback peers (under an address or a name of this machine), networks in [agent.web] trusted, and "
    "requests with the token or password may do this; see token_file and trusted in agent.toml\n"
)
_NO_INGEST = "this port does not accept FFmpeg progress; use one that serves the ffmpeg collector\n"
_NO_PROGRESS = "no FFmpeg progress in this body; send the output of ffmpeg's -progress, or its stderr\n"
# A body that ends early or is malformed: the sender was killed, and no one waits for an answer.
_BROKEN_BODY = (OSError, ClientError, http_exceptions.HttpProcessingError, web.RequestPayloadError)


class _Encoded(NamedTuple):
    """A snapshot as JSON, and what it holds."""

    snapshot: Snapshot
    names: frozenset[str]
    samples: bool
    body: bytes


class Handlers:
    """What the ports share: the snapshot, the pages, the access rules, the buckets."""

    def __init__(self, scheduler: Scheduler, access: Access, clock: Clock) -> None:
        self.scheduler = scheduler
        self.access = access
        self.sites: dict[Address, Site] = {}
        self._clock = clock
        self.rejections = Rejections(clock)
        self._pages = exposition.Pages(self.rejections.counts)
        self._sending = Sending()
        self._last_encoded: _Encoded | None = None
        self._scrapes = Bucket(clock, rate=SCRAPE_FRESH_RATE, burst=SCRAPE_FRESH_BURST)
        self._known = Bucket(clock, rate=KNOWN_FRESH_RATE, burst=KNOWN_FRESH_BURST)

    def application(self, address: Address) -> web.Application:
        """Return the routes of one port; each request looks up in `sites` what the port shows."""
        app = web.Application(middlewares=[self._guard])
        app[_ADDRESS] = address
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/health", self.health)
        app.router.add_get("/ready", self.ready)
        app.router.add_get("/api/v1/snapshot", self.snapshot)
        app.router.add_get("/api/v1/watch", self.watch)
        app.router.add_get("/", self.index)
        for path in ("/ingest", "/ingest/{stream:.*}"):
            app.router.add_post(path, self.ingest)
            app.router.add_put(path, self.ingest)  # what `curl -T -` sends unless told otherwise
        return app

    # -- access ----------------------------------------------------------------------------------

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        with _under_way(request):
            await request.writer.drain()  # a client that does not read its answers gets no more of them
            return await self._admit(request, handler)

    async def _admit(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.method in _WITH_BODY and request.match_info.http_exception is not None:
            handler = self._misdirected
        authorization = request.headers.get("Authorization", "")
        if request.path in ("/metrics", "/health", "/ready"):
            if self.access.wants_password and not await self.access.has_password(authorization):
                challenge = {"WWW-Authenticate": 'Basic realm="powerbench"'}
                return web.Response(status=401, text="user name and password required\n", headers=challenge)
            return await handler(request)
        query_token = request.query.get("token", "") if request.path.startswith("/ingest") else ""
        known = self.access.has_token(authorization, query_token)
        if not known:
            known = await self.access.has_password(authorization)
        if known or self.access.is_near(request.remote or "", request.headers):
            request[_KNOWN] = known
            return await handler(request)
        if request.method in _WITH_BODY:  # an encoder does not show its user the answer, so the log does
            self._reject(request, "forbidden")
        else:
            self.rejections.count("forbidden")
        # aiohttp reads on for a while and then closes the connection: neither freezes an encoder.
        return web.Response(status=403, text=_FORBIDDEN)

    async def _misdirected(self, request: web.Request) -> web.Response:
        """Answer a body that is sent where nothing takes it; aiohttp reads on as after a 403."""
        error = request.match_info.http_exception
        status = error.status if error is not None else 404
        if self._ingests(self._site(request)) is None:
            self._reject(request, "port")
            return web.Response(status=status, text=_NO_INGEST)
        self._reject(request, "path")
        text = f"nothing takes a {request.method} at {request.path[:80]!r}; {SEND_PROGRESS_TO}\n"
        return web.Response(status=status, text=text)

    def _reject(self, request: web.Request, reason: str) -> None:
        """Count and log a request whose body is not taken."""
        self.rejections.note(reason, request.remote or "", request.path)
        ingests = self._ingests(self._site(request))
        if ingests is not None:
            ingests.count_rejected(reason)

    # -- pages -----------------------------------------------------------------------------------

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """Serve the page; counters that are cheap to read are read for this scrape."""
        names = self._wanted(request)
        snapshot, _ = await self._latest(names, self._scrapes)
        form = exposition.choose_format(request.headers.get("Accept", ""))
        gzipped = _takes_gzip(request.headers.get("Accept-Encoding", ""))
        headers = {"Content-Type": form.content_type, "Vary": "Accept, Accept-Encoding"}
        if gzipped:
            headers["Content-Encoding"] = "gzip"
        page = self._pages.page(snapshot, names, form, gzipped=gzipped)
        return await self._sending.respond(request, page, headers)

    async def health(self, request: web.Request) -> web.Response:
        """Say that the process works, and the state of each collector."""
        states = _states(self.scheduler.snapshot, self._site(request).shown)
        return _json({"status": "ok", "version": __version__, "collectors": states})

    async def ready(self, request: web.Request) -> web.Response:
        """Say whether every collector has been tried once."""
        del request
        ready = self.scheduler.ready
        return _json({"ready": ready}, status=200 if ready else 503)

    async def snapshot(self, request: web.Request) -> web.StreamResponse:
        """Serve the latest readings as JSON; `?fresh=1`: read now; `?samples=0`: only the meters."""
        names = self._wanted(request)
        samples = request.query.get("samples", "1") != "0"
        if request.query.get("fresh", "0") in ("", "0"):
            body = self._encoded(self.scheduler.snapshot, names, samples=samples)
        else:
            bucket = self._known if request[_KNOWN] else self._scrapes
            snapshot, fresh = await self._latest(names, bucket)
            body = msgspec.json.encode({**describe(snapshot, names, samples=samples), "fresh": fresh})
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        return await self._sending.respond(request, body, headers)

    def _encoded(self, snapshot: Snapshot, names: frozenset[str], *, samples: bool) -> bytes:
        """Return a snapshot as JSON, encoded once for all who ask for the same."""
        last = self._last_encoded
        if last is None or last.snapshot is not snapshot or (last.names, last.samples) != (names, samples):
            body = msgspec.json.encode(describe(snapshot, names, samples=samples))
            last = self._last_encoded = _Encoded(snapshot, names, samples, body)
        return last.body

    async def watch(self, request: web.Request) -> web.WebSocketResponse:
        """Serve the meters over a WebSocket: the message `10 0.1` requests 10 readings, 0.1 s apart.

        They are sent together after the last one. For clients that need ten a second: a reading costs a fifth
        of a request, and the client wakes up once.
        """
        bucket = self._known if request[_KNOWN] else self._scrapes
        socket = web.WebSocketResponse(compress=False, max_msg_size=_MAX_WATCH_BYTES)
        await socket.prepare(request)
        async for message in socket:
            try:
                count, seconds = parse_watch(message.data)
            except ValueError:
                await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=_BAD_WATCH)
                break
            readings = await self._watched(request, count, seconds, bucket)
            try:
                await socket.send_bytes(msgspec.json.encode(readings))
            except OSError:  # the client has gone meanwhile
                break
        return socket

    async def _watched(
        self, request: web.Request, count: int, seconds: float, bucket: Bucket
    ) -> list[dict[str, Any]]:
        """Return that many readings of the port's meters, so many seconds apart."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        readings = []
        for number in range(1, count + 1):
            await asyncio.sleep(begun + number * seconds - loop.time())
            shown = self._site(request).shown
            snapshot, fresh = await self._latest(shown, bucket)
            metered = {
                name
                for name, state in snapshot.states.items()
                if state.reading is not None and state.reading.meters
            }
            meters = describe(snapshot, shown & metered, samples=False)
            readings.append({**meters, "fresh": fresh})
        return readings

    async def _latest(self, names: Collection[str], bucket: Bucket) -> tuple[Snapshot, bool]:
        """Return a snapshot, and whether it is fresh where it can be; without energy it costs no token."""
        if not self.scheduler.can_refresh(names):
            return self.scheduler.snapshot, True
        if not bucket.take():
            return self.scheduler.snapshot, False
        return await self.scheduler.fresh(), True

    async def index(self, request: web.Request) -> web.Response:
        """Serve a page for people: links, and the state of each collector."""
        states = _states(self.scheduler.snapshot, self._site(request).shown)
        rows = ""
        for name, state in states.items():
            cells = (name, state["state"], state.get("reason", ""))
            rows += "<tr>" + "".join(f"<td>{html.escape(text)}" for text in cells)
        page = _INDEX.format(version=__version__, rows=rows)
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return web.Response(text=page, content_type="text/html", headers=headers)

    # -- ingest ----------------------------------------------------------------------------------

    async def ingest(self, request: web.Request) -> web.Response:
        """Take the FFmpeg progress of one connection; always read it to its end.

        A server that stops reading freezes FFmpeg 5.1 as soon as the socket's buffers are full.
        """
        ingests = self._ingests(self._site(request))
        if ingests is None:
            self._reject(request, "port")
            return web.Response(status=404, text=_NO_INGEST)
        name = request.match_info.get("stream", "").strip("/") or request.query.get("stream") or "default"
        feed: Feed | None = None
        refusal: IngestRejected | None = None
        size = 0
        try:
            run = request.query.get("run", "")
            feed = ingests.open_feed(name, self._sender(request), run, stated(request.query))
        except IngestRejected as rejected:
            refusal = rejected
        reports = 0
        try:
            async for data in request.content.iter_any():
                size += len(data)
                if feed is not None:
                    feed.feed(data)
        except _BROKEN_BODY:
            log.debug("ingest connection broke", stream=name)
        finally:
            if feed is not None:
                reports = feed.close()
        if refusal is not None:
            return web.Response(status=429, text=f"{refusal}\n")
        if size and not reports:
            ingests.count_rejected("no_progress")
            return web.Response(status=400, text=_NO_PROGRESS)
        return web.Response(status=204)

    def _sender(self, request: web.Request) -> Sender | None:
        """Return both ends of the connection, and the pid in its query."""
        transport = request.transport
        peer = transport.get_extra_info("peername") if transport else None
        local = transport.get_extra_info("sockname") if transport else None
        if not isinstance(peer, tuple) or not isinstance(local, tuple):
            return None  # the peer has gone already
        pid = request.query.get("pid", "")
        return Sender((peer[0], peer[1]), (local[0], local[1]), pid, self._clock.monotonic())

    def _site(self, request: web.Request) -> Site:
        return self.sites[request.app[_ADDRESS]]

    def _wanted(self, request: web.Request) -> frozenset[str]:
        """Return the collectors in `collect[]`, or all of the port's. Raises: HTTPBadRequest."""
        shown = self._site(request).shown
        asked = request.query.getall("collect[]", [])
        unknown = [name for name in asked if name not in shown]
        if unknown:
            text = f"no collector {unknown[0][:80]!r} on this port; available: {', '.join(sorted(shown))}\n"
            raise web.HTTPBadRequest(text=text)
        return frozenset(asked) or shown

    def _ingests(self, site: Site) -> Ingests | None:
        for name in sorted(site.collectors):
            collector = self.scheduler.collector(name)
            if isinstance(collector, Ingests):
                return collector
        return None


@contextlib.contextmanager
def _under_way(request: web.Request) -> Iterator[None]:
    """Tell the connection when the request begins, and when it is handled and its body has come."""
    transport = request.transport
    guarded = transport.get_protocol() if transport else None
    if not isinstance(guarded, Guarded):
        yield
        return
    guarded.begin_request()
    try:
        yield
    finally:
        request.content.on_eof(guarded.end_request)


def tolerant(make_request: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Return a server's `request_factory` that takes any target; without it, no answer would be sent.

    aiohttp decodes the host in a target such as `http://xn--/metrics` only when it makes the request.
    """

    def make(message: http.RawRequestMessage, *rest: Any) -> web.BaseRequest:
        try:
            return make_request(message, *rest)
        except ValueError:
            nowhere = message.url.relative().with_path("*")  # no route has it: the answer is 404
            return make_request(message._replace(url=nowhere), *rest)

    return make


def parse_watch(message: object) -> tuple[int, float]:
    """Return the number of readings and the seconds between them. Raises: ValueError."""
    text = message.decode() if isinstance(message, bytes) else str(message)
    first, second = text.split()
    count, seconds = int(first), float(second)
    if not (1 <= count <= MAX_WATCHED and 0 <= count * seconds <= MAX_WATCH_SECONDS):
        raise ValueError(f"{count} readings every {seconds} s are too many or take too long")
    return count, seconds


_ADDRESS = web.AppKey("address", Address)
_KNOWN = web.RequestKey("known", bool)

_INDEX = """<!doctype html><html lang="en"><meta charset="utf-8"><title>powerbench agent</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;margin:2rem;max-width:60rem}}
td,th{{text-align:left;padding:.1rem 1.5rem .1rem 0;vertical-align:top}}</style>
<h1>powerbench agent {version}</h1>
<p><a href="/metrics">metrics</a> · <a href="/health">health</a> · <a href="/ready">ready</a>
· <a href="/api/v1/snapshot">snapshot</a></p>
<table><tr><th>collector<th>state<th>{rows}</table></html>
"""


def _takes_gzip(accept_encoding: str) -> bool:
    """Return whether an Accept-Encoding header allows gzip."""
    for choice in accept_encoding.lower().split(","):
        coding, _, quality = choice.replace(" ", "").partition(";q=")
        if coding == "gzip":
            return quality.strip("0.") != "" or not quality
    return False


def _states(snapshot: Snapshot, names: Collection[str]) -> dict[str, dict[str, str]]:
    """Return each collector's state; a reading that lacks parts says which, and why."""
    states: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        state = snapshot.states.get(name)
        if state is not None and state.reading is not None:
            states[name] = {"state": "up"}
            missing = [f"{trouble.part}: {trouble.error}" for trouble in state.reading.troubles]
            if missing:
                states[name]["without"] = "; ".join(missing)
        elif state is not None:
            states[name] = {"state": "down", "reason": state.error}
        elif name in snapshot.absent:
            states[name] = {"state": "absent", "reason": snapshot.absent[name]}
        else:
            states[name] = {"state": "starting"}
    return states


def describe(snapshot: Snapshot, names: Collection[str], *, samples: bool = True) -> Mapping[str, Any]:
    """Return a snapshot as plain data, as `/api/v1/snapshot` serves it; `samples`: those as well."""
    collectors: dict[str, Any] = {}
    for name, state in snapshot.states.items():
        if name in names:
            collectors[name] = _describe_state(state, samples=samples)
    absent = {name: why for name, why in snapshot.absent.items() if name in names}
    return {"time": snapshot.time, "version": __version__, "collectors": collectors, "absent": absent}


def _describe_state(state: State, *, samples: bool) -> dict[str, Any]:
    reading = Reading([]) if state.reading is None else state.reading
    shown_samples = reading.samples if samples else ()
    described: dict[str, Any] = {
        "up": state.up,
        "time": state.time,
        "monotonic": state.monotonic,
        "duration": state.duration,
        "samples": [_describe_sample(sample) for sample in shown_samples],
        "meters": [meter._asdict() for meter in reading.meters],
    }
    if reading.uses:
        described["uses"] = [use._asdict() for use in reading.uses]
    if state.error:
        described["error"] = state.error
    return described


def _describe_sample(sample: Sample) -> dict[str, Any]:
    metric, texts, value = sample
    labels = dict(zip(metric.labels, texts, strict=True))
    if "" in texts:
        labels = {label: text for label, text in labels.items() if text}
    return {"name": metric.name, "labels": labels, "value": value if math.isfinite(value) else None}


def _json(content: Mapping[str, Any], status: int = 200) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    body = msgspec.json.encode(content)
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
