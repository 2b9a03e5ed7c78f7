"""The routes over real HTTP on loopback: pages, probes, the API, ingest, and who may ask."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import logging
from typing import TYPE_CHECKING, Any

import bcrypt
import msgspec
import pytest
from aiohttp import WSMsgType, WSServerHandshakeError
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from powerbench_agent.agent.access import Access
from powerbench_agent.collectors.ffmpeg import collector as ffmpeg
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Absent, Meter, Metric, ReadFailed, Reading, Sender

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp import ClientResponse
    from conftest import Cheap, FakeClock, Scripted, Served

    Serve = Callable[..., Awaitable[Served]]

VALUE = Metric("fake_value", "gauge", "A value.", ("place",))
OTHER = Metric("other_value", "gauge", "Another value.")
GOOD = Reading([VALUE.sample(42.0, "here")], [Meter("cpu", "fake", "0", 3.5)])
FOREIGN = {"Host": "rebound.example"}  # what makes a loopback peer a stranger
BLOCK = b"frame=%d\ntotal_size=%d\nout_time_us=%d\nprogress=%s\n"


def progress(*frames: int) -> bytes:
    blocks = [BLOCK % (frame, frame * 1000, frame * 40_000, b"continue") for frame in frames]
    return b"".join(blocks)


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def streams(clock: FakeClock, **options: Any) -> ffmpeg.FFmpeg:
    return ffmpeg.FFmpeg(ffmpeg.Options(**options), Host(clock=clock))


async def series(served: Served) -> dict[str, float]:
    """Beat once, and return the page's series."""
    await served.scheduler.replace(served_again(served), set())
    await served.scheduler.beat()
    text = await (await served.client.get("/metrics")).text()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


_TIMES = itertools.count(1)


def served_again(served: Served) -> dict[str, Any]:
    """Return the same collectors, due at once."""
    names = next(iter(served.handlers.sites.values())).collectors

    def opening(collector: Any) -> Callable[[], Awaitable[Any]]:
        async def open_() -> Any:
            return collector

        return open_

    interval = 1.0 + next(_TIMES) / 1000  # a collector whose interval changes is due at once
    return {name: (opening(served.scheduler.collector(name)), interval) for name in names}


# -- pages -------------------------------------------------------------------------------------------


async def test_metrics_are_text_by_default(serve: Serve, scripted: type[Scripted]) -> None:
    """GET /metrics is text 0.0.4 with the collectors' samples and the node's."""
    served = await serve({"fake": scripted(GOOD)})
    await served.scheduler.beat()
    response = await served.client.get("/metrics", headers={"Accept-Encoding": "identity"})
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "Content-Encoding" not in response.headers
    lines = (await response.text()).splitlines()
    assert 'fake_value{place="here"} 42.0' in lines
    assert 'powerbench_node_energy_joules_total{component="cpu",source="fake"} 3.5' in lines
    assert 'powerbench_collector_up{collector="fake"} 1.0' in lines


async def test_metrics_are_openmetrics_where_asked(serve: Serve, scripted: type[Scripted]) -> None:
    """Prometheus' own Accept header gets OpenMetrics 1.0.0, which a strict parser reads."""
    served = await serve({"fake": scripted(GOOD)})
    await served.scheduler.beat()
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.2"
    response = await served.client.get("/metrics", headers={"Accept": accept})
    assert response.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = {family.name for family in text_string_to_metric_families(await response.text())}
    assert {"fake_value", "powerbench_node_energy_joules", "process_cpu_seconds"} <= families


async def test_metrics_are_packed_where_asked(serve: Serve, scripted: type[Scripted]) -> None:
    """Accept-Encoding: gzip gets gzip, and says so to caches."""
    served = await serve({"fake": scripted(GOOD)})
    await served.scheduler.beat()
    async with served.client.session.get(
        served.client.make_url("/metrics"), headers={"Accept-Encoding": "gzip"}, auto_decompress=False
    ) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.headers["Vary"] == "Accept, Accept-Encoding"
        assert b'fake_value{place="here"} 42.0' in gzip.decompress(await response.read())


async def test_a_refused_encoding_is_not_used(serve: Serve, scripted: type[Scripted]) -> None:
    """`gzip;q=0` means anything but gzip (RFC 9110, 12.5.3)."""
    served = await serve({"fake": scripted(GOOD)})
    response = await served.client.get("/metrics", headers={"Accept-Encoding": "gzip;q=0, identity"})
    assert "Content-Encoding" not in response.headers


async def test_collect_filters_the_page(serve: Serve, scripted: type[Scripted]) -> None:
    """collect[] shows the named collectors alone, once or several times over."""
    served = await serve({"a": scripted(GOOD), "b": scripted(Reading([OTHER.sample(1)]))})
    await served.scheduler.beat()
    for query, shown in (
        ("?collect[]=a", {"a"}),
        ("?collect%5B%5D=b", {"b"}),
        ("?collect[]=a&collect[]=b&collect[]=b", {"a", "b"}),
        ("", {"a", "b", "node"}),
    ):
        text = await (await served.client.get("/metrics" + query)).text()
        up = {name for name in ("a", "b", "node") if f'powerbench_collector_up{{collector="{name}"}}' in text}
        assert up == shown
        assert ("fake_value" in text) == ("a" in shown)


async def test_collecting_what_is_not_there_is_a_bad_request(serve: Serve, scripted: type[Scripted]) -> None:
    """An unknown collector is 400 with the names there are, not an empty page that looks healthy."""
    served = await serve({"a": scripted(GOOD)})
    for path in ("/metrics", "/api/v1/snapshot"):
        response = await served.client.get(path + "?collect[]=zzz")
        assert response.status == 400
        assert await response.text() == "no collector 'zzz' on this port; available: a, node\n"


async def test_a_port_of_its_own_shows_that_collector_and_not_the_node(
    serve: Serve, scripted: type[Scripted]
) -> None:
    """A collector's own port has its samples, its state, the build, the process; no node."""
    served = await serve({"fake": scripted(GOOD)}, aggregated=False)
    await served.scheduler.beat()
    text = await (await served.client.get("/metrics")).text()
    assert "powerbench_node" not in text
    assert 'collector="node"' not in text
    for name in ("fake_value", "powerbench_collector_up", "powerbench_build_info", "process_cpu_seconds"):
        assert name in text


async def test_a_scrape_is_fresh_until_the_bucket_is_empty(
    serve: Serve, cheap: type[Cheap], clock: FakeClock
) -> None:
    """Five scrapes at once read five times, the next get the last reading; half a second buys one more."""
    collector = cheap(GOOD)
    served = await serve({"fake": collector})
    await served.scheduler.beat()
    for _ in range(8):
        assert (await served.client.get("/metrics")).status == 200
    assert collector.refreshed == 5
    clock.advance(0.5)
    for _ in range(3):
        await served.client.get("/metrics")
    assert collector.refreshed == 6


async def test_a_scrape_shows_the_counters_of_its_moment(serve: Serve, cheap: type[Cheap]) -> None:
    """What a scrape asks for is what it shows."""
    collector = cheap(GOOD)
    collector.refreshes = [Reading([VALUE.sample(43.0, "here")])]
    served = await serve({"fake": collector})
    await served.scheduler.beat()
    assert 'fake_value{place="here"} 43.0' in await (await served.client.get("/metrics")).text()


# -- probes ------------------------------------------------------------------------------------------


async def test_ready_turns_with_the_first_beat(serve: Serve, scripted: type[Scripted]) -> None:
    """503 before every collector has been tried, 200 after, also when one is down."""
    served = await serve({"good": scripted(GOOD), "bad": scripted(ReadFailed("x"))})
    response = await served.client.get("/ready")
    assert (response.status, await response.json()) == (503, {"ready": False})
    await served.scheduler.beat()
    response = await served.client.get("/ready")
    assert (response.status, await response.json()) == (200, {"ready": True})


async def test_health_says_how_each_collector_fares(serve: Serve, scripted: type[Scripted]) -> None:
    """200 and `ok` while the process works; up, down, absent and starting with their reasons."""
    served = await serve(
        {
            "good": scripted(GOOD),
            "bad": scripted(ReadFailed("no", "mend it")),
            "gone": scripted(Absent("why")),
        }
    )
    collectors = (await (await served.client.get("/health")).json())["collectors"]
    assert {name: state["state"] for name, state in collectors.items()} == dict.fromkeys(
        ("bad", "gone", "good", "node"), "starting"
    )
    await served.scheduler.beat()
    response = await served.client.get("/health")
    health = await response.json()
    assert (response.status, health["status"]) == (200, "ok")
    assert health["collectors"] == {
        "good": {"state": "up"},
        "bad": {"state": "down", "reason": "no; mend it"},
        "gone": {"state": "absent", "reason": "why"},
        "node": {"state": "up"},
    }


# -- the API -----------------------------------------------------------------------------------------


async def test_the_snapshot_has_its_documented_shape(
    serve: Serve, scripted: type[Scripted], clock: FakeClock
) -> None:
    """Every documented key with its type; labels without a value left out; NaN as null."""
    reading = GOOD._replace(samples=[*GOOD.samples, VALUE.sample(float("nan"), "")], taken=clock.now - 0.25)
    served = await serve(
        {"fake": scripted(reading), "bad": scripted(ReadFailed("x")), "gone": scripted(Absent("y"))}
    )
    await served.scheduler.beat()
    response = await served.client.get("/api/v1/snapshot")
    assert response.headers["Cache-Control"] == "no-store"
    snapshot = await response.json()
    assert snapshot["time"] == clock.unix
    assert snapshot["collectors"]["fake"] == {
        "up": True,
        "time": clock.unix - 0.25,
        "monotonic": clock.now - 0.25,
        "duration": 0.0,
        "samples": [
            {"name": "fake_value", "labels": {"place": "here"}, "value": 42.0},
            {"name": "fake_value", "labels": {}, "value": None},
        ],
        "meters": [{"component": "cpu", "source": "fake", "key": "0", "joules": 3.5}],
    }
    down = snapshot["collectors"]["bad"]
    assert (down["up"], down["samples"], down["meters"], down["error"]) == (False, [], [], "x")
    assert snapshot["collectors"].keys() == {"fake", "bad", "node"}
    assert snapshot["absent"] == {"gone": "y"}


async def test_the_snapshot_can_be_filtered(serve: Serve, scripted: type[Scripted]) -> None:
    """collect[] holds for the API as for the page."""
    served = await serve({"a": scripted(GOOD), "b": scripted(GOOD)})
    await served.scheduler.beat()
    snapshot = await (await served.client.get("/api/v1/snapshot?collect[]=b")).json()
    assert snapshot["collectors"].keys() == {"b"}


async def test_a_fresh_snapshot_comes_out_of_the_scrapes_bucket(serve: Serve, cheap: type[Cheap]) -> None:
    """Who has shown nothing shares five fresh readings with the scrapes; without ?fresh nothing is read."""
    collector = cheap(GOOD)
    served = await serve({"fake": collector}, Access(token="s3cret"))
    await served.scheduler.beat()
    for query in ("", "?fresh=0", "?fresh="):
        await served.client.get("/api/v1/snapshot" + query)
    assert collector.refreshed == 0
    for _ in range(3):
        await served.client.get("/metrics")
    for _ in range(5):
        assert (await served.client.get("/api/v1/snapshot?fresh=1")).status == 200
    assert collector.refreshed == 5


async def test_who_shows_the_token_has_fifty_fresh_snapshots_a_second(
    serve: Serve, cheap: type[Cheap], clock: FakeClock
) -> None:
    """The token opens a bucket of its own, and costs the scrapes nothing."""
    collector = cheap(GOOD)
    served = await serve({"fake": collector}, Access(token="s3cret"))
    await served.scheduler.beat()
    bearer = {"Authorization": "Bearer s3cret"}
    for _ in range(60):
        await served.client.get("/api/v1/snapshot?fresh=1", headers=bearer)
    assert collector.refreshed == 50
    clock.advance(0.1)
    for _ in range(10):
        await served.client.get("/api/v1/snapshot?fresh=1", headers=bearer)
    assert collector.refreshed == 55
    await served.client.get("/metrics")
    assert collector.refreshed == 56


async def test_a_watcher_gets_the_readings_that_it_asks_for(serve: Serve, cheap: type[Cheap]) -> None:
    """A message over /api/v1/watch has fresh meters, out of the bucket of who asks, sent together."""
    collector = cheap(GOOD)
    served = await serve({"fake": collector}, Access(token="s3cret"))
    await served.scheduler.beat()
    bearer = {"Authorization": "Bearer s3cret"}
    async with served.client.ws_connect("/api/v1/watch", headers=bearer) as socket:
        for times, message in ((40, "40 0"), (50, "10 0.0"), (50, "1 0.001")):
            await socket.send_str(message)
            answer = msgspec.json.decode(await socket.receive_bytes())
            assert len(answer) == int(message.split()[0])
            assert collector.refreshed == times
        assert [reading["fresh"] for reading in answer] == [False]
    state = answer[0]["collectors"]["fake"]
    assert (state["samples"], [meter["joules"] for meter in state["meters"]]) == ([], [3.5])


async def test_a_watcher_without_a_token_shares_the_scrapes_bucket(serve: Serve, cheap: type[Cheap]) -> None:
    """Whoever has shown nothing gets five fresh readings over it as well, and then the last one."""
    collector = cheap(GOOD)
    served = await serve({"fake": collector})
    await served.scheduler.beat()
    async with served.client.ws_connect("/api/v1/watch") as socket:
        await socket.send_str("8 0")
        fresh = [reading["fresh"] for reading in msgspec.json.decode(await socket.receive_bytes())]
    assert (fresh, collector.refreshed) == ([True] * 5 + [False] * 3, 5)


async def test_a_stranger_may_not_watch(serve: Serve, cheap: type[Cheap]) -> None:
    """The rules of /api hold before anything is upgraded."""
    served = await serve({"fake": cheap(GOOD)})
    with pytest.raises(WSServerHandshakeError, match="403"):
        await served.client.ws_connect("/api/v1/watch", headers=FOREIGN)


@pytest.mark.parametrize(
    "message",
    ["", "x", "1", "0 1", "-1 1", "101 0", "11 1", "1 -1", "1 nan", "1 inf", "1 2 3", "1 0 " + "x" * 99],
)
async def test_a_message_that_asks_for_nothing_sensible_ends_the_watching(
    serve: Serve, cheap: type[Cheap], message: str
) -> None:
    """A watcher's memory and time are bounded: its connection is closed, and the agent goes on."""
    collector = cheap(GOOD)
    served = await serve({"fake": collector})
    async with served.client.ws_connect("/api/v1/watch") as socket:
        await socket.send_str(message)
        assert (await socket.receive()).type is WSMsgType.CLOSE
    assert collector.refreshed == 0
    assert (await served.client.get("/health")).status == 200


async def test_a_fresh_snapshot_is_of_its_moment(serve: Serve, cheap: type[Cheap], clock: FakeClock) -> None:
    """`monotonic` of a fresh reading is now, so that rates can be computed from it."""
    served = await serve({"fake": cheap(GOOD)})
    await served.scheduler.beat()
    clock.advance(0.4)
    old = await (await served.client.get("/api/v1/snapshot")).json()
    new = await (await served.client.get("/api/v1/snapshot?fresh=1")).json()
    assert old["collectors"]["fake"]["monotonic"] == clock.now - 0.4
    assert new["collectors"]["fake"]["monotonic"] == clock.now


async def test_the_index_escapes_what_collectors_say(serve: Serve, scripted: type[Scripted]) -> None:
    """An error text is text on the page for people, never markup; scripts are forbidden anyway."""
    served = await serve({"bad": scripted(ReadFailed("<script>alert(1)</script>", 'a"b & c'))})
    await served.scheduler.beat()
    response = await served.client.get("/")
    page = await response.text()
    assert response.content_type == "text/html"
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;; a&quot;b &amp; c" in page
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    for link in ("/metrics", "/health", "/ready", "/api/v1/snapshot"):
        assert f'href="{link}"' in page


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/metrics/", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/ingest", 405),
        ("GET", "/ingest", 405),
        ("GET", "/ingest/live/cam1", 405),
        ("HEAD", "/metrics", 200),
    ],
)
async def test_other_requests_get_the_usual_answers(
    serve: Serve, scripted: type[Scripted], method: str, path: str, status: int
) -> None:
    """404 for no such path, 405 for no such method, HEAD like GET."""
    served = await serve({"fake": scripted(GOOD)})
    assert (await served.client.request(method, path)).status == status


# -- who may -----------------------------------------------------------------------------------------

OPEN = ["/metrics", "/health", "/ready"]
CLOSED = ["/api/v1/snapshot", "/"]


@pytest.fixture
async def stranger(serve: Serve, clock: FakeClock) -> Served:
    """Return an agent that knows a token; the Host header alone makes its client a stranger."""
    served = await serve({"ffmpeg": streams(clock)}, Access(token="s3cret"))
    await served.scheduler.beat()
    return served


async def forbidden(served: Served) -> tuple[float, float]:
    """Return (requests refused, ingests refused) as the page counts them."""
    found = await series(served)
    return (
        found["powerbench_http_forbidden_total"],
        found['ffmpeg_ingest_rejected_total{reason="forbidden"}'],
    )


async def test_pages_and_probes_are_for_everyone(stranger: Served) -> None:
    """/metrics, /health and /ready answer everyone."""
    for path in OPEN:
        assert (await stranger.client.get(path, headers=FOREIGN)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        FOREIGN,
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        FOREIGN | {"Authorization": "Bearer wrong"},
        FOREIGN | {"Authorization": "Basic czNjcmV0"},
    ],
)
async def test_the_rest_is_closed_to_strangers(stranger: Served, headers: dict[str, str]) -> None:
    """A rebound name, another site's page, a wrong token: 403 that names the remedy, and counted."""
    for path in CLOSED:
        response = await stranger.client.get(path, headers=headers)
        assert response.status == 403
        assert "token_file and trusted in agent.toml" in await response.text()
    response = await stranger.client.post("/ingest?stream=x", data=progress(1), headers=headers)
    assert response.status == 403
    assert await forbidden(stranger) == (3, 1)
    assert not [name for name in await series(stranger) if 'stream="x"' in name]


async def test_the_token_opens_the_rest(stranger: Served) -> None:
    """A stranger with the token in the header is let in everywhere."""
    headers = FOREIGN | {"Authorization": "Bearer s3cret"}
    for path in CLOSED:
        assert (await stranger.client.get(path, headers=headers)).status == 200
    assert (await stranger.client.post("/ingest", data=progress(1), headers=headers)).status == 204
    assert await forbidden(stranger) == (0, 0)


async def test_the_token_in_the_query_opens_ingest_alone(stranger: Served) -> None:
    """?token= is for ffmpeg, which can send nothing else; the API does not take it."""
    for path in ("/ingest?stream=x&token=s3cret", "/ingest/x?token=s3cret"):
        assert (await stranger.client.post(path, data=progress(1), headers=FOREIGN)).status == 204
    for path in CLOSED:
        assert (await stranger.client.get(path + "?token=s3cret", headers=FOREIGN)).status == 403
    response = await stranger.client.post("/ingest?token=wrong", data=b"", headers=FOREIGN)
    assert response.status == 403


@pytest.mark.parametrize("path", ["//api/v1/snapshot", "/api/v1/../v1/snapshot", "/%61pi/v1/snapshot"])
async def test_no_spelling_of_a_path_gets_around_the_rules(stranger: Served, path: str) -> None:
    """Another spelling is refused or unknown, never served."""
    raw = f"GET {path} HTTP/1.1\r\nHost: rebound.example\r\nConnection: close\r\n\r\n"
    assert (await sent(stranger, raw.encode())).split()[1] in (b"403", b"404")


async def sent(served: Served, *parts: bytes) -> bytes:
    """Send bytes as they are, and return everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.client.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("path", ["/metrics", "/api/v1/snapshot", "/ingest?token=%ff%fe"])
@pytest.mark.parametrize(
    "header", [b"Authorization: Bearer \xff\xfe", b"Authorization: Basic \xff", b"Host: \xff"]
)
async def test_headers_that_are_no_text_are_no_server_error(
    serve: Serve, scripted: type[Scripted], path: str, header: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Raw bytes where a secret or a name should be are judged wrong, without a traceback."""
    password = bcrypt.hashpw(b"right", bcrypt.gensalt(4))
    served = await serve({"fake": scripted(GOOD)}, Access(token="s3cret", users={"prom": password}))
    verb = b"POST" if path.startswith("/ingest") else b"GET"
    host = b"" if header.startswith(b"Host") else b"Host: rebound.example\r\n"
    request = b"%s %s HTTP/1.1\r\n%s%s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answer = await sent(served, request % (verb, path.encode(), host, header))
    assert answer.split()[1] in (b"400", b"401", b"403")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_password_closes_even_the_pages(serve: Serve, scripted: type[Scripted]) -> None:
    """With a password file /metrics and the probes want the password, from loopback too, and say so."""
    users = {"prom": bcrypt.hashpw(b"right", bcrypt.gensalt(4))}
    served = await serve({"fake": scripted(GOOD)}, Access(users=users, token="s3cret"))
    await served.scheduler.beat()
    for path in OPEN:
        for headers in ({}, basic("prom", "wrong"), basic("nobody", "right")):
            response = await served.client.get(path, headers=headers)
            assert response.status == 401
            assert response.headers["WWW-Authenticate"].startswith("Basic ")
        for _ in range(2):
            assert (await served.client.get(path, headers=basic("prom", "right"))).status == 200


async def test_the_password_opens_the_rest_to_a_stranger(serve: Serve, scripted: type[Scripted]) -> None:
    """Basic authentication counts for the API as the token does."""
    users = {"prom": bcrypt.hashpw(b"right", bcrypt.gensalt(4))}
    served = await serve({"fake": scripted(GOOD)}, Access(users=users))
    headers = FOREIGN | basic("prom", "right")
    assert (await served.client.get("/api/v1/snapshot", headers=headers)).status == 200
    assert (await served.client.get("/api/v1/snapshot", headers=FOREIGN)).status == 403


async def test_rules_change_for_the_next_request(stranger: Served) -> None:
    """A reload's token counts at once, the old one no more."""
    stranger.handlers.access = Access(token="new")
    for token, status in (("s3cret", 403), ("new", 200)):
        headers = FOREIGN | {"Authorization": f"Bearer {token}"}
        assert (await stranger.client.get("/api/v1/snapshot", headers=headers)).status == status


async def test_a_strangers_body_is_read_to_its_end(stranger: Served) -> None:
    """A refused encoder can send all it has: four megabytes do not block it."""
    body = progress(*range(70_000))
    assert len(body) > 4_000_000
    head = (
        b"POST /ingest HTTP/1.1\r\nHost: rebound.example\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    async with asyncio.timeout(10):
        assert (await sent(stranger, head % len(body), body)).startswith(b"HTTP/1.1 403 ")


# -- ingest ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "stream"),
    [
        ("/ingest?stream=cam1", "cam1"),
        ("/ingest?stream=cam1&pid=4242", "cam1"),
        ("/ingest/cam1", "cam1"),
        ("/ingest/a%2Fb", "a/b"),
        ("/ingest?stream=caf%C3%A9+2", "café 2"),
        ("/ingest", "default"),
        ("/ingest?stream=", "default"),
        ("/ingest/live/cam1", "live/cam1"),
        ("/ingest/live%2Fcam1", "live/cam1"),
        ("/ingest/cam4/", "cam4"),
        ("/ingest//cam4", "cam4"),
        ("/ingest/live//cam4", "live//cam4"),
        ("/ingest/", "default"),
        ("/ingest/?stream=cam5", "cam5"),
        ("/ingest/cam1?stream=other", "cam1"),
        ("/ingest/cam.1/720p", "cam.1/720p"),
        ("/ingest/ingest", "ingest"),
        ("/ingest/" + "x" * 300, "x" * 191 + "~1b432d13"),
    ],
)
async def test_progress_is_taken_in_under_its_name(
    serve: Serve, clock: FakeClock, path: str, stream: str
) -> None:
    """By query or by path; `default` without a name."""
    served = await serve({"ffmpeg": streams(clock)})
    await served.scheduler.beat()
    response = await served.client.post(path, data=progress(10, 20))
    assert (response.status, await response.read()) == (204, b"")
    assert (await series(served))[f'ffmpeg_frames_total{{stream="{stream}"}}'] == 20


async def test_the_newest_ffmpegs_request_is_taken_in(serve: Serve, clock: FakeClock) -> None:
    """Ffmpeg 9.0 sends a chunk a report, with headers of its own: taken in, answered, closed."""
    served = await serve({"ffmpeg": streams(clock)})
    await served.scheduler.beat()
    head = (
        b"POST /ingest?stream=cam1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nUser-Agent: Lavf/63.1.102\r\n"
        b"Accept: */*\r\nConnection: close\r\nHost: 127.0.0.1:39506\r\nIcy-MetaData: 1\r\n\r\n"
    )
    chunks = [b"%x\r\n%s\r\n" % (len(block), block) for block in (progress(26), progress(41))]
    answer = await sent(served, head, *chunks, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert (await series(served))['ffmpeg_frames_total{stream="cam1"}'] == 41


async def test_a_body_may_be_cut_anywhere(serve: Serve, clock: FakeClock) -> None:
    """Chunks of any size, cut within keys and numbers, hold the same reports."""
    served = await serve({"ffmpeg": streams(clock)})
    await served.scheduler.beat()
    body = progress(7, 8, 123456)
    for size in (1, 2, 3, 5, 7, 64, len(body)):

        async def pieces(size: int = size) -> AsyncIterator[bytes]:
            for start in range(0, len(body), size):
                yield body[start : start + size]

        response = await served.client.post(f"/ingest?stream=by{size}", data=pieces())
        assert response.status == 204
        assert (await series(served))[f'ffmpeg_frames_total{{stream="by{size}"}}'] == 123456


async def test_reports_count_while_the_connection_is_open(serve: Serve, clock: FakeClock) -> None:
    """A live encoder is on the page before its connection ends."""
    served = await serve({"ffmpeg": streams(clock)})
    await served.scheduler.beat()
    more, first_taken = asyncio.Event(), asyncio.Event()

    async def live() -> AsyncIterator[bytes]:
        yield progress(10)
        first_taken.set()
        await more.wait()
        yield progress(30)

    posting = asyncio.ensure_future(served.client.post("/ingest/cam", data=live()))
    await first_taken.wait()
    while (found := await series(served)).get('ffmpeg_frames_total{stream="cam"}') is None:
        assert not posting.done()
    assert found['ffmpeg_frames_total{stream="cam"}'] == 10
    assert found['ffmpeg_stream_active{stream="cam"}'] == 1
    more.set()
    assert (await posting).status == 204
    assert (await series(served))['ffmpeg_frames_total{stream="cam"}'] == 30


class Overheard:
    """A collector that takes feeds and tells when one has ended; its reports are the bytes' line ends."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.ended: asyncio.Queue[bytes] = asyncio.Queue()
        self.rejected: list[str] = []

    def open_feed(self, stream: str, sender: Any = None, run: str = "", stated: Any = None) -> Any:
        del stream, sender, run, stated
        overheard = self
        self.opened.set()

        class Feed:
            heard = b""

            def feed(self, data: bytes) -> None:
                self.heard += data

            def close(self) -> int:
                overheard.ended.put_nowait(self.heard)
                return self.heard.count(b"\n")

        return Feed()

    def count_rejected(self, reason: str) -> None:
        self.rejected.append(reason)

    async def read(self) -> Reading:
        return Reading([])

    async def aclose(self) -> None: ...


BROKEN_BODIES = {
    "killed after the head": b"",
    "killed in a chunk": b"40\r\nframe=1\nprog",
    "killed between chunks": b"9\r\nframe=1\n\n\r\n",
    "no chunk size": b"zzz\r\nframe=1\n\r\n",
    "negative chunk size": b"-1\r\nframe=1\n\r\n",
    "chunk without an end": b"1\r\nframe=1\nprogress=continue\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
async def test_a_broken_body_ends_its_feed_and_nothing_else(
    serve: Serve, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    """A sender that is killed or malformed: its feed is closed, no error is logged, the port goes on."""
    overheard = Overheard()
    served = await serve({"ffmpeg": overheard})
    await served.scheduler.beat()
    _, writer = await asyncio.open_connection("127.0.0.1", served.client.port)
    writer.write(b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    async with asyncio.timeout(10):
        await overheard.opened.wait()
        writer.write(body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert await overheard.ended.get() in body
    assert (await served.client.get("/health")).status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_resets_ends_its_feed(serve: Serve) -> None:
    """SIGKILL and a lost network look like a reset: the feed is closed."""
    overheard = Overheard()
    served = await serve({"ffmpeg": overheard})
    await served.scheduler.beat()
    _, writer = await asyncio.open_connection("127.0.0.1", served.client.port)
    writer.write(b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nframe=1\n")
    await writer.drain()
    writer.transport.abort()
    async with asyncio.timeout(10):
        assert await overheard.ended.get() in b"frame=1\n"


@pytest.mark.parametrize("body", [b"hello\n", b"\0" * 100_000, b"progress=maybe\n", b"frame=1\n"])
async def test_a_body_without_progress_is_a_bad_request(serve: Serve, clock: FakeClock, body: bytes) -> None:
    """What holds no report is 400 that says what to send, and counted."""
    served = await serve({"ffmpeg": streams(clock)})
    await served.scheduler.beat()
    response = await served.client.post("/ingest?stream=x", data=body)
    assert response.status == 400
    assert "-progress" in await response.text()
    found = await series(served)
    assert found['ffmpeg_ingest_rejected_total{reason="no_progress"}'] == 1
    assert not [name for name in found if 'stream="x"' in name]


async def test_an_empty_body_is_no_complaint(serve: Serve, clock: FakeClock) -> None:
    """An encoder that ended before its first report has done nothing wrong."""
    served = await serve({"ffmpeg": streams(clock)})
    await served.scheduler.beat()
    assert (await served.client.post("/ingest?stream=x", data=b"")).status == 204
    assert (await series(served))['ffmpeg_ingest_rejected_total{reason="no_progress"}'] == 0


async def test_past_the_cap_a_newcomer_is_read_and_not_stored(serve: Serve, clock: FakeClock) -> None:
    """The stream past max_streams gets 429 after its whole body was read; the known ones go on."""
    served = await serve({"ffmpeg": streams(clock, max_streams=1)})
    await served.scheduler.beat()
    assert (await served.client.post("/ingest/first", data=progress(1))).status == 204
    taken = 0

    async def long() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(100):
            yield progress(*range(700))
            taken += 1

    response = await served.client.post("/ingest/second", data=long())
    assert (response.status, taken) == (429, 100)
    assert "max_streams" in await response.text()
    assert (await served.client.post("/ingest/first", data=progress(5))).status == 204
    found = await series(served)
    assert found['ffmpeg_ingest_rejected_total{reason="stream_limit"}'] == 1
    assert not [name for name in found if 'stream="second"' in name]


async def test_a_put_is_taken_like_a_post(serve: Serve, clock: FakeClock) -> None:
    """`curl -T -` sends PUT unless it is told otherwise."""
    served = await serve({"ffmpeg": streams(clock)})
    await served.scheduler.beat()
    assert (await served.client.put("/ingest/live/cam1", data=progress(7))).status == 204
    assert (await series(served))['ffmpeg_frames_total{stream="live/cam1"}'] == 7


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/injest/cam1", 404),
        ("POST", "/ingests", 404),
        ("POST", "/INGEST/cam1", 404),
        ("POST", "/", 405),
        ("POST", "/cam1", 404),
        ("POST", "/api/v1/ingest", 404),
        ("POST", "/metrics", 405),
        ("PUT", "/injest/cam1", 404),
        ("PATCH", "/ingest/cam1", 405),
    ],
)
async def test_a_misdirected_body_is_answered_logged_and_counted(
    serve: Serve, clock: FakeClock, method: str, path: str, status: int
) -> None:
    """FFmpeg ends with exit code 0 whatever the answer: the log and a counter say where reports went."""
    served = await serve({"ffmpeg": streams(clock)})
    await served.scheduler.beat()
    with capture_logs() as logged:
        for _ in range(3):
            response = await served.client.request(method, path, data=progress(*range(500)))
            assert response.status == status
            assert "/ingest?stream=NAME" in await response.text()
    (line,) = [line for line in logged if line["log_level"] == "warning"]
    assert (line["path"], line["peer"]) == (path, "127.0.0.1")
    assert "/ingest?stream=NAME" in line["remedy"]
    found = await series(served)
    assert found['powerbench_http_rejected_total{reason="path"}'] == 3
    assert found['ffmpeg_ingest_rejected_total{reason="path"}'] == 3
    assert not [name for name in found if name.startswith("ffmpeg_frames_total")]


@pytest.mark.parametrize("path", ["/ingest", "/ingest/cam1", "/injest/cam1", "/"])
async def test_a_port_without_ffmpeg_takes_no_progress(
    serve: Serve, scripted: type[Scripted], path: str
) -> None:
    """On another collector's port a POST is answered with where to go, logged and counted."""
    served = await serve({"fake": scripted(GOOD)})
    await served.scheduler.beat()
    with capture_logs() as logged:
        response = await served.client.post(path, data=progress(1))
    assert response.status == (405 if path == "/" else 404)
    assert "ffmpeg collector" in await response.text()
    assert [line["path"] for line in logged if line["log_level"] == "warning"] == [path]
    assert (await series(served))['powerbench_http_rejected_total{reason="port"}'] == 1


async def test_a_misdirected_body_does_not_block_its_sender(serve: Serve, clock: FakeClock) -> None:
    """Megabytes to a wrong path are read: FFmpeg 5.1 would freeze otherwise."""
    served = await serve({"ffmpeg": streams(clock)})
    await served.scheduler.beat()
    body = progress(*range(70_000))
    head = b"POST /injest HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    assert (await sent(served, head % len(body), body)).startswith(b"HTTP/1.1 404 ")


async def test_a_refused_encoder_is_logged_and_a_refused_browser_is_not(stranger: Served) -> None:
    """Whoever reads an answer is told by it; an encoder's user is told by the log, without the token."""
    with capture_logs() as logged:
        await stranger.client.get("/", headers=FOREIGN)
        for _ in range(2):
            await stranger.client.post("/ingest/cam1?token=wrong", data=progress(1), headers=FOREIGN)
    (line,) = [line for line in logged if line["log_level"] == "warning"]
    assert (line["path"], line["so_far"]) == ("/ingest/cam1", 2)
    assert "token_file" in line["remedy"]
    assert "wrong" not in str(line)


async def test_a_stranger_is_not_told_what_a_port_serves(serve: Serve, scripted: type[Scripted]) -> None:
    """Who may not ask gets 403 whether or not the port takes progress."""
    served = await serve({"fake": scripted(GOOD)})
    response: ClientResponse = await served.client.post("/ingest", data=progress(1), headers=FOREIGN)
    assert response.status == 403


class Introduced(Overheard):
    """A collector that takes feeds and keeps what it was told of each."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, Sender | None, str]] = []
        self.stated: Any = None

    def open_feed(self, stream: str, sender: Any = None, run: str = "", stated: Any = None) -> Any:
        self.stated = stated
        self.told.append((stream, sender, run))
        return super().open_feed(stream)


@pytest.mark.parametrize(
    ("path", "pid", "run"),
    [
        ("/ingest?stream=cam1", "", ""),
        ("/ingest?stream=cam1&pid=4242&run=1f", "4242", "1f"),
        ("/ingest/cam1?pid=4242", "4242", ""),
        ("/ingest/cam1?run=a+b&pid=%D9%A5", "\u0665", "a b"),
    ],
)
async def test_who_sends_is_passed_on(serve: Serve, clock: FakeClock, path: str, pid: str, run: str) -> None:
    """A feed is told both ends of its connection, when it came, and the pid and run that it gave, unread."""
    introduced = Introduced()
    served = await serve({"ffmpeg": introduced})
    await served.scheduler.beat()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 8\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", served.client.port)
    mine, its = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
    writer.write(head.encode() + b"frame=1\n")
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 204 ")
    writer.close()
    await writer.wait_closed()
    assert introduced.told == [("cam1", Sender(mine, its, pid, clock.monotonic()), run)]


async def test_what_a_stream_is_is_passed_on(serve: Serve) -> None:
    """A feed is told what the query states of its stream, as far as that is valid, and no more."""
    introduced = Introduced()
    served = await serve({"ffmpeg": introduced})
    await served.scheduler.beat()
    stated = {"codec": "h264", "encoder": "libx264", "resolution": "1280x720", "fps": "30000/1001"}
    query = {"stream": "cam1", "token": "x", "preset": "a\nb", "container": "x" * 1000, **stated}
    async with served.client.post("/ingest", params=query, data=b"frame=1\n") as answer:
        assert answer.status == 204
    assert introduced.stated.known() == {**stated, "fps": "29.97"}
