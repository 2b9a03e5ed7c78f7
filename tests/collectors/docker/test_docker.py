"""The docker collector on trees of cgroups: what is shown, what is claimed, and who may ask the engine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cgroup_trees import MACHINE_BYTES, NO_LIMIT_V1, SYSTEMD, Driven, Machine, drive, identity
from trees import value, values

from powerbench_agent.agent.exposition import OPENMETRICS, TEXT, Pages
from powerbench_agent.agent.node import Node
from powerbench_agent.collectors.docker import collector as docker
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Absent, Claim, CpuTime, Meter, Reading, Snapshot, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NOBODY = 65534
UNMAPPED = 77
SLOW = (docker.MEMORY, docker.MEMORY_LIMIT, docker.PIDS, docker.READ, docker.WRITTEN, docker.RX, docker.TX)


@pytest.fixture
async def driven(tmp_path: Path) -> AsyncIterator[Driven]:
    async for made in drive(Machine(tmp_path)):
        yield made


# -- what is shown -----------------------------------------------------------------------------------


async def test_one_container(driven: Driven) -> None:
    """A container's figures arrive in base units; 100 percent is one core; the limit is its own."""
    container = driven.start(1, "web", cpu_seconds=40)
    container.image, container.project, container.service = "nginx:1", "shop", "front"
    place = SYSTEMD.format(identity(1))
    driven.machine.set_memory(place, used=5000, inactive=1000, limit=8000)
    reading = await driven.beat()
    assert values(reading, docker.CPU) == {}
    driven.use(1, 43)
    reading = await driven.beat(2.0)
    shown = {s.metric: s.value for s in reading.samples if s.labels[:1] == ("web",)}
    assert shown == {
        docker.CPU: 150,
        docker.CPU_SECONDS: 43,
        docker.MEMORY: 4000,
        docker.MEMORY_LIMIT: 8000,
        docker.MEMORY_PERCENT: 50,
        docker.PIDS: 7,
        docker.READ: 1003,
        docker.WRITTEN: 24,
        docker.RX: 100,
        docker.TX: 50,
        docker.RX_OLD: 100,
        docker.TX_OLD: 50,
        docker.INFO: 1,
    }
    assert list(values(reading, docker.INFO)) == [("web", identity(1), "nginx:1", "shop", "front")]
    assert reading.taken == driven.machine.clock.now
    assert {sample.metric for sample in reading.samples} <= set(docker.METRICS)


async def test_without_a_limit_memory_is_a_part_of_the_machines(driven: Driven) -> None:
    """A container without a limit is shown with the machine's memory as its limit."""
    driven.start(1)
    reading = await driven.beat()
    assert value(reading, docker.MEMORY_LIMIT, "c1") == MACHINE_BYTES
    assert value(reading, docker.MEMORY_PERCENT, "c1") == pytest.approx(4000 / MACHINE_BYTES * 100)


@pytest.mark.parametrize(
    ("limit", "shown"),
    [
        (8000, 8000),
        (MACHINE_BYTES, MACHINE_BYTES),
        (MACHINE_BYTES + 1, MACHINE_BYTES),
        (966_367_641_600, MACHINE_BYTES),
        (NO_LIMIT_V1, MACHINE_BYTES),
    ],
)
async def test_a_limit_is_no_more_than_the_machines_memory(driven: Driven, limit: int, shown: int) -> None:
    """A limit that cannot be reached is shown as the machine's memory, as `docker stats` does."""
    driven.start(1)
    driven.machine.set_memory(SYSTEMD.format(identity(1)), limit=limit)
    reading = await driven.beat()
    assert value(reading, docker.MEMORY_LIMIT, "c1") == shown
    assert value(reading, docker.MEMORY_PERCENT, "c1") == pytest.approx(4000 / shown * 100)


async def test_the_hosts_network_is_no_containers(driven: Driven) -> None:
    """A container on the host's own network has no network samples: they would be the machine's."""
    driven.start(1).host_network = True
    driven.start(2)
    reading = await driven.beat()
    for metric in (docker.RX, docker.TX, docker.RX_OLD, docker.TX_OLD):
        assert set(values(reading, metric)) == {("c2",)}


async def test_a_network_that_is_not_known_yet_is_not_shown(driven: Driven) -> None:
    """A start's event does not say whose network it is: until the engine has been asked, none is shown."""
    driven.start(1)
    del driven.containers[identity(1)]
    event = {"Action": "start", "Actor": {"ID": identity(1), "Attributes": {"name": "c1"}}}
    driven.collector._engine.take(event)
    reading = await driven.beat()
    assert value(reading, docker.MEMORY, "c1") == 4000
    assert values(reading, docker.RX) == {}


async def test_in_a_container_a_cgroups_process_numbers_are_others_on_the_host(tmp_path: Path) -> None:
    """In a container with the host's /proc the engine's pid is used; until then no traffic is shown."""
    machine = Machine(tmp_path)
    (machine.host.procfs / "self").symlink_to(str(os.getpid() + 1))
    async for driven in drive(machine):
        driven.start(1)
        assert values(await driven.beat(), docker.RX) == {}
        driven.collector._watched[identity(1)].pid = 10_001
        readings = [await driven.beat() for _ in range(docker.SLICES)]
        assert value(readings[-1], docker.RX, "c1") == 100


async def test_total_and_states(driven: Driven) -> None:
    """The total is the sum of all containers; every state is counted, those with none as 0."""
    for number, state in enumerate(("running", "running", "paused", "exited", "created", "strange")):
        driven.start(number, state=state)
    await driven.beat()
    for number, seconds in ((0, 0.25), (1, 0.5), (3, 9.0)):
        driven.use(number, seconds)
    reading = await driven.beat()
    assert value(reading, docker.TOTAL_CPU) == 75
    counts = {state: number for (state,), number in values(reading, docker.CONTAINERS).items()}
    assert counts == {
        "created": 1,
        "running": 2,
        "paused": 1,
        "restarting": 0,
        "exited": 1,
        "dead": 0,
        "removing": 0,
        "strange": 1,
    }
    assert set(values(reading, docker.CPU_SECONDS)) == {("c0",), ("c1",), ("c2",)}


async def test_slow_figures_are_five_beats_old_at_most_and_staggered(driven: Driven) -> None:
    """Every container's memory is read once in five beats, and never all of them in one beat."""
    for number in range(20):
        driven.start(number)
    await driven.beat()
    fresh: dict[int, int] = {}
    for number in range(20):
        driven.machine.set_memory(SYSTEMD.format(identity(number)), used=9000, inactive=0)
    for beat in range(docker.SLICES):
        reading = await driven.beat()
        now = sum(bytes_ == 9000 for bytes_ in values(reading, docker.MEMORY).values())
        fresh[beat] = now - sum(fresh.values())
    assert list(fresh.values()) == [4] * docker.SLICES


async def test_a_paused_container_stays(driven: Driven) -> None:
    """Paused, a container uses nothing, keeps its figures and its claim."""
    container = driven.start(1, seen=True, cpu_seconds=2)
    await driven.beat()
    container.state = "paused"
    reading = await driven.beat()
    assert value(reading, docker.CPU, "c1") == 0
    assert value(reading, docker.MEMORY, "c1") == 4000
    assert [claim.cpu_seconds for claim in reading.claims] == [2]


async def test_a_renamed_container_has_its_new_name_within_a_beat(driven: Driven) -> None:
    """All samples and the claim change their name at once, CPU goes on without a gap."""
    container = driven.start(1, "old")
    await driven.beat()
    container.name = "new"
    driven.use(1, 0.5)
    reading = await driven.beat()
    assert value(reading, docker.CPU, "new") == 50
    assert not [sample for sample in reading.samples if "old" in sample.labels]
    assert all(values(reading, metric) for metric in SLOW)
    assert [claim.name for claim in reading.claims] == ["new"]


async def test_what_has_gone_leaves(driven: Driven) -> None:
    """A container that has exited or vanished has no series and no claim at the next beat."""
    driven.start(1).state = "running"
    driven.start(2)
    await driven.beat()
    driven.containers[identity(1)].state = "exited"
    del driven.containers[identity(2)]
    reading = await driven.beat()
    assert not [sample for sample in reading.samples if {"c1", "c2"} & {*sample.labels}]
    assert not reading.claims


@pytest.mark.parametrize("content", [None, "", "garbage"])
async def test_a_cgroup_that_vanishes_before_its_event(driven: Driven, content: str | None) -> None:
    """A container whose cgroup cannot be read has no CPU sample and no claim; nothing raises, others stay.

    If the cgroup is there all the same, that is said.
    """
    driven.start(1)
    driven.start(2)
    await driven.beat()
    place = SYSTEMD.format(identity(1))
    if content is None:
        shutil.rmtree(driven.machine.cgroups / place)
    else:
        driven.machine.cpu_file(place).write_text(content)
    for _ in range(docker.SLICES):
        reading = await driven.beat()
        assert set(values(reading, docker.CPU)) == {("c2",)}
        assert [claim.name for claim in reading.claims] == ["c2"]
        said = [trouble.part for trouble in reading.troubles]
        assert said == ([] if content is None else ["cgroup"])


async def test_the_cap(tmp_path: Path) -> None:
    """Past max_containers they are left out and counted."""
    async for driven in drive(Machine(tmp_path), max_containers=3):
        for number in range(5):
            driven.machine.add(SYSTEMD.format(identity(number)))
            event = {
                "Action": "start",
                "Actor": {"ID": identity(number), "Attributes": {"name": f"c{number}"}},
            }
            driven.collector._engine.take(event)
        reading = await driven.beat()
        assert set(values(reading, docker.CPU_SECONDS)) == {("c0",), ("c1",), ("c2",)}
        assert value(reading, docker.IGNORED) == 2


@pytest.mark.parametrize("form", [TEXT, OPENMETRICS])
async def test_names_of_any_kind_are_a_sound_page(driven: Driven, form: Any) -> None:
    """Long names are cut, control characters replaced, quotes escaped, and promtool takes the page."""
    names = ['"quoted" \\ {name="x"}', "two\nlines\ttab", "контейнер-容器-🐳", "x" * 300]
    for number, name in enumerate(names):
        event = {
            "Action": "start",
            "Actor": {"ID": identity(number), "Attributes": {"name": name, "image": 'a"\nb'}},
        }
        driven.machine.add(SYSTEMD.format(identity(number)))
        driven.collector._engine.take(event)
    reading = await driven.beat()
    assert {name for (name,) in values(reading, docker.CPU_SECONDS)} == {
        names[0],
        "two\ufffdlines\ufffdtab",
        names[2],
        f"{'x' * 191}~{identity(3)[:8]}",
    }
    state = State(reading, 1.8e9, 1000.0, 0.0, 0, 1.8e9)
    page = Pages({}, list).page(Snapshot(1.8e9, {"docker": state}), ["docker"], form)
    assert b'container="\\"quoted\\" \\\\ {name=\\"x\\"}"' in page
    assert 'container="two\ufffdlines\ufffdtab"'.encode() in page
    assert 'image="a\\"\ufffdb"'.encode() in page
    assert "контейнер-容器-🐳".encode() in page
    assert b"x" * 201 not in page
    if form is TEXT and (promtool := shutil.which("promtool")):
        linted = subprocess.run(  # noqa: ASYNC221 - nothing else waits in this loop
            [promtool, "check", "metrics"], input=page, capture_output=True, check=False
        )
        assert (linted.returncode, linted.stderr) == (0, b"")


# -- what is claimed ---------------------------------------------------------------------------------


async def test_a_container_that_ran_before_us_claims_from_now_on(driven: Driven) -> None:
    """CPU time used before the agent looked is not claimed; after a start that was seen, all of it is."""
    driven.start(1, cpu_seconds=1000)
    driven.start(2, cpu_seconds=0.25, seen=True)
    claims = await driven.claims()
    assert claims == {
        "c1": Claim("container", "c1", docker.ENERGY, 0.0, identity(1)),
        "c2": Claim("container", "c2", docker.ENERGY, 0.25, identity(2)),
    }
    driven.use(1, 1001.5)
    assert (await driven.claims())["c1"].cpu_seconds == 1.5


async def test_a_restart_within_a_beat_never_decreases_the_claim(driven: Driven) -> None:
    """A new cgroup of a container counts from 0: the claim grows by what the new one has used."""
    driven.start(1, cpu_seconds=100)
    await driven.claims()
    claimed = []
    for used in (110, 0.5, 0.75, 0.25):
        driven.use(1, used)
        reading = await driven.beat()
        claimed += [claim.cpu_seconds for claim in reading.claims]
        assert all(percent >= 0 for percent in values(reading, docker.CPU).values())
    assert claimed == [10, 10.5, 10.75, 11]


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("fall", [1e-6, 0.01, 0.09])
async def test_a_count_that_falls_a_little_stands_still(
    tmp_path: Path, fall: float, *, unified: bool
) -> None:
    """A fall that is noise is no new cgroup: no series falls, nothing is claimed twice, and none is a gap."""
    async for driven in drive(Machine(tmp_path, unified=unified)):
        driven.machine.add(SYSTEMD.format(identity(1)))
        driven.start(1, cpu_seconds=100)
        await driven.beat()
        shown = []
        for used in (101, 101 - fall, 101.5):
            driven.use(1, used)
            reading = await driven.beat()
            figures = (value(reading, metric, "c1") for metric in (docker.CPU_SECONDS, docker.CPU))
            shown.append((*figures, reading.claims[0].cpu_seconds))
        assert shown == [(101, 100, 1), (101, 0, 1), (101.5, 50, 1.5)]


def shared(node: Node, reading: Reading, beat: float, busy: float) -> dict[str, float]:
    """Return the joules of every container after a beat of 100 J on two CPUs."""
    meters = Reading([], [Meter("cpu", "rapl", "0", beat * 100.0)], taken=beat)
    cpu = CpuTime(busy, beat * 2.0, 0.0)
    found = node.beat({"rapl": meters, "docker": reading}, (), ("rapl", "docker"), cpu, beat)
    return {
        s.labels[0]: s.value for s in found.samples if s.metric.name.startswith("docker_container_energy")
    }


@pytest.mark.parametrize("what", ["renamed", "unreadable"])
async def test_a_claim_that_comes_back_is_not_credited_with_its_past(driven: Driven, what: str) -> None:
    """A renamed container keeps its claim, one that misses a beat goes on: neither is charged twice."""
    one, node = driven.start(1, "one"), Node()
    driven.start(2, "two")
    history = []
    for beat in range(1, 22):
        if beat == 20 and what == "renamed":
            one.name = "uno"
        if what == "unreadable":
            driven.machine.faults.errors = {"1.scope/cpu.stat": OSError(24, "EMFILE")} if beat == 20 else {}
        for number in (1, 2):
            driven.use(number, beat * 0.5)
        history.append(shared(node, await driven.beat(), beat, beat * 1.0))
    # Half of the machine is idle, and the two share the rest of each 100 J evenly.
    before, after = history[18], history[20]
    assert before == pytest.approx({"one": 18 * 25, "two": 18 * 25})
    ones = {"one": 18 * 25, "uno": 2 * 25} if what == "renamed" else {"one": 20 * 25}
    assert after == pytest.approx({**ones, "two": 20 * 25}, abs=1e-9)


# -- where the engine alone knows --------------------------------------------------------------------


async def test_without_a_cgroup_the_engines_figures_stand_in(driven: Driven) -> None:
    """A figure that comes every five beats gives a steady percentage, not a peak between zeros."""
    driven.start(1)
    shutil.rmtree(driven.machine.cgroups / SYSTEMD.format(identity(1)))
    await driven.beat()
    watched = driven.collector._watched[identity(1)]
    percents, claimed = [], []
    for beat in range(30):
        if beat % docker.SLICES == 0:
            watched.shot = {"cpu_stats": {"cpu_usage": {"total_usage": beat * 300_000_000}}}
        reading = await driven.beat()
        percents += values(reading, docker.CPU).values()
        claimed += [claim.cpu_seconds for claim in reading.claims]
    assert percents
    assert percents == pytest.approx([30] * len(percents))
    assert claimed == sorted(claimed)


async def test_without_a_cgroup_the_engines_own_network_is_no_containers(driven: Driven) -> None:
    """What an engine answers for a container on its own network, or joined to one there, is not shown."""
    for number in (1, 2, 3):
        container = driven.start(number)
        container.host_network = number == 1
        container.joined = identity(1) if number == 2 else ""
        shutil.rmtree(driven.machine.cgroups / SYSTEMD.format(identity(number)))
    await driven.beat()
    for watched in driven.collector._watched.values():
        watched.shot = {"networks": {"eth0": {"rx_bytes": 5, "tx_bytes": 6}}}
    readings = [await driven.beat() for _ in range(docker.SLICES)]
    assert values(readings[-1], docker.RX) == {("c3",): 5}


async def test_an_engine_that_answers_zeros_leaves_a_gap_and_a_word(driven: Driven) -> None:
    """A rootless engine without cgroups: no CPU time, no claim, no memory, and what to do about it."""
    driven.start(1)
    shutil.rmtree(driven.machine.cgroups / SYSTEMD.format(identity(1)))
    await driven.beat()
    zeros = {"cpu_stats": {"cpu_usage": {"total_usage": 0}}, "memory_stats": {"usage": 0, "limit": 0}}
    driven.collector._watched[identity(1)].shot = zeros
    for _ in range(docker.SLICES):
        reading = await driven.beat()
        assert {s.metric for s in reading.samples if "c1" in s.labels} <= {docker.INFO}
        assert not reading.claims
        assert [trouble.part for trouble in reading.troubles] == ["statistics"]


# -- who may ask -------------------------------------------------------------------------------------


async def test_no_engine_is_absent(tmp_path: Path) -> None:
    """A path without a socket means that there is no engine, and the message names the path."""
    (tmp_path / "file").touch()
    for name in ("missing.sock", "file"):
        path = tmp_path / name
        with pytest.raises(Absent, match=f"no container engine: {path} is not there"):
            await docker.open_collector(docker.Options(url=f"unix://{path}"), Host())


CHILD = """
import asyncio, os, sys
import structlog
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Absent
from powerbench_agent.collectors.docker import collector as docker

if os.geteuid() == 0:
    try:
        os.setgroups([])
        os.setgid({nobody})
        os.setuid({nobody})
    except OSError as error:
        sys.exit({unmapped})

async def main():
    for _ in range(3):
        try:
            await docker.open_collector(docker.Options(url="unix://engine.sock"), Host())
        except Absent as gone:
            print("ABSENT", gone)

asyncio.run(main())
"""


def test_a_socket_that_may_not_be_used_is_absent_with_what_to_do(tmp_path: Path) -> None:
    """Another user gets Absent that names the group docker, and one warning for any number of looks."""
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "engine.sock"))
        (tmp_path / "engine.sock").chmod(0o600 if os.geteuid() == 0 else 0)
        tmp_path.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-P", "-c", CHILD.format(nobody=NOBODY, unmapped=UNMAPPED)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    if done.returncode == UNMAPPED:
        pytest.skip(f"THE PERMISSION TEST DID NOT RUN: cannot become uid {NOBODY} here")
    lines = done.stdout.splitlines()
    absent = [line for line in lines if line.startswith("ABSENT")]
    assert len(absent) == 3
    assert all("group docker" in line and "engine.sock" in line for line in absent)
    assert done.stdout.count("containers are not shown") == 1


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, set()),
        ({"url": "unix:///run/x.sock"}, set()),
        ({"url": "tcp://10.0.0.1:2375"}, set()),
        ({"url": "/run/docker.sock"}, {"url"}),
        ({"url": "ssh://host"}, {"url"}),
        (
            {"max_containers": 0, "max_name_length": -1, "interval": 0.0},
            {"max_containers", "max_name_length", "interval"},
        ),
    ],
)
def test_options(options: dict[str, Any], keys: set[str]) -> None:
    """Bad values are named by their keys, all at once."""
    assert {key for key, _ in docker.Options(**options).problems()} == keys
