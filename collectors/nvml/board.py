"""What the agent keeps of an NVIDIA GPU from one NVML session to the next."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

from powerbench_agent.collectors.nvml.users import may_use_gpu
from powerbench_agent.core.counters import Counter, Integral, Rate
from powerbench_agent.core.host import asleep
from powerbench_agent.core.model import ANYONE, UNTOLD, Meter, Trouble, Use
from powerbench_agent.core.processes import container_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from powerbench_agent.collectors.nvml.gpu import Gpu, ProcessUse
    from powerbench_agent.core.host import Clock, Host
    from powerbench_agent.core.model import Sample

FORGET_SECONDS = 60.0  # a process that has not used the GPU for this long is forgotten
ENGINES = ("sm", "encoder", "decoder")
_LEAPT = "the energy counter was reset, or moved further than the GPU can have used; that is not counted"
_LEAPT_REMEDY = "see the kernel log; a driver that was loaded again counts from 0"
_STRANGERS = "NVML's process ids are not those of this pid namespace: their use is attributed to nobody"
_STRANGERS_REMEDY = "run the agent in the host's pid namespace (docker run --pid=host)"


class ProcessTime:
    """What one process has used of one GPU, in seconds of each engine."""

    def __init__(self, container: str) -> None:
        """`container`: the id of the container that the process runs in, or empty."""
        self.container = container
        self.seconds = dict.fromkeys(ENGINES, 0.0)
        self.seen = 0.0

    def add(self, use: ProcessUse, span: float) -> None:
        """Add the process's mean utilisation over the last `span` seconds."""
        for engine, percent in (
            ("sm", use.sm_percent),
            ("encoder", use.encoder_percent),
            ("decoder", use.decoder_percent),
        ):
            self.seconds[engine] += percent / 100 * span


class Board:
    """One GPU over the agent's whole life."""

    def __init__(self, key: str, max_gap: float) -> None:
        """`key`: its meter's; `max_gap`: seconds between two power readings that are still integrated."""
        self.key = key
        self.integral = Integral(max_gap)
        self.labels: tuple[str, str] = ("", "")
        self.pci_bus_id = ""
        self.name = ""
        self.driver = ""  # of its PCI device
        self.is_on_bus = False  # when it was last open
        self.xids: Tally[str] = Tally()
        self.processes: dict[int, ProcessTime] = {}
        self.used_until_us = 0
        self.used_at: float | None = None
        self.has_strangers = False  # among the processes of the last beat
        self.busy_seconds: float | None = None  # of the busiest engine, for all processes; None: unknown
        self.busy_at: float | None = None
        self.watts: float | None = None  # at the last beat
        self.gauges: list[Sample] = []  # of the last beat
        self.slow: list[Sample] = []  # of the last slow beat
        # 64 bits, so neither wraps. A counter that includes the CPU is not the GPU's.
        self._counter = Counter(None)
        self._module_counter = Counter(None)
        self._counting: Counter | None = None  # which of the two is read in this session
        self._rate = Rate()  # of that one
        self._resets = 0  # of that one, at the last beat
        self._has_leapt = False  # between the last two beats

    @property
    def joules(self) -> float:
        """The GPU's own energy since the agent started, counted and integrated."""
        return self._counter.joules + self.integral.joules

    @property
    def counted_joules(self) -> float:
        """Energy since the agent started of what its counter covers."""
        return self._module_counter.joules if self._counting is self._module_counter else self.joules

    def identify(self, gpu: Gpu, drivers: Mapping[str, str]) -> None:
        """Take what the GPU is called in this session; `drivers`: of PCI devices, by address."""
        self.labels = gpu.labels
        self.pci_bus_id = gpu.pci_bus_id
        self.name = gpu.name
        self.is_on_bus = gpu.pci_bus_id in drivers
        self.driver = drivers.get(gpu.pci_bus_id, "")
        self._counter.most_watts = gpu.most_watts

    def is_given_away(self, drivers: Mapping[str, str]) -> bool:
        """Return whether somebody took the GPU off the bus or its driver off the GPU: it is not lost."""
        is_off_bus = self.is_on_bus and self.pci_bus_id not in drivers
        return is_off_bus or self.has_other_driver(drivers)

    def has_other_driver(self, drivers: Mapping[str, str]) -> bool:
        """Return whether the GPU's driver is another than when it was last open, or there is none now."""
        return self.driver not in ("", drivers.get(self.pci_bus_id, self.driver))

    def count(self, energy_mj: int, clock: Clock, *, of_module: bool, beat: bool) -> None:
        """Take the energy counter, read just now; `of_module`: it includes the CPU."""
        counter = self._module_counter if of_module else self._counter
        if self._counting is not counter:
            counter.forget()
            self._counting, self._resets, self._rate = counter, counter.resets, Rate()
        now = clock.monotonic()
        counter.advance(energy_mj * 1000, now, asleep(clock))
        if beat:
            self._rate.follow(counter, now)
            self._has_leapt = counter.resets != self._resets
            self._resets = counter.resets

    def stop_counting(self) -> None:
        """Have no counter: power is integrated instead."""
        self._counting = None
        self._has_leapt = False

    def meters(self) -> tuple[list[Meter], dict[Meter, float | None]]:
        """Return the GPU's own energy and its module's, and the power of the one that has a counter."""
        gpu = Meter("gpu", "nvml", self.key, self.joules)
        if self._counting is self._counter:
            return [gpu], {gpu: self._rate.watts}
        if self._counting is self._module_counter:
            module = Meter("module", "nvml", self.key, self._module_counter.joules)
            return [gpu, module], {module: self._rate.watts}
        return [gpu], {}

    def troubles(self) -> Iterator[Trouble]:
        """Yield what was wrong with the figures of the last beat."""
        index, _ = self.labels
        if self._has_leapt:
            yield Trouble(f"gpu {index} energy counter", _LEAPT, _LEAPT_REMEDY)
        if self.has_strangers:
            yield Trouble(f"gpu {index} processes", _STRANGERS, _STRANGERS_REMEDY)

    def interrupt(self) -> None:
        """Do not count the time until the next beat as use: the session has ended, or the GPU is asleep."""
        self.used_at = self.busy_at = None

    def clear(self) -> None:
        """Drop the samples of the last beats."""
        self.gauges, self.slow = [], []

    def note_busy(self, percent: float | None, now: float) -> None:
        """Add the time since the last beat during which the busiest engine was in use by any process."""
        if percent is None:
            self.busy_seconds = self.busy_at = None
            return
        span = 0.0 if self.busy_at is None else now - self.busy_at
        self.busy_seconds = (self.busy_seconds or 0.0) + percent / 100 * span
        self.busy_at = now

    def note_processes(self, uses: list[ProcessUse] | None, now: float, host: Host) -> None:
        """Add what each process has used since the last beat; `uses` is None if that is unknown."""
        span = 0.0 if self.used_at is None else now - self.used_at
        self.used_at = None if uses is None else now
        self.has_strangers = False
        for use in uses or ():
            self.used_until_us = max(self.used_until_us, use.taken_us)
            process = self.processes.get(use.pid)
            if process is None:
                if not may_use_gpu(host, use.pid):
                    self.has_strangers = True
                    continue
                process = self.processes[use.pid] = ProcessTime(container_of(host, use.pid))
            process.seen = now
            process.add(use, span)
        self._forget_processes(now)

    def _forget_processes(self, now: float) -> None:
        forgotten = [pid for pid, process in self.processes.items() if now - process.seen > FORGET_SECONDS]
        for pid in forgotten:
            del self.processes[pid]

    def uses(self) -> Iterator[Use]:
        """Yield the engine time of each process, and of all processes together."""
        for pid, process in self.processes.items():
            for engine, seconds in process.seconds.items():
                yield Use("gpu", "nvml", self.key, engine, pid, seconds, process.container)
        if self.busy_seconds is not None:
            engine = UNTOLD if self.used_at is None or self.has_strangers else "busiest"
            yield Use("gpu", "nvml", self.key, engine, ANYONE, self.busy_seconds)
