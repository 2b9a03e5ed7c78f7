"""Cost of the agent itself, compared with a peer in the same run: the first part of `make benchmarks`.

The machine may be slow and shared, so look at the ratios and medians, not at the milliseconds.
Energy comes from a simulated counter whose true value is known at every moment; the output says so.
"""

from __future__ import annotations

import http.client
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from simulated import RANGE_UJ, make_rapl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Command = Callable[[int, Path], list[str]]  # of port and sysfs

BIN = Path(sys.executable).parent
PEER = Path(__file__).with_name("peer.py")
WATTS = RANGE_UJ / 1e6 / 35  # of the simulated counter: it wraps every 35 s


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def get(port: int, path: str) -> tuple[int, bytes]:
    """Return (status, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@contextmanager
def started(command: list[str], port: int, path: str) -> Iterator[tuple[int, float]]:
    """Run a server; yield (its pid, seconds from exec until it answers 200)."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                if get(port, path)[0] == 200:
                    break
            except OSError:
                pass
            time.sleep(0.002)
        yield process.pid, time.perf_counter() - begun
    finally:
        process.terminate()
        process.wait(10)


def agent(port: int, sysfs: Path) -> list[str]:
    """Return the agent's command."""
    return [str(BIN / "powerbench-agent"), "--listen", f"127.0.0.1:{port}", "--sysfs", str(sysfs)]


def peer(port: int, sysfs: Path) -> list[str]:
    """Return the peer's command."""
    return [sys.executable, str(PEER), str(port), str(sysfs)]


def resident_kb(pid: int) -> int:
    """Return a process's resident size in kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def latencies_ms(port: int, count: int) -> list[float]:
    """Return the duration of each GET /metrics on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        connection.request("GET", "/metrics")
        connection.getresponse().read()
        found.append((time.perf_counter() - begun) * 1e3)
    connection.close()
    return found


def paired(measure: Callable[[Command, Path], float], sysfs: Path, times: int) -> tuple[float, float]:
    """Return the medians of (agent, peer), measured alternately."""
    ours, theirs = [], []
    for _ in range(times):
        ours.append(measure(agent, sysfs))
        theirs.append(measure(peer, sysfs))
    return statistics.median(ours), statistics.median(theirs)


def row(what: str, ours: float, theirs: float | None, unit: str, budget: str) -> None:
    """Print one line of the table."""
    beside = "" if theirs is None else f"{theirs:10.3f} {ours / theirs:7.2f}"
    print(f"{what:44} {ours:10.3f} {beside:18} {unit:4} {budget}")


def true_joules(start: float, now: float) -> float:
    """Return the energy that the simulated counter has counted by monotonic second `now`."""
    return WATTS * (now - start)


@contextmanager
def moving_counter(sysfs: Path) -> Iterator[float]:
    """Move the first package's counter in a thread; yield the monotonic second at which it was 0."""
    stop = threading.Event()
    start = time.monotonic()

    def move() -> None:
        descriptor = os.open(sysfs / "class/powercap/intel-rapl:0/energy_uj", os.O_WRONLY)
        while not stop.is_set():
            raw_uj = int(true_joules(start, time.monotonic()) * 1e6) % RANGE_UJ
            os.pwrite(descriptor, b"%012d\n" % raw_uj, 0)
            stop.wait(0.0003)  # a RAPL register moves every ms, but this thread is late now and then
        os.close(descriptor)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        yield start
    finally:
        stop.set()
        mover.join()


def energy_error(sysfs: Path) -> tuple[float, float, int]:
    """Return (median error, largest error, wraps) of real 10 s windows on a counter that is known."""
    errors = []
    port = free_port()
    with moving_counter(sysfs) as start, started(agent(port, sysfs), port, "/ready"):
        for _ in range(4):
            joules_before, begun, _ = first_package(port)
            time.sleep(10)
            joules_after, ended, wraps = first_package(port)
            true = true_joules(start, ended) - true_joules(start, begun)
            errors.append(abs((joules_after - joules_before) / true - 1))
    return statistics.median(errors), max(errors), wraps


def first_package(port: int) -> tuple[float, float, int]:
    """Return the first package's (joules, monotonic second, wraps) as of now."""
    snapshot = msgspec.json.decode(get(port, "/api/v1/snapshot?fresh=1")[1])
    state = snapshot["collectors"]["rapl"]
    (joules,) = [meter["joules"] for meter in state["meters"] if meter["key"] == "intel-rapl:0"]
    wraps = {
        sample["labels"]["path"]: sample["value"]
        for sample in state["samples"]
        if sample["name"] == "rapl_wraps_total"
    }
    return joules, state["monotonic"], int(wraps["intel-rapl:0"])


def seconds_to_ready(command: Command, sysfs: Path) -> float:
    """Return the seconds from exec to the first answer that is complete."""
    port = free_port()
    path = "/ready" if command is agent else "/metrics"
    with started(command(port, sysfs), port, path) as (_, seconds):
        return seconds


def resident_mb(command: Command, sysfs: Path) -> float:
    """Return the resident size after some scrapes."""
    port = free_port()
    with started(command(port, sysfs), port, "/metrics") as (pid, _):
        latencies_ms(port, 50)
        time.sleep(2)
        return resident_kb(pid) / 1000


def scrape_ms(command: Command, sysfs: Path) -> float:
    """Return the median duration of a scrape."""
    port = free_port()
    with started(command(port, sysfs), port, "/metrics"):
        time.sleep(1.5)
        latencies_ms(port, 100)
        return statistics.median(latencies_ms(port, 2000))


def cpu_percent(command: Command, sysfs: Path) -> float:
    """Return the CPU time over ten seconds with a scrape per second, in percent of a core."""
    port = free_port()
    with started(command(port, sysfs), port, "/metrics") as (pid, _):
        time.sleep(1)
        before = cpu_seconds(pid)
        for _ in range(10):
            get(port, "/metrics")
            time.sleep(1)
        return (cpu_seconds(pid) - before) * 10


def help_seconds() -> float:
    """Return the duration of `powerbench --help`."""
    begun = time.perf_counter()
    subprocess.run([BIN / "powerbench", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = cpuinfo.partition("model name")[2].partition("\n")[0].strip("\t :")
    python = platform.python_version()
    print(f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {python}")
    print("peer: the same zones behind prometheus_client's own server (benchmarks/peer.py); medians")
    print(f"{'':44} {'powerbench':>10} {'peer':>10} {'ratio':>7} {'':4} budget")
    with tempfile.TemporaryDirectory() as directory:
        sysfs = Path(directory)
        make_rapl(sysfs)
        row("exec to ready", *paired(seconds_to_ready, sysfs, 7), "s", "<= 0.7")
        helps = [help_seconds() for _ in range(7)]
        row("powerbench --help", statistics.median(helps), None, "s", "<= 0.2")
        row("resident, rapl + ffmpeg + host + estimate", *paired(resident_mb, sysfs, 3), "MB", "<= 48")
        row("GET /metrics, one connection", *paired(scrape_ms, sysfs, 3), "ms", "<= 0.5")
        row("CPU, reading and scraped once a second", *paired(cpu_percent, sysfs, 1), "%", "")
        median, worst, wraps = energy_error(sysfs)
        print(f"energy over real 10 s windows of a simulated counter, with {wraps} wraps:")
        print(f"  median error {median:.4%}, largest {worst:.4%}; budget 0.02 %")


if __name__ == "__main__":
    main()
