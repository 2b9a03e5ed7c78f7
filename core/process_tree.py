"""A process and its descendants: the CPU time they have used since they were first looked at.

Reads /proc/PID/{stat,task/TID/children}. Clock ticks in, CPU seconds out. Privileges: none.

Source: proc(5)
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from powerbench_agent.core.processes import Unresolved, container_of, uptime
from powerbench_agent.core.procfs import read_process_stat

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from powerbench_agent.core.host import Host

_MAX_TREE = 1000  # processes of one tree that are followed
_JUST_STARTED = 3.0  # seconds; a process this young is counted from its start
_SLACK = 0.1  # seconds, more than the resolution of start times

_Who = tuple[int, float]  # pid and start: a number may be used again


class ProcessTree:
    """A process and its descendants: the CPU time they have used since they were first looked at."""

    def __init__(self, host: Host, pid: int) -> None:
        """Look at the process for the first time. Raises: Unresolved if it does not exist."""
        stat = read_process_stat(host, pid)
        if stat is None:
            raise Unresolved(f"no process {pid}")
        self._host = host
        self.pid = pid
        self.start = stat.start
        self.container = container_of(host, pid)
        self.pids: tuple[int, ...] = (pid,)
        self.cpu_seconds = 0.0  # never decreases
        self.alive = True
        self._new = (
            self._uptime() - _JUST_STARTED
        )  # processes that started later are counted from their start
        # CPU seconds at the last look, of its processes and of others' processes directly below them.
        self._members: dict[_Who, float] = {}
        self._apart: dict[_Who, float] = {}
        self._owed = 0.0  # CPU seconds that may have been counted twice
        who = pid, stat.start
        self._members[who] = self._first(who, stat.cpu_seconds)

    def look(self, others: Collection[int] = (), *, children: bool = True) -> None:
        """Read what they have used by now; `others`: processes that belong to other trees.

        `children`: whether to search for new descendants, which costs one read for each thread.
        """
        if children:
            begun = self._uptime()
            below, apart = self._descend(set(others))
        else:
            begun = None
            below = [pid for pid in self.pids if pid == self.pid or pid not in others]
            apart = {pid for pid, _ in self._members.keys() | self._apart.keys()}.difference(below)
        members = self._figures(below)
        if not children:  # without those whose number another process has by now
            members = {who: used for who, used in members.items() if who in self._members}
        self.alive = (self.pid, self.start) in members
        self.pids = tuple(pid for pid, _ in members) if self.alive else ()
        if self.alive:
            self._advance(members, self._figures(apart))
        if begun is not None:
            self._new = begun - _SLACK

    def _figures(self, found: Iterable[int]) -> dict[_Who, float]:
        figures: dict[_Who, float] = {}
        for pid in found:
            stat = read_process_stat(self._host, pid)
            if stat is not None:
                figures[pid, stat.start] = stat.cpu_seconds
        return figures

    def _advance(self, members: dict[_Who, float], apart: dict[_Who, float]) -> None:
        known = self._apart | self._members
        gained = 0.0
        for who, used in members.items():
            before = known.get(who, self._first(who, used))
            gained += used - before
        # The time of a process that has ended is part of its parent's figure by now, and was counted before.
        # The parent may have been read just before it took that over, or never take it: owed for one look.
        for who, used in known.items():
            if who in members or who in apart:
                continue
            pid, _ = who
            has_ended = who not in self._figures([pid])
            if has_ended:
                gained -= used
        self.cpu_seconds += max(0.0, gained - self._owed)
        self._owed = max(0.0, -gained)
        self._members, self._apart = members, apart

    def _first(self, who: _Who, used: float) -> float:
        return 0.0 if who[1] >= self._new else used

    def _uptime(self) -> float:
        try:
            return uptime(self._host)
        except (OSError, ValueError):
            return math.inf

    def _descend(self, others: set[int]) -> tuple[list[int], set[int]]:
        """Return the tree's processes, and the processes of others directly below them."""
        below: list[int] = []
        apart: set[int] = set()
        seen = {self.pid}
        found = [self.pid]
        while found and len(below) < _MAX_TREE:
            pid = found.pop()
            below.append(pid)
            for child in _children(self._host, pid):
                if child in others:
                    apart.add(child)
                elif child not in seen:
                    seen.add(child)
                    found.append(child)
        return below, apart


def _children(host: Host, pid: int) -> Iterator[int]:
    tasks = host.procfs / str(pid) / "task"
    try:
        threads = os.listdir(tasks)  # noqa: PTH208 - 5x faster
    except OSError:
        return
    for thread in threads:
        try:
            yield from map(int, host.read(tasks / thread / "children").split())
        except (OSError, ValueError):
            continue
