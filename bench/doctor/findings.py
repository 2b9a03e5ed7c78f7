"""`powerbench doctor`: what this machine has of all that measuring needs, and the command for what it lacks.

What can be read of energy, GPUs and containers is what an agent in this process finds, in its own words;
the rest is looked up: programs on the PATH, ports in procfs. Nothing is changed, nothing is connected to but
the engine's socket and the agent's port.

Exit codes: 0 nothing stands in the way; 1 something does, and its line says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import aiohttp

from powerbench_agent.agent import config, daemon, log, roster
from powerbench_agent.bench import exits
from powerbench_agent.bench.load.ffmpeg import NotHere, find_ffmpeg
from powerbench_agent.bench.load.nginx import rtmp_module
from powerbench_agent.bench.meter import fingerprint
from powerbench_agent.bench.meter.choose import LOCAL_AGENT
from powerbench_agent.bench.meter.client import AgentClient, AgentFailed
from powerbench_agent.core import ports

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping

    Which = Callable[[str], str | None]

Verdict = Literal["ok", "note", "bad"]

_COLOURS: Mapping[Verdict, str] = {"ok": "32", "note": "33", "bad": "31"}
# Who listens where in the stack and the classic layout: docs/stack.md.
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
    """One thing that was looked at."""

    verdict: Verdict
    what: str
    text: str
    remedy: str = ""  # what to do, where there is something to do

    def line(self, *, colour: bool) -> str:
        """Return it as a person reads it."""
        verdict = (
            f"\x1b[{_COLOURS[self.verdict]}m{self.verdict:<4}\x1b[0m" if colour else f"{self.verdict:<4}"
        )
        return f"{verdict}  {self.what:<11} {self.text}" + (
            f"\n{'':18}→ {self.remedy}" if self.remedy else ""
        )


def main(flags: argparse.Namespace) -> int:
    """Look at the machine, and say what there is; return the exit code."""
    del flags
    log.set_up("console", "critical")
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    findings = asyncio.run(examine())
    for finding in findings:
        print(finding.line(colour=colour))  # noqa: T201 - what a command line is for
    bad = sum(finding.verdict == "bad" for finding in findings)
    if bad:
        print(f"{bad} of these {'stands' if bad == 1 else 'stand'} in the way.")  # noqa: T201 - likewise
    return exits.FAILED if bad else exits.OK


async def examine() -> list[Finding]:
    """Return everything that there is to say of this machine, the most important first."""
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
    """Say what machine it is, and what of it makes figures less sure."""
    kind = "virtual machine" if host["virtual"] else "bare metal"
    text = f"{host['cpu_model'] or host['machine']}, {host['cpus']} CPUs, Linux {host['kernel']}, {kind}"
    yield Finding("ok", "machine", text)
    if host["governor"] not in (None, "performance"):
        yield Finding(
            "note",
            "governor",
            f"{host['governor']}: the clock follows the load, and so do comparisons",
            "for a benchmark: cpupower frequency-set -g performance",
        )


def energy(snapshot: Mapping[str, Any], *, virtual: bool) -> Iterator[Finding]:
    """Say whether the CPU's energy can be measured."""
    if why := snapshot["absent"].get("rapl"):
        remedy = "" if virtual else "sudo modprobe intel_rapl_msr (AMD too); enable RAPL in the firmware"
        yield Finding("note", "RAPL", f"{why}: the CPU's energy is an estimate here", remedy)
    elif (state := snapshot["collectors"].get("rapl")) is None or not state["up"]:
        remedy = "sudo chgrp powercap … and chmod 0440, or run as root: docs/guide.md, access to RAPL"
        yield Finding("bad", "RAPL", _error(state), remedy)
    else:
        counters = [f"{meter['component']} {meter['key']}" for meter in state["meters"]]
        yield Finding("ok", "RAPL", f"measures {', '.join(counters)}")


def gpus(snapshot: Mapping[str, Any]) -> Iterator[Finding]:
    """Say which GPUs can be read."""
    for name, what in (("nvml", "NVIDIA GPU"), ("drm", "AMD, Intel")):
        if why := snapshot["absent"].get(name):
            yield Finding("ok", what, why)
        elif (state := snapshot["collectors"].get(name)) is None or not state["up"]:
            yield Finding("bad", what, _error(state))
        else:
            yield Finding("ok", what, f"{len(state['meters'])} with energy")


def _error(state: Mapping[str, Any] | None) -> str:
    return str(state["error"]) if state else "has not answered in time"


async def encoder() -> Finding:
    """Say which ffmpeg runs would use."""
    try:
        ffmpeg = await find_ffmpeg()
    except NotHere as missing:
        return Finding("bad", "ffmpeg", str(missing))
    if "libx264" not in ffmpeg.encoders:
        remedy = "install a build with libx264, or name one with --ffmpeg"
        return Finding("bad", "ffmpeg", f"{ffmpeg.path} {ffmpeg.version} has no libx264", remedy)
    return Finding("ok", "ffmpeg", f"{ffmpeg.path} {ffmpeg.version}")


def rtmp(which: Which) -> Iterator[Finding]:
    """Say whether an nginx can take RTMP in; the embedded sink needs none."""
    nginx = which("nginx") or which("/usr/sbin/nginx")
    try:
        if nginx is None:
            raise NotHere("no nginx")
        rtmp_module(nginx)
    except NotHere as missing:
        what = str(missing).partition(";")[0]
        remedy = "for --sink nginx and the stack: apt install nginx libnginx-mod-rtmp"
        yield Finding("note", "nginx-rtmp", what, remedy)
    else:
        yield Finding("ok", "nginx-rtmp", f"{nginx}, with its rtmp module")


def containers(snapshot: Mapping[str, Any], which: Which) -> Iterator[Finding]:
    """Say whether containers can be seen, and the stack be started in some."""
    if why := snapshot["absent"].get("docker"):
        denied = "permi" in why
        yield Finding(
            "note",
            "engine",
            why,
            "run as root, or usermod -aG docker USER: that group is as good as root" if denied else "",
        )
    elif (state := snapshot["collectors"].get("docker")) is None or not state["up"]:
        yield Finding("bad", "engine", _error(state), "systemctl start docker")
    else:
        yield Finding("ok", "engine", "answers")
    if which("docker") is None:
        yield Finding("note", "docker", "not installed: the stack runs without it too", "make native-up")
    elif which("docker-compose") is None and not _has_compose_plugin():
        remedy = "apt install docker-compose-plugin (Docker's packages) or docker-compose (Debian's)"
        yield Finding("note", "compose", "docker has no Compose", remedy)
    else:
        yield Finding("ok", "docker", "with Compose")


def _has_compose_plugin() -> bool:
    homes = (
        Path.home() / ".docker",
        *map(Path, ("/usr/libexec/docker", "/usr/lib/docker", "/usr/local/lib/docker")),
    )
    return any((home / "cli-plugins/docker-compose").exists() for home in homes)


def agent(running: Mapping[str, Any] | None, holder: str | None) -> Finding:
    """Say whether this machine's agent runs."""
    if running is not None:
        down = sorted(name for name, state in running["collectors"].items() if not state["up"])
        text = f"{running.get('version', 'an older one')} answers at {LOCAL_AGENT}"
        remedy = f"curl {LOCAL_AGENT}/health" if down else ""
        return Finding(
            "note" if down else "ok", "agent", text + (f"; down: {', '.join(down)}" if down else ""), remedy
        )
    if holder is not None:
        remedy = f"stop it, or choose another port: powerbench-agent --port {config.DEFAULT_PORT + 10}"
        return Finding("bad", "agent", f"{holder} has port {config.DEFAULT_PORT}, and is no agent", remedy)
    return Finding("note", "agent", "none runs here", "powerbench-agent, or systemctl start powerbench-agent")


def ports_taken(holders: Mapping[int, str | None]) -> Finding:
    """Say which of the stack's ports are taken, and by whom."""
    taken = [f"{port} ({PORTS[port]}) by {who}" for port, who in holders.items() if who]
    if not taken:
        return Finding("ok", "ports", "the stack's are all free")
    return Finding("note", "ports", f"taken: {'; '.join(taken)}", "fine where that is the stack itself")


def extras(which: Which) -> Iterator[Finding]:
    """Say what the stack without containers lacks."""
    if missing := sorted({package for program, package in NATIVE.items() if which(program) is None}):
        remedy = f"for make native-up: apt install {' '.join(missing)}"
        yield Finding("note", "servers", f"not installed: {', '.join(missing)}", remedy)
    else:
        yield Finding("ok", "servers", "all that make native-up runs is installed")
