"""The configurations and pages that are shipped are true."""

from __future__ import annotations

import tomllib

import msgspec
from places import ROOT

from powerbench_agent.agent import listen, roster
from powerbench_agent.agent.config import load
from powerbench_agent.core.options import Address

KNOWN = roster.options_of(roster.load_modules())


def test_the_shipped_configuration_is_the_defaults_all_of_them() -> None:
    """configs/agent.toml says every key, with its default."""
    path = ROOT / "configs/agent.toml"
    read, default = load(path, KNOWN), load(None, KNOWN)
    assert (read.agent, read.collectors) == (default.agent, default.collectors)
    said = tomllib.loads(path.read_text())
    assert set(said["agent"]) == {"listen", "sysfs", "procfs", "state_dir", "idle", "web"}
    for name, kind in KNOWN.items():
        if name in roster.BUILT_IN:
            assert set(said["collectors"][name]) == set(msgspec.structs.asdict(kind()))


def test_the_per_port_configuration_has_the_classic_ports_alone() -> None:
    """configs/per-port.toml serves each collector on its own port, and nothing aggregated."""
    sites = listen.plan(load(ROOT / "configs/per-port.toml", KNOWN), roster.BUILT_IN, {})
    shown = {address.port: site for address, site in sites.items()}
    assert {port: set(site.collectors) for port, site in shown.items()} == {
        9510: {"rapl"},
        9511: {"nvml"},
        9506: {"ffmpeg"},
        9501: {"docker"},
        9502: {"results"},
    }
    assert not any(site.aggregated for site in shown.values())
    assert Address("::", 9510) in sites
