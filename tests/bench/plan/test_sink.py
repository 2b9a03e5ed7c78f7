"""Sinks as they are written, and where each output of a scenario goes."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.bench.plan.sink import (
    OURS,
    check_ports,
    files_of,
    kind_of,
    output_url,
    parse_sink,
    with_place,
)

URLS = (
    *("rtmp://host/live/x", "rtmps://host:1/live/x?key=a&b=c", "srt://host:9000?mode=caller"),
    *("udp://239.0.0.1:1234?ttl=4", "tcp://[::1]:9000", "tcp://user@host:80"),
)
names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=30)


@pytest.mark.parametrize("text", [*OURS, *URLS, "file:/a/b.mkv", "file:/a/it's a|b\\c.mkv"])
def test_a_sink_stands_as_it_is_written(text: str) -> None:
    """Ours, URLs and files, whose names may have spaces; a sink has a kind of one word."""
    assert parse_sink(text) == text
    assert kind_of(text) in text


def test_a_files_name_is_made_absolute() -> None:
    """A results file says where the outputs are, whoever reads it."""
    assert parse_sink("file:out put.mkv") == f"file:{Path.cwd() / 'out put.mkv'}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not embedded"),
        ("embeded", "did you mean embedded"),
        ("embedded:", "is not embedded"),
        ("rtpm://h/a/b", "did you mean rtmp"),
        ("http://h/x", "is not embedded"),
        ("rtmp://h", "rtmp://HOST/APP/STREAM"),
        ("rtmp:///live/x", "rtmp://HOST/APP/STREAM"),
        ("rtmp:h/live", "rtmp://HOST/APP/STREAM"),
        ("srt://h", "needs a port, like srt://h:9000"),
        ("tcp://h:0", "needs a port"),
        ("tcp://h:65536", "is not a URL"),
        ("tcp://h:a", "is not a URL"),
        ("tcp://[::1", "is not a URL"),
        ("tcp://h :90", "has spaces"),
        ("file:", "name a file"),
        ("file:a/", "name a file"),
        ("file:a\n.mkv", "unprintable"),
        (f"file:{'a' * 500}", "more than 500"),
    ],
)
def test_what_is_no_sink_is_refused(text: str, said: str) -> None:
    """The message has what is wrong, or how one is written."""
    with pytest.raises(ValueError, match=r"^(?!.*\n)") as bad:
        parse_sink(text)
    assert said in str(bad.value)


@given(st.text(max_size=20) | st.sampled_from(URLS).flatmap(lambda url: st.just(url[::2])))
def test_any_text_is_a_sink_or_refused(text: str) -> None:
    """No text is an error of another kind; what is taken is taken again as it then stands."""
    try:
        sink = parse_sink(text)
    except ValueError:
        return
    assert parse_sink(sink) == sink


@given(st.sampled_from(URLS), st.integers(2, 40))
def test_outputs_of_a_scenario_go_apart(sink: str, count: int) -> None:
    """To a server as streams of their own, to plain ports as ports of their own; the rest of a URL stays."""
    urls = [output_url(sink, number, "x", several=True) for number in range(count)]
    assert len(set(urls)) == count
    assert [parse_sink(url) for url in urls] == urls
    before, after = urlsplit(sink), urlsplit(urls[1])
    assert (after.hostname, after.username, after.query) == (before.hostname, before.username, before.query)
    assert output_url(sink, 0, "x", several=False) == sink


def test_a_streams_number_stands_before_its_key() -> None:
    """What follows the question mark belongs to the server."""
    url = output_url("rtmp://h/live/x?key=1", 1, "x", several=True)
    assert url == "rtmp://h/live/x-2?key=1"


def test_the_last_port_is_the_last() -> None:
    """Ten outputs from 65526 on fit, eleven do not; where a server takes all, nothing is checked."""
    check_ports("tcp://h:65526", 10)
    check_ports("rtmp://h:65535/a/b", 99)
    check_ports("embedded", 99)
    with pytest.raises(ValueError, match="11 outputs take as many ports from 65526 on"):
        check_ports("tcp://h:65526", 11)


def test_one_output_keeps_its_files_name() -> None:
    """Several get a place for their names before the suffix, or where the name has it already."""
    assert with_place("file:/a/b.mkv", 1) == "file:/a/b.mkv"
    assert with_place("file:/a/b.mkv", 2) == "file:/a/b_{}.mkv"
    assert with_place("file:/a/{}.mkv", 2) == "file:/a/{}.mkv"
    assert with_place("tcp://h:9", 2) == "tcp://h:9"
    assert files_of("file:/a/b.mkv", ["x"]) == [Path("/a/b.mkv")]
    assert files_of("file:/a/b_{}.mkv", ["x", "y 720p"]) == [Path("/a/b_x.mkv"), Path("/a/b_y_720p.mkv")]
    assert files_of("embedded", ["x"]) == []


@given(names)
def test_no_name_leaves_the_directory(name: str) -> None:
    """Whatever a scenario is called, its file lies where the sink says."""
    (path,) = files_of("file:/a/b_{}.mkv", [name])
    assert path.parent == Path("/a")
    assert "{" not in path.name
    assert output_url("file:/a/b_{}.mkv", 3, name, several=True) == f"file:{path}"
