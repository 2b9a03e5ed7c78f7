"""Text for a terminal: nothing upsets it, and columns line up whatever stands in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench_agent.core.terminal import align, printable, shorten, width


@given(st.text())
def test_printable_text_stays_as_long_and_has_no_control_characters(text: str) -> None:
    """Each character that cannot be printed becomes one `?`; all others stay."""
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) == len(text)
    assert all(new in (old, "?") for new, old in zip(shown, text, strict=True))


@pytest.mark.parametrize(
    ("text", "columns"), [("", 0), ("watts", 5), ("µs ±", 4), ("電力", 4), ("e\u0301", 1), ("\uff21", 2)]
)
def test_a_width_is_in_columns(text: str, columns: int) -> None:
    """Wide characters take two columns and combining ones none."""
    assert width(text) == columns


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [("watts", 5, "watts"), ("watts", 4, "wat…"), ("電力計", 5, "電力…"), ("電力計", 4, "電…")],
)
def test_text_that_is_too_wide_ends_in_an_ellipsis(text: str, columns: int, shown: str) -> None:
    """What fits stays whole; what does not is cut between characters."""
    assert shorten(text, columns) == shown


def test_columns_line_up() -> None:
    """Words to the left, figures to the right, and no spaces at a line's end."""
    rows = [("", "W", "source"), ("電力", "12.5", "rapl"), ("a\nb", "1", "")]
    assert align(rows, right={1}) == [
        "         W  source",
        "電力  12.5  rapl",
        "a?b      1",
    ]
    assert align([]) == []
