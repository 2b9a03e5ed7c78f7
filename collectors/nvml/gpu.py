"""One NVIDIA GPU in one session of NVML: typed answers, or the reason why there is none.

Every call here blocks, and hangs for as long as the driver does. Units are NVML's, in the names: mW, mJ,
MHz, percent.

Source: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from powerbench_agent.core.counters import PLAUSIBLE_WATTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION = 0, 1, 2, 3, 4
NOT_FOUND, INSUFFICIENT_SIZE = 6, 7
DRIVER_NOT_LOADED, TIMEOUT, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND = 9, 10, 12, 13
GPU_IS_LOST, RESET_REQUIRED, OPERATING_SYSTEM, MISMATCH, GPU_NOT_FOUND, UNKNOWN = 15, 16, 17, 18, 28, 999
_NAMES = {
    UNINITIALIZED: "uninitialized",
    INVALID_ARGUMENT: "invalid_argument",
    NOT_SUPPORTED: "not_supported",
    NO_PERMISSION: "no_permission",
    5: "already_initialized",
    NOT_FOUND: "not_found",
    INSUFFICIENT_SIZE: "insufficient_size",
    8: "insufficient_power",
    DRIVER_NOT_LOADED: "driver_not_loaded",
    TIMEOUT: "timeout",
    11: "irq_issue",
    LIBRARY_NOT_FOUND: "library_not_found",
    FUNCTION_NOT_FOUND: "function_not_found",
    14: "corrupted_inforom",
    GPU_IS_LOST: "gpu_is_lost",
    RESET_REQUIRED: "reset_required",
    OPERATING_SYSTEM: "operating_system",
    MISMATCH: "library_driver_mismatch",
    19: "in_use",
    20: "memory",
    21: "no_data",
    22: "vgpu_ecc_not_supported",
    23: "insufficient_resources",
    24: "freq_not_supported",
    25: "argument_version_mismatch",
    26: "deprecated",
    27: "not_ready",
    GPU_NOT_FOUND: "gpu_not_found",
    29: "invalid_state",
    30: "reset_type_not_supported",
    UNKNOWN: "unknown",
}
LOST_REMEDY = "see the kernel log for its Xid; drain the GPU and reset it (nvidia-smi --gpu-reset) or reboot"
# These errors end the session: its later answers would be missing or could not be trusted.
ENDING = {
    UNINITIALIZED: "NVML is opened again in some seconds",
    DRIVER_NOT_LOADED: "load the driver: modprobe nvidia; nvidia-smi shows whether it works",
    LIBRARY_NOT_FOUND: "install the driver's libnvidia-ml.so.1; in a container, pass it the GPU (--gpus all)",
    GPU_IS_LOST: LOST_REMEDY,
    RESET_REQUIRED: LOST_REMEDY,
    MISMATCH: "the driver was upgraded while in use: reload the kernel module, or reboot",
    GPU_NOT_FOUND: LOST_REMEDY,
}
REMEDIES = {
    **ENDING,
    NO_PERMISSION: "give the agent's user access to /dev/nvidia*; see also the kernel module's NVreg options",
    FUNCTION_NOT_FOUND: "the driver is too old for this value: update it to get the value",
    OPERATING_SYSTEM: "a device cgroup or a sandbox keeps the agent from /dev/nvidia*: allow it",
}
# What a driver says that does not have a value, which costs that value alone; asked again every 10 s.
WITHOUT = (INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND)
IMPLAUSIBLE = "implausible"  # a value that cannot be true, counted like one of NVML's errors
_GARBLED = "see the kernel log; a driver update may help"

_HEADROOM = 2.0  # how far beyond its highest limit a board may be for a moment
_MOST_CELSIUS = 200
_MOST_MHZ = 20_000
_POWER_AVERAGE = 185  # NVML_FI_DEV_POWER_AVERAGE, in mW
_SCOPE_GPU, _SCOPE_MODULE = 0, 1
# Its energy counter is the whole module's: https://github.com/ml-energy/zeus/pull/172
_SUPERCHIP = re.compile(r"\bGH\d{3}\b")

CODECS = {0: "h264", 1: "hevc", 2: "av1"}
CLOCKS = {0: "graphics", 1: "sm", 2: "memory", 3: "video"}
# Bits that tell why clocks are held down. The bits for idle and for clocks set by a user are not throttling.
THROTTLE_REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
_CLOCK_SLACK_US = 60_000_000  # between NVML's clock and ours, which may be set meanwhile
_ATTEMPTS = 3  # to fetch a list that grows after its size was asked for


class NvmlUnavailable(Exception):  # noqa: N818 - a verdict
    """NVML cannot be used now; it may be opened again later."""

    def __init__(self, what: str, remedy: str, code: int = 0) -> None:
        super().__init__(what)
        self.remedy = remedy
        self.code = code


class EncoderSession(NamedTuple):
    """One NVENC session."""

    pid: int
    session: int
    codec: str
    resolution: str  # "1920x1080"
    fps: int


class ProcessUse(NamedTuple):
    """One process's mean utilisation since the time that was asked about."""

    pid: int
    taken_us: int  # by NVML's own clock
    sm_percent: int
    encoder_percent: int
    decoder_percent: int


class Gpu:
    """One GPU of a session.

    A method returns None if the GPU, the driver or the mode (MIG, vGPU) does not have the value; if that is
    an error, `refused` is called. Raises: NvmlUnavailable.
    """

    def __init__(
        self, nvml: Any, handle: Any, index: int, refused: Callable[[Gpu, str, str, str], None]
    ) -> None:
        """`refused(gpu, question, error, remedy)` is called with an empty error when the answer is back."""
        self._nvml = nvml
        self.handle = handle
        self._refused = refused
        self._unsupported: set[str] = set()
        self._wrong: set[str] = set()
        self.index = index
        # A virtual GPU or a Jetson may have no UUID, no PCI address, or neither.
        self.uuid: str = _unless_without(nvml, nvml.nvmlDeviceGetUUID, handle) or ""
        pci = _unless_without(nvml, nvml.nvmlDeviceGetPciInfo, handle)
        self.pci_bus_id = "" if pci is None else bus_id(pci.busId)
        self.name: str = self._ask("name", nvml.nvmlDeviceGetName) or ""
        self._ask("energy", nvml.nvmlDeviceGetTotalEnergyConsumption)
        self.counts_energy = "energy" not in self._unsupported
        self.counts_module = self.counts_energy and self._is_module()
        self.most_watts = self._most_watts()

    @property
    def labels(self) -> tuple[str, str]:
        """Its labels: gpu, uuid."""
        return str(self.index), self.uuid

    def energy_mj(self) -> int | None:
        """Energy since the driver was loaded, updated about every 100 ms; Volta and later."""
        return self._number("energy", self._nvml.nvmlDeviceGetTotalEnergyConsumption)

    def power_mw(self) -> int | None:
        """Power of the whole board, mean of the last second on Ampere and later (except GA100)."""
        return self._number("power", self._nvml.nvmlDeviceGetPowerUsage, most=self.most_watts * 1000)

    def utilisation_percent(self) -> tuple[int, int] | None:
        """Return (utilisation of the processors, utilisation of the memory's bandwidth)."""
        rates = self._ask(
            "utilization",
            self._nvml.nvmlDeviceGetUtilizationRates,
            holds=lambda rates: rates.gpu <= 100 and rates.memory <= 100,
        )
        return None if rates is None else (rates.gpu, rates.memory)

    def encoder_percent(self) -> int | None:
        """Utilisation of NVENC."""
        return self._engine_percent("encoder", self._nvml.nvmlDeviceGetEncoderUtilization)

    def decoder_percent(self) -> int | None:
        """Utilisation of NVDEC."""
        return self._engine_percent("decoder", self._nvml.nvmlDeviceGetDecoderUtilization)

    def memory_bytes(self) -> tuple[int, int] | None:
        """Return (used, total)."""
        memory = self._ask(
            "memory", self._nvml.nvmlDeviceGetMemoryInfo, holds=lambda memory: memory.used <= memory.total
        )
        return None if memory is None else (memory.used, memory.total)

    def celsius(self) -> int | None:
        """Temperature of the die."""
        return self._number("temperature", self._temperature, most=_MOST_CELSIUS)

    def power_limit_mw(self) -> int | None:
        """Power limit in force."""
        return self._number(
            "power_limit", self._nvml.nvmlDeviceGetEnforcedPowerLimit, most=PLAUSIBLE_WATTS * 1000
        )

    def clocks_mhz(self) -> Iterator[tuple[str, int]]:
        """Yield (name of a clock, its frequency)."""
        for number, name in CLOCKS.items():
            found = self._number(f"clock_{name}", self._nvml.nvmlDeviceGetClockInfo, number, most=_MOST_MHZ)
            if found is not None:
                yield name, found

    def throttle_reasons(self) -> int | None:
        """Reasons why clocks are held down: the bits of THROTTLE_REASONS and some others."""
        return self._number("throttle_reasons", self._throttle_reasons)

    def ecc_errors(self) -> Iterator[tuple[str, int]]:
        """Yield (kind, number of ECC errors since the driver was loaded)."""
        for number, kind in enumerate(("corrected", "uncorrected")):
            found = self._ask(f"ecc_{kind}", self._nvml.nvmlDeviceGetTotalEccErrors, number, 0)
            if found is not None:
                yield kind, found

    def encoder_sessions(self) -> list[EncoderSession] | None:
        """Return the open NVENC sessions."""
        found = self._ask("encoder_sessions", self._sessions)
        if found is None:
            return None
        sessions = []
        for session in found:
            codec = CODECS.get(session.codecType, str(session.codecType))
            resolution = f"{session.hResolution}x{session.vResolution}"
            sessions.append(
                EncoderSession(session.pid, session.sessionId, codec, resolution, session.averageFps)
            )
        return sessions

    def process_use(self, since_us: int, now_us: int) -> list[ProcessUse] | None:
        """Return the processes that have used the GPU since that time; both by NVML's clock, Unix time.

        Some drivers answer with garbage now and then. Such samples are left out, and counted as an error.
        """
        found = self._ask("process_utilization", self._processes, since_us)
        if found is None:
            return None
        uses: dict[int, ProcessUse] = {}
        for sample in found:
            use = ProcessUse(sample.pid, sample.timeStamp, sample.smUtil, sample.encUtil, sample.decUtil)
            if not _can_be_true(use, since_us, now_us):
                self._refuse("process_utilization", IMPLAUSIBLE, _GARBLED)
                continue
            earlier = uses.get(use.pid)
            if earlier is None or earlier.taken_us < use.taken_us:
                uses[use.pid] = use
        return list(uses.values())

    def ask_again(self) -> None:
        """Forget what was not supported, because a mode may have changed."""
        self._unsupported.clear()

    # -- what is asked once a session -------------------------------------------------------------

    def _is_module(self) -> bool:
        """Return whether the energy counter is a module's, a CPU's and a GPU's with their memory.

        Older drivers ignore the scope, and answer with the GPU's power for the module's.
        """
        if _SUPERCHIP.search(self.name):
            return True
        scopes = [(_POWER_AVERAGE, _SCOPE_GPU), (_POWER_AVERAGE, _SCOPE_MODULE)]
        fields = self._ask_quietly(self._nvml.nvmlDeviceGetFieldValues, scopes)
        if fields is None or any(field.nvmlReturn != SUCCESS for field in fields):
            return False
        gpu, module = (field.value.uiVal for field in fields)
        return bool(module > gpu > 0)

    def _most_watts(self) -> float:
        """Return what the board cannot exceed even for a moment."""
        limits = self._ask_quietly(self._nvml.nvmlDeviceGetPowerManagementLimitConstraints)
        if limits is None:
            return PLAUSIBLE_WATTS
        _, highest_mw = limits
        if not 0 < highest_mw / 1000 <= PLAUSIBLE_WATTS:
            return PLAUSIBLE_WATTS
        return float(_HEADROOM * highest_mw / 1000)

    def _ask_quietly(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the answer to what not every driver has and no sample needs, or None."""
        try:
            return function(self.handle, *arguments)
        except self._nvml.NVMLError as error:
            if error.value in ENDING:
                raise unavailable(f"GPU {self.index}", error.value) from None
            return None

    # -- asking ------------------------------------------------------------------------------------

    def _engine_percent(self, question: str, function: Callable[..., Any]) -> int | None:
        found = self._ask(question, function, holds=lambda found: found[0] <= 100)
        return None if found is None else found[0]

    def _number(
        self, question: str, function: Callable[..., Any], *arguments: Any, most: float = math.inf
    ) -> int | None:
        answer = self._ask(question, function, *arguments, holds=lambda number: number <= most)
        return None if answer is None else int(answer)

    # Two calls have an older form: older drivers lack the newer one, and CUDA 14 drops the older one.

    def _temperature(self, handle: Any) -> Any:
        try:
            return self._nvml.nvmlDeviceGetTemperatureV(handle, 0)
        except self._nvml.NVMLError as error:
            if error.value != FUNCTION_NOT_FOUND:
                raise
        return self._nvml.nvmlDeviceGetTemperature(handle, 0)

    def _throttle_reasons(self, handle: Any) -> Any:
        try:
            return self._nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        except self._nvml.NVMLError as error:
            if error.value != FUNCTION_NOT_FOUND:
                raise
        return self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)

    def _sessions(self, handle: Any) -> Any:
        return self._list(self._nvml.nvmlDeviceGetEncoderSessions, handle)

    def _processes(self, handle: Any, since_us: int) -> Any:
        try:
            return self._list(self._nvml.nvmlDeviceGetProcessUtilization, handle, since_us)
        except self._nvml.NVMLError as error:
            if error.value in (SUCCESS, NOT_FOUND):  # no process has used it
                return ()
            raise

    def _list(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Fetch a list, again if it has grown since its size was asked for."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return function(*arguments)
            except self._nvml.NVMLError as error:
                if error.value != INSUFFICIENT_SIZE:
                    raise
        return function(*arguments)

    def _ask(
        self,
        question: str,
        function: Callable[..., Any],
        *arguments: Any,
        holds: Callable[[Any], bool] | None = None,
    ) -> Any:
        """Return the answer; None after noting why there is none. Raises: NvmlUnavailable.

        `holds` tells whether an answer can be true.
        """
        if question in self._unsupported:
            return None
        try:
            answer = function(self.handle, *arguments)
        except self._nvml.NVMLError as error:
            self._note_error(question, error.value)
            return None
        except ValueError:  # bytes that are not text
            self._note_error(question, UNKNOWN)
            return None
        if holds is not None and not holds(answer):
            self._refuse(question, IMPLAUSIBLE, _GARBLED)
            return None
        self._answered(question)
        return answer

    def _note_error(self, question: str, code: int) -> None:
        if code in ENDING:
            raise NvmlUnavailable(f"GPU {self.index}, {question}: {name_of(code)}", ENDING[code], code)
        if code in WITHOUT:
            self._unsupported.add(question)
        if code != NOT_SUPPORTED:
            self._refuse(question, name_of(code), REMEDIES.get(code, "see the kernel log"))

    def _refuse(self, question: str, error: str, remedy: str) -> None:
        self._wrong.add(question)
        self._refused(self, question, error, remedy)

    def _answered(self, question: str) -> None:
        """Report that a question which failed before has an answer again."""
        if question in self._wrong:
            self._wrong.discard(question)
            self._refused(self, question, "", "")


def _unless_without(nvml: Any, function: Callable[..., Any], handle: Any) -> Any:
    """Return the answer, None if the GPU has none to give. Raises: NVMLError."""
    try:
        return function(handle)
    except nvml.NVMLError as error:
        if error.value in WITHOUT:
            return None
        raise


def _can_be_true(use: ProcessUse, since_us: int, now_us: int) -> bool:
    if max(use.sm_percent, use.encoder_percent, use.decoder_percent) > 100:
        return False
    return since_us < use.taken_us <= now_us + _CLOCK_SLACK_US


def name_of(code: int) -> str:
    """Return an NVML error's name."""
    return _NAMES.get(code, f"error_{code}")


def bus_id(text: str | bytes) -> str:
    """Return a PCI address in sysfs's form; NVML writes eight digits of the domain, and capital letters."""
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    domain, _, rest = text.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def unavailable(what: str, code: int) -> NvmlUnavailable:
    """Return the verdict on an error that is not about one question to one GPU."""
    remedy = REMEDIES.get(code, "see nvidia-smi and the kernel log")
    return NvmlUnavailable(f"{what}: {name_of(code)}", remedy, code)
