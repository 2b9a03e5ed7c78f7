"""A real container engine of the tests' own: its daemon, an image made of busybox, its API."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from real.conftest import BIN, get, need, series, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "box"
APPLETS = ("sh", "sleep", "cat", "dd", "true", "nc", "ping", "printf")
BURN = "while :; do :; done"
BUCKETS = ("idle", "agent", "departed", "unattributed")


class _Connection(http.client.HTTPConnection):
    """HTTP over the daemon's socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Dockerd:
    """One daemon: its socket, its data and its containers lie in a directory of their own."""

    def __init__(self, directory: Path, storage: str = "vfs") -> None:
        self._directory = directory
        self._storage = ["--storage-driver", storage] if storage else []  # "": the best that works here
        self.socket = directory / "docker.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon, and wait until it answers."""
        where = self._directory
        command = [
            need("dockerd"),
            "--host",
            self.url,
            "--data-root",
            f"{where}/data",
            "--exec-root",
            f"{where}/exec",
        ]
        # Without the default bridge and without rules it leaves alone what this machine has.
        command += ["--pidfile", f"{where}/pid", *self._storage, "--bridge", "none"]
        command += ["--iptables=false", "--ip6tables=false", "--ip-masq=false"]
        with (where / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_for(self._answers, "dockerd answers")

    def _answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            pytest.fail(f"dockerd has ended:\n{(self._directory / 'log').read_text()[-2000:]}")
        try:
            self.call("GET", "/_ping")
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """End the daemon and its containerd as a crash of the machine's engine would."""
        assert self.process is not None
        containerd = self._directory / "exec/containerd/containerd.pid"
        number = int(containerd.read_text())
        self.process.kill()
        self.process.wait(30)
        # It dies with dockerd. Where nobody waits for orphans it stays a zombie, and the next dockerd would
        # take it for one that runs.
        wait_for(lambda: _ended(number), "containerd ends")
        containerd.unlink()

    def stop(self) -> None:
        """Remove every container, and end the daemon."""
        with contextlib.suppress(OSError, RuntimeError):
            for container in self.call("GET", "/containers/json?all=1"):
                self.remove(container["Id"])
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        for process in Path("/proc").glob("[0-9]*"):  # what a daemon that was killed has left behind
            with contextlib.suppress(OSError):
                if f"{self._directory}/exec" in (process / "cmdline").read_bytes().decode(errors="replace"):
                    os.kill(int(process.name), signal.SIGKILL)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if (mount := line.split()[1]).startswith(str(self._directory)):
                subprocess.run([need("umount"), "--lazy", mount], check=False)

    # -- its API ---------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """Return the engine's answer. Raises: OSError; RuntimeError where it refuses."""
        connection = _Connection(self.socket)
        try:
            content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, content, {"Content-Type": content_type})
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {text}")
            return json.loads(text) if text.startswith(("{", "[")) and "\n{" not in text else text
        except http.client.HTTPException as error:
            raise ConnectionError(repr(error)) from error
        finally:
            connection.close()

    def import_image(self) -> None:
        """Make the image: busybox and its names."""
        busybox = Path(need("busybox")).read_bytes()
        if b"/ld-linux" in busybox:
            pytest.fail("the busybox here is not static: install busybox-static")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            file = tarfile.TarInfo("bin/busybox")
            file.size, file.mode = len(busybox), 0o755
            archive.addfile(file, io.BytesIO(busybox))
            for applet in APPLETS:
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
        self.call("POST", f"/images/create?fromSrc=-&repo={IMAGE}", packed.getvalue(), "application/x-tar")

    def run(self, name: str, script: str, labels: dict[str, str] | None = None, **host: Any) -> str:
        """Start a container of a shell script; return its id. `host`: as the API's HostConfig."""
        made = {
            "Image": IMAGE,
            "Cmd": ["sh", "-c", script],
            "Labels": labels or {},
            "HostConfig": {"NetworkMode": "none", **host},
        }
        identity = str(self.call("POST", f"/containers/create?name={name}", made)["Id"])
        self.call("POST", f"/containers/{identity}/start")
        return identity

    def remove(self, container: str) -> None:
        self.call("DELETE", f"/containers/{container}?force=1")

    def pid(self, container: str) -> int:
        """Return a container's first process, as the host numbers it."""
        return int(self.call("GET", f"/containers/{container}/json")["State"]["Pid"])

    def stats(self, container: str) -> dict[str, Any]:
        """Return what `docker stats --no-stream` is made of: two looks, a second or two apart."""
        return dict(self.call("GET", f"/containers/{container}/stats?stream=false"))

    def cpu_percent(self, container: str) -> float:
        """Return the CPU % that `docker stats` shows. Source: docker/cli, stats_helpers.go."""
        stats = self.stats(container)
        now, before = stats["cpu_stats"], stats["precpu_stats"]
        used = now["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
        whole = now["system_cpu_usage"] - before["system_cpu_usage"]
        return float(used / whole * now["online_cpus"] * 100)


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Agent:
    """A powerbench-agent that watches such an engine, and what it has logged."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    def page(self) -> str:
        return get(f"http://127.0.0.1:{self.port}/metrics")

    def series(self, name: str) -> dict[str, float]:
        """Return a metric's series as they are now: by the container's name where that is the only label."""
        return labelled(self.page(), name)

    def log(self) -> list[dict[str, Any]]:
        """Return what it has logged."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def resident(self) -> int:
        """Return its resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def assert_sound(self) -> None:
        """Check that it has logged no traceback, no bug and nothing of an unclosed thing."""
        errors = [entry for entry in self.log() if entry["level"] == "error" or "exception" in entry]
        assert errors == []


def labelled(page: str, name: str) -> dict[str, float]:
    """Return a metric's series; those with one label by that label's value."""
    found = series(page, name)
    return {key.split('"')[1] if key.count('"') == 2 else key: value for key, value in found.items()}


@contextlib.contextmanager
def agent_of(dockerd: Dockerd, port: int, directory: Path) -> Iterator[Agent]:
    """Run an agent that asks this engine."""
    config = directory / "agent.toml"
    config.write_text(f'[collectors.docker]\nurl = "{dockerd.url}"\n')
    log = directory / "agent.log"
    command = [str(BIN / "powerbench-agent"), "--listen", f"127.0.0.1:{port}", "--config", str(config)]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--log-format", "json"], stderr=out)
    agent = Agent(process, port, log)
    try:
        wait_for(lambda: _ready(agent), "the agent is ready")
        yield agent
    finally:
        process.terminate()
        process.wait(10)


def _ready(agent: Agent) -> bool:
    try:
        get(f"http://127.0.0.1:{agent.port}/ready")
    except OSError:
        return False
    return True


def joules(page: str, metric: str, name: str) -> float:
    """Return the joules of one container or stream, over all components and sources."""
    return sum(value for key, value in series(page, metric).items() if f'="{name}"' in key)


def assert_adds_up(page: str, viewed: tuple[str, ...] = ()) -> None:
    """Check that the node is the sum of its parts, by component and source; `viewed`: streams within."""
    node = series(page, "powerbench_node_energy_joules_total")
    assert node
    names = [f"powerbench_{bucket}_energy_joules_total" for bucket in BUCKETS]
    shares = [series(page, name) for name in names]
    owners = [series(page, f"{kind}_energy_joules_total") for kind in ("docker_container", "ffmpeg_stream")]
    for part, whole in node.items():
        total = sum(share.get(part, 0.0) for share in shares)
        for owner in owners:
            for key, value in owner.items():
                within = any(f'stream="{name}"' in key for name in viewed)
                if all(label in key for label in part[1:-1].split(",")) and not within:
                    total += value
        assert total == pytest.approx(whole, rel=1e-9, abs=1e-12)
