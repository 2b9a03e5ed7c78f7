"""Who has a port, out of procfs."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from powerbench_agent.core import ports

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   0: 0100007F:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode}\n"


@pytest.fixture
def procfs(tmp_path: Path) -> Path:
    (tmp_path / "net").mkdir()
    rows = [
        ROW.format(port=9090, state="0A", inode=11),
        ROW.format(port=9100, state="0A", inode=12),
        ROW.format(port=5000, state="01", inode=13),
    ]
    (tmp_path / "net/tcp").write_text(HEAD + "".join(rows))
    process = tmp_path / "42"
    (process / "fd").mkdir(parents=True)
    (process / "fd/3").symlink_to("socket:[11]")
    (process / "comm").write_text("prometheus\n")
    return tmp_path


def test_a_port_is_named_with_its_holder(procfs: Path) -> None:
    """The process that has the listening socket, by its name and number."""
    assert ports.holder(9090, procfs) == "prometheus (pid 42)"


def test_a_port_of_another_user_is_taken_all_the_same(procfs: Path) -> None:
    """A socket that no readable process has is somebody else's."""
    assert ports.holder(9100, procfs) == "a process of another user"


def test_a_connection_holds_no_port(procfs: Path) -> None:
    """A socket that is connected does not listen, and a port that is nowhere is free."""
    assert ports.holder(5000, procfs) is None
    assert ports.holder(80, procfs) is None


def test_a_machine_that_says_nothing_has_no_listeners(tmp_path: Path) -> None:
    """Without procfs nothing is known, and nothing is made up."""
    assert ports.listeners(tmp_path) == {}


def test_this_process_is_found() -> None:
    """A real listener of this process, on IPv4 and on IPv6."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((host, 0), family=family) as server:
            found = ports.holder(server.getsockname()[1])
            assert found is not None
            assert found.endswith(f"(pid {os.getpid()})")
