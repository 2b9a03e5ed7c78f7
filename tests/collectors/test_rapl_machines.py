"""RAPL on machines that people have: glitches, hypervisors, containers, suspends. One machine a test."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from trees import RANGE_15_UJ, FakeClock, Faults, Powercap, Procfs, value, values

from powerbench_agent.agent.node import NODE_ENERGY, NODE_POWER
from powerbench_agent.agent.scheduler import Scheduler
from powerbench_agent.collectors import estimate, rapl
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Absent, ReadFailed, Reading

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HERTZ = os.sysconf("SC_CLK_TCK")
CPUS = 2


class Node(NamedTuple):
    """What the node said after a beat; None: no sample."""

    cpu_watts: float | None
    dram_watts: float | None
    joules: dict[tuple[str, ...], float]
    rapl: Reading | None
    estimate: Reading | None


class Machine:
    """A machine of files, with the two collectors that know its CPU's energy, and their scheduler."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = FakeClock()
        self.faults = Faults()
        self.powercap = Powercap(tmp_path / "sys")
        self.procfs = Procfs(tmp_path / "proc", CPUS)
        self.host = Host(tmp_path / "sys", tmp_path / "proc", self.clock, self.faults)
        self.options = rapl.Options()
        self._busy_ticks = self._idle_ticks = 0
        self._scheduler: Scheduler | None = None

    def _open(self) -> Scheduler:
        return Scheduler(
            {
                "rapl": (lambda: rapl.open_collector(self.options, self.host), 1.0),
                "estimate": (lambda: estimate.open_collector(estimate.Options(), self.host), 1.0),
            },
            self.clock,
        )

    async def beat(
        self, joules: Mapping[str, float] | None = None, *, busy: float = 0.0, seconds: float = 1.0
    ) -> Node:
        """Let a time pass in which the CPUs were busy to this share; set counters, read, and add up."""
        self._scheduler = self._scheduler or self._open()
        self.clock.advance(seconds)
        self._busy_ticks += round(CPUS * HERTZ * seconds * busy)
        self._idle_ticks += round(CPUS * HERTZ * seconds * (1 - busy))
        self.procfs.set_ticks(user=self._busy_ticks, idle=self._idle_ticks)
        for path, figure in (joules or {}).items():
            self.powercap.set_joules(path, figure)
        await self._scheduler.beat()
        states = self._scheduler.snapshot.states
        node = states["node"].reading
        assert node is not None
        watts = {labels[0]: figure for labels, figure in values(node, NODE_POWER).items()}
        read = {name: states[name].reading for name in ("rapl", "estimate") if name in states}
        energy = values(node, NODE_ENERGY)
        return Node(watts.get("cpu"), watts.get("dram"), energy, read.get("rapl"), read.get("estimate"))

    def error(self) -> str:
        assert self._scheduler is not None
        return self._scheduler.snapshot.states["rapl"].error

    def faults_of(self, name: str) -> Mapping[str, int]:
        assert self._scheduler is not None
        return self._scheduler.snapshot.states[name].faults


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def power_of(reading: Reading | None, path: str) -> float | None:
    assert reading is not None
    return {labels[2]: watts for labels, watts in values(reading, rapl.POWER).items()}.get(path)


# -- counters that leap ------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [690.0, -1500.0])
async def test_a_glitch_is_neither_energy_nor_power(machine: Machine, off: float) -> None:
    """AMD at 6.2 W with one reading in five off the line: 25 s are 155 J, and never more than 6.2 W."""
    machine.powercap.zone("intel-rapl:0", "package-0", 5000e6, RANGE_15_UJ)
    await machine.beat()
    for second in range(1, 26):
        raw = 5000 + 6.2 * second + (off if second % 5 == 4 else 0.0)
        node = await machine.beat({"intel-rapl:0": raw})
        shown = power_of(node.rapl, "intel-rapl:0")
        assert node.cpu_watts == shown
        assert shown is None if second % 5 == 4 else shown == pytest.approx(6.2)
    assert node.joules["cpu", "rapl"] == pytest.approx(155)


async def test_a_reset_is_a_gap_of_the_node_too(machine: Machine) -> None:
    """A virtual CPU that wanders between two sockets' registers: power is unknown, and never 0 W."""
    machine.powercap.zone("intel-rapl:0", "package-0", 50_000e6)
    await machine.beat()
    registers = {"a": 50_000.0, "b": 9_000.0}
    for second, on in enumerate("aaaabbbbaaaabbabaabbbb", 1):
        raw = registers[on] + 60 * second
        node = await machine.beat({"intel-rapl:0": raw})
        assert node.cpu_watts == power_of(node.rapl, "intel-rapl:0")
        assert node.cpu_watts is None or node.cpu_watts == pytest.approx(60, rel=0.01)
        assert node.joules["cpu", "rapl"] <= 60 * second + 1e-6


async def test_a_lowered_limit_does_not_refuse_what_is_drawn(machine: Machine) -> None:
    """A power cap that is raised again within seconds: the energy until the next look at it is kept."""
    machine.powercap.zone("intel-rapl:0", "package-0", limits={"long_term": 280.0})
    await machine.beat()
    limit = machine.powercap.file("intel-rapl:0", "constraint_0_power_limit_uw")
    limit.write_text("20000000\n")
    joules = 0.0
    for _ in range(12):
        joules += 20
        await machine.beat({"intel-rapl:0": joules})
    for _ in range(3):
        joules += 280
        node = await machine.beat({"intel-rapl:0": joules})
    assert node.joules["cpu", "rapl"] == joules
    assert node.cpu_watts == 280


# -- hypervisors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("zones", [2, 16, 300])
async def test_packages_of_one_register_are_metered_once(machine: Machine, zones: int) -> None:
    """A Xen guest with a package and dram a virtual CPU, each the same registers: 120 W and 20 W."""
    for number in range(zones):
        machine.powercap.zone(f"intel-rapl:{number:x}", f"package-{number}", 7000e6)
        machine.powercap.zone(f"intel-rapl:{number:x}:0", "dram", 900e6, RANGE_15_UJ)
    await machine.beat()
    for second in range(1, 5):
        raw = {f"intel-rapl:{number:x}": 7000.0 + 120 * second for number in range(zones)}
        raw |= {f"intel-rapl:{number:x}:0": 900.0 + 20 * second for number in range(zones)}
        node = await machine.beat(raw)
        assert (node.cpu_watts, node.dram_watts) == (120, 20)
    assert node.joules == {("cpu", "rapl"): 480, ("dram", "rapl"): 80}
    assert node.rapl is not None
    assert value(node.rapl, rapl.ZONES) == 2 * zones


@pytest.mark.parametrize("apart", [0.05, 0.5, -2.0])
async def test_mirrors_that_are_read_one_after_the_other(machine: Machine, apart: float) -> None:
    """The register runs on while sixteen virtual CPUs are asked for it: each is a little further."""
    paths = [f"intel-rapl:{number:x}" for number in range(16)]
    offs = {path: apart * number for number, path in enumerate(paths)}
    for number, path in enumerate(paths):
        machine.powercap.zone(path, f"package-{number}", (7000 + offs[path]) * 1e6)
    await machine.beat()
    for second in range(1, 5):
        node = await machine.beat({path: 7000 + 120 * second + offs[path] for path in paths})
    assert node.joules == {("cpu", "rapl"): 480}


async def test_virtual_cpus_that_wander_are_metered_once(machine: Machine) -> None:
    """Each of sixteen packages shows now one socket's register and now the other's: never more than both."""
    paths = [f"intel-rapl:{number:x}" for number in range(16)]
    for number, path in enumerate(paths):
        machine.powercap.zone(path, f"package-{number}", 7000e6, limits={"long_term": 150.0})
    await machine.beat()
    for second in range(1, 31):
        raw = {
            path: (9000 if (second * 7 + number * 5) % 11 < 5 else 7000) + 60 * second
            for number, path in enumerate(paths)
        }
        node = await machine.beat(raw)
        assert node.cpu_watts is None or node.cpu_watts == pytest.approx(60)
    assert node.joules["cpu", "rapl"] <= 2 * 60 * 30


async def test_a_leap_of_the_first_reading_is_not_believed(machine: Machine) -> None:
    """Another socket's register at the second reading: no power before a third has decided."""
    machine.powercap.zone("intel-rapl:0", "package-0", 7000e6)
    await machine.beat()
    shown = []
    for second, raw in enumerate((9000, 7000, 7000, 9000, 7000, 7000, 7000), 1):
        node = await machine.beat({"intel-rapl:0": raw + 60 * second})
        shown.append(node.cpu_watts)
    assert {watts for watts in shown if watts is not None} == {60}
    assert node.joules == {("cpu", "rapl"): 420}


async def test_two_sockets_of_one_load_are_not_mirrors(machine: Machine) -> None:
    """Registers of their own differ in value, however alike their loads: both count."""
    for number, raw in enumerate((7000.0, 7090.0)):
        machine.powercap.zone(f"intel-rapl:{number}", f"package-{number}", raw * 1e6)
        machine.powercap.zone(f"intel-rapl:{number}:0", "dram", raw * 1e5)
    await machine.beat()
    for second in range(1, 5):
        node = await machine.beat(
            {
                "intel-rapl:0": 7000 + 100 * second,
                "intel-rapl:1": 7090 + 100 * second,
                "intel-rapl:0:0": 700 + 10 * second,
                "intel-rapl:1:0": 709 + 10 * second,
            }
        )
    assert node.joules == {("cpu", "rapl"): 800, ("dram", "rapl"): 80}


async def test_sockets_that_start_alike_are_told_apart(machine: Machine) -> None:
    """Two registers that both begin at 0 and part: what they were taken for first costs no joule."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:1", "package-1")
    await machine.beat()
    for second in range(1, 8):
        node = await machine.beat({"intel-rapl:0": 50 * second, "intel-rapl:1": 80 * second})
    assert node.joules["cpu", "rapl"] == 7 * 130


@pytest.mark.parametrize("which", ["only one", "one of two"])
async def test_a_counter_that_stands_still_measures_nothing(machine: Machine, which: str) -> None:
    """A package that never moves while the CPUs are busy: down with a remedy, and estimated."""
    machine.powercap.zone("intel-rapl:0", "package-0", 5000e6)
    if which == "one of two":
        machine.powercap.zone("intel-rapl:1", "package-1", 9000e6)
    for second in range(30):
        node = await machine.beat(
            {"intel-rapl:1": 9000 + 50 * second} if which == "one of two" else {}, busy=0.75
        )
    assert node.rapl is None
    assert "intel-rapl:0/energy_uj stands still" in machine.error()
    assert "exclude the zone" in machine.error()
    assert set(node.joules) == {("cpu", "estimate")}
    assert node.estimate is not None
    assert node.cpu_watts == value(node.estimate, estimate.POWER, "cpu")
    for second in range(3):  # it works after all
        node = await machine.beat(
            {"intel-rapl:0": 5010 + 50 * second, "intel-rapl:1": 99_000 + 50 * second}
            if which == "one of two"
            else {"intel-rapl:0": 5010 + 50 * second},
            busy=0.75,
        )
    assert ("cpu", "rapl") in node.joules


async def test_an_idle_machine_is_not_stuck(machine: Machine) -> None:
    """A counter that stands still on a machine without work says nothing about the counter."""
    machine.powercap.zone("intel-rapl:0", "package-0", 5000e6)
    for _ in range(30):
        node = await machine.beat(busy=0.001)
    assert node.rapl is not None
    assert node.cpu_watts is None


async def test_dram_that_never_moves_is_left_out_alone(machine: Machine) -> None:
    """A dram zone that always holds 0 is a trouble of its own: the package goes on."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:0:0", "dram")
    for second in range(30):
        node = await machine.beat({"intel-rapl:0": 50 * second}, busy=0.75)
    assert set(node.joules) == {("cpu", "rapl")}
    assert node.cpu_watts == 50
    assert machine.faults_of("rapl")["zone intel-rapl:0:0"] > 0


async def test_a_counter_that_is_updated_once_a_second(machine: Machine) -> None:
    """Updates 1.04 s apart, read every second: watts over whole steps, and never 0."""
    machine.powercap.zone("intel-rapl:0", "package-0", 5000e6)
    await machine.beat()
    shown = []
    for second in range(1, 61):
        node = await machine.beat({"intel-rapl:0": 5000 + 104 * (second // 1.04)}, busy=0.5)
        assert node.cpu_watts == power_of(node.rapl, "intel-rapl:0")
        shown.append(node.cpu_watts)
    known = [watts for watts in shown if watts is not None]
    assert len(known) >= 58
    assert all(90 <= watts <= 110 for watts in known)


# -- laptops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slept", "joules"), [(450.0, 450.0), (28_800.0, 28_800.0)])
async def test_a_suspend_is_energy_and_no_power(machine: Machine, slept: float, joules: float) -> None:
    """Over s2idle the counter runs on and the monotonic clock stands: joules stay, watts are a gap."""
    machine.powercap.zone("intel-rapl:0", "package-0", 5000e6, limits={"long_term": 15.0})
    raw = 5000.0
    for _ in range(5):
        raw += 6
        await machine.beat({"intel-rapl:0": raw})
    machine.clock.slept += slept
    raw += joules
    node = await machine.beat({"intel-rapl:0": raw})
    assert node.cpu_watts is None
    assert power_of(node.rapl, "intel-rapl:0") is None
    node = await machine.beat({"intel-rapl:0": raw + 6})
    assert node.cpu_watts == pytest.approx(6)
    assert node.joules["cpu", "rapl"] == pytest.approx(4 * 6 + joules + 6)
    assert node.rapl is not None
    assert set(values(node.rapl, rapl.RESETS).values()) == {0}


# -- why there is none -------------------------------------------------------------------------------


async def absence(machine: Machine) -> str:
    with pytest.raises(Absent, match="no RAPL") as absent:
        await rapl.open_collector(machine.options, machine.host)
    return str(absent.value)


async def test_masked_in_a_container(machine: Machine) -> None:
    """Links that lead nowhere are a container's mask, whose remedy is a mount."""
    for name in ("intel-rapl:0", "intel-rapl:0:0"):
        (machine.host.sysfs / f"class/powercap/{name}").symlink_to(f"../../devices/nowhere/{name}")
    assert "--sysfs /host/sys" in await absence(machine)


@pytest.mark.parametrize(
    ("cpuinfo", "says"),
    [
        ("processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU architecture: 8\n", "ARM"),
        ("processor\t: 0\nhart\t: 2\nisa\t: rv64imafdc\n", "this processor does not have it"),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu hypervisor vme\n", "a virtual machine"),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu vme\n", "intel_rapl_msr"),
        ("", "a virtual machine, or the module"),
    ],
)
async def test_each_kind_of_machine_has_its_remedy(machine: Machine, cpuinfo: str, says: str) -> None:
    """Without zones, the processor tells why: architecture, hypervisor, or a module that is not loaded."""
    (machine.procfs.procfs / "cpuinfo").write_text(cpuinfo)
    assert says in await absence(machine)


@pytest.mark.parametrize(
    ("uid_map", "says"),
    [
        ("         0          0 4294967295\n", "CAP_DAC_READ_SEARCH"),
        ("         0     100000      65536\n", "user namespace"),
        ("         0       1000          1\n         1     100000      65536\n", "user namespace"),
        ("         0          0          1\n       993        993          1\n", "CAP_DAC_READ_SEARCH"),
        (None, "CAP_DAC_READ_SEARCH"),
    ],
)
async def test_root_of_a_user_namespace_is_told_so(machine: Machine, uid_map: str | None, says: str) -> None:
    """EACCES although the uid is 0: the remedy is not to become root."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    if uid_map is not None:
        (machine.procfs.procfs / "self").mkdir()
        (machine.procfs.procfs / "self/uid_map").write_text(uid_map)
    machine.faults.errors["energy_uj"] = PermissionError(errno.EACCES, "Permission denied")
    collector = await rapl.open_collector(machine.options, machine.host)
    with pytest.raises(ReadFailed) as failed:
        await collector.read()
    assert says in failed.value.remedy


async def test_a_nameless_part_of_a_package_is_left_out(machine: Machine) -> None:
    """A zone without a name within a package: that zone is a trouble, and the rest goes on."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:0:0", "core")
    machine.powercap.file("intel-rapl:0:0", "name").unlink()
    for second in range(3):
        node = await machine.beat({"intel-rapl:0": 50 * second})
    assert node.cpu_watts == 50
    assert machine.faults_of("rapl") == {"zone intel-rapl:0:0": 3}


@pytest.mark.parametrize("name", [None, "", "\n"])
async def test_a_nameless_package_fails_all(machine: Machine, name: str | None) -> None:
    """A zone at the top without a name may be a package: a sum without it would be too low."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:1", "package-1")
    file = machine.powercap.file("intel-rapl:1", "name")
    file.unlink()
    if name is not None:
        file.write_text(name)
    with pytest.raises(ReadFailed, match=r"intel-rapl:1 has no name") as failed:
        await rapl.open_collector(machine.options, machine.host)
    assert failed.value.remedy


# -- names and exclusion -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("psys", ("", "psys", "intel-rapl:1")),
        ("psys-1", ("", "psys", "intel-rapl:1")),
        ("psys-0", ("", "psys", "intel-rapl:1")),
        ("dram-1", ("1", "dram", "intel-rapl:1")),
        ("package-1", ("1", "package", "intel-rapl:1")),
    ],
)
async def test_numbered_names(machine: Machine, name: str, labels: tuple[str, ...]) -> None:
    """The TPMI driver numbers its zones: the kind is the name's, and psys is of no package."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:1", name)
    collector = await rapl.open_collector(machine.options, machine.host)
    assert labels in values(await collector.read(), rapl.ENERGY)


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ((), {"intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"}),
        (("intel-rapl:1",), {"intel-rapl:0", "intel-rapl:0:0"}),
        (("package-1",), {"intel-rapl:0", "intel-rapl:0:0"}),
        (("dram", "nothing"), {"intel-rapl:0", "intel-rapl:1"}),
        (("intel-rapl:0*",), {"intel-rapl:1"}),
    ],
)
async def test_excluded_zones(machine: Machine, exclude: tuple[str, ...], left: set[str]) -> None:
    """Patterns fit a zone's directory or its name; what they fit is neither shown nor metered."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:0:0", "dram")
    machine.powercap.zone("intel-rapl:1", "package-1")
    collector = await rapl.open_collector(rapl.Options(exclude=exclude), machine.host)
    reading = await collector.read()
    assert {labels[2] for labels in values(reading, rapl.ENERGY)} == left
    assert {meter.key for meter in reading.meters} == left


async def test_everything_excluded(machine: Machine) -> None:
    """If the patterns fit every zone, the verdict names the configuration."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    with pytest.raises(Absent, match="exclude"):
        await rapl.open_collector(rapl.Options(exclude=("*",)), machine.host)
