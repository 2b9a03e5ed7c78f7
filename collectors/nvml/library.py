"""The driver's library, libnvidia-ml.so.1, and the binding that calls it.

The binding is nvidia-ml-py, module `pynvml`. By itself it loads the library once and keeps its functions, so
a driver that is upgraded later would go unseen. Here it gets a library that can be exchanged
(docs/decisions/0010).

Source: https://docs.python.org/3/library/ctypes.html (PyDLL._handle), dlclose(3), malloc_trim(3)
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from powerbench_agent.collectors.nvml.gpu import (
    FUNCTION_NOT_FOUND,
    LIBRARY_NOT_FOUND,
    NvmlUnavailable,
    unavailable,
)

INSTALL = "pip install nvidia-ml-py"
REINSTALL = "pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py"
_SONAME = "libnvidia-ml.so.1"
_WSL = "/usr/lib/wsl/lib/libnvidia-ml.so.1"  # Windows' driver puts it there; not always in the linker's path


class DriverLibrary:
    """Stands for the library in the binding, and passes each call to the one that is loaded now."""

    def __init__(self) -> None:
        self._loaded: ctypes.CDLL | None = None

    def __getattr__(self, name: str) -> Any:
        """Return a function that stays valid when the library is exchanged. Raises: AttributeError."""
        getattr(self._loaded, name)
        return functools.partial(self._call, name)

    def _call(self, name: str, *arguments: Any) -> Any:
        function = getattr(self._loaded, name, None)
        if function is None:  # the library that was loaded before has it, this one does not
            return FUNCTION_NOT_FOUND
        return function(*arguments)

    def load(self) -> None:
        """Load the library, unless it is loaded. Raises: OSError."""
        if self._loaded is not None:
            return
        try:
            self._loaded = ctypes.CDLL(_SONAME)
        except OSError:
            self._loaded = ctypes.CDLL(_WSL)

    def unload(self) -> None:
        """Unload the library; afterwards `load` takes the one that is on the disk then."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            dlclose = ctypes.CDLL(None).dlclose
            dlclose.argtypes = (ctypes.c_void_p,)
            dlclose(loaded._handle)  # noqa: SLF001 - documented under this name


_library = DriverLibrary()


def open_binding() -> Any:
    """Return nvidia-ml-py's module with the library loaded. Raises: NvmlUnavailable."""
    binding = _import_binding()
    try:
        _library.load()
    except OSError:
        raise unavailable("NVML cannot be opened", LIBRARY_NOT_FOUND) from None
    return binding


def unload() -> None:
    """Unload the library, so that the next `open_binding` loads a newer one."""
    _library.unload()


@functools.cache
def _import_binding() -> Any:
    try:
        import pynvml  # noqa: PLC0415 - 7 MB of memory, needed only on machines with an NVIDIA GPU
    except ImportError as error:
        raise NvmlUnavailable(f"nvidia-ml-py cannot be imported: {error}", INSTALL) from None
    # Other modules of that name are packages, whose functions come from a module inside.
    is_ours = pynvml.nvmlInit.__module__ == pynvml.__name__ and hasattr(pynvml, "nvmlLib")
    if not is_ours:
        raise NvmlUnavailable("the module pynvml belongs to another package than nvidia-ml-py", REINSTALL)
    pynvml.nvmlLib = _library
    _return_memory()
    return pynvml


def _return_memory() -> None:
    """Return to the kernel the 11 MB that importing the binding needs for a moment."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
    if trim is not None:
        trim(0)
