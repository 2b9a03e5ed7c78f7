"""NVML between its opening and its closing: the library, its GPUs, its events.

Every call here blocks and may hang for as long as the driver does: use it in one thread of its own.
The binding is nvidia-ml-py, imported when the first session is opened: it is 7 MB of memory, for those who
have an NVIDIA GPU. Units are NVML's, in the names: mW, mJ, MHz, percent.

Source: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from powerbench_agent.collectors.nvml.gpu import (
    DRIVER_NOT_LOADED,
    ENDING,
    LOST_REMEDY,
    MISMATCH,
    NO_PERMISSION,
    NOT_FOUND,
    REMEDIES,
    UNKNOWN,
    Ended,
    Gpu,
    name_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

log = structlog.get_logger("nvml")

SHADOWED = "pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py"
_XID = 0x8  # nvmlEventTypeXidCriticalError
_MAX_EVENTS = 64  # a beat; the others wait


class Refusal(NamedTuple):
    """A question that was not answered, and what can be done about it."""

    error: str
    remedy: str


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
            self.close(unload=error.value in (DRIVER_NOT_LOADED, MISMATCH))
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
            except (nvml.NVMLError, Ended, ValueError) as error:  # ValueError: text that is none
                code: int = getattr(error, "code", 0) or getattr(error, "value", UNKNOWN)
                if code in (1, DRIVER_NOT_LOADED, MISMATCH):
                    raise
                if isinstance(place, str) and code == NOT_FOUND:
                    continue  # kept from this container
                why = Refusal(name_of(code), REMEDIES.get(code, LOST_REMEDY))
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

    def try_again(self, refused: Callable[[Gpu, str, str, str], None]) -> bool:
        """Try to open the GPUs that could not be opened; return whether all of them could."""
        for which in list(self.unopened):
            try:
                gpu = self._open_gpu(which if ":" in which else int(which), refused)
            except (self._nvml.NVMLError, Ended, ValueError):
                continue
            del self.unopened[which]
            self.gpus.append(gpu)
            self._watch(gpu)
        return not self.unopened

    def _register(self) -> Any:
        """Return the set that Xid events arrive in; None where there is no such thing."""
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return None
        self._events = events
        for gpu in self.gpus:
            self._watch(gpu)
        return events

    def _watch(self, gpu: Gpu) -> None:
        if self._events is None:
            return
        try:
            self._nvml.nvmlDeviceRegisterEvents(gpu.handle, _XID, self._events)
        except self._nvml.NVMLError as error:
            log.debug("no Xid events of this GPU", gpu=gpu.index, error=name_of(error.value))

    def xids(self) -> Iterator[tuple[str, int]]:
        """Yield (uuid, Xid) of the errors since the last time."""
        if self._events is None:
            return
        nvml = self._nvml
        uuids = {ctypes.cast(gpu.handle, ctypes.c_void_p).value: gpu.uuid for gpu in self.gpus}
        for _ in range(_MAX_EVENTS):
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError as error:
                if error.value in ENDING:
                    raise _ended("Xid events", error.value) from None
                return  # most often a timeout: there is none
            uuid = uuids.get(ctypes.cast(event.device, ctypes.c_void_p).value)
            if uuid is not None:
                yield uuid, event.eventData

    def close(self, *, unload: bool = False) -> None:
        """Let go of the GPUs; `unload` the library too, so that a newer one is found next time."""
        events, self._events = self._events, None
        if events is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(events)
        with contextlib.suppress(self._nvml.NVMLError):  # it is over either way
            self._nvml.nvmlShutdown()
        if unload:
            self._unload()

    def _unload(self) -> None:
        """Close the shared library. The binding has no call for it, and an upgraded one would go unseen."""
        nvml = self._nvml
        library, nvml.nvmlLib = nvml.nvmlLib, None
        nvml._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001 - there is no public way
        if library is not None:
            _ctypes.dlclose(library._handle)  # noqa: SLF001 - likewise


def _ended(what: str, code: int) -> Ended:
    return Ended(f"{what}: {name_of(code)}", REMEDIES.get(code, "see nvidia-smi and the kernel log"), code)


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
