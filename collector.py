"""The stable import of collectors: `from powerbench_agent.collector import Metric, Reading, …`.

Everything that a collector of another distribution needs, in one module whose names stay. Modules further
inside may move from one version to the next. docs/collectors.md shows how to use it.
"""

from powerbench_agent.core.counters import Counter, Integral, Rate
from powerbench_agent.core.host import Clock, Host
from powerbench_agent.core.model import (
    ANYONE,
    ESTIMATE,
    PART_LABELS,
    SHARE_HELP,
    SHARE_LABELS,
    UNTOLD,
    Absent,
    Claim,
    Collector,
    CollectorModule,
    Feed,
    IngestRejected,
    Ingests,
    Meter,
    Metric,
    ReadFailed,
    Reading,
    Reconfigures,
    Refreshes,
    Sample,
    Sender,
    Trouble,
    Use,
)
from powerbench_agent.core.options import CollectorOptions, Exclude, Listen, Network, Seconds
from powerbench_agent.core.parts import Parts
from powerbench_agent.core.worker import Worker

__all__ = [
    "ANYONE",
    "ESTIMATE",
    "PART_LABELS",
    "SHARE_HELP",
    "SHARE_LABELS",
    "UNTOLD",
    "Absent",
    "Claim",
    "Clock",
    "Collector",
    "CollectorModule",
    "CollectorOptions",
    "Counter",
    "Exclude",
    "Feed",
    "Host",
    "IngestRejected",
    "Ingests",
    "Integral",
    "Listen",
    "Meter",
    "Metric",
    "Network",
    "Parts",
    "Rate",
    "ReadFailed",
    "Reading",
    "Reconfigures",
    "Refreshes",
    "Sample",
    "Seconds",
    "Sender",
    "Trouble",
    "Use",
    "Worker",
]
