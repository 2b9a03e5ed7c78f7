"""NVIDIA GPUs through NVML: energy, power, use, encoder sessions, errors.

Reads the driver's libnvidia-ml.so.1. At each beat: energy, power, use, memory, temperature, use by process.
Every 10 s: encoder sessions, clocks, limits, throttling, ECC and Xid errors. mJ, mW and MHz in; J, W and Hz
out. Privileges: access to /dev/nvidia*; processes of other users may be hidden.

- Energy is the GPU's own counter (Volta and later). On older GPUs power is integrated from beat to beat, and
  `nvidia_gpu_info` says energy="integrated".
- A GPU that runtime power management has suspended is not woken: nvidia_gpu_asleep is 1, other series pause.
- All calls are made in one thread of their own: a driver that hangs stops this collector and nothing else.
- After an error that ends the session (GPU lost, driver unloaded or upgraded) the beat fails, and NVML is
  opened again some seconds later. A GPU that is still lost then is left out with nvidia_gpu_lost 1, and
  the others are read.

Source: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import structlog

from powerbench_agent.collectors.nvml import metrics as nvml_metrics
from powerbench_agent.collectors.nvml.board import Board, find_gpus, is_present
from powerbench_agent.collectors.nvml.gpu import DRIVER_NOT_LOADED, MISMATCH, NvmlUnavailable
from powerbench_agent.collectors.nvml.metrics import (
    ASLEEP,
    DECODER,
    ENCODER,
    ENERGY,
    INFO,
    LOST,
    POWER,
    UTILIZATION,
    XIDS,
)
from powerbench_agent.collectors.nvml.read_errors import ReadErrors
from powerbench_agent.collectors.nvml.samples import fast_samples, slow_samples
from powerbench_agent.collectors.nvml.session import Session, is_address
from powerbench_agent.core import sysfs
from powerbench_agent.core.model import Absent, Meter, ReadFailed, Reading, Sample, Use
from powerbench_agent.core.options import CollectorOptions
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from powerbench_agent.collectors.nvml.gpu import Gpu
    from powerbench_agent.core.host import Host

log = structlog.get_logger("nvml")

METRICS = nvml_metrics.METRICS

SLOW_SECONDS = 10.0
RETRY_SECONDS = 5.0  # between attempts to open NVML
MAX_REOPEN_SECONDS = 600.0  # between sessions that are opened only to look for a lost GPU
MAX_INTERVAL = 60.0
_ENGINE_USE = (UTILIZATION, ENCODER, DECODER)
_ABSENT = "no NVIDIA GPU on the PCI bus, and no driver"


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.nvml]`."""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        if self.interval > MAX_INTERVAL:
            yield "interval", "must be at most 1m: on older GPUs power is integrated from beat to beat"


class Nvml:
    """The NVIDIA GPUs of one machine."""

    def __init__(self, options: Options, host: Host) -> None:
        self._host = host
        self._worker = Worker("nvml")
        self._max_gap = max_gap(options)
        self._session: Session | None = None
        self._opened_for: set[str] = set()  # PCI addresses of the GPUs that were awake at its opening
        self._left_out: dict[str, str] = {}  # the error that was logged, by index or PCI address
        self._devices: list[Path] = []
        self._listed_at = -math.inf
        self._failure: NvmlUnavailable | None = None
        self._retry_at = -math.inf
        self._slow_at = -math.inf
        self._reopen_at = -math.inf
        self._reopen_after = SLOW_SECONDS
        self._boards: dict[str, Board] = {}  # by uuid
        self._read_errors = ReadErrors()

    def configure(self, options: Options) -> None:
        """Take a reload's interval; sessions and counters stay."""
        self._max_gap = max_gap(options)
        for board in self._boards.values():
            board.integral.max_gap = self._max_gap

    async def read(self) -> Reading:
        """Read every GPU that is awake. Raises: ReadFailed, Absent."""
        return await self._worker.call(self._beat)

    async def refresh(self) -> Reading:
        """Read the energy of every GPU that is awake; the gauges stay those of the last beat."""
        return await self._worker.call(self._refresh)

    async def aclose(self) -> None:
        """Close the session, unless a call to the driver hangs."""
        with contextlib.suppress(ReadFailed):
            await self._worker.call(self._close)
        self._worker.close()

    # -- in the thread ---------------------------------------------------------------------------

    def _beat(self) -> Reading:
        now = self._host.clock.monotonic()
        if now >= self._listed_at + SLOW_SECONDS or not self._devices:
            self._devices = find_gpus(self._host)
            self._listed_at = now
        asleep = self._asleep()
        try:
            session = self._opened(now, asleep)
            if session is not None:
                self._ask_gpus(session, now, asleep)
            return self._reading(now, asleep, beat=True)
        except NvmlUnavailable as unavailable:
            raise self._end(unavailable, now) from None

    def _refresh(self) -> Reading:
        now = self._host.clock.monotonic()
        try:
            return self._reading(now, self._asleep(), beat=False)
        except NvmlUnavailable as unavailable:
            raise self._end(unavailable, now) from None

    def _asleep(self) -> set[str]:
        """Return the PCI addresses of the GPUs that are asleep."""
        return {device.name for device in self._devices if sysfs.asleep(self._host, device)}

    # -- the session -----------------------------------------------------------------------------

    def _opened(self, now: float, asleep: set[str]) -> Session | None:
        """Return the open session; None while every GPU is asleep. Raises: NvmlUnavailable, Absent."""
        awake = {device.name for device in self._devices} - asleep
        if self._session is not None:
            if not self._must_reopen(self._session, now, awake):
                return self._session
            self._close()
        if not is_present(self._host, self._devices):
            raise Absent(_ABSENT)
        if asleep and not awake:
            return None
        if now < self._retry_at and self._failure is not None:
            raise self._failure
        session = self._session = Session(awake if asleep else None, self._read_errors.note)
        self._failure = None
        self._opened_for = awake
        self._slow_at = -math.inf
        self._identify_boards(session)
        self._log_left_out(session)
        return session

    def _must_reopen(self, session: Session, now: float, awake: set[str]) -> bool:
        """Return whether a GPU has woken up, was plugged in, or may have been reset."""
        if now < self._slow_at:
            return False
        if self._is_search_due(session, now) or awake - self._opened_for:
            return True
        self._identify_boards(session)
        return False

    def _is_search_due(self, session: Session, now: float) -> bool:
        """Return whether to open NVML again for a GPU that still cannot be opened in this session."""
        if not session.unopened or session.try_again(self._read_errors.note):
            self._reopen_after = SLOW_SECONDS
            return False
        if now < self._reopen_at:
            return False
        # Reopening delays the other GPUs, so the time between attempts doubles.
        self._reopen_at = now + self._reopen_after
        self._reopen_after = min(MAX_REOPEN_SECONDS, 2 * self._reopen_after)
        return True

    def _identify_boards(self, session: Session) -> None:
        for gpu in session.gpus:
            self._board(gpu.uuid).identify(gpu)

    def _log_left_out(self, session: Session) -> None:
        for which, why in (session.unopened | session.denied).items():
            if self._left_out.get(which) != why.error:
                log.warning("GPU left out", gpu=which, error=why.error, remedy=why.remedy)
            self._left_out[which] = why.error

    def _end(self, unavailable: NvmlUnavailable, now: float) -> ReadFailed:
        """Close the session after an error that ends it."""
        if self._failure is not unavailable:
            self._failure = unavailable
            self._retry_at = now + RETRY_SECONDS
        for board in self._boards.values():
            board.interrupt()
        self._close(unload=unavailable.code in (MISMATCH, DRIVER_NOT_LOADED))
        return ReadFailed(str(unavailable), unavailable.remedy)

    def _close(self, *, unload: bool = False) -> None:
        session, self._session = self._session, None
        for board in self._boards.values():
            board.clear()
        if session is not None:
            with contextlib.suppress(NvmlUnavailable):  # Xid errors that are not fetched now are lost
                self._count_xids(session)
            session.close(unload=unload)

    def _count_xids(self, session: Session) -> None:
        for uuid, xid in session.xids():
            self._board(uuid).xids[str(xid)] += 1

    def _board(self, uuid: str) -> Board:
        board = self._boards.get(uuid)
        if board is None:
            board = self._boards[uuid] = Board(self._max_gap)
        return board

    # -- what is asked ---------------------------------------------------------------------------

    def _ask_gpus(self, session: Session, now: float, asleep: set[str]) -> None:
        slow = now >= self._slow_at
        if slow:
            self._slow_at = now + SLOW_SECONDS
            self._count_xids(session)
        for gpu in session.gpus:
            board = self._boards[gpu.uuid]
            if gpu.pci_bus_id in asleep:
                board.clear()
                board.interrupt()
                board.integral.forget()
                continue
            self._ask_gpu(gpu, board, now)
            if slow:
                gpu.ask_again()
                board.slow = list(slow_samples(gpu, board.labels))

    def _ask_gpu(self, gpu: Gpu, board: Board, now: float) -> None:
        board.gauges = []
        board.gauges = list(fast_samples(gpu, board.labels))
        percents = [sample.value for sample in board.gauges if sample.metric in _ENGINE_USE]
        board.note_busy(max(percents, default=None), now)
        uses = gpu.process_use(board.used_until_us)
        board.note_processes(uses, now, self._host)

    def _energy(self, gpu: Gpu, board: Board, *, beat: bool) -> float | None:
        """Return joules since the start, None if they are unknown now; a beat also sets the power gauge."""
        watts = board.watts
        if beat or not gpu.counts_energy:
            power_mw = gpu.plausible_power_mw()
            watts = None if power_mw is None else power_mw / 1000
        if beat:
            board.watts = watts
        now = self._host.clock.monotonic()  # again: the driver may have been slow
        if gpu.counts_energy:
            board.integral.forget()
            energy_mj = gpu.energy_mj()
            if energy_mj is None:
                return None
            board.counter.advance(energy_mj * 1000, now)
        elif watts is None:
            board.integral.forget()
            return None
        else:
            board.counter.forget()
            board.integral.advance(watts, now)
        return board.joules

    # -- the reading -----------------------------------------------------------------------------

    def _reading(self, now: float, asleep: set[str], *, beat: bool) -> Reading:
        samples: list[Sample] = []
        meters: list[Meter] = []
        uses: list[Use] = []
        errors: list[str] = []
        session = self._session
        for gpu in session.gpus if session else ():
            board = self._boards[gpu.uuid]
            samples.extend(_identity(gpu, board, session.driver if session else ""))
            if gpu.pci_bus_id in asleep:
                continue
            joules = self._energy(gpu, board, beat=beat)
            if board.watts is not None:
                samples.append(POWER.sample(board.watts, *board.labels))
            if joules is not None:
                samples.append(ENERGY.sample(joules, *board.labels))
                meters.append(Meter("gpu", "nvml", gpu.uuid, joules))
                uses.extend(board.uses(gpu.uuid))
            elif error := self._read_errors.current(gpu, "energy" if gpu.counts_energy else "power"):
                errors.append(f"GPU {gpu.index}: {error}")
            samples.extend(board.gauges)
            samples.extend(board.slow)
        if errors and not meters:
            raise ReadFailed(f"no energy: {'; '.join(errors)}", "see nvidia-smi and the kernel log")
        open_gpus = {gpu.pci_bus_id for gpu in session.gpus} if session else set()
        if session is not None:
            samples.extend(self._lost(session, asleep))
        samples.extend(ASLEEP.sample(int(bus_id in asleep), bus_id) for bus_id in sorted(asleep | open_gpus))
        samples.extend(self._read_errors.samples())
        return Reading(samples, meters, taken=now, uses=uses)

    def _lost(self, session: Session, asleep: set[str]) -> Iterator[Sample]:
        """Yield the samples of GPUs that were open before, or that NVML counts and cannot open."""
        open_uuids = {gpu.uuid for gpu in session.gpus}
        lost: set[str] = set()  # their indices and PCI addresses
        for uuid, board in self._boards.items():
            index = board.labels[0]
            if uuid in open_uuids or not index or board.pci_bus_id in asleep:
                continue
            lost |= {index, board.pci_bus_id}
            yield LOST.sample(1, *board.labels, board.pci_bus_id)
            yield from _xids(board)
        for which in session.unopened:
            if which in lost:
                continue
            if is_address(which):
                yield LOST.sample(1, "", "", which)
            else:
                yield LOST.sample(1, which, "", "")


def _identity(gpu: Gpu, board: Board, driver: str) -> Iterator[Sample]:
    """Yield what is known of an open GPU even while it is asleep."""
    energy = "counter" if gpu.counts_energy else "integrated"
    yield INFO.sample(1, *board.labels, board.name, driver, board.pci_bus_id, energy)
    yield LOST.sample(0, *board.labels, board.pci_bus_id)
    yield from _xids(board)


def _xids(board: Board) -> Iterator[Sample]:
    for xid, count in board.xids.items():
        yield XIDS.sample(count, *board.labels, xid)


def max_gap(options: Options) -> float:
    """Return the seconds between two power readings that are still integrated."""
    return max(5.0, 3 * options.interval)


async def open_collector(options: Options, host: Host) -> Nvml:
    """Return the collector; NVML is opened at the first reading, in its thread. Raises: Absent."""
    if not is_present(host, find_gpus(host)):
        raise Absent(_ABSENT)
    return Nvml(options, host)
