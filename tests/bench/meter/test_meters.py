"""The agent over HTTP: what its answers are taken for, and how a trace and its edges are read."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from aiohttp.test_utils import TestServer

from powerbench_agent.bench.meter.client import AgentClient, AgentFailed
from powerbench_agent.bench.meter.energy import energy_between
from powerbench_agent.bench.meter.meters import Meters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class FakeAgent:
    """An agent's HTTP half that answers what it is told to; its counter moves at fresh readings it grants."""

    def __init__(self) -> None:
        self.status = 200
        self.body: Any = None
        self.refusals = 0
        self.joules = 0.0
        self.monotonic = 0.0
        self.authorization: list[str | None] = []
        self.queries: list[dict[str, str]] = []
        self.samples: list[dict[str, Any]] = []

    async def snapshot(self, request: web.Request) -> web.Response:
        self.authorization.append(request.headers.get("Authorization"))
        self.queries.append(dict(request.query))
        fresh = self.refusals == 0
        self.refusals = max(0, self.refusals - 1)
        if request.query.get("fresh") and fresh:
            self.joules, self.monotonic = self.joules + 10, self.monotonic + 1
        good = self._answer(fresh=fresh)
        return web.json_response(good if self.body is None else self.body, status=self.status)

    async def watch(self, request: web.Request) -> web.StreamResponse:
        self.authorization.append(request.headers.get("Authorization"))
        if self.status != 200:
            return web.Response(status=self.status)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if self.status != 200:
                break
            count, _ = message.data.split()
            readings = []
            for _ in range(int(count)):
                self.joules, self.monotonic = self.joules + 10, self.monotonic + 1
                readings.append(self._answer(fresh=True))
            await socket.send_bytes(json.dumps(readings if self.body is None else self.body).encode())
        return socket

    def _answer(self, *, fresh: bool) -> dict[str, Any]:
        meter = {"component": "cpu", "source": "rapl", "key": "x", "joules": self.joules}
        state = {
            "up": True,
            "time": 0.0,
            "monotonic": self.monotonic,
            "samples": self.samples,
            "meters": [meter],
        }
        return {"time": 0.0, "fresh": fresh, "collectors": {"rapl": state}}


@pytest.fixture
async def fake() -> AsyncIterator[tuple[FakeAgent, AgentClient]]:
    agent = FakeAgent()
    app = web.Application()
    app.router.add_get("/api/v1/snapshot", agent.snapshot)
    app.router.add_get("/api/v1/watch", agent.watch)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        yield agent, AgentClient(session, str(server.make_url("/")), token="s3cret")


async def test_the_token_goes_in_the_header_alone(fake: tuple[FakeAgent, AgentClient]) -> None:
    """A token is shown as a bearer's and never in the URL."""
    agent, client = fake
    await client.snapshot()
    assert agent.authorization == ["Bearer s3cret"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, None, "refuses the token of --token-file"),
        (401, None, "refuses the token of --token-file"),
        (500, None, "answers 500"),
        (200, {"no": 1}, "is not a powerbench agent"),
        (200, [1], "is not a powerbench agent"),
    ],
)
async def test_an_agent_that_refuses_is_one_clear_error(
    fake: tuple[FakeAgent, AgentClient], status: int, body: Any, words: str
) -> None:
    """A refusal, a fault and a foreign server each have an error that says what they are, and what to do."""
    agent, client = fake
    agent.status, agent.body = status, body
    with pytest.raises(AgentFailed, match=words):
        await client.snapshot()


async def test_without_a_token_it_is_asked_for(fake: tuple[FakeAgent, AgentClient]) -> None:
    """A client without a token is told to give one, not that its token is refused."""
    agent, client = fake
    agent.status = 403
    async with aiohttp.ClientSession() as session:
        with pytest.raises(AgentFailed, match="give --token-file"):
            await AgentClient(session, client.url).snapshot()


class NoNames(AbstractResolver):
    """A resolver that fails, as getaddrinfo does."""

    def __init__(self, error: socket.gaierror) -> None:
        self.error = error

    async def resolve(self, *_: Any, **__: Any) -> Any:
        raise self.error

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "the name worker1 is unknown"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "temporary failure"),
    ],
)
async def test_a_name_that_is_not_found_is_said_to_be_the_name(error: socket.gaierror, words: str) -> None:
    """A resolver's error numbers are not the system's: an unknown name is reported as one."""
    connector = aiohttp.TCPConnector(resolver=NoNames(error))
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(AgentFailed, match=words):
            await AgentClient(session, "http://worker1:9510").snapshot()


async def test_an_agent_that_is_not_there_is_one_clear_error() -> None:
    """A refused connection is reported in the system's words, with the command that starts an agent."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(AgentFailed, match=r"refused.*powerbench-agent"):
            await AgentClient(session, "http://127.0.0.1:1").snapshot()


async def test_an_edge_waits_until_the_agent_reads_for_it(fake: tuple[FakeAgent, AgentClient]) -> None:
    """While the agent reports that its reading is not fresh, the edge is requested again."""
    agent, client = fake
    agent.refusals = 2
    edge = await Meters([client]).edge()
    assert [mark.joules for mark in edge.marks.values()] == [10]
    assert len(agent.authorization) == 3


async def test_two_edges_are_two_readings(fake: tuple[FakeAgent, AgentClient]) -> None:
    """The energy between two edges is the counter's, whatever lies between."""
    _, client = fake
    meters = Meters([client])
    begin = await meters.edge()
    assert energy_between(begin, await meters.edge(begin)).joules == 10


async def test_readings_that_follow_come_over_one_connection(fake: tuple[FakeAgent, AgentClient]) -> None:
    """The trace has ten a second, sent together; the token is in the header, once."""
    agent, client = fake
    meters = Meters([client])
    edges = [*await meters.follow(1.0, 3.0), *await meters.follow(1.0, 2.0)]
    assert [mark.joules for edge in edges for mark in edge.marks.values()] == [10, 20, 30, 40, 50]
    assert agent.authorization == ["Bearer s3cret"]
    # Each has the moment of its reading, by our own clock: a third of a second apart.
    assert [edges[2].time - edge.time for edge in edges[:3]] == pytest.approx([2 / 3, 1 / 3, 0])


async def test_a_time_too_short_for_a_reading_has_none(fake: tuple[FakeAgent, AgentClient]) -> None:
    """No agent is asked, and the time passes."""
    agent, client = fake
    assert await Meters([client]).follow(0.01, 10.0) == []
    assert agent.authorization == []


async def test_an_agent_that_does_not_know_us_is_asked_for_its_last_reading(
    fake: tuple[FakeAgent, AgentClient],
) -> None:
    """Its few fresh readings are kept for the edges."""
    agent, known = fake
    client = AgentClient(known._session, known.url)
    edges = await Meters([client]).follow(1.0, 100.0)
    assert [mark.joules for edge in edges for mark in edge.marks.values()] == [0]
    assert agent.authorization == [None]


async def test_a_watch_that_breaks_is_one_error_and_then_starts_again(
    fake: tuple[FakeAgent, AgentClient],
) -> None:
    """An agent that restarts costs the trace a second, and no more."""
    agent, client = fake
    await client.watch(1, 0)
    agent.status = 503
    with pytest.raises(AgentFailed):
        await client.watch(1, 0)
    with pytest.raises(AgentFailed, match="answers 503"):
        await client.watch(1, 0)
    agent.status = 403
    with pytest.raises(AgentFailed, match="--token-file"):
        await client.watch(1, 0)
    agent.status = 200
    assert (await client.watch(1, 0))[0]["collectors"]["rapl"]["monotonic"] == 2
    for body in ([], {}, [1], [{}]):
        agent.body = body
        with pytest.raises(AgentFailed, match="is not a powerbench agent"):
            await client.watch(1, 0)


async def test_the_gpus_are_the_agents_latest_samples(fake: tuple[FakeAgent, AgentClient]) -> None:
    """They are asked for with their samples, and never freshly: that is kept for the counters."""
    agent, client = fake
    agent.samples = [
        {"name": "nvidia_gpu_temperature_celsius", "labels": {"gpu": "0", "uuid": "GPU-a"}, "value": 31}
    ]
    assert (await Meters([client]).gpus())["0 (GPU-a)"].celsius == 31
    assert agent.queries[-1] == {}
    assert list(await Meters([client, client]).gpus()) == [f"{client.label}: 0 (GPU-a)"]


@pytest.mark.parametrize(("status", "body"), [(500, None), (200, {"no": 1}), (200, {"collectors": {"x": 1}})])
async def test_an_agent_that_does_not_answer_has_no_gpus(
    fake: tuple[FakeAgent, AgentClient], status: int, body: Any
) -> None:
    """Not knowing the GPUs costs no window."""
    agent, client = fake
    agent.status, agent.body = status, body
    assert await Meters([client]).gpus() == {}


async def test_a_password_in_an_agents_url_is_not_shown() -> None:
    """Neither in results, where the agent is named, nor in errors."""
    async with aiohttp.ClientSession() as session:
        client = AgentClient(session, "http://me:pa55word@127.0.0.1:1/")
        assert client.label == "http://***@127.0.0.1:1"
        with pytest.raises(AgentFailed, match=r"no agent at http://\*\*\*@127.0.0.1:1: ") as failed:
            await client.snapshot()
    assert "pa55" not in str(failed.value)
