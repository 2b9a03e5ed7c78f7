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
        """What the Host header says."""
        host = self.host.partition("%")[0]  # an interface means nothing to the other side
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """What a message says."""
        return f"{'https' if self.https else 'http'}://{self.authority}{self.prefix}"


def parse_target(text: str) -> Target:
    """Return where a URL leads: `http://127.0.0.1:9510`, `localhost:9510`, `https://host/prefix`.

    Raises: ValueError, with words for a person.
    """
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r} must be like http://127.0.0.1:9510")
    if parts.username is not None or parts.query or parts.fragment:
        # Not shown again: what is too much may be a secret.
        raise ValueError("must be scheme, host, port and path alone; see --stream and --token-file")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    if not re.fullmatch(r"[\w.:%~-]+", host):
        raise ValueError(f"{text!r} has no host name or address in it")
    standard = {"http": 80, "https": 443}[parts.scheme] if "://" in text else _DEFAULT_PORT
    # The whole URL of the endpoint, as curl is given it, is as good.
    prefix = parts.path.rstrip("/").removesuffix("/ingest").rstrip("/")
    port = standard if parts.port is None else parts.port
    return Target(parts.scheme == "https", host, port, quote(prefix, safe="/%:@!$&'()*+,;=~"))
