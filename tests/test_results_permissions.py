"""Results that another user may not read: the kernel itself refuses, in a process that is not root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534
UNMAPPED = 77  # the exit status of a child that could not become nobody

# It imports first, then lets go of root; it stands in the directory, so that none above it matters.
CHILD = f"""
import asyncio, os, sys
from powerbench.agent.model import Host, ReadFailed
from powerbench.collectors import results

if os.geteuid() == 0:
    try:
        os.setgroups([])
        os.setgid({NOBODY})
        os.setuid({NOBODY})
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit({UNMAPPED})

async def main():
    collector = await results.open_collector(results.Options(directory=sys.argv[1]), Host())
    try:
        for _ in range(2):
            reading = await collector.read()
    except ReadFailed as failed:
        print("FAILED", failed, failed.remedy, sep="|")
    else:
        for sample in reading.samples:
            print(sample.metric.name, *sample.labels, sample.value, sep="|")
    await collector.aclose()

asyncio.run(main())
"""


def read_as_nobody(directory: Path, name: str) -> list[str]:
    """Return what a process without privileges says of this directory, which lies in `directory`."""
    directory.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-P", "-c", CHILD, name],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode == UNMAPPED:
        pytest.skip(f"THE PERMISSION TEST DID NOT RUN: cannot become uid {NOBODY} here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def write_run(directory: Path, stamp: str) -> Path:
    energy = {"source": "rapl", "seconds": 60.0, "joules": 2700.0, "mean_watts": 45.0}
    content = {"scenarios": [{"name": "s", "bitrate": "1M", "energy": energy}]}
    path = directory / f"test_results_{stamp}.json"
    path.write_text(json.dumps(content))
    return path


def test_a_directory_that_may_not_be_listed(tmp_path: Path) -> None:
    """A directory that is there and not permitted is a failure with its remedy."""
    (tmp_path / "results").mkdir()
    write_run(tmp_path / "results", "20260101_000000")
    (tmp_path / "results").chmod(0o700 if os.geteuid() == 0 else 0)
    (line,) = read_as_nobody(tmp_path, "results")
    (tmp_path / "results").chmod(0o700)
    verdict, _, remedy = line.split("|")
    assert verdict == "FAILED"
    assert remedy


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """A file that is not permitted is counted once, however often it is looked at; others are shown."""
    (tmp_path / "results").mkdir()
    write_run(tmp_path / "results", "20260101_000000").chmod(0o644)
    write_run(tmp_path / "results", "20260102_000000").chmod(0o600 if os.geteuid() == 0 else 0)
    (tmp_path / "results").chmod(0o755)
    said = read_as_nobody(tmp_path, "results")
    assert "results_files_skipped_total|unreadable|1" in [line.removesuffix(".0") for line in said]
    assert any(
        line.startswith("results_scenario_mean_power_watts|test_results_20260101_000000") for line in said
    )
