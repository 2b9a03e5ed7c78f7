"""The metrics of the rapl collector."""

from __future__ import annotations

from powerbench_agent.core.model import Metric

_ZONE = ("package", "zone", "path")
POWER = Metric("rapl_power_watts", "gauge", "Mean power of the zone over the last full interval.", _ZONE)
ENERGY = Metric("rapl_energy_joules_total", "counter", "Energy of the zone since the agent started.", _ZONE)
WRAPS = Metric("rapl_wraps_total", "counter", "Number of times the zone's counter wrapped around.", _ZONE)
RESETS = Metric(
    "rapl_resets_total",
    "counter",
    "Number of implausible jumps of the zone's counter; such a jump adds no energy.",
    _ZONE,
)
LIMIT = Metric("rapl_power_limit_watts", "gauge", "Power limit of the zone.", (*_ZONE, "constraint"))
ZONES = Metric(
    "rapl_zones_discovered", "gauge", "Number of zones found, including twins and parts of other zones."
)
AVAILABLE = Metric("rapl_available", "gauge", "1 while RAPL can be read.")
METRICS = (POWER, ENERGY, WRAPS, RESETS, LIMIT, ZONES, AVAILABLE)
