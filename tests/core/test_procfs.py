"""/proc/stat's clock ticks to CPU seconds, and the ids of containers out of cgroups' paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import Procfs

from powerbench_agent.core.host import Host, read_file
from powerbench_agent.core.procfs import (
    MODES,
    MachineStat,
    TickGuard,
    container_id,
    own_container,
    parse_machine_stat,
    read_cpu_time,
)

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
    "content",
    [
        b"",
        b"\n",
        b"cpu\n",
        b"cpu  1 2 3 4 5 6\n",
        b"cpu0 1 2 3 4 5 6 7 8 9 10\n",
        b"cpu  1 2 3 idle 5 6 7\n",
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


def test_a_field_that_is_not_a_number_costs_its_mode_alone() -> None:
    """The other modes are there; nothing is made up for the odd one."""
    assert parse_machine_stat(b"cpu  1 2 3 4 five 6 7 8\n").ticks == {
        "user": 1,
        "nice": 2,
        "system": 3,
        "idle": 4,
        "irq": 6,
        "softirq": 7,
        "steal": 8,
    }


def test_of_two_sums_the_one_that_counts_is_taken() -> None:
    """Some kernels have a first line that is all 0."""
    content = b"cpu  0 0 0 0 0 0 0 0\ncpu  1 2 3 4 5 6 7 8\ncpu0 1 2 3 4 5 6 7 8\n"
    stat = parse_machine_stat(content)
    assert (tuple(stat.ticks.values()), stat.cpus) == ((1, 2, 3, 4, 5, 6, 7, 8), 1)


def test_all_of_a_list_longer_than_a_page_or_64_kib_is_read(tmp_path: Path) -> None:
    """1,920 CPUs make /proc/stat longer than one read gives; the kernel's own long lists come in pages."""
    lines = [b"cpu  1 2 3 4 5 6 7 8", *(b"cpu%d 1111111 2 3 4444444 5 6 7 8 0 0" % n for n in range(1920))]
    (tmp_path / "stat").write_bytes(b"\n".join(lines))
    stat = parse_machine_stat(read_file(tmp_path / "stat"))
    assert stat.cpus == 1920
    maps = Path("/proc/self/smaps")
    assert abs(len(read_file(maps)) - len(maps.read_bytes())) < 4096


def test_a_file_without_end_is_refused() -> None:
    """What is beyond the bound is not cut in silence."""
    with pytest.raises(OSError, match="too large"):
        read_file(Path("/dev/zero"))


def ticks(**modes: int) -> MachineStat:
    return MachineStat({"user": 100, "idle": 1000, "iowait": 50, "steal": 0} | modes, 4)


def test_ticks_never_fall() -> None:
    """A tick back is no time, and the same tick again is not counted twice."""
    guard = TickGuard()
    for second, (idle, shown) in enumerate(
        [(1000, 1000), (1400, 1400), (1399, 1400), (1400, 1400), (1800, 1800)]
    ):
        assert guard.advance(ticks(idle=idle), float(second)).ticks["idle"] == shown


def test_a_jump_that_cannot_be_time_is_left_out() -> None:
    """Steal that falls by years, or leaps by them, adds nothing; then it counts again."""
    guard = TickGuard()
    shown = []
    for second, steal in enumerate((800_000_100, 100, 150, 800_000_000, 800_000_040)):
        shown.append(guard.advance(ticks(steal=steal), float(second)).ticks["steal"])
    assert shown == [800_000_100, 800_000_100, 800_000_150, 800_000_150, 800_000_190]


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
