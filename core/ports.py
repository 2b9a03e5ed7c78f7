"""Which processes listen on this machine's TCP ports. Reads procfs and never connects.

A probe could be the only client that a listener takes.

Privileges: none to see that a port is taken; root, or the same user, to see by which process.

Source: https://docs.kernel.org/networking/proc_net_tcp.html, proc(5) (/proc/PID/fd, /proc/PID/comm)
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_LISTEN = "0A"  # TCP_LISTEN


def listeners(procfs: Path = Path("/proc")) -> dict[int, set[str]]:
    """Return the inodes of the listening sockets by port; empty if procfs cannot be read."""
    found: dict[int, set[str]] = {}
    for table in ("net/tcp", "net/tcp6"):
        with contextlib.suppress(OSError):
            rows = (procfs / table).read_text().splitlines()[1:]
            for row in rows:
                fields = row.split()
                local_address, state, inode = fields[1], fields[3], fields[9]
                if state == _LISTEN:
                    port = int(local_address.rpartition(":")[2], 16)
                    found.setdefault(port, set()).add(inode)
    return found


def holder(port: int, procfs: Path = Path("/proc")) -> str | None:
    """Return the process that listens there, like `nginx (pid 12)`; None if the port is free."""
    inodes = listeners(procfs).get(port)
    if inodes is None:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in sorted(procfs.glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            opened = (str(link.readlink()) for link in (process / "fd").iterdir())
            if any(target in wanted for target in opened):
                name = (process / "comm").read_text().strip()
                return f"{name} (pid {process.name})"
    return "a process of another user"
