"""Containers that come and go twenty a second for a minute: none stays, and the sum holds."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from cgroup_trees import SYSTEMD, Machine, drive, identity
from trees import values

from powerbench_agent.agent.attribution import AGENT, DEPARTED, IDLE, UNATTRIBUTED
from powerbench_agent.agent.node import NODE_ENERGY, Node
from powerbench_agent.collectors.docker import collector as docker
from powerbench_agent.core.model import CpuTime, Meter, Reading

if TYPE_CHECKING:
    from pathlib import Path

RATE = 20  # a second
SECONDS = 60
LIFE = 2  # seconds
PART = ("cpu", "rapl")


async def test_a_minute_of_churn(tmp_path: Path) -> None:
    """1,200 containers live two seconds each: every beat adds up, and at the end nothing is left of them."""
    async for driven in drive(Machine(tmp_path)):
        node = Node()
        engine = driven.collector._engine
        seen: set[str] = set()
        for second in range(SECONDS + LIFE + 1):
            for number in range(second * RATE, (second + 1) * RATE) if second < SECONDS else ():
                place = SYSTEMD.format(identity(number))
                driven.machine.add(place)
                event = {"ID": identity(number), "Attributes": {"name": f"c{number}", "image": "i"}}
                engine.take({"Action": "start", "Actor": event})
            born = second - LIFE
            gone = range(born * RATE, (born + 1) * RATE) if 0 <= born < SECONDS else ()
            for number in gone:
                shutil.rmtree(driven.machine.cgroups / SYSTEMD.format(identity(number)))
                if number % 3:  # of a third the events come a beat late
                    engine.take({"Action": "destroy", "Actor": {"ID": identity(number)}})
            reading = await driven.beat()
            meters = Reading([], [Meter(*PART, "0", second * 100.0)], taken=reading.taken)
            cpu = CpuTime(second * 3.0, second * 4.0, second * 0.01)
            now = reading.taken or 0.0
            page = node.beat({"rapl": meters, "docker": reading}, (), ("rapl", "docker"), cpu, now)
            parts = sum(values(page, metric)[PART] for metric in (IDLE, AGENT, DEPARTED, UNATTRIBUTED))
            parts += sum(values(page, docker.ENERGY).values())
            assert parts == pytest.approx(values(page, NODE_ENERGY)[PART], rel=1e-9)
            seen |= {labels[0] for labels in values(reading, docker.CPU_SECONDS)}
            for number in gone:
                engine.take({"Action": "destroy", "Actor": {"ID": identity(number)}})
        assert len(seen) == RATE * SECONDS
        reading = await driven.beat()
        assert {s.metric for s in reading.samples if "container" in s.metric.labels} == set()
        assert (engine.containers, driven.collector._watched, reading.claims) == ({}, {}, [])
