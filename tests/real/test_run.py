"""`powerbench run` with a real ffmpeg: streams, ends, deaths and interruptions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from real.conftest import BIN, agent, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = [
    "--resolution",
    "320x180",
    "--bitrate",
    "400k",
    "--preset",
    "ultrafast",
    "--stabilization",
    "1",
    "--cooldown",
    "0",
]
pytestmark = pytest.mark.usefixtures("ffmpeg")


def arguments(directory: Path, *before: str, single: tuple[str, ...] = ()) -> list[str]:
    return [
        str(BIN / "powerbench"),
        "run",
        "--output-dir",
        str(directory),
        *before,
        "single",
        *QUICK,
        *single,
    ]


def results(directory: Path) -> dict[str, Any]:
    (path,) = directory.glob("test_results_*.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def descendants(pid: int) -> list[int]:
    """Return the processes whose parent is this one, and theirs."""
    children: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            children += [int(stat.parent.name), *descendants(int(stat.parent.name))]
    return children


def ffmpegs(pid: int) -> list[int]:
    """Return our encoders and sinks: children that run ffmpeg."""
    found = []
    for child in descendants(pid):
        try:
            if b"ffmpeg" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
                found.append(child)
        except OSError:
            continue
    return found


def is_encoder(pid: int) -> bool:
    return b"-progress" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_stream_beside_its_baseline_leaves_a_true_file_and_a_trace(tmp_path: Path) -> None:
    """Against the embedded sink: windows of the asked length, frames of the asked rate, sources named."""
    single = ("--with-baseline", "--baseline-duration", "2", "--duration", "4", "--name", "x")
    done = subprocess.run(
        arguments(tmp_path, single=single), capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "One short run is an illustration" in done.stdout
    content = results(tmp_path)
    baseline, test = content["scenarios"]
    assert (baseline["type"], test["type"], test["status"]) == ("baseline", "single", "ok")
    assert baseline["energy"]["seconds"] == pytest.approx(2, abs=0.3)
    assert test["energy"]["seconds"] == pytest.approx(4, abs=0.3)
    assert test["end_time"] - test["start_time"] == pytest.approx(test["energy"]["seconds"], abs=0.1)
    assert test["energy"]["joules"] == pytest.approx(test["energy"]["mean_watts"] * test["energy"]["seconds"])
    assert test["encode"]["frames"] == pytest.approx(120, abs=15)
    assert test["encode"]["cpu_seconds"]["encoder"] > 0
    assert test["versus_baseline"]["delta_watts"] == pytest.approx(
        test["energy"]["mean_watts"] - baseline["energy"]["mean_watts"]
    )
    if not test["energy"]["measured"]:
        assert test["encode"]["source"] == test["versus_baseline"]["source"] == "estimate"
    for key in ("cpu_model", "cpus", "kernel", "governor", "turbo", "powerbench"):
        assert key in content["host"]
    assert re.fullmatch("[0-9a-f]{64}", content["ffmpeg"]["sha256"])
    (trace,) = tmp_path.glob("*_trace.parquet")
    rows = duckdb.sql(
        "SELECT scenario, source, joules FROM read_parquet(?) ORDER BY time", params=[str(trace)]
    ).fetchall()
    assert {row[0] for row in rows} == {"baseline", "x"}
    assert test["trace"]["hz"] > 5
    assert [row[2] for row in rows] == sorted(row[2] for row in rows)


def test_an_agent_of_its_own_takes_the_progress_in_while_the_stream_runs(tmp_path: Path, port: int) -> None:
    """With --agent the meters are that agent's, its /ingest sees the stream; no argument holds the token."""
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    config = tmp_path / "agent.toml"
    config.write_text(f'[agent.web]\ntoken_file = "{token}"\n')
    command = arguments(
        tmp_path,
        "--agent",
        f"http://127.0.0.1:{port}",
        "--token-file",
        str(token),
        single=("--duration", "4", "--name", "cam"),
    )
    with agent(port, "--config", str(config)), started(command) as run:
        from real.conftest import get, series  # noqa: PLC0415 - beside its use

        page = f"http://127.0.0.1:{port}/metrics"
        wait_for(lambda: '{stream="cam"}' in series(get(page), "ffmpeg_fps"), "the agent sees the stream")
        (info,) = series(get(page), "ffmpeg_stream_info")
        assert 'encoder="libx264"' in info
        assert series(get(page), "ffmpeg_megapixels_total")['{stream="cam"}'] > 0
        for pid in [run.pid, *descendants(run.pid)]:
            assert b"s3cret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert run.wait(60) == 0
    content = results(tmp_path)
    assert content["agents"] == [f"http://127.0.0.1:{port}"]
    assert content["scenarios"][0]["energy"]["joules"] > 0


def test_an_agent_that_does_not_know_us_still_gives_exact_edges(tmp_path: Path, port: int) -> None:
    """Without a token the trace goes at the beat, and the window has its length all the same."""
    with agent(port):
        command = arguments(
            tmp_path, "--agent", f"http://127.0.0.1:{port}", "--sink", "null", single=("--duration", "4")
        )
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (scenario,) = results(tmp_path)["scenarios"]
    assert scenario["energy"]["seconds"] == pytest.approx(4, abs=0.3)
    assert scenario["trace"]["asked_hz"] == 1.0


def test_an_encoder_that_dies_fails_its_scenario_and_keeps_what_was_measured(tmp_path: Path) -> None:
    """Kill -9 of the encoder in its window: exit 1, its name, and the file holds the part until then."""
    with started(arguments(tmp_path, single=("--duration", "30", "--name", "doomed"))) as run:
        wait_for(lambda: "doomed: 30 s" in (run.stdout.readline() if run.stdout else ""), "the window opens")
        wait_for(lambda: len(ffmpegs(run.pid)) == 2, "encoder and sink run")
        encoder = next(p for p in ffmpegs(run.pid) if b"testsrc2" in Path(f"/proc/{p}/cmdline").read_bytes())
        started_at = os.times().elapsed
        wait_for(lambda: os.times().elapsed > started_at + 1.5, "a moment of the window passes")
        os.kill(encoder, signal.SIGKILL)
        _, errors = run.communicate(timeout=30)
        assert run.returncode == 1
    assert "doomed failed" in errors
    assert "died" in errors
    assert "Traceback" not in errors
    (scenario,) = results(tmp_path)["scenarios"]
    assert scenario["status"] == "failed"
    assert scenario["energy"]["seconds"] > 0.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_ends_its_own_children_and_keeps_its_part(
    tmp_path: Path, ffmpeg: str, number: signal.Signals
) -> None:
    """Interrupted in the window: what was measured is kept and said; our ffmpegs are gone, others stay."""
    bystander = subprocess.Popen(
        [ffmpeg, "-nostdin", "-loglevel", "quiet", "-re", "-f", "lavfi", "-i", "sine", "-f", "null", "-"]
    )
    try:
        with started(arguments(tmp_path, single=("--duration", "30", "--name", "cut"))) as run:
            wait_for(lambda: "cut: 30 s" in (run.stdout.readline() if run.stdout else ""), "the window opens")
            ours = ffmpegs(run.pid)
            begun = os.times().elapsed
            wait_for(lambda: os.times().elapsed > begun + 1.0, "a moment of the window passes")
            run.send_signal(number)
            _, errors = run.communicate(timeout=30)
            assert run.returncode == 130
        assert "interrupted" in errors
        assert "Traceback" not in errors
        assert len(ours) == 2
        assert [pid for pid in ours if Path(f"/proc/{pid}").exists()] == []
        assert bystander.poll() is None
        (scenario,) = results(tmp_path)["scenarios"]
        assert scenario["status"] == "interrupted"
        assert scenario["energy"]["joules"] > 0
    finally:
        bystander.kill()
        bystander.wait()


def test_a_sink_that_refuses_fails_the_scenario_with_ffmpegs_words(tmp_path: Path) -> None:
    """An RTMP address of another loopback host where nothing listens: exit 1, and what to do."""
    done = subprocess.run(
        arguments(
            tmp_path, "--sink", "rtmp://127.0.0.2:1/live/x", single=("--duration", "2", "--name", "lost")
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "lost failed" in done.stderr
    assert "nothing is listening" in done.stderr
    assert "Traceback" not in done.stderr


def test_measured_joules_or_none(tmp_path: Path) -> None:
    """--require-measured refuses where RAPL is not there: exit 69, what is missing, and nothing written."""
    if Path("/sys/class/powercap/intel-rapl:0").exists():
        pytest.skip("this machine has RAPL")
    done = subprocess.run(
        arguments(tmp_path, "--require-measured"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 69
    assert "no RAPL" in done.stderr
    assert "access to RAPL" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_quality_is_scored_after_the_window(tmp_path: Path) -> None:
    """All four scores of the test picture against itself, by an ffmpeg that has them; said which."""
    command = arguments(tmp_path, "--sink", "null", single=("--duration", "2", "--compute-quality"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    quality = results(tmp_path)["scenarios"][0]["encode"]["quality"]
    (scores,) = quality["streams"]
    assert scores["psnr"]["average"] > 30  # 28 dB and less was the score of wrong frames
    assert 0.9 < scores["ssim"]["average"] <= 1
    assert scores["vmaf"]["mean"] > 80
    assert (scores["missing"], scores["vmaf_model"]) == ({}, "vmaf_v0.6.1")
    assert "imageio-ffmpeg" in done.stdout


def test_a_run_that_is_killed_outright_leaves_no_ffmpeg_behind(tmp_path: Path) -> None:
    """Kill -9 of the run ends its encoder and its sink, by the kernel's hand."""
    with started(arguments(tmp_path, single=("--duration", "30", "--name", "gone"))) as run:
        wait_for(lambda: "gone: 30 s" in (run.stdout.readline() if run.stdout else ""), "the window opens")
        ours = ffmpegs(run.pid)
        assert len(ours) == 2
        run.kill()
        run.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ours), "both are gone")


def test_a_reader_that_goes_away_stops_no_measurement(tmp_path: Path) -> None:
    """`powerbench run … | head -1` measures on, and leaves its results."""
    command = arguments(tmp_path, "--sink", "null", single=("--duration", "3"))
    with started(command) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.stdout.close()
        run.stdout = None
        assert run.wait(60) == 0
    assert results(tmp_path)["scenarios"][0]["status"] == "ok"


@pytest.mark.parametrize("sink", ["embedded", "null"])
def test_a_stream_that_is_stopped_fails_its_scenario(tmp_path: Path, sink: str) -> None:
    """SIGSTOP of the encoder within its window: exit 1, the stream and the remedy in one line, no advice."""
    command = arguments(tmp_path, "--sink", sink, single=("--duration", "30", "--name", "x"))
    with started(command) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("x: 30 s"):
                break
        (encoder,) = (pid for pid in ffmpegs(run.pid) if is_encoder(pid))
        os.kill(encoder, signal.SIGSTOP)
        out, errors = run.communicate(timeout=60)
        assert run.returncode == 1
    assert re.match(r"powerbench: x failed: x stands still: no new frame since [\d:]{8} \(", errors)
    assert len(errors.splitlines()) == 1
    assert "faster --preset" not in out
    assert not Path(f"/proc/{encoder}").exists()
    (scenario,) = results(tmp_path)["scenarios"]
    assert scenario["status"] == "failed"
