"""The machine's CPU time as counters that never fall, out of a /proc/stat whose counters do.

Rules, each because some kernel or container breaks it:

- A mode that steps back a little stands still until it has caught up: idle and iowait are estimates that the
  kernel corrects between each other.
- A mode that falls far, or gains more than the CPUs can have spent, has been replaced and not counted on
  (live migration, a changed container limit, a fault of the hypervisor's steal clock). It adds nothing, and
  goes on from its new figure. The other modes of that interval count.
- If that mode is idle, the CPUs' capacity is still known: it is the time that passed.

The count of one container or process has the same two ways to fall: a little, which is noise, or far, since
it was started again (`has_restarted`).

Time is that of a monotonic clock. It stands still while the machine is suspended, and so do the CPUs.

Source: https://docs.kernel.org/filesystems/proc.html (1.7, "iowait is not reliable").
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from powerbench_agent.core.model import CpuTime
from powerbench_agent.core.procfs import BUSY_MODES, HERTZ, own_container, read_machine_stat

if TYPE_CHECKING:
    from powerbench_agent.core.host import Host
    from powerbench_agent.core.procfs import MachineStat

_NOISE_SECONDS = 0.1  # that the count of one container or process may fall by
_LEEWAY_SECONDS = 1.0  # of each CPU: what the kernel's corrections and late accounting amount to


def has_restarted(before: float, now: float) -> bool:
    """Return whether CPU seconds of a container or process are those of a new one, counted from 0.

    A smaller fall is noise of a sum over CPUs or threads: the count stands still until it has caught up.
    """
    return now < before - _NOISE_SECONDS


class CpuCounters:
    """The CPU time of all CPUs together, by mode and as a sum. Pure: no I/O, no clock."""

    def __init__(self) -> None:
        self.ticks: dict[str, int] = {}  # by mode, since boot; no mode ever decreases
        self.busy = 0.0  # CPU seconds of work; never decreases
        self.capacity = 0.0  # CPU seconds of all modes; never decreases
        self._raw: dict[str, int] = {}  # the kernel's own figures
        self._cpus = 0
        self._then = 0.0

    def advance(self, stat: MachineStat, now: float) -> tuple[str, ...]:
        """Take the figures read at monotonic second `now`; return the modes that were not counted on."""
        if not self._raw:
            self.busy, self.capacity = stat.busy, stat.capacity
            self._cpus, self._then = stat.cpus, now
        cpus = max(self._cpus, stat.cpus)
        elapsed = (now - self._then) * HERTZ * cpus
        gains, replaced = self._gains(stat, elapsed, cpus)
        self.busy += sum(gains.get(mode, 0) for mode in BUSY_MODES) / HERTZ
        least = 0.0 if "idle" in gains else elapsed
        self.capacity += max(sum(gains.values()), least) / HERTZ
        for mode, raw in stat.ticks.items():
            self.ticks[mode] = self.ticks.get(mode, raw) + gains.get(mode, 0)
        self._cpus, self._then = stat.cpus, now
        return replaced

    def _gains(self, stat: MachineStat, elapsed: float, cpus: int) -> tuple[dict[str, int], tuple[str, ...]]:
        """Return what each mode has gained, and the modes of which that is not known."""
        leeway = _LEEWAY_SECONDS * HERTZ * max(1, cpus)
        gains: dict[str, int] = {}
        for mode, raw in stat.ticks.items():
            before = self._raw.setdefault(mode, raw)
            gained = raw - before
            is_possible = gained <= elapsed + leeway or cpus == 0
            if gained < -leeway or not is_possible:
                self._raw[mode] = raw
                continue
            gains[mode] = max(0, gained)
            self._raw[mode] = max(before, raw)
        return gains, tuple(mode for mode in self._raw if mode not in gains)


class CpuTimes:
    """How busy the machine has been, for whoever asks again and again."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._counters = CpuCounters()

    def read(self) -> CpuTime | None:
        """Return the CPU time of the machine and of this process; None if /proc/stat cannot be used."""
        try:
            stat = read_machine_stat(self._host)
        except (OSError, ValueError):
            return None
        self._counters.advance(stat, self._host.clock.monotonic())
        busy, capacity = self._counters.busy, self._counters.capacity
        return CpuTime(busy, capacity, time.process_time(), own_container(self._host))
