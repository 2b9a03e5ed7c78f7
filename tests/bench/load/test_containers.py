"""In which container an output travels, and which take which codec."""

from __future__ import annotations

import pytest

from powerbench_agent.bench.load.containers import choose_container, copy_container, misfit


@pytest.mark.parametrize(
    ("sink", "codec", "container"),
    [
        ("nginx", "h264", "flv"),
        ("rtmps://h/a/b", "hevc", "flv"),
        ("srt://h:9", "h264", "mpegts"),
        ("udp://h:9", "hevc", "mpegts"),
        ("tcp://h:9", "av1", "nut"),
        ("tcp://h:9", "vvc", "mpegts"),
        ("null", "vvc", "matroska"),
        ("null", "copy", "nut"),
        ("file:/a/b.MP4", "h264", "mp4"),
        ("file:/a/b_{}.webm", "av1", "webm"),
        ("file:/a.b/c", "h264", "matroska"),
    ],
)
def test_a_sink_has_its_container(sink: str, codec: str, container: str) -> None:
    """Servers and ports have theirs, and a file that of its name's end."""
    assert choose_container(codec, sink, (7, 1)) == container


def test_what_comes_to_this_process_is_no_flv() -> None:
    """A ladder's renditions do not pass an RTMP server."""
    assert choose_container("h264", "embedded", (7, 1), direct=True) == "nut"
    assert choose_container("h264", "embedded", (7, 1)) == "flv"
    assert [copy_container(codec) for codec in ("av1", "vvc")] == ["nut", "mpegts"]


@pytest.mark.parametrize(
    ("codec", "sink", "said"),
    [
        ("av1", "srt://h:9", "mpegts does not take av1: use embedded, tcp://"),
        ("h264", "file:/a.webm", "webm does not take h264: use file:OUT.mkv"),
        ("vvc", "file:/a.nut", "nut does not take vvc"),
        ("h264", "file:/a.avi", "name a file that ends in .flv, .mkv"),
        ("h264", "srt://h:9", ""),
        ("copy", "srt://h:9", ""),
        ("av1", "file:/a.mp4", ""),
    ],
)
def test_a_container_that_loses_the_picture_is_named(codec: str, sink: str, said: str) -> None:
    """With what to use in its place; what only FFmpeg knows is left to the trial."""
    found = misfit(codec, sink, choose_container(codec, sink, (7, 1)))
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_webm_takes_no_tone() -> None:
    """At real time a stream has one, in AAC; a file that is encoded has not."""
    assert "--pace max" in misfit("av1", "file:/a.webm", "webm", has_tone=True)
    assert "--pace max" in misfit("copy", "file:/a.webm", "webm", has_tone=True)
    assert misfit("av1", "file:/a.webm", "webm") == ""
    assert misfit("av1", "file:/a.mkv", "matroska", has_tone=True) == ""
