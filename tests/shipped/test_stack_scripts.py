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
from places import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
def answers(*statuses: int, body: bytes | Callable[[str], bytes] = b"{}") -> Iterator[str]:
    """Serve these statuses, one a request and then 200, on loopback; give the address."""
    left = list(statuses)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = body if isinstance(body, bytes) else body(self.path)
            self.send_response(left.pop(0) if left else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

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
    """Return a copy of the scripts with an .env of the test's own."""
    directory = tmp_path / "compose"
    directory.mkdir()
    for name in ("make-env", "run", "ask_prometheus.py"):
        shutil.copy(ROOT / "compose" / name, directory)
    return directory


def settings(directory: Path) -> dict[str, str]:
    lines = (directory / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def made(compose: Path, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run make-env on a machine without RAPL unless POWERCAP says otherwise."""
    places = {"POWERCAP": "/nonexistent"} | {name: str(value) for name, value in environment.items()}
    return run([compose / "make-env"], places)


def test_env_is_made_once_for_its_owner_alone(compose: Path, tmp_path: Path) -> None:
    """The file is 0600 and has a password that is printed nowhere; a second run changes neither."""
    engine = tmp_path / "docker.sock"
    engine.touch()
    done = made(compose, DOCKER_SOCKET=engine)
    assert (done.returncode, done.stderr) == (0, "")
    env, password = compose / ".env", compose / ".secrets/grafana_password"
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    assert stat.S_IMODE(password.parent.stat().st_mode) == 0o700
    found = settings(compose)
    key = found["VICTORIAMETRICS_KEY"]
    group = str(engine.stat().st_gid)
    assert found == {"DOCKER_GID": group, "POWERBENCH_USER": "9510:9510", "VICTORIAMETRICS_KEY": key}
    assert len(key) == len(password.read_text()) == 36
    assert password.read_text() not in done.stdout + env.read_text()
    before = env.read_bytes(), password.read_bytes()
    again = made(compose, DOCKER_SOCKET=engine)
    assert (again.returncode, again.stdout) == (0, "")
    assert (env.read_bytes(), password.read_bytes()) == before
    password.unlink()
    made(compose, DOCKER_SOCKET=engine)
    assert password.read_bytes() != before[1]
    assert [path.name for path in compose.glob(".env*")] == [".env"]


def test_env_without_docker_is_mended_once_it_runs(compose: Path, tmp_path: Path) -> None:
    """Without a socket the group is left empty, with a message; the next run with one fills it in."""
    done = made(compose, DOCKER_SOCKET="/nonexistent")
    assert done.returncode == 0
    assert "start Docker" in done.stderr
    assert settings(compose)["DOCKER_GID"] == ""
    assert "DOCKER_GID is empty" in made(compose, DOCKER_SOCKET="/nonexistent").stderr
    engine = tmp_path / "docker.sock"
    engine.touch()
    assert made(compose, DOCKER_SOCKET=engine).stderr == ""
    assert settings(compose)["DOCKER_GID"] == str(engine.stat().st_gid)


@pytest.mark.parametrize(("mode", "root"), [(0o440, False), (0o400, True)])
def test_the_agents_user_is_the_least_that_can_read_rapl(
    compose: Path, tmp_path: Path, mode: int, *, root: bool
) -> None:
    """It has the group of the counters if that may read them; it is uid 0 only if root alone may."""
    counter = tmp_path / "intel-rapl:0/energy_uj"
    counter.parent.mkdir()
    counter.touch()
    counter.chmod(mode)
    done = made(compose, DOCKER_SOCKET="/nonexistent", POWERCAP=tmp_path)
    expected = "0:0" if root else f"9510:{counter.stat().st_gid}"
    assert settings(compose)["POWERBENCH_USER"] == expected
    assert ("uid 0" in done.stdout) == root


def test_without_docker_the_stack_says_what_to_install(compose: Path, tmp_path: Path) -> None:
    """Without docker every verb exits 69 and names the package to install."""
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
    """Without Compose, the daemon or .env there is one line that names the remedy."""
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
    """`down` includes the services of every profile; `--nvidia` adds its file and profile."""
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
    """Job, host, health and last error are shown; exit 1 while a target is not up."""
    with answers(200, body=json.dumps(TARGETS).encode()) as url:
        done = run([sys.executable, compose / "ask_prometheus.py", "targets"], {"PROM_URL": url})
    assert done.stdout.splitlines() == [
        "job         host  health  last error",
        "powerbench  a     down    connection refused",
        "node        b     up",
        "2 targets, 1 not up",
    ]
    assert done.returncode == 1


def metrics(successful: int, at: int, unreadable: int = 0) -> bytes:
    return (
        f"prometheus_config_last_reload_successful {successful}\n"
        f"prometheus_config_last_reload_success_timestamp_seconds {at}e+09\n"
        f"prometheus_sd_file_read_errors_total {unreadable}\n"
    ).encode()


@pytest.mark.parametrize(
    ("after", "code", "words"),
    [
        (metrics(1, 2), 0, "has reloaded its files"),
        (metrics(0, 1), 78, "keeps the old configuration; see its log, or run: promtool"),
        (metrics(1, 2, 4), 78, "its targets are gone"),
    ],
)
def test_reload_says_whether_the_files_were_taken(compose: Path, after: bytes, code: int, words: str) -> None:
    """After the command the server has accepted the files, kept the old ones, or lost targets."""
    bodies = iter([metrics(1, 1, 3)])
    content = after.replace(b"total 0", b"total 3")
    with answers(body=lambda _: next(bodies, content)) as url:
        command: list[str | Path] = [sys.executable, compose / "ask_prometheus.py", "reload", "true"]
        done = run(command, {"PROM_URL": url})
    assert done.returncode == code
    assert words in done.stdout + done.stderr


def test_a_reload_whose_command_fails_fails_as_it_does(compose: Path) -> None:
    """Its exit code is passed on: the command itself has said why."""
    with answers(body=lambda _: metrics(1, 1)) as url:
        command: list[str | Path] = [
            sys.executable,
            compose / "ask_prometheus.py",
            "reload",
            "sh",
            "-c",
            "exit 69",
        ]
        assert run(command, {"PROM_URL": url}).returncode == 69


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": null}'])
def test_another_program_on_that_port_is_not_prometheus(compose: Path, body: bytes) -> None:
    """Its answer gives one line and exit 69, and so does no answer; the port is taken from .env."""
    with answers(200, body=body) as url:
        (compose / ".env").write_text(f"PROMETHEUS_PORT={url.rpartition(':')[2]}\n")
        done = run([sys.executable, compose / "ask_prometheus.py", "targets"])
    assert (done.returncode, done.stderr.count("\n")) == (69, 1)
    assert f"no Prometheus at {url}" in done.stderr
    gone = run([sys.executable, compose / "ask_prometheus.py", "targets"])
    assert (gone.returncode, gone.stderr.count("\n")) == (69, 1)


@pytest.mark.parametrize("url", ["ftp://x", "localhost:9090", "file:///etc/passwd"])
def test_an_invalid_url_is_a_usage_error(compose: Path, url: str) -> None:
    """Only http and https URLs are accepted."""
    done = run([sys.executable, compose / "ask_prometheus.py", "targets"], {"PROM_URL": url})
    assert done.returncode == 2
    assert "PROM_URL" in done.stderr


# -- the image's health check ------------------------------------------------------------------------


def healthcheck(address: str | None) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, "-IS", ROOT / "packaging/image/healthcheck"]
    return run(command, {} if address is None else {"POWERBENCH_HEALTH": address})


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 0), (404, 1), (503, 1)])
def test_health_is_200_or_a_question_for_the_password(status: int, code: int) -> None:
    """200 and 401 are healthy; any other status is not, and is printed."""
    with answers(status) as url:
        done = healthcheck(url)
    assert done.returncode == code
    assert (str(status) in done.stderr) is bool(code)


@pytest.mark.parametrize("address", ["", "http://", "localhost", "ftp://127.0.0.1:1", "http://127.0.0.1:x"])
def test_an_invalid_address_is_reported(address: str) -> None:
    """A mistaken POWERBENCH_HEALTH is unhealthy, and the message shows the right form."""
    done = healthcheck(address)
    assert (done.returncode, "must be like" in done.stderr) == (1, True)


def test_a_closed_port_is_unhealthy() -> None:
    """It gives exit 1 and one line."""
    done = healthcheck(f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
