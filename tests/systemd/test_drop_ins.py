"""Every drop-in, switched on by the guide's command: the unit starts, and what it is for works."""

from __future__ import annotations

import ssl
import subprocess
import urllib.request
from typing import TYPE_CHECKING

import pytest
from real.conftest import need, series, wait_for
from systemd.conftest import ROOT
from systemd.machine import CONFIG, DROP_INS, SOCKET, UNIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from systemd.machine import Machine

SHIPPED = sorted(file.stem for file in (ROOT / "systemd/drop-ins").glob("*.conf"))

# An encoder's progress, from a process that says who it is, or does not.
SENDER = """
import http.client, os, sys, time
connection = http.client.HTTPConnection("127.0.0.1", 9510)
def report():
    for frame in range(25, 100000, 25):
        yield f"frame={frame}\\nprogress=continue\\n".encode()
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            pass
path = "/ingest/cam1" + (f"?pid={os.getpid()}" if sys.argv[1:] == ["pid"] else "")
connection.request("POST", path, report(), encode_chunked=True)
"""


@pytest.fixture
def certificate(machine: Machine, tmp_path: Path) -> Path:
    """Put a certificate and its key, for root alone, where the drop-in takes them; return the certificate."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        need("openssl"),
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=tests",
    ]
    command += ["-addext", f"subjectAltName=IP:{machine.address}", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    for file in (cert, key):
        machine.write(f"/etc/powerbench/tls/{file.name}", file.read_text(), 0o600)
    return cert


@pytest.fixture
def docker_group(machine: Machine) -> Iterator[None]:
    """Give the machine the group that Docker's package would make."""
    machine.run("groupadd", "--system", "docker")
    yield
    machine.run("groupdel", "docker")


@pytest.fixture
def sender(machine: Machine) -> Callable[[str], AbstractContextManager[object]]:
    """Return what sends an encoder's progress, as nobody, for as long as its context lasts."""
    machine.write("/opt/sender.py", SENDER)
    nobody = ("setpriv", "--reuid=nobody", "--clear-groups", "--pdeathsig=KILL")
    return lambda saying: machine.running(*nobody, "python3", "/opt/sender.py", saying)


def stream_energy(machine: Machine) -> dict[str, float]:
    return series(machine.get(), "ffmpeg_stream_energy_joules_total")


@pytest.mark.parametrize("names", [*([name] for name in SHIPPED), SHIPPED], ids=[*SHIPPED, "all"])
@pytest.mark.usefixtures("certificate", "docker_group")
def test_every_drop_in_starts(machine: Machine, drop_in: Callable[[str], None], names: list[str]) -> None:
    """Alone and all together: up, watched, without a warning of systemd's."""
    for name in names:
        drop_in(name)
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", UNIT)
    assert machine.is_active()
    wait_for(lambda: "up: " in machine.show("StatusText"), "it reads")
    assert machine.show("NRestarts") == "0"
    assert all(f"/etc/systemd/system/{UNIT}.d/{name}.conf" in machine.show("DropInPaths") for name in names)


def test_tls_takes_a_key_that_only_root_can_read(
    machine: Machine, drop_in: Callable[[str], None], certificate: Path
) -> None:
    """HTTPS with the certificate that systemd hands over; the configuration names no file."""
    drop_in("tls")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", UNIT)
    context = ssl.create_default_context(cafile=str(certificate))
    with urllib.request.urlopen(
        f"https://{machine.address}:9510/metrics", timeout=10, context=context
    ) as answer:
        assert b"powerbench_build_info" in answer.read()
    assert "uid=" in machine.run("id", "powerbench")
    key = machine.root / "etc/powerbench/tls/key.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.stat().st_uid == 0


def test_capability_reads_a_counter_that_is_roots_alone(
    machine: Machine, rapl: Path, drop_in: Callable[[str], None], restart: Callable[[], None]
) -> None:
    """Without the group, as 0400 root: the capability is enough. Simulated: a tree in place of /sys."""
    assert rapl.stat().st_mode & 0o777 == 0o400
    assert machine.health()["rapl"]["state"] == "down"
    drop_in("capability")
    restart()
    wait_for(lambda: "rapl_energy_joules_total" in machine.get(), "rapl is up")


def test_attribution_finds_whose_the_stream_is(
    machine: Machine,
    sender: Callable[[str], AbstractContextManager[object]],
    drop_in: Callable[[str], None],
    restart: Callable[[], None],
) -> None:
    """A sender that does not say its process has energy with the drop-in, and none (and a reason) without."""
    with sender(""):
        wait_for(
            lambda: "connection is neither in the agent's network namespace" in machine.journal(),
            "the log says why",
        )
        assert stream_energy(machine) == {}
    drop_in("attribution")
    restart()
    with sender(""):
        wait_for(
            lambda: any(joules > 0 for joules in stream_energy(machine).values()), "the stream has energy"
        )


@pytest.mark.usefixtures("docker_group")
def test_docker_takes_a_streams_own_word_for_its_process(
    machine: Machine,
    sender: Callable[[str], AbstractContextManager[object]],
    drop_in: Callable[[str], None],
    restart: Callable[[], None],
) -> None:
    """With /proc open and nothing more, a pid that is given is checked and has energy."""
    drop_in("docker")
    restart()
    with sender("pid"):
        wait_for(
            lambda: any(joules > 0 for joules in stream_energy(machine).values()), "the stream has energy"
        )


def test_a_gpu_that_appears_later_restarts_the_agent(
    machine: Machine, drop_in: Callable[[str], None], restart: Callable[[], None]
) -> None:
    """Nodes that were not there at the start: the agent starts anew, once, and not for every use of them.

    Simulated: a plain file in the place of the device's node.
    """
    drop_in("nvidia")
    restart()
    process = machine.show("MainPID")
    machine.run("touch", "/dev/nvidia0")
    try:
        wait_for(lambda: machine.show("MainPID") != process and machine.is_active(), "it has been restarted")
        again = machine.show("MainPID")
        machine.run("sh", "-c", "for n in 1 2 3; do echo > /dev/nvidia0; done")
        machine.systemctl("start", "powerbench-gpu.service")
        assert machine.show("MainPID") == again
    finally:
        machine.run("rm", "/dev/nvidia0")
        machine.systemctl("stop", "powerbench-gpu.path", "powerbench-gpu.service")


def test_one_agent_serves_the_classic_ports_as_well(machine: Machine) -> None:
    """The socket's drop-in and the per-port configuration: five ports, each with its own collector."""
    machine.run(
        "install",
        "-D",
        "-m",
        "644",
        "-t",
        f"/etc/systemd/system/{SOCKET}.d",
        f"{DROP_INS}/socket/per-port.conf",
    )
    machine.write(CONFIG, (ROOT / "configs/per-port.toml").read_text())
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", SOCKET, UNIT)
    for port in (9510, 9511, 9506, 9501, 9502):
        wait_for(lambda port=port: machine.answers(port), f"{port} answers")  # type: ignore[misc]
    assert machine.health(9506).keys() == {"ffmpeg"}
