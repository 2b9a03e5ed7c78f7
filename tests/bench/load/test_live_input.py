"""Live URLs as inputs: which are taken, how ffmpeg is told to read them, and what of them is shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from powerbench_agent.bench.load.inputs import picture_input
from powerbench_agent.bench.load.live_input import (
    end_options,
    ended,
    is_live,
    parse_input,
    reading,
    shown_input,
    source_name,
    unreachable,
)
from powerbench_agent.bench.load.redact import redact_url
from powerbench_agent.bench.plan.pace import REALTIME

if TYPE_CHECKING:
    from powerbench_agent.bench.plan.scenario import Scenario

RTMP = "rtmp://bob:hunter22@media.example:1936/live/s3cr3tkey?sign=abcd1234"
SRT = "srt://10.0.0.1:9000?streamid=publish%3Acam-one&passphrase=hunter2222"


def scenario(url: str, hwaccel: str = "") -> Scenario:
    asked: Any = SimpleNamespace(input=url, hwaccel=hwaccel, pace=REALTIME, to_end=False)
    found: Scenario = asked
    return found


@pytest.mark.parametrize(
    "url",
    [
        "rtmp://host/live/key",
        "rtmps://host/live/key",
        "srt://host:9000?mode=caller",
        "srt://:9000?mode=listener",
        "udp://@239.0.0.1:1234",
        "udp://:1234",
        "rtp://239.0.0.1:5004",
        "rtsp://user:word@[2001:db8::1]:554/stream",
        "tcp://host:5000",
        "http://host/index.m3u8",
        "https://host/clip.mp4?token=x",
    ],
)
def test_a_live_url_is_taken_as_it_stands(url: str) -> None:
    """Every scheme, with what belongs to it."""
    assert is_live(url)
    assert parse_input(url) == url


@pytest.mark.parametrize("path", ["clip.mp4", "/a/b c.mkv", "./rtmp:/x", "rtmp:/host/x", "-i", ""])
def test_a_path_is_no_url(path: str) -> None:
    """A path goes through unchecked, and is opened as a file."""
    assert not is_live(path)
    assert parse_input(path) == path
    assert reading(path) == ["-i", f"file:{path}"]
    assert (shown_input(path), ended(path, 3), end_options(path, (9, 0))) == (path, "", [])


def test_the_scheme_is_written_as_ffmpeg_knows_it() -> None:
    """FFmpeg takes RTMP:// for the name of a file."""
    assert parse_input("RTMP://Host/live/Key") == "rtmp://Host/live/Key"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("rtmpx://host/a/SECRET", r"^rtmpx:// cannot be read; use one of rtmp, .*; did you mean rtmp"),
        ("concat://a/SECRET", "^concat:// cannot be read"),
        ("file:///etc/SECRET", "^file://: a clip is given as its path"),
        ("rtmp:///live/SECRET", "^rtmp:///live/.*: lacks a host; write it like rtmp://HOST/"),
        ("http://", "lacks a host"),
        ("udp://239.0.0.1", "lacks a port; write it like udp://HOST:PORT"),
        ("tcp://:5000", "lacks a host"),
        ("rtmp://host:99999/a/SECRET", "^rtmp://: the host or the port of the URL cannot be understood"),
        ("rtmp://[::1/a/SECRET", "cannot be understood"),
        ("rtmp://host/a/SECRET key", "no space"),
        ("rtmp://host/a/SECRET\x1b[2J", "printable characters"),
        ("rtmp://host/a/SECRET\n", "printable characters"),
        ("rtmp://ho\x1b[2Jst/a\u202e/SECRET", "printable characters"),
        ("rtmp://host/a/SECRET" + "x" * 2048, "at most 2048 printable characters"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_in_one_line(url: str, said: str) -> None:
    """What is wrong with it and what to do; never what it hides, and nothing that harms a terminal."""
    with pytest.raises(ValueError, match=said) as refused:
        parse_input(url)
    assert str(refused.value).isprintable()
    assert "SECRET" not in str(refused.value)


def test_a_scenario_is_named_by_the_host() -> None:
    """Not by the path, which ends with the key; without a host by what is listened to."""
    assert source_name(RTMP) == "media.example"
    assert source_name("udp://:1234") == "udp-1234"


def options_of(url: str) -> dict[str, str]:
    *options, dash_i, name = reading(url)
    assert (dash_i, name) == ("-i", url)
    return dict(zip(options[::2], options[1::2], strict=True))


@pytest.mark.parametrize(
    "url", ["rtmp://h/a/k", "rtmps://h/a/k", "srt://h:1", "udp://h:1", "tcp://h:1", "http://h/", "https://h/"]
)
def test_no_source_is_waited_for_without_end(url: str) -> None:
    """Each that has one in every release gets a time limit, in microseconds."""
    found = options_of(url)
    limit = found.get("-rw_timeout") or found["-timeout"]
    assert 1_000_000 <= int(limit) <= 20_000_000


@pytest.mark.parametrize("url", ["rtmp://h/a/k", "srt://h:1", "udp://h:1", "rtp://h:1", "http://h/x.m3u8"])
def test_no_source_can_have_a_file_opened(url: str) -> None:
    """The protocols are named that a source may lead to; those that read this machine are not among them."""
    allowed = set(options_of(url)["-protocol_whitelist"].split(","))
    assert allowed.isdisjoint({"file", "concat", "concatf", "subfile", "pipe", "fd", "unix", "data", "async"})


def test_what_the_url_says_itself_is_left_to_it() -> None:
    """FFmpeg's own options in a URL stand; a web server's query is none of them."""
    assert "-timeout" not in options_of("udp://h:1?timeout=5")
    assert options_of("udp://h:1?timeout=5")["-overrun_nonfatal"] == "1"
    assert "-connect_timeout" not in options_of("srt://h:1?connect_timeout=5")
    assert options_of("http://h/?rw_timeout=5")["-rw_timeout"] == "10000000"


@pytest.mark.parametrize(
    ("url", "paced"), [("http://h/clip.mp4", True), ("https://h/i.m3u8", True), ("rtmp://h/a/k", False)]
)
def test_a_web_server_is_read_in_real_time(url: str, *, paced: bool) -> None:
    """It sends as fast as it can; others keep the time themselves. Neither is looped."""
    found = picture_input(scenario(url, "vaapi"), (5, 1))
    assert found[:2] == ["-hwaccel", "vaapi"]
    assert ("-re" in found) is paced
    assert "-stream_loop" not in found


@pytest.mark.parametrize(
    ("release", "has_queue"), [((4, 1), False), ((5, 1), False), ((6, 0), True), ((0, 0), True)]
)
def test_a_stream_ends_with_its_live_input(release: tuple[int, int], *, has_queue: bool) -> None:
    """Its tone goes on for ever; the queue that 6.0 brought is kept short."""
    found = end_options(RTMP, release)
    assert found[0] == "-shortest"
    assert ("-shortest_buf_duration" in found) is has_queue


def test_a_source_that_has_gone_is_named() -> None:
    """By what is shown of it, and after how long."""
    said = "its input rtmp://***@media.example:1936/live/*** ended, or cut the connection, after 12 s"
    assert ended(RTMP, 12.3) == said
    assert unreachable(RTMP, f"{redact_url(RTMP)}: I/O error").startswith(
        f"its input {redact_url(RTMP)} could not be"
    )
    assert unreachable(RTMP, "rtmp://sink/live: Connection refused") == ""
