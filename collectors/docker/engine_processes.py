"""What the container engine itself uses: the processes of dockerd, containerd and podman.

Reads /proc/PID/{comm,stat,statm}. Privileges: none.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from powerbench_agent.core import processes
from powerbench_agent.core.procfs import read_process_stat

if TYPE_CHECKING:
    from powerbench_agent.core.host import Host

SEARCH_SECONDS = 30.0
SPAN_SECONDS = 5.0
_NAMES = (b"dockerd", b"containerd", b"podman")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class EngineProcesses:
    """The engine's processes."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pids: list[int] = []
        self._search_at = 0.0
        self._percent: float | None = None
        self._last: tuple[float, dict[tuple[int, float], float]] | None = None

    def look(self, now: float) -> tuple[float | None, int | None]:
        """Return (CPU in percent of a core over the last five seconds, resident bytes); None if unknown.

        CPU time is counted in hundredths of a second, so over one second it would be whole percents.
        """
        if now >= self._search_at:
            self._search_at = now + SEARCH_SECONDS
            self._pids = [pid for pid in processes.pids(self._host) if self._name(pid) in _NAMES]
        used: dict[tuple[int, float], float] = {}
        resident = 0
        for pid in self._pids:
            stat = read_process_stat(self._host, pid)
            if stat is not None:
                used[pid, stat.start] = stat.cpu_seconds
                resident += self._resident(pid)
        if not used:
            self._percent = self._last = None
        elif self._last is None:
            self._last = (now, used)
        elif now >= self._last[0] + SPAN_SECONDS:
            then, used_then = self._last
            gained = sum(seconds - used_then.get(key, seconds) for key, seconds in used.items())
            self._percent = max(0.0, gained) / (now - then) * 100
            self._last = (now, used)
        return self._percent, resident if used else None

    def _name(self, pid: int) -> bytes:
        try:
            return self._host.read(self._host.procfs / str(pid) / "comm").strip()
        except OSError:
            return b""

    def _resident(self, pid: int) -> int:
        try:
            return int(self._host.read(self._host.procfs / str(pid) / "statm").split()[1]) * _PAGE
        except (OSError, ValueError, IndexError):
            return 0
