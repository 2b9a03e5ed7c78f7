"""What is said of a clip when ffmpeg and ffprobe behave in every way they can."""

from __future__ import annotations

import stat
from fractions import Fraction
from pathlib import Path

import pytest
from places import CAPTURES

from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.load.probe import ClipTools, NotAClip, Programs, probe
from powerbench_agent.bench.plan.picture import Colour, Picture
from powerbench_agent.bench.plan.scenario import Resolution, Scenario

CLIPS = CAPTURES / "clips"
NTSC = Fraction(30000, 1001)
HDR = Picture(
    width=320,
    height=180,
    rate=NTSC,
    pix_fmt="yuv420p10le",
    stored_width=320,
    stored_height=180,
    average_rate=NTSC,
    colour=Colour("tv", "bt2020nc", "bt2020", "smpte2084"),
    mastering_display=True,
    content_light=True,
    codec="hevc",
    container="mov,mp4,m4a,3gp,3g2,mj2",
    duration=1.001,
    frames=30,
)


@pytest.fixture
def program(tmp_path: Path) -> str:
    """Return the path of a program that is not written yet."""
    return str(tmp_path / "bin/ffmpeg")


def script(path: str, *lines: str) -> str:
    """Write a shell script in place of a program and return its path."""
    file = Path(path)
    file.parent.mkdir(exist_ok=True)
    file.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return path


def says(capture: str) -> str:
    return f"cat {CLIPS / capture} >&2"


@pytest.mark.parametrize("release", ["5.1", "9.0"])
def test_a_clip_is_what_both_programs_say(program: str, release: str) -> None:
    """The frames by ffmpeg, the header by ffprobe."""
    probes = script(program.replace("ffmpeg", "ffprobe"), f"cat {CLIPS}/hdr.ffprobe.json")
    assert probe("x", Programs(script(program, says(f"hdr.{release}.txt")), probes)) == HDR


@pytest.mark.parametrize(
    "words", ["exec sleep 100", "exec yes", "exit 1", "echo '{}'", "echo '[]'", "kill -9 $$"]
)
def test_an_ffprobe_that_is_no_use_is_done_without(program: str, words: str) -> None:
    """One that hangs, floods, fails or dies leaves what ffmpeg says."""
    probes = script(program.replace("ffmpeg", "ffprobe"), words)
    found = probe("x", Programs(script(program, says("rot.5.1.txt")), probes), 0.5)
    assert (found.width, found.height, found.rotation, found.frames) == (180, 320, 90, None)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([says("audio.5.1.txt"), "exit 1"], "has no video"),
        ([says("audio.9.0.txt"), "exit 234"], "has no video"),
        ([says("trunc.9.0.txt"), "exit 183"], r"it is cut off \(moov atom not found\)"),
        ([says("still.5.1.txt")], "is a still picture, one frame"),
        (["exec sleep 100"], r"had not decoded its first frames after 0\.5 s"),
        (["exec yes >&2"], r"had not decoded its first frames"),
        ([f"grep -v showinfo {CLIPS}/p10.5.1.txt >&2", "exit 1"], "cannot be decoded: it is damaged"),
        ([f"sed 's/320x180/none/; /showinfo/d' {CLIPS}/p10.5.1.txt >&2"], "whose size is not known"),
        ([r"printf 'x\033[2J\007\n' >&2", "exit 1"], r"it is cut off \(x\?\[2J\?\)"),
        (["exit 0"], "is not a clip that ffmpeg can read"),
    ],
)
def test_what_is_not_a_clip_is_one_line(program: str, lines: list[str], said: str) -> None:
    """The reason, in words that can be printed, whatever ffmpeg did."""
    with pytest.raises(NotAClip, match=said) as refused:
        probe("x", Programs(script(program, *lines)), 0.5)
    assert str(refused.value).isprintable()


def test_the_ffprobe_beside_the_ffmpeg_is_used(program: str) -> None:
    """Before the one on the PATH, which may be of another release."""
    beside = script(program.replace("ffmpeg", "ffprobe"), "true")
    assert Programs.of(program) == Programs(program, beside)


def test_what_is_not_ffmpeg_looks_at_no_clip(program: str) -> None:
    """It is refused as --ffmpeg, not the clip."""
    with pytest.raises(NotHere, match="is not ffmpeg"):
        ClipTools(script(program, "echo hello")).picture("x")
    with pytest.raises(NotHere, match="give the path of an ffmpeg"):
        ClipTools(f"{program}/none").picture("x")


def test_an_encoder_takes_what_ffmpeg_lists(program: str) -> None:
    """One that lists none is not known to lack any."""
    ffmpeg = script(
        program,
        'case "$*" in',
        '  *-version) echo "ffmpeg version 7.1 c" ;;',
        '  *encoder=libx265) echo "    Supported pixel formats: yuv420p gray10le" ;;',
        "esac",
    )
    tools = ClipTools(ffmpeg)
    assert tools.taken_by("h265") == ("yuv420p", "gray10le")
    assert tools.taken_by("h264") == ()


def test_hdr_metadata_is_looked_for_in_an_encode(program: str, tmp_path: Path) -> None:
    """The clip is encoded once and probed; what is not in there is lost. Without any, nothing is encoded."""
    count = tmp_path / "encodes"
    ffmpeg = script(
        program,
        'case "$*" in',
        '  *-version) echo "ffmpeg version 7.1 c" ;;',
        f"  *showinfo*) {says('p10.9.0.txt')} ;;",
        f"  *) echo encode >> {count} ;;",
        "esac",
    )
    tools = ClipTools(ffmpeg)
    scenario = Scenario(
        name="x",
        type="single",
        duration=9,
        video_kbps=100,
        resolution=Resolution(320, 180),
        fps=NTSC,
        encoder="h264",
        preset="fast",
        input="x",
        picture=HDR,
    )
    for _ in range(2):
        assert tools.lost(scenario, "null") == ("mastering display", "content light level")
    assert count.read_text() == "encode\n"


LIVE = "rtmp://bob:hunter22@h:1936/live/s3cr3tkey"


def test_a_live_source_is_asked_but_once(program: str, tmp_path: Path) -> None:
    """It may serve a single client: ffprobe is not run, and ffmpeg is told the URL with its limits."""
    probes = script(program.replace("ffmpeg", "ffprobe"), f"touch {tmp_path}/probed")
    asked = tmp_path / "asked"
    found = probe(LIVE, Programs(script(program, f'echo "$*" >> {asked}', says("rot.5.1.txt")), probes))
    assert (found.width, found.height, found.codec) == (180, 320, "h264")
    (command,) = asked.read_text().splitlines()
    assert f"-rw_timeout 10000000 -i {LIVE} " in command
    assert not (tmp_path / "probed").exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([f"echo '{LIVE}: Connection refused' >&2", "exit 1"], r"cannot be read \(Connection refused\)"),
        (["echo 'Error opening input files: no s3cr3tkey' >&2", "exit 1"], r"cannot be read \(no \*\*\*\)"),
        ([f"echo '{LIVE}: Protocol not found' >&2", "exit 1"], "this ffmpeg was built without its protocol"),
        (["exit 0"], r"cannot be read \(it ended at once\)"),
        ([says("audio.9.0.txt"), "exit 234"], "has no video"),
        ([says("still.5.1.txt")], "sent one picture, and no other"),
        (["exec sleep 100"], r"sent no picture within 0\.5 s"),
        (["exec yes"], r"sent no picture within 0\.5 s"),
    ],
)
def test_a_live_source_that_is_no_use_is_refused(program: str, lines: list[str], said: str) -> None:
    """In one line that says why, without the key."""
    with pytest.raises(NotAClip, match=said) as refused:
        probe(LIVE, Programs(script(program, *lines)), 0.5)
    assert str(refused.value).isprintable()
    assert "s3cr3t" not in str(refused.value)
