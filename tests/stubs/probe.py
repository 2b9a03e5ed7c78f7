"""The collector of NVIDIA GPUs in processes of its own: a line with a request in, a line of JSON out.

`fork {"environment": {...}, "path": [...]}` starts a process that takes the requests until `end`. It begins
without the binding and without the driver's library, whatever the process before it has loaded. In it,
`open SYSFS PROCFS` opens a collector and closes the one before, `exclude PATTERN...` sets what it leaves out,
`beat SECONDS` and `refresh SECONDS` let time pass and read, `imported` tells whether the binding has been
imported. An answer holds what was logged.
"""

from __future__ import annotations

import asyncio
import json
import os
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
    samples = []
    for sample in reading.samples:
        labels = dict(zip(sample.metric.labels, sample.labels, strict=True))
        with_value = {label: value for label, value in labels.items() if value}
        samples.append([sample.metric.name, with_value, sample.value])
    return {
        "samples": samples,
        "meters": reading.meters,
        "powers": {meter.key: watts for meter, watts in reading.powers.items() if meter.component == "gpu"},
        "uses": [use._asdict() for use in reading.uses],
        "troubles": [trouble._asdict() for trouble in reading.troubles],
    }


class Commands:
    """One collector at a time, and its clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.collector: nvml.Nvml | None = None
        self.options = nvml.Options()

    async def obey(self, command: str, *arguments: str) -> dict[str, Any]:
        """Do what one line asks for. Raises: what the collector raises."""
        if command == "imported":
            return {"imported": "pynvml" in sys.modules}
        if command == "exclude":
            self.options = nvml.Options(exclude=arguments)
            if self.collector is not None:
                self.collector.configure(self.options)
            return {}
        if command == "open":
            if self.collector is not None:
                await self.collector.aclose()
            sysfs, procfs = map(Path, arguments)
            host = Host(sysfs=sysfs, procfs=procfs, clock=self.clock)
            self.collector = None
            self.collector = await nvml.open_collector(self.options, host)
            return {}
        assert self.collector is not None
        self.clock.advance(float(arguments[0]))
        return told(await (self.collector.read() if command == "beat" else self.collector.refresh()))


def reply(answer: dict[str, Any]) -> None:
    """Write one answer."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def answer_until_the_end() -> None:
    """Answer requests until one says `end`."""
    captured, commands = LogCapture(), Commands()
    structlog.configure(processors=[captured])
    while (line := sys.stdin.readline().split()) not in ([], ["end"]):
        try:
            answer = await commands.obey(*line)
        except ReadFailed as failed:
            answer = {"error": str(failed), "remedy": failed.remedy}
        except Absent as gone:
            answer = {"absent": str(gone)}
        except Exception as bug:  # noqa: BLE001 - the test is to say what it was
            answer = {"bug": repr(bug)}
        answer["log"] = list(captured.entries)
        captured.entries.clear()
        reply(answer)


def main() -> None:
    """Start one process after another, until the input ends."""
    while line := sys.stdin.readline():
        command, _, arguments = line.partition(" ")
        assert command == "fork", line
        child = os.fork()
        if child == 0:
            given = json.loads(arguments)
            os.environ.update(given["environment"])
            sys.path[:0] = given["path"]
            reply({"log": []})
            asyncio.run(answer_until_the_end())
            return
        _, status = os.waitpid(child, 0)
        reply({"log": [], "status": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    main()
