"""A Debian of the tests' own, booted under systemd in systemd-nspawn: started, looked into, thrown away.

Its root is an overlay over a tree that `prepare` has made once, and lies in memory. Its network is a cable
between it and this machine. Needs root. Sources: systemd-nspawn(1), nsenter(1).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from real.conftest import need, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = Path(os.environ.get("POWERBENCH_TESTS_CACHE", "/var/cache/powerbench-tests")) / "bookworm"
UNIT = "powerbench-agent.service"
SOCKET = "powerbench-agent.socket"
CONFIG = "/etc/powerbench/agent.toml"
DROP_INS = "/usr/share/powerbench/drop-ins"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_WITH_US = ("setpriv", "--pdeathsig=KILL")  # whatever ends this process: nothing stays behind
_CGROUPS = Path("/sys/fs/cgroup")
_LIMITING = ("cpu", "cpuacct", "memory", "pids")


class Machine:
    """One booted Debian."""

    def __init__(self, directory: Path) -> None:
        self.name = f"pb{secrets.token_hex(3)}"
        self.directory = directory
        self.root = directory / "root"
        block = secrets.randbelow(1 << 14) * 4  # of 198.18.0.0/16, which is for measuring devices: RFC 2544
        self.outside, self.address = (f"198.18.{block >> 8}.{(block & 255) + n}" for n in (1, 2))
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._cgroups: list[Path] = []
        self._cursor = ""

    # -- its life --------------------------------------------------------------------------------

    def boot(self) -> None:
        """Boot it, and wait until systemd has started everything."""
        self.directory.mkdir(exist_ok=True)
        call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(self.directory))
        for name in ("root", "upper", "work"):
            (self.directory / name).mkdir()
        layers = f"lowerdir={BASE},upperdir={self.directory}/upper,workdir={self.directory}/work"
        call("mount", "-t", "overlay", "-o", layers, "overlay", str(self.root))
        command = [*_WITH_US, need("systemd-nspawn"), "--boot", "--quiet", "--register=no", "--keep-unit"]
        command += [
            "--console=pipe",
            "--network-veth",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
        ]
        command += [f"--machine={self.name}", f"--directory={self.root}"]
        with (self.directory / "console").open("wb") as console:
            self._nspawn = subprocess.Popen(
                self._in_cgroups(command), stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
            )
        wait_for(self._has_booted, "the machine has booted")
        for controller in _LIMITING:  # version 1 comes read-only, and without it there are no limits
            self.run("mount", "-o", "remount,bind,rw", f"{_CGROUPS}/{controller}", check=False)
        self.systemctl("daemon-reexec")
        call("ip", "address", "add", f"{self.outside}/30", "dev", f"ve-{self.name}")
        call("ip", "link", "set", f"ve-{self.name}", "up")
        self.run("ip", "address", "add", f"{self.address}/30", "dev", "host0")
        self.run("ip", "link", "set", "host0", "up")

    def _in_cgroups(self, command: list[str]) -> list[str]:
        """Return the command that runs this one in control groups of its own: machines do not meet."""
        if Path("/run/systemd/system").is_dir():
            return [need("systemd-run"), "--scope", "--quiet", "--property=Delegate=yes", *command]
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            name = "unified" if not controllers else controllers.removeprefix("name=")
            if name in (*_LIMITING, "systemd", "unified") and (_CGROUPS / name).is_dir():
                self._cgroups.append(_CGROUPS / name / path.lstrip("/") / self.name)
        for cgroup in self._cgroups:
            cgroup.mkdir()
        enter = " && ".join(f"echo $$ > {cgroup}/cgroup.procs" for cgroup in self._cgroups)
        return ["sh", "-c", f'{enter or ":"} && exec "$@"', "sh", *command]

    def _has_booted(self) -> bool:
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            pytest.fail(f"systemd-nspawn has ended:\n{(self.directory / 'console').read_text()[-2000:]}")
        children = subprocess.run(
            [need("pgrep"), "--parent", str(self._nspawn.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        if len(children) != 1:
            return False
        self._leader = int(children[0])
        return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")

    def power_off(self) -> None:
        """End it, and leave nothing of it."""
        if self._leader:
            os.kill(self._leader, signal.SIGKILL)
        if self._nspawn is not None:
            self._nspawn.kill()
            self._nspawn.wait(30)
        for cgroup in self._cgroups:
            wait_for(lambda cgroup=cgroup: _is_removed(cgroup), "its processes have ended")  # type: ignore[misc]
        for mount in (self.root, self.directory):
            subprocess.run([need("umount"), "--lazy", str(mount)], check=False, capture_output=True)
        for left in ("propagate", "unix-export"):
            shutil.rmtree(f"/run/systemd/nspawn/{left}/{self.name}", ignore_errors=True)

    # -- inside ----------------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True, seconds: float = 60) -> str:
        """Run a command inside, as root; return what it says. Its failure is the test's, if `check`."""
        done = subprocess.run(
            self.inside(*command), capture_output=True, text=True, timeout=seconds, check=False
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs this one inside."""
        entered = [*_WITH_US, need("nsenter"), f"--target={self._leader}", "--all", "--wdns=/", *_WITH_US]
        return [
            *entered,
            "env",
            "-i",
            f"PATH={_PATH}",
            "LC_ALL=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
            *command,
        ]

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command inside for as long as the context lasts; what it prints can be read."""
        with subprocess.Popen(self.inside(*command), stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """Run systemctl inside."""
        return self.run("systemctl", "--no-pager", *arguments, check=check)

    def show(self, name: str, unit: str = UNIT) -> str:
        """Return one property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def is_active(self, unit: str = UNIT) -> bool:
        return self.show("ActiveState", unit) == "active"

    def cgroup(self, unit: str, *names: str) -> str:
        """Return what the kernel has of a unit's control group, by the file's name in version 1 or 2."""
        group = self.show("ControlGroup", unit)
        files = (
            f"/sys/fs/cgroup{above}{group}/{name}" for name in names for above in ("", "/cpu", "/memory")
        )
        return self.run("sh", "-c", f"cat {' '.join(files)} 2>/dev/null", check=False).strip()

    def journal(self, unit: str = UNIT) -> str:
        """Return what the journal has of a unit since forget(): its own lines, and systemd's about it."""
        since = [f"--after-cursor={self._cursor}"] if self._cursor else []
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--quiet", "--output=cat", f"--unit={unit}", *since)

    def forget(self) -> None:
        """Let the journal begin here."""
        self.run("journalctl", "--sync")
        said = self.run("journalctl", "--no-pager", "--lines=1", "--show-cursor", "--output=cat")
        self._cursor = said.rpartition("-- cursor: ")[2].strip()

    def install(self, deb: Path) -> None:
        """Install a package, as `apt install ./powerbench-agent_*.deb` does."""
        with self.installing(deb) as process:
            pass
        assert process.returncode == 0, (self.directory / "apt").read_text()

    @contextlib.contextmanager
    def installing(self, deb: Path) -> Iterator[subprocess.Popen[str]]:
        """Install a package for as long as the context lasts, which then waits for it."""
        shutil.copy(deb, self.root / "root")
        keep = "Dpkg::Options::=--force-confold"  # as unattended-upgrades does with a file that was edited
        apt = ("apt-get", "install", "--yes", "--allow-downgrades", f"--option={keep}", f"/root/{deb.name}")
        log = self.directory / "apt"
        with (
            log.open("w") as said,
            subprocess.Popen(self.inside(*apt), stdout=said, stderr=said, text=True) as process,
        ):
            yield process
            process.wait(60)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file inside."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    # -- from outside ----------------------------------------------------------------------------

    def get(self, path: str = "/metrics", port: int = 9510, seconds: float = 10) -> str:
        """Return a page, asked for over the cable. Raises: OSError."""
        url = f"http://{self.address}:{port}{path}"
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return str(answer.read().decode())

    def answers(self, port: int = 9510) -> bool:
        """Return whether the page is there."""
        try:
            return "powerbench_build_info" in self.get(port=port)
        except OSError:
            return False

    def health(self, port: int = 9510) -> dict[str, Any]:
        """Return each collector's state, once each has been tried."""
        collectors: dict[str, Any] = {}

        def tried() -> bool:
            collectors.clear()
            collectors.update(json.loads(self.get("/health", port))["collectors"])
            return all(its["state"] != "starting" for its in collectors.values())

        wait_for(tried, "every collector has been tried")
        return collectors

    def requests(self, number: int, during: subprocess.Popen[Any]) -> Iterator[float]:
        """Ask for the page on new connections while a command runs; yield how long each took.

        Ten milliseconds apart: the two cores are the command's as well.
        """
        while number > 0 or during.poll() is None:
            number -= 1
            began = time.monotonic()
            self.get()
            yield time.monotonic() - began
            time.sleep(0.01)


def call(*command: str) -> None:
    """Run a command here. Raises: CalledProcessError."""
    subprocess.run([need(command[0]), *command[1:]], check=True, capture_output=True)


def _is_removed(cgroup: Path) -> bool:
    """Remove a control group and those within, as far as nobody is in them; return whether it has gone."""
    for directory, _, _ in os.walk(cgroup, topdown=False):
        with contextlib.suppress(OSError):
            Path(directory).rmdir()
    return not cgroup.exists()
