"""Energy of past windows out of a Prometheus: exact at the edges, asked once, in no reading's way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trees import values

from powerbench_agent.collectors.results import collector as results
from powerbench_agent.collectors.results import window_query
from powerbench_agent.collectors.results.metrics import DELTA_POWER, JOULES, POWER
from powerbench_agent.collectors.results.window_query import (
    NoEnergy,
    Unanswered,
    Window,
    energy_in,
    points_of,
)
from powerbench_agent.core.host import Host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from conftest import FakeClock

    from powerbench_agent.core.model import Reading

NODE, RAPL, WATTS = window_query.SELECTORS
BEGIN = 1_799_990_000.0  # well before the clock's now
WINDOW = Window(BEGIN + 2.5, BEGIN + 62.5)


def every(seconds: float, value: Callable[[float], float], begin: float = -60, end: float = 200) -> list[Any]:
    """Return raw samples as Prometheus writes them; `value` by seconds since BEGIN."""
    moments = [begin + number * seconds for number in range(int((end - begin) / seconds) + 1)]
    return [[BEGIN + moment, f"{value(moment):.6f}"] for moment in moments]


def series(name: str, samples: list[Any], **labels: str) -> dict[str, Any]:
    metric = {"__name__": name, "instance": "worker-1:9510", "job": "powerbench", **labels}
    return {"metric": metric, "values": samples}


def node(watts: float, component: str = "cpu", source: str = "rapl", **labels: str) -> dict[str, Any]:
    samples = every(5, lambda moment: (moment + 60) * watts)
    return series(NODE, samples, component=component, source=source, **labels)


def answer(*found: dict[str, Any]) -> bytes:
    data = {"resultType": "matrix", "result": list(found)}
    return json.dumps({"status": "success", "data": data}).encode()


class Server:
    """A small Prometheus: it answers a query for a metric with the series that it has of it."""

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

    def write(self, *windows: Window, stamp: str = "20260105_105132") -> None:
        """Put an old run there: a baseline in the first window, and tests in the others."""
        names = ["Baseline", *(f"s{number}" for number in range(1, len(windows)))]
        scenarios = [
            {"name": name, "bitrate": "1M", "start_time": begin, "end_time": end}
            for name, (begin, end) in zip(names, windows, strict=True)
        ]
        (self.path / f"test_results_{stamp}.json").write_text(json.dumps({"scenarios": scenarios}))

    async def settled(self) -> Reading:
        """Return the reading after what one beat had asked has been answered."""
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
    return {(labels[1], labels[-1]): value for labels, value in values(reading, JOULES).items()}


# -- through the collector ---------------------------------------------------------------------------


async def test_a_window_without_energy_gets_it(watched: Watched) -> None:
    """An old file's scenarios show the counter's gain in their windows, and the difference of two of them."""
    steps = every(5, lambda moment: (moment + 60) * 30 if moment < 100 else 160 * 30 + (moment - 100) * 50)
    watched.server.series[NODE] = [series(NODE, steps, component="cpu", source="rapl")]
    watched.write(WINDOW, Window(BEGIN + 111.5, BEGIN + 151.5))
    before = await watched.collector.read()
    assert joules(before) == {}
    reading = await watched.settled()
    assert joules(reading) == pytest.approx({("Baseline", "rapl"): 1800, ("s1", "rapl"): 2000})
    assert list(values(reading, POWER).values()) == pytest.approx([30, 50])
    assert list(values(reading, DELTA_POWER).values()) == pytest.approx([20])


async def test_a_window_is_asked_for_once(watched: Watched) -> None:
    """What has been answered is not asked again, though the file is shown for ever and even changes."""
    watched.server.series[NODE] = [node(30)]
    watched.write(WINDOW)
    for _ in range(5):
        await watched.settled()
        watched.clock.advance(3600)
    assert len(watched.server.asked) == 1
    watched.write(WINDOW, Window(WINDOW.begin + 10, WINDOW.end))
    await watched.settled()
    assert len(watched.server.asked) == 2


async def test_the_query_is_for_raw_samples_around_the_window(watched: Watched) -> None:
    """It asks for the samples of two minutes more on both sides, at a moment after the window."""
    watched.server.series[NODE] = [node(30)]
    watched.write(WINDOW)
    await watched.settled()
    (asked,) = watched.server.asked
    assert asked == {
        "query": f'{NODE}{{component=~"cpu|dram|gpu"}}[300s]',
        "time": f"{WINDOW.end + 120:.3f}",
    }


async def test_matchers_go_into_every_query(tmp_path: Path, watched: Watched) -> None:
    """What tells this machine from others is part of each query."""
    match = 'instance="worker-1:9510"'
    options = results.Options(directory=str(tmp_path), prometheus=watched.server.url, prometheus_match=match)
    other = watched._replace(collector=results.Results(options, Host(clock=watched.clock)))
    other.write(WINDOW)
    await other.settled()
    assert len(watched.server.asked) == 3
    assert all(f",{match}}}[" in asked["query"] for asked in watched.server.asked)
    await other.collector.aclose()


async def test_older_exporters(watched: Watched) -> None:
    """Without the node's counter RAPL's is taken, and without that RAPL's power."""
    watched.server.series[WATTS] = [series(WATTS, every(5, lambda _: 20), zone="package_0")]
    watched.write(WINDOW)
    assert joules(await watched.settled()) == pytest.approx({("Baseline", "rapl"): 1200})
    watched.server.series[RAPL] = [
        series(RAPL, every(5, lambda moment: 7000 + moment * 30), zone="package", package="0")
    ]
    watched.write(Window(WINDOW.begin, WINDOW.end - 10))
    assert joules(await watched.settled()) == pytest.approx({("Baseline", "rapl"): 1500})


async def test_no_data_is_asked_for_again_later(watched: Watched) -> None:
    """Where there is no data yet it is asked again after a while that grows, and then shown."""
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
    watched.write(*(Window(WINDOW.begin + number, WINDOW.end) for number in range(12)))
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
    """It is said once, with what to set; no other window is asked until a while that grows has gone by."""
    watched.server.status, watched.server.body = status, body
    watched.write(WINDOW, Window(WINDOW.begin + 1, WINDOW.end))
    with capture_logs() as logs:
        for _ in range(4):
            await watched.settled()
            watched.clock.advance(9)
    assert len(watched.server.asked) == 2  # at 0 s and 18 s
    (entry,) = logs
    assert "[collectors.results] prometheus" in entry["error"]
    assert "127.0.0.1" in entry["error"] or "not Prometheus's" in entry["error"]
    watched.server.status, watched.server.body = 200, None
    watched.server.series[NODE] = [node(30)]
    watched.clock.advance(300)
    assert len(joules(await watched.settled())) == 2


async def test_nobody_listens(watched: Watched, free_port: int) -> None:
    """Where nobody listens it is said once; a password in the URL is not."""
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
    """A certificate that the system trusts is taken, another one is refused and said."""
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
    assert logs[0]["error"].endswith("refuses: too many samples")


async def test_an_answer_without_end(watched: Watched) -> None:
    """An answer larger than any window's is not taken, and what to set is said."""
    watched.server.body = b" " * (window_query.MAX_ANSWER_BYTES + 1)
    watched.write(WINDOW)
    with capture_logs() as logs:
        await watched.settled()
    assert "prometheus_match" in logs[0]["error"]


async def test_several_machines_are_not_added_up(watched: Watched) -> None:
    """Where a Prometheus knows several machines none is taken, and the log says how to choose."""
    watched.server.series[NODE] = [node(30), node(40, instance="worker-2:9510")]
    watched.write(WINDOW)
    with capture_logs() as logs:
        assert joules(await watched.settled()) == {}
    assert """prometheus_match = 'instance="worker-1:9510"'""" in logs[0]["error"]


@pytest.mark.parametrize(
    "window", [Window(10, 5), Window(-5, 5), Window(5, 1e18), Window(1, float("inf")), Window(1, 1e7)]
)
async def test_a_window_that_cannot_be(watched: Watched, window: Window) -> None:
    """A window that ends before it begins, or never, is not asked for."""
    watched.write(window)
    await watched.settled()
    assert watched.server.asked == []


async def test_a_file_with_energy_is_not_asked_for(watched: Watched) -> None:
    """What a file has measured itself stands."""
    energy = {"source": "rapl", "seconds": 60, "joules": 60, "mean_watts": 1}
    scenario = {"name": "a", "bitrate": "1M", "start_time": BEGIN, "end_time": BEGIN + 60, "energy": energy}
    path = watched.path / "test_results_20260105_105132.json"
    path.write_text(json.dumps({"format": 2, "scenarios": [scenario]}))
    assert joules(await watched.settled()) == {("a", "rapl"): 60}
    assert watched.server.asked == []


# -- what an answer comes to -------------------------------------------------------------------------


def test_components_add_up() -> None:
    """The node's components are added up, and parts are kept apart."""
    found = energy_in(answer(node(30), node(5, "dram"), node(65, "gpu", "nvml")), WINDOW)
    assert found is not None
    assert (found.source, found.measured) == ("nvml + rapl", True)
    assert (found.seconds, found.mean_watts) == pytest.approx((60, 100))
    assert [(p.component, p.watts) for p in found.parts] == [
        ("cpu", pytest.approx(30)),
        ("dram", pytest.approx(5)),
        ("gpu", pytest.approx(65)),
    ]


def test_an_estimate_is_called_one() -> None:
    """Joules that an agent has estimated stay an estimate; a counter that stands still is no part."""
    still = series(NODE, every(5, lambda _: 500), component="cpu", source="estimate")
    for found, source in (
        ([node(30, source="estimate")], "estimate"),
        ([node(30, source="estimate"), node(65, "gpu", "nvml")], "estimate + nvml"),
        ([node(30), still], "rapl"),
    ):
        energy = energy_in(answer(*found), WINDOW)
        assert energy is not None
        assert (energy.source, energy.measured) == (source, "estimate" not in source)


def test_twins_count_once() -> None:
    """The mmio twin of a zone that is there itself is left out; alone it counts."""
    zones = [
        series(
            RAPL, every(5, lambda t: t * 30 + 5000), zone="package", package="0", path=f"intel-rapl{kind}:0"
        )
        for kind in ("", "-mmio")
    ]
    for found in (zones, zones[:1], zones[1:]):
        energy = energy_in(answer(*found), WINDOW)
        assert energy is not None
        assert energy.joules == pytest.approx(1800)


def test_two_sockets_add_up() -> None:
    """Zones of two sockets, and their memory, are added up."""
    found = [
        series(RAPL, every(5, lambda t: t * 10 + 5000), zone=zone, package=package, path=path)
        for zone, package, path in (
            ("package", "0", "intel-rapl:0"),
            ("package", "1", "intel-rapl:1"),
            ("dram", "0", "intel-rapl:0:0"),
        )
    ]
    energy = energy_in(answer(*found), WINDOW)
    assert energy is not None
    assert [(p.component, p.watts) for p in energy.parts] == [
        ("cpu", pytest.approx(20)),
        ("dram", pytest.approx(10)),
    ]


@pytest.mark.parametrize(
    "samples",
    [
        every(5, lambda t: t + 60, begin=5),  # begins within
        every(5, lambda t: t + 60, end=60),  # ends within
        every(5, lambda t: t + 60, begin=70),  # after
        every(5, lambda t: t + 60, end=0),  # before
        every(70, lambda t: t + 60),  # scraped more rarely than the window is long
        every(110, lambda t: t + 60, begin=-45),  # without a sample in the window
        [],
    ],
    ids=range(7),
)
def test_samples_that_do_not_cover_the_window(samples: list[Any]) -> None:
    """A part of a window's energy is never shown for the whole."""
    found = answer(series(NODE, samples, component="cpu", source="rapl"))
    with contextlib.suppress(NoEnergy):
        assert energy_in(found, WINDOW) is None


def test_a_part_that_is_missing_in_the_window() -> None:
    """One component that ends within the window costs the window; one that lies outside of it does not."""
    ends = series(NODE, every(5, lambda t: t + 60, end=30), component="gpu", source="nvml")
    with pytest.raises(NoEnergy):
        energy_in(answer(node(30), ends), WINDOW)
    outside = series(NODE, every(5, lambda t: t + 60, end=0), component="gpu", source="nvml")
    energy = energy_in(answer(node(30), outside), WINDOW)
    assert energy is not None
    assert energy.joules == pytest.approx(1800)


@pytest.mark.parametrize("since", [-10, 50])
def test_power_that_is_missing_for_long(since: float) -> None:
    """Power is not made up for a time in which nobody has read it, at an edge or within the window."""
    window = Window(BEGIN, BEGIN + 180)
    gap = [sample for sample in every(5, lambda _: 20) if not since < sample[0] - BEGIN < since + 70]
    with pytest.raises(NoEnergy):
        energy_in(answer(series(WATTS, gap, zone="package-0")), window)


@pytest.mark.parametrize("body", [b"", b"{}x", b"7", b'{"data": {"result": 5}}', b"[" * 50_000])
def test_what_is_no_answer(body: bytes) -> None:
    """What no Prometheus would say is told apart from no data."""
    with pytest.raises(Unanswered):
        energy_in(body, WINDOW)


def test_samples_that_are_no_numbers() -> None:
    """Values that are not numbers are skipped."""
    values_ = [(3.0, "3"), (1.0, "1"), (2.0, "NaN"), (2.5, "+Inf"), (2.6, "x")]
    assert points_of(values_) == [(3.0, 3.0), (1.0, 1.0)]


samples_ = st.lists(
    st.tuples(st.floats(), st.sampled_from(["1", "2.5", "NaN", "-3", "1e308", "x"])), max_size=6
)
labels_ = st.dictionaries(
    st.sampled_from(["component", "source", "zone", "path", "instance"]), st.text(max_size=4), max_size=4
).flatmap(lambda labels: st.sampled_from([NODE, RAPL, WATTS]).map(lambda name: {"__name__": name, **labels}))


@given(st.lists(st.builds(lambda m, v: {"metric": m, "values": v}, labels_, samples_), max_size=4))
def test_any_answer(found: list[Any]) -> None:
    """Any answer of a server is energy, none, or a verdict."""
    try:
        energy = energy_in(answer(*found), Window(1, 2))
    except (Unanswered, NoEnergy):
        return
    assert energy is None or 0 <= energy.joules < float("inf")
