"""Text for a terminal: what can be printed, how wide it is, columns that line up; and output that is cut off.

All but `guarded_output` is pure.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

CANNOT_WRITE = 1  # exit code: standard output could not be written
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


class GuardedOutput:
    """A text stream whose writes do not fail: what cannot be written is lost, and the first error is kept."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write the text."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self._attempt(self._stream.flush)

    def _attempt(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guarded_output(program: str, main: Callable[[], int]) -> int:
    """Run a program's main function to its end, whatever happens to its output; return the exit code.

    A reader that has gone, as `head` does, has read all that it wanted: that is no error. Any other is
    CANNOT_WRITE and one line; the exit code of a program that failed anyway stays. Raises: SystemExit as
    `main` does, with that exit code.
    """
    real = sys.stdout
    # Started with a closed descriptor there is no stream, and nothing to lose.
    out = GuardedOutput(real or open(os.devnull, "w"))  # noqa: SIM115, PTH123 - as long as the process
    sys.stdout = cast("TextIO", out)
    try:
        code = main()
    except SystemExit as ended:
        lost = _code_of_output(program, out)
        raise SystemExit(ended.code or lost) from None
    else:
        lost = _code_of_output(program, out)
        return code or lost
    finally:
        sys.stdout = real
        for stream in (sys.stdout, sys.stderr):
            _flush_or_drop(stream)


def _flush_or_drop(stream: TextIO | None) -> None:
    """Write what is buffered, or drop it: Python would try again at exit, complain, and exit with 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor has no such buffer
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _code_of_output(program: str, out: GuardedOutput) -> int:
    """Return the exit code for what became of standard output, and say so unless its reader has gone."""
    out.flush()
    if out.error is None or isinstance(out.error, BrokenPipeError):
        return 0
    what = f"cannot write standard output: {out.error.strerror}; what was printed is incomplete"
    complain(program, what)
    return CANNOT_WRITE


def complain(program: str, text: str) -> None:
    """Print a message of one line, or a few, on standard error; if nobody can read it, it is lost."""
    lines = [printable(line) for line in f"{program}: {text}".split("\n")]
    with contextlib.suppress(OSError):
        print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201 - what a command line is for
