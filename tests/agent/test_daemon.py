"""The process as a whole: start, signals, reload, ports, systemd; and the same agent within a process."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import msgspec
import pytest

from powerbench_agent.agent import daemon, roster
from powerbench_agent.agent.access import Access
from powerbench_agent.agent.config import Config, parse
from powerbench_agent.core.model import Reading
from powerbench_agent.core.options import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from conftest import AgentProcess

    Launch = Callable[..., Awaitable[AgentProcess]]

MODULES = roster.load_modules()
KNOWN = roster.options_of(MODULES)
PROGRESS = b"frame=%d\nprogress=continue\n"


def value_of(page: str, series: str) -> float:
    (line,) = [line for line in page.splitlines() if line.startswith(series + " ")]
    return float(line.rpartition(" ")[2])


class Manager:
    """systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)  # noqa: FBT003 - socket's own signature

    async def told(self, assignment: str) -> str:
        """Return the next message that holds this assignment."""
        async with asyncio.timeout(20):
            while True:
                message = (await asyncio.get_running_loop().sock_recv(self.socket, 4096)).decode()
                if assignment in message.split("\n"):
                    return message


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.socket.close()


async def test_a_start_says_which_setting_has_no_effect(
    launch: Launch, bare_host: list[str], free_port: int, tmp_path: Path
) -> None:
    """A state_dir of one's own is one line in the log, and the agent starts all the same."""
    file = tmp_path / "agent.toml"
    file.write_text(f"[agent]\nlisten = '127.0.0.1:{free_port}'\nstate_dir = '/srv/powerbench'\n")
    agent = await launch("--config", str(file), *bare_host)
    said = await agent.logged("setting without effect")
    assert (said["where"], said["key"]) == (str(file), "agent.state_dir")
    await agent.logged("listening")


async def test_a_life_from_start_to_sigterm(
    launch: Launch, bare_host: list[str], free_port: int, manager: Manager
) -> None:
    """READY, WATCHDOG, pages; then SIGTERM: STOPPING and exit 0 within 2 s, an encoder still sending."""
    agent = await launch(
        "--listen", f"127.0.0.1:{free_port}", *bare_host, env={"NOTIFY_SOCKET": manager.path}
    )
    await manager.told("READY=1")
    await manager.told("WATCHDOG=1")
    assert '"ready":true' in await agent.get("/ready")
    _, writer = await asyncio.open_connection("127.0.0.1", free_port)
    writer.write(
        b"POST /ingest/cam HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1b\r\n" + PROGRESS % 26 + b"\r\n"
    )
    await writer.drain()
    while 'ffmpeg_frames_total{stream="cam"} 26.0' not in await agent.get("/metrics"):
        assert agent.process.returncode is None
    loop = asyncio.get_running_loop()
    asked = loop.time()
    agent.signal(signal.SIGTERM)
    await manager.told("STOPPING=1")
    code, out, err = await agent.ended()
    assert loop.time() - asked < 2
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    assert "Warning" not in err
    writer.close()


async def test_sigint_is_a_stop_too(launch: Launch, bare_host: list[str], free_port: int) -> None:
    """Ctrl-C is exit 0 without a traceback."""
    agent = await launch("--listen", f"127.0.0.1:{free_port}", *bare_host)
    await agent.logged("listening")
    agent.signal(signal.SIGINT)
    code, _, err = await agent.ended()
    assert code == 0
    assert "Traceback" not in err


async def test_a_taken_port_is_exit_1_in_one_line(
    launch: Launch, bare_host: list[str], free_port: int
) -> None:
    """Another process has the port: one line that names it, exit 1."""
    with socket.create_server(("127.0.0.1", free_port)):
        agent = await launch("--listen", f"127.0.0.1:{free_port}", *bare_host)
        code, out, err = await agent.ended()
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert f"cannot listen on 127.0.0.1:{free_port}: Address already in use" in line


class Machine(NamedTuple):
    """A machine with one RAPL package, as flags."""

    flags: list[str]
    energy_file: Path

    def uses(self, microjoules: int) -> None:
        self.energy_file.write_text(f"{microjoules}\n")


@pytest.fixture
def machine(tmp_path: Path, bare_host: list[str]) -> Machine:
    """Return a machine whose package has used 1,000 J."""
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    machine = Machine(bare_host, zone / "energy_uj")
    machine.uses(1_000_000_000)
    return machine


ENERGY = 'rapl_energy_joules_total{package="0",path="intel-rapl:0",zone="package"}'


async def test_a_reload_takes_a_good_configuration_and_keeps_the_old_one_for_a_bad(
    launch: Launch, free_port: int, tmp_path: Path, machine: Machine, manager: Manager
) -> None:
    """SIGHUP: a bad file is logged and changes nothing; a good one counts, and counters go on."""
    file = tmp_path / "agent.toml"
    base = f"[agent]\nlisten = '127.0.0.1:{free_port}'\n"
    file.write_text(base)
    agent = await launch("--config", str(file), *machine.flags, env={"NOTIFY_SOCKET": manager.path})
    await agent.logged("listening")
    await manager.told("READY=1")
    await manager.told("WATCHDOG=1")
    machine.uses(1_050_000_000)
    async with aiohttp.ClientSession() as session:
        await session.post(f"{agent.url}/ingest/cam", data=PROGRESS % 10)
    while 'ffmpeg_frames_total{stream="cam"}' not in await agent.get("/metrics"):
        assert agent.process.returncode is None

    file.write_text(base + "[collectors.rapl]\nintervall = 1\n[agnet]\n")
    agent.signal(signal.SIGHUP)
    refused = await agent.logged("new configuration rejected, the old one stays in use")
    assert len(refused["problems"]) == 2
    assert str(file) in refused["problems"][0]
    assert (await manager.told("RELOADING=1")).startswith("RELOADING=1\nMONOTONIC_USEC=")
    await manager.told("READY=1")
    page = await agent.get("/metrics")
    assert value_of(page, ENERGY) == 50
    assert 'powerbench_collector_up{collector="ffmpeg"} 1.0' in page

    file.write_text(
        base + "[collectors.host]\nenabled = false\n[collectors.rapl]\ninterval = '500ms'\n"
        "[collectors.ffmpeg]\nmax_streams = 1\n"
    )
    agent.signal(signal.SIGHUP)
    await agent.logged("configuration reloaded")
    await manager.told("READY=1")
    page = await agent.get("/metrics")
    assert value_of(page, ENERGY) == 50, "a new interval does not restart the counter"
    assert value_of(page, 'ffmpeg_frames_total{stream="cam"}') == 10, "new limits do not restart streams"
    async with aiohttp.ClientSession() as session:
        answer = await session.post(f"{agent.url}/ingest/second", data=PROGRESS % 1)
        assert answer.status == 429, "and the new limits hold"
    assert '"host"' not in await agent.get("/health")
    agent.signal(signal.SIGTERM)
    code, _, err = await agent.ended()
    assert code == 0
    assert "Traceback" not in err


async def test_a_reload_moves_ports_and_survives_a_taken_one(
    launch: Launch, bare_host: list[str], free_port: int, tmp_path: Path
) -> None:
    """SIGHUP opens new listeners and closes those that left; a taken one leaves everything as it was."""
    file = tmp_path / "agent.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        moved = taken.getsockname()[1]
        file.write_text(f"[agent]\nlisten = '127.0.0.1:{free_port}'\n")
        agent = await launch("--config", str(file), *bare_host)
        await agent.logged("listening")
        file.write_text(f"[agent]\nlisten = '127.0.0.1:{moved}'\n")
        agent.signal(signal.SIGHUP)
        refused = await agent.logged("new configuration rejected, the old one stays in use")
        assert f"127.0.0.1:{moved}" in refused["problems"][0]
        assert '"status":"ok"' in await agent.get("/health")
    agent.signal(signal.SIGHUP)
    await agent.logged("configuration reloaded")
    with pytest.raises(aiohttp.ClientConnectorError):
        await agent.get("/health")
    agent.url = f"http://127.0.0.1:{moved}"
    assert '"status":"ok"' in await agent.get("/health")


async def test_one_exporter_alone_on_its_variables_port(
    launch: Launch, bare_host: list[str], free_port: int
) -> None:
    """--only ffmpeg with FFMPEG_EXPORTER_PORT serves that collector and the node there, on IPv4 and IPv6."""
    agent = await launch("--only", "ffmpeg", *bare_host, env={"FFMPEG_EXPORTER_PORT": str(free_port)})
    addresses = (await agent.logged("listening"))["addresses"]
    assert f"0.0.0.0:{free_port}" in addresses
    health = msgspec.json.decode(await agent.get("/health"))
    assert health["collectors"].keys() == {"ffmpeg", "node"}
    if f"[::]:{free_port}" in addresses:
        agent.url = f"http://[::1]:{free_port}"
        assert "ffmpeg_ingest_rejected_total" in await agent.get("/metrics")


# A stand-in for systemd: hands its first argument's descriptor over as the first passed socket.
PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="x")
os.execv(sys.executable, [sys.executable, "-m", "powerbench_agent.agent.cli", *sys.argv[2:]])
"""


async def test_a_passed_socket_is_served(launch: Launch, bare_host: list[str], free_port: int) -> None:
    """Under socket activation the agent serves what it was passed and binds nothing itself."""
    with socket.create_server(("127.0.0.1", free_port)) as listener:
        agent = await launch(
            *("-c", PASS, str(listener.fileno()), "--listen", f"0.0.0.0:{free_port}", *bare_host),
            command=(sys.executable,),
            pass_fds=[listener.fileno()],
        )
        await agent.logged("listening")
        assert '"status":"ok"' in await agent.get("/health")
        agent.signal(signal.SIGTERM)
        assert (await agent.ended())[0] == 0


async def test_a_listener_that_was_not_passed_is_78(
    launch: Launch, bare_host: list[str], free_port: int
) -> None:
    """While sockets are passed, a configured port without one is exit 78 in a line that names the drop-in."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        agent = await launch(
            *("-c", PASS, str(listener.fileno()), "--listen", f"0.0.0.0:{free_port}", *bare_host),
            command=(sys.executable,),
            pass_fds=[listener.fileno()],
        )
        code, _, err = await agent.ended()
    assert code == 78
    (line,) = err.splitlines()
    assert f"port {free_port}" in line
    assert "drop-in of powerbench-agent.socket" in line


MALFORMED = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS on a plain port
    b"GET /ingest?token=s3cret HTTP/9.9.9\r\n\r\n",
    b"GET /api?token=s3cret HTTP/1.1\r\nHost: a\r\nHost : b\r\n\r\n",
    b"POST /ingest?token=s3cret HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    b"POST /ingest?token=s3cret HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"GET /" + b"x" * 100_000 + b"?token=s3cret HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: s3cret\x00\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cret\xff\r\n\r\n",
]


async def test_malformed_requests_leave_no_traceback_and_no_secret_in_the_log(
    launch: Launch, bare_host: list[str], free_port: int
) -> None:
    """Whatever a port scanner sends, the log stays short, and no query of it is ever repeated."""
    agent = await launch("--listen", f"127.0.0.1:{free_port}", *bare_host)
    await agent.logged("listening")
    for request in MALFORMED:
        reader, writer = await asyncio.open_connection("127.0.0.1", free_port)
        writer.write(request)
        writer.write_eof()
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert not answer.startswith(b"HTTP/1.1 5"), request
        writer.close()
        await writer.wait_closed()
    agent.signal(signal.SIGTERM)
    code, _, err = await agent.ended()
    assert code == 0
    assert "s3cret" not in err
    assert "Traceback" not in err


# -- the same agent within a process -----------------------------------------------------------------


def config(text: dict[str, Any] | None = None) -> Config:
    return parse(text or {}, KNOWN, "agent.toml")


def bare(tmp_path: Path) -> dict[str, str]:
    return {"sysfs": str(tmp_path), "procfs": str(tmp_path)}


async def test_an_embedded_agent_lives_as_long_as_its_context(tmp_path: Path) -> None:
    """It serves on a loopback port of its own, knows its token, and is gone afterwards."""
    async with (
        daemon.embedded(config({"agent": bare(tmp_path)}), MODULES) as agent,
        aiohttp.ClientSession() as session,
    ):
        assert agent.url.startswith("http://127.0.0.1:")
        headers = {"Authorization": f"Bearer {agent.token}", "Host": "elsewhere.example"}
        async with session.get(f"{agent.url}/api/v1/snapshot", headers=headers) as response:
            assert response.status == 200
        async with session.get(f"{agent.url}/metrics") as response:
            assert "powerbench_build_info" in await response.text()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"{agent.url}/metrics")


async def test_two_embedded_agents_do_not_meet(tmp_path: Path) -> None:
    """Each has a port and a token of its own."""
    made = config({"agent": bare(tmp_path)})
    async with daemon.embedded(made, MODULES) as one, daemon.embedded(made, MODULES) as two:
        assert one.url != two.url
        assert one.token != two.token


class Reopened:
    """A collector that notes what was done to it."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.closed = False

    async def read(self) -> Reading:
        return Reading([])

    async def aclose(self) -> None:
        self.closed = True


class Reconfigured(Reopened):
    def configure(self, options: Any) -> None:
        self.options = options


def module_of(kind: type[Reopened], options: type[Any]) -> Any:
    async def open_collector(options: Any, host: Any) -> Reopened:
        del host
        return kind(options)

    return SimpleNamespace(Options=options, METRICS=(), open_collector=open_collector)


@pytest.fixture
async def reloaded(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[tuple[Any, Any]]]]:
    """Return a function that reloads one collector and gives it (before, after)."""
    agents = []
    kinds = {"fixed": Reopened, "flexible": Reconfigured}
    known = dict.fromkeys(kinds, KNOWN["ffmpeg"])
    modules = {name: module_of(kind, KNOWN["ffmpeg"]) for name, kind in kinds.items()}

    async def reload(name: str, section: dict[str, Any], agent_section: dict[str, str] | None = None) -> Any:
        base = {"agent": bare(tmp_path)}
        agent = daemon.Agent(parse(base, known, "x"), modules, Access())
        agents.append(agent)
        await agent.scheduler.beat()
        before = agent.scheduler.collector(name)
        changed = {"agent": {**base["agent"], **(agent_section or {})}, "collectors": {name: section}}
        await agent.reload(parse(changed, known, "x"), Access())
        await agent.scheduler.beat()
        return before, agent.scheduler.collector(name)

    yield reload
    for agent in agents:
        await agent.scheduler.aclose()


@pytest.mark.parametrize("name", ["fixed", "flexible"])
@pytest.mark.parametrize("section", [{}, {"interval": "3s"}, {"listen": "127.0.0.1:1"}])
async def test_what_is_the_agents_business_reopens_nothing(
    reloaded: Callable[..., Awaitable[tuple[Any, Any]]], name: str, section: dict[str, Any]
) -> None:
    """An unchanged section, another interval, another port: the collector's object and counters go on."""
    before, after = await reloaded(name, section)
    assert after is before
    assert not before.closed


async def test_new_options_reach_a_collector_that_takes_them(
    reloaded: Callable[..., Awaitable[tuple[Any, Any]]],
) -> None:
    """A collector with configure() gets its options in place."""
    before, after = await reloaded("flexible", {"max_streams": 7})
    assert after is before
    assert after.options.max_streams == 7


async def test_new_options_reopen_a_collector_that_does_not(
    reloaded: Callable[..., Awaitable[tuple[Any, Any]]],
) -> None:
    """A collector without configure() is closed and opened with its new options."""
    before, after = await reloaded("fixed", {"max_streams": 7})
    assert after is not before
    assert before.closed
    assert after.options.max_streams == 7


@pytest.mark.parametrize("name", ["fixed", "flexible"])
async def test_another_root_reopens_everything(
    reloaded: Callable[..., Awaitable[tuple[Any, Any]]], tmp_path: Path, name: str
) -> None:
    """Another sysfs is another machine."""
    (tmp_path / "other").mkdir()
    before, after = await reloaded(name, {}, {"sysfs": str(tmp_path / "other")})
    assert after is not before
    assert before.closed


@pytest.mark.parametrize("name", ["fixed", "flexible"])
async def test_a_disabled_collector_is_closed(
    reloaded: Callable[..., Awaitable[tuple[Any, Any]]], name: str
) -> None:
    """`enabled = false` closes it."""
    before, after = await reloaded(name, {"enabled": False})
    assert after is None
    assert before.closed


# -- TLS ---------------------------------------------------------------------------------------------


def with_tls(cert: str, key: str) -> Config:
    return config({"agent": {"web": {"tls_cert": cert, "tls_key": key}}})


def test_without_a_certificate_there_is_no_tls() -> None:
    """Plain HTTP is the default."""
    assert daemon.tls_context(config()) is None


def test_a_certificate_and_its_key_make_a_context(certificate: tuple[str, str]) -> None:
    """A reload puts the new certificate into the context that is in use."""
    made = with_tls(*certificate)
    context = daemon.tls_context(made)
    assert context is not None
    assert daemon.tls_context(made, context) is context


def test_what_is_no_certificate_is_a_problem(certificate: tuple[str, str], tmp_path: Path) -> None:
    """A file that is not PEM, or a key of another certificate, is one problem that names both files."""
    cert, key = certificate
    empty = tmp_path / "empty.pem"
    empty.touch()
    for pair in ((str(empty), key), (cert, str(empty)), (key, cert)):
        with pytest.raises(ConfigError) as caught:
            daemon.tls_context(with_tls(*pair))
        (line,) = str(caught.value).splitlines()
        assert all(name in line for name in pair)


def test_a_pair_that_does_not_fit_leaves_the_old_certificate_in_use(
    certificate: tuple[str, str], tmp_path: Path
) -> None:
    """A reload between the renewal of two files is refused, and the context goes on serving what it had."""
    cert, key = certificate
    other = tmp_path / "other.pem"
    curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    openssl = shutil.which("openssl") or ""
    subprocess.run([openssl, "genpkey", *curve, "-out", str(other)], check=True, capture_output=True)
    context = daemon.tls_context(with_tls(cert, key))
    assert context is not None
    with pytest.raises(ConfigError):
        daemon.tls_context(with_tls(cert, str(other)), context)
    client = ssl.create_default_context(cafile=cert)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    served = context.wrap_bio(there, back, server_side=True)
    asking = client.wrap_bio(back, there, server_hostname="127.0.0.1")
    for side in (asking, served, asking, served):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert asking.version() is not None
