"""Tries, from inside the unit's sandbox, what the agent must not be able to do; prints its answers as JSON.

Each answer is "" where the try succeeded, and the error's name where it did not. It is run by the very unit,
whose ExecStart= is replaced and nothing else. Argument: an address outside.
"""

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

Action = Callable[[], object]

_NEW_USER_NAMESPACE = 0x10000000  # CLONE_NEWUSER
_ATTACH = 16  # PTRACE_ATTACH
_EXECUTABLE = 4  # PROT_EXEC
_STATE, _TEMPORARY = "/var/lib/powerbench", "/tmp"  # noqa: S108 - whether it is private is the question
_BUS = "/run/dbus/system_bus_socket"


def tried(action: Action) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def reading(path: str) -> Action:
    return lambda: list(Path(path).iterdir()) if Path(path).is_dir() else Path(path).read_bytes()


def writing(directory: str) -> Action:
    def write() -> None:
        file = Path(directory, "probe")
        file.write_text("x")
        file.unlink()

    return write


def opening(family: str, kind: int) -> Action:
    return lambda: socket.socket(getattr(socket, family), kind).close()


def connecting(family: str, address: object) -> Action:
    def connect() -> None:
        with socket.socket(getattr(socket, family), socket.SOCK_STREAM) as outward:
            outward.settimeout(2)
            outward.connect(address)  # type: ignore[arg-type]

    return connect


def calling(name: str, *arguments: object) -> Action:
    """Return an action: a function of the C library, which says -1 when it fails."""

    def call() -> None:
        if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) == -1:
            raise OSError(ctypes.get_errno(), name)

    return call


def mapping() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | _EXECUTABLE).close()


def main(outside: str) -> None:
    """Try everything, and say how it went."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    tries: dict[str, dict[str, Action]] = {
        "read": {
            path: reading(path)
            for path in (
                "/etc/shadow",
                "/etc/passwd",
                "/root",
                "/home",
                "/var/log",
                "/dev/kmsg",
                "/proc/1/stat",
            )
        },
        "write": {
            path: writing(path)
            for path in (
                "/",
                "/etc",
                "/etc/powerbench",
                "/usr",
                "/opt",
                "/var",
                "/var/lib",
                "/run",
                "/sys",
                "/proc/sys",
            )
        },
        "own": {path: writing(path) for path in (_STATE, _TEMPORARY)},
        "open": {
            family: opening(family, kind)
            for family, kind in (
                ("AF_INET", socket.SOCK_STREAM),
                ("AF_INET6", socket.SOCK_STREAM),
                ("AF_NETLINK", socket.SOCK_RAW),
                ("AF_PACKET", socket.SOCK_RAW),
            )
        },
        "connect": {"outside": connecting("AF_INET", (outside, 9)), "D-Bus": connecting("AF_UNIX", _BUS)},
        "call": {
            "setuid": calling("setuid", 0),
            "chroot": calling("chroot", b"/"),
            "mount": calling("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None),
            "unshare": calling("unshare", _NEW_USER_NAMESPACE),
            "ptrace": calling("ptrace", _ATTACH, os.getppid(), None, None),
            "sethostname": calling("sethostname", b"x", 1),
            "kill": calling("kill", 1, 0),
            "write and execute": mapping,
        },
    }
    answers: dict[str, object] = {
        kind: {name: tried(action) for name, action in actions.items()} for kind, actions in tries.items()
    }
    answers["status"] = {
        name: status[name].split()[0] for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
    }
    answers["network"] = str(Path("/proc/self/ns/net").readlink())
    answers["interfaces"] = [
        line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]
    ]
    answers["processes"] = sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    answers["self"] = os.getpid()
    print(json.dumps(answers))  # noqa: T201 - what it is for


main(sys.argv[1])
