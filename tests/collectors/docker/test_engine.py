"""What the engine says: lists, events in Docker's words and in Podman's, and what the engine itself costs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiodocker
import pytest
from aiohttp import web
from cgroup_trees import Machine, identity
from hypothesis import given
from hypothesis import strategies as st
from places import CAPTURES

from powerbench_agent.collectors.docker import engine as engine_module
from powerbench_agent.collectors.docker.engine import (
    LIVE,
    STATES,
    Container,
    Engine,
    get_json,
    parse_api,
    parse_listed,
)
from powerbench_agent.collectors.docker.engine_processes import SEARCH_SECONDS, SPAN_SECONDS, EngineProcesses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

KEY = identity(7)
PAGE = 4096


def engine(max_containers: int = 100, max_name_length: int = 200) -> Engine:
    return Engine("unix:///nowhere", max_containers, max_name_length)


def event(action: str, key: str = KEY, **attributes: str) -> dict[str, Any]:
    """Return an event as both engines shape it."""
    return {"Type": "container", "Action": action, "Actor": {"ID": key, "Attributes": attributes}}


def captured() -> list[dict[str, Any]]:
    """Return what Docker 20.10 really sent: two containers' lives, with exec and a restart."""
    return [json.loads(line) for line in (CAPTURES / "docker_events.jsonl").read_text().splitlines()]


# -- events ------------------------------------------------------------------------------------------


def test_a_real_engines_events_tell_a_whole_life() -> None:
    """Create to destroy as Docker sent it: each state in turn, the new name, compose's labels, and gone."""
    known = engine()
    seen: list[tuple[str, str, bool]] = []
    for entry in captured():
        known.take(entry)
        now = [(c.name, c.state, c.started_here) for c in known.containers.values()]
        if now and (not seen or now[0] != seen[-1]):
            seen += now
            (container,) = known.containers.values()
            if container.name != "gone":
                assert (container.project, container.service) == ("shop", "web")
            assert container.image == "bb"
    assert seen == [
        ("web", "created", False),
        ("web", "running", True),
        ("web", "paused", True),
        ("web", "running", True),
        ("shop_web_1", "running", True),
        ("shop_web_1", "exited", True),
        ("shop_web_1", "running", True),
        ("shop_web_1", "exited", True),
        ("gone", "created", False),
        ("gone", "running", True),
        ("gone", "exited", True),
    ]
    assert known.containers == {}


@pytest.mark.parametrize(
    ("actions", "state"),
    [
        (["create"], "created"),
        (["create", "init", "start"], "running"),
        (["start", "pause"], "paused"),
        (["start", "pause", "unpause"], "running"),
        (["start", "kill", "die", "stop"], "exited"),
        (["start", "died", "cleanup"], "exited"),
        (["start", "die", "start", "restart"], "running"),
        (["start", "oom"], "running"),
        (["start", "die", "destroy"], None),
        (["start", "died", "remove"], None),
        (["destroy", "die"], "exited"),
        (["die", "start"], "running"),
        (["pause"], "paused"),
    ],
)
def test_states_in_both_engines_words(actions: list[str], state: str | None) -> None:
    """What Docker and Podman call a change leaves the state that it means, in whatever order it came."""
    known = engine()
    for action in actions:
        known.take(event(action, name="web", image="bb"))
    assert [container.state for container in known.containers.values()] == ([state] if state else [])


@pytest.mark.parametrize(
    "action",
    [
        *(
            "attach",
            "commit",
            "copy",
            "detach",
            "export",
            "kill",
            "oom",
            "rename",
            "resize",
            "restart",
            "stop",
        ),
        *(
            "exec_create: sh -c start",
            "exec_start: start",
            "exec_die",
            "exec_detach",
            "health_status: healthy",
        ),
        *(
            "health_status",
            "top",
            "update",
            "prune",
            "init",
            "sync",
            "mount",
            "",
            "a word of the next version",
        ),
    ],
)
def test_other_events_of_unknown_containers_make_none(action: str) -> None:
    """Other events neither create an unknown container nor change a known one."""
    known = engine()
    known.take(event(action, name="web"))
    assert known.containers == {}
    known.take(event("start", name="web"))
    before = replace(known.containers[KEY])
    known.take(event(action, name="web"))
    assert known.containers[KEY] == before


@pytest.mark.parametrize(
    "garbage",
    [
        {},
        {"Action": "start"},
        {"Actor": None, "Action": "start"},
        {"Actor": {}, "Action": "start"},
        {"Actor": {"ID": ""}, "Action": "destroy"},
        {"Actor": {"ID": KEY}},
        {"Actor": {"ID": KEY, "Attributes": None}, "Action": None},
        {"Actor": {"ID": KEY, "Attributes": {}}, "Action": 5},
    ],
)
def test_garbage_is_passed_over(garbage: dict[str, Any]) -> None:
    """An event without a container or an action is ignored."""
    known = engine()
    known.take(garbage)
    assert known.containers == {}


def test_an_event_whose_words_are_null() -> None:
    """What an engine does not know is empty, and no word "None"."""
    known = engine()
    known.take({"Actor": {"ID": KEY, "Attributes": {"name": None, "image": None}}, "Action": "start"})
    assert (known.containers[KEY].name, known.containers[KEY].image) == (KEY[:12], "")


def test_an_event_of_the_old_form() -> None:
    """Without Actor, the id and status of API 1.21 serve; the name is then the id's beginning."""
    known = engine()
    known.take({"status": "start", "id": KEY, "from": "bb"})
    assert known.containers[KEY].name == KEY[:12]
    assert known.containers[KEY].state == "running"


def test_a_restart_is_a_start_that_was_seen() -> None:
    """A container that ran before the agent and is started again is counted in full from then on."""
    known = engine()
    known.containers[KEY] = Container(KEY, "web", "bb", "running")
    known.take(event("die"))
    assert not known.containers[KEY].started_here
    known.take(event("start"))
    assert known.containers[KEY].started_here


def test_beyond_the_cap_containers_are_counted_once() -> None:
    """A container beyond max_containers is not kept, and counts as ignored once, whatever happens to it."""
    known = engine(max_containers=2)
    for number in range(4):
        for action in ("create", "start", "pause", "unpause"):
            known.take(event(action, identity(number)))
    known.take(event("die", identity(3)))
    assert list(known.containers) == [identity(0), identity(1)]
    assert known.ignored == 2
    for _ in range(2):
        said = [(trouble.limit, trouble.error) for trouble in known.take_troubles()]
        assert said == [("max_containers", "2 containers beyond max_containers are not shown")]


def test_a_container_that_ended_makes_room_for_one_that_runs() -> None:
    """The cap is for what is shown: containers that have exited do not keep a running one out."""
    known = engine(max_containers=2)
    for number in range(2):
        known.take(event("start", identity(number)))
        known.take(event("die", identity(number)))
    known.take(event("start", identity(2)))
    assert identity(2) in known.containers
    assert len(known.containers) == 2


def test_names_are_cut() -> None:
    """A name longer than max_name_length is cut, and ends in the id: no two containers become one series."""
    known = engine(max_name_length=20)
    known.take(event("start", name="n" * 300))
    assert known.containers[KEY].name == "n" * 11 + f"~{KEY[:8]}"
    known.take(event("rename", name="m" * 300))
    assert known.containers[KEY].name == "m" * 11 + f"~{KEY[:8]}"


_words = st.sampled_from(
    ["create", "start", "die", "died", "pause", "unpause", "rename", "destroy", "remove", "x"]
)


@given(st.lists(st.tuples(_words, st.integers(0, 5)), max_size=60))
def test_any_order_leaves_no_more_than_the_cap_and_known_states(events: list[tuple[str, int]]) -> None:
    """Any events in any order: never above the limit, only known states, and `ignored` never falls."""
    known = engine(max_containers=3)
    ignored = 0
    for action, number in events:
        known.take(event(action, identity(number), name=f"c{number}"))
        assert len(known.containers) <= 3
        assert {container.state for container in known.containers.values()} <= set(STATES)
        assert known.ignored >= ignored
        ignored = known.ignored


# -- lists -------------------------------------------------------------------------------------------


def test_a_real_engines_list() -> None:
    """What Docker lists: name without its slash, image, state, compose's labels, the network's mode."""
    web, other = (parse_listed(entry) for entry in json.loads((CAPTURES / "docker_list.json").read_text()))
    assert web == Container(web.id, "shop_web_1", "bb", "running", "shop", "web")
    assert other == Container(other.id, "b1", "bb", "running", "x", "web")
    assert web.state in LIVE


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"Id": KEY}, Container(KEY, KEY[:12], "", "")),
        ({"Id": KEY, "Names": None, "Labels": None, "HostConfig": None}, Container(KEY, KEY[:12], "", "")),
        ({"Id": KEY, "Names": [], "State": "Running"}, Container(KEY, KEY[:12], "", "running")),
        ({"Id": KEY, "Names": ["/web/db", "/db"]}, Container(KEY, "db", "", "")),
        ({"Id": KEY, "Names": ["/web/db"]}, Container(KEY, "web/db", "", "")),
        ({"Id": KEY, "Names": "/one"}, Container(KEY, "one", "", "")),
        (
            {"Id": KEY, "Image": None, "State": None, "HostConfig": {"NetworkMode": None}},
            Container(KEY, KEY[:12], "", ""),
        ),
        (
            {"Id": KEY, "State": {"Running": True}, "Labels": {"com.docker.compose.project": None}},
            Container(KEY, KEY[:12], "", ""),
        ),
        ({"Id": KEY, "Names": ["plain"], "Labels": {"a": "b"}}, Container(KEY, "plain", "", "")),
        (
            {"Id": KEY, "Names": ["/h"], "HostConfig": {"NetworkMode": "host"}},
            Container(KEY, "h", "", "", host_network=True),
        ),
    ],
)
def test_lists_of_any_shape(entry: dict[str, Any], expected: Container) -> None:
    """No names, no labels, links' names beside its own, words in capitals: the container all the same."""
    assert parse_listed(entry) == expected


@pytest.mark.parametrize(("text", "version"), [("1.41", (1, 41)), ("1.24", (1, 24)), ("2", (2,))])
def test_api_versions_compare(text: str, version: tuple[int, ...]) -> None:
    """1.9 is older than 1.41."""
    assert parse_api(text) == version
    assert parse_api("1.9") < parse_api("1.41")


@pytest.mark.parametrize("text", ["", "None", "1.x", "nginx/1.2", "1..2", "\n" * 100])
def test_a_version_that_is_none_names_what_it_read(text: str) -> None:
    """A text that is not a version is refused with a hint that something else may be listening there."""
    with pytest.raises(ValueError, match="is it a container engine"):
        parse_api(text)


# -- answers -----------------------------------------------------------------------------------------


@pytest.fixture
async def answering(tmp_path: Path) -> AsyncIterator[aiodocker.Docker]:
    """Yield a client of a socket that answers in the engine's forms."""

    async def answer(request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        if kind == "echo":
            return web.json_response({"path": request.path, "query": dict(request.query)})
        if kind == "missing":
            return web.json_response({"message": "no such container"}, status=404)
        if kind == "proxy":
            return web.Response(text="<html>" + "x" * 1000, status=502)
        return web.Response(body=b" " * (engine_module.MAX_ANSWER_BYTES + 1))

    application = web.Application()
    application.router.add_get("/v1.41/containers/{kind}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "engine.sock")).start()
    async with aiodocker.Docker(url=f"unix://{tmp_path}/engine.sock", api_version="v1.41") as docker:
        yield docker
    await runner.cleanup()


async def test_an_answer_is_json_of_the_negotiated_version(answering: aiodocker.Docker) -> None:
    """A question goes to the negotiated API version, with its parameters."""
    found = await get_json(answering, "containers/echo", {"all": "1"})
    assert found == {"path": "/v1.41/containers/echo", "query": {"all": "1"}}


@pytest.mark.parametrize(
    ("kind", "said"), [("missing", "[404] no such container"), ("proxy", "[502] <html>")]
)
async def test_a_refusal_says_what_the_engine_said(answering: aiodocker.Docker, kind: str, said: str) -> None:
    """The message of an error is passed on, from the engine or from a proxy, up to a bound."""
    with pytest.raises(aiodocker.DockerError) as refused:
        await get_json(answering, f"containers/{kind}")
    assert str(refused.value).startswith(said)
    assert len(str(refused.value)) <= 250


async def test_an_answer_is_bounded(answering: aiodocker.Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is too long is an error, and is not read to its end."""
    monkeypatch.setattr(engine_module, "MAX_ANSWER_BYTES", 10_000)
    with pytest.raises(ValueError, match="longer than 10000 bytes"):
        await get_json(answering, "containers/flood")


# -- its processes -----------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def processes(machine: Machine) -> EngineProcesses:
    return EngineProcesses(machine.host)


def test_no_engine_costs_nothing_known(machine: Machine, processes: EngineProcesses) -> None:
    """Where no process has the engine's name, both figures are unknown and not 0."""
    machine.add_process(10, "bash")
    assert processes.look(1000.0) == (None, None)
    assert processes.look(1001.0) == (None, None)


def test_the_daemons_are_added_up_and_shims_left_out(machine: Machine, processes: EngineProcesses) -> None:
    """dockerd, containerd and podman count; containerd-shim, which is a container's, does not."""
    for pid, comm in enumerate(
        ("dockerd", "containerd", "podman", "containerd-shim", "docker-proxy"), start=10
    ):
        machine.add_process(pid, comm, ticks=100, pages=50)
    assert processes.look(1000.0) == (None, 3 * 50 * PAGE)
    for pid, comm in enumerate(
        ("dockerd", "containerd", "podman", "containerd-shim", "docker-proxy"), start=10
    ):
        machine.add_process(pid, comm, ticks=120, pages=50)
    percent, _ = processes.look(1000.0 + SPAN_SECONDS)
    assert percent == pytest.approx(3 * 20 / SPAN_SECONDS)  # hundredths of a second in five seconds


def test_an_engine_that_starts_again_never_shows_less_than_nothing(
    machine: Machine, processes: EngineProcesses
) -> None:
    """Under its old number or a new one, a new daemon's figures begin at its start, not below zero."""
    machine.add_process(10, "dockerd", ticks=5000)
    processes.look(1000.0)
    machine.add_process(10, "dockerd", ticks=3, start=900)
    assert processes.look(1000.0 + SPAN_SECONDS)[0] == 0
    (machine.procfs / "10/stat").unlink()
    assert processes.look(1006.0) == (None, None)
    machine.add_process(11, "dockerd", ticks=7, start=990)
    processes.look(1000.0 + SEARCH_SECONDS)
    machine.add_process(11, "dockerd", ticks=57, start=990)
    assert processes.look(1000.0 + SEARCH_SECONDS + SPAN_SECONDS)[0] == pytest.approx(50 / SPAN_SECONDS)


@pytest.mark.parametrize("spoil", [lambda file: file.write_text(""), lambda file: file.unlink()])
def test_a_process_that_goes_while_it_is_read(
    machine: Machine, processes: EngineProcesses, spoil: Callable[[Path], None]
) -> None:
    """A process whose files vanish or are empty in between is passed over without an exception."""
    for name in ("stat", "statm", "comm"):
        machine.add_process(10, "dockerd")
        processes.look(2000.0)
        spoil(machine.procfs / "10" / name)
        percent, resident = processes.look(2001.0)
        assert (percent or 0) >= 0
        assert resident in (None, 0, 100 * PAGE)
