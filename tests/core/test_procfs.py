"""/proc/stat's clock ticks to CPU seconds, and the ids of containers out of cgroups' paths."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import Procfs

from powerbench_agent.core.host import Host
from powerbench_agent.core.procfs import MODES, container_id, own_container, parse_machine_stat, read_cpu_time

if TYPE_CHECKING:
    from pathlib import Path

HERTZ = os.sysconf("SC_CLK_TCK")
ID = "0123456789abcdef" * 4
OTHER_ID = "fedcba9876543210" * 4

# A server's, cut to its form: the sum, a line a CPU, interrupts in thousands.
REAL = (
    b"cpu  2255134 34290 962590 16304561 98120 0 45131 4410 150000 1200\n"
    + b"".join(b"cpu%d 22551 342 9625 163045 981 0 451 44 1500 12\n" % number for number in range(256))
    + b"intr 114930548 "
    + b"0 " * 5000
    + b"\nctxt 1990473\nbtime 1062191376\nprocesses 2915\nprocs_running 1\nprocs_blocked 0\n"
)


def test_the_sum_over_many_cpus() -> None:
    """Busy is user, nice, system, irq and softirq; idle, iowait, steal are capacity; guest is user's."""
    busy = 2255134 + 34290 + 962590 + 45131
    stat = parse_machine_stat(REAL)
    assert (stat.busy, stat.capacity) == (busy / HERTZ, (busy + 16304561 + 98120 + 4410) / HERTZ)
    assert stat.cpus == 256


def test_a_kernel_without_steal() -> None:
    """Seven fields are what every kernel since 2.6 has; the others are 0 where they are not there."""
    stat = parse_machine_stat(b"cpu  1 2 3 4 5 6 7\n")
    assert (stat.busy, stat.capacity) == (19 / HERTZ, 28 / HERTZ)
    assert tuple(stat.ticks) == MODES[:-1]


@pytest.mark.parametrize(
    ("content", "ticks"),
    [
        (b"cpu  0 0 0 0 0 0 0 0\ncpu  1 2 3 4 5 6 7 8\ncpu0 9 9 9 9 9 9 9 9\n", (1, 2, 3, 4, 5, 6, 7, 8)),
        (b"cpu  1 2 3 4 5 6 7 8\ncpu  0 0 0 0 0 0 0 0\n", (1, 2, 3, 4, 5, 6, 7, 8)),
        (b"cpu  0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0\ncpu  0 0 0 5 0 0 0 0\n", (0, 0, 0, 5, 0, 0, 0, 0)),
        (b"garbage\ncpu  1 2 3 4 5 6 7 8\n", (1, 2, 3, 4, 5, 6, 7, 8)),
        (b"cpu  a b c d e f g\ncpu  1 2 3 4 5 6 7 8\n", (1, 2, 3, 4, 5, 6, 7, 8)),
        (b"cpu  0 0 0 0 0 0 0 0\n", (0, 0, 0, 0, 0, 0, 0, 0)),
    ],
)
def test_the_true_one_of_several_sums(content: bytes, ticks: tuple[int, ...]) -> None:
    """A sum of zeros or garbage gives way to a later line; a line of zeros alone is taken as it is."""
    assert tuple(parse_machine_stat(content).ticks.values()) == ticks


@pytest.mark.parametrize("odd", [b"-8", b"18446744073709550816", b"9" * 5000, b"x", b"1.5", b"\xff"])
@pytest.mark.parametrize("place", range(len(MODES)))
def test_an_odd_figure_costs_its_mode_alone(odd: bytes, place: int) -> None:
    """A figure below 0, wrapped below 0, or not a number leaves out its mode; the others are as they were."""
    figures = [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8"]
    figures[place] = odd
    stat = parse_machine_stat(b"cpu  " + b" ".join(figures) + b" 9 10 11 12\n")
    assert stat.ticks == {mode: 1 + at for at, mode in enumerate(MODES) if at != place}
    assert stat.capacity == (36 - 1 - place) / HERTZ


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"cpu\n",
        b"cpu  1 2 3 4 5 6\n",
        b"cpu0 1 2 3 4 5 6 7 8 9 10\n",
        b"cpu  1 2 3 4 five 6 7\n",
        b"intr 1 2 3 4 5 6 7 8\n",
        b"\xff\x00\xff",
        b"cpu 1 2 3 4 5 6 " + b"9" * 5000,
    ],
)
def test_anything_but_the_sum_is_refused(tmp_path: Path, content: bytes) -> None:
    """Garbage is a ValueError, and the agent's CPU time is then unknown."""
    with pytest.raises(ValueError, match=r"."):
        parse_machine_stat(content)
    (tmp_path / "stat").write_bytes(content)
    assert read_cpu_time(Host(procfs=tmp_path)) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    """No content at all raises anything but ValueError."""
    try:
        stat = parse_machine_stat(content)
    except ValueError:
        return
    assert isinstance(stat.busy, float)
    assert isinstance(stat.capacity, float)


def test_without_procfs_nothing_is_known(tmp_path: Path) -> None:
    """A machine without /proc/stat has no CPU time and no container, and no error."""
    assert read_cpu_time(Host(procfs=tmp_path)) is None
    assert own_container(Host(procfs=tmp_path)) == ""


def test_the_machine_and_the_agent(tmp_path: Path) -> None:
    """The reading joins the machine's sums with this process's own time and container."""
    Procfs(tmp_path / "proc").set_ticks(user=HERTZ, idle=3 * HERTZ)
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text(f"0::/system.slice/docker-{ID}.scope\n")
    found = read_cpu_time(Host(procfs=tmp_path / "proc"))
    assert found is not None
    assert (found.busy, found.capacity, found.container) == (1, 4, ID)
    assert found.agent > 0


def test_this_machines_own() -> None:
    """The kernel that runs this test says what its CPUs have done, and this process is part of it."""
    before = read_cpu_time(Host())
    assert before is not None
    assert 0 < before.agent <= before.busy <= before.capacity
    after = read_cpu_time(Host())
    assert after is not None
    assert after.capacity >= before.capacity
    assert after.agent >= before.agent


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (f"0::/system.slice/docker-{ID}.scope\n", ID),
        (f"12:cpu,cpuacct:/docker/{ID}\n11:memory:/docker/{ID}\n", ID),
        (f"0::/machine.slice/libpod-{ID}.scope/container\n", ID),
        (f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope\n", ID),
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-podab12.slice/cri-containerd-{ID}.scope\n",
            ID,
        ),
        (f"3:cpu:/kubepods/besteffort/pod0b3ee8a6-1c57-4b24-9f4f-0a3d2b1c9d8e/{ID}\n", ID),
        (f"0::/system.slice/docker-{OTHER_ID}.scope/docker/{ID}\n", ID),
        (f"0::/../docker-{ID}.scope\n", ID),
        ("0::/\n", ""),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", ""),
        ("0::/system.slice/docker.service\n", ""),
        (f"0::/docker/{ID[:63]}\n", ""),
        (f"0::/docker/{ID}0\n", ""),
        (f"0::/docker/{ID.upper()}\n", ""),
        ("", ""),
    ],
)
def test_a_containers_id(path: str, found: str) -> None:
    """Sixty-four hexadecimal digits in whatever dress the engine gives them; the innermost; nothing else."""
    assert container_id(path) == found


def test_ones_own_container_in_a_cgroup_namespace(tmp_path: Path) -> None:
    """Where the cgroup says "/" the engine's mounts tell the id; without them there is none."""
    own = tmp_path / "self"
    own.mkdir()
    (own / "cgroup").write_text("0::/\n")
    host = Host(procfs=tmp_path)
    assert own_container(host) == ""
    (own / "mountinfo").write_text(
        "600 500 0:50 / / rw - overlay overlay rw,lowerdir=/x\n"
        f"612 600 8:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n"
    )
    assert own_container(host) == ID
