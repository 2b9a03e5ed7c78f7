"""`make native-up`: the stack's own files, run by the distribution's packages on this machine.

Its ports are the stack's (docs/stack.md), so nothing else may have them meanwhile.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from real.conftest import BIN, get, need, series, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

NATIVE = Path(__file__).parent.parent.parent / "compose/native.py"
PROGRAMS = (
    "prometheus",
    "prometheus-alertmanager",
    "prometheus-node-exporter",
    "victoria-metrics",
    "vmalert",
    "ffmpeg",
)
SERVICES = (
    "nginx-rtmp",
    "node_exporter",
    "agent",
    "alertmanager",
    "prometheus",
    "victoriametrics",
    "vmalert",
)
SCRAPED = {"powerbench", "node", "prometheus", "alertmanager", "victoriametrics", "vmalert"}


def native(directory: Path, verb: str, agent: str = str(BIN / "powerbench-agent")) -> tuple[int, str, str]:
    """Run a verb; return its exit code, output and errors."""
    command = [sys.executable, str(NATIVE), verb, "--directory", str(directory / "native")]
    command += ["--results", str(directory / "results"), "--agent", agent]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def pids(directory: Path) -> dict[str, int]:
    content = json.loads((directory / "native/run.json").read_text())
    return {name: pid for name, (pid, _) in content.items()}


def alive(pid: int) -> bool:
    """Whether it runs; whoever has inherited it may not have taken note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    for program in PROGRAMS:
        need(program)


@contextmanager
def stack(directory: Path) -> Iterator[str]:
    """Have the stack up for as long as the context lasts; yield what `up` printed."""
    code, out, errors = native(directory, "up")
    try:
        assert (code, errors) == (0, "")
        yield out
    finally:
        native(directory, "down")


def targets(base: str) -> dict[str, str]:
    """Return the health of a server's targets by job; one's own that is down counts, whichever it is."""
    found: dict[str, str] = {}
    answer: dict[str, Any] = json.loads(get(f"{base}/api/v1/targets?state=active"))
    for target in answer["data"]["activeTargets"]:
        job = target["labels"]["job"]
        if found.get(job) in (None, "up"):
            found[job] = target["health"]
    return found


def publish(seconds: int) -> subprocess.Popen[bytes]:
    """Publish a small stream to the stack's nginx, with its progress to the stack's agent."""
    command = [
        need("ffmpeg"),
        "-nostdin",
        "-v",
        "error",
        "-re",
        "-f",
        "lavfi",
        "-i",
        "testsrc2=s=320x180:r=30",
    ]
    command += [
        "-t",
        str(seconds),
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
        "-f",
        "flv",
        "-stats_period",
        "0.5",
    ]
    command += ["-progress", "http://127.0.0.1:9510/ingest?stream=cam1", "rtmp://127.0.0.1/live/cam1"]
    return subprocess.Popen(command)


def test_the_stack_runs_and_both_databases_scrape_all_of_it(tmp_path: Path) -> None:
    """Every service answers; Prometheus and VictoriaMetrics scrape the same targets by the same file.

    A stream shows in the agent through nginx's stat page and through its progress; a second `up` changes
    nothing; `down` leaves no process.
    """
    with stack(tmp_path) as out:
        assert [line.split()[0] for line in out.splitlines()] == list(SERVICES)
        first = pids(tmp_path)
        with publish(60) as encoder:
            wait_for(lambda: set(targets("http://127.0.0.1:9090").values()) == {"up"}, "Prometheus has all")
            wait_for(lambda: set(targets("http://127.0.0.1:8428").values()) == {"up"}, "VictoriaMetrics too")
            assert set(targets("http://127.0.0.1:9090")) == set(targets("http://127.0.0.1:8428")) == SCRAPED

            def shown() -> bool:
                page = get("http://127.0.0.1:9510/metrics")
                sent = series(page, "nginx_rtmp_stream_bytes_in_total")
                return any(value > 0 for value in sent.values()) and bool(series(page, "ffmpeg_fps"))

            wait_for(shown, "the stream shows")
            encoder.terminate()
        assert native(tmp_path, "up")[0] == 0
        assert pids(tmp_path) == first
        os.kill(first["vmalert"], 9)
        wait_for(lambda: "vmalert          not running" in native(tmp_path, "ps")[1], "it is seen")
        assert native(tmp_path, "up")[0] == 0
        second = pids(tmp_path)
        assert second.pop("vmalert") != first.pop("vmalert")
        assert second == first
    assert not any(alive(pid) for pid in second.values())
    assert native(tmp_path, "ps")[1].count("not running") == len(SERVICES)


def test_a_taken_port_is_named_with_its_holder_and_nothing_is_started(tmp_path: Path) -> None:
    """One line with the port, who has it, and what to do."""
    with socket.create_server(("127.0.0.1", 9093)):
        code, out, errors = native(tmp_path, "up")
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("native: port 9093 (alertmanager) is taken by ")
    assert f"(pid {os.getpid()}); stop it" in errors
    assert not (tmp_path / "native/run.json").exists()


def test_a_service_that_does_not_start_takes_the_others_down_with_it(tmp_path: Path) -> None:
    """Half a stack is no stack: what was started is stopped, and the reason is one line."""
    code, out, errors = native(tmp_path, "up", agent="/bin/false")
    assert (code, out) == (1, "")
    assert errors.startswith("native: agent does not start: it logged nothing (the whole log: ")
    assert pids(tmp_path) == {}


def test_a_target_file_that_cannot_be_read_is_named_before_anything_starts(tmp_path: Path) -> None:
    """Prometheus would start without those targets, and nobody would know."""
    targets = tmp_path / "native/prometheus/targets"
    targets.mkdir(parents=True)
    (targets / "powerbench-workers.yml").write_text("- targets: [worker-1:9510\n")
    code, out, errors = native(tmp_path, "up")
    assert (code, out, errors.count("\n")) == (78, "", 1)
    assert "/targets/powerbench*.yml" in errors
    assert "line 1" in errors
    assert not (tmp_path / "native/run.json").exists()


def test_what_the_operator_writes_stays(tmp_path: Path) -> None:
    """Addresses are written once; a second start leaves them as they have been made."""
    with stack(tmp_path):
        own = tmp_path / "native/prometheus/targets/node.yml"
        own.write_text("- targets: [127.0.0.1:9100, 127.0.0.1:9101]\n")
        assert native(tmp_path, "up")[0] == 0
        assert "9101" in own.read_text()


def test_a_second_up_at_the_same_time_is_refused(tmp_path: Path) -> None:
    """Two of them would take each other's ports."""
    (tmp_path / "native").mkdir()
    with (tmp_path / "native/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert native(tmp_path, "up")[0] == 1
        assert "another native.py is at work" in native(tmp_path, "down")[2]


def test_a_worker_that_has_lost_its_master_is_stopped_too(tmp_path: Path) -> None:
    """`down` ends what a service has started, even where the service itself has been killed."""
    with stack(tmp_path):
        os.kill(pids(tmp_path)["nginx-rtmp"], 9)
        with socket.create_connection(("127.0.0.1", 1935)):  # its worker goes on
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 1935))


def test_a_file_of_processes_that_is_none_is_no_process(tmp_path: Path) -> None:
    """Whatever is in it, nobody's process is taken for ours, and there is no traceback."""
    (tmp_path / "native").mkdir()
    for content in ("[]", "null", '{"agent": 5}', '{"agent": [1, null]}', "{"):
        (tmp_path / "native/run.json").write_text(content)
        code, out, errors = native(tmp_path, "ps")
        assert (code, out.count("not running"), errors) == (0, len(SERVICES), "")


def test_a_missing_program_is_named_with_its_package(tmp_path: Path) -> None:
    """Exit 69, and the command that installs it."""
    environment = {"PATH": "/nowhere", "HOME": str(tmp_path)}
    command = [sys.executable, str(NATIVE), "up", "--directory", str(tmp_path / "native")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 69
    assert "apt install --no-install-recommends" in done.stderr
    assert "victoria-metrics" in done.stderr
