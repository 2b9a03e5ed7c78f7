"""What the container engine says: which containers there are, and what happens to them.

Uses the Docker API (1.24 and later, which Podman offers too) through aiodocker, on a socket or a URL. Lists
the containers once, then follows the events. While the engine is away it tries again, also on a new socket.

Source: https://docs.docker.com/reference/api/engine/
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from powerbench_agent.core.labels import shorten

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    import aiodocker
    import aiohttp

log = structlog.get_logger("docker")

MIN_API = (1, 24)
RELIST_SECONDS = 60.0  # between lists, which make up for lost events
_BACKOFF_SECONDS = (0.5, 5.0)
_TIMEOUT_SECONDS = 5.0  # of one answer
MAX_ANSWER_BYTES = 64 * 2**20  # of one answer: tens of thousands of containers
_PATIENCE_SECONDS = 1.0  # a stream of events that ends sooner counts as refused
_ONE_SHOT_API = (1, 41)
# The state that follows an event, in Docker's words and in Podman's.
_STATES = {
    "create": "created",
    "start": "running",
    "unpause": "running",
    "pause": "paused",
    "die": "exited",
    "died": "exited",
}
_GONE = ("destroy", "remove")
_MAX_JOINED = 10  # containers that join each other's network in a chain
_PROJECT_LABEL = "com.docker.compose.project"
_SERVICE_LABEL = "com.docker.compose.service"
STATES = ("created", "running", "paused", "restarting", "exited", "dead", "removing")
LIVE = ("running", "paused")  # those with a cgroup


@dataclass(slots=True)
class Container:
    """One container, as the engine describes it."""

    id: str
    name: str
    image: str
    state: str
    project: str = ""  # of compose
    service: str = ""
    host_network: bool = False  # the engine's own; true also while it is not known
    joined: str = ""  # id of the container whose network it joins
    started_here: bool = False  # its start was seen, so all of its CPU time is counted


@dataclass(slots=True)
class Engine:
    """The containers by id, kept up to date for as long as `follow` runs."""

    url: str
    max_containers: int
    max_name_length: int
    containers: dict[str, Container] = field(default_factory=dict)
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    ignored: int = 0  # containers beyond the limit
    error: str = ""
    denied: bool = False
    too_old: bool = False
    _docker: aiodocker.Docker | None = None
    _api: tuple[int, ...] = (0,)
    _warned: bool = False  # of containers without figures
    _left_out: set[str] = field(default_factory=set)  # ids of containers beyond the limit, each counted once

    async def follow(self) -> None:
        """Keep the containers up to date until cancelled."""
        wait = _BACKOFF_SECONDS[0]
        while True:
            begun = time.monotonic()
            try:
                async with self._open() as docker:
                    await self._follow(docker)
                if time.monotonic() - begun > _PATIENCE_SECONDS:
                    wait = _BACKOFF_SECONDS[0]
                    continue  # proxies close a quiet stream; the next list makes up for lost events
                self.error = "it ends the stream of events at once"
            except Exception as error:  # noqa: BLE001 - whatever a foreign daemon's answer causes, try again
                self._fail(error)
            self.connected.clear()
            self.containers.clear()
            if time.monotonic() - begun > _BACKOFF_SECONDS[1]:
                wait = _BACKOFF_SECONDS[0]
            await asyncio.sleep(wait)
            wait = min(_BACKOFF_SECONDS[1], 2 * wait)

    def _fail(self, error: BaseException) -> None:
        causes = list(_causes(error))
        self.denied = any(isinstance(cause, PermissionError) for cause in causes)
        if isinstance(error, TimeoutError):
            self.error = f"no answer within {_TIMEOUT_SECONDS:g} s"
        elif any(isinstance(cause, ConnectionRefusedError) for cause in causes):
            self.error = "connection refused"
        else:
            self.error = str(error) or type(error).__name__

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[aiodocker.Docker]:
        import aiodocker  # noqa: PLC0415 - only needed with an engine
        import aiohttp  # noqa: PLC0415 - likewise

        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        docker = self._docker = aiodocker.Docker(url=self.url, timeout=timeout)
        try:
            yield docker
        finally:
            self._docker = None
            try:
                await docker.close()
            finally:  # close() leaves the session open if the stream of events has failed
                await docker.session.close()

    async def _follow(self, docker: aiodocker.Docker) -> None:
        await self._check_version(docker)
        first = not self.connected.is_set()
        since = time.time()
        await self._list(docker, first=first)
        filters = json.dumps({"type": ["container"]})
        stream: Any = docker.events  # untyped
        events = stream.subscribe(since=f"{since:.9f}", filters=filters)
        self.connected.set()
        self.error = ""
        self.denied = False
        relist = time.monotonic() + RELIST_SECONDS
        while True:
            try:
                async with asyncio.timeout(max(0.0, relist - time.monotonic())):
                    event = await events.get()
            except TimeoutError:
                await self._list(docker, first=False)
                relist = time.monotonic() + RELIST_SECONDS
                continue
            if event is None:
                await asyncio.wait([stream.task], timeout=_TIMEOUT_SECONDS)
                stream.task.result()  # raises what ended it, if anything did
                return
            self.take(event)

    async def _check_version(self, docker: aiodocker.Docker) -> None:
        """Negotiate the API's version. Raises: ValueError if it is too old."""
        version = await docker.version()  # aiodocker negotiates at its first call
        self._api = parse_api(str(version.get("ApiVersion", "")))
        self.too_old = self._api < MIN_API
        if self.too_old:
            text = ".".join(map(str, self._api))
            raise ValueError(f"its API {text} is older than 1.24; update the engine")

    async def _list(self, docker: aiodocker.Docker, *, first: bool) -> None:
        found = await get_json(docker, "containers/json", {"all": "1"})
        before = self.containers
        self.containers = {}
        self._left_out.intersection_update(str(entry["Id"]) for entry in found)
        for entry in found:
            container = parse_listed(entry)
            known = before.get(container.id)
            if known is not None:
                container.started_here = known.started_here
            elif not first:
                container.started_here = container.state in LIVE
            self._keep(container)

    def _keep(self, container: Container) -> None:
        if container.id not in self.containers and len(self.containers) >= self.max_containers:
            left_out = self._choose_left_out(container)
            if left_out.id not in self._left_out:
                self.ignored += 1
                self._left_out.add(left_out.id)
            if left_out is container:
                return
            del self.containers[left_out.id]
        container.name = shorten(container.name, self.max_name_length, container.id)
        self.containers[container.id] = container

    def _choose_left_out(self, newcomer: Container) -> Container:
        """Return which container is not kept: for a live newcomer an ended one, else the newcomer."""
        if newcomer.state in LIVE:
            for other in self.containers.values():
                if other.state not in LIVE:
                    return other
        return newcomer

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event of the engine."""
        actor = event.get("Actor") or {}
        identity = str(actor.get("ID") or event.get("id") or "")
        action = str(event.get("Action") or event.get("status") or "")
        labels = actor.get("Attributes") or {}
        if not identity:
            return
        if action in _GONE:
            self.containers.pop(identity, None)
            self._left_out.discard(identity)
            return
        container = self.containers.get(identity)
        if action == "rename" and container is not None:
            name = str(labels.get("name", container.name))
            container.name = shorten(name, self.max_name_length, identity)
            return
        state = _STATES.get(action)
        if state is None:
            return
        if container is None:
            container = Container(
                id=identity,
                name=str(labels.get("name", identity[:12])),
                image=str(labels.get("image", "")),
                state=state,
                project=str(labels.get(_PROJECT_LABEL, "")),
                service=str(labels.get(_SERVICE_LABEL, "")),
                host_network=True,  # until the engine is asked
            )
            self._keep(container)
        container.state = state
        if action == "start":
            container.started_here = True

    def on_host_network(self, container: Container) -> bool:
        """Return whether a container is on its engine's own network, by itself or by joining another that is.

        A rootless engine's own network is not the machine's.
        """
        for _ in range(_MAX_JOINED):
            other = self.containers.get(container.joined)
            if container.host_network or other is None:
                break
            container = other
        return container.host_network

    async def inspect(self, container: Container) -> int | None:
        """Ask for what lists and events do not say; return its first process, None if it does not run."""
        content = await self._ask(f"containers/{container.id}/json")
        if config := content.get("HostConfig"):
            _set_network(container, config)
        pid = (content.get("State") or {}).get("Pid")
        return pid if isinstance(pid, int) and pid > 0 else None

    async def one_shot(self, container: Container) -> Mapping[str, Any]:
        """Return the engine's own figures of a container, for one whose cgroup cannot be found."""
        if self._api < _ONE_SHOT_API:
            if not self._warned:
                self._warned = True
                log.warning(
                    "containers have no figures: no cgroup found, and no one-shot statistics in the engine",
                    api=".".join(map(str, self._api)),
                    remedy="give the agent the host's /sys (--sysfs), or update the engine to API 1.41",
                )
            return {}
        params = {"stream": "false", "one-shot": "true"}
        return await self._ask(f"containers/{container.id}/stats", params)

    async def _ask(self, path: str, params: Mapping[str, str] | None = None) -> Mapping[str, Any]:
        """Return an answer; empty if the container or the engine has gone in the meantime."""
        import aiodocker  # noqa: PLC0415 - it is loaded by now
        import aiohttp  # noqa: PLC0415 - likewise

        if self._docker is None:
            return {}
        try:
            content = await get_json(self._docker, path, params)
        except (aiodocker.DockerError, aiohttp.ClientError, OSError, RuntimeError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and everything that led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


async def get_json(docker: aiodocker.Docker, path: str, params: Mapping[str, str] | None = None) -> Any:
    """Return the engine's answer to a GET, within the session's timeout.

    aiodocker's own calls make an object of each container, and have no one-shot statistics; so the request is
    made here, on its session.

    Raises: aiodocker.DockerError, aiohttp.ClientError, OSError, ValueError, TimeoutError.
    """
    import aiodocker  # noqa: PLC0415 - it is loaded by now

    url = f"{docker.docker_host}/{docker.api_version}/{path}"
    async with docker.session.get(url, params=params) as answer:
        body = await _read_bounded(answer)
        if answer.status >= 400:
            raise aiodocker.DockerError(answer.status, _message_of(body))
    return json.loads(body)


async def _read_bounded(answer: aiohttp.ClientResponse) -> bytes:
    """Return an answer's body. Raises: ValueError if it is too long."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            answer.close()
            raise ValueError(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _message_of(body: bytes) -> str:
    """Return what the engine says in an answer that is an error."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


def parse_api(text: str) -> tuple[int, ...]:
    """Return an API version as numbers that compare. Raises: ValueError."""
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError:
        raise ValueError(f"its version says {text[:40]!r}: is it a container engine?") from None


def parse_listed(entry: Mapping[str, Any]) -> Container:
    """Return the container of an entry of /containers/json."""
    names = entry.get("Names") or []
    labels = entry.get("Labels") or {}
    # A container that others link to is also listed under their names; its own name has one slash.
    own = [name for name in names if name.count("/") <= 1]
    identity = str(entry["Id"])
    name = (own or names or [identity[:12]])[0]
    container = Container(
        id=identity,
        name=name.removeprefix("/"),
        image=str(entry.get("Image", "")),
        state=str(entry.get("State", "")).lower(),
        project=str(labels.get(_PROJECT_LABEL, "")),
        service=str(labels.get(_SERVICE_LABEL, "")),
    )
    _set_network(container, entry.get("HostConfig") or {})
    return container


def _set_network(container: Container, config: Mapping[str, Any]) -> None:
    """Take whose network a container is on, out of its HostConfig."""
    mode = str(config.get("NetworkMode", ""))
    container.host_network = mode == "host"
    kind, _, other = mode.partition(":")
    container.joined = other if kind == "container" else ""
