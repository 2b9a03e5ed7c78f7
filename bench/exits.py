"""Exit codes of `powerbench`, and the message that goes with them. Source: sysexits.h."""

from __future__ import annotations

from powerbench_agent.core.terminal import complain

OK = 0
FAILED = 1  # a scenario failed; the others' results are kept
USAGE = 2
UNAVAILABLE = 69  # what was asked for is not available on this machine
BAD_FILE = 78  # a file named by the user does not exist, cannot be read, or is not valid
INTERRUPTED = 130


def fail(text: str, code: int) -> int:
    """Print a message of one line, or a few, on standard error and return the code."""
    complain("powerbench", text)
    return code


class BadFile(Exception):  # noqa: N818 - a verdict
    """A file named by the user that cannot be used; a line for each problem."""


class BadFlag(Exception):  # noqa: N818 - a verdict
    """A flag whose value argparse could not judge."""


class NotHere(Exception):  # noqa: N818 - a verdict
    """This machine lacks something that was asked for (exit 69); the text says what to do."""


def code_of(refusal: Exception) -> int:
    """Return the exit code for what kept a verb from starting."""
    if isinstance(refusal, BadFlag):
        return USAGE
    return BAD_FILE if isinstance(refusal, BadFile) else UNAVAILABLE
