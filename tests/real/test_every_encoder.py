"""The table of encoders against the real FFmpegs: Debian's, and the static build of the extra."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import imageio_ffmpeg
import pytest
from real.conftest import BIN

from powerbench_agent.bench.load.encoders.rates import RateControl
from powerbench_agent.bench.load.encoders.spelling import EncoderAsked, completed, video_options
from powerbench_agent.bench.load.encoders.table import ROWS, EncoderRow
from powerbench_agent.bench.load.ffmpeg import Ffmpeg, find_ffmpeg
from powerbench_agent.bench.load.trial import container_of, open_encoder
from powerbench_agent.bench.plan.scenario import Resolution, Scenario

if TYPE_CHECKING:
    from pathlib import Path

FFMPEGS = [shutil.which("ffmpeg") or "ffmpeg", imageio_ffmpeg.get_ffmpeg_exe()]
SOFTWARE = [row for row in ROWS if row.is_software and row.rates]
VALUES = {"crf": 35.0, "qp": 30.0, "cq": 30.0}


@pytest.fixture(scope="module", params=FFMPEGS, ids=["debian", "static"])
def ffmpeg(request: pytest.FixtureRequest) -> Ffmpeg:
    """Each ffmpeg in turn."""
    return asyncio.run(find_ffmpeg(request.param))


def stream(row: EncoderRow, kind: str, **asked: object) -> Scenario:
    return Scenario(
        name=row.name,
        type="single",
        duration=1,
        video_kbps=500,
        resolution=Resolution(320, 180),
        fps=30,
        encoder=row.known_as,
        preset=completed(EncoderAsked(row.name)).preset,
        rate=RateControl(kind, min(VALUES.get(kind, 0.0), row.rates[kind].high)),
        **asked,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("row", SOFTWARE, ids=lambda row: row.name)
async def test_every_rate_control_opens_into_every_sink(ffmpeg: Ffmpeg, row: EncoderRow) -> None:
    """With the table's spelling: no error, nothing ignored, no pixel format exchanged, within a second."""
    if row.name not in ffmpeg.encoders:
        pytest.skip("not built in")
    for kind in row.rates:
        for sink in ("embedded", "null"):
            one = stream(row, kind)
            assert await open_encoder(ffmpeg, one, container_of(ffmpeg, one, sink)) == ""
    for pix_fmt in row.formats[1:3]:
        one = stream(row, row.default_rate, pix_fmt=pix_fmt)
        assert await open_encoder(ffmpeg, one, container_of(ffmpeg, one, "null")) == ""


@pytest.mark.parametrize("row", [row for row in ROWS if row.rates], ids=lambda row: row.name)
def test_every_option_is_in_ffmpegs_help(ffmpeg: Ffmpeg, row: EncoderRow) -> None:
    """Options and words of each row are ones that this encoder has, also of hardware that is not here."""
    if row.name not in ffmpeg.encoders:
        pytest.skip("not built in")
    command = [ffmpeg.path, "-hide_banner", "-h", f"encoder={row.name}"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    generic = {"c:v", "b:v", "q:v", "g", "pix_fmt", "maxrate", "minrate", "bufsize", "global_quality"}
    for kind in row.rates:
        asked = EncoderAsked(row.name, rate=RateControl(kind, 30), gop=60, device="0")
        options = video_options(asked, 1000)
        for option, value in zip(options[::2], options[1::2], strict=True):
            name = option.removeprefix("-")
            assert name in generic or re.search(rf"^  -{re.escape(name)} ", text, re.MULTILINE), option
            if name in ("rc", "rc_mode") or (name == "preset" and row.family.name in ("nvenc", "qsv")):
                assert re.search(rf"^     {re.escape(value)} ", text, re.MULTILINE), (option, value)


@pytest.mark.parametrize(
    ("encoder", "asked", "reason"),
    [
        ("librav1e", {"encoder_options": (("crf", "30"),)}, "has not been used for any stream"),
        ("libsvtav1", {"encoder_options": (("svtav1-params", "no-such-key=1"),)}, "Error parsing option"),
        ("libx264", {"encoder_options": (("tune", "nonsense"),)}, "nonsense"),
        ("libx264", {"encoder_options": (("no_such", "1"),)}, "no_such"),
        ("libsvtav1", {"pix_fmt": "yuv444p"}, "Incompatible pixel format"),
    ],
)
async def test_what_ffmpeg_only_warns_about_is_refused(
    ffmpeg: Ffmpeg, encoder: str, asked: dict[str, object], reason: str
) -> None:
    """An ignored option and an exchanged format end with exit code 0: refused all the same."""
    row = next(row for row in ROWS if row.name == encoder)
    said = await open_encoder(ffmpeg, stream(row, row.default_rate, **asked), "nut")
    assert reason in said
    assert "0x" not in said


async def test_av1_into_flv_is_refused_where_it_cannot_be(ffmpeg: Ffmpeg) -> None:
    """FFmpeg learned it with 6.1. Before, it says so, or never ends."""
    row = next(row for row in ROWS if row.name == "libsvtav1")
    said = await open_encoder(ffmpeg, stream(row, "crf"), "flv")
    assert bool(said) == ((0, 0) < ffmpeg.number < (6, 1))


@pytest.mark.alone
def test_encoders_stream_for_real(tmp_path: Path) -> None:
    """A batch goes through the embedded sink in each container: frames and bytes of each are counted."""
    names = ["h265", "librav1e", "libvvenc"]
    common = {"resolution": "160x90", "fps": 10, "duration": "2", "stabilization": "1", "cooldown": "0"}
    entries = [{"encoder": name, "name": name} for name in names]
    entries.append({"encoder": "libsvtav1", "name": "quality", "rate": "crf=35", "preset": "10"})
    batch = tmp_path / "batch.json"
    batch.write_text(json.dumps({"defaults": common, "scenarios": entries}))
    where = ["--output-dir", str(tmp_path), "--ffmpeg", FFMPEGS[1]]
    command = [str(BIN / "powerbench"), "run", *where, "batch", "--file", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("test_results_*.json")
    found = {each["name"]: each for each in json.loads(path.read_text())["scenarios"]}
    assert {name: each["encode"]["container"] for name, each in found.items()} == {
        "h265": "flv",
        "librav1e": "nut",
        "libvvenc": "mpegts",
        "quality": "nut",
    }
    few = {name: each["encode"] for name, each in found.items() if not each["encode"]["frames"] > 10}
    assert few == {}
    assert all(each["encode"]["megabits"] > 0 for each in found.values())
    assert (found["quality"]["rate"], "bitrate" in found["quality"]) == ("crf=35", False)
