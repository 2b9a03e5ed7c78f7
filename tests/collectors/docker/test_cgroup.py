"""Cgroups: where a container's lies under each engine and version, and what its files say or fail to say."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from cgroup_trees import CGROUPFS, NO_LIMIT_V1, SYSTEMD, Machine, identity

from powerbench_agent.collectors.docker.cgroup import (
    Figures,
    Layout,
    Memory,
)

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.collectors.docker.cgroup import Cgroup

KEY = identity(0xC0FFEE)
PODMAN = "machine.slice/libpod-{}.scope"
EVERYTHING = Figures(Memory(4000, None), 7, 1003, 24)
VERSIONS = [(True, ""), (False, "cpuacct"), (False, "cpu,cpuacct"), (False, "cpuacct,cpu")]


@pytest.fixture(params=VERSIONS, ids=lambda version: version[1] or "v2")
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    unified, cpuacct = request.param
    return Machine(tmp_path, unified=unified, cpuacct=cpuacct)


def found(machine: Machine, key: str = KEY, pid: int | None = None) -> Cgroup:
    cgroup = Layout(machine.host).find(key, pid)
    assert cgroup is not None
    return cgroup


# -- where it lies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", [SYSTEMD, CGROUPFS, PODMAN, f"{PODMAN}/container", "libpod_parent/libpod-{}"]
)
def test_every_known_layout_is_found_by_id(machine: Machine, layout: str) -> None:
    """CPU seconds, memory, processes and block I/O come out of either version under every known layout."""
    machine.add(layout.format(KEY), 12.5, pid=77)
    cgroup = found(machine)
    assert cgroup.cpu_seconds() == 12.5
    assert cgroup.figures() == EVERYTHING
    assert cgroup.first_process() == 77


def test_podmans_processes_lie_in_a_child(tmp_path: Path) -> None:
    """Where Podman made a child for the container its figures are the child's, not its monitor's too."""
    machine = Machine(tmp_path)
    machine.add(PODMAN.format(KEY), 99)
    machine.add(f"{PODMAN.format(KEY)}/container", 12)
    assert found(machine).cpu_seconds() == 12


def test_containers_of_two_engines_side_by_side(machine: Machine) -> None:
    """One machine may hold several layouts: each container is found in its own, in any order."""
    layouts = [CGROUPFS, PODMAN, SYSTEMD, CGROUPFS, SYSTEMD]
    for number, layout in enumerate(layouts):
        machine.add(layout.format(identity(number)), number)
    layout = Layout(machine.host)
    cgroups = [layout.find(identity(number)) for number in range(len(layouts))]
    assert [cgroup and cgroup.cpu_seconds() for cgroup in cgroups] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("namespaced", ["", "/..", "/../..", "/../../.."])
def test_a_custom_parent_is_found_through_one_of_its_processes(machine: Machine, namespaced: str) -> None:
    """An unknown layout is found by the path the kernel gives, seen from any depth of namespace."""
    place = f"tenants/{KEY}"
    machine.add(place, 3.0)
    path = f"{namespaced}/{place}"
    lines = {
        "v2": f"0::{path}\n",
        "v1": f"5:memory:/elsewhere\n4:cpu,cpuacct:{path}\n3:cpuset:/{KEY}/other\n0::/\n",
    }
    (machine.procfs / "55").mkdir()
    (machine.procfs / "55/cgroup").write_text(lines["v2" if machine.unified else "v1"])
    assert Layout(machine.host).find(KEY) is None
    assert found(machine, pid=55).cpu_seconds() == 3.0


@pytest.mark.parametrize(
    "text", ["", "0::/\n", "garbage", "::\n4:cpuacct\n", f"0::/no/{KEY}\n4:cpuacct:/no/{KEY}\n"]
)
def test_a_process_that_says_nothing_leads_nowhere(machine: Machine, text: str) -> None:
    """A process in no container's cgroup, or whose cgroup is not mounted here, gives none."""
    (machine.procfs / "55").mkdir()
    (machine.procfs / "55/cgroup").write_text(text)
    assert Layout(machine.host).find(KEY, 55) is None
    assert Layout(machine.host).find(KEY, 56) is None


def test_another_containers_path_is_not_taken(machine: Machine) -> None:
    """A pid that was used again by another container does not lend its figures."""
    machine.add(f"tenants/{identity(1)}")
    (machine.procfs / "55").mkdir()
    (machine.procfs / "55/cgroup").write_text(
        f"0::/tenants/{identity(1)}\n4:cpuacct:/tenants/{identity(1)}\n"
    )
    assert Layout(machine.host).find(KEY, 55) is None


def test_a_machine_without_cgroups_has_none(tmp_path: Path) -> None:
    """Without any hierarchy nothing is found, and nothing raised."""
    machine = Machine(tmp_path)
    shutil.rmtree(machine.cgroups)
    assert Layout(machine.host).find(KEY, 1) is None


# -- its processes -----------------------------------------------------------------------------------


def below(machine: Machine, place: str, *pids: int) -> None:
    """Make a cgroup within the container, with processes."""
    directory = machine.directory(f"{SYSTEMD.format(KEY)}/{place}".rstrip("/"), "cpu")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))


def namespaced(machine: Machine, pid: int, *numbers: int) -> None:
    """Say which numbers a process has in the pid namespaces within the machine's, and where it lies."""
    directory = machine.procfs / str(pid)
    directory.mkdir()
    (directory / "status").write_text("Name:\tx\nNSpid:\t" + "\t".join(map(str, (pid, *numbers))) + "\n")
    (directory / "cgroup").write_text(f"0::/../{SYSTEMD.format(KEY)}/init.scope\n")


def test_a_container_whose_processes_lie_below(machine: Machine) -> None:
    """Of systemd, a kubelet and pods within, the container's own first process is found, and kept."""
    machine.add(SYSTEMD.format(KEY))
    below(machine, "init.scope", 901)
    below(machine, "a.slice/pod", 300, 301)
    below(machine, "system.slice")
    below(machine, "system.slice/kubelet.service", 700, 800)
    for pid, numbers in ((901, [1]), (300, [40, 1]), (301, [41, 2]), (700, [33]), (800, [34])):
        namespaced(machine, pid, *numbers)
    cgroup = found(machine)
    assert cgroup.first_process() == 901
    below(machine, "b.slice", 902)
    assert cgroup.first_process() == 901
    (machine.procfs / "901/cgroup").write_text("0::/elsewhere\n")
    below(machine, "init.scope", 903)
    namespaced(machine, 903, 1)
    assert cgroup.first_process() == 903


def test_of_several_processes_the_first_in_the_outermost_namespace_counts(machine: Machine) -> None:
    """Containers within that have no cgroups of their own are beside the container's first process."""
    machine.add(SYSTEMD.format(KEY))
    below(machine, "", 300, 902, 901)
    for pid, numbers in ((300, [40, 1]), (902, [7]), (901, [1])):
        namespaced(machine, pid, *numbers)
    assert found(machine).first_process() == 901


def test_a_process_of_another_cgroup_is_not_taken_for_its_own(tmp_path: Path) -> None:
    """Podman's child is called "container", as part of containerd.service is; pids are used again."""
    machine = Machine(tmp_path)
    machine.add(f"{PODMAN.format(KEY)}/container", pid=901)
    (machine.procfs / "901/cgroup").write_text(f"0::/{PODMAN.format(KEY)}/container\n")
    cgroup = found(machine)
    assert cgroup.first_process() == 901
    (machine.procfs / "901/cgroup").write_text("0::/system.slice/containerd.service\n")
    (machine.directory(f"{PODMAN.format(KEY)}/container", "cpu") / "cgroup.procs").write_text("902\n")
    assert cgroup.first_process() == 902


def test_processes_that_cannot_be_seen_are_none(machine: Machine) -> None:
    """From another pid namespace the kernel lists 0 for each: that is no process."""
    machine.add(SYSTEMD.format(KEY))
    below(machine, "", 0, 0)
    below(machine, "init.scope", 0)
    assert found(machine).first_process() is None


def test_the_search_below_is_bounded(machine: Machine) -> None:
    """A container with thousands of cgroups is not searched to its end."""
    machine.add(SYSTEMD.format(KEY))
    for number in range(500):
        below(machine, "/".join("x" * (number // 100 + 1)) + f"/{number}")
    below(machine, "x/x/x/x/x/x/x/x/last", 5)
    assert found(machine).first_process() is None


# -- what it says ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "shown"), [(None, None), (4096, 4096), (2**40, 2**40), (2**62, None)])
def test_limits(machine: Machine, limit: int | None, shown: int | None) -> None:
    """A limit is a limit; "max", and the huge number of version 1, are none."""
    machine.add(SYSTEMD.format(KEY))
    machine.set_memory(SYSTEMD.format(KEY), limit=limit)
    memory = found(machine).figures().memory
    assert memory == Memory(4000, shown)


@pytest.mark.parametrize("word", ["max", "-1", "", "x", "1_000", str(2**63 - 4096), str(2**64 - 1)])
def test_a_limit_that_is_no_number_of_bytes_is_none(machine: Machine, word: str) -> None:
    """However no limit is written, garbage included, the container has none of its own."""
    machine.add(SYSTEMD.format(KEY))
    name = "memory.max" if machine.unified else "memory.limit_in_bytes"
    (machine.directory(SYSTEMD.format(KEY), "memory") / name).write_text(f"{word}\n")
    assert found(machine).figures().memory == Memory(4000, None)


def test_memory_is_never_negative(machine: Machine) -> None:
    """Two files are two moments: a page cache larger than the whole leaves 0."""
    machine.add(SYSTEMD.format(KEY))
    machine.set_memory(SYSTEMD.format(KEY), used=10, inactive=4096)
    memory = found(machine).figures().memory
    assert memory is not None
    assert memory.used == 0


@pytest.mark.parametrize(
    ("controller", "left"),
    [
        ("memory", EVERYTHING._replace(memory=None)),
        ("pids", EVERYTHING._replace(pids=None)),
        ("io", EVERYTHING._replace(read_bytes=None, written_bytes=None)),
    ],
)
def test_a_missing_controller_is_unknown_and_not_zero(
    machine: Machine, controller: str, left: Figures
) -> None:
    """A controller that is not enabled gives None, and leaves the others alone."""
    machine.add(SYSTEMD.format(KEY))
    prefixes = {"memory": "memory.", "pids": "pids.", "io": "io." if machine.unified else "blkio."}
    for file in machine.directory(SYSTEMD.format(KEY), controller).glob(f"{prefixes[controller]}*"):
        file.unlink()
    assert found(machine).figures() == left


@pytest.mark.parametrize("figure", ["x", "-5", "1_0", "1.5", "9" * 30, str(2**64 - 5), ""])
def test_what_is_not_a_cpu_time_is_an_error(machine: Machine, figure: str) -> None:
    """A count that has fallen below 0, in either way to write that, is not one; nor are other words."""
    machine.add(SYSTEMD.format(KEY))
    key = "usage_usec " if machine.unified else ""
    machine.cpu_file(SYSTEMD.format(KEY)).write_text(f"{key}{figure}\nuser_usec 1\n")
    with pytest.raises(ValueError, match="not a CPU time"):
        found(machine).cpu_seconds()


@pytest.mark.parametrize(
    "content", ["", "\n", "max\n", "-\n", "usage_usec\n", "nr_periods 5\n", "usage_usec x\n", "\0"]
)
def test_garbage_for_cpu_time_is_an_error_that_callers_know(machine: Machine, content: str) -> None:
    """Files of zero length and of garbage raise ValueError, never another exception, and never give 0."""
    machine.add(SYSTEMD.format(KEY))
    cgroup = found(machine)
    machine.cpu_file(SYSTEMD.format(KEY)).write_text(content)
    with pytest.raises(ValueError):  # noqa: PT011 - the type is the claim
        cgroup.cpu_seconds()


@pytest.mark.parametrize(
    "content", ["", "\n", "x", "-5\n", "8:0\n", "8:0 rbytes= wbytes=x\n", "inactive_file\n", "\xff\xfe"]
)
def test_garbage_elsewhere_is_unknown(machine: Machine, content: str) -> None:
    """Every other file may be empty or garbage: no exception, and no memory or count out of it."""
    machine.add(SYSTEMD.format(KEY), pid=7)
    cgroup = found(machine)
    for controller in ("cpu", "memory", "pids", "io"):
        for file in machine.directory(SYSTEMD.format(KEY), controller).iterdir():
            file.write_text(content, encoding="latin-1")
    figures = cgroup.figures()
    assert (figures.memory, figures.pids) == (None, None)
    assert figures.read_bytes in (None, 0)
    assert cgroup.first_process() is None


def test_a_cgroup_that_has_gone(machine: Machine) -> None:
    """Once the directory is gone CPU time is an OSError and the rest unknown."""
    machine.add(SYSTEMD.format(KEY), pid=7)
    cgroup = found(machine)
    for controller in ("cpu", "memory", "pids", "io"):
        shutil.rmtree(machine.directory(SYSTEMD.format(KEY), controller), ignore_errors=True)
    with pytest.raises(OSError, match="No such file"):
        cgroup.cpu_seconds()
    assert cgroup.figures() == Figures(None, None, None, None)
    assert cgroup.first_process() is None


def test_a_cgroup_that_dies_in_mid_read(machine: Machine) -> None:
    """ENODEV, the kernel's answer for an open file of a removed cgroup, is unknown like a missing file."""
    machine.add(SYSTEMD.format(KEY))
    cgroup = found(machine)
    for name in ("memory.stat", "pids.current"):
        machine.faults.errors[name] = OSError(19, "No such device")
    figures = cgroup.figures()
    assert figures.pids is None
    assert figures.memory == Memory(5000, None)
    assert figures.read_bytes == 1003


def test_the_limit_of_version_1_is_what_the_kernel_writes() -> None:
    """The number that stands for no limit there is below 2^63, and above every machine's memory."""
    assert 2**60 < NO_LIMIT_V1 < 2**63
