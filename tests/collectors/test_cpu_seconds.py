"""Everything that reads /proc/stat agrees on how long the CPUs were busy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from trees import FakeClock, Procfs, value, values

from powerbench_agent.agent import attribution
from powerbench_agent.agent.node import Node
from powerbench_agent.bench.meter.conditions import read_conditions
from powerbench_agent.collectors import estimate, host
from powerbench_agent.core.cpu_time import CpuTimes
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Meter, Reading
from powerbench_agent.core.procfs import read_cpu_time

if TYPE_CHECKING:
    from pathlib import Path

HERTZ = os.sysconf("SC_CLK_TCK")
CPUS = 2
SECONDS = 100.0
BUSY_MODES = ("user", "nice", "system", "irq", "softirq")


class Machine:
    """One /proc/stat, and every reader of it."""

    def __init__(self, root: Path) -> None:
        self.procfs = Procfs(root / "proc", CPUS)
        self.clock = FakeClock()
        (root / "sys").mkdir()
        self.host = Host(root / "sys", root / "proc", self.clock)

    async def host_busy(self) -> float:
        collector = await host.open_collector(host.Options(), self.host)
        shown = values(await collector.read(), host.CPU_SECONDS)
        await collector.aclose()
        return sum(shown[(mode,)] for mode in BUSY_MODES)

    def attributed_busy(self) -> float:
        cpu = read_cpu_time(self.host)
        assert cpu is not None
        return cpu.busy

    def conditions_busy(self) -> float:
        busy = read_conditions(self.host).busy
        assert busy is not None
        return busy


@pytest.mark.parametrize(
    "ticks",
    [
        (100, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (0, 100, 0, 50, 0, 0, 0, 0, 0, 0),
        (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
        (900, 0, 10, 7000, 40, 5, 20, 3000, 800, 0),
    ],
)
async def test_all_readers_see_the_same_busy_seconds(tmp_path: Path, ticks: tuple[int, ...]) -> None:
    """The estimate, the host's metrics, the shares and the bench read the same busy time from one file."""
    user, nice, system, idle, *rest = ticks  # rest: iowait, irq, softirq, steal, guest, guest_nice
    machine = Machine(tmp_path)
    options = estimate.Options(idle_watts_per_cpu=1.0, max_watts_per_cpu=5.0)
    model = await estimate.open_collector(options, machine.host)
    await model.read()
    before = await machine.host_busy(), machine.attributed_busy(), machine.conditions_busy()
    machine.clock.advance(SECONDS)
    machine.procfs.set_ticks(user, nice, system, idle, rest)
    joules = value(await model.read(), estimate.ENERGY, "cpu")
    estimated = (joules - 1.0 * SECONDS * CPUS) / (5.0 - 1.0)
    expected = (user + nice + system + rest[1] + rest[2]) / HERTZ
    after = await machine.host_busy(), machine.attributed_busy(), machine.conditions_busy()
    gains = [late - early for early, late in zip(before, after, strict=True)]
    assert [estimated, *gains] == pytest.approx([expected] * 4)


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        ("steal", -800_000_000),
        ("steal", 800_000_000),
        ("iowait", -800_000_000),
        ("idle", -800_000_000),
        ("idle", 800_000_000),
        ("idle", -1),
        ("iowait", -1),
    ],
)
async def test_a_broken_mode_moves_no_energy(tmp_path: Path, mode: str, change: int) -> None:
    """Whatever mode that is not busy time breaks, a machine that is 10 % busy has 90 % of idle energy."""
    machine = Machine(tmp_path)
    times = CpuTimes(machine.host)
    node = Node()
    broken = 0
    for second in range(11):
        if second == 5:
            broken = change
        figures = {"idle": 10**9, "iowait": 10**9, "steal": 10**9}
        figures["idle"] += round(second * 0.9 * CPUS * HERTZ)
        figures[mode] += broken
        rest = (figures["iowait"], 0, 0, figures["steal"], 0, 0)
        user = 10**9 + round(second * 0.1 * CPUS * HERTZ)
        machine.procfs.set_ticks(user=user, idle=figures["idle"], rest=rest)
        meter = Meter("cpu", "rapl", "0", second * 36.0)
        readings = {"rapl": Reading((), (meter,), taken=machine.clock.monotonic())}
        shown = node.beat(readings, (), ("rapl",), times.read(), machine.clock.monotonic())
        machine.clock.advance(1.0)
    idle = value(shown, attribution.IDLE, "cpu", "rapl")
    assert idle == pytest.approx(0.9 * 360, rel=0.01)
    assert value(shown, attribution.AGENT, "cpu", "rapl") < 36
