"""What the NVML collector may emit."""

from __future__ import annotations

from powerbench_agent.core.model import Metric

_GPU = ("gpu", "uuid")
POWER = Metric("nvidia_gpu_power_draw_watts", "gauge", "Power of the whole board.", _GPU)
LIMIT = Metric("nvidia_gpu_power_limit_watts", "gauge", "Power limit that is enforced.", _GPU)
ENERGY = Metric(
    "nvidia_gpu_energy_joules_total",
    "counter",
    "Energy of the whole board since the agent started; nvidia_gpu_info says whether counted or integrated.",
    _GPU,
)
TEMPERATURE = Metric("nvidia_gpu_temperature_celsius", "gauge", "Temperature of the die.", _GPU)
UTILIZATION = Metric(
    "nvidia_gpu_utilization_percent",
    "gauge",
    "Share of the driver's last window with a kernel running.",
    _GPU,
)
MEMORY_UTILIZATION = Metric(
    "nvidia_gpu_memory_utilization_percent",
    "gauge",
    "Share of the driver's last window with memory being read or written.",
    _GPU,
)
ENCODER = Metric("nvidia_gpu_encoder_utilization_percent", "gauge", "Utilisation of NVENC.", _GPU)
DECODER = Metric("nvidia_gpu_decoder_utilization_percent", "gauge", "Utilisation of NVDEC.", _GPU)
MEMORY_USED = Metric("nvidia_gpu_memory_used_bytes", "gauge", "Memory that is allocated or reserved.", _GPU)
MEMORY_TOTAL = Metric("nvidia_gpu_memory_total_bytes", "gauge", "Memory.", _GPU)
CLOCK = Metric(
    "nvidia_gpu_clock_hertz", "gauge", "Clock: graphics, sm, memory, video. Every 10 s.", (*_GPU, "clock")
)
SESSIONS = Metric("nvidia_gpu_encoder_sessions", "gauge", "NVENC sessions that are open. Every 10 s.", _GPU)
SESSION_FPS = Metric(
    "nvidia_gpu_encoder_session_fps",
    "gauge",
    "Frames a second of one NVENC session, by the process that has it. Every 10 s.",
    (*_GPU, "pid", "session", "codec", "resolution"),
)
THROTTLED = Metric(
    "nvidia_gpu_throttled",
    "gauge",
    "1 while clocks are held down for this reason. Every 10 s.",
    (*_GPU, "reason"),
)
ECC = Metric(
    "nvidia_gpu_ecc_errors_total",
    "counter",
    "ECC errors since the driver was loaded: corrected, uncorrected. Every 10 s.",
    (*_GPU, "kind"),
)
XIDS = Metric(
    "nvidia_gpu_xid_errors_total",
    "counter",
    "Xid errors since the agent started. Every 10 s.",
    (*_GPU, "xid"),
)
INFO = Metric(
    "nvidia_gpu_info",
    "gauge",
    "1; energy says whether joules are the GPU's own counter or power integrated from beat to beat.",
    (*_GPU, "name", "driver", "pci_bus_id", "energy"),
)
LOST = Metric(
    "nvidia_gpu_lost",
    "gauge",
    "1 for a GPU that cannot be opened any more, 0 for one in use.",
    (*_GPU, "pci_bus_id"),
)
ASLEEP = Metric(
    "nvidia_gpu_asleep",
    "gauge",
    "1 while runtime power management has the GPU asleep; it is not woken, so nothing else is known.",
    ("pci_bus_id",),
)
ERRORS = Metric(
    "nvidia_gpu_read_errors_total",
    "counter",
    "Questions that the driver did not answer, by NVML's name of the error.",
    (*_GPU, "call", "error"),
)
METRICS = (
    *(POWER, LIMIT, ENERGY, TEMPERATURE, UTILIZATION, MEMORY_UTILIZATION, ENCODER, DECODER),
    *(MEMORY_USED, MEMORY_TOTAL, CLOCK, SESSIONS, SESSION_FPS, THROTTLED, ECC, XIDS),
    *(INFO, LOST, ASLEEP, ERRORS),
)
