"""The energy of a past window out of samples, for both of its users."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from prometheus_samples import BEGIN, WINDOW, answer, every, node, series

from powerbench_agent.bench.analyze import prometheus
from powerbench_agent.collectors.results.window_query import WindowQuery
from powerbench_agent.core.prometheus_windows import (
    METRICS,
    NODE,
    POWER,
    RAPL,
    NotPrometheus,
    PastWindow,
    SeveralMachines,
    began_again,
    energy_of,
    increase,
    integral,
    mean,
    parse_answer,
)
from powerbench_agent.core.results import RecordedScenario, ResultsFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import FakeClock

    from powerbench_agent.core.results import Energy

STEADY = [(float(t), 10.0 * t) for t in range(0, 101, 10)]  # 10 W, a sample each 10 s


def test_edges_fall_between_samples() -> None:
    """From 13 s to 47 s a counter of 10 W gains 340 J, in whatever order its samples come."""
    assert increase(STEADY, 13, 47) == pytest.approx(340)
    assert increase(reversed(STEADY), 13, 47) == pytest.approx(340)


def test_an_edge_on_a_sample_is_exact() -> None:
    """On a sample nothing is interpolated, however uneven the steps beside it are."""
    uneven = [(0.0, 0.0), (10.0, 100.0), (20.0, 300.0)]
    assert increase(uneven, 10, 20, reach=1) == 200
    assert increase(uneven, 5, 15) == pytest.approx(150)
    assert increase(uneven, 5, 15, reach=4) is None


def test_a_window_between_two_samples() -> None:
    """A counter's gain between two samples is interpolated, if `step` allows it."""
    assert increase(STEADY, 42, 45) == pytest.approx(30)
    assert increase(STEADY, 42, 45, step=9) is None


def test_a_counter_that_began_again() -> None:
    """After a reset it counts from 0; a reset before or after the window does not matter."""
    samples = [(0.0, 500.0), (10.0, 600.0), (20.0, 50.0), (30.0, 150.0)]
    assert increase(samples, 0, 30) == pytest.approx(100 + 50 + 100)
    assert increase(samples, 20, 30) == pytest.approx(100)
    assert increase(samples, 0, 10) == pytest.approx(100)
    assert began_again(samples, 0, 30)
    assert not began_again(samples, 20, 30)


@pytest.mark.parametrize(
    ("samples", "start", "end"),
    [
        ([], 0, 10),
        ([(5.0, 1.0)], 0, 10),
        (STEADY, -5, 20),
        (STEADY, 50, 105),
        (STEADY, 30, 30),
        (STEADY, 40, 30),
        ([(0.0, 0.0), (100.0, 1000.0)], 45, 55),
        ([(0.0, math.nan), (10.0, 5.0)], 5, 10),
    ],
)
def test_without_samples_around_both_edges_there_is_no_figure(
    samples: list[tuple[float, float]], start: float, end: float
) -> None:
    """What is not known is None: no sample before, none after, too far away, or no window."""
    assert increase(samples, start, end, reach=30) is None


def test_marks_of_a_stale_series_are_no_samples() -> None:
    """NaN among the values is passed over."""
    assert increase([*STEADY, (45.0, math.nan)], 40, 50) == pytest.approx(100)


def test_a_gauge_is_its_samples_mean() -> None:
    """Only samples in the window count, and they must reach its edges."""
    gauge = [(0.0, 100.0), (10.0, 4.0), (20.0, 6.0), (30.0, 100.0)]
    assert mean(gauge, 5, 25) == pytest.approx(5)
    assert mean(gauge, 11, 19) is None
    assert mean(gauge, 5, 500) is None


def test_power_between_two_samples_is_their_mean() -> None:
    """Watts become joules by trapezoids, interpolated at both edges."""
    power = [(0.0, 10.0), (10.0, 30.0), (11.0, 30.0), (21.0, 30.0)]
    assert integral(power, 0, 10) == pytest.approx(200)
    assert integral(power, 0, 11) == pytest.approx(230)
    assert integral(reversed(power), 5, 16) == pytest.approx(100 + 30 + 150)


@pytest.mark.parametrize(
    ("start", "end"), [(-5.0, 20.0), (50.0, 225.0), (30.0, 30.0), (40.0, 30.0), (50.0, 150.0), (95.0, 150.0)]
)
def test_power_that_was_not_read_is_not_made_up(start: float, end: float) -> None:
    """A gauge does not have an integral over a gap longer than its reach, nor beyond its samples."""
    power = [(float(t), 5.0) for t in range(0, 221, 10) if not 100 < t < 140]
    assert integral(power, start, end, reach=30) is None


@given(
    st.lists(st.floats(0, 1000), min_size=12, max_size=12),
    st.floats(0, 110),
    st.floats(0, 110),
    st.floats(0, 110),
)
def test_parts_of_a_window_sum_to_it(steps: list[float], a: float, b: float, c: float) -> None:
    """A counter's gains over two adjacent windows sum to that over both, and are never negative."""
    first, middle, last = sorted((a, b, c))
    samples, value = [], 0.0
    for place, step in enumerate(steps):
        value += step
        samples.append((10.0 * place, value))

    def gained(start: float, end: float) -> float:
        if start == end:
            return 0.0
        found = increase(samples, start, end)
        assert found is not None
        assert found >= -1e-6
        return found

    whole = gained(first, middle) + gained(middle, last)
    assert whole == pytest.approx(gained(first, last), abs=1e-6)


# -- the energy of a window --------------------------------------------------------------------------


def energy_in(body: bytes, window: PastWindow) -> Energy | None:
    return energy_of(parse_answer(body).series, window).energy


def test_components_add_up() -> None:
    """The node's components are summed, and listed as parts."""
    found = energy_in(answer(node(30), node(5, "dram"), node(65, "gpu", "nvml")), WINDOW)
    assert found is not None
    assert (found.source, found.measured) == ("nvml + rapl", True)
    assert (found.seconds, found.mean_watts) == pytest.approx((60, 100))
    assert [(p.component, p.watts) for p in found.parts] == [
        ("cpu", pytest.approx(30)),
        ("dram", pytest.approx(5)),
        ("gpu", pytest.approx(65)),
    ]


@pytest.mark.parametrize("phase", range(0, 45, 5))
def test_a_window_shorter_than_the_scrape_interval(phase: float) -> None:
    """It does not have an energy, wherever the samples fall: that would be a share of a longer step."""
    rare = series(NODE, every(45, lambda t: t * 100, begin=phase - 90), component="cpu", source="rapl")
    assert energy_in(answer(rare), PastWindow(BEGIN, BEGIN + 30)) is None


def test_an_interval_as_long_as_the_window() -> None:
    """It is enough, though scrapes are not on time to the millisecond."""
    minute = series(NODE, every(61, lambda t: (t + 60) * 10, begin=-40), component="cpu", source="rapl")
    energy = energy_in(answer(minute), WINDOW)
    assert energy is not None
    assert energy.joules == pytest.approx(600)


def test_an_estimate_is_called_one() -> None:
    """Estimated joules are labelled so; an estimate that stood still beside a measurement is left out."""
    still = series(NODE, every(5, lambda _: 500), component="cpu", source="estimate")
    for found, source in (
        ([node(30, source="estimate")], "estimate"),
        ([node(30, source="estimate"), node(65, "gpu", "nvml")], "estimate + nvml"),
        ([node(30), still], "rapl"),
        ([still], "estimate"),
    ):
        energy = energy_in(answer(*found), WINDOW)
        assert energy is not None
        assert (energy.source, energy.measured) == (source, source == "rapl")


def test_a_source_that_others_replaced() -> None:
    """A source that stood still is left out if another one of its component moved."""
    still = series(NODE, every(5, lambda _: 500), component="gpu", source="drm")
    energy = energy_in(answer(node(30), node(65, "gpu", "nvml"), still), WINDOW)
    assert energy is not None
    assert energy.source == "nvml + rapl"
    alone = energy_in(answer(node(30), still), WINDOW)
    assert alone is not None
    assert [(p.component, p.source, p.watts) for p in alone.parts] == [
        ("cpu", "rapl", pytest.approx(30)),
        ("gpu", "drm", 0),
    ]


@pytest.mark.parametrize(
    ("labels", "label", "values"),
    [
        ({"instance": "worker-2:9510"}, "instance", ["worker-1:9510", "worker-2:9510"]),
        ({"cluster": "b"}, "cluster", ["", "b"]),
    ],
)
def test_series_of_several_machines(labels: dict[str, str], label: str, values: list[str]) -> None:
    """They are never added up, and the label that tells the machines apart is named."""
    found = parse_answer(answer(node(30), node(40, **labels))).series
    with pytest.raises(SeveralMachines) as several:
        energy_of(found, WINDOW)
    assert (several.value.label, several.value.values) == (label, values)


def test_a_counter_that_started_again_is_told() -> None:
    """Only a window in which the counter went back says so."""
    counter = every(5, lambda t: t + 60 if t < 30 else t - 30)
    found = parse_answer(answer(series(NODE, counter, component="cpu", source="rapl"))).series
    assert energy_of(found, WINDOW).restarted
    assert not energy_of(found, PastWindow(BEGIN + 42.5, BEGIN + 102.5)).restarted


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
    """A part of a window's energy is never shown as the whole."""
    found = answer(series(NODE, samples, component="cpu", source="rapl"))
    assert energy_in(found, WINDOW) is None


def test_a_part_that_is_missing_in_the_window() -> None:
    """A component that ends within the window leaves it without energy; one outside of it does not."""
    ends = series(NODE, every(5, lambda t: t + 60, end=30), component="gpu", source="nvml")
    assert energy_in(answer(node(30), ends), WINDOW) is None
    outside = series(NODE, every(5, lambda t: t + 60, end=0), component="gpu", source="nvml")
    energy = energy_in(answer(node(30), outside), WINDOW)
    assert energy is not None
    assert energy.joules == pytest.approx(1800)


@pytest.mark.parametrize("since", [-10, 50])
def test_power_that_is_missing_for_long(since: float) -> None:
    """Power is not made up for a time without readings, at an edge or within the window."""
    window = PastWindow(BEGIN, BEGIN + 180)
    gap = [sample for sample in every(5, lambda _: 20) if not since < sample[0] - BEGIN < since + 70]
    assert energy_in(answer(series(POWER, gap, zone="package-0")), window) is None


@pytest.mark.parametrize(
    "body", [b"", b"{}x", b"7", b"{}", b'{"status": "success", "data": {"result": 5}}', b"[" * 50_000]
)
def test_what_is_not_an_answer(body: bytes) -> None:
    """What a Prometheus would never say is told apart from no data."""
    with pytest.raises(NotPrometheus):
        parse_answer(body)


def test_samples_that_are_not_numbers() -> None:
    """Values that are not numbers are passed over; samples come in the order of time."""
    values = [(3.0, "3"), (1.0, "1"), (2.0, "NaN"), (2.5, "+Inf"), (2.6, "x")]
    (found,) = parse_answer(answer(series(NODE, values))).series
    assert found.samples == [(1.0, 1.0), (3.0, 3.0)]


def test_a_refused_query_says_why() -> None:
    """The server's own text is kept."""
    body = b'{"status": "error", "errorType": "execution", "error": "too many samples"}'
    assert parse_answer(body) == ([], "too many samples")


_LABELS = {
    "__name__": st.sampled_from(METRICS),
    "component": st.sampled_from(["cpu", "gpu", "platform", ""]),
    "source": st.sampled_from(["rapl", "estimate", ""]),
    "zone": st.sampled_from(["package", "package-0", "dram", "core", ""]),
    "path": st.sampled_from(["intel-rapl:0", "intel-rapl-mmio:0"]),
    "instance": st.sampled_from(["a:1", "a:2", "b:1", "a"]),
    "job": st.text(max_size=2),
}
_SAMPLES = st.lists(
    st.tuples(
        st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 2.0, 3.0])),
        st.sampled_from(["1", "2.5", "NaN", "-3", "1e308", "x"]),
    ),
    max_size=6,
)
_SERIES = st.builds(
    lambda metric, values: {"metric": metric, "values": values},
    st.fixed_dictionaries({}, optional=_LABELS),
    _SAMPLES,
)


@given(st.lists(_SERIES, max_size=4))
def test_any_answer(found: list[Any]) -> None:
    """Whatever a server says is energy, none, or a verdict."""
    try:
        energy = energy_in(answer(*found), PastWindow(1, 2))
    except (NotPrometheus, SeveralMachines):
        return
    assert energy is None or 0 <= energy.joules < float("inf")


# -- both users -------------------------------------------------------------------------------------

HALF_A_MINUTE = PastWindow(BEGIN, BEGIN + 30)
STILL_ESTIMATE = series(NODE, every(5, lambda _: 500), component="cpu", source="estimate")
RAMP = series(POWER, every(15, lambda t: 74 + t if t < 20 else 74.0), zone="package", package="0")
# (series, joules; None for no energy, source, measured)
CASES: dict[str, tuple[list[dict[str, Any]], float | None, str, bool]] = {
    "scraped too rarely": (
        [series(NODE, every(45, lambda t: (t + 60) * 100), component="cpu", source="rapl")],
        None,
        "",
        True,
    ),
    "without a sample in the window": (
        [series(NODE, every(45, lambda t: (t + 60) * 100, begin=-55), component="cpu", source="rapl")],
        None,
        "",
        True,
    ),
    "one agent under two jobs": ([node(100), node(100, job="again")], 3000, "rapl", True),
    "one agent on two ports": (
        [node(100), node(100, job="powerbench-rapl", instance="worker-1:9511")],
        3000,
        "rapl",
        True,
    ),
    # 74 W at 0 s, 89 W at 15 s, 74 W at 30 s; the mean of the samples would be 79 W.
    "a gauge's ramp": ([RAMP], 15 * (74 + 89) / 2 + 15 * (89 + 74) / 2, "rapl", True),
    "an estimate that stood still": ([node(100), STILL_ESTIMATE], 3000, "rapl", True),
    "an estimate beside a measurement": ([node(100), node(60, source="estimate")], None, "", True),
    "an estimate of another component": (
        [node(100, "gpu", "nvml"), node(60, source="estimate")],
        4800,
        "estimate + nvml",
        False,
    ),
    "the node's source": ([node(100, "gpu", "drm")], 3000, "drm", True),
    "a node without a source": ([node(100, source="")], 3000, "prometheus", True),
    "zones": (
        [series(RAPL, every(5, lambda t: (t + 60) * 100), zone="package", package="0")],
        3000,
        "rapl",
        True,
    ),
    "the whole machine beside its parts": ([node(100), node(150, "platform", "hwmon")], 3000, "rapl", True),
    "a node's part ends, and zones go on": (
        [
            node(100),
            series(NODE, every(5, lambda t: t + 60, end=20), component="gpu", source="nvml"),
            series(RAPL, every(5, lambda t: (t + 60) * 100), zone="package", package="0"),
        ],
        None,
        "",
        True,
    ),
    "zones of another machine do not count": (
        [
            node(100),
            series(
                RAPL,
                every(5, lambda t: (t + 60) * 70),
                zone="package",
                package="0",
                instance="worker-2:9510",
            ),
        ],
        3000,
        "rapl",
        True,
    ),
    "another machine's samples end before the window": (
        [
            node(100),
            series(
                NODE,
                every(5, lambda t: t + 60, end=-5),
                component="cpu",
                source="rapl",
                instance="worker-2:9510",
            ),
        ],
        3000,
        "rapl",
        True,
    ),
    "several machines": ([node(100), node(100, instance="worker-2:9510")], None, "", True),
    "machines that differ in another label": ([node(100), node(100, cluster="b")], None, "", True),
}


@pytest.fixture
async def server() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Serve the series of the metrics that a query names; give its URL and the list of series."""
    known: list[dict[str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        query = (await request.post() if request.method == "POST" else request.query)["query"]
        found = [one for one in known if one["metric"]["__name__"] in str(query)]
        return web.Response(body=answer(*found), content_type="application/json")

    application = web.Application()
    application.router.add_route("*", "/api/v1/query", handle)
    async with TestServer(application) as running:
        yield f"http://127.0.0.1:{running.port}", known


async def by_the_collector(url: str, clock: FakeClock) -> Energy | None:
    query = WindowQuery(url, "", clock)
    query.want([HALF_A_MINUTE])
    assert query.asking is not None
    await query.asking
    await query.aclose()
    return query.answer(HALF_A_MINUTE)


async def by_analyze(url: str) -> Energy | None:
    begin, end = HALF_A_MINUTE
    scenario = RecordedScenario(name="a", start_time=begin, end_time=end)
    results = ResultsFile(scenarios=(scenario,))
    try:
        filled = await asyncio.to_thread(prometheus.fill, results, url)
    except prometheus.NotThere:
        return None
    return filled.results.scenarios[0].energy


@pytest.mark.parametrize("case", CASES)
async def test_both_users_say_the_same(
    case: str, server: tuple[str, list[dict[str, Any]]], clock: FakeClock
) -> None:
    """The results collector and `analyze --prometheus` give the same, right answer to the same samples."""
    url, known = server
    found, joules, source, measured = CASES[case]
    known += found
    shown = await by_the_collector(url, clock)
    assert await by_analyze(url) == shown
    if joules is None:
        assert shown is None
        return
    assert shown is not None
    assert shown.joules == pytest.approx(joules)
    assert (shown.source, shown.measured) == (source, measured)
