"""Every query of every dashboard, asked of a real Prometheus and a real VictoriaMetrics."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode

import pytest
import yaml
from real.conftest import get, need, wait_for
from real.servers import prometheus, victoria_metrics, vmalert
from real.workers import CPU_AND_MEMORY_WATTS, configure, workers

if TYPE_CHECKING:
    from collections.abc import Iterator

DASHBOARDS = Path(__file__).parent.parent.parent / "compose/grafana/dashboards"
BOARDS = [json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))]
SERVERS = ("prometheus", "victoriametrics")
HOSTS = {"worker-1", "worker-2", "worker-3"}
UNNAMED = ("localhost", "127.0.0.1", "127.0.0.3")  # the same workers by their addresses
PATIENCE = 45.0
EVERYTHING = ".*"  # the variables' value of All


class Asked(NamedTuple):
    """One query of a panel."""

    board: str
    panel: str
    expr: str
    instant: bool
    step: float  # seconds


class Place(NamedTuple):
    """Where workers run: their folder, and what their files of targets say."""

    directory: Path
    targets: dict[str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Yield the workers that all servers scrape."""
    directory = tmp_path_factory.mktemp("g")
    with workers(directory) as targets:
        yield Place(directory, targets)


@pytest.fixture(scope="module")
def servers(place: Place) -> Iterator[dict[str, str]]:
    """Yield the servers' URLs by name; both scrape the same workers."""
    directory = place.directory
    with ExitStack() as stack:
        config = configure(directory / "scrape", place.targets)
        urls = {
            "prometheus": stack.enter_context(prometheus(config, directory / "prometheus")),
            "victoriametrics": stack.enter_context(victoria_metrics(directory / "vm", config)),
        }
        rules = str(config.parent / "rules/recording.yml")
        nobody = "http://127.0.0.1:9"
        stack.enter_context(vmalert(rules, urls["victoriametrics"], nobody, directory / "vmalert"))
        yield urls


@pytest.fixture(scope="module")
def unnamed(place: Place) -> Iterator[str]:
    """Yield the URL of a Prometheus without the label host: addresses alone, most under another job."""
    directory = place.directory / "unnamed"
    config = configure(directory, {})
    ports = re.findall(r"127\.0\.0\.1:(\d+)", place.targets["powerbench.yml"])
    others = re.findall(
        r":(\d+)'", "".join(place.targets[f"{job}.yml"] for job in ("node", "dcgm", "cadvisor"))
    )
    addresses = [f"{address}:{port}" for address, port in zip(UNNAMED, ports, strict=True)]
    addresses += [f"{UNNAMED[0]}:{port}" for port in others]
    settings = yaml.safe_load(config.read_text())
    silent = addresses.pop(len(ports) - 1)
    settings["scrape_configs"] = [
        {"job_name": "transcoders", "static_configs": [{"targets": addresses}]},
        {"job_name": "powerbench", "static_configs": [{"targets": [silent]}]},
    ]
    settings["global"]["scrape_interval"] = "1s"
    config.write_text(yaml.safe_dump(settings))
    with prometheus(config, directory / "data") as url:
        yield url


def ask(url: str, path: str, **parameters: Any) -> Any:
    try:
        answer = json.loads(get(f"{url}/api/v1/{path}?{urlencode(parameters, doseq=True)}"))
    except HTTPError as refusal:
        pytest.fail(f"{parameters}: {refusal.read().decode()}")
    return answer["data"]


def found(url: str, asked: Asked, values: dict[str, str]) -> list[float]:
    """Return the values that a query gives as Grafana would ask it."""
    expr = fill(asked, values)
    now = time.time()
    if asked.instant:
        result = ask(url, "query", query=expr, time=now)["result"]
        return [float(one["value"][1]) for one in result]
    result = ask(url, "query_range", query=expr, start=now - 10, end=now, step=asked.step)["result"]
    return [float(value) for one in result for _, value in one["values"]]


def fill(asked: Asked, values: dict[str, str]) -> str:
    """Return an expression with its variables filled in.

    Source: https://grafana.com/docs/grafana/latest/datasources/prometheus/template-variables/,
    $__rate_interval: the larger of four scrape intervals, and the step and one.
    """
    scrape = asked.step
    built_in = {"__rate_interval": f"{4 * scrape:g}s", "__range": "3600s", "__interval": f"{scrape:g}s"}
    for name, value in {**built_in, **values}.items():
        asked = asked._replace(expr=re.sub(rf"\${name}\b", lambda _, value=value: value, asked.expr))
    assert "$" not in asked.expr.replace("$1", ""), "label_replace's first group is no variable"
    return asked.expr


def escaped(value: str) -> str:
    """Return a chosen value as Grafana writes it into a regular expression within PromQL's quotes."""
    return re.sub(r"([$^*{}\[\]'+?.()|])", r"\\\\\1", value)


def all_queries() -> list[Asked]:
    """Return every query of every panel."""
    queries = []
    for board in BOARDS:
        panels = [inner for panel in board["panels"] for inner in (panel, *(panel.get("panels") or ()))]
        for panel in panels:
            for target in panel.get("targets") or ():
                step = float(target.get("interval", "5s").removesuffix("s"))
                queries.append(Asked(board["uid"], panel["title"], target["expr"], target["instant"], step))
    return queries


def choices(url: str, board: dict[str, Any]) -> dict[str, list[str]]:
    """Return what each variable of a dashboard offers, in its order."""
    offered: dict[str, list[str]] = {}
    for variable in board["templating"]["list"][1:]:
        query = variable["query"]["query"]
        for name, values in offered.items():
            query = query.replace(f"${name}", "|".join(values))
        if match := re.fullmatch(r"label_values\((.*), (\w+)\)", query):
            found = ask(url, f"label/{match[2]}/values", **{"match[]": match[1]})
        else:
            found = results(url, query, variable["regex"])
        offered[variable["name"]] = sorted(found)
        if not variable.get("includeAll"):
            offered[variable["name"]] = offered[variable["name"]][-1:]
    return offered


def results(url: str, query: str, regex: str) -> list[str]:
    """Return what Grafana offers of query_result(): of each series, written out, the regex' first group."""
    match = re.fullmatch(r"query_result\((.*)\)", query)
    assert match
    answer = ask(url, "query", query=match[1].replace("$__range", "1h"))["result"]
    written = ["{" + ",".join(f'{k}="{v}"' for k, v in one["metric"].items()) + "}" for one in answer]
    groups = [re.search(regex.strip("/"), text) for text in written]
    return [group[1] for group in groups if group]


def eventually(url: str, *, ticked: bool) -> list[str]:
    """Return the queries that give nothing, or what is no number, however long one waits.

    `ticked`: with each value of each variable chosen; else as a dashboard opens.
    """
    left = all_queries()
    patience = time.monotonic() + PATIENCE
    while left and time.monotonic() < patience:
        values = {board["uid"]: chosen(url, board, ticked=ticked) for board in BOARDS}
        left = [asked for asked in left if not is_number(found(url, asked, values[asked.board]))]
        if left:
            time.sleep(0.5)
    return [f"{asked.board}: {asked.panel}: {asked.expr}" for asked in left]


def is_number(got: list[float]) -> bool:
    return bool(got) and all(map(math.isfinite, got))


def chosen(url: str, board: dict[str, Any], *, ticked: bool) -> dict[str, str]:
    """Return the values of a dashboard's variables, as they stand in an expression."""
    offered = choices(url, board)
    whole = {v["name"] for v in board["templating"]["list"] if v.get("includeAll") and not ticked}
    return {
        name: EVERYTHING if name in whole else f"({'|'.join(map(escaped, names))})"
        for name, names in offered.items()
    }


@pytest.mark.parametrize("ticked", [False, True], ids=["all", "each"])
@pytest.mark.parametrize("server", SERVERS)
def test_every_query_gives_data(servers: dict[str, str], server: str, *, ticked: bool) -> None:
    """Each query gives finite numbers: on All, as a dashboard opens, and with each value ticked.

    With each value ticked, what the variables offer is shown to be what the panels' series have.
    """
    assert eventually(servers[server], ticked=ticked) == []


@pytest.mark.parametrize("ticked", [False, True], ids=["all", "each"])
def test_every_query_gives_data_without_host(unnamed: str, *, ticked: bool) -> None:
    """The same of machines that are known by their addresses, under any job name."""
    assert eventually(unnamed, ticked=ticked) == []


def test_machines_are_offered_by_their_address(unnamed: str) -> None:
    """Ports of one address are one machine; an agent that has never answered is one by its job's name."""
    for board in BOARDS:
        wait_for(lambda board=board: set(choices(unnamed, board)["host"]) == {*UNNAMED}, "all three")


@pytest.mark.parametrize("server", SERVERS)
def test_every_variable_offers_what_there_is(servers: dict[str, str], server: str) -> None:
    """The variables' own queries give the hosts, one that is down among them, and the rest."""
    for board in BOARDS:
        wait_for(lambda board=board: set(choices(servers[server], board)["host"]) == HOSTS, "every host")
        offered = choices(servers[server], board)
        assert all(offered.values()), offered
        expected = {"stream": ["cam1"], "container": ["busy"], "component": ["cpu", "dram", "gpu"]}
        expected |= {"run_id": ["test_results_20260304_050607"], "scenario": ["abr", "baseline"]}
        for name, values in offered.items():
            assert values == expected.get(name, values)


@pytest.mark.parametrize("server", SERVERS)
def test_what_is_shown_is_what_was_drawn(servers: dict[str, str], server: str) -> None:
    """Measured power is what the simulated CPU and memory draw; the other host's estimate is not in it."""
    shown = {asked.panel: asked for asked in all_queries() if asked.board == "power-monitoring"}
    values = {"host": EVERYTHING, "component": "(cpu|dram)"}

    def near() -> bool:
        measured = found(servers[server], shown["Measured power"], values)
        return measured == [pytest.approx(CPU_AND_MEMORY_WATTS, rel=0.1)]

    wait_for(near, "the power that is drawn, once, though the host is scraped under two jobs")
    estimated = found(servers[server], shown["Estimated power"], values)
    assert len(estimated) == 1
    assert found(servers[server], shown["Estimated power"], {**values, "host": "worker-1"}) == []


def test_what_is_shown_without_host_is_what_was_drawn(unnamed: str) -> None:
    """Measured power is one machine's, chosen by its address, or everyone's."""
    shown = {asked.panel: asked for asked in all_queries() if asked.board == "power-monitoring"}

    def near(host: str) -> bool:
        measured = found(unnamed, shown["Measured power"], {"host": host, "component": "(cpu|dram)"})
        return measured == [pytest.approx(CPU_AND_MEMORY_WATTS, rel=0.1)]

    wait_for(lambda: near(EVERYTHING), "the power that is drawn")
    wait_for(lambda: near(UNNAMED[0]), "the same of the machine that draws it")
    assert found(unnamed, shown["Measured power"], {"host": "127.0.0.1", "component": "(cpu|dram)"}) == []


MEASURED = """
rule_files: []
tests:
  - interval: 5s
    input_series:
      - {series: 'powerbench_node_power_watts{JOB, instance="w1:9510", CPU}', values: 100x20}
      - {series: 'powerbench_node_power_watts{job="again", instance="w1:9510", CPU}', values: 100x20}
      - {series: 'powerbench_node_power_watts{JOB, instance="w1:9501", CPU}', values: 100x20}
      - {series: 'powerbench_node_power_watts{JOB, instance="w2:9510", CPU}', values: 200x20}
      - {series: 'powerbench_node_power_watts{JOB, instance="w3:9510", host="named", CPU}', values: 400x20}
      - {series: 'powerbench_node_power_watts{JOB, instance="w2:9510", GUESS}', values: 7x20}
    promql_expr_test: []
"""


@pytest.mark.parametrize(
    ("host", "watts"), [(".*", 700), ("w1", 100), ("(w1|w2)", 300), ("named", 400), ("(w2|named)", 600)]
)
def test_machines_add_up(tmp_path: Path, host: str, watts: int) -> None:
    """Machines add up, one that is seen under two jobs or on two ports counts once, whoever says `host`."""
    (asked,) = [a for a in all_queries() if (a.board, a.panel) == ("power-monitoring", "Measured power")]
    text = MEASURED.replace("JOB", 'job="transcoders"').replace(
        "GUESS", 'component="dram", source="estimate"'
    )
    text = text.replace("CPU", 'component="cpu", source="rapl"')
    content = yaml.safe_load(text)
    expr = fill(asked, {"host": host, "component": EVERYTHING})
    expected = {"expr": expr, "eval_time": "1m", "exp_samples": [{"value": watts}]}
    content["tests"][0]["promql_expr_test"] = [expected]
    path = tmp_path / "measured.yml"
    path.write_text(yaml.safe_dump(content))
    command = [need("promtool"), "test", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
