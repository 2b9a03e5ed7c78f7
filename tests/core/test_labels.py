"""Names that others choose, as labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.core.labels import shorten

NAMES = st.text(st.characters(), max_size=60) | st.text(st.sampled_from("a\n\u200b\ud800\u00e9"), max_size=60)


@given(NAMES, st.integers(1, 40))
def test_a_short_name_can_be_shown(name: str, longest: int) -> None:
    """A name has at most the allowed length (at least its mark's nine), is printable and valid UTF-8."""
    short = shorten(name, longest)
    assert len(short) <= max(longest, 9)
    assert short.isprintable()
    short.encode("utf-8")
    if name.isprintable() and len(name) <= longest:
        assert short == name


@pytest.mark.parametrize(
    ("name", "identity", "short"),
    [
        ("n" * 20, "0123456789abcdef", "n" * 20),
        ("n" * 21, "0123456789abcdef", "n" * 11 + "~01234567"),
        ("n" * 21, "", "n" * 11 + "~ab8bebf8"),
        ("a\tb", "", "a\ufffdb"),
        ("a\udcffb", "", "a?b"),
    ],
)
def test_what_becomes_of_a_name(name: str, identity: str, short: str) -> None:
    """A long name ends in its identity or a checksum; characters that no label can hold are replaced."""
    assert shorten(name, 20, identity) == short


@given(st.integers(0, 255), st.integers(0, 255))
def test_long_names_stay_distinct(one: int, other: int) -> None:
    """Two long names that differ only past the cut are two labels, whichever collector shows them."""
    names = [shorten("x" * 300 + str(number), 200) for number in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    assert {len(name) for name in names} == {200}
