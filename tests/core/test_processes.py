"""Whose connection it is, and what a process and its descendants have used: in trees and on this machine."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proc_trees import AGENT_PID, SPOILERS, Connection, Processes, connected, forwarded, socket_of
from trees import FakeClock

from powerbench_agent.core import process_tree, processes
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Sender
from powerbench_agent.core.process_tree import ProcessTree
from powerbench_agent.core.processes import Index, Unresolved, find_sender
from powerbench_agent.core.procfs import ProcessStat, parse_process_stat, read_process_stat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ID = "a" * 64


@pytest.fixture
def proc(tmp_path: Path) -> Processes:
    return Processes(tmp_path / "proc", FakeClock())


# -- /proc/PID/stat ----------------------------------------------------------------------------------


@pytest.mark.parametrize("comm", ["ffmpeg", "a (b) c", ") S 1 2 3", "", "((", "tmux: server"])
def test_a_name_may_hold_anything(proc: Processes, comm: str) -> None:
    """Parentheses and spaces in a process's name do not shift the figures."""
    proc.start(50, 7, comm, age=10.0, seconds=2.5)
    stat = read_process_stat(proc.host, 50)
    assert stat is not None
    assert (stat.comm, stat.parent, stat.cpu_seconds, stat.start) == (comm, 7, 2.5, 990.0)


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Any text that is not a stat raises ValueError and nothing else."""
    for content in (text, f"1 (a) S {text}", "1 (a) S " + "1 " * 30 + text):
        found: object = None
        with suppress(ValueError):
            found = parse_process_stat(content)
        assert found is None or isinstance(found, ProcessStat)


def test_a_process_that_ended_has_no_figures(proc: Processes) -> None:
    """Its files are gone, and that is not an error."""
    assert read_process_stat(proc.host, 50) is None
    assert processes.container_of(proc.host, 50) == ""
    with pytest.raises(Unresolved, match="no process 50"):
        ProcessTree(proc.host, 50)


# -- a tree's use ------------------------------------------------------------------------------------


def test_a_tree_is_the_sum_of_its_processes(proc: Processes) -> None:
    """Children, theirs, and those of other threads than the first count with it; strangers do not."""
    proc.start(50, container=ID)
    tree = ProcessTree(proc.host, 50)
    proc.start(51, 50, age=0.0)
    proc.start(52, 51, age=0.0)
    proc.start(53, 1, age=0.0)
    proc.start(60, 1, age=0.0)
    proc.thread(50, 55, 53)
    for pid, seconds in ((50, 1.0), (51, 2.0), (52, 4.0), (53, 8.0), (60, 16.0)):
        proc.work(pid, seconds)
    tree.look()
    assert tree.cpu_seconds == pytest.approx(15)
    assert set(tree.pids) == {50, 51, 52, 53}
    assert tree.container == ID


def test_an_old_process_starts_at_its_present_figure(proc: Processes) -> None:
    """CPU time used long before the first look does not count for the stream."""
    proc.start(50, age=3600.0, seconds=500.0)
    proc.start(51, 50, age=3000.0, seconds=9000.0)
    tree = ProcessTree(proc.host, 50)
    tree.look()
    assert tree.cpu_seconds == 0
    proc.work(51, 1.5)
    tree.look()
    assert tree.cpu_seconds == pytest.approx(1.5)


def test_a_young_process_starts_at_zero(proc: Processes) -> None:
    """What a process used in the moment between its start and its connection is the stream's."""
    proc.start(50, age=1.0, seconds=0.5)
    proc.start(51, 50, age=0.5, seconds=0.25)
    tree = ProcessTree(proc.host, 50)
    tree.look()
    assert tree.cpu_seconds == pytest.approx(0.75)


@pytest.mark.parametrize("children", [True, False])
def test_a_child_that_ends_takes_nothing_along(proc: Processes, *, children: bool) -> None:
    """A child's seconds become its parent's when it is waited for: the sum is the same."""
    proc.start(50)
    tree = ProcessTree(proc.host, 50)
    proc.start(51, 50, age=0.0)
    proc.work(51, 5.0)
    tree.look()
    proc.end(51)
    proc.work(50, 1.0)
    tree.look(children=children)
    assert tree.cpu_seconds == pytest.approx(6)
    assert tree.pids == (50,)


def test_a_child_that_is_not_waited_for_stops_nothing(proc: Processes) -> None:
    """If a parent does not wait for its children, their seconds are lost, and the tree goes on counting."""
    proc.start(50)
    tree = ProcessTree(proc.host, 50)
    proc.start(51, 50, age=0.0)
    proc.work(51, 100.0)
    tree.look()
    proc.end(51, waited=False)
    for _ in range(5):
        proc.work(50, 1.0)
        tree.look()
    assert 103 <= tree.cpu_seconds <= 105


def test_a_child_that_ends_between_two_reads_counts_once(proc: Processes) -> None:
    """The parent is read, then the child ends: it is nowhere in that look, in the parent in the next."""
    proc.start(50)
    tree = ProcessTree(proc.host, 50)
    proc.start(51, 50, age=0.0)
    proc.work(51, 5.0)
    tree.look()
    stat = proc.procfs / "50/stat"
    early = stat.read_bytes()
    proc.end(51)
    late = stat.read_bytes()
    for content in (early, late):
        stat.write_bytes(content)
        tree.look()
    assert tree.cpu_seconds == pytest.approx(5)


def test_others_subtrees_are_left_out(proc: Processes) -> None:
    """A child that is another stream's, and what is below it, is not this one's; nor when it has ended."""
    proc.start(50)
    tree = ProcessTree(proc.host, 50)
    proc.start(51, 50, age=0.0)
    proc.start(52, 51, age=0.0)
    proc.work(51, 7.0)
    proc.work(52, 3.0)
    tree.look({51})
    assert (tree.cpu_seconds, tree.pids) == (0, (50,))
    proc.end(52)
    tree.look({51})
    proc.end(51)
    proc.work(50, 1.0)
    tree.look()
    assert tree.cpu_seconds == pytest.approx(1)


@pytest.mark.parametrize("children", [True, False])
def test_a_child_that_gets_a_stream_of_its_own_goes_over(proc: Processes, *, children: bool) -> None:
    """Seconds counted so far stay, later ones are the other's; the tree's own go on at once."""
    proc.start(50)
    tree = ProcessTree(proc.host, 50)
    proc.start(51, 50, age=0.0)
    proc.start(52, 51, age=0.0)
    proc.work(51, 50.0)
    proc.work(52, 50.0)
    tree.look()
    proc.work(51, 7.0)
    proc.work(50, 1.0)
    tree.look({51}, children=children)
    tree.look({51})
    before = tree.cpu_seconds
    proc.work(50, 1.0)
    proc.work(51, 3.0)
    proc.advance(60.0)
    tree.look({51})
    assert tree.cpu_seconds - before == pytest.approx(1)
    proc.work(51, 2.0)
    tree.look()  # the other stream has left
    assert tree.cpu_seconds - before == pytest.approx(3)


def test_a_number_used_again_ends_the_tree(proc: Processes) -> None:
    """Another process with the same number, recognised by its start time, is not the stream's."""
    proc.start(50, age=100.0)
    tree = ProcessTree(proc.host, 50)
    proc.work(50, 1.0)
    tree.look()
    proc.end(50)
    proc.start(50, age=0.0, seconds=9.0)
    tree.look()
    assert (tree.alive, tree.pids, tree.cpu_seconds) == (False, (), 1.0)


def test_at_most_the_cap_is_followed(proc: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree beyond the limit is followed up to the limit, not given up."""
    monkeypatch.setattr(process_tree, "_MAX_TREE", 5)
    proc.start(50)
    for child in range(60, 70):
        proc.start(child, 50)
    tree = ProcessTree(proc.host, 50)
    tree.look()
    assert len(tree.pids) == 5


# -- a given pid -------------------------------------------------------------------------------------


def test_a_given_pid_in_the_agents_namespace(proc: Processes) -> None:
    """It counts where that process's network namespace holds the sender's end of the connection."""
    proc.start(50)
    proc.connections(proc.procfs / "50/net", Connection())
    assert find_sender(proc.host, Connection().sender("50"), Index(proc.host)) == 50


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "-50",
        "0",
        "+50",
        " 50",
        "5 0",
        "\u0665\u0660",
        "50\n",
        "1e3",
        "2147483648",
        "9" * 30,
        "9" * 5000,
        "\x00",
    ],
)
def test_what_is_no_pid_is_said(proc: Processes, text: str) -> None:
    """A text that is not a process id is one clear line, whatever its length."""
    proc.start(50)
    proc.connections(proc.procfs / "50/net", Connection())
    with pytest.raises(Unresolved, match=r"^pid='.{0,60}' is not a process id$") as refused:
        find_sender(proc.host, Connection().sender(text), Index(proc.host))
    assert "&pid=PID" in refused.value.remedy


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_pid_that_cannot_be_the_senders(proc: Processes, spoil: Callable[[Processes], None]) -> None:
    """A pid that is remote, younger, another user's or unused is refused in one line."""
    proc.start(50)
    spoil(proc)
    with pytest.raises(Unresolved, match=r"^pid=50 is not a process that this connection can come from$"):
        find_sender(proc.host, Connection().sender("50"), Index(proc.host))


def test_roots_connection_may_be_any_users(proc: Processes) -> None:
    """A forwarder that runs as root may speak for a process of another user."""
    proc.start(50, uid=1000)
    proc.connections(proc.procfs / "50/net", Connection(uid=0))
    assert find_sender(proc.host, Connection().sender("50"), Index(proc.host)) == 50


def test_a_pid_of_a_containers_namespace(proc: Processes) -> None:
    """Of two containers with the same number inside, it is the one whose network holds the connection."""
    connection = Connection(peer=("172.17.0.3", 40000), local=("172.17.0.1", 9101))
    proc.start(7, comm="kworker")
    proc.start(500, inner=7)
    proc.start(600, inner=7)
    proc.start(601, inner=8)
    for pid in (600, 601):
        proc.connections(proc.procfs / f"{pid}/net", connection)
    assert find_sender(proc.host, connection.sender("7"), Index(proc.host)) == 600
    proc.connections(proc.procfs / "500/net", connection)
    with pytest.raises(Unresolved, match="pid=7 could be any of the processes "):
        find_sender(proc.host, connection.sender("7"), Index(proc.host))


# -- without a pid -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "local", "version"),
    [
        ("127.0.0.1", "127.0.0.1", 4),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", 4),
        ("127.0.0.1", "127.0.0.1", 6),
        ("::1", "::1", 6),
        ("2001:db8::12:345", "2001:db8::1", 6),
        ("fe80::1%lo", "fe80::2%lo", 6),
    ],
)
def test_the_owner_of_a_connection(proc: Processes, peer: str, local: str, version: int) -> None:
    """The process that has the socket open is found by IPv4, IPv6, and IPv4 mapped into IPv6."""
    plain = Connection(
        (peer.removeprefix("::ffff:").partition("%")[0], 40000),
        (local.removeprefix("::ffff:").partition("%")[0], 9101),
    )
    proc.start(49)
    proc.start(50)
    proc.connects(50, plain, version)
    assert find_sender(proc.host, Sender((peer, 40000), (local, 9101)), Index(proc.host)) == 50


def test_the_agents_end_is_not_the_senders(proc: Processes) -> None:
    """The table of one namespace holds both ends of a connection; the sender's has the peer's port."""
    proc.start(50)
    proc.connects(50, Connection())
    with pytest.raises(Unresolved, match="neither in the agent's network namespace") as refused:
        find_sender(proc.host, Sender(Connection().local, Connection().peer), Index(proc.host))
    assert "powerbench pipe" in refused.value.remedy


def test_a_connection_in_the_machines_namespace(proc: Processes) -> None:
    """An agent in a network namespace of its own, as under its unit, looks into the first process's."""
    proc.start(50)
    proc.connections(proc.procfs / "1/net", Connection())
    proc.opens(50, 5, f"socket:[{Connection().inode}]")
    assert find_sender(proc.host, Connection().sender(), Index(proc.host)) == 50


@pytest.mark.parametrize("content", ["", "\n", "soon 1.0\n"])
def test_without_an_uptime_no_pid_is_taken(proc: Processes, content: str) -> None:
    """If the age of a process is not known, its number is not trusted."""
    proc.start(50)
    proc.connections(proc.procfs / "50/net", Connection())
    (proc.procfs / "uptime").write_text(content)
    with pytest.raises(Unresolved, match="not a process that this connection can come from"):
        find_sender(proc.host, Connection().sender("50"), Index(proc.host))


def test_an_owner_that_is_not_visible(proc: Processes) -> None:
    """Where the agent may not look into the sender's files it says so."""
    proc.start(50)
    proc.connections(proc.listing, Connection())
    with pytest.raises(Unresolved, match="not visible to the agent's user"):
        find_sender(proc.host, Connection().sender(), Index(proc.host))


def test_the_agents_own_connection(proc: Processes) -> None:
    """The agent's own energy is shown already and does not count for a stream."""
    proc.connects(AGENT_PID, Connection())
    with pytest.raises(Unresolved, match="the agent's own process"):
        find_sender(proc.host, Connection().sender(), Index(proc.host))


def test_a_forwarders_writer_is_the_sender(proc: Processes) -> None:
    """Behind curl it is ffmpeg that counts, the shell that made the pipe notwithstanding."""
    assert (
        find_sender(
            proc.host,
            forwarded(proc, (60, "bash", 1.0), (61, "ffmpeg", 20.0), (62, "tee", 2.0)),
            Index(proc.host),
        )
        == 61
    )


def test_a_forwarders_youngest_writer(proc: Processes) -> None:
    """Where none is called ffmpeg it is the youngest, for shells are older than what they start."""
    assert (
        find_sender(
            proc.host, forwarded(proc, (60, "bash", 50.0), (61, "gst-launch-1.0", 20.0)), Index(proc.host)
        )
        == 61
    )


def test_a_forwarder_without_writers(proc: Processes) -> None:
    """If no writer of the pipe can be seen, the forwarder itself is taken."""
    assert find_sender(proc.host, forwarded(proc), Index(proc.host)) == 50


def test_an_encoder_is_no_forwarder(proc: Processes) -> None:
    """An ffmpeg whose input is a pipe, as a supervisor or another program gives it, is the sender itself."""
    proc.start(50, parent=60, comm="ffmpeg")
    proc.connects(50, Connection())
    proc.opens(50, 0, "pipe:[1234]", flags=0o0)
    proc.start(60, comm="python3")
    proc.opens(60, 3, "pipe:[1234]", flags=0o1)
    assert find_sender(proc.host, Connection().sender(), Index(proc.host)) == 50


# -- this machine ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "address"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_a_real_childs_connection(family: str, address: str) -> None:
    """A child's pid is taken for its connection, and what it and its own child used is in its tree."""
    with connected(family, address) as (child, sender, connection):
        assert find_sender(Host(), sender._replace(pid=str(child.pid)), Index(Host())) == child.pid
        tree = ProcessTree(Host(), child.pid)
        assert connection.recv(4) == b"done"
        tree.look()
        assert tree.cpu_seconds >= 0.25
    tree.look()
    assert (tree.alive, tree.pids) == (False, ())


def test_a_real_connection_without_a_pid() -> None:
    """The socket's owner is found, and not the writer of its input, which is this process, the agent."""
    with connected("AF_INET", "127.0.0.1") as (child, sender, _):
        assert Index(Host()).having(socket_of(child.pid)) == [child.pid]
        assert find_sender(Host(), sender, Index(Host())) == child.pid


def test_a_real_process_that_started_after_the_connection() -> None:
    """A pid that somebody else got later is not taken for the sender's."""
    with connected("AF_INET", "127.0.0.1") as (child, sender, _):
        old = sender._replace(pid=str(child.pid), connected=time.monotonic() - 3600)
        with pytest.raises(Unresolved, match=f"pid={child.pid} is not a process"):
            find_sender(Host(), old, Index(Host()))
