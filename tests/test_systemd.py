"""What systemd is told, over a socket like its own."""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING

import pytest

from powerbench.agent.systemd import Notifier

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
def test_nobody_listening_is_no_trouble(environ: dict[str, str], name: str) -> None:
    """Without systemd, or with a socket that has gone or has a name too long, sending is silent."""
    notifier = Notifier({key: value + name for key, value in environ.items() if value} or environ)
    for _ in range(2):  # a second time, after whatever the first ran into
        notifier.send("READY=1")
    notifier.close()
    notifier.close()
    assert notifier._socket is None or notifier._socket.fileno() == -1


def test_a_manager_that_does_not_read_blocks_nobody(manager: socket.socket) -> None:
    """A full queue drops news instead of stopping the beat."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    for _ in range(10_000):
        notifier.send("WATCHDOG=1")
    assert manager.recv(4096) == b"WATCHDOG=1"
    notifier.close()
