"""The types that collectors and the agent share. No I/O; standard library only.

A collector is a module with three names (`CollectorModule`): `Options`, its configuration; `METRICS`,
everything that it may emit; and `open_collector()`, which looks for the hardware and returns a `Collector` or
raises `Absent`. One that makes claims has a fourth, `SHARES`: the metrics of their shares.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence  # noqa: TC003 - a plug-in may evaluate these hints
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from powerbench_agent.core.identity import UNKNOWN, StreamIdentity

if TYPE_CHECKING:
    from powerbench_agent.core.host import Host

Kind = Literal["gauge", "counter", "unknown"]


class Absent(Exception):  # noqa: N818 - a verdict, not a fault
    """The source is not on this machine, or has gone: not shown, and looked for again every 10 s."""


class ReadFailed(Exception):  # noqa: N818 - a verdict, and the name DESIGN and docs use
    """The source is there and cannot be read now: down, without samples, until a later read succeeds.

    `remedy` says what a person can do about it; empty if nothing can be done. `measures` is False if the
    source has turned out to measure nothing here, so that an estimate may take its place.
    """

    def __init__(self, what: str, remedy: str = "", *, measures: bool = True) -> None:
        super().__init__(what)
        self.remedy = remedy
        self.measures = measures


class IngestRejected(Exception):  # noqa: N818 - a verdict
    """A feed that is refused. `reason` is the label that it is counted under."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A metric family, declared once by the collector that emits it."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    def sample(self, value: float, *labels: str) -> Sample:
        """Return one sample; `labels` in the declared order, "" for a label without a value."""
        if len(labels) != len(self.labels):
            raise TypeError(f"{self.name} takes values for the labels {self.labels}, not {labels}")
        return Sample(self, labels, value)


class Sample(NamedTuple):
    """The value of one series; a label whose value is "" is left out of the page."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


ESTIMATE = "estimate"  # the source of a model's figures, where nothing measures


class Meter(NamedTuple):
    """A joule counter that counts towards the node's sum.

    Meters of one component never overlap: the collector leaves out duplicates and subsets.
    """

    component: str  # "cpu", "dram", "gpu"
    source: str  # the collector that measured it, or ESTIMATE
    key: str  # what is metered, unique in (component, source)
    joules: float  # since the agent's start; never decreases


NO_POWERS: Mapping[Meter, float | None] = MappingProxyType({})


class Use(NamedTuple):
    """How long one process has used an engine of a GPU, so that the GPU's joules can be shared."""

    component: str  # these three name the `Meter`
    source: str
    key: str
    engine: str  # "sm", "encoder", "decoder", "render"
    pid: int  # ANYONE: all processes together, visible or not; no such Use if that is unknown
    seconds: float  # of that engine's time, since the process was first seen; never decreases
    container: str = ""  # id of the container that the process runs in


ANYONE = 0  # never the id of a process
UNTOLD = "any"  # ANYONE's engine, if the driver does not tell the use of one process from another's


PART_LABELS = ("component", "source")  # the last labels of every share: which of the node's joules it is of
SHARE_LABELS = {
    "container": ("container", *PART_LABELS),
    "stream": ("stream", "container", *PART_LABELS),  # without a container: not a view of a container's share
}
SHARE_HELP = "A share by CPU time and GPU use, not a measurement."  # the last sentence of every share's HELP


class Claim(NamedTuple):
    """A container or stream whose share of the joules is shown.

    Its share is computed from its CPU time and from its processes' use of GPUs.
    """

    kind: Literal["container", "stream"]
    name: str
    share: Metric  # what its share is called: a counter with the `SHARE_LABELS` of its kind
    cpu_seconds: float  # since it was first seen; never decreases, but restarts at 0 if it left and came back
    container: str = ""  # id of the container that it is, or in which the stream's processes run
    pids: tuple[int, ...] = ()  # of a stream's processes


class CpuTime(NamedTuple):
    """How busy the machine's CPUs have been so far, in CPU seconds."""

    busy: float
    capacity: float  # busy and idle
    agent: float  # this process's own, part of busy
    container: str = ""  # id of the container that this process runs in


class Trouble(NamedTuple):
    """A part of a source that could not be read, or whose value was refused, while the rest went on.

    Or one that a limit of ours has cut. The scheduler logs a part once while it lasts, and counts every
    reading with a fault, or with a hit of the limit.
    """

    part: str  # what is missing, "frequency" or "gpu 0 power": one of a few, and never text from outside
    error: str  # what happened
    remedy: str = ""  # what a person can do about it; empty if nothing can be done
    limit: str = ""  # the option whose limit has left something out; empty for a fault


class Reading(NamedTuple):
    """The result of one `read()`: complete except for its troubles, or there is an exception instead."""

    samples: Sequence[Sample]
    meters: Sequence[Meter] = ()
    taken: float | None = None  # monotonic seconds of the counters; None: the scheduler's own stamp
    uses: Sequence[Use] = ()
    claims: Sequence[Claim] = ()
    troubles: Sequence[Trouble] = ()
    powers: Mapping[Meter, float | None] = NO_POWERS  # of meters whose mean power is known here; None: a gap


class Collector(Protocol):
    """One source of readings."""

    async def read(self) -> Reading:
        """Return a reading whose gauges cover the time since the last `read`.

        Raises: ReadFailed (a gap until it works again), Absent (the source has gone).
        """

    async def aclose(self) -> None:
        """Release what `open_collector` acquired."""


@runtime_checkable
class Refreshes(Collector, Protocol):
    """A collector so cheap to read that a scrape may ask for its counters as they are now."""

    async def refresh(self) -> Reading:
        """Return the counters as of now and the gauges of the last `read`. Raises: as `Collector.read`."""


class Sender(NamedTuple):
    """Who has connected: both ends of a TCP connection as (address, port), and the pid that it gave."""

    peer: tuple[str, int]
    local: tuple[str, int]
    pid: str = ""  # in the sender's own pid namespace
    connected: float = 0.0  # monotonic seconds


class Feed(Protocol):
    """What takes the bytes that are pushed over one connection."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes, split at any point. Never blocks, never raises."""

    def close(self) -> int:
        """End the connection; return how many reports it carried."""


@runtime_checkable
class Ingests(Collector, Protocol):
    """A collector that is fed by `POST /ingest` instead of reading by itself."""

    def open_feed(
        self, stream: str, sender: Sender | None = None, run: str = "", stated: StreamIdentity = UNKNOWN
    ) -> Feed:
        """Return a feed for the bytes of one connection. Raises: IngestRejected.

        `run`: connections of a stream with the same `run` are one run; with "" each is its own.
        `stated`: what the stream is, according to its feeder.
        """

    def count_rejected(self, reason: str) -> None:
        """Count a connection that was refused before there was a feed."""


@runtime_checkable
class Reconfigures(Collector, Protocol):
    """A collector that accepts new options without losing its counters."""

    def configure(self, options: Any) -> None:
        """Take the options of a reload."""


class CollectorModule(Protocol):
    """What a name in the roster, or an entry point of `powerbench.collectors`, leads to."""

    Options: type[Any]  # a subclass of CollectorOptions
    METRICS: Sequence[Metric]
    open_collector: Callable[[Any, Host], Awaitable[Collector]]


@dataclass(frozen=True, slots=True)
class State:
    """What the agent knows about one present collector; `reading` is None while it is down."""

    reading: Reading | None
    time: float  # Unix seconds of the last attempt
    monotonic: float  # seconds: of the counters if up, else of the attempt
    duration: float  # seconds of the last read
    failures: int
    last_success: float | None  # Unix seconds
    error: str = ""
    faults: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))  # so far, by part
    limit_hits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))  # so far, by option

    @property
    def up(self) -> bool:
        """Whether the last read gave a reading."""
        return self.reading is not None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The latest state of every collector that is present, and why the others are not."""

    time: float
    states: Mapping[str, State] = field(default_factory=lambda: MappingProxyType({}))
    absent: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
