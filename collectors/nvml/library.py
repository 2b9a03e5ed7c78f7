"""The binding to the driver's library: imported when it is first needed, and let go for a newer driver.

The binding is nvidia-ml-py, module `pynvml`. It loads libnvidia-ml.so.1 once and keeps pointers to the
functions that were called, so a driver that is upgraded later would go unseen (docs/decisions/0012).

Source: https://docs.python.org/3/library/ctypes.html (PyDLL._handle), dlclose(3), malloc_trim(3)
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from typing import Any

from powerbench_agent.collectors.nvml.gpu import NvmlUnavailable

INSTALL = "pip install nvidia-ml-py"
REINSTALL = "pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py"


@functools.cache
def binding() -> Any:
    """Return nvidia-ml-py's module, imported once. Raises: NvmlUnavailable."""
    try:
        import pynvml  # noqa: PLC0415 - 7 MB of memory, needed only on machines with an NVIDIA GPU
    except ImportError as error:
        raise NvmlUnavailable(f"nvidia-ml-py cannot be imported: {error}", INSTALL) from None
    # Others of that name are packages, and import their functions from a module inside.
    is_ours = pynvml.nvmlInit.__module__ == pynvml.__name__ and hasattr(pynvml, "nvmlLib")
    if not is_ours:
        raise NvmlUnavailable("the module pynvml belongs to another package than nvidia-ml-py", REINSTALL)
    _return_memory()
    return pynvml


def unload(nvml: Any) -> None:
    """Close the shared library, so that the next nvmlInit loads the one that is on the disk then."""
    library = nvml.nvmlLib
    if library is None:  # it was not found
        return
    importlib.reload(nvml)  # without the library and the pointers into it
    process = ctypes.CDLL(None)
    process.dlclose.argtypes = (ctypes.c_void_p,)
    process.dlclose(library._handle)  # noqa: SLF001 - documented, the underscore only keeps it apart from functions
    _return_memory()


def _return_memory() -> None:
    """Return to the kernel the 11 MB that executing the binding needs for a moment."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
    if trim is not None:
        trim(0)
