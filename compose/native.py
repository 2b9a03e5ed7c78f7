"""The stack without containers: the same files, run from the distribution's packages, on loopback.

    native.py up|down|ps|reload [--directory DIR] [--agent PROGRAM]

`up` starts what does not run yet and waits until each answers; where one does not, it stops what it started
and says why. Everything lies in DIR: data, logs, process ids, and what differs from the containers'
configuration, which is addresses alone (prometheus/targets, nginx's listen lines, agent/agent.toml). Those
are written once, and the operator's from then on.

Exit codes: 0 it runs (or is down); 1 a service does not start, or a port is taken; 69 a program is missing;
78 Prometheus would not take its configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from native_services import HERE, Service, lay_out, services

from powerbench_agent.bench import exits
from powerbench_agent.core import ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

START_SECONDS, STOP_SECONDS = 30.0, 10.0
RTMP_MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")


class Refused(Exception):  # noqa: N818 - a verdict
    """What ends the verb: one line for a person, and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


# -- processes ---------------------------------------------------------------------------------------


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on; None where no such process lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields if fields[0] not in "ZX" else None


def started_at(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None where it does not run.

    Together with its number this names one process for good. Source: proc(5), /proc/PID/stat.
    """
    fields = _stat(pid)
    return fields[19] if fields else None


def _noted(directory: Path) -> dict[str, tuple[int, str]]:
    """Return (pid, when it started) of the services that were started here, by name."""
    try:
        noted = json.loads((directory / "run.json").read_text())
        return {str(name): (int(pid), str(start)) for name, (pid, start) in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def running(directory: Path) -> dict[str, int]:
    """Return the pids of the services that run, by name."""
    return {name: pid for name, (pid, start) in _noted(directory).items() if started_at(pid) == start}


def note(directory: Path, pids: Mapping[str, int]) -> None:
    """Put down which processes are ours."""
    starts = {name: (pid, started_at(pid)) for name, pid in pids.items()}
    content = {name: noted for name, noted in starts.items() if noted[1]}
    temporary = directory / ".run.json"
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(directory / "run.json")


def groups(directory: Path) -> dict[str, int]:
    """Return the process groups of the services that were started here and that somebody is in still.

    A service leads its group. One whose number another process has by now is none of ours; as long as a
    member lives no other process gets that number.
    """
    members: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        if fields := _stat(int(path.name)):
            members.setdefault(int(fields[2]), []).append(int(path.name))
    return {
        name: pid
        for name, (pid, start) in _noted(directory).items()
        if members.get(pid) and (pid not in members[pid] or started_at(pid) == start)
    }


def stop(directory: Path) -> None:
    """End every service, with the processes that it has started, and wait until all are gone."""
    patience = time.monotonic() + STOP_SECONDS
    how = signal.SIGTERM
    while left := groups(directory):
        if how is signal.SIGTERM or time.monotonic() > patience:
            for group in left.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, how)
            how, patience = signal.SIGKILL, max(patience, time.monotonic() + 1)
        time.sleep(0.05)


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep every other `up` and `down` of this directory out meanwhile. Raises: Refused."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another native.py is at work in {directory}", exits.FAILED) from None
        yield


def start(service: Service, program: str, directory: Path) -> subprocess.Popen[bytes]:
    """Start a service; its output is its log."""
    with log_of(service, directory).open("ab") as log:
        return subprocess.Popen(
            [program, *service.command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C here is not for it, and it leads a group of its own
        )


def log_of(service: Service, directory: Path) -> Path:
    """Return where a service's output goes."""
    return directory / f"logs/{service.name}.log"


def answers(url: str) -> bool:
    """Return whether something answers there, and well."""
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own loopback address
            return True
    except OSError:
        return False


def wait_ready(service: Service, process: subprocess.Popen[bytes], directory: Path, said: int) -> None:
    """Wait until a service answers; `said`: how long its log was before. Raises: Refused."""
    patience = time.monotonic() + START_SECONDS
    while process.poll() is not None or not answers(service.url + service.ready):
        if process.poll() is not None or time.monotonic() > patience:
            log = log_of(service, directory)
            lines = log.read_bytes()[said:].decode(errors="replace").strip().splitlines()
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
    if set(missing.values()) == {""}:
        raise Refused("there is no program as --agent names it: give its path", exits.UNAVAILABLE)
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


def check_configuration(directory: Path) -> None:
    """Check what Prometheus is to read, target files among it. Raises: Refused."""
    promtool = shutil.which("promtool")
    if promtool is None:
        return
    command = [promtool, "check", "config", str(directory / "prometheus/prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        failed = [
            line for line in (done.stdout + done.stderr).splitlines() if "FAILED" in line or "error" in line
        ]
        what = " ".join(failed).replace("FAILED:", "").split()
        raise Refused(f"Prometheus would not take its configuration: {' '.join(what)}", exits.BAD_FILE)


def up(directory: Path, stack: Sequence[Service], results: Path) -> None:
    """Start what does not run. Raises: Refused; then nothing that it has started runs any more."""
    found = programs(stack)
    alive = running(directory)
    missing = [service for service in stack if service.name not in alive]
    check_ports(missing)
    lay_out(directory, stack, results)
    check_configuration(directory)
    begun: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for service in missing:
            log = log_of(service, directory)
            said = log.stat().st_size if log.exists() else 0
            begun[service.name] = start(service, found[service.name], directory)
            note(directory, alive | {name: process.pid for name, process in begun.items()})
            wait_ready(service, begun[service.name], directory, said)
        for service in missing:  # one that has gone meanwhile is not up
            wait_ready(service, begun[service.name], directory, 0)
    except BaseException:
        for process in begun.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in begun.values():
            process.wait()
        note(directory, alive)
        raise
    show(stack, running(directory))


def reload(pids: Mapping[str, int]) -> None:
    """Have the servers read their files anew. Raises: Refused where none runs."""
    if "prometheus" not in pids:
        raise Refused("the stack does not run: make native-up", exits.UNAVAILABLE)
    for name in ("prometheus", "alertmanager", "victoriametrics", "vmalert"):
        if pid := pids.get(name):
            os.kill(pid, signal.SIGHUP)


def show(stack: Iterable[Service], pids: Mapping[str, int]) -> None:
    """Print a line a service."""
    for service in stack:
        pid = pids.get(service.name)
        where = f"{service.url:<24} pid {pid}" if pid else "not running"
        print(f"{service.name:<16} {where}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code."""
    parser = argparse.ArgumentParser(prog="native.py", description="The stack without containers.")
    parser.add_argument("verb", choices=("up", "down", "ps", "reload"))
    parser.add_argument("--directory", type=Path, default=HERE.parent / ".native", help="default: .native")
    parser.add_argument(
        "--results", type=Path, default=HERE.parent / "test_results", help="of powerbench run"
    )
    parser.add_argument("--agent", default="powerbench-agent", help="the agent's program")
    flags = parser.parse_args(arguments)
    directory = flags.directory.absolute()
    stack = services(directory, flags.agent)
    try:
        if flags.verb == "ps":
            show(stack, running(directory))
            return exits.OK
        if flags.verb == "reload":
            reload(running(directory))
            return exits.OK
        with alone(directory):
            if flags.verb == "up":
                up(directory, stack, flags.results.absolute())
            else:
                stop(directory)
                (directory / "run.json").unlink(missing_ok=True)
    except Refused as refused:
        print(f"native: {refused}", file=sys.stderr)
        return refused.code
    except OSError as error:
        print(f"native: {error.filename or directory}: {error.strerror}", file=sys.stderr)
        return exits.FAILED
    except KeyboardInterrupt:
        print("native: interrupted; what had been started is stopped again", file=sys.stderr)
        return exits.INTERRUPTED
    return exits.OK


if __name__ == "__main__":
    sys.exit(main())
