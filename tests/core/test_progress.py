"""FFmpeg's progress: real captures cut anywhere, and anything that is not progress."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from places import CAPTURES

from powerbench_agent.core.identity import StreamIdentity
from powerbench_agent.core.progress import MAX_LINE, ProgressParser, Report

if TYPE_CHECKING:
    from pathlib import Path

BLOCKS = sorted(CAPTURES.glob("progress_*.txt"))
STATUS = sorted(CAPTURES.glob("stderr_*.log"))
FORMS = sorted(CAPTURES.glob("status_*.log"))  # the other forms of status lines
EVERY = BLOCKS + STATUS + FORMS


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def parse(*pieces: bytes) -> list[Report]:
    """Return the reports of a connection that brings these pieces and ends."""
    parser = ProgressParser()
    return [report for piece in pieces for report in parser.feed(piece)] + parser.close()


def block(**fields: object) -> bytes:
    lines = {"progress": "continue", **fields}
    last = lines.pop("progress")
    return (
        "".join(f"{key}={value}\n" for key, value in lines.items()).encode() + f"progress={last}\n".encode()
    )


def only(reports: list[Report]) -> Report:
    assert len(reports) == 1
    return reports[0]


# -- captures ----------------------------------------------------------------------------------------


def test_captures_are_there() -> None:
    """Both versions' blocks and status lines are among the captures."""
    assert len(BLOCKS) == 4
    assert len(STATUS) == 2
    assert len(FORMS) == 6


@pytest.mark.parametrize("path", EVERY, ids=names(EVERY))
def test_byte_by_byte(path: Path) -> None:
    """A capture that arrives a byte at a time gives the same reports as at once."""
    content = path.read_bytes()
    whole = parse(content)
    assert whole
    assert parse(*(content[at : at + 1] for at in range(len(content)))) == whole


@pytest.mark.parametrize("path", EVERY, ids=names(EVERY))
@given(data=st.data())
def test_cut_anywhere(path: Path, data: st.DataObject) -> None:
    """A capture that is cut anywhere gives the same reports as at once."""
    content = path.read_bytes()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=12)))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert parse(*pieces) == parse(content)


@pytest.mark.parametrize("path", BLOCKS, ids=names(BLOCKS))
def test_block_captures_say_what_they_say(path: Path) -> None:
    """Every block is one report with the block's own figures, and the last one ends the run."""
    text = path.read_text()
    reports = parse(path.read_bytes())
    blocks = re.split(r"(?<=progress=continue\n)", text)
    assert len(reports) == len(blocks)
    for said, report in zip(blocks, reports, strict=True):
        fields = dict(line.split("=", 1) for line in said.splitlines())
        size = fields["total_size"]
        assert report == Report(
            frames=int(fields["frame"]) if "frame" in fields else None,
            size=None if size == "N/A" else int(size),
            media=int(fields["out_time_us"]) / 1e6,
            dropped=int(fields["drop_frames"]),
            duplicated=int(fields["dup_frames"]),
            ended=fields["progress"] == "end",
        )
    assert [report.ended for report in reports] == [False] * (len(reports) - 1) + [True]


def test_null_muxer_has_no_size() -> None:
    """`total_size=N/A` is a figure that was not said, never 0."""
    reports = parse((CAPTURES / "progress_5.1_null_NA.txt").read_bytes())
    assert {report.size for report in reports} == {None}
    assert reports[-1].frames == 60


def test_audio_only_has_no_frames() -> None:
    """An audio run says no frames, and its size and time all the same."""
    reports = parse((CAPTURES / "progress_5.1_audio_only.txt").read_bytes())
    assert {report.frames for report in reports} == {None}
    assert reports[-1] == Report(None, 18236, 2.020136, 0, 0, ended=True)


def test_status_lines_of_5_1() -> None:
    """The status lines among 5.1's log are its reports, in bytes and seconds; `Lsize` ends the run."""
    reports = parse((CAPTURES / "stderr_5.1_rtmp.log").read_bytes())
    said = StreamIdentity("h264", "libx264", "", "1280x720", "30", "flv")
    assert reports[0] == Report(1, 0, 0.0, None, None, ended=False, identity=said)
    assert reports[2].size == 48 * 1024
    assert reports[-1] == Report(480, 4174 * 1024, 16.0, None, None, ended=True, identity=said)
    assert [report.ended for report in reports].count(True) == 1
    assert [report.frames for report in reports] == sorted(report.frames or 0 for report in reports)


def test_status_lines_of_9_0() -> None:
    """9.0's status lines, with KiB and elapsed, are read likewise."""
    reports = parse((CAPTURES / "stderr_9.0_sample.log").read_bytes())
    assert reports[-1].frames == 120
    assert reports[-1].ended
    assert reports[-1].size
    assert reports[-1].media
    assert all(report.size is not None for report in reports)


def test_wire_capture() -> None:
    """What 9.0 really sends over HTTP, chunk by chunk, is one report a chunk."""
    chunks = re.findall(r"b'[0-9a-f]+\\r\\n(frame=.*?)\\r\\n'", (CAPTURES / "wire_http_9.0.txt").read_text())
    parser = ProgressParser()
    reports = [only(parser.feed(chunk.replace("\\n", "\n").encode())) for chunk in chunks]
    assert [report.frames for report in reports] == [26, 41, 56, 60]
    assert [report.ended for report in reports] == [False, False, False, True]


# -- the last status line ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", STATUS + FORMS, ids=names(STATUS + FORMS))
def test_the_last_status_line_of_a_real_run_ends_it(path: Path) -> None:
    """Audio alone, two outputs and prefixes: the run's last report is its end, and no other is."""
    ended = [report.ended for report in parse(path.read_bytes())]
    assert len(ended) > 2
    assert ended == [False] * (len(ended) - 1) + [True]


@pytest.mark.parametrize("path", STATUS + FORMS, ids=names(STATUS + FORMS))
def test_a_log_that_ends_every_line_with_a_line_feed(path: Path) -> None:
    """Where a log turns carriage returns into line feeds, a line is no end, and the end is still found."""
    content = path.read_bytes()
    reports = parse(content.replace(b"\r", b"\n"))
    expected = parse(content)
    assert [report for report in reports if not report.ended] == [
        report._replace(ended=False) for report in expected[: len(reports) - 1]
    ]
    assert reports[-1] == expected[-1]


@pytest.mark.parametrize("path", FORMS, ids=names(FORMS))
def test_a_log_of_a_terminal(path: Path) -> None:
    """A terminal writes line feeds as two bytes: the end is found, wherever they are cut."""
    content = path.read_bytes().replace(b"\n", b"\r\n")
    reports = parse(content)
    assert reports[-1].ended
    assert [report.ended for report in reports].count(True) == 1
    assert parse(*(content[at : at + 1] for at in range(len(content)))) == reports


AUDIO = b"size=     %dkB time=00:00:%02d.00 bitrate= 128.0kbits/s speed=   1x    "
SUMMARY = b"video:0kB audio:27kB subtitle:0kB other streams:0kB global headers:0kB muxing overhead: 1%\n"


def test_a_line_feed_is_an_end_only_after_carriage_returns() -> None:
    """A line feed ends the run if other lines ended with a carriage return, and else it is one of many."""
    lines = [AUDIO % (n, n) for n in range(3)]
    returns = b"\r".join(lines) + b"\n"
    feeds = b"\n".join(lines) + b"\n"
    assert [report.ended for report in parse(returns)] == [False, False, True]
    assert [report.ended for report in parse(feeds)] == [False, False, False]
    assert [report.ended for report in parse(feeds + SUMMARY)] == [False, False, False, True]
    assert [report.ended for report in parse(returns + SUMMARY)] == [False, False, True]


def test_a_status_line_that_a_logger_has_cut_is_no_end() -> None:
    """A line feed in the middle of a status line ends no run."""
    cut = b"size=       1kB time=00:00:01.00 bitrate= 128.0kb\n"
    assert [report.ended for report in parse(AUDIO % (0, 0) + b"\r" + cut)] == [False, False]


def test_a_killed_run_has_no_end() -> None:
    """A status line that the connection's end cuts off is no end without a mark of its own."""
    assert [report.ended for report in parse(AUDIO % (0, 0) + b"\r" + AUDIO % (1, 1))] == [False, False]


def test_both_forms_of_the_only_report_are_one() -> None:
    """With `2>&1` a run that ends before its second report gives its last status line and its block: once."""
    status = b"frame=   25 fps=0.0 q=-1.0 Lsize=      48kB time=00:00:01.00 bitrate= 1kbits/s speed=2x    \n"
    last = block(frame=25, total_size=49_000, progress="end")
    reports = parse(status + last + last)
    assert [(report.frames, report.ended) for report in reports] == [(25, True), (25, True)]


# -- figures that are none ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    ["N/A", "nan", "-nan", "inf", "-1", "-9223372036854775808", "", " ", "1e5", "1.5", "0x10", "٣", "9" * 30],
)
def test_odd_values_are_none(odd: str) -> None:
    """Anything but a whole number of 0 or more is None; the block's other figures stay."""
    for key, field in (("frame", "frames"), ("total_size", "size"), ("out_time_us", "media")):
        report = only(parse(block(**{key: odd, "drop_frames": 7})))
        assert getattr(report, field) is None
        assert report.dropped == 7


def test_out_time_ms_is_microseconds() -> None:
    """`out_time_ms` is read as what it is: microseconds."""
    assert only(parse(block(out_time_ms=2_500_000))).media == 2.5


def test_speed_in_exponents_does_no_harm() -> None:
    """`speed=6.21e+03x` and its neighbours are not looked at."""
    report = only(parse(block(frame=5, fps="0.00", speed="6.21e+03x", bitrate="  -0.0kbits/s")))
    assert report.frames == 5


def test_spaces_around_values() -> None:
    """Padding around a value is not part of it."""
    assert only(parse(b"frame=   42  \r\ntotal_size=  9 \nprogress= continue \n")) == Report(
        42, 9, None, None, None, ended=False
    )


def test_a_block_knows_nothing_of_the_last() -> None:
    """A figure that a block does not repeat is unsaid, not the block before's."""
    second = parse(block(frame=5, total_size=10), block(frame=6))[1]
    assert second.size is None


def test_unknown_progress_is_no_report() -> None:
    """`progress=` with another word completes nothing, and its block is dropped."""
    assert parse(block(frame=5, progress="maybe")) == []
    assert only(parse(block(frame=5, progress="maybe"), block(total_size=3))).frames is None


def test_status_line_without_figures() -> None:
    """A status line of a null muxer before its first packet says what it says."""
    line = b"frame=    0 fps=0.0 q=0.0 size=N/A time=N/A bitrate=N/A speed=N/A    \r"
    assert only(parse(line)) == Report(0, None, None, None, None, ended=False)


def test_negative_time_in_a_status_line() -> None:
    """A negative time in a status line is unsaid."""
    line = b"frame=    9 fps=0.0 q=0.0 size=       1kB time=-00:00:00.02 bitrate=  -0.0kbits/s speed=N/A\r"
    assert only(parse(line)).media is None


def test_audio_status_line() -> None:
    """An audio run's status line starts at its size."""
    line = b"size=      76KiB time=01:02:03.50 bitrate= 0.2kbits/s speed=   1x elapsed=1:02:03.5\r"
    assert only(parse(line)) == Report(None, 76 * 1024, 3723.5, None, None, ended=False)


def test_dropped_and_duplicated_in_a_status_line() -> None:
    """`dup=` and `drop=` are read where a status line has them."""
    line = b"frame=  123 fps= 30 q=28.0 size=     512kB time=00:00:04.10 dup=2 drop=3\r"
    report = only(parse(line))
    assert (report.duplicated, report.dropped) == (2, 3)


# -- both forms at once ------------------------------------------------------------------------------

STATUS_LINE = (
    b"frame=  %d fps= 30 q=28.0 size=     512kB time=00:00:04.10 bitrate= 512.0kbits/s speed=1.0x    \r"
)


def test_blocks_silence_status_lines() -> None:
    """With `2>&1` a connection is read for its blocks alone, from the first block on."""
    reports = parse(
        STATUS_LINE % 1, block(frame=2), STATUS_LINE % 3, b"[x264] noise=1\n", block(frame=4, progress="end")
    )
    assert [report.frames for report in reports] == [1, 2, 4]


@pytest.mark.parametrize("end", [b"", b"\r", b"\n"], ids=["none", "carriage return", "line feed"])
def test_last_status_line_without_an_end(end: bytes) -> None:
    """A status line that the connection's end cuts off is still taken at close()."""
    parser = ProgressParser()
    line = b"frame=  480 fps= 29 q=-1.0 Lsize=    4174kB time=00:00:16.00 bitrate=2137.0kbits/s speed=0.981x"
    reports = parser.feed(line + end)
    assert bool(reports) is bool(end)
    assert only(reports + parser.close()) == Report(480, 4174 * 1024, 16.0, None, None, ended=True)


def test_last_block_without_an_end() -> None:
    """`progress=end` without its line end is taken at close()."""
    assert only(parse(b"frame=9\nprogress=end")).ended


def test_unfinished_block_is_no_report() -> None:
    """Half a block, as a killed run leaves it, gives no report."""
    assert parse(b"frame=9\ntotal_size=100\n") == []


# -- hostile bytes -----------------------------------------------------------------------------------


def test_long_line_is_skipped_whole() -> None:
    """A line longer than any of FFmpeg's is skipped to its end, and what follows is read."""
    rest = only(parse(b"frame=1" * MAX_LINE, b"frame=3\n", block(total_size=5)))
    assert (rest.frames, rest.size) == (None, 5)
    assert only(parse(b"x" * (MAX_LINE + 1) + b"\n" + block(frame=5))).frames == 5


@given(
    length=st.integers(MAX_LINE - 3, MAX_LINE + 3), cuts=st.lists(st.integers(0, MAX_LINE + 30), max_size=4)
)
def test_limit_of_a_line_does_not_depend_on_cuts(length: int, cuts: list[int]) -> None:
    """Whether a line is too long is a matter of its length, not of how it arrives."""
    content = b"frame=7".ljust(length) + b"\nprogress=continue\n"
    cuts = sorted(cuts)
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert parse(*pieces) == parse(content)


@pytest.mark.parametrize("chunk", [b"x" * 65536, b"frame=1" * 9000, b"\xff\x00" * 30000])
def test_memory_is_bounded(chunk: bytes) -> None:
    """Endless bytes without a line end, or endless keys, are not kept."""
    parser = ProgressParser()
    for number in range(200):
        assert parser.feed(chunk) == []
        parser.feed(b"key%d=%d\n" % (number, number))
    held = sum(sys.getsizeof(held) for held in vars(parser).values())
    held += sum(sys.getsizeof(held) for item in parser._block.items() for held in item)
    assert held < 4 * MAX_LINE


PIECES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"\r",
            b"\n",
            b"=",
            b"frame=",
            b"progress=continue\n",
            b"progress=end\n",
            b"size=",
            b"Lsize= 5kB time=",
            b"N/A",
        ]
    ),
    st.builds(lambda number: b"%d" % number, st.integers()),
)


@given(pieces=st.lists(PIECES, max_size=30))
@example(pieces=[b"frame=1 time=:::\n", b"frame= time=\n"])
@example(pieces=[b"progress=", b"=", b"\n" * 10])
def test_any_bytes(pieces: list[bytes]) -> None:
    """No bytes whatever raise, and whatever a report says is a figure from 0 on."""
    for report in parse(*pieces):
        assert all(figure is None or figure >= 0 for figure in report[:-1])


@given(pieces=st.lists(PIECES, max_size=20), cut=st.integers(0, 100))
def test_any_bytes_cut_anywhere(pieces: list[bytes], cut: int) -> None:
    """Any bytes give the same reports however they are cut."""
    whole = b"".join(pieces)
    assert parse(whole[:cut], whole[cut:]) == parse(whole) == parse(*pieces)
