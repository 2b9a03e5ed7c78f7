"""Paces: held in real time and at twice that; as fast as it goes, from the first frame to the last."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest
from real.conftest import need
from real.windows import SMALL, STATIC, Asked, alone, noisy_clip, together

from powerbench_agent.bench.cli import parser
from powerbench_agent.bench.load.containers import StreamTarget
from powerbench_agent.bench.load.encoder import encoder_command
from powerbench_agent.bench.load.ffmpeg import find_ffmpeg
from powerbench_agent.bench.plan.plan import make_plan

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


class Alone(NamedTuple):
    """What a command took by itself."""

    wall: float
    cpu: float


def measured(command: list[str]) -> Alone:
    """Run a command and have the kernel say what it used."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = code
    assert code == 0
    return Alone(time.monotonic() - begun, used.ru_utime + used.ru_stime)


@pytest.mark.parametrize("is_new", [False, True])
def test_an_encode_takes_what_its_command_takes(tmp_path: Path, *, is_new: bool) -> None:
    """Its window is the encode, its frames are the clip's, its CPU seconds are the kernel's."""
    clip = noisy_clip(tmp_path / "clip.mkv", 150, size="426x240")
    program = STATIC if is_new else need("ffmpeg")
    words = (*HEAVY, "--input", str(clip))
    plan = make_plan(parser().parse_args(["run", "--ffmpeg", program, "single", *words]))
    ffmpeg = asyncio.run(find_ffmpeg(program))
    command = encoder_command(ffmpeg, plan.scenarios[0], [StreamTarget("null", "matroska")], 1)
    before = measured(command)
    scenario = alone(tmp_path, *words, before=("--sink", "null", "--ffmpeg", program)).only
    after = measured(command)
    encode = scenario["encode"]
    assert encode["frames"] == 150
    assert encode["media_seconds"] == pytest.approx(5)
    wall = scenario["energy"]["seconds"]
    assert 0.8 * min(before.wall, after.wall) < wall < 1.5 * max(before.wall, after.wall)
    cpu = (before.cpu + after.cpu) / 2
    assert encode["cpu_seconds"]["encoder"] == pytest.approx(cpu, rel=0.15)
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
