"""Which collectors each port shows, and its sockets: bound here or passed by systemd.

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
    from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping

    from powerbench_agent.agent.config import Config
    from powerbench_agent.agent.roster import Entry

_FIRST_PASSED = 3  # SD_LISTEN_FDS_START
BACKLOG = 1024  # connections waiting to be accepted, as when many encoders start at once
_NO_SOCKET = (
    "is configured, but systemd passed no socket for it; add ListenStream= to a drop-in of "
    "powerbench-agent.socket (systemctl edit powerbench-agent.socket), or remove the listener"
)
_EVERYWHERE = ("0.0.0.0", "::")


class Site(NamedTuple):
    """What one port shows."""

    collectors: frozenset[str]
    aggregated: bool

    @property
    def shown(self) -> frozenset[str]:
        """The collectors on its pages; the node's sum is on the aggregated port only."""
        return self.collectors | {"node"} if self.aggregated else self.collectors


class ListenError(Exception):
    """An address cannot be listened on; the message is one line that names it."""


def plan(config: Config, entries: Mapping[str, Entry], environ: Mapping[str, str]) -> dict[Address, Site]:
    """Return what each address shows, where an address stands for one socket.

    Listeners on the same socket are merged. Raises: ConfigError.
    """
    enabled = frozenset(name for name, options in config.collectors.items() if options.enabled)
    shown: defaultdict[Address, set[str]] = defaultdict(set)
    aggregated: set[Address] = set()
    address = config.agent.listen.address
    if address:
        for concrete in _concrete(address):
            shown[concrete] |= enabled
            aggregated.add(concrete)
    problems: list[Problem] = []
    for name in sorted(enabled):
        own = config.collectors[name].listen.address
        try:
            own = _own_address(name, config, entries, environ)
        except ConfigError as error:
            problems += error.problems
        for concrete in _concrete(own) if own else ():
            shown[concrete].add(name)
    problems += _listen_problems(shown, config.where)
    if problems:
        raise ConfigError(problems)
    _unite(shown, aggregated)
    return {address: Site(frozenset(names), address in aggregated) for address, names in shown.items()}


def _own_address(
    name: str, config: Config, entries: Mapping[str, Entry], environ: Mapping[str, str]
) -> Address | None:
    """Return the address of a collector's own port, if it has one. Raises: ConfigError."""
    address = config.collectors[name].listen.address
    variable = entries[name].port_variable if name in entries else None
    port = environ.get(variable) if variable else None
    if not variable or not port:
        return address
    try:
        number = parse_listen(f":{port}").port
    except ValueError:
        what = f"{port!r} is not a port number; write for example 9510, or unset it"
        raise ConfigError([Problem("environment", variable, what)]) from None
    return Address(address.host if address else "", number)


def _listen_problems(addresses: Collection[Address], where: str) -> Iterator[Problem]:
    """Yield what is wrong with these addresses together."""
    if not addresses:
        what = 'there is no address to listen on; set this, or a collector\'s own listen, for example ":9510"'
        yield Problem(where, "agent.listen", what)
    wildcards = {address.port for address in addresses if address.host in _EVERYWHERE}
    for address in addresses:
        if address.host not in _EVERYWHERE and address.port in wildcards:
            what = f"{address} is part of :{address.port}, which is set too; remove one of them"
            yield Problem(where, "listen", what)


def _unite(shown: dict[Address, set[str]], aggregated: set[Address]) -> None:
    """Make a port show the same page on its IPv4 and its IPv6 address."""
    for address in list(shown):
        if address.host != "0.0.0.0":
            continue
        twin = Address("::", address.port)
        if twin in shown:
            shown[address] = shown[twin] = shown[address] | shown[twin]
            if address in aggregated or twin in aggregated:
                aggregated.update((address, twin))


def only_listen(
    name: str, config: Config, entries: Mapping[str, Entry], environ: Mapping[str, str]
) -> Address | None:
    """Return where a collector that runs alone is served: on its own port, else on its classic one."""
    entry = entries.get(name)
    port = environ.get(entry.port_variable) if entry and entry.port_variable else None
    if port:
        with contextlib.suppress(ValueError):  # plan() reports it
            return parse_listen(f":{port}")
    own = config.collectors[name].listen.address
    if own:
        return own
    if entry is None or entry.port is None:
        return None
    aggregated = config.agent.listen.address
    if aggregated is None or aggregated.host == "0.0.0.0":
        return Address("", entry.port)
    return Address(aggregated.host, entry.port)  # it names one host: do not open the port to every host


def _concrete(address: Address) -> tuple[Address, ...]:
    return (address,) if address.host else (Address("0.0.0.0", address.port), Address("::", address.port))


def bind(address: Address) -> socket.socket | None:
    """Return a socket that listens there; None for an IPv6 address on a machine without IPv6.

    Raises: ListenError in one line that says what to do.
    """
    try:
        family, *_, name = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from None
    except (UnicodeError, ValueError):  # a name that no resolver accepts
        raise ListenError(f"cannot listen on {address.host!r}:{address.port}: not a host name") from None
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
        if address.host == "::" and error.errno == 99:  # EADDRNOTAVAIL: IPv6 is switched off
            return None
        hint = _bind_hint(address, error)
        raise ListenError(f"cannot listen on {address}: {error.strerror}; {hint}") from None
    return listener


def _bind_hint(address: Address, error: OSError) -> str:
    if error.errno == 98:  # EADDRINUSE
        return f"find who uses it with: ss -ltnp 'sport = :{address.port}'; or choose another with --port"
    if error.errno == 13:  # EACCES
        return "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one with --port"
    return "use an address of this machine"


def passed_sockets(environ: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """Return the listening sockets that systemd passed; remove their variables from the environment."""
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

    A dual-stack socket serves both the IPv4 and the IPv6 listener of its port.
    Raises: ConfigError for a listener without a socket.
    """
    by_port: defaultdict[int, list[socket.socket]] = defaultdict(list)
    for listener in passed:
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            by_port[listener.getsockname()[1]].append(listener)
    ports = {address.port for address in sites}
    missing = sorted(ports - by_port.keys())
    if missing:
        raise ConfigError(Problem("socket activation", f"port {port}", _NO_SOCKET) for port in missing)
    matched: list[tuple[Address, socket.socket]] = []
    for port in sorted(ports):
        addresses = [address for address in sites if address.port == port]
        first = max(addresses, key=lambda address: sites[address].aggregated)
        matched.extend((first, listener) for listener in by_port[port])
    return matched
