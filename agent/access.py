"""Who may ask for what: loopback and trusted networks, a bearer token, basic authentication.

`/metrics`, `/health` and `/ready` are for everyone, or for whoever has the password once there is one.
`/ingest`, `/api` and `/` are for loopback peers, trusted networks, and whoever shows the token or password.

A browser on this machine is a loopback peer too, and does what any web page tells it. So loopback alone
opens nothing to a request that another site has sent (Origin, Sec-Fetch-Site) or that reached us under a
foreign name (Host), which is how a rebound DNS name would.
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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from powerbench_agent.agent.config import WebConfig

_MAX_CHECKS = 16  # passwords being checked or waiting for it; a check costs tens of milliseconds of a core
_MAX_KNOWN = 256
_MAX_SECRET_BYTES = 1 << 20


class Access:
    """Decides about requests; holds the secrets that its files held when it was loaded."""

    def __init__(
        self,
        *,
        token: str = "",
        users: Mapping[str, bytes] | None = None,
        trusted: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = (),
        own_names: frozenset[str] = frozenset(),
    ) -> None:
        """`users`: name → bcrypt hash; `own_names`: what this machine calls its loopback.

        An empty value closes that way in.
        """
        self._token = token.encode()
        self._users = dict(users or {})
        # A wrong name is checked against somebody's hash all the same: it takes as long as a wrong password.
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
        """Return whether the peer is loopback or trusted, and the request its own idea."""
        try:
            address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(
                peer.partition("%")[0]
            )
        except ValueError:
            return False  # a peer that was gone before it could be asked who it is
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if not _same_site(headers):
            return False
        own_name = self._is_own_name(headers.get("Host", ""))
        if any(address in network for network in self._trusted):
            # Others reach us by whatever name they have for us; a browser says that it is one.
            return own_name or not ("Origin" in headers or "Sec-Fetch-Site" in headers)
        return address.is_loopback and own_name

    def has_token(self, authorization: str, query_token: str = "") -> bool:
        """Return whether the token was shown, in the header or in the query."""
        scheme, _, shown = authorization.partition(" ")
        candidates = [query_token] if query_token else []
        if scheme.lower() == "bearer":
            candidates.append(shown.strip())
        return bool(self._token) and any(hmac.compare_digest(_bytes(c), self._token) for c in candidates)

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
        if self._checks >= _MAX_CHECKS:  # a flood of guesses: refuse instead of queueing
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
    """Return a header's bytes, as they came: what is no UTF-8 arrives as lone surrogates."""
    return header.encode("utf-8", "surrogateescape")


def _matches(password: bytes, hashed: bytes) -> bool:
    import bcrypt  # noqa: PLC0415 - only workers with a password pay for it

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
    """Return the access rules of `[agent.web]`, its files read. Raises: ConfigError with every problem."""
    complaints: list[tuple[str, str]] = []
    token = _read_token(web.token_file, complaints) if web.token_file else ""
    users = _read_users(web.basic_auth_file, complaints) if web.basic_auth_file else {}
    if complaints:
        raise ConfigError(Problem(where, f"agent.web.{key}", what) for key, what in complaints)
    trusted = tuple(network.network for network in web.trusted)
    return Access(token=token, users=users, trusted=trusted, own_names=loopback_names())


def loopback_names(hosts: Path = Path("/etc/hosts")) -> frozenset[str]:
    """Return the names that this machine gives its loopback addresses; Debian puts its full name there."""
    names: set[str] = set()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in hosts.read_text(encoding="utf-8").splitlines():
            address, *aliases = line.partition("#")[0].split() or [""]
            if address == "::1" or address.startswith("127."):
                names.update(alias.lower() for alias in aliases)
    return frozenset(names)


def _read_token(name: str, complaints: list[tuple[str, str]]) -> str:
    text = _read(name, "token_file", complaints)
    token = (text or "").strip()
    if text is not None and not token:
        complaints.append(("token_file", f"{name} is empty; put a random token in it"))
    return token


def _read_users(name: str, complaints: list[tuple[str, str]]) -> dict[str, bytes]:
    key, users = "basic_auth_file", {}
    text = _read(name, key, complaints)
    lines = [(number, line.strip()) for number, line in enumerate((text or "").splitlines(), 1)]
    entries = [(number, line) for number, line in lines if line and not line.startswith("#")]
    for number, line in entries:
        user, colon, hashed = line.partition(":")
        if colon and hashed.startswith(("$2a$", "$2b$", "$2y$")):
            users[user] = hashed.encode()
        else:
            what = f"{name} line {number} is no NAME:BCRYPT; make one with: htpasswd -nB NAME"
            complaints.append((key, what))
    if text is not None and not entries:
        complaints.append((key, f"{name} names nobody; add a line with: htpasswd -nB NAME"))
    return users


def _read(name: str, key: str, complaints: list[tuple[str, str]]) -> str | None:
    try:
        with Path(name).open("rb") as file:
            return file.read(_MAX_SECRET_BYTES).decode()
    except OSError as error:
        complaints.append((key, f"cannot read {name}: {error.strerror}"))
    except UnicodeDecodeError:
        complaints.append((key, f"{name} is no UTF-8 text"))
    return None
