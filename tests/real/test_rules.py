"""What compose/ says, before the real programs; and one alert from a machine's joules to a webhook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import yaml
from real.conftest import agent, free_port, get, need, wait_for
from real.machine import machine
from real.servers import Message, Webhook, alertmanager, prometheus, victoria_metrics, vmalert, webhook

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPOSE = Path(__file__).parent.parent.parent / "compose"
PROMETHEUS = COMPOSE / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
ALERTS = PROMETHEUS / "rules/alerts.yml"
RULE_TESTS = sorted((PROMETHEUS / "rules/tests").glob("*.yml"))
ALERTMANAGER = COMPOSE / "alertmanager/alertmanager.yml"


def run(program: str, *arguments: object) -> tuple[int, str]:
    """Return (exit status, what it said)."""
    command = [need(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def accepts(program: str, *arguments: object) -> None:
    status, said = run(program, *arguments)
    assert status == 0, said


def test_prometheus_takes_the_configuration() -> None:
    """Promtool finds no fault with the configuration, its targets and rules."""
    accepts("promtool", "check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.parametrize(
    ("program", "flags"),
    [("vmagent", ["-dryRun", "-remoteWrite.url=http://127.0.0.1:1"]), ("victoria-metrics", ["-dryRun"])],
)
def test_victoriametrics_takes_the_very_same_file(program: str, flags: list[str]) -> None:
    """VictoriaMetrics and vmagent take the file with the one flag that it names."""
    config = f"-promscrape.config={PROMETHEUS / 'prometheus.yml'}"
    accepts(program, *flags, config, "-promscrape.config.strictParse=false")


def test_victoriametrics_passes_over_three_keys_alone(tmp_path: Path) -> None:
    """Without Prometheus' own three keys it takes the file strictly, so no key of a job is passed over."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    del config["rule_files"], config["alerting"], config["global"]["evaluation_interval"]
    strict = tmp_path / "prometheus.yml"
    strict.write_text(yaml.safe_dump(config))
    flags = ["-dryRun", "-remoteWrite.url=http://127.0.0.1:1"]
    accepts("vmagent", *flags, f"-promscrape.config={strict}")


def test_the_rules_are_taken_by_both() -> None:
    """Promtool and vmalert find no fault with the rules and their templates."""
    accepts("promtool", "check", "rules", *RULES)
    accepts("vmalert", "-dryRun", f"-rule={PROMETHEUS / 'rules/*.yml'}", "-datasource.url=http://127.0.0.1:1")


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_rules_do_what_their_tests_say(path: Path) -> None:
    """Every alert fires and does not fire, every recording rule has its figures, as rules/tests say."""
    accepts("promtool", "test", "rules", path)


def test_alertmanager_takes_its_configuration(tmp_path: Path) -> None:
    """It is good as it is, and with every receiver that it shows switched on."""
    accepts("amtool", "check-config", ALERTMANAGER)
    path = tmp_path / "alertmanager.yml"
    path.write_text(switched_on(ALERTMANAGER.read_text()))
    accepts("amtool", "check-config", path)
    for receiver in yaml.safe_load(path.read_text())["receivers"]:
        assert receiver.keys() == {"name", "slack_configs", "email_configs", "webhook_configs"}


def switched_on(config: str) -> str:
    """Return Alertmanager's configuration with its commented receivers taken in."""
    return re.sub(r"^    # ", "    ", config, flags=re.MULTILINE)


def test_a_bad_file_of_targets_is_found(tmp_path: Path) -> None:
    """Promtool names a key that is none in a file of targets, before anything is started."""
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    (tmp_path / "prometheus/targets/powerbench-workers.yml").write_text("- target: [worker-1:9510]\n")
    status, said = run("promtool", "check", "config", tmp_path / "prometheus/prometheus.yml")
    assert status != 0
    assert "field target not found" in said


# -- from joules to a webhook --------------------------------------------------------------------------


def hastened(directory: Path, agent_port: int, notifier: str) -> Path:
    """Return a copy of prometheus.yml and its folder: other targets, a look a second, no patience."""
    shutil.copytree(PROMETHEUS, directory)
    for path in (directory / "targets").iterdir():
        path.write_text("[]\n")
    (directory / "targets/powerbench.yml").write_text(f"- targets: ['127.0.0.1:{agent_port}']\n")
    address = notifier.removeprefix("http://")
    (directory / "targets/alertmanager.yml").write_text(f"- targets: ['{address}']\n")
    config = directory / "prometheus.yml"
    for path in (config, *(directory / "rules").glob("*.yml")):
        text = re.sub(r"(_interval|\binterval|\bfor): \w+", r"\1: 1s", path.read_text())
        path.write_text(text)
    return config


@contextmanager
def switchboard(directory: Path, hook: Webhook) -> Iterator[str]:
    """Run Alertmanager with the receivers that its file shows, Slack's and the webhook's secrets in files."""
    config = switched_on(ALERTMANAGER.read_text())
    (directory / "secrets").mkdir(parents=True)
    (directory / "secrets/slack_url").write_text(f"{hook.url}/slack")
    (directory / "secrets/webhook_token").write_text("let me in")
    for old, new in (
        ("/etc/alertmanager/secrets", str(directory / "secrets")),
        ("https://hooks.example.org/powerbench", f"{hook.url}/webhook"),
        ("group_wait: 30s", "group_wait: 1s"),
        ("group_wait: 10s", "group_wait: 1s"),
        ("group_interval: 5m", "group_interval: 1s"),
    ):
        assert old in config
        config = config.replace(old, new)
    settings: Any = yaml.safe_load(config)
    for receiver in settings["receivers"]:
        del receiver["email_configs"]  # there is no mail server here
    path = directory / "alertmanager.yml"
    path.write_text(yaml.safe_dump(settings))
    with alertmanager(path, directory / "data") as url:
        yield url


@contextmanager
def evaluated(engine: str, directory: Path, agent_port: int, notifier: str) -> Iterator[str]:
    """Let one of the two scrape the agent and evaluate the rules; yield its URL."""
    config = hastened(directory / "prometheus", agent_port, notifier)
    if engine == "prometheus":
        with prometheus(config, directory / "data") as url:
            yield url
    else:
        rules = f"{directory}/prometheus/rules/*.yml"
        with (
            victoria_metrics(directory / "data", config) as url,
            vmalert(rules, url, notifier, directory / "vmalert"),
        ):
            yield url


@pytest.mark.parametrize("engine", ["prometheus", "victoriametrics"])
def test_an_alert_arrives(tmp_path: Path, engine: str) -> None:
    """A simulated machine's 150 of 125 W arrive at Slack and a webhook as CpuPowerCritical; High is muted."""
    port = free_port()
    watts = {"intel-rapl:0": 150.0, "intel-rapl:0:0": 6.0, "intel-rapl-mmio:0": 149.0}
    with (
        machine(tmp_path / "sys", watts),
        agent(port, "--sysfs", str(tmp_path / "sys"), "--only", "rapl"),
        webhook() as hook,
        switchboard(tmp_path / "alertmanager", hook) as notifier,
        evaluated(engine, tmp_path / engine, port, notifier) as url,
    ):
        # VictoriaMetrics finds a new series in ten seconds or so, and each rule waits for the one before it.
        wait_for(lambda: bool(asked(url, "host_package:rapl_power_limit_watts:max")), "the limit")
        wait_for(lambda: bool(asked(url, 'powerbench:threshold:value{package="0"}')), "the threshold")
        wait_for(lambda: len(sent(hook, "/webhook")) > 0, "the alert arrives at the webhook")
        wait_for(lambda: len(sent(hook, "/slack")) > 0, "the alert arrives at Slack's URL")
        assert {message.authorization for message in sent(hook, "/webhook")} == {"Bearer let me in"}
        (alert,) = sent(hook, "/webhook")[0].content["alerts"]
        labels = {"severity": "critical", "host": "127.0.0.1", "package": "0"}
        assert labels.items() <= alert["labels"].items()
        assert re.fullmatch(r"CPU package 0 of 127\.0\.0\.1 draws 1[45]\d W", alert["annotations"]["summary"])
        assert "CPU package 0 of 127.0.0.1 draws 1" in json.dumps(sent(hook, "/slack")[0].content)

        def states() -> dict[str, str]:
            alerts = json.loads(get(f"{notifier}/api/v2/alerts"))
            return {alert["labels"]["alertname"]: alert["status"]["state"] for alert in alerts}

        both = {"CpuPowerCritical": "active", "CpuPowerHigh": "suppressed"}
        wait_for(lambda: both.items() <= states().items(), "the warning is muted")


def sent(hook: Webhook, path: str) -> list[Message]:
    """Return the messages about CpuPowerCritical."""
    about = [m for m in hook.messages if m.path == path]
    return [m for m in about if "CpuPowerCritical" in json.dumps(m.content)]


# -- the monitoring itself -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["prometheus", "victoriametrics"])
def test_a_file_of_targets_that_breaks_is_told(tmp_path: Path, engine: str) -> None:
    """A server that watches itself says, by its own counters, that it cannot read a file of targets."""
    nobody = f"http://127.0.0.1:{free_port()}"
    with evaluated(engine, tmp_path / engine, free_port(), nobody) as url:
        targets = tmp_path / engine / "prometheus/targets"
        (targets / f"{engine}.yml").write_text(f"- targets: ['{url.removeprefix('http://')}']\n")
        wait_for(lambda: bool(asked(url, f'up{{job="{engine}"}} == 1')), "it watches itself")
        broken = f'ALERTS{{alertname="MonitoringBroken",fault="targets",job="{engine}",alertstate="firing"}}'
        assert asked(url, broken) == []
        (targets / "powerbench.yml").write_text("- target: [\n")
        wait_for(lambda: bool(asked(url, broken)), "it says that the file cannot be read")


def asked(url: str, query: str) -> list[Any]:
    """Return the series that a query gives now."""
    answer: list[Any] = json.loads(get(f"{url}/api/v1/query?query={quote(query)}"))["data"]["result"]
    return answer


def test_the_servers_have_what_is_asked_of_them(tmp_path: Path) -> None:
    """Every metric of a server that MonitoringBroken names is on the page of the real one."""
    config = hastened(tmp_path / "scrape", free_port(), "http://127.0.0.1:9")
    rules = f"{tmp_path}/scrape/rules/*.yml"
    with (
        prometheus(config, tmp_path / "prometheus") as first,
        victoria_metrics(tmp_path / "vm", config) as second,
        alertmanager(ALERTMANAGER, tmp_path / "alertmanager") as third,
        vmalert(rules, second, third, tmp_path / "vmalert") as fourth,
    ):
        pages = [get(f"{url}/metrics") for url in (first, second, third, fourth)]
    found = {name for page in pages for name in re.findall(r"^\w+", page, re.MULTILINE)}
    (alert,) = re.findall(r"alert: MonitoringBroken.*?for:", ALERTS.read_text(), re.DOTALL)
    named = set(re.findall(r"\b(?:prometheus|alertmanager|vmalert|vm)_\w+", alert))
    assert len(named) > 10
    # VictoriaMetrics has had it since after Debian 12's, which the tests run.
    assert named - found <= {"vm_promscrape_config_last_reload_successful"}
