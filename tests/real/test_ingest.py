"""A real ffmpeg and a real agent."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from real.conftest import agent, get, need, series, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = ["-re", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=30"]
ENCODE = ["-c:v", "libx264", "-preset", "ultrafast", "-f", "flv", "-flvflags", "no_duration_filesize"]


@contextmanager
def running(command: list[str] | str) -> Iterator[subprocess.Popen[bytes]]:
    shell = ["bash", "-c", command] if isinstance(command, str) else command
    process = subprocess.Popen(
        shell, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(10)


def test_a_live_ffmpeg_shows_its_rates_while_it_runs_and_none_after(ffmpeg: str, port: int) -> None:
    """-progress http://…/ingest shows live fps; after the end the stream is inactive, its totals stay."""
    page = f"http://127.0.0.1:{port}/metrics"
    url = f"http://127.0.0.1:{port}/ingest?stream=cam1"
    command = [ffmpeg, "-nostats", "-progress", url, *SOURCE, *ENCODE, "-y", "/dev/null"]
    label = '{stream="cam1"}'
    with agent(port), running(command) as encoder:
        wait_for(lambda: label in series(get(page), "ffmpeg_fps"), "ffmpeg_fps of cam1")
        wait_for(lambda: 25 < series(get(page), "ffmpeg_fps").get(label, 0) < 35, "30 frames a second")
        live = get(page)
        assert series(live, "ffmpeg_stream_active")[label] == 1
        assert series(live, "ffmpeg_bitrate_kbps")[label] > 10
        encoder.terminate()
        encoder.wait(10)
        wait_for(lambda: series(get(page), "ffmpeg_stream_active")[label] == 0, "the end of cam1")
        after = get(page)
        assert series(after, "ffmpeg_stream_stalled")[label] == 0
        assert label not in series(after, "ffmpeg_fps")
        assert series(after, "ffmpeg_frames_total")[label] >= series(live, "ffmpeg_frames_total")[label] > 0


@pytest.mark.parametrize("format_", ["text/plain", "application/openmetrics-text"])
def test_the_page_of_a_working_agent_passes_the_linter(ffmpeg: str, port: int, format_: str) -> None:
    """`curl` of an agent with a live stream: promtool has nothing to say of the text page."""
    promtool = need("promtool")
    curl = need("curl")
    page = f"http://127.0.0.1:{port}/metrics"
    url = f"http://127.0.0.1:{port}/ingest?stream=cam1"
    command = [ffmpeg, "-nostats", "-progress", url, *SOURCE, *ENCODE, "-y", "/dev/null"]
    with agent(port), running(command):
        wait_for(lambda: bool(series(get(page), "ffmpeg_fps")), "a live stream")
        got = subprocess.run([curl, "-sS", "-H", f"Accept: {format_}", page], capture_output=True, check=True)
    if format_ != "text/plain":
        assert got.stdout.endswith(b"# EOF\n")
        return
    linted = subprocess.run(
        [promtool, "check", "metrics"], input=got.stdout, capture_output=True, check=False
    )
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, b"", b"")


def test_an_agent_killed_in_mid_stream_leaves_the_encode_unharmed(
    ffmpeg: str, port: int, tmp_path: object
) -> None:
    """Fed through the guide's pipe form, ffmpeg encodes every frame although the agent dies halfway."""
    need("curl")
    out = f"{tmp_path}/out.flv"
    url = f"http://127.0.0.1:{port}/ingest?stream=cam1"
    command = (
        f"exec {ffmpeg} -nostats -stats_period 0.25 -progress pipe:3 {' '.join(SOURCE)} -t 6 "
        f"{' '.join(ENCODE)} -y {out} "
        f"3> >(curl -sS -H 'Expect:' -T - -X POST '{url}')"
    )
    page = f"http://127.0.0.1:{port}/metrics"
    with agent(port) as daemon, running(command) as encoder:
        wait_for(lambda: bool(series(get(page), "ffmpeg_fps")), "a live stream")
        daemon.kill()
        daemon.wait(10)
        assert encoder.wait(30) == 0
    probe = subprocess.run(
        [ffmpeg, "-hide_banner", "-i", out, "-map", "0:v", "-c", "copy", "-f", "null", "-"],
        capture_output=True,
        check=True,
    )
    assert b"frame=  180" in probe.stderr


def test_a_body_sent_afterwards_has_totals_alone(port: int) -> None:
    """The old form, `curl --data-binary` of everything at once, is accepted, and no rate is made of it."""
    curl = need("curl")
    body = "tests/captures/progress_5.1_rtmp.txt"
    url = f"http://127.0.0.1:{port}/ingest?stream=old"
    with agent(port):
        code = subprocess.run([curl, "-sS", "-f", "--data-binary", f"@{body}", url], check=False).returncode
        assert code == 0
        page = f"http://127.0.0.1:{port}/metrics"
        wait_for(lambda: bool(series(get(page), "ffmpeg_frames_total")), "the totals")
        assert not series(get(page), "ffmpeg_fps")
