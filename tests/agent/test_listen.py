"""Which port shows what, and the sockets: bound here, or passed by systemd."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from powerbench_agent.agent import roster
from powerbench_agent.agent.config import Config, parse
from powerbench_agent.agent.listen import (
    ListenError,
    Site,
    bind,
    match_passed,
    only_listen,
    passed_sockets,
    plan,
)
from powerbench_agent.core.options import Address, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

KNOWN = roster.options_of(roster.load_modules())
EVERY = frozenset(KNOWN)


def config(listen: str = "0.0.0.0:9510", **own: str) -> Config:
    sections = {name: {"listen": address} for name, address in own.items()}
    return parse({"agent": {"listen": listen}, "collectors": sections}, KNOWN, "agent.toml")


def planned(made: Config, **environ: str) -> dict[str, Site]:
    return {str(address): site for address, site in plan(made, roster.BUILT_IN, environ).items()}


# -- the plan ----------------------------------------------------------------------------------------


def test_the_aggregated_port_shows_every_enabled_collector() -> None:
    """One listener, everything that is enabled, the node with it; what is disabled is nowhere."""
    made = parse({"collectors": {"host": {"enabled": False}}}, KNOWN, "x")
    assert planned(made) == {"0.0.0.0:9510": Site(EVERY - {"host"}, aggregated=True)}
    assert "node" in planned(made)["0.0.0.0:9510"].shown


def test_a_collectors_own_port_shows_it_as_well() -> None:
    """A collector with a port of its own stays on the aggregated one; its own has no node."""
    sites = planned(config(ffmpeg="127.0.0.1:9506"))
    assert sites["0.0.0.0:9510"].collectors == EVERY
    assert sites["127.0.0.1:9506"] == Site(frozenset({"ffmpeg"}), aggregated=False)
    assert sites["127.0.0.1:9506"].shown == {"ffmpeg"}


def test_a_port_alone_is_every_ipv4_and_ipv6_address() -> None:
    """`:N` is two sockets that show the same."""
    assert planned(config(":9510")) == dict.fromkeys(
        ("0.0.0.0:9510", "[::]:9510"), Site(EVERY, aggregated=True)
    )


def test_no_aggregated_port_leaves_the_own_ones() -> None:
    """`listen = ""` with per-collector ports is the classic layout."""
    sites = planned(config("", rapl="127.0.0.1:9510", ffmpeg="127.0.0.1:9506"))
    assert sites == {
        "127.0.0.1:9510": Site(frozenset({"rapl"}), aggregated=False),
        "127.0.0.1:9506": Site(frozenset({"ffmpeg"}), aggregated=False),
    }


def test_equal_listeners_merge() -> None:
    """One socket for two collectors of one address, and for a collector on the aggregated one."""
    sites = planned(config("", rapl="127.0.0.1:1", ffmpeg="127.0.0.1:1"))
    assert sites == {"127.0.0.1:1": Site(frozenset({"rapl", "ffmpeg"}), aggregated=False)}
    assert planned(config(":9510", rapl="0.0.0.0:9510"))["0.0.0.0:9510"] == Site(EVERY, aggregated=True)


def test_a_disabled_collectors_port_is_not_opened() -> None:
    """Neither its own listener nor its environment variable opens a port that would show nothing."""
    made = parse({"collectors": {"rapl": {"enabled": False, "listen": ":1234"}}}, KNOWN, "x")
    assert planned(made, CPU_EXPORTER_PORT="4321").keys() == {"0.0.0.0:9510"}


@pytest.mark.parametrize(
    ("variable", "name"), [("CPU_EXPORTER_PORT", "rapl"), ("FFMPEG_EXPORTER_PORT", "ffmpeg")]
)
def test_an_environment_variable_overrides_a_collectors_port(variable: str, name: str) -> None:
    """The classic variables move a collector's own port, keep its host, and open one where it had none."""
    for own, expected in (("127.0.0.1:1", {"127.0.0.1:7777"}), ("", {"0.0.0.0:7777", "[::]:7777"})):
        sites = planned(config("", **{name: own}), **{variable: "7777"})
        assert sites == dict.fromkeys(expected, Site(frozenset({name}), aggregated=False))
    assert planned(config("", **{name: "127.0.0.1:1"}), **{variable: ""}).keys() == {"127.0.0.1:1"}


def test_the_five_classic_variables_are_known_where_their_collector_is() -> None:
    """Each collector that had a variable in the classic layout has it still, and its classic port."""
    classic = {
        "rapl": (9510, "CPU_EXPORTER_PORT"),
        "nvml": (9511, "GPU_EXPORTER_PORT"),
        "ffmpeg": (9506, "FFMPEG_EXPORTER_PORT"),
        "docker": (9501, "DOCKER_STATS_PORT"),
        "results": (9502, "RESULTS_EXPORTER_PORT"),
    }
    for name, entry in roster.BUILT_IN.items():
        assert (entry.port, entry.port_variable) == classic.get(name, (None, None))


@pytest.mark.parametrize("port", ["0", "65536", "99999", "-1", "http", "9506 ", "²", ":9506", "1.5"])
def test_a_bad_port_in_the_environment_is_a_problem_that_names_the_variable(port: str) -> None:
    """Every bad variable is one problem, found also when its collector runs alone."""
    made = config()
    with pytest.raises(ConfigError) as caught:
        plan(made, roster.BUILT_IN, {"CPU_EXPORTER_PORT": port, "FFMPEG_EXPORTER_PORT": port})
    assert [(p.where, p.key) for p in caught.value.problems] == [
        ("environment", "FFMPEG_EXPORTER_PORT"),
        ("environment", "CPU_EXPORTER_PORT"),
    ]
    alone = only_listen("ffmpeg", made, roster.BUILT_IN, {"FFMPEG_EXPORTER_PORT": port})
    assert alone == Address("", 9506), "a bad port is not used"


def test_a_collector_that_runs_alone_takes_its_own_port_else_its_classic_one() -> None:
    """Variable before configuration before classic port; one without any has none."""
    environ = {"FFMPEG_EXPORTER_PORT": "7777"}
    own = config(ffmpeg="127.0.0.1:8888", host="127.0.0.1:1")
    assert only_listen("ffmpeg", own, roster.BUILT_IN, environ) == Address("", 7777)
    assert only_listen("ffmpeg", own, roster.BUILT_IN, {}) == Address("127.0.0.1", 8888)
    assert only_listen("ffmpeg", config(), roster.BUILT_IN, {}) == Address("", 9506)
    assert only_listen("host", own, roster.BUILT_IN, {}) == Address("127.0.0.1", 1)
    assert only_listen("host", config(), roster.BUILT_IN, {}) is None


# -- sockets -----------------------------------------------------------------------------------------


def test_a_bound_socket_listens() -> None:
    """bind() gives a socket that takes connections without blocking its loop."""
    listener = bind(Address("127.0.0.1", 0))
    assert listener is not None
    with listener, socket.create_connection(listener.getsockname(), timeout=10):
        assert not listener.getblocking()


def test_ipv4_and_ipv6_share_a_port() -> None:
    """`:N` works: the IPv6 socket leaves IPv4 to its sibling."""
    with contextlib.ExitStack() as stack:
        six = bind(Address("::", 0))
        if six is None:
            pytest.skip("NOT CHECKED: this machine has no IPv6")
        stack.enter_context(six)
        port = six.getsockname()[1]
        four = bind(Address("0.0.0.0", port))
        assert four is not None
        stack.enter_context(four)
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=10).close()


def test_a_taken_port_is_one_line_that_names_it() -> None:
    """Who holds it and what to do instead, in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            bind(Address("127.0.0.1", port))
    text = str(caught.value)
    assert text.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use; ")
    assert f"sport = :{port}" in text
    assert "\n" not in text


def test_another_machines_address_is_one_line_that_names_it() -> None:
    """An address that is not here says so."""
    with pytest.raises(ListenError, match=r"^cannot listen on 192\.0\.2\.1:9510: .*address of this machine$"):
        bind(Address("192.0.2.1", 9510))


@pytest.mark.parametrize("host", ["a..b", ".", ".example", "x" * 64, "a\0b", "\xad"])
def test_a_host_that_can_be_none_is_one_line_that_names_it(host: str) -> None:
    """What no resolver would even be asked for is refused as any other address is."""
    with pytest.raises(ListenError, match=r"^cannot listen on .*:9510: .") as caught:
        bind(Address(host, 9510))
    assert "\n" not in str(caught.value)


# -- passed by systemd -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x"},
        {"LISTEN_FDS": "many", "LISTEN_PID": "4242"},
        {"LISTEN_FDS": "0", "LISTEN_PID": "4242"},
    ],
)
def test_sockets_meant_for_another_process_are_left_alone(environ: dict[str, str]) -> None:
    """Without our own process id nothing is taken, and no child will take them for its own either."""
    assert passed_sockets(environ, 4242) == []
    assert not environ


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """Three listening sockets on three ports."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def test_a_passed_socket_serves_the_listener_of_its_port(listeners: list[socket.socket]) -> None:
    """Matched by port, whatever host is configured; a socket for an unconfigured port is not used."""
    one, two, unasked = listeners
    sites = {
        Address("0.0.0.0", port_of(two)): Site(frozenset({"a"}), aggregated=True),
        Address("10.0.0.1", port_of(one)): Site(frozenset({"b"}), aggregated=False),
    }
    matched = dict(match_passed(sites, [one, unasked, two]))
    assert matched == {Address("0.0.0.0", port_of(two)): two, Address("10.0.0.1", port_of(one)): one}


def test_a_dual_stack_socket_takes_both_listeners_places(listeners: list[socket.socket]) -> None:
    """`:N` is two listeners and may be one socket; what is aggregated wins."""
    port = port_of(listeners[0])
    sites = {
        Address("::", port): Site(frozenset({"a"}), aggregated=False),
        Address("0.0.0.0", port): Site(frozenset({"a", "b"}), aggregated=True),
    }
    assert match_passed(sites, listeners[:1]) == [(Address("0.0.0.0", port), listeners[0])]


def test_two_sockets_of_one_port_show_the_same(listeners: list[socket.socket]) -> None:
    """Systemd may pass an IPv4 and an IPv6 socket of one port: both serve its listener."""
    port = port_of(listeners[0])
    with socket.create_server(("127.0.0.2", port)) as other:
        address = Address("0.0.0.0", port)
        matched = match_passed({address: Site(frozenset(), aggregated=True)}, [listeners[0], other])
    assert matched == [(address, listeners[0]), (address, other)]


def test_a_listener_without_a_socket_is_a_problem_that_names_the_drop_in(
    listeners: list[socket.socket],
) -> None:
    """While sockets are passed, each configured port without one is a problem with the drop-in's name."""
    site = Site(frozenset(), aggregated=True)
    sites = {Address("0.0.0.0", port): site for port in (1, 2, port_of(listeners[0]))}
    with pytest.raises(ConfigError) as caught:
        match_passed(sites, listeners)
    assert [problem.key for problem in caught.value.problems] == ["port 1", "port 2"]
    assert "add ListenStream= to a drop-in of powerbench-agent.socket" in str(caught.value)


def test_a_unix_socket_serves_no_port(listeners: list[socket.socket]) -> None:
    """A passed socket that has no port matches nothing and breaks nothing."""
    address = Address("0.0.0.0", port_of(listeners[0]))
    with socket.socket(socket.AF_UNIX) as other:
        assert match_passed({address: Site(frozenset(), aggregated=True)}, [other, listeners[0]]) == [
            (address, listeners[0])
        ]


def test_a_port_shows_one_page_on_ipv4_and_ipv6() -> None:
    """`0.0.0.0:N` and a collector's own `:N` are one port: localhost finds everything by either address."""
    for sites in (planned(config(rapl=":9510")), planned(config(), CPU_EXPORTER_PORT="9510")):
        assert sites["0.0.0.0:9510"] == sites["[::]:9510"] == Site(EVERY, aggregated=True)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (config(""), "there is no address to listen on"),
        (config(rapl="127.0.0.1:9510"), "is part of :9510"),
    ],
)
def test_a_plan_that_cannot_work_is_a_problem(made: Config, words: str) -> None:
    """No listener at all, and one address within another, are said before anything is opened."""
    with pytest.raises(ConfigError, match=words):
        planned(made)
