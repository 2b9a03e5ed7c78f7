"""`powerbench pipe`: what ffmpeg says of its progress, passed on to an agent, at no risk for the encode.

Two threads: one reads, always, and keeps the newest whole reports; the other, the main one, sends them when
the agent takes them (bench/forward.py). Standard library alone, and little of it: there is one of these
processes beside every encoder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import signal
import stat
import threading
import time
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

from powerbench_agent.bench import exits
from powerbench_agent.bench.pipe.forward import Destination, Forwarder
from powerbench_agent.core.progress import MAX_LINE

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from types import FrameType

HELD = 64 * 1024  # bytes of reports kept for an agent that is slow or away
MAX_BLOCK = 16 * 1024  # bytes; a longer block is nothing of FFmpeg's

_DEFAULT_PORT = 9510
_READ = 64 * 1024  # bytes; a pipe holds no more
_PAIR = re.compile(rb"\s*\w+\s*=")
_STATUS = re.compile(rb"\s*(?:frame|L?size)=")


class Target(NamedTuple):
    """Where an agent is."""

    https: bool
    host: str  # an IPv6 address without its brackets
    port: int
    prefix: str  # of every path; without a slash at its end

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = self.host.partition("%")[0]  # an interface means nothing to the other side
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """What a message says."""
        return f"{'https' if self.https else 'http'}://{self.authority}{self.prefix}"


def parse_target(text: str) -> Target:
    """Return where a URL leads: `http://127.0.0.1:9510`, `localhost:9510`, `https://host/prefix`.

    Raises: ValueError, with words for a person.
    """
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r} must be like http://127.0.0.1:9510")
    if parts.username is not None or parts.query or parts.fragment:
        # Not shown again: what is too much may be a secret.
        raise ValueError("must be scheme, host, port and path alone; see --stream and --token-file")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    if not re.fullmatch(r"[\w.:%~-]+", host):
        raise ValueError(f"{text!r} has no host name or address in it")
    standard = {"http": 80, "https": 443}[parts.scheme] if "://" in text else _DEFAULT_PORT
    # The whole URL of the endpoint, as curl is given it, is as good.
    prefix = parts.path.rstrip("/").removesuffix("/ingest").rstrip("/")
    port = standard if parts.port is None else parts.port
    return Target(parts.scheme == "https", host, port, quote(prefix, safe="/%:@!$&'()*+,;=~"))


class Cutter:
    """Cuts a run's bytes, split anywhere, into the whole reports among them; does no I/O.

    A report is a block of `-progress` or a status line of FFmpeg's stderr, with its line ends, as it stood
    there. Everything between them is dropped, and so are status lines once there are blocks: the agent reads
    blocks alone then, and a new connection must not begin with the rounded figures.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._skipping = False  # the rest of a line that was too long
        self._block: list[bytes] = []
        self._size = 0  # of the block, whether it is kept or too long
        self._blocks = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the reports that they complete."""
        lines = (self._tail + data).splitlines(keepends=True)
        self._tail = lines.pop() if lines and lines[-1][-1:] not in b"\r\n" else b""
        if lines and self._skipping:
            del lines[0]
            self._skipping = False
        if len(self._tail) > MAX_LINE:
            self._skipping = True
        if self._skipping:
            self._tail = b""
        return [report for line in lines if (report := self._line(line))]

    def close(self) -> list[bytes]:
        """Take the end of the bytes; return the block that lacks nothing but its last line end."""
        return self.feed(b"\n") if self._tail.startswith(b"progress=") else []

    def _line(self, line: bytes) -> bytes:
        """Return the report that a line completes; empty if it completes none."""
        # The line feed may come in a piece of its own, too late to be waited for.
        line = line[:-1] if line.endswith(b"\r\n") else line
        if len(line) > MAX_LINE + 1:
            return b""
        if b" time=" in line and _STATUS.match(line):
            return b"" if self._blocks else line
        if not _PAIR.match(line):
            return b""
        key, _, value = line.partition(b"=")
        self._size += len(line)
        if self._size <= MAX_BLOCK:
            self._block.append(line)
        if key.strip() != b"progress":
            return b""
        block, size = b"".join(self._block), self._size
        self._block, self._size = [], 0
        if size > MAX_BLOCK or value.strip() not in (b"continue", b"end"):
            return b""
        self._blocks = True
        return block


class Bell:
    """Wakes the poll() of one thread: from another one, or from a signal."""

    def __init__(self) -> None:
        self.fd, self.push_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ring(self) -> None:
        """Wake it; if it is awake already, so much the better."""
        with suppress(BlockingIOError):
            os.write(self.push_fd, b"\0")

    def hush(self) -> None:
        """Forget the rings so far."""
        with suppress(BlockingIOError):
            os.read(self.fd, 4096)


class Backlog:
    """The newest whole reports, for another thread to take: at most `limit` bytes, or one report."""

    def __init__(self, ring: Callable[[], None], limit: int = HELD) -> None:
        self.newest = b""  # stays when it is taken
        self.ended_at: float | None = None  # monotonic seconds; the input's end
        self._ring = ring
        self._limit = limit
        self._reports: deque[bytes] = deque()
        self._size = 0
        self._lock = threading.Lock()

    def put(self, reports: list[bytes]) -> None:
        """Add whole reports, the newest last; the oldest leave where there is no room."""
        if not reports:
            return
        with self._lock:
            self.newest = reports[-1]
            self._reports.extend(reports)
            self._size += sum(map(len, reports))
            self._trim(self._limit)
        self._ring()

    def end(self) -> None:
        """Say that nothing comes any more."""
        self.ended_at = time.monotonic()
        self._ring()

    def take(self, size: int) -> bytes:
        """Remove the oldest reports, up to about this many bytes; empty if there are none."""
        taken = bytearray()
        with self._lock:
            while self._reports and (not taken or len(taken) + len(self._reports[0]) <= size):
                taken += self._reports.popleft()
            self._size -= len(taken)
        return bytes(taken)

    def keep_newest(self) -> None:
        """Give up all but the newest report."""
        with self._lock:
            self._trim(0)

    def _trim(self, limit: int) -> None:
        while self._size > limit and len(self._reports) > 1:
            self._size -= len(self._reports.popleft())


def find_writer(procfs: Path, fd: int) -> int | None:
    """Return the pid of the process that writes into the pipe which we read as `fd`; None if nobody is found.

    An ffmpeg is preferred: a shell that waits for it may hold the pipe, too. Then the one that started last.
    `procfs` is where /proc is mounted; what may not be read there is passed over.
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
    """Print a line for a person, if standard error takes it: nothing waits for a message."""
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    with suppress(OSError):
        if any(event & select.POLLOUT for _, event in poll.poll(0)):
            os.write(2, f"powerbench pipe: {text}\n".encode(errors="backslashreplace"))


class _Reader:
    """Reads the input to its end, whatever becomes of the reports."""

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
                return os.read(self._fd, _READ)
            except BlockingIOError:  # somebody else made it so
                _await(self._fd, select.POLLIN)
            except OSError as error:
                say(f"cannot read file descriptor {self._fd} any more ({error.strerror})")
                return b""

    def _copy(self, data: memoryview) -> None:
        while data:
            try:
                data = data[os.write(1, data) :]
            except BlockingIOError:
                _await(1, select.POLLOUT)
            except OSError as error:
                self._tee = False
                if error.errno != errno.EPIPE:
                    say(f"cannot write to standard output any more ({error.strerror}); forwarding goes on")
                return


def _await(fd: int, event: int) -> None:
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
    reader = _Reader(flags.fd, backlog, tee=flags.tee)
    # A daemon: it may be stuck in a read or a write when we are told to end.
    threading.Thread(target=reader.run, daemon=True).start()
    forwarder.run()
    if reader.size and not backlog.newest and backlog.ended_at is not None:
        say("there was no FFmpeg progress in the input; give it what ffmpeg's -progress or its stderr says")
    return exits.OK


def _destination(flags: argparse.Namespace) -> Destination:
    """Return what the flags say. Raises: ValueError, BadFile, with words for a person."""
    if not flags.stream:
        raise ValueError("--stream must not be empty")
    if not 0 <= flags.fd < 2**31:
        raise ValueError(f"--fd {flags.fd}: must be the number of a file descriptor")
    if flags.pid is not None and not 0 < flags.pid < 2**31:
        raise ValueError(f"--pid {flags.pid}: must be the number of a process")
    try:
        target = parse_target(flags.url)
    except ValueError as error:
        raise ValueError(f"--url: {error}") from None
    token = _Token(flags.token_file) if flags.token_file else str
    return Destination(target, flags.stream, os.urandom(8).hex(), flags.pid, token)


class _Token:
    """The agent's token, as its file says: it may be replaced while a stream goes on for weeks."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known = self._read()

    def __call__(self) -> str:
        """Return the token; the one known before, where the file cannot be read any more."""
        with suppress(exits.BadFile):
            self._known = self._read()
        return self._known

    def _read(self) -> str:
        """Return the token. Raises: BadFile."""
        try:
            token = Path(self._name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise exits.BadFile(f"--token-file {self._name}: cannot read it: {error.strerror}") from None
        except UnicodeDecodeError:
            token = ""
        if not token or not token.isprintable():
            raise exits.BadFile(f"--token-file {self._name}: holds no token") from None
        return token


def _is_readable(fd: int) -> bool:
    with suppress(OSError):
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        return access != os.O_WRONLY and not stat.S_ISDIR(os.fstat(fd).st_mode)
    return False


def _hold_standard_fds() -> None:
    """Have the three standard descriptors open: what is written there must not land in the agent's socket."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


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
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, end)
