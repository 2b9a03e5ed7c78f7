"""Where an agent is: a URL as people write it, taken apart. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, urlsplit

_DEFAULT_PORT = 9510


class Target(NamedTuple):
    """Where an agent is."""

    https: bool
    host: str  # an IPv6 address without its brackets
    port: int
    prefix: str  # of every path; without a slash at its end

    @property
    def authority(self) -> str:
        """Host and port, as in the Host header."""
        host = self.host.partition("%")[0]  # the interface means nothing to the peer
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL, as messages show it."""
        return f"{'https' if self.https else 'http'}://{self.authority}{self.prefix}"


def parse_target(text: str) -> Target:
    """Return where a URL leads: `http://127.0.0.1:9510`, `localhost:9510`, `https://host/prefix`.

    Raises: ValueError, with words for a person.
    """
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r} must be like http://127.0.0.1:9510")
    if parts.username is not None or parts.query or parts.fragment:
        # Not shown again: the surplus may be a secret.
        raise ValueError(
            "must be only scheme, host, port and path; see --stream and --token-file for the rest"
        )
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    if not re.fullmatch(r"[\w.:%~-]+", host):
        raise ValueError(f"{text!r} contains no valid host name or address")
    standard = {"http": 80, "https": 443}[parts.scheme] if "://" in text else _DEFAULT_PORT
    # The URL of the endpoint itself, as for curl, is accepted, too.
    prefix = parts.path.rstrip("/").removesuffix("/ingest").rstrip("/")
    port = standard if parts.port is None else parts.port
    return Target(parts.scheme == "https", host, port, quote(prefix, safe="/%:@!$&'()*+,;=~"))
