"""Results that another user may not read: the kernel itself refuses, in a process that is not root."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from trees import run_as_nobody

if TYPE_CHECKING:
    from pathlib import Path

IMPORTS = """
import asyncio, sys
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import ReadFailed
from powerbench_agent.collectors.results import collector as results
"""
SCRIPT = """
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
    """Return what a process without privileges says of a directory, which lies in `directory`."""
    return run_as_nobody(IMPORTS, SCRIPT, directory, name).splitlines()


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
