"""What the sealed process cannot do, tried from inside: the unit itself, a probe in the agent's place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from systemd.machine import UNIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from systemd.machine import Machine

PROBE = "/opt/probe.py"
# The unit is not touched beyond what is run, and that it ends by itself.
REPLACED = (
    "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\nExecStart=/usr/bin/python3 {} {}\n"
)


@pytest.fixture
def probed(machine: Machine) -> Callable[[], dict[str, Any]]:
    """Return what runs the probe in the unit, with the drop-ins that are on, and returns its answers."""

    def probe() -> dict[str, Any]:
        machine.write(PROBE, (Path(__file__).parent / "probe.py").read_text())
        machine.write(f"/etc/systemd/system/{UNIT}.d/zz-probe.conf", REPLACED.format(PROBE, machine.outside))
        machine.systemctl("daemon-reload")
        machine.systemctl("stop", UNIT)
        machine.systemctl("start", UNIT)
        lines = [line for line in machine.journal().splitlines() if line.startswith("{")]
        return dict(json.loads(lines[-1]))

    return probe


def test_the_sealed_process_reads_and_writes_its_own_alone(probed: Callable[[], dict[str, Any]]) -> None:
    """No secret of the machine, no home, log or process; no file outside its state and private /tmp."""
    answers = probed()
    assert {path for path, error in answers["read"].items() if not error} == set()
    assert answers["read"]["/etc/shadow"] == "ENOENT"
    assert {path for path, error in answers["write"].items() if not error} == set()
    assert set(answers["own"].values()) == {""}
    assert answers["processes"] == [answers["self"]]


def test_the_sealed_process_has_no_way_out(machine: Machine, probed: Callable[[], dict[str, Any]]) -> None:
    """Not a socket of any network family, no bus; its network namespace is another's, and really empty.

    A systemd without CAP_NET_ADMIN may skip PrivateNetwork= and say nothing: so it is looked at here.
    """
    answers = probed()
    assert set(answers["open"].values()) == {"EAFNOSUPPORT"}
    assert answers["connect"]["outside"] == "EAFNOSUPPORT"
    assert answers["connect"]["D-Bus"] in ("EACCES", "ENOENT", "ECONNREFUSED")
    assert answers["interfaces"] == ["lo"]
    assert answers["network"] != machine.run("readlink", "/proc/1/ns/net").strip()
    assert "host0" in machine.run("cat", "/proc/net/dev"), "the machine itself has another interface"


def test_the_sealed_process_has_no_privilege_and_gains_none(probed: Callable[[], dict[str, Any]]) -> None:
    """No capability, no way to one, a system call filter; what would give it more is refused."""
    answers = probed()
    status = answers["status"]
    assert (status["CapEff"], status["CapBnd"]) == ("0" * 16, "0" * 16)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"] != "0"
    assert {name for name, error in answers["call"].items() if not error} == set()


def test_the_probe_can_succeed(machine: Machine) -> None:
    """Outside of the sandbox the same tries work: so a refusal is the sandbox's."""
    machine.write(PROBE, (Path(__file__).parent / "probe.py").read_text())
    answers = json.loads(machine.run("python3", PROBE, machine.outside))
    assert answers["read"]["/etc/shadow"] == answers["write"]["/etc"] == answers["open"]["AF_INET"] == ""
    assert answers["connect"] == {"outside": "ECONNREFUSED", "D-Bus": ""}
    assert answers["call"]["write and execute"] == answers["call"]["unshare"] == ""


def test_the_network_drop_in_opens_the_network_and_nothing_else(
    probed: Callable[[], dict[str, Any]], drop_in: Callable[[str], None]
) -> None:
    """A collector can call out; raw sockets, files and privileges stay closed."""
    drop_in("network")
    answers = probed()
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
    probed: Callable[[], dict[str, Any]], drop_in: Callable[[str], None]
) -> None:
    """It may read any file that it sees, and /etc/shadow is none of them."""
    drop_in("capability")
    answers = probed()
    assert answers["status"]["CapEff"] == f"{1 << 2:016x}"  # CAP_DAC_READ_SEARCH
    assert answers["read"]["/etc/shadow"] == "ENOENT"
    assert "" not in answers["write"].values()
