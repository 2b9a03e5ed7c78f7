"""What the agent itself costs, beside a peer in the same run: `make bench`.

The machine is whatever it is, and others may be on it: read the ratios and medians, not the milliseconds.
Energy comes from a simulated counter whose true value is known at every moment; the page says so.
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BIN = Path(sys.executable).parent
PEER = Path(__file__).with_name("peer.py")
ZONES = (
    "intel-rapl:0",
    "intel-rapl:0:0",
    "intel-rapl:0:1",
    "intel-rapl:1",
    "intel-rapl:1:0",
    "intel-rapl:1:1",
)
NAMES = ("package-0", "core", "dram", "package-1", "core", "dram")
RANGE_UJ = 65_532_610_987
WATTS = RANGE_UJ / 1e6 / 35  # of the simulated counter: it wraps every 35 s


def free_port() -> int:
    """Return a port that nobody has."""
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
    """Run a server; give (its pid, seconds from exec until it answers 200)."""
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


def make_tree(root: Path) -> None:
    """Put six RAPL zones there."""
    for path, name in zip(ZONES, NAMES, strict=True):
        zone = root / "class/powercap" / path
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        (zone / "energy_uj").write_text("0\n")


def resident_kb(pid: int) -> int:
    """Return the resident size."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def cpu_seconds(pid: int) -> float:
    """Return the CPU time used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def latencies_ms(port: int, count: int) -> list[float]:
    """Return how long each GET /metrics took, on one connection."""
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


def paired(measure: Callable[[Callable[[int, Path], list[str]]], float], times: int) -> tuple[float, float]:
    """Return the medians of (agent, peer), measured in turn."""
    ours, theirs = [], []
    for _ in range(times):
        ours.append(measure(agent))
        theirs.append(measure(peer))
    return statistics.median(ours), statistics.median(theirs)


def row(what: str, ours: float, theirs: float | None, unit: str, budget: str) -> None:
    """Print a line."""
    beside = "" if theirs is None else f"{theirs:10.3f} {ours / theirs:7.2f}"
    print(f"{what:44} {ours:10.3f} {beside:18} {unit:4} {budget}")


def energy_error(sysfs: Path) -> tuple[float, float, int]:
    """Return (median error, largest error, wraps) of real 10 s windows on a counter that is known."""
    stop = threading.Event()
    start = time.monotonic()
    zone = sysfs / "class/powercap/intel-rapl:0/energy_uj"

    def truth(at: float) -> float:
        return WATTS * (at - start)

    def move() -> None:
        descriptor = os.open(zone, os.O_WRONLY)
        while not stop.is_set():
            raw = int(truth(time.monotonic()) * 1e6) % RANGE_UJ
            os.pwrite(descriptor, b"%012d\n" % raw, 0)
            stop.wait(
                0.0003
            )  # a RAPL register moves every millisecond; here the mover itself is late now and then
        os.close(descriptor)

    mover = threading.Thread(target=move)
    mover.start()
    errors = []
    port = free_port()
    try:
        with started(agent(port, sysfs), port, "/ready"):
            for _ in range(4):
                before = edge(port)
                time.sleep(10)
                after = edge(port)
                true = truth(after[1]) - truth(before[1])
                errors.append((after[0] - before[0]) / true - 1)
            wraps = edge(port)[2]
    finally:
        stop.set()
        mover.join()
    return statistics.median(map(abs, errors)), max(map(abs, errors)), wraps


def edge(port: int) -> tuple[float, float, int]:
    """Return the first package's (joules, monotonic second, wraps) as of now."""
    state = msgspec.json.decode(get(port, "/api/v1/snapshot?fresh=1")[1])["collectors"]["rapl"]
    joules = next(meter["joules"] for meter in state["meters"] if meter["key"] == "intel-rapl:0")
    wraps = next(
        sample["value"]
        for sample in state["samples"]
        if sample["name"] == "rapl_wraps_total" and sample["labels"]["path"] == "intel-rapl:0"
    )
    return joules, state["monotonic"], int(wraps)


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
        make_tree(sysfs)

        def ready(command: Callable[[int, Path], list[str]]) -> float:
            port = free_port()
            path = "/ready" if command is agent else "/metrics"
            with started(command(port, sysfs), port, path) as (_, seconds):
                return seconds

        def memory(command: Callable[[int, Path], list[str]]) -> float:
            port = free_port()
            with started(command(port, sysfs), port, "/metrics") as (pid, _):
                latencies_ms(port, 50)
                time.sleep(2)
                return resident_kb(pid) / 1000

        def page(command: Callable[[int, Path], list[str]]) -> float:
            port = free_port()
            with started(command(port, sysfs), port, "/metrics"):
                time.sleep(1.5)
                latencies_ms(port, 100)
                return statistics.median(latencies_ms(port, 2000))

        def busy(command: Callable[[int, Path], list[str]]) -> float:
            """CPU of ten seconds, scraped once a second, in percent of a core."""
            port = free_port()
            with started(command(port, sysfs), port, "/metrics") as (pid, _):
                time.sleep(1)
                before = cpu_seconds(pid)
                for _ in range(10):
                    get(port, "/metrics")
                    time.sleep(1)
                return (cpu_seconds(pid) - before) * 10

        row("exec to ready", *paired(ready, 7), "s", "<= 0.7")
        helps = []
        for _ in range(7):
            begun = time.perf_counter()
            subprocess.run([BIN / "powerbench", "--help"], stdout=subprocess.DEVNULL, check=True)
            helps.append(time.perf_counter() - begun)
        row("powerbench --help", statistics.median(helps), None, "s", "<= 0.2")
        row("resident, rapl + ffmpeg + host + estimate", *paired(memory, 3), "MB", "<= 48")
        row("GET /metrics, one connection", *paired(page, 3), "ms", "<= 0.5")
        row("CPU, beating and scraped once a second", *paired(busy, 1), "%", "")
        median, worst, wraps = energy_error(sysfs)
        print(f"energy over real 10 s windows of a simulated counter, {wraps} wraps within:")
        print(f"  error {median:.4%}, at worst {worst:.4%}; budget 0.02 %")


if __name__ == "__main__":
    main()
