"""`powerbench measure` around a real ffmpeg: its frames, its joules, and nothing of it changed."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from real.conftest import BIN

if TYPE_CHECKING:
    from pathlib import Path

WORK = "-hide_banner -nostdin -re -f lavfi -i testsrc2=size=320x180:rate=30 -t 3 -c:v libx264 -f null -"


def measured(path: Path, *command: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    arguments = [str(BIN / "powerbench"), "measure", "--json", str(path), "--", *command]
    done = subprocess.run(
        arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    content: dict[str, Any] = json.loads(path.read_text())
    return content, done


def shape(stderr: str) -> list[str]:
    """Return what ffmpeg wrote, without the figures and addresses that no two runs share."""
    lines = re.split(r"[\r\n]+", re.sub(r"0x[0-9a-f]+", "ADDRESS", stderr.strip()))
    status = [line for line in lines if line.startswith("frame=")]
    return [line for line in lines if line not in status] + [re.sub(r"[\d.e+]+", "N", status[-1])]


def test_frames_are_counted_and_its_errors_are_as_they_were(ffmpeg: str, tmp_path: Path) -> None:
    """90 frames, joules a frame of the host and of its share, and the very stderr of a run without us."""
    command = [ffmpeg, *WORK.split()]
    alone = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True
    )
    content, done = measured(tmp_path / "cost.json", *command)
    assert (done.returncode, done.stdout) == (0, "")
    said, _, report = done.stderr.partition("\nEnergy of: ")
    assert shape(said) == shape(alone.stderr)
    assert "J/frame" in report
    assert "90 frames" in report
    (run,) = content["runs"]
    assert content["command"] == command  # as it was given
    assert run["frames"] == 90
    assert run["seconds"] == pytest.approx(3, abs=1)
    assert run["energy"]["joules"] > 0
    each = run["joules_per_frame"]
    assert each["all_of_the_host"]["joules"] == pytest.approx(run["energy"]["joules"] / 90)
    assert each["share"]["joules"] == pytest.approx(run["share"]["joules"] / 90)
    assert 0 < each["share"]["joules"] < each["all_of_the_host"]["joules"]


def test_a_progress_of_its_own_stays_its_own(ffmpeg: str, tmp_path: Path) -> None:
    """With -progress among its arguments ffmpeg gets no other, and there are no joules a frame."""
    content, done = measured(tmp_path / "cost.json", ffmpeg, "-progress", "pipe:1", *WORK.split())
    assert done.returncode == 0
    assert "progress=end" in done.stdout
    assert content["runs"][0]["frames"] is None
    assert "J/frame" not in done.stderr


def test_an_encode_that_fails_passes_its_code_on(ffmpeg: str, tmp_path: Path) -> None:
    """An input that is not there: ffmpeg's own words and its own exit code, and the report says so."""
    command = [ffmpeg, "-hide_banner", "-i", "/nonexistent.mp4", "-f", "null", "-"]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    content, done = measured(tmp_path / "cost.json", *command)
    assert done.returncode == alone.returncode == content["exit_code"] != 0
    assert done.stderr.startswith(alone.stderr)
    assert f"exit code {alone.returncode}" in done.stderr


@pytest.mark.parametrize("before", [["nice", "-n", "5"], ["timeout", "60", "env", "A=B"]])
def test_frames_are_counted_behind_nice_and_timeout(ffmpeg: str, tmp_path: Path, before: list[str]) -> None:
    """The descriptor of the progress passes through them."""
    content, done = measured(tmp_path / "cost.json", *before, ffmpeg, *WORK.split())
    assert (done.returncode, content["runs"][0]["frames"]) == (0, 90)


def test_repeats_of_an_encode_into_a_file(ffmpeg: str, tmp_path: Path) -> None:
    """README's command as it is printed: the second run overwrites the file of the first."""
    work = [*WORK.split()[:-3], str(tmp_path / "out.mp4")]
    command = [str(BIN / "powerbench"), "measure", "--repeat", "2", "--", ffmpeg, *work]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "90 frames" in done.stderr
    assert "got -y" in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
