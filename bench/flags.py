"""What the flags of several verbs share: the parser, checked values, the agents."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from powerbench_agent.bench.exits import USAGE, BadFile
from powerbench_agent.core import token_file

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN_VARIABLE = "POWERBENCH_TOKEN_FILE"  # noqa: S105 - the name of a variable that names a file

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse with a one-line message for a mistake: what is wrong, where, and what to do."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and exit. Raises: SystemExit."""
        self.exit(USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


class Verbs(Protocol):
    """What `add_subparsers` returns: argparse has no public name for it."""

    def add_parser(self, name: str, **options: Any) -> Parser:
        """Return the parser of one more verb."""


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows each flag's default, unless it is empty."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", False):
            return action.help
        return super()._get_help_string(action)


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return the parser as an argparse type whose messages reach the user."""

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
        help="read the meters of this agent instead of starting one in this process; repeatable",
    )
    add_token_file(verb, "file that holds the agents' token")


def add_token_file(verb: Parser, what: str) -> None:
    """Add --token-file: a token on the command line could be read by everyone on the machine."""
    verb.add_argument(
        "--token-file",
        metavar="FILE",
        type=checked(parse_file),
        default=os.environ.get(TOKEN_VARIABLE) or None,
        help=f"{what} (default: ${TOKEN_VARIABLE})",
    )


def parse_file(text: str) -> str:
    """Return the name of a file. Raises: ValueError if it is empty."""
    if not text:
        raise ValueError("must name a file; omit the flag if there is none")
    return text


def read_token(name: str | None) -> str:
    """Return the token in a file; "" without a file. Raises: BadFile."""
    if name is None:
        return ""
    try:
        return token_file.read_token(Path(name))
    except OSError as error:
        raise BadFile(f"--token-file {name}: cannot read it: {error.strerror}") from None
    except token_file.BadToken as bad:
        what = f"holds no token (it {bad}); put the agent's in it, or omit the flag"
        raise BadFile(f"--token-file {name}: {what}") from None


def parse_repeat(text: str) -> int:
    """Return a number of runs. Raises: ValueError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise ValueError(f"{text!r}: must be a whole number from 1 to 1000")
    return int(text)
