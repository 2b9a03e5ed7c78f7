"""Shares with figures worked out by hand: CPU time, engine time, slow readers, who leaves and comes back."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from trees import values

from powerbench_agent.agent.attribution import (
    AGENT,
    DEPARTED,
    HELD_SECONDS,
    IDLE,
    MAX_HELD,
    UNATTRIBUTED,
    Idle,
)
from powerbench_agent.agent.node import NODE_ENERGY, Node
from powerbench_agent.core.model import (
    ANYONE,
    SHARE_LABELS,
    Claim,
    CpuTime,
    Meter,
    Metric,
    Reading,
    Use,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CPU = ("cpu", "rapl")
GPU = ("gpu", "nvml")
CONTAINER = Metric("container_joules_total", "counter", "Its share.", SHARE_LABELS["container"])
STREAM = Metric("stream_joules_total", "counter", "Its share.", SHARE_LABELS["stream"])
ID, OTHER_ID = "a" * 64, "b" * 64
Shown = dict[str, float]


def container(name: str, seconds: float, identity: str = ID) -> Claim:
    return Claim("container", name, CONTAINER, seconds, identity)


def stream(name: str, seconds: float = 0.0, within: str = "", *pids: int) -> Claim:
    return Claim("stream", name, STREAM, seconds, within, pids)


def shown(reading: Reading, part: tuple[str, str] = CPU) -> Shown:
    """Return a part's shares: of containers and streams by name, the others by what they are."""
    found = {}
    buckets = {"idle": IDLE, "agent": AGENT, "departed": DEPARTED, "unattributed": UNATTRIBUTED}
    for what, metric in {"node": NODE_ENERGY, **buckets}.items():
        if part in values(reading, metric):
            found[what] = values(reading, metric)[part]
    found.update({name: v for (name, *its), v in values(reading, CONTAINER).items() if (*its,) == part})
    for (name, _, *its), v in values(reading, STREAM).items():  # of its own, and as a view of a container's
        if (*its,) == part:
            found[name] = found.get(name, 0.0) + v
    return found


class Machine:
    """A node of which a test says what was gained: 100 J of 4 CPUs a beat, if nothing else is said."""

    def __init__(self, idle: Idle = "apart", home: str = "") -> None:
        self.node = Node(idle)
        self.home = home
        self.now = 1000.0
        self.joules = 0.0
        self.cpu = CpuTime(0.0, 0.0, 0.0, home)

    def beat(
        self,
        claims: Iterable[Claim] | None = (),
        *,
        joules: float = 100.0,
        busy: float = 1.0,
        agent: float = 0.0,
        readings: Mapping[str, Reading] | None = None,
        present: Iterable[str] = (),
        metered: bool = True,
        known: bool = True,
    ) -> Reading:
        """Let that much pass. `claims` None: their collector gives no reading."""
        self.now += 1
        self.joules += joules
        before = self.cpu
        self.cpu = CpuTime(before.busy + busy, before.capacity + 4, before.agent + agent, self.home)
        meters = Reading([], [Meter(*CPU, "package-0", self.joules)], self.now)
        all_readings = {
            **({"rapl": meters} if metered else {}),
            **({} if claims is None else {"claims": Reading([], (), self.now, claims=list(claims))}),
            **(readings or {}),
        }
        names = {"rapl", *all_readings, *present}
        return self.node.beat(all_readings, (), names, self.cpu if known else None, self.now)


def approx(**figures: float) -> Any:
    """Return these shares; nothing where none is said."""
    return pytest.approx({"agent": 0, "departed": 0, "unattributed": 0, **figures})


def begun(idle: Idle = "apart", home: str = "", *claims: Claim) -> Machine:
    """Return a machine after its first beat, in which nothing was gained yet."""
    (machine := Machine(idle, home)).beat(claims, joules=0.0)
    return machine


# -- one beat ----------------------------------------------------------------------------------------


def test_idle_apart() -> None:
    """Of 100 J over 4 CPU seconds, 1 of them busy, 75 are idle; the rest goes by CPU time."""
    found = begun().beat([container("web", 0.5)], agent=0.1)
    assert shown(found) == approx(node=100, idle=75, web=12.5, agent=2.5, unattributed=10)


def test_idle_shared() -> None:
    """With idle=share those who were active carry the idle energy too."""
    found = begun("share").beat([container("web", 0.5)], agent=0.1)
    assert shown(found) == approx(node=100, idle=0, web=50, agent=10, unattributed=40)


@pytest.mark.parametrize("idle", ["apart", "share"])
def test_nothing_active(idle: Idle) -> None:
    """If nothing ran, all energy is idle whatever is configured: nothing was active to share it."""
    found = begun(idle).beat([container("web", 0.0)], busy=0.0)
    assert shown(found) == approx(node=100, idle=100, web=0)


def test_claims_beyond_busy_are_scaled() -> None:
    """If claims exceed the CPUs' busy time, they share all the energy, in proportion and no more."""
    found = begun().beat([container("web", 6.0), container("db", 2.0, OTHER_ID)])
    assert shown(found) == approx(node=100, idle=0, web=75, db=25)


@pytest.mark.parametrize(("web", "db"), [(0.5, 0.5), (0.75, 0.25)])
def test_equal_and_unequal_shares(web: float, db: float) -> None:
    """Joules are as CPU seconds: equal for equal, 3:1 for 3:1."""
    found = shown(begun().beat([container("web", web), container("db", db, OTHER_ID)]))
    assert found["web"] / found["db"] == pytest.approx(web / db)
    assert found["web"] + found["db"] == pytest.approx(25)


def test_dram_goes_by_cpu_time_too() -> None:
    """DRAM's joules are shared like the CPU's, by the same seconds."""
    machine = begun()
    dram = [Meter("dram", "rapl", "dram-0", joules) for joules in (0.0, 8.0)]
    machine.beat(joules=0.0, readings={"dram": Reading([], dram[:1], machine.now + 1)})
    claims = [container("web", 0.5)]
    found = machine.beat(claims, readings={"dram": Reading([], dram[1:], machine.now + 1)})
    assert shown(found, ("dram", "rapl")) == approx(node=8, idle=6, web=1, unattributed=1)


def test_the_agent_within_a_container() -> None:
    """The agent's part is taken off the container that it lies in, and shown as the agent's."""
    found = begun(home=ID).beat([container("agents", 0.5)], agent=0.1)
    assert shown(found) == approx(node=100, idle=75, agents=10, agent=2.5, unattributed=12.5)


def test_a_stream_within_a_container_is_a_view() -> None:
    """Its joules are among the container's: the same sum with it and without."""
    found = begun().beat([container("web", 0.8), stream("cam1", 0.6, ID, 7)])
    assert shown(found) == approx(node=100, idle=75, web=20, cam1=15, unattributed=5)


@pytest.mark.parametrize("within", ["", OTHER_ID])
def test_a_stream_outside_is_a_part(within: str) -> None:
    """A stream on the host, or in a container that is not shown, has joules of its own."""
    found = begun().beat([container("web", 0.2), stream("cam1", 0.6, within, 7)])
    assert shown(found) == approx(node=100, idle=75, web=5, cam1=15, unattributed=5)


# -- from beat to beat -------------------------------------------------------------------------------


def test_energy_from_before_the_first_beat_is_unattributed() -> None:
    """Joules that a meter shows at first are in the sum and unattributed: the use at that time is unknown."""
    found = Machine().beat([container("web", 0.5)], joules=40.0)
    assert shown(found) == approx(node=40, idle=0, web=0, unattributed=40)


def test_without_cpu_time_a_beat_is_unattributed() -> None:
    """Without a figure from /proc/stat, and in the beat after, all energy is unattributed."""
    machine = begun()
    machine.beat([container("web", 0.5)], known=False)
    machine.beat([container("web", 1.0)])
    found = machine.beat([container("web", 1.5)])
    assert shown(found) == approx(node=300, idle=75, web=12.5, unattributed=212.5)


def test_a_slow_meter_is_shared_by_its_own_time() -> None:
    """A meter read every 10 s is shared by what was used in those 10 s, not in the last of them."""
    machine = begun()
    slow = Reading([], [Meter("dram", "slow", "d", 0.0)], machine.now)
    machine.beat([container("web", 0.0)], joules=0.0, readings={"slow": slow})
    for second in range(1, 10):
        used = min(second, 5) * 0.8  # busy in the first half alone
        machine.beat([container("web", used)], joules=0.0, readings={"slow": slow})
    fresh = Reading([], [Meter("dram", "slow", "d", 400.0)], machine.now + 1)
    found = machine.beat([container("web", 4.0)], readings={"slow": fresh})
    # 10 of 40 CPU seconds were busy, 4 of them the container's.
    assert shown(found, ("dram", "slow")) == approx(node=400, idle=300, web=40, unattributed=60)


def test_a_slow_claimer_gets_its_true_share() -> None:
    """A container read every 5 s has a smooth share between, which is the true one on average."""
    machine = begun()
    latest = Reading([], (), machine.now, claims=[container("web", 0.0)])
    web = [0.0]
    for beat in range(60):
        if beat % 5 == 0:
            latest = Reading([], (), machine.now + 1, claims=[container("web", 0.5 * (beat + 1))])
        found = machine.beat(None, readings={"docker": latest})
        web.append(shown(found)["web"])
    assert web[-1] == pytest.approx(60 * 12.5, rel=0.05)
    steps = [after - before for before, after in itertools.pairwise(web[10:])]
    assert steps == pytest.approx([12.5] * len(steps))


def test_a_slow_claimer_that_stops_is_not_charged_twice() -> None:
    """What was charged ahead of a reading is taken off what comes after: the sum is the true one."""
    machine = begun()
    web = {0: 0.0, 5: 2.5, 10: 5.0, 15: 5.0, 20: 5.0, 25: 7.5, 30: 10.0}
    for beat in range(31):
        at = beat // 5 * 5
        taken = machine.now + 1 - (beat - at)
        latest = Reading([], (), taken, claims=[container("web", web[at])])
        found = machine.beat(None, readings={"docker": latest})
    assert shown(found)["web"] == pytest.approx(10 * 25, rel=0.01)


def test_a_gap_of_the_meter_is_shared_by_the_use_over_it() -> None:
    """What a meter gained while it could not be read goes by what was used in that time."""
    machine = begun()
    for _ in range(2):
        machine.beat([container("web", 1.0)], metered=False)
    found = machine.beat([container("web", 1.0)])
    # 300 J, 12 CPU seconds, 3 busy, 1 the container's.
    assert shown(found) == approx(node=300, idle=225, web=25, unattributed=50)


def test_the_estimate_leaves_with_its_shares() -> None:
    """Once something measures the component, the estimate's part is shown no more, nor its shares."""
    machine = Machine()
    for joules in (0.0, 10.0):
        estimate = Reading([], [Meter("cpu", "estimate", "cpu", joules)], machine.now + 1)
        found = machine.beat([container("web", joules / 20)], metered=False, readings={"estimate": estimate})
    assert shown(found, ("cpu", "estimate")) == approx(node=10, idle=7.5, web=1.25, unattributed=1.25)
    machine.beat([container("web", 1.0)], readings={"estimate": estimate})
    found = machine.beat([container("web", 1.5)], readings={"estimate": estimate})
    assert shown(found, ("cpu", "estimate")) == {}
    assert shown(found)["web"] == pytest.approx(12.5)


# -- who leaves and comes back -----------------------------------------------------------------------


def test_what_leaves_is_departed() -> None:
    """A stream that leaves hands its joules over in that beat, a container after some minutes."""
    machine = begun()
    machine.beat([container("web", 0.4), stream("cam1", 0.2)])
    found = machine.beat([], joules=0.0)
    assert shown(found) == approx(node=100, idle=75, unattributed=10, web=10, departed=5)
    machine.now += HELD_SECONDS - 2
    found = machine.beat([], joules=0.0)
    assert shown(found) == approx(node=100, idle=75, unattributed=10, web=10, departed=5)
    found = machine.beat([], joules=0.0)
    assert shown(found) == approx(node=100, idle=75, unattributed=10, departed=15)


def test_another_container_of_a_name_goes_on() -> None:
    """After `docker rm` and `run` under one name that name's counter goes on: it never falls."""
    machine = begun()
    machine.beat([container("web", 0.4)])
    assert shown(machine.beat([]))["web"] == pytest.approx(10)
    found = machine.beat([container("web", 0.2, OTHER_ID)])
    assert shown(found) == approx(node=300, idle=225, web=15, unattributed=60)
    machine.now += HELD_SECONDS
    found = machine.beat([container("web", 0.4, OTHER_ID)])
    assert shown(found)["web"] == pytest.approx(20)


def test_a_name_is_taken_over_within_a_beat() -> None:
    """One container of a name ends and another begins between two beats: none is lost or doubled."""
    machine = begun()
    machine.beat([container("web", 0.4)])
    found = machine.beat([container("web", 0.2, OTHER_ID)])
    assert shown(found) == approx(node=200, idle=150, web=15, unattributed=35)


def test_two_containers_of_one_name_share_its_counter() -> None:
    """While both are there, as in two engines, the name's joules are both's; when one ends, they stay."""
    machine = begun()
    found = machine.beat([container("web", 0.4), container("web", 0.2, OTHER_ID)])
    assert shown(found) == approx(node=100, idle=75, web=15, unattributed=10)
    found = machine.beat([container("web", 0.4, OTHER_ID)])
    assert shown(found) == approx(node=200, idle=150, web=20, unattributed=30)


def test_recreating_by_renaming_goes_on() -> None:
    """Compose renames the old container, and a new one takes its name: neither name's counter falls."""
    machine = begun()
    machine.beat([container("web", 0.4)])
    machine.beat([container("old_web", 0.8)])
    found = machine.beat([container("old_web", 0.8), container("web", 0.2, OTHER_ID)])
    assert shown(found) == approx(node=300, idle=225, old_web=10, web=15, unattributed=50)


def test_a_crowd_of_names_is_not_kept() -> None:
    """Of more names than are kept those that left first go; names without joules go at once."""
    machine = begun()
    crowd = [container(f"c{number}", 0.001, f"{number:064}") for number in range(MAX_HELD + 10)]
    machine.beat(crowd, joules=1000.0)
    machine.beat(crowd[5:], joules=0.0)
    found = machine.beat([], joules=0.0)
    left = {name for name in shown(found) if name.startswith("c")}
    assert len(left) == MAX_HELD
    assert not left & {f"c{number}" for number in range(5)}
    assert shown(found)["departed"] == pytest.approx(10 * 1000 * 0.001 / 4)
    idler = begun()
    idler.beat([container("idler", 0.0)])
    assert "idler" not in shown(idler.beat([]))


def test_a_view_does_not_depart() -> None:
    """A stream within a container takes nothing along when it leaves: its joules stay the container's."""
    machine = begun()
    machine.beat([container("web", 0.4), stream("cam1", 0.2, ID, 7)])
    found = machine.beat([container("web", 0.4)], joules=0.0)
    assert shown(found) == approx(node=100, idle=75, web=10, unattributed=15)


def test_claims_of_a_collector_that_is_down_are_kept() -> None:
    """A collector that is down has not lost its containers: they are shown as they were."""
    machine = begun()
    machine.beat([container("web", 0.4)])
    found = machine.beat(None, present=["claims"])
    assert shown(found) == approx(node=200, idle=150, web=10, unattributed=40)


def test_what_was_used_while_its_collector_was_down_is_not_charged_later() -> None:
    """Ten seconds' use that is read at once is not charged to the last second: idle energy stays idle."""
    machine = begun()
    machine.beat([container("web", 0.5)])
    for _ in range(10):
        machine.beat(None, present=["claims"])
    back = shown(machine.beat([container("web", 6.0)]))
    assert back["web"] == pytest.approx(12.5)
    assert back["idle"] == pytest.approx(12 * 75)
    found = machine.beat([container("web", 6.5)])
    assert shown(found)["web"] == pytest.approx(25)


def test_claims_of_a_collector_that_has_gone_depart() -> None:
    """If the collector itself is absent, its containers have left, and depart in their time."""
    machine = begun()
    machine.beat([container("web", 0.4)])
    found = machine.beat(None)
    assert shown(found) == approx(node=200, idle=150, unattributed=40, web=10)
    machine.now += HELD_SECONDS
    found = machine.beat(None)
    assert shown(found) == approx(node=300, idle=225, unattributed=65, departed=10)


def test_a_container_that_comes_back_goes_on() -> None:
    """Its series goes on, and a use that restarts at 0 is not negative, for slow meters too."""
    machine = begun()
    slow = [
        Reading([], [Meter("dram", "slow", "d", joules)], machine.now + at)
        for joules, at in ((0, 0), (90, 9))
    ]
    machine.beat([container("web", 0.0)], readings={"slow": slow[0]})
    machine.beat([container("web", 50.0)], readings={"slow": slow[0]._replace(meters=[])})
    machine.beat([container("web", 50.0)], readings={"slow": slow[1]})
    before = shown(machine.beat([], readings={"slow": slow[1]}))
    found = machine.beat([container("web", 0.5)], readings={"slow": slow[1]})
    assert shown(found)["web"] - before["web"] == pytest.approx(12.5)
    later = Reading([], [Meter("dram", "slow", "d", 190.0)], machine.now + 1)
    before = shown(found, ("dram", "slow"))
    after = shown(machine.beat([container("web", 1.0)], readings={"slow": later}), ("dram", "slow"))
    # 12 CPU seconds since that meter was read, 3 busy, 1 of them its own.
    assert after["web"] - before["web"] == pytest.approx(100 / 12)


def test_a_count_that_restarts_goes_on() -> None:
    """A claim whose seconds fall without its having left is charged with what is counted since."""
    machine = begun("apart", "", container("web", 50.0))
    machine.beat([container("web", 50.4)])
    found = machine.beat([container("web", 0.4)])
    assert shown(found)["web"] == pytest.approx(20)


@pytest.mark.parametrize("fall", [1e-6, 0.01, 0.09])
def test_a_count_that_falls_a_little_has_not_restarted(fall: float) -> None:
    """The noise of a sum over CPUs bills nothing: not the whole count once more, and no second twice."""
    machine = begun("apart", "", container("web", 50.0))
    machine.beat([container("web", 50.4)])
    machine.beat([container("web", 50.4 - fall)])
    found = machine.beat([container("web", 50.6)])
    assert shown(found)["web"] == pytest.approx(15)


# -- GPUs --------------------------------------------------------------------------------------------


class Gpu:
    """A GPU whose processes a test lets work: 100 J a second."""

    def __init__(self) -> None:
        self.node = Node()
        self.now = 1000.0
        self.joules = 0.0
        self.seconds: dict[tuple[int, str, str], float] = {}

    def beat(
        self,
        claims: Iterable[Claim] = (),
        uses: Mapping[tuple[int, str, str], float] | None = None,
        *,
        metered: bool = True,
    ) -> Shown:
        """Let a second pass. `uses`: seconds gained by (pid, engine, its container)."""
        self.now += 1
        self.joules += 100
        for who, gained in (uses or {}).items():
            self.seconds[who] = self.seconds.get(who, 0.0) + gained
        listed = [
            Use(*GPU, "gpu-0", engine, pid, seconds, place)
            for (pid, engine, place), seconds in self.seconds.items()
        ]
        nvml = Reading([], [Meter(*GPU, "gpu-0", self.joules)], self.now, listed)
        readings = {"claims": Reading([], (), self.now, claims=list(claims))}
        if metered:
            readings["nvml"] = nvml
        return shown(self.node.beat(readings, (), {"nvml", "claims"}, None, self.now), GPU)

    def share(self, claims: Iterable[Claim], uses: Mapping[tuple[int, str, str], float]) -> Shown:
        """Return what one second's joules went to; the first beat's are unattributed."""
        before = self.beat(claims)
        after = self.beat(claims, uses)
        return {who: joules - before.get(who, 0.0) for who, joules in after.items()}


def test_a_gpus_joules_go_by_engine_time() -> None:
    """An encoder half used by a stream, a quarter by a container and 90 % by all leaves 10 % idle."""
    uses = {(7, "encoder", ""): 0.5, (8, "encoder", ID): 0.25, (ANYONE, "encoder", ""): 0.9}
    found = Gpu().share([stream("cam1", 0, "", 7), container("web", 0)], uses)
    assert found == approx(node=100, idle=10, cam1=50, web=25, unattributed=15)


def test_the_busiest_engine_counts() -> None:
    """A process that uses several engines at once counts with the busiest, not with their sum."""
    uses = {(7, "encoder", ""): 0.5, (7, "sm", ""): 0.3, (7, "decoder", ""): 0.4, (ANYONE, "any", ""): 0.5}
    found = Gpu().share([stream("cam1", 0, "", 7)], uses)
    assert found == approx(node=100, idle=50, cam1=50)


def test_a_process_in_a_stream_in_a_container_counts_once() -> None:
    """The stream's figure is a view: the container has the part."""
    uses = {(7, "encoder", ID): 0.5, (ANYONE, "any", ""): 0.5}
    found = Gpu().share([stream("cam1", 0, ID, 7), container("web", 0)], uses)
    assert found == approx(node=100, idle=50, cam1=50, web=50)


def test_streams_of_one_process_share_its_engine_time() -> None:
    """A process that sends two streams is neither's alone."""
    uses = {(7, "encoder", ""): 0.5, (ANYONE, "any", ""): 0.5}
    found = Gpu().share([stream("cam1", 0, "", 7), stream("cam2", 0, "", 7)], uses)
    assert found == approx(node=100, idle=50, cam1=25, cam2=25)


def test_unknown_processes_have_their_part() -> None:
    """If it is unknown how busy a GPU was, what its streams do not account for is unattributed, not idle."""
    uses = {(7, "render", ""): 0.25, (8, "render", ""): 0.25, (9, "render", OTHER_ID): 0.25}
    found = Gpu().share([stream("cam1", 0, "", 7)], uses)
    assert found == approx(node=100, idle=0, cam1=25, unattributed=75)


def test_how_the_use_of_all_is_called_may_change() -> None:
    """A driver that no longer tells processes apart gives their time under another name, and goes on."""
    gpu = Gpu()
    for _ in range(5):
        gpu.beat([], {(ANYONE, "busiest", ""): 0.5})
    before = gpu.beat([])
    gpu.seconds = {(ANYONE, "any", ""): gpu.seconds[ANYONE, "busiest", ""]}
    after = gpu.beat([], {(ANYONE, "any", ""): 0.5})
    assert after["idle"] - before["idle"] == pytest.approx(50)


@pytest.mark.parametrize("component", ["module", "platform"])
def test_what_contains_other_components_is_not_shared(component: str) -> None:
    """A Grace module's energy is in the node, and beside the GPU's: no share of it, and no sum with it."""
    node = Node()
    claims = Reading([], (), 1.0, claims=[container("web", 1.0)])
    for now in (1.0, 2.0):
        meters = [Meter(*GPU, "gpu-0", 300 * now), Meter(component, "nvml", "gpu-0", 455 * now)]
        reading = node.beat({"nvml": Reading([], meters, now), "c": claims}, (), {"nvml", "c"}, None, now)
    assert values(reading, NODE_ENERGY) == {GPU: 600, (component, "nvml"): 910}
    for metric in (IDLE, AGENT, DEPARTED, UNATTRIBUTED):
        assert set(values(reading, metric)) <= {GPU}
    assert {labels[1:] for labels in values(reading, CONTAINER)} <= {GPU}


def test_a_gap_of_a_gpu_charges_no_second_twice() -> None:
    """What was used in a gap goes with the gap's joules, which are unattributed, with no other."""
    claims = [stream("cam1", 0, "", 7)]
    uses = {(7, "encoder", ""): 0.5, (ANYONE, "any", ""): 0.5}
    gpu = Gpu()
    gpu.beat(claims)
    for _ in range(5):
        gpu.beat(claims, uses, metered=False)
    back = gpu.beat(claims, uses)
    assert back == approx(node=700, idle=0, cam1=0, unattributed=700)
    found = gpu.beat(claims, uses)
    assert found == approx(node=800, idle=50, cam1=50, unattributed=700)


def test_a_renamed_container_goes_on_under_its_new_name() -> None:
    """What it uses from then on is its new name's; what it had used stays its old name's."""
    machine = begun()
    machine.beat([container("web", 0.5)])
    found = machine.beat([container("old_web", 1.0)])
    assert shown(found) == approx(node=200, idle=150, web=12.5, old_web=12.5, unattributed=25)


def test_streams_outside_containers_have_no_container_label() -> None:
    """What adds up to the node can be asked for: a view has the container's name, a part has none."""
    found = begun().beat([container("web", 0.4), stream("inside", 0.2, ID), stream("outside", 0.2)])
    assert set(values(found, STREAM)) == {("inside", "web", *CPU), ("outside", "", *CPU)}
