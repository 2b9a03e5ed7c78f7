"""Where streams go: files, nginx, SRT, UDP, TCP; and what is said of ends that do not listen or read."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from real.conftest import free_port, need, wait_for
from real.test_nginx_rtmp import Nginx
from real.windows import SMALL, STATIC, Asked, Done, alone, command, noisy_clip, packets, together

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STREAM = ("--resolution", SMALL, "--preset", "ultrafast", "--bitrate", "500k", "--duration", "2")


@contextmanager
def receiving(url: str, file: Path) -> Iterator[None]:
    """Have an ffmpeg write what is sent there to a file."""
    ours = ("-hide_banner", "-nostdin", "-loglevel", "quiet", "-y", "-analyzeduration", "500000")
    process = subprocess.Popen([need("ffmpeg"), *ours, "-i", url, "-map", "0", "-c", "copy", str(file)])
    try:
        yield
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def test_frames_arrive_over_srt_udp_and_tcp(tmp_path: Path) -> None:
    """Whoever listens gets all of the window; of what tells no sender, the result says it is not counted."""
    asked, cases = [], []
    with ExitStack() as stack:
        for program in (need("ffmpeg"), STATIC):
            for kind, listen, send in (
                ("srt", "?mode=listener", ""),
                ("udp", "?timeout=20000000", "?pkt_size=1316"),
                ("tcp", "?listen=1", ""),
            ):
                url = f"{kind}://127.0.0.1:{free_port()}"
                file = tmp_path / f"{len(cases)}.mkv"
                stack.enter_context(receiving(url + listen, file))
                cases.append((kind, file))
                asked.append(Asked(("--sink", url + send, "--ffmpeg", program), STREAM))
        time.sleep(0.5)  # what listens cannot be asked whether it does
        runs = together(tmp_path, *asked)
    for (kind, file), done in zip(cases, runs, strict=True):
        assert done.only["sink"] == kind
        encode = done.only["encode"]
        assert encode["frames"] == pytest.approx(60, abs=4)
        assert ("what arrived is not counted" in encode["bytes_of"]) == (kind != "tcp")
        assert packets(file) >= 60, kind


def test_nginx_gets_each_stream_by_its_own_name(tmp_path: Path) -> None:
    """Two streams, and a ladder's renditions, are published as -1 and -2."""
    nginx = Nginx(tmp_path)
    nginx.start()
    ladder = ("--ladder", "320x180:500k,160x90:200k", "--preset", "ultrafast", "--duration", "3")
    try:
        seen: set[str] = set()
        both = (
            Asked(("--sink", nginx.address("pair")), ("--count", "2", *STREAM), "multi"),
            Asked(("--sink", nginx.address("rungs")), ladder),
        )
        runs: list[Done] = []
        running = threading.Thread(target=lambda: runs.extend(together(tmp_path, *both)))
        running.start()
        while running.is_alive():
            seen |= set(nginx.page())
            running.join(0.2)
    finally:
        nginx.stop()
    assert {"pair-1", "pair-2", "rungs-1", "rungs-2"} <= seen
    assert not {"pair", "rungs"} & seen
    assert [done.only["status"] for done in runs] == ["ok", "ok"]
    assert all(one["megabits"] > 0 for one in runs[1].only["encode"]["renditions"])


def test_files_have_the_names_of_their_scenarios_and_are_never_replaced(tmp_path: Path) -> None:
    """Two streams leave two files; the same command then measures nothing, and touches neither."""
    to_file = ("--sink", f"file:{tmp_path}/out.mkv")
    words = ("--count", "2", "--name", "cam", *STREAM)
    assert alone(tmp_path / "a", *words, before=to_file, kind="multi").only
    files = {file.name: file.read_bytes() for file in tmp_path.glob("out*.mkv")}
    assert sorted(files) == ["out_cam-1.mkv", "out_cam-2.mkv"]
    assert all(packets(tmp_path / name) >= 60 for name in files)
    again = alone(tmp_path / "b", *words, before=to_file, kind="multi")
    assert again.code == 2
    assert again.errors.count("\n") == 1
    assert "out_cam-1.mkv is there already" in again.errors
    assert not list(again.directory.glob("*"))
    assert {file.name: file.read_bytes() for file in tmp_path.glob("out*.mkv")} == files


@contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    """Mount a file system of so many bytes, in memory."""
    where.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)]
    mounted = subprocess.run([need("mount"), *options], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield where
    finally:
        subprocess.run([need("umount"), "--lazy", str(where)], check=False)


def test_a_disk_without_room_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    """Exit 69, one line that says how much is needed; without scores the same run needs next to nothing."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        refused = alone(disk, *STREAM, "--quality", "psnr")
        assert refused.code == 69
        assert refused.errors.count("\n") == 1
        assert f"no room in {disk}" in refused.errors
        assert "MiB are needed" in refused.errors
        assert not list(refused.directory.glob("test_results*"))
        assert alone(disk, *STREAM, "--quality", "none").only


def test_a_disk_that_becomes_full_costs_the_score_alone(tmp_path: Path) -> None:
    """Full for a second of the window: the figures stand, and it is said why there is no score."""
    clip = noisy_clip(tmp_path / "clip.mkv", 40)
    words = ("--input", str(clip), "--preset", "ultrafast", "--bitrate", "2M", "--duration", "4")
    with small_disk(tmp_path / "disk", "16m") as disk:
        asked = Asked((), (*words, "--quality", "psnr", "--name", "x"))
        run = subprocess.Popen(
            command(disk, asked), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: "x: 4 s" in (run.stdout.readline() if run.stdout else ""), "the window opens")
        filler = disk / "filler"
        with suppress(OSError):
            filler.write_bytes(bytes(2**25))
        assert shutil.disk_usage(disk).free < 2**20
        time.sleep(2)
        filler.unlink()
        out, errors = run.communicate(timeout=60)
        scenario = Done(run.returncode, out, errors, disk).only
    assert scenario["encode"]["frames"] == pytest.approx(120, abs=6)
    assert scenario["encode"]["quality"]["streams"] == []
    (why,) = scenario["encode"]["quality"]["missing"].values()
    assert "could not be kept: No space left on device" in why


@contextmanager
def deaf() -> Iterator[str]:
    """Accept a connection, and never read."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:
        held: list[socket.socket] = []
        stack.callback(lambda: [one.close() for one in held])

        def accept() -> None:
            with suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_ends_that_do_not_answer_fail_their_scenario_in_time(tmp_path: Path) -> None:
    """Nobody there: what to start. Somebody who never reads: it stands still, by name. Never a hang."""
    clip = noisy_clip(tmp_path / "clip.mkv", 30)
    heavy = ("--input", str(clip), "--encoder", "copy", "--duration", "20", "--name", "stuck")
    nobody = [f"{kind}://127.0.0.1:{free_port()}" for kind in ("srt", "tcp")]
    begun = time.monotonic()
    with deaf() as one, deaf() as other:
        runs = together(
            tmp_path,
            *(Asked(("--sink", url, "--ffmpeg", STATIC), STREAM) for url in nobody),
            *(Asked(("--sink", url, "--ffmpeg", need("ffmpeg")), STREAM) for url in nobody),
            Asked(("--sink", one), heavy),
            Asked(("--sink", other, "--ffmpeg", STATIC), (*heavy, "--quality", "psnr")),
        )
    assert time.monotonic() - begun < 60
    for done in runs:
        assert done.code == 1
        assert done.errors.count("\n") == 1, done.errors
    for done, url in zip(runs, nobody * 2, strict=False):
        assert f"nothing is listening at {url}; start a receiver there" in done.errors
    for done in runs[4:]:
        assert "stuck failed: stuck stands still: no new frame since" in done.errors
