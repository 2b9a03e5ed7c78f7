"""What NVML says and cannot be true, and what it means on modules, in containers and beside guests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from stubs import truth
from stubs.stub import BUSES, UUIDS, Machine, Probe, machine_of_a_probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[..., tuple[Machine, Probe]]

ENERGY, POWER, INFO = "nvidia_gpu_energy_joules_total", "nvidia_gpu_power_draw_watts", "nvidia_gpu_info"
LOST, ASLEEP, ERRORS = "nvidia_gpu_lost", "nvidia_gpu_asleep", "nvidia_gpu_read_errors_total"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Probe]]:
    machine = machine_of_a_probe(tmp_path_factory.mktemp("nvml"))
    with Probe(machine) as probe:
        yield machine, probe


@pytest.fixture
def start(shared: tuple[Machine, Probe]) -> Start:
    """Return a function that prepares a machine with so many GPUs; the first reading opens them."""

    def start(gpus: int = 1, **lines: str) -> tuple[Machine, Probe]:
        machine, probe = shared
        machine.reset(gpus)
        truth.tell(machine, 0, gpus)
        machine.say({key.replace("__", " "): value for key, value in lines.items()})
        probe.exclude()
        assert not probe.open(machine).absent
        machine.calls()
        return machine, probe

    return start


def draw(machine: Machine, joules: float, watts: float, gpu: int = 0) -> None:
    machine.say({f"energy_mj {gpu}": str(round(joules * 1000)), f"power_mw {gpu}": str(round(watts * 1000))})


# -- how much can be true -----------------------------------------------------------------------------


@pytest.mark.parametrize("watts", [2500, 3000])
@pytest.mark.parametrize("idle", [False, True])
def test_a_large_module_is_counted(start: Start, watts: int, *, idle: bool) -> None:
    """A part of 2,500 W or more is counted in full and shown, also when it was idle before."""
    machine, probe = start()
    draw(machine, 0, watts)
    probe.beat()
    begin = 0.0
    if idle:
        for second in range(1, 10):
            draw(machine, 100 * second, 100)
            probe.beat()
        begin = 900.0
    for second in range(1, 16):
        draw(machine, begin + watts * second, watts)
        reading = probe.beat()
        probe.refresh(0.0)
    assert reading.value(ENERGY) == begin + 15 * watts
    assert reading.meters == {UUIDS[0]: begin + 15 * watts}
    assert reading.value(POWER) == watts
    assert not reading.troubles


def test_a_counter_that_leaps_is_said_and_not_counted(start: Start) -> None:
    """A leap beyond the board's limit adds nothing, is a trouble, and is a gap in the meter's power."""
    machine, probe = start(max_limit_mw__0="300000")
    for second in range(5):
        draw(machine, 100 * second, 100)
        probe.beat()
    troubles = set()
    missing = 0
    for second in range(5, 12):
        draw(machine, 100 * second + 50_000, 100)
        reading = probe.beat()
        troubles |= reading.troubles.keys()
        missing += reading.watts[UUIDS[0]] is None
        assert reading.watts[UUIDS[0]] in (None, pytest.approx(100))
    assert troubles == {"gpu 0 energy counter"}
    assert missing
    assert reading.meters[UUIDS[0]] <= 1100


@pytest.mark.parametrize(("watts", "good"), [(290, True), (599, True), (601, False), (4_294_967, False)])
def test_power_is_bounded_by_the_boards_own_limit(start: Start, watts: float, *, good: bool) -> None:
    """Power of up to twice the highest limit is believed; more is a gap, counted, and a trouble."""
    machine, probe = start(max_limit_mw__0="300000")
    draw(machine, 0, watts)
    reading = probe.beat()
    assert bool(reading.of(POWER)) is good
    assert ("gpu 0 power" in reading.troubles) is not good
    assert bool(reading.of(ERRORS, call="power", error="implausible")) is not good


@pytest.mark.parametrize("line", ["gpu_percent", "memory_percent", "encoder_percent", "decoder_percent"])
def test_use_beyond_100_percent_is_a_gap(start: Start, line: str) -> None:
    """A percentage over 100 is no sample; it is counted, and 100 itself is fine."""
    machine, probe = start()
    machine.say({f"{line} 0": "101"})
    reading = probe.beat()
    (trouble,) = reading.troubles.values()
    assert trouble["error"] == "implausible"
    machine.say({f"{line} 0": "100"})
    assert not probe.beat().troubles


GARBAGE = {
    "sm": "{stamp} 37100 0 0",
    "just too much": "{stamp} 101 0 0",
    "encoder": "{stamp} 10 50583 0",
    "decoder": "{stamp} 10 0 101",
    "the future": "9223372036854775807 90 0 0",
}


@pytest.mark.parametrize("sample", GARBAGE.values(), ids=GARBAGE)
def test_garbage_about_a_process_is_dropped_and_said(start: Start, sample: str) -> None:
    """A sample that cannot be true charges nobody, and what comes after it is counted again."""
    machine, probe = start()
    probe.beat()
    machine.say({"process 0 600": sample.format(stamp=2_000_000), "process 0 777": "2000000 50 0 0"})
    reading = probe.beat()
    assert (UUIDS[0], "sm", 777) in reading.uses
    assert reading.uses[UUIDS[0], "sm", 600] == 0, "as before"
    assert reading.troubles["gpu 0 process_utilization"]["remedy"]
    assert reading.value(ERRORS, call="process_utilization", error="implausible") == 1
    machine.say({"process 0 600": "3000000 50 0 0"})
    reading = probe.beat()
    assert reading.uses[UUIDS[0], "sm", 600] == 0.5
    assert not reading.troubles


# -- modules ------------------------------------------------------------------------------------------

MODULES = {"by its name": {"name__0": "NVIDIA GH200 480GB"}, "by its power": {"module_mw__0": "455000"}}


@pytest.mark.parametrize("lines", MODULES.values(), ids=MODULES)
def test_a_modules_counter_is_not_the_gpus(start: Start, lines: dict[str, str]) -> None:
    """On Grace Hopper the GPU's energy comes from its power, and the counter is the module's."""
    machine, probe = start(power_mw__0="300000", **lines)
    draw(machine, 0, 300)
    probe.beat()
    for second in range(1, 11):
        draw(machine, 455 * second, 300)
        reading = probe.beat()
    assert reading.meters == {UUIDS[0]: 3000}
    assert reading.modules == {UUIDS[0]: 4550}
    assert reading.value(POWER) == 300
    assert reading.value(ENERGY) == 4550
    assert len(reading.of(INFO, covers="module", energy="counter")) == 1


def test_a_driver_that_ignores_scopes_has_no_module(start: Start) -> None:
    """Older drivers give the GPU's power as the module's: that is no module."""
    machine, probe = start(module_mw__0="100000")
    reading = probe.beat()
    assert not reading.modules
    assert len(reading.of(INFO, covers="gpu")) == 1
    assert machine.calls()


# -- two of one name ----------------------------------------------------------------------------------


def test_two_gpus_of_one_uuid_are_two(start: Start) -> None:
    """Both are metered and shown, told apart by their PCI address, and it is said once."""
    machine, probe = start(2, uuid__1=UUIDS[0])
    logged = list(probe.beat().log)
    truth.tell(machine, 10, 2)
    for _ in range(10):
        reading = probe.beat()
        logged += reading.log
    assert sorted(reading.meters.values()) == [13.7, 13.7]
    assert set(reading.meters) == {UUIDS[0], f"0000:{BUSES[1]}:00.0"}
    assert len(reading.of(ENERGY)) == 2
    assert set(reading.of(LOST).values()) == {0}
    assert [entry["event"] for entry in logged] == ["two GPUs have one UUID"]


def test_two_gpus_without_a_uuid_are_two(start: Start) -> None:
    """Virtual GPUs may have none: their PCI addresses are their names, and nothing is wrong."""
    machine, probe = start(2, uuid__0="", uuid__1="")
    logged = list(probe.beat().log)
    truth.tell(machine, 10, 2)
    reading = probe.beat()
    assert reading.meters == {f"0000:{bus}:00.0": 13.7 for bus in BUSES[:2]}
    assert len(reading.of(ENERGY)) == 2
    assert [*logged, *reading.log] == []


# -- processes of others ------------------------------------------------------------------------------


def process(machine: Machine, pid: int, *files: str) -> None:
    directory = machine.procfs / str(pid) / "fd"
    directory.mkdir(parents=True)
    for number, target in enumerate(files):
        (directory / str(number)).symlink_to(target)


def test_a_bystander_of_the_same_number_is_not_charged(start: Start) -> None:
    """A process without an open file of the driver is not the one that NVML means, and that is said."""
    machine, probe = start()
    process(machine, 600, "/dev/null", "socket:[1]")
    process(machine, 777, "/dev/null", "/dev/nvidia0")
    machine.say({"process 0 777": "1000000 40 0 0"})
    probe.beat()
    machine.say({"process 0 600": "2000000 40 0 0", "process 0 777": "2000000 40 0 0"})
    reading = probe.beat()
    assert {pid for _, _, pid in reading.uses} == {777}
    assert reading.busy[UUIDS[0]] > 0
    assert "--pid=host" in reading.troubles["gpu 0 processes"]["remedy"]


@pytest.mark.parametrize(
    ("namespace", "shows_kernel", "charged"),
    [(4026531836, False, True), (4026532555, False, False), (4026532555, True, True)],
)
def test_in_a_pid_namespace_of_ones_own_nobody_is_charged(
    start: Start, namespace: int, *, shows_kernel: bool, charged: bool
) -> None:
    """If files of others cannot be seen the namespace decides; with the host's procfs ids are right."""
    machine, probe = start()
    (machine.procfs / "self/ns").mkdir(parents=True)
    (machine.procfs / "self/ns/pid").symlink_to(f"pid:[{namespace}]")
    if shows_kernel:
        (machine.procfs / "2").mkdir()
        (machine.procfs / "2/comm").write_text("kthreadd\n")
    reading = probe.beat()
    assert bool(reading.uses) is charged
    assert ("gpu 0 processes" in reading.troubles) is not charged


# -- given away ---------------------------------------------------------------------------------------


def bind(machine: Machine, bus: str, driver: str | None) -> None:
    link = machine.device(bus) / "driver"
    link.unlink(missing_ok=True)
    if driver is not None:
        link.symlink_to(machine.sysfs / "bus/pci/drivers" / driver)


@pytest.mark.parametrize("how", ["vfio-pci", "nvgrace_gpu_vfio_pci", "xen-pciback", "unbound", "removed"])
@pytest.mark.parametrize("code", [15, 28, 2, 999])
def test_a_gpu_that_is_given_to_a_guest_is_not_lost(start: Start, how: str, code: int) -> None:
    """The others go on, nothing tells to drain it, and when it comes back its counter goes on."""
    machine, probe = start(2)
    bind(machine, BUSES[0], "nvidia")
    bind(machine, BUSES[1], "nvidia")
    probe.beat()
    if how == "removed":
        machine.device(BUSES[1]).rename(machine.sysfs / "gone")
    else:
        bind(machine, BUSES[1], None if how == "unbound" else how)
    calls = ("GetPowerUsage", "GetTotalEnergyConsumption", "GetHandleByIndex", "GetHandleByPciBusId")
    machine.say({f"error {call}": f"{code} 1" for call in calls})
    readings = [probe.beat() for _ in range(30)]
    for reading in readings[12:]:
        assert not reading.error
        assert set(reading.of(LOST).values()) == {0}
        assert set(reading.meters) == {UUIDS[0]}
    assert not [entry for reading in readings for entry in reading.log if "drain" in entry.get("remedy", "")]
    if how == "removed":
        (machine.sysfs / "gone").rename(machine.device(BUSES[1]))
    else:
        bind(machine, BUSES[1], "nvidia")
    machine.say(dict.fromkeys(f"error {call}" for call in calls))
    truth.tell(machine, 40, 2)
    for _ in range(12):
        reading = probe.beat()
    assert reading.meters == dict.fromkeys(UUIDS[:2], 40 * truth.MJ_PER_TICK / 1000)


def test_the_only_gpu_given_away_is_absent(start: Start) -> None:
    """With the driver still loaded there is nothing left to show: absent, not down."""
    machine, probe = start()
    bind(machine, BUSES[0], "nvidia")
    (machine.procfs / "driver/nvidia").mkdir(parents=True)
    (machine.procfs / "driver/nvidia/version").write_text("NVRM version: 570.1.2\n")
    probe.beat()
    bind(machine, BUSES[0], "vfio-pci")
    machine.say({"gpus": "0", "error GetPowerUsage": "15"})
    for _ in range(12):
        reading = probe.beat()
    assert reading.absent


# -- off the bus --------------------------------------------------------------------------------------

SIGNS = {
    "WSL2 by its kernel": ("proc", "sys/kernel/osrelease", "5.15.167.4-microsoft-standard-WSL2\n"),
    "WSL2 by its device": ("sys", "class/misc/dxg/dev", "10:125\n"),
    "a Jetson": ("proc", "device-tree/compatible", "nvidia,p3737-0000\0nvidia,tegra234\0"),
}


@pytest.mark.parametrize("sign", SIGNS.values(), ids=SIGNS)
def test_gpus_that_are_not_on_the_bus_are_shown(
    shared: tuple[Machine, Probe], sign: tuple[str, str, str]
) -> None:
    """WSL2 and Jetsons show no PCI device: what NVML answers is shown; if it has no GPU, it is absent."""
    machine, probe = shared
    machine.reset(0)
    truth.tell(machine, 0)
    root, name, content = sign
    path = (machine.procfs if root == "proc" else machine.sysfs) / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    machine.say({"gpus": "1", "uuid 0": UUIDS[0]})
    assert not probe.open(machine).absent
    assert set(probe.beat().meters) == {UUIDS[0]}
    machine.say({"error Init": "9"})
    assert not probe.open(machine).absent
    assert probe.beat().absent, "an AMD GPU under WSL2 is no failure"


# -- left out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["1", UUIDS[1], f"0000:{BUSES[1]}:00.0", "NVIDIA?L5", "*L5*"])
def test_an_excluded_gpu_is_neither_shown_nor_metered(start: Start, pattern: str) -> None:
    """By index, UUID, PCI address or name; excluded under way and taken back, the counter goes on."""
    machine, probe = start(2)
    probe.beat()
    probe.exclude(pattern)
    for _ in range(12):
        reading = probe.beat()
    assert set(reading.meters) == {UUIDS[0]}
    assert not [labels for _, labels in reading.samples if ("gpu", "1") in labels]
    assert set(reading.of(LOST).values()) == {0}
    assert not reading.log
    probe.exclude()
    truth.tell(machine, 13, 2)
    assert set(probe.beat().meters.values()) == {13 * truth.MJ_PER_TICK / 1000}


def test_an_excluded_gpu_that_sleeps_is_not_asked(start: Start) -> None:
    """By its address it is not even opened, nor is its sleep shown."""
    machine, probe = start(2)
    probe.exclude(f"0000:{BUSES[1]}:00.0")
    machine.power(BUSES[1], "suspended")
    machine.say({"error GetHandleByIndex": "999"})
    reading = probe.beat()
    assert set(reading.meters) == {UUIDS[0]}
    assert [dict(labels)["pci_bus_id"] for labels in reading.of(ASLEEP)] == [f"0000:{BUSES[0]}:00.0"]


@pytest.mark.parametrize("pattern", ["*", "0000:*", "0", UUIDS[0]])
def test_if_every_gpu_is_excluded_it_is_absent(start: Start, pattern: str) -> None:
    """Nothing is left to read, and that is no failure."""
    _, probe = start()
    probe.exclude(pattern)
    assert "exclude" in probe.beat().absent
