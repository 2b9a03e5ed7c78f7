"""Real clips: what they are said to be, and what the first frames of their streams are.

Each is made by FFmpeg's generators and is a quarter of a second long, or a second where its times matter.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from real.conftest import BIN, need

from powerbench_agent.bench.cli import parser
from powerbench_agent.bench.exits import BadFile
from powerbench_agent.bench.load.clip_filters import changes_of
from powerbench_agent.bench.load.encoder import sample_command
from powerbench_agent.bench.load.ffmpeg import Ffmpeg
from powerbench_agent.bench.load.probe import Programs, probe
from powerbench_agent.bench.plan.picture import Colour, Picture
from powerbench_agent.bench.plan.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from powerbench_agent.bench.plan.scenario import Scenario

MASTER = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
BT709 = "colorspace=bt709:color_primaries=bt709:color_trc=bt709"
X264 = ("-c:v", "libx264", "-preset", "ultrafast")
HDR = (
    *("-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-preset", "ultrafast", "-x265-params"),
    f"log-level=error:master-display={MASTER}:max-cll=1000,400",
)


class Recipe(NamedTuple):
    """How a clip is made."""

    name: str
    size: str = "320x180"
    rate: str = "25"
    filters: str = "null"
    options: tuple[str, ...] = X264
    seconds: float = 0.25


RECIPES = {
    "ten_bits": Recipe("a.mp4", options=("-pix_fmt", "yuv420p10le", *X264)),
    "full_colour": Recipe("a.mkv", options=("-pix_fmt", "yuv444p", *X264)),
    "ntsc": Recipe("a.mp4", rate="30000/1001", options=("-pix_fmt", "yuv420p", *X264)),
    "film": Recipe("a.mkv", rate="24000/1001", options=("-pix_fmt", "yuv422p", *X264)),
    "uneven": Recipe(
        "a.mp4",
        filters="select='not(mod(n,3))+lt(n,12)',format=yuv420p",
        options=("-vsync", "vfr", *X264),
        seconds=1,
    ),
    "odd": Recipe("a.mkv", size="321x241", options=("-pix_fmt", "yuv420p", "-c:v", "ffv1")),
    "odd_444": Recipe("a.mkv", size="321x241", options=("-pix_fmt", "yuv444p", "-c:v", "ffv1")),
    "fields": Recipe(
        "a.mp4", filters="setfield=tff,format=yuv420p", options=(*X264, "-flags", "+ilme+ildct")
    ),
    "full_range": Recipe("a.mp4", options=("-pix_fmt", "yuvj420p", *X264)),
    "tagged": Recipe("a.mkv", filters=f"format=yuv420p,setparams=range=tv:{BT709}"),
    "rgb": Recipe("a.mkv", options=("-pix_fmt", "bgr0", "-c:v", "ffv1")),
    "hdr": Recipe(
        "a.mkv",
        filters="setparams=range=tv:colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084",
        options=HDR,
    ),
}


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that makes a clip, once."""
    made: dict[str, str] = {}

    def make(kind: str) -> str:
        if kind not in made:
            recipe = RECIPES[kind]
            path = str(tmp_path_factory.mktemp(kind) / recipe.name)
            source = f"testsrc=size={recipe.size}:rate={recipe.rate}:duration={recipe.seconds}"
            quiet = (need("ffmpeg"), "-hide_banner", "-nostdin", "-loglevel", "error")
            run(*quiet, "-f", "lavfi", "-i", source, "-vf", recipe.filters, *recipe.options, path)
            made[kind] = path
        return made[kind]

    return make


def new_ffmpeg() -> str:
    """Return the ffmpeg of the extra, which is a newer one than a distribution's."""
    packaged = pytest.importorskip("imageio_ffmpeg", reason="the extra ffmpeg is not installed")
    return str(packaged.get_ffmpeg_exe())


@pytest.fixture(params=["distribution", "extra"])
def which(request: pytest.FixtureRequest) -> str:
    """Return each ffmpeg of this machine."""
    return need("ffmpeg") if request.param == "distribution" else new_ffmpeg()


def planned(ffmpeg: str, path: str, *words: str) -> Scenario:
    flags = ["run", "--ffmpeg", ffmpeg, "--sink", "null", "single", "--preset", "ultrafast", "--input", path]
    (scenario,) = make_plan(parser("run").parse_args([*flags, *words])).scenarios
    return scenario


def streamed(ffmpeg: str, scenario: Scenario, file: Path) -> Picture:
    """Return what the first frames of a stream are, as they are written."""
    run(*sample_command(Ffmpeg(ffmpeg, "", "", frozenset()), scenario, "null", str(file)))
    return probe(str(file), Programs.of(need("ffmpeg")))


def identity(picture: Picture) -> tuple[object, ...]:
    return picture.width, picture.height, picture.rate, picture.pix_fmt, picture.field_order


def colour(picture: Picture) -> Colour:
    """Return the colour with the range that a decoder takes a silent clip to have."""
    return picture.colour._replace(range=picture.colour.range or "tv")


@pytest.mark.parametrize(
    "kind",
    ["ten_bits", "full_colour", "ntsc", "film", "odd_444", "fields", "full_range", "tagged"],
)
def test_a_stream_is_what_its_clip_is(
    which: str, clip: Callable[[str], str], kind: str, tmp_path: Path
) -> None:
    """Size, rate, pixel format, fields and colour of the encoded frames are the clip's own."""
    recipe, scenario = RECIPES[kind], planned(which, clip(kind))
    source = scenario.picture
    assert source is not None
    assert (f"{source.width}x{source.height}", str(source.rate)) == (recipe.size, recipe.rate)
    encoded = streamed(which, scenario, tmp_path / "out")
    assert identity(encoded) == identity(source)
    assert colour(encoded) == colour(source)
    assert changes_of(scenario) == []


@pytest.mark.parametrize("kind", ["uneven", "odd", "fields", "full_range", "tagged", "hdr"])
def test_ffprobe_and_ffmpeg_alone_say_the_same(clip: Callable[[str], str], kind: str) -> None:
    """Without an ffprobe less is known of time, and nothing else is different."""
    path = clip(kind)
    whole, alone = probe(path, Programs.of(need("ffmpeg"))), probe(path, Programs(new_ffmpeg()))
    assert identity(alone) == identity(whole)
    assert (alone.colour, alone.variable, alone.codec) == (whole.colour, whole.variable, whole.codec)
    assert (alone.mastering_display, alone.content_light) == (whole.mastering_display, whole.content_light)
    assert alone.duration == pytest.approx(whole.duration, abs=0.02)


def test_an_odd_clip_loses_a_column_and_a_row(which: str, clip: Callable[[str], str], tmp_path: Path) -> None:
    """4:2:0 has no odd sides: cut off, not scaled, and said."""
    scenario = planned(which, clip("odd"))
    assert str(scenario.resolution) == "320x240"
    assert changes_of(scenario) == ["size 321x241 → 320x240 (cropped: yuv420p needs even sides)"]
    encoded = streamed(which, scenario, tmp_path / "out")
    assert (encoded.width, encoded.height) == (320, 240)


def test_a_variable_rate_is_made_constant(which: str, clip: Callable[[str], str], tmp_path: Path) -> None:
    """Frames at uneven times are recognised; the stream has the rate whose ticks they are on."""
    scenario = planned(which, clip("uneven"))
    assert scenario.fps == 25
    (said,) = changes_of(scenario)
    assert said.startswith("variable frame rate (")
    assert said.endswith(" on average) → constant 25")
    assert not streamed(which, scenario, tmp_path / "out").variable


def test_a_turned_clip_is_streamed_upright(clip: Callable[[str], str], tmp_path: Path) -> None:
    """What its container has players turn is turned before it is encoded, and said."""
    which, turned = new_ffmpeg(), str(tmp_path / "turned.mp4")
    run(which, "-loglevel", "error", "-display_rotation", "90", "-i", clip("ntsc"), "-c", "copy", turned)
    for ffmpeg in (need("ffmpeg"), which):
        scenario = planned(ffmpeg, turned)
        assert changes_of(scenario) == ["turned upright by 90° (320x180 → 180x320)"]
        encoded = streamed(ffmpeg, scenario, tmp_path / "out")
        assert (encoded.width, encoded.height, encoded.rotation) == (180, 320, 0)


def test_rgb_becomes_full_colour_with_its_tags(
    which: str, clip: Callable[[str], str], tmp_path: Path
) -> None:
    """x264 has no RGB: the nearest is 4:4:4, converted and tagged as BT.709."""
    scenario = planned(which, clip("rgb"))
    assert changes_of(scenario) == ["pixel format bgr0 → yuv444p", "RGB → BT.709"]
    encoded = streamed(which, scenario, tmp_path / "out")
    assert (encoded.pix_fmt, encoded.colour.range, encoded.colour.space) == ("yuv444p", "tv", "bt709")


def test_a_full_range_is_narrowed_if_that_is_asked_for(
    which: str, clip: Callable[[str], str], tmp_path: Path
) -> None:
    """--pix-fmt yuv420p of a yuvj420p clip: converted, tagged and said, by either ffmpeg."""
    scenario = planned(which, clip("full_range"), "--pix-fmt", "yuv420p")
    assert changes_of(scenario) == ["pixel format yuvj420p → yuv420p", "full range → limited range"]
    encoded = streamed(which, scenario, tmp_path / "out")
    assert (encoded.pix_fmt, encoded.colour.range) == ("yuv420p", "tv")


def test_hdr_metadata_is_kept_or_its_loss_is_said(
    which: str, clip: Callable[[str], str], tmp_path: Path
) -> None:
    """The transfer function stays; mastering display and light level do, or are named as lost."""
    scenario = planned(which, clip("hdr"), "--encoder", "h265")
    encoded = streamed(which, scenario, tmp_path / "out")
    assert encoded.colour == Colour("tv", "bt2020nc", "bt2020", "smpte2084")
    kept = encoded.mastering_display and encoded.content_light
    assert scenario.lost == (() if kept else ("mastering display", "content light level"))
    assert kept or which == need("ffmpeg")


def test_what_is_asked_for_is_done(which: str, clip: Callable[[str], str], tmp_path: Path) -> None:
    """--resolution, --fps and --pix-fmt go before the clip's own, also for fields."""
    asked = "320x240"
    words = ("--resolution", asked, "--fps", "59.94", "--pix-fmt", "yuv444p")
    encoded = streamed(which, planned(which, clip("fields"), *words), tmp_path / "out")
    assert (f"{encoded.width}x{encoded.height}", str(encoded.rate)) == (asked, "60000/1001")
    assert encoded.pix_fmt == "yuv444p"


def test_what_does_not_move_is_not_a_clip(which: str, tmp_path: Path) -> None:
    """Sound alone and still pictures are refused in one line."""
    picture = ("-f", "lavfi", "-i", "testsrc=size=64x64", "-frames:v", "1")
    sound = ("-f", "lavfi", "-i", "sine=duration=0.2")
    files = {"still.png": picture, "still.mp4": picture, "song.m4a": sound}
    for name, options in files.items():
        run(need("ffmpeg"), "-loglevel", "error", *options, str(tmp_path / name))
        said = "is a still picture" if options is picture else "has no video"
        with pytest.raises(BadFile, match=said) as refused:
            planned(which, str(tmp_path / name))
        assert "\n" not in str(refused.value)


def test_what_is_broken_is_not_a_clip(which: str, clip: Callable[[str], str], tmp_path: Path) -> None:
    """Cut off, not media at all, empty, or locked: one line that says which."""
    whole = Path(clip("ntsc")).read_bytes()
    key = ("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb")
    locked = str(tmp_path / "locked.mp4")
    lock = (*key, "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8")
    run(need("ffmpeg"), "-loglevel", "error", "-i", clip("ntsc"), "-c", "copy", *lock, locked)
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    matroska = Path(clip("full_colour")).read_bytes()
    (tmp_path / "cut_mkv.mp4").write_bytes(matroska[: len(matroska) // 2])
    (tmp_path / "text.mp4").write_bytes(b"hello, world\n" * 100)
    (tmp_path / "empty.mp4").touch()
    words = {
        "cut": "is cut off: it has ",
        "cut_mkv": "is cut off: it has ",
        "text": "is not a clip that ffmpeg can read",
        "empty": "is empty",
        "locked": "is encrypted",
    }
    for name, said in words.items():
        with pytest.raises(BadFile, match=said) as refused:
            planned(which, str(tmp_path / f"{name}.mp4"))
        assert "\n" not in str(refused.value)


def test_a_program_that_does_not_end_is_not_waited_for(clip: Callable[[str], str], tmp_path: Path) -> None:
    """An ffprobe that hangs, or that says too much, leaves ffmpeg's own words."""
    path, real = clip("ntsc"), need("ffmpeg")
    expected = probe(path, Programs(real))
    for script in ("trap '' TERM INT; sleep 100", "yes", "echo '{'; exit 1"):
        fake = tmp_path / "ffprobe"
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
        assert probe(path, Programs(real, str(fake)), 1.0) == expected


def test_a_run_of_a_clip_says_and_records_what_it_changes(clip: Callable[[str], str], tmp_path: Path) -> None:
    """The command line as people use it: a line before the window, and the results file."""
    command = [str(BIN / "powerbench"), "run", "--output-dir", str(tmp_path), "--sink", "null", "single"]
    command += ["--duration", "1", "--stabilization", "0", "--cooldown", "0", "--preset", "ultrafast"]
    command += ["--bitrate", "500k", "--input", clip("ntsc"), "--resolution", "320x240"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stderr
    said = "size 320x180 → 320x240 (its pixels are no longer square)"
    assert f"500k_240p29.97_h264_a: differs from its clip: {said}." in done.stdout
    assert "320x240 at 29.97 (30000/1001) fps" in done.stdout
    (file,) = tmp_path.glob("test_results_*.json")
    (entry,) = json.loads(file.read_text())["scenarios"]
    assert (entry["fps"], entry["frame_rate"], entry["resolution"]) == (29.97003, "30000/1001", "320x240")
    assert entry["changes"] == [said]
    assert entry["encode"]["achieved_fps"] == pytest.approx(29.97, abs=6)
