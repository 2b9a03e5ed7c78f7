"""`powerbench pipe`: forwards ffmpeg's progress to an agent, without ever blocking the encoder.

Two threads: one always reads and keeps the newest whole reports; the other, the main one, sends them when the
agent takes them (forward.py). Only the standard library, and little of it: there is one of these processes
beside every encoder.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import select
import signal
import stat
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from powerbench_agent.bench import exits
from powerbench_agent.bench.flags import add_token_file, read_token
from powerbench_agent.bench.pipe.backlog import Backlog, Bell
from powerbench_agent.bench.pipe.cutter import Cutter
from powerbench_agent.bench.pipe.forward import Destination, Forwarder
from powerbench_agent.bench.pipe.target import parse_target
from powerbench_agent.core.identity import StreamIdentity, stated
from powerbench_agent.core.terminal import printable

if TYPE_CHECKING:
    from types import FrameType

    from powerbench_agent.bench.flags import Verbs

_READ_BYTES = 64 * 1024  # as much as a pipe holds
_MAX_INT = 2**31  # of a descriptor or a process id
_EXAMPLES = {  # of what a stream is, by its fields
    "codec": "h264",
    "encoder": "libx264",
    "preset": "veryfast",
    "resolution": "1280x720",
    "fps": "29.97",
    "container": "flv",
}


def add_parser(verbs: Verbs) -> None:
    """Add the verb."""
    pipe = verbs.add_parser(
        "pipe",
        help="forward ffmpeg's progress to an agent, live, without ever blocking the encoder",
        description="Read ffmpeg's progress, from -progress or its stderr, and send it to an agent.\n"
        "The encoder never waits: if the agent is slow, hung or away, only old reports\n"
        "are lost; once it is back, sending resumes.",
        epilog="examples:\n"
        "  ffmpeg -nostats -progress pipe:1 -i ... -f flv rtmp://... | powerbench pipe --stream cam1\n"
        "in bash, if standard output is in use, or to read stderr:\n"
        "  ffmpeg -nostats -stats_period 1 -progress pipe:3 -i ... 3> >(powerbench pipe --stream cam1)\n"
        "  ffmpeg -i ... 2> >(powerbench pipe --stream cam1 --tee >&2)\n"
        "(-stats_period: from FFmpeg 4.4 on; leave it out before)\n"
        "The encoder's process is found by the pipe that it writes into. If another\n"
        "program is in between, give it with --pid; $$ is right in a script that ends\n"
        "in exec:\n"
        "  exec ffmpeg -progress pipe:3 ... 3> >(tee log | powerbench pipe --stream cam1 --pid $$)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    pipe.add_argument("--stream", metavar="NAME", required=True, help="name of the stream at the agent")
    pipe.add_argument(
        "--url", default="http://127.0.0.1:9510", help="the agent (default: http://127.0.0.1:9510)"
    )
    pipe.add_argument(
        "--fd",
        metavar="N",
        type=int,
        default=0,
        help="read this file descriptor (default: 0, standard input)",
    )
    pipe.add_argument("--tee", action="store_true", help="copy the input, unchanged, to standard output")
    pipe.add_argument(
        "--pid",
        metavar="N",
        type=int,
        help="the encoder's process (default: the one that writes to the pipe)",
    )
    add_token_file(pipe, "file that holds the agent's token")
    identity = pipe.add_argument_group(
        "what the stream is",
        "The agent shows it in ffmpeg_stream_info. ffmpeg's stderr says all of it but the\n"
        "preset; -progress says none of it. What is given here counts first.",
    )
    for field, example in _EXAMPLES.items():
        identity.add_argument(f"--{field}", metavar=field.upper(), help=f"like {example}")


def find_writer(procfs: Path, fd: int) -> int | None:
    """Return the pid of the process that writes into the pipe which we read as `fd`; None if there is none.

    An ffmpeg is preferred, since a shell that waits for it may hold the pipe, too; then the process that
    started last. `procfs` is where /proc is mounted; entries that may not be read are skipped.
    """
    from powerbench_agent.core import processes  # noqa: PLC0415 - a tenth of the memory, when it is asked for
    from powerbench_agent.core.host import Host  # noqa: PLC0415 - likewise

    host = Host(procfs=procfs)
    try:
        pipe = (procfs / f"self/fd/{fd}").readlink().name
    except OSError:
        return None
    if not pipe.startswith("pipe:["):
        return None
    own = processes.own_pid(host)
    writers = processes.Index(host).having(pipe, writable=True)
    return processes.preferred(host, [pid for pid in writers if pid != own])


def say(text: str) -> None:
    """Print a line for a person if standard error takes it at once: nothing waits for a message."""
    line = f"powerbench pipe: {printable(text)}\n"
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    with suppress(OSError):
        if any(event & select.POLLOUT for _, event in poll.poll(0)):
            os.write(2, line.encode())


class _InputReader:
    """Reads the input to its end, whatever happens to the reports."""

    def __init__(self, fd: int, backlog: Backlog, *, tee: bool) -> None:
        self.size = 0  # bytes read
        self._fd = fd
        self._backlog = backlog
        self._tee = tee

    def run(self) -> None:
        cutter = Cutter()
        try:
            while data := self._read():
                self.size += len(data)
                self._backlog.put(cutter.feed(data))
                if self._tee:
                    self._copy(memoryview(data))
            self._backlog.put(cutter.close())
        finally:
            self._backlog.end()

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._fd, _READ_BYTES)
            except BlockingIOError:  # another process made it non-blocking
                _wait_for(self._fd, select.POLLIN)
            except OSError as error:
                say(f"cannot read file descriptor {self._fd} any more: {error.strerror}")
                return b""

    def _copy(self, data: memoryview) -> None:
        while data:
            try:
                data = data[os.write(1, data) :]
            except BlockingIOError:
                _wait_for(1, select.POLLOUT)
            except OSError as error:
                self._tee = False
                if error.errno != errno.EPIPE:
                    say(f"cannot write to standard output any more: {error.strerror}; forwarding continues")
                return


def _wait_for(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


def main(flags: argparse.Namespace) -> int:
    """Forward one run's progress; return the exit code."""
    try:
        destination = _destination(flags)
    except exits.BadFile as bad:
        say(str(bad))
        return exits.BAD_FILE
    except ValueError as error:
        say(f"{error}; see powerbench pipe --help")
        return exits.USAGE
    if not _is_readable(flags.fd):
        say(f"file descriptor {flags.fd} is not open for reading; see the examples of powerbench pipe --help")
        return exits.UNAVAILABLE
    _hold_standard_fds()
    bell = Bell()
    backlog = Backlog(bell.ring)
    forwarder = Forwarder(destination, backlog, bell, partial(find_writer, Path("/proc"), flags.fd), say)
    _catch_signals(forwarder, backlog, bell, at_terminal=os.isatty(flags.fd))
    reader = _InputReader(flags.fd, backlog, tee=flags.tee)
    # A daemon thread: it may be stuck in a read or a write when we are told to end.
    threading.Thread(target=reader.run, daemon=True).start()
    forwarder.run()
    if reader.size and not backlog.newest and backlog.ended_at is not None:
        say("found no FFmpeg progress in the input; feed it ffmpeg's -progress output or its stderr")
    return exits.OK


def _destination(flags: argparse.Namespace) -> Destination:
    """Return what the flags say. Raises: ValueError, BadFile, with words for a person."""
    if not flags.stream:
        raise ValueError("--stream must not be empty")
    if not 0 <= flags.fd < _MAX_INT:
        raise ValueError(f"--fd {flags.fd}: must be the number of a file descriptor")
    if flags.pid is not None and not 0 < flags.pid < _MAX_INT:
        raise ValueError(f"--pid {flags.pid}: must be the number of a process")
    try:
        target = parse_target(flags.url)
    except ValueError as error:
        raise ValueError(f"--url: {error}") from None
    token = _Token(flags.token_file) if flags.token_file else str
    return Destination(target, flags.stream, os.urandom(8).hex(), flags.pid, token, _identity(flags))


def _identity(flags: argparse.Namespace) -> StreamIdentity:
    """Return what the flags say of the stream. Raises: ValueError."""
    given = {field: getattr(flags, field) for field in _EXAMPLES if getattr(flags, field) is not None}
    known = stated(given)
    for field, value in given.items():
        if field not in known.known():
            raise ValueError(f"--{field} {value}: write it like {_EXAMPLES[field]}")
    return known


class _Token:
    """The agent's token, out of its file: it may be replaced while a stream goes on for weeks."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known = read_token(name)

    def __call__(self) -> str:
        """Return the token, or the last one known if the file cannot be read any more."""
        with suppress(exits.BadFile):
            self._known = read_token(self._name)
        return self._known


def _is_readable(fd: int) -> bool:
    with suppress(OSError):
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        return access != os.O_WRONLY and not stat.S_ISDIR(os.fstat(fd).st_mode)
    return False


def _hold_standard_fds() -> None:
    """Open those of descriptors 0 to 2 that are closed: what is written there must not reach the agent."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _catch_signals(forwarder: Forwarder, backlog: Backlog, bell: Bell, *, at_terminal: bool) -> None:
    """Let SIGTERM and SIGHUP end us in order, and SIGINT once the input has ended.

    Ctrl-C reaches ffmpeg as well, and its last report is still to come.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        if number != signal.SIGINT or at_terminal or backlog.ended_at is not None:
            forwarder.stop()

    signal.set_wakeup_fd(bell.push_fd, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup stays in force
            signal.signal(number, end)
