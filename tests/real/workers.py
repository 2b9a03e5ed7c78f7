"""Workers for the dashboards: real agents, streams, containers and node_exporter on simulated hardware.

`worker-1` is a simulated machine of files: RAPL, GPUs of AMD and Intel, and NVIDIA's through the stub of its
library. `worker-2` has no sensor, so its energy is estimated. `worker-3` does not answer. Containers, their
cgroups, processes and `/proc` are this machine's own.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from gpu_trees import DGPU, SECOND, Gpus
from real.conftest import agent, free_port, get, need, series, wait_for
from real.dockerd import Dockerd
from stubs import stub, truth
from trees import Powercap, add_frequency, add_hwmon

from powerbench_agent.core.results import FORMAT
from powerbench_agent.core.scores import Pooled, Psnr, Scores, Ssim, Xpsnr

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
CAPTURES = ROOT / "tests/captures"
WATTS = {"intel-rapl:0": 40.0, "intel-rapl:0:0": 12.0, "intel-rapl:0:1": 6.0}  # package, core, dram
CPU_AND_MEMORY_WATTS = 46.0
XE_WATTS = 30.0
BEAT = 0.05  # seconds between the simulated counters' steps

# Writes and reads past the page cache, so that a container has block I/O where its engine can count it.
BUSY = """while :; do
dd if=/dev/zero of=/f bs=4096 count=50 oflag=direct
dd if=/f of=/dev/null bs=4096 iflag=direct
done"""
PAGE = """# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{{gpu="0",UUID="GPU-1"}} 71.5
DCGM_FI_DEV_GPU_UTIL{{gpu="0",UUID="GPU-1"}} 40
DCGM_FI_DEV_ENC_UTIL{{gpu="0",UUID="GPU-1"}} 55
DCGM_FI_DEV_GPU_TEMP{{gpu="0",UUID="GPU-1"}} 48
DCGM_FI_DEV_FB_USED{{gpu="0",UUID="GPU-1"}} 1200
nginx_rtmp_stream_bytes_in_total{{application="live",stream="cam1"}} {octets}
nginx_rtmp_stream_bytes_out_total{{application="live",stream="cam1"}} {octets}
nginx_rtmp_stream_clients{{application="live",stream="cam1"}} 3
powerbench_collector_faults_total{{collector="host",part="frequency"}} 3
"""
CADVISOR = """container_cpu_usage_seconds_total{{name="busy",cpu="total"}} {octets}e-6
container_memory_working_set_bytes{{name="busy"}} 4096000
container_memory_working_set_bytes{{name=""}} 9e9
container_network_receive_bytes_total{{name="busy",interface="eth0"}} {octets}
container_network_transmit_bytes_total{{name="busy",interface="eth0"}} {octets}
"""


@contextmanager
def workers(directory: Path) -> Iterator[dict[str, str]]:
    """Run all of it; yield the targets: file of targets → its content."""
    with ExitStack() as stack:
        hardware = stub.Machine(directory, traced=False)
        stack.enter_context(_drawing(hardware))
        add_frequency(hardware.sysfs, 0, "2400000\n")
        add_hwmon(hardware.sysfs, 0, "platform/coretemp.0", {"temp1_input": "42000"})
        bare = directory / "bare"
        for sysfs in (hardware.sysfs, bare):
            (sysfs / "fs").mkdir(parents=True)
            (sysfs / "fs/cgroup").symlink_to("/sys/fs/cgroup")
        engine = Dockerd(directory)
        stack.callback(engine.stop)
        engine.start()
        engine.import_image()
        engine.run("busy", BUSY, NanoCpus=200_000_000)
        config = _config(directory, engine)
        ports = [free_port() for _ in range(3)]
        places = ("--config", str(config), "--sysfs")
        stack.enter_context(agent(ports[0], *places, str(hardware.sysfs), env=hardware.environment))
        stack.enter_context(agent(ports[1], *places, str(bare)))
        for port in ports[:2]:
            stack.enter_context(_stream(port))
        node = stack.enter_context(_node_exporter())
        page = stack.enter_context(_page(PAGE))
        cadvisor = stack.enter_context(_page(CADVISOR))
        targets = "".join(
            f"- targets: ['127.0.0.1:{port}']\n  labels: {{host: worker-{number}}}\n"
            for number, port in enumerate(ports, 1)
        )
        yield {
            "powerbench.yml": targets,
            # Once more in another job: what is added up counts it once.
            "rapl.yml": f"- targets: ['127.0.0.1:{ports[0]}']\n  labels: {{host: worker-1}}\n",
            "node.yml": f"- targets: ['127.0.0.1:{node}']\n  labels: {{host: worker-1}}\n",
            "dcgm.yml": f"- targets: ['127.0.0.1:{page}']\n  labels: {{host: worker-1}}\n",
            "cadvisor.yml": f"- targets: ['127.0.0.1:{cadvisor}']\n  labels: {{host: worker-1}}\n",
        }


def configure(directory: Path, targets: dict[str, str]) -> Path:
    """Lay the stack's own scrape configuration and rules there, on these targets; return the former.

    Every interval is a second, so that a test need not wait for four scrapes at 15 s.
    """
    source = ROOT / "compose/prometheus"
    for path in source.rglob("*.yml"):
        text = path.read_text()
        if path.parent.name == "targets":
            text = targets.get(path.name, "[]\n")
        else:
            text = re.sub(r"(\binterval|scrape_interval|evaluation_interval): \w+", r"\1: 1s", text)
        copy = directory / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    return directory / "prometheus.yml"


SCORES = Scores(
    frames=300,
    size="1280x720",
    encoded_size="1280x720",
    pix_fmt="yuv420p",
    scaler="",
    scored_by="9.0",
    vmaf=Pooled(mean=93.5, harmonic_mean=93.0, p1=88.0, minimum=80.0),
    vmaf_model="vmaf_v0.6.1",
    psnr=Psnr(average=41.25, y=40.0, u=45.0, v=45.0),
    xpsnr=Xpsnr(minimum=39.5, y=40.0, u=39.5, v=45.0),
    ssim=Ssim(average=0.98, y=0.97),
)


def _config(directory: Path, engine: Dockerd) -> Path:
    """Write the agents' configuration, and the results files that they watch."""
    results = directory / "results"
    results.mkdir()
    older = (CAPTURES / "results_format1.json").read_text()
    (results / "test_results_20260203_101112.json").write_text(older)
    newer = json.loads((CAPTURES / "results_format2.json").read_text())
    for scenario in newer["scenarios"]:
        if "encode" in scenario:
            scenario["encode"] |= {"megapixels": 3317.76, "media_seconds": 120.0, "speed": 1.0}
            scenario["encode"]["quality"] = {"of": "10 s", "streams": [msgspec.to_builtins(SCORES)]}
    newer["format"] = FORMAT
    newer["conclusions"] = [{"group": "abr", "source": "rapl", "low": 21.5, "high": 48.5}]
    (results / "test_results_20260304_050607.json").write_text(json.dumps(newer))
    config = directory / "agent.toml"
    config.write_text(
        f'[collectors.docker]\nurl = "{engine.url}"\n'
        f'[collectors.results]\ninterval = "1s"\nruns = 5\ndirectory = "{results}"\n'
        '[collectors.host]\ninterval = "1s"\n'
    )
    return config


@contextmanager
def _drawing(hardware: stub.Machine) -> Iterator[None]:
    """Let the simulated machine draw its watts."""
    powercap, gpus = Powercap(hardware.sysfs), Gpus(hardware.sysfs)
    powercap.zone("intel-rapl:0", "package-0", limits={"long_term": 125.0})
    powercap.zone("intel-rapl:0:0", "core")
    powercap.zone("intel-rapl:0:1", "dram")
    gpus.amd(0, DGPU, watts=100.0)
    gpus.xe(1, SECOND)
    truth.tell(hardware, 0)
    ended = threading.Event()
    begun = time.monotonic()

    def draw() -> None:
        beats = 0
        while not ended.wait(BEAT):
            beats += 1
            passed = time.monotonic() - begun
            for path, watts in WATTS.items():
                # In place and of one length: a reader meets the old number or the new one.
                with powercap.file(path).open("r+b", buffering=0) as file:
                    file.write(b"%012d\n" % int(passed * watts * 1e6))
            with gpus.file(SECOND, "energy1_input").open("r+b", buffering=0) as file:
                file.write(b"%012d\n" % int(passed * XE_WATTS * 1e6))
            if beats % 20 == 0:
                # Again and again: an Xid is only seen by an agent that is listening already.
                truth.tell(hardware, beats // 20, more={"xid 0": None if beats % 100 else "79"})

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _stream(port: int) -> Iterator[None]:
    """Encode a real stream that reports to this agent."""
    url = f"http://127.0.0.1:{port}/ingest?stream=cam1"
    command = [need("ffmpeg"), "-nostats", "-progress", url, "-re", "-f", "lavfi"]
    command += ["-i", "testsrc2=size=320x180:rate=30", "-c:v", "libx264", "-preset", "ultrafast"]
    command += ["-f", "flv", "-flvflags", "no_duration_filesize", "-y", "/dev/null"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        page = f"http://127.0.0.1:{port}/metrics"
        wait_for(lambda: bool(series(get(page), "ffmpeg_fps")), "the stream shows")
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def _node_exporter() -> Iterator[int]:
    port = free_port()
    command = [need("prometheus-node-exporter"), f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def _page(text: str) -> Iterator[int]:
    """Serve what others would show (DCGM, nginx-rtmp, cAdvisor), and a part that fails; made by hand."""
    begun = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = text.format(octets=int((time.monotonic() - begun) * 250_000)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()
