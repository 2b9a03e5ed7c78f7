"""Telling systemd how it goes: READY, RELOADING, STOPPING, WATCHDOG. Source: sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Notifier:
    """Sends to the socket that NOTIFY_SOCKET names; silent without one."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self._socket = (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if name else None
        )
        if self._socket is not None:
            self._socket.setblocking(False)  # noqa: FBT003 - socket's own signature

    def send(self, *lines: str) -> None:
        """Send assignments, like `READY=1`. Never blocks and never raises: it is news, not work."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)

    def close(self) -> None:
        """Let the socket go."""
        if self._socket is not None:
            self._socket.close()
