"""The peer: the same zones behind prometheus_client's own server, read and rendered at each scrape.

It can be written in an afternoon, and most exporters in Python are like it. Usage: peer.py PORT SYSFS
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric


class Zones:
    """Every zone's raw counter, and the host's CPU time and load."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def collect(self) -> Iterator[Metric]:
        """Read and return everything."""
        joules = CounterMetricFamily("peer_rapl_joules", "Energy of the zone.", labels=["path"])
        for zone in sorted(self._root.iterdir()):
            joules.add_metric([zone.name], int((zone / "energy_uj").read_text()) / 1e6)
        yield joules
        cpu = CounterMetricFamily("peer_cpu_seconds", "CPU time.", labels=["mode"])
        ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        for mode, count in zip(
            ("user", "nice", "system", "idle", "iowait", "irq", "softirq"), ticks, strict=False
        ):
            cpu.add_metric([mode], int(count) / 100)
        yield cpu
        yield GaugeMetricFamily(
            "peer_load1", "Load.", value=float(Path("/proc/loadavg").read_text().split()[0])
        )


if __name__ == "__main__":
    REGISTRY.register(Zones(Path(sys.argv[2]) / "class/powercap"))
    start_http_server(int(sys.argv[1]), "127.0.0.1")
    threading.Event().wait()
