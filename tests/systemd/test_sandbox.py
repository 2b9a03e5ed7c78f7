"""What the sealed process cannot do, tried from inside: the unit itself, a probe in the agent's place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from systemd.conftest import AS_INSTALLED
from systemd.machine import UNIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from systemd.machine import Machine

PROBE = "/opt/probe.py"
# The unit is not touched beyond what is run, and that it ends by itself.
REPLACED = (
    "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\nExecStart=/usr/bin/python3 {} {}\n"
)


def probe(machine: Machine) -> dict[str, Any]:
    """Run the probe in the unit, with the drop-ins that are on; return its answers."""
    machine.write(PROBE, (Path(__file__).parent / "probe.py").read_text())
    machine.write(f"/etc/systemd/system/{UNIT}.d/zz-probe.conf", REPLACED.format(PROBE, machine.outside))
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", UNIT)
    lines = [line for line in machine.journal().splitlines() if line.startswith("{")]
    return dict(json.loads(lines[-1]))


@pytest.fixture(scope="module")
def sealed(installed: Machine) -> dict[str, Any]:
    """Return the answers under the default unit; three tests look at them."""
    installed.run("sh", "-c", AS_INSTALLED)
    return probe(installed)


def test_the_sealed_process_reads_and_writes_its_own_alone(sealed: dict[str, Any]) -> None:
    """No secret of the machine, no home, log or process; no file outside its state and private /tmp."""
    assert {path for path, error in sealed["read"].items() if not error} == set()
    assert sealed["read"]["/etc/shadow"] == "ENOENT"
    assert {path for path, error in sealed["write"].items() if not error} == set()
    assert set(sealed["own"].values()) == {""}
    assert sealed["processes"] == [sealed["self"]]


def test_the_sealed_process_has_no_way_out(installed: Machine, sealed: dict[str, Any]) -> None:
    """Not a socket of any network family, no bus; its network namespace is another's, and really empty.

    A systemd without CAP_NET_ADMIN may skip PrivateNetwork= and say nothing: so it is looked at here.
    """
    assert set(sealed["open"].values()) == {"EAFNOSUPPORT"}
    assert sealed["connect"]["outside"] == "EAFNOSUPPORT"
    assert sealed["connect"]["D-Bus"] in ("EACCES", "ENOENT", "ECONNREFUSED")
    assert sealed["interfaces"] == ["lo"]
    assert sealed["network"] != installed.run("readlink", "/proc/1/ns/net").strip()
    assert "host0" in installed.run("cat", "/proc/net/dev"), "the machine itself has another interface"


def test_the_sealed_process_has_no_privilege_and_gains_none(sealed: dict[str, Any]) -> None:
    """No capability, no way to one, a system call filter; what would give it more is refused."""
    status = sealed["status"]
    assert (status["CapEff"], status["CapBnd"]) == ("0" * 16, "0" * 16)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"] != "0"
    assert {name for name, error in sealed["call"].items() if not error} == set()


def test_the_probe_can_succeed(installed: Machine) -> None:
    """Outside of the sandbox the same tries work: so a refusal is the sandbox's."""
    installed.write(PROBE, (Path(__file__).parent / "probe.py").read_text())
    answers = json.loads(installed.run("python3", PROBE, installed.outside))
    assert answers["read"]["/etc/shadow"] == answers["write"]["/etc"] == answers["open"]["AF_INET"] == ""
    assert answers["connect"] == {"outside": "ECONNREFUSED", "D-Bus": ""}
    assert answers["call"]["write and execute"] == answers["call"]["unshare"] == ""


def test_the_network_drop_in_opens_the_network_and_nothing_else(
    idle: Machine, drop_in: Callable[[str], None]
) -> None:
    """A collector can call out; raw sockets, files and privileges stay closed."""
    drop_in("network")
    answers = probe(idle)
    assert answers["connect"]["outside"] == "ECONNREFUSED", "it reached the other machine"
    assert answers["open"] == {
        "AF_INET": "",
        "AF_INET6": "",
        "AF_NETLINK": "EAFNOSUPPORT",
        "AF_PACKET": "EAFNOSUPPORT",
    }
    assert answers["status"]["CapEff"] == "0" * 16
    assert answers["read"]["/etc/shadow"] == "ENOENT"


def test_the_capability_drop_in_reads_no_secret_of_the_machine(
    idle: Machine, drop_in: Callable[[str], None]
) -> None:
    """It may read any file that it sees, and /etc/shadow is none of them."""
    drop_in("capability")
    answers = probe(idle)
    assert answers["status"]["CapEff"] == f"{1 << 2:016x}"  # CAP_DAC_READ_SEARCH
    assert answers["read"]["/etc/shadow"] == "ENOENT"
    assert "" not in answers["write"].values()
