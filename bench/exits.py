"""Exit codes of `powerbench`, and the one line that goes with them. Source: sysexits.h."""

from __future__ import annotations

import sys

OK = 0
FAILED = 1  # a scenario failed; the others' results are kept
USAGE = 2
UNAVAILABLE = 69  # what was asked for is not on this machine
BAD_FILE = 78  # a file that was given cannot be used
INTERRUPTED = 130


def fail(text: str, code: int) -> int:
    """Print one line for a person, and return the code."""
    print(f"powerbench: {text}", file=sys.stderr)  # noqa: T201 - what a command line is for
    return code


class BadFile(Exception):  # noqa: N818 - a verdict
    """A file that was given and cannot be used; a line for each thing that is wrong."""


class BadFlag(Exception):  # noqa: N818 - a verdict
    """A flag whose value argparse could not judge."""
