"""The metrics of the NVML collector."""

from __future__ import annotations

from powerbench_agent.core.model import Metric

_GPU = ("gpu", "uuid")
POWER = Metric("nvidia_gpu_power_draw_watts", "gauge", "Power of the whole board.", _GPU)
LIMIT = Metric("nvidia_gpu_power_limit_watts", "gauge", "Power limit in force.", _GPU)
ENERGY = Metric(
    "nvidia_gpu_energy_joules_total",
    "counter",
    "Energy since the agent started, of what nvidia_gpu_info's covers says: the GPU's whole board, or its "
    "module with the CPU.",
    _GPU,
)
TEMPERATURE = Metric("nvidia_gpu_temperature_celsius", "gauge", "Temperature of the die.", _GPU)
UTILIZATION = Metric(
    "nvidia_gpu_utilization_percent",
    "gauge",
    "Percentage of the driver's last sample period during which a kernel was running.",
    _GPU,
)
MEMORY_UTILIZATION = Metric(
    "nvidia_gpu_memory_utilization_percent",
    "gauge",
    "Percentage of the driver's last sample period during which memory was read or written.",
    _GPU,
)
ENCODER = Metric("nvidia_gpu_encoder_utilization_percent", "gauge", "Utilisation of NVENC.", _GPU)
DECODER = Metric("nvidia_gpu_decoder_utilization_percent", "gauge", "Utilisation of NVDEC.", _GPU)
MEMORY_USED = Metric("nvidia_gpu_memory_used_bytes", "gauge", "GPU memory allocated or reserved.", _GPU)
MEMORY_TOTAL = Metric("nvidia_gpu_memory_total_bytes", "gauge", "GPU memory installed.", _GPU)
CLOCK = Metric(
    "nvidia_gpu_clock_hertz",
    "gauge",
    "Clock frequency: graphics, sm, memory, video. Updated every 10 s.",
    (*_GPU, "clock"),
)
SESSIONS = Metric("nvidia_gpu_encoder_sessions", "gauge", "Open NVENC sessions. Updated every 10 s.", _GPU)
SESSION_FPS = Metric(
    "nvidia_gpu_encoder_session_fps",
    "gauge",
    "Frames per second of one NVENC session, with the process that opened it. Updated every 10 s.",
    (*_GPU, "pid", "session", "codec", "resolution"),
)
THROTTLED = Metric(
    "nvidia_gpu_throttled",
    "gauge",
    "1 while clocks are held down for this reason. Updated every 10 s.",
    (*_GPU, "reason"),
)
ECC = Metric(
    "nvidia_gpu_ecc_errors_total",
    "counter",
    "ECC errors since the driver was loaded: corrected, uncorrected. Updated every 10 s.",
    (*_GPU, "kind"),
)
XIDS = Metric(
    "nvidia_gpu_xid_errors_total",
    "counter",
    "Xid errors since the agent started. Updated every 10 s.",
    (*_GPU, "xid"),
)
INFO = Metric(
    "nvidia_gpu_info",
    "gauge",
    "Always 1; energy is counter (the GPU's own) or integrated (from power readings); covers is gpu, or "
    "module if the counter includes a CPU (Grace): then component gpu is integrated from power.",
    (*_GPU, "name", "driver", "pci_bus_id", "energy", "covers"),
)
LOST = Metric(
    "nvidia_gpu_lost",
    "gauge",
    "1 for a GPU that can no longer be opened, 0 for one in use.",
    (*_GPU, "pci_bus_id"),
)
ASLEEP = Metric(
    "nvidia_gpu_asleep",
    "gauge",
    "1 while runtime power management has suspended the GPU; it is not woken, so other series pause.",
    ("pci_bus_id",),
)
ERRORS = Metric(
    "nvidia_gpu_read_errors_total",
    "counter",
    "Queries that the driver did not answer, by NVML's name for the error; implausible is ours.",
    (*_GPU, "call", "error"),
)
METRICS = (
    *(POWER, LIMIT, ENERGY, TEMPERATURE, UTILIZATION, MEMORY_UTILIZATION, ENCODER, DECODER),
    *(MEMORY_USED, MEMORY_TOTAL, CLOCK, SESSIONS, SESSION_FPS, THROTTLED, ECC, XIDS),
    *(INFO, LOST, ASLEEP, ERRORS),
)
