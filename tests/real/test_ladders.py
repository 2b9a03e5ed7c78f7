"""Ladders: one decode, several renditions, and what each of them weighs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from real.conftest import need
from real.windows import STATIC, Asked, alone, ffmpeg, noisy_clip, together

if TYPE_CHECKING:
    from pathlib import Path

LADDER = "320x180:crf=26,214x120:crf=26,160x90:crf=28"
MAX = ("--pace", "max", "--preset", "ultrafast")


def megabits(scenario: dict[str, Any]) -> dict[str, float]:
    return {one["rendition"]: one["megabits"] for one in scenario["encode"]["renditions"]}


@pytest.mark.parametrize("is_new", [False, True])
def test_every_rendition_weighs_what_its_file_does(tmp_path: Path, *, is_new: bool) -> None:
    """Files: their sizes. Here: the size of the same packets in a NUT file. A copy: the same again."""
    clip = noisy_clip(tmp_path / "clip.mkv", 90)
    with_it = ("--ffmpeg", STATIC if is_new else need("ffmpeg"))
    after = (*MAX, "--input", str(clip), "--ladder", LADDER)
    files, here, nowhere = together(
        tmp_path,
        Asked(("--sink", f"file:{tmp_path}/out_{{}}.mkv", *with_it), after),
        Asked(with_it, after),
        Asked(("--sink", "null", *with_it), (*after, "--quality", "psnr")),
    )
    assert files.only["encode"]["bytes_of"] == "matroska file"
    assert here.only["encode"]["bytes_of"] == "nut at the sink"
    assert nowhere.only["encode"]["bytes_of"] == "nut, a copy"
    counted, at_the_sink, copied = megabits(files.only), megabits(here.only), megabits(nowhere.only)
    assert list(counted) == ["180p", "120p", "90p"]
    for rendition, size in counted.items():
        (file,) = tmp_path.glob(f"out_*_{rendition}.mkv")
        assert size == pytest.approx(file.stat().st_size * 8e-6, rel=0.01)
        nut = tmp_path / f"{rendition}.nut"
        ffmpeg("-i", file, "-c", "copy", nut)
        assert at_the_sink[rendition] == pytest.approx(nut.stat().st_size * 8e-6, rel=0.01)
        assert copied[rendition] == pytest.approx(nut.stat().st_size * 8e-6, rel=0.01)
    encode = files.only["encode"]
    assert encode["achieved_kbps"] == pytest.approx(sum(counted.values()) / 3 * 1000, rel=0.001)
    assert encode["frames"] == 90


def test_a_ladder_in_real_time_comes_near_what_was_asked(tmp_path: Path) -> None:
    """Whoever counts: at the sink, a copy beside none and beside nginx, with what is kept or without."""
    clip = noisy_clip(tmp_path / "clip.mkv", 60)
    ladder = ("--ladder", "320x180:2M,214x120:1M,160x90:500k", "--preset", "ultrafast", "--duration", "4")
    after = (*ladder, "--input", str(clip))
    runs = together(
        tmp_path,
        Asked((), after),
        Asked(("--sink", "null"), (*after, "--quality", "psnr")),
        Asked(("--sink", "nginx", "--ffmpeg", STATIC), (*after, "--quality", "psnr")),
    )
    for done in runs:
        encode = done.only["encode"]
        assert encode["asked_kbps"] == 3500 + 3 * 96
        assert encode["achieved_kbps"] == pytest.approx(encode["asked_kbps"], rel=0.1)
        total = sum(one["achieved_kbps"] for one in encode["renditions"])
        assert total == pytest.approx(encode["achieved_kbps"], rel=0.01)
        assert encode["frames"] == pytest.approx(120, abs=3)
        asked = (2000, 1000, 500)
        for rendition, video in zip(encode["renditions"], asked, strict=True):
            assert rendition["achieved_kbps"] == pytest.approx(video + 96, rel=0.15), rendition
    for done in runs[1:]:
        assert [one["frames"] for one in done.scores] == [pytest.approx(120, abs=5)] * 3


@pytest.mark.parametrize("sink", ["embedded", "null"])
def test_encoders_of_five_codecs_share_one_decode(tmp_path: Path, sink: str) -> None:
    """A batch names a rendition each: all are counted, kept in a container that takes them, and scored."""
    clip = noisy_clip(tmp_path / "clip.mkv", 30)
    codecs = {
        "h264": ("180p", {"preset": "ultrafast"}),
        "h265": ("180p-2", {"preset": "ultrafast"}),
        "svtav1": ("120p", {"preset": "12"}),
        "vp9": ("90p", {}),
        "vvc": ("96p", {"preset": "faster"}),
    }
    sizes = ("320x180", "320x180", "214x120", "160x90", "160x96")
    outputs = [
        {"resolution": size, "encoder": name, "bitrate": "400k", **more}
        for size, (name, (_, more)) in zip(sizes, codecs.items(), strict=True)
    ]
    one = {"type": "single", "name": "mixed", "input": str(clip), "pace": "max", "outputs": outputs}
    file = tmp_path / "batch.json"
    file.write_text(json.dumps({"scenarios": [{**one, "stabilization": 0, "cooldown": 0}]}))
    words = ("--file", str(file), "--quality", "psnr")
    done = alone(tmp_path, *words, before=("--ffmpeg", STATIC, "--sink", sink), kind="batch")
    counted = megabits(done.only)
    assert list(counted) == [name for name, _ in codecs.values()]
    assert all(0.1 < amount < 2 for amount in counted.values()), counted
    assert [score["rendition"] for score in done.scores] == list(counted)
    assert all(score["frames"] == 30 and score["size"] == "320x180" for score in done.scores)
    assert all(score["psnr"]["average"] > 23 for score in done.scores)
