"""A real benchmark's file in a real agent's view, and an old file's energy out of a real Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from real.conftest import BIN, agent, free_port, get, series, wait_for
from real.machine import machine
from real.servers import prometheus

CAPTURES = Path(__file__).parent.parent / "captures"
WATTS = {"intel-rapl:0": 40.0, "intel-rapl:0:0": 6.0}  # package and memory of a machine made of files


def configured(directory: Path, **options: Any) -> list[str]:
    """Return the flags of an agent that watches this directory closely."""
    keys = {"directory": str(directory / "results"), "interval": "1s", **options}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    path = directory / "agent.toml"
    path.write_text("\n".join(["[collectors.results]", *lines, ""]))
    return ["--config", str(path)]


def shown(port: int, metric: str) -> dict[str, tuple[float, dict[str, str]]]:
    """Return a metric's values and labels on the agent's page by scenario."""
    found = {}
    for text, value in series(get(f"http://127.0.0.1:{port}/metrics"), f"results_scenario_{metric}").items():
        labels = dict(re.findall(r'(\w+)="([^"]*)"', text))
        found[labels["scenario"]] = (value, labels)
    return found


def _run_id(port: int) -> str:
    """Return the run that is shown; "" at a beat that shows none."""
    _, labels = shown(port, "mean_power_watts").get("baseline", (0.0, {}))
    return labels.get("run_id", "")


@pytest.mark.usefixtures("ffmpeg")
def test_a_run_shows_while_it_goes_on(tmp_path: Path, port: int) -> None:
    """What `powerbench run` writes shows at the next beat: its baseline first, then the difference."""
    (tmp_path / "results").mkdir()
    older = (CAPTURES / "results_format1.json").read_bytes()
    (tmp_path / "results/test_results_20260203_101112.json").write_bytes(older)
    with agent(port, *configured(tmp_path)):
        assert shown(port, "delta_power_watts")["2500k_720p30_h264"][0] == 15
        command = f"run --output-dir {tmp_path / 'results'} --sink null single --name x --with-baseline"
        command += " --baseline-duration 3 --duration 3 --stabilization 1 --cooldown 0"
        command += " --resolution 320x180 --bitrate 400k --preset ultrafast"
        with subprocess.Popen([str(BIN / "powerbench"), *command.split()], stdout=subprocess.DEVNULL) as run:
            wait_for(lambda: _run_id(port) not in ("", "test_results_20260203_101112"), "the baseline shows")
            assert run.poll() is None
            assert "2500k_720p30_h264" not in shown(port, "mean_power_watts")
            assert run.wait(60) == 0
        wait_for(lambda: "x" in shown(port, "delta_power_watts"), "the difference shows")
        path = tmp_path / "results" / f"{_run_id(port)}.json"
        _, test = json.loads(path.read_text())["scenarios"]
        value, labels = shown(port, "delta_power_watts")["x"]
        assert value == pytest.approx(test["versus_baseline"]["delta_watts"])
        assert (labels["run_id"], labels["source"]) == (path.stem, test["energy"]["source"])
        for metric, expected in (
            ("mean_power_watts", test["energy"]["mean_watts"]),
            ("total_energy_wh", test["energy"]["wh"]),
            ("duration_seconds", test["energy"]["seconds"]),
            ("avg_fps", test["encode"]["achieved_fps"]),
            ("total_frames", test["encode"]["frames"]),
            ("energy_mj_per_frame", test["encode"]["joules_per_frame"] * 1000),
        ):
            assert shown(port, metric)["x"][0] == pytest.approx(expected)
        assert "baseline" not in shown(port, "delta_power_watts")


def test_an_old_file_gets_its_energy_from_prometheus(tmp_path: Path, port: int) -> None:
    """A file without energy, whose windows a Prometheus has seen, shows what the counters gained in them."""
    (tmp_path / "results").mkdir()
    watching = free_port()
    machine_flags = ["--sysfs", str(tmp_path / "sys")]
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: powerbench\n  static_configs:\n"
        f"  - targets: ['127.0.0.1:{port}']\n"
    )
    with (
        machine(tmp_path / "sys", WATTS),
        agent(port, *machine_flags, "--only", "rapl"),
        prometheus(config, tmp_path / "prometheus") as url,
        agent(watching, *configured(tmp_path, prometheus=url, prometheus_match='job="powerbench"')),
    ):
        node = "powerbench_node_energy_joules_total"
        query = f"{url}/api/v1/query?query=count_over_time({node}[1m])"
        wait_for(lambda: '"value":[' in get(query), "Prometheus has scraped the agent")
        begin = time.time() + 1.5
        windows = {"Baseline": (begin, begin + 6.5), "2.5 Mbps": (begin + 7.25, begin + 13.75)}
        scenarios = [
            {"name": name, "bitrate": "0k" if name == "Baseline" else "2500k", "start_time": a, "end_time": b}
            for name, (a, b) in windows.items()
        ]
        content = {"test_date": "2026-01-05T10:51:32", "scenarios": scenarios}
        wait_for(lambda: time.time() > begin + 17, "the windows are over, and scraped")
        (tmp_path / "results/test_results_20260105_105132.json").write_text(json.dumps(content))
        wait_for(lambda: len(shown(watching, "mean_power_watts")) == 2, "the energy shows")
        for value, labels in shown(watching, "mean_power_watts").values():
            assert labels["source"] == "rapl"
            # Whole beats, scraped a moment later: what a window of 6.5 s can be told by.
            assert value == pytest.approx(sum(WATTS.values()), rel=0.12)
        joules, _ = shown(watching, "total_energy_joules")["2.5 Mbps"]
        assert joules == pytest.approx(sum(WATTS.values()) * 6.5, rel=0.12)
        assert shown(watching, "delta_power_watts")["2.5 Mbps"][0] == pytest.approx(0, abs=8)
        health = json.loads(get(f"http://127.0.0.1:{watching}/health"))
        assert health["status"] == "ok"
