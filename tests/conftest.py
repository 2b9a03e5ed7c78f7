"""What several test files share: clocks, scripted collectors, an agent in-process, an agent of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import settings

from powerbench_agent.agent.access import Access
from powerbench_agent.agent.http import Handlers
from powerbench_agent.agent.listen import Site
from powerbench_agent.agent.scheduler import Scheduler
from powerbench_agent.core.options import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from aiohttp import web

    from powerbench_agent.core.model import Reading

# A slow machine is no failure, and what a run found stays out of the working tree.
settings.register_profile("suite", deadline=None, database=None)
settings.load_profile("suite")

# looptime asks for the current event loop in every test, and asyncio would make one that nobody closes.
asyncio.set_event_loop(None)

# A shell without job control starts background jobs with SIGINT ignored, and children inherit it: tests that
# send SIGINT would wait for ever. With a handler of our own set here, children get the default action.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PATIENCE = 20.0  # seconds; how long a test waits for another process before it calls it lost


@pytest.hookimpl(optionalhook=True)  # of xdist, which may be switched off
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes --numprocesses=auto has: more than cores, for many tests wait for others."""
    return len(os.sched_getaffinity(0)) * 3 // 2


class FakeClock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.unix = 1_800_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.unix

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.unix += seconds


class LoopClock:
    """The event loop's own time, for tests whose loop runs on virtual time."""

    EPOCH = 1_800_000_000.0

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def time(self) -> float:
        return self.EPOCH + self.monotonic()

    async def until(self, when: float) -> None:
        """Let everything happen that is due up to `when`."""
        loop = asyncio.get_running_loop()
        reached = loop.create_future()
        loop.call_at(when, reached.set_result, None)
        await reached


class Scripted:
    """A collector that does what is written down: a Reading, an exception, or None for never answering.

    The last step goes on for ever.
    """

    def __init__(self, *script: Reading | BaseException | None) -> None:
        self.script = list(script)
        self.read_at: list[float] = []
        self.closed = 0

    async def read(self) -> Reading:
        self.read_at.append(asyncio.get_running_loop().time())
        return await self.step(self.script)

    async def aclose(self) -> None:
        self.closed += 1

    @staticmethod
    async def step(script: list[Reading | BaseException | None]) -> Reading:
        now = script.pop(0) if len(script) > 1 else script[0]
        if now is None:
            await asyncio.Event().wait()
        if isinstance(now, BaseException):
            raise now
        assert now is not None
        return now


class Cheap(Scripted):
    """One that a scrape may ask for its counters; `refreshes` is its second script."""

    def __init__(self, *script: Reading | BaseException | None) -> None:
        super().__init__(*script)
        self.refreshes = list(script)
        self.refreshed = 0

    async def refresh(self) -> Reading:
        self.refreshed += 1
        return await self.step(self.refreshes)


class Served(NamedTuple):
    """An agent's HTTP half in this process; it beats when a test says so."""

    client: TestClient[web.Request, web.Application]
    scheduler: Scheduler
    handlers: Handlers


class AgentProcess:
    """A powerbench-agent in a process of its own, and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url
        self.said: list[str] = []

    async def logged(self, event: str) -> dict[str, Any]:
        """Return the next log line that tells of this event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while line := await self.process.stderr.readline():
                self.said.append(line.decode())
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if entry.get("event") == event:
                    return dict(entry)
        raise AssertionError(f"it never said {event!r}, but: {''.join(self.said)}")

    async def get(self, path: str) -> str:
        """Return the body of a successful GET."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            assert response.status == 200, await response.text()
            return await response.text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> tuple[int, str, str]:
        """Return (exit code, standard output, everything it has ever said on standard error)."""
        async with asyncio.timeout(PATIENCE):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), "".join(self.said) + err.decode()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def loop_clock() -> LoopClock:
    return LoopClock()


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture
def cheap() -> type[Cheap]:
    return Cheap


@pytest.fixture
async def serve(clock: FakeClock) -> AsyncIterator[Callable[..., Awaitable[Served]]]:
    """Return a function that serves collectors by name, under these rules, on a free loopback port."""
    clients = []

    async def start(
        collectors: Mapping[str, Any], rules: Access | None = None, *, aggregated: bool = True
    ) -> Served:
        async def found(collector: Any) -> Any:
            return collector

        opens = {name: (lambda c=c: found(c), 1.0) for name, c in collectors.items()}
        scheduler = Scheduler(opens, clock)
        handlers = Handlers(scheduler, rules or Access(), clock)
        address = Address("127.0.0.1", 0)
        handlers.sites[address] = Site(frozenset(collectors), aggregated)
        client = TestClient(TestServer(handlers.application(address)))
        await client.start_server()
        clients.append(client)
        return Served(client, scheduler, handlers)

    yield start
    for client in clients:
        await client.close()


@pytest.fixture
def free_port() -> int:
    """Return a TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the files (certificate, key) of a server on 127.0.0.1 that nobody trusts yet."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("NOT CHECKED: openssl is not on the PATH, so there is no certificate to serve")
    where = tmp_path_factory.mktemp("tls")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(where / "key.pem"), "-out", str(where / "cert.pem")]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [openssl, "req", "-x509", *curve, *files, *names, "-days", "2"], check=True, capture_output=True
    )
    return str(where / "cert.pem"), str(where / "key.pem")


@pytest.fixture
def bare_host(tmp_path: Path) -> Iterator[list[str]]:
    """Return the flags of a machine that has nothing: no sensor, no /proc."""
    (tmp_path / "sys").mkdir()
    (tmp_path / "proc").mkdir()
    return ["--sysfs", str(tmp_path / "sys"), "--procfs", str(tmp_path / "proc")]


@pytest.fixture
async def launch(free_port: int) -> AsyncIterator[Callable[..., Awaitable[AgentProcess]]]:
    """Return a function that starts `powerbench-agent` with these arguments and this environment on top."""
    started: list[asyncio.subprocess.Process] = []

    async def start(
        *arguments: str, env: Mapping[str, str] | None = None, command: tuple[str, ...] = (), **how: Any
    ) -> AgentProcess:
        clean = {k: v for k, v in os.environ.items() if k not in ("JOURNAL_STREAM", "NOTIFY_SOCKET")}
        process = await asyncio.create_subprocess_exec(
            *(command or (sys.executable, "-m", "powerbench_agent.agent.cli")),
            *arguments,
            env={**clean, **(env or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **how,
        )
        started.append(process)
        return AgentProcess(process, f"http://127.0.0.1:{free_port}")

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()
