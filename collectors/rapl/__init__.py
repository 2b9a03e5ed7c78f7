"""CPU and DRAM energy from RAPL, Intel and AMD, through the kernel's powercap interface."""

from powerbench_agent.collectors.rapl.collector import RESCAN_SECONDS, Options, Rapl, open_collector
from powerbench_agent.collectors.rapl.metrics import (
    AVAILABLE,
    ENERGY,
    LIMIT,
    METRICS,
    POWER,
    RESETS,
    WRAPS,
    ZONES,
)
from powerbench_agent.core.model import ReadFailed

__all__ = [
    "AVAILABLE",
    "ENERGY",
    "LIMIT",
    "METRICS",
    "POWER",
    "RESCAN_SECONDS",
    "RESETS",
    "WRAPS",
    "ZONES",
    "Options",
    "Rapl",
    "ReadFailed",
    "open_collector",
]
