"""Scenarios of several streams, batches, sinks and what goes wrong in them, with a real ffmpeg and nginx."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import pytest
from real.conftest import BIN, agent, free_port, get, need, series, wait_for
from real.test_run import descendants, ffmpegs, results, started

from powerbench_agent.core.results import FORMAT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SMALL = ("--resolution", "320x180", "--preset", "ultrafast", "--stabilization", "1", "--cooldown", "0")
DEFAULTS = {"resolution": "320x180", "preset": "ultrafast", "duration": 3}
NO_REST = {"stabilization": 0, "cooldown": 0}
RTMP_MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
pytestmark = pytest.mark.usefixtures("ffmpeg")


def command(directory: Path, *arguments: str) -> list[str]:
    return [str(BIN / "powerbench"), "run", "--output-dir", str(directory), *arguments]


class Done(NamedTuple):
    code: int
    out: str
    errors: str


def finished(arguments: Sequence[str]) -> Done:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=90, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def run(directory: Path, *arguments: str) -> Done:
    return finished(command(directory, *arguments))


def batch(directory: Path, *scenarios: dict[str, Any]) -> tuple[str, ...]:
    """Return the arguments of a batch of these scenarios."""
    file = directory / "batch.json"
    file.write_text(json.dumps({"defaults": DEFAULTS | NO_REST, "scenarios": scenarios}))
    return ("batch", "--file", str(file))


def names(content: dict[str, Any]) -> list[str]:
    return [scenario["name"] for scenario in content["scenarios"]]


def said(process: subprocess.Popen[str], text: str) -> None:
    """Wait until the run has printed a line with this text."""
    wait_for(lambda: text in (process.stdout.readline() if process.stdout else ""), f"it says {text!r}")


def encoders(pid: int) -> dict[int, bytes]:
    """Return a run's encoders, with their command lines."""
    lines = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in ffmpegs(pid)}
    return {child: line for child, line in lines.items() if b"testsrc2" in line}


def spans_of(directory: Path) -> dict[str, tuple[float, float]]:
    """Return the trace's first and last moment of each scenario, in the order of time."""
    (trace,) = directory.glob("*_trace.parquet")
    query = "SELECT scenario, min(time), max(time) FROM read_parquet(?) GROUP BY 1 ORDER BY 2"
    rows = duckdb.sql(query, params=[str(trace)]).fetchall()
    return {name: (first, last) for name, first, last in rows}


# -- several streams -----------------------------------------------------------------------------------


def test_several_streams_have_their_own_figures_and_their_own_ingest(tmp_path: Path, port: int) -> None:
    """Two streams beside their baseline: figures of each, sums of both, a live series of each."""
    token, config = tmp_path / "token", tmp_path / "agent.toml"
    token.write_text("s3cret\n")
    config.write_text(f'[agent.web]\ntoken_file = "{token}"\n')
    asked = ("--agent", f"http://127.0.0.1:{port}", "--token-file", str(token))
    asked += ("multi", "--count", "2", "--bitrate", "400k", "--name", "pair", *SMALL, "--duration", "4")
    asked += ("--with-baseline", "--baseline-duration", "2")
    page = f"http://127.0.0.1:{port}/metrics"
    wanted = {'{stream="pair-1"}', '{stream="pair-2"}'}
    with agent(port, "--config", str(config)), started(command(tmp_path, *asked)) as running:
        wait_for(lambda: wanted <= series(get(page), "ffmpeg_fps").keys(), "the agent sees both streams")
        _, errors = running.communicate(timeout=60)
        assert (running.returncode, errors) == (0, "")
    content = results(tmp_path)
    idle, pair = content["scenarios"]
    assert content["format"] == FORMAT
    assert (idle["type"], idle["streams"]) == ("baseline", 0)
    assert (pair["type"], pair["streams"], pair["bitrates"]) == ("multi", 2, ["400k", "400k"])
    encode = pair["encode"]
    assert [one["name"] for one in encode["per_stream"]] == ["pair-1", "pair-2"]
    for key in ("frames", "megabits", "media_seconds", "achieved_kbps", "achieved_fps"):
        assert encode[key] == pytest.approx(sum(one[key] for one in encode["per_stream"]))
        assert min(one[key] for one in encode["per_stream"]) > 0
    assert encode["asked_kbps"] == 2 * (400 + 96)
    assert pair["versus_baseline"]["baseline"] == "baseline"


def test_each_of_mixed_streams_comes_to_its_own_bitrate(tmp_path: Path) -> None:
    """600k and 1500k side by side: each stream achieves its own, with its tone, within 20 %."""
    asked = ("multi", "--bitrates", "600k,1500k", *SMALL, "--resolution", "640x360", "--stabilization", "3")
    done = run(tmp_path, "--sink", "null", *asked, "--duration", "6")
    assert (done.code, done.errors) == (0, "")
    (mixed,) = results(tmp_path)["scenarios"]
    assert mixed["name"].startswith("2x_600k+1500k")
    achieved = [one["achieved_kbps"] for one in mixed["encode"]["per_stream"]]
    assert achieved == [pytest.approx(600 + 96, rel=0.2), pytest.approx(1500 + 96, rel=0.2)]


# -- sinks ---------------------------------------------------------------------------------------------


def need_rtmp() -> str:
    """Return nginx, which has its rtmp module."""
    nginx = need("nginx")
    if not RTMP_MODULE.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("libnginx-mod-rtmp is not installed")
    return nginx


def test_a_private_nginx_takes_the_streams_and_goes(tmp_path: Path) -> None:
    """--sink nginx: both streams reach an nginx of the run's own, and it ends with the run."""
    need_rtmp()
    asked = ("--sink", "nginx", "multi", "--count", "2", "--bitrate", "300k", *SMALL, "--duration", "3")
    with started(command(tmp_path, *asked, "--name", "two")) as running:
        said(running, "two: 3 s")
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(running.pid)}
        servers = [pid for pid, line in lines.items() if b"nginx" in line and b"ffmpeg" not in line]
        assert servers
        assert [b"rtmp://127.0.0.1:" in line for line in encoders(running.pid).values()] == [True, True]
        _, errors = running.communicate(timeout=60)
        assert (running.returncode, errors) == (0, "")
    assert [pid for pid in servers if Path(f"/proc/{pid}").exists()] == []
    (two,) = results(tmp_path)["scenarios"]
    assert "refused" not in " ".join(two["warnings"])
    assert min(one["achieved_kbps"] for one in two["encode"]["per_stream"]) > 100


@contextmanager
def rtmp_server(directory: Path) -> Iterator[tuple[int, int]]:
    """Run an nginx that takes streams at /live and lists them at /stat; give both ports."""
    nginx, rtmp, http = need_rtmp(), free_port(), free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    configuration = directory / "nginx.conf"
    configuration.write_text(
        f"load_module {RTMP_MODULE};\ndaemon off;\nworker_processes 1;\npid {directory}/nginx.pid;\n"
        "events { worker_connections 64; }\n"
        f"rtmp {{ server {{ listen 127.0.0.1:{rtmp}; application live {{ live on; }} }} }}\n"
        f"http {{ access_log off; {temporary}\n"
        f"  server {{ listen 127.0.0.1:{http}; location /stat {{ rtmp_stat all; }} }} }}\n"
    )
    process = subprocess.Popen(
        [nginx, "-p", str(directory), "-c", str(configuration), "-e", str(directory / "error.log")],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{http}/stat"), "nginx answers")
        yield rtmp, http
    finally:
        process.terminate()
        process.wait(10)


def answers(url: str) -> bool:
    try:
        get(url)
    except OSError:
        return False
    return True


def test_both_streams_arrive_at_a_server_that_was_there(tmp_path: Path) -> None:
    """--sink rtmp://: a server lists each stream under a name of its own, and goes on after the run."""
    asked = ("multi", "--count", "2", "--bitrate", "300k", *SMALL, "--duration", "3")
    with rtmp_server(tmp_path) as (rtmp, http):
        sink = ("--sink", f"rtmp://127.0.0.1:{rtmp}/live/cam")
        with started(command(tmp_path / "out", *sink, *asked)) as running:
            listed = ("<name>cam-1</name>", "<name>cam-2</name>")
            page = f"http://127.0.0.1:{http}/stat"
            wait_for(lambda: all(name in get(page) for name in listed), "the server lists both")
            _, errors = running.communicate(timeout=60)
            assert (running.returncode, errors) == (0, "")
        assert answers(page)


def test_a_file_shorter_than_the_window_is_streamed_in_a_loop(tmp_path: Path, ffmpeg: str) -> None:
    """--input: two seconds of clip make a window of four, at its own rate and the asked size."""
    clip = tmp_path / "clip.mp4"
    picture = ("-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25:duration=2", "-c:v", "libx264")
    subprocess.run([ffmpeg, "-loglevel", "error", *picture, str(clip)], check=True, timeout=30)
    asked = ("single", "--input", str(clip), "--bitrate", "400k", *SMALL, "--duration", "4")
    done = run(tmp_path / "out", "--sink", "null", *asked)
    assert (done.code, done.errors) == (0, "")
    (scenario,) = results(tmp_path / "out")["scenarios"]
    assert scenario["input"] == str(clip)
    assert scenario["encode"]["frames"] == pytest.approx(4 * 25, abs=12)
    assert scenario["encode"]["media_seconds"] == pytest.approx(4, abs=0.5)


# -- batches -------------------------------------------------------------------------------------------


def test_interleaved_repeats_are_blocks_with_a_baseline_each(tmp_path: Path) -> None:
    """--repeat 2 --order interleaved: unique names, groups, blocks; analyze knows the groups."""
    scenarios = (
        {"type": "baseline", "duration": 2},
        {"type": "single", "name": "one", "duration": 2},
        {"type": "multi", "name": "two", "count": 2, "duration": 2},
    )
    done = run(
        tmp_path / "out",
        "--repeat",
        "2",
        "--order",
        "interleaved",
        "--sink",
        "null",
        *batch(tmp_path, *scenarios),
    )
    assert (done.code, done.errors) == (0, "")
    content = results(tmp_path / "out")
    assert names(content) == ["baseline", "one", "two", "baseline#2", "one#2", "two#2"]
    assert [s["group"] for s in content["scenarios"]] == ["baseline", "one", "two"] * 2
    assert [s["block"] for s in content["scenarios"]] == [0, 0, 0, 1, 1, 1]
    tests = [s for s in content["scenarios"] if s["type"] != "baseline"]
    assert [s["versus_baseline"]["baseline"] for s in tests] == ["baseline"] * 2 + ["baseline#2"] * 2
    analyzed = finished([str(BIN / "powerbench"), "analyze", "--output-dir", str(tmp_path / "out")])
    assert (analyzed.code, analyzed.errors) == (0, "")
    assert {"one", "two"} <= set(analyzed.out.split())


def test_a_stream_that_is_killed_fails_its_scenario_alone(tmp_path: Path) -> None:
    """Kill -9 of one encoder of two: exit 1, the stream and ffmpeg's exit are named, the others are kept."""
    scenarios = (
        {"type": "single", "name": "one", "duration": 2},
        {"type": "multi", "name": "two", "bitrates": ["300k", "500k"], "duration": 20},
        {"type": "single", "name": "three", "duration": 2},
    )
    with started(command(tmp_path / "out", *batch(tmp_path, *scenarios))) as running:
        said(running, "two: 20 s")
        (victim,) = (pid for pid, line in encoders(running.pid).items() if b"\x00500k\x00" in line)
        os.kill(victim, signal.SIGKILL)
        _, errors = running.communicate(timeout=60)
        assert running.returncode == 1
    assert errors.startswith("powerbench: two failed: two-2 died (ffmpeg's exit code -9)")
    assert len(errors.splitlines()) == 1
    content = results(tmp_path / "out")
    assert names(content) == ["one", "two", "three"]
    assert [s["status"] for s in content["scenarios"]] == ["ok", "failed", "ok"]
    assert content["scenarios"][1]["error"] in errors


def cut_off(directory: Path, arguments: Sequence[str], number: signal.Signals) -> dict[str, Any]:
    """End a run within its scenario "second"; return what its file then holds."""
    with started(command(directory, "--sink", "null", *arguments)) as running:
        said(running, "second: 3 s")
        ours = ffmpegs(running.pid)
        assert ours
        running.send_signal(number)
        running.wait(30)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ours), "its ffmpeg is gone")
    return results(directory)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_cut_off_is_gone_on_with(tmp_path: Path, number: signal.Signals) -> None:
    """--resume: what was finished stands, the rest is measured, and file and trace hold each once."""
    scenarios = [{"type": "single", "name": name} for name in ("first", "second", "third")]
    arguments = batch(tmp_path, *scenarios)
    before = cut_off(tmp_path / "out", arguments, number)
    assert before["scenarios"][0]["status"] == "ok"
    assert [s["name"] for s in before["scenarios"] if s["status"] == "ok"] == ["first"]
    (file,) = (tmp_path / "out").glob("*.json")
    done = run(tmp_path / "out", "--sink", "null", *arguments, "--resume", str(file))
    assert (done.code, done.errors) == (0, "")
    content = results(tmp_path / "out")
    assert names(content) == ["first", "second", "third"]
    assert content["scenarios"][0] == before["scenarios"][0]
    assert content["run_id"] == before["run_id"]
    spans = spans_of(tmp_path / "out")
    assert list(spans) == ["first", "second", "third"]
    for scenario in content["scenarios"]:
        window = (scenario["start_time"], scenario["end_time"])
        assert spans[scenario["name"]] == pytest.approx(window, abs=0.5)


def test_shards_are_all_of_the_batch(tmp_path: Path) -> None:
    """--shard 1/2 and 2/2: file names that say so, the idle window in both, every test in one of them."""
    scenarios = [{"type": "baseline"}, *({"type": "single", "name": name} for name in "abc")]
    arguments = batch(tmp_path, *({**scenario, "duration": 1} for scenario in scenarios))
    held = {}
    for part in ("1", "2"):
        done = run(tmp_path / "out", "--sink", "null", *arguments, "--shard", f"{part}/2")
        assert (done.code, done.errors) == (0, "")
        (file,) = (tmp_path / "out").glob(f"test_results_*_s{part}of2.json")
        held[part] = names(json.loads(file.read_text()))
    assert held == {"1": ["baseline", "a", "c"], "2": ["baseline", "b"]}


# -- what a window is worth ----------------------------------------------------------------------------


@pytest.mark.alone
def test_the_edges_of_a_window_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    """Its times are apart what was asked within 50 ms, and the meters' own seconds within 2 %."""
    done = run(tmp_path, "--sink", "null", "single", "--bitrate", "300k", *SMALL, "--duration", "5")
    assert (done.code, done.errors) == (0, "")
    (scenario,) = results(tmp_path)["scenarios"]
    assert scenario["end_time"] - scenario["start_time"] == pytest.approx(5, abs=0.05)
    assert scenario["energy"]["seconds"] == pytest.approx(5, rel=0.02)


def test_strict_refuses_a_window_on_a_busy_machine(tmp_path: Path) -> None:
    """--strict beside a program that burns a core: exit 1, and the warning says why."""
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        asked = ("single", "--bitrate", "300k", *SMALL, "--duration", "2", "--name", "beside")
        done = run(tmp_path, "--strict", "--sink", "null", *asked)
    finally:
        burner.kill()
        burner.wait()
    assert done.code == 1
    assert "beside failed: --strict:" in done.errors
    assert "other programs used" in done.errors
    (scenario,) = results(tmp_path)["scenarios"]
    assert scenario["status"] == "failed"
    assert scenario["energy"]["joules"] > 0


def test_a_full_disk_costs_the_file_and_not_the_table(tmp_path: Path) -> None:
    """Where nothing can be written: the table, a line that says so, exit 1, and nothing half-written."""
    mount = [need("mount"), "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if os.geteuid() or finished(mount).code:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "ballast").write_bytes(b"x" * 2**20)
        asked = ("single", "--bitrate", "300k", *SMALL, "--duration", "2", "--name", "lost")
        done = run(tmp_path, "--sink", "null", *asked)
        left = [path.name for path in tmp_path.iterdir()]
    finally:
        subprocess.run([need("umount"), str(tmp_path)], check=True)
    assert done.code == 1
    assert "lost" in done.out
    assert "kbps" in done.out
    assert "cannot write" in done.errors
    assert "No space left" in done.errors
    assert len(done.errors.splitlines()) == 1
    assert left == ["ballast"]


def test_a_directory_that_may_not_be_written_is_refused_first(tmp_path: Path) -> None:
    """Without permission for --output-dir: exit 69 and one line, before any phase begins."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    # Root may write anywhere, unless the capability to do so is taken away.
    bound = (need("setpriv"), "--bounding-set=-dac_override", "--") if os.geteuid() == 0 else ()
    asked = command(closed, "--sink", "null", "single", "--bitrate", "300k", *SMALL)
    done = finished([*bound, *asked])
    assert (done.code, len(done.errors.splitlines())) == (69, 1)
    assert f"cannot write results to {closed}: Permission denied" in done.errors
    assert "warming up" not in done.out
    assert list(closed.iterdir()) == []
