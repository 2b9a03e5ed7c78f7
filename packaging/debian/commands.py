"""Writes what shells and man(1) know of our two commands, out of their argparse: commands.py DIRECTORY.

Into DIRECTORY, which stands for /usr/share: completions for bash, zsh and fish, and manual pages.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import shtab
from argparse_manpage.manpage import Manpage

from powerbench_agent.agent import __version__, roster
from powerbench_agent.agent import cli as agent
from powerbench_agent.bench import cli as bench

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPLETIONS = {
    "bash": "bash-completion/completions/{prog}",
    "zsh": "zsh/vendor-completions/_{prog}",
    "fish": "fish/vendor_completions.d/{prog}.fish",
}
SHORT = {
    "powerbench-agent": "serve this machine's energy, and who used it, to Prometheus",
    "powerbench": "say what video streams cost in energy",
}


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the flags and arguments of a parser and of its verbs."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to list them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - likewise
            for verb in action.choices.values():
                yield from actions(verb)
        else:
            yield action


def completions(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return a shell's completions: verbs, flags, choices; files and directories where those are meant."""
    for action in actions(parser):
        if action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined] # where shtab looks
        elif action.type is Path or action.metavar in ("FILE", "PATH"):
            action.complete = shtab.FILE  # type: ignore[attr-defined] # likewise
        elif action.dest == "only":
            action.choices = sorted(roster.BUILT_IN)
    text: str = shtab.complete(parser, shell=shell)
    return text.rstrip() + "\n"


def manual(parser: argparse.ArgumentParser) -> str:
    """Return a manual page, section 1. The date is SOURCE_DATE_EPOCH's, where that is set."""
    examples, parser.epilog = parser.epilog or "", None
    page = Manpage(
        parser,
        {
            "project_name": "powerbench",
            "version": __version__,
            "manual_title": "powerbench",
            "description": SHORT[parser.prog],
        },
        format="single-commands-section",
    )
    shown = examples.removeprefix("examples:\n").replace("\\", "\\\\").replace("-", "\\-")
    return f"{page}.SH EXAMPLES\n.nf\n{shown}.fi\n"


def main(share: Path) -> None:
    """Write all of it."""
    for parser in (agent.parser, bench.parser):
        prog = parser().prog
        files = {name.format(prog=prog): completions(parser(), shell) for shell, name in COMPLETIONS.items()}
        files[f"man/man1/{prog}.1"] = manual(parser())
        for name, text in files.items():
            path = share / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
