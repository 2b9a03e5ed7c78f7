"""What the container engine says: which containers there are, and what happens to them.

Uses the Docker API (1.24 and later, which Podman offers too) through aiodocker, on a socket or a URL. Lists
the containers once, then follows the events. While the engine is away it tries again, also on a new socket.

Source: https://docs.docker.com/reference/api/engine/
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from powerbench_agent.core.labels import shorten
from powerbench_agent.core.lines import LineSplitter
from powerbench_agent.core.model import Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator, Mapping

    import aiodocker
    import aiohttp

log = structlog.get_logger("docker")

MIN_API = (1, 24)
RELIST_SECONDS = 60.0  # between lists, which make up for lost events
_BACKOFF_SECONDS = (0.5, 5.0)
MAX_ANSWER_BYTES = 64 * 2**20  # of one answer: tens of thousands of containers
MAX_EVENT_BYTES = 512 * 2**10  # of one event: it holds all labels of its container
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
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}")  # becomes part of paths
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
    joined: str = ""  # id or name of the container whose network it joins
    started_here: bool = False  # its start was seen, so all of its CPU time is counted
    asked: bool = True  # false while what it was learned from did not tell all of the above


@dataclass(slots=True)
class Engine:
    """The containers by id, kept up to date for as long as `follow` runs."""

    url: str
    max_containers: int
    max_name_length: int
    timeout: float = 5.0  # seconds that one answer may take
    containers: dict[str, Container] = field(default_factory=dict)
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    lists: int = 0  # that were had
    ignored: int = 0  # containers beyond the limit
    error: str = ""
    denied: bool = False
    too_old: bool = False
    _docker: aiodocker.Docker | None = None
    _api: tuple[int, ...] = (0,)
    _faults: dict[str, str] = field(default_factory=dict)  # what went wrong since the last reading, by part
    _warned: bool = False  # of containers without figures
    _left_out: set[str] = field(default_factory=set)  # ids of containers beyond the limit, each counted once

    async def follow(self) -> None:
        """Keep the containers up to date until cancelled.

        While the list cannot be had, `connected` is not set, and the containers stay those known last.
        While only the events fail, the list is asked for again and again.
        """
        wait = _BACKOFF_SECONDS[0]
        while True:
            begun = time.monotonic()
            try:
                async with self._open() as docker:
                    await self._follow(docker)
            except Exception as error:  # noqa: BLE001 - whatever a foreign daemon's answer causes, try again
                self._fail(error)
                self.connected.clear()
            lasted = time.monotonic() - begun
            if lasted > _BACKOFF_SECONDS[1]:
                wait = _BACKOFF_SECONDS[0]
            if self.connected.is_set() and lasted > _PATIENCE_SECONDS:
                continue  # proxies close a quiet stream; the next list makes up for lost events
            await asyncio.sleep(wait)
            wait = min(_BACKOFF_SECONDS[1], 2 * wait)

    def take_troubles(self) -> list[Trouble]:
        """Return what has gone wrong with single questions since the last call."""
        troubles = [Trouble(part, error) for part, error in self._faults.items()]
        self._faults.clear()
        if self._left_out:
            what = f"{len(self._left_out)} containers beyond max_containers are not shown"
            remedy = "raise [collectors.docker] max_containers"
            troubles.append(Trouble("containers", what, remedy, limit="max_containers"))
        return troubles

    def _fail(self, error: BaseException) -> None:
        self.denied = any(isinstance(cause, PermissionError) for cause in _causes(error))
        self.error = self._say(error)

    def _say(self, error: BaseException) -> str:
        """Return what happened, in a few words."""
        if isinstance(error, TimeoutError):
            return f"no answer within {self.timeout:g} s"
        if any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error)):
            return "connection refused"
        return str(error) or type(error).__name__

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[aiodocker.Docker]:
        import aiodocker  # noqa: PLC0415 - only needed with an engine
        import aiohttp  # noqa: PLC0415 - likewise

        timeout = aiohttp.ClientTimeout(total=self.timeout)
        docker = self._docker = aiodocker.Docker(url=self.url, timeout=timeout)
        try:
            yield docker
        finally:
            self._docker = None
            await docker.close()

    async def _follow(self, docker: aiodocker.Docker) -> None:
        """List the containers and follow the events, until it is time for the next list."""
        await self._check_version(docker)
        since = time.time()
        await self._list(docker, first=not self.connected.is_set())
        self.connected.set()
        self.error = ""
        self.denied = False
        begun = time.monotonic()
        try:
            await self._follow_events(docker, since, begun + RELIST_SECONDS)
        except Exception as error:  # noqa: BLE001 - likewise; the list goes on
            self._faults["events"] = self._say(error)
            return
        if time.monotonic() - begun < _PATIENCE_SECONDS:
            self._faults.setdefault("events", "it ends the stream of events at once")

    async def _check_version(self, docker: aiodocker.Docker) -> None:
        """Negotiate the API's version. Raises: ValueError if it is too old."""
        version = await _get(docker, f"{docker.docker_host}/version")
        if not isinstance(version, dict):
            raise ValueError("its version is not a table: is it a container engine?")  # noqa: TRY004 - foreign content
        self._api = parse_api(str(version.get("ApiVersion", "")))
        text = ".".join(map(str, self._api))
        docker.api_version = f"v{text}"
        self.too_old = self._api < MIN_API
        if self.too_old:
            raise ValueError(f"its API {text} is older than 1.24; update the engine")

    async def _follow_events(self, docker: aiodocker.Docker, since: float, until: float) -> None:
        """Take events until monotonic second `until`, or the stream ends, or one of them was lost."""
        import aiohttp  # noqa: PLC0415 - it is loaded by now

        url = f"{docker.docker_host}/{docker.api_version}/events"
        params = {"since": f"{since:.9f}", "filters": json.dumps({"type": ["container"]})}
        endless = aiohttp.ClientTimeout(sock_connect=self.timeout)
        async with asyncio.timeout(self.timeout):
            answer = await docker.session.get(url, params=params, timeout=endless)
        lines = LineSplitter(MAX_EVENT_BYTES)
        try:
            async with asyncio.timeout(self.timeout):
                await _check_status(answer)
            while not lines.dropped:
                try:
                    async with asyncio.timeout(max(0.0, until - time.monotonic())):
                        piece = await answer.content.readany()
                except TimeoutError:
                    return
                if not piece:
                    return
                for line in lines.feed(piece):
                    self._take_line(line)
            self._faults["events"] = f"an event longer than {MAX_EVENT_BYTES} bytes was left out"
        finally:
            answer.close()

    def _take_line(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            self.take(json.loads(line))
        except (ValueError, TypeError, AttributeError, RecursionError):
            self._faults["events"] = f"an event could not be read: {line[:80]!r}"

    async def _list(self, docker: aiodocker.Docker, *, first: bool) -> None:
        """Bring the containers up to date; an entry that cannot be read costs that container alone."""
        found = await get_json(docker, "containers/json", {"all": "1"})
        if not isinstance(found, list):
            raise ValueError("its list of containers is not a list")  # noqa: TRY004 - foreign content
        listed = []
        for entry in found:
            try:
                listed.append(parse_listed(entry))
            except (KeyError, ValueError, TypeError, AttributeError):
                self._faults["list"] = f"a container could not be read: {str(entry)[:80]!r}"
        before = self.containers
        self.containers = {}
        self._left_out.intersection_update(container.id for container in listed)
        for container in listed:
            known = before.get(container.id)
            if known is not None:
                container.started_here = known.started_here
            elif not first:
                container.started_here = container.state in LIVE
            self._keep(container)
        self.lists += 1

    def assume(self, running: Collection[str]) -> None:
        """Take, without the engine's word, that these containers run and no others do."""
        for container in self.containers.values():
            if container.id not in running:
                container.state = "exited"
            elif container.state not in LIVE:
                container.state = "running"
        for identity in sorted(set(running) - self.containers.keys()):
            self._keep(Container(identity, identity[:12], "", "running", asked=False))

    def _keep(self, container: Container) -> None:
        if container.id not in self.containers and len(self.containers) >= self.max_containers:
            left_out = self._choose_left_out(container)
            if left_out.id not in self._left_out:
                self.ignored += 1
                self._left_out.add(left_out.id)
            if left_out is container:
                return
            del self.containers[left_out.id]
        self._shorten(container)
        self.containers[container.id] = container

    def _shorten(self, container: Container) -> None:
        longest = self.max_name_length
        container.name = shorten(container.name, longest, container.id)
        container.image = shorten(container.image, longest)
        container.state = shorten(container.state, longest)
        container.project = shorten(container.project, longest)
        container.service = shorten(container.service, longest)

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
        if not _ID.fullmatch(identity):
            return
        if action in _GONE:
            self.containers.pop(identity, None)
            self._left_out.discard(identity)
            return
        container = self.containers.get(identity)
        if action == "rename" and container is not None:
            name = _word(labels, "name", container.name)
            container.name = shorten(name, self.max_name_length, identity)
            return
        state = _STATES.get(action)
        if state is None:
            return
        if container is None:
            container = Container(
                id=identity,
                name=_word(labels, "name", identity[:12]),
                image=_word(labels, "image"),
                state=state,
                project=_word(labels, _PROJECT_LABEL),
                service=_word(labels, _SERVICE_LABEL),
                host_network=True,
                asked=False,
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
            other = self._find(container.joined)
            if container.host_network or other is None:
                break
            container = other
        return container.host_network

    def _find(self, called: str) -> Container | None:
        """Return the container of an id, of the beginning of one, or of a name, as engines take them."""
        if not called or called in self.containers:
            return self.containers.get(called)
        named = [other for other in self.containers.values() if other.name == called]
        begun = [other for other in self.containers.values() if other.id.startswith(called)]
        return next(iter((*named, *begun)), None)

    async def inspect(self, container: Container) -> int | None:
        """Ask for what lists and events do not say; return its first process, None if it does not run."""
        content = await self._ask(f"containers/{container.id}/json", "inspect")
        try:
            return self._take_inspected(container, content) if content else None
        except (ValueError, TypeError, AttributeError):
            self._faults["inspect"] = "a container's description could not be read"
            return None

    def _take_inspected(self, container: Container, content: Mapping[str, Any]) -> int | None:
        if config := content.get("HostConfig"):
            _set_network(container, config)
        if not container.asked and (name := content.get("Name")):
            config = content.get("Config") or {}
            labels = config.get("Labels") or {}
            container.name = str(name).removeprefix("/")
            container.image = _word(config, "Image")
            container.project = _word(labels, _PROJECT_LABEL)
            container.service = _word(labels, _SERVICE_LABEL)
            self._shorten(container)
        container.asked = True
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
        return await self._ask(f"containers/{container.id}/stats", "statistics", params)

    async def _ask(self, path: str, part: str, params: Mapping[str, str] | None = None) -> Mapping[str, Any]:
        """Return an answer; empty if there is none, which is `part`'s trouble if the container is there."""
        import aiodocker  # noqa: PLC0415 - it is loaded by now
        import aiohttp  # noqa: PLC0415 - likewise

        if self._docker is None:
            return {}
        try:
            content = await get_json(self._docker, path, params)
        except (aiodocker.DockerError, aiohttp.ClientError, OSError, RuntimeError, ValueError) as error:
            has_gone = isinstance(error, aiodocker.DockerError) and error.status == 404
            if not has_gone:
                self._faults[part] = self._say(error)
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
    return await _get(docker, f"{docker.docker_host}/{docker.api_version}/{path}", params)


async def _get(docker: aiodocker.Docker, url: str, params: Mapping[str, str] | None = None) -> Any:
    async with docker.session.get(url, params=params) as answer:
        await _check_status(answer)
        return json.loads(await _read_bounded(answer))


async def _check_status(answer: aiohttp.ClientResponse) -> None:
    """Raise DockerError with what the engine says if its answer is an error."""
    import aiodocker  # noqa: PLC0415 - it is loaded by now

    if answer.status >= 400:
        raise aiodocker.DockerError(answer.status, _message_of(await _read_bounded(answer)))


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
    """Return the container of an entry of /containers/json. Raises: various, if it has another shape."""
    names = entry.get("Names") or []
    if isinstance(names, str):
        names = [names]
    labels = entry.get("Labels") or {}
    # A container that others link to is also listed under their names; its own name has one slash.
    own = [name for name in names if name.count("/") <= 1]
    identity = str(entry["Id"])
    if not _ID.fullmatch(identity):
        raise ValueError(f"{identity[:80]!r} is not a container's id")
    name = (own or names or [identity[:12]])[0]
    container = Container(
        id=identity,
        name=name.removeprefix("/"),
        image=_word(entry, "Image"),
        state=_word(entry, "State").lower(),
        project=_word(labels, _PROJECT_LABEL),
        service=_word(labels, _SERVICE_LABEL),
    )
    _set_network(container, entry.get("HostConfig") or {})
    return container


def _word(content: Mapping[str, Any], key: str, otherwise: str = "") -> str:
    """Return a text out of an answer; engines write null for some that there are not."""
    found = content.get(key)
    return found if isinstance(found, str) and found else otherwise


def _set_network(container: Container, config: Mapping[str, Any]) -> None:
    """Take whose network a container is on, out of its HostConfig."""
    mode = _word(config, "NetworkMode")
    container.host_network = mode == "host"
    kind, _, other = mode.partition(":")
    container.joined = other if kind == "container" else ""
