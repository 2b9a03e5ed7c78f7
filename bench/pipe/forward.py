"""Sends reports to an agent over HTTP, whatever the agent does: the sending half of `powerbench pipe`.

One chunked POST per connection, begun by the first report. Everything that can wait (name resolution,
connecting, TLS, sending, the answer, the next attempt) waits in one poll(), which a new report, the end of
the input and a signal wake. While nothing happens, nothing runs.

Rules:

1. What waits for the agent is bounded: the newest whole reports. Totals are cumulative, so dropping an old
   report costs only one point of a curve.
2. A connection never carries half a report, unless it breaks in the middle of one.
3. A new connection begins with what is held, or the newest report again, after what was said of the stream: a
   restarted agent knows nothing.
4. The end has a deadline: an absent agent is not waited for.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from powerbench_agent.agent import __version__
from powerbench_agent.core.identity import UNKNOWN, StreamIdentity

if TYPE_CHECKING:
    from collections.abc import Callable

    from powerbench_agent.bench.pipe.backlog import Backlog, Bell
    from powerbench_agent.bench.pipe.target import Target

    _Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]

FIRST_DELAY, LAST_DELAY = 0.5, 10.0  # seconds between attempts; doubled from the first to the last
END_SECONDS = 2.0  # after the input's end, to reach the agent; the same again for its answer
STOP_SECONDS = 0.8  # after SIGTERM, for everything

_BATCH = 4096  # bytes of reports in one chunk: what is being sent cannot be dropped for newer ones
_SEND_BUFFER = 32 * 1024  # bytes; what the kernel holds for an agent that reads nothing
_CONNECT_SECONDS = 5.0  # each for name resolution, connecting and the TLS handshake
_VANISHED_MS = 30_000  # a peer that acknowledges nothing for this long is gone
_SETTLED_SECONDS = 1.0  # a refusal comes at once; a connection that lasts this long was not refused
_END_DELAY = 0.2  # seconds between attempts after the end
_ANSWER_BYTES = 16 * 1024
_HINTS = {
    400: "feed it ffmpeg's -progress output, or its stderr",
    **dict.fromkeys((401, 403), "give the agent's token with --token-file"),
    404: "check --url: the port must be one that serves the agent's ffmpeg collector",
    429: "it has too many streams; raise [collectors.ffmpeg] max_streams there",
}


class Destination(NamedTuple):
    """Where reports go, and what is said of their stream."""

    target: Target
    stream: str
    run: str  # the same for all connections of one run
    pid: int | None = None  # the encoder's, if the user gave it
    token: Callable[[], str] = str  # called for each connection, since a token may be replaced; "" for none
    identity: StreamIdentity = UNKNOWN  # of the stream, as far as the user gave it


class _Refused(Exception):  # noqa: N818 - a verdict
    """The agent answers, but refuses the reports."""

    def __init__(self, status: int, *, shown: bool) -> None:
        """`shown`: whether a token was sent."""
        hint = _HINTS.get(status, "check --url: another server may be listening there")
        if shown and status in (401, 403):
            hint = "it rejects the token in --token-file; use the agent's"
        super().__init__(f"{status}: {hint}")


class _TimeUp(Exception):  # noqa: N818 - a verdict
    """The input has ended, or we were told to end, and the time for the rest is over."""


def request_head(destination: Destination, pid: int | None) -> bytes:
    """Return the head of a POST to /ingest; `pid` is the encoder's, None if unknown."""
    target, token = destination.target, destination.token()
    stream = quote(os.fsencode(destination.stream), safe="")  # argv need not be UTF-8
    query = f"stream={stream}&run={destination.run}" + ("" if pid is None else f"&pid={pid}")
    query += "".join(f"&{key}={quote(value)}" for key, value in destination.identity.known().items())
    lines = [
        f"POST {target.prefix}/ingest?{query} HTTP/1.1",
        f"Host: {target.authority}",
        f"User-Agent: powerbench-pipe/{__version__}",
        "Content-Type: text/plain",
        "Transfer-Encoding: chunked",
        "Connection: close",
        *([f"Authorization: Bearer {token}"] if token else []),
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def parse_status(data: bytes) -> int | None:
    """Return the status of an answer whose head is complete, else None.

    Raises: ConnectionError if the peer does not speak HTTP.
    """
    if not data.startswith(b"HTTP/1."[: len(data)]):
        raise ConnectionError(errno.EPROTO, "not an HTTP server")
    status = re.match(rb"HTTP/1\.\d (\d{3})\b.*?\r\n\r\n", data, re.DOTALL)
    return int(status[1]) if status else None


class _Link:
    """A socket that never blocks, with or without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._busy: tuple[type[OSError], ...] = (BlockingIOError,)

    def send(self, data: memoryview) -> int:
        """Send what there is room for; return how many bytes."""
        try:
            return self.sock.send(data)
        except self._busy:
            return 0

    def receive(self) -> tuple[bytes, bool]:
        """Return what has arrived, and whether nothing more will."""
        received = b""
        while len(received) < _ANSWER_BYTES:
            try:
                data = self.sock.recv(4096)
            except self._busy:
                return received, False
            except OSError:
                if not received:
                    raise
                break  # an answer followed by a reset
            if not data:
                break
            received += data
        return received, True

    def start_tls(self, host: str, wait: Callable[[socket.socket, int], None]) -> None:
        """Shake hands; `wait` returns when the socket is ready for an event. Raises: OSError."""
        import ssl  # noqa: PLC0415 - 8 MB that http:// does not need

        self._busy = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
        context = ssl.create_default_context()
        secure = context.wrap_socket(self.sock, server_hostname=host, do_handshake_on_connect=False)
        self.sock = secure
        while True:
            try:
                return secure.do_handshake()
            except ssl.SSLWantReadError:
                wait(secure, select.POLLIN)
            except ssl.SSLWantWriteError:
                wait(secure, select.POLLOUT)


class Forwarder:
    """Sends a backlog to an agent until the input has ended; one thread's work."""

    def __init__(
        self,
        destination: Destination,
        backlog: Backlog,
        bell: Bell,
        find_pid: Callable[[], int | None],
        say: Callable[[str], None],
    ) -> None:
        self._destination = destination
        self._backlog = backlog
        self._bell = bell
        self._find_pid = find_pid
        self._say = say
        self._url = destination.target.url  # for messages
        self._state = "up"  # so that nothing is said of an agent that works from the start
        self._pid: int | None = None  # found
        self._stop_at: float | None = None  # monotonic seconds
        self._end_at = 0.0  # monotonic seconds; the end's deadline once the agent was reached

    def stop(self) -> None:
        """Deliver what can be delivered at once, and end; may be called by a signal handler."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + STOP_SECONDS

    def run(self) -> None:
        """Return when the input has ended or `stop` was called, and the rest is delivered or given up."""
        delay = 0.0
        try:
            while self._has_work():
                since = None
                try:
                    link = self._connect()
                    since = time.monotonic()
                    with closing(link.sock):
                        return self._converse(link)
                except _Refused as refused:
                    self._enter("refused", f"the agent at {self._url} answers {refused}")
                    if self._is_ending:
                        return None
                    delay = LAST_DELAY
                except OSError as error:
                    lost = "no agent at" if since is None else "lost the agent at"
                    self._enter("away", f"{lost} {self._url} ({_reason(error)})")
                    # An agent that accepts and hangs up at once is not a success.
                    lived = 0.0 if since is None else time.monotonic() - since
                    delay = FIRST_DELAY if lived > delay else min(max(FIRST_DELAY, delay * 2), LAST_DELAY)
                self._pause(delay)
        except _TimeUp:
            if self._state == "up":
                self._say(f"no answer from the agent at {self._url}; the last report may be lost")
            else:
                self._say(f"gave up: the last reports did not reach the agent at {self._url}")
        return None

    def _enter(self, state: str, text: str) -> None:
        """Report a change of state, once."""
        if state != self._state:
            self._state = state
            self._say(text if state == "up" else f"{text}; retrying")

    # -- waiting ---------------------------------------------------------------------------------

    @property
    def _is_ending(self) -> bool:
        return self._stop_at is not None or self._backlog.ended_at is not None

    def _deadline(self) -> float | None:
        """Return when everything must be over; None while the input goes on."""
        limits = [self._stop_at] if self._stop_at is not None else []
        if self._backlog.ended_at is not None:
            limits.append(max(self._backlog.ended_at + END_SECONDS, self._end_at))
        return min(limits, default=None)

    def _extend(self) -> None:
        """Give the agent time to answer once it is reached after the input's end; only once."""
        self._end_at = self._end_at or time.monotonic() + END_SECONDS

    def _poll(self, sock: socket.socket | None, events: int, until: float | None) -> int:
        """Return the socket's events; 0 at `until` (monotonic seconds) or when the bell has rung.

        Raises: _TimeUp.
        """
        deadline = self._deadline()
        limit = min((at for at in (until, deadline) if at is not None), default=None)
        poll = select.poll()
        poll.register(self._bell.fd, select.POLLIN)
        if sock is not None:
            poll.register(sock, events)
        ready = dict(poll.poll(None if limit is None else max(0.0, limit - time.monotonic()) * 1000))
        if ready.pop(self._bell.fd, 0):
            self._bell.hush()
        if deadline is not None and time.monotonic() >= deadline:
            raise _TimeUp
        return next(iter(ready.values()), 0)

    def _wait(self, sock: socket.socket, events: int) -> None:
        """Return when the socket is ready. Raises: TimeoutError, _TimeUp."""
        until = time.monotonic() + _CONNECT_SECONDS
        while not self._poll(sock, events, until):
            if time.monotonic() >= until:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def _pause(self, delay: float) -> None:
        """Wait for the next attempt; when the input ends, return at once."""
        was_ending = self._is_ending
        until = time.monotonic() + (_END_DELAY if was_ending else delay)
        while time.monotonic() < until and self._is_ending == was_ending:
            self._poll(None, 0, until)

    def _has_work(self) -> bool:
        """Wait for the first report; return whether there is one."""
        while not self._backlog.newest and not self._is_ending:
            self._poll(None, 0, None)
        return bool(self._backlog.newest)

    # -- connecting ------------------------------------------------------------------------------

    def _connect(self) -> _Link:
        """Return a connection to the first address that accepts one. Raises: OSError, _TimeUp."""
        failure = OSError(errno.EADDRNOTAVAIL, "the name has no address")
        for family, kind, protocol, _, address in self._addresses():
            link = None
            try:
                link = _Link(socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol))
                self._open(link, link.sock, address)
            except OSError as error:
                failure = error
                if link is not None:
                    link.sock.close()
            else:
                if self._is_ending:
                    self._extend()
                return link
        raise failure

    def _open(self, link: _Link, sock: socket.socket, address: Any) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _VANISHED_MS)
        if (code := sock.connect_ex(address)) == errno.EINPROGRESS:
            self._wait(sock, select.POLLOUT)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and sock.getsockname() == sock.getpeername():
            code = errno.ECONNREFUSED  # TCP's simultaneous open: we connected to ourselves
        if code:
            raise OSError(code, os.strerror(code))
        if self._destination.target.https:
            link.start_tls(self._destination.target.host, self._wait)

    def _addresses(self) -> list[_Address]:
        """Return the host's addresses; a look-up can hang, so it has its own thread. Raises: OSError."""
        # As bytes: a str would load the codec for international names.
        host, port = self._destination.target.host.encode(), self._destination.target.port
        found: list[list[_Address] | OSError] = []

        def look_up() -> None:
            try:
                found.append(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
            except OSError as error:
                found.append(error)
            self._bell.ring()

        threading.Thread(target=look_up, daemon=True).start()
        until = time.monotonic() + _CONNECT_SECONDS
        while not found:
            self._poll(None, 0, until)
            if not found and time.monotonic() >= until:
                raise TimeoutError(errno.ETIMEDOUT, "name resolution timed out")
        if isinstance(found[0], OSError):
            raise found[0]
        return found[0]

    # -- one connection --------------------------------------------------------------------------

    def _converse(self, link: _Link) -> None:
        """Send reports until the input ends, and read the answer. Raises: OSError, _Refused, _TimeUp."""
        told = self._backlog.told
        first = told + (self._backlog.take(_BATCH) or self._backlog.newest)
        out = memoryview(request_head(self._destination, self._encoder()) + _chunk(first))
        received, finished = b"", False
        settled_at = time.monotonic() + _SETTLED_SECONDS
        while True:
            if not out and not finished:
                more, finished = self._next()
                out = memoryview(more)
            until = None if self._state == "up" else settled_at
            ready = self._poll(link.sock, select.POLLIN | (select.POLLOUT if out else 0), until)
            if ready & ~select.POLLOUT:
                data, at_end = link.receive()
                received += data
                if status := parse_status(received):
                    return self._judge(status, finished=finished)
                if at_end or len(received) >= _ANSWER_BYTES:
                    raise ConnectionResetError(errno.ECONNRESET, "connection closed")
            if ready & select.POLLOUT:
                out = out[link.send(out) :]
            elif out and self._is_ending:
                self._backlog.keep_newest()  # too slow for everything: send what matters next
            if time.monotonic() >= settled_at:
                self._is_back()

    def _next(self) -> tuple[bytes, bool]:
        """Return what to send next, and whether it ends the body."""
        ending = self._is_ending  # read first: a report that is put after an empty take must not be missed
        if batch := self._backlog.take(_BATCH):
            return _chunk(batch), False
        if ending:
            self._extend()
            return b"0\r\n\r\n", True
        return b"", False

    def _judge(self, status: int, *, finished: bool) -> None:
        """Return if the agent has accepted everything. Raises: _Refused, ConnectionError."""
        if not 200 <= status < 300:
            raise _Refused(status, shown=bool(self._destination.token()))
        if not finished:
            raise ConnectionError(errno.EPROTO, "answered before the end")
        self._is_back()

    def _is_back(self) -> None:
        self._enter("up", f"the agent at {self._url} is reachable now; sending")

    def _encoder(self) -> int | None:
        """Return the encoder's pid; the agent accepts it only from that process's machine."""
        if self._destination.pid is not None:
            return self._destination.pid
        if not self._is_ending:
            self._pid = self._find_pid() or self._pid
        return self._pid


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _reason(error: OSError) -> str:
    """Return a failure in a few words."""
    text = str(getattr(error, "verify_message", "") or error.strerror or error)
    return text[:1].lower() + text[1:]
