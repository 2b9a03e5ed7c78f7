"""How a comparison is put to FFmpeg, how its answers are read, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.quality.call import NotScored, call, cause, private_directory
from powerbench_agent.bench.quality.choose import Scorer, choose, inspect
from powerbench_agent.bench.quality.count import StoredPicture, count_loop, parse_picture
from powerbench_agent.bench.quality.measures import parse_measures
from powerbench_agent.bench.quality.score import (
    Pairing,
    check_turned,
    common_format,
    layout,
    parse_psnr,
    parse_ssim,
    parse_xpsnr,
    read_vmaf,
    score,
)
from powerbench_agent.bench.quality.side import Side
from powerbench_agent.core.scores import MEASURES, Pooled, Psnr, Scores, percentile

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = StoredPicture(64, 48, "yuv420p", is_full_range=False, rate=30.0)
ALL = frozenset(MEASURES)
scores_of_frames = st.lists(st.floats(0, 100), min_size=1, max_size=200)


# -- pooling -------------------------------------------------------------------------------------------


@given(scores_of_frames)
def test_the_pooled_scores_are_in_order(values: list[float]) -> None:
    """None is beyond the frames' own, and the harmonic mean is never above the mean."""
    pooled = Pooled.of(values)
    tolerance = 1e-9
    assert pooled.minimum == min(values)
    assert pooled.minimum - tolerance <= pooled.harmonic_mean <= pooled.mean + tolerance
    assert pooled.minimum <= pooled.p1 <= max(values)
    assert pooled.mean <= max(values) + tolerance


@given(st.floats(0, 100), st.integers(1, 50))
def test_equal_frames_pool_to_their_score(value: float, count: int) -> None:
    """However many there are, every pooled score is that of one."""
    pooled = Pooled.of([value] * count)
    for number in (pooled.mean, pooled.harmonic_mean, pooled.p1, pooled.minimum):
        assert number == pytest.approx(value, abs=1e-9)


@given(scores_of_frames, st.floats(0, 100))
def test_the_percentile_is_numpys(values: list[float], percent: float) -> None:
    """Interpolated between the nearest ranks, as numpy does unless told otherwise."""
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-9)


@given(scores_of_frames)
def test_the_order_of_the_frames_does_not_matter(values: list[float]) -> None:
    """Pooled backwards they are the same."""
    assert Pooled.of(values[::-1]) == Pooled.of(values)


def test_the_harmonic_mean_is_libvmafs() -> None:
    """Of the scores plus one, less one: a score of 0 does not make it 0."""
    assert Pooled.of([0.0, 100.0]).harmonic_mean == pytest.approx(2 / (1 / 1 + 1 / 101) - 1)


# -- sides ---------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9), st.integers(1, 10**5))
def test_a_loop_is_entered_within_its_first_pass(first: int, length: int) -> None:
    """The frame that is entered is the one that was shown, and no whole pass is decoded for it."""
    side = Side.of_file("clip.mp4", first, length)
    assert 0 <= side.skipped < length
    assert (first - side.skipped) % length == 0
    assert Side.of_file("clip.mp4", first).skipped == first


def test_a_file_is_opened_wherever_ffmpeg_runs() -> None:
    """By its whole path and as a file, whatever its name looks like; only a loop is repeated."""
    here = str(Path("a:b.mp4").absolute())
    assert Side.of_file("a:b.mp4").arguments() == ["-noautorotate", "-i", f"file:{here}"]
    looped = Side.of_file("a:b.mp4", 5, 10).arguments("29.97")
    assert looped == ["-noautorotate", "-r", "29.97", "-stream_loop", "-1", "-i", f"file:{here}"]
    picture = Side.of_picture("testsrc2=size=64x48:rate=30").arguments()
    assert picture == ["-noautorotate", "-f", "lavfi", "-i", "testsrc2=size=64x48:rate=30"]


# -- the graph -----------------------------------------------------------------------------------------


PLAIN = Side.of_file("/x")


def test_both_sides_get_a_step_a_frame_and_are_counted() -> None:
    """Trimmed by number, timed by number, logged, and given to every measure."""
    graph = Pairing(SMALL, SMALL, 20, ["psnr", "ssim"], "m").graph(
        PLAIN._replace(first_frame=3), PLAIN._replace(first_frame=7)
    )
    assert "[0:V:0]trim=start_frame=3:end_frame=23,settb=AVTB,setpts=N*40000," in graph
    assert "[1:V:0]trim=start_frame=7:end_frame=27,settb=AVTB,setpts=N*40000," in graph
    assert "file=encoded.log" in graph
    assert "file=source.log" in graph
    assert "[encoded0][source0]psnr=stats_file=psnr.log[out0]" in graph
    assert "[encoded1][source1]ssim=stats_file=ssim.log[out1]" in graph


def test_xpsnr_weighs_by_the_source() -> None:
    """Its weights are those of its first input, so that is the source."""
    assert "[source0][encoded0]xpsnr" in Pairing(SMALL, SMALL, 20, ["xpsnr"], "m").graph(PLAIN, PLAIN)


def test_xpsnr_is_tested_on_deep_pictures_alone() -> None:
    """The source is compared with itself, and a difference withdraws the measure."""
    deep = SMALL._replace(pix_fmt="yuv420p10le")
    assert "_self" not in Pairing(SMALL, SMALL, 1, ["xpsnr"], "m").graph(PLAIN, PLAIN)
    assert "_self" not in Pairing(deep, deep, 1, ["psnr"], "m").graph(PLAIN, PLAIN)
    tested = Pairing(deep, deep, 1, ["xpsnr"], "m")
    assert "[source_self][source_same]xpsnr=stats_file=test.log[tested]" in tested.graph(PLAIN, PLAIN)
    assert tested.outputs().count("-map") == 2


@pytest.mark.parametrize(
    ("pix_fmt", "minimum", "is_scored"),
    [("yuv420p10le", "inf", True), ("yuv420p10le", "7.9", False), ("yuv444p16le", "inf", False)],
)
def test_an_xpsnr_that_fails_its_test_is_none(
    tmp_path: Path, pix_fmt: str, minimum: str, *, is_scored: bool
) -> None:
    """A picture differs from itself by nothing, or the filter has misread both."""
    average = "n: 1\n\nXPSNR average, 1 frames  y: {0}  u: {0}  v: {0}  (minimum: {0})\n"
    (tmp_path / "xpsnr.log").write_text(average.format("30.0"))
    (tmp_path / "test.log").write_text(average.format(minimum))
    deep = SMALL._replace(pix_fmt=pix_fmt)
    found = Pairing(deep, deep, 1, ["xpsnr"], "m").read(tmp_path, [])
    assert ("xpsnr" in found) == is_scored


def test_the_range_is_named_only_if_it_was_changed() -> None:
    """Otherwise FFmpeg leaves the samples as they are."""
    full = SMALL._replace(is_full_range=True)
    assert "out_range" not in Pairing(full, full, 1, ["psnr"], "m").graph(PLAIN, PLAIN)
    assert "out_range=tv" in Pairing(full, SMALL, 1, ["psnr"], "m").graph(PLAIN, PLAIN)
    assert "out_range=pc" in Pairing(SMALL, full, 1, ["psnr"], "m").graph(PLAIN, PLAIN)
    rgb = full._replace(pix_fmt="gbrp")
    assert "out_range" not in Pairing(SMALL, rgb, 1, ["psnr"], "m").graph(PLAIN, PLAIN)


@pytest.mark.parametrize(
    ("pix_fmt", "chroma", "depth"),
    [
        ("yuv420p", "420", 8),
        ("yuvj422p", "422", 8),
        ("yuva444p10le", "444", 10),
        ("yuv420p9le", "420", 10),
        ("yuv422p12be", "422", 12),
        ("yuv444p14le", "444", 16),
        ("nv12", "420", 8),
        ("nv16", "422", 8),
        ("nv20le", "422", 10),
        ("nv24", "444", 8),
        ("p010le", "420", 10),
        ("p016le", "420", 16),
        ("p210le", "422", 10),
        ("y212le", "422", 12),
        ("xv36le", "444", 12),
        ("yuyv422", "422", 8),
        ("gray", "420", 8),
        ("gray10le", "420", 10),
        ("gbrp12le", "444", 12),
        ("rgb24", "444", 8),
        ("rgb565le", "444", 8),
        ("rgb48le", "444", 16),
        ("x2rgb10le", "444", 10),
        ("pal8", "444", 8),
        ("yuv440p", "444", 8),
        ("yuv410p", "444", 8),
    ],
)
def test_every_format_has_one_that_all_measures_take(pix_fmt: str, chroma: str, depth: int) -> None:
    """The nearest that loses nothing; what is not planar YUV becomes it."""
    assert layout(pix_fmt) == (chroma, depth)


def test_the_finer_depth_and_the_sources_chroma_are_compared() -> None:
    """Whatever the encode's chroma is, the source's is the measure."""
    assert common_format("yuv420p10le", "yuv422p") == "yuv422p10le"
    assert common_format("yuv444p", "yuv420p10le") == "yuv420p10le"
    assert common_format("yuv420p", "yuvj420p") == "yuvj420p"
    assert common_format("yuvj420p", "yuv420p") == "yuv420p"
    assert common_format("yuv420p", "gbrp") == "yuv444p"


def test_a_turned_encode_is_refused_and_a_square_one_is_not() -> None:
    """Wide against tall cannot be a rendition; a square fits either."""
    tall = SMALL._replace(width=48, height=64)
    for one, other in ((SMALL, tall), (tall, SMALL)):
        with pytest.raises(NotScored, match=r"is turned against its source"):
            check_turned(one, other)
    check_turned(SMALL._replace(width=48), tall)
    check_turned(tall, tall)


# -- what FFmpeg prints --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "picture"),
    [
        (
            (
                "  Stream #0:0(und): Video: wrapped_avframe, yuv420p(tv, bt709, progressive), 1280x720 "
                "[SAR 1:1 DAR 16:9], q=2-31, 200 kb/s, 29.97 fps, 29.97 tbn"
            ),
            StoredPicture(1280, 720, "yuv420p", is_full_range=False, rate=29.97),
        ),
        (
            (
                "[info]   Stream #0:0: Video: wrapped_avframe, yuv420p10le(pc, bottom first (swapped)), "
                "160x120, q=2-31, 200 kb/s, 30 fps, 30 tbn"
            ),
            StoredPicture(160, 120, "yuv420p10le", is_full_range=True, rate=30.0),
        ),
        (
            "  Stream #0:0: Video: wrapped_avframe, yuvj420p, 64x48, q=2-31, 1k fps, 1k tbn",
            StoredPicture(64, 48, "yuvj420p", is_full_range=True, rate=1000.0),
        ),
        (
            "  Stream #0:0: Video: wrapped_avframe, gray(pc), 64x48, q=2-31",
            StoredPicture(64, 48, "gray", is_full_range=True, rate=None),
        ),
        ("  Stream #0:0: Video: h264 (High), yuv420p(tv), 64x48, 25 fps", None),
    ],
)
def test_the_decoded_picture_is_read(line: str, picture: StoredPicture | None) -> None:
    """From the line about what FFmpeg gives on, not from the one about what the container claims."""
    assert parse_picture(["[info] Input #0", line]) == picture


def test_the_filters_summaries_are_read() -> None:
    """PSNR of the mean error, SSIM of all planes, XPSNR's lowest plane; equal planes are None."""
    printed = [
        "[Parsed_ssim_9 @ 0x55] [info] SSIM Y:0.580202 (3.76) U:0.8 (7.0) V:0.8 (7.0) All:0.649705 (4.55)",
        "[Parsed_psnr_8 @ 0x55] [info] PSNR y:25.400851 u:26.4 v:inf average:25.699571 min:25.1 max:26.0",
    ]
    assert parse_psnr(printed) == Psnr(average=25.699571, y=25.400851, u=26.4, v=None)
    assert parse_ssim(printed).average == 0.649705
    log = (
        "n:    1  XPSNR y: 30.0000  XPSNR u: 31.0000  XPSNR v: inf\n\n"
        "XPSNR average, 1 frames  y: 30.0000  u: 31.0000  v: inf  (minimum: 30.0000)\n"
    )
    found = parse_xpsnr(log)
    assert (found.minimum, found.u, found.v) == (30.0, 31.0, None)
    for parse in (parse_psnr, parse_ssim):
        with pytest.raises(NotScored, match="spells it in a way"):
            parse(["frame=20"])


def test_the_first_error_is_the_cause() -> None:
    """Later ones are its consequences, and what is information is no error."""
    lines = [
        "[info] Input #0, nut",
        "[Parsed_libvmaf_0 @ 0x557f] [error] could not load libvmaf model with version: x",
        "[AVFilterGraph @ 0x557f] [error] Error initializing filters",
        "[fatal] Error : Invalid argument",
    ]
    assert cause(lines) == "could not load libvmaf model with version: x"
    assert cause(lines[:1]) == ""


def vmaf_log(path: Path, values: list[float]) -> Path:
    frames = [{"frameNum": n, "metrics": {"vmaf": value}} for n, value in enumerate(values)]
    path.write_text(json.dumps({"version": "3.0.0", "frames": frames}))
    return path


def test_vmaf_is_pooled_from_its_frames(tmp_path: Path) -> None:
    """With libvmaf's version; a log that is short, damaged or not there has no score."""
    log = vmaf_log(tmp_path / "vmaf.json", [90.0, 80.0])
    pooled, version = read_vmaf(log, 2)
    assert (pooled.mean, pooled.minimum, version) == (85.0, 80.0, "3.0.0")
    with pytest.raises(NotScored, match="libvmaf scored 2 of 3 frames"):
        read_vmaf(log, 3)
    log.write_text(log.read_text()[:40])
    with pytest.raises(NotScored, match=r"vmaf\.json cannot be read"):
        read_vmaf(log, 2)
    log.unlink()
    with pytest.raises(NotScored, match=r"libvmaf did not write vmaf\.json: No such file"):
        read_vmaf(log, 2)


def test_a_side_that_is_short_has_no_score(tmp_path: Path) -> None:
    """The side is named, with what it has and what it should have."""
    pairing = Pairing(SMALL, SMALL, 3, ["psnr"], "m")
    (tmp_path / "encoded.log").write_text("frame:0 pts:0\nn=1\nframe:1 pts:40000\nn=1\n")
    (tmp_path / "source.log").write_text("frame:0\nframe:1\nframe:2\n")
    with pytest.raises(NotScored, match="the encode has 2 of the 3 frames"):
        pairing.check_counts(tmp_path)
    (tmp_path / "encoded.log").write_text("frame:0\nframe:1\nframe:2\n")
    pairing.check_counts(tmp_path)
    (tmp_path / "source.log").unlink()
    with pytest.raises(NotScored, match=r"did not write source\.log"):
        pairing.check_counts(tmp_path)


def test_a_log_that_was_cut_has_no_score(tmp_path: Path) -> None:
    """A full disk leaves fewer lines than frames."""
    (tmp_path / "psnr.log").write_text("n:1 mse_avg:0.1\n")
    with pytest.raises(NotScored, match=r"logged 1 of 3 frames in psnr\.log: is its disk full"):
        Pairing(SMALL, SMALL, 3, ["psnr"], "m").read(tmp_path, [])


# -- FFmpeg as a process -------------------------------------------------------------------------------

LISTED = """Filters:
  T.. = Timeline support
 TS. psnr              VV->V      Calculate the PSNR between two video streams.
 TS ssim              VV->V      Calculate the SSIM between two video streams.
"""
PRINTED = (
    "Stream #0:0: Video: wrapped_avframe, yuv420p(tv), 64x48, q=2-31, 25 fps, 25 tbn\n"
    "PSNR y:30.0 u:inf v:inf average:31.5 min:30 max:32\n"
    "SSIM Y:0.9 (10.0) U:1.0 (inf) V:1.0 (inf) All:0.93 (11.0)"
)


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., str]:
    """Return a maker of programs that answer as an FFmpeg would."""

    def make(
        filters: str = LISTED, encoded: int = 2, wait: str = "", name: str = "ffmpeg", option: str = "model"
    ) -> str:
        program = tmp_path / name
        lines = "\n".join(f"frame:{n}" for n in range(encoded))
        program.write_text(
            f"""#!/bin/sh
case "$*" in
  *-version*) echo "ffmpeg version 7.1-stand-in"; exit;;
  *filter=libvmaf*) echo '   {option}   <string>     ..FV.......'; exit;;
  *-filters*) cat <<'END'
{filters}END
  exit;;
esac
echo "$@" >> {tmp_path}/commands
case "$*" in *-filter_complex*) {wait or ":"};; esac
echo '{lines}' > encoded.log
printf 'frame:0\\nframe:1\\n' > source.log
printf 'n:1\\nn:2\\n' | tee psnr.log > ssim.log
cat >&2 <<'END'
{PRINTED}
END
"""
        )
        program.chmod(0o755)
        return str(program)

    return make


async def test_a_score_says_what_it_is_of(stand_in: Callable[..., str]) -> None:
    """Frames, sizes, format, scorer; what was not possible is among what is missing, with the remedy."""
    scorer = await inspect(stand_in(), "--ffmpeg")
    assert scorer.measures == {"psnr", "ssim"}
    found = await score(
        scorer, Side.of_file("a.mkv"), Side.of_picture("testsrc2"), 2, ["vmaf", "psnr", "ssim"]
    )
    assert found.psnr == Psnr(average=31.5, y=30.0, u=None, v=None)
    assert (found.frames, found.size, found.scored_by, found.scaler) == (2, "64x48", "7.1-stand-in", "")
    assert found.vmaf is None
    assert found.vmaf_model is None
    assert found.missing == {
        "vmaf": "ffmpeg 7.1-stand-in has no libvmaf: give --quality-ffmpeg PATH, "
        "or pip install 'powerbench-agent[ffmpeg]'"
    }
    assert msgspec.json.decode(msgspec.json.encode(found), type=Scores) == found


async def test_each_side_is_decoded_once_for_all_measures(
    stand_in: Callable[..., str], tmp_path: Path
) -> None:
    """Two looks at the first frames, and one comparison."""
    scorer = await inspect(stand_in(), "--ffmpeg")
    await score(scorer, Side.of_file("a.mkv"), Side.of_picture("testsrc2"), 2, ["psnr", "ssim"])
    commands = (tmp_path / "commands").read_text().splitlines()
    assert len(commands) == 3
    assert commands[-1].count(" -i ") == 2
    assert commands[-1].count(" -r 25 ") == 2


async def test_a_lost_frame_has_no_score(stand_in: Callable[..., str]) -> None:
    """Though FFmpeg printed one and ended well."""
    scorer = await inspect(stand_in(encoded=1), "--ffmpeg")
    with pytest.raises(NotScored, match="the encode has 1 of the 2 frames"):
        await score(scorer, Side.of_file("a.mkv"), Side.of_picture("testsrc2"), 2, ["psnr"])


@pytest.mark.parametrize(
    ("frames", "measures", "model", "why"),
    [
        (0, ["psnr"], "m", "no frames to compare"),
        (2, ["psnr"], "m:path=/etc/passwd", "not the name of a VMAF model"),
        (2, ["vmaf"], "m", "has no libvmaf: give --quality-ffmpeg"),
        (2, [], "m", "no measure was asked for"),
    ],
)
async def test_what_cannot_be_compared_is_refused(
    stand_in: Callable[..., str], frames: int, measures: list[str], model: str, why: str
) -> None:
    """In one line, before anything is decoded in full."""
    scorer = await inspect(stand_in(), "--ffmpeg")
    side = Side.of_picture("testsrc2")
    with pytest.raises(NotScored, match=why):
        await score(scorer, side, side, frames, measures, model=model)


async def test_one_that_is_deaf_is_killed(stand_in: Callable[..., str]) -> None:
    """When its time is over, whatever signals it ignores, and that is said."""
    deaf = stand_in(wait="trap '' INT TERM; while :; do sleep 0.1; done")
    scorer = await inspect(deaf, "--ffmpeg")
    side = Side.of_picture("testsrc2")
    async with asyncio.timeout(20):
        with pytest.raises(NotScored, match=r"not done within 0\.2 s"):
            await score(scorer, side, side, 2, ["psnr"], patience=0.2)


async def test_its_directory_is_its_own_and_goes(stand_in: Callable[..., str], tmp_path: Path) -> None:
    """FFmpeg runs in an empty directory, so that its logs need no path; afterwards there is none."""
    with private_directory() as directory:
        await call(stand_in(), ["-i", "x"], directory, 20)
        assert sorted(file.name for file in directory.iterdir()) == [
            "encoded.log",
            "psnr.log",
            "source.log",
            "ssim.log",
        ]
        assert directory.parent != tmp_path
    assert not directory.exists()


async def test_one_that_cannot_be_run_is_named() -> None:
    """With the system's reason, or its last words."""
    with private_directory() as directory, pytest.raises(NotScored, match="ffmpeg"):
        await call("/nowhere/ffmpeg", [], directory, 20)


async def test_a_clip_that_loses_frames_when_repeated_is_refused(tmp_path: Path) -> None:
    """Two passes must have twice the frames of one, or no frame's number can be told."""
    program = tmp_path / "ffmpeg"
    program.write_text(
        "#!/bin/sh\nprintf 'frame:0\\nframe:1\\n' > frames.log\n"
        'case "$*" in *"-stream_loop 1 "*mkv*) printf "frame:2\\nframe:3\\n" >> frames.log;; esac\n'
    )
    program.chmod(0o755)
    assert await count_loop(str(program), tmp_path / "clip.mkv") == 2
    with pytest.raises(NotScored, match="does not repeat exactly: 2 frames in one pass, 2 in two"):
        await count_loop(str(program), tmp_path / "clip.ts")


# -- which FFmpeg --------------------------------------------------------------------------------------

FULL = (
    LISTED
    + " ... libvmaf           VV->V      Calculate the VMAF.\n ... xpsnr             VV->V      XPSNR\n"
)


async def test_the_one_that_encodes_scores_if_it_can(stand_in: Callable[..., str]) -> None:
    """Then nothing is said."""
    own = stand_in(FULL)
    choice = await choose(own, MEASURES)
    assert choice.scorer == Scorer(own, "7.1-stand-in", ALL)
    assert choice.said == ""


async def test_the_one_that_was_named_is_obeyed(stand_in: Callable[..., str]) -> None:
    """Even if it has less; what it lacks is said with the remedy."""
    own, named = stand_in(FULL), stand_in(name="other")
    choice = await choose(own, ["vmaf", "psnr"], named)
    assert choice.scorer.path == named
    assert choice.said == (
        f"Scoring with ffmpeg 7.1-stand-in, {named}; no vmaf: it has no libvmaf; "
        "give --quality-ffmpeg PATH, or pip install 'powerbench-agent[ffmpeg]'."
    )


async def test_what_is_no_ffmpeg_is_refused(tmp_path: Path) -> None:
    """By name, with the flag that names another."""
    with pytest.raises(NotHere, match=r"no ffmpeg at /nowhere/ffmpeg: .* to --quality-ffmpeg"):
        await choose("ffmpeg", MEASURES, "/nowhere/ffmpeg")
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho no\n")
    other.chmod(0o755)
    with pytest.raises(NotHere, match="other is not ffmpeg; name another with --quality-ffmpeg"):
        await choose("ffmpeg", MEASURES, str(other))


async def test_a_libvmaf_whose_models_are_files_is_none(stand_in: Callable[..., str]) -> None:
    """Before 5.0 the option had another name, and a model no version."""
    old = stand_in(FULL, option="model_path")
    assert (await inspect(old, "--ffmpeg")).measures == ALL - {"vmaf"}


# -- the flag ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "measures"),
    [
        ("vmaf,psnr", ("vmaf", "psnr")),
        (" PSNR , vmaf,psnr", ("vmaf", "psnr")),
        ("none", ()),
        ("ssim", ("ssim",)),
    ],
)
def test_measures_are_a_list(text: str, measures: tuple[str, ...]) -> None:
    """In one order, each once, however they are written."""
    assert parse_measures(text) == measures


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("vmap", "'vmap' is not one of vmaf, xpsnr, psnr, ssim or none; did you mean vmaf?"),
        ("", "'' is not one of vmaf, xpsnr, psnr, ssim or none"),
        ("vmaf,", "'' is not one of"),
        ("vmaf,none", "none stands alone"),
    ],
)
def test_another_measure_is_refused_with_the_nearest(text: str, why: str) -> None:
    """All that there are, and the one that was probably meant."""
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_measures(text)


def test_every_measure_has_its_filter() -> None:
    """Each has an output in the graph, and a field in the scores."""
    pairing = Pairing(SMALL, SMALL, 1, list(MEASURES), "m")
    assert pairing.graph(PLAIN, PLAIN).count("[out") == pairing.outputs().count("-map") == len(MEASURES)
    assert set(Scores.__struct_fields__) > ALL
