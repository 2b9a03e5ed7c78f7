"""One NVIDIA GPU, typed: what NVML says of it in one session, or why it does not.

Every call here blocks and may hang for as long as the driver does. Units are NVML's, in the names: mW, mJ,
MHz, percent.

Source: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, INSUFFICIENT_SIZE = 3, 4, 6, 7
DRIVER_NOT_LOADED, TIMEOUT, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND, MISMATCH = 9, 10, 12, 13, 18
_NAMES = {
    1: "uninitialized",
    2: "invalid_argument",
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
    15: "gpu_is_lost",
    16: "reset_required",
    17: "operating_system",
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
    28: "gpu_not_found",
    29: "invalid_state",
    30: "reset_type_not_supported",
    999: "unknown",
}
LOST_REMEDY = "see the kernel log for its Xid; drain the GPU and reset it (nvidia-smi --gpu-reset) or reboot"
# After these the session is over: nothing that NVML says in it can be trusted, or nothing more will come.
ENDING = {
    1: "NVML is opened again",
    DRIVER_NOT_LOADED: "load the driver: modprobe nvidia; nvidia-smi shows whether it works",
    LIBRARY_NOT_FOUND: "install the driver's libnvidia-ml.so.1; in a container, give it the GPU (--gpus all)",
    15: LOST_REMEDY,
    16: LOST_REMEDY,
    MISMATCH: "the driver was upgraded under way: reload the kernel module, or reboot",
    28: LOST_REMEDY,
}
REMEDIES = {
    **ENDING,
    NO_PERMISSION: "give the agent's user access to /dev/nvidia*, and see the kernel module's NVreg options",
    FUNCTION_NOT_FOUND: "the driver is older than this question: update it, or do without",
    17: "something (a device cgroup, a sandbox) keeps the agent from /dev/nvidia*",
}
IMPLAUSIBLE = "implausible"  # a value that cannot be true, in the place of NVML's own errors

CODECS = {0: "h264", 1: "hevc", 2: "av1"}
CLOCKS = {0: "graphics", 1: "sm", 2: "memory", 3: "video"}
# Why clocks are below what was asked for; idleness and chosen clocks are no throttling.
THROTTLE_REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
UNKNOWN = 999
_RETRIES = 3  # of a list that grew between asking for its size and for itself


class Ended(Exception):  # noqa: N818 - a verdict
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
    """One process's mean utilisation since a moment."""

    pid: int
    taken_us: int  # NVML's own clock
    sm_percent: int
    encoder_percent: int
    decoder_percent: int


class Gpu:
    """One GPU of a session.

    A method returns None where the GPU, the driver or the mode (MIG, vGPU) does not answer it; `refused`
    is told when that is an error. Raises: Ended.
    """

    def __init__(
        self, nvml: Any, handle: Any, index: int, refused: Callable[[Gpu, str, str, str], None]
    ) -> None:
        """`refused(gpu, question, error, remedy)`; an empty error where the question is answered."""
        self._nvml = nvml
        self.handle = handle
        self._refused = refused
        self._unsupported: set[str] = set()
        self._wrong: set[str] = set()
        self._implausible: set[str] = set()
        self.index = index
        self.uuid: str = nvml.nvmlDeviceGetUUID(handle)
        self.pci_bus_id = bus_id(nvml.nvmlDeviceGetPciInfo(handle).busId)
        self.name: str = self._ask("name", nvml.nvmlDeviceGetName) or ""
        self._ask("energy", nvml.nvmlDeviceGetTotalEnergyConsumption)
        self.counts_energy = "energy" not in self._unsupported

    def energy_mj(self) -> int | None:
        """Energy since the driver was loaded; updated every 100 ms or so. Volta and later."""
        return self._number("energy", self._nvml.nvmlDeviceGetTotalEnergyConsumption)

    def power_mw(self) -> int | None:
        """Power of the whole board: mean of the last second on Ampere and later (GA100 apart)."""
        return self._number("power", self._nvml.nvmlDeviceGetPowerUsage)

    def utilisation_percent(self) -> tuple[int, int] | None:
        """Return (of the processors, of the memory's bandwidth)."""
        rates = self._ask("utilization", self._nvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else (rates.gpu, rates.memory)

    def encoder_percent(self) -> int | None:
        """Utilisation of NVENC."""
        found = self._ask("encoder", self._nvml.nvmlDeviceGetEncoderUtilization)
        return None if found is None else found[0]

    def decoder_percent(self) -> int | None:
        """Utilisation of NVDEC."""
        found = self._ask("decoder", self._nvml.nvmlDeviceGetDecoderUtilization)
        return None if found is None else found[0]

    def memory_bytes(self) -> tuple[int, int] | None:
        """Return (used, total)."""
        memory = self._ask("memory", self._nvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else (memory.used, memory.total)

    def celsius(self) -> int | None:
        """Temperature of the die."""
        return self._number("temperature", self._temperature)

    def power_limit_mw(self) -> int | None:
        """Power limit that is enforced."""
        return self._number("power_limit", self._nvml.nvmlDeviceGetEnforcedPowerLimit)

    def clocks_mhz(self) -> Iterator[tuple[str, int]]:
        """Yield (which clock, its frequency)."""
        for number, name in CLOCKS.items():
            found = self._ask(f"clock_{name}", self._nvml.nvmlDeviceGetClockInfo, number)
            if found is not None:
                yield name, found

    def throttle_reasons(self) -> int | None:
        """Why clocks are below what was asked for: bits of THROTTLE_REASONS, and others."""
        return self._number("throttle_reasons", self._throttle_reasons)

    def ecc_errors(self) -> Iterator[tuple[str, int]]:
        """Yield (kind, ECC errors since the driver was loaded)."""
        for number, kind in enumerate(("corrected", "uncorrected")):
            found = self._ask(f"ecc_{kind}", self._nvml.nvmlDeviceGetTotalEccErrors, number, 0)
            if found is not None:
                yield kind, found

    def encoder_sessions(self) -> list[EncoderSession] | None:
        """Return the NVENC sessions that are open."""
        found = self._ask("encoder_sessions", self._sessions)
        if found is None:
            return None
        return [
            EncoderSession(
                session.pid,
                session.sessionId,
                CODECS.get(session.codecType, str(session.codecType)),
                f"{session.hResolution}x{session.vResolution}",
                session.averageFps,
            )
            for session in found
        ]

    def process_use(self, since_us: int) -> list[ProcessUse] | None:
        """Return the processes that used the GPU after that moment of NVML's clock."""
        found = self._ask("process_utilization", self._processes, since_us)
        if found is None:
            return None
        return [
            ProcessUse(sample.pid, sample.timeStamp, sample.smUtil, sample.encUtil, sample.decUtil)
            for sample in found
        ]

    def ask_again(self) -> None:
        """Forget what was not supported: modes change."""
        self._unsupported.clear()

    def implausible(self, question: str) -> None:
        """Count an answer that cannot be true."""
        self._implausible.add(question)
        self._wrong.add(question)
        self._refused(self, question, IMPLAUSIBLE, "see the kernel log; a driver update may help")

    def plausible(self, question: str) -> None:
        """Note that an answer can be true again."""
        if question in self._implausible:
            self._implausible.discard(question)
            self._wrong.discard(question)
            self._refused(self, question, "", "")

    def _number(self, question: str, function: Callable[..., Any], *arguments: Any) -> int | None:
        answer = self._ask(question, function, *arguments)
        return None if answer is None else int(answer)

    # The older calls of these two go with CUDA 14, and older drivers lack the newer ones.

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
        for attempt in range(_RETRIES):
            try:
                return self._nvml.nvmlDeviceGetEncoderSessions(handle)
            except self._nvml.NVMLError as error:
                if error.value != INSUFFICIENT_SIZE or attempt == _RETRIES - 1:
                    raise
        return None

    def _processes(self, handle: Any, since_us: int) -> Any:
        for attempt in range(_RETRIES):
            try:
                return self._nvml.nvmlDeviceGetProcessUtilization(handle, since_us)
            except self._nvml.NVMLError as error:
                if error.value in (0, NOT_FOUND):  # nobody used it
                    return ()
                if error.value != INSUFFICIENT_SIZE or attempt == _RETRIES - 1:
                    raise
        return None

    def _ask(self, question: str, function: Callable[..., Any], *arguments: Any) -> Any:
        if question in self._unsupported:
            return None
        try:
            answer = function(self.handle, *arguments)
        except self._nvml.NVMLError as error:
            code = error.value
        except ValueError:  # text that is none
            code = UNKNOWN
        else:
            if question in self._wrong - self._implausible:
                self._wrong.discard(question)
                self._refused(self, question, "", "")
            return answer
        if code in ENDING:
            raise Ended(f"GPU {self.index}, {question}: {name_of(code)}", ENDING[code], code)
        if code in (NOT_SUPPORTED, FUNCTION_NOT_FOUND):
            self._unsupported.add(question)
        if code != NOT_SUPPORTED:
            self._wrong.add(question)
            self._refused(self, question, name_of(code), REMEDIES.get(code, "see the kernel log"))
        return None


def name_of(code: int) -> str:
    """Return an NVML error's name."""
    return _NAMES.get(code, f"error_{code}")


def bus_id(text: str | bytes) -> str:
    """Return a PCI address as sysfs writes it; NVML has eight digits for the domain, in capitals."""
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    domain, _, rest = text.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"
