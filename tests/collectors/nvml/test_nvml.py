"""NVIDIA GPUs: what is read of them, who used them, GPUs that sleep or are lost, drivers that come and go.

Each test drives the collector, in a process of its own, with the real binding and a stub of the library.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from stubs import truth
from stubs.stub import BUSES, UUIDS, Machine, Probe, machine_of_a_probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[..., tuple[Machine, Probe]]

ENERGY, POWER = "nvidia_gpu_energy_joules_total", "nvidia_gpu_power_draw_watts"
LOST, ASLEEP, XIDS = "nvidia_gpu_lost", "nvidia_gpu_asleep", "nvidia_gpu_xid_errors_total"
ERRORS, INFO = "nvidia_gpu_read_errors_total", "nvidia_gpu_info"
OPENING = "GetHandleByIndex"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Probe]]:
    machine = machine_of_a_probe(tmp_path_factory.mktemp("nvml"))
    with Probe(machine) as probe:
        yield machine, probe


@pytest.fixture
def start(shared: tuple[Machine, Probe]) -> Start:
    """Return a function that prepares a machine with so many GPUs and opens its collector."""

    def start(gpus: int = 1) -> tuple[Machine, Probe]:
        machine, probe = shared
        machine.reset(gpus)
        truth.tell(machine, 0, gpus)
        assert not probe.open(machine).absent
        machine.calls()  # the last test's closing
        return machine, probe

    return start


# -- what is read ------------------------------------------------------------------------------------


def test_every_value_has_its_unit_and_its_gpu(start: Start) -> None:
    """Values are in W, J and Hz, by index and UUID; PCI addresses are sysfs's; energy starts at 0."""
    machine, probe = start(2)
    assert truth.rounded(probe.beat()) == truth.whole(0, 0, gpus=2)
    truth.tell(machine, 10, 2)
    reading = probe.beat(10.0)
    assert truth.rounded(reading) == truth.whole(10, 10, gpus=2)
    assert reading.meters == {UUIDS[0]: 13.7, UUIDS[1]: 13.7}
    assert not reading.log


def test_slow_values_come_every_10_s(start: Start) -> None:
    """Fast values are read at each beat; limits, clocks, throttling, ECC and sessions every 10 s."""
    machine, probe = start()
    probe.beat()
    for tick in range(1, 25):
        truth.tell(machine, tick)
        assert truth.rounded(probe.beat()) == truth.whole(tick, tick // 10 * 10)


def test_energy_is_exactly_the_counters_difference(start: Start) -> None:
    """Months of millijoules add up without a rounding error, past 32 bits."""
    machine, probe = start()
    begin = 2**32 - 5_000
    for mj in (0, 1, 1_003, 1_004, 9_999):
        machine.say({"energy_mj 0": str(begin + mj)})
        assert probe.beat(5.0).value(ENERGY) == mj / 1000


def test_a_counter_that_appears_takes_nothing_back(start: Start) -> None:
    """If a new session finds a counter where power was integrated before, energy goes on from its value."""
    machine, probe = start()
    machine.say({"error GetTotalEnergyConsumption": "3", "power_mw 0": "100000"})
    probe.beat()
    before = probe.beat().value(ENERGY)
    assert before == 100
    machine.say({"error GetTotalEnergyConsumption": None, "error GetPowerUsage": "15"})
    assert probe.beat().error
    machine.say({"error GetPowerUsage": None})
    reading = probe.beat(6.0)
    assert len(reading.of(INFO, energy="counter")) == 1
    assert reading.value(ENERGY) >= before
    machine.say({"energy_mj 0": str(5_000_000 + 50_000)})
    assert probe.beat().value(ENERGY) >= before + 50


@pytest.mark.parametrize("call", ["GetEncoderSessions", "GetProcessUtilization"])
def test_a_list_that_grows_is_asked_for_again(start: Start, call: str) -> None:
    """A list that has grown since its size was asked for, even twice in a row, is not an error."""
    machine, probe = start()
    machine.say({f"insufficient {call}": "2"})
    reading = probe.beat()
    assert truth.rounded(reading) == truth.whole(0, 0)
    assert {pid for _, _, pid in reading.uses} == {600}
    assert not reading.of(ERRORS)


def test_an_implausible_power_is_no_sample(start: Start) -> None:
    """A sentinel is counted as implausible and is a trouble with a remedy; energy goes on."""
    machine, probe = start()
    probe.beat()
    machine.say({"power_mw 0": "4294967295"})
    for beats in range(1, 5):
        reading = probe.beat()
        assert not reading.of(POWER)
        assert reading.value(ERRORS, call="power", error="implausible") == beats
        assert reading.of(ENERGY)
        trouble = reading.troubles["gpu 0 power"]
        assert trouble["error"] == "implausible"
        assert trouble["remedy"]


def test_a_scrape_has_fresh_energy_and_the_beats_gauges(start: Start) -> None:
    """`refresh()` reads the energy again; the rest stays that of the beat, without a query."""
    machine, probe = start()
    probe.beat()
    machine.calls()
    truth.tell(machine, 5)
    shown = truth.rounded(probe.refresh())
    fresh = (ENERGY,)
    beats = {series: value for series, value in truth.whole(0, 0).items() if series[0] not in fresh}
    now = {series: value for series, value in truth.fast(0, 5).items() if series[0] in fresh}
    assert shown == beats | now
    assert set(machine.calls()) == {"GetTotalEnergyConsumption"}


# -- who used it -------------------------------------------------------------------------------------


def test_a_processes_use_adds_up(start: Start) -> None:
    """Percentages times the time between beats, by process and engine; without a sample nothing is added."""
    machine, probe = start()
    probe.beat()
    machine.say({"process 0 600": "2000000 50 20 10", "process 0 777": "2000000 25 100 0"})
    assert (
        probe.beat(2.0).uses.items() >= {(UUIDS[0], "sm", 600): 1.0, (UUIDS[0], "encoder", 777): 2.0}.items()
    )
    idle = probe.beat()  # the same samples are too old to come again: NOT_FOUND
    assert idle.uses[UUIDS[0], "sm", 600] == 1.0
    assert not idle.of(ERRORS)
    machine.say({"process 0 600": "9000000 50 20 10", "process 0 777": None})
    assert probe.beat().uses == {
        (UUIDS[0], "sm", 600): 1.5,
        (UUIDS[0], "encoder", 600): pytest.approx(0.6),
        (UUIDS[0], "decoder", 600): pytest.approx(0.3),
        (UUIDS[0], "sm", 777): 0.5,
        (UUIDS[0], "encoder", 777): 2.0,
        (UUIDS[0], "decoder", 777): 0.0,
    }


def test_a_process_that_has_gone_is_forgotten(start: Start) -> None:
    """After 60 s without use a process leaves the reading."""
    _, probe = start()
    assert probe.beat().uses
    assert probe.beat(60.0).uses
    assert not probe.beat().uses


# -- Xid errors --------------------------------------------------------------------------------------


def test_xids_are_counted_by_gpu_and_number(start: Start) -> None:
    """Every Xid error since the start is counted for its GPU."""
    machine, probe = start(2)
    probe.beat()
    machine.say({"xid 0": "31", "xid 1": "31"})
    probe.beat(10.0)
    machine.say({"xid 0": None, "xid 1": "63"})
    probe.beat(5.0)
    machine.say({"xid 1": None})
    reading = probe.beat(10.0)
    counted = {tuple(sorted(labels)): count for labels, count in reading.of(XIDS).items()}
    wanted = [truth.labels_of(0, xid="31"), truth.labels_of(1, xid="31"), truth.labels_of(1, xid="63")]
    assert counted == {tuple(sorted(labels)): 1.0 for labels in wanted}


def test_an_xid_is_counted_while_another_gpu_is_lost(start: Start) -> None:
    """The search for a lost GPU every 10 s loses no Xid errors of the others."""
    machine, probe = start(2)
    machine.say({f"error {OPENING}": "15 1"})
    probe.beat()
    machine.say({"xid 0": "31"})
    probe.beat(10.0)
    machine.say({"xid 0": None})
    assert probe.beat(10.0).value(XIDS, gpu="0", xid="31") == 1


def test_the_xid_of_a_gpu_that_falls_off_the_bus_is_counted(start: Start) -> None:
    """Xid 79 arrives with the loss itself, and is counted by the time the GPU is back."""
    machine, probe = start()
    probe.beat()
    machine.say({"xid 0": "79", "error GetPowerUsage": "15", "error GetUUID": "15", f"error {OPENING}": "15"})
    assert probe.beat().error
    machine.say({"xid 0": None, "error GetPowerUsage": None})
    machine.say({"error GetUUID": None, f"error {OPENING}": None})
    assert probe.beat(6.0).value(XIDS, xid="79") == 1


# -- GPUs that are lost ------------------------------------------------------------------------------


def test_one_of_two_lost_is_left_out_and_found_again(start: Start) -> None:
    """One beat fails with a remedy; then the other goes on, and the lost one is back within 10 s."""
    machine, probe = start(2)
    probe.beat()
    truth.tell(machine, 3, 2)
    probe.beat(3.0)
    machine.say({"error GetPowerUsage": "15 1", f"error {OPENING}": "15 1"})
    failed = probe.beat()
    assert failed.error == "GPU 1, power: gpu_is_lost"
    assert "reset" in failed.remedy
    truth.tell(machine, 9, 2)
    reading = probe.beat(5.0)
    assert reading.value(LOST, **dict(truth.labels_of(1))) == 1
    assert reading.value(LOST, **dict(truth.labels_of(0))) == 0
    assert reading.meters == {UUIDS[0]: pytest.approx(9 * truth.MJ_PER_TICK / 1000)}
    assert {gpu for _, labels in reading.samples for key, gpu in labels if key == "gpu"} == {"0", "1"}
    assert {name for name, labels in reading.samples if ("gpu", "1") in labels} == {LOST}
    (left_out,) = [entry for entry in reading.log if entry["event"] == "GPU left out"]
    assert left_out["remedy"]
    for _ in range(12):
        assert not probe.beat().log, "it is said once"
    machine.say({"error GetPowerUsage": None, f"error {OPENING}": None})
    truth.tell(machine, 20, 2)
    for _ in range(10):
        reading = probe.beat()
    assert reading.value(LOST, gpu="1") == 0
    assert set(reading.meters.values()) == {20 * truth.MJ_PER_TICK / 1000}, "both counters went on"


def test_a_lost_gpu_costs_the_others_ever_fewer_openings(start: Start) -> None:
    """NVML is reopened for it less and less often, and the other GPU's values are there throughout."""
    machine, probe = start(2)
    machine.say({f"error {OPENING}": "15 1"})
    opened = []
    for second in range(200):
        assert probe.beat().value(ENERGY, **dict(truth.labels_of(0))) is not None
        opened += [second] * machine.calls().count("Init")
    distances = [after - before for before, after in pairwise(opened[1:])]
    assert len(opened) > 3
    assert all(after >= 2 * before - 10 for before, after in pairwise(distances))


def test_a_gpu_that_was_never_seen_is_lost_all_the_same(start: Start) -> None:
    """A GPU that NVML counts but could never open is shown as lost, by its index."""
    machine, probe = start(2)
    machine.say({f"error {OPENING}": "15 1"})
    reading = probe.beat()
    assert reading.of(LOST) == {
        frozenset({("gpu", "1")}): 1,
        truth.labels_of(0, pci_bus_id=f"0000:{BUSES[0]}:00.0"): 0,
    }


def test_a_gpu_of_another_container_is_not_lost(start: Start) -> None:
    """A GPU that the agent may not open is left out, logged once with a remedy, and not lost."""
    machine, probe = start(2)
    machine.say({f"error {OPENING}": "4 1"})
    readings = [probe.beat() for _ in range(25)]
    assert [entry["remedy"][:4] for reading in readings for entry in reading.log] == ["give"]
    assert {gpu for reading in readings for gpu in reading.meters} == {UUIDS[0]}
    assert all(set(reading.of(LOST).values()) == {0} for reading in readings)


def test_a_lost_gpu_is_one_series_while_another_sleeps(start: Start) -> None:
    """While another GPU sleeps GPUs are opened by address; a lost one keeps only its own labels."""
    machine, probe = start(3)
    machine.power(BUSES[2], "suspended")
    probe.beat()
    machine.say({"error GetPowerUsage": "15 1", "error GetHandleByPciBusId": "15 1"})
    assert probe.beat().error
    bus = f"0000:{BUSES[1]}:00.0"
    assert probe.beat(6.0).of(LOST, pci_bus_id=bus) == {truth.labels_of(1, pci_bus_id=bus): 1}


def test_use_goes_on_while_another_gpu_is_lost(start: Start) -> None:
    """The search for a lost GPU every 10 s takes no time from the processes on the others."""
    machine, probe = start(2)
    machine.say({f"error {OPENING}": "15 1"})
    probe.beat()
    for beat in range(1, 31):
        machine.say({"process 0 600": f"{1_000_000 * (beat + 1)} 50 0 0"})
        reading = probe.beat()
    assert reading.uses[UUIDS[0], "sm", 600] == 15


def test_the_only_gpu_lost_is_down_until_it_is_back(start: Start) -> None:
    """Every beat fails with the remedy and shows nothing; some seconds after the fault everything is back."""
    machine, probe = start()
    probe.beat()
    machine.say({"error GetPowerUsage": "15", f"error {OPENING}": "15"})
    for _ in range(20):
        failed = probe.beat()
        assert "gpu_is_lost" in failed.error
        assert "reset" in failed.remedy
    machine.say({"error GetPowerUsage": None, f"error {OPENING}": None})
    truth.tell(machine, 30)
    for _ in range(6):
        reading = probe.beat()
    assert truth.rounded(reading) == truth.whole(30, 30)


def test_the_session_is_shut_down_even_if_its_events_are_not_let_go(start: Start) -> None:
    """Even if the event set cannot be freed, NVML is shut down once per session."""
    machine, probe = start()
    machine.say({"error EventSetFree": "999"})
    probe.beat()
    machine.say({"error GetPowerUsage": "15"})
    assert probe.beat().error
    calls = machine.calls()
    assert calls.count("Init") == calls.count("Shutdown") == 1


# -- GPUs that sleep ---------------------------------------------------------------------------------


def test_sleeping_gpus_are_not_woken(start: Start) -> None:
    """While all GPUs sleep NVML is not initialised and only their sleep is shown, until they wake."""
    machine, probe = start(2)
    for bus in BUSES[:2]:
        machine.power(bus, "suspended")
    for _ in range(12):
        reading = probe.beat()
        asleep = {frozenset({("pci_bus_id", f"0000:{bus}:00.0")}): 1 for bus in BUSES[:2]}
        assert reading.samples == {(ASLEEP, labels): value for labels, value in asleep.items()}
        assert not reading.meters
    assert machine.calls() == []
    for bus in BUSES[:2]:
        machine.power(bus, "active")
    for _ in range(10):
        reading = probe.beat()
    assert truth.rounded(reading) == truth.whole(0, 0, gpus=2)


def test_one_of_two_asleep_is_not_touched(start: Start) -> None:
    """Only the GPU that is awake is opened, by its address; the other is found within 10 s of waking."""
    machine, probe = start(2)
    machine.power(BUSES[1], "suspended")
    machine.say(dict.fromkeys([f"error {call}" for call in ("GetUUID", "GetPowerUsage")], "999 1"))
    for _ in range(12):
        reading = probe.beat()
    assert set(reading.meters) == {UUIDS[0]}
    assert reading.value(ASLEEP, pci_bus_id=f"0000:{BUSES[1]}:00.0") == 1
    assert reading.value(ASLEEP, pci_bus_id=f"0000:{BUSES[0]}:00.0") == 0
    assert {name for name, labels in reading.samples if ("gpu", "1") in labels} == set()
    assert not {"GetCount", OPENING} & set(machine.calls())
    machine.say(dict.fromkeys([f"error {call}" for call in ("GetUUID", "GetPowerUsage")]))
    machine.power(BUSES[1], "active")
    for _ in range(10):
        reading = probe.beat()
    assert set(reading.meters) == set(UUIDS[:2])


def test_a_gpu_that_falls_asleep_is_left_alone(start: Start) -> None:
    """Once a beat finds it asleep it is not queried; when it wakes its counter goes on."""
    machine, probe = start()
    probe.beat()
    machine.power(BUSES[0], "suspended")
    probe.beat()
    machine.calls()
    for _ in range(12):
        reading = probe.beat()
        assert reading.value(ASLEEP) == 1
        assert reading.families <= {ASLEEP, INFO, LOST}
    assert set(machine.calls()) <= {"EventSetWait"}
    machine.power(BUSES[0], "active")
    truth.tell(machine, 14)
    for _ in range(11):
        reading = probe.beat()
    assert reading.value(ENERGY) == pytest.approx(14 * truth.MJ_PER_TICK / 1000)
    assert reading.families >= truth.SLOW
