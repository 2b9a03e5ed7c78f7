"""The words that collectors and the agent share: types alone, standard library only.

A collector is a module with three names (`CollectorModule`): `Options`, its configuration;
`METRICS`, everything it may emit; and `open_collector()`, which touches the hardware once and
returns a `Collector` or says `Absent`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence  # noqa: TC003 - a plug-in may look at these hints
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from powerbench_agent.core.host import Host

Kind = Literal["gauge", "counter", "unknown"]


class Absent(Exception):  # noqa: N818 - a verdict, not a fault
    """The source is not on this machine (or has gone): not scheduled, looked for again now and then."""


class ReadFailed(Exception):  # noqa: N818 - a verdict, and the name DESIGN and docs use
    """The source is there and cannot be read now: up 0, no samples, until a later beat succeeds.

    `remedy` says what a person can do about it; empty where nothing can be done.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


class IngestRejected(Exception):  # noqa: N818 - a verdict
    """A feed that is not taken in. `reason` is the label it is counted under."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A metric family as it is declared: once, by the collector that emits it."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    def sample(self, value: float, *labels: str) -> Sample:
        """Return one sample; `labels` in the declared order, "" for one that has no value here."""
        if len(labels) != len(self.labels):
            raise TypeError(f"{self.name} has the labels {self.labels}, not {labels}")
        return Sample(self, labels, value)


class Sample(NamedTuple):
    """One series' value; a label whose value is "" is left out of the page."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


ESTIMATE = "estimate"  # the source of a model's figures, where nothing measures


class Meter(NamedTuple):
    """A joule counter that counts towards the node's sum.

    Meters of one component never overlap: whoever emits them leaves out twins and subsets.
    """

    component: str  # "cpu", "dram", "gpu"
    source: str  # the collector that measured it, or "estimate"
    key: str  # what is metered, unique in (component, source)
    joules: float  # since the agent's start; never decreases


class Use(NamedTuple):
    """What one process has had of a GPU's engine, so that its joules can be shared."""

    component: str  # these three name the `Meter`
    source: str
    key: str
    engine: str  # "sm", "encoder", "decoder", "render": what of it was used
    pid: int  # ANYONE: all processes together, seen or not; left out where nobody knows
    seconds: float  # of that engine's time, since the process was first seen; never decreases
    container: str = ""  # the id of the container that the process lies in


ANYONE = 0  # no process's id
UNTOLD = "any"  # ANYONE's engine, where the driver does not tell one process's use from another's


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
    """What the machine's CPUs have done so far, in CPU seconds."""

    busy: float
    capacity: float  # busy and idle
    agent: float  # this process's own, part of busy
    container: str = ""  # the id of the container that this process lies in


class Reading(NamedTuple):
    """What one `read()` found: all of it, or an exception."""

    samples: Sequence[Sample]
    meters: Sequence[Meter] = ()
    taken: float | None = None  # monotonic seconds of the counters; None: the scheduler's own stamp
    uses: Sequence[Use] = ()
    claims: Sequence[Claim] = ()


class Collector(Protocol):
    """One source of readings."""

    async def read(self) -> Reading:
        """Return the beat's reading, gauges over the time since the last beat.

        Raises: ReadFailed (a gap until it works again), Absent (the source has gone).
        """

    async def aclose(self) -> None:
        """Let go of whatever `open_collector` took."""


@runtime_checkable
class Refreshes(Collector, Protocol):
    """A collector so cheap to read that a scrape may ask it for its counters as they are now."""

    async def refresh(self) -> Reading:
        """Return counters of this moment and the last beat's gauges. Raises: as `Collector.read`."""


class Sender(NamedTuple):
    """Who has connected: the two ends of a TCP connection as (address, port), and what it said of itself."""

    peer: tuple[str, int]
    local: tuple[str, int]
    pid: str = ""  # in the sender's own pid namespace
    connected: float = 0.0  # monotonic seconds


class Feed(Protocol):
    """One connection's worth of pushed bytes."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere. Never blocks, never raises."""

    def close(self) -> int:
        """Take the end of the connection; return how many reports it held."""


@runtime_checkable
class Ingests(Collector, Protocol):
    """A collector that is fed by `POST /ingest` instead of reading by itself."""

    def open_feed(self, stream: str, sender: Sender | None = None, run: str = "") -> Feed:
        """Return where the bytes of one connection go. Raises: IngestRejected.

        `run`: connections of a stream that give the same one are one run, "" for a run of its own.
        """

    def count_rejected(self, reason: str) -> None:
        """Count a connection that never got as far as a feed."""


@runtime_checkable
class Reconfigures(Collector, Protocol):
    """A collector that can take new options without losing its counters."""

    def configure(self, options: Any) -> None:
        """Take the options of a reload."""


class CollectorModule(Protocol):
    """What a name in the roster, or an entry point of `powerbench.collectors`, leads to."""

    Options: type[Any]  # a subclass of agent.config.CollectorOptions
    METRICS: Sequence[Metric]
    open_collector: Callable[[Any, Host], Awaitable[Collector]]


@dataclass(frozen=True, slots=True)
class State:
    """What the agent knows of one present collector; `reading` is None while it is down."""

    reading: Reading | None
    time: float  # Unix seconds of the last attempt
    monotonic: float  # of the counters, when up; else of the attempt
    duration: float  # seconds of the last read
    failures: int
    last_success: float | None  # Unix seconds
    error: str = ""

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
