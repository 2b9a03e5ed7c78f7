"""A booted Debian with the package on it, as installed at the start of every test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from real.conftest import need, wait_for
from systemd.machine import BASE, CONFIG, DROP_INS, SOCKET, UNIT, Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
SIMULATED = "/opt/simulated"  # a /sys of the tests' own: no machine that is booted here has RAPL
AS_INSTALLED = f"""
systemctl stop powerbench.target 'powerbench@*' 'ffmpeg-*' {SOCKET} {UNIT}
rm -rf {SIMULATED} /etc/powerbench/tls /etc/powerbench/token
if ls -d /etc/systemd/system/powerbench*.d; then
    rm -r /etc/systemd/system/powerbench*.d
    systemctl daemon-reload
fi
systemctl reset-failed
"""
ZONE = f"{SIMULATED}/sys/class/powercap/intel-rapl:0"


@pytest.fixture(scope="session")
def deb() -> Path:
    """Return the package that `make deb` has built."""
    need("systemd-nspawn")
    if os.geteuid() != 0 or not BASE.is_dir():
        text = f"needs root, and {BASE}: make test-systemd"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)
    built = sorted(DIST.glob("powerbench-agent_*.deb"), key=lambda file: file.stat().st_mtime)
    return built[-1] if built else pytest.fail("there is no deb in dist/: make deb")


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Machine]:
    """Boot a machine of this test's own, without the package."""
    machine = Machine(tmp_path / "machine")
    try:
        machine.boot()
        yield machine
    finally:
        machine.power_off()


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, deb: Path) -> Iterator[Machine]:
    """One machine for all tests that leave it as it was."""
    machine = Machine(tmp_path_factory.mktemp("booted") / "machine")
    try:
        machine.boot()
        machine.install(deb)
        (machine.directory / "agent.toml").write_text((machine.root / CONFIG.lstrip("/")).read_text())
        yield machine
    finally:
        machine.power_off()


@pytest.fixture
def idle(installed: Machine) -> Iterator[Machine]:
    """Bring that machine to where the installation has left it, with nothing of ours running."""
    installed.write(CONFIG, (installed.directory / "agent.toml").read_text())
    installed.run("sh", "-c", AS_INSTALLED)
    installed.forget()
    yield installed
    print(installed.run("journalctl", "--no-pager", "--lines=60", "--output=short-monotonic"))  # noqa: T201 - shown where it failed


@pytest.fixture
def machine(idle: Machine) -> Machine:
    """Start the agent on it."""
    idle.systemctl("start", UNIT)
    return idle


@pytest.fixture
def restart(machine: Machine) -> Callable[[], None]:
    """Restart the agent, and wait until its page is there."""

    def again() -> None:
        machine.systemctl("daemon-reload")
        machine.systemctl("restart", UNIT)
        wait_for(machine.answers, "the agent answers")

    return again


@pytest.fixture
def rapl(machine: Machine, restart: Callable[[], None]) -> Path:
    """Give it one simulated package that has used 1,000 J, closed to all but root as the kernel's is.

    Return its energy_uj.
    """
    for name, text in (("name", "package-0\n"), ("max_energy_range_uj", "262143328850\n")):
        machine.write(f"{ZONE}/{name}", text)
    machine.write(f"{ZONE}/energy_uj", "1000000000\n", 0o400)
    machine.write(CONFIG, f'[agent]\nsysfs = "{SIMULATED}/sys"\n')
    restart()
    return machine.root / f"{ZONE}/energy_uj".lstrip("/")


@pytest.fixture
def drop_in(machine: Machine) -> Callable[[str], None]:
    """Switch a shipped drop-in on, by the guide's own command."""

    def on(name: str) -> None:
        directory = f"/etc/systemd/system/{UNIT}.d"
        machine.run("install", "-D", "-m", "644", "-t", directory, f"{DROP_INS}/{name}.conf")

    return on
