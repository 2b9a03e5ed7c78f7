"""What the flags of several verbs share: the parser, checked values, the agents."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, NoReturn, TypeVar

from powerbench_agent.bench import exits

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN_VARIABLE = "POWERBENCH_TOKEN_FILE"  # noqa: S105 - the name of a variable that names a file

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake: what, where, what to do."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and end. Raises: SystemExit."""
        self.exit(exits.USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", False):
            return action.help
        return super()._get_help_string(action)


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return the parser as an argparse type that keeps its own words."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def add_agents(verb: Parser) -> None:
    """Add the flags that say which agents are read."""
    verb.add_argument(
        "--agent",
        metavar="URL",
        action="append",
        default=[],
        help="read this agent instead of one in this process; may repeat",
    )
    verb.add_argument(
        "--token-file",
        metavar="FILE",
        type=checked(parse_file),
        default=os.environ.get(TOKEN_VARIABLE) or None,
        help=f"holds the agents' token (default: ${TOKEN_VARIABLE}); never on the command line",
    )


def parse_file(text: str) -> str:
    """Return a file's name. Raises: ValueError for none."""
    if not text:
        raise ValueError("must name a file; leave the flag out for none")
    return text


def parse_repeat(text: str) -> int:
    """Return a number of runs. Raises: ValueError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise ValueError(f"{text!r}: must be a whole number of runs from 1 to 1000")
    return int(text)
