"""What crosses a container's border, and whose network namespace a process is in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cgroup_trees import SYSTEMD, Driven, Machine, drive, identity
from trees import value, values

from powerbench_agent.collectors.docker import collector as docker
from powerbench_agent.collectors.docker.engine import Container, Engine
from powerbench_agent.collectors.docker.network import Traffic, border_traffic, is_machines, parse_net_dev

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NETWORK = (docker.RX, docker.TX, docker.RX_OLD, docker.TX_OLD)


@pytest.fixture
async def driven(tmp_path: Path) -> AsyncIterator[Driven]:
    async for made in drive(Machine(tmp_path)):
        yield made


# -- which interfaces --------------------------------------------------------------------------------


def border(*names: str) -> list[str]:
    """Return which of some interfaces lead out."""
    received = {name: 10**number for number, name in enumerate(names)}
    total = border_traffic({name: Traffic(bytes_, 0) for name, bytes_ in received.items()}).received
    return [name for name, bytes_ in received.items() if total // bytes_ % 10]


@pytest.mark.parametrize(
    ("names", "leading_out"),
    [
        (["lo", "eth0"], ["eth0"]),
        (["lo", "eth0", "eth1"], ["eth0", "eth1"]),
        (["lo", "docker0", "br-0a1b2c", "vethe1f2", "eth0"], ["eth0"]),  # an engine within
        (["lo", "veth0a1b", "veth2c3d", "cni0", "flannel.1", "eth0"], ["eth0"]),  # Kubernetes within
        (["lo", "tun0", "wg0", "tailscale0", "mullvad", "eth0"], ["eth0"]),  # a VPN
        (["lo", "eth0", "eth0.5"], ["eth0"]),
        (["lo", "tunl0", "sit0", "eth0"], ["eth0"]),  # what some kernels make in every namespace
        (["lo", "tap0"], ["tap0"]),  # slirp4netns
        (["lo", "enp3s0"], ["enp3s0"]),  # pasta
        (["lo", "br0"], ["br0"]),  # pasta on a machine whose network is a bridge
        (["lo", "wlan0", "wlan0.7", "tun0"], ["wlan0"]),
        (["lo", "lan0", "dmz0"], ["lan0", "dmz0"]),
        (["lo"], []),
        ([], []),
    ],
)
def test_only_interfaces_that_lead_out_count(names: list[str], leading_out: list[str]) -> None:
    """A packet of a tunnel or of a container within is counted at the border and nowhere else."""
    assert border(*names) == leading_out


def test_net_dev() -> None:
    """Bytes by interface, a name stuck to its figure included; lines that are cut are left out."""
    text = (
        "a\nb\n    lo: 900 1 0 0 0 0 0 0 900 1 0 0 0 0 0 0\n  eth0:1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0\n"
        "eth0.5: 10 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n  eth1: 10 1"
    )
    assert parse_net_dev(text) == {"lo": (900, 900), "eth0": (1, 2), "eth0.5": (10, 20)}


@pytest.mark.parametrize(
    "odd",
    [
        "  tun0: x 1 0 0 0 0 0 0 900 1 0 0 0 0 0 0",
        "  tun0: -1 1 0 0 0 0 0 0 900 1 0 0 0 0 0 0",
        "  tun0: 1 1 0 0 0 0 0 0 \N{SUPERSCRIPT TWO} 1 0 0 0 0 0 0",
        f"  tun0: {'9' * 5000} 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0",
        "  tun0: ",
        "tun0 1 2 3 4 5 6 7 8 9 10",
        ":",
        "",
        "  a\N{NEXT LINE}b: 7 1",
    ],
)
def test_an_odd_line_of_net_dev_costs_its_interface(odd: str) -> None:
    """Whatever one line says, the others are read."""
    text = f"a\nb\n{odd}\n  eth0: 1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0\n"
    assert parse_net_dev(text)["eth0"] == (1, 2)
    assert border_traffic(parse_net_dev(text)) == (1, 2)


# -- whose network -----------------------------------------------------------------------------------


def test_namespaces_are_told_apart_with_and_without_privileges(tmp_path: Path) -> None:
    """By their links where these can be read, else by the file each has; without either it is unknown."""
    machine = Machine(tmp_path)
    machine.set_network(7, 1, 1)
    machine.share_network(8, 1)
    assert is_machines(machine.host, 7) is False
    assert is_machines(machine.host, 8) is True
    for pid, namespace in ((1, 111), (7, 111), (8, 222)):
        (machine.procfs / f"{pid}/ns").mkdir()
        (machine.procfs / f"{pid}/ns/net").symlink_to(f"net:[{namespace}]")
    assert is_machines(machine.host, 7) is True
    assert is_machines(machine.host, 8) is False
    (machine.procfs / "1/ns/net").unlink()
    (machine.procfs / "1/net/dev").unlink()
    assert is_machines(machine.host, 7) is None


async def test_the_machines_traffic_is_no_containers(driven: Driven) -> None:
    """Podman's list has no HostConfig: a container in the machine's namespace has no traffic all the same."""
    driven.start(1)
    driven.start(2)
    driven.machine.share_network(10_001, 1)
    reading = await driven.beat()
    for metric in NETWORK:
        assert set(values(reading, metric)) == {("c2",)}
    assert not reading.troubles


async def test_containers_that_share_a_network_both_show_it(driven: Driven) -> None:
    """A container that joins another's own network has that traffic, as `docker stats` shows it."""
    driven.start(1)
    driven.start(2).joined = identity(1)
    driven.machine.share_network(10_002, 10_001)
    reading = await driven.beat()
    assert values(reading, docker.RX) == {("c1",): 100, ("c2",): 100}


async def test_without_process_1_there_is_a_gap_and_a_word(driven: Driven) -> None:
    """Where the machine's own namespace is hidden, no traffic is shown, and a remedy is said."""
    (driven.machine.procfs / "1/net/dev").unlink()
    driven.start(1)
    reading = await driven.beat()
    assert values(reading, docker.RX) == {}
    assert value(reading, docker.MEMORY, "c1") == 4000
    (trouble,) = reading.troubles
    assert trouble.part == "network"
    assert "hidepid" in trouble.remedy


def joined(*pairs: tuple[int, int]) -> dict[str, Container]:
    """Return containers of which each joins another's network."""
    containers = {}
    for number, other in pairs:
        containers[identity(number)] = Container(identity(number), "c", "", "", joined=identity(other))
    return containers


def test_joining_leads_to_the_engines_own_network() -> None:
    """A rootless engine's own network is not the machine's; who joins one on it, is on it. Circles end."""
    engine = Engine("unix:///nowhere", 100, 200)
    engine.containers = joined((1, 2), (2, 3), (4, 5), (5, 4), (6, 7))
    engine.containers[identity(3)] = Container(identity(3), "c", "", "", host_network=True)
    on_host = [key for key, container in engine.containers.items() if engine.on_host_network(container)]
    assert on_host == [identity(1), identity(2), identity(3)]


@pytest.mark.parametrize("called", [identity(1), identity(1)[:63], "web"])
def test_joining_by_id_or_name(called: str) -> None:
    """Lists and descriptions give what the user gave: an id, the beginning of one, or a name."""
    engine = Engine("unix:///nowhere", 100, 200)
    engine.containers = {
        identity(1): Container(identity(1), "web", "", "", host_network=True),
        identity(2): Container(identity(2), "side", "", "", joined=called),
        "f" * 64: Container("f" * 64, "lost", "", "", joined="gone"),
    }
    assert engine.on_host_network(engine.containers[identity(2)])
    assert not engine.on_host_network(engine.containers["f" * 64])


async def test_a_container_with_all_its_processes_below(driven: Driven) -> None:
    """With systemd or an engine within, the traffic is that of a process in a cgroup below."""
    driven.start(1)
    directory = driven.machine.directory(SYSTEMD.format(identity(1)), "cpu")
    (directory / "cgroup.procs").write_text("")
    (directory / "init.scope").mkdir()
    (directory / "init.scope/cgroup.procs").write_text("10001\n")
    assert value(await driven.beat(), docker.RX, "c1") == 100
