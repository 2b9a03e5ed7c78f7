"""What may be wrong with a machine: the unit starts, or fails and says why, and never loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from real.conftest import wait_for
from systemd.conftest import SIMULATED
from systemd.machine import CONFIG, SOCKET, UNIT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from systemd.machine import Machine

ATTEMPTS = 5  # StartLimitBurst
SOON = "[Service]\nRestartSec=100ms\n"


def status(machine: Machine, unit: str = UNIT) -> str:
    return machine.systemctl("status", "--full", "--lines=20", unit, check=False)


def starts(machine: Machine, unit: str = UNIT) -> int:
    """Return how often systemd has begun to start it in this test."""
    return machine.journal(unit).count(f"Starting {unit} ")


def test_a_bad_configuration_fails_once_with_78_and_its_reason(machine: Machine) -> None:
    """Key and remedy in `systemctl status` and in the journal; no restart, as it would be wrong again."""
    machine.write(
        CONFIG, "[agent]\nlisten = '0.0.0.0:9510'\nlissten = 1\n\n[collectors.rapl]\ninterval = 'soon'\n"
    )
    before = starts(machine)
    machine.systemctl("restart", UNIT, check=False)
    wait_for(lambda: machine.show("ActiveState") == "failed", "it has failed")
    assert machine.show("ExecMainStatus") == "78"
    assert "agent.lissten: no such key; did you mean 'listen'? (and 1 more)" in machine.show("StatusText")
    text = status(machine)
    assert "status=78" in text
    assert "'soon' is not a duration" in text
    assert starts(machine) == before + 1
    assert machine.show("NRestarts") == "0"


def test_scrapes_of_a_broken_agent_are_no_endless_loop(machine: Machine) -> None:
    """Each connection starts the agent, until systemd has had enough: then the port is closed.

    Mended, one command brings both back.
    """
    machine.write(CONFIG, "[agnt]\n")
    machine.systemctl("restart", UNIT, check=False)
    before = starts(machine)

    def refused() -> bool:
        try:
            machine.get(seconds=0.5)
        except ConnectionRefusedError:
            return True
        except OSError as error:
            return isinstance(getattr(error, "reason", None), ConnectionRefusedError)
        return False

    wait_for(refused, "the port is closed")
    assert starts(machine) - before <= ATTEMPTS
    assert "agnt: no such key" in status(machine)
    assert machine.show("Result", SOCKET) == "service-start-limit-hit"
    machine.write(CONFIG, "")
    machine.systemctl("reset-failed", UNIT, SOCKET)
    machine.systemctl("start", UNIT)
    wait_for(machine.answers, "it is back")


def test_one_that_always_crashes_is_given_up(machine: Machine) -> None:
    """A process that ends with an error at once is started five times, and then no more."""
    crash = f"{SOON}ExecStart=\nExecStart=/bin/false\n"
    machine.write(f"/etc/systemd/system/{UNIT}.d/crash.conf", crash)
    machine.systemctl("daemon-reload")
    before = starts(machine)
    machine.systemctl("restart", UNIT, check=False)
    wait_for(lambda: "repeated too quickly" in machine.journal(), "systemd gives up")
    wait_for(lambda: machine.show("ActiveState") == "failed", "it has failed")
    assert starts(machine) - before <= ATTEMPTS


def test_a_taken_port_is_said_by_the_socket(machine: Machine) -> None:
    """Somebody else has 9510: nothing starts, and the socket's status names the address."""
    machine.systemctl("stop", SOCKET, UNIT)
    holder = "import socket, time; s = socket.create_server(('', 9510)); print(flush=True); time.sleep(600)"
    with machine.running("python3", "-c", holder) as held:
        assert held.stdout is not None
        held.stdout.readline()
        said = machine.systemctl("start", UNIT, check=False)
        assert "dependency" in said.lower()
        assert machine.show("ActiveState") == "inactive"
        assert "Address already in use" in status(machine, SOCKET)
    machine.systemctl("start", UNIT)
    wait_for(machine.answers, "it is back")


@pytest.mark.parametrize(
    ("mode", "text", "reason"),
    [
        (0o600, "s3cret\n", "agent.web.token_file: cannot read /etc/powerbench/token: Permission denied"),
        (0o644, "", "/etc/powerbench/token is empty"),
        (None, "", "agent.web.token_file: cannot read /etc/powerbench/token: No such file or directory"),
    ],
    ids=["unreadable", "empty", "missing"],
)
def test_a_secret_that_cannot_be_read_is_78(
    machine: Machine, mode: int | None, text: str, reason: str
) -> None:
    """A token of root's alone, an empty one, none: 78 with the file and why, and no token on the way."""
    if mode is not None:
        machine.write("/etc/powerbench/token", text, mode)
    machine.write(CONFIG, "[agent.web]\ntoken_file = '/etc/powerbench/token'\n")
    machine.systemctl("restart", UNIT, check=False)
    wait_for(lambda: machine.show("ActiveState") == "failed", "it has failed")
    assert machine.show("ExecMainStatus") == "78"
    assert reason in machine.show("StatusText")
    assert "s3cret" not in machine.journal()


def test_a_missing_credential_is_given_up_with_the_reason(
    machine: Machine, drop_in: Callable[[str], None]
) -> None:
    """The drop-in tls without its files: systemd names them, tries five times, and stops."""
    drop_in("tls")
    machine.write(f"/etc/systemd/system/{UNIT}.d/soon.conf", SOON)
    machine.systemctl("daemon-reload")
    before = starts(machine)
    machine.systemctl("restart", UNIT, check=False)
    wait_for(lambda: "repeated too quickly" in machine.journal(), "systemd gives up")
    assert machine.show("ExecMainStatus") == "243"
    assert "CREDENTIALS" in status(machine)
    assert starts(machine) - before <= ATTEMPTS


def test_a_missing_group_is_given_up_with_the_reason(
    machine: Machine, drop_in: Callable[[str], None]
) -> None:
    """The drop-in docker on a machine without Docker: 216/GROUP, five times, and no more."""
    drop_in("docker")
    machine.write(f"/etc/systemd/system/{UNIT}.d/soon.conf", SOON)
    machine.systemctl("daemon-reload")
    before = starts(machine)
    machine.systemctl("restart", UNIT, check=False)
    wait_for(lambda: "repeated too quickly" in machine.journal(), "systemd gives up")
    assert machine.show("ExecMainStatus") == "216"
    assert "GROUP" in status(machine)
    assert starts(machine) - before <= ATTEMPTS


def test_neither_docker_nor_video_nor_rapl_are_needed(machine: Machine) -> None:
    """A minimal machine whose /sys cannot be written and has no RAPL: it starts, and says who is absent."""
    assert machine.run("getent", "group", "docker", check=False) == ""
    assert "ro," in machine.run("sh", "-c", "grep ' /sys ' /proc/mounts")
    wait_for(machine.answers, "it answers")
    health = machine.health()
    assert {health[name]["state"] for name in ("rapl", "docker", "nvml", "drm")} == {"absent"}
    assert "no RAPL" in health["rapl"]["reason"]
    assert machine.show("NRestarts") == "0"


def test_a_counter_that_nobody_has_opened_is_down_and_not_the_unit(machine: Machine, rapl: Path) -> None:
    """RAPL for root alone (a /sys that nobody could write): the unit is up, and its status says what to do.

    Simulated: a tree in place of /sys.
    """
    assert rapl.stat().st_mode & 0o777 == 0o400
    assert machine.is_active()
    wait_for(lambda: "down: rapl" in machine.show("StatusText"), "the status names it")
    assert f"may not read {SIMULATED}" in machine.show("StatusText")
    assert "the powercap group or CAP_DAC_READ_SEARCH" in machine.show("StatusText")
