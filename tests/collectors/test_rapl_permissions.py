"""RAPL as another user: the kernel itself refuses, in a process that is not root."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from trees import Powercap, run_as_nobody

if TYPE_CHECKING:
    from pathlib import Path

IMPORTS = """
import asyncio, sys
from pathlib import Path
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import ReadFailed
from powerbench_agent.collectors import rapl
"""
SCRIPT = """
async def main():
    collector = await rapl.open_collector(rapl.Options(), Host(sysfs=Path(".")))
    try:
        reading = await collector.read()
    except ReadFailed as failed:
        print("FAILED", failed, failed.remedy, sep="|")
    else:
        print("READ", len(reading.samples), sep="|")

asyncio.run(main())
"""


def read_as_nobody(sysfs: Path) -> str:
    """Return what a process without privileges says of this tree."""
    return run_as_nobody(IMPORTS, SCRIPT, sysfs)


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    made = Powercap(tmp_path / "sys")
    made.zone("intel-rapl:0", "package-0", 5e6)
    # Absolute links would lead through directories that only this user may enter.
    link = made.sysfs / "class/powercap/intel-rapl:0"
    target = os.path.relpath(link.resolve(), link.parent)
    link.unlink()
    link.symlink_to(target)
    return made


def test_refused_by_the_kernel(powercap: Powercap) -> None:
    """`energy_uj` that only its owner may read is a verdict with a remedy, not "no RAPL" and not 0 W."""
    powercap.file("intel-rapl:0").chmod(0o400 if os.geteuid() == 0 else 0o000)
    verdict, what, remedy = read_as_nobody(powercap.sysfs).split("|")
    assert verdict == "FAILED"
    assert "may not read" in what
    assert "intel-rapl:0/energy_uj" in what
    assert "powercap" in remedy


def test_allowed_by_the_kernel(powercap: Powercap) -> None:
    """The same process reads the same tree once the file's mode lets it."""
    powercap.file("intel-rapl:0").chmod(0o444)
    assert read_as_nobody(powercap.sysfs).startswith("READ")
