"""Which port shows what, and the sockets for it: bound here, or passed by systemd.

Source of the passed sockets: sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core.options import Address, ConfigError, Problem, parse_listen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

    from powerbench_agent.agent.config import Config
    from powerbench_agent.agent.roster import Entry

_FIRST_PASSED = 3  # SD_LISTEN_FDS_START
BACKLOG = 1024  # connections that wait to be accepted: a burst of encoders starting at once
_EVERYWHERE = ("0.0.0.0", "::")


class Site(NamedTuple):
    """What one port shows."""

    collectors: frozenset[str]
    aggregated: bool

    @property
    def shown(self) -> frozenset[str]:
        """Collectors on its pages; the node's sum is on the aggregated port alone."""
        return self.collectors | {"node"} if self.aggregated else self.collectors


class ListenError(Exception):
    """An address that cannot be listened on; one line that names it."""


def plan(config: Config, entries: Mapping[str, Entry], environ: Mapping[str, str]) -> dict[Address, Site]:
    """Return what each address shows. An address is concrete here: one socket.

    Listeners that come to the same socket merge. Raises: ConfigError for a bad environment variable.
    """
    enabled = frozenset(name for name, options in config.collectors.items() if options.enabled)
    shown: defaultdict[Address, set[str]] = defaultdict(set)
    aggregated: set[Address] = set()
    if address := config.agent.listen.address:
        for concrete in _concrete(address):
            shown[concrete] |= enabled
            aggregated.add(concrete)
    problems = []
    for name in sorted(enabled):
        address = config.collectors[name].listen.address
        variable = entries[name].port_variable if name in entries else None
        if variable and (port := environ.get(variable)):
            try:
                address = Address(address.host if address else "", parse_listen(f":{port}").port)
            except ValueError:
                problems.append(
                    Problem("environment", variable, f"{port!r} is no port; write like 9510, or unset it")
                )
        if address:
            for concrete in _concrete(address):
                shown[concrete].add(name)
    if not shown:
        what = 'nothing is listened on: set it, or a collector\'s own, like listen = ":9510"'
        problems.append(Problem(config.where, "agent.listen", what))
    wildcards = {address.port for address in shown if address.host in _EVERYWHERE}
    problems += [
        Problem(
            config.where, "listen", f"{address} is within :{address.port}, which is set too; leave one out"
        )
        for address in shown
        if address.host not in _EVERYWHERE and address.port in wildcards
    ]
    if problems:
        raise ConfigError(problems)
    _unite(shown, aggregated)
    return {address: Site(frozenset(names), address in aggregated) for address, names in shown.items()}


def _unite(shown: dict[Address, set[str]], aggregated: set[Address]) -> None:
    """Make a port show one page, whether a name leads to its IPv4 or its IPv6 address."""
    for address in [address for address in shown if address.host == "0.0.0.0"]:
        twin = Address("::", address.port)
        if twin in shown:
            shown[address] = shown[twin] = shown[address] | shown[twin]
            if address in aggregated or twin in aggregated:
                aggregated.update((address, twin))


def only_listen(
    name: str, config: Config, entries: Mapping[str, Entry], environ: Mapping[str, str]
) -> Address | None:
    """Return where one collector that runs alone is served: its own port, else its classic one."""
    entry = entries.get(name)
    if entry and entry.port_variable and (port := environ.get(entry.port_variable)):
        with contextlib.suppress(ValueError):  # plan() reports it
            return parse_listen(f":{port}")
    if own := config.collectors[name].listen.address:
        return own
    configured = config.agent.listen.address
    # An address that somebody has chosen is no reason to open to the world.
    host = configured.host if configured and configured.host != "0.0.0.0" else ""
    return Address(host, entry.port) if entry and entry.port else None


def _concrete(address: Address) -> tuple[Address, ...]:
    return (address,) if address.host else (Address("0.0.0.0", address.port), Address("::", address.port))


def bind(address: Address) -> socket.socket | None:
    """Return a socket that listens there; None where this machine has no IPv6 to listen on.

    Raises: ListenError in one line that says what to do.
    """
    try:
        family, *_, name = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from None
    except (UnicodeError, ValueError):  # a name that no resolver takes
        raise ListenError(f"cannot listen on {address.host!r}:{address.port}: that is no host name") from None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        if address.host == "::":
            return None
        raise ListenError(f"cannot listen on {address}: this machine has no IPv6") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(name)
        listener.listen(BACKLOG)
        listener.setblocking(False)  # noqa: FBT003 - socket's own signature
    except OSError as error:
        listener.close()
        if address.host == "::" and error.errno == 99:  # EADDRNOTAVAIL: IPv6 is compiled in and switched off
            return None
        hint = _bind_hint(address, error)
        raise ListenError(f"cannot listen on {address}: {error.strerror}; {hint}") from None
    return listener


def _bind_hint(address: Address, error: OSError) -> str:
    if error.errno == 98:  # EADDRINUSE
        return f"see who has it with: ss -ltnp 'sport = :{address.port}'; or choose another with --port"
    if error.errno == 13:  # EACCES
        return "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one with --port"
    return "choose an address of this machine"


def passed_sockets(environ: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """Return the listening sockets that systemd passed to this process; they leave the environment."""
    count = environ.pop("LISTEN_FDS", "")
    meant_for = environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(pid) or not (count.isascii() and count.isdigit()):
        return []
    sockets = []
    for descriptor in range(_FIRST_PASSED, _FIRST_PASSED + int(count)):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - os's own signature
        listener = socket.socket(fileno=descriptor)
        listener.setblocking(False)  # noqa: FBT003 - likewise
        sockets.append(listener)
    return sockets


def match_passed(
    sites: Mapping[Address, Site], passed: Iterable[socket.socket]
) -> list[tuple[Address, socket.socket]]:
    """Return which passed socket serves which listener: by port.

    A dual-stack socket takes the place of the IPv4 and the IPv6 listener of its port.
    Raises: ConfigError for a listener without a socket.
    """
    by_port: defaultdict[int, list[socket.socket]] = defaultdict(list)
    for listener in passed:
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            by_port[listener.getsockname()[1]].append(listener)
    ports = {address.port for address in sites}
    if problems := [
        Problem(
            "socket activation",
            f"port {port}",
            "is configured, and systemd passed no socket for it; add ListenStream= to a drop-in of "
            "powerbench-agent.socket (systemctl edit powerbench-agent.socket), or take the listener out",
        )
        for port in sorted(ports - by_port.keys())
    ]:
        raise ConfigError(problems)
    matched: list[tuple[Address, socket.socket]] = []
    for port in sorted(ports):
        first = max((a for a in sites if a.port == port), key=lambda a: sites[a].aggregated)
        matched.extend((first, listener) for listener in by_port[port])
    return matched
