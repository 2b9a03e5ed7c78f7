"""Containers of Docker or Podman: CPU, memory, network, block I/O, and their claim on the node's energy.

Reads the engine's API for the list of containers (engine.py), their cgroups for the figures (cgroup.py),
`/proc/PID/net/dev` for the network (network.py), and `/proc` for the engine's own processes
(engine_processes.py).
Privileges: the engine's socket, which is as good as root; the figures need none.

CPU time is read at every beat; the other figures of each container at every fifth beat. If a container's
cgroup cannot be found (an engine in a virtual machine), the engine is asked for its one-shot statistics.

Source: https://docs.docker.com/reference/api/engine/, https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
from collections import Counter as Tally
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from powerbench_agent.collectors.docker.cgroup import Cgroup, Layout, Memory
from powerbench_agent.collectors.docker.engine import LIVE, STATES, Container, Engine
from powerbench_agent.collectors.docker.engine_processes import EngineProcesses
from powerbench_agent.collectors.docker.network import Traffic, is_machines, read_traffic
from powerbench_agent.collectors.docker.one_shot import cpu_seconds, parse_one_shot
from powerbench_agent.core.cpu_time import has_restarted
from powerbench_agent.core.model import (
    SHARE_HELP,
    SHARE_LABELS,
    Absent,
    Claim,
    Metric,
    ReadFailed,
    Reading,
    Sample,
    Trouble,
)
from powerbench_agent.core.options import CollectorOptions
from powerbench_agent.core.processes import own_pid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from powerbench_agent.core.host import Host

log = structlog.get_logger("docker")

_CONTAINER = ("container",)
CPU = Metric(
    "docker_container_cpu_percent", "gauge", "CPU use over the last interval; 100 is one core.", _CONTAINER
)
MEMORY = Metric(
    "docker_container_memory_bytes", "gauge", "Memory in use, without inactive page cache.", _CONTAINER
)
MEMORY_PERCENT = Metric(
    "docker_container_memory_percent", "gauge", "Memory in use, in percent of the memory limit.", _CONTAINER
)
MEMORY_LIMIT = Metric(
    "docker_container_memory_limit_bytes",
    "gauge",
    "Memory limit; the machine's memory if the container has none.",
    _CONTAINER,
)
PIDS = Metric("docker_container_pids", "gauge", "Processes and threads in the container.", _CONTAINER)
RX_OLD = Metric(
    "docker_container_network_rx_bytes",
    "unknown",
    "Bytes received; older name of docker_container_network_receive_bytes_total.",
    _CONTAINER,
)
TX_OLD = Metric(
    "docker_container_network_tx_bytes",
    "unknown",
    "Bytes transmitted; older name of docker_container_network_transmit_bytes_total.",
    _CONTAINER,
)
CPU_SECONDS = Metric(
    "docker_container_cpu_seconds_total", "counter", "CPU time since the container started.", _CONTAINER
)
RX = Metric(
    "docker_container_network_receive_bytes_total", "counter", "Bytes received by the container.", _CONTAINER
)
TX = Metric(
    "docker_container_network_transmit_bytes_total",
    "counter",
    "Bytes transmitted by the container.",
    _CONTAINER,
)
READ = Metric(
    "docker_container_block_read_bytes_total", "counter", "Bytes read from block devices.", _CONTAINER
)
WRITTEN = Metric(
    "docker_container_block_written_bytes_total", "counter", "Bytes written to block devices.", _CONTAINER
)
INFO = Metric(
    "docker_container_info",
    "gauge",
    "Always 1; the labels say what the container is.",
    ("container", "id", "image", "compose_project", "compose_service"),
)
ENGINE_CPU = Metric(
    "docker_engine_cpu_percent", "gauge", "CPU use of dockerd, containerd and podman; 100 is one core."
)
ENGINE_MEMORY = Metric(
    "docker_engine_memory_bytes", "gauge", "Resident memory of dockerd, containerd and podman."
)
ENGINE_MEMORY_PERCENT = Metric(
    "docker_engine_memory_percent",
    "gauge",
    "Resident memory of dockerd, containerd and podman, in percent of the machine's.",
)
TOTAL_CPU = Metric(
    "docker_containers_total_cpu_percent", "gauge", "CPU use of all containers together; 100 is one core."
)
CONTAINERS = Metric("docker_containers", "gauge", "Containers by state.", ("state",))
IGNORED = Metric(
    "docker_containers_ignored_total",
    "counter",
    "Containers left out because there are more than max_containers.",
)
METRICS = (
    CPU,
    MEMORY,
    MEMORY_PERCENT,
    MEMORY_LIMIT,
    PIDS,
    RX_OLD,
    TX_OLD,
    CPU_SECONDS,
    RX,
    TX,
    READ,
    WRITTEN,
    INFO,
    ENGINE_CPU,
    ENGINE_MEMORY,
    ENGINE_MEMORY_PERCENT,
    TOTAL_CPU,
    CONTAINERS,
    IGNORED,
)

ENERGY = Metric(
    "docker_container_energy_joules_total",
    "counter",
    f"Energy of the container since it was first seen. {SHARE_HELP}",
    SHARE_LABELS["container"],
)
SHARES = (ENERGY,)  # what the node calls the shares of our claims

_UNIX = "unix://"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_URL = re.compile(r"unix:///.+|(tcp|http)://[^/:]+:[0-9]{1,5}/?")
_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock")
SLICES = 5  # beats over which the slower figures of all containers are read
ABSENT_SECONDS = 30.0  # that an engine's socket may be missing, as during a restart
_CONNECT_SECONDS = 0.9  # for which the first reading waits for the engine
_DENIED = (
    "the agent's user may not use {}: add the user to the group docker, which is as good as root; "
    "see docs/guide.md, containers"
)

_NETWORK_UNTOLD = Trouble(
    "network",
    "it cannot be told whether a container is on the machine's own network: process 1 is hidden",
    "let the agent see process 1: no hidepid on /proc, ProtectProc=default in its unit",
)

_BLIND = Trouble(
    "statistics",
    "the engine answers a running container's CPU time with 0 or nothing: it sees no cgroup of it",
    "let a rootless engine have cgroups: version 2, the systemd driver, and delegation to its user",
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


@dataclass(slots=True, eq=False)
class _Watched:
    """What is known of one live container's figures."""

    container: Container
    slice: int  # in which of SLICES beats its slower figures are read
    cgroup: Cgroup | None = None
    pid: int | None = None
    percent: float | None = None  # CPU over the last beat
    claimed: float = 0.0  # CPU seconds
    shot: Mapping[str, Any] | None = None  # the engine's own figures, if there is no cgroup
    slow: list[Sample] = field(default_factory=list)
    slow_name: str = ""  # the container's name in `slow`
    used: float = 0.0  # CPU seconds of its cgroup, which fall only if it was started again
    _cpu_seconds: float = 0.0  # used since it was first seen
    _is_known: bool = False  # whether `used` is
    _last: tuple[float, float] | None = None  # monotonic second and `_cpu_seconds` of the last beat
    _last_shot: Mapping[str, Any] | None = None  # the engine's figures at the last beat

    def __post_init__(self) -> None:
        self._is_known = self.container.started_here

    def beat(self, used: float, now: float) -> None:
        """Take the CPU seconds that it has used; the engine's own figures come less often than beats."""
        is_new = self.cgroup is not None or self.shot is not self._last_shot
        if is_new or self._last is None:
            self._last_shot = self.shot
            restarted = self._advance(used)
            self.percent = None
            if self._last is not None:
                then, used_then = self._last
                if now > then and not restarted:
                    self.percent = (self._cpu_seconds - used_then) / (now - then) * 100
            self._last = (now, self._cpu_seconds)
        since = min(now - self._last[0], SLICES)
        ahead = since * (self.percent or 0.0) / 100
        self.claimed = max(self.claimed, self._cpu_seconds + ahead)

    def _advance(self, used: float) -> bool:
        """Return whether there is a new cgroup: the container was started again."""
        restarted = self._is_known and has_restarted(self.used, used)
        if restarted:
            self._cpu_seconds += used
        elif self._is_known:
            used = max(used, self.used)
            self._cpu_seconds += used - self.used
        self.used = used
        self._is_known = True
        return restarted

    def lose(self) -> None:
        """Take that its CPU time cannot be read: if it comes back, its claim begins at 0."""
        self._cpu_seconds = self.claimed = 0.0
        self._last = None
        self.percent = None


class Docker:
    """The containers of one engine."""

    def __init__(self, options: Options, host: Host, url: str) -> None:
        self._host = host
        self._found = not options.url  # the socket was found and not configured
        self._socket = Path(url.removeprefix(_UNIX)) if url.startswith(_UNIX) else None
        self._here = self._socket is not None or urlsplit(url).hostname in _LOOPBACK
        self._engine = Engine(url, options.max_containers, options.max_name_length)
        self._following: asyncio.Task[None] | None = None
        self._patience = min(_CONNECT_SECONDS, 0.8 * options.interval)
        self._layout = Layout(host)
        # A cgroup lists its processes by their numbers in the reader's pid namespace. In a container that
        # reads the host's /proc, other processes have those numbers there.
        self._numbers_fit = own_pid(host) in (None, os.getpid())
        self._processes = EngineProcesses(host)
        self._watched: dict[str, _Watched] = {}
        self._asked: set[asyncio.Task[None]] = set()
        self._slice = 0
        self._met = 0  # containers so far
        self._machine_bytes: int | None = None
        self._lost_at: float | None = None
        self._lists = 0  # of the engine, so far
        self._running = self._layout.running() if self._here else set()  # ids, before its next list
        self._others: set[str] = set()  # ids that ran and were not in its list: another engine's
        self._troubles: list[Trouble] = []  # of this beat

    async def read(self) -> Reading:
        """Read every live container. Raises: ReadFailed, Absent."""
        engine = self._engine
        if self._following is None:
            self._following = asyncio.ensure_future(engine.follow())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    await engine.connected.wait()
        now = self._host.clock.monotonic()
        self._troubles = engine.take_troubles()
        if engine.connected.is_set():
            self._lost_at = None
        else:
            self._go_on(now)
        if self._here and engine.lists != self._lists:
            self._tell_others_apart()
        self._meet()
        self._slice = (self._slice + 1) % SLICES
        samples: list[Sample] = []
        claims: list[Claim] = []
        for watched in self._watched.values():
            if (used := self._used(watched)) is None:
                watched.lose()
            else:
                watched.beat(used, now)
                samples.extend(_cpu_samples(watched))
                if self._here:  # another machine's containers have no part in this machine's joules
                    claims.append(_claim(watched))
            samples.extend(self._slow_samples(watched))
        percents = (watched.percent or 0.0 for watched in self._watched.values())
        samples.append(TOTAL_CPU.sample(sum(percents, 0.0)))
        if engine.connected.is_set():
            samples.extend(self._state_samples())
        samples.append(IGNORED.sample(engine.ignored))
        samples.extend(self._engine_samples(now))
        return Reading(samples, taken=now, claims=claims, troubles=self._troubles)

    async def aclose(self) -> None:
        """Disconnect from the engine."""
        tasks = list(self._asked)
        if self._following is not None:
            tasks.append(self._following)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _go_on(self, now: float) -> None:
        """Go on without the engine, with the containers that have a cgroup. Raises: Absent, ReadFailed."""
        engine = self._engine
        if self._lost_at is None:
            self._lost_at = now
        lost_for_long = now - self._lost_at > ABSENT_SECONDS
        if engine.denied:
            self._watched.clear()
            raise Absent(_DENIED.format(engine.url))
        if lost_for_long and self._socket is not None and not self._socket.exists():
            self._watched.clear()
            raise Absent(f"no container engine: {self._socket} has gone")
        has_failed = engine.error != ""  # else it may be about to answer
        engine.assume(self._with_cgroup() if has_failed and self._here else ())
        error = engine.error or "it has not answered yet"
        why = f"no answer from the container engine at {engine.url}: {error}"
        remedy = "" if engine.too_old else "see systemctl status docker"
        has_live = any(container.state in LIVE for container in engine.containers.values())
        knows_own = has_live and engine.lists > 0  # else they may be another engine's
        if lost_for_long and self._found and not knows_own and (other := self._other_socket()):
            self._watched.clear()
            _given_up[os.path.realpath(str(self._socket))] = now
            raise Absent(f"{why}; another engine listens at {other}")
        if not has_live:
            self._watched.clear()
            raise ReadFailed(why, remedy)
        self._troubles.append(Trouble("engine", f"{why}; going on with the cgroups of containers", remedy))

    def _other_socket(self) -> str | None:
        """Return another engine's socket that somebody listens at; None if there is none."""
        own = os.path.realpath(str(self._socket))  # /var/run may be /run
        return choose_socket(path for path in _SOCKETS if os.path.realpath(path) != own)

    def _with_cgroup(self) -> set[str]:
        """Return the ids of containers that run for certain: those whose cgroup is there."""
        watched = self._watched.items()
        known = {key for key, container in watched if container.cgroup and container.cgroup.exists()}
        return known | (self._layout.running() - self._others)

    def _tell_others_apart(self) -> None:
        """See which containers are another engine's, not to take them for this one's while it is away."""
        self._lists = self._engine.lists
        self._others = self._running - self._engine.containers.keys()
        self._running = self._layout.running()

    def _meet(self) -> None:
        """Begin to watch containers that have started, and drop those that have ended."""
        containers = self._engine.containers
        live = {key: container for key, container in containers.items() if container.state in LIVE}
        for key in self._watched.keys() - live.keys():
            del self._watched[key]
        for key, container in live.items():
            if key not in self._watched:
                self._watched[key] = self._watch(container)
            self._watched[key].container = container

    def _watch(self, container: Container) -> _Watched:
        self._met += 1
        watched = _Watched(container, self._met % SLICES)
        watched.cgroup = self._layout.find(container.id)
        needs_pid = watched.cgroup is None or not self._numbers_fit
        if needs_pid and container.asked:  # else it is asked for with its other figures
            self._ask(self._look_closer(watched))
        return watched

    def _ask(self, question: Any) -> None:
        task = asyncio.ensure_future(question)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _look_closer(self, watched: _Watched) -> None:
        """Ask the engine for what its list does not say, and look for the cgroup by a process id."""
        watched.pid = await self._engine.inspect(watched.container)
        if watched.cgroup is None:
            watched.cgroup = self._layout.find(watched.container.id, watched.pid)

    async def _look_from_outside(self, watched: _Watched) -> None:
        watched.shot = await self._engine.one_shot(watched.container)

    # -- one container ---------------------------------------------------------------------------

    def _used(self, watched: _Watched) -> float | None:
        if watched.cgroup is not None:
            try:
                return watched.cgroup.cpu_seconds()
            except (OSError, ValueError) as error:
                if watched.cgroup.exists():  # else it has ended, and its event is on the way
                    self._troubles.append(Trouble("cgroup", f"a container's CPU time: {error}"))
                return None
        if not watched.shot:
            return None
        used = cpu_seconds(watched.shot)
        if used is None:
            self._troubles.append(_BLIND)
        return used

    def _slow_samples(self, watched: _Watched) -> list[Sample]:
        """Return the samples that are read in every fifth beat; those read last, in the others."""
        name = watched.container.name
        if watched.slice == self._slice or not watched.slow or watched.slow_name != name:
            watched.slow = list(self._read_slow(watched))
            watched.slow_name = name
        return watched.slow

    def _read_slow(self, watched: _Watched) -> Iterator[Sample]:
        container = watched.container
        name = container.name
        yield INFO.sample(1, name, container.id, container.image, container.project, container.service)
        if not container.asked:
            self._ask(self._look_closer(watched))
        if watched.cgroup is not None:
            figures = watched.cgroup.figures()
            traffic = self._traffic(watched, watched.cgroup)
        else:
            self._ask(self._look_from_outside(watched))
            figures, traffic = parse_one_shot(watched.shot or {})
            if self._engine.on_host_network(container):
                traffic = None
        if figures.memory is not None:
            yield from self._memory_samples(name, figures.memory)
        for metric, value in (
            (PIDS, figures.pids),
            (READ, figures.read_bytes),
            (WRITTEN, figures.written_bytes),
        ):
            if value is not None:
                yield metric.sample(value, name)
        if traffic is not None:
            yield RX_OLD.sample(traffic.received, name)
            yield TX_OLD.sample(traffic.transmitted, name)
            yield RX.sample(traffic.received, name)
            yield TX.sample(traffic.transmitted, name)

    def _memory_samples(self, name: str, memory: Memory) -> Iterator[Sample]:
        yield MEMORY.sample(memory.used, name)
        limit = self._limit(memory)
        if limit is not None:
            yield MEMORY_LIMIT.sample(limit, name)
            yield MEMORY_PERCENT.sample(memory.used / limit * 100, name)

    def _limit(self, memory: Memory) -> int | None:
        """Return the limit as `docker stats` shows it: no more than the memory of the container's machine."""
        known = [memory.limit, self._machine() if self._here else None]
        return min((limit for limit in known if limit), default=None)

    def _traffic(self, watched: _Watched, cgroup: Cgroup) -> Traffic | None:
        """Return the bytes sent and received; None for a container on the host's own network."""
        if self._engine.on_host_network(watched.container):
            return None
        pid = watched.pid
        if self._numbers_fit:
            pid = cgroup.first_process() or pid
        elif pid is None:
            self._ask(self._look_closer(watched))
        if pid is None:
            return None
        try:
            traffic = read_traffic(self._host, pid)
        except OSError:
            watched.pid = None  # it may have been started again
            return None
        on_machines = is_machines(self._host, pid)
        if on_machines is None:
            self._troubles.append(_NETWORK_UNTOLD)
        return traffic if on_machines is False else None

    # -- the engine and the machine --------------------------------------------------------------

    def _state_samples(self) -> Iterator[Sample]:
        counts = Tally(container.state for container in self._engine.containers.values())
        unknown_states = counts.keys() - STATES
        for state in (*STATES, *unknown_states):
            yield CONTAINERS.sample(counts[state], state)

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


_given_up: dict[str, float] = {}  # sockets at which no engine answered: monotonic second, by path
_warned: set[str] = set()  # sockets that may not be used; each is logged once


async def open_collector(options: Options, host: Host) -> Docker:
    """Return the collector. Raises: Absent if there is no engine, or its socket may not be used."""
    if not options.url:
        found = [path for path in _SOCKETS if _is_socket(path)]
        if not found:
            raise Absent(f"no container engine: none of {', '.join(_SOCKETS)} is there")
        # systemd may listen for an engine that does not start: those given up last are tried last.
        found.sort(key=lambda path: _given_up.get(os.path.realpath(path), 0.0))
        path = choose_socket(found) or found[0]
        _check_permission(path)
        return Docker(options, host, f"{_UNIX}{path}")
    if options.url.startswith(_UNIX):
        path = options.url.removeprefix(_UNIX)
        if not _is_socket(path):
            raise Absent(f"no container engine: {path} is not there")
        _check_permission(path)
    return Docker(options, host, options.url)


def choose_socket(paths: Iterable[str]) -> str | None:
    """Return the first socket that somebody listens at and that this process may use; None if there is none.

    A daemon that was killed leaves its socket behind.
    """
    return next((path for path in paths if _listens(path)), None)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0)
        try:
            client.connect(path)
        except BlockingIOError:  # more connections wait there than it takes at a time
            return True
        except OSError:
            return False
    return True


def _check_permission(path: str) -> None:
    """Raise Absent if this process may not use the socket, and warn of it once."""
    if os.access(path, os.R_OK | os.W_OK):
        return
    why = _DENIED.format(path)
    if path not in _warned:
        _warned.add(path)
        log.warning("containers are not shown", reason=why)
    raise Absent(why)


def _cpu_samples(watched: _Watched) -> Iterator[Sample]:
    if watched.percent is not None:
        yield CPU.sample(watched.percent, watched.container.name)
    yield CPU_SECONDS.sample(watched.used, watched.container.name)


def _claim(watched: _Watched) -> Claim:
    container = watched.container
    return Claim("container", container.name, ENERGY, watched.claimed, container.id)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)  # noqa: PTH116 - beside its constant
    except OSError:
        return False
