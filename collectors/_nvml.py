"""NVML, typed: what the NVIDIA driver says of each GPU, or why it does not.

Every call here blocks and may hang for as long as the driver does: use it in one thread of its own.
The binding is nvidia-ml-py, imported when the first session is opened: it is 7 MB of memory, for those who
have an NVIDIA GPU. Units are NVML's, in the names: mW, mJ, MHz, percent.

Source: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import _ctypes
import ctypes
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

log = structlog.get_logger("nvml")

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
_LOST_REMEDY = "see the kernel log for its Xid; drain the GPU and reset it (nvidia-smi --gpu-reset) or reboot"
# After these the session is over: nothing that NVML says in it can be trusted, or nothing more will come.
_ENDING = {
    1: "NVML is opened again",
    DRIVER_NOT_LOADED: "load the driver: modprobe nvidia; nvidia-smi shows whether it works",
    LIBRARY_NOT_FOUND: "install the driver's libnvidia-ml.so.1; in a container, give it the GPU (--gpus all)",
    15: _LOST_REMEDY,
    16: _LOST_REMEDY,
    MISMATCH: "the driver was upgraded under way: reload the kernel module, or reboot",
    28: _LOST_REMEDY,
}
_REMEDIES = {
    **_ENDING,
    NO_PERMISSION: "give the agent's user access to /dev/nvidia*, and see the kernel module's NVreg options",
    FUNCTION_NOT_FOUND: "the driver is older than this question: update it, or do without",
    17: "something (a device cgroup, a sandbox) keeps the agent from /dev/nvidia*",
}
IMPLAUSIBLE = "implausible"  # a value that cannot be true, in the place of NVML's own errors
SHADOWED = "pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py"

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
_XID = 0x8  # nvmlEventTypeXidCriticalError
_MAX_EVENTS = 64  # a beat; the others wait
_RETRIES = 3  # of a list that grew between asking for its size and for itself


class Ended(Exception):  # noqa: N818 - a verdict
    """NVML cannot be used now; it may be opened again later."""

    def __init__(self, what: str, remedy: str, code: int = 0) -> None:
        super().__init__(what)
        self.remedy = remedy
        self.code = code


class Refusal(NamedTuple):
    """A question that was not answered, and what can be done about it."""

    error: str
    remedy: str


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
        self._handle = handle
        self._refused = refused
        self._unsupported: set[str] = set()
        self._wrong: set[str] = set()
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
        self._wrong.add(question)
        self._refused(self, question, IMPLAUSIBLE, "see the kernel log; a driver update may help")

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
            answer = function(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            code = error.value
        except ValueError:  # text that is none
            code = 999
        else:
            if question in self._wrong:
                self._wrong.discard(question)
                self._refused(self, question, "", "")
            return answer
        if code in _ENDING:
            raise Ended(f"GPU {self.index}, {question}: {name_of(code)}", _ENDING[code], code)
        if code in (NOT_SUPPORTED, FUNCTION_NOT_FOUND):
            self._unsupported.add(question)
        if code != NOT_SUPPORTED:
            self._wrong.add(question)
            self._refused(self, question, name_of(code), _REMEDIES.get(code, "see the kernel log"))
        return None


class Session:
    """NVML between its opening and its closing."""

    def __init__(self, awake: Collection[str] | None, refused: Callable[[Gpu, str, str, str], None]) -> None:
        """`awake`: the PCI addresses that may be touched, None for all. Raises: Ended."""
        self._nvml = _binding()
        self.gpus: list[Gpu] = []
        self.unopened: dict[str, Refusal] = {}  # by index or PCI address
        self.denied: dict[str, Refusal] = {}  # likewise: another's, in a container
        self.driver = ""
        self._events: Any = None
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            self._unload()
            raise _ended("NVML cannot be opened", error.value) from None
        try:
            self._open(awake, refused)
        except self._nvml.NVMLError as error:
            self.close()
            raise _ended("NVML does not list its GPUs", error.value) from None
        except Ended as ended:
            self.close(unload=ended.code in (DRIVER_NOT_LOADED, MISMATCH))
            raise

    def _open(self, awake: Collection[str] | None, refused: Callable[[Gpu, str, str, str], None]) -> None:
        nvml = self._nvml
        self.driver = nvml.nvmlSystemGetDriverVersion()
        places = list(range(nvml.nvmlDeviceGetCount())) if awake is None else sorted(awake)
        for place in places:
            try:
                self.gpus.append(self._open_gpu(place, refused))
            except (nvml.NVMLError, Ended) as error:
                code = error.code if isinstance(error, Ended) else error.value
                if code in (1, DRIVER_NOT_LOADED, MISMATCH):
                    raise
                if isinstance(place, str) and code == NOT_FOUND:
                    continue  # kept from this container
                why = Refusal(name_of(code), _REMEDIES.get(code, _LOST_REMEDY))
                (self.denied if code == NO_PERMISSION else self.unopened)[str(place)] = why
        if not self.gpus:
            for which, why in (self.unopened | self.denied).items():
                raise Ended(f"GPU {which} cannot be opened: {why.error}", why.remedy)
            raise Ended("NVML sees no GPU", "in a container, give it one (--gpus all); else see nvidia-smi")
        self._events = self._register()

    def _open_gpu(self, place: int | str, refused: Callable[[Gpu, str, str, str], None]) -> Gpu:
        if isinstance(place, int):
            return Gpu(self._nvml, self._nvml.nvmlDeviceGetHandleByIndex(place), place, refused)
        handle = self._nvml.nvmlDeviceGetHandleByPciBusId(place)
        return Gpu(self._nvml, handle, self._nvml.nvmlDeviceGetIndex(handle), refused)

    def _register(self) -> Any:
        """Return the set that Xid events arrive in; None where there is no such thing."""
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return None
        for gpu in self.gpus:
            try:
                nvml.nvmlDeviceRegisterEvents(gpu._handle, _XID, events)  # noqa: SLF001 - the same edge
            except nvml.NVMLError as error:
                log.debug("no Xid events of this GPU", gpu=gpu.index, error=name_of(error.value))
        return events

    def xids(self) -> Iterator[tuple[str, int]]:
        """Yield (uuid, Xid) of the errors since the last time."""
        if self._events is None:
            return
        nvml = self._nvml
        for _ in range(_MAX_EVENTS):
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
                yield nvml.nvmlDeviceGetUUID(event.device), event.eventData
            except nvml.NVMLError as error:
                if error.value in _ENDING:
                    raise _ended("Xid events", error.value) from None
                return  # most often a timeout: there is none

    def close(self, *, unload: bool = False) -> None:
        """Let go of the GPUs; `unload` the library too, so that a newer one is found next time."""
        try:
            if self._events is not None:
                self._nvml.nvmlEventSetFree(self._events)
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            pass  # it is over either way
        if unload:
            self._unload()

    def _unload(self) -> None:
        """Close the shared library. The binding has no call for it, and an upgraded one would go unseen."""
        nvml = self._nvml
        library, nvml.nvmlLib = nvml.nvmlLib, None
        nvml._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001 - there is no public way
        if library is not None:
            _ctypes.dlclose(library._handle)  # noqa: SLF001 - likewise


def name_of(code: int) -> str:
    """Return an NVML error's name."""
    return _NAMES.get(code, f"error_{code}")


def bus_id(text: str | bytes) -> str:
    """Return a PCI address as sysfs writes it; NVML has eight digits for the domain, in capitals."""
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    domain, _, rest = text.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def _ended(what: str, code: int) -> Ended:
    return Ended(f"{what}: {name_of(code)}", _REMEDIES.get(code, "see nvidia-smi and the kernel log"), code)


_trimmed = False


def _binding() -> Any:
    """Return nvidia-ml-py's module. Raises: Ended where there is none, or another of its name."""
    global _trimmed  # noqa: PLW0603 - once a process, as the import itself
    try:
        import pynvml  # noqa: PLC0415 - for those who have a GPU
    except ImportError as error:
        raise Ended(f"nvidia-ml-py cannot be imported: {error}", "pip install nvidia-ml-py") from None
    if not hasattr(pynvml, "_nvmlGetFunctionPointer"):
        raise Ended("the module pynvml is another package's", SHADOWED)
    if not _trimmed:
        _trimmed = True
        _give_back()
    return pynvml


def _give_back() -> None:
    """Give back to the kernel the 11 MB that importing the binding took for a moment."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
