"""What `make env`, `up`, `targets` and the image's health check do without Docker or Prometheus."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SHELL = Path(shutil.which("sh") or "/bin/sh").parent


def run(
    command: list[str | Path], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]} | (environment or {}),
    )


@contextlib.contextmanager
def answers(*statuses: int, body: bytes = b"{}") -> Iterator[str]:
    """Serve these statuses, one a request, on loopback; give the address."""
    left = list(statuses)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(left.pop(0))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the standard library's name

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


# -- make env ----------------------------------------------------------------------------------------


@pytest.fixture
def compose(tmp_path: Path) -> Path:
    """Return a copy of the scripts, whose .env is a test's own."""
    directory = tmp_path / "compose"
    directory.mkdir()
    for name in ("make-env", "run", "ask_prometheus.py"):
        shutil.copy(ROOT / "compose" / name, directory)
    return directory


def settings(directory: Path) -> dict[str, str]:
    lines = (directory / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def test_env_is_made_once_for_its_owner_alone(compose: Path, tmp_path: Path) -> None:
    """0600, a long password that is printed nowhere, the socket's group; a second run leaves it as it is."""
    engine = tmp_path / "docker.sock"
    engine.touch()
    made = run([compose / "make-env"], {"DOCKER_SOCKET": str(engine)})
    assert (made.returncode, made.stderr) == (0, "")
    file = compose / ".env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = settings(compose)
    assert found == {"GRAFANA_PASSWORD": found["GRAFANA_PASSWORD"], "DOCKER_GID": str(engine.stat().st_gid)}
    assert len(found["GRAFANA_PASSWORD"]) == 36
    assert found["GRAFANA_PASSWORD"] not in made.stdout
    assert "compose/.env" in made.stdout
    before = file.read_bytes()
    again = run([compose / "make-env"], {"DOCKER_SOCKET": str(engine)})
    assert (again.returncode, again.stdout, file.read_bytes()) == (0, "", before)
    file.unlink()
    run([compose / "make-env"], {"DOCKER_SOCKET": str(engine)})
    assert settings(compose)["GRAFANA_PASSWORD"] != found["GRAFANA_PASSWORD"]
    assert [path.name for path in compose.glob(".env*")] == [".env"]


def test_env_without_docker_says_what_is_to_be_set(compose: Path) -> None:
    """Where there is no socket the group is left empty, and Compose will ask for it by name."""
    made = run([compose / "make-env"], {"DOCKER_SOCKET": "/nonexistent"})
    assert made.returncode == 0
    assert "DOCKER_GID" in made.stderr
    assert settings(compose)["DOCKER_GID"] == ""


def test_without_docker_the_stack_says_what_to_install(compose: Path, tmp_path: Path) -> None:
    """No docker: exit 69 and the package's name, whatever was asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or "")
    done = run([compose / "run", "up"], {"PATH": str(tools)})
    assert done.returncode == 69
    assert "apt install docker.io" in done.stderr


@pytest.mark.parametrize(
    ("docker", "said"),
    [
        ('[ "$1" != compose ]', "no Compose"),
        ('[ "$1" != info ]', "does not answer"),
        ("true", "make env"),
    ],
)
def test_what_else_may_be_missing(compose: Path, tmp_path: Path, docker: str, said: str) -> None:
    """No Compose, no daemon, no .env: one line each, which names the remedy."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or "")
    (tools / "docker").write_text(f"#!/bin/sh\n{docker}\n")
    (tools / "docker").chmod(0o755)
    done = run([compose / "run", "ps"], {"PATH": str(tools)})
    assert done.returncode == 69
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_compose_is_asked(compose: Path, tmp_path: Path) -> None:
    """`down` takes the services of every profile along; `--nvidia` adds its file and profile."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or "")
    (tools / "docker").write_text('#!/bin/sh\ncase "$*" in info|*version) ;; *) echo "$@" ;; esac\n')
    (tools / "docker").chmod(0o755)
    (compose / ".env").touch()
    head = f"compose --project-name powerbench --env-file {compose}/.env --file {compose}/docker-compose.yml"
    environment = {"PATH": str(tools)}
    assert run([compose / "run", "ps"], environment).stdout == f"{head} ps\n"
    profiles = "--profile vm --profile nvidia --profile per-port"
    assert run([compose / "run", "down"], environment).stdout == f"{head} {profiles} down\n"
    more = f"--file {compose}/nvidia.yml --profile nvidia"
    assert run([compose / "run", "--nvidia", "up"], environment).stdout == f"{head} {more} up\n"


# -- make targets, make prom-reload ------------------------------------------------------------------

TARGETS = {
    "data": {
        "activeTargets": [
            {"labels": {"job": "node", "host": "b"}, "health": "up", "lastError": ""},
            {
                "labels": {"job": "powerbench", "host": "a"},
                "health": "down",
                "lastError": "connection\nrefused",
            },
        ]
    }
}


def test_targets_are_a_table_with_those_in_trouble_first(compose: Path) -> None:
    """Job, host, health and last error; exit 1 while one is not up."""
    with answers(200, body=json.dumps(TARGETS).encode()) as url:
        done = run([sys.executable, compose / "ask_prometheus.py", "targets"], {"PROM_URL": url})
    assert done.stdout.splitlines() == [
        "job         host  health  last error",
        "powerbench  a     down    connection refused",
        "node        b     up",
        "2 targets, 1 not up",
    ]
    assert done.returncode == 1


def test_reload_says_what_the_server_refuses(compose: Path) -> None:
    """200: said; otherwise the server's own words, and exit 78."""
    with answers(200, 500, body=b"failed to reload config: rules/x.yml: line 3") as url:
        command: list[str | Path] = [sys.executable, compose / "ask_prometheus.py", "reload"]
        assert run(command, {"PROM_URL": url}).returncode == 0
        refused = run(command, {"PROM_URL": url})
    assert refused.returncode == 78
    assert "rules/x.yml: line 3" in refused.stderr


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": null}'])
def test_something_else_on_that_port_is_no_prometheus(compose: Path, body: bytes) -> None:
    """Another program's answer is one line and exit 69, as is no answer; the port is .env's."""
    with answers(200, body=body) as url:
        (compose / ".env").write_text(f"PROMETHEUS_PORT={url.rpartition(':')[2]}\n")
        done = run([sys.executable, compose / "ask_prometheus.py", "targets"])
    assert (done.returncode, done.stderr.count("\n")) == (69, 1)
    assert f"no Prometheus at {url}" in done.stderr
    gone = run([sys.executable, compose / "ask_prometheus.py", "targets"])
    assert (gone.returncode, gone.stderr.count("\n")) == (69, 1)


@pytest.mark.parametrize("url", ["ftp://x", "localhost:9090", "file:///etc/passwd"])
def test_a_url_that_is_none_is_a_usage_error(compose: Path, url: str) -> None:
    """Only http and https are asked."""
    done = run([sys.executable, compose / "ask_prometheus.py", "targets"], {"PROM_URL": url})
    assert done.returncode == 2
    assert "PROM_URL" in done.stderr


# -- the image's health check ------------------------------------------------------------------------


def healthcheck(address: str | None) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, "-IS", ROOT / "packaging/image/healthcheck"]
    return run(command, {} if address is None else {"POWERBENCH_HEALTH": address})


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 0), (404, 1), (503, 1)])
def test_health_is_200_or_a_question_for_the_password(status: int, code: int) -> None:
    """An agent that answers is well; another status is not, and is said."""
    with answers(status) as url:
        done = healthcheck(url)
    assert done.returncode == code
    assert (str(status) in done.stderr) is bool(code)


@pytest.mark.parametrize("address", ["", "http://", "localhost", "ftp://127.0.0.1:1", "http://127.0.0.1:x"])
def test_an_address_that_is_none_is_said(address: str) -> None:
    """A mistaken POWERBENCH_HEALTH is unhealthy, with the form that it should have."""
    done = healthcheck(address)
    assert (done.returncode, "must be like" in done.stderr) == (1, True)


def test_nobody_there_is_unhealthy() -> None:
    """A closed port is exit 1 and one line."""
    done = healthcheck(f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
