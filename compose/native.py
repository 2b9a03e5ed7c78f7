"""The stack without containers: the same files, run from the distribution's packages, on loopback.

    native.py up|down|ps|reload [--directory DIR] [--agent PROGRAM]

`up` starts the services that are not running and waits until each answers; if one does not, it stops what it
has started and says why. Everything is in DIR: data, logs, process ids, and the part of the configuration
that differs from the containers', which is only addresses (prometheus/targets, nginx's listen lines,
agent/agent.toml). Those files are written once and belong to the operator from then on.

Exit codes: 0 it runs (or is down); 1 a service does not start, or a port is taken; 69 a program is missing;
78 Prometheus rejects its configuration.
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
from powerbench_agent.core.host import Host
from powerbench_agent.core.procfs import ProcessStat, read_process_stat
from powerbench_agent.core.terminal import align

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

START_SECONDS, STOP_SECONDS = 30.0, 10.0
RTMP_MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")


class Refused(Exception):  # noqa: N818 - a verdict
    """Why the verb cannot be carried out, on one line, and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


# -- processes ---------------------------------------------------------------------------------------


def _stat(pid: int) -> ProcessStat | None:
    """Return what /proc/PID/stat says of a live process; None if there is no such process."""
    stat = read_process_stat(Host(), pid)
    return None if stat is None or stat.state in "ZX" else stat


def started_at(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None if it does not run.

    Together with its id this identifies one process for good.
    """
    stat = _stat(pid)
    return None if stat is None else str(stat.start_ticks)


def _noted(directory: Path) -> dict[str, tuple[int, str]]:
    """Return (pid, start time) of the services that were started here, by name."""
    try:
        noted = json.loads((directory / "run.json").read_text())
        return {str(name): (int(pid), str(start)) for name, (pid, start) in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def running(directory: Path) -> dict[str, int]:
    """Return the pids of the services that run, by name."""
    return {name: pid for name, (pid, start) in _noted(directory).items() if started_at(pid) == start}


def note(directory: Path, pids: Mapping[str, int]) -> None:
    """Write down which processes are ours."""
    starts = {name: (pid, started_at(pid)) for name, pid in pids.items()}
    content = {name: noted for name, noted in starts.items() if noted[1]}
    temporary = directory / ".run.json"
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(directory / "run.json")


def groups(directory: Path) -> dict[str, int]:
    """Return the process groups of the services that were started here and still have a live member.

    A service leads its group, and no other process gets its id as long as a member lives. If another process
    has that id by now, the group is not ours.
    """
    members: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        if stat := _stat(int(path.name)):
            members.setdefault(stat.group, []).append(int(path.name))
    return {
        name: pid
        for name, (pid, start) in _noted(directory).items()
        if members.get(pid) and (pid not in members[pid] or started_at(pid) == start)
    }


def stop(directory: Path) -> None:
    """End every service with the processes that it has started, and wait until all are gone."""
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
    """Keep out every other `up` and `down` of this directory meanwhile. Raises: Refused."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"another native.py is at work in {directory}; wait until it is done", exits.FAILED
            ) from None
        yield


def start(service: Service, program: str, directory: Path) -> subprocess.Popen[bytes]:
    """Start a service; its output is its log."""
    with log_of(service, directory).open("ab") as log:
        return subprocess.Popen(
            [program, *service.command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C here must not reach it, and it leads its own group
        )


def log_of(service: Service, directory: Path) -> Path:
    """Return where a service's output goes."""
    return directory / f"logs/{service.name}.log"


def answers(url: str) -> bool:
    """Return whether something answers there with success."""
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own loopback address
            return True
    except OSError:
        return False


def wait_ready(service: Service, process: subprocess.Popen[bytes], directory: Path, log_size: int) -> None:
    """Wait until a service answers; `log_size`: of its log before it started. Raises: Refused."""
    patience = time.monotonic() + START_SECONDS
    while process.poll() is not None or not answers(service.url + service.ready):
        if process.poll() is not None or time.monotonic() > patience:
            log = log_of(service, directory)
            lines = log.read_bytes()[log_size:].decode(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "it logged nothing"
            raise Refused(f"{service.name} does not start: {last} (the whole log: {log})", exits.FAILED)
        time.sleep(0.05)


# -- verbs -------------------------------------------------------------------------------------------


def programs(stack: Iterable[Service]) -> dict[str, str]:
    """Return each service's program. Raises: Refused, naming all that are missing."""
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
        raise Refused("the program given with --agent does not exist; give its path", exits.UNAVAILABLE)
    if missing:
        packages = " ".join(sorted({word for package in missing.values() for word in package.split()}))
        raise Refused(
            f"not installed: {', '.join(missing)}; apt install --no-install-recommends {packages}",
            exits.UNAVAILABLE,
        )
    return found


def check_ports(stack: Iterable[Service]) -> None:
    """Check that the ports are free. Raises: Refused, naming each one taken and what holds it."""
    taken = [
        f"port {port} ({service.name}) is taken by {who}"
        for service in stack
        for port in service.ports
        if (who := ports.holder(port))
    ]
    if taken:
        hint = "stop it; if a package of the distribution started it: systemctl disable --now NAME"
        raise Refused(f"{'; '.join(taken)}; {hint}", exits.FAILED)


def check_configuration(directory: Path) -> None:
    """Check what Prometheus will read, including the target files. Raises: Refused."""
    promtool = shutil.which("promtool")
    if promtool is None:
        return
    command = [promtool, "check", "config", str(directory / "prometheus/prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()
        failed = [line for line in lines if "FAILED" in line or "error" in line]
        what = " ".join(failed).replace("FAILED:", "").split()
        raise Refused(f"Prometheus rejects its configuration: {' '.join(what)}", exits.BAD_FILE)


def up(directory: Path, stack: Sequence[Service], results: Path) -> None:
    """Start what does not run. Raises: Refused, after stopping everything that it has started."""
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
            log_size = log.stat().st_size if log.exists() else 0
            begun[service.name] = start(service, found[service.name], directory)
            note(directory, alive | {name: process.pid for name, process in begun.items()})
            wait_ready(service, begun[service.name], directory, log_size)
        for service in missing:  # one may have died meanwhile
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
    """Make the servers reload their files. Raises: Refused if none runs."""
    if "prometheus" not in pids:
        raise Refused("the stack is not running; start it with make native-up", exits.UNAVAILABLE)
    for name in ("prometheus", "alertmanager", "victoriametrics", "vmalert"):
        if pid := pids.get(name):
            os.kill(pid, signal.SIGHUP)


def show(stack: Iterable[Service], pids: Mapping[str, int]) -> None:
    """Print a line for each service."""
    rows = []
    for service in stack:
        pid = pids.get(service.name)
        rows.append((service.name, service.url, f"pid {pid}") if pid else (service.name, "not running", ""))
    for line in align(rows):
        print(line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code."""
    parser = argparse.ArgumentParser(prog="native.py", description="The stack without containers.")
    parser.add_argument("verb", choices=("up", "down", "ps", "reload"))
    parser.add_argument(
        "--directory",
        type=Path,
        default=HERE.parent / ".native",
        help="where its data and logs are (default: .native)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=HERE.parent / "test_results",
        help="results of powerbench run (default: test_results)",
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
        print("native: interrupted; everything it had started is stopped again", file=sys.stderr)
        return exits.INTERRUPTED
    return exits.OK


if __name__ == "__main__":
    sys.exit(main())
