"""An engine that hangs, lies, refuses or dies at any of its answers: what else is known goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from cgroup_trees import CGROUPFS, SYSTEMD, Machine
from trees import value, values

from powerbench_agent.collectors.docker import collector as docker
from powerbench_agent.collectors.docker.engine import MAX_EVENT_BYTES
from powerbench_agent.core.model import Absent, ReadFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from powerbench_agent.core.model import Reading

PATIENCE = 20.0  # seconds for what another task does at once
HANG = "hang"
GARBAGE = "garbage"
REFUSE = "refuse"


def identity(number: int) -> str:
    """Return a container's id; its short form is unique."""
    return f"{number:012x}".ljust(64, "0")


def listed(number: int, name: str, **more: Any) -> dict[str, Any]:
    """Return an entry of the list."""
    return {"Id": identity(number), "Names": [f"/{name}"], "Image": "i", "State": "running", **more}


class FakeEngine:
    """An engine on a socket; `moods` says which of its answers go wrong, and how."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.moods: dict[str, str] = {}
        self.list: Any = []
        self.events: asyncio.Queue[bytes] = asyncio.Queue()
        self.asked: list[str] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        application = web.Application()
        application.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.path)).start()

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        what = request.path.rpartition("/")[2]
        if what == "json":
            what = "list" if request.path.endswith("containers/json") else "inspect"
        self.asked.append(what)
        mood = self.moods.get(what)
        if mood == HANG:
            await asyncio.Event().wait()
        if mood == GARBAGE:
            return web.Response(text="<html>")
        if mood == REFUSE:
            return web.json_response({"message": "no"}, status=500)
        if what == "events":
            return await self._send_events(request)
        answers = {
            "version": {"ApiVersion": "1.41"},
            "list": self.list,
            "stats": {"cpu_stats": {"cpu_usage": {"total_usage": 10**9}}},
            "inspect": {"Name": "/told", "State": {"Pid": 1}, "HostConfig": {"NetworkMode": "bridge"}},
        }
        return web.json_response(answers[what])

    async def _send_events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(await self.events.get())


class Driven:
    """The collector of such an engine on a machine of files."""

    def __init__(self, machine: Machine, engine: FakeEngine) -> None:
        self.machine = machine
        self.engine = engine
        self.collector = docker.Docker(docker.Options(), machine.host, f"unix://{engine.path}")
        self.collector._engine.timeout = 0.1

    async def read(self) -> Reading:
        self.machine.clock.advance(1.0)
        return await self.collector.read()

    async def until(self, is_so: Callable[[Reading], bool]) -> Reading:
        """Read until it is so; a reading may fail on the way."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    if is_so(reading := await self.read()):
                        return reading
                except ReadFailed:
                    pass
                await asyncio.sleep(0.01)

    async def until_down(self) -> None:
        """Read until the reading fails."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ReadFailed):
                while True:
                    await self.read()
                    await asyncio.sleep(0.01)

    async def until_part(self, part: str) -> Reading:
        """Read until a part is in trouble."""
        return await self.until(lambda reading: part in troubles(reading))


def troubles(reading: Reading) -> dict[str, str]:
    return {trouble.part: trouble.error for trouble in reading.troubles}


def names(reading: Reading) -> set[str]:
    return {name for (name,) in values(reading, docker.CPU_SECONDS)}


@pytest.fixture
async def driven(tmp_path: Path) -> AsyncIterator[Driven]:
    """Yield an engine with one container that has a cgroup, "web"."""
    engine = FakeEngine(tmp_path / "engine.sock")
    machine = Machine(tmp_path)
    machine.add(SYSTEMD.format(identity(1)), 3.0, pid=10_001)
    engine.list = [listed(1, "web")]
    await engine.start()
    made = Driven(machine, engine)
    yield made
    await made.collector.aclose()
    await engine.stop()


# -- the engine is away ------------------------------------------------------------------------------


@pytest.mark.parametrize("mood", [HANG, GARBAGE, REFUSE])
@pytest.mark.parametrize("what", ["version", "list"])
async def test_known_containers_go_on_without_the_engine(driven: Driven, what: str, mood: str) -> None:
    """They keep their names, figures and claims; new ones are found by their cgroups; ended ones leave."""
    await driven.until(lambda reading: names(reading) == {"web"})
    driven.engine.moods[what] = mood
    driven.engine.moods["inspect"] = mood
    await driven.engine.events.put(b"x" * (MAX_EVENT_BYTES + 1))  # so that the list is asked for at once
    reading = await driven.until_part("engine")
    assert names(reading) == {"web"}
    assert value(reading, docker.MEMORY, "web") == 4000
    assert [claim.name for claim in reading.claims] == ["web"]
    assert values(reading, docker.CONTAINERS) == {}
    driven.machine.add(SYSTEMD.format(identity(2)), 1.0, pid=10_002)
    driven.machine.add(CGROUPFS.format(identity(3)), 1.0, pid=10_003)
    short = identity(2)[:12]
    reading = await driven.read()
    assert {claim.container for claim in reading.claims} == {identity(1), identity(2), identity(3)}
    assert short in names(reading)
    shutil.rmtree(driven.machine.cgroups / SYSTEMD.format(identity(1)))
    reading = await driven.read()
    assert {claim.container for claim in reading.claims} == {identity(2), identity(3)}
    driven.engine.moods.clear()
    driven.engine.list = [listed(2, "new"), listed(3, "db")]
    reading = await driven.until(lambda reading: "engine" not in troubles(reading))
    assert names(reading) == {"new", "db"}


async def test_another_engines_containers_are_not_taken_for_this_ones(driven: Driven) -> None:
    """What had a cgroup and was not in the engine's list while that could be had, is not shown later."""
    driven.machine.add(SYSTEMD.format(identity(2)), 1.0, pid=10_002)
    driven.machine.add(f"machine.slice/libpod-{identity(3)}.scope", 1.0, pid=10_003)
    driven.collector = docker.Docker(docker.Options(), driven.machine.host, f"unix://{driven.engine.path}")
    await driven.until(lambda reading: names(reading) == {"web"})
    await driven.engine.stop()
    driven.machine.add(SYSTEMD.format(identity(4)), 1.0, pid=10_004)
    reading = await driven.until_part("engine")
    assert names(reading) == {"web", identity(4)[:12]}
    await driven.engine.start()


async def test_an_engine_that_hangs_from_the_beginning(driven: Driven) -> None:
    """Before it has ever answered, containers have their short ids as names; never a moment too early."""
    driven.engine.moods["list"] = HANG
    driven.engine.moods["inspect"] = HANG
    driven.collector._engine.timeout = 1.0
    with pytest.raises(ReadFailed, match="it has not answered yet"):
        await driven.read()
    reading = await driven.until_part("engine")
    assert names(reading) == {identity(1)[:12]}
    assert "no answer within 1 s" in troubles(reading)["engine"]


async def test_where_only_the_list_hangs_names_are_asked_for_one_by_one(driven: Driven) -> None:
    """`docker ps` may hang at one container while others can be inspected."""
    driven.engine.moods["list"] = HANG
    reading = await driven.until(lambda reading: names(reading) == {"told"})
    assert "engine" in troubles(reading)


async def test_an_engine_that_dies(driven: Driven) -> None:
    """Connection refused: containers whose processes live on are shown; when none do, the source is down."""
    await driven.until(lambda reading: names(reading) == {"web"})
    await driven.engine.stop()
    reading = await driven.until_part("engine")
    assert names(reading) == {"web"}
    shutil.rmtree(driven.machine.cgroups / SYSTEMD.format(identity(1)))
    with pytest.raises(ReadFailed, match="no answer from the container engine"):
        await driven.read()
    await driven.engine.start()


async def test_without_a_cgroup_nothing_goes_on(driven: Driven) -> None:
    """Figures that only the engine has are a gap while it is away, not old values."""
    shutil.rmtree(driven.machine.cgroups / SYSTEMD.format(identity(1)))
    await driven.until(lambda reading: names(reading) == {"web"})
    await driven.engine.stop()
    await driven.until_down()
    await driven.engine.start()


# -- single answers ----------------------------------------------------------------------------------


async def test_an_event_that_is_too_long_is_left_out(driven: Driven) -> None:
    """It costs no container: the list is asked for, and says what the event would have said."""
    await driven.until(lambda reading: names(reading) == {"web"})
    driven.machine.add(SYSTEMD.format(identity(2)), 1.0, pid=10_002)
    driven.engine.list = [listed(1, "web"), listed(2, "wordy")]
    long = {"Action": "start", "Actor": {"ID": identity(2), "Attributes": {"x": "y" * MAX_EVENT_BYTES}}}
    await driven.engine.events.put(json.dumps(long).encode() + b"\n")
    reading = await driven.until_part("events")
    assert "web" in names(reading)
    assert "longer than" in troubles(reading)["events"]
    reading = await driven.until(lambda reading: names(reading) == {"web", "wordy"})
    assert "engine" not in troubles(reading)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"5",
        b'{"Actor": 5}',
        b'{"Actor": {"ID": "a", "Attributes": 5}, "Action": "start"}',
        b"\xff",
    ],
)
async def test_an_event_that_cannot_be_read_costs_itself(driven: Driven, line: bytes) -> None:
    """The next event is taken all the same."""
    await driven.until(lambda reading: names(reading) == {"web"})
    rename = {"Action": "rename", "Actor": {"ID": identity(1), "Attributes": {"name": "renamed"}}}
    await driven.engine.events.put(line + b"\n" + json.dumps(rename).encode() + b"\n")
    reading = await driven.until_part("events")
    assert names(reading) == {"renamed"}


@pytest.mark.parametrize("mood", [HANG, REFUSE, GARBAGE])
async def test_without_events_the_list_is_asked_for_again(driven: Driven, mood: str) -> None:
    """Containers come and go with the list; that the events fail is said."""
    driven.engine.moods["events"] = mood
    await driven.until_part("events")
    driven.machine.add(SYSTEMD.format(identity(2)), 1.0, pid=10_002)
    driven.engine.list = [listed(2, "new")]
    reading = await driven.until(lambda reading: names(reading) == {"new"})
    assert "engine" not in troubles(reading)
    assert values(reading, docker.CONTAINERS)["running",] == 1


@pytest.mark.parametrize(
    "entry", [None, 5, [], {}, {"Id": 5, "Labels": 5}, {"Id": "../x"}, {"Id": identity(9), "Names": 5}]
)
async def test_an_entry_of_the_list_costs_itself(driven: Driven, entry: Any) -> None:
    """An entry that cannot be read, or whose id would lead elsewhere, is left out; others are shown."""
    driven.engine.list = [entry, listed(1, "web")]
    reading = await driven.until_part("list")
    assert names(reading) == {"web"}


@pytest.mark.parametrize("mood", [HANG, REFUSE, GARBAGE])
async def test_statistics_that_fail_are_said(driven: Driven, mood: str) -> None:
    """A container without a cgroup has a gap while the engine's own figures fail; others go on."""
    driven.engine.list = [listed(1, "web"), listed(2, "remote")]
    driven.engine.moods["stats"] = mood
    reading = await driven.until_part("statistics")
    assert names(reading) == {"web"}
    driven.engine.moods.clear()
    await driven.until(lambda reading: names(reading) == {"web", "remote"})


async def test_a_description_that_fails_is_asked_for_again(driven: Driven) -> None:
    """A container learned from an event: its network is not known, and not shown, until the engine tells."""
    await driven.until(lambda reading: names(reading) == {"web"})
    driven.engine.moods["inspect"] = REFUSE
    driven.machine.add(SYSTEMD.format(identity(2)), 1.0, pid=10_002)
    start = {"Action": "start", "Actor": {"ID": identity(2), "Attributes": {"name": "told"}}}
    await driven.engine.events.put(json.dumps(start).encode() + b"\n")
    reading = await driven.until_part("inspect")
    assert ("told",) not in values(reading, docker.RX)
    driven.engine.moods.clear()
    await driven.until(lambda reading: ("told",) in values(reading, docker.RX))


# -- which socket ------------------------------------------------------------------------------------


def test_a_socket_that_nobody_listens_at_is_passed_over(tmp_path: Path) -> None:
    """A daemon that was killed leaves its socket: another engine's live one is used."""
    stale, live = str(tmp_path / "docker.sock"), str(tmp_path / "podman.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(stale)
    missing = str(tmp_path / "missing.sock")
    assert docker.choose_socket([missing, stale]) is None
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(live)
        engine.listen()
        assert docker.choose_socket([stale, live]) == live
        assert docker.choose_socket([live, stale]) == live


async def test_a_silent_engine_gives_way_to_another(
    driven: Driven, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systemd listens for a Docker that does not start: Podman, beside it, is asked after half a minute.

    Podman's containers have cgroups, and are not taken for Docker's for longer than that.
    """
    silent, alias = str(tmp_path / "docker.sock"), str(tmp_path / "alias.sock")
    monkeypatch.setattr(docker, "_SOCKETS", (alias, silent, str(driven.engine.path)))
    monkeypatch.setattr(docker, "_given_up", {})
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(silent)
        listening.listen()
        (tmp_path / "alias.sock").symlink_to(silent)
        first = await docker.open_collector(docker.Options(), driven.machine.host)
        assert first._engine.url == f"unix://{alias}"
        first._engine.timeout = 0.1
        driven.collector, configured = first, driven.collector
        with pytest.raises(Absent, match=r"another engine listens at .*engine\.sock"):
            await driven.until(lambda _: False)
        driven.collector = configured
        await first.aclose()
        second = await docker.open_collector(docker.Options(), driven.machine.host)
        assert names(await second.read()) == {"web"}
        await second.aclose()


async def test_an_engine_that_was_configured_is_not_exchanged(driven: Driven) -> None:
    """With `url` set, a dead engine is down however long it takes: no other is looked for."""
    shutil.rmtree(driven.machine.cgroups / SYSTEMD.format(identity(1)))
    await driven.until(lambda reading: names(reading) == {"web"})
    await driven.engine.stop()
    driven.engine.path.touch()
    await driven.until_down()
    for _ in range(int(docker.ABSENT_SECONDS) + 5):
        with pytest.raises(ReadFailed):
            await driven.read()
    driven.engine.path.unlink()
    with pytest.raises(Absent, match="has gone"):
        await driven.read()
    await driven.engine.start()
