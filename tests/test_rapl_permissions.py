"""RAPL as another user: the kernel itself refuses, in a process that is not root."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from trees import Powercap

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534
UNMAPPED = 77  # the exit status of a child that could not become nobody

# It imports first, then lets go of root; it stands in the tree, so that no directory above it matters.
CHILD = f"""
import asyncio, os, sys
from pathlib import Path
from powerbench.agent.model import Host, ReadFailed
from powerbench.collectors import rapl

if os.geteuid() == 0:
    try:
        os.setgroups([])
        os.setgid({NOBODY})
        os.setuid({NOBODY})
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit({UNMAPPED})

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
    sysfs.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-P", "-c", CHILD],
        cwd=sysfs,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode == UNMAPPED:
        pytest.skip(
            f"THE PERMISSION TEST DID NOT RUN: cannot become uid {NOBODY} here: {done.stderr.strip()}"
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


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
