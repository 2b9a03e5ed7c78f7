"""Energy for the windows of a results file that has none, out of a Prometheus or VictoriaMetrics.

A range selector in an instant query returns raw samples; core/prometheus_windows.py says what they mean.

Units: seconds, Unix seconds, joules, watts; CPU percent, 100 is one core.
Source: https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from powerbench_agent.bench.statistics.groups import Overhead
from powerbench_agent.core.prometheus_windows import (
    ENERGY_METRICS,
    NODE_ENERGY,
    RAPL_ENERGY,
    REACH,
    SampledSeries,
    SeveralMachines,
    began_again,
    energy_of_window,
    mean,
)
from powerbench_agent.core.results import valid

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import aiohttp

    from powerbench_agent.core.results import Energy, RecordedScenario, ResultsFile

ENGINE, CONTAINERS = "docker_engine_cpu_percent", "docker_containers_total_cpu_percent"
_COUNTER_RESET = (
    "a counter was reset in the window: the energy between its last sample and the reset is missing"
)
_TIMEOUT = 30.0  # seconds a query


class NotThere(Exception):  # noqa: N818 - a verdict
    """A Prometheus that does not answer, or has not what was asked for."""


class Filled(NamedTuple):
    """A results file with the energy of its windows."""

    results: ResultsFile
    overheads: dict[str, Overhead]  # by the scenarios' names
    notes: list[str]


def fill(results: ResultsFile, url: str, instance: str = "") -> Filled:
    """Ask for what the file's windows have no energy of; `instance`: of that worker alone.

    Raises: NotThere where it does not answer, knows several workers, or has no energy for any window.
    """
    return asyncio.run(_fill(results, url, instance))


async def _fill(results: ResultsFile, url: str, instance: str) -> Filled:
    import aiohttp  # noqa: PLC0415 - heavy

    scenarios: list[RecordedScenario] = []
    overheads: dict[str, Overhead] = {}
    missing: list[str] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT)) as session:
        for scenario in results.scenarios:
            start, end = scenario.start_time, scenario.end_time
            if scenario.status != "ok" or start is None or end is None or not start < end:
                scenarios.append(scenario)
                continue
            series = of_worker(await _query(session, url, start, end), instance)
            overheads[scenario.name] = overhead(series, start, end)
            filled = with_energy(scenario, series)
            scenarios.append(filled)
            if not valid(filled):
                missing.append(scenario.name)
    if missing and not any(valid(scenario) for scenario in scenarios):
        raise NotThere(
            f"{url} has no {', '.join(ENERGY_METRICS[:-1])} or {ENERGY_METRICS[-1]} around the windows: "
            "does it scrape the worker, and does it keep samples for long enough?"
        )
    notes = [f"{url} has no energy for {', '.join(missing)}"] if missing else []
    if len(missing) < len(overheads):
        notes.append(f"energy from {url}, interpolated between samples at the edges of the windows")
    return Filled(msgspec.structs.replace(results, scenarios=tuple(scenarios)), overheads, notes)


def with_energy(scenario: RecordedScenario, series: Sequence[SampledSeries]) -> RecordedScenario:
    """Return a scenario with its window's energy, if it has none and the samples tell. Raises: NotThere."""
    start, end = scenario.start_time, scenario.end_time
    if valid(scenario) or start is None or end is None:
        return scenario
    energy = energy_of(series, start, end)
    if energy is None:
        return scenario
    warnings = scenario.warnings
    counters = [one for one in series if one.name in (NODE_ENERGY, RAPL_ENERGY)]
    if any(began_again(one.samples, start, end) for one in counters):
        warnings = (*warnings, _COUNTER_RESET)
    return msgspec.structs.replace(scenario, energy=energy, warnings=warnings)


async def _query(session: aiohttp.ClientSession, url: str, start: float, end: float) -> list[SampledSeries]:
    """Return the samples around a window. Raises: NotThere."""
    import aiohttp  # noqa: PLC0415 - heavy

    names = "|".join((*ENERGY_METRICS, ENGINE, CONTAINERS))
    span = round((end - start + 2 * REACH) * 1000)
    form = {"query": f'{{__name__=~"{names}"}}[{span}ms]', "time": f"{end + REACH:.3f}"}
    try:
        async with session.post(f"{url.rstrip('/')}/api/v1/query", data=form) as answer:
            content = await answer.read()
            status = answer.status
    except TimeoutError:
        raise NotThere(f"{url} did not answer within {_TIMEOUT:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise NotThere(f"no Prometheus answers at {url}: {error}") from None
    return parse_answer(content, status, url)


def parse_answer(content: bytes, status: int, url: str) -> list[SampledSeries]:
    """Return the series of an answer to a range selector. Raises: NotThere."""
    try:
        document: Any = msgspec.json.decode(content)
        if document["status"] != "success":
            raise NotThere(f"{url} refused the query: {document.get('error', status)}")
        return [
            SampledSeries(series["metric"], [(float(time), float(value)) for time, value in series["values"]])
            for series in document["data"]["result"]
        ]
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError):
        raise NotThere(f"{url} answers {status}, and not as a Prometheus: is it the right URL?") from None


def of_worker(series: Iterable[SampledSeries], instance: str) -> list[SampledSeries]:
    """Return one worker's series: those of `instance` (the label, or its host alone), or the only worker's.

    Raises: NotThere if several workers have energy and none was named.
    """
    found = list(series)
    if instance:
        named = [one for one in found if one.labels.get("instance") == instance]
        hosts = {one.host for one in named} or {instance}
        # Energy of the named port alone; the engine's metrics may come from another port of the same host.
        found = [
            one
            for one in found
            if one.host in hosts and (not named or one in named or one.name not in ENERGY_METRICS)
        ]
    workers = sorted({one.host for one in found if one.name in ENERGY_METRICS})
    if len(workers) > 1:
        raise NotThere(_which(workers))
    return [one for one in found if not workers or one.host == workers[0]]


def energy_of(series: Iterable[SampledSeries], start: float, end: float) -> Energy | None:
    """Return one worker's energy from `start` to `end`, or None. Raises: NotThere if there are several."""
    try:
        return energy_of_window(series, start, end)
    except SeveralMachines as several:
        raise NotThere(_which(several.instances)) from None


def _which(workers: Iterable[str]) -> str:
    return f"it knows several workers ({', '.join(workers)}): name one with --instance"


def overhead(series: Iterable[SampledSeries], start: float, end: float) -> Overhead:
    """Return the mean CPU use of the container engine and of the containers over a window."""
    found = {one.labels.get("__name__"): mean(one.samples, start, end) for one in series}
    return Overhead(found.get(ENGINE), found.get(CONTAINERS))
