"""What compose/prometheus says holds together: names are declared, alerts are tested and explained."""

from __future__ import annotations

import re
import sys
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from places import ROOT

sys.path.insert(0, str(ROOT / "compose/grafana"))
from boards import queries
from powerbench_agent.agent import node, roster

if TYPE_CHECKING:
    from pathlib import Path

PROMETHEUS = ROOT / "compose/prometheus"
CONFIG = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
TARGETS = sorted((PROMETHEUS / "targets").iterdir())
RULES = {path: yaml.safe_load(path.read_text()) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))}
TESTS = [yaml.safe_load(path.read_text()) for path in sorted((PROMETHEUS / "rules/tests").glob("*.yml"))]

# Others' metrics, each with who has it.
FOREIGN = {
    "up": "Prometheus",
    "process_start_time_seconds": "client libraries, the agent's own page among them",
    "powerbench_build_info": "every page of an agent",
    "powerbench_collector_up": "the agent's scheduler",
    "powerbench_collector_faults_total": "the agent's scheduler",
    "powerbench_http_forbidden_total": "the agent's web server",
    "powerbench_limit_hits_total": "the agent's scheduler and web server",
    "powerbench_series_dropped_total": "the agent's pages",
    "DCGM_FI_DEV_POWER_USAGE": "dcgm-exporter",
    "prometheus_sd_file_read_errors_total": "Prometheus",
    "prometheus_config_last_reload_successful": "Prometheus",
    "prometheus_rule_evaluation_failures_total": "Prometheus",
    "prometheus_notifications_dropped_total": "Prometheus",
    "alertmanager_config_last_reload_successful": "Alertmanager",
    "alertmanager_notifications_failed_total": "Alertmanager",
    "vm_log_messages_total": "VictoriaMetrics",
    "vm_promscrape_config_last_reload_successful": "VictoriaMetrics, but not Debian 12's",
    "vmalert_config_last_reload_successful": "vmalert",
    "vmalert_execution_errors_total": "vmalert",
    "vmalert_alerts_send_errors_total": "vmalert",
}


def rules() -> list[dict[str, Any]]:
    groups = chain.from_iterable(content["groups"] for content in RULES.values())
    return [rule for group in groups for rule in group["rules"]]


def group(name: str) -> list[dict[str, Any]]:
    """Return the rules of a group."""
    groups = chain.from_iterable(content["groups"] for content in RULES.values())
    (found,) = [each["rules"] for each in groups if each["name"] == name]
    return found


ALERTS = [rule["alert"] for rule in rules() if "alert" in rule]
RECORDS = sorted({rule["record"] for rule in rules() if "record" in rule})


# What dashboards of earlier exporters ask for.
COMPATIBLE = {rule["record"] for rule in group("powerbench-compatible")}


def names(expression: str) -> set[str]:
    """Return the metrics that an expression names."""
    for other in (
        r'"[^"]*"',
        r"\{[^}]*\}|\[[^]]*\]|offset \w+",  # labels and times
        r"\b(by|without|on|ignoring|group_left) *\([^)]*\)",
        r"\w+ *(?=\()|\b(and|or|unless)\b",  # functions and operators
    ):
        expression = re.sub(other, " ", expression)
    return set(re.findall(r"[a-zA-Z_:][\w:]*", expression))


def test_every_metric_of_a_rule_is_somebodys() -> None:
    """A rule names what a collector declares, a rule records, or a known exporter has; nothing else."""
    modules = roster.load_modules()
    declared = {metric.name for module in modules.values() for metric in module.METRICS}
    declared |= {metric.name for metric in (*node.NODE_METRICS, *roster.share_metrics(modules))}
    known = declared | set(RECORDS) | set(FOREIGN) | {"powerbench:threshold:own"}
    used = {name for rule in rules() for name in names(rule["expr"])}
    assert used <= known
    assert used >= set(FOREIGN)


def test_what_is_read_of_agents_is_read_by_machine() -> None:
    """Whatever a rule reads of agents gets its `host` as on the dashboards, and is grouped by it first."""
    modules = roster.load_modules()
    shown = {metric.name for module in modules.values() for metric in module.METRICS}
    shown |= {metric.name for metric in (*node.NODE_METRICS, *roster.share_metrics(modules))}
    readers = [rule for rule in rules() if names(rule["expr"]) & shown]
    readers = [rule for rule in readers if rule.get("record") not in COMPATIBLE]
    assert readers
    for rule in readers:
        assert by_machine(rule["expr"]), rule
        assert re.match(r"(max|min|avg) (by \(host,|by \(host\)|without \(instance, job)", rule["expr"]), rule


def test_agents_are_read_in_one_group() -> None:
    """powerbench-machines reads them for all other rules, but for results, whose labels are many."""
    modules = roster.load_modules()
    shown = {metric.name for module in modules.values() for metric in module.METRICS}
    reading = {
        group["name"]
        for group in chain.from_iterable(content["groups"] for content in RULES.values())
        if any(names(rule["expr"]) & shown for rule in group["rules"])
    }
    results = {"powerbench-results", "powerbench-runs", "powerbench-compatible"}
    assert reading == {"powerbench-machines", *results}


def by_machine(expression: str) -> bool:
    """Whether each of its metrics gets its `host` by the rule that the dashboards have, too."""
    text = re.sub(r"\s+", "", expression)
    head, tail = re.sub(r"\s+", "", queries.by_machine("METRIC")).split("METRIC")
    begun = "label_replace(label_join("
    assert head == begun
    return text.count(begun) == text.count(tail) > 0


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tested_firing_and_not(alert: str) -> None:
    """rules/tests has a moment at which it fires, and one at which it does not."""
    said = [
        expected["exp_samples"]
        for content in TESTS
        for test in content["tests"]
        for expected in test["promql_expr_test"]
        if f'alertname="{alert}"' in expected["expr"]
    ]
    assert any(f'alertname="{alert}", alertstate="firing"' in str(samples) for samples in said)
    assert [] in said


@pytest.mark.parametrize("record", RECORDS)
def test_every_recording_rule_has_figures(record: str) -> None:
    """rules/tests says what it comes to."""
    asked = [
        expected
        for content in TESTS
        for test in content["tests"]
        for expected in test["promql_expr_test"]
        if record in expected["expr"]
    ]
    assert any(expected["exp_samples"] for expected in asked)


@pytest.mark.parametrize(
    "rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: rule["alert"]
)
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """It has a severity that Alertmanager routes, a subject, a summary on one line, and a description."""
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["labels"]["subject"]
    assert "\n" not in rule["annotations"]["summary"]
    assert len(rule["annotations"]["description"]) > 100


def test_thresholds_and_alerts_know_each_other() -> None:
    """Each threshold is an alert's, each alert that asks for one has it, and docs have their values."""
    asked = {
        name
        for rule in rules()
        if "alert" in rule
        for name in re.findall(r'threshold:value\{alert="(\w+)"', rule["expr"])
    }
    given = {
        rule["labels"]["alert"]: re.findall(r" \* (0?\.\d+)$", rule["expr"], re.MULTILINE)[0]
        for rule in rules()
        if rule.get("record") == "powerbench:threshold:value"
    }
    assert asked == set(given) <= set(ALERTS)
    for rule in rules():
        if rule.get("record") == "powerbench:threshold:value":
            own = set(re.findall(r'own\{alert="(\w+)"', rule["expr"]))
            assert own == {rule["labels"]["alert"]}
    page = (ROOT / "docs/alerts.md").read_text()
    for alert, value in given.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{alert}`")]
        assert re.search(rf"\b{re.escape(value)}\b", row), row


def test_a_hosts_own_threshold_is_a_line_taken_in() -> None:
    """The commented lines of thresholds.yml are rules as they stand."""
    text = (PROMETHEUS / "rules/thresholds.yml").read_text()
    lines = re.findall(r"^      # (- \{record.*)$", text, re.MULTILINE)
    assert lines
    for (rule,) in map(yaml.safe_load, lines):
        assert rule["record"] == "powerbench:threshold:own"
        assert rule["labels"].keys() - {"host"} == {"alert"}


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.name)
def test_targets_are_lists(path: Path) -> None:
    """A file of targets is a list of addresses with labels; so is what its comments show."""
    text = path.read_text()
    shown = re.findall(r"^#   (.*)$", text, re.MULTILINE)
    for group in [*yaml.safe_load(text), *(yaml.safe_load("\n".join(shown)) or [])]:
        assert group.keys() <= {"targets", "labels"}
        assert all(re.fullmatch(r"[\w.-]+:\d+", target) for target in group["targets"])


def test_every_file_of_targets_is_a_jobs() -> None:
    """Each job has its files, each file its job, and every job says `host`."""
    patterns = [
        files for job in CONFIG["scrape_configs"] for sd in job["file_sd_configs"] for files in sd["files"]
    ]
    found = {path for pattern in patterns for path in PROMETHEUS.glob(pattern)}
    assert found == set(TARGETS)
    assert all(list(PROMETHEUS.glob(pattern)) for pattern in patterns)
    for job in CONFIG["scrape_configs"]:
        assert [step["target_label"] for step in job["relabel_configs"]] == ["host"]


@pytest.mark.parametrize(
    ("said", "address", "host"),
    [
        ("", "worker-1:9510", "worker-1"),
        ("", "worker-1", "worker-1"),
        ("", "10.0.0.7:9510", "10.0.0.7"),
        ("", "[fd00::7]:9510", "[fd00::7]"),
        ("named", "10.0.0.7:9510", None),
    ],
)
def test_host_is_the_address_without_its_port(said: str, address: str, host: str | None) -> None:
    """Unless the file of targets says another."""
    (step,) = CONFIG["scrape_configs"][0]["relabel_configs"]
    found = re.fullmatch(step["regex"], f"{said};{address}")
    assert (found and found[1]) == host


@pytest.mark.parametrize(
    ("series", "left_out"),
    [
        ("rapl_power_watts;intel-rapl-mmio:0", True),
        ("rapl_energy_joules_total;intel-rapl-mmio:0:1", True),
        ("rapl_power_watts;intel-rapl:0", False),
        ("powerbench_node_power_watts;", False),
    ],
)
def test_old_dashboards_can_do_without_twins(series: str, *, left_out: bool) -> None:
    """What docs/deploy.md leaves out of a scrape, so that old sums are right, is RAPL's twins and no more."""
    page = (ROOT / "docs/deploy.md").read_text()
    (shown,) = re.findall(r"^    metric_relabel_configs:\n      (- .*)$", page, re.MULTILINE)
    (step,) = yaml.safe_load(shown)
    assert (step["source_labels"], step["action"]) == (["__name__", "path"], "drop")
    assert bool(re.fullmatch(step["regex"], series)) is left_out


def test_the_docs_name_every_alert_and_every_record() -> None:
    """docs/alerts.md has a row for each alert, and names each recording rule; and none that there is not."""
    page = (ROOT / "docs/alerts.md").read_text()
    assert set(re.findall(r"^\| `([A-Z]\w+)` \|", page, re.MULTILINE)) == set(ALERTS)
    told = set(re.findall(r"`(\w+:\w+:\w+)`", page)) - {"powerbench:threshold:own"}
    assert told <= set(RECORDS)
    # Those that rules read of agents are described as one.
    read = {rule["record"] for rule in group("powerbench-machines") + group("powerbench-seen")}
    assert {re.sub(r"(rate)5m$", r"\g<1>1m", name) for name in set(RECORDS) - read - COMPATIBLE} <= told


def test_a_critical_alert_mutes_a_warning_of_its_kind() -> None:
    """Alertmanager compares every label that tells alerts of a subject apart; severities have receivers."""
    config = yaml.safe_load((ROOT / "compose/alertmanager/alertmanager.yml").read_text())
    (inhibition,) = config["inhibit_rules"]
    compared = set(inhibition["equal"])
    assert {"subject", "host", "package", "gpu", "uuid", "vendor", "stream", "job", "instance"} <= compared
    receivers = {receiver["name"] for receiver in config["receivers"]}
    assert (
        receivers
        == {"critical", "warning"}
        == {config["route"]["receiver"], config["route"]["routes"][0]["receiver"]}
    )
    assert all(receiver.keys() == {"name"} for receiver in config["receivers"])
