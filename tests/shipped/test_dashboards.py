"""The dashboards are what the code makes of them, sound by Grafana's types, and ask for what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from places import ROOT
from promql import grouping, selectors

from powerbench_agent.agent import exposition, node, roster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

sys.path.insert(0, str(ROOT / "compose/grafana"))
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

import generate
from boards import queries

GRAFANA = ROOT / "compose/grafana"
UIDS = {"power-monitoring", "baseline-vs-test", "streams", "fleet", "agent"}
UNITS = {
    *("watt", "watth", "joule", "percent", "percentunit", "bytes", "Bps", "bps", "s", "hertz", "celsius"),
    *("none", "short", "massg", "suffix:x", "suffix: fps", "suffix: /s", "suffix: dB"),
}
TARGETS_OWN = ("job", "instance")
TARGET_LABELS = {"host", *TARGETS_OWN}
# What other programs export, and the servers themselves.
FOREIGN = {
    "up": (),
    "scrape_duration_seconds": (),
    "scrape_samples_scraped": (),
    "process_cpu_seconds_total": (),
    "process_resident_memory_bytes": (),
    "process_open_fds": (),
    "node_network_receive_bytes_total": ("device",),
    "node_network_transmit_bytes_total": ("device",),
    "node_disk_read_bytes_total": ("device",),
    "node_disk_written_bytes_total": ("device",),
    "node_disk_io_time_seconds_total": ("device",),
    "node_filesystem_avail_bytes": ("device", "fstype", "mountpoint"),
    "node_filesystem_size_bytes": ("device", "fstype", "mountpoint"),
    "DCGM_FI_DEV_POWER_USAGE": ("gpu", "UUID"),
    "DCGM_FI_DEV_GPU_UTIL": ("gpu", "UUID"),
    "DCGM_FI_DEV_ENC_UTIL": ("gpu", "UUID"),
    "DCGM_FI_DEV_GPU_TEMP": ("gpu", "UUID"),
    "DCGM_FI_DEV_FB_USED": ("gpu", "UUID"),
    "container_cpu_usage_seconds_total": ("name", "cpu"),
    "container_memory_working_set_bytes": ("name",),
    "container_network_receive_bytes_total": ("name", "interface"),
    "container_network_transmit_bytes_total": ("name", "interface"),
}
# An agent among the targets, under any job name.
AGENTS = {"powerbench_build_info": "[$__range]", "up": "[$__range]"}
# How a series gets its machine's name: the rule of every expression.
BEGUN, ENDED = queries.by_machine("METRIC").split("METRIC")
_SHARED = ("host", "measured")
RULES = {
    f"{name}:rate{window}": labels
    for window in ("1m", "5m")
    for name, labels in {
        "host_component_source:powerbench_node_watts": ("host", "component", "source"),
        "host:powerbench_node_watts": _SHARED,
        "host_stream:ffmpeg_stream_watts": (*_SHARED, "stream"),
        "host_stream:ffmpeg_joules_per_frame": (*_SHARED, "stream"),
        "host:powerbench_watts_per_stream": _SHARED,
        "host:powerbench_joules_per_frame": _SHARED,
    }.items()
} | {
    "instance:powerbench_agent:up": ("host", *TARGETS_OWN),
    "host_stream:ffmpeg_stream_active:max": ("host", "stream"),
    "host_stream:ffmpeg_stream_stalled:max": ("host", "stream"),
}
# The end of an expression of all components: what has no estimate in it, or what has one.
WHOLE = re.compile(r' (unless|and) on \([^)]*\) label_replace\(label_join\(rate\(\w+\{[^}]*source="estimate"')


class Placed(NamedTuple):
    """A panel and its dashboard."""

    board: str
    panel: dict[str, Any]


def declared() -> dict[str, tuple[str, ...]]:
    """Return every metric that can be asked for, and its labels."""
    modules = roster.load_modules()
    metrics = [metric for module in modules.values() for metric in module.METRICS]
    metrics += [*node.NODE_METRICS, *roster.share_metrics(modules), *exposition.AGENT_METRICS]
    return {**FOREIGN, **RULES, **{metric.name: metric.labels for metric in metrics}}


BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
KNOWN = declared()


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a dashboard's panels, those in closed rows among them."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels") or ()
        else:
            yield panel


PANELS = [Placed(name, panel) for name, board in BOARDS.items() for panel in panels(board)]
each_board = pytest.mark.parametrize("name", sorted(UIDS))
each_panel = pytest.mark.parametrize(
    "placed", PANELS, ids=[f"{placed.board}-{placed.panel['id']}" for placed in PANELS]
)


def exprs(placed: Placed) -> list[str]:
    return [target["expr"] for target in placed.panel["targets"]]


def variable_queries(board: dict[str, Any]) -> dict[str, str]:
    """Return the metrics' part of each variable's query, by the variable's name."""
    found = {}
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]["query"]
            if match := re.fullmatch(r"label_values\((.*), (\w+)\)", query):
                found[variable["name"]] = match[1]
            else:
                assert query == f"query_result({queries.MACHINES})"
    return found


def test_the_files_are_what_the_code_makes() -> None:
    """dashboards/*.json are what `make dashboards` writes, none is missing or left over, twice the same."""
    assert generate.outdated() == []
    assert generate.pages() == generate.pages()
    assert set(BOARDS) == UIDS


def test_another_process_makes_the_same() -> None:
    """With another hash seed the generator finds nothing out of date, and says so by its exit status."""
    command = [sys.executable, str(GRAFANA / "generate.py"), "--check"]
    done = subprocess.run(command, env={"PYTHONHASHSEED": "7"}, capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_change_by_hand_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was changed, one that is missing and one too many are named; generating mends all three."""
    monkeypatch.setattr(generate, "DASHBOARDS", tmp_path)
    assert generate.main([]) == 0
    (tmp_path / "fleet.json").write_text("{}")
    (tmp_path / "agent.json").unlink()
    (tmp_path / "old.json").write_text("{}")
    assert "agent.json, fleet.json, old.json out of date" in str(generate.main(["--check"]))
    generate.main([])
    assert generate.main(["--check"]) == 0
    assert not (tmp_path / "old.json").exists()


@each_board
def test_the_types_of_grafana_hold_all_of_it(name: str) -> None:
    """Read by the SDK's types and written again, a dashboard is the same: no field is one they lack."""
    board = BOARDS[name]
    again = json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))
    assert again == board


@each_board
def test_identities(name: str) -> None:
    """A dashboard's uid is its file's name; no panel's number or title comes twice."""
    board = BOARDS[name]
    assert board["uid"] == name
    numbered = [*panels(board), *(row for row in board["panels"] if row["type"] == "row")]
    for key in ("id", "title"):
        counts = Counter(panel[key] for panel in numbered)
        assert set(counts.values()) == {1}, counts.most_common(1)
    assert len({other["title"] for other in BOARDS.values()}) == len(BOARDS)


@each_board
def test_the_grid(name: str) -> None:
    """Panels lie in 24 columns, overlap nowhere, and are large enough to be read on 1920 by 1080."""
    board = BOARDS[name]
    least = {"stat": (4, 4), "row": (24, 1)}
    shown = [board["panels"]]
    shown += [row["panels"] for row in board["panels"] if row["type"] == "row" and row.get("collapsed")]
    for together in shown:
        for panel in together:
            place = panel["gridPos"]
            width, height = least.get(panel["type"], (8, 6))
            assert 0 <= place["x"] <= 24 - place["w"]
            assert place["w"] >= width
            assert place["h"] >= height
        for one, other in combinations((panel["gridPos"] for panel in together), 2):
            beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert beside or above, (one, other)


@each_panel
def test_a_panel_says_what_it_is(placed: Placed) -> None:
    """Every panel has a sentence on what its figure is, known units, and a word for no value."""
    panel = placed.panel
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["description"].endswith(".")
    assert defaults["noValue"]
    set_alone = [own for override in panel["fieldConfig"]["overrides"] for own in override["properties"]]
    given = [own["value"] for own in set_alone if own["id"] == "unit"]
    assert {*given, *filter(None, [defaults.get("unit")])} <= UNITS
    assert (panel["type"] == "table") is ("unit" not in defaults)
    if re.search("energy_joules|watts", " ".join(exprs(placed))):
        said = panel["description"].lower()
        assert re.search(r"measure|estimate|share|source", said)


@each_panel
def test_no_figure_is_blamed_on_nothing(placed: Placed) -> None:
    """A panel of recording rules says only that data is missing; its description lists the causes."""
    asked = [one.metric for expr in exprs(placed) for one in selectors(expr)]
    if placed.panel["type"] != "table" and RULES.keys() & set(asked):
        assert placed.panel["fieldConfig"]["defaults"]["noValue"] in {
            "no data",
            "no measurement",
            "no estimate",
        }
        assert "or the recording rules do not run." in placed.panel["description"]


@each_panel
def test_a_query_goes_to_the_chosen_source(placed: Placed) -> None:
    """Every target asks ${datasource}, under a letter of its own, over time or now as its panel needs."""
    panel = placed.panel
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == source
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == [chr(65 + at) for at in range(len(letters))]
    assert letters
    for target in panel["targets"]:
        assert target["datasource"] == source
        assert target["expr"].strip()
        over_time = panel["type"] in ("timeseries", "state-timeline")
        assert (target["range"], target["instant"]) == (over_time, not over_time)
        assert panel["type"] == "table" or target["legendFormat"]


@each_panel
def test_a_query_asks_for_what_there_is(placed: Placed) -> None:
    """Every metric is declared by a collector, a rule or a known exporter, with the labels that are used."""
    for expr in exprs(placed):
        found = selectors(expr)
        assert found
        labels = set(TARGET_LABELS)
        for selector in found:
            assert selector.metric in KNOWN, selector.metric
            own = {*KNOWN[selector.metric], *TARGET_LABELS}
            assert selector.matchers.keys() <= own, selector
            labels |= own
        assert grouping(expr) <= labels
        assert "instance" not in grouping(expr.replace("on (job, instance)", ""))


@each_panel
def test_every_figure_is_of_the_chosen_machines(placed: Placed) -> None:
    """A machine is chosen by its `host`, or else by its address with any port; a rule by its `host`."""
    for expr in exprs(placed):
        chosen = [one for one in selectors(expr) if AGENTS.get(one.metric) != one.window]
        named = [one for one in chosen if one.matchers["host"] == '=~"$host"']
        unnamed = [one for one in chosen if one.matchers["host"] == '=""']
        assert len(named) + len(unnamed) == len(chosen)
        assert all(one.matchers["instance"] == '=~"$host(:[0-9]+)?"' for one in unnamed)
        read = [one for one in named if one.metric not in RULES]
        assert [one.metric for one in read] == [one.metric for one in unnamed]
        assert expr.count(BEGUN) == expr.count(ENDED) == len(read)


@each_panel
def test_legends_name_labels_that_there_are(placed: Placed) -> None:
    """A legend's labels are labels of what is asked; or made by label_replace."""
    for target in placed.panel["targets"]:
        labels = {label for selector in selectors(target["expr"]) for label in KNOWN[selector.metric]}
        made = set(re.findall(r'label_replace\(.*, "(\w+)", "[^"]*", "\w+", "[^"]*"\)', target["expr"]))
        used = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat") or ""))
        assert used <= labels | TARGET_LABELS | made
        if "sum by" in target["expr"] or "max by" in target["expr"]:
            assert used <= grouping(target["expr"]) | made


@each_panel
def test_no_estimate_is_added_to_what_is_measured(placed: Placed) -> None:
    """What is added up is of one kind of source, or by source, or whole and called by what is in it."""
    for expr in exprs(placed):
        sums = re.findall(r"\b(?:sum|avg)\b(?: by \(([^)]*)\))?", expr)
        if not sums or WHOLE.search(expr):
            continue
        by = set.intersection(*(set(labels.split(", ")) for labels in sums))
        for metric, matchers, _ in selectors(expr):
            kinds = {"source", "measured"} & set(KNOWN[metric])
            # No model estimates a GPU.
            apart = kinds & (matchers.keys() | by) or matchers.get("component") == '="gpu"'
            assert not kinds or apart, expr


@each_panel
def test_a_host_that_is_scraped_twice_counts_once(placed: Placed) -> None:
    """What is added up of agents is first the largest (or smallest) by the metric's own labels."""
    for expr in exprs(placed):
        for at in re.finditer(r"\bsum\b(?: by \([^)]*\))? ?\((?:1 - )?(?!1 - |sum\b)", expr):
            added = expr[at.end() :]
            metric = selectors(added)[0].metric
            if largest := re.match(r"m(?:ax|in) by \(([^)]*)\)", added):
                assert set(largest[1].split(", ")) == {"host", *KNOWN[metric]} - {*TARGETS_OWN}, expr
            else:  # a rule has counted already; targets are what is counted
                assert metric in RULES or metric == "up", expr


@each_panel
def test_a_curve_shows_an_estimate_as_one(placed: Placed) -> None:
    """Where estimates can be among the series, the legend, a column or the title says which they are."""
    panel = placed.panel
    for target in panel["targets"]:
        for metric, matchers, _ in selectors(target["expr"]):
            if not {"source", "measured"} & set(KNOWN[metric]) or matchers.get("component") == '="gpu"':
                continue
            legend = target.get("legendFormat") or ""
            if whole := WHOLE.search(target["expr"]):
                assert ("(estimate)" in legend) is (whole[1] == "and")
                continue
            kind = matchers.get("source") or matchers.get("measured")
            if kind in ('="estimate"', '="false"'):
                assert "estimate" in f"{legend} {panel['title']}".lower() or panel["type"] == "table"
            elif kind is None and panel["type"] != "table":
                assert "{{source}}" in legend or "{{note}}" in legend


@each_panel
def test_windows_are_those_of_the_screen(placed: Placed) -> None:
    """A rate is over $__rate_interval, an increase over $__range: no window of another length."""
    for expr in (re.sub(r'"[^"]*"', "", text) for text in exprs(placed)):
        for function, window in re.findall(r"(\w+)\([^()]*\[([^\]]+)\]", expr):
            known = {("rate", "$__rate_interval"), ("increase", "$__range"), ("last_over_time", "$__range")}
            assert (function, window) in known
        assert "[" not in re.sub(r"\[\$__(rate_interval|range)\]", "", expr)


@each_board
def test_variables(name: str) -> None:
    """Datasource and host come first, host has All; every variable that is used is there, and is used."""
    board = BOARDS[name]
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names[:2] == ["datasource", "host"]
    by_name = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert by_name["host"]["includeAll"]
    assert all(variable["multi"] for variable in board["templating"]["list"][1:])
    used = set(re.findall(r"\$(?!__|\{__|1)\{?(\w+)", json.dumps([*panels(board)], ensure_ascii=False)))
    used |= set(re.findall(r"\$(\w+)", " ".join(variable_queries(board).values())))
    assert used == set(names)
    for query in variable_queries(board).values():
        (selector,) = selectors(query)
        assert selector.metric in KNOWN
        assert selector.matchers.keys() <= {*KNOWN[selector.metric], *TARGET_LABELS}


@each_board
def test_links_lead_to_the_others(name: str) -> None:
    """A dashboard links to all that bear its tag, with time and variables; links on values name one."""
    board = BOARDS[name]
    (link,) = board["links"]
    assert link["type"] == "dashboards"
    assert link["tags"] == board["tags"] == ["powerbench"]
    assert (link["keepTime"], link["includeVars"]) == (True, True)
    for panel in panels(board):
        for on_value in panel["fieldConfig"]["defaults"].get("links") or ():
            assert re.match(r"/d/([\w-]+)\?", on_value["url"])[1] in UIDS


def test_rules_that_are_asked_for_are_recorded() -> None:
    """Every recording rule that a dashboard names is one of recording.yml, with its estimates kept apart."""
    file = ROOT / "compose/prometheus/rules/recording.yml"
    rules = [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]
    asked = {one.metric for placed in PANELS for expr in exprs(placed) for one in selectors(expr)}
    for name in asked & RULES.keys():
        found = [rule for rule in rules if rule["record"] == name]
        if "measured" in RULES[name]:
            assert [rule["labels"]["measured"] for rule in found] == ["true", "false"]
        else:
            assert len(found) == 1
            assert {"source"} & set(RULES[name]) <= grouping(found[0]["expr"])


def test_provisioning() -> None:
    """The data sources have fixed uids and addresses, one is the default; the dashboards are read."""
    found = {}
    for path in (GRAFANA / "provisioning/datasources").glob("*.yml"):
        (source,) = yaml.safe_load(path.read_text())["datasources"]
        found[source["uid"]] = source
    assert {uid: source["url"] for uid, source in found.items()} == {
        "prometheus": "http://prometheus:9090",
        "victoriametrics": "http://victoriametrics:8428",
    }
    assert {source["type"] for source in found.values()} == {"prometheus"}
    assert [uid for uid, source in found.items() if source.get("isDefault")] == ["prometheus"]
    (path,) = (GRAFANA / "provisioning/dashboards").glob("*.yml")
    (provider,) = yaml.safe_load(path.read_text())["providers"]
    assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
