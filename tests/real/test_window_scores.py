"""The scores of what was encoded in a window, against what a plain FFmpeg finds of the same frames."""

from __future__ import annotations

import math
import subprocess
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import pytest
from real.conftest import free_port, need
from real.windows import STATIC, Asked, Plain, alone, ffmpeg, noisy_clip, packets, together

from powerbench_agent.bench.quality.choose import inspect
from powerbench_agent.bench.quality.frames import list_numbers, map_frames
from powerbench_agent.bench.quality.score import SCALER, score
from powerbench_agent.bench.quality.side import Side

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HALF = 0.0101
LOOP = 40  # frames of a clip that is shorter than its window
ULTRAFAST = ("--preset", "ultrafast")
X265 = (
    "--encoder",
    "h265",
    *ULTRAFAST,
    "--encoder-options",
    "x265-params=open-gop=1\\:keyint=20\\:bframes=3",
)


class Written(NamedTuple):
    """A stream into a file."""

    ending: str
    rate: str
    is_new: bool  # whether the newer ffmpeg encodes it
    encoder: tuple[str, ...]


FILES = (
    Written("mkv", "30", False, ("--preset", "veryfast", "--bitrate", "2M")),  # noqa: FBT003 - a table
    Written("ts", "24", False, (*ULTRAFAST, "--rate", "crf=24")),  # noqa: FBT003
    Written("mp4", "30000/1001", True, ("--preset", "veryfast", "--rate", "crf=24")),  # noqa: FBT003
    Written("flv", "60", True, (*ULTRAFAST, "--rate", "crf=24")),  # noqa: FBT003
    Written("nut", "25", True, (*X265, "--rate", "crf=24")),  # noqa: FBT003
)


def test_a_file_that_stays_scores_as_plain_ffmpeg_says(tmp_path: Path) -> None:
    """In every container, at every rate, over the end of a looped clip: the same frames, the same scores."""
    asked = []
    for one in FILES:
        clip = noisy_clip(tmp_path / f"clip_{one.ending}.mkv", LOOP, one.rate)
        before = [
            "--sink",
            f"file:{tmp_path}/out.{one.ending}",
            "--ffmpeg",
            STATIC if one.is_new else need("ffmpeg"),
        ]
        after = ["--input", str(clip), "--duration", "2", "--quality", "vmaf,psnr,ssim", *one.encoder]
        asked.append(Asked(before, after))
    for one, done in zip(FILES, together(tmp_path, *asked), strict=True):
        (scores,) = done.scores
        first, frames = scores["first_frame"], scores["frames"]
        assert first > 0
        assert frames == pytest.approx(2 * float(Fraction(one.rate)), rel=0.1, abs=3), one
        clip = tmp_path / f"clip_{one.ending}.mkv"
        plain = Plain(tmp_path / f"out.{one.ending}", clip, first, frames, clip_frames=LOOP)
        expected = plain.scores()
        assert scores["psnr"]["average"] == pytest.approx(expected["psnr"], abs=HALF), one
        assert scores["ssim"]["average"] == pytest.approx(expected["ssim"], abs=HALF), one
        assert scores["vmaf"]["mean"] == pytest.approx(expected["vmaf"], abs=HALF), one
        assert expected["psnr"] > plain.scores(shift=1)["psnr"] + 3, one


@contextmanager
def received(*urls: str) -> Iterator[None]:
    """Have somebody take what is sent to these addresses."""
    ours = ("-hide_banner", "-nostdin", "-loglevel", "quiet", "-y")
    started = [
        subprocess.Popen([need("ffmpeg"), *ours, "-i", url, "-c", "copy", "-f", "null", "-"]) for url in urls
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_whatever_the_sink_frames_are_paired(tmp_path: Path) -> None:
    """Over RTMP, NUT, SRT, UDP, into nginx and none: a good encode is near its clip, in every one."""
    clip = noisy_clip(tmp_path / "clip.mkv", LOOP)
    srt, udp = (f"127.0.0.1:{free_port()}" for _ in range(2))
    old = need("ffmpeg")
    good = (*ULTRAFAST, "--rate", "crf=8")
    av1 = ("--encoder", "svtav1", "--preset", "12", "--rate", "crf=8")
    cases = (
        ("embedded", old, good),
        ("embedded", STATIC, good),
        ("embedded", old, av1),
        ("null", STATIC, good),
        ("nginx", old, good),
        (f"srt://{srt}", STATIC, good),
        (f"udp://{udp}?pkt_size=1316", old, good),
    )
    asked = [
        Asked(
            ("--sink", sink, "--ffmpeg", program),
            ("--input", str(clip), "--duration", "2", "--quality", "psnr", *encoder),
        )
        for sink, program, encoder in cases
    ]
    with received(f"srt://{srt}?mode=listener", f"udp://{udp}?timeout=90000000"):
        runs = together(tmp_path, *asked)
    for case, done in zip(cases, runs, strict=True):
        (scores,) = done.scores
        assert scores["psnr"]["average"] > 35, case
        assert scores["frames"] == pytest.approx(60, abs=8), case
        assert scores["dropped"] == 0, case


def test_an_encoder_that_skips_frames_is_not_paired_wrongly(tmp_path: Path) -> None:
    """OpenH264 drops frames to hold a rate: they are left out of both sides, or there is no score."""
    clip = noisy_clip(tmp_path / "clip.mkv", LOOP)
    before = ("--ffmpeg", STATIC, "--sink", f"file:{tmp_path}/out.mkv")
    skips = ("--encoder", "openh264", "--bitrate", "1500k", "--duration", "2", "--quality", "psnr")
    quality = alone(tmp_path, *skips, "--input", str(clip), before=before).only["encode"]["quality"]
    if "missing" in quality:
        assert all("frames were dropped" in why for why in quality["missing"].values())
        return
    (scores,) = quality["streams"]
    assert scores["psnr"]["average"] > 26  # 21 dB is that of wrong frames


async def test_a_frame_that_is_missing_costs_no_other_frame(tmp_path: Path) -> None:
    """With one packet taken out, the score is that of all other frames, to the last digit."""
    clip = noisy_clip(tmp_path / "clip.mkv", LOOP)
    whole, holed = tmp_path / "whole.mkv", tmp_path / "holed.mkv"
    ffmpeg("-i", clip, "-c:v", "libx264", "-preset", "ultrafast", "-crf", "25", "-g", "1", whole)
    ffmpeg("-i", whole, "-c", "copy", "-bsf:v", "noise=drop=eq(n\\,17)", holed, program=STATIC)
    assert packets(holed) == LOOP - 1
    numbers = await list_numbers(STATIC, Side.of_file(holed), 30)
    mapped = map_frames(numbers, 5, 35)
    assert (mapped.first_source, mapped.frames, mapped.dropped) == (5, 29, (12,))
    source = Side.of_file(clip)._replace(first_frame=5, without=mapped.dropped)
    encoded = Side.of_file(holed)._replace(first_frame=mapped.first_encoded)
    scorer = await inspect(STATIC, "")
    found = await score(scorer, encoded, source, 29, ["psnr"])
    others = "select='between(n,5,34)*not(eq(n,17))',settb=1/1000,setpts=N*40"
    log = tmp_path / "psnr.log"
    graph = f"[0:v]{others}[a];[1:v]{others}[b];[a][b]psnr=stats_file={log}"
    ffmpeg("-i", whole, "-i", clip, "-lavfi", graph, "-f", "null", "-", program=STATIC)
    mean = sum(float(line.split("mse_avg:")[1].split()[0]) for line in log.read_text().splitlines()) / 29
    assert found.psnr is not None
    assert found.psnr.average == pytest.approx(10 * math.log10(255**2 / mean), abs=HALF)


def test_an_encode_at_the_greatest_pace_scores_as_plain_ffmpeg_says(tmp_path: Path) -> None:
    """Each rendition at the clip's size; of a clip whose index counts more frames than it shows, those."""
    made = noisy_clip(tmp_path / "made.mp4", 60, options=("-bf", "0"))
    clip = tmp_path / "clip.mp4"  # an edit list hides its first frames
    ffmpeg("-ss", "0.5", "-i", made, "-c", "copy", clip)
    ladder = ("--ladder", "320x180:crf=26,214x120:crf=26", *ULTRAFAST)
    plain = ("--rate", "crf=26", *ULTRAFAST)
    common = ("--pace", "max", "--quality", "vmaf,psnr,ssim")
    runs = together(
        tmp_path,
        Asked(("--sink", f"file:{tmp_path}/l_{{}}.mkv"), (*common, *ladder, "--input", str(made))),
        Asked(
            ("--sink", f"file:{tmp_path}/cut.mp4", "--ffmpeg", STATIC),
            (*common, *plain, "--input", str(clip)),
        ),
    )
    ladder_scores, (cut,) = runs[0].scores, runs[1].scores
    assert [one["frames"] for one in ladder_scores] == [60, 60]
    for one in ladder_scores:
        (file,) = tmp_path.glob(f"l_*_{one['rendition']}.mkv")
        scale = f"scale=320:180:flags={SCALER}"
        expected = Plain(file, made, 0, 60, scale).scores()
        assert one["psnr"]["average"] == pytest.approx(expected["psnr"], abs=HALF)
        assert one["vmaf"]["mean"] == pytest.approx(expected["vmaf"], abs=HALF)
    encode = runs[1].only["encode"]
    assert encode["frames"] == packets(tmp_path / "cut.mp4") == cut["frames"] < 60
    assert cut["psnr"]["average"] > 30
    assert not any("of the 60 frames" in warning for warning in runs[1].only["warnings"])


def test_gaps_odd_sides_and_fields_are_paired_with_what_was_encoded(tmp_path: Path) -> None:
    """A frame that the clip lacks is filled in for the encoder, an odd row cut off, fields stay fields."""
    whole = noisy_clip(tmp_path / "whole.mp4", 200, options=("-bf", "0"))
    gap, odd, fields = (tmp_path / name for name in ("gap.mp4", "odd.mkv", "fields.mkv"))
    # Times of their own keep the gap: in it the encoder repeats the frame before.
    ffmpeg("-i", whole, "-vf", "select=not(eq(n\\,30))", "-vsync", "0", "-c:v", "libx264", "-qp", "0", gap)
    picture = "testsrc2=size=321x181:rate=30,format=yuv444p"
    ffmpeg("-f", "lavfi", "-i", picture, "-t", "2", "-pix_fmt", "yuv420p", "-c:v", "ffv1", odd)
    interlaced = ("-flags", "+ilme+ildct", "-vf", "setfield=tff", "-qp", "0")
    ffmpeg("-i", whole, "-c:v", "libx264", *interlaced, fields)
    best = ("--rate", "crf=2", *ULTRAFAST, "--quality", "psnr")
    once = (*best, "--pace", "max")
    runs = together(
        tmp_path,
        Asked((), (*once, "--input", str(gap))),
        Asked((), (*best, "--duration", "3", "--input", str(gap))),
        Asked((), (*once, "--input", str(odd))),
        Asked(("--sink", "null"), (*once, "--input", str(fields))),
    )
    for done in runs:
        assert [one["psnr"]["average"] > 42 for one in done.scores] == [True], done.scores
    assert runs[2].scores[0]["size"] == "320x180"
    (command,) = [one["command"] for one in runs[3].only["commands"]]
    assert "-flags:v +ilme+ildct" in command
    assert "-flags +global_header" not in command
