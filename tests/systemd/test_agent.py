"""The default unit, as the package installs it: what it serves, how it restarts, reloads and is watched."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from real.conftest import series, wait_for
from systemd.conftest import SIMULATED
from systemd.machine import CONFIG, UNIT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from systemd.machine import Machine

MEGABYTE = 1 << 20


def test_it_is_up_under_systemds_eyes(machine: Machine) -> None:
    """Active only once it serves (notify), its beat feeds the watchdog, its status says who is up."""
    assert machine.show("Type") == "notify"
    assert machine.is_active()
    wait_for(lambda: "up: " in machine.show("StatusText"), "the status says who is up")
    assert "host" in machine.show("StatusText")
    fed = machine.show("WatchdogTimestampMonotonic")
    wait_for(lambda: machine.show("WatchdogTimestampMonotonic") != fed, "the watchdog is fed")
    assert machine.show("User") == "powerbench"


def test_the_page_is_there_for_other_machines(machine: Machine) -> None:
    """Over a cable: metrics and health for everyone, /api for nobody from there, for itself on loopback."""
    assert "powerbench_build_info" in machine.get()
    assert machine.health()["host"]["state"] == "up"
    with pytest.raises(OSError, match="403"):
        machine.get("/api/v1/snapshot")
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9510/api/v1/snapshot').status)"
    assert machine.run("python3", "-c", ask).strip() == "200"


def test_energy_is_read_through_the_group(machine: Machine, rapl: Path) -> None:
    """A counter for root alone is down with the remedy; tmpfiles gives it to the group, and it counts.

    Simulated: a tree in place of /sys, whose files tmpfiles opens by the rule that the package installs.
    """
    assert machine.health()["rapl"]["state"] == "down"
    assert "powercap group" in machine.health()["rapl"]["reason"]
    wait_for(lambda: "down: rapl: may not read" in machine.show("StatusText"), "the status names it")
    for file in ("/etc/passwd", "/etc/group", "/usr/lib/tmpfiles.d/powerbench.conf"):
        machine.write(f"{SIMULATED}{file}", (machine.root / file[1:]).read_text())
    machine.run("systemd-tmpfiles", f"--root={SIMULATED}", "--create", "--prefix=/sys", "powerbench.conf")
    assert (
        machine.run("stat", "--format=%a %U %G", f"/{rapl.relative_to(machine.root)}")
        == "440 root powercap\n"
    )

    def joules() -> float:
        return sum(series(machine.get(), "rapl_energy_joules_total").values())

    wait_for(lambda: "rapl_energy_joules_total" in machine.get(), "rapl is up")
    before = joules()
    rapl.write_text("1250000000\n")
    wait_for(lambda: joules() == before + 250, "250 J more")


def test_no_scrape_is_refused_across_restarts(machine: Machine) -> None:
    """Two hundred requests, each on a connection of its own, while it restarts three times: all answered."""
    wait_for(machine.answers, "the agent answers")
    restarts = machine.inside("sh", "-c", f"for n in 1 2 3; do systemctl restart {UNIT}; done")
    process = machine.show("MainPID")
    with subprocess.Popen(restarts) as restarting:
        seconds = list(machine.requests(200, restarting))
    assert restarting.returncode == 0
    assert len(seconds) >= 200
    assert machine.show("MainPID") != process
    print(f"{len(seconds)} requests, the slowest {max(seconds):.2f} s")  # noqa: T201 - a figure for the report


def test_one_that_hangs_is_killed_and_restarted(machine: Machine, restart: Callable[[], None]) -> None:
    """Stopped in its tracks it feeds no watchdog: systemd ends it and starts another, which answers.

    The watchdog's 30 s are 2 here.
    """
    machine.write(f"/etc/systemd/system/{UNIT}.d/quick.conf", "[Service]\nWatchdogSec=2\n")
    restart()
    process = machine.show("MainPID")
    machine.systemctl("kill", "--signal=STOP", UNIT)
    wait_for(lambda: machine.show("NRestarts") == "1" and machine.is_active(), "it has been restarted")
    wait_for(machine.answers, "the next one answers")
    assert machine.show("MainPID") != process
    assert "Watchdog timeout" in machine.journal()


def test_a_reload_takes_what_is_good_and_keeps_the_old_for_what_is_bad(machine: Machine) -> None:
    """`systemctl reload`: a bad file leaves everything as it was, with the reason in the journal."""
    process = machine.show("MainPID")
    machine.write(CONFIG, "[collectors.host]\nenabled = fasle\n")
    machine.systemctl("reload", UNIT)
    wait_for(lambda: "new configuration rejected" in machine.journal(), "the journal says it")
    assert "host" in machine.health()
    machine.write(CONFIG, "[collectors.host]\nenabled = false\n")
    machine.systemctl("reload", UNIT)
    wait_for(lambda: "host" not in machine.health(), "host has gone")
    assert machine.show("MainPID") == process
    assert machine.is_active()


def test_it_keeps_within_its_limits(machine: Machine) -> None:
    """Memory after some scrapes is far below what it may have; the kernel holds memory, CPU and tasks."""
    for _ in range(50):
        machine.get()
    assert machine.health()["host"]["state"] == "up"
    resident = series(machine.get(), "process_resident_memory_bytes")[""]
    charged = machine.show("MemoryCurrent")
    print(f"resident {resident / MEGABYTE:.1f} MiB, charged {charged}")  # noqa: T201 - a figure for the report
    assert resident <= 60e6
    assert machine.show("MemoryMax") == str(256 * MEGABYTE)
    assert machine.show("CPUQuotaPerSecUSec") == "1s"
    assert machine.show("TasksMax") == "64"
    if charged == "[not set]":
        pytest.skip("NOT CHECKED: this machine gives no control groups that limit")
    assert int(charged) <= 60e6
    assert machine.cgroup(UNIT, "memory.limit_in_bytes", "memory.max") == str(256 * MEGABYTE)
    assert machine.cgroup(UNIT, "cpu.cfs_quota_us", "cpu.max").split()[0] == "100000"
