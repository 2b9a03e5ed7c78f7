"""What `make native-up` runs, and the files that it writes: addresses, and links to the stack's own files."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
ALERTMANAGER = f"http://{HOST}:9093"


class Service(NamedTuple):
    """One program of the stack."""

    name: str
    package: str  # Debian's
    ports: tuple[int, ...]  # the first one answers HTTP
    ready: str  # the path that answers when it is up
    command: tuple[str, ...]
    targets: tuple[str, ...] = ()  # files in prometheus/targets that contain it

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.ports[0]}"


def services(directory: Path, agent: str) -> list[Service]:
    """Return the stack's services, in the order they start."""
    return [*_exporters(directory, agent), *_prometheus(directory), *_victoriametrics(directory)]


def _exporters(directory: Path, agent: str) -> list[Service]:
    """Return what streams and what is scraped."""
    return [
        Service(
            "nginx-rtmp",
            "nginx libnginx-mod-rtmp",
            (8080, 1935),
            "/health",
            (
                "nginx",
                "-p",
                str(directory / "nginx"),
                "-c",
                str(directory / "nginx/nginx.conf"),
                "-e",
                "stderr",
            ),
        ),
        Service(
            "node_exporter",
            "prometheus-node-exporter",
            (9100,),
            "/",
            ("prometheus-node-exporter", f"--web.listen-address={HOST}:9100"),
            ("node",),
        ),
        Service(
            "agent",
            "",
            (9510,),
            "/ready",
            (agent, "--config", str(directory / "agent/agent.toml")),
            ("powerbench",),
        ),
    ]


def _prometheus(directory: Path) -> list[Service]:
    """Return Prometheus and its Alertmanager."""
    data, configuration = directory / "data", directory / "prometheus/prometheus.yml"
    return [
        Service(
            "alertmanager",
            "prometheus-alertmanager",
            (9093,),
            "/-/ready",
            (
                "prometheus-alertmanager",
                f"--config.file={HERE / 'alertmanager/alertmanager.yml'}",
                f"--storage.path={data / 'alertmanager'}",
                f"--web.listen-address={HOST}:9093",
                f"--web.external-url={ALERTMANAGER}",
                "--cluster.listen-address=",
            ),
            ("alertmanager",),
        ),
        Service(
            "prometheus",
            "prometheus",
            (9090,),
            "/-/ready",
            (
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={data / 'prometheus'}",
                f"--web.listen-address={HOST}:9090",
                f"--web.external-url=http://{HOST}:9090",
            ),
            ("prometheus",),
        ),
    ]


def _victoriametrics(directory: Path) -> list[Service]:
    """Return VictoriaMetrics, which scrapes the same targets, and vmalert, which evaluates the same rules."""
    prometheus = directory / "prometheus"
    database = f"http://{HOST}:8428"
    return [
        Service(
            "victoriametrics",
            "victoria-metrics",
            (8428,),
            "/health",
            (
                "victoria-metrics",
                f"-storageDataPath={directory / 'data/victoriametrics'}",
                f"-httpListenAddr={HOST}:8428",
                f"-promscrape.config={prometheus / 'prometheus.yml'}",
                "-promscrape.config.strictParse=false",
                "-promscrape.fileSDCheckInterval=30s",
                # Any web page in a browser here could request these, so each gets a random key.
                *(f"-{what}AuthKey={secrets.token_hex()}" for what in ("delete", "forceMerge", "snapshot")),
            ),
            ("victoriametrics",),
        ),
        Service(
            "vmalert",
            "victoria-metrics",
            (8880,),
            "/health",
            (
                "vmalert",
                f"-rule={prometheus}/rules/*.yml",
                "-disableAlertgroupLabel",
                f"-datasource.url={database}",
                f"-remoteRead.url={database}",
                f"-remoteWrite.url={database}",
                f"-notifier.url={ALERTMANAGER}",
                f"-httpListenAddr={HOST}:8880",
                f"-external.url=http://{HOST}:8880",
            ),
            ("vmalert",),
        ),
    ]


def lay_out(directory: Path, stack: Iterable[Service], results: Path) -> None:
    """Write what the services read: links to the stack's own files, and this machine's addresses."""
    prometheus, nginx, agent = (directory / name for name in ("prometheus", "nginx", "agent"))
    for part in (prometheus / "targets", nginx, agent, directory / "logs", results):
        part.mkdir(parents=True, exist_ok=True)
    for name in ("alertmanager", "prometheus", "victoriametrics"):
        (directory / "data" / name).mkdir(parents=True, exist_ok=True)
    _link(prometheus / "prometheus.yml", HERE / "prometheus/prometheus.yml")
    _link(prometheus / "rules", HERE / "prometheus/rules")
    _link(nginx / "nginx.conf", HERE / "nginx-rtmp/nginx.conf")
    addresses = {name: service.ports[0] for service in stack for name in service.targets}
    for file in (HERE / "prometheus/targets").glob("*.yml"):
        targets = [f"{HOST}:{addresses[file.stem]}"] if file.stem in addresses else []
        content = [{"targets": targets, "labels": {"host": "localhost"}}] if targets else []
        _write_once(prometheus / "targets" / file.name, json.dumps(content) + "\n")  # JSON is YAML
    _write_once(nginx / "listen-rtmp.conf", f"listen {HOST}:1935;\n")
    _write_once(nginx / "listen-http.conf", f"listen {HOST}:8080;\n")
    _write_once(nginx / "allow-stat.conf", "allow 127.0.0.0/8;\ndeny all;\n")
    options = {
        "agent": {"listen": f"{HOST}:9510"},
        "collectors.nginx_rtmp": {"url": f"http://{HOST}:8080/stat"},
        "collectors.results": {"directory": str(results), "prometheus": f"http://{HOST}:9090"},
    }
    lines = [
        f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for section, keys in options.items()
    ]
    _write_once(agent / "agent.toml", "\n".join(lines))


def _write_once(path: Path, content: str) -> None:
    """Write a file unless it exists."""
    if not path.exists():
        path.write_text(content)


def _link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
