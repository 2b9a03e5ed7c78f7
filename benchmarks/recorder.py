"""Cost of the benchmark's own recorder: a window with the trace at 10 Hz, compared with one without it.

Both are windows of `powerbench run` with the agent in the same process, on a simulated machine.
The difference in CPU time is the trace: asking for a reading, reading the counters, answering, recording.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
import uvloop
from rich.console import Console
from simulated import make_rapl

from powerbench_agent.agent import config, daemon, log, roster
from powerbench_agent.bench.meter.client import AgentClient
from powerbench_agent.bench.meter.meters import Meters
from powerbench_agent.bench.run.display import PlainDisplay
from powerbench_agent.bench.run.phases import OpenWindow, Phases
from powerbench_agent.bench.run.record import Trace
from powerbench_agent.core.host import Host

SECONDS = 10.0
PAIRS = 5


async def cost(sysfs: Path, hertz: float) -> tuple[float, int]:
    """Return (percent of a core, readings) of one window."""
    modules = roster.load_modules()
    settings = config.parse({"agent": {"sysfs": str(sysfs)}}, roster.options_of(modules), "benchmark")
    async with daemon.embedded(settings, modules) as inside, aiohttp.ClientSession() as session:
        meters = Meters([AgentClient(session, inside.url, inside.token)])
        await meters.ready()
        meters.hertz = hertz
        trace, window = Trace(), OpenWindow()
        with contextlib.closing(trace):
            phases = Phases(meters, trace, PlainDisplay(Console(), progress=False), Host())
            begun, used = time.monotonic(), time.process_time()
            await phases.measure("window", "window", SECONDS, window)
            used, elapsed = time.process_time() - used, time.monotonic() - begun
    return used / elapsed * 100, window.readings


def main() -> None:
    """Measure and print."""
    log.set_up("console", "error")
    with tempfile.TemporaryDirectory() as directory:
        sysfs = Path(directory)
        make_rapl(sysfs)
        traced, untraced = [], []
        for _ in range(PAIRS):
            percent, readings = uvloop.run(cost(sysfs, 10.0))
            traced.append(percent)
            percent, _ = uvloop.run(cost(sysfs, 1 / (2 * SECONDS)))
            untraced.append(percent)
    differences = [with_trace - without for with_trace, without in zip(traced, untraced, strict=True)]
    trace = statistics.median(differences)
    with_trace, without = statistics.median(traced), statistics.median(untraced)
    what = f"recorder: CPU of a window, {readings / SECONDS:.0f} readings a second"
    print(f"{what:44} {with_trace:10.3f} {without:10.3f} {with_trace / without:7.2f} %")
    print(f"{'  the trace alone':44} {trace:10.3f} {'':18} %    <= 1")


if __name__ == "__main__":
    main()
