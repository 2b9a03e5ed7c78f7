"""What a stream is: what its feeder states, and what FFmpeg's stderr says of it."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import CAPTURES

from powerbench_agent.core.identity import UNKNOWN, IdentityReader, StreamIdentity, stated, tell, told
from powerbench_agent.core.logged import MAX_LINE, unwrap
from powerbench_agent.core.progress import ProgressParser

SAID = {  # by a run of each version; the same but for what is named
    "stderr_5.1_rtmp": StreamIdentity("h264", "libx264", "", "1280x720", "30", "flv"),
    "stderr_9.0_sample": StreamIdentity("h264", "libx264", "", "640x360", "30", "flv"),
    "status_5.1_level": StreamIdentity("h264", "libx264", "", "320x180", "25", "mp4"),
    "status_9.0_datetime_level": StreamIdentity("h264", "libx264", "", "320x180", "25", "mp4"),
    "status_5.1_two_outputs": StreamIdentity("h264", "libx264", "", "320x180", "25", "mp4"),
    "status_9.0_two_outputs": StreamIdentity("h264", "libx264", "", "320x180", "25", "mp4"),
    "status_5.1_audio_only": None,
    "status_9.0_audio_only": None,
    # A first output without video; a clip whose title is one of these lines, and whose own tag is libx264.
    "identity_5.1_copy_after_audio": StreamIdentity("h264", "copy", "", "320x180", "29.97", "mpegts"),
    "identity_9.0_copy_after_audio": StreamIdentity("h264", "copy", "", "320x180", "29.97", "mpegts"),
    # Encoders after filters; the second output is smaller.
    "identity_5.1_ladder": StreamIdentity("mpeg4", "mpeg4", "", "320x180", "29.97", "mpegts"),
    "identity_9.0_ladder": StreamIdentity("mpeg4", "mpeg4", "", "320x180", "29.97", "mpegts"),
}

# As FFmpeg 4.x writes it: the encoder beside the codec, and other figures.
STDERR_4 = b"""\
Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'clip=1.mp4':
  Metadata:
    encoder         : Lavf57.83.100
  Duration: 00:00:05.00, start: 0.000000, bitrate: 1205 kb/s
    Stream #0:0(und): Video: h264 (High) (avc1 / 0x31637661), yuv420p, 1920x1080 [SAR 1:1 DAR 16:9], 25 fps
Stream mapping:
  Stream #0:0 -> #0:0 (h264 (native) -> h264 (h264_nvenc))
Press [q] to stop, [?] for help
Output #0, flv, to 'rtmp://host/live/key':
  Metadata:
    encoder         : Lavf58.45.100
    Stream #0:0(und): Video: h264 (h264_nvenc) (Main) ([7][0][0][0] / 0x0007), yuv420p, 1280x720 \
[SAR 1:1 DAR 16:9], q=-1--1, 2000 kb/s, 23.98 fps, 1k tbn, 23.98 tbc (default)
    Metadata:
      encoder         : Lavc58.91.100 h264_nvenc
"""
FROM_4 = StreamIdentity("h264", "h264_nvenc", "", "1280x720", "23.98", "flv")


def read(content: bytes) -> StreamIdentity | None:
    reader = IdentityReader()
    for logged in content.splitlines(keepends=True):
        for line in unwrap(logged):
            reader.line(line)
    return reader.identity


def without(content: bytes, *words: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join(line for line in lines if not any(word in line for word in words))


# -- what FFmpeg says --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAID)
def test_a_real_run_says_what_it_is(name: str) -> None:
    """Every report of a real run comes with what that run said of its first output's video."""
    parser = ProgressParser()
    reports = parser.feed((CAPTURES / f"{name}.log").read_bytes())
    assert reports
    assert {report.identity for report in reports} == {SAID[name]}


def test_ffmpeg_4() -> None:
    """4.x's form is read likewise, and the input's size is not the stream's."""
    assert read(STDERR_4) == FROM_4


def test_the_tag_says_who_encodes_if_nothing_else_does() -> None:
    """Without the mapping, as in a log that begins late, the encoder's own tag counts."""
    assert read(without(STDERR_4, b"->")) == FROM_4
    assert read(without(STDERR_4, b"->", b"Lavc")) == FROM_4._replace(encoder="")


def test_the_mapping_may_follow() -> None:
    """A stream that is copied is known for a copy, whoever encoded it and whatever is written first."""
    mapping = b"Stream mapping:\n  Stream #0:0 -> #0:0 (copy)\n"
    assert read(without(STDERR_4, b"->") + mapping) == FROM_4._replace(encoder="copy")


def test_another_order_of_the_outputs() -> None:
    """The first output is the stream even if another one is written before it."""
    second = b"Output #1, mp4, to 'x':\n    Stream #1:0: Video: hevc, yuv420p, 640x360, 30 fps\n"
    start = STDERR_4.index(b"Output #0")
    reader = IdentityReader()
    for line in (STDERR_4[:start] + second).splitlines():
        reader.line(line)
    assert reader.identity is None  # rather than the second one's
    for line in STDERR_4[start:].splitlines():
        reader.line(line)
    assert reader.identity == FROM_4
    assert read(STDERR_4 + second) == FROM_4


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            b"Stream #0:0[0x100](eng): Video: h264 (High) ([27][0][0][0] / 0x001B), yuv420p, 1x2, 1k fps",
            "1000",
        ),
        (
            b"Stream #0:0: Video: h264, yuv420p(tv, bt709, progressive), 1x2, q=2-31, 59.94 fps, 90k tbn",
            "59.94",
        ),
        (b"Stream #0:0, 0, 1/90000: Video: h264, yuv420p, 1x2 [SAR 1:1 DAR 16:9], 0/1, 25 fps", "25"),
        (b"Stream #0:0: Video: h264, yuv420p, 1x2, q=2-31, 200 kb/s", ""),
    ],
)
def test_forms_of_a_stream(line: bytes, shown: str) -> None:
    """Languages, ids and colours may be there, a rate may be missing."""
    said = read(b"Output #0, mpegts, to 'x':\n  " + line + b"\n")
    assert said == StreamIdentity("h264", "", "", "1x2", shown, "mpegts")


PREFIXES = {
    "level": b"[info] ",
    "date and level": b"2026-11-30 02:40:33.312 [info] ",
    "docker compose": b"cam1-1          | ",
    "kubernetes": b"2026-11-30T02:40:33.312000000Z stderr F ",
    "journald": b"Nov  3 02:40:33 worker1 ffmpeg[4242]: ",
    "supervisor": b"cam1:out:",
    "colours": b"\x1b[0;32m[info] \x1b[0m",
    "quotes": b'level=info msg="',
}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_a_prefix_changes_nothing(prefix: bytes) -> None:
    """What loggers put before each line changes nothing."""
    assert read(b"".join(prefix + line for line in STDERR_4.splitlines(keepends=True))) == FROM_4


def test_json_changes_nothing() -> None:
    """Nor does a log of JSON objects."""
    lines = [json.dumps({"log": f"{line}\n"}) for line in STDERR_4.decode().splitlines()]
    parser = ProgressParser()
    (report,) = parser.feed("\n".join([*lines, '{"log": "frame=1\\nprogress=end\\n"}\n']).encode())
    assert report.identity == FROM_4


@pytest.mark.parametrize(
    "line",
    [
        b"    title           : Output #0, mp4, to 'x'\n",
        b"    title           :   Stream #0:0: Video: vp9, yuv420p, 64x64, 1 fps\n",
        b"      comment         :       encoder         : Lavc1.1.1 other\n",
        b"    a_very_long_key_of_the_attacker's: Stream #0:0 -> #0:0 (copy)\n",
        b"                    : Output #0, mp4, to 'x'\n",
        b"[hls @ 0x55] Opening 'Output #0, mp4, to 'x' for writing\n",
        b"[in#0 @ 0x55] Stream #0:0: Video: vp9, yuv420p, 64x64, 1 fps\n",
        b"Stream #0:0 -> #0:9 (copy)\n",
        b"Stream #0:x: Video: vp9, yuv420p, 64x64\n",
        b"  Stream #1:0: Video: vp9, yuv420p, 64x64, 1 fps\n",
        b"  Stream #0:1: Video: vp9, yuv420p, 64x64, 1 fps\n",
        b"  Stream #0:2: Audio: aac, 64x64\n      encoder         : Lavc58.91.100 aac\n",
    ],
)
@pytest.mark.parametrize("at", [b"  Duration", b"Stream mapping", b"    Metadata:\n      encoder", b"\n"])
def test_other_words_change_nothing(line: bytes, at: bytes) -> None:
    """Metadata, messages and other streams do not make a stream another one, wherever they stand."""
    before, found, after = STDERR_4.rpartition(at)
    assert found
    assert read(before + (b"\n" if at == b"\n" else b"") + line + found + after) == FROM_4


def test_a_run_ends_with_its_last_report() -> None:
    """A next run on the same connection that says nothing of itself is not what the last one was."""
    block = b"frame=5\nprogress=%s\n"
    parser = ProgressParser()
    reports = parser.feed(STDERR_4 + block % b"continue" + block % b"end" + block % b"continue")
    assert [report.identity for report in reports] == [FROM_4, FROM_4, None]


def test_a_run_begins_with_its_first_input() -> None:
    """A next run after one that was killed has its own size, or none yet."""
    killed = STDERR_4 + b"frame=5\nprogress=continue\n"
    parser = ProgressParser()
    reports = parser.feed(killed + b"Input #0, lavfi, from 'x':\n" + b"frame=1\nprogress=continue\n")
    assert [report.identity for report in reports] == [FROM_4, None]
    assert parser.feed(b"Input #1, lavfi, from 'y':\n" + killed)[0].identity == FROM_4


@given(st.binary(max_size=300))
def test_any_line(line: bytes) -> None:
    """Whatever a line holds, what is read of it can be a label."""
    for content in (line, b"Output #0, " + line, STDERR_4 + b"  Stream #0:0: Video: " + line):
        for value in read(content) or UNKNOWN:
            assert len(value) <= 40
            assert value.isascii()
            assert value.isprintable()


@pytest.mark.parametrize(
    "line",
    [
        b"#" + b" " * MAX_LINE,
        b"#" + b"    : " * (MAX_LINE // 6) + b"Input #0, ",
        b"Stream #0:0(" * (MAX_LINE // 12),
        b"Stream #0:0 -> #0:0 (" + b"(" * MAX_LINE,
        b"Stream #0:0 -> #0:0 (-> " * (MAX_LINE // 24),
        b"Output #0, " + b"a," * (MAX_LINE // 2),
        b"encoder" + b" " * 9 * 400 + b": Lavc",
        b"encoder  : Lavc" * (MAX_LINE // 15),
        b"Output #0, mp4, to '\n  Stream #0:0: Video: " + b", 1x" * (MAX_LINE // 4),
    ],
)
def test_hostile_lines_take_no_time(line: bytes) -> None:
    """No line, however it is built, takes long."""
    started = time.process_time()
    read(line[: MAX_LINE + 40])
    assert time.process_time() - started < 0.02


def test_what_is_remembered_is_bounded() -> None:
    """A log of endless outputs and mappings is not kept."""
    reader = IdentityReader()
    for number in range(5000):
        reader.line(b"Output #%d, mp4, to 'x'" % number)
        reader.line(b"  Stream #0:0 -> #%d:0 (copy)" % number)
    held = [value for value in vars(reader).values() if isinstance(value, dict)]
    assert held
    assert all(len(value) <= 64 for value in held)


# -- what is stated ----------------------------------------------------------------------------------


def test_what_a_feeder_states() -> None:
    """Every field is taken by its name; others are none of ours."""
    given_ = {
        "codec": "hevc",
        "encoder": "hevc_nvenc",
        "preset": "p4",
        "resolution": "1920x1080",
        "fps": "30",
        "container": "mpegts",
    }
    assert stated({**given_, "token": "secret", "stream": "cam1"})._asdict() == given_
    assert stated(given_).known() == given_
    assert stated({}) is UNKNOWN


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("fps", "30000/1001", "29.97"),
        ("fps", "24000/1001", "23.98"),
        ("fps", "25.000", "25"),
        ("fps", "60", "60"),
        ("fps", "30/0", ""),
        ("fps", "0", ""),
        ("fps", "nan", ""),
        ("fps", "-5", ""),
        ("fps", "1e3", ""),
        ("fps", "\u0663\u0660", ""),
        ("resolution", "01280x0720", "1280x720"),
        ("resolution", "0x0", ""),
        ("resolution", "1280x720x3", ""),
        ("resolution", "100000x100000", ""),
        ("resolution", "720p", ""),
        ("resolution", "\u0661\u0662x\u0661", ""),
        ("preset", "8", "8"),
        ("preset", "very fast", ""),
        ("preset", "a" * 41, ""),
        ("encoder", 'x"} 1\n', ""),
        ("encoder", "libx264\n", ""),
        ("encoder", "é", ""),
        ("codec", "-", ""),
    ],
)
def test_values_are_checked(field: str, value: str, shown: str) -> None:
    """A value that is none of its field's is left out, and rates are written as FFmpeg writes them."""
    assert stated({field: value})._asdict()[field] == shown
    assert (stated({field: value}) == UNKNOWN) is not bool(shown)


def test_pixels() -> None:
    """A frame's pixels, 0 if the size is not known."""
    assert StreamIdentity(resolution="1280x720").pixels == 921_600
    assert UNKNOWN.pixels == 0


# -- what a forwarder tells --------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}", fullmatch=True) | st.just("")
TOLD = st.builds(
    StreamIdentity,
    codec=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,39}", fullmatch=True) | st.just(""),
    encoder=NAMES,
    preset=st.just(""),
    resolution=st.from_regex(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", fullmatch=True) | st.just(""),
    fps=st.sampled_from(["", "25", "29.97", "1000"]),
    container=NAMES,
)


@given(TOLD)
def test_what_is_told_is_what_is_known(identity: StreamIdentity) -> None:
    """Whatever was known before, the forwarder's lines say everything that can be told, and nothing else."""
    lines = tell(identity)
    assert read(STDERR_4 + lines) == (None if identity == UNKNOWN else identity)
    assert told(lines + b"frame=1\n") == lines
    assert told(b"frame=1\n" + lines) == b""


def test_nothing_is_told_as_well() -> None:
    """A run that says nothing of itself is told, too."""
    assert read(STDERR_4 + tell(None)) is None
