"""Real servers of the stack on loopback, each for as long as its context lasts."""

from __future__ import annotations

import json
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from real.conftest import free_port, get, need, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def prometheus(config: Path, data: Path) -> Iterator[str]:
    """Run Prometheus; yield its URL."""
    command = [need("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={data}"]
    with _served(command, "--web.listen-address=", "/-/ready", data) as url:
        yield url


@contextmanager
def victoria_metrics(data: Path, config: Path | None = None) -> Iterator[str]:
    """Run VictoriaMetrics, scraping where there is a configuration; yield its URL."""
    # It answers with what is 30 s old by default.
    command = [need("victoria-metrics"), f"-storageDataPath={data}", "-search.latencyOffset=1s"]
    if config is not None:
        command += [f"-promscrape.config={config}", "-promscrape.config.strictParse=false"]
        command += ["-promscrape.fileSDCheckInterval=1s"]
    with _served(command, "-httpListenAddr=", "/health", data) as url:
        yield url


@contextmanager
def vmalert(rules: str, database: str, notifier: str, log: Path) -> Iterator[str]:
    """Run vmalert over a VictoriaMetrics' data; yield its URL."""
    command = [need("vmalert"), f"-rule={rules}", "-disableAlertgroupLabel", f"-notifier.url={notifier}"]
    command += [f"-{what}.url={database}" for what in ("datasource", "remoteRead", "remoteWrite")]
    command += ["-remoteWrite.flushInterval=200ms"]
    with _served(command, "-httpListenAddr=", "/health", log) as url:
        yield url


@contextmanager
def alertmanager(config: Path, data: Path) -> Iterator[str]:
    """Run Alertmanager alone; yield its URL."""
    command = [need("prometheus-alertmanager"), f"--config.file={config}", f"--storage.path={data}"]
    command += ["--cluster.listen-address="]
    with _served(command, "--web.listen-address=", "/-/ready", data) as url:
        yield url


@contextmanager
def _served(command: list[str], listen: str, ready: str, directory: Path) -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "log"
    with log.open("wb") as said:
        process = subprocess.Popen([*command, listen + address], stdout=said, stderr=said)
        try:

            def answers() -> bool:
                if process.poll() is not None:
                    pytest.fail(f"{command[0]} has ended: {log.read_text(errors='replace')[-2000:]}")
                try:
                    get(f"http://{address}{ready}")
                except OSError:
                    return False
                return True

            wait_for(answers, f"{Path(command[0]).name} is ready")
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(20)


class Message(NamedTuple):
    """What was posted."""

    path: str
    authorization: str
    content: dict[str, Any]


class Webhook(NamedTuple):
    """What receives messages."""

    url: str
    messages: list[Message]


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Take messages in: JSON, to any path."""
    messages: list[Message] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            messages.append(Message(self.path, self.headers.get("Authorization", ""), content))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Webhook(f"http://127.0.0.1:{server.server_address[1]}", messages)
        finally:
            server.shutdown()
            thread.join()
