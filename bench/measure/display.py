"""What `powerbench measure` shows: standard error is the command's, too, so it is ours only between runs."""

from __future__ import annotations

import asyncio
import sys

from powerbench_agent.agent import log


class MeasureDisplay:
    """Progress and the report, on standard error."""

    def __init__(self, *, progress: bool | None) -> None:
        """`progress`: whether it was asked for; None for only in a terminal."""
        self._out = log.Unbreakable(sys.stderr)
        self._live = self._out.isatty() and progress is not False
        self._lines = self._live or progress is True

    def progress(self, text: str) -> None:
        """Print a line of progress."""
        if self._lines:
            self._out.write(f"powerbench: {text}\n")

    async def countdown(self, title: str, seconds: float) -> None:
        """Wait; in a terminal, show how much of the time has passed."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if not self._live:
            self.progress(f"{title}: {seconds:g} s")
        try:
            while (left := until - loop.time()) > 0:
                if self._live:
                    passed = f"{seconds - left:.0f} of {seconds:g} s"
                    self._out.write(f"\r\x1b[Kpowerbench: {title}: {passed}")
                await asyncio.sleep(min(1.0, left))
        finally:
            if self._live:
                self._out.write("\r\x1b[K")

    def report(self, text: str) -> None:
        """Print the report."""
        self._out.write(f"\n{text}")
