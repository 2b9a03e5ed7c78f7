"""The energy of windows that a results file has none of, out of a Prometheus or VictoriaMetrics.

Raw samples come by a range selector in an instant query; what a window drew is reckoned here, at its exact
edges (agent/window_energy.py), and not by increase(), which extrapolates. In order of trust:

1. `powerbench_node_energy_joules_total`: every component, no part twice
2. `rapl_energy_joules_total`: package zones, never a mirrored `intel-rapl-mmio` twin, and dram
3. `rapl_power_watts` of the same zones: its mean, times the window

Units: seconds, Unix seconds, joules, watts; CPU percent, 100 is one core.
Source: https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from powerbench_agent.bench.statistics.groups import Overhead, has_energy
from powerbench_agent.core.prometheus_windows import REACH, began_again, increase, mean
from powerbench_agent.core.results import Energy, Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import aiohttp

    from powerbench_agent.core.results import ResultsFile

NODE, RAPL, POWER = "powerbench_node_energy_joules_total", "rapl_energy_joules_total", "rapl_power_watts"
ENGINE, CONTAINERS = "docker_engine_cpu_percent", "docker_containers_total_cpu_percent"
_BEGAN_AGAIN = "a counter began again in the window: what it gained since its last sample before that is lost"
_TIMEOUT = 30.0  # seconds a query


class NotThere(Exception):  # noqa: N818 - a verdict
    """A Prometheus that does not answer, or has not what was asked for."""


class Series(NamedTuple):
    """One series' raw samples."""

    labels: Mapping[str, str]
    samples: Sequence[tuple[float, float]]


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

    scenarios, overheads, missing = [], {}, []
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for scenario in results.scenarios:
            start, end = scenario.start_time, scenario.end_time
            scenarios.append(scenario)
            if scenario.status != "ok" or start is None or end is None or not start < end:
                continue
            found = of_worker(await _query(session, url, start, end), instance)
            overheads[scenario.name] = overhead(found, start, end)
            if has_energy(scenario):
                continue
            energy = energy_of(found, start, end)
            if energy is None:
                missing.append(scenario.name)
            else:
                warnings = scenario.warnings
                if any(
                    one.labels.get("__name__") in (NODE, RAPL) and began_again(one.samples, start, end)
                    for one in found
                ):
                    warnings = (*warnings, _BEGAN_AGAIN)
                scenarios[-1] = msgspec.structs.replace(scenario, energy=energy, warnings=warnings)
    if missing and not any(has_energy(scenario) for scenario in scenarios):
        raise NotThere(
            f"{url} has no {NODE}, {RAPL} or {POWER} around the windows: "
            "does it scrape the worker, and does it keep samples for so long?"
        )
    notes = [f"{url} has no energy for {', '.join(missing)}"] if missing else []
    if len(missing) < len(overheads):
        notes.append(f"energy of windows from {url}, interpolated at their edges between samples")
    return Filled(msgspec.structs.replace(results, scenarios=tuple(scenarios)), overheads, notes)


async def _query(session: aiohttp.ClientSession, url: str, start: float, end: float) -> list[Series]:
    """Return the samples around a window. Raises: NotThere."""
    import aiohttp  # noqa: PLC0415 - heavy

    names = f"{NODE}|{RAPL}|{POWER}|{ENGINE}|{CONTAINERS}"
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


def parse_answer(content: bytes, status: int, url: str) -> list[Series]:
    """Return the series of an answer to a range selector. Raises: NotThere."""
    try:
        document: Any = msgspec.json.decode(content)
        if document["status"] != "success":
            raise NotThere(f"{url} refused the query: {document.get('error', status)}")
        return [
            Series(series["metric"], [(float(time), float(value)) for time, value in series["values"]])
            for series in document["data"]["result"]
        ]
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError):
        raise NotThere(f"{url} answers {status}, and not as a Prometheus: is it the right URL?") from None


def of_worker(series: Iterable[Series], instance: str) -> list[Series]:
    """Return one worker's series: `instance`'s (the label's, or its host alone), else the only one's.

    Raises: NotThere where several workers have energy, and none was named.
    """

    def host(one: Series) -> str:
        return one.labels.get("instance", "").rpartition(":")[0] or one.labels.get("instance", "")

    found = list(series)
    if instance:
        named = [s for s in found if s.labels.get("instance") == instance]
        wanted = {host(s) for s in named} or {instance}
        found = [s for s in found if host(s) in wanted and (not named or s in named or not _is_energy(s))]
    workers = sorted({host(s) for s in found if _is_energy(s)})
    if len(workers) > 1:
        raise NotThere(f"it knows several workers ({', '.join(workers)}): name one with --instance")
    # One agent scraped by two jobs, or on two ports, is one machine: each series once.
    once: dict[tuple[tuple[str, str], ...], Series] = {}
    for one in found:
        if not workers or host(one) == workers[0]:
            labels = {k: v for k, v in one.labels.items() if k not in ("instance", "job")}
            kept = once.setdefault(tuple(sorted(labels.items())), one)
            if len(one.samples) > len(kept.samples):
                once[tuple(sorted(labels.items()))] = one
    return list(once.values())


def _is_energy(series: Series) -> bool:
    return series.labels.get("__name__") in (NODE, RAPL, POWER)


def energy_of(series: Iterable[Series], start: float, end: float) -> Energy | None:
    """Return what a window drew, by the first of the three metrics that has samples in it.

    None where there is none, or a counter that has samples in the window has none around an edge: a part of
    the energy would pass for the whole.
    """
    inside: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        if any(start <= time <= end for time, _ in one.samples) or _spans(one, start, end):
            inside[one.labels.get("__name__", "")].append(one)
    if found := inside[NODE]:
        parts = [(one.labels.get("component", ""), one.labels.get("source", ""), one) for one in found]
        return _energy([(c, s, increase(one.samples, start, end)) for c, s, one in parts], start, end)
    if zones := _zones(inside[RAPL]):
        return _energy([(c, "rapl", increase(z.samples, start, end)) for c, z in zones], start, end)
    watts = [(c, mean(z.samples, start, end)) for c, z in _zones(inside[POWER])]
    return _energy([(c, "rapl", w * (end - start) if w is not None else None) for c, w in watts], start, end)


def _spans(series: Series, start: float, end: float) -> bool:
    """Return whether it has samples on both sides of a window shorter than its interval."""
    times = [time for time, _ in series.samples]
    return bool(times) and min(times) < start and max(times) > end


def _zones(series: Iterable[Series]) -> list[tuple[str, Series]]:
    """Return (component, series) of the zones that are not within one another."""
    found: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in series:
        zone, package = one.labels.get("zone", ""), one.labels.get("package", "")
        for start, component in (("package", "cpu"), ("dram", "dram")):
            if zone.startswith(start):
                found[component, package or zone].append(one)
    kept = []
    for (component, _), same in found.items():
        plain = [one for one in same if "mmio" not in "".join((*one.labels.values(),))]
        kept += [(component, one) for one in plain or same]
    return kept


def _energy(parts: Sequence[tuple[str, str, float | None]], start: float, end: float) -> Energy | None:
    known = [(component, source, joules) for component, source, joules in parts if joules is not None]
    if not parts or len(known) < len(parts):
        return None
    summed: dict[tuple[str, str], float] = defaultdict(float)
    for component, source, joules in known:
        summed[component, source] += joules
    seconds, total = end - start, sum(summed.values())
    sources = sorted({source for _, source in summed})
    return Energy(
        source=" + ".join(sources),
        seconds=seconds,
        joules=total,
        mean_watts=total / seconds,
        measured="estimate" not in sources,
        parts=tuple(Part(c, s, joules, joules / seconds) for (c, s), joules in sorted(summed.items())),
    )


def overhead(series: Iterable[Series], start: float, end: float) -> Overhead:
    """Return what the container engine and the containers took of the CPUs, mean over a window."""
    found = {one.labels.get("__name__"): mean(one.samples, start, end) for one in series}
    return Overhead(found.get(ENGINE), found.get(CONTAINERS))
