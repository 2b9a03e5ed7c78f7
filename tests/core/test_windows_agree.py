"""A past window has one energy, whoever asks: the results collector and `powerbench analyze --prometheus`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from powerbench_agent.bench.analyze import prometheus
from powerbench_agent.collectors.results import window_query
from powerbench_agent.core.prometheus_windows import NODE_ENERGY, RAPL_POWER

if TYPE_CHECKING:
    from collections.abc import Callable

    from powerbench_agent.core.results import Energy

BEGIN = 1_700_000_000.0


def series(name: str, value: Callable[[float], float], step: float, **labels: str) -> dict[str, Any]:
    """Return a series as both servers write it, from five minutes before BEGIN to ten after it."""
    moments = [number * step for number in range(round(-300 / step), round(600 / step))]
    samples = [(BEGIN + moment, str(value(moment))) for moment in moments]
    return {"metric": {"__name__": name, "instance": "w1:9510", "job": "a", **labels}, "values": samples}


def by_the_collector(found: list[dict[str, Any]], begin: float, end: float) -> Energy | None:
    body = json.dumps({"status": "success", "data": {"result": found}}).encode()
    try:
        return window_query.energy_in(body, window_query.Window(begin, end))
    except window_query.NoEnergy:
        return None


def by_analyze(found: list[dict[str, Any]], begin: float, end: float) -> Energy | None:
    body = json.dumps({"status": "success", "data": {"result": found}}).encode()
    try:
        worker = prometheus.of_worker(prometheus.parse_answer(body, 200, "http://p"), "")
        return prometheus.energy_of(worker, begin, end)
    except prometheus.NotThere:
        return None


def counter(watts: float, step: float = 5, **labels: str) -> dict[str, Any]:
    whole = {"component": "cpu", "source": "rapl", **labels}
    return series(NODE_ENERGY, lambda moment: (moment + 300) * watts, step, **whole)


STILL = series(NODE_ENERGY, lambda _: 500.0, 5, component="cpu", source="estimate")
RAMP = series(RAPL_POWER, lambda moment: 50 + moment, 15, zone="package-0")


@pytest.mark.parametrize(
    ("found", "window", "joules", "source"),
    [
        ([counter(100, 45)], (10, 40), None, None),
        ([counter(100), counter(100, job="b")], (0, 30), 3000, "rapl"),
        ([counter(100), counter(100, instance="w1:9511")], (0, 30), 3000, "rapl"),
        ([counter(100), counter(100, instance="w2:9510")], (0, 30), None, None),
        ([counter(100), counter(100, cluster="x")], (0, 30), None, None),
        ([RAMP], (7, 37), 2160, "rapl"),
        ([counter(100), STILL], (0, 30), 3000, "rapl"),
        ([counter(100), counter(7, source="estimate")], (0, 30), 3210, "estimate + rapl"),
        ([counter(0), counter(65, component="gpu", source="nvml")], (0, 30), 1950, "nvml + rapl"),
        ([counter(100), counter(300, component="platform", source="hwmon")], (0, 30), 3000, "rapl"),
        ([counter(100), RAMP], (0, 30), 3000, "rapl"),
    ],
    ids=[
        "a counter scraped less often than the window is long",
        "one agent scraped by two jobs",
        "one agent scraped on two ports",
        "two machines",
        "one instance name in two clusters",
        "a gauge that rises, at edges between samples",
        "an estimate that stopped when rapl came",
        "an estimate until rapl came",
        "a meter that read zero",
        "the whole machine's meter is not added to its parts",
        "only the best metric counts",
    ],
)
def test_one_answer(
    found: list[dict[str, Any]], window: tuple[float, float], joules: float | None, source: str | None
) -> None:
    """The same samples give the same energy, of the same source, to both."""
    begin, end = BEGIN + window[0], BEGIN + window[1]
    answers = [by_the_collector(found, begin, end), by_analyze(found, begin, end)]
    assert answers[0] == answers[1]
    for energy in answers:
        if joules is None:
            assert energy is None
        else:
            assert energy is not None
            assert energy.joules == pytest.approx(joules)
            assert energy.source == source
            assert energy.measured == ("estimate" not in energy.source)
