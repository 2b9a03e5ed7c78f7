"""The table of encoders: its names, what can be asked of a row, and how that is spelt."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.bench.load.encoders.rates import RateControl, parse_rate
from powerbench_agent.bench.load.encoders.spelling import (
    EncoderAsked,
    completed,
    default_rate,
    global_options,
    parse_extra,
    problems,
    upload_filter,
    video_options,
)
from powerbench_agent.bench.load.encoders.table import BY_NAME, ROWS, EncoderRow, find_row
from powerbench_agent.bench.load.trial import refusal


def spelt(encoder: str, rate: str = "", kbps: float = 1000, **asked: object) -> str:
    control = parse_rate(rate) if rate else default_rate(encoder)
    return " ".join(video_options(EncoderAsked(encoder, rate=control, gop=60, **asked), kbps))  # type: ignore[arg-type]


def test_a_name_means_one_encoder() -> None:
    """No name of one row is a name of another."""
    names = [name for row in ROWS for name in {row.name, row.known_as, *row.friendly}]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert all(name == name.lower() for name in BY_NAME)


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("h264", "libx264"),
        ("HEVC", "libx265"),
        ("av1", "libsvtav1"),
        ("vp9", "libvpx-vp9"),
        ("nvenc", "h264_nvenc"),
    ],
)
def test_people_say_codecs(name: str, encoder: str) -> None:
    """A codec's name is its usual encoder's."""
    assert find_row(name).name == encoder


def test_0_1_0_spelt_it_so() -> None:
    """The two encoders of the first version get what they got."""
    x264 = "-c:v libx264 -preset veryfast -pix_fmt yuv420p -b:v 1000k -maxrate 1000k -bufsize 2000k -g 60"
    assert spelt("h264") == x264
    x265 = x264.replace("libx264", "libx265")
    assert spelt("h265") == f"{x265} -x265-params log-level=warning"


@pytest.mark.parametrize(
    ("encoder", "rate", "has"),
    [
        ("libx264", "crf=23.5", "-crf 23.5"),
        ("libsvtav1", "cbr", "-svtav1-params rc=2:pred-struct=1"),
        ("libvpx-vp9", "crf=30", "-crf 30 -b:v 0"),
        ("librav1e", "qp=80", "-speed 8 -pix_fmt yuv420p -qp 80"),
        ("libvvenc", "qp=32", "-preset faster -pix_fmt yuv420p10le -qp 32"),
        ("h264_nvenc", "cq=30", "-rc vbr -cq 30 -b:v 0"),
        ("h264_vaapi", "qp=30", "-rc_mode CQP -qp 30"),
        ("av1_amf", "cbr", "-rc cbr -b:v 1000k"),
        ("mpeg2video", "qp=4", "-q:v 4"),
    ],
)
def test_each_encoder_has_its_own_words(encoder: str, rate: str, has: str) -> None:
    """What is asked of all in one way is spelt as each has it."""
    assert has in spelt(encoder, rate)


def test_an_encoder_without_a_constant_bitrate_gets_what_it_has() -> None:
    """The default rate control is the row's."""
    assert default_rate("librav1e") == RateControl("vbr")
    assert default_rate("copy") == RateControl("copy")
    assert spelt("copy") == "-c:v copy"


def test_parameters_join_those_of_the_row() -> None:
    """What a rate control needs is not lost beside parameters of the user's; other options replace ours."""
    extra = parse_extra(r"svtav1-params=tune=0\:film-grain=8")
    assert "-svtav1-params rc=2:pred-struct=1:tune=0:film-grain=8" in spelt("libsvtav1", "cbr", extra=extra)
    text = spelt("libvpx-vp9", extra=parse_extra("deadline=good"))
    assert "-deadline good" in text
    assert "realtime" not in text


def test_hardware_gets_its_device() -> None:
    """By a global option and an upload, or by an option of the encoder."""
    vaapi = EncoderAsked("h264_vaapi", device="/dev/dri/renderD129")
    assert global_options(vaapi) == ["-vaapi_device", "/dev/dri/renderD129"]
    assert upload_filter(vaapi) == "format=nv12,hwupload"
    assert "-pix_fmt" not in video_options(vaapi, 1000)
    assert upload_filter(vaapi._replace(pix_fmt="p010le")) == "format=p010le,hwupload"
    assert "-gpu 1" in spelt("h264_nvenc", device="1")
    assert global_options(EncoderAsked("h264_vulkan"))[:2] == ["-init_hw_device", "vulkan=vk:0"]
    assert (global_options(EncoderAsked("libx264")), upload_filter(EncoderAsked("libx264"))) == ([], "")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_can_be_asked_for_what_it_says(row: EncoderRow) -> None:
    """Defaults are without problems; the ends of each range are allowed, and what is beyond is not."""
    asked = completed(EncoderAsked(row.name, rate=default_rate(row.name), gop=60))
    assert list(problems(asked)) == []
    assert video_options(asked, 1000)[:2] == ["-c:v", row.name]
    for kind, control in row.rates.items():
        if control.high:
            for value in (control.low, control.high):
                assert list(problems(asked._replace(rate=RateControl(kind, value)))) == []
            ((key, _),) = problems(asked._replace(rate=RateControl(kind, control.high + 1)))
            assert key == "rate"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("crf", "needs a number"),
        ("cbr=5", "--bitrate"),
        ("crt=5", "did you mean crf"),
        ("crf=-1", "needs a number"),
        ("", "cbr"),
    ],
)
def test_a_rate_control_that_is_none_is_explained(text: str, words: str) -> None:
    """One line says how it is written."""
    with pytest.raises(ValueError, match=words):
        parse_rate(text)


@given(st.text(max_size=40))
def test_no_text_is_an_error_of_ours(text: str) -> None:
    """Whatever is typed is taken or refused; what is taken is written as it was read."""
    with contextlib.suppress(ValueError):
        assert parse_rate(str(parse_rate(text))) == parse_rate(text)
    with contextlib.suppress(ValueError):
        assert all(key and key.isascii() for key, _ in parse_extra(text))


@pytest.mark.parametrize(
    ("code", "printed", "reason"),
    [
        (0, ["Svt[info]: hello"], ""),
        (
            0,
            ["Incompatible pixel format 'yuv444p' for codec 'libsvtav1', auto-selecting format 'yuv420p'"],
            "Incompatible",
        ),
        (
            0,
            ["[out#0 @ 0x56] Codec AVOption crf (Select the quality) has not been used for any stream. The"],
            "Codec AVOption crf has not been used for any stream",
        ),
        (
            1,
            [
                "Svt[warn]: x",
                "[h264_nvenc @ 0x55] Cannot load libcuda.so.1",
                "[vost#0:0/h264_nvenc @ 0x5] [enc:h264_nvenc @ 0x5] Error while opening encoder",
            ],
            "Cannot load libcuda.so.1",
        ),
        (1, ["Unknown encoder 'libvvenc'"], "Unknown encoder 'libvvenc'"),
        (234, [], "it printed nothing"),
    ],
)
def test_the_first_reason_counts(code: int, printed: list[str], reason: str) -> None:
    """FFmpeg's own first cause, without addresses; a warning that an option was ignored is a refusal."""
    said = refusal(code, printed)
    assert said.startswith(reason)
    assert bool(said) == bool(reason)
