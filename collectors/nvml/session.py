"""One session of NVML, from nvmlInit to nvmlShutdown: its GPUs and its Xid events.

Every call here blocks, and hangs for as long as the driver does: use it in a thread of its own.
Units are NVML's, in the names: mW, mJ, MHz, percent.

Source: https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from powerbench_agent.collectors.nvml import library
from powerbench_agent.collectors.nvml.gpu import (
    DRIVER_NOT_LOADED,
    ENDING,
    LOST_REMEDY,
    MISMATCH,
    NO_PERMISSION,
    NOT_FOUND,
    REMEDIES,
    UNINITIALIZED,
    UNKNOWN,
    WITHOUT,
    Gpu,
    NvmlUnavailable,
    name_of,
    unavailable,
)
from powerbench_agent.core.model import Absent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    OnRefusal = Callable[[Gpu, str, str, str], None]
    Excludes = Callable[..., bool]

log = structlog.get_logger("nvml")

_XID = 0x8  # nvmlEventTypeXidCriticalError
_MAX_EVENTS = 64  # fetched at a time; the rest wait for the next time
_DRIVER_CHANGED = (DRIVER_NOT_LOADED, MISMATCH)  # another library may be installed by the next attempt
_EVERY_GPU = (UNINITIALIZED, *_DRIVER_CHANGED)  # errors that are not about the one GPU that was asked


class Refusal(NamedTuple):
    """Why a GPU could not be opened, and what can be done about it."""

    error: str
    remedy: str


class Session:
    """NVML from nvmlInit to nvmlShutdown."""

    def __init__(self, places: Collection[str] | None, refused: OnRefusal, excludes: Excludes) -> None:
        """Open the GPUs. Raises: NvmlUnavailable; Absent if the configuration excludes every GPU.

        `places`: the PCI addresses that may be touched, None for all; `refused`: see Gpu; `excludes`: whether
        to leave out a GPU that goes by these names.
        """
        self._nvml = library.open_binding()
        self._refused = refused
        self._excludes = excludes
        self._excluded = False  # whether there was one to leave out
        self.gpus: list[Gpu] = []
        self.unopened: dict[str, Refusal] = {}  # by index or PCI address
        self.denied: dict[str, Refusal] = {}  # likewise: GPUs of another container
        self.driver = ""
        self._events: Any = None
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            library.unload()
            raise unavailable("NVML cannot be opened", error.value) from None
        try:
            self._open(places)
        except self._nvml.NVMLError as error:
            self.close(unload=error.value in _DRIVER_CHANGED)
            raise unavailable("NVML cannot list its GPUs", error.value) from None
        except NvmlUnavailable as error:
            self.close(unload=error.code in _DRIVER_CHANGED)
            raise
        if not self.gpus:
            self.close()
            raise self._no_gpu()
        self._register()

    def _open(self, places: Collection[str] | None) -> None:
        self.driver = self._driver_version()
        if places is None:
            for index in range(self._nvml.nvmlDeviceGetCount()):
                self._open_or_note(index)
        else:
            for address in sorted(places):
                self._open_or_note(address)

    def _driver_version(self) -> str:
        try:
            return str(self._nvml.nvmlSystemGetDriverVersion())
        except self._nvml.NVMLError as error:
            if error.value in WITHOUT:
                return ""
            raise

    def _open_or_note(self, place: int | str) -> None:
        """Open the GPU with this index or PCI address, or note why it cannot be opened."""
        try:
            gpu = self._open_gpu(place)
        except self._nvml.NVMLError as error:
            code: int = error.value
            if code in _EVERY_GPU:
                raise
        except NvmlUnavailable as error:
            code = error.code
            if code in _EVERY_GPU:
                raise
        except ValueError:  # bytes that are not text
            code = UNKNOWN
        else:
            if gpu is not None:
                self.gpus.append(gpu)
            return
        if isinstance(place, str) and code == NOT_FOUND:
            return  # it belongs to another container
        refusals = self.denied if code == NO_PERMISSION else self.unopened
        refusals[str(place)] = Refusal(name_of(code), REMEDIES.get(code, _remedy(code)))

    def _no_gpu(self) -> NvmlUnavailable | Absent:
        for which, why in (self.unopened | self.denied).items():
            return NvmlUnavailable(f"GPU {which} cannot be opened: {why.error}", why.remedy)
        if self._excluded:
            return Absent("every NVIDIA GPU is left out by exclude, in [collectors.nvml]")
        return NvmlUnavailable(
            "NVML sees no GPU", "in a container, pass it one (--gpus all); else see nvidia-smi"
        )

    def _open_gpu(self, place: int | str) -> Gpu | None:
        """Return the GPU with this index or PCI address; None if it is left out."""
        if isinstance(place, int):
            if self._leaves_out(str(place)):
                return None
            handle, index = self._nvml.nvmlDeviceGetHandleByIndex(place), place
        else:
            handle = self._nvml.nvmlDeviceGetHandleByPciBusId(place)
            index = self._nvml.nvmlDeviceGetIndex(handle)
        gpu = Gpu(self._nvml, handle, index, self._refused)
        if self._leaves_out(str(index), gpu.uuid, gpu.pci_bus_id, gpu.name):
            return None
        return gpu

    def _leaves_out(self, *names: str) -> bool:
        excluded = self._excludes(*filter(None, names))
        self._excluded |= excluded
        return excluded

    def try_again(self) -> bool:
        """Try to open the GPUs that could not be opened; return whether all of them are open now."""
        for which in list(self.unopened):
            place = which if is_address(which) else int(which)
            try:
                gpu = self._open_gpu(place)
            except (self._nvml.NVMLError, NvmlUnavailable, ValueError):
                continue
            del self.unopened[which]
            if gpu is not None:
                self.gpus.append(gpu)
                self._watch(gpu)
        return not self.unopened

    def _register(self) -> None:
        """Create the set in which Xid events arrive; a driver without events has none."""
        try:
            self._events = self._nvml.nvmlEventSetCreate()
        except self._nvml.NVMLError:
            return
        for gpu in self.gpus:
            self._watch(gpu)

    def _watch(self, gpu: Gpu) -> None:
        if self._events is None:
            return
        try:
            self._nvml.nvmlDeviceRegisterEvents(gpu.handle, _XID, self._events)
        except self._nvml.NVMLError as error:
            log.debug("GPU reports no Xid events", gpu=gpu.index, error=name_of(error.value))

    def xids(self) -> Iterator[tuple[Gpu, int]]:
        """Yield (GPU, Xid) of each error since the last call. Raises: NvmlUnavailable."""
        if self._events is None:
            return
        gpus = {_address(gpu.handle): gpu for gpu in self.gpus}
        for _ in range(_MAX_EVENTS):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except self._nvml.NVMLError as error:
                if error.value in ENDING:
                    raise unavailable("Xid events", error.value) from None
                return  # usually a timeout, which means that there are none
            gpu = gpus.get(_address(event.device))
            if gpu is not None:
                yield gpu, event.eventData

    def close(self, *, unload: bool = False) -> None:
        """Shut NVML down; `unload` the library too, so that the next session loads a newer one."""
        events, self._events = self._events, None
        if events is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(events)
        with contextlib.suppress(self._nvml.NVMLError):  # the session is over either way
            self._nvml.nvmlShutdown()
        if unload:
            library.unload()


def _remedy(code: int) -> str:
    return "update the driver" if code in WITHOUT else LOST_REMEDY


def is_address(place: str) -> bool:
    """Return whether a GPU is named by its PCI address; otherwise it is by its index."""
    return ":" in place


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
