"""A real ffmpeg through `powerbench pipe` into a real agent."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from real.conftest import BIN, agent, get, need, series, wait_for

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = "-re -f lavfi -i testsrc2=size=320x180:rate=30"
ENCODE = "-c:v libx264 -preset ultrafast -f flv -flvflags no_duration_filesize"
LABEL = '{stream="cam1"}'
FORMS = {
    "pipe": "{ffmpeg} -nostats -stats_period 0.25 -progress pipe:1 {work} | {pipe}; exit ${{PIPESTATUS[0]}}",
    "descriptor": "exec {ffmpeg} -nostats -stats_period 0.25 -progress pipe:3 {work} 3> >({pipe} --pid $$)",
    "stderr": "{ffmpeg} -stats_period 0.25 {work} 2> >({pipe} --tee >&2)",
}


def frames(ffmpeg: str, path: Path) -> bytes:
    """Return ffmpeg's last word on how many frames a file has."""
    command = [ffmpeg, "-hide_banner", "-i", str(path), "-map", "0:v", "-c", "copy", "-f", "null", "-"]
    return subprocess.run(command, capture_output=True, check=True).stderr


@pytest.mark.parametrize("form", FORMS)
def test_an_agent_killed_in_mid_run_costs_no_frame_and_is_found_again(
    ffmpeg: str, port: int, tmp_path: Path, form: str
) -> None:
    """As --help has it: live fps, every frame although the agent is killed, and fps from the next one."""
    out, err = tmp_path / "out.flv", tmp_path / "err"
    work = f"{SOURCE} -t 12 {ENCODE} -y {out}"
    pipe = f"{BIN}/powerbench pipe --stream cam1 --url 127.0.0.1:{port}"
    command = FORMS[form].format(ffmpeg=ffmpeg, work=work, pipe=pipe)
    page = f"http://127.0.0.1:{port}/metrics"
    with (
        err.open("wb") as stderr,
        subprocess.Popen([need("bash"), "-c", command], stdin=subprocess.DEVNULL, stderr=stderr) as encoder,
    ):
        with agent(port) as daemon:
            wait_for(lambda: 25 < series(get(page), "ffmpeg_fps").get(LABEL, 0) < 35, "30 frames a second")
            daemon.kill()
            daemon.wait(10)
        with agent(port):
            wait_for(lambda: 25 < series(get(page), "ffmpeg_fps").get(LABEL, 0) < 35, "the stream again")
            assert encoder.wait(30) == 0
            wait_for(lambda: series(get(page), "ffmpeg_stream_active")[LABEL] == 0, "the end of cam1")
            assert series(get(page), "ffmpeg_total_frames")[LABEL] == 360
    assert b"frame=  360" in frames(ffmpeg, out)
    said = [line for line in err.read_text().splitlines() if line.startswith("powerbench pipe: ")]
    assert ["reachable now" in line for line in said[-2:]] == [False, True]


def test_without_any_agent_the_encode_is_whole(ffmpeg: str, port: int, tmp_path: Path) -> None:
    """An encode that nobody watches loses no frame and ends by itself."""
    out = tmp_path / "out.flv"
    command = [ffmpeg, "-nostats", "-progress", "pipe:1", *SOURCE.split(), "-t", "2", *ENCODE.split()]
    pipe = [f"{BIN}/powerbench", "pipe", "--stream", "cam1", "--url", f"127.0.0.1:{port}"]
    with subprocess.Popen(
        [*command, "-y", str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as encoder:
        done = subprocess.run(pipe, stdin=encoder.stdout, capture_output=True, check=False, timeout=30)
        assert encoder.wait(10) == 0
    assert done.returncode == 0
    assert b"no agent at" in done.stderr
    assert b"frame=   60" in frames(ffmpeg, out)
