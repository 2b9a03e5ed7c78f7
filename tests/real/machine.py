"""A machine made of files that draws power: simulated hardware, for real programs to look at."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trees import Powercap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@contextmanager
def machine(sysfs: Path, watts: Mapping[str, float]) -> Iterator[None]:
    """Let a package, its memory and its mmio twin draw these watts, by path, in this context."""
    powercap = Powercap(sysfs)
    powercap.zone("intel-rapl:0", "package-0", limits={"long_term": 125.0})
    powercap.zone("intel-rapl:0:0", "dram")
    powercap.zone("intel-rapl-mmio:0", "package-0")
    ended = threading.Event()
    begun = time.monotonic()

    def draw() -> None:
        while not ended.wait(0.02):
            for path, drawn in watts.items():
                microjoules = int((time.monotonic() - begun) * drawn * 1e6)
                # In place and of one length: a reader meets the old number or the new one.
                with powercap.file(path).open("r+b", buffering=0) as file:
                    file.write(b"%012d\n" % microjoules)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
