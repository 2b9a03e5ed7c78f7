"""NVIDIA GPUs through NVML: energy, power, use, encoder sessions, errors.

Reads the driver's libnvidia-ml.so.1. Each beat: energy, power, use, memory, temperature, who used it; every
10 s: encoder sessions, clocks, limits, throttling, ECC, Xid errors. mJ, mW and MHz in; J, W and Hz out.
Privileges: none beyond /dev/nvidia*; another user's processes may be hidden.

- Energy is the GPU's own counter (Volta and later); before it, and in `nvidia_gpu_info` as
  energy="integrated", power integrated from beat to beat.
- A GPU that runtime power management has put to sleep is left asleep: nvidia_gpu_asleep 1, a gap otherwise.
- Every call is made in one thread of its own: a driver that hangs stops this collector and nothing else.
- After an error that ends the session (GPU lost, driver unloaded or upgraded) the beat fails and NVML is
  opened again some seconds later. A GPU that is still lost then is left out, nvidia_gpu_lost 1, and the
  others go on.

Source: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter as Tally
from typing import TYPE_CHECKING

import structlog

from powerbench_agent.collectors.nvml import metrics as nvml_metrics
from powerbench_agent.collectors.nvml import session
from powerbench_agent.collectors.nvml.board import Board, find_gpus, is_present
from powerbench_agent.collectors.nvml.gpu import DRIVER_NOT_LOADED, MISMATCH, THROTTLE_REASONS, Ended
from powerbench_agent.collectors.nvml.metrics import (
    ASLEEP,
    CLOCK,
    DECODER,
    ECC,
    ENCODER,
    ENERGY,
    ERRORS,
    INFO,
    LIMIT,
    LOST,
    MEMORY_TOTAL,
    MEMORY_USED,
    MEMORY_UTILIZATION,
    POWER,
    SESSION_FPS,
    SESSIONS,
    TEMPERATURE,
    THROTTLED,
    UTILIZATION,
    XIDS,
)
from powerbench_agent.core import sysfs
from powerbench_agent.core.counters import PLAUSIBLE_WATTS
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
MAX_REOPEN_SECONDS = 600.0  # between openings anew for the sake of one lost GPU
MAX_INTERVAL = 60.0
_ABSENT = "no NVIDIA GPU on the PCI bus, and no driver"


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.nvml]`."""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        if self.interval > MAX_INTERVAL:
            yield "interval", "must be at most 1m: power is integrated from beat to beat on older GPUs"


class Nvml:
    """The NVIDIA GPUs of one machine."""

    def __init__(self, options: Options, host: Host) -> None:
        self._host = host
        self._worker = Worker("nvml")
        self._max_gap = max_gap(options)
        self._session: session.Session | None = None
        self._opened_for: set[str] = set()  # the GPUs that were awake then
        self._left_out: dict[str, str] = {}  # what was logged of those that could not be opened
        self._devices: list[Path] = []
        self._listed_at = -math.inf
        self._failure: Ended | None = None
        self._retry_at = -math.inf
        self._slow_at = -math.inf
        self._reopen_at = -math.inf
        self._reopen_after = SLOW_SECONDS
        self._boards: dict[str, Board] = {}  # by uuid
        self._errors: Tally[tuple[str, str, str, str]] = Tally()  # by gpu, uuid, question, error
        self._said: dict[tuple[str, str], str] = {}  # what was logged, by uuid and question

    def configure(self, options: Options) -> None:
        """Take a reload's interval; sessions and counters stay."""
        self._max_gap = max_gap(options)
        for board in self._boards.values():
            board.integral.max_gap = self._max_gap

    async def read(self) -> Reading:
        """Read every GPU that is awake. Raises: ReadFailed, Absent."""
        return await self._worker.call(self._beat)

    async def refresh(self) -> Reading:
        """Read the energy of every GPU that is awake; the rest stays the beat's."""
        return await self._worker.call(self._refresh)

    async def aclose(self) -> None:
        """Close the session, unless a call is out that does not come back."""
        with contextlib.suppress(ReadFailed):
            await self._worker.call(self._close)
        self._worker.close()

    # -- in the thread ---------------------------------------------------------------------------

    def _beat(self) -> Reading:
        now = self._host.clock.monotonic()
        if now >= self._listed_at + SLOW_SECONDS or not self._devices:
            self._devices, self._listed_at = find_gpus(self._host), now
        asleep = self._asleep()
        try:
            session = self._opened(now, asleep)
            slow = session is not None and now >= self._slow_at
            if session and slow:
                self._slow_at = now + SLOW_SECONDS
                self._count_xids(session)
            for gpu in session.gpus if session else ():
                board = self._boards[gpu.uuid]
                board.gauges = []
                if gpu.pci_bus_id in asleep:
                    board.slow, board.used_at, board.seen_at = [], None, None
                    board.integral.forget()
                    continue
                board.gauges = list(self._gauges(gpu))
                busy = [s.value for s in board.gauges if s.metric in (UTILIZATION, ENCODER, DECODER)]
                board.note_busy(max(busy, default=None), now)
                board.note_processes(gpu.process_use(board.used_until_us), now, self._host)
                if slow:
                    gpu.ask_again()
                    board.slow = list(self._slow(gpu, board))
            return self._reading(now, asleep, beat=True)
        except Ended as ended:
            raise self._end(ended, now) from None

    def _refresh(self) -> Reading:
        now = self._host.clock.monotonic()
        try:
            return self._reading(now, self._asleep(), beat=False)
        except Ended as ended:
            raise self._end(ended, now) from None

    def _asleep(self) -> set[str]:
        return {device.name for device in self._devices if sysfs.asleep(self._host, device)}

    def _opened(self, now: float, asleep: set[str]) -> session.Session | None:
        """Return the session, opened now if need be; None while every GPU sleeps. Raises: Ended, Absent."""
        awake = {device.name for device in self._devices} - asleep
        if self._session is not None:
            if now < self._slow_at:
                return self._session
            reopen = self._is_due(self._session, now)
            if not reopen and not awake - self._opened_for:
                self._note_boards()
                return self._session
            self._close()  # a GPU has woken up, was plugged in, or may have been reset
        if not is_present(self._host, self._devices):
            raise Absent(_ABSENT)
        if asleep and not awake:
            return None
        if now < self._retry_at and self._failure is not None:
            raise self._failure
        self._session = session.Session(awake if asleep else None, self._refused)
        self._failure = None
        self._opened_for = awake
        self._slow_at = -math.inf
        self._note_boards()
        for which, why in (self._session.unopened | self._session.denied).items():
            if self._left_out.get(which) != why.error:
                log.warning("GPU left out", gpu=which, error=why.error, remedy=why.remedy)
            self._left_out[which] = why.error
        return self._session

    def _is_due(self, session: session.Session, now: float) -> bool:
        """Say whether NVML is to be opened anew for a GPU that still does not open."""
        if not session.unopened or session.try_again(self._refused):
            self._reopen_after = SLOW_SECONDS
            return False
        if now < self._reopen_at:
            return False
        # That holds the other GPUs up, so ever more rarely.
        self._reopen_at = now + self._reopen_after
        self._reopen_after = min(MAX_REOPEN_SECONDS, 2 * self._reopen_after)
        return True

    def _note_boards(self) -> None:
        for gpu in self._session.gpus if self._session else ():
            board = self._board(gpu.uuid)
            board.labels, board.pci_bus_id, board.name = (str(gpu.index), gpu.uuid), gpu.pci_bus_id, gpu.name

    def _end(self, ended: Ended, now: float) -> ReadFailed:
        """Close the session after an error that ends it."""
        if self._failure is not ended:
            self._failure = ended
            self._retry_at = now + RETRY_SECONDS
        for board in self._boards.values():
            board.used_at = board.seen_at = None
        self._close(unload=ended.code in (MISMATCH, DRIVER_NOT_LOADED))
        return ReadFailed(str(ended), ended.remedy)

    def _count_xids(self, session: session.Session) -> None:
        for uuid, xid in session.xids():
            self._board(uuid).xids[str(xid)] += 1

    def _close(self, *, unload: bool = False) -> None:
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(Ended):  # what it has not fetched goes with it
                self._count_xids(session)
        for board in self._boards.values():
            board.gauges, board.slow = [], []
        if session is not None:
            session.close(unload=unload)

    def _board(self, uuid: str) -> Board:
        board = self._boards.get(uuid)
        if board is None:
            board = self._boards[uuid] = Board(self._max_gap)
        return board

    def _refused(self, gpu: Gpu, question: str, error: str, remedy: str) -> None:
        key = (gpu.uuid, question)
        if error:
            self._errors[str(gpu.index), gpu.uuid, question, error] += 1
            if self._said.get(key) != error:
                log.warning("GPU does not say", gpu=gpu.index, question=question, error=error, remedy=remedy)
            self._said[key] = error
        else:
            self._said.pop(key, None)

    def _energy(self, gpu: Gpu, board: Board, *, beat: bool) -> float | None:
        """Return joules since the start, None where they are not known now; the power gauge is the beat's."""
        watts = board.watts
        if beat or not gpu.counts_energy:
            watts = self._watts(gpu)
        if beat:
            board.watts = watts
        now = self._host.clock.monotonic()  # the driver may have taken its time
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
        return board.counter.joules + board.integral.joules

    def _watts(self, gpu: Gpu) -> float | None:
        """Return the board's power; None for what is not known, or cannot be true."""
        if (power_mw := gpu.power_mw()) is None:
            return None
        if power_mw / 1000 > PLAUSIBLE_WATTS:
            gpu.implausible("power")
            return None
        gpu.plausible("power")
        return power_mw / 1000

    def _gauges(self, gpu: Gpu) -> Iterator[Sample]:
        labels = self._boards[gpu.uuid].labels
        if (used := gpu.utilisation_percent()) is not None:
            yield UTILIZATION.sample(used[0], *labels)
            yield MEMORY_UTILIZATION.sample(used[1], *labels)
        if (encoder := gpu.encoder_percent()) is not None:
            yield ENCODER.sample(encoder, *labels)
        if (decoder := gpu.decoder_percent()) is not None:
            yield DECODER.sample(decoder, *labels)
        if (memory := gpu.memory_bytes()) is not None:
            yield MEMORY_USED.sample(memory[0], *labels)
            yield MEMORY_TOTAL.sample(memory[1], *labels)
        if (celsius := gpu.celsius()) is not None:
            yield TEMPERATURE.sample(celsius, *labels)

    def _slow(self, gpu: Gpu, board: Board) -> Iterator[Sample]:
        labels = board.labels
        if (limit_mw := gpu.power_limit_mw()) is not None:
            yield LIMIT.sample(limit_mw / 1000, *labels)
        for clock, mhz in gpu.clocks_mhz():
            yield CLOCK.sample(mhz * 1e6, *labels, clock)
        if (reasons := gpu.throttle_reasons()) is not None:
            for bit, reason in THROTTLE_REASONS.items():
                yield THROTTLED.sample(int(bool(reasons & bit)), *labels, reason)
        for kind, count in gpu.ecc_errors():
            yield ECC.sample(count, *labels, kind)
        if (sessions := gpu.encoder_sessions()) is not None:
            yield SESSIONS.sample(len(sessions), *labels)
            for session in sessions:
                which = (str(session.pid), str(session.session), session.codec, session.resolution)
                yield SESSION_FPS.sample(session.fps, *labels, *which)

    def _reading(self, now: float, asleep: set[str], *, beat: bool) -> Reading:
        samples: list[Sample] = []
        meters: list[Meter] = []
        uses: list[Use] = []
        silent: list[str] = []
        session = self._session
        for gpu in session.gpus if session else ():
            board = self._boards[gpu.uuid]
            labels = board.labels
            energy = "counter" if gpu.counts_energy else "integrated"
            driver = session.driver if session else ""
            samples.append(INFO.sample(1, *labels, board.name, driver, board.pci_bus_id, energy))
            samples.append(LOST.sample(0, *labels, board.pci_bus_id))
            samples.extend(XIDS.sample(count, *labels, xid) for xid, count in board.xids.items())
            if gpu.pci_bus_id in asleep:
                continue
            joules = self._energy(gpu, board, beat=beat)
            watts = board.watts
            if watts is not None:
                samples.append(POWER.sample(watts, *labels))
            if joules is not None:
                samples.append(ENERGY.sample(joules, *labels))
                meters.append(Meter("gpu", "nvml", gpu.uuid, joules))
                uses.extend(board.uses(gpu.uuid))
            elif wrong := self._said.get((gpu.uuid, "energy" if gpu.counts_energy else "power")):
                silent.append(f"GPU {gpu.index}: {wrong}")
            samples.extend(board.gauges)
            samples.extend(board.slow)
        if silent and not meters:
            raise ReadFailed(f"no energy: {'; '.join(silent)}", "see nvidia-smi and the kernel log")
        samples.extend(self._missing(asleep))
        here = {gpu.pci_bus_id for gpu in session.gpus} if session else set()
        samples.extend(ASLEEP.sample(int(bus_id in asleep), bus_id) for bus_id in sorted(asleep | here))
        samples.extend(ERRORS.sample(count, *which) for which, count in self._errors.items())
        return Reading(samples, meters, taken=now, uses=uses)

    def _missing(self, asleep: set[str]) -> Iterator[Sample]:
        """Yield the GPUs that were here once, or that NVML counts and cannot open."""
        if self._session is None:
            return
        here = {gpu.uuid for gpu in self._session.gpus}
        gone = [
            board
            for uuid, board in self._boards.items()
            if uuid not in here and board.labels[0] and board.pci_bus_id not in asleep
        ]
        for board in gone:
            yield LOST.sample(1, *board.labels, board.pci_bus_id)
            for xid, count in board.xids.items():
                yield XIDS.sample(count, *board.labels, xid)
        for which in self._session.unopened:
            if all(which not in (board.labels[0], board.pci_bus_id) for board in gone):
                yield LOST.sample(1, "" if ":" in which else which, "", which if ":" in which else "")


def max_gap(options: Options) -> float:
    """Return how far apart power readings may be to be bridged, in seconds."""
    return max(5.0, 3 * options.interval)


async def open_collector(options: Options, host: Host) -> Nvml:
    """Return the collector; NVML is opened at the first reading, in its thread. Raises: Absent."""
    if not is_present(host, find_gpus(host)):
        raise Absent(_ABSENT)
    return Nvml(options, host)
