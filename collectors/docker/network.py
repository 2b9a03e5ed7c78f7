"""A container's traffic: what crosses the border of its own network namespace.

Reads /proc/PID/net/dev and, where allowed, /proc/PID/ns/net. Bytes. Privileges: none.

Source: proc(5), network_namespaces(7)
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core import sysfs

if TYPE_CHECKING:
    from powerbench_agent.core.host import Host

# Engines call a container's interfaces so, those of macvlan and ipvlan networks too.
_BORDER = re.compile(r"eth[0-9]+")
# What software within a container makes: bridges, their ports, tunnels, overlays, dummies.
_WITHIN = re.compile(
    r"docker|podman|br-|br[0-9]|bridge|virbr|vnet|lxc|lxd|veth|cni|cbr|cali|cilium|flannel|weave|kube-|nodelocaldns"
    r"|ovs|vxlan|geneve|tun|wg|wt[0-9]|ppp|ipsec|tailscale|zt|nordlynx|proton|gre|erspan|sit|ip6|ip_vti|teql"
    r"|dummy|ifb|bond|team|vlan"
)


class Traffic(NamedTuple):
    """Bytes that have crossed a container's border."""

    received: int
    transmitted: int


def read_traffic(host: Host, pid: int) -> Traffic:
    """Return the traffic of a process's network namespace. Raises: OSError."""
    text = host.read(host.procfs / str(pid) / "net/dev").decode("utf-8", "replace")
    return border_traffic(parse_net_dev(text))


def parse_net_dev(text: str) -> dict[str, Traffic]:
    """Return the traffic by interface in the text of /proc/PID/net/dev; an odd line costs its interface."""
    traffic_of = {}
    for line in text.split("\n")[2:]:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) < 9:
            continue
        received, transmitted = words[0], words[8]
        if sysfs.is_count(received) and sysfs.is_count(transmitted):
            traffic_of[name.strip()] = Traffic(int(received), int(transmitted))
    return traffic_of


def border_traffic(traffic_of: dict[str, Traffic]) -> Traffic:
    """Return the sum over the interfaces that lead out of a container.

    These are the ones called as engines call them. A packet of a VPN or of a container within passes tun0 or
    docker0 and then eth0: it crosses the border once. Where no interface has such a name (pasta takes the
    machine's, slirp4netns has tap0, and a name can be configured), a lone interface leads out, and of
    several those that are neither made within nor a VLAN on top of another.
    """
    others = [name for name in traffic_of if name != "lo"]
    leading_out = [name for name in others if _BORDER.fullmatch(name)]
    if not leading_out and len(others) > 1:
        leading_out = [name for name in others if not _is_within(name, traffic_of)]
    elif not leading_out:
        leading_out = others
    received = sum(traffic_of[name].received for name in leading_out)
    transmitted = sum(traffic_of[name].transmitted for name in leading_out)
    return Traffic(received, transmitted)


def _is_within(name: str, traffic_of: dict[str, Traffic]) -> bool:
    parent, _, _ = name.rpartition(".")
    return parent in traffic_of or _WITHIN.match(name) is not None


def is_machines(host: Host, pid: int) -> bool | None:
    """Return whether a process is in the machine's network namespace; None if this cannot be told.

    Its link says so to those who may trace it. To others the inode of /proc/PID/net/dev does: each namespace
    has such a file of its own.
    """
    for identify in (_namespace_link, _namespace_inode):
        own, machines = identify(host, pid), identify(host, 1)
        if own and machines:
            return own == machines
    return None


def _namespace_link(host: Host, pid: int) -> str:
    try:
        return os.readlink(host.procfs / str(pid) / "ns/net")  # noqa: PTH115 - the text, not a path
    except OSError:
        return ""


def _namespace_inode(host: Host, pid: int) -> int:
    try:
        return os.stat(host.procfs / str(pid) / "net/dev").st_ino  # noqa: PTH116 - as in the line above
    except OSError:
        return 0
