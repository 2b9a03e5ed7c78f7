"""What this machine has of everything that measuring needs, and the command for what it lacks.

Energy, GPUs and containers are as an agent in this process finds them, in its own words. The rest is looked
up: programs on the PATH, ports in procfs. Nothing is changed, and nothing is connected to but the container
engine's socket and the agent's port.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import aiohttp

from powerbench_agent.agent import config, daemon, roster
from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.load.ffmpeg import find_ffmpeg
from powerbench_agent.bench.load.nginx import rtmp_module
from powerbench_agent.bench.load.trial import check_ffmpeg
from powerbench_agent.bench.meter import fingerprint
from powerbench_agent.bench.meter.choose import LOCAL_AGENT
from powerbench_agent.bench.meter.client import AgentClient, AgentFailed
from powerbench_agent.bench.plan import defaults
from powerbench_agent.bench.plan.scenario import Resolution, Scenario
from powerbench_agent.core import ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Which = Callable[[str], str | None]

Verdict = Literal["ok", "note", "bad"]

# What listens where in the stack and in the classic layout: docs/stack.md.
PORTS: Mapping[int, str] = {
    9510: "agent",
    9511: "nvml",
    9506: "ffmpeg",
    9501: "docker",
    9502: "results",
    1935: "RTMP",
    8080: "nginx",
    9090: "Prometheus",
    8428: "VictoriaMetrics",
    8880: "vmalert",
    9093: "Alertmanager",
    9100: "node_exporter",
    3000: "Grafana",
}
NATIVE: Mapping[str, str] = {  # program → Debian's package
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "prometheus-node-exporter": "prometheus-node-exporter",
    "victoria-metrics": "victoria-metrics",
    "vmalert": "victoria-metrics",
}


class Finding(NamedTuple):
    """One thing that was checked."""

    verdict: Verdict
    what: str
    text: str
    remedy: str = ""  # what to do; empty if nothing can or need be done


async def examine() -> list[Finding]:
    """Return what was found on this machine, the most important first."""
    modules = roster.load_modules()
    settings = config.load(None, roster.options_of(modules))
    async with aiohttp.ClientSession() as session:
        async with daemon.embedded(settings, modules) as inside:
            client = AgentClient(session, inside.url, inside.token)
            await client.ready()
            snapshot = await client.snapshot()
        running: dict[str, Any] | None = None
        with contextlib.suppress(AgentFailed):
            running = await AgentClient(session, LOCAL_AGENT).snapshot()
    host = fingerprint.host()
    holders = {port: ports.holder(port) for port in PORTS}
    return [
        *machine(host),
        *energy(snapshot, virtual=host["virtual"]),
        *gpus(snapshot),
        await encoder(),
        *rtmp(shutil.which),
        *containers(snapshot, shutil.which),
        agent(running, holders[config.DEFAULT_PORT]),
        ports_taken(holders),
        *extras(shutil.which),
    ]


def machine(host: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what machine this is, and what makes its figures less certain."""
    kind = "virtual machine" if host["virtual"] else "bare metal"
    text = f"{host['cpu_model'] or host['machine']}, {host['cpus']} CPUs, Linux {host['kernel']}, {kind}"
    yield Finding("ok", "machine", text)
    if host["governor"] not in (None, "performance"):
        yield Finding(
            "note",
            "governor",
            f"{host['governor']}: the CPU clock follows the load, which distorts comparisons",
            "before a benchmark: cpupower frequency-set -g performance",
        )


def energy(snapshot: Mapping[str, Any], *, virtual: bool) -> Iterator[Finding]:
    """Yield whether the CPU's energy can be measured."""
    if why := snapshot["absent"].get("rapl"):
        remedy = (
            "" if virtual else "sudo modprobe intel_rapl_msr (on AMD, too), or enable RAPL in the firmware"
        )
        yield Finding("note", "RAPL", f"{why}: the CPU's energy can only be estimated", remedy)
    elif (state := snapshot["collectors"].get("rapl")) is None or not state["up"]:
        remedy = "sudo chgrp powercap … and chmod 0440, or run as root; see docs/guide.md, access to RAPL"
        yield Finding("bad", "RAPL", _error(state), remedy)
    else:
        counters = [f"{meter['component']} {meter['key']}" for meter in state["meters"]]
        yield Finding("ok", "RAPL", f"measures {', '.join(counters)}")


def gpus(snapshot: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield which GPUs can be read."""
    for name, what in (("nvml", "NVIDIA GPU"), ("drm", "AMD, Intel")):
        if why := snapshot["absent"].get(name):
            yield Finding("ok", what, why)
        elif (state := snapshot["collectors"].get(name)) is None or not state["up"]:
            yield Finding("bad", what, _error(state))
        else:
            yield Finding("ok", what, f"{len(state['meters'])} with an energy counter")


def _error(state: Mapping[str, Any] | None) -> str:
    return str(state["error"]) if state else "did not answer in time"


async def encoder() -> Finding:
    """Return which ffmpeg `powerbench run` would use."""
    try:
        ffmpeg = await find_ffmpeg()
    except NotHere as missing:
        return Finding("bad", "ffmpeg", str(missing))
    if "libx264" not in ffmpeg.encoders:
        remedy = "install a build with libx264, or name one with --ffmpeg"
        return Finding("bad", "ffmpeg", f"{ffmpeg.path} {ffmpeg.version} has no libx264", remedy)
    stream = Scenario(
        name="trial",
        type="single",
        duration=1.0,
        video_kbps=500.0,
        resolution=Resolution(320, 180),
        fps=30,
        encoder=defaults.ENCODER,
        preset=defaults.PRESET,
    )
    try:
        await check_ffmpeg(ffmpeg, [stream], "embedded")
    except NotHere as unable:
        what, _, remedy = str(unable).rpartition("; ")
        return Finding("bad", "ffmpeg", what, remedy)
    return Finding("ok", "ffmpeg", f"{ffmpeg.path} {ffmpeg.version}")


def rtmp(which: Which) -> Iterator[Finding]:
    """Yield whether nginx can receive RTMP; the embedded sink does not need it."""
    nginx = which("nginx") or which("/usr/sbin/nginx")
    try:
        if nginx is None:
            raise NotHere("nginx is not installed")
        rtmp_module(nginx)
    except NotHere as missing:
        what = str(missing).partition(";")[0]
        remedy = "only needed for --sink nginx and the stack: apt install nginx libnginx-mod-rtmp"
        yield Finding("note", "nginx-rtmp", what, remedy)
    else:
        yield Finding("ok", "nginx-rtmp", f"{nginx}, with its rtmp module")


def containers(snapshot: Mapping[str, Any], which: Which) -> Iterator[Finding]:
    """Yield whether containers can be seen, and whether the stack can run in containers."""
    if why := snapshot["absent"].get("docker"):
        remedy = ""
        if "permi" in why:
            remedy = "run as root, or usermod -aG docker USER: that group is equivalent to root"
        yield Finding("note", "engine", why, remedy)
    elif (state := snapshot["collectors"].get("docker")) is None or not state["up"]:
        yield Finding("bad", "engine", _error(state), "systemctl start docker")
    else:
        yield Finding("ok", "engine", "answers")
    if which("docker") is None:
        yield Finding("note", "docker", "not installed; the stack also runs without it", "make native-up")
    elif which("docker-compose") is None and not _has_compose_plugin():
        remedy = "apt install docker-compose-plugin (Docker's packages) or docker-compose (Debian's)"
        yield Finding("note", "compose", "Docker has no Compose", remedy)
    else:
        yield Finding("ok", "docker", "with Compose")


def _has_compose_plugin() -> bool:
    system = ("/usr/libexec/docker", "/usr/lib/docker", "/usr/local/lib/docker")
    homes = [Path.home() / ".docker", *map(Path, system)]
    return any((home / "cli-plugins/docker-compose").exists() for home in homes)


def agent(running: Mapping[str, Any] | None, holder: str | None) -> Finding:
    """Return whether an agent is running on this machine."""
    if running is not None:
        text = f"version {running.get('version', 'unknown')} answers at {LOCAL_AGENT}"
        down = sorted(name for name, state in running["collectors"].items() if not state["up"])
        if not down:
            return Finding("ok", "agent", text)
        return Finding("note", "agent", f"{text}; down: {', '.join(down)}", f"curl {LOCAL_AGENT}/health")
    if holder is not None:
        remedy = f"stop it, or choose another port: powerbench-agent --port {config.DEFAULT_PORT + 10}"
        return Finding("bad", "agent", f"{holder} has port {config.DEFAULT_PORT} and is not an agent", remedy)
    return Finding("note", "agent", "not running", "powerbench-agent, or systemctl start powerbench-agent")


def ports_taken(holders: Mapping[int, str | None]) -> Finding:
    """Return which of the stack's ports are taken, and by what."""
    taken = [f"{port} ({PORTS[port]}) by {who}" for port, who in holders.items() if who]
    if not taken:
        return Finding("ok", "ports", "all ports of the stack are free")
    return Finding("note", "ports", f"taken: {'; '.join(taken)}", "fine if that is the stack itself")


def extras(which: Which) -> Iterator[Finding]:
    """Yield what the stack without containers lacks."""
    if missing := sorted({package for program, package in NATIVE.items() if which(program) is None}):
        remedy = f"only needed for make native-up: apt install {' '.join(missing)}"
        yield Finding("note", "servers", f"not installed: {', '.join(missing)}", remedy)
    else:
        yield Finding("ok", "servers", "everything that make native-up runs is installed")
