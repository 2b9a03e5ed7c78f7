"""Types of which a configuration section is made, and the problems that one can have.

Units: durations are seconds inside and `"1s"`, `"2m30s"`, `"500ms"` or a bare number of seconds outside.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import math
import re
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

_DURATION = re.compile(
    r"(?:([0-9]+(?:\.[0-9]+)?)h)?(?:([0-9]+(?:\.[0-9]+)?)m(?!s))?(?:([0-9]+(?:\.[0-9]+)?)s)?(?:([0-9]+(?:\.[0-9]+)?)ms)?"
)
_DURATION_UNITS = (3600.0, 60.0, 1.0, 0.001)


class Problem(NamedTuple):
    """One thing wrong with a configuration, and what to do about it."""

    where: str  # the file, the flag or the environment variable
    key: str  # dotted; empty if the whole file is meant
    what: str

    def __str__(self) -> str:
        """Return the one line a person reads."""
        line = ": ".join(part for part in self if part)
        return "".join(_printable(char) for char in line)


def _printable(char: str) -> str:
    return char if char.isprintable() else repr(char)[1:-1]


class ConfigError(Exception):
    """A configuration that cannot be used, with everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Seconds(float):
    """A duration, in seconds; written as text in TOML."""

    __slots__ = ()


class Address(NamedTuple):
    """An address to listen on. An empty host is every IPv4 and IPv6 address."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return the address as it is written in a configuration."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Listen(str):
    """`HOST:PORT`, `:PORT` for every address, or "" for none; checked when a configuration is read."""

    __slots__ = ()

    @property
    def address(self) -> Address | None:
        """The parsed address; None for "": do not listen."""
        return parse_listen(self) if self else None


class Network(str):
    """An IP network in CIDR notation; checked when a configuration is read."""

    __slots__ = ()

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """The parsed network."""
        return ipaddress.ip_network(self, strict=False)


class CollectorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of every `[collectors.NAME]` section; a collector's own Options adds its keys."""

    enabled: bool = True
    interval: Seconds = Seconds(1.0)
    listen: Listen = Listen("")

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong) for rules that a type cannot express."""
        if not 0.1 <= self.interval <= 3600:
            yield "interval", "must be between 100ms and 1h"


class Exclude(CollectorOptions, frozen=True, kw_only=True):
    """The key `exclude` of collectors whose source has parts that can be left out."""

    exclude: tuple[str, ...] = ()

    def excludes(self, *names: str) -> bool:
        """Return whether a pattern fits one of the names that a part goes by, as `fnmatchcase` has it."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude for name in names)


def parse_seconds(text: str | float) -> float:
    """Return seconds from `1s`, `2m30s`, `1h`, `500ms` or a bare number. Raises: ValueError."""
    if isinstance(text, int | float) and not isinstance(text, bool) and not math.isnan(text):
        return float(text)
    stripped = str(text).strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", stripped):
        return float(stripped)
    match = _DURATION.fullmatch(stripped)
    if not match or not any(match.groups()):
        raise ValueError(f"{text!r} is not a duration; write seconds, or for example 1s, 2m30s, 500ms")
    seconds = 0.0
    for amount, unit in zip(match.groups(), _DURATION_UNITS, strict=True):
        if amount:
            seconds += float(amount) * unit
    return seconds


def parse_listen(text: str) -> Address:
    """Return the address of `HOST:PORT`, `[V6]:PORT` or `:PORT`. Raises: ValueError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: put an IPv6 address in brackets, like [::1]:{port}")
    is_number = port.isascii() and port.isdigit()
    if not colon or not is_number or not 0 < int(port) < 65536:
        example = "write for example 127.0.0.1:9510, or :9510 for every address"
        raise ValueError(f"{text!r} is not HOST:PORT; {example}")
    return Address(host, int(port))
