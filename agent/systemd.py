"""What systemd is told, and what it hands over.

Told: READY, RELOADING, STOPPING, WATCHDOG, STATUS; sd_notify(3). Handed over: secrets, as credentials of the
unit; systemd.exec(5), LoadCredential.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from powerbench_agent.core.options import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from powerbench_agent.agent.config import WebConfig
    from powerbench_agent.core.model import Snapshot

_CREDENTIALS = ("tls_cert", "tls_key", "basic_auth_file", "token_file")


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
        self._status = ""

    def send(self, *lines: str) -> None:
        """Send assignments, like `READY=1`. Never blocks and never raises: it is news, not work."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)

    def status(self, text: str) -> None:
        """Send the line that `systemctl status` shows, where it has changed."""
        if text != self._status:
            self._status = text
            self.send(f"STATUS={text}")

    def close(self) -> None:
        """Let the socket go."""
        if self._socket is not None:
            self._socket.close()


def tell_failure(reason: str) -> None:
    """Leave why there was no start in `systemctl status`: the first line of the reason."""
    first, *others = reason.splitlines() or [""]
    notifier = Notifier()
    notifier.status(f"{first} (and {len(others)} more)" if others else first)
    notifier.close()


def status_of(snapshot: Snapshot) -> str:
    """Return who is up and who is down, and why, in one line."""
    up = ", ".join(sorted(name for name, state in snapshot.states.items() if state.up))
    down = [f"{name}: {state.error}" for name, state in sorted(snapshot.states.items()) if not state.up]
    return "; down: ".join([f"up: {up or 'nothing'}", *down])


def with_credentials(web: WebConfig, environ: Mapping[str, str]) -> WebConfig:
    """Return `[agent.web]` with the unit's credentials in place of keys that are not set.

    A credential has its key's name, like `tls_cert`; an empty one stands for none. Raises: ConfigError.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    if not directory:
        return web
    handed = {key: Path(directory, key) for key in _CREDENTIALS if not getattr(web, key)}
    found = {key: str(path) for key, path in handed.items() if path.is_file() and path.stat().st_size}
    filled = msgspec.structs.replace(web, **found)
    if problems := [Problem("credentials of the unit", key, what) for key, what in filled.problems()]:
        raise ConfigError(problems)
    return filled
