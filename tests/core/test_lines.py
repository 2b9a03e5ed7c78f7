"""Lines out of pieces of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.core.lines import LineSplitter

LONGEST = 8
PIECES = st.lists(
    st.lists(st.sampled_from([b"a", b"bb", b"\r", b"\n", b"\r\n", b"c" * 20]), max_size=6).map(b"".join),
    max_size=8,
)


def content(line: bytes) -> bytes:
    return line.rstrip(b"\r\n")


@given(PIECES)
def test_cuts_change_no_line(pieces: list[bytes]) -> None:
    """However the bytes are cut, the same lines come out, and what is held stays within the bound."""
    splitter = LineSplitter(LONGEST)
    found = []
    for piece in pieces:
        found += splitter.feed(piece)
        assert len(splitter.tail) <= LONGEST
    whole = b"".join(pieces).splitlines(keepends=True)
    too_long = [line for line in whole if len(content(line)) > LONGEST]
    assert splitter.dropped == len(too_long)
    complete = [line for line in whole if line.endswith((b"\r", b"\n"))]
    expected = [content(line) for line in complete if len(content(line)) <= LONGEST]
    assert [content(line) for line in found if content(line)] == [line for line in expected if line]
    assert splitter.dropped == sum(len(content(line)) > LONGEST for line in whole)


def test_ends_are_kept() -> None:
    """A line keeps the end that it had; an unfinished one waits for its end."""
    splitter = LineSplitter(LONGEST)
    assert splitter.feed(b"a\nb\rc\r\nd") == [b"a\n", b"b\r", b"c\r\n"]
    assert splitter.tail == b"d"
    assert splitter.feed(b"e\n") == [b"de\n"]


def test_a_line_too_long_is_dropped_whole() -> None:
    """The rest of a line that was too long is not taken for a line of its own."""
    splitter = LineSplitter(LONGEST)
    assert splitter.feed(b"x" * 9) == []
    assert splitter.tail == b""
    assert splitter.feed(b"a=1") == []
    assert splitter.feed(b"\nok\n" + b"y" * 9 + b"\nend\n") == [b"ok\n", b"end\n"]
