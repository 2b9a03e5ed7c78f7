"""How a clip becomes what is asked for, and what is said of it."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest

from powerbench_agent.bench.load.clip_filters import changes_of, clip_filters
from powerbench_agent.bench.load.containers import StreamTarget
from powerbench_agent.bench.load.encoder import encoder_command
from powerbench_agent.bench.load.ffmpeg import Ffmpeg
from powerbench_agent.bench.plan.picture import Picture
from powerbench_agent.bench.plan.scenario import Resolution, Scenario

if TYPE_CHECKING:
    from powerbench_agent.bench.plan.frame_rate import FrameRate

NTSC = Fraction(30000, 1001)
FFMPEG = Ffmpeg("/usr/bin/ffmpeg", "7.1", "", frozenset({"libx264"}))


def picture(width: int = 640, height: int = 360, rate: FrameRate = NTSC, **how: Any) -> Picture:
    return Picture(width=width, height=height, rate=rate, **{"pix_fmt": "yuv420p", **how})


def stream(clip: Picture | None, size: str = "640x360", fps: FrameRate = NTSC, **how: Any) -> Scenario:
    width, _, height = size.partition("x")
    settings = {"encoder": "h264", "preset": "fast", "input": "a.mp4", "picture": clip, **how}
    resolution = Resolution(int(width), int(height))
    return Scenario(
        name="x",
        type="single",
        duration=9,
        video_kbps=900,
        resolution=resolution,
        fps=fps,
        **{"pix_fmt": "yuv420p", **settings},
    )


def test_a_clip_that_stays_as_it_is_only_has_its_rate_held() -> None:
    """No scaling, no conversion, and nothing to say."""
    scenario = stream(picture())
    assert clip_filters(scenario) == ["fps=30000/1001"]
    assert changes_of(scenario) == []


@pytest.mark.parametrize(
    ("scenario", "filters", "said"),
    [
        (stream(picture(), "320x180"), "scale=320:180,fps=30000/1001", ["size 640x360 → 320x180"]),
        (
            stream(picture(), "320x240", 25),
            "scale=320:240,fps=25",
            [
                "size 640x360 → 320x240 (its pixels are no longer square)",
                "frame rate 29.97 (30000/1001) → 25",
            ],
        ),
        (
            stream(picture(321, 241, 25), "320x240", 25),
            "crop=320:240:0:0,fps=25",
            ["size 321x241 → 320x240 (cropped: yuv420p needs even sides)"],
        ),
        (
            stream(picture(rate=25, field_order="tff"), "320x180", 25),
            "scale=320:180:interl=-1,fps=25",
            ["size 640x360 → 320x180"],
        ),
        (
            stream(picture(field_order="bff"), encoder="h265"),
            "fps=30000/1001",
            ["interlaced → whole frames: h265 has no fields"],
        ),
        (
            stream(picture(rate=30, variable=True, average_rate=Fraction(600, 29)), fps=30),
            "fps=30",
            ["variable frame rate (20.69 on average) → constant 30"],
        ),
        (
            stream(picture(pix_fmt="rgb24"), pix_fmt="yuv444p"),
            (
                "scale=out_color_matrix=bt709:out_range=tv,fps=30000/1001,"
                "format=yuv444p,setparams=range=tv:colorspace=bt709"
            ),
            ["pixel format rgb24 → yuv444p", "RGB → BT.709"],
        ),
        (
            stream(picture(pix_fmt="yuvj420p"), "320x180"),
            "scale=320:180:out_range=tv,fps=30000/1001,format=yuv420p,setparams=range=tv",
            ["size 640x360 → 320x180", "pixel format yuvj420p → yuv420p", "full range → limited range"],
        ),
        (
            stream(picture(360, 640, stored_width=640, stored_height=360, rotation=90), "360x640"),
            "fps=30000/1001",
            ["turned upright by 90° (640x360 → 360x640)"],
        ),
        (
            stream(picture(mastering_display=True), lost=("mastering display",)),
            "fps=30000/1001",
            ["HDR metadata (mastering display) → none: this ffmpeg does not pass it on"],
        ),
    ],
)
def test_what_is_changed_is_done_and_said(scenario: Scenario, filters: str, said: list[str]) -> None:
    """Each change has its filter, where FFmpeg needs one, and its line."""
    assert ",".join(clip_filters(scenario)) == filters
    assert changes_of(scenario) == said


def test_the_command_has_the_clips_settings() -> None:
    """Rate and group of pictures, pixel format, fields; no cover picture is taken for the video."""
    clip = picture(pix_fmt="yuv420p10le", field_order="tff")
    command = " ".join(
        encoder_command(FFMPEG, stream(clip, pix_fmt="yuv420p10le"), [StreamTarget("null", "matroska")], 7)
    )
    assert "-i file:a.mp4" in command
    assert "-map 0:V:0 -map 1:a:0 -vf fps=30000/1001 -c:v libx264" in command
    assert "-pix_fmt yuv420p10le" in command
    assert "-g 60 " in command
    assert "-flags:v +ilme+ildct" in command


def test_the_test_picture_is_streamed_as_ever() -> None:
    """Its command line is that of 0.1.0, word for word."""
    command = encoder_command(
        FFMPEG, stream(None, fps=30, input=""), [StreamTarget("rtmp://h/a/s", "flv")], 7
    )
    assert " ".join(command) == (
        "/usr/bin/ffmpeg -hide_banner -nostdin -nostats -loglevel warning -progress pipe:7 "
        "-re -f lavfi -i testsrc2=size=640x360:rate=30 "
        "-re -f lavfi -i sine=frequency=440:sample_rate=48000 -map 0:v:0 -map 1:a:0 "
        "-c:v libx264 -preset fast -pix_fmt yuv420p -b:v 900k -maxrate 900k -bufsize 1800k -g 60 "
        "-c:a aac -b:a 96k -t 138 -f flv -flvflags no_duration_filesize rtmp://h/a/s"
    )
    assert changes_of(stream(None, input="")) == []
