"""Block I/O: each byte once, however many devices it passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cgroup_trees import SYSTEMD, Machine, identity
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.collectors.docker.block import (
    Layers,
    Moved,
    count_once,
    mount_of,
    parse_io_v1,
    parse_io_v2,
)
from powerbench_agent.collectors.docker.cgroup import Layout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEY = identity(3)
# By device: sda and sdb are disks, md0 a RAID, dm-0 and dm-1 volumes.
NUMBERS = {"sda": "8:0", "sda2": "8:2", "sdb": "8:16", "md0": "9:0", "dm-0": "253:0", "dm-1": "253:1"}
LOOP = "7:0"


class Disks:
    """`/sys/block` and `/sys/dev/block` of a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._numbers = machine.host.sysfs / "dev/block"
        self._numbers.mkdir(parents=True)
        self._blocks = machine.host.sysfs / "block"
        self._places: dict[str, Path] = {}

    def add(self, name: str, *slaves: str, number: str = "", disk: str = "") -> None:
        """Add a device on top of others; `disk`: of which it is a partition."""
        place = self._blocks / disk / name
        (place / "slaves").mkdir(parents=True)
        if disk:
            (place / "partition").write_text("2\n")
        number = number or NUMBERS[name]
        (place / "dev").write_text(f"{number}\n")
        (self._numbers / number).symlink_to(place)
        self._places[name] = place
        for slave in slaves:
            (place / "slaves" / slave).symlink_to(self._places[slave])


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    """Return a machine with a volume on a RAID, and one on a partition that the RAID is on too."""
    made = Disks(Machine(tmp_path))
    made.add("sda")
    made.add("sda2", disk="sda")
    made.add("sdb")
    made.add("md0", "sda2", "sdb")
    made.add("dm-0", "md0")
    made.add("dm-1", "sda2")
    return made


@pytest.mark.parametrize(
    ("written", "once"),
    [
        ({"sda": 5}, 5),
        ({"sda": 5, "sdb": 7}, 12),
        ({"dm-0": 10, "md0": 10, "sda": 10}, 10),
        ({"dm-0": 10, "md0": 10, "sda": 10, "sdb": 10}, 10),  # a mirror
        ({"dm-0": 10, "md0": 10, "sda": 5, "sdb": 5}, 10),  # stripes
        ({"dm-0": 10, "md0": 10, "sda": 13, "sdb": 10}, 13),  # 3 of them to sda directly
        ({"dm-0": 10, "dm-1": 4, "md0": 10, "sda": 14, "sdb": 10}, 14),
        ({"dm-1": 4, "sda": 4, "sdb": 7}, 11),
        ({"md0": 10, "sda": 10}, 10),
        ({}, 0),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_byte_counts_once(disks: Disks, written: Mapping[str, int], once: int, version: int) -> None:
    """Through volumes, mirrors and stripes a byte counts once; what goes to a disk directly counts too."""
    if version == 1:
        text = "".join(f"{NUMBERS[name]} Write {bytes_}\n" for name, bytes_ in written.items())
        moved = parse_io_v1(text)
    else:
        text = "".join(f"{NUMBERS[name]} rbytes=0 wbytes={bytes_}\n" for name, bytes_ in written.items())
        moved = parse_io_v2(text)
    assert count_once(moved, Layers(disks.machine.host).below) == (0, once)


def test_a_containers_figures(disks: Disks) -> None:
    """A container's cgroup lists each layer; its figures are those of one."""
    machine = disks.machine
    machine.add(SYSTEMD.format(KEY))
    lines = [f"{NUMBERS[name]} rbytes=7 wbytes=1000000000\n" for name in ("dm-0", "md0", "sda")]
    (machine.directory(SYSTEMD.format(KEY), "io") / "io.stat").write_text("".join(lines))
    cgroup = Layout(machine.host).find(KEY)
    assert cgroup is not None
    assert cgroup.figures()[2:] == (7, 10**9)


def test_a_loop_devices_file_lies_on_a_disk(disks: Disks) -> None:
    """What is written through a loop device is written to the disk with its file."""
    disks.add("loop0", number=LOOP)
    loop = disks.machine.host.sysfs / "block/loop0/loop"
    loop.mkdir()
    (loop / "backing_file").write_text("/srv/images/one.img\n")
    (disks.machine.procfs / "1").mkdir(exist_ok=True)
    mounts = "22 1 253:0 / / rw - ext4 /dev/dm-0 rw\n30 22 8:2 / /srv rw - ext4 /dev/sda2 rw\n"
    (disks.machine.procfs / "1/mountinfo").write_text(mounts)
    assert Layers(disks.machine.host).below(LOOP) == {"8:0"}
    (loop / "../slaves").rmdir()
    assert Layers(disks.machine.host).below(LOOP) == {"8:0"}


@pytest.mark.parametrize(("source", "below"), [("/dev/sda2", {"8:0"}), ("overlay", set()), ("", set())])
def test_a_loop_devices_file_on_a_file_system_without_a_number(
    disks: Disks, source: str, below: set[str]
) -> None:
    """A btrfs gives its mounts numbers that are no device's: what is mounted says which it is."""
    disks.add("loop0", number=LOOP)
    sysfs = disks.machine.host.sysfs
    (sysfs / "block/loop0/loop").mkdir()
    (sysfs / "block/loop0/loop/backing_file").write_text("/srv/one.img\n")
    (sysfs / "class/block").mkdir(parents=True)
    (sysfs / "class/block/sda2").symlink_to(sysfs / "block/sda/sda2")
    (disks.machine.procfs / "1").mkdir(exist_ok=True)
    mounts = f"22 1 0:35 / / rw - btrfs {source} rw\n"
    (disks.machine.procfs / "1/mountinfo").write_text(mounts)
    assert Layers(disks.machine.host).below(LOOP) == below


@pytest.mark.parametrize(
    ("file", "device"),
    [("/a/b/c", "8:3"), ("/a/bc", "8:2"), ("/x", "8:9"), ("/ab", "8:9"), ("relative", "0:0"), ("", "0:0")],
)
def test_a_files_device_is_that_of_the_innermost_mount(file: str, device: str) -> None:
    """A mount holds what lies below it, not what begins with its name; the later of two on a point counts."""
    mounts = "1 0 8:1 / / rw\n2 1 8:2 / /a rw\n3 2 8:3 / /a/b rw\nbroken\n4 1 8:9 / / rw\n"
    assert mount_of(file, mounts) == (device, "")


def test_what_lies_on_what_is_remembered_for_a_while(disks: Disks) -> None:
    """A volume that is moved to another disk is seen within a minute."""
    layers = Layers(disks.machine.host)
    assert layers.below("253:1") == {"8:0"}
    link = disks.machine.host.sysfs / "block/dm-1/slaves/sda2"
    link.unlink()
    assert layers.below("253:1") == {"8:0"}
    disks.machine.clock.advance(60)
    assert layers.below("253:1") == frozenset()


def test_devices_that_lie_on_each_other_in_a_circle_end(disks: Disks) -> None:
    """A tree of links that goes round is not followed for ever, and no byte counts twice."""
    slaves = disks.machine.host.sysfs / "block/sda/slaves"
    (slaves / "dm-1").symlink_to(disks.machine.host.sysfs / "block/dm-1")
    layers = Layers(disks.machine.host)
    assert count_once({"8:0": Moved(1, 5), "253:1": Moved(1, 5)}, layers.below) == (1, 5)


# -- parsers -----------------------------------------------------------------------------------------


def test_bytes_of_each_device() -> None:
    """Bytes read and written by device; discards, counts and totals are neither."""
    v2 = "8:0 rbytes=1 wbytes=2 rios=9 wios=9 dbytes=9 dios=9\n254:16 rbytes=10 wbytes=20 rios=9\n7:0 \n"
    v1 = "8:0 Read 1\n8:0 Write 2\n8:0 Discard 9\n8:0 Total 3\n254:16 Read 10\n254:16 Write 20\nTotal 33\n"
    assert parse_io_v2(v2) == parse_io_v1(v1) == {"8:0": (1, 2), "254:16": (10, 20)}


def test_a_device_without_figures_on_anothers_line() -> None:
    """Kernels that end no line after such a device: the figures are the last one's."""
    assert parse_io_v2("7:0 7:1 8:0 rbytes=1 wbytes=2\n") == {"8:0": (1, 2)}


ODD = ["x", "", "-5", "max", "1.5", "9" * 5000, str(2**64 - 5), "\N{SUPERSCRIPT TWO}"]


@pytest.mark.parametrize("odd", ODD)
def test_a_figure_that_is_odd_costs_itself(odd: str) -> None:
    """It stays what it was, and its device's other figure and the other devices go on."""
    before = {"8:0": Moved(10, 20), "8:16": Moved(1, 2)}
    after = {"8:0": Moved(10, 25), "8:16": Moved(3, 4)}
    v2 = f"8:0 rbytes={odd} wbytes=25 rios=1\n8:16 rbytes=3 wbytes=4\n"
    v1 = f"8:0 Read {odd}\n8:0 Write 25\n8:16 Read 3\n8:16 Write 4\n"
    assert parse_io_v2(v2, before) == parse_io_v1(v1, before) == after
    assert parse_io_v2(v2) == parse_io_v1(v1) == {**after, "8:0": Moved(0, 25)}


@pytest.mark.parametrize("odd", ["(unknown)", "8:", "sda", "8:0:0"])
def test_a_device_without_a_number_is_none(odd: str) -> None:
    """Its figures are not taken for those of the device before it."""
    moved = {"8:0": (1, 2)}
    assert parse_io_v2(f"8:0 rbytes=1 wbytes=2\n{odd} rbytes=7 wbytes=8\n") == moved
    assert parse_io_v2("8:0 rbytes=1 wbytes=2\nrbytes=7 wbytes=8\n") == moved
    assert parse_io_v1(f"8:0 Read 1\n8:0 Write 2\n{odd} Read 7\n") == moved


@pytest.mark.parametrize("version", [1, 2])
def test_a_figure_that_is_odd_for_once_lets_no_sum_fall(tmp_path: Path, version: int) -> None:
    """A container's bytes do not fall and jump, which a query would take for a restart."""
    machine = Machine(tmp_path, unified=version == 2)
    machine.add(SYSTEMD.format(KEY))
    name = "io.stat" if version == 2 else "blkio.throttle.io_service_bytes"
    file = machine.directory(SYSTEMD.format(KEY), "io") / name
    cgroup = Layout(machine.host).find(KEY)
    assert cgroup is not None
    assert cgroup.figures()[2:] == (1003, 24)
    file.write_text(file.read_text().replace("1000", "x"))
    assert cgroup.figures()[2:] == (1003, 24)


@given(st.binary())
def test_io_parsers_take_anything(content: bytes) -> None:
    """No bytes make the parsers raise, nor give less than nothing."""
    text = content.decode("ascii", "replace")
    for moved in (*parse_io_v1(text).values(), *parse_io_v2(text).values()):
        assert min(moved) >= 0


names = st.sampled_from("abcde")
layered = st.dictionaries(names, st.tuples(st.integers(0, 9), st.frozensets(names)), min_size=1)


@given(layered, st.dictionaries(names, st.integers(0, 9)))
def test_the_sum_never_falls(
    devices: Mapping[str, tuple[int, frozenset[str]]], gained: Mapping[str, int]
) -> None:
    """Whatever lies on what: more bytes at any device never make the sum less."""
    before = {name: Moved(bytes_, bytes_) for name, (bytes_, _) in devices.items()}
    after = {name: Moved(bytes_ + gained.get(name, 0), bytes_) for name, (bytes_, _) in devices.items()}
    below = {name: beneath - {name} for name, (_, beneath) in devices.items()}
    first, second = (count_once(moved, below.__getitem__) for moved in (before, after))
    assert second.read >= first.read
    assert second.written == first.written
