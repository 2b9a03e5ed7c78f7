"""Paces: held in real time and at twice that; as fast as it goes, from the first frame to the last."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from real.conftest import need
from real.windows import SMALL, STATIC, Asked, alone, noisy_clip, together

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = ("--pace", "max", "--preset", "medium", "--rate", "crf=23")


def test_twice_real_time_is_held(tmp_path: Path) -> None:
    """With either ffmpeg, a clip or the test picture, after a warm-up in which the newer one may hurry."""
    clip = noisy_clip(tmp_path / "clip.mkv", 60)
    after = ("--pace", "2x", "--preset", "ultrafast", "--rate", "crf=30", "--duration", "3")
    runs = together(
        tmp_path,
        Asked((), (*after, "--input", str(clip))),
        Asked(("--ffmpeg", STATIC), (*after, "--resolution", SMALL)),
        Asked(("--ffmpeg", STATIC, "--sink", "null"), (*after, "--input", str(clip), "--quality", "psnr")),
    )
    for done in runs:
        encode = done.only["encode"]
        assert 1.9 < encode["speed"] < 2.1
        assert encode["frames"] == pytest.approx(180, rel=0.05)
    (scores,) = runs[2].scores
    assert scores["frames"] == pytest.approx(180, rel=0.1)
    assert scores["psnr"]["average"] > 28


def timed(program: str, directory: Path) -> tuple[Path, Path]:
    """Return an ffmpeg that writes down what each encode of a clip takes, by the shell, and where."""
    wrapper, log = directory / "ffmpeg", directory / "times.log"
    wrapper.write_text(
        "#!/bin/bash\n"
        f'case "$*" in *-progress*clip.mkv*) ;; *) exec {program} "$@" ;; esac\n'
        "TIMEFORMAT='%R %U %S'\n"
        f'{{ time {program} "$@" 2>/dev/null; }} 2>>{log}\n'
    )
    wrapper.chmod(0o755)
    return wrapper, log


@pytest.mark.parametrize("is_new", [False, True])
def test_an_encode_takes_what_its_command_takes(tmp_path: Path, *, is_new: bool) -> None:
    """Its window is the encode's life, its frames are the clip's, its CPU seconds are the kernel's."""
    clip = noisy_clip(tmp_path / "clip.mkv", 150, size="426x240")
    program, log = timed(STATIC if is_new else need("ffmpeg"), tmp_path)
    before = ("--sink", "null", "--ffmpeg", str(program))
    scenario = alone(tmp_path, *HEAVY, "--input", str(clip), before=before).only
    wall, user, system = map(float, log.read_text().splitlines()[-1].split())
    encode = scenario["encode"]
    assert encode["frames"] == 150
    assert encode["media_seconds"] == pytest.approx(5)
    assert wall <= scenario["energy"]["seconds"] < 1.1 * wall + 0.3
    assert encode["cpu_seconds"]["encoder"] == pytest.approx(user + system, rel=0.05, abs=0.05)
    assert encode["speed"] == pytest.approx(5 / scenario["energy"]["seconds"], rel=0.01)


def test_a_damaged_clip_is_no_silent_short_encode(tmp_path: Path) -> None:
    """Unreadable from its middle on, or within: FFmpeg ends with 0, and the run says what is missing."""
    whole = noisy_clip(tmp_path / "whole.mkv", 90).read_bytes()
    short, holed = tmp_path / "short.mkv", tmp_path / "holed.mkv"
    half = len(whole) // 2
    short.write_bytes(whole[:half] + bytes(len(whole) - half))
    holed.write_bytes(whole[:half] + os.urandom(len(whole) // 20) + whole[half + len(whole) // 20 :])
    after = ("--pace", "max", "--preset", "ultrafast", "--rate", "crf=30")
    lacking, damaged, again = together(
        tmp_path,
        Asked((), (*after, "--input", str(short))),
        Asked((), (*after, "--input", str(holed))),
        Asked(("--ffmpeg", STATIC), (*after, "--input", str(short))),
    )
    for done in (lacking, again):
        said = " ".join((done.errors, *done.scenarios[0]["warnings"]))
        assert "of the 90 frames" in said or "of the 60 frames" in said or "damaged" in said
    said = " ".join((damaged.errors, *damaged.scenarios[0]["warnings"]))
    assert "damaged" in said


def test_what_decoding_and_scaling_take_is_told_apart(tmp_path: Path) -> None:
    """Three windows of a clip that is scaled: each takes more CPU time than the one before."""
    clip = noisy_clip(tmp_path / "clip.mkv", 120, size="640x360")
    words = ("--pace", "max", "--preset", "veryfast", "--rate", "crf=30", "--split", "--name", "x")
    done = alone(tmp_path, *words, "--input", str(clip), "--resolution", SMALL, before=("--sink", "null"))
    assert done.code == 0, done.errors
    assert [one["name"] for one in done.scenarios] == ["x:decode", "x:decode+scale", "x"]
    assert [one["status"] for one in done.scenarios] == ["ok"] * 3
    encodes = [one["encode"] for one in done.scenarios]
    assert [one["frames"] for one in encodes] == [120] * 3
    decode, scale, everything = (one["cpu_seconds"]["encoder"] for one in encodes)
    assert decode < scale < everything
