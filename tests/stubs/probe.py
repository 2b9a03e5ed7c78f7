"""The collector of NVIDIA GPUs in a process of its own: what a line asks for, as a line of JSON.

`open SYSFS PROCFS` opens it anew, `beat SECONDS` and `refresh SECONDS` let time pass first, `imported` tells
whether the binding is. An answer holds what was logged meanwhile; the environment says which library it is.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from structlog.testing import LogCapture
from trees import FakeClock

from powerbench_agent.collectors.nvml import collector as nvml
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Absent, ReadFailed

if TYPE_CHECKING:
    from powerbench_agent.core.model import Reading


def told(reading: Reading) -> dict[str, Any]:
    """Return a reading as JSON has it; labels without a value are left out, as on the page."""
    return {
        "samples": [
            [s.metric.name, {k: v for k, v in zip(s.metric.labels, s.labels, strict=True) if v}, s.value]
            for s in reading.samples
        ],
        "meters": reading.meters,
        "uses": [use._asdict() for use in reading.uses],
    }


class Probe:
    """One collector at a time, and its clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.collector: nvml.Nvml | None = None

    async def obey(self, command: str, *arguments: str) -> dict[str, Any]:
        """Do what one line asks for. Raises: what the collector raises."""
        if command == "imported":
            return {"imported": "pynvml" in sys.modules}
        if command == "open":
            if self.collector is not None:
                await self.collector.aclose()
            sysfs, procfs = map(Path, arguments)
            host = Host(sysfs=sysfs, procfs=procfs, clock=self.clock)
            self.collector = None
            self.collector = await nvml.open_collector(nvml.Options(), host)
            return {}
        assert self.collector is not None
        self.clock.advance(float(arguments[0]))
        return told(await (self.collector.read() if command == "beat" else self.collector.refresh()))


async def main() -> None:
    """Answer until nobody asks any more."""
    captured, probe = LogCapture(), Probe()
    structlog.configure(processors=[captured])
    for line in sys.stdin:
        try:
            answer = await probe.obey(*line.split())
        except ReadFailed as failed:
            answer = {"error": str(failed), "remedy": failed.remedy}
        except Absent as gone:
            answer = {"absent": str(gone)}
        except Exception as bug:  # noqa: BLE001 - the test is to say what it was
            answer = {"bug": repr(bug)}
        answer["log"] = list(captured.entries)
        captured.entries.clear()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
