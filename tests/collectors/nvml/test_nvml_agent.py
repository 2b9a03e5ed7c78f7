"""The agent on a machine with an NVIDIA GPU: its page, and a driver that hangs."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from stubs import truth
from stubs.stub import Machine
from trees import Procfs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from conftest import AgentProcess

    Launch = Callable[..., Awaitable[AgentProcess]]

PATIENCE = 15.0
HANGS = 'powerbench_collector_up{collector="nvml"} 0.0'


@pytest.fixture
async def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path, traced=False)
    machine.procfs.rmdir()
    Procfs(machine.procfs)
    truth.tell(machine, 0)
    return machine


@pytest.fixture
async def agent(launch: Launch, machine: Machine, free_port: int) -> AgentProcess:
    places = ("--sysfs", str(machine.sysfs), "--procfs", str(machine.procfs))
    agent = await launch("--listen", f"127.0.0.1:{free_port}", *places, env=machine.environment)
    await agent.logged("listening")
    return agent


def lint(page: str) -> tuple[int, str, str]:
    """Return what promtool says of a page, and its exit status."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("NOT CHECKED: promtool is not on the PATH; it comes with Prometheus")
    command = [promtool, "check", "metrics"]
    found = subprocess.run(command, input=page, capture_output=True, check=False, text=True)
    return found.returncode, found.stdout, found.stderr


async def page_with(agent: AgentProcess, line: str) -> str:
    """Return the first page that has this line."""
    async with asyncio.timeout(PATIENCE):
        while line not in (page := await agent.get("/metrics")).splitlines():
            assert agent.process.returncode is None
            await asyncio.sleep(0.05)
    return page


async def scrape(agent: AgentProcess, within: float = 1.0) -> str:
    """Return the page, which must arrive within so many seconds."""
    loop = asyncio.get_running_loop()
    asked = loop.time()
    page = await agent.get("/metrics")
    assert loop.time() - asked < within
    return page


def value_of(page: str, series: str) -> float:
    (line,) = [line for line in page.splitlines() if line.startswith(series + " ")]
    return float(line.rpartition(" ")[2])


async def test_the_page_of_a_gpu(agent: AgentProcess) -> None:
    """A GPU's series are on the page, its energy is in the node's, and promtool finds no fault."""
    page = await page_with(agent, 'powerbench_collector_up{collector="nvml"} 1.0')
    assert value_of(page, f'nvidia_gpu_power_draw_watts{{gpu="0",uuid="{truth.UUIDS[0]}"}}') == 100
    page = await page_with(agent, 'powerbench_node_energy_joules_total{component="gpu",source="nvml"} 0.0')
    assert lint(page) == (0, "", "")


async def test_a_driver_that_hangs_stops_nothing_else(agent: AgentProcess, machine: Machine) -> None:
    """While a call hangs for a minute the collector is down, pages are in time, SIGTERM gives exit 0."""
    await page_with(agent, 'powerbench_collector_up{collector="nvml"} 1.0')
    machine.say({"delay GetPowerUsage": "60"})
    page = await page_with(agent, HANGS)
    assert "nvidia_gpu_" not in page, "nothing stale"
    loop = asyncio.get_running_loop()
    estimated = 'powerbench_collector_last_success_timestamp_seconds{collector="estimate"}'
    before = value_of(page, estimated)
    async with asyncio.timeout(PATIENCE):
        while value_of(page, estimated) <= before:
            page = await scrape(agent)
            assert HANGS in page
            await asyncio.sleep(0.05)
    down = await agent.logged("collector down")
    assert (down["collector"], down["error"]) == ("nvml", "no answer within 1 s")
    assert down["remedy"]
    asked = loop.time()
    agent.signal(signal.SIGTERM)
    code, _, err = await agent.ended()
    assert loop.time() - asked < 2
    assert code == 0
    assert "Traceback" not in err


async def test_the_scrape_that_meets_the_hang_waits_for_the_deadline(
    agent: AgentProcess, machine: Machine
) -> None:
    """A scrape during which the driver begins to hang is answered soon after the deadline of 1 s."""
    await page_with(agent, 'powerbench_collector_up{collector="nvml"} 1.0')
    machine.say({"delay GetTotalEnergyConsumption": "60"})
    page = await scrape(agent, within=2.0)
    assert HANGS in page
    assert "nvidia_gpu_" not in page
