"""Who listens on this machine's TCP ports. Reads procfs and never connects: a probe may be the only client.

Privileges: none to see a port taken; root, or the same user, to see by whom.

Source: https://docs.kernel.org/networking/proc_net_tcp.html, proc(5) (/proc/PID/fd, /proc/PID/comm)
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_LISTEN = "0A"  # TCP_LISTEN


def listeners(procfs: Path = Path("/proc")) -> dict[int, set[str]]:
    """Return the inodes of the listening sockets by port; empty where procfs says nothing."""
    found: dict[int, set[str]] = {}
    for table in ("net/tcp", "net/tcp6"):
        with contextlib.suppress(OSError):
            for line in (procfs / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    found.setdefault(int(fields[1].rpartition(":")[2], 16), set()).add(fields[9])
    return found


def holder(port: int, procfs: Path = Path("/proc")) -> str | None:
    """Return who listens there, like `nginx (pid 12)`; None for nobody."""
    inodes = listeners(procfs).get(port)
    if inodes is None:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in sorted(procfs.glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if any(str(link.readlink()) in wanted for link in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return "a process of another user"
