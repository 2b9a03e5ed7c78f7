"""`powerbench measure`: statistics and shares worked out by hand, whole reports, real commands unharmed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from powerbench_agent.bench.cli import parser
from powerbench_agent.bench.exits import BadFile, BadFlag, NotHere
from powerbench_agent.bench.measure import costs
from powerbench_agent.bench.measure.command import Used
from powerbench_agent.bench.measure.costs import CommandRun, EnergyWindow, Measured
from powerbench_agent.bench.measure.document import describe
from powerbench_agent.bench.measure.report import hints, report
from powerbench_agent.bench.measure.runs import is_here
from powerbench_agent.bench.measure.session import make_plan
from powerbench_agent.bench.measure.share import GpuGain, GpuUse, Share, gpu_gains, share
from powerbench_agent.bench.meter.energy import Edge, Mark, MeterKey
from powerbench_agent.core.results import Energy, Part

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = Path(sys.executable).with_name("powerbench")
PATIENCE = 20.0
WATTS = {"cpu": 40.0, "dram": 5.0, "gpu": 100.0}  # of the agent below
GPU_USE = 0.5  # of the GPU's time, by the command

# Makes the terminal on standard input the controlling one, then runs a command.
IN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
WITHOUT = """
import sys
for module in ("duckdb", "rich", "numpy", "imageio_ffmpeg"):
    sys.modules[module] = None  # as if it were not installed
from powerbench_agent.bench.cli import main
sys.exit(main(["measure", "--", "true"]))
"""


class Agent(ThreadingHTTPServer):
    """An agent whose meters run at constant watts; the process in the file `pid` uses half of the GPU."""

    def __init__(self, pid: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.began = time.monotonic()
        self.pid = pid
        self.gone = False

    def snapshot(self) -> dict[str, Any]:
        now = time.monotonic()
        seconds = now - self.began
        rapl = [
            {"component": name, "source": "rapl", "key": name, "joules": seconds * WATTS[name]}
            for name in ("cpu", "dram")
        ]
        gpu = {"component": "gpu", "source": "nvml", "key": "0"}
        uses = [{**gpu, "engine": "busiest", "pid": 0, "seconds": seconds, "container": ""}]
        if self.pid.exists() and (text := self.pid.read_text().strip()):
            used = GPU_USE * (time.time() - self.pid.stat().st_mtime)
            uses += [{**gpu, "engine": name, "pid": int(text), "seconds": used} for name in ("sm", "encoder")]
        meters = [{**gpu, "joules": seconds * WATTS["gpu"]}]
        state = {"up": True, "monotonic": now, "samples": []}
        collectors = {"rapl": {**state, "meters": rapl}, "nvml": {**state, "meters": meters, "uses": uses}}
        return {"collectors": collectors, "absent": {}, "fresh": True}


class _Handler(BaseHTTPRequestHandler):
    server: Agent

    def do_GET(self) -> None:
        gone = self.server.gone and "snapshot" in self.path
        content = b"gone" if gone else json.dumps(self.server.snapshot()).encode()
        self.send_response(500 if gone else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(tmp_path / "pid") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def flags(agent: Agent, tmp_path: Path) -> list[str]:
    """Return the flags that have the agent above read."""
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    return ["--agent", f"http://127.0.0.1:{agent.server_address[1]}", "--token-file", str(token)]


def measure(*arguments: str, data: bytes | None = None, **how: Any) -> subprocess.CompletedProcess[bytes]:
    stdin = {"stdin": how.pop("stdin", subprocess.DEVNULL)} if data is None else {"input": data}
    return subprocess.run(
        [COMMAND, "measure", *arguments], capture_output=True, timeout=60, check=False, **stdin, **how
    )


@contextmanager
def started(*arguments: str, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [COMMAND, "measure", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **how,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def read_until(descriptor: int, wanted: bytes) -> bytes:
    """Read from a terminal's other end until the words come."""
    said = b""
    patience = time.monotonic() + PATIENCE
    os.set_blocking(descriptor, False)
    while wanted not in said:
        assert time.monotonic() < patience, said
        try:
            said += os.read(descriptor, 4096)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # every process has let go of it
            break
    return said


# -- statistics --------------------------------------------------------------------------------------


def test_a_mean_has_the_interval_of_students_t() -> None:
    """Five runs, worked out by hand: 2.776 standard deviations over the root of five."""
    found = costs.mean([10.0, 12.0, 11.0, 13.0, 14.0])
    assert found.mean == 12
    assert found.deviation == pytest.approx(1.5811, abs=1e-4)
    assert found.half_width == pytest.approx(2.776 * 1.5811 / 5**0.5, abs=1e-3)
    assert found.runs == 5


def test_one_run_has_no_interval() -> None:
    """A single run has no spread, and none is made up."""
    assert costs.mean([3.0]) == (3.0, None, None, 1)


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.706), (2, 4.303), (30, 2.042), (35, 2.042), (59, 2.021), (999, 1.980)]
)
def test_between_two_known_quantiles_the_wider_counts(degrees: int, t: float) -> None:
    """Student's t is taken from the table, and is never too small between two rows."""
    assert costs.t_quantile(degrees) == t


# -- shares ------------------------------------------------------------------------------------------


ENERGY = Energy.of_parts((Part("cpu", "rapl", 100.0, 10.0), Part("dram", "rapl", 20.0, 2.0)), 10.0)


def test_cpu_and_dram_are_shared_by_cpu_time() -> None:
    """10 CPU seconds of 40 are a quarter of the joules and of the watts."""
    found = share(ENERGY, (), GpuUse(), 10.0, 40.0)
    assert found.parts == (Part("cpu", "rapl", 25.0, 2.5), Part("dram", "rapl", 5.0, 0.5))
    assert (found.joules, found.watts, found.source, found.missing) == (30.0, 3.0, "rapl", ())


def test_a_share_is_never_more_than_the_whole() -> None:
    """A command that seems to use more CPU time than the machine has gets all of the energy, no more."""
    assert share(ENERGY, (), GpuUse(), 50.0, 40.0).joules == ENERGY.joules


@pytest.mark.parametrize("capacity", [None, 40.0])
def test_what_cannot_be_shared_is_named(capacity: float | None) -> None:
    """An unknown component, or any without /proc/stat, is left out of the share and named."""
    energy = Energy.of_parts((Part("board", "textfile", 9.0, 1.0),), 9.0)
    found = share(energy, (), GpuUse(), 1.0, capacity)
    assert found.parts == ()
    assert "board" in found.missing[0]


def snapshot(*uses: tuple[str, int, float]) -> dict[str, Any]:
    gpu = {"component": "gpu", "source": "nvml", "key": "0"}
    told = [{**gpu, "engine": engine, "pid": pid, "seconds": seconds} for engine, pid, seconds in uses]
    return {"collectors": {"nvml": {"up": True, "uses": told}, "host": {"up": True}}}


def test_a_gpu_is_shared_by_the_busiest_engine_of_the_commands_processes() -> None:
    """Two processes, one with two engines at once: 3 + 1 seconds of 10; a stranger's count for nothing."""
    used = GpuUse()
    used.take(
        "a", snapshot(("busiest", 0, 5.0), ("sm", 7, 1.0), ("encoder", 7, 2.0), ("sm", 9, 50.0)), {7, 8}
    )
    used.take("a", snapshot(("sm", 7, 2.0), ("encoder", 7, 2.0), ("sm", 8, 1.0)), {7, 8})
    gain = GpuGain(("a", "nvml", "0"), 1000.0, 10.0)
    found = share(Energy.of_parts((Part("gpu", "nvml", 1000.0, 100.0),), 10.0), [gain], used, 0.0, 40.0)
    assert found.parts == (Part("gpu", "nvml", 400.0, 40.0),)


def test_a_gpu_whose_processes_are_not_reported_has_no_share() -> None:
    """Unreported use is not zero use: the GPU's joules are left out, and it is named."""
    gain = GpuGain(("a", "drm", "0000:03:00.0"), 1000.0, 10.0)
    found = share(Energy.of_parts((Part("gpu", "drm", 1000.0, 100.0),), 10.0), [gain], GpuUse(), 0.0, 40.0)
    assert found.parts == ()
    assert "0000:03:00.0" in found.missing[0]


def test_a_gpus_gain_is_that_of_its_meter() -> None:
    """It is the counter's difference between two readings; a vanished or restarted meter has none."""
    keys = [MeterKey("a", "nvml", "gpu", "nvml", str(number)) for number in range(3)]
    cpu = MeterKey("a", "rapl", "cpu", "rapl", "0")
    begin = Edge(0.0, {**dict.fromkeys(keys, Mark(10.0, 1.0)), cpu: Mark(0.0, 1.0)})
    end = Edge(0.0, {keys[0]: Mark(40.0, 3.0), keys[1]: Mark(5.0, 3.0), cpu: Mark(9.0, 3.0)})
    assert list(gpu_gains(begin, end)) == [GpuGain(("a", "nvml", "0"), 30.0, 2.0)]


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:9510", True),
        ("http://localhost:9510", True),
        ("http://[::1]:9510/prefix", True),
        ("http://127.9.9.9", True),
        ("http://192.0.2.1:9510", False),
        ("https://worker1:9510", False),
        ("http://localhost.example", False),
    ],
)
def test_only_a_loopback_agent_is_on_this_machine(url: str, here: bool) -> None:  # noqa: FBT001 - a parameter
    """A share is only possible if the agent and the command are on the same machine."""
    assert is_here(url) is here


# -- the report --------------------------------------------------------------------------------------


def run_of(scale: float) -> CommandRun:
    parts = (
        Part("cpu", "rapl", 480.0 * scale, 40.0 * scale),
        Part("dram", "rapl", 60.0 * scale, 5.0 * scale),
        Part("gpu", "nvml", 1200.0 * scale, 100.0 * scale),
    )
    window = EnergyWindow(1000.0, 1012.0, Energy.of_parts(parts, 12.0))
    idle = Energy.of_parts(tuple(Part(p.component, p.source, 120.0, 10.0) for p in parts), 12.0)
    return CommandRun(
        Used(0, 12.0 * scale, 20.0, 4.0, 24.0, frames=1200),
        window,
        costs.against(window, EnergyWindow(0.0, 12.0, idle)),
        Share((Part("cpu", "rapl", 120.0 * scale, 10.0 * scale),), ("gpu (nvml 0: …)",)),
        96.0,
    )


IDLE = EnergyWindow(
    0.0, 12.0, Energy.of_parts(tuple(Part(p, "rapl", 120.0, 10.0) for p in ("cpu", "dram", "gpu")), 12.0)
)

REPEATED = """\
Energy of: ffmpeg -i 'a b.mp4' -c:v libx264 out.mp4

                             J       ±        W      ±  source
cpu                     480.00  119.25    40.00   9.94  rapl
dram                     60.00   14.91     5.00   1.24  rapl
gpu                    1200.00  298.12   100.00  24.84  nvml
total                  1740.00  432.27   145.00  36.02  nvml + rapl
idle, same duration     360.00    0.00    30.00         nvml + rapl
beyond idle           +1380.00  432.27  +115.00  36.02  nvml + rapl
share of the command    120.00   29.81    10.00   2.48  rapl

                       J/frame       ±
all of the host         1.4500  0.3602                  nvml + rapl
beyond idle            +1.1500  0.3602                  nvml + rapl
share of the command    0.1000  0.0248                  rapl

12.000 ± 2.981 s elapsed
24.000 ± 0.000 s of CPU time, 25.0 % of the machine's CPU capacity
1200 frames, 100.7 ± 25.1 per second

± is the 95 % confidence interval of the mean over 3 runs; the idle window was
measured once.
The command's share is attributed by CPU time and GPU use, not measured.
Not in the share: gpu (nvml 0: …).
"""


def test_the_report_of_repeated_runs_stands_as_it_is() -> None:
    """Components, total, idle, share and joules per frame in columns, within 80 of them."""
    command = ("ffmpeg", "-i", "a b.mp4", "-c:v", "libx264", "out.mp4")
    text = report(Measured(command, (run_of(0.9), run_of(1.0), run_of(1.1)), IDLE))
    assert text == REPEATED
    assert max(map(len, text.splitlines())) <= 80


ONCE = """\
Energy of: sh -c 'exit 3'

                           J     W  source
cpu                   12.000  4.00  estimate
share of the command   3.000  1.00  estimate

3.000 s elapsed
2.000 s of CPU time, 25.0 % of the machine's CPU capacity

The command failed with exit code 3.
The command's share is attributed by CPU time and GPU use, not measured.
Nothing measures the CPU here.
"""


def failed(code: int) -> CommandRun:
    window = EnergyWindow(0.0, 3.0, Energy.of_parts((Part("cpu", "estimate", 12.0, 4.0),), 3.0))
    part = Share((Part("cpu", "estimate", 3.0, 1.0),))
    return CommandRun(Used(code, 3.0, 2.0, 0.0, 2.0), window, None, part, 8.0)


def test_the_report_of_one_run_that_failed_stands_as_it_is() -> None:
    """There is no ±, every line of energy says `estimate`, and the exit code is reported."""
    measured = Measured(("sh", "-c", "exit 3"), (failed(3),), notes=("Nothing measures the CPU here.",))
    assert report(measured) == ONCE


def test_a_run_that_failed_is_not_in_the_mean() -> None:
    """With two good runs and a killed one, the figures are based on the two, and the report says so."""
    measured = Measured(("x",), (failed(0), failed(0), failed(137)))
    text = report(measured)
    assert "Run 3 of 3: the command was killed by SIGKILL." in text
    assert "The figures are based on the 2 runs that succeeded." in text
    assert describe(measured)["statistics"]["of_runs"] == [1, 2]


def test_a_warning_of_several_runs_is_shown_once() -> None:
    """Warnings that differ only in their figures become one line with the number of runs."""
    warned = [
        replace(run_of(1), warnings=(f"other programs took {share} % of the CPUs", "hot"))
        for share in (4, 5.5, 7)
    ]
    lines = list(hints(Measured(("x",), tuple(warned))))
    assert [line for line in lines if "other programs" in line] == [
        "other programs took 4 % of the CPUs (in 3 runs, with different figures)"
    ]
    assert lines.count("hot") == 1


def test_a_command_cannot_upset_the_terminal() -> None:
    """Control characters and undecodable bytes are not printed, and no line is broken or too long."""
    command = ("sh", "-c", "a\nb\x1b[2J\udcff", "x" * 100)
    head = report(Measured(command, ())).splitlines()[0]
    assert head.isprintable()
    assert len(head) == 80


# -- the process -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["sh", "-c", "exit 3"], 3, "exit code 3"),
        (["sh", "-c", "kill -9 $$"], 137, "killed by SIGKILL"),
        (["--repeat", "x"], 127, "powerbench: --repeat: not found\n"),
        (["/"], 126, "powerbench: cannot run /: Permission denied\n"),
    ],
)
def test_the_exit_code_is_the_commands(flags: list[str], command: list[str], code: int, words: str) -> None:
    """The command's exit code is passed on; one that cannot run gives one line."""
    done = measure(*flags, "--", *command)
    assert done.returncode == code
    assert done.stdout == b""
    assert words in done.stderr.decode()
    if code in (126, 127):
        assert done.stderr.decode() == words


def test_the_commands_files_are_its_own(flags: list[str]) -> None:
    """Input, output, errors and any other descriptor reach it, and every byte comes through."""
    read, write = os.pipe()
    os.write(write, b"fd")
    os.close(write)
    data = bytes(range(256)) * 64
    script = f"cat; cat /dev/fd/{read}; printf 'err\\rors' >&2; printf '%s' \"$@\""
    done = measure(*flags, "--", "sh", "-c", script, "sh", "-v", "--", "-x", data=data, pass_fds=(read,))
    os.close(read)
    assert done.stdout == data + b"fd-v---x"
    assert done.stderr.startswith(b"err\rors\nEnergy of: ")


# It reports twelve frames where it is told to, and fails if the file it writes is there and it may not ask.
ENCODER = """#!/bin/bash
for word; do output=$word; done
case " $* " in
    *" -y "*) ;;
    *) [ -e "$output" ] && { read -r -p "Overwrite? [y/N] " answer; [ "$answer" = y ] || exit 1; } ;;
esac
while [ $# -gt 0 ]; do [ "$1" = -progress ] && printf 'frame=12\\nprogress=end\\n' >&"${2#pipe:}"; shift; done
echo done >"$output"
sleep 0.2
"""


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Return a directory with an `ffmpeg`; PATH must have it first."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("ffmpeg", "ffmpeg-7.0"):
        (directory / name).write_text(ENCODER)
        (directory / name).chmod(0o755)
    return directory


def encode(
    flags: list[str], encoder: Path, *command: str, repeat: int = 1, **how: Any
) -> subprocess.CompletedProcess[bytes]:
    path = {**os.environ, "PATH": f"{encoder}:{os.environ['PATH']}"}
    return measure(*flags, "--repeat", str(repeat), "--", *command, env=path, cwd=encoder.parent, **how)


@pytest.mark.parametrize(
    "before",
    [
        ["ffmpeg"],
        ["ffmpeg-7.0"],
        ["nice", "-n", "5", "ffmpeg"],
        ["nice", "-5", "timeout", "-k", "1s", "60", "env", "-u", "X", "A=B", "ffmpeg"],
        ["setsid", "-w", "stdbuf", "-oL", "ffmpeg"],
    ],
)
def test_an_ffmpeg_behind_others_has_its_frames_counted(
    flags: list[str], encoder: Path, before: list[str]
) -> None:
    """Joules a frame of twelve frames, whatever hands its words on."""
    done = encode(flags, encoder, *before, "-i", "x", "out.mp4")
    assert done.returncode == 0, done.stderr
    assert b"12 frames" in done.stderr
    assert b"No joules per frame" not in done.stderr


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        (["sh", "-c", "ffmpeg -i x out.mp4"], b"give ffmpeg itself as the command"),
        (["sh", "-c", "set -e; nice ffmpeg -i x 'out.mp4'"], b"give ffmpeg itself as the command"),
        (["ffmpeg", "-progress", "pipe:2", "-i", "x", "out.mp4"], b"a -progress of its own; omit it"),
    ],
)
def test_frames_that_cannot_be_counted_are_said(
    flags: list[str], encoder: Path, command: list[str], remedy: bytes
) -> None:
    """One sentence, with what to do; the command itself is unharmed."""
    done = encode(flags, encoder, *command)
    assert done.returncode == 0
    said = b" ".join(done.stderr.split())
    assert said.count(b"No joules per frame: ") == 1
    assert remedy in said
    assert (encoder.parent / "out.mp4").exists()


def test_an_ffmpeg_that_only_shows_among_the_processes_is_said(flags: list[str], encoder: Path) -> None:
    """A script of its own names no ffmpeg in the command: its process is seen."""
    script = encoder.parent / "encode"
    script.write_text("#!/bin/sh\nffmpeg x out.mp4\n")
    script.chmod(0o755)
    (encoder / "ffmpeg").write_text("#!/bin/sh\nsleep 2.5\n")
    done = encode(flags, encoder, str(script))
    assert b"No joules per frame" in b" ".join(done.stderr.split())


@pytest.mark.parametrize(
    "command", [["ls", "bin/ffmpeg"], ["echo", "ffmpeg"], ["sh", "-c", "cd bin; ls ffmpeg"]]
)
def test_another_command_is_not_told_of_frames(flags: list[str], encoder: Path, command: list[str]) -> None:
    """A command that only names an ffmpeg runs none."""
    assert b"frame" not in encode(flags, encoder, *command).stderr


@pytest.fixture
def silent() -> Iterator[int]:
    """Give an input that stays open and says nothing, as a terminal without a person."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def test_repeats_overwrite_what_the_first_run_wrote(flags: list[str], encoder: Path, silent: int) -> None:
    """README's command: three runs, though ffmpeg would ask and its input never answers."""
    done = encode(flags, encoder, "ffmpeg", "-i", "in.mp4", "out.mp4", repeat=3, stdin=silent)
    assert (done.returncode, done.stdout) == (0, b"")
    said = b" ".join(done.stderr.split())
    assert b"over 3 runs" in said
    assert b"After the first run ffmpeg got -y, to overwrite out.mp4." in said
    assert b"Overwrite?" not in said


def test_a_script_that_would_ask_ends_instead_of_waiting(
    flags: list[str], encoder: Path, silent: int
) -> None:
    """What cannot be given -y gets no input: the second run fails, and the remedy is said."""
    done = encode(flags, encoder, "sh", "-c", "ffmpeg -i x out.mp4", repeat=3, stdin=silent)
    said = b" ".join(done.stderr.split())
    assert done.returncode == 1
    assert b"Run 2 of 2: the command failed with exit code 1" in said
    assert b"have its ffmpeg overwrite files with -y" in said


@pytest.mark.parametrize("answer", ["-y", "-n"])
def test_a_file_that_is_there_is_asked_about_before_anything(
    flags: list[str], encoder: Path, answer: str
) -> None:
    """Exit 2 and one line: the question would be waited for, and the time measured; not with an answer."""
    output = encoder.parent / "out.mp4"
    output.write_text("precious")
    done = encode(flags, encoder, "nice", "ffmpeg", "-i", "x", "file:out.mp4", repeat=2)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert b"out.mp4 exists, and ffmpeg would ask whether to overwrite it: add -y" in done.stderr
    assert output.read_text() == "precious"
    answered = encode(flags, encoder, "ffmpeg", answer, "-i", "x", "out.mp4", repeat=2)
    assert b"would ask" not in answered.stderr


def test_repeats_that_may_not_overwrite_are_refused(flags: list[str], encoder: Path) -> None:
    """The second run could only fail; one run, or another output, goes on as it is."""
    refused = encode(flags, encoder, "ffmpeg", "-n", "-i", "x", "out.mp4", repeat=2)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert b"with -n ffmpeg would not overwrite out.mp4 in the second run" in refused.stderr
    assert not (encoder.parent / "out.mp4").exists()
    assert encode(flags, encoder, "ffmpeg", "-n", "-i", "x", "out.mp4").returncode == 0


def test_one_run_may_be_answered_through_its_input(flags: list[str], encoder: Path) -> None:
    """`yes | powerbench measure -- ffmpeg ...` works as it did."""
    (encoder.parent / "out.mp4").write_text("old")
    done = encode(flags, encoder, "ffmpeg", "-i", "x", "out.mp4", data=b"y\n")
    assert done.returncode == 0
    assert (encoder.parent / "out.mp4").read_text() == "done\n"


def test_the_file_agrees_with_itself_and_the_shares_with_the_rule(
    agent: Agent, flags: list[str], tmp_path: Path
) -> None:
    """Parts add up, shares follow CPU time and GPU use, means fit the runs, windows enclose their runs."""
    path = tmp_path / "cost.json"
    busy = "import time\nuntil = time.process_time() + 0.2\nwhile time.process_time() < until: pass"
    script = f"echo $$ >{agent.pid}; {sys.executable} -c '{busy}'; sleep 0.15"
    arguments = ["--repeat", "3", "--idle", "0.2", "--json", str(path), "--progress"]
    done = measure(*flags, *arguments, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    text = done.stderr.decode()
    assert "powerbench: run 2 of 3: " in text
    assert "±" in text
    assert max(map(len, text.splitlines())) <= 80
    content = json.loads(path.read_text())
    assert (content["format"], content["kind"], content["exit_code"]) == (1, "measure", 0)
    assert content["command"] == ["sh", "-c", script]
    assert content["sources"] == {"cpu": ["rapl"], "dram": ["rapl"], "gpu": ["nvml"]}
    assert "cpu_model" in content["host"]
    assert len(content["runs"]) == 3
    for run in content["runs"]:
        energy, cpu = run["energy"], run["cpu_seconds"]
        assert energy["joules"] == pytest.approx(sum(part["joules"] for part in energy["parts"]))
        assert energy["mean_watts"] == pytest.approx(sum(WATTS.values()))
        assert run["end_time"] - run["start_time"] >= run["seconds"]
        assert energy["seconds"] >= run["seconds"] > 0.35
        assert cpu["tree"] >= cpu["user"] + cpu["system"] >= 0.2  # a grandchild's is in it
        whole = {part["component"]: part["joules"] for part in energy["parts"]}
        shares = {part["component"]: part["joules"] for part in run["share"]["parts"]}
        assert shares["cpu"] / whole["cpu"] == pytest.approx(cpu["tree"] / cpu["machine"])
        assert shares["dram"] / whole["dram"] == pytest.approx(cpu["tree"] / cpu["machine"])
        assert shares["gpu"] / whole["gpu"] == pytest.approx(GPU_USE, abs=0.2)  # once it has started
        assert run["share"]["joules"] == pytest.approx(sum(shares.values()))
        assert run["share"]["joules"] <= energy["joules"]
        assert run["beyond_idle"]["delta_watts"] == pytest.approx(0, abs=0.1)
        assert run["frames"] is None
    figures = content["statistics"]["figures"]
    joules = [run["energy"]["joules"] for run in content["runs"]]
    assert figures["total"]["joules"]["mean"] == pytest.approx(sum(joules) / 3)
    assert figures["total"]["joules"]["half_width"] > 0
    assert not list(tmp_path.glob(".cost*"))


def test_an_agent_elsewhere_gives_no_share(agent: Agent, flags: list[str], tmp_path: Path) -> None:
    """An agent at an address that is not loopback may be on any machine: no share, and the report says so."""
    elsewhere = f"http://0.0.0.0:{urlsplit(flags[1]).port}"  # which Linux takes for this host
    assert agent.server_address[1] == urlsplit(elsewhere).port
    path = tmp_path / "cost.json"
    done = measure("--agent", elsewhere, *flags[2:], "--json", str(path), "--", "sleep", "0.15")
    assert done.returncode == 0
    assert "on another machine" in " ".join(done.stderr.decode().split())
    (run,) = json.loads(path.read_text())["runs"]
    assert run["share"] is None


def test_an_agent_that_goes_away_costs_the_figures_and_not_the_command(
    agent: Agent, flags: list[str], tmp_path: Path
) -> None:
    """The command still ends by itself; the file and exit code 69 say that its energy is lost."""
    path = tmp_path / "cost.json"
    with started(
        *flags, "--json", str(path), "--", "sh", "-c", "echo up; read line; echo $line", stdin=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        agent.gone = True
        out, err = process.communicate(b"down\n", timeout=PATIENCE)
    assert (process.returncode, out) == (69, b"down\n")
    assert b"answers 500" in b" ".join(err.split())
    (run,) = json.loads(path.read_text())["runs"]
    assert run["energy"] is None
    assert "answers 500" in run["problems"][0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_what_was_measured_is_reported(
    flags: list[str], number: signal.Signals
) -> None:
    """Without a terminal, which would send it too, the command gets our signal; we exit as it does."""
    name = number.name.removeprefix("SIG")
    script = f"trap 'exit 9' {name}; echo up; while :; do sleep 0.02; done"
    with started(*flags, "--repeat", "3", "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 9
    assert b"exit code 9" in err
    assert f"Ended by {number.name} after 1 of 3 runs" in err.decode()


def test_a_signal_before_the_command_ends_it_all(flags: list[str]) -> None:
    """In the idle window nothing is measured yet: exit code 128 + N, one line, and the command never ran."""
    with started(*flags, "--idle", "30", "--progress", "--", "echo", "ran") as process:
        assert process.stderr is not None
        assert b"idle window" in process.stderr.readline()
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (143, b"")
    assert err == b"powerbench: interrupted before anything was measured\n"


def test_in_a_terminal_ctrl_c_reaches_the_command_once(flags: list[str]) -> None:
    """It has the terminal on all three descriptors, gets one SIGINT, and nothing is shown while it runs."""
    ours, its = os.openpty()
    script = (
        "n=0; trap 'n=$((n+1))' INT; test -t 0 && test -t 1 && test -t 2 && echo UP; "
        "while [ $n = 0 ]; do sleep 0.02; done; "
        "for i in 1 2 3 4 5; do sleep 0.02; done; echo SIGNALS=$n; exit 5"
    )
    command = [sys.executable, "-c", IN_TERMINAL, str(COMMAND), "measure", *flags, "--", "sh", "-c", script]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        said = read_until(ours, b"UP")
        os.write(ours, b"\x03")
        said += read_until(ours, b"exit code 5")
        assert process.wait(PATIENCE) == 5
    os.close(ours)
    assert said.split(b"Energy of")[0].split() == [b"UP", b"^CSIGNALS=1"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--repeat", "2", "--"], 2, ["COMMAND", "--help"]),
        (["--repeat", "0", "--", "true"], 2, ["--repeat", "from 1"]),
        (["--agent", "http://127.0.0.1:1", "--", "true"], 69, ["no agent at http://127.0.0.1:1"]),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(arguments: list[str], code: int, words: list[str]) -> None:
    """One line says what is wrong and what to do, and the command is not started."""
    done = measure(*arguments)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert [word for word in words if word not in done.stderr.decode()] == []


@pytest.mark.parametrize(
    ("arguments", "refusal", "words"),
    [
        (["--agent", "worker", "true"], BadFlag, "--agent 'worker': must be a URL"),
        (["--token-file", "/nonexistent/t", "true"], BadFile, "--token-file /nonexistent/t: cannot read it"),
        (["--json", "/nonexistent/f", "true"], NotHere, "cannot write /nonexistent/f: No such file"),
        (
            ["--json", "/dev/null", "true"],
            NotHere,
            "cannot write /dev/null: it exists and is not a regular file",
        ),
        (["--json", "/", "true"], NotHere, "cannot write /: it exists and is not a regular file"),
    ],
)
def test_what_cannot_be_is_refused_before_the_command(
    arguments: list[str], refusal: type[Exception], words: str
) -> None:
    """A file that cannot be written or a token that cannot be read is reported before anything runs."""
    with pytest.raises(refusal, match=words):
        make_plan(parser("measure").parse_args(["measure", *arguments]))


def test_a_workers_install_is_enough() -> None:
    """Without any extra, an in-process agent is read, and the report names the source of its joules."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Energy of: true" in done.stderr
    assert ("estimate" in done.stderr) != ("rapl\n" in done.stderr)


def test_help_comes_without_heavy_imports() -> None:
    """--help answers with examples, and neither aiohttp nor asyncio is loaded for it."""
    program = (
        "import sys\nfrom powerbench_agent.bench.cli import main\n"
        "try:\n    main(['measure', '--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "heavy = {'rich', 'aiohttp', 'duckdb', 'asyncio'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "powerbench measure -- ffmpeg -i in.mp4 -c:v libx264 out.mp4" in done.stdout
