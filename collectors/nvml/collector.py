"""NVIDIA GPUs through NVML: energy, power, use, encoder sessions, errors.

Reads the driver's libnvidia-ml.so.1. At each beat: energy, power, use, memory, temperature, use by process.
Every 10 s: encoder sessions, clocks, limits, throttling, ECC and Xid errors. mJ, mW and MHz in; J, W and Hz
out. Privileges: access to /dev/nvidia*; processes of other users may be hidden.

- Energy is the GPU's own counter (Volta and later). On older GPUs power is integrated from beat to beat, and
  `nvidia_gpu_info` says energy="integrated".
- On Grace modules that counter includes the CPU: `nvidia_gpu_info` says covers="module". It is the node's
  component module, and component gpu is integrated from the GPU's power.
- What a GPU or its driver does not have costs that figure alone. What cannot be true is left out, counted in
  nvidia_gpu_read_errors_total, and a trouble.
- Use is attributed to a process only if it can be the one that NVML means: see users.py.
- A GPU that runtime power management has suspended is not woken: nvidia_gpu_asleep is 1, other series pause.
- All calls are made in one thread of their own: a driver that hangs stops this collector and nothing else.
- After an error that ends the session (GPU lost, driver unloaded or upgraded) the beat fails, and NVML is
  opened again some seconds later. A GPU that is still lost then is left out with nvidia_gpu_lost 1, and
  the others are read. One that was given to a guest, or taken off the bus, is not lost.

Source: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, NamedTuple

import structlog

from powerbench_agent.collectors.nvml import metrics as nvml_metrics
from powerbench_agent.collectors.nvml.board import Board
from powerbench_agent.collectors.nvml.gpu import (
    DRIVER_NOT_LOADED,
    MISMATCH,
    WITHOUT,
    NvmlUnavailable,
    name_of,
)
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
from powerbench_agent.collectors.nvml.pci import Bus, has_gpu, may_have_gpu, read_bus
from powerbench_agent.collectors.nvml.read_errors import ReadErrors
from powerbench_agent.collectors.nvml.samples import fast_samples, slow_samples
from powerbench_agent.collectors.nvml.session import Session, is_address
from powerbench_agent.core import sysfs
from powerbench_agent.core.model import Absent, Meter, ReadFailed, Reading, Sample, Trouble, Use
from powerbench_agent.core.options import Exclude
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
_EXCLUDED = "every NVIDIA GPU is left out by exclude, in [collectors.nvml]"
_WITHOUT = tuple(map(name_of, WITHOUT))


class Options(Exclude, frozen=True, kw_only=True):
    """`[collectors.nvml]`; `exclude` takes a GPU's index, UUID, PCI address or name."""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        if self.interval > MAX_INTERVAL:
            yield "interval", "must be at most 1m: on older GPUs power is integrated from beat to beat"


class _Read(NamedTuple):
    """What has been read of the GPUs so far."""

    samples: list[Sample]
    meters: list[Meter]
    powers: dict[Meter, float | None]
    uses: list[Use]
    troubles: list[Trouble]
    failures: list[str]  # why the energy of a GPU could not be read


class Nvml:
    """The NVIDIA GPUs of one machine."""

    def __init__(self, options: Options, host: Host) -> None:
        self._host = host
        self._worker = Worker("nvml")
        self._options = options
        self._session: Session | None = None
        self._is_reconfigured = False
        self._opened_for: set[str] = set()  # PCI addresses of the GPUs that were awake at its opening
        self._left_out: dict[str, str] = {}  # the error that was logged, by index or PCI address
        self._bus = Bus({}, [])
        self._devices: list[Path] = []  # of the bus, without those that are excluded
        self._listed_at = -math.inf
        self._failure: NvmlUnavailable | None = None
        self._retry_at = -math.inf
        self._slow_at = -math.inf
        self._reopen_at = -math.inf
        self._reopen_after = SLOW_SECONDS
        self._boards: dict[tuple[str, str], Board] = {}  # by `_identity_of`
        self._read_errors = ReadErrors()

    def configure(self, options: Options) -> None:
        """Take a reload's interval and exclusions; counters stay."""
        self._is_reconfigured |= options.exclude != self._options.exclude
        self._options = options
        for board in self._boards.values():
            board.integral.max_gap = max_gap(options)

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
        if self._is_reconfigured:
            self._is_reconfigured = False
            self._listed_at = -math.inf
            self._close()
        if now >= self._listed_at + SLOW_SECONDS or not self._devices:
            self._bus = read_bus(self._host)
            self._devices = without_excluded(self._bus, self._options)
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
        away = {board.pci_bus_id for board in self._given_away()}
        awake -= away
        if self._session is not None:
            if not self._must_reopen(self._session, now, awake):
                return self._session
            self._close()
        is_certain = has_gpu(self._host, self._bus)
        if not is_certain and not may_have_gpu(self._host):
            raise Absent(_ABSENT)
        if self._bus.gpus and not self._devices:
            raise Absent(_EXCLUDED)
        if asleep and not awake:
            return None
        if now < self._retry_at and self._failure is not None:
            raise self._failure
        all_are_ours = not asleep and not away and len(self._devices) == len(self._bus.gpus)
        places = None if all_are_ours else awake
        try:
            session = Session(places, self._read_errors.note, self._options.excludes)
        except NvmlUnavailable as unavailable:
            if is_certain:
                raise
            raise Absent(f"{_ABSENT}; {unavailable}") from None
        self._session = session
        self._failure = None
        self._opened_for = awake
        self._slow_at = -math.inf
        self._identify_boards(session)
        self._log_left_out(session)
        return session

    def _must_reopen(self, session: Session, now: float, awake: set[str]) -> bool:
        """Return whether a GPU has woken up, was plugged in or given away, or may have been reset."""
        if now < self._slow_at:
            return False
        open_boards = [self._board(gpu) for gpu in session.gpus]
        if any(board.has_other_driver(self._bus.drivers) for board in open_boards):
            return True
        if self._is_search_due(session, now) or awake - self._opened_for:
            return True
        self._identify_boards(session)
        return False

    def _is_search_due(self, session: Session, now: float) -> bool:
        """Return whether to open NVML again for a GPU that still cannot be opened in this session."""
        if not self._missing(session) or session.try_again():
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
            self._board(gpu).identify(gpu, self._bus.drivers)

    def _given_away(self) -> list[Board]:
        """Return the boards whose GPU is no longer the driver's, because somebody wanted that."""
        return [board for board in self._boards.values() if board.is_given_away(self._bus.drivers)]

    def _missing(self, session: Session) -> set[str]:
        """Return the indices and PCI addresses of the GPUs that should be open and cannot be opened."""
        away: set[str] = set()
        for board in self._given_away():
            index, _ = board.labels
            away |= {index, board.pci_bus_id}
        return session.unopened.keys() - away

    def _log_left_out(self, session: Session) -> None:
        refusals = session.unopened | session.denied
        for which in sorted(self._missing(session) | session.denied.keys()):
            why = refusals[which]
            if self._left_out.get(which) != why.error:
                log.warning("GPU left out", gpu=which, error=why.error, remedy=why.remedy)
            self._left_out[which] = why.error

    def _end(self, unavailable: NvmlUnavailable, now: float) -> ReadFailed:
        """Close the session after an error that ends it."""
        if self._failure is not unavailable:
            self._failure = unavailable
            self._retry_at = now + RETRY_SECONDS
        self._listed_at = -math.inf  # the GPU may have been given to a guest
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
        for gpu, xid in session.xids():
            self._board(gpu).xids[str(xid)] += 1

    def _board(self, gpu: Gpu) -> Board:
        identity = _identity_of(gpu)
        board = self._boards.get(identity)
        if board is None:
            board = self._boards[identity] = Board(self._new_key(gpu), max_gap(self._options))
        return board

    def _new_key(self, gpu: Gpu) -> str:
        """Return what the meter of a new GPU is called: its UUID, unless another GPU has the same."""
        others = {board.key for board in self._boards.values()}
        if gpu.uuid and gpu.uuid not in others:
            return gpu.uuid
        _, key = _identity_of(gpu)
        if gpu.uuid:
            log.warning(
                "two GPUs have one UUID",
                uuid=gpu.uuid,
                gpu=gpu.index,
                remedy=f"they are told apart: this one is {key}; ask the maker for new firmware",
            )
        return key

    # -- what is asked ---------------------------------------------------------------------------

    def _ask_gpus(self, session: Session, now: float, asleep: set[str]) -> None:
        slow = now >= self._slow_at
        if slow:
            self._slow_at = now + SLOW_SECONDS
            self._count_xids(session)
        for gpu in session.gpus:
            board = self._board(gpu)
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
        now_us = int(self._host.clock.time() * 1e6)
        uses = gpu.process_use(min(board.used_until_us, now_us), now_us)
        board.note_processes(uses, now, self._host)

    def _measure(self, gpu: Gpu, board: Board, *, beat: bool) -> bool:
        """Take the GPU's power and energy; return whether its energy is known. A beat sets the gauge."""
        integrates = gpu.counts_module or not gpu.counts_energy
        watts = board.watts
        if beat or integrates:
            power_mw = gpu.power_mw()
            watts = None if power_mw is None else power_mw / 1000
        if beat:
            board.watts = watts
        now = self._host.clock.monotonic()  # again: the driver may have been slow
        if integrates and watts is not None:
            board.integral.advance(watts, now)
        else:
            board.integral.forget()
        if not gpu.counts_energy:
            board.stop_counting()
            return watts is not None
        energy_mj = gpu.energy_mj()
        if energy_mj is None:
            return False
        board.count(energy_mj, self._host.clock, of_module=gpu.counts_module, beat=beat)
        return True

    # -- the reading -----------------------------------------------------------------------------

    def _reading(self, now: float, asleep: set[str], *, beat: bool) -> Reading:
        session = self._session
        read = _Read([], [], {}, [], [], [])
        for gpu in session.gpus if session else ():
            self._read_gpu(gpu, read, asleep, beat=beat)
        if read.failures and not any(sample.metric is ENERGY for sample in read.samples):
            raise ReadFailed(f"no energy: {'; '.join(read.failures)}", "see nvidia-smi and the kernel log")
        bus_ids = set(asleep)
        if session is not None:
            bus_ids |= {gpu.pci_bus_id for gpu in session.gpus if gpu.pci_bus_id}
            read.samples.extend(self._lost(session, asleep))
        read.samples.extend(ASLEEP.sample(int(bus_id in asleep), bus_id) for bus_id in sorted(bus_ids))
        read.samples.extend(self._read_errors.samples())
        return Reading(
            read.samples, read.meters, taken=now, uses=read.uses, troubles=read.troubles, powers=read.powers
        )

    def _read_gpu(self, gpu: Gpu, read: _Read, asleep: set[str], *, beat: bool) -> None:
        board = self._board(gpu)
        driver = "" if self._session is None else self._session.driver
        read.samples.extend(_identity(gpu, board, driver))
        if gpu.pci_bus_id in asleep:
            return
        is_known = self._measure(gpu, board, beat=beat)
        if board.watts is not None:
            read.samples.append(POWER.sample(board.watts, *board.labels))
        if is_known:
            read.samples.append(ENERGY.sample(board.counted_joules, *board.labels))
            meters, powers = board.meters()
            read.meters.extend(meters)
            read.powers.update(powers)
            read.uses.extend(board.uses())
        else:
            error = self._read_errors.current(gpu, "energy" if gpu.counts_energy else "power")
            if error and error not in _WITHOUT:  # a GPU that has no such value is shown without it
                read.failures.append(f"GPU {gpu.index}: {error}")
        read.troubles.extend(board.troubles())
        read.troubles.extend(self._read_errors.troubles(gpu))
        read.samples.extend(board.gauges)
        read.samples.extend(board.slow)

    def _lost(self, session: Session, asleep: set[str]) -> Iterator[Sample]:
        """Yield the samples of GPUs that were open before, or that NVML counts and cannot open."""
        present = {id(self._board(gpu)) for gpu in session.gpus}
        lost: set[str] = set()  # their indices and PCI addresses
        for board in self._boards.values():
            if id(board) in present or board.pci_bus_id in asleep or not self._is_wanted(board):
                continue
            index, _ = board.labels
            lost |= {index, board.pci_bus_id}
            yield LOST.sample(1, *board.labels, board.pci_bus_id)
            yield from _xids(board)
        for which in sorted(self._missing(session) - lost):
            if is_address(which):
                yield LOST.sample(1, "", "", which)
            else:
                yield LOST.sample(1, which, "", "")

    def _is_wanted(self, board: Board) -> bool:
        """Return whether a GPU that is not open ought to be."""
        names = filter(None, (*board.labels, board.pci_bus_id, board.name))
        return not board.is_given_away(self._bus.drivers) and not self._options.excludes(*names)


def _identity(gpu: Gpu, board: Board, driver: str) -> Iterator[Sample]:
    """Yield what is known of an open GPU even while it is asleep."""
    energy = "counter" if gpu.counts_energy else "integrated"
    covers = "module" if gpu.counts_module else "gpu"
    yield INFO.sample(1, *board.labels, board.name, driver, board.pci_bus_id, energy, covers)
    yield LOST.sample(0, *board.labels, board.pci_bus_id)
    yield from _xids(board)


def _identity_of(gpu: Gpu) -> tuple[str, str]:
    """Return what tells a GPU from every other: a UUID alone does not always."""
    return gpu.uuid, gpu.pci_bus_id or f"index {gpu.index}"


def _xids(board: Board) -> Iterator[Sample]:
    for xid, count in board.xids.items():
        yield XIDS.sample(count, *board.labels, xid)


def max_gap(options: Options) -> float:
    """Return the seconds between two power readings that are still integrated."""
    return max(5.0, 3 * options.interval)


def without_excluded(bus: Bus, options: Options) -> list[Path]:
    """Return the GPUs on the bus, without those that are excluded by their address."""
    return [device for device in bus.gpus if not options.excludes(device.name)]


async def open_collector(options: Options, host: Host) -> Nvml:
    """Return the collector; NVML is opened at the first reading, in its thread. Raises: Absent."""
    bus = read_bus(host)
    if not has_gpu(host, bus) and not may_have_gpu(host):
        raise Absent(_ABSENT)
    if bus.gpus and not without_excluded(bus, options):
        raise Absent(_EXCLUDED)
    return Nvml(options, host)
