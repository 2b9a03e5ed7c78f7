"""The stack without containers: the same files, run from the distribution's packages, on loopback.

    native.py up|down|ps [--directory DIR] [--agent PROGRAM]

`up` starts what does not run yet and waits until each answers; where one does not, it stops what it started
and says why. Everything lies in DIR: data, logs, process ids, and what differs from the containers'
configuration, which is addresses alone (prometheus/targets, nginx's listen lines).

Exit codes: 0 it runs (or is down); 1 a service does not start, or a port is taken; 69 a program is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from powerbench.bench import exits, ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
START_SECONDS, STOP_SECONDS = 30.0, 10.0
RTMP_MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")


class Service(NamedTuple):
    """One program of the stack."""

    name: str
    package: str  # Debian's
    ports: tuple[int, ...]  # the first one answers HTTP
    ready: str  # the path that answers when it is up
    command: tuple[str, ...]
    targets: tuple[str, ...] = ()  # files of prometheus/targets that name it

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.ports[0]}"


def services(directory: Path, agent: str) -> list[Service]:
    """Return the stack's services, in the order they start."""
    data, prometheus = directory / "data", directory / "prometheus"
    database, alerts = f"http://{HOST}:8428", f"http://{HOST}:9093"
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
                f"--config.file={prometheus / 'prometheus.yml'}",
                f"--storage.tsdb.path={data / 'prometheus'}",
                f"--web.listen-address={HOST}:9090",
                "--web.enable-lifecycle",
            ),
            ("prometheus",),
        ),
        Service(
            "victoriametrics",
            "victoria-metrics",
            (8428,),
            "/health",
            (
                "victoria-metrics",
                f"-storageDataPath={data / 'victoriametrics'}",
                f"-httpListenAddr={HOST}:8428",
                f"-promscrape.config={prometheus / 'prometheus.yml'}",
                "-promscrape.config.strictParse=false",
                "-promscrape.fileSDCheckInterval=30s",
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
                f"-notifier.url={alerts}",
                f"-httpListenAddr={HOST}:8880",
            ),
            ("vmalert",),
        ),
    ]


class Refused(Exception):  # noqa: N818 - a verdict
    """What ends the verb: one line for a person, and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


# -- what differs from the containers ----------------------------------------------------------------


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
        own = prometheus / "targets" / file.name
        if file.stem in addresses:
            target = {"targets": [f"{HOST}:{addresses[file.stem]}"], "labels": {"host": "localhost"}}
            own.write_text(json.dumps([target]) + "\n")  # JSON is YAML
        elif not own.exists():  # the operator's own, from then on
            own.write_text("[]\n")
    (nginx / "listen-rtmp.conf").write_text(f"listen {HOST}:1935;\n")
    (nginx / "listen-http.conf").write_text(f"listen {HOST}:8080;\n")
    (nginx / "allow-stat.conf").write_text("allow 127.0.0.0/8;\ndeny all;\n")
    options = {
        "agent": {"listen": f"{HOST}:9510"},
        "collectors.nginx_rtmp": {"url": f"http://{HOST}:8080/stat"},
        "collectors.results": {"directory": str(results), "prometheus": f"http://{HOST}:9090"},
    }
    lines = [
        f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for section, keys in options.items()
    ]
    (agent / "agent.toml").write_text("\n".join(lines))


def _link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# -- processes ---------------------------------------------------------------------------------------


def started_at(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None where there is none, or a dead one.

    Together with its number this names one process for good. Source: proc(5), /proc/PID/stat.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19] if fields[0] != "Z" else None


def running(directory: Path) -> dict[str, int]:
    """Return the pids of the services that run, by name."""
    try:
        noted = json.loads((directory / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return {name: pid for name, (pid, start) in noted.items() if started_at(pid) == start}


def note(directory: Path, pids: Mapping[str, int]) -> None:
    """Put down which processes are ours."""
    content = {name: (pid, started_at(pid)) for name, pid in pids.items()}
    temporary = directory / ".run.json"
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(directory / "run.json")


def stop(pids: Mapping[str, int]) -> None:
    """End these processes, and wait until they are gone."""
    begun = {pid: started_at(pid) for pid in pids.values()}
    for pid in begun:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    patience = time.monotonic() + STOP_SECONDS
    while left := [pid for pid, start in begun.items() if start and started_at(pid) == start]:
        if time.monotonic() > patience:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            patience += STOP_SECONDS
        time.sleep(0.05)


def start(service: Service, program: str, directory: Path) -> subprocess.Popen[bytes]:
    """Start a service; its output is its log."""
    with (directory / f"logs/{service.name}.log").open("ab") as log:
        return subprocess.Popen(
            [program, *service.command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C here is not for it
        )


def answers(url: str) -> bool:
    """Return whether something answers there, and well."""
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own loopback address
            return True
    except OSError:
        return False


def wait_ready(service: Service, process: subprocess.Popen[bytes], directory: Path) -> None:
    """Wait until a service answers. Raises: Refused."""
    patience = time.monotonic() + START_SECONDS
    while not answers(service.url + service.ready):
        if process.poll() is not None or time.monotonic() > patience:
            log = directory / f"logs/{service.name}.log"
            lines = log.read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "it said nothing"
            raise Refused(f"{service.name} does not start: {last} (all of it: {log})", exits.FAILED)
        time.sleep(0.05)


# -- verbs -------------------------------------------------------------------------------------------


def programs(stack: Iterable[Service]) -> dict[str, str]:
    """Return each service's program. Raises: Refused with every one that is missing."""
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    for service in stack:
        name = service.command[0]
        program = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
        if program is None or (service.name == "nginx-rtmp" and not RTMP_MODULE.exists()):
            missing[service.name] = service.package
        else:
            found[service.name] = program
    if missing:
        packages = " ".join(sorted({word for package in missing.values() for word in package.split()}))
        raise Refused(
            f"not installed: {', '.join(missing)}; apt install --no-install-recommends {packages}",
            exits.UNAVAILABLE,
        )
    return found


def check_ports(stack: Iterable[Service]) -> None:
    """Check that the ports are free. Raises: Refused with each that is taken, and its holder."""
    taken = [
        f"port {port} ({service.name}) is taken by {who}"
        for service in stack
        for port in service.ports
        if (who := ports.holder(port))
    ]
    if taken:
        hint = "stop it; what a package of the distribution has started: systemctl disable --now NAME"
        raise Refused("; ".join(taken) + f": {hint}", exits.FAILED)


def up(directory: Path, stack: Sequence[Service], results: Path) -> None:
    """Start what does not run. Raises: Refused; then nothing that it has started runs any more."""
    found = programs(stack)
    alive = running(directory)
    missing = [service for service in stack if service.name not in alive]
    check_ports(missing)
    lay_out(directory, stack, results)
    begun: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for service in missing:
            begun[service.name] = start(service, found[service.name], directory)
            note(directory, alive | {name: process.pid for name, process in begun.items()})
            wait_ready(service, begun[service.name], directory)
    except BaseException:
        for process in begun.values():
            process.terminate()
        for process in begun.values():
            process.wait()
        note(directory, alive)
        raise
    show(stack, running(directory))


def show(stack: Iterable[Service], pids: Mapping[str, int]) -> None:
    """Print a line a service."""
    for service in stack:
        pid = pids.get(service.name)
        where = f"{service.url:<24} pid {pid}" if pid else "not running"
        print(f"{service.name:<16} {where}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code."""
    parser = argparse.ArgumentParser(prog="native.py", description="The stack without containers.")
    parser.add_argument("verb", choices=("up", "down", "ps"))
    parser.add_argument("--directory", type=Path, default=HERE.parent / ".native", help="default: .native")
    parser.add_argument(
        "--results", type=Path, default=HERE.parent / "test_results", help="of powerbench run"
    )
    parser.add_argument("--agent", default="powerbench-agent", help="the agent's program")
    flags = parser.parse_args(arguments)
    directory = flags.directory.absolute()
    stack = services(directory, flags.agent)
    try:
        if flags.verb == "up":
            up(directory, stack, flags.results.absolute())
        elif flags.verb == "down":
            stop(running(directory))
            (directory / "run.json").unlink(missing_ok=True)
        else:
            show(stack, running(directory))
    except Refused as refused:
        print(f"native: {refused}", file=sys.stderr)
        return refused.code
    except OSError as error:
        print(f"native: {error.filename or directory}: {error.strerror}", file=sys.stderr)
        return exits.FAILED
    return exits.OK


if __name__ == "__main__":
    sys.exit(main())
