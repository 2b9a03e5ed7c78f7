"""Containers of Docker or Podman: CPU, memory, network, block I/O, and their claim on the node's energy.

Reads the engine's API for which containers there are (see _engine.py), their cgroups for the figures (see
_cgroup.py), `/proc/PID/net/dev` for the network, `/proc` for the engine's own processes. Privileges: the
engine's socket, which is as good as root; no privilege for the figures.

CPU time is read at every beat, and a fifth of the containers' other figures: each is five seconds old at
most. Where no cgroup is to be found (an engine in a virtual machine) the engine is asked for its one-shot
statistics.

Source: https://docs.docker.com/reference/api/engine/, https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
from collections import Counter as Tally
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from powerbench_agent.collectors.docker.cgroup import Cgroup, Layout, parse_net_dev
from powerbench_agent.collectors.docker.engine import LIVE, STATES, Container, Engine, parse_one_shot
from powerbench_agent.collectors.docker.engine_processes import EngineProcesses
from powerbench_agent.core.model import (
    SHARE_HELP,
    SHARE_LABELS,
    Absent,
    Claim,
    Metric,
    ReadFailed,
    Reading,
    Sample,
)
from powerbench_agent.core.options import CollectorOptions
from powerbench_agent.core.processes import own_pid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from powerbench_agent.core.host import Host

log = structlog.get_logger("docker")

_CONTAINER = ("container",)
CPU = Metric("docker_container_cpu_percent", "gauge", "CPU over the last beat; 100 is one core.", _CONTAINER)
MEMORY = Metric(
    "docker_container_memory_bytes", "gauge", "Memory, without the page cache that goes first.", _CONTAINER
)
MEMORY_PERCENT = Metric(
    "docker_container_memory_percent", "gauge", "Memory, of its limit or else of the machine's.", _CONTAINER
)
MEMORY_LIMIT = Metric(
    "docker_container_memory_limit_bytes", "gauge", "Memory limit, or else the machine's memory.", _CONTAINER
)
PIDS = Metric("docker_container_pids", "gauge", "Processes and threads.", _CONTAINER)
RX_OLD = Metric("docker_container_network_rx_bytes", "unknown", "Bytes received so far.", _CONTAINER)
TX_OLD = Metric("docker_container_network_tx_bytes", "unknown", "Bytes transmitted so far.", _CONTAINER)
CPU_SECONDS = Metric("docker_container_cpu_seconds_total", "counter", "CPU time since its start.", _CONTAINER)
RX = Metric("docker_container_network_receive_bytes_total", "counter", "Bytes received.", _CONTAINER)
TX = Metric("docker_container_network_transmit_bytes_total", "counter", "Bytes transmitted.", _CONTAINER)
READ = Metric("docker_container_block_read_bytes_total", "counter", "Bytes read from devices.", _CONTAINER)
WRITTEN = Metric(
    "docker_container_block_written_bytes_total", "counter", "Bytes written to devices.", _CONTAINER
)
INFO = Metric(
    "docker_container_info",
    "gauge",
    "1; what the container is.",
    ("container", "id", "image", "compose_project", "compose_service"),
)
ENGINE_CPU = Metric(
    "docker_engine_cpu_percent", "gauge", "CPU of dockerd, containerd, podman; 100 is one core."
)
ENGINE_MEMORY = Metric(
    "docker_engine_memory_bytes", "gauge", "Resident memory of dockerd, containerd, podman."
)
ENGINE_MEMORY_PERCENT = Metric("docker_engine_memory_percent", "gauge", "The same, of the machine's memory.")
TOTAL_CPU = Metric("docker_containers_total_cpu_percent", "gauge", "CPU of all containers; 100 is one core.")
CONTAINERS = Metric("docker_containers", "gauge", "Containers by state.", ("state",))
IGNORED = Metric("docker_containers_ignored_total", "counter", "Containers beyond max_containers.")
METRICS = (
    *(CPU, MEMORY, MEMORY_PERCENT, MEMORY_LIMIT, PIDS, RX_OLD, TX_OLD, CPU_SECONDS, RX, TX, READ, WRITTEN),
    *(INFO, ENGINE_CPU, ENGINE_MEMORY, ENGINE_MEMORY_PERCENT, TOTAL_CPU, CONTAINERS, IGNORED),
)

ENERGY = Metric(
    "docker_container_energy_joules_total",
    "counter",
    f"Energy of the container since it was first seen. {SHARE_HELP}",
    SHARE_LABELS["container"],
)
SHARES = (ENERGY,)  # what the node calls the shares of our claims

_URL = re.compile(r"unix:///.+|(tcp|http)://[^/:]+:[0-9]{1,5}/?")
_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock")
SLICES = 5  # beats over which the slower figures of all containers are read
ABSENT_SECONDS = 30.0  # that an engine may be without its socket, as in a restart
_CONNECT_SECONDS = 0.9  # that the first reading waits for the engine
_DENIED = (
    "the agent's user may not use {}: add it to the group docker, which is as good as root; "
    "see docs/guide.md, containers"
)


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.docker]`."""

    url: str = ""  # unix:///path or tcp://host:port; "" for Docker's socket, else Podman's
    max_containers: int = 2000
    max_name_length: int = 200

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        for key in ("max_containers", "max_name_length"):
            if getattr(self, key) < 1:
                yield key, "must be at least 1"
        if self.url and not _URL.fullmatch(self.url):
            yield "url", "must be like unix:///var/run/docker.sock or tcp://127.0.0.1:2375"


class _Watched:
    """What is known of one live container's figures."""

    __slots__ = (
        "before",
        "cgroup",
        "claimed",
        "container",
        "cpu_seconds",
        "last",
        "named",
        "percent",
        "pid",
        "shot",
        "shown",
        "slice",
        "slow",
    )

    def __init__(self, container: Container, slice_: int) -> None:
        self.container = container
        self.slice = slice_  # the beats at which its slower figures are read
        self.named = ""  # under which its samples are
        self.cgroup: Cgroup | None = None
        self.pid: int | None = None
        self.cpu_seconds = 0.0  # that fall into our time
        self.before: float | None = (
            None if not container.started_here else 0.0
        )  # the cgroup's, when last read
        self.last: tuple[float, float] | None = None  # monotonic second and CPU seconds of the last beat
        self.percent: float | None = None  # at that beat
        self.claimed = 0.0  # of its CPU seconds
        self.shot: Mapping[str, Any] | None = None  # the engine's own figures, where there is no cgroup
        self.shown: Mapping[str, Any] | None = None  # those of the last beat
        self.slow: list[Sample] = []

    def advance(self, used: float) -> None:
        if self.before is not None:
            # Less than before is another cgroup: it was started again.
            self.cpu_seconds += used - self.before if used >= self.before else used
        self.before = used

    def beat(self, used: float, now: float) -> None:
        """Take what it has used by now; the engine's own figures come more rarely than beats."""
        if self.cgroup is not None or self.shot is not self.shown or self.last is None:
            self.shown = self.shot
            self.advance(used)
            self.percent = None
            if self.last is not None and now > self.last[0] and used >= self.last[1]:
                self.percent = (used - self.last[1]) / (now - self.last[0]) * 100
            self.last = (now, used)
        ahead = min(now - self.last[0], SLICES) * (self.percent or 0.0) / 100
        self.claimed = max(self.claimed, self.cpu_seconds + ahead)

    def start_anew(self) -> None:
        """Forget what has been claimed: whoever comes back begins at 0."""
        self.cpu_seconds = self.claimed = 0.0


class Docker:
    """The containers of one engine."""

    def __init__(self, options: Options, host: Host, url: str) -> None:
        self._host = host
        self._socket = Path(url.removeprefix("unix://")) if url.startswith("unix://") else None
        self._here = self._socket is not None or urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        self._engine = Engine(url, options.max_containers, options.max_name_length)
        self._following: asyncio.Task[None] | None = None
        self._patience = min(_CONNECT_SECONDS, 0.8 * options.interval)
        self._layout = Layout(host)
        # A cgroup numbers its processes as its reader's namespace does. In a container that has the host's
        # /proc, those numbers are other processes there.
        self._numbers_fit = own_pid(host) in (None, os.getpid())
        self._processes = EngineProcesses(host)
        self._watched: dict[str, _Watched] = {}
        self._asked: set[asyncio.Task[None]] = set()
        self._slice = 0
        self._met = 0  # containers so far
        self._machine_bytes: int | None = None
        self._lost_at: float | None = None

    async def read(self) -> Reading:
        """Read every live container. Raises: ReadFailed, Absent."""
        engine = self._engine
        if self._following is None:
            self._following = asyncio.ensure_future(engine.follow())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    await engine.connected.wait()
        now = self._host.clock.monotonic()
        if not engine.connected.is_set():
            self._watched.clear()
            self._raise_lost(now)
        self._lost_at = None
        self._meet()
        self._slice = (self._slice + 1) % SLICES
        samples: list[Sample] = []
        claims: list[Claim] = []
        total_percent = 0.0
        for watched in self._watched.values():
            percent = self._read_cpu(watched, now, samples, claims)
            total_percent += percent or 0.0
            if watched.slice == self._slice or not watched.slow or watched.named != watched.container.name:
                watched.slow = list(self._slow(watched))
                watched.named = watched.container.name
            samples.extend(watched.slow)
        samples.append(TOTAL_CPU.sample(total_percent))
        states = Tally(container.state for container in engine.containers.values())
        samples.extend(
            CONTAINERS.sample(states[state], state) for state in (*STATES, *(states.keys() - STATES))
        )
        samples.append(IGNORED.sample(engine.ignored))
        samples.extend(self._engine_samples(now))
        return Reading(samples, taken=now, claims=claims)

    async def aclose(self) -> None:
        """Leave the engine."""
        tasks = [*self._asked, *([self._following] if self._following else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _raise_lost(self, now: float) -> None:
        engine = self._engine
        if engine.denied:
            raise Absent(_DENIED.format(engine.url))
        self._lost_at = now if self._lost_at is None else self._lost_at
        if self._socket is not None and not self._socket.exists() and now - self._lost_at > ABSENT_SECONDS:
            raise Absent(f"no container engine: {self._socket} has gone")
        what = engine.error or "it has not answered yet"
        what = f"no answer from the container engine at {engine.url}: {what}"
        raise ReadFailed(what, "" if engine.too_old else "see systemctl status docker")

    def _meet(self) -> None:
        """Begin to watch what has started, and leave what has ended."""
        live = {key: c for key, c in self._engine.containers.items() if c.state in LIVE}
        for key in self._watched.keys() - live.keys():
            del self._watched[key]
        for key, container in live.items():
            watched = self._watched.get(key)
            if watched is None:
                self._met += 1
                watched = self._watched[key] = _Watched(container, self._met % SLICES)
                watched.cgroup = self._layout.find(key)
                if watched.cgroup is None or container.started_here or not self._numbers_fit:
                    self._ask(self._look_closer(watched))
            watched.container = container

    def _ask(self, question: Any) -> None:
        task = asyncio.ensure_future(question)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _look_closer(self, watched: _Watched) -> None:
        """Ask the engine for what neither its list nor known layouts say."""
        watched.pid = await self._engine.inspect(watched.container)
        if watched.cgroup is None:
            watched.cgroup = self._layout.find(watched.container.id, watched.pid)

    async def _look_from_outside(self, watched: _Watched) -> None:
        watched.shot = await self._engine.one_shot(watched.container)

    # -- one container ---------------------------------------------------------------------------

    def _read_cpu(
        self, watched: _Watched, now: float, samples: list[Sample], claims: list[Claim]
    ) -> float | None:
        """Add the CPU samples and the claim; return the percentage since the last beat."""
        name = watched.container.name
        used = self._used(watched)
        if used is None:
            watched.start_anew()
        if used is None:
            watched.last = None
            return None
        watched.beat(used, now)
        if watched.percent is not None:
            samples.append(CPU.sample(watched.percent, name))
        samples.append(CPU_SECONDS.sample(used, name))
        if self._here:  # another machine's containers have no part in this one's joules
            claims.append(Claim("container", name, ENERGY, watched.claimed, watched.container.id))
        return watched.percent

    def _used(self, watched: _Watched) -> float | None:
        if watched.cgroup is not None:
            try:
                return watched.cgroup.cpu_seconds()
            except (OSError, ValueError, IndexError):
                return None  # it has ended, and its event is on the way
        total = ((watched.shot or {}).get("cpu_stats") or {}).get("cpu_usage") or {}
        return total["total_usage"] / 1e9 if "total_usage" in total else None

    def _slow(self, watched: _Watched) -> Iterator[Sample]:
        container = watched.container
        name = container.name
        yield INFO.sample(1, name, container.id, container.image, container.project, container.service)
        if watched.cgroup is not None:
            figures = watched.cgroup.figures()
            network = self._network(watched)
        else:
            self._ask(self._look_from_outside(watched))
            figures, network = parse_one_shot(watched.shot or {})
        if figures.memory is not None:
            yield MEMORY.sample(figures.memory.used, name)
            limit = figures.memory.limit or self._machine()
            if limit:
                yield MEMORY_LIMIT.sample(limit, name)
                yield MEMORY_PERCENT.sample(figures.memory.used / limit * 100, name)
        for metric, value in (
            (PIDS, figures.pids),
            (READ, figures.read_bytes),
            (WRITTEN, figures.written_bytes),
        ):
            if value is not None:
                yield metric.sample(value, name)
        if network is not None:
            for metric, value in zip((RX_OLD, TX_OLD, RX, TX), network * 2, strict=True):
                yield metric.sample(value, name)

    def _network(self, watched: _Watched) -> tuple[int, int] | None:
        """Return the bytes (received, transmitted); None for a container on the host's own network."""
        if watched.container.host_network or watched.cgroup is None:
            return None
        pid = (watched.cgroup.first_process() if self._numbers_fit else None) or watched.pid
        if pid is None:
            if not self._numbers_fit:
                self._ask(self._look_closer(watched))
            return None
        try:
            text = self._host.read(self._host.procfs / str(pid) / "net/dev").decode("ascii", "replace")
            return parse_net_dev(text)
        except (OSError, ValueError):
            watched.pid = None  # it may have been started again
            return None

    def _machine(self) -> int | None:
        """Return the machine's memory in bytes."""
        if self._machine_bytes is None:
            try:
                text = self._host.read(self._host.procfs / "meminfo").decode("ascii", "replace")
                self._machine_bytes = int(text.partition("MemTotal:")[2].split()[0]) * 1024
            except (OSError, ValueError, IndexError):
                return None
        return self._machine_bytes

    def _engine_samples(self, now: float) -> Iterator[Sample]:
        percent, resident = self._processes.look(now)
        if percent is not None:
            yield ENGINE_CPU.sample(percent)
        if resident is not None:
            yield ENGINE_MEMORY.sample(resident)
            if machine := self._machine():
                yield ENGINE_MEMORY_PERCENT.sample(resident / machine * 100)


_warned: set[str] = set()  # sockets that may not be used: said once


async def open_collector(options: Options, host: Host) -> Docker:
    """Return the collector. Raises: Absent where there is no engine, or none that may be asked."""
    url = options.url
    if not url:
        found = [path for path in _SOCKETS if _is_socket(path)]
        if not found:
            raise Absent(f"no container engine: none of {', '.join(_SOCKETS)} is there")
        url = f"unix://{found[0]}"
    elif url.startswith("unix://") and not _is_socket(url.removeprefix("unix://")):
        raise Absent(f"no container engine: {url.removeprefix('unix://')} is not there")
    if url.startswith("unix://") and not os.access(path := url.removeprefix("unix://"), os.R_OK | os.W_OK):
        why = _DENIED.format(path)
        if path not in _warned:
            _warned.add(path)
            log.warning("containers are not shown", reason=why)
        raise Absent(why)
    return Docker(options, host, url)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)  # noqa: PTH116 - beside its constant
    except OSError:
        return False
