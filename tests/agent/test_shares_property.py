"""Whatever comes and goes, the shares add up to the node's energy: one property over any beats."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import values

from powerbench_agent.agent.attribution import AGENT, DEPARTED, HELD_SECONDS, IDLE, UNATTRIBUTED, Idle
from powerbench_agent.agent.node import NODE_ENERGY, Node
from powerbench_agent.core.model import ANYONE, SHARE_LABELS, Claim, CpuTime, Meter, Metric, Reading, Use

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTAINER = Metric("container_joules_total", "counter", "Its share.", SHARE_LABELS["container"])
STREAM = Metric("stream_joules_total", "counter", "Its share.", SHARE_LABELS["stream"])
METERS = (
    ("cpu", "rapl", "package-0"),
    ("cpu", "rapl", "package-1"),
    ("dram", "rapl", "dram-0"),
    ("cpu", "estimate", "cpu"),
    ("gpu", "nvml", "gpu-0"),
    ("gpu", "nvml", "gpu-1"),
)
CONTAINERS = ("one", "two", "three")  # ids, and names where nothing else is said
NAMES = ("web", "db")
STREAMS = ("cam1", "cam2", "cam3")
COLLECTORS = ("rapl", "estimate", "nvml", "docker", "ffmpeg")
BUCKETS = (IDLE, AGENT, DEPARTED, UNATTRIBUTED)

amounts = st.sampled_from([0.0, 1e-9, 0.25, 1.0, 3.7, 1000.0])
# What happens to a counter: it gains an amount, it restarts with an amount, or it is not there.
steps = st.one_of(
    st.tuples(st.just("gain"), amounts), st.tuples(st.just("restart"), amounts), st.just(("gone", 0.0))
)


class Stream(NamedTuple):
    step: tuple[str, float]
    container: str
    pids: frozenset[int]


class Used(NamedTuple):
    key: str
    engine: str
    pid: int


class Beat(NamedTuple):
    seconds: float
    cpu: tuple[float, float, float] | None  # gained: busy, idle, the agent's
    home: str  # the agent's container
    states: dict[str, str]  # of collectors; up where not named
    stale: frozenset[str]  # collectors whose last reading still stands
    meters: dict[tuple[str, str, str], tuple[str, float]]
    containers: dict[str, tuple[str, float]]
    names: dict[str, str]  # of containers that are not called by their ids
    streams: dict[str, Stream]
    uses: dict[Used, tuple[str, float]]
    places: dict[int, str]  # the container that a process lies in, as the GPU's collector says


somewhere = st.sampled_from(("", *CONTAINERS, "unknown"))
beats = st.builds(
    Beat,
    st.sampled_from([0.5, 1.0, 10.0, HELD_SECONDS]),
    st.none() | st.tuples(amounts, amounts, amounts),
    somewhere,
    st.dictionaries(st.sampled_from(COLLECTORS), st.sampled_from(["down", "gone"]), max_size=2),
    st.frozensets(st.sampled_from(COLLECTORS), max_size=1),
    st.dictionaries(st.sampled_from(METERS), steps),
    st.dictionaries(st.sampled_from(CONTAINERS), steps),
    st.dictionaries(st.sampled_from(CONTAINERS), st.sampled_from(NAMES)),
    st.dictionaries(
        st.sampled_from(STREAMS),
        st.builds(Stream, steps, somewhere, st.frozensets(st.integers(1, 4), max_size=2)),
    ),
    st.dictionaries(
        st.builds(
            Used,
            st.sampled_from(["gpu-0", "gpu-1"]),
            st.sampled_from(["sm", "encoder"]),
            st.integers(ANYONE, 5),
        ),
        steps,
        max_size=6,
    ),
    st.dictionaries(st.integers(1, 5), somewhere, max_size=3),
)


class Counters:
    """Counters by name, as far as they are there."""

    def __init__(self) -> None:
        self.now: dict[tuple[str, ...], float] = {}

    def take(self, key: tuple[str, ...], step: tuple[str, float] | None) -> float | None:
        what, amount = step or ("gain", 0.0)
        if what == "gone":
            return None
        self.now[key] = amount if what == "restart" else self.now.get(key, 0.0) + amount
        return self.now[key]


class World:
    """A machine's collectors from beat to beat."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.readings: dict[str, Reading] = {}
        self._counters = Counters()
        self._cpu = CpuTime(0.0, 0.0, 0.0)

    def cpu(self, beat: Beat) -> CpuTime | None:
        if beat.cpu is None:
            return None
        busy, idle, agent = beat.cpu
        was = self._cpu
        self._cpu = CpuTime(was.busy + busy, was.capacity + busy + idle, was.agent + agent, beat.home)
        return self._cpu

    def read(self, beat: Beat) -> None:
        """Bring the readings up to date: of collectors that are up and read in this beat."""
        self.now += beat.seconds
        read = {
            "docker": Reading([], taken=self.now, claims=list(self._containers(beat))),
            "ffmpeg": Reading([], taken=self.now, claims=list(self._streams(beat))),
            **{source: self._metered(beat, source) for source in ("rapl", "estimate", "nvml")},
        }
        for name, reading in read.items():
            if name in beat.states:
                self.readings.pop(name, None)
            elif name not in beat.stale or name not in self.readings:
                self.readings[name] = reading

    def _metered(self, beat: Beat, source: str) -> Reading:
        meters = [
            Meter(*key, joules)
            for key in METERS
            if key[1] == source and (joules := self._counters.take(key, beat.meters.get(key))) is not None
        ]
        uses = [
            Use("gpu", "nvml", used.key, used.engine, used.pid, seconds, beat.places.get(used.pid, ""))
            for used, step in beat.uses.items()
            if (seconds := self._counters.take(("use", *map(str, used)), step)) is not None
        ]
        return Reading([], meters, self.now, uses if source == "nvml" else ())

    def _containers(self, beat: Beat) -> list[Claim]:
        return [
            Claim("container", beat.names.get(key, key), CONTAINER, seconds, key)
            for key in CONTAINERS
            if (seconds := self._counters.take(("container", key), beat.containers.get(key))) is not None
        ]

    def _streams(self, beat: Beat) -> list[Claim]:
        found = []
        for name in STREAMS:
            stream = beat.streams.get(name, Stream(("gain", 0.25), "", frozenset()))
            seconds = self._counters.take(("stream", name), stream.step)
            if seconds is not None:
                found.append(Claim("stream", name, STREAM, seconds, stream.container, (*stream.pids,)))
        return found


class Books:
    """What is known of the shares from the pages alone, so that their sum can be made from outside.

    A stream's series without a container is a part; one with a container is a view of that container's.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[Metric, tuple[str, ...]], float] = {}
        self._known: set[tuple[str, str]] = set()  # kind and name
        self._left: dict[tuple[str, str], float] = {}  # when containers have left whose names are kept

    def check(self, reading: Reading, readings: Mapping[str, Reading], present: set[str], now: float) -> None:
        self._meet(readings, present, now)
        for sample in reading.samples:
            if sample.metric.kind != "counter":
                continue
            series = sample.metric, sample.labels
            before = self._last.get(series, 0.0)
            assert sample.value >= before >= 0, f"{series} fell from {before} to {sample.value}"
            self._last[series] = sample.value
        for part, joules in values(reading, NODE_ENERGY).items():
            assert self._sum(reading, part) == pytest.approx(joules, rel=1e-9, abs=1e-9), part
        parts = set(values(reading, NODE_ENERGY))
        for kind, metric in (("container", CONTAINER), ("stream", STREAM)):
            shown = {(name, *part) for k, name in self._known if k == kind for part in parts}
            assert {(labels[0], *labels[-2:]) for labels in values(reading, metric)} == shown

    def _meet(self, readings: Mapping[str, Reading], present: set[str], now: float) -> None:
        claimed = {(claim.kind, claim.name) for r in readings.values() for claim in r.claims}
        for who in claimed:
            self._left.pop(who, None)
        for who in self._known - claimed:
            owner = "docker" if who[0] == "container" else "ffmpeg"
            is_down = owner in present and owner not in readings
            if not is_down and not self._is_held(who, now):
                self._forget(who)
        self._known |= claimed

    def _is_held(self, who: tuple[str, str], now: float) -> bool:
        kind, name = who
        if kind == "stream":
            return False
        left = self._left.setdefault(who, now)
        of_it = [v for (metric, labels), v in self._last.items() if (metric, labels[0]) == (CONTAINER, name)]
        return now - left < HELD_SECONDS and any(of_it)

    def _forget(self, who: tuple[str, str]) -> None:
        kind, name = who
        metric = CONTAINER if kind == "container" else STREAM
        self._last = {s: v for s, v in self._last.items() if s[0] is not metric or s[1][0] != name}
        self._known.discard(who)
        self._left.pop(who, None)

    def _sum(self, reading: Reading, part: tuple[str, ...]) -> float:
        buckets = sum(values(reading, bucket)[part] for bucket in BUCKETS)
        containers = sum(v for labels, v in values(reading, CONTAINER).items() if labels[1:] == part)
        streams = values(reading, STREAM).items()
        return buckets + containers + sum(v for (_, *its), v in streams if its == ["", *part])


@settings(max_examples=120)
@given(idle=st.sampled_from(["apart", "share"]), sequence=st.lists(beats, min_size=1, max_size=12))
def test_the_shares_always_add_up(idle: Idle, sequence: list[Beat]) -> None:
    """The parts add up to the node's energy in every beat of any sequence, and no name's counter falls."""
    node, world, books = Node(idle), World(), Books()
    for beat in sequence:
        world.read(beat)
        present = {name for name in COLLECTORS if beat.states.get(name) != "gone"}
        reading = node.beat(world.readings, (), present, world.cpu(beat), world.now)
        books.check(reading, world.readings, present, world.now)
