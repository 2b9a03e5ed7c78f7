"""The stack's Compose file: least privilege, limits, nothing published beyond this machine, no secret."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from places import ROOT

from powerbench_agent.agent import config, roster

if TYPE_CHECKING:
    from pathlib import Path

COMPOSE = ROOT / "compose"
STACK = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
PORT = re.compile(r"127\.0\.0\.1:\$\{([A-Z_]+):-([0-9]+)\}:([0-9]+)")
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")
BOTH = {"/sys", "/sys/fs/cgroup", "/proc"}  # cgroups by themselves: `:ro` reaches no mount within one
HOST_PATHS = {  # what may be mounted of the host, read-only
    "agent": BOTH,
    "rapl-exporter": BOTH,
    "nvml-exporter": BOTH,
    "ffmpeg-exporter": BOTH,
    "docker-exporter": BOTH,
    "results-exporter": BOTH,
    "cadvisor": {*BOTH, "/var/lib/docker/image"},
    "docker-proxy": {"/var/run/docker.sock"},
    "node-exporter": {"/sys", "/proc/1/net"}
    | {f"/proc/{name}" for name in ("cpuinfo", "diskstats", "loadavg", "meminfo", "stat", "vmstat")},
}
WRITABLE = {"dcgm-exporter"}  # its engine writes beside itself
EVERY = pytest.mark.parametrize("name", SERVICES)


def expand(text: str) -> str:
    """Put the defaults in for variables."""
    return VARIABLE.sub(lambda found: found[3] or "" if found[2] == "-" else "", text)


def mounts(name: str) -> list[tuple[str, str, str]]:
    """Return (source, target, mode) of a service's volumes."""
    found = [expand(volume).split(":") for volume in SERVICES[name].get("volumes", ())]
    return [(source, target, mode[0] if mode else "") for source, target, *mode in found]


# -- privileges --------------------------------------------------------------------------------------


@EVERY
def test_no_service_has_a_privilege(name: str) -> None:
    """No capability, no way to gain one, nobody's namespace, no device, and a root that cannot be written."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is (name not in WRITABLE)
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"} & service.keys()
    assert service.get("network_mode", "none") == "none"


@EVERY
def test_every_service_has_limits_and_is_watched(name: str) -> None:
    """Memory, CPU, processes and logs are bounded; it is started again; somebody looks whether it is well."""
    service = SERVICES[name]
    assert re.fullmatch(r"[0-9]+[mg]", service["mem_limit"])
    assert 0 < float(service["cpus"]) <= 1
    assert service["pids_limit"] <= 200
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    if "build" in service and "healthcheck" not in service:
        build = service["build"]
        made = COMPOSE / build["context"] / build.get("dockerfile", "Dockerfile")
        assert "\nHEALTHCHECK " in made.read_text()
    else:
        assert service["healthcheck"].keys() >= {"test", "interval", "timeout"}


@EVERY
def test_of_the_host_only_what_is_needed_is_mounted(name: str) -> None:
    """The host's paths are few and read-only; Docker's socket is in one service, which has no network."""
    sources = {source: mode for source, _, mode in mounts(name) if source.startswith((".", "/"))}
    assert set(sources.values()) <= {"ro"}
    assert {source for source in sources if source.startswith("/")} == HOST_PATHS.get(name, set())
    assert SERVICES["docker-proxy"]["network_mode"] == "none"


@EVERY
def test_what_is_mounted_of_this_repository_is_there(name: str) -> None:
    """A missing source would be made by Docker, as an empty directory of root's."""
    for source, _, _ in mounts(name):
        if source.startswith(".") and source != "../test_results":
            assert (COMPOSE / source).exists(), source


def test_volumes_are_declared() -> None:
    """Every named volume is declared, and used."""
    used = {source for name in SERVICES for source, _, _ in mounts(name) if not source.startswith((".", "/"))}
    assert used == set(STACK["volumes"])


# -- images ------------------------------------------------------------------------------------------


@EVERY
def test_images_are_pinned(name: str) -> None:
    """An image is built here, or has a tag of a version."""
    service = SERVICES[name]
    if "build" not in service:
        assert re.fullmatch(r"[a-z0-9./-]+/[a-z-]+:v?[0-9]+\.[0-9]+\.[0-9]+[a-z0-9.-]*", service["image"])


@pytest.mark.parametrize("dockerfile", ["packaging/image/Dockerfile", "compose/nginx-rtmp/Dockerfile"])
def test_dockerfiles(dockerfile: str) -> None:
    """The base is a pinned build argument, the last user has no privilege, and there is a health check."""
    text = (ROOT / dockerfile).read_text()
    assert re.search(r"^ARG BASE=[a-z]+:[0-9a-z.-]*[0-9][0-9a-z.-]*$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}"}
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9][0-9]*:[1-9][0-9]*$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last
    assert "pip" not in last


def test_what_the_image_is_made_of_reaches_the_builder() -> None:
    """Every source of a COPY is let through by .dockerignore, and .git and .venv are not."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    through = {line[1:] for line in lines if line.startswith("!")}
    copied = set()
    for line in (ROOT / "packaging/image/Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not words[1].startswith("--from"):
            copied |= set(words[1:-1])
    assert lines[1] == "*"
    assert through == copied
    assert all((ROOT / path).exists() for path in copied)


# -- who can reach it --------------------------------------------------------------------------------


def test_ports_are_published_on_loopback_alone() -> None:
    """All on 127.0.0.1, none twice but the agent's and per-port's 9510, each to be moved in .env."""
    published = [PORT.fullmatch(port) for name in SERVICES for port in SERVICES[name].get("ports", ())]
    assert all(published)
    ports = [found[2] for found in published if found]
    assert sorted(port for port in ports if ports.count(port) > 1) == ["9510", "9510"]
    offered = set(re.findall(r"^#?([A-Z_]+)_PORT=", (COMPOSE / "make-env").read_text(), re.MULTILINE))
    mine = {found[1].removesuffix("_PORT") for found in published if found}
    assert mine == offered


def test_per_port_is_the_rosters_classic_layout() -> None:
    """A service a collector with a classic port, on that port, alone, and asked there whether it is well."""
    classic = {name: entry.port for name, entry in roster.BUILT_IN.items() if entry.port}
    found = {name: service for name, service in SERVICES.items() if service.get("profiles") == ["per-port"]}
    assert set(found) == {f"{name}-exporter" for name in classic}
    for name, port in classic.items():
        service = found[f"{name}-exporter"]
        assert service["command"] == ["--only", name, "--port", str(port)]
        (published,) = service["ports"]
        assert published == f"127.0.0.1:${{{name.upper()}_PORT:-{port}}}:{port}"
        health = service.get("environment", {}).get("POWERBENCH_HEALTH", "http://127.0.0.1:9510")
        assert health == f"http://127.0.0.1:{port}"


def test_nothing_secret_is_in_the_file() -> None:
    """Secrets are files, or variables that must be set: no default, and no value, for any of them."""
    for name, service in SERVICES.items():
        for key, text in (service.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", key) and not text.startswith("/run/secrets/"):
                assert VARIABLE.fullmatch(text)[2] == "?", (name, key)  # type: ignore[index]


def test_the_network_is_the_same_everywhere() -> None:
    """The agent trusts the gateway alone; the stat page is open to the stack's network and this machine."""
    (network,) = STACK["networks"]["default"]["ipam"]["config"]
    subnet = ipaddress.ip_network(network["subnet"])
    assert ipaddress.ip_address(network["gateway"]) in subnet
    agent = (COMPOSE / "agent/agent.toml").read_text()
    assert re.search(r"^trusted = (.*)$", agent, re.MULTILINE)[1] == f'["{network["gateway"]}/32"]'  # type: ignore[index]
    rules = re.findall(
        r"^(allow|deny) (.*);", (COMPOSE / "nginx-rtmp/allow-stat.conf").read_text(), re.MULTILINE
    )
    assert rules == [("allow", str(subnet)), ("allow", "127.0.0.0/8"), ("deny", "all")]


def test_the_agents_configuration_is_good(tmp_path: Path) -> None:
    """Every key is known; the engine is asked through the proxy, nginx by its name."""
    text = (COMPOSE / "agent/agent.toml").read_text()
    here = tmp_path / "agent.toml"
    here.write_text(text.replace('"/host/sys"', '"/sys"').replace('"/host/proc"', '"/proc"'))
    read = config.load(here, roster.options_of(roster.load_modules()))
    assert read.collectors["nginx_rtmp"].url == "http://nginx-rtmp:8080/stat"  # type: ignore[attr-defined]
    assert ("docker-api", "/run/docker-api", "ro") in mounts("agent")
    assert read.collectors["docker"].url == "unix:///run/docker-api/docker.sock"  # type: ignore[attr-defined]


# -- the proxy before Docker's socket ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/version", True),
        ("/v1.41/events", True),
        ("/v1.41/containers/json", True),
        ("/containers/web_1/json", True),
        ("/containers/web-1.a/stats", True),
        ("/containers/web/archive", False),
        ("/containers/web/json/", False),
        ("/containers/web/json\n", False),
        ("/containers//json", False),
        ("/containers/a/b/json", False),
        ("/images/json", False),
        ("/v1.41/exec/1/json", False),
        ("/secrets", False),
        ("/v1.41/../version", False),
    ],
)
def test_the_proxy_passes_on_what_is_asked_for_and_nothing_else(path: str, allowed: bool) -> None:  # noqa: FBT001 - a table's column
    """The paths that docs/guide.md names, with or without the API's version."""
    text = (COMPOSE / "docker-proxy/nginx.conf").read_text()
    pattern = re.search(r"location ~ (\S+) \{", text)[1].replace(r"\z", r"\Z")  # type: ignore[index]
    assert bool(re.match(pattern, path)) is allowed
    assert "limit_except GET" in text
