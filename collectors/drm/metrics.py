"""The metrics of the drm collector."""

from __future__ import annotations

from powerbench_agent.core.model import Metric

_GPU = ("gpu", "vendor", "pci_bus_id")
POWER = Metric(
    "drm_gpu_power_watts",
    "gauge",
    "Power. AMD: its sensor's value, usually a mean; Intel: the mean over the last interval.",
    _GPU,
)
POWER_LIMIT = Metric(
    "drm_gpu_power_limit_watts",
    "gauge",
    "The power limit in force (AMD: power1_cap; Intel: power1_max); absent if there is none.",
    _GPU,
)
ENERGY = Metric(
    "drm_gpu_energy_joules_total",
    "counter",
    "Energy since the agent started. Intel: the GPU's own counter; AMD: power integrated over time.",
    _GPU,
)
TEMPERATURE = Metric(
    "drm_gpu_temperature_celsius", "gauge", "Temperature: edge, or else junction or package.", _GPU
)
BUSY = Metric("drm_gpu_busy_percent", "gauge", "Utilisation of the graphics and compute engines (AMD).", _GPU)
ENCODER_BUSY = Metric(
    "drm_gpu_encoder_busy_percent", "gauge", "Utilisation of the video engine, VCN (AMD).", _GPU
)
MEMORY_USED = Metric("drm_gpu_memory_used_bytes", "gauge", "Dedicated memory in use (AMD).", _GPU)
MEMORY_TOTAL = Metric("drm_gpu_memory_total_bytes", "gauge", "Dedicated memory installed (AMD).", _GPU)
INFO = Metric(
    "drm_gpu_info",
    "gauge",
    "Always 1; kind is discrete or integrated (not in the node's sum), energy is counter or integrated.",
    (*_GPU, "driver", "kind", "energy"),
)
ASLEEP = Metric(
    "drm_gpu_asleep",
    "gauge",
    "1 while runtime power management has suspended the GPU; it is not woken, so other series pause.",
    _GPU,
)
RESETS = Metric(
    "drm_gpu_energy_resets_total",
    "counter",
    "Number of implausible jumps of the GPU's energy counter; such a jump adds no energy.",
    _GPU,
)
ERRORS = Metric(
    "drm_gpu_read_errors_total",
    "counter",
    "Failed reads of a sensor, by reason.",
    (*_GPU, "sensor", "reason"),
)
METRICS = (
    *(POWER, POWER_LIMIT, ENERGY, TEMPERATURE, BUSY, ENCODER_BUSY, MEMORY_USED, MEMORY_TOTAL),
    *(INFO, ASLEEP, RESETS, ERRORS),
)
