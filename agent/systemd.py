"""Talks to systemd: sends notifications and takes credentials.

Sends READY, RELOADING, STOPPING, WATCHDOG and STATUS; sd_notify(3). Takes secrets as credentials of the unit;
systemd.exec(5), LoadCredential.
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
    """Sends to the socket that NOTIFY_SOCKET names; does nothing without one."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self._socket: socket.socket | None = None
        if name:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)
        self._status = ""

    def send(self, *lines: str) -> None:
        """Send assignments, like `READY=1`. Never blocks and never raises: a lost one does no harm."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)

    def status(self, text: str) -> None:
        """Send the line that `systemctl status` shows, if it has changed."""
        if text != self._status:
            self._status = text
            self.send(f"STATUS={text}")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()


def tell_failure(reason: str) -> None:
    """Show in `systemctl status` why the agent did not start: the first line of the reason."""
    first, *others = reason.splitlines() or [""]
    notifier = Notifier()
    notifier.status(f"{first} (and {len(others)} more)" if others else first)
    notifier.close()


def status_of(snapshot: Snapshot) -> str:
    """Return one line with the collectors that are up and those that are down, and why."""
    up = ", ".join(sorted(name for name, state in snapshot.states.items() if state.up))
    down = [f"{name}: {state.error}" for name, state in sorted(snapshot.states.items()) if not state.up]
    return "; down: ".join([f"up: {up or 'nothing'}", *down])


def with_credentials(web: WebConfig, environ: Mapping[str, str]) -> WebConfig:
    """Return `[agent.web]` with the unit's credentials for the keys that are not set.

    A credential is named like its key, `tls_cert` for example; an empty one counts as missing.
    Raises: ConfigError.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    if not directory:
        return web
    found: dict[str, str] = {}
    for key in _CREDENTIALS:
        path = Path(directory, key)
        if not getattr(web, key) and path.is_file() and path.stat().st_size:
            found[key] = str(path)
    filled = msgspec.structs.replace(web, **found)
    problems = [Problem("credentials of the unit", key, what) for key, what in filled.problems()]
    if problems:
        raise ConfigError(problems)
    return filled
