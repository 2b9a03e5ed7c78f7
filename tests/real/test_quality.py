"""Scores by real FFmpegs, against FFmpeg's own filters on the same files, whatever the container is."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import imageio_ffmpeg
import msgspec
import pytest
from real.conftest import need
from real.test_run import descendants

from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.quality.call import NotScored
from powerbench_agent.bench.quality.choose import check_model, choose, inspect
from powerbench_agent.bench.quality.count import count_frames, count_loop, probe
from powerbench_agent.bench.quality.score import SCALER, score
from powerbench_agent.bench.quality.side import Side
from powerbench_agent.core.scores import MEASURES, Scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from powerbench_agent.bench.quality.choose import Scorer

FRAMES = 20
SIZE = "160x120"
HALF = 0.0101  # the figures that are compared have two digits or more after the point
STATIC = imageio_ffmpeg.get_ffmpeg_exe()


@pytest.fixture
def system() -> str:
    return need("ffmpeg")


@pytest.fixture(params=["system", "static"])
def either(request: pytest.FixtureRequest) -> str:
    """Return the distribution's FFmpeg, without libvmaf and XPSNR, then the static one, which has all."""
    return STATIC if request.param == "static" else need("ffmpeg")


def ffmpeg(*arguments: str | Path, program: str = STATIC) -> str:
    """Run it to its end and return what it printed."""
    done = subprocess.run(
        [program, "-hide_banner", "-nostdin", "-nostats", "-y", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def source(  # a noisy one: neighbouring frames differ, so that a wrong pair costs many decibels
    directory: Path, size: str = SIZE, rate: str = "30", pix_fmt: str = "yuv420p", frames: int = FRAMES
) -> Path:
    file = directory / f"source_{size}_{rate.replace('/', '_')}_{pix_fmt}_{frames}.nut"
    # The generator rounds to even sizes.
    cut = f"format={pix_fmt},crop={size.replace('x', ':')}:0:0:exact=1"
    picture = f"testsrc2=size=330x190:rate={rate},noise=alls=12:allf=t,{cut}"
    lossless = ("-c:v", "ffv1")
    if pix_fmt.startswith("yuvj"):
        lossless = ("-c:v", "libx264", "-qp", "0", "-preset", "ultrafast")
    ffmpeg("-f", "lavfi", "-i", picture, "-frames:v", str(frames), *lossless, file)
    return file


def encode(file: Path, *options: str, name: str = "encoded.mp4") -> Path:
    """Encode it so that the picture suffers."""
    encoded = file.parent / name
    ffmpeg("-i", file, "-c:v", "libx264", "-preset", "veryfast", "-crf", "32", *options, encoded)
    return encoded


async def scores(
    program: str,
    encoded: Path | Side,
    reference: Path | Side,
    measures: Sequence[str] = MEASURES,
    **more: int,
) -> Scores:
    return await score(
        await inspected(program),
        encoded if isinstance(encoded, Side) else Side.of_file(encoded),
        reference if isinstance(reference, Side) else Side.of_file(reference),
        more.get("frames", FRAMES),
        measures,
    )


KNOWN: dict[str, Scorer] = {}  # starting an FFmpeg three times to look at it takes a while


async def inspected(program: str) -> Scorer:
    if program not in KNOWN:
        KNOWN[program] = await inspect(program, "--quality-ffmpeg")
    return KNOWN[program]


class Naive(NamedTuple):
    """What FFmpeg's own filters print, one at a time, of files whose times agree."""

    encoded: Path
    reference: Path
    program: str = STATIC

    def printed(self, graph: str, pattern: str) -> float:
        text = ffmpeg(
            *("-i", self.encoded, "-i", self.reference, "-lavfi", graph, "-f", "null", "-"),
            program=self.program,
        )
        found = re.search(pattern, text)
        assert found, text
        return float(found[1])

    def psnr(self, first: str = "[0:v]null[a]", second: str = "[1:v]null[b]") -> float:
        return self.printed(f"{first};{second};[a][b]psnr", r"average:(\S+)")

    def ssim(self) -> float:
        return self.printed("[0:v][1:v]ssim", r"All:(\S+)")

    def vmaf(self) -> float:
        return self.printed("[0:v][1:v]libvmaf", r"VMAF score: (\S+)")

    def xpsnr(self) -> float:
        return self.printed("[1:v][0:v]xpsnr", r"minimum: ([0-9.]+)")


async def test_scores_are_those_of_ffmpegs_own_filters(tmp_path: Path) -> None:
    """All four in one run give what each filter gives by itself, to 0.01."""
    reference = source(tmp_path)
    encoded = encode(reference)
    found = await scores(STATIC, encoded, reference)
    naive = Naive(encoded, reference)
    assert found.vmaf is not None
    assert found.psnr is not None
    assert found.xpsnr is not None
    assert found.ssim is not None
    assert found.vmaf.mean == pytest.approx(naive.vmaf(), abs=HALF)
    assert found.psnr.average == pytest.approx(naive.psnr(), abs=HALF)
    assert found.xpsnr.minimum == pytest.approx(naive.xpsnr(), abs=HALF)
    assert found.ssim.average == pytest.approx(naive.ssim(), abs=0.0001)
    assert found.missing == {}
    assert (found.vmaf_model, found.pix_fmt, found.scaler) == ("vmaf_v0.6.1", "yuv420p", "")
    assert found.libvmaf


async def test_pooled_vmaf_is_libvmafs(tmp_path: Path) -> None:
    """Mean, harmonic mean and minimum are the ones that libvmaf pools itself."""
    reference = source(tmp_path)
    encoded = encode(reference)
    found = await scores(STATIC, encoded, reference, ["vmaf"])
    log = tmp_path / "vmaf.json"
    graph = f"[0:v][1:v]libvmaf=log_fmt=json:log_path={log}"
    ffmpeg("-i", encoded, "-i", reference, "-lavfi", graph, "-f", "null", "-")
    pooled = json.loads(log.read_text())["pooled_metrics"]["vmaf"]
    assert found.vmaf is not None
    assert found.vmaf.mean == pytest.approx(pooled["mean"], abs=1e-4)
    assert found.vmaf.harmonic_mean == pytest.approx(pooled["harmonic_mean"], abs=1e-4)
    assert found.vmaf.minimum == pytest.approx(pooled["min"], abs=1e-4)
    assert found.vmaf.minimum <= found.vmaf.p1 < found.vmaf.mean


async def test_a_build_without_libvmaf_scores_the_rest(tmp_path: Path, system: str) -> None:
    """What it lacks is named with the remedy, and is no failure of the others."""
    reference = source(tmp_path)
    encoded = encode(reference)
    scorer = await inspected(system)
    found = await scores(system, encoded, reference)
    assert found.psnr is not None
    assert found.psnr.average == pytest.approx(Naive(encoded, reference, system).psnr(), abs=HALF)
    assert set(found.missing) == set(MEASURES) - scorer.measures
    for name in found.missing:
        assert getattr(found, name) is None
        assert "--quality-ffmpeg" in found.missing[name]


@pytest.mark.parametrize(
    ("either", "rate"),
    [("static", "24"), ("static", "30000/1001"), ("static", "30"), ("static", "60"), ("system", "30")],
    indirect=["either"],
)
async def test_the_container_changes_nothing(tmp_path: Path, either: str, rate: str) -> None:
    """The same packets score the same in every container; by their times, Matroska's lose ten decibels."""
    reference = source(tmp_path, rate=rate)
    encoded = encode(reference)
    measures = [name for name in MEASURES if name != "vmaf"]
    naive = Naive(encoded, reference, either).psnr()
    of_container = {}
    for ending in ("mp4", "mkv", "nut", "ts", "flv"):
        copy = tmp_path / f"copy.{ending}"
        ffmpeg("-i", encoded, "-c", "copy", copy)
        found = await scores(either, copy, reference, measures)
        assert found.psnr is not None
        assert found.psnr.average == pytest.approx(naive, abs=HALF), ending
        of_container[ending] = (found.psnr, found.ssim, found.xpsnr)
    assert len(set(of_container.values())) == 1, of_container


@pytest.mark.parametrize(
    ("either", "lost"),
    [("static", 1), ("static", FRAMES - 1), ("system", FRAMES // 2)],
    indirect=["either"],
)
async def test_a_lost_frame_has_no_score(tmp_path: Path, either: str, lost: int) -> None:
    """Wherever it was lost, and of whichever side, the numbers disagree and that is said."""
    reference = source(tmp_path)
    shorter = tmp_path / "shorter.mkv"
    without = f"select='not(eq(n,{lost}))',setpts=N/30/TB"
    ffmpeg("-i", reference, "-vf", without, "-c:v", "libx264", "-preset", "ultrafast", shorter)
    with pytest.raises(NotScored, match=rf"the encode has {FRAMES - 1} of the {FRAMES} frames"):
        await scores(either, shorter, reference, ["psnr"])
    with pytest.raises(NotScored, match=rf"the source has {FRAMES - 1} of the {FRAMES} frames"):
        await scores(either, reference, shorter, ["psnr"])


async def test_a_clip_is_scored_against_the_clip(tmp_path: Path) -> None:
    """Two sources of one size: an encode is near its own, and far from the test picture."""
    clip = tmp_path / "clip.nut"
    ffmpeg("-f", "lavfi", "-i", f"mandelbrot=s={SIZE}:r=30", "-frames:v", str(FRAMES), "-c:v", "ffv1", clip)
    encoded = encode(clip, "-pix_fmt", "yuv420p")
    own = await scores(STATIC, encoded, clip, ["psnr"])
    other = await scores(STATIC, encoded, Side.of_picture(f"testsrc2=size={SIZE}:rate=30"), ["psnr"])
    assert own.psnr is not None
    assert own.psnr.average is not None
    assert other.psnr is not None
    assert other.psnr.average is not None
    assert own.psnr.average > other.psnr.average + 10


async def test_a_rendition_is_scored_at_the_sources_size(tmp_path: Path, either: str) -> None:
    """480p of 720p is scaled up with the flags that the scores state."""
    reference = source(tmp_path, size="320x180")
    rendition = encode(reference, "-vf", "scale=214:120")
    found = await scores(either, rendition, reference, ["psnr"])
    naive = Naive(rendition, reference, either).psnr(f"[0:v]scale=320:180:flags={SCALER}[a]")
    assert found.psnr is not None
    assert found.psnr.average == pytest.approx(naive, abs=HALF)
    assert (found.size, found.encoded_size, found.scaler) == ("320x180", "214x120", SCALER)


@pytest.mark.parametrize(
    ("either", "of_source", "of_encode", "compared"),
    [
        ("system", "yuv420p", "yuv420p10le", "yuv420p10le"),
        ("static", "yuv420p", "yuv420p10le", "yuv420p10le"),
        ("static", "yuv420p10le", "yuv420p10le", "yuv420p10le"),
        ("static", "yuv420p10le", "yuv420p", "yuv420p10le"),
        ("static", "yuv422p", "yuv422p", "yuv422p"),
        ("system", "yuv444p", "yuv444p", "yuv444p"),
        ("static", "yuv444p", "yuv420p", "yuv444p"),
        ("system", "yuvj420p", "yuvj420p", "yuvj420p"),
        ("static", "yuvj420p", "yuvj420p", "yuvj420p"),
        ("static", "gbrp", "yuv444p", "yuv444p"),
        ("static", "gray", "yuv420p", "yuv420p"),
    ],
    indirect=["either"],
)
async def test_depth_and_chroma_are_those_of_the_source_or_finer(
    tmp_path: Path, either: str, of_source: str, of_encode: str, compared: str
) -> None:
    """Compared in the source's format, or in more bits if the encode has more, as FFmpeg's filter does."""
    reference = source(tmp_path, pix_fmt=of_source)
    encoded = encode(reference, "-pix_fmt", of_encode)
    measures = (await inspected(either)).measures
    found = await scores(either, encoded, reference, sorted(measures))
    naive = Naive(encoded, reference, either).psnr(f"[0:v]format={compared}[a]", f"[1:v]format={compared}[b]")
    assert found.pix_fmt == compared
    assert found.psnr is not None
    assert found.psnr.average == pytest.approx(naive, abs=HALF)


@pytest.mark.parametrize("of_encode", ["709", "none"])
async def test_notes_about_colours_change_nothing(tmp_path: Path, either: str, of_encode: str) -> None:
    """An encoder that notes the colours, or a container that forgets them, has not changed a sample."""
    noted = ("-vf", "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709")
    plain = source(tmp_path)
    reference = tmp_path / "noted.mkv"
    ffmpeg("-i", plain, *noted, "-c:v", "ffv1", reference)
    other = encode(plain, *(noted if of_encode == "709" else ()))
    alike = await scores(either, other, plain, ["psnr", "ssim"])
    assert (await scores(either, other, reference, ["psnr", "ssim"])) == alike
    assert alike.psnr is not None
    assert alike.psnr.average is not None
    assert alike.psnr.average > 25


@pytest.mark.parametrize(("size", "is_scored"), [("160x120", False), ("320x180", True)])
async def test_xpsnr_of_more_than_8_bits_is_tested(tmp_path: Path, size: str, *, is_scored: bool) -> None:
    """At widths where the filter misreads such lines there is no XPSNR, and why; at others it is right."""
    reference = source(tmp_path, size=size, pix_fmt="yuv420p10le")
    encoded = encode(reference, "-pix_fmt", "yuv420p10le")
    found = await scores(STATIC, encoded, reference, ["xpsnr", "psnr"])
    assert found.psnr is not None
    if is_scored:
        assert found.xpsnr is not None
        at_8_bits = "[1:v]format=yuv420p[a];[0:v]format=yuv420p[b];[a][b]xpsnr"
        naive = Naive(encoded, reference).printed(at_8_bits, r"minimum: ([0-9.]+)")
        assert found.xpsnr.minimum == pytest.approx(naive, abs=0.3)
        assert found.missing == {}
    else:
        assert found.xpsnr is None
        assert f"misreads yuv420p10le at {size}" in found.missing["xpsnr"]


async def test_a_range_that_was_changed_is_changed_back(tmp_path: Path, either: str) -> None:
    """An encode of limited range, of a source of full range, loses little: black is black on both sides."""
    reference = source(tmp_path, pix_fmt="yuvj420p")
    encoded = encode(reference, "-vf", "scale=out_range=tv,format=yuv420p", "-crf", "12")
    assert (await probe(either, Side.of_file(reference))).is_full_range
    assert not (await probe(either, Side.of_file(encoded))).is_full_range
    for one, other in ((encoded, reference), (reference, encoded)):
        found = await scores(either, one, other, ["psnr"])
        assert found.psnr is not None
        assert found.psnr.average is not None
        assert found.psnr.average > 36  # unscaled it is 25 or so


@pytest.mark.parametrize("size", ["161x121", "159x90"])
async def test_odd_sizes(tmp_path: Path, either: str, size: str) -> None:
    """An odd number of columns and rows, whose chroma planes are rounded up, is scored by every measure."""
    reference = source(tmp_path, size=size)
    encoded = tmp_path / "odd.mp4"
    ffmpeg("-i", reference, "-c:v", "mpeg4", "-q:v", "8", encoded)
    measures = sorted((await inspected(either)).measures)
    found = await scores(either, encoded, reference, measures)
    assert found.size == size
    assert found.psnr is not None
    assert found.psnr.average == pytest.approx(Naive(encoded, reference, either).psnr(), abs=HALF)


async def test_equal_pictures_need_no_infinity(tmp_path: Path, either: str) -> None:
    """A lossless encode has no decibels, and its scores are plain JSON that reads back."""
    reference = source(tmp_path)
    measures = sorted((await inspected(either)).measures)
    found = await scores(either, reference, Side.of_file(reference), measures)
    assert found.psnr is not None
    assert (found.psnr.average, found.psnr.y) == (None, None)
    assert found.ssim is not None
    assert math.isclose(found.ssim.average, 1)
    text = msgspec.json.encode(found)
    assert b"inf" not in text.lower()
    assert msgspec.json.decode(text, type=Scores) == found


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
async def test_a_looped_clip_is_entered_at_its_own_frame(tmp_path: Path, either: str, ending: str) -> None:
    """Frame 53 of a clip of 20 that repeats is its frame 13, and the frames go on over its end."""
    clip = encode(source(tmp_path), "-bf", "2", name=f"clip.{ending}")
    assert await count_loop(either, clip) == FRAMES
    kept = tmp_path / "kept.mkv"
    looped = ("-stream_loop", "-1", "-i", clip)
    window = "trim=start_frame=53:end_frame=83,setpts=N/30/TB"
    ffmpeg(*looped, "-vf", window, "-c:v", "ffv1", "-frames:v", "30", kept, program=either)
    right = Side.of_file(clip, first_frame=53, loop_frames=FRAMES)
    wrong = Side.of_file(clip, first_frame=52, loop_frames=FRAMES)
    found = await scores(either, kept, right, ["psnr"], frames=30)
    assert found.psnr is not None
    assert found.psnr.average is None  # equal, every one
    off = await scores(either, kept, wrong, ["psnr"], frames=30)
    assert off.psnr is not None
    assert off.psnr.average is not None


async def test_a_generated_picture_is_entered_at_any_frame(tmp_path: Path, either: str) -> None:
    """What an endless test picture showed from frame 300 on is compared with just that."""
    picture = f"testsrc2=size={SIZE}:rate=30"
    kept = tmp_path / "kept.mkv"
    window = f"trim=start_frame=300:end_frame={300 + FRAMES},setpts=N/30/TB"
    ffmpeg("-f", "lavfi", "-i", picture, "-vf", window, "-c:v", "ffv1", kept, program=either)
    found = await scores(either, kept, Side.of_picture(picture, first_frame=300), ["psnr"])
    assert found.psnr is not None
    assert found.psnr.average is None


async def test_a_turned_clip_is_compared_as_it_is_stored(tmp_path: Path, either: str) -> None:
    """A note that it stands on its side turns neither; one that was turned by its encoder has no score."""
    reference = encode(source(tmp_path), name="upright.mp4")
    noted = tmp_path / "noted.mp4"
    ffmpeg("-display_rotation", "90", "-i", reference, "-c", "copy", noted)
    kept = tmp_path / "kept.mp4"
    same = ("-c:v", "libx264", "-qp", "0")
    ffmpeg("-noautorotate", "-i", noted, *same, kept)
    found = await scores(either, kept, noted, ["psnr"])
    assert found.size == SIZE
    assert found.psnr is not None
    assert found.psnr.average is None
    ffmpeg("-i", noted, *same, kept)
    with pytest.raises(NotScored, match=r"\(120x160\) is turned against its source \(160x120\)"):
        await scores(either, kept, noted, ["psnr"])


async def test_interlaced_frames_are_compared_whole(tmp_path: Path, either: str) -> None:
    """An interlaced encode has a frame for a frame: nothing separates or merges the fields."""
    reference = source(tmp_path)
    encoded = encode(reference, "-flags", "+ilme+ildct", "-x264opts", "tff=1", name="interlaced.ts")
    found = await scores(either, encoded, reference, ["psnr"])
    assert found.psnr is not None
    assert found.psnr.average is not None
    assert found.psnr.average > 20


async def test_frames_are_counted_by_decoding(tmp_path: Path, either: str) -> None:
    """Rates, lost times and a cut end change nothing: a frame is what the decoder gives."""
    reference = source(tmp_path, rate="30000/1001")
    uneven = tmp_path / "uneven.mkv"
    ffmpeg(
        *("-i", reference, "-vf", "setpts=PTS+mod(N\\,3)*7/30/TB*0.1", "-fps_mode", "vfr"),
        *("-c:v", "ffv1", uneven),
    )
    assert await count_frames(either, Side.of_file(reference)) == FRAMES
    assert await count_frames(either, Side.of_file(uneven)) == FRAMES
    cut = tmp_path / "cut.nut"
    cut.write_bytes(reference.read_bytes()[: reference.stat().st_size // 2])
    assert 0 < await count_frames(either, Side.of_file(cut)) < FRAMES
    picture = await probe(either, Side.of_file(reference))
    assert (picture.size, picture.pix_fmt, picture.rate) == (SIZE, "yuv420p", 29.97)


async def test_a_clip_that_ffmpeg_cannot_repeat_is_refused(tmp_path: Path, either: str) -> None:
    """MPEG-TS ends after one pass, or loses frames in the next: which frame was sent cannot be known."""
    clip = encode(source(tmp_path), name="clip.ts")
    with pytest.raises(NotScored, match=rf"clip\.ts does not repeat exactly: {FRAMES} frames in one pass"):
        await count_loop(either, clip)


async def test_a_file_without_a_picture_is_named(tmp_path: Path, either: str) -> None:
    """Sound alone, text, nothing at all: one line that names the file."""
    sound = tmp_path / "a: sound's [1], 100%.wav"
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.1", f"file:{sound}")
    text = tmp_path / "text.mp4"
    text.write_text("not a film")
    for file in (sound, text, tmp_path / "-missing.mp4"):
        with pytest.raises(NotScored, match=re.escape(file.name)) as refusal:
            await scores(either, file, sound, ["psnr"])
        assert "\n" not in str(refusal.value)


async def test_a_score_that_is_cancelled_leaves_no_ffmpeg(either: str) -> None:
    """Cancelled, or out of time, the FFmpeg that scores is killed."""
    endless = Side.of_picture(f"testsrc2=size={SIZE}:rate=30")
    scorer = await inspected(either)
    working = asyncio.ensure_future(score(scorer, endless, endless, 10**9, ["psnr"]))
    while not (mine := children(scorer)):  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(0.05)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert not set(mine) & set(children(scorer))
    with pytest.raises(NotScored, match=r"not done within 0\.5 s"):
        await score(scorer, endless, endless, 10**9, ["psnr"], patience=0.5)
    assert not children(scorer)


def children(scorer: Scorer) -> list[int]:
    """Return our children that run this FFmpeg's comparison."""
    found = []
    for pid in descendants(os.getpid()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if scorer.path.encode() in words and b"-filter_complex" in words:
            found.append(pid)
    return found


async def test_one_that_can_is_chosen(system: str) -> None:
    """The one that encodes if it has all that is wanted, else the static one, and that is said."""
    own = await choose(system, ["psnr", "ssim"])
    assert (own.scorer.path, own.said) == (system, "")
    if "vmaf" in own.scorer.measures:
        pytest.skip("the system's ffmpeg has libvmaf itself")
    other = await choose(system, ["vmaf"])
    assert other.scorer.path == STATIC
    assert re.fullmatch(r"Scoring with ffmpeg \S+ of imageio-ffmpeg: .* has no libvmaf\.", other.said)
    obeyed = await choose(STATIC, ["vmaf"], named=system)
    assert obeyed.scorer.path == system
    assert "no vmaf: it has no libvmaf; give --quality-ffmpeg PATH" in obeyed.said


async def test_a_model_is_tried_before_anything_is_measured(system: str) -> None:
    """One that libvmaf has passes; one that it has not is refused by name."""
    scorer = await inspected(STATIC)
    await check_model(scorer, "vmaf_v0.6.1neg")
    await check_model(await inspected(system), "vmaf_v0.6.1neg")
    for model in ("nosuch", "vmaf_v0.6.1:path=/etc/passwd"):
        with pytest.raises(NotHere, match=f"'{model}' is not a VMAF model"):
            await check_model(scorer, model)
