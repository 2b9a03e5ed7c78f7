"""Who may ask for what: loopback and trusted networks, a bearer token, basic authentication.

`/metrics`, `/health` and `/ready` are open to everyone, or to those with the password once one is configured.
`/ingest`, `/api` and `/` are open to loopback peers, to trusted networks, and to requests with the token or
password.

A browser on this machine is a loopback peer too, and sends whatever a web page tells it to. So a loopback
request is refused if another site sent it (Origin, Sec-Fetch-Site) or if it reached us under a name that is
not ours (Host), as it would by DNS rebinding.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from powerbench_agent.core.options import ConfigError, Problem
from powerbench_agent.core.token_file import BadToken, read_token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from powerbench_agent.agent.config import WebConfig

_MAX_CHECKS = 16  # passwords being checked or queued; a check costs tens of milliseconds of a core
_MAX_KNOWN = 256
_MAX_SECRET_BYTES = 1 << 20


class Access:
    """Decides who may make a request; holds the secrets read from the configured files."""

    def __init__(
        self,
        *,
        token: str = "",
        users: Mapping[str, bytes] | None = None,
        trusted: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = (),
        own_names: frozenset[str] = frozenset(),
    ) -> None:
        """`users`: name → bcrypt hash; `own_names`: names of this machine's loopback addresses.

        An empty value grants nothing.
        """
        self._token = token.encode()
        self._users = dict(users or {})
        # An unknown name is checked against some hash too, so that it takes as long as a wrong password.
        self._decoy = next(iter(self._users.values()), b"")
        self._trusted = trusted
        self._names = {"localhost", socket.gethostname().lower()} | own_names
        self._known: dict[bytes, None] = {}  # digests of credentials that were right
        self._checks = 0
        self._executor: ThreadPoolExecutor | None = None

    @property
    def wants_password(self) -> bool:
        """Whether even `/metrics` needs the password."""
        return bool(self._users)

    def is_near(self, peer: str, headers: Mapping[str, str]) -> bool:
        """Return whether the peer is loopback or trusted, and no other site is behind the request."""
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False  # the peer had gone before its address was known
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if not _same_site(headers):
            return False
        own_name = self._is_own_name(headers.get("Host", ""))
        if any(address in network for network in self._trusted):
            # Other machines may have any name for this one, so the name matters for browsers only.
            from_browser = "Origin" in headers or "Sec-Fetch-Site" in headers
            return own_name or not from_browser
        return address.is_loopback and own_name

    def has_token(self, authorization: str, query_token: str = "") -> bool:
        """Return whether the token was shown, in the header or in the query."""
        scheme, _, shown = authorization.partition(" ")
        candidates = [query_token] if query_token else []
        if scheme.lower() == "bearer":
            candidates.append(shown.strip())
        if not self._token:
            return False
        return any(hmac.compare_digest(_bytes(candidate), self._token) for candidate in candidates)

    async def has_password(self, authorization: str) -> bool:
        """Return whether a right name and password were shown; bcrypt runs off the event loop."""
        scheme, _, encoded = authorization.partition(" ")
        if not self._users or scheme.lower() != "basic":
            return False
        digest = hashlib.sha256(_bytes(encoded)).digest()
        if digest in self._known:
            return True
        try:
            name, _, password = base64.b64decode(encoded, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        if self._checks >= _MAX_CHECKS:  # refuse a flood of guesses instead of queueing it
            return False
        user = self._users.get(name.decode("utf-8", "replace"))
        self._checks += 1
        try:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, "bcrypt")
            right = await asyncio.get_running_loop().run_in_executor(
                self._executor, _matches, password, user or self._decoy
            )
        finally:
            self._checks -= 1
        if not (right and user):
            return False
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[digest] = None
        return True

    def _is_own_name(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]").lower().rstrip(".")
        if not name or name in self._names or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _bytes(header: str) -> bytes:
    """Return a header's original bytes: those that are not UTF-8 arrive as lone surrogates."""
    return header.encode("utf-8", "surrogateescape")


def _matches(password: bytes, hashed: bytes) -> bool:
    import bcrypt  # noqa: PLC0415 - slow to import, and needed only with a password

    try:
        return bcrypt.checkpw(password[:72], hashed)  # bcrypt's own limit
    except ValueError:
        return False


def _same_site(headers: Mapping[str, str]) -> bool:
    if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return False
    origin = headers.get("Origin")
    return origin is None or origin.partition("://")[2] == headers.get("Host", "")


def load(web: WebConfig, where: str) -> Access:
    """Read the files of `[agent.web]`; return its access rules. Raises: ConfigError with every problem."""
    complaints: list[tuple[str, str]] = []
    token = _read_token(web.token_file, complaints) if web.token_file else ""
    users = _read_users(web.basic_auth_file, complaints) if web.basic_auth_file else {}
    if complaints:
        raise ConfigError(Problem(where, f"agent.web.{key}", what) for key, what in complaints)
    trusted = tuple(network.network for network in web.trusted)
    return Access(token=token, users=users, trusted=trusted, own_names=loopback_names())


def loopback_names(hosts: Path = Path("/etc/hosts")) -> frozenset[str]:
    """Return the names of this machine's loopback addresses; Debian lists its full host name among them."""
    names: set[str] = set()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in hosts.read_text(encoding="utf-8").splitlines():
            entry, _, _ = line.partition("#")
            address, *aliases = entry.split() or [""]
            if address == "::1" or address.startswith("127."):
                names.update(alias.lower() for alias in aliases)
    return frozenset(names)


def _read_token(name: str, complaints: list[tuple[str, str]]) -> str:
    try:
        return read_token(Path(name))
    except OSError as error:
        complaints.append(("token_file", f"cannot read {name}: {error.strerror}"))
    except BadToken as bad:
        complaints.append(("token_file", f"{name} {bad}; put a random token in it"))
    return ""


def _read_users(name: str, complaints: list[tuple[str, str]]) -> dict[str, bytes]:
    key = "basic_auth_file"
    text = _read(name, key, complaints)
    if text is None:
        return {}
    users: dict[str, bytes] = {}
    empty = True
    for number, raw_line in enumerate(text.splitlines(), 1):
        line = raw_line.strip()
        if not line or line.startswith("#"):
            continue
        empty = False
        user, colon, hashed = line.partition(":")
        if colon and hashed.startswith(("$2a$", "$2b$", "$2y$")):
            users[user] = hashed.encode()
        else:
            what = f"{name} line {number} is not NAME:BCRYPT; create it with: htpasswd -nB NAME"
            complaints.append((key, what))
    if empty:
        complaints.append((key, f"{name} names no user; add one with: htpasswd -nB NAME"))
    return users


def _read(name: str, key: str, complaints: list[tuple[str, str]]) -> str | None:
    """Return the file's text; None, and a complaint, if there is none."""
    try:
        with Path(name).open("rb") as file:
            return file.read(_MAX_SECRET_BYTES).decode()
    except OSError as error:
        complaints.append((key, f"cannot read {name}: {error.strerror}"))
    except UnicodeDecodeError:
        complaints.append((key, f"{name} is not UTF-8 text"))
    return None
