"""One command, run as it is: its files and its terminal untouched, waited for, its processes looked after.

It stays in our process group, so that a terminal's job control and Ctrl-C reach it without our help. Every
file descriptor that we were given is its too: `ffmpeg -i <(...)` works.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core.host import Host
from powerbench_agent.core.process_tree import Tree
from powerbench_agent.core.processes import Unresolved
from powerbench_agent.core.progress import ProgressParser

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

NOT_EXECUTABLE, NOT_FOUND, BY_SIGNAL = 126, 127, 128  # exit codes, as shells give them
LOOK_SECONDS = 1.0  # between looks at its processes
_LAST_WORDS_SECONDS = 1.0  # that we wait for a progress pipe's end, which a child of the command may hold

_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
_OF_A_TERMINAL = (signal.SIGINT, signal.SIGQUIT)  # it sends them to every process in its foreground


class CannotStart(Exception):  # noqa: N818 - a verdict
    """A command that did not start; `code` is the exit code that shells give for it."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.code = code


class Used(NamedTuple):
    """What a command that has ended came to."""

    code: int  # as shells give it: 128 + N where signal N killed it
    seconds: float  # from its start to its end
    user_seconds: float  # of CPU time, with all children that were waited for
    system_seconds: float
    cpu_seconds: float  # of its whole tree, as far as it was seen
    frames: int | None = None  # None where it is no ffmpeg, or did not say

    @property
    def signal(self) -> str:
        """The name of the signal that killed it; "" for none."""
        if self.code <= BY_SIGNAL:
            return ""
        try:
            return signal.Signals(self.code - BY_SIGNAL).name
        except ValueError:
            return ""


class Signals:
    """What becomes of a signal to us: the running command gets it, else what we wait for is given up."""

    def __init__(self) -> None:
        self.received = 0  # the first one; 0 for none
        self._pid: int | None = None
        self._waiting: asyncio.Task[object] | None = None

    def install(self) -> None:
        """Take the signals that we were not started to ignore, as `nohup` would have it."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._take, number)

    def ignore(self) -> None:
        """Let no signal end us any more."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    async def interruptibly(self, waiting: Awaitable[object]) -> bool:
        """Wait for something that a signal ends; return whether it went to its own end."""
        if self.received:
            return False
        self._waiting = asyncio.ensure_future(_await(waiting))
        try:
            await self._waiting
        except asyncio.CancelledError:
            if not self._waiting.cancelled():
                raise  # it is we who are cancelled
            return False
        finally:
            self._waiting = None
        return not self.received

    def running(self, pid: int | None) -> None:
        """Say which process is to get the signals from now on; None for none."""
        self._pid = pid

    def _take(self, number: int) -> None:
        self.received = self.received or number
        if self._pid is not None:
            if number not in _OF_A_TERMINAL or not _in_foreground():
                with contextlib.suppress(OSError):  # it may have become somebody else, by sudo
                    os.kill(self._pid, number)
        elif self._waiting is not None:
            self._waiting.cancel()


async def _await(waiting: Awaitable[object]) -> object:
    return await waiting


def _in_foreground() -> bool:
    """Return whether a terminal sends its signals to us, and so to the command."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


class Progress:
    """A pipe for an ffmpeg's progress, which a thread reads, always: the encoder never waits."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_inheritable(self._write_fd, True)  # noqa: FBT003 - takes no keyword
        self._thread = threading.Thread(target=self._read, name="progress", daemon=True)
        self._frames: int | None = None

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the ffmpeg's command line with its progress into the pipe."""
        return [command[0], "-progress", f"pipe:{self._write_fd}", *command[1:]]

    def begin(self) -> None:
        """Read, now that the command has its end of the pipe, or has not started."""
        os.close(self._write_fd)
        self._thread.start()

    def frames(self) -> int | None:
        """Return the frames of the last report, once the command has ended."""
        self._thread.join(_LAST_WORDS_SECONDS)
        return self._frames

    def _read(self) -> None:
        parser = ProgressParser()
        with os.fdopen(self._read_fd, "rb", buffering=0) as pipe:
            while data := pipe.read(65536):
                for report in parser.feed(data):
                    self._frames = self._frames if report.frames is None else report.frames


def says_frames(command: Sequence[str]) -> bool:
    """Return whether the command is an ffmpeg whose progress nobody has asked for yet."""
    name, *rest = command
    return PurePath(name).name == "ffmpeg" and bool(rest) and "-progress" not in rest


async def run(
    command: Sequence[str], signals: Signals, look: Callable[[Collection[int]], Awaitable[None]]
) -> Used:
    """Run the command to its end. Raises: CannotStart.

    `look` is called about once a second with every process of its tree that was seen until then.
    """
    progress = Progress() if says_frames(command) else None
    started = time.monotonic()
    try:
        process = _start(progress.command(command) if progress else command)
    finally:
        if progress is not None:
            progress.begin()
    signals.running(process.pid)
    watching = asyncio.ensure_future(_watch(process.pid, look))
    # Not reaped before we have stopped passing signals on: its number would be free for somebody else.
    ended = await asyncio.to_thread(_ended, process.pid)
    signals.running(None)
    _, status, usage = os.wait4(process.pid, 0)  # noqa: ASYNC222 - it has ended, so there is no wait
    process.returncode = os.waitstatus_to_exitcode(status)
    watching.cancel()
    await asyncio.wait([watching])
    seen = 0.0 if watching.cancelled() else watching.result()
    reaped = usage.ru_utime + usage.ru_stime
    return Used(
        code=process.returncode if process.returncode >= 0 else BY_SIGNAL - process.returncode,
        seconds=ended - started,
        user_seconds=usage.ru_utime,
        system_seconds=usage.ru_stime,
        cpu_seconds=max(reaped, seen),  # a child that nobody waited for is not in the first
        frames=progress.frames() if progress else None,
    )


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, close_fds=False)
    except FileNotFoundError:
        raise CannotStart(f"{command[0]}: not found", NOT_FOUND) from None
    except OSError as error:
        raise CannotStart(f"cannot run {command[0]}: {error.strerror}", NOT_EXECUTABLE) from None


def _ended(pid: int) -> float:
    """Wait for a process; return when it ended, in monotonic seconds."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return time.monotonic()


async def _watch(pid: int, look: Callable[[Collection[int]], Awaitable[None]]) -> float:
    """Look after the tree until cancelled; return the CPU seconds that it was seen to have used."""
    pids = {pid}
    tree: Tree | None = None
    with contextlib.suppress(asyncio.CancelledError, Unresolved):
        tree = Tree(Host(), pid)
        while True:
            tree.look()
            pids.update(tree.pids)
            await look(pids)
            await asyncio.sleep(LOOK_SECONDS)
    return tree.cpu_seconds if tree is not None else 0.0
