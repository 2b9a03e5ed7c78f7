"""Energy of past windows out of a Prometheus: asked for once, in the background, and the log says why not."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_samples import BEGIN, WINDOW, answer, every, node, series
from structlog.testing import capture_logs
from trees import values

from powerbench_agent.collectors.results import collector as results
from powerbench_agent.collectors.results import window_query
from powerbench_agent.collectors.results.metrics import DELTA_POWER, JOULES, POWER
from powerbench_agent.core.host import Host
from powerbench_agent.core.prometheus_windows import NODE, RAPL, PastWindow
from powerbench_agent.core.prometheus_windows import POWER as WATTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from conftest import FakeClock

    from powerbench_agent.core.model import Reading


class Server:
    """A small Prometheus: it answers a query for a metric with its series."""

    def __init__(self) -> None:
        self.series: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[dict[str, str]] = []
        self.status = 200
        self.body: bytes | None = None
        self.hangs: asyncio.Event | None = None
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        self.asked.append(query)
        if self.hangs is not None:
            await self.hangs.wait()
        if self.body is not None or self.status != 200:
            headers = {"Location": "/elsewhere"} if self.status == 302 else {}
            return web.Response(status=self.status, body=self.body or b"", headers=headers)
        found = self.series.get(query["query"].partition("{")[0], [])
        return web.Response(body=answer(*found), content_type="application/json")


class Watched(NamedTuple):
    path: Path
    clock: FakeClock
    server: Server
    collector: results.Results

    def write(self, *windows: PastWindow, stamp: str = "20260105_105132") -> None:
        """Put an old run there: a baseline in the first window, and tests in the others."""
        names = ["Baseline", *(f"s{number}" for number in range(1, len(windows)))]
        scenarios = [
            {"name": name, "bitrate": "1M", "start_time": begin, "end_time": end}
            for name, (begin, end) in zip(names, windows, strict=True)
        ]
        (self.path / f"test_results_{stamp}.json").write_text(json.dumps({"scenarios": scenarios}))

    async def settled(self) -> Reading:
        """Return the reading after the questions of one beat have been answered."""
        await self.collector.read()
        query = self.collector.query
        assert query is not None
        if query.asking is not None:
            await query.asking
        return await self.collector.read()


@pytest.fixture
async def watched(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Watched]:
    server = Server()
    application = web.Application()
    application.router.add_get("/prefix/api/v1/query", server.handle)
    async with TestServer(application) as running:
        server.url = f"http://127.0.0.1:{running.port}/prefix/"
        options = results.Options(directory=str(tmp_path), prometheus=server.url)
        collector = await results.open_collector(options, Host(clock=clock))
        yield Watched(tmp_path, clock, server, collector)
        await collector.aclose()


def joules(reading: Reading) -> dict[tuple[str, str], float]:
    """Return (scenario, source) → joules."""
    return {(labels[1], labels[-2]): value for labels, value in values(reading, JOULES).items()}


# -- through the collector ---------------------------------------------------------------------------


async def test_a_window_without_energy_gets_it(watched: Watched) -> None:
    """An old file's scenarios show the counter's gain in their windows, and the difference of two of them."""
    steps = every(5, lambda moment: (moment + 60) * 30 if moment < 100 else 160 * 30 + (moment - 100) * 50)
    watched.server.series[NODE] = [series(NODE, steps, component="cpu", source="rapl")]
    watched.write(WINDOW, PastWindow(BEGIN + 111.5, BEGIN + 151.5))
    before = await watched.collector.read()
    assert joules(before) == {}
    reading = await watched.settled()
    assert joules(reading) == pytest.approx({("Baseline", "rapl"): 1800, ("s1", "rapl"): 2000})
    assert list(values(reading, POWER).values()) == pytest.approx([30, 50])
    assert list(values(reading, DELTA_POWER).values()) == pytest.approx([20])


async def test_a_window_is_asked_for_once(watched: Watched) -> None:
    """An answered window is not asked for again, even if its file changes."""
    watched.server.series[NODE] = [node(30)]
    watched.write(WINDOW)
    for _ in range(5):
        await watched.settled()
        watched.clock.advance(3600)
    assert len(watched.server.asked) == 1
    watched.write(WINDOW, PastWindow(WINDOW.begin + 10, WINDOW.end))
    await watched.settled()
    assert len(watched.server.asked) == 2


async def test_the_query_is_for_raw_samples_around_the_window(watched: Watched) -> None:
    """It covers two more minutes on both sides of the window."""
    watched.server.series[NODE] = [node(30)]
    watched.write(WINDOW)
    await watched.settled()
    (asked,) = watched.server.asked
    assert asked == {
        "query": f'{NODE}{{component=~"cpu|dram|gpu"}}[300s]',
        "time": f"{WINDOW.end + 120:.3f}",
    }


async def test_matchers_go_into_every_query(tmp_path: Path, watched: Watched) -> None:
    """`prometheus_match` is part of each query."""
    match = 'instance="worker-1:9510"'
    options = results.Options(directory=str(tmp_path), prometheus=watched.server.url, prometheus_match=match)
    other = watched._replace(collector=results.Results(options, Host(clock=watched.clock)))
    other.write(WINDOW)
    await other.settled()
    assert len(watched.server.asked) == 3
    assert all(f",{match}}}[" in asked["query"] for asked in watched.server.asked)
    await other.collector.aclose()


async def test_older_exporters(watched: Watched) -> None:
    """Without the node's counter, RAPL's counter is used; without that, RAPL's power."""
    watched.server.series[WATTS] = [series(WATTS, every(5, lambda _: 20), zone="package_0")]
    watched.write(WINDOW)
    assert joules(await watched.settled()) == pytest.approx({("Baseline", "rapl"): 1200})
    watched.server.series[RAPL] = [
        series(RAPL, every(5, lambda moment: 7000 + moment * 30), zone="package", package="0")
    ]
    watched.write(PastWindow(WINDOW.begin, WINDOW.end - 10))
    assert joules(await watched.settled()) == pytest.approx({("Baseline", "rapl"): 1500})


async def test_no_data_is_asked_for_again_later(watched: Watched) -> None:
    """A window without data is asked for again after growing waits, and is shown once there are data."""
    watched.write(WINDOW)
    asked = []
    for _ in range(12):
        assert joules(await watched.settled()) == {}
        asked.append(len(watched.server.asked) // 3)
        watched.clock.advance(10)
    assert asked == [1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3]
    watched.clock.advance(120)
    watched.server.series[NODE] = [node(30)]
    assert joules(await watched.settled()) == pytest.approx({("Baseline", "rapl"): 1800})


async def test_a_beat_asks_for_a_few_windows(watched: Watched) -> None:
    """However many windows there are, a beat asks for five, and all have their energy in the end."""
    watched.server.series[NODE] = [node(30)]
    watched.write(*(PastWindow(WINDOW.begin + number, WINDOW.end) for number in range(12)))
    assert len(joules(await watched.settled())) == 5
    query = watched.collector.query
    assert query is not None
    assert query.asking is not None
    await query.asking  # what the second beat has asked: whether it had come by itself is the machine's speed
    assert len(watched.server.asked) == 10
    assert len(joules(await watched.settled())) == 12


async def test_a_server_that_hangs_holds_nothing_up(watched: Watched) -> None:
    """While a query is out readings go on, no second one begins, and closing does not wait for it."""
    watched.server.hangs = asyncio.Event()
    watched.write(WINDOW)
    for _ in range(3):
        await watched.collector.read()
        await asyncio.sleep(0)
    query = watched.collector.query
    assert query is not None
    assert query.asking is not None
    task = query.asking
    await watched.collector.aclose()
    assert task.cancelled()
    watched.server.hangs.set()
    assert len(watched.server.asked) <= 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (302, b""),
        (401, b"who are you"),
        (500, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"{" * 100_000),
        (200, b"\xff"),
        (200, b'{"status": "success", "data": {"result": [{"metric": {"a": 1}, "values": []}]}}'),
    ],
    ids=range(8),
)
async def test_a_server_that_gives_no_answer(watched: Watched, status: int, body: bytes) -> None:
    """The log says once what to set; other windows wait as well, longer each time."""
    watched.server.status, watched.server.body = status, body
    watched.write(WINDOW, PastWindow(WINDOW.begin + 1, WINDOW.end))
    with capture_logs() as logs:
        for _ in range(4):
            await watched.settled()
            watched.clock.advance(9)
    assert len(watched.server.asked) == 2  # at 0 s and 18 s
    (entry,) = logs
    assert "[collectors.results] prometheus" in entry["error"]
    assert "127.0.0.1" in entry["error"]
    watched.server.status, watched.server.body = 200, None
    watched.server.series[NODE] = [node(30)]
    watched.clock.advance(300)
    assert len(joules(await watched.settled())) == 2


async def test_nothing_listens(watched: Watched, free_port: int) -> None:
    """If nothing listens there the log says so once, without the password in the URL."""
    url = f"http://user:secret@127.0.0.1:{free_port}"
    options = results.Options(directory=str(watched.path), prometheus=url)
    other = watched._replace(collector=results.Results(options, Host(clock=watched.clock)))
    other.write(WINDOW)
    with capture_logs() as logs:
        for _ in range(3):
            await other.settled()
            other.clock.advance(100)
    (entry,) = logs
    assert "no answer from 127.0.0.1" in entry["error"]
    assert "secret" not in str(entry)
    await other.collector.aclose()


@pytest.mark.parametrize("trusted", [True, False])
async def test_https(
    watched: Watched, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch, *, trusted: bool
) -> None:
    """A certificate that the system trusts is accepted; another one is refused, and the log says so."""
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    application = web.Application()
    application.router.add_get("/api/v1/query", watched.server.handle)
    server = TestServer(application)
    await server.start_server(ssl=context)
    options = results.Options(
        directory=str(watched.path), prometheus=f"https://user:word@127.0.0.1:{server.port}"
    )
    other = watched._replace(collector=results.Results(options, Host(clock=watched.clock)))
    watched.server.series[NODE] = [node(30)]
    watched.write(WINDOW)
    with capture_logs() as logs:
        found = joules(await other.settled())
    await other.collector.aclose()
    await server.close()
    assert len(found) == len(watched.server.asked) == int(trusted)
    assert ["certificate" in entry["error"].lower() for entry in logs] == ([] if trusted else [True])


async def test_a_query_that_is_refused(watched: Watched) -> None:
    """A server that refuses one window's query is quoted, and the window is asked for again later."""
    watched.server.status = 422
    watched.server.body = b'{"status": "error", "errorType": "execution", "error": "too many samples"}'
    watched.write(WINDOW)
    with capture_logs() as logs:
        await watched.settled()
    assert logs[0]["error"].endswith("refuses the query: too many samples")


async def test_an_answer_without_end(watched: Watched) -> None:
    """An answer that is too large for one window is dropped, and the log says what to set."""
    watched.server.body = b" " * (window_query.MAX_ANSWER_BYTES + 1)
    watched.write(WINDOW)
    with capture_logs() as logs:
        await watched.settled()
    assert "prometheus_match" in logs[0]["error"]


async def test_several_machines_are_not_added_up(watched: Watched) -> None:
    """If a Prometheus knows several machines, none is used, and the log says how to choose."""
    watched.server.series[NODE] = [node(30), node(40, instance="worker-2:9510")]
    watched.write(WINDOW)
    with capture_logs() as logs:
        assert joules(await watched.settled()) == {}
    assert """prometheus_match = 'instance="worker-1:9510"'""" in logs[0]["error"]


@pytest.mark.parametrize(
    "window",
    [
        PastWindow(10, 5),
        PastWindow(-5, 5),
        PastWindow(5, 1e18),
        PastWindow(1, float("inf")),
        PastWindow(1, 1e7),
    ],
)
async def test_a_window_that_cannot_be(watched: Watched, window: PastWindow) -> None:
    """An impossible window, or one of many days, is not asked for."""
    watched.write(window)
    await watched.settled()
    assert watched.server.asked == []


async def test_a_file_with_energy_is_not_asked_for(watched: Watched) -> None:
    """A file's own measurement stays as it is."""
    energy = {"source": "rapl", "seconds": 60, "joules": 60, "mean_watts": 1}
    scenario = {"name": "a", "bitrate": "1M", "start_time": BEGIN, "end_time": BEGIN + 60, "energy": energy}
    path = watched.path / "test_results_20260105_105132.json"
    path.write_text(json.dumps({"format": 2, "scenarios": [scenario]}))
    assert joules(await watched.settled()) == {("a", "rapl"): 60}
    assert watched.server.asked == []
