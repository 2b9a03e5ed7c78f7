"""Asks a Prometheus or VictoriaMetrics for the energy of windows for which a results file holds none.

Raw samples come by a range selector in an instant query; core/prometheus_windows.py says what energy that is.
The CPU that containers and their engine used in a window comes with it.

Units: seconds, Unix seconds, joules, watts; CPU percent, 100 is one core.
Source: https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from powerbench_agent.bench.statistics.groups import Overhead
from powerbench_agent.core.prometheus_windows import (
    METRICS,
    NODE,
    POWER,
    RAPL,
    NotPrometheus,
    PastWindow,
    SeveralMachines,
    deciding_series,
    energy_of,
    is_energy,
    mean,
    parse_answer,
    range_query,
)
from powerbench_agent.core.results import valid

if TYPE_CHECKING:
    from collections.abc import Iterable

    import aiohttp

    from powerbench_agent.core.prometheus_windows import Series, WindowEnergy
    from powerbench_agent.core.results import RecordedScenario, ResultsFile

ENGINE = "docker_engine_cpu_percent"
CONTAINERS = "docker_containers_total_cpu_percent"
_RESTARTED = "a counter started again from 0 in the window: what it gained just before that is lost"
_TIMEOUT = 30.0  # seconds a query


class NotThere(Exception):  # noqa: N818 - a verdict
    """A Prometheus that does not answer, or does not have what was asked for."""


class Filled(NamedTuple):
    """A results file with the energy of its windows."""

    results: ResultsFile
    overheads: dict[str, Overhead]  # by the scenarios' names
    notes: list[str]


class _Found(NamedTuple):
    """What a server has about one window."""

    energy: WindowEnergy
    overhead: Overhead


def fill(results: ResultsFile, url: str, instance: str = "") -> Filled:
    """Ask for the energy that the file's windows lack; `instance`: that worker's only.

    Raises: NotThere if it does not answer, knows several workers, or does not have energy for any window.
    """
    found = asyncio.run(_ask(results, url, instance))
    scenarios: list[RecordedScenario] = []
    overheads: dict[str, Overhead] = {}
    missing: list[str] = []
    filled = 0
    for scenario, known in zip(results.scenarios, found, strict=True):
        if known is not None:
            overheads[scenario.name] = known.overhead
        if known is None or valid(scenario):
            scenarios.append(scenario)
        elif known.energy.energy is None:
            scenarios.append(scenario)
            missing.append(scenario.name)
        else:
            scenarios.append(_with_energy(scenario, known.energy))
            filled += 1
    if missing and not any(valid(scenario) for scenario in scenarios):
        raise NotThere(
            f"{url} has no {NODE}, {RAPL} or {POWER} that covers a window: "
            "does it scrape the worker, more often than a window is long, and keep samples for so long?"
        )
    complete = msgspec.structs.replace(results, scenarios=tuple(scenarios))
    return Filled(complete, overheads, _notes(url, missing, filled))


def _with_energy(scenario: RecordedScenario, found: WindowEnergy) -> RecordedScenario:
    warnings = scenario.warnings
    if found.restarted:
        warnings = (*warnings, _RESTARTED)
    return msgspec.structs.replace(scenario, energy=found.energy, warnings=warnings)


def _notes(url: str, missing: list[str], filled: int) -> list[str]:
    notes = []
    if missing:
        notes.append(f"{url} has no energy for {', '.join(missing)}")
    if filled:
        notes.append(f"energy of windows from {url}, interpolated at their edges between samples")
    return notes


async def _ask(results: ResultsFile, url: str, instance: str) -> list[_Found | None]:
    """Return what a server has about each scenario's window; None without a window. Raises: NotThere."""
    import aiohttp  # noqa: PLC0415 - heavy

    found: list[_Found | None] = []
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for scenario in results.scenarios:
            window = _window_of(scenario)
            if window is None:
                found.append(None)
                continue
            series = of_worker(await _query(session, url, window), window, instance)
            found.append(_Found(_energy(series, window), overhead(series, window)))
    return found


def _window_of(scenario: RecordedScenario) -> PastWindow | None:
    """Return a scenario's window; None if it failed, or does not say when it was."""
    if scenario.status != "ok" or scenario.start_time is None or scenario.end_time is None:
        return None
    window = PastWindow(scenario.start_time, scenario.end_time)
    return window if window.is_possible else None


async def _query(session: aiohttp.ClientSession, url: str, window: PastWindow) -> list[Series]:
    """Return the samples around a window. Raises: NotThere."""
    import aiohttp  # noqa: PLC0415 - heavy

    names = "|".join((*METRICS, ENGINE, CONTAINERS))
    form = range_query(f'{{__name__=~"{names}"}}', window)
    try:
        async with session.post(f"{url.rstrip('/')}/api/v1/query", data=form) as answer:
            content = await answer.read()
            status = answer.status
    except TimeoutError:
        raise NotThere(f"{url} did not answer within {_TIMEOUT:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise NotThere(f"no Prometheus answers at {url}: {error}") from None
    return series_in(content, status, url)


def series_in(content: bytes, status: int, url: str) -> list[Series]:
    """Return the series of an answer to a range selector. Raises: NotThere."""
    try:
        answer = parse_answer(content)
    except NotPrometheus:
        raise NotThere(f"{url} answers {status}, but not like a Prometheus: is it the right URL?") from None
    if answer.error:
        raise NotThere(f"{url} refused the query: {answer.error}")
    return answer.series


def of_worker(series: Iterable[Series], window: PastWindow, instance: str) -> list[Series]:
    """Return one worker's series: `instance`'s (the label, or its host alone), else the only one's.

    Its containers may be on another port than its energy. Raises: NotThere if several workers have energy.
    """
    found = list(series)
    if instance:
        named = [one for one in found if one.labels.get("instance") == instance]
        host = named[0].host if named else instance
        found = [one for one in found if one.host == host]
        if named:
            others = [one for one in found if not is_energy(one)]
            found = [one for one in named if is_energy(one)] + others
    workers = sorted({one.host for one in deciding_series(found, window)})
    if len(workers) > 1:
        raise NotThere(f"several workers have energy there ({', '.join(workers)}): name one with --instance")
    return [one for one in found if not workers or one.host == workers[0]]


def _energy(series: Iterable[Series], window: PastWindow) -> WindowEnergy:
    """Return what a worker's samples say. Raises: NotThere if they are several machines' after all."""
    try:
        return energy_of(series, window)
    except SeveralMachines as several:
        raise NotThere(f"{several}: ask a server that scrapes only one of them") from None


def overhead(series: Iterable[Series], window: PastWindow) -> Overhead:
    """Return the CPU that the container engine and the containers used, mean over a window."""
    found = {one.name: mean(one.samples, *window) for one in series}
    return Overhead(found.get(ENGINE), found.get(CONTAINERS))
