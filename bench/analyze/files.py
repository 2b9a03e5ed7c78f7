"""Results files as the verbs that analyse them find and read them; and how such a verb is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from powerbench_agent.bench import exits
from powerbench_agent.core.bounded_file import UnfitFile, read_bounded_file
from powerbench_agent.core.results import (
    DEFAULT_BOUNDS,
    BadResults,
    ResultsFile,
    list_results,
    newest,
    parse_results,
)

if TYPE_CHECKING:
    from pathlib import Path


class Refused(Exception):  # noqa: N818 - a verdict
    """What ends the verb: one line for a person, and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def need_extra(verb: str) -> None:
    """Check that the extra is installed. Raises: Refused."""
    try:
        import duckdb  # noqa: F401, PLC0415 - asked for before anything is read
        import rich  # noqa: F401, PLC0415 - likewise
        import scipy  # noqa: F401, PLC0415 - likewise
    except ImportError as missing:
        hint = f"{verb} needs {missing.name}, of the extra bench: pip install 'powerbench-agent[bench]'"
        raise Refused(hint, exits.UNAVAILABLE) from None


def check_listable(directory: Path, flag: str = "") -> None:
    """Check that a directory can be listed: a pattern finds nothing in one that cannot. Raises: Refused."""
    try:
        next(directory.iterdir(), None)
    except OSError as error:
        raise _not_listable(directory, error, flag) from None


def _not_listable(directory: Path, error: OSError, flag: str = "") -> Refused:
    hint = "" if flag else "; name a file, or give another --output-dir DIR"
    return Refused(f"{flag}{directory}: cannot list it: {error.strerror}{hint}", exits.UNAVAILABLE)


def newest_in(directory: Path) -> Path:
    """Return a directory's newest results file. Raises: Refused if there is none."""
    try:
        found = newest(list_results(directory))
    except OSError as error:
        raise _not_listable(directory, error) from None
    if found is None:
        hint = f"no test_results_*.json in {directory}: name a file, or give --output-dir DIR"
        raise Refused(hint, exits.UNAVAILABLE)
    return directory / found.name


def read(path: Path) -> ResultsFile:
    """Return what a results file holds. Raises: Refused."""
    try:
        content = read_bounded_file(path, DEFAULT_BOUNDS.bytes)
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}", exits.BAD_FILE) from None
    except UnfitFile as unfit:
        raise Refused(f"cannot read {path}: it {unfit}", exits.BAD_FILE) from None
    try:
        return parse_results(content, path.stem)
    except BadResults as bad:
        raise Refused(f"{path}: {bad.explained}", exits.BAD_FILE) from None
