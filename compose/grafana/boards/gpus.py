"""The rows of GPUs: NVIDIA through NVML, AMD and Intel through sysfs, and NVIDIA again through DCGM."""

from __future__ import annotations

from boards.layout import Row
from boards.panels import THIRD, bars, graph
from boards.queries import SLOW_STEP, Query, gained, of


def nvidia() -> Row:
    """Return the row of NVIDIA GPUs as the agent sees them."""
    named, missing = "{{host}} GPU {{gpu}}", "no NVIDIA GPU on these hosts"
    encoders = {
        "encoder": "nvidia_gpu_encoder_utilization_percent",
        "decoder": "nvidia_gpu_decoder_utilization_percent",
    }
    return Row(
        "NVIDIA GPUs",
        [
            graph(
                "NVIDIA: power",
                "Power of each board and its enforced limit, measured by NVML.",
                "watt",
                Query(of("nvidia_gpu_power_draw_watts"), named),
                Query(of("nvidia_gpu_power_limit_watts"), f"{named} limit"),
                size=THIRD,
                nothing=missing,
            ),
            graph(
                "NVIDIA: use",
                "Share of the driver's last sampling window in which a kernel ran. Measured.",
                "percent",
                Query(of("nvidia_gpu_utilization_percent"), named),
                size=THIRD,
                most=100,
                nothing=missing,
            ),
            graph(
                "NVIDIA: encoders and decoders",
                "Use of NVENC and NVDEC, the engines that transcode. Measured.",
                "percent",
                *(Query(of(metric), f"{named} {engine}") for engine, metric in encoders.items()),
                size=THIRD,
                most=100,
                nothing=missing,
            ),
            graph(
                "NVIDIA: encoder sessions",
                "Open sessions of NVENC, read every 10 s. Measured.",
                "none",
                Query(of("nvidia_gpu_encoder_sessions"), named),
                size=THIRD,
                nothing=missing,
            ),
            graph(
                "NVIDIA: memory",
                "Memory that is allocated or reserved, and the total. Measured.",
                "bytes",
                Query(of("nvidia_gpu_memory_used_bytes"), f"{named} in use"),
                Query(of("nvidia_gpu_memory_total_bytes"), f"{named} total"),
                size=THIRD,
                nothing=missing,
            ),
            graph(
                "NVIDIA: temperature",
                "Temperature of the die. Measured.",
                "celsius",
                Query(of("nvidia_gpu_temperature_celsius"), named),
                size=THIRD,
                nothing=missing,
            ),
            graph(
                "NVIDIA: throttling",
                "1 while the driver lowers the clocks, by reason. Figures from such times are hard to "
                "compare.",
                "none",
                Query(of("nvidia_gpu_throttled"), f"{named} {{{{reason}}}}"),
                size=(12, 7),
                most=1,
                nothing="never, or no NVIDIA GPU on these hosts",
            ),
            bars(
                "NVIDIA: Xid errors",
                "Xid errors over the selected time range, by the driver's number. 0 is good.",
                "none",
                Query(gained("nvidia_gpu_xid_errors_total"), f"{named} Xid {{{{xid}}}}"),
                size=(12, 7),
                nothing="none",
            ),
        ],
    )


def others() -> Row:
    """Return the row of AMD and Intel GPUs as the agent sees them."""
    named, missing = "{{host}} {{vendor}} {{gpu}}", "no AMD or Intel GPU on these hosts"
    return Row(
        "AMD and Intel GPUs",
        [
            graph(
                "AMD and Intel: power",
                "Power of each GPU, measured: AMD's own sensor, or Intel's energy counter over the last "
                "interval. The power of a GPU inside a CPU is also part of the CPU's.",
                "watt",
                Query(of("drm_gpu_power_watts"), named),
                nothing=missing,
            ),
            graph(
                "AMD: use",
                "Use of the graphics and compute engines, and of the video engine (VCN). Measured; not "
                "available from Intel's drivers.",
                "percent",
                Query(of("drm_gpu_busy_percent"), named),
                Query(of("drm_gpu_encoder_busy_percent"), f"{named} video engine"),
                most=100,
                nothing="no AMD GPU on these hosts",
            ),
            graph(
                "AMD and Intel: temperature",
                "Temperature of each GPU: edge if available, otherwise junction or package. Measured.",
                "celsius",
                Query(of("drm_gpu_temperature_celsius"), named),
                nothing=missing,
            ),
            graph(
                "AMD: memory",
                "The GPU's own memory: in use, and the total. Measured; not available from Intel's drivers.",
                "bytes",
                Query(of("drm_gpu_memory_used_bytes"), f"{named} in use"),
                Query(of("drm_gpu_memory_total_bytes"), f"{named} total"),
                nothing="no AMD GPU on these hosts",
            ),
        ],
    )


def dcgm() -> Row:
    """Return the row of NVIDIA GPUs as DCGM's exporter sees them."""
    named, missing = "{{host}} GPU {{gpu}}", "dcgm-exporter is not scraped"
    return Row(
        "NVIDIA GPUs through DCGM, if it is scraped",
        [
            graph(
                "DCGM: power",
                "Power of each board, measured by DCGM: these are the same boards as under NVIDIA GPUs, so "
                "never add the two up.",
                "watt",
                Query(of("DCGM_FI_DEV_POWER_USAGE"), named),
                step=SLOW_STEP,
                nothing=missing,
            ),
            graph(
                "DCGM: use and encoders",
                "Use of each GPU, and of its encoders. Measured by DCGM.",
                "percent",
                Query(of("DCGM_FI_DEV_GPU_UTIL"), named),
                Query(of("DCGM_FI_DEV_ENC_UTIL"), f"{named} encoder"),
                step=SLOW_STEP,
                most=100,
                nothing=missing,
            ),
            graph(
                "DCGM: temperature",
                "Temperature of each GPU. Measured by DCGM.",
                "celsius",
                Query(of("DCGM_FI_DEV_GPU_TEMP"), named),
                step=SLOW_STEP,
                nothing=missing,
            ),
            graph(
                "DCGM: memory",
                "Memory in use on each GPU. Measured by DCGM, which counts in MiB.",
                "bytes",
                Query(f"1048576 * {of('DCGM_FI_DEV_FB_USED')}", named),
                step=SLOW_STEP,
                nothing=missing,
            ),
        ],
        closed=True,
    )
