"""Real live sources on loopback as inputs of `powerbench run`, by each ffmpeg of this machine.

A run mostly waits: all of them go at the same time, each from a source of its own.
"""

from __future__ import annotations

import functools
import json
import re
import signal
import socket
import socketserver
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from real.conftest import BIN, free_port, need, wait_for
from real.test_nginx_rtmp import Nginx

from powerbench_agent.bench.cli import parser
from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.plan.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(240)

SECRET = "s3cr3tkey1"
PATIENCE = 150  # seconds for a run, of many at a time on a busy machine
QUIET = ("-hide_banner", "-nostdin", "-loglevel", "error")
PICTURE = ("-f", "lavfi", "-i", "testsrc2=size=320x180:rate=30")
TONE = ("-f", "lavfi", "-i", "sine=sample_rate=48000")
CODECS = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "15", "-pix_fmt", "yuv420p", "-c:a", "aac")
HOSTILE = ("file://{clip}", "file:{clip}", "subfile,,start,0,end,0,,:{clip}", "file:///etc/passwd")


class Source:
    """An ffmpeg that sends a picture; it is started again if it ends, as a single client may have left."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._stopped = threading.Event()
        self.process = self._start()
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _keep(self) -> None:
        while True:
            self.process.wait()
            if self._stopped.wait(0.1):
                return
            self.process = self._start()

    def stop(self) -> None:
        """End it by its process id, for good."""
        self._stopped.set()
        self.process.kill()
        self._keeper.join(10)


class Ended(NamedTuple):
    """How a run ended."""

    code: int
    said: str
    results: dict[str, Any]
    text: str  # of the results file

    @property
    def scenario(self) -> dict[str, Any]:
        """The only scenario."""
        (found,) = self.results["scenarios"]
        assert isinstance(found, dict)
        return found


class Case(NamedTuple):
    """A run to come: its source, and what becomes of that in the window."""

    url: str
    source: Source | None
    fate: str  # "lives", "dies" or "freezes"
    words: tuple[str, ...] = ()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """Serve a directory's files; yield the URL."""
    handler = functools.partial(_Silent, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def make_clip(path: Path, seconds: int) -> str:
    command = [need("ffmpeg"), *QUIET, *PICTURE, *TONE, "-t", f"{seconds}", *CODECS, str(path)]
    subprocess.run(command, check=True, timeout=60)
    return str(path)


class Sources:
    """Starts sources; all are stopped at the end."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._web = stack.enter_context(served(directory))
        self._nginx = Nginx(directory)
        self._nginx.start()
        stack.callback(self._nginx.stop)
        self._clip = make_clip(directory / "loop.ts", 5)
        make_clip(directory / "film.mkv", 30)

    def case(self, kind: str, fate: str = "lives") -> Case:
        """Start a source of this kind."""
        url, words = f"127.0.0.1:{free_port()}", ()
        if kind == "file":
            return Case(f"{self._web}/film.mkv?token={SECRET}", None, fate)
        if kind == "rtmp":
            url = f"rtmp://{url}/live/{SECRET}"
            send = ["-f", "flv", "-listen", "1", url]
        elif kind == "nginx":
            url = self._nginx.address(SECRET)
            send, words = ["-f", "flv", url], ("--sink", self._nginx.address("out"))
        elif kind == "srt":
            url = f"srt://{url}?passphrase={SECRET}"
            send = ["-f", "mpegts", f"{url}&mode=listener"]
        elif kind == "udp":
            url = f"udp://{url}"
            send = ["-f", "mpegts", f"{url}?pkt_size=1316"]
        elif kind == "tcp":
            url = f"tcp://{url}"
            send, words = ["-f", "mpegts", f"{url}?listen=1"], ("--sink", "embedded")
        else:
            place = self._directory / f"{kind}-{fate}-{free_port()}"
            place.mkdir()
            url = f"{self._web}/{place.name}/index.m3u8"
            send = ["-f", "hls", "-hls_time", "1", "-hls_flags", "delete_segments", f"{place}/index.m3u8"]
        loop = ["-re", "-stream_loop", "-1", "-i", self._clip, "-c", "copy"]
        source = Source([need("ffmpeg"), *QUIET, *loop, *send])
        self._stack.callback(source.stop)
        if kind == "hls":
            wait_for((place / "index.m3u8").exists, "a playlist")
        return Case(url, source, fate, words)


def run(ffmpeg: str, case: Case, directory: Path) -> Ended:
    """Measure a stream of a source, and let what happens to that happen once the window has begun."""
    seconds = "3" if case.fate == "lives" else "20"
    common = ("--ffmpeg", ffmpeg, "--output-dir", str(directory), "--progress", "--sink", "null", *case.words)
    times = ("--duration", seconds, "--stabilization", "1", "--cooldown", "0")
    what = ("single", "--name", "cam", "--preset", "ultrafast", "--input", case.url, *times)
    process = subprocess.Popen(
        [str(BIN / "powerbench"), "run", *common, *what],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    said = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line == f"cam: {seconds} s\n" and case.source is not None:
                if case.fate == "dies":
                    case.source.stop()
                elif case.fate == "freezes":
                    case.source.process.send_signal(signal.SIGSTOP)
        code = process.wait()
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()
    text = next((file.read_text() for file in directory.glob("*.json")), "")
    return Ended(code, "".join(said), json.loads(text or "{}"), text)


@pytest.fixture(scope="module")
def new_ffmpeg() -> str:
    """Return the ffmpeg of the extra, which is a newer one than a distribution's."""
    return str(pytest.importorskip("imageio_ffmpeg", reason="the extra is not installed").get_ffmpeg_exe())


LIVING = [
    *((kind, "old") for kind in ("rtmp", "nginx", "srt", "udp", "tcp", "file", "hls")),
    *((kind, "new") for kind in ("rtmp", "srt", "udp", "hls")),
]
ABSENT = ("rtmp", "srt", "udp", "tcp", "http")
DYING = [("rtmp", "dies", "old"), ("rtmp", "dies", "new"), ("rtmp", "freezes", "old")]


class Round(NamedTuple):
    """What became of all runs, by kind, fate and ffmpeg, and of asking sources that are not there."""

    runs: dict[tuple[str, ...], Ended]
    refusals: dict[str, tuple[str, str]]  # URL without key, and what was said


def planned(ffmpeg: str, url: str) -> None:
    make_plan(parser("run").parse_args(["run", "--ffmpeg", ffmpeg, "single", "--input", url]))


def ask_nobody(ffmpeg: str, scheme: str) -> tuple[str, str]:
    """Ask a source that is not there; return its URL, as far as it may be shown, and what was said."""
    url = f"{scheme}://127.0.0.1:{free_port()}"
    with pytest.raises(NotHere) as refused:
        planned(ffmpeg, url + {"rtmp": f"/live/{SECRET}", "http": f"/film?token={SECRET}"}.get(scheme, ""))
    return url, str(refused.value)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory, new_ffmpeg: str) -> Round:
    """Return how everything ended that takes its time: all of it goes at once."""
    need("nginx")
    binaries = {"old": need("ffmpeg"), "new": new_ffmpeg}
    keys = [*((kind, "lives", which) for kind, which in LIVING), *DYING]
    with ExitStack() as stack:
        sources = Sources(tmp_path_factory.mktemp("sources"), stack)
        pool = stack.enter_context(ThreadPoolExecutor(len(keys) + len(ABSENT)))
        refusals = {scheme: pool.submit(ask_nobody, binaries["old"], scheme) for scheme in ABSENT}
        pending = {}
        for kind, fate, which in keys:
            case = sources.case(kind, fate)
            place = tmp_path_factory.mktemp("out")
            pending[kind, fate, which] = pool.submit(run, binaries[which], case, place)
        runs = {key: future.result() for key, future in pending.items()}
        return Round(runs, {scheme: future.result() for scheme, future in refusals.items()})


@pytest.mark.parametrize(("kind", "which"), LIVING)
def test_a_live_source_is_measured(every: Round, kind: str, which: str) -> None:
    """A window of frames at the source's own size and rate; the URL's secrets are nowhere."""
    ended = every.runs[kind, "lives", which]
    assert ended.code == 0, ended.said
    scenario = ended.scenario
    assert scenario["encode"]["frames"] > 45, ended.said
    assert (scenario["resolution"], scenario["fps"], scenario["changes"]) == ("320x180", 30, [])
    assert scenario["input_kind"] == "live"
    assert scenario["input"].partition("://")[0] in ("rtmp", "srt", "udp", "tcp", "http")
    assert SECRET not in ended.said + ended.text


@pytest.mark.parametrize(("kind", "fate", "which"), DYING)
def test_a_source_that_goes_fails_by_name(every: Round, kind: str, fate: str, which: str) -> None:
    """Killed or frozen in the window: exit 1 within seconds, and the input is named without its key."""
    ended = every.runs[kind, fate, which]
    assert ended.code == 1, ended.said
    error = ended.scenario["error"]
    assert f"input {kind}://127.0.0.1:" in error
    is_still = "stands still: no new frame" in error
    assert is_still or "ended, or cut the connection, after" in error
    assert is_still or fate == "dies"
    assert SECRET not in ended.said + ended.text


@pytest.mark.parametrize("scheme", ABSENT)
def test_a_source_that_is_not_there_is_not_waited_for(every: Round, scheme: str) -> None:
    """One line with its name, within the time limits."""
    url, refused = every.refusals[scheme]
    assert re.match(rf"input: {re.escape(url)}.*: (cannot be read|sent no picture)[^\n]*$", refused), refused
    assert SECRET not in refused


@contextmanager
def said_over_tcp(content: str) -> Iterator[str]:
    """Say the same to everyone who connects; yield the URL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(content.encode())
            self.request.shutdown(socket.SHUT_WR)
            self.request.recv(1)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.server_address[1]}/index.m3u8"
        finally:
            server.shutdown()
            thread.join()


def playlist(name: str) -> str:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{name}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize("which", ["old", "new"])
def test_a_playlist_opens_no_file_of_this_machine(new_ffmpeg: str, which: str, tmp_path: Path) -> None:
    """Not one that could be played, by any of FFmpeg's ways to name it; over HTTP the same clip is read.

    Over TCP, FFmpeg itself would open it: what may be opened is said by us alone.
    """
    ffmpeg = need("ffmpeg") if which == "old" else new_ffmpeg
    public = tmp_path / "public"
    public.mkdir()
    clip = make_clip(tmp_path / "private.ts", 2)
    with served(public) as web:
        for number, name in enumerate(HOSTILE):
            hostile = playlist(name.format(clip=clip))
            (public / f"{number}.m3u8").write_text(hostile)
            with said_over_tcp(hostile) as tcp:
                for url in (f"{web}/{number}.m3u8", tcp):
                    with pytest.raises(NotHere, match=r"^input: .*: cannot be read"):
                        planned(ffmpeg, url)
        make_clip(public / "public.ts", 2)
        (public / "good.m3u8").write_text(playlist("public.ts"))
        with pytest.raises(NotHere, match="is 2 s long, and warm-up and measurement take"):
            planned(ffmpeg, f"{web}/good.m3u8")
