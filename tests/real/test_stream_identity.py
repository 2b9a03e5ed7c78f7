"""What real runs of both FFmpegs say of themselves, through `powerbench pipe` into a real agent."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from real.conftest import BIN, agent, get, need, series, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 640 * 360


@pytest.fixture(params=["installed", "static"])
def either(request: pytest.FixtureRequest) -> str:
    """Return an ffmpeg: this machine's, and the one of the extra."""
    if request.param == "installed":
        return need("ffmpeg")
    return str(pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe())


@contextmanager
def ended(encoder: subprocess.Popen[bytes]) -> Iterator[None]:
    """End an encoder if a test fails."""
    try:
        yield
    except BaseException:
        encoder.kill()
        raise


def info(page: str) -> dict[str, str]:
    """Return the labels of the one info series; none without it."""
    found = series(get(page), "ffmpeg_stream_info")
    assert len(found) <= 1
    return dict(re.findall(r'(\w+)="([^"]*)"', "".join(found)))


def test_what_stderr_says_outlives_the_agent(either: str, port: int, tmp_path: Path) -> None:
    """A ladder is its first output, scaled, with the user's preset; a restarted agent knows it again."""
    work = (
        f"{either} -stats_period 0.25 -re -f lavfi -i testsrc2=size=320x180:rate=30000/1001:duration=8 "
        "-filter_complex '[0:v]split=2[a][b];[a]scale=640:360[c]' "
        f"-map '[c]' -c:v libx264 -preset ultrafast -y {tmp_path}/a.ts "
        f"-map '[b]' -c:v mpeg4 -y {tmp_path}/b.mp4"
    )
    pipe = f"{BIN}/powerbench pipe --stream cam1 --preset ultrafast --url 127.0.0.1:{port}"
    page = f"http://127.0.0.1:{port}/metrics"
    expected = {
        "stream": "cam1",
        "codec": "h264",
        "encoder": "libx264",
        "preset": "ultrafast",
        "resolution": "640x360",
        "fps": "29.97",
        "container": "mpegts",
    }
    command = [need("bash"), "-c", f"exec {work} 2> >({pipe} --pid $$)"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as encoder:
        with agent(port) as daemon, ended(encoder):
            wait_for(lambda: info(page) == expected, "what the stream is")
            daemon.kill()
            daemon.wait(10)
        with agent(port), ended(encoder):
            wait_for(lambda: info(page) == expected, "what the stream is, again")
            assert encoder.wait(30) == 0
            label = '{stream="cam1"}'
            wait_for(lambda: series(get(page), "ffmpeg_stream_active")[label] == 0, "the end")
            frames = series(get(page), "ffmpeg_frames_total")[label]
            assert 235 <= frames <= 242
            pixels = series(get(page), "ffmpeg_megapixels_total")[label]
            assert pixels == pytest.approx(frames * SIZE / 1e6)
            assert info(page) == expected


def test_a_query_states_what_progress_does_not_say(either: str, port: int) -> None:
    """`-progress URL` can state the stream in its URL; the next run, with none, has no info."""
    page = f"http://127.0.0.1:{port}/metrics"
    url = f"http://127.0.0.1:{port}/ingest?stream=cam1"
    work = [either, "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=30:duration=1"]
    with agent(port):
        query = "&encoder=wrapped&resolution=640x360&fps=30000/1000&preset=%0A"
        subprocess.run([*work, "-progress", url + query, "-f", "null", "-"], check=True)
        wait_for(lambda: bool(info(page)), "what the stream is")
        assert info(page) == {"stream": "cam1", "encoder": "wrapped", "resolution": "640x360", "fps": "30"}
        assert series(get(page), "ffmpeg_megapixels_total") == {'{stream="cam1"}': 30 * SIZE / 1e6}
        subprocess.run([*work, "-progress", url, "-f", "null", "-"], check=True)
        wait_for(lambda: not info(page), "the next run")
        assert not series(get(page), "ffmpeg_megapixels_total")
        assert series(get(page), "ffmpeg_frames_total") == {'{stream="cam1"}': 60}
