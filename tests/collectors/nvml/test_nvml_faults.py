"""Each of NVML's errors in each call: a gap with a reason, and never a wrong value.

`MISSING` has the samples that a failing call may take away; the others stay, or the whole beat fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from stubs import truth
from stubs.stub import Answer, Machine, Probe, machine_of_a_probe

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from stubs.truth import Series

CODES = (*range(1, 31), 999)
ENDING = {1, 9, 12, 15, 16, 18, 28}  # the session is over, or the GPU
NOT_SUPPORTED, NOT_FOUND = 3, 6
WITHOUT = {2, NOT_SUPPORTED, NOT_FOUND, 13}  # the GPU or its driver does not have the value

AT_OPENING = (
    "Init",
    "SystemGetDriverVersion",
    "GetCount",
    "GetHandleByIndex",
    "GetUUID",
    "GetPciInfo",
    "GetName",
)
OPTIONAL = ("SystemGetDriverVersion", "GetUUID", "GetPciInfo")  # not every GPU has these
# By call: (its name among the counted errors, the families that it is asked for).
EVERY_BEAT = {
    "GetTotalEnergyConsumption": ("energy", {"energy_joules_total"}),
    "GetPowerUsage": ("power", {"power_draw_watts"}),
    "GetUtilizationRates": ("utilization", {"utilization_percent", "memory_utilization_percent"}),
    "GetEncoderUtilization": ("encoder", {"encoder_utilization_percent"}),
    "GetDecoderUtilization": ("decoder", {"decoder_utilization_percent"}),
    "GetMemoryInfo": ("memory", {"memory_used_bytes", "memory_total_bytes"}),
    "GetTemperature": ("temperature", {"temperature_celsius"}),
    "GetProcessUtilization": ("process_utilization", set()),
}
SLOWLY = {
    "GetEnforcedPowerLimit": ("power_limit", {"power_limit_watts"}),
    "GetClockInfo": ("clock_graphics", {"clock_hertz"}),
    "GetCurrentClocksThrottleReasons": ("throttle_reasons", {"throttled"}),
    "GetTotalEccErrors": ("ecc_corrected", {"ecc_errors_total"}),
    "GetEncoderSessions": ("encoder_sessions", {"encoder_sessions", "encoder_session_fps"}),
}
ASKED = EVERY_BEAT | SLOWLY
EVENTS = ("EventSetCreate", "RegisterEvents", "EventSetWait", "EventSetFree", "Shutdown")
ALWAYS = truth.always(0)
ENERGY, INFO = "nvidia_gpu_energy_joules_total", "nvidia_gpu_info"
MISSING = {call: {f"nvidia_gpu_{name}" for name in families} for call, (_, families) in ASKED.items()}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return machine_of_a_probe(tmp_path_factory.mktemp("nvml"), traced=False)


@pytest.fixture(scope="module")
def probe(machine: Machine) -> Iterator[Probe]:
    with Probe(machine) as probe:
        yield probe


class Life:
    """One collector's life: the values change at every beat, and each shown value must be the present one."""

    def __init__(self, machine: Machine, probe: Probe) -> None:
        self.machine, self.probe = machine, probe
        probe.open(machine)
        self.tick = -1
        self.now = 0.0
        self.beats: dict[float, int] = {}  # tick by time
        self.joules = 0.0
        self.seconds: dict[tuple[str, str, int], float] = {}
        self.log: list[str] = []  # the remedy of each trouble that began
        self.troubled: set[str] = set()
        self.problems: list[str] = []
        self.faults: dict[str, str | None] = {}

    def fault(self, call: str, code: int | None) -> None:
        """Let a call fail with this code from the next beat on; None ends that."""
        self.faults[f"error {call}"] = None if code is None else str(code)

    def beat(self, seconds: float = 1.0) -> Answer:
        """Let time pass, change all values, read, and note what is wrong."""
        self.tick += 1
        self.now += seconds
        self.beats[self.now] = self.tick
        truth.tell(self.machine, self.tick, more=self.faults)
        answer = self.probe.beat(seconds)
        if not answer.error:
            began = answer.troubles.keys() - self.troubled
            self.log += [answer.troubles[part]["remedy"] for part in began]
            self.troubled = set(answer.troubles)
        else:
            self.expect(bool(answer.remedy), f"no remedy with {answer.error!r}")
        self.expect(not answer.bug, f"raised {answer.bug}")
        self.expect(not answer.absent, f"absent: {answer.absent}")
        self._fresh(answer)
        for meter in answer.meters.values():
            self.expect(meter >= self.joules, "energy decreased")
            self.joules = meter
        for which, seconds_used in answer.uses.items():
            self.expect(seconds_used >= self.seconds.get(which, 0.0), "a process's time decreased")
            self.seconds[which] = seconds_used
        return answer

    def _fresh(self, answer: Answer) -> None:
        """Fast values are this beat's; the slow ones are all of one beat less than 10 s ago."""
        shown = {k: v for k, v in truth.rounded(answer).items() if k not in ALWAYS}
        slow = {k: v for k, v in shown.items() if k[0] in truth.SLOW}
        told = truth.fast(0, self.tick)
        for series in shown.keys() - slow.keys():
            if series[0] not in ("nvidia_gpu_info", "nvidia_gpu_energy_joules_total"):
                self.expect(told.get(series) == shown[series], f"{series[0]} {shown[series]}: not its value")
        recent = [tick for when, tick in self.beats.items() if self.now - when < 10]
        if not any(slow.items() <= truth.slow(0, tick).items() for tick in recent):
            self.problems.append(f"beat {self.tick}: slow figures of no beat within 10 s")

    def expect(self, holds: bool, what: str) -> None:  # noqa: FBT001 - an assertion's two arguments
        if not holds:
            self.problems.append(f"beat {self.tick}: {what}")

    def complete(self, answer: Answer, without: Collection[str] = (), *, info: bool = True) -> None:
        """Expect everything except these families; `info`: with its usual labels."""
        energy = "nvidia_gpu_energy_joules_total"
        wanted: set[Series] = set(truth.whole(self.tick, self.tick))
        got = set(answer.samples)
        ignored = truth.SLOW | {"nvidia_gpu_read_errors_total", *([energy] if energy in without else [])}
        wanted_fast = {k for k in wanted if k[0] not in ignored and k[0] not in without}
        got_fast = {k for k in got if k[0] not in ignored}
        if not info:
            wanted_fast = {k for k in wanted_fast if k[0] != "nvidia_gpu_info"}
            got_fast = {k for k in got_fast if k[0] != "nvidia_gpu_info"}
        self.expect(
            wanted_fast == got_fast,
            f"missing {sorted(k[0] for k in wanted_fast - got_fast)}, "
            f"too many {sorted(k[0] for k in got_fast - wanted_fast)}; {answer.error}",
        )
        for family in truth.SLOW:
            there = family in answer.families
            self.expect(there == (family not in without), f"{family} is {'' if there else 'not '}there")

    def recover(self, call: str, *, integrated: bool = False) -> None:
        """Expect everything back within 16 s of the fault's end."""
        self.fault(call, None)
        for seconds in (1.0, 14.0):
            self.beat(seconds)
        last = self.beat(1.0)
        self.complete(last, info=not integrated)
        if not integrated:
            energy = last.of("nvidia_gpu_energy_joules_total").values()
            told = [truth.MJ_PER_TICK * self.tick / 1000]
            self.expect([round(joules, 9) for joules in energy] == told, f"energy {energy}, not {told}")


def problems_of(lives: dict[int, Life]) -> dict[int, list[str]]:
    return {code: life.problems for code, life in lives.items() if life.problems}


@pytest.mark.parametrize("call", ASKED)
def test_an_error_under_way_leaves_out_its_own_samples_or_fails_aloud(
    machine: Machine, probe: Probe, call: str
) -> None:
    """Only the failed call's samples are missing, or the beat fails with a remedy; then all return."""
    lives = {}
    for code in CODES:
        life = lives[code] = Life(machine, probe)
        life.complete(life.beat())
        life.fault(call, code)
        first, second, third = life.beat(), life.beat(10.0), life.beat()
        idle = call == "GetProcessUtilization" and code == NOT_FOUND
        is_energy = call == "GetTotalEnergyConsumption"
        fails = code in ENDING or (is_energy and code not in WITHOUT)
        if fails:
            life.expect(bool(second.error), "the beat that asks did not fail")
        elif not idle:
            without = MISSING[call]
            life.complete(first, set() if call in SLOWLY else without)
            life.complete(second, without)
            life.complete(third, without)
            counted = third.of("nvidia_gpu_read_errors_total", call=ASKED[call][0])
            life.expect(bool(counted) == (code != NOT_SUPPORTED), f"counted: {counted}")
            per_question = 4 if call == "GetClockInfo" else 2 if call == "GetTotalEccErrors" else 1
            logged = 0 if code == NOT_SUPPORTED else per_question
            life.expect(len(life.log) == logged, f"logged {len(life.log)} times, not {logged}")
            life.expect(all(life.log), "logged without a remedy")
        life.recover(call)
    assert not problems_of(lives)


@pytest.mark.parametrize("call", [*AT_OPENING, *EVENTS])
def test_an_error_of_the_sessions_own_calls_under_way_takes_nothing_away(
    machine: Machine, probe: Probe, call: str
) -> None:
    """Errors in calls made once a session, or for events, cost no sample during the session."""
    lives = {}
    for code in CODES:
        life = lives[code] = Life(machine, probe)
        life.complete(life.beat())
        life.fault(call, code)
        for answer in (life.beat(), life.beat(10.0)):
            if not (call == "EventSetWait" and code in ENDING and answer.error):
                life.complete(answer)
        life.recover(call)
    assert not problems_of(lives)


@pytest.mark.parametrize("call", [*AT_OPENING, *EVENTS, *ASKED])
def test_an_error_from_the_start(machine: Machine, probe: Probe, call: str) -> None:
    """With a call failing from the start, the beat fails or only lacks its samples; later all is complete."""
    lives = {}
    for code in CODES:
        if call in OPTIONAL and code in WITHOUT:
            continue  # see test_a_gpu_without_a_uuid_or_a_place_is_shown_all_the_same
        life = lives[code] = Life(machine, probe)
        life.fault(call, code)
        integrated = call == "GetTotalEnergyConsumption" and code in WITHOUT
        nameless = call == "GetName"
        for answer in (life.beat(), life.beat(5.0)):
            if call in AT_OPENING and call != "GetName":
                life.expect(bool(answer.error), "it did not fail")
            elif not answer.error and not integrated:
                missing = {"nvidia_gpu_energy_joules_total"} if call == "GetTotalEnergyConsumption" else set()
                life.complete(answer, MISSING.get(call, missing), info=not nameless)
        life.fault(call, None)
        if nameless or call in (*EVENTS, "GetTotalEnergyConsumption"):
            # Asked at the opening alone: these stay as they are until the session is another.
            life.complete(life.beat(11.0), info=False)
        else:
            life.beat(15.0)
            life.complete(life.beat())
    assert not problems_of(lives)


def test_a_gpu_that_is_lost_at_a_scrape_ends_the_session(machine: Machine, probe: Probe) -> None:
    """A GPU lost at a scrape is treated as at a beat: a remedy, no values, and a new session."""
    life = Life(machine, probe)
    life.beat()
    machine.say({"error GetTotalEnergyConsumption": "15"})
    failed = probe.refresh(0.5)
    assert (failed.error, failed.samples) == ("GPU 0, energy: gpu_is_lost", {})
    assert "reset" in failed.remedy
    life.fault("GetTotalEnergyConsumption", None)
    assert life.beat(0.5).error == failed.error, "not opened again before some seconds have passed"
    life.complete(life.beat(5.0))
    assert not life.problems


@pytest.mark.parametrize("code", sorted(WITHOUT))
@pytest.mark.parametrize("calls", [("GetUUID",), ("GetPciInfo",), ("GetUUID", "GetPciInfo")])
def test_a_gpu_without_a_uuid_or_a_place_is_shown_all_the_same(
    machine: Machine, probe: Probe, calls: tuple[str, ...], code: int
) -> None:
    """On a Jetson or a virtual GPU what the driver does not have costs that label, and its energy counts."""
    machine.reset(2)
    truth.tell(machine, 0, 2)
    machine.say({f"error {call}": str(code) for call in calls})
    assert not probe.open(machine).absent
    first = probe.beat()
    assert not first.error
    assert not first.log
    truth.tell(machine, 5, 2)
    later = probe.beat(5.0)
    assert list(later.meters.values()) == [pytest.approx(5 * truth.MJ_PER_TICK / 1000)] * 2
    assert set(later.of("nvidia_gpu_lost").values()) == {0}
    assert [dict(labels)["gpu"] for labels in later.of(ENERGY)] == ["0", "1"]


def test_a_gpu_without_power_and_energy_is_shown_with_what_there_is(machine: Machine, probe: Probe) -> None:
    """On a Jetson every power call is not supported: use and memory are shown, no energy, and no failure."""
    machine.reset(1)
    truth.tell(machine, 0)
    calls = ("GetTotalEnergyConsumption", "GetPowerUsage", "GetPciInfo", "GetTemperature")
    machine.say({f"error {call}": str(NOT_SUPPORTED) for call in calls})
    probe.open(machine)
    reading = probe.beat()
    assert not reading.error
    assert not reading.meters
    assert "nvidia_gpu_utilization_percent" in reading.families
    assert not reading.troubles


def test_one_gpus_missing_value_costs_the_other_nothing(machine: Machine, probe: Probe) -> None:
    """Each call that one of two GPUs does not have leaves the other whole."""
    for call in ASKED:
        machine.reset(2)
        truth.tell(machine, 0, 2)
        machine.say({f"error {call}": f"{NOT_SUPPORTED} 1"})
        probe.open(machine)
        own = {series for series in truth.whole(0, 0, 2) if ("gpu", "0") in series[1]}
        assert own <= set(probe.beat().samples), call
