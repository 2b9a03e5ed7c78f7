"""Runs one command unchanged, with its files and its terminal, and watches its processes until it ends.

It stays in our process group, so that a terminal's job control and Ctrl-C reach it without our help. It
inherits every file descriptor that we were given: `ffmpeg -i <(...)` works.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.measure.ffmpeg_words import find_ffmpeg_words, is_ffmpeg, mentions_ffmpeg
from powerbench_agent.core.host import Host
from powerbench_agent.core.process_tree import ProcessTree
from powerbench_agent.core.processes import Unresolved
from powerbench_agent.core.progress import ProgressParser

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from powerbench_agent.bench.measure.ffmpeg_words import FfmpegWords

NOT_EXECUTABLE, NOT_FOUND, BY_SIGNAL = 126, 127, 128  # exit codes, as shells give them
LOOK_SECONDS = 1.0  # between looks at its processes
_LAST_WORDS_SECONDS = 1.0  # to wait for the end of the progress pipe, which a child of the command may hold

_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
_OF_A_TERMINAL = (signal.SIGINT, signal.SIGQUIT)  # a terminal sends these to every process in its foreground


class CannotStart(Exception):  # noqa: N818 - a verdict
    """The command did not start; `code` is the exit code that shells use for this."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.code = code


class Used(NamedTuple):
    """What a command that has ended has used."""

    code: int  # as in shells: 128 + N if signal N killed it
    seconds: float  # from its start to its end
    user_seconds: float  # of CPU time, including children that were waited for
    system_seconds: float
    cpu_seconds: float  # of its whole process tree, as far as it was seen
    frames: int | None = None  # None if it is not an ffmpeg or reported nothing
    uncounted: bool = False  # whether there was an ffmpeg among its processes that was not asked for frames

    @property
    def signal(self) -> str:
        """The name of the signal that killed it, or ""."""
        if self.code <= BY_SIGNAL:
            return ""
        try:
            return signal.Signals(self.code - BY_SIGNAL).name
        except ValueError:
            return ""


class Signals:
    """Handles signals to us: the running command gets them; without one, what we wait for is cancelled."""

    def __init__(self) -> None:
        self.received = 0  # the first one; 0 for none
        self._pid: int | None = None
        self._waiting: asyncio.Task[object] | None = None

    def install(self) -> None:
        """Handle the signals, except those that we were started to ignore, as by `nohup`."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._take, number)

    def ignore(self) -> None:
        """Ignore all signals from now on."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    async def interruptibly(self, waiting: Awaitable[object]) -> bool:
        """Wait for something until a signal cancels it; return whether it finished."""
        if self.received:
            return False
        self._waiting = asyncio.ensure_future(_await(waiting))
        try:
            await self._waiting
        except asyncio.CancelledError:
            if not self._waiting.cancelled():
                raise  # we are cancelled ourselves
            return False
        finally:
            self._waiting = None
        return not self.received

    def running(self, pid: int | None) -> None:
        """Set which process gets the signals from now on; None for none."""
        self._pid = pid

    def _take(self, number: int) -> None:
        self.received = self.received or number
        if self._pid is not None:
            if number not in _OF_A_TERMINAL or not _in_foreground():
                with contextlib.suppress(OSError):  # by sudo it may have become another user's
                    os.kill(self._pid, number)
        elif self._waiting is not None:
            self._waiting.cancel()


async def _await(waiting: Awaitable[object]) -> object:
    return await waiting


def _in_foreground() -> bool:
    """Return whether a terminal sends its signals to us, and thus to the command."""
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
    """A pipe for an ffmpeg's progress, which a thread always reads: the encoder never waits."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_inheritable(self._write_fd, True)  # noqa: FBT003 - takes no keyword
        self._thread = threading.Thread(target=self._read, name="progress", daemon=True)
        self._frames: int | None = None

    def command(self, ffmpeg: FfmpegWords) -> Sequence[str]:
        """Return the command with the ffmpeg's progress sent to the pipe."""
        return ffmpeg.with_options("-progress", f"pipe:{self._write_fd}")

    def begin(self) -> None:
        """Start reading, once the command has inherited its end of the pipe or failed to start."""
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
                    if report.frames is not None:
                        self._frames = report.frames


async def run(
    command: Sequence[str],
    signals: Signals,
    look: Callable[[Collection[int]], Awaitable[None]],
    *,
    has_input: bool = True,
) -> Used:
    """Run the command to its end; without `has_input` its standard input is empty. Raises: CannotStart.

    `look` is called about once a second with every process of its tree that has been seen so far.
    """
    ffmpeg = find_ffmpeg_words(command)
    progress: Progress | None = None
    if ffmpeg is not None and not ffmpeg.has_progress:
        progress = Progress()
        command = progress.command(ffmpeg)
    started = time.monotonic()
    try:
        process = _start(command, None if has_input else subprocess.DEVNULL)
    finally:
        if progress is not None:
            progress.begin()
    signals.running(process.pid)
    watching = asyncio.ensure_future(_watch(process.pid, look))
    # Not reaped before signals are no longer passed on: its id would be free for another process.
    ended = await asyncio.to_thread(_ended, process.pid)
    signals.running(None)
    _, status, usage = os.wait4(process.pid, 0)  # noqa: ASYNC222 - it has ended, so this does not wait
    process.returncode = os.waitstatus_to_exitcode(status)
    watching.cancel()
    await asyncio.wait([watching])
    seen = _Seen() if watching.cancelled() else watching.result()
    reaped = usage.ru_utime + usage.ru_stime
    code = process.returncode
    return Used(
        code=code if code >= 0 else BY_SIGNAL - code,
        seconds=ended - started,
        user_seconds=usage.ru_utime,
        system_seconds=usage.ru_stime,
        cpu_seconds=max(reaped, seen.cpu_seconds),  # the first lacks children that were not waited for
        frames=progress.frames() if progress else None,
        uncounted=progress is None and (seen.ffmpeg or mentions_ffmpeg(command)),
    )


def _start(command: Sequence[str], stdin: int | None) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, stdin=stdin, close_fds=False)
    except FileNotFoundError:
        raise CannotStart(f"{command[0]}: not found", NOT_FOUND) from None
    except OSError as error:
        raise CannotStart(f"cannot run {command[0]}: {error.strerror}", NOT_EXECUTABLE) from None


def _ended(pid: int) -> float:
    """Wait for a process; return when it ended, in monotonic seconds."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return time.monotonic()


class _Seen(NamedTuple):
    """What was seen of a command's processes."""

    cpu_seconds: float = 0.0
    ffmpeg: bool = False  # whether one of them was an ffmpeg


async def _watch(pid: int, look: Callable[[Collection[int]], Awaitable[None]]) -> _Seen:
    """Watch the tree until cancelled; return what was seen of it."""
    pids = {pid}
    tree: ProcessTree | None = None
    ffmpeg = False
    with contextlib.suppress(asyncio.CancelledError, Unresolved):
        tree = ProcessTree(Host(), pid)
        while True:
            tree.look()
            pids.update(tree.pids)
            ffmpeg = ffmpeg or any(map(_is_ffmpeg, tree.pids))
            await look(pids)
            await asyncio.sleep(LOOK_SECONDS)
    return _Seen(tree.cpu_seconds if tree is not None else 0.0, ffmpeg)


def _is_ffmpeg(pid: int) -> bool:
    """Return whether a process is an ffmpeg, by the name that the kernel has for it."""
    try:
        return is_ffmpeg(Path(f"/proc/{pid}/comm").read_text(errors="replace").strip())
    except OSError:  # it has ended
        return False
