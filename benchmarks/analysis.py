"""Cost of `powerbench analyze --all` over 1,000 results files, compared with a loop over json.loads.

The files are generated: ten scenarios each, two of them baselines, and a power trace of 1,000 readings. The
peer computes the same mean watts and ΔW per group, but no intervals, p values or peaks: the bare minimum.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

FILES = 1000
BUDGET_SECONDS, BUDGET_MB = 5.0, 500
POWERBENCH = Path(sys.executable).with_name("powerbench")

TRACE = """
COPY (
  SELECT 'run' AS run_id, scenario, 'window' AS phase, 1.7e9 + reading / 10 AS time,
    reading / 10 AS monotonic, 'embedded' AS agent, 'cpu' AS component, 'rapl' AS source,
    'package-0' AS key, reading * 0.4 AS joules
  FROM (SELECT 'x264_' || i % 4 || '#' || i // 4 AS scenario FROM range(10) r(i)), range(100) t(reading)
) TO '{path}' (FORMAT parquet, COMPRESSION zstd)
"""


def scenario(name: str, group: str, block: int, watts: float, *, idle: bool) -> dict[str, object]:
    """Return a scenario in the form of a results file."""
    joules = watts * 60
    found: dict[str, object] = {
        "name": name,
        "type": "baseline" if idle else "single",
        "status": "ok",
        "group": group,
        "block": block,
        "bitrate": "0k" if idle else "2500k",
        "resolution": "1280x720",
        "fps": 30,
        "duration": 60.0,
        "encoder": "h264",
        "preset": "veryfast",
        "start_time": 1.7e9,
        "end_time": 1.7e9 + 60,
        "energy": {
            "source": "rapl",
            "measured": True,
            "seconds": 60.0,
            "joules": joules,
            "mean_watts": watts,
            "parts": [{"component": "cpu", "source": "rapl", "joules": joules, "watts": watts}],
        },
        "warnings": [],
        "conditions": {"load": [0.1] * 20, "temperature": [50.0] * 20},
    }
    if not idle:
        found["encode"] = {
            "frames": 1800.0,
            "megabits": 150.0,
            "seconds": 60.0,
            "min_speed": 0.99,
            "dropped": 0,
        }
    return found


def scenarios(number: int) -> list[dict[str, object]]:
    """Return two blocks of a baseline and four groups."""
    found = []
    for block, suffix in enumerate(("", "#2")):
        baseline_watts = 4 + 0.01 * block
        found.append(scenario(f"baseline{suffix}", "baseline", block, baseline_watts, idle=True))
        for group in range(4):
            watts = 5 + group + number / FILES + 0.02 * block
            name = f"x264_{group}"
            found.append(scenario(f"{name}{suffix}", name, block, watts, idle=False))
    return found


def make(directory: Path) -> None:
    """Write the results files and their traces."""
    trace = directory / "trace.parquet"
    duckdb.execute(TRACE.format(path=trace))
    content = trace.read_bytes()
    trace.unlink()
    for number in range(FILES):
        stem = f"test_results_20260101_{number:06}"
        document = {"format": 2, "test_date": "2026-01-01", "run_id": stem, "scenarios": scenarios(number)}
        (directory / f"{stem}.json").write_text(json.dumps(document, indent=2))
        (directory / f"{stem}_trace.parquet").write_bytes(content)


def peer(directory: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """Return (mean watts, watts above the baseline) by run and group."""
    found = {}
    for path in directory.glob("test_results_*.json"):
        document = json.loads(path.read_text())
        watts: dict[str, list[float]] = {}
        for one in document["scenarios"]:
            watts.setdefault(one["group"], []).append(one["energy"]["mean_watts"])
        idle = statistics.fmean(watts.pop("baseline"))
        for group, values in watts.items():
            mean = statistics.fmean(values)
            found[document["run_id"], group] = mean, mean - idle
    return found


def measured(command: list[str]) -> tuple[float, float]:
    """Run a command; return (seconds, its peak resident size in MB)."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed with {process.returncode}")
    return time.perf_counter() - begun, usage.ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make(directory)
        ours = [measured([str(POWERBENCH), "analyze", "--all", name]) for _ in range(3)]
        theirs = [measured([sys.executable, __file__, "peer", name]) for _ in range(3)]
    seconds, megabytes = (statistics.median(column) for column in zip(*ours, strict=True))
    peer_seconds, peer_megabytes = (statistics.median(column) for column in zip(*theirs, strict=True))
    print(f"{FILES} results files of 10 scenarios, {FILES} traces of 1,000 readings; medians of 3")
    print("peer: json.loads in a loop; means and differences only, without the traces")
    print(f"{'':24}{'powerbench':>12}{'peer':>12}{'budget':>12}")
    print(f"{'seconds':24}{seconds:12.2f}{peer_seconds:12.2f}{BUDGET_SECONDS:12.1f}")
    print(f"{'peak resident size, MB':24}{megabytes:12.0f}{peer_megabytes:12.0f}{BUDGET_MB:12}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        for key, figures in peer(Path(sys.argv[2])).items():
            print(*key, *figures)
    else:
        main()
