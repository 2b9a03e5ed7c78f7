"""What systemd is told, over a socket like its own, and what it hands over."""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING

import pytest

from powerbench_agent.agent import cli
from powerbench_agent.agent.config import WebConfig
from powerbench_agent.agent.systemd import Notifier, status_of, with_credentials
from powerbench_agent.core.model import Reading, Snapshot, State
from powerbench_agent.core.options import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        yield manager


def test_assignments_arrive_as_one_message(manager: socket.socket) -> None:
    """Several assignments of one moment are one datagram, a line each."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.send("READY=1", "STATUS=reading")
    assert manager.recv(4096) == b"READY=1\nSTATUS=reading"
    notifier.close()


def test_an_abstract_socket_is_understood() -> None:
    """A name that starts with @ is an abstract socket."""
    name = f"powerbench-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(10)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        notifier.send("WATCHDOG=1")
        assert manager.recv(4096) == b"WATCHDOG=1"
        notifier.close()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/no/such/socket"}])
@pytest.mark.parametrize("name", ["", "x" * 200])
def test_a_missing_manager_does_no_harm(environ: dict[str, str], name: str) -> None:
    """Without systemd, or with a socket that has gone or has a name too long, sending is silent."""
    notifier = Notifier({key: value + name for key, value in environ.items() if value} or environ)
    for _ in range(2):  # a second time, after whatever the first ran into
        notifier.send("READY=1")
    notifier.close()
    notifier.close()
    assert notifier._socket is None or notifier._socket.fileno() == -1


def test_a_manager_that_does_not_read_does_not_block(manager: socket.socket) -> None:
    """A full queue drops news instead of stopping the beat."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    for _ in range(10_000):
        notifier.send("WATCHDOG=1")
    assert manager.recv(4096) == b"WATCHDOG=1"
    notifier.close()


# -- the status line ---------------------------------------------------------------------------------


def state(error: str = "") -> State:
    reading = None if error else Reading(())
    return State(reading, time=0.0, monotonic=0.0, duration=0.0, failures=0, last_success=None, error=error)


def test_the_status_says_who_is_up_and_who_is_down_and_why() -> None:
    """One line for `systemctl status`, without the absent collectors."""
    snapshot = Snapshot(
        0.0, {"rapl": state("may not read it"), "host": state(), "drm": state()}, {"nvml": "none"}
    )
    assert status_of(snapshot) == "up: drm, host; down: rapl: may not read it"
    assert status_of(Snapshot(0.0)) == "up: nothing"


def test_a_status_is_sent_when_it_changes(manager: socket.socket) -> None:
    """The same line is not sent twice."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    for text in ("up: drm", "up: drm", "up: nothing"):
        notifier.status(text)
    assert [manager.recv(4096) for _ in range(2)] == [b"STATUS=up: drm", b"STATUS=up: nothing"]
    notifier.close()


def test_why_there_was_no_start_is_left_in_the_status(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first problem as it is, and how many others the log has."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    assert cli.main(["--sysfs", "/no/such", "--procfs", "/nor/this"]) == 78
    assert manager.recv(4096) == b"STATUS=--sysfs: /no/such is not a directory (and 1 more)"


# -- credentials -------------------------------------------------------------------------------------


def test_a_credential_stands_in_for_a_key_that_is_not_set(tmp_path: Path) -> None:
    """By the key's name; what the configuration says wins, and an empty credential is none."""
    for name in ("tls_cert", "tls_key", "token_file", "other"):
        (tmp_path / name).write_text("x")
    (tmp_path / "basic_auth_file").touch()
    (tmp_path / "mine").write_text("x")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    filled = with_credentials(WebConfig(token_file=f"{tmp_path}/mine"), environ)
    assert filled == WebConfig(
        tls_cert=f"{tmp_path}/tls_cert", tls_key=f"{tmp_path}/tls_key", token_file=f"{tmp_path}/mine"
    )
    assert with_credentials(WebConfig(), {}) == WebConfig()


def test_half_of_a_pair_is_a_problem(tmp_path: Path) -> None:
    """A certificate without its key is said, with where it came from."""
    (tmp_path / "tls_cert").write_text("x")
    with pytest.raises(ConfigError, match=r"^credentials of the unit: tls_key: TLS needs both"):
        with_credentials(WebConfig(), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
