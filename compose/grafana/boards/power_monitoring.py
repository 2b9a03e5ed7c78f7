"""What machines draw, by component, together with what they do: the first dashboard to open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boards import cadvisor, gpus
from boards.layout import Row, board, choice, matching
from boards.panels import BAD, THIRD, WARN, bars, graph, stat, table
from boards.queries import (
    COMPONENT,
    CONTAINER,
    ESTIMATED,
    MEASURED,
    SLOW_STEP,
    Query,
    apart,
    gained,
    of,
    once,
    rate,
)

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard

    from boards.panels import Panel

NODE = "powerbench_node_energy_joules_total"
NODE_WATTS = "powerbench_node_power_watts"
GPU = 'component="gpu"'
LONG_TERM = 'constraint="long_term"'
NO_ESTIMATE = "no estimate"
PARTS = ("component", "source")  # of the node's energy


def power() -> Row:
    """Return the row of the machines' power and energy."""
    return Row(
        "Power and energy",
        [
            stat(
                "Measured power",
                "Current total power of the selected hosts and components as measured by RAPL and GPUs: "
                "the mean of the agent's last interval (1 s), without estimates.",
                "watt",
                Query(f"sum({once(of(NODE_WATTS, COMPONENT, MEASURED), *PARTS)})", "measured"),
                decimals=1,
            ),
            stat(
                "Estimated power",
                "Current power of hosts whose CPUs nothing measures: a linear model of CPU time, not a "
                "measurement. Never added to measured power.",
                "watt",
                Query(f"sum({once(of(NODE_WATTS, COMPONENT, ESTIMATED), *PARTS)})", "estimate"),
                decimals=1,
                base="purple",
                nothing=NO_ESTIMATE,
            ),
            stat(
                "Measured energy",
                "Energy of the selected hosts and components over the selected time range, measured.",
                "watth",
                Query(f"sum({once(gained(NODE, COMPONENT, MEASURED), *PARTS)}) / 3600", "measured"),
                decimals=2,
            ),
            stat(
                "Estimated energy",
                "Energy of hosts whose CPUs nothing measures, over the selected time range: an estimate.",
                "watth",
                Query(f"sum({once(gained(NODE, COMPONENT, ESTIMATED), *PARTS)}) / 3600", "estimate"),
                decimals=2,
                base="purple",
                nothing=NO_ESTIMATE,
            ),
            stat(
                "GPU power",
                "Current total power of the discrete GPUs of the selected hosts, measured.",
                "watt",
                Query(f"sum({once(of(NODE_WATTS, GPU), *PARTS)})", "measured"),
                decimals=1,
                nothing="no GPU",
            ),
            stat(
                "CPU use",
                "Share of CPU time of the selected hosts that was not idle. Measured.",
                "percent",
                Query(f"100 * (1 - sum({_idle()}) / sum({_every()}))", "busy"),
                steps=((80, WARN), (95, BAD)),
                decimals=1,
            ),
            graph(
                "Power by component",
                "Mean power of each component, from its energy counter. Components do not overlap. The "
                "brackets name the source: rapl, nvml and drm are measured, estimate is a model's figure.",
                "watt",
                Query(
                    once(rate(NODE, COMPONENT), *PARTS),
                    "{{host}} {{component}} ({{source}})",
                ),
                size=(12, 9),
            ),
            graph(
                "Power of CPU packages and memory",
                "Power of each RAPL zone, mean over a second, measured. Zones overlap (psys contains "
                "packages, a package contains its cores), so never add them up. A package's limit is "
                "what its firmware keeps it to over time; not every processor has one.",
                "watt",
                Query(of("rapl_power_watts"), "{{host}} {{zone}} {{package}} ({{path}})"),
                Query(
                    once(of("rapl_power_limit_watts", 'zone="package"', LONG_TERM), "package"),
                    "{{host}} package {{package}} limit",
                ),
                size=(12, 9),
                nothing="no RAPL on these hosts",
            ),
            _energy(),
            _shares("What used the measured energy", "Measured power", MEASURED, "nothing is measured"),
            _shares(
                "What used the estimated energy",
                "Power of hosts whose CPUs nothing measures, an estimate",
                ESTIMATED,
                NO_ESTIMATE,
            ),
        ],
    )


def _energy() -> Panel:
    return table(
        "Energy and mean power by component",
        "Energy over the selected time range, and current mean power. One row for each source: with the "
        "source estimate, the figures come from a model.",
        {
            "energy": (f"{once(gained(NODE, COMPONENT), *PARTS)} / 3600", "watth"),
            "power": (once(rate(NODE, COMPONENT), *PARTS), "watt"),
        },
        {"host": "host", "component": "component", "source": "source"},
        sort_by="energy",
        size=THIRD,
    )


def _shares(title: str, what: str, source: str, nothing: str) -> Panel:
    def part(bucket: str, *labels: str, only: str = "") -> str:
        matchers = (COMPONENT, source, only) if only else (COMPONENT, source)
        return f"sum({once(rate(f'{bucket}_energy_joules_total', *matchers), *labels, *PARTS)})"

    outside = 'container=""'  # a stream within a container is a view of that container's energy
    return graph(
        title,
        f"{what} of all selected hosts by what used it: shares by CPU time and GPU use, not individual "
        "measurements. The parts add up to the whole. Streams in containers count as containers.",
        "watt",
        Query(part("powerbench_idle"), "idle"),
        Query(part("docker_container", "container"), "containers"),
        Query(part("ffmpeg_stream", "stream", "container", only=outside), "streams outside containers"),
        Query(part("powerbench_agent"), "the agent"),
        Query(part("powerbench_departed"), "departed"),
        Query(part("powerbench_unattributed"), "unattributed"),
        size=THIRD,
        stacked=True,
        nothing=nothing,
    )


def _idle() -> str:
    return once(rate("host_cpu_seconds_total", 'mode=~"idle|iowait"'), "mode")


def _every() -> str:
    return once(rate("host_cpu_seconds_total"), "mode")


def processors() -> Row:
    """Return the row of CPU and memory, as the agent sees them."""
    return Row(
        "CPU and memory",
        [
            graph(
                "CPU use by host",
                "Share of CPU time that was not idle, all CPUs of a host together. Measured.",
                "percent",
                Query(
                    f"100 * (1 - sum by (host) ({_idle()}) / sum by (host) ({_every()}))",
                    "{{host}}",
                ),
                most=100,
                size=THIRD,
            ),
            graph(
                "Memory",
                "Memory that is not available to programs, and the total. Measured.",
                "bytes",
                Query(
                    f"{of('host_memory_total_bytes')} - {of('host_memory_available_bytes')}",
                    "{{host}} in use",
                ),
                Query(of("host_memory_total_bytes"), "{{host}} total"),
                size=THIRD,
            ),
            graph(
                "Load",
                "Load average over one minute. Measured.",
                "none",
                Query(of("host_load1"), "{{host}}"),
                size=THIRD,
            ),
            graph(
                "CPU frequency",
                "Current frequency of the CPUs of a host: slowest, mean and fastest. Measured.",
                "hertz",
                Query(of("host_cpu_frequency_hertz"), "{{host}} {{stat}}"),
                nothing="no cpufreq on these hosts",
            ),
            graph(
                "Temperatures",
                "The hottest sensor of each chip. Measured.",
                "celsius",
                Query(f"max by (host, chip) ({of('host_temperature_celsius')})", "{{host}} {{chip}}"),
                nothing="no sensor on these hosts",
            ),
        ],
    )


def devices() -> Row:
    """Return the row of disks and network, from node_exporter."""
    card = 'device!~"lo|veth.*|ve-.*|docker.*|br-.*|ifb.*"'
    disk = 'device!~"loop.*|ram.*|zram.*|fd.*|sr.*"'
    mount = 'fstype!~"tmpfs|ramfs|overlay|squashfs|devtmpfs|fuse.*"'
    missing = "node_exporter is not scraped"
    return Row(
        "Network and disk (node_exporter)",
        [
            graph(
                "Network",
                "Bits per second that each interface receives and transmits. Measured by node_exporter; "
                "loopback and the interfaces of containers are left out.",
                "bps",
                Query(
                    f"8 * {rate('node_network_receive_bytes_total', card)}", "{{host}} {{device}} received"
                ),
                Query(
                    f"8 * {rate('node_network_transmit_bytes_total', card)}",
                    "{{host}} {{device}} transmitted",
                ),
                step=SLOW_STEP,
                nothing=missing,
            ),
            graph(
                "Disk throughput",
                "Bytes per second read from and written to each disk. Measured by node_exporter.",
                "Bps",
                Query(rate("node_disk_read_bytes_total", disk), "{{host}} {{device}} read"),
                Query(rate("node_disk_written_bytes_total", disk), "{{host}} {{device}} written"),
                step=SLOW_STEP,
                nothing=missing,
            ),
            graph(
                "Disk use",
                "Share of time during which a disk was busy. Measured by node_exporter.",
                "percentunit",
                Query(rate("node_disk_io_time_seconds_total", disk), "{{host}} {{device}}"),
                most=1,
                step=SLOW_STEP,
                nothing=missing,
            ),
            bars(
                "File systems",
                "Share of each file system that is in use. Measured by node_exporter.",
                "percent",
                Query(
                    f"100 * (1 - {of('node_filesystem_avail_bytes', mount)} / "
                    f"{of('node_filesystem_size_bytes', mount)})",
                    "{{host}} {{mountpoint}}",
                ),
                steps=((80, WARN), (95, BAD)),
                decimals=0,
                nothing=missing,
            ),
        ],
    )


def containers() -> Row:
    """Return the row of containers, as the agent sees them."""
    shares = rate("docker_container_energy_joules_total", COMPONENT, CONTAINER, "SOURCE")
    missing = "no container engine on these hosts"
    traffic = {
        "received": "docker_container_network_receive_bytes_total",
        "transmitted": "docker_container_network_transmit_bytes_total",
    }
    blocks = {
        "read": "docker_container_block_read_bytes_total",
        "written": "docker_container_block_written_bytes_total",
    }
    named = "{{host}} {{container}}"
    return Row(
        "Containers",
        [
            graph(
                "Power of containers",
                "Each container's share of the host's power, attributed by CPU time and GPU use, not "
                "measured itself. Labelled estimate if the host's power is an estimate.",
                "watt",
                *apart(f"sum by (host, container) ({once(shares, 'container', *PARTS)})", named),
                step=SLOW_STEP,
                nothing=missing,
            ),
            graph(
                "CPU of containers",
                "CPU of each container; 100 % is one core. Measured.",
                "percent",
                Query(of("docker_container_cpu_percent", CONTAINER), named),
                step=SLOW_STEP,
                nothing=missing,
            ),
            graph(
                "Memory of containers",
                "Memory of each container, without the page cache that would be dropped first. Measured.",
                "bytes",
                Query(of("docker_container_memory_bytes", CONTAINER), named),
                size=THIRD,
                step=SLOW_STEP,
                nothing=missing,
            ),
            graph(
                "Network of containers",
                "Bits per second that each container receives and transmits. Measured.",
                "bps",
                *(
                    Query(f"8 * {rate(metric, CONTAINER)}", f"{named} {way}")
                    for way, metric in traffic.items()
                ),
                size=THIRD,
                step=SLOW_STEP,
                nothing="no container with its own network",
            ),
            graph(
                "Block I/O of containers",
                "Bytes per second that each container reads from and writes to devices. Measured.",
                "Bps",
                *(Query(rate(metric, CONTAINER), f"{named} {way}") for way, metric in blocks.items()),
                size=THIRD,
                step=SLOW_STEP,
                nothing=missing,
            ),
            graph(
                "Engine and containers, CPU",
                "CPU of dockerd, containerd and podman, and of all containers; 100 % is one core. Measured.",
                "percent",
                Query(of("docker_engine_cpu_percent"), "{{host}} engine"),
                Query(of("docker_containers_total_cpu_percent"), "{{host}} all containers"),
                step=SLOW_STEP,
                nothing=missing,
            ),
            graph(
                "Containers by state",
                "Number of containers, by state. Measured.",
                "none",
                Query(of("docker_containers"), "{{host}} {{state}}"),
                step=SLOW_STEP,
                nothing=missing,
            ),
        ],
    )


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    return board(
        "power-monitoring",
        "Power monitoring",
        "Power and energy of hosts by component, with CPU, memory, network, disks, containers and GPUs. "
        "Measured and estimated figures are never added up.",
        [
            power(),
            processors(),
            gpus.nvidia(),
            gpus.others(),
            containers(),
            devices(),
            gpus.dcgm(),
            cadvisor.row(),
        ],
        [
            choice("component", "Component", matching(NODE, "component")),
            choice("container", "Container", matching("docker_container_cpu_percent", "container")),
        ],
    )
