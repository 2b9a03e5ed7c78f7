"""The file that holds an agent's token: the agent reads it, and so does everything that asks the agent.

Units: none. Privileges: those of the file, which should be readable by its owner alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES = 64 * 1024


class BadToken(ValueError):  # noqa: N818 - a verdict
    """The file holds no token; the text says what it is instead: `is empty`."""


def read_token(path: Path) -> str:
    """Return the token in a file, without white space around it. Raises: OSError, BadToken."""
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise BadToken("is too long")
    try:
        token = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise BadToken("is not UTF-8 text") from None
    if not token:
        raise BadToken("is empty")
    if not token.isprintable():  # an HTTP header cannot carry it
        raise BadToken("has control characters or several lines")
    return token
