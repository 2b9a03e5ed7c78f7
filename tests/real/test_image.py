"""The images and the Compose file, on a real engine with a real Compose. RAPL is a simulated tree, mounted.

The engine is the tests' own. Of the stack's services those run that are built here: the agent, nginx with its
rtmp module, the proxy before the engine's socket, and a per-port exporter.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from real.conftest import BIN, free_port, get, need, series, wait_for
from real.dockerd import Dockerd
from real.images import BASE, build, docker, import_base, megabytes
from trees import Powercap

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "compose/docker-compose.yml"
PORTS = ("AGENT", "RTMP", "RTMP_HTTP", "FFMPEG")
SERVICES = ("agent", "nginx-rtmp", "docker-proxy")
STOP_SECONDS = 2.0
OWN_MEGABYTES = 45  # what the agent's image adds to its base: 34 when this was written
ZONE = "intel-rapl:0"


class Stack(NamedTuple):
    """The stack's project on an engine of the tests' own."""

    dockerd: Dockerd
    directory: Path
    ports: dict[str, int]
    powercap: Powercap

    def compose(self, *arguments: str) -> str:
        files = ["--file", str(FILE), "--file", str(self.directory / "override.yml")]
        command = [str(BIN / "docker-compose"), "--project-name", "pb"]
        command += ["--env-file", str(self.directory / "env"), *files, *arguments]
        environment = os.environ | {"DOCKER_HOST": self.dockerd.url}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def docker(self, *arguments: str) -> str:
        return docker(self.dockerd.url, *arguments)

    def container(self, service: str) -> str:
        return f"pb-{service}-1"

    def wait_until_well(self, service: str) -> None:
        """Wait for what the image's or the file's health check says."""
        look = ("inspect", "--format", "{{.State.Health.Status}}", self.container(service))
        wait_for(lambda: self.docker(*look) == "healthy", f"{service} is well")

    def url(self, name: str, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    def page(self) -> str:
        return get(self.url("AGENT", "/metrics"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    """Yield an engine that has the images, built on a base without a registry."""
    daemon = Dockerd(tmp_path_factory.mktemp("d"), storage="")
    try:
        daemon.start()
        import_base(daemon.url, tmp_path_factory.mktemp("base"))
        agent = ("powerbench-agent", "--file", str(ROOT / "packaging/image/Dockerfile"), str(ROOT))
        nginx = ("powerbench-nginx-rtmp", str(ROOT / "compose/nginx-rtmp"))
        with ThreadPoolExecutor() as both:
            list(both.map(lambda arguments: build(daemon.url, *arguments), (agent, nginx)))
        yield daemon
    finally:
        daemon.stop()


def bridges() -> list[str]:
    """Return the interfaces that have the stack's gateway address."""
    listing = subprocess.run([need("ip"), "-json", "address"], capture_output=True, check=True).stdout
    return [
        link["ifname"]
        for link in json.loads(listing)
        if any(address.get("local") == "172.31.95.1" for address in link["addr_info"])
    ]


@pytest.fixture(scope="module")
def stack(images: Dockerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield the running services, all well."""
    for bridge in bridges():
        if not os.environ.get("CI"):
            pytest.fail(f"the stack's network is on this machine already, {bridge}: make down")
        subprocess.run([need("ip"), "link", "delete", bridge], check=True)  # of a run that was killed
    directory = tmp_path_factory.mktemp("stack")
    ports = {name: free_port() for name in PORTS}
    sysfs = directory / "sys"
    powercap = Powercap(sysfs)
    powercap.zone(ZONE, "package-0", energy_uj=100e6)
    powercap.file(ZONE).chmod(0o400)
    for name in ("fs/cgroup", "kernel"):
        (sysfs / name).mkdir(parents=True)
    results = directory / "results"
    results.mkdir()
    lines = [f"{name}_PORT={port}" for name, port in ports.items()]
    lines += ["VICTORIAMETRICS_KEY=unused", "POWERBENCH_USER=0:0"]  # the counters are root's alone
    lines += [f"DOCKER_GID={images.socket.stat().st_gid}"]
    lines += [f"DOCKER_SOCKET={images.socket}", f"RESULTS_DIR={results}"]
    (directory / "env").write_text("\n".join(lines))
    simulated = {"volumes": [f"{sysfs}:/host/sys:ro", "/sys/fs/cgroup:/host/sys/fs/cgroup:ro"]}
    override = {"services": {"agent": simulated, "ffmpeg-exporter": simulated}}
    (directory / "override.yml").write_text(json.dumps(override))  # YAML too
    stack = Stack(images, directory, ports, powercap)
    try:
        stack.compose("up", "--detach", "--no-build", *SERVICES)
        for service in SERVICES:
            stack.wait_until_well(service)
        yield stack
    finally:
        stack.compose("--profile", "per-port", "down", "--volumes", "--timeout", "5")


def post(url: str) -> int:
    request = urllib.request.Request(url, data=b"frame=10\nfps=30.0\nprogress=continue\n")  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - likewise
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


# -- the file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2", "1"])
def test_compose_takes_the_file(version: str, tmp_path: Path) -> None:
    """Compose of today and Debian's 1.29 both read it with every profile and the GPUs' file on top."""
    program = str(BIN / "docker-compose") if version == "2" else need("/usr/bin/docker-compose")
    env = tmp_path / "env"
    env.write_text("VICTORIAMETRICS_KEY=x\nDOCKER_GID=1\n")
    files = ["--file", str(FILE), "--file", str(ROOT / "compose/nvidia.yml")]
    profiles = ["--profile", "vm", "--profile", "nvidia", "--profile", "per-port"]
    command = [program, "--env-file", str(env), *files, *profiles, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_from_the_root_compose_needs_make_env_once(tmp_path: Path) -> None:
    """`docker compose` in the root says so before `make env`, a line a variable; after it, it has all."""
    (tmp_path / "compose").mkdir()
    for name in ("compose.yaml", "compose/docker-compose.yml", "compose/make-env"):
        shutil.copy(ROOT / name, tmp_path / name)
    command = [str(BIN / "docker-compose"), "config"]
    without = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert without.returncode != 0
    lines = without.stderr.splitlines()
    assert lines
    assert all("run make env" in line for line in lines)
    env = os.environ | {"DOCKER_SOCKET": str(tmp_path)}
    subprocess.run([tmp_path / "compose/make-env"], check=True, env=env, stdout=subprocess.DEVNULL)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("name: powerbench\n")


# -- the image by itself -----------------------------------------------------------------------------


def test_the_image_is_small_and_has_no_tools(images: Dockerd) -> None:
    """The agent adds few megabytes to its base: no pip, no compiler, no package lists; all of it compiled."""
    own = megabytes(images.url, "powerbench-agent") - megabytes(images.url, BASE)
    assert 0 < own < OWN_MEGABYTES
    script = """command -v pip pip3 gcc; ls /var/lib/apt/lists | grep _
        cd /usr/lib/powerbench/lib/python3*/site-packages && ls | grep -E '^(pip|hatchling|setuptools)'
        find . -name '*.py' ! -path '*/__pycache__/*' | while read -r file; do
            set -- "${file%/*}/__pycache__/$(basename "$file" .py)".cpython-*.pyc; [ -e "$1" ] || echo "$file"
        done"""
    assert (
        docker(
            images.url, "run", "--rm", "--network=none", "--entrypoint=sh", "powerbench-agent", "-c", script
        )
        == ""
    )


def test_the_image_alone_is_nobody_who_may_read_rapl_by_its_group(images: Dockerd, tmp_path: Path) -> None:
    """Its user is 9510, which root's counters are closed to; with the group of the counters it reads them."""
    sysfs = tmp_path / "sys"
    powercap = Powercap(sysfs)
    powercap.zone(ZONE, "package-0", energy_uj=100e6)
    counter = powercap.file(ZONE)
    counter.chmod(0o440)
    os.chown(counter, 0, 9777)
    shown = {}
    for group in ("9510", "9777"):
        flags = [
            "--rm",
            "--detach",
            "--network=none",
            "--read-only",
            "--cap-drop=ALL",
            f"--group-add={group}",
        ]
        flags += [f"--volume={sysfs}:/host/sys:ro", "powerbench-agent", "--sysfs=/host/sys", "--only=rapl"]
        container = docker(images.url, "run", *flags)
        look = [
            "exec",
            container,
            "/usr/lib/powerbench/bin/python",
            "-c",
            "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9510/metrics').read().decode())",
        ]
        wait_for(lambda look=look: "powerbench_collector_up" in _attempt(images.url, *look), "it is read")
        shown[group] = series(docker(images.url, *look), "powerbench_collector_up")['{collector="rapl"}']
        assert docker(images.url, "exec", container, "id", "-u") == "9510"
        docker(images.url, "stop", container)
    assert shown == {"9510": 0.0, "9777": 1.0}


def _attempt(url: str, *arguments: str) -> str:
    try:
        return docker(url, *arguments)
    except subprocess.CalledProcessError:
        return ""


# -- the services ------------------------------------------------------------------------------------


def test_energy_is_read_as_root_without_a_capability(stack: Stack) -> None:
    """RAPL (simulated, 0400) is read, containers have their joules of it, and nginx' page is shown."""
    joules = 'component="cpu",container="pb-nginx-rtmp-1",source="rapl"'
    stack.powercap.set_joules(ZONE, 101)
    wait_for(lambda: 1 in series(stack.page(), "rapl_energy_joules_total").values(), "the counter is seen")
    wait_for(
        lambda: f"{{{joules}}}" in series(stack.page(), "docker_container_energy_joules_total"), "shares"
    )
    up = series(stack.page(), "powerbench_collector_up")
    assert {up[f'{{collector="{name}"}}'] for name in ("rapl", "docker", "nginx_rtmp", "host", "ffmpeg")} == {
        1.0
    }
    assert "nginx_rtmp_uptime_seconds" in stack.page()


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_can_do_nothing_else(stack: Stack, service: str) -> None:
    """No capability in any set, no new privileges, system calls filtered, a root that cannot be written."""
    container = stack.container(service)
    pid = stack.docker("inspect", "--format", "{{.State.Pid}}", container)
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(lines[name], 16) == 0
    assert (lines["NoNewPrivs"].strip(), lines["Seccomp"].strip()) == ("1", "2")
    with pytest.raises(subprocess.CalledProcessError):
        stack.docker("exec", container, "touch", "/there", "/etc/there")
    user = lines["Uid"].split()[0]
    assert user == {"agent": "0"}.get(service, "33")


def test_of_the_hosts_mounts_only_what_is_asked_for_is_there(stack: Stack) -> None:
    """Debug file systems and binfmt_misc, which `:ro` would not reach on older engines, are hidden."""
    container = stack.container("agent")
    for path in ("/host/sys/kernel", "/host/proc/sys"):
        assert stack.docker("exec", container, "ls", "-A", path) == ""
        with pytest.raises(subprocess.CalledProcessError):
            stack.docker("exec", container, "touch", f"{path}/there")


def test_encoders_of_this_machine_may_report_and_other_containers_not(stack: Stack) -> None:
    """A report to the published port comes from the gateway, which is trusted; the network is not."""
    assert post(stack.url("AGENT", "/ingest?stream=cam1")) in (200, 204)
    wait_for(lambda: 'stream="cam1"' in stack.page(), "the stream shows")
    request = (
        "POST /ingest?stream=other HTTP/1.0\\r\\nHost: agent\\r\\nContent-Length: 8\\r\\n\\r\\nframe=1\\n"
    )
    script = f"exec 3<>/dev/tcp/agent/9510; printf '{request}' >&3; read -r _ status _ <&3; echo $status"
    assert stack.docker("exec", stack.container("nginx-rtmp"), "bash", "-c", script) == "403"


def test_a_streams_bytes_are_counted(stack: Stack, ffmpeg: str) -> None:
    """A real ffmpeg publishes to the published port; the agent shows the stream out of nginx' stat page."""
    target = f"rtmp://127.0.0.1:{stack.ports['RTMP']}/live/cam2"
    picture = ["-re", "-f", "lavfi", "-i", "testsrc2=size=160x120:rate=15", "-t", "20"]
    command = [ffmpeg, "-nostdin", "-v", "error", *picture, "-c:v", "libx264", "-f", "flv", target]
    with subprocess.Popen(command) as process:
        wait_for(lambda: any('stream="cam2"' in k and v > 0 for k, v in _bytes_in(stack).items()), "bytes")
        process.terminate()
    assert get(stack.url("RTMP_HTTP", "/health")) == "ok\n"


def _bytes_in(stack: Stack) -> dict[str, float]:
    return series(stack.page(), "nginx_rtmp_stream_bytes_in_total")


def test_networks_figures_are_each_containers_own(stack: Stack) -> None:
    """From a namespace of its own the agent finds each container's network, and not the machine's."""

    def received() -> dict[str, float]:
        return series(stack.page(), "docker_container_network_receive_bytes_total")

    expected = {f'{{container="{stack.container(service)}"}}' for service in SERVICES}
    wait_for(lambda: set(received()) >= expected, "every container has a network")
    for service in SERVICES:
        pid = stack.docker("inspect", "--format", "{{.State.Pid}}", stack.container(service))
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
        now = sum(int(line.split(":")[1].split()[0]) for line in lines if not line.strip().startswith("lo:"))
        assert received()[f'{{container="{stack.container(service)}"}}'] <= now


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/version", 200),
        ("GET", "/v1.41/containers/json?all=1", 200),
        ("GET", "/containers/pb-agent-1/json", 200),
        ("GET", "/containers/pb-agent-1/archive?path=/etc", 403),
        ("GET", "/images/json", 403),
        ("GET", "/containers/%2e%2e/images/json", 403),
        ("GET", "/containers/json%0a", 403),
        ("POST", "/containers/create", 403),
        ("POST", "/containers/pb-agent-1/json", 403),
        ("DELETE", "/containers/pb-agent-1", 403),
    ],
)
def test_the_engine_can_be_asked_and_not_told(stack: Stack, method: str, path: str, status: int) -> None:
    """What the agent may send to the engine: GET of what it needs. Nothing else has an effect."""
    volume = stack.docker("volume", "inspect", "--format", "{{.Mountpoint}}", "pb_docker-api")
    connection = http.client.HTTPConnection("docker")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(10)
    connection.sock.connect(f"{volume}/docker.sock")
    connection.putrequest(method, path, skip_accept_encoding=True)
    connection.putheader("Content-Length", "0")
    connection.endheaders()
    assert connection.getresponse().status == status
    connection.close()


def test_the_proxy_comes_back_after_it_was_killed(stack: Stack) -> None:
    """SIGKILL leaves the socket behind; the next start binds it all the same, and the agent finds it."""
    container = stack.container("docker-proxy")
    stack.docker("kill", container)
    stack.compose("up", "--detach", "--no-build", "docker-proxy")
    wait_for(
        lambda: series(stack.page(), "powerbench_collector_up").get('{collector="docker"}') == 1, "docker up"
    )
    assert stack.docker("inspect", "--format", "{{.State.Running}}", container) == "true"


def test_one_exporter_of_its_own_port(stack: Stack) -> None:
    """A service of the profile per-port starts by its name alone, on its classic port, and is well there."""
    stack.compose("up", "--detach", "--no-build", "ffmpeg-exporter")
    stack.wait_until_well("ffmpeg-exporter")
    assert post(stack.url("FFMPEG", "/ingest?stream=cam3")) in (200, 204)
    page = get(stack.url("FFMPEG", "/metrics"))
    assert set(series(page, "powerbench_collector_up")) == {'{collector="ffmpeg"}', '{collector="node"}'}


def test_it_stops_at_once_and_well(stack: Stack) -> None:
    """SIGTERM (nginx: SIGQUIT) ends each within two seconds, exit 0; nothing was logged as an error."""
    for service in SERVICES:
        container = stack.container(service)
        began = time.monotonic()
        stack.docker("stop", "--time", "10", container)
        assert time.monotonic() - began < STOP_SECONDS
        assert stack.docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
        log = stack.docker("logs", container)
        assert "Traceback" not in log
        assert '"level": "error"' not in log
