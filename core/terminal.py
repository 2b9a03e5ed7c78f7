"""Text for a terminal: what can be printed, how wide it is, columns that line up. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

_GAP = "  "  # between two columns


def printable(text: str) -> str:
    """Return text whose control characters and undecodable bytes are replaced by `?`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "?" for char in text)


def width(text: str) -> int:
    """Return how many columns a text takes: East Asian wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    import unicodedata  # noqa: PLC0415 - 1 MB that a `powerbench pipe` beside every encoder does not need

    columns = 0
    for char in text:
        if unicodedata.combining(char):
            continue
        columns += 2 if unicodedata.east_asian_width(char) in "WF" else 1
    return columns


def shorten(text: str, columns: int) -> str:
    """Return text in at most this many columns; an ellipsis stands for what was cut off."""
    if width(text) <= columns:
        return text
    while width(text) > columns - 1:
        text = text[:-1]
    return f"{text}…"


def align(rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return a line a row, the cells below each other; the columns in `right` are aligned to the right.

    Every row has as many cells. Cells are made printable; an empty last cell leaves no spaces behind.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = []
        for place, cell in enumerate(row):
            space = " " * (widths[place] - width(cell))
            padded.append(space + cell if place in right else cell + space)
        lines.append(_GAP.join(padded).rstrip())
    return lines
