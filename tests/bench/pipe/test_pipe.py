"""`powerbench pipe`: whole reports from any bytes; the encoder never waits, whatever the agent does."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CAPTURES

from powerbench_agent.bench.pipe.backlog import HELD, Backlog
from powerbench_agent.bench.pipe.cli import find_writer
from powerbench_agent.bench.pipe.cutter import MAX_BLOCK, Cutter
from powerbench_agent.bench.pipe.forward import Destination, parse_status, request_head
from powerbench_agent.bench.pipe.target import Target, parse_target
from powerbench_agent.core.identity import StreamIdentity, stated, tell
from powerbench_agent.core.progress import MAX_LINE, ProgressParser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CAPTURES = sorted(CAPTURES.glob("[psi][rtd]*_*"))  # progress_*, stderr_*, status_*, identity_*
COMMAND = Path(sys.executable).with_name("powerbench")
PATIENCE = 20.0


def block(frame: int, *, last: bool = False) -> bytes:
    state = "end" if last else "continue"
    return b"frame=%d\nfps=30.0\nout_time_us=%d\nspeed=1x\nprogress=%b\n" % (frame, frame, state.encode())


def blocks(size: int) -> bytes:
    """Return about this many bytes of whole reports; the last one ends the run."""
    count = size // len(block(10000))
    return b"".join(block(10000 + n, last=n == count - 1) for n in range(count))


def cut(*pieces: bytes) -> list[bytes]:
    cutter = Cutter()
    return [report for piece in pieces for report in cutter.feed(piece)] + cutter.close()


def parsed(*pieces: bytes) -> list[object]:
    parser = ProgressParser()
    return [report for piece in pieces for report in parser.feed(piece)]


def split(data: st.DataObject, content: bytes) -> list[bytes]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=12)))
    return [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]


# -- bytes to reports --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
@given(data=st.data())
def test_a_capture_cut_anywhere_gives_the_same_whole_reports(path: Path, data: st.DataObject) -> None:
    """However a real capture is split, its reports are the same and tell the agent the same."""
    content = path.read_bytes()
    reports = cut(*split(data, content))
    assert reports == cut(content)
    assert parsed(*reports) == parsed(content)


LINES = st.lists(
    st.sampled_from(
        [
            b"frame=1",
            b"fps=25.0",
            b"out_time_us=40000",
            b"total_size=N/A",
            b"progress=continue",
            b"progress=end",
            b"progress=maybe",
            b"frame=   12 fps= 25 q=28.0 size=      48kB time=00:00:01.50 bitrate= 262.1kbits/s speed=1.2x  ",
            b"size=      48kB time=00:00:01.50 bitrate= 262.1kbits/s speed=1.2x",
            b"[libx264 @ 0x55] frame I:2 Avg QP:20.00",
            b"=",
            b" ",
            b"",
            b"\xff\x00=1",
            b"x" * (MAX_LINE + 9),
            b"frame=" + b"1" * MAX_LINE,
            b"Input #0, lavfi, from 'x':",
            b"Output #0, flv, to 'rtmp://host/live/key':",
            b"  Stream #0:0: Video: h264, yuv420p, 320x180, 25 fps",
            b"  Stream #0:0: Video: h264, yuv420p, 640x360, 25 fps",
            b"  Stream #0:0 -> #0:0 (rawvideo (native) -> h264 (libx264))",
        ]
    ),
    max_size=30,
)


@given(data=st.data(), lines=LINES)
def test_a_mixture_cut_anywhere_gives_whole_reports(data: st.DataObject, lines: list[bytes]) -> None:
    """Of blocks, status lines and noise, each report is exactly one for the agent, and none is missing."""
    ends = data.draw(st.lists(st.sampled_from([b"\n", b"\r", b"\r\n"]), min_size=30, max_size=30))
    content = b"".join(line + end for line, end in zip(lines, ends, strict=False))
    reports = cut(*split(data, content))
    assert reports == cut(content)
    assert [len(parsed(report)) for report in reports] == [1] * len(reports)
    assert parsed(*reports) == parsed(content)


def test_line_ends_of_two_bytes_may_come_apart() -> None:
    """A report is complete at the first byte, and the same whether the second has arrived or not."""
    content = (block(1) + block(2)).replace(b"\n", b"\r\n")
    assert cut(*(content[n : n + 1] for n in range(len(content)))) == cut(content)
    assert len(cut(content)) == 2


def test_status_lines_beside_blocks_are_dropped() -> None:
    """A new connection never begins with rounded figures if the run has exact ones."""
    status = b"frame=   12 fps= 25 q=28.0 size=      48kB time=00:00:01.50 bitrate= 262.1kbits/s\r"
    assert cut(status + block(1) + status + block(2)) == [status, block(1), block(2)]


LOGGERS: dict[str, Callable[[bytes], bytes]] = {
    "docker logs -t": lambda line: b"2026-11-30T02:40:33.312000000Z " + line,
    "level": lambda line: b"[info] " + line,
    "json": lambda line: json.dumps({"log": line.decode()}).encode() + b"\n",
}


@pytest.mark.parametrize("log", LOGGERS.values(), ids=LOGGERS)
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_what_a_logger_has_put_around_a_line_is_not_forwarded(
    path: Path, log: Callable[[bytes], bytes]
) -> None:
    """The agent gets FFmpeg's own lines, and they tell it the same as the log itself would."""
    content = path.read_bytes()
    logged = b"".join(map(log, content.splitlines(keepends=True)))
    reports = cut(logged)
    assert not any(report.startswith((b"2026", b"[info]", b"{")) for report in reports)
    assert parsed(*reports) == parsed(content)


LOG = b"""\
Input #0, lavfi, from 'testsrc2':
  Stream #0:0: Video: rawvideo, yuv420p, 640x360, 25 fps
Output #0, flv, to 'rtmp://host/live/secret':
  Metadata:
    title           : secret
  Stream #0:0: Video: h264 (High) ([7][0][0][0] / 0x0007), yuv420p, 320x180, q=2-31, 25 fps, 1k tbn
    Metadata:
      encoder         : Lavc59.37.100 libx264
"""
SAID = tell(StreamIdentity("h264", "libx264", "", "320x180", "25", "flv"))


def test_what_a_stream_is_is_forwarded_without_its_key() -> None:
    """It comes before the first report after it, once, in lines that hold no URL and no title."""
    assert cut(block(1) + LOG + block(2) + block(3)) == [block(1), SAID + block(2), block(3)]
    assert b"secret" not in SAID


def test_what_a_stream_is_ends_with_its_run() -> None:
    """The next run is told again, even if it is the same, and also if nothing is known of it."""
    last = block(9, last=True)
    assert cut(LOG + last + LOG + last) == [SAID + last, SAID + last]
    assert cut(LOG + last + block(1) + block(2)) == [SAID + last, tell(None) + block(1), block(2)]
    assert cut(last + last) == [last, last]


def test_the_backlog_knows_what_has_been_said_of_the_stream() -> None:
    """What a report that was taken or dropped said of the stream is kept for the next connection."""
    backlog = Backlog(lambda: None, 2 * len(block(1)))
    backlog.put([block(1), SAID + block(2)])
    assert backlog.told == b""
    backlog.put([block(3)])
    assert (backlog.told, backlog.take(1)) == (SAID, block(3))
    backlog.put([tell(None) + block(4)])
    backlog.take(1)
    assert backlog.told == tell(None)


def test_a_summary_is_forwarded_with_the_end_that_it_marks() -> None:
    """A run whose last status line looks like any other ends by its summary, before or after that line."""
    line = b"size=       1kB time=00:00:01.00 bitrate= 128.0kbits/s speed=1x\n"
    summary = b"video:0kB audio:27kB subtitle:0kB other streams:0kB global headers:0kB\n"
    announced = b"[out#0/mp4 @ 0x5] " + summary
    assert cut(line + summary + b"noise\n") == [line, summary]
    assert cut(line.replace(b"size", b"Lsize") + summary) == [line.replace(b"size", b"Lsize")]
    assert cut(announced + line) == [announced + line]
    assert cut(block(1) + line + summary) == [block(1)]


@settings(max_examples=30)
@given(pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=8), repeat=st.integers(1, 500))
def test_no_input_makes_the_cutter_remember_much(pieces: list[bytes], repeat: int) -> None:
    """Whatever arrives, and however much, what is kept stays small."""
    cutter = Cutter()
    for _ in range(repeat):
        for piece in pieces:
            cutter.feed(piece)
    cutter.feed(b"a=b\n" * 10_000 + b"y" * 10_000)
    assert len(pickle.dumps(cutter)) < 4 * (MAX_BLOCK + MAX_LINE)


def test_a_block_that_is_too_long_is_dropped_as_a_whole() -> None:
    """No part of it comes out, and the next block is whole again."""
    assert cut(b"stream_0_0_q=1.0\n" * MAX_BLOCK + block(1) + block(2)) == [block(2)]


def test_the_end_of_the_input_completes_a_last_line_but_no_half_report() -> None:
    """`progress=end` without its line end is a report; a figure that may be cut short is not."""
    assert cut(block(1) + block(2)[:-1]) == [block(1), block(2)]
    assert cut(block(1) + block(2)[:-4]) == [block(1)]
    assert cut(b"frame=  120 fps= 25 size= 48kB time=00:00:0") == []


@given(st.lists(st.lists(st.binary(min_size=1, max_size=300), max_size=5), max_size=20), st.integers(1, 500))
def test_the_backlog_keeps_the_newest_whole_reports(puts: list[list[bytes]], limit: int) -> None:
    """It holds the newest reports, whole and in order: as many as fit, and at least one."""
    rings: list[None] = []
    backlog = Backlog(lambda: rings.append(None), limit)
    for reports in puts:
        backlog.put(reports)
    every = [report for reports in puts for report in reports]
    held: list[bytes] = []
    while taken := backlog.take(0):
        held.append(taken)
    assert held == every[len(every) - len(held) :]
    assert sum(map(len, held)) <= limit or len(held) == 1
    assert bool(held) == bool(every)
    assert backlog.newest == (every[-1] if every else b"")
    assert len(rings) == sum(map(bool, puts))


def test_only_the_newest_report_is_kept_if_there_is_no_time() -> None:
    """At the end all reports but the newest are dropped, and that one can still be sent."""
    backlog = Backlog(lambda: None, 1000)
    backlog.put([block(1), block(2)])
    backlog.put([block(3)])
    backlog.keep_newest()
    assert (backlog.take(1000), backlog.take(1000)) == (block(3), b"")
    backlog.keep_newest()
    assert backlog.newest == block(3)


# -- addresses and heads -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("http://127.0.0.1:9510", Target(https=False, host="127.0.0.1", port=9510, prefix="")),
        ("localhost:9999/", Target(https=False, host="localhost", port=9999, prefix="")),
        ("worker1", Target(https=False, host="worker1", port=9510, prefix="")),
        ("http://worker1", Target(https=False, host="worker1", port=80, prefix="")),
        ("https://worker1/a b/c/", Target(https=True, host="worker1", port=443, prefix="/a%20b/c")),
        ("[::1]:9510", Target(https=False, host="::1", port=9510, prefix="")),
        ("http://x:1/p/ingest", Target(https=False, host="x", port=1, prefix="/p")),
        ("http://bücher.example", Target(https=False, host="xn--bcher-kva.example", port=80, prefix="")),
    ],
)
def test_a_url_as_people_write_it_is_understood(text: str, target: Target) -> None:
    """Scheme, port and path may be omitted; a URL that ends in /ingest is accepted, too."""
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text", ["", "ftp://x", "http://", "http://u:secret@x", "http://x/?token=secret", "x:99999", "a b", "::1"]
)
def test_an_invalid_url_is_refused_without_showing_its_secrets(text: str) -> None:
    """The message for a URL that cannot be used does not contain its password or query."""
    with pytest.raises(ValueError, match=r".") as refused:
        parse_target(text)
    assert "secret" not in str(refused.value)


def test_a_request_has_its_names_encoded_and_its_token_in_a_header() -> None:
    """Quotes, spaces, slashes and Unicode arrive intact; the request line, which is logged, has no token."""
    destination = Destination(
        parse_target("[fe80::1%eth0]:1/p"), 'a "b"/ü&x=1', "beef", None, lambda: "t0ken"
    )
    first, *headers = request_head(destination, 42).decode().split("\r\n")
    query = "stream=a%20%22b%22%2F%C3%BC%26x%3D1&run=beef&pid=42"
    assert first == f"POST /p/ingest?{query} HTTP/1.1"
    assert "Host: [fe80::1]:1" in headers
    assert "Authorization: Bearer t0ken" in headers
    assert headers[-2:] == ["", ""]


def test_a_request_states_what_the_user_gave() -> None:
    """What is known of the stream is in the query; what is not is left out."""
    known = stated({"preset": "slow", "fps": "30000/1001", "encoder": "x265+"})
    destination = Destination(parse_target("x"), "cam1", "beef", identity=known)
    line = request_head(destination, None).partition(b"\r\n")[0]
    assert line == b"POST /ingest?stream=cam1&run=beef&encoder=x265%2B&preset=slow&fps=29.97 HTTP/1.1"


def test_an_answer_counts_once_its_head_is_complete() -> None:
    """The status counts from the empty line on; a peer that does not speak HTTP is refused."""
    answer = b"HTTP/1.1 403 Forbidden\r\nX: y\r\n\r\n"
    assert [parse_status(answer[:n]) for n in range(len(answer))] == [None] * len(answer)
    assert parse_status(answer + b"no") == 403
    with pytest.raises(ConnectionError):
        parse_status(b"SSH-2.0")


# -- who writes --------------------------------------------------------------------------------------


def add_process(procfs: Path, pid: int, name: str, start: int, fds: dict[int, tuple[str, int]]) -> None:
    """Write one process: its name, its start in ticks, and fd → (target, flags)."""
    for folder in ("fd", "fdinfo"):
        (procfs / str(pid) / folder).mkdir(parents=True)
    (procfs / str(pid) / "stat").write_text(f"{pid} ({name}) S" + " 0" * 18 + f" {start} 0\n")
    for fd, (link, flags) in fds.items():
        (procfs / f"{pid}/fd/{fd}").symlink_to(link)
        (procfs / f"{pid}/fdinfo/{fd}").write_text(f"pos:\t0\nflags:\t{flags:07o}\nmnt_id:\t13\n")


@pytest.fixture
def procfs(tmp_path: Path) -> Path:
    """Return a /proc in which we are process 100 and read pipe 7 as fd 0; we hold its other end, too."""
    add_process(tmp_path, 100, "powerbench", 50, {0: ("pipe:[7]", os.O_RDONLY), 3: ("pipe:[7]", os.O_WRONLY)})
    (tmp_path / "self").symlink_to("100")
    (tmp_path / "meminfo").touch()
    return tmp_path


def test_the_encoder_is_the_ffmpeg_that_writes(procfs: Path) -> None:
    """Of all processes that hold the pipe for writing, an ffmpeg is chosen, even if a shell is younger."""
    add_process(procfs, 200, "bash", 90, {1: ("pipe:[7]", os.O_WRONLY)})
    add_process(procfs, 201, "ffmpeg-7.1) x", 60, {3: ("pipe:[7]", os.O_WRONLY | os.O_APPEND)})
    add_process(procfs, 202, "ffmpeg", 99, {0: ("pipe:[7]", os.O_RDONLY), 1: ("pipe:[8]", os.O_WRONLY)})
    assert find_writer(procfs, 0) == 201


def test_without_an_ffmpeg_it_is_the_youngest_writer(procfs: Path) -> None:
    """Of processes with other names, the last one started is chosen; the reading end does not count."""
    assert find_writer(procfs, 0) is None
    add_process(procfs, 300, "encode.sh", 10, {1: ("pipe:[7]", os.O_WRONLY)})
    add_process(procfs, 200, "gst-launch", 90, {1: ("pipe:[7]", os.O_WRONLY)})
    add_process(procfs, 400, "other", 95, {0: ("pipe:[7]", os.O_RDONLY)})
    assert find_writer(procfs, 0) == 200


def test_what_may_not_be_read_is_skipped(procfs: Path) -> None:
    """Processes without fds, without an entry in fdinfo or without a stat do no harm."""
    (procfs / "150").mkdir()
    add_process(procfs, 151, "gone", 70, {1: ("pipe:[7]", os.O_WRONLY)})
    (procfs / "151/fdinfo/1").unlink()
    add_process(procfs, 152, "bare", 71, {1: ("pipe:[7]", os.O_WRONLY)})
    (procfs / "152/stat").unlink()
    add_process(procfs, 153, "ffmpeg", 72, {1: ("pipe:[7]", os.O_WRONLY)})
    assert find_writer(procfs, 0) == 153
    assert find_writer(procfs, 5) is None
    assert find_writer(procfs / "nowhere", 0) is None


def test_a_file_has_no_writer(procfs: Path) -> None:
    """Only a pipe leads to an encoder."""
    (procfs / "100/fd/4").symlink_to("/var/log/x")
    add_process(procfs, 200, "ffmpeg", 90, {1: ("/var/log/x", os.O_WRONLY)})
    assert find_writer(procfs, 4) is None


def test_a_real_pipes_writer_is_found() -> None:
    """On this machine's own /proc, the child that writes to us is found."""
    with subprocess.Popen(
        [shutil.which("cat") or "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin
        assert child.stdout
        child.stdin.write(b"x\n")
        child.stdin.flush()
        assert child.stdout.readline()  # it is cat by now
        assert find_writer(Path("/proc"), child.stdout.fileno()) == child.pid
        child.stdin.close()


# -- the process -------------------------------------------------------------------------------------


class Piped(NamedTuple):
    """A `powerbench pipe` process, and where its output goes."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def write(self, data: bytes) -> None:
        """Write as an encoder does, but fail if an encoder would have been blocked."""
        assert self.process.stdin
        fd = self.process.stdin.fileno()
        os.set_blocking(fd, False)
        while data:
            assert select.select([], [fd], [], PATIENCE / 2)[1], "the encoder was blocked"
            data = data[os.write(fd, data[:65536]) :]

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def ended(self, seconds: float = PATIENCE) -> int:
        return self.process.wait(seconds)

    def said(self) -> list[str]:
        return self.err.read_text().splitlines()


class Conversation:
    """The agent's side of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.got = b""
        sock.settimeout(PATIENCE)

    def until(self, what: bytes) -> bytes:
        while what not in self.got:
            data = self.sock.recv(4096)
            assert data, f"{what!r} never came, but {self.got[-300:]!r}"
            self.got += data
        return self.got

    def run(self) -> bytes:
        found = re.search(rb"run=(\w+)", self.until(b"\r\n\r\n"))
        assert found
        return found[1]

    def body(self) -> bytes:
        """Return the content of the whole chunks so far."""
        _, _, rest = self.got.partition(b"\r\n\r\n")
        body = b""
        while match := re.match(rb"([0-9a-f]+)\r\n", rest):
            size, start = int(match[1], 16), match.end()
            if size == 0 or len(rest) < start + size:
                break
            body, rest = body + rest[start : start + size], rest[start + size + 2 :]
        return body

    def answer(self, status: str = "204 No Content") -> None:
        self.sock.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Agent:
    """A listener whose connections a test scripts one by one."""

    def __init__(self, port: int = 0) -> None:
        self.sock = socket.create_server(("127.0.0.1", port))
        self.sock.settimeout(PATIENCE)
        self.url = f"127.0.0.1:{self.sock.getsockname()[1]}"

    def accept(self) -> Conversation:
        return Conversation(self.sock.accept()[0])


def wait_for(what: Callable[[], object], why: str) -> None:
    patience = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < patience, f"never: {why}"
        time.sleep(0.01)


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent()
    with agent.sock:
        yield agent


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Callable[..., Piped]]:
    """Return a function that starts `powerbench pipe --stream cam1` against a URL."""
    started: list[subprocess.Popen[bytes]] = []

    def start(url: str, *arguments: str, command: tuple[str, ...] = (), **environ: str) -> Piped:
        out, err = tmp_path / f"out{len(started)}", tmp_path / f"err{len(started)}"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*command, str(COMMAND), "pipe", "--stream", "cam1", "--url", url, *arguments],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **environ},
            )
        started.append(process)
        return Piped(process, out, err)

    yield start
    for process in started:
        process.kill()
        with suppress(OSError):
            process.communicate()


def test_reports_arrive_while_the_input_goes_on(
    agent: Agent, pipe: Callable[..., Piped], tmp_path: Path
) -> None:
    """Each report arrives at once, with the writer's pid and the token; nothing is printed."""
    token = tmp_path / "token"
    token.write_text("t0ken\n")
    run = pipe(agent.url, POWERBENCH_TOKEN_FILE=str(token))
    run.write(block(1) + b"frame=2\nfps=")
    talk = agent.accept()
    head = talk.until(block(1)).partition(b"\r\n\r\n")[0]
    assert re.match(rb"POST /ingest\?stream=cam1&run=\w{16}&pid=%d HTTP/1.1\r\n" % os.getpid(), head)
    assert b"\r\nAuthorization: Bearer t0ken" in head
    run.write(b"30.0\nout_time_us=2\nspeed=1x\nprogress=continue\n")
    talk.until(block(2))
    run.write(block(3, last=True))
    run.end()
    talk.until(b"\r\n0\r\n\r\n")
    talk.answer()
    assert run.ended() == 0
    assert talk.body() == block(1) + block(2) + block(3, last=True)
    assert run.said() == []
    assert run.out.read_bytes() == b""


@pytest.mark.parametrize("accepts", [False, True])
def test_an_agent_that_hangs_blocks_nothing(
    agent: Agent, pipe: Callable[..., Piped], *, accepts: bool
) -> None:
    """5 MB of progress pass through unchanged although the agent reads nothing."""
    content = blocks(5_000_000)
    run = pipe(agent.url, "--tee")
    run.write(content[:1000])
    talk = agent.accept() if accepts else None
    run.write(content[1000:])
    wait_for(lambda: run.out.stat().st_size >= len(content), "all of it on standard output")
    assert run.out.read_bytes() == content
    if talk is None:
        run.process.kill()
        return
    run.end()
    assert run.ended(8) == 0
    assert len(run.said()) == 1
    talk.sock.close()


def test_a_broken_connection_is_made_again_as_the_same_run(agent: Agent, pipe: Callable[..., Piped]) -> None:
    """After a reset the newest report is sent again, whole, under the same run; two lines say so.

    What was said of the stream is sent again before it.
    """
    run = pipe(agent.url)
    run.write(LOG + block(1))
    first = agent.accept()
    first.until(SAID + block(1))
    name = first.run()
    first.reset()
    second = agent.accept()
    second.until(block(1))
    assert second.run() == name
    run.write(block(2, last=True))
    run.end()
    second.until(b"\r\n0\r\n\r\n")
    second.answer()
    assert run.ended() == 0
    assert second.body().removeprefix(SAID) == SAID + block(1) + block(2, last=True)
    lost, back = run.said()
    assert re.search(r"lost the agent at http://127.0.0.1:\d+ \(.*\); retrying", lost)
    assert "is reachable now" in back


@pytest.mark.parametrize(("token", "words"), [("", "give the agent's token"), ("t", "rejects the token in")])
def test_a_refusal_is_reported_once_with_what_to_do(
    agent: Agent, pipe: Callable[..., Piped], tmp_path: Path, token: str, words: str
) -> None:
    """A 403 gives one line that names the token file and says if a token was sent; reading continues."""
    (tmp_path / "token").write_text(token)

    def refuse() -> None:
        with suppress(OSError):
            while True:
                talk = agent.accept()
                talk.until(b"\r\n\r\n")
                talk.answer("403 Forbidden")

    threading.Thread(target=refuse, daemon=True).start()
    run = pipe(agent.url, POWERBENCH_TOKEN_FILE=str(tmp_path / "token") if token else "")
    run.write(block(1))
    wait_for(run.said, "a word about the refusal")
    run.write(blocks(500_000))
    run.end()
    assert run.ended() == 0
    assert len(run.said()) == 1
    assert "403" in run.said()[0]
    assert words in run.said()[0]
    assert "--token-file" in run.said()[0]


def test_an_agent_that_comes_late_gets_what_is_held(free_port: int, pipe: Callable[..., Piped]) -> None:
    """The newest reports wait for an absent agent; its absence and its arrival are each reported once."""
    run = pipe(f"127.0.0.1:{free_port}")
    content = blocks(200_000)
    run.write(content)
    wait_for(run.said, "a word about the absence")
    agent = Agent(free_port)
    with agent.sock:
        talk = agent.accept()
        run.end()
        talk.until(b"\r\n0\r\n\r\n")
        talk.answer()
        assert run.ended() == 0
    body = talk.body()
    assert content.endswith(body)
    assert HELD - 1000 < len(body) <= HELD
    assert body.startswith(b"frame=")
    absent, there = run.said()
    assert f"no agent at http://127.0.0.1:{free_port} (connection refused); retrying" in absent
    assert "is reachable now" in there


def test_an_agent_that_never_comes_is_not_an_error(free_port: int, pipe: Callable[..., Piped]) -> None:
    """It exits 0 soon after the input's end, and says that the reports did not arrive."""
    run = pipe(f"127.0.0.1:{free_port}")
    run.write(block(1, last=True))
    run.end()
    assert run.ended(6) == 0
    absent, lost = run.said()
    assert "no agent" in absent
    assert "did not reach" in lost


def test_a_slow_agent_gets_whole_reports_and_the_last_one(agent: Agent, pipe: Callable[..., Piped]) -> None:
    """An agent that reads too little misses old reports, but gets no half report, and gets the last one."""
    agent.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    content = blocks(2_000_000)
    run = pipe(agent.url)
    run.write(content[:5000])
    talk = agent.accept()
    for at in range(5000, len(content), 100_000):
        run.write(content[at : at + 100_000])
        talk.got += talk.sock.recv(1000)
    run.end()
    threads = Path(f"/proc/{run.process.pid}/task")
    wait_for(lambda: len(list(threads.iterdir())) == 1, "the reader's end")
    talk.until(b"\r\n0\r\n\r\n")
    talk.answer()
    assert run.ended() == 0
    frames = [int(text) for text in re.findall(rb"frame=(\d+)\n", talk.body())]
    assert talk.body() == b"".join(block(n, last=n == frames[-1]) for n in frames)
    assert frames == sorted(set(frames))
    assert max(b - a for a, b in itertools.pairwise(frames)) > 1  # there was no time for all of it
    assert content.endswith(block(frames[-1], last=True))


def test_ctrl_c_waits_for_the_encoders_last_report(agent: Agent, pipe: Callable[..., Piped]) -> None:
    """SIGINT, which ffmpeg gets as well, does not end the process before the input ends."""
    run = pipe(agent.url)
    run.write(block(1))
    talk = agent.accept()
    talk.until(block(1))
    run.process.send_signal(signal.SIGINT)
    talk.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):  # an end of the body would come at once
        talk.sock.recv(1)
    talk.sock.settimeout(PATIENCE)
    run.write(block(2, last=True))
    talk.until(block(2, last=True))
    run.end()
    talk.until(b"\r\n0\r\n\r\n")
    talk.answer()
    assert run.ended() == 0


def test_sigterm_ends_the_body_and_the_process(agent: Agent, pipe: Callable[..., Piped]) -> None:
    """On SIGTERM while the input goes on, it finishes what it is sending and ends on the agent's answer."""
    run = pipe(agent.url)
    run.write(block(1))
    talk = agent.accept()
    talk.until(block(1))
    run.process.terminate()
    talk.until(b"\r\n0\r\n\r\n")
    talk.answer()
    assert run.ended() == 0
    assert run.said() == []


def test_sigterm_does_not_wait_for_a_hung_agent_or_output(agent: Agent, pipe: Callable[..., Piped]) -> None:
    """If the agent reads nothing and standard output is stuck, SIGTERM ends it within a second or so."""
    script = ("bash", "-c", 'exec "$@" 1> >(exec sleep 5)', "bash")
    run = pipe(agent.url, "--tee", command=script)
    run.write(blocks(60_000) + b"x\n" * 10_000)
    talk = agent.accept()
    talk.until(b"progress=")
    began = time.monotonic()
    run.process.terminate()
    assert run.ended() == 0
    assert time.monotonic() - began < 2  # 1 s by contract, and a machine under load
    talk.sock.close()


def test_forwarding_continues_when_the_output_goes_away(agent: Agent, pipe: Callable[..., Piped]) -> None:
    """With --tee into a reader that exits, everything is still forwarded."""
    run = pipe(agent.url, "--tee", command=("bash", "-c", 'exec "$@" 1> >(exec true)', "bash"))
    run.write(block(1))
    talk = agent.accept()
    talk.until(block(1))
    run.write(blocks(300_000))
    run.end()
    talk.until(b"\r\n0\r\n\r\n")
    talk.answer()
    assert run.ended() == 0
    assert run.said() == []
    assert talk.body().endswith(b"progress=end\n")


def test_another_descriptor_is_read(agent: Agent, tmp_path: Path) -> None:
    """--fd reads what -progress pipe:N writes, --pid is passed on; an input that ends at once is sent."""
    read, write = os.pipe()
    os.write(write, block(1, last=True))
    os.close(write)
    command = [COMMAND, "pipe", "--stream", "a b", "--fd", str(read), "--pid", "77", "--url", agent.url]
    with (tmp_path / "err").open("wb") as err, subprocess.Popen(command, pass_fds=[read], stderr=err) as run:
        os.close(read)
        talk = agent.accept()
        assert re.match(rb"POST /ingest\?stream=a%20b&run=\w+&pid=77 ", talk.until(b"\r\n0\r\n\r\n"))
        talk.answer()
        assert run.wait(PATIENCE) == 0
    assert talk.body() == block(1, last=True)


def test_https_is_used_and_verified(
    agent: Agent, pipe: Callable[..., Piped], certificate: tuple[str, str]
) -> None:
    """Reports are sent to an agent behind TLS only if its certificate is trusted."""
    trusted, _ = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    stranger = pipe(f"https://{agent.url}")
    stranger.write(block(1))
    with pytest.raises(ssl.SSLError):
        context.wrap_socket(agent.accept().sock, server_side=True).recv(1)
    wait_for(stranger.said, "a word about the certificate")
    assert "self-signed certificate" in stranger.said()[0]
    stranger.process.kill()
    run = pipe(f"https://{agent.url}", SSL_CERT_FILE=trusted)
    run.write(block(1))
    talk = Conversation(context.wrap_socket(agent.accept().sock, server_side=True))
    talk.until(block(1))
    run.end()
    talk.until(b"\r\n0\r\n\r\n")
    talk.answer()
    assert run.ended() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["--stream"]),
        (["--stream", ""], 2, ["--stream", "empty"]),
        (["--stream", "x", "--fd", "-1"], 2, ["--fd"]),
        (["--stream", "x", "--pid", "0"], 2, ["--pid"]),
        (["--stream", "x", "--pid", "me"], 2, ["--pid", "'me'"]),
        (["--stream", "x", "--url", "udp://x"], 2, ["--url", "udp://x", "http://"]),
        (["--stream", "x", "--resolution", "720p"], 2, ["--resolution 720p", "1280x720"]),
        (["--stream", "x", "--preset", "very fast"], 2, ["--preset very fast", "veryfast"]),
        (["--stream", "x", "--fps", ""], 2, ["--fps", "29.97"]),
        (["--stream", "x", "--token-file", "/nonexistent/t"], 78, ["--token-file", "No such file"]),
        (["--stream", "x", "--token-file", "/dev/null"], 78, ["--token-file", "holds no token"]),
        (["--stream", "x", "--token-file", ""], 2, ["--token-file", "must name a file"]),
        (["--stream", "x", "--fd", "77"], 69, ["77", "not open for reading"]),
        (["--stream", "x", "--fd", "1"], 69, ["1", "not open for reading"]),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], code: int, words: list[str]) -> None:
    """One line says what is wrong, and the exit code fits."""
    done = subprocess.run(
        [COMMAND, "pipe", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("powerbench pipe: ")
    assert [word for word in words if word not in done.stderr] == []


def test_an_input_without_progress_is_reported(free_port: int, pipe: Callable[..., Piped]) -> None:
    """Input without a single report is a mistake worth a line, but not a failure; no agent is contacted."""
    run = pipe(f"127.0.0.1:{free_port}")
    run.write(b"frame\nhello\n")
    run.end()
    assert run.ended() == 0
    assert len(run.said()) == 1
    assert "no FFmpeg progress" in run.said()[0]


def test_it_is_light() -> None:
    """One runs beside every encoder: neither this verb nor the others load anything heavy for it."""
    program = (
        "import sys\nfrom powerbench_agent.bench.cli import main\n"
        "assert main(['pipe', '--stream', 'x']) == 0\n"
        "heavy = {'aiohttp', 'asyncio', 'email', 'http', 'msgspec', 'rich', 'ssl', 'subprocess'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
