"""A child process of the load: one ffmpeg, started, watched and stopped.

Children have a session of their own: Ctrl-C in a terminal reaches this process alone, which then stops the
children it started and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections import deque
from pathlib import Path

from powerbench_agent.bench.load.redact import describe_command, redact_text, secrets_of
from powerbench_agent.core.host import Host
from powerbench_agent.core.procfs import read_process_stat

_STOP_SECONDS = 5.0  # for an encoder to write its last packet after SIGINT
_STDERR_LINES = 40
_LAST_LINES = 3  # of those, in an error


class StreamFailed(Exception):  # noqa: N818 - a verdict
    """A stream did not start, or died; the text ends with ffmpeg's own last lines."""


def _tied_to_us() -> list[str]:
    """Return the prefix that ties a child's life to ours; empty without setpriv."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


class Child:
    """One ffmpeg that we started."""

    def __init__(
        self, name: str, command: list[str], pass_fds: tuple[int, ...] = (), directory: Path | None = None
    ) -> None:
        """`directory`: where it runs; ours if it is None."""
        self.name = name
        self.lines: deque[str] = deque(maxlen=_STDERR_LINES)
        self._command = command
        self._pass_fds = pass_fds
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._draining: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it, and collect what it writes to standard error."""
        self._process = await asyncio.create_subprocess_exec(
            *_tied_to_us(),
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=self._pass_fds,
            cwd=self._directory,
            start_new_session=True,
        )
        assert self._process.stderr is not None  # noqa: S101 - asked for above
        self._draining = asyncio.ensure_future(self._drain(self._process.stderr))

    async def _drain(self, stderr: asyncio.StreamReader) -> None:
        with contextlib.suppress(ValueError):  # a line too long to hold: the rest is dropped
            async for line in stderr:
                self.lines.append(line.decode("utf-8", "replace").rstrip())
        while await stderr.read(65536):
            pass

    @property
    def command(self) -> str:
        """Its command line as people can paste it, without secrets."""
        return describe_command(self._command)

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.returncode if self._process else None

    async def wait(self) -> None:
        """Wait until it has ended and all that it printed has been read."""
        if self._process is not None and self._draining is not None:
            await self._process.wait()
            await asyncio.wait([self._draining])

    def cpu_seconds(self, procfs: Path = Path("/proc")) -> float:
        """Return the CPU time it has used; 0 once it has ended."""
        if self._process is None:
            return 0.0
        stat = read_process_stat(Host(procfs=procfs), self._process.pid)
        return stat.own_seconds if stat is not None else 0.0

    async def stop(self) -> None:
        """Stop it: SIGINT, so that it closes its output, then SIGKILL if it does not end."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            except TimeoutError:  # stopped, or waiting for a sink that does not read
                self._kill(process)
                await process.wait()
            except asyncio.CancelledError:  # a second Ctrl-C: what may be deaf to signals is not left behind
                self._kill(process)
                raise
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.wait([self._draining])

    async def kill(self) -> None:
        """End it at once; nothing that it writes is wanted any more."""
        if self._process is None or self._draining is None:
            return
        if self._process.returncode is None:
            self._kill(self._process)
        self._draining.cancel()
        await self._process.wait()
        await asyncio.wait([self._draining])

    @staticmethod
    def _kill(process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    @property
    def said(self) -> list[str]:
        """Its last lines on standard error, without secrets: ffmpeg quotes its URLs."""
        secrets = secrets_of(*self._command)
        return [redact_text(line, secrets) for line in self.lines]

    def last_words(self) -> str:
        """Return its last lines on standard error, joined into one line, without secrets."""
        printed = [line for line in self.said if line.strip()]
        return " | ".join(printed[-_LAST_LINES:]) or "it printed nothing"
