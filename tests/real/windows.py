"""Windows of `powerbench run`, several at a time: in real time they hardly use a CPU, and mostly wait."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import imageio_ffmpeg
from real.conftest import BIN, need

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STATIC = imageio_ffmpeg.get_ffmpeg_exe()
SMALL = "320x180"
QUICK = ("--stabilization", "1", "--cooldown", "0")
PATIENCE = 120.0  # seconds


class Asked(NamedTuple):
    """A run: what comes before and after its kind."""

    before: Sequence[str]
    after: Sequence[str]
    kind: str = "single"


class Done(NamedTuple):
    """What a run left."""

    code: int
    out: str
    errors: str
    directory: Path

    @property
    def scenarios(self) -> list[dict[str, Any]]:
        files = list(self.directory.glob("test_results_*.json"))
        assert len(files) == 1, (self.code, self.errors)
        found: list[dict[str, Any]] = json.loads(files[0].read_text())["scenarios"]
        return found

    @property
    def only(self) -> dict[str, Any]:
        """The one scenario, which went well."""
        assert self.code == 0, self.errors
        (scenario,) = self.scenarios
        assert scenario["status"] == "ok", scenario["error"]
        return scenario

    @property
    def scores(self) -> list[dict[str, Any]]:
        """The scores of all its outputs."""
        quality = self.only["encode"]["quality"]
        assert "missing" not in quality, quality["missing"]
        found: list[dict[str, Any]] = quality["streams"]
        return found


def command(directory: Path, asked: Asked) -> list[str]:
    quick = QUICK if asked.kind != "batch" else ()
    return [
        *(str(BIN / "powerbench"), "run", "--output-dir", str(directory), *asked.before),
        *(asked.kind, *quick, *asked.after),
    ]


def together(directory: Path, *runs: Asked) -> list[Done]:
    """Run them all at once, and return what each left."""
    begun = []
    for number, asked in enumerate(runs):
        where = directory / f"run{number}"
        process = subprocess.Popen(
            command(where, asked), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        begun.append((where, process))
    done = []
    try:
        for where, process in begun:
            out, errors = process.communicate(timeout=PATIENCE)
            done.append(Done(process.returncode, out, errors, where))
    finally:
        for _, process in begun:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return done


def alone(directory: Path, *after: str, before: Sequence[str] = (), kind: str = "single") -> Done:
    (done,) = together(directory, Asked(before, after, kind))
    return done


def ffmpeg(*arguments: str | Path, program: str = "") -> str:
    """Run FFmpeg to its end and return what it printed."""
    done = subprocess.run(
        [program or need("ffmpeg"), "-hide_banner", "-nostdin", "-nostats", "-y", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def noisy_clip(
    file: Path, frames: int, rate: str = "30", size: str = SMALL, options: Sequence[str] = ()
) -> Path:
    """Make a clip whose neighbouring frames differ: a wrong pair of frames costs many decibels."""
    picture = f"testsrc2=size={size}:rate={rate},noise=alls=12:allf=t,format=yuv420p"
    lossless = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "0", "-g", "30")
    ffmpeg("-f", "lavfi", "-i", picture, "-frames:v", str(frames), *lossless, *options, file)
    return file


def packets(file: Path | str) -> int:
    """Return how many pictures a file holds, by ffprobe."""
    probe = [need("ffprobe"), "-v", "error", "-select_streams", "v:0", "-count_packets"]
    shown = ["-show_entries", "stream=nb_read_packets", "-of", "csv=p=0", str(file)]
    said = subprocess.run([*probe, *shown], capture_output=True, text=True, timeout=PATIENCE, check=False)
    found = re.search(r"\d+", said.stdout)
    return int(found[0]) if found else 0


class Plain(NamedTuple):
    """A plain FFmpeg's scores of a span of a file, against a clip that is joined to itself."""

    encoded: Path
    clip: Path
    first: int
    frames: int
    scale: str = "null"  # what brings the encode to the clip's size
    clip_frames: int = 0  # 0: the clip is not repeated

    def scores(self, shift: int = 0) -> dict[str, float]:
        """Return PSNR, SSIM and VMAF; `shift`: by how many frames to take the encode too late."""
        passes = (self.first + self.frames) // self.clip_frames + 1 if self.clip_frames else 1
        joined = self.encoded.with_name(f"{self.encoded.stem}_source.txt")
        joined.write_text(f"file '{self.clip}'\n" * passes)
        spans = [self._span(0, shift, self.scale), self._span(1, 0, "null")]
        measures = ("psnr", "ssim", "libvmaf")
        graph = [f"{span},split=3{''.join(f'[{s}{m}]' for m in measures)}" for s, span in enumerate(spans)]
        graph += [f"[0{name}][1{name}]{name}[out{name}]" for name in measures]
        outputs = [word for name in measures for word in ("-map", f"[out{name}]", "-f", "null", "-")]
        inputs = ("-i", f"file:{self.encoded}", "-f", "concat", "-safe", "0", "-i", joined)
        said = ffmpeg(*inputs, "-filter_complex", ";".join(graph), *outputs, program=STATIC)
        patterns = {
            "psnr": r"PSNR .*average:(\S+)",
            "ssim": r"SSIM .*All:(\S+)",
            "vmaf": r"VMAF score: (\S+)",
        }
        found = {name: re.search(pattern, said) for name, pattern in patterns.items()}
        return {name: float(match[1]) for name, match in found.items() if match}

    def _span(self, number: int, shift: int, then: str) -> str:
        begin = self.first + shift
        chosen = f"select='between(n,{begin},{begin + self.frames - 1})'"
        alike = "setparams=colorspace=unknown:color_primaries=unknown:color_trc=unknown"
        return f"[{number}:v:0]{chosen},settb=1/1000,setpts=N*40,{alike},{then}"
