"""Writes completions and manual pages of our two commands out of their argparse: commands.py DIRECTORY.

DIRECTORY stands for /usr/share: completions for bash, zsh and fish, and manual pages.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shtab
from argparse_manpage.manpage import Manpage

from powerbench_agent.agent import __version__, roster
from powerbench_agent.agent import cli as agent
from powerbench_agent.bench import cli as bench
from powerbench_agent.bench.flags import Parser

if TYPE_CHECKING:
    import argparse

COMPLETIONS = {
    "bash": "bash-completion/completions/{prog}",
    "zsh": "zsh/vendor-completions/_{prog}",
    "fish": "fish/vendor_completions.d/{prog}.fish",
}
SHORT = {
    "powerbench-agent": "export this machine's energy, and what used it, to Prometheus",
    "powerbench": "measure what video streams cost in energy",
}


class Completing(Parser):
    """Tells shtab of each flag or argument, as it is declared, what completes it."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Add it; shtab looks for `complete` and `choices` on the result."""
        action = super().add_argument(*names, **options)
        if action.metavar == "DIR":
            action.complete = shtab.DIRECTORY
        elif action.type is Path or str(action.metavar).partition("|")[0] in ("FILE", "PATH"):
            action.complete = shtab.FILE
        elif action.dest == "only":
            action.choices = sorted(roster.BUILT_IN)
        return action


def completions(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return a shell's completions: verbs, flags, choices, files and directories."""
    text: str = shtab.complete(parser, shell=shell)
    return text.rstrip() + "\n"


def manual(parser: argparse.ArgumentParser) -> str:
    """Return a manual page, section 1. Its date is SOURCE_DATE_EPOCH's, if that is set."""
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
    """Write all files."""
    for parser in (agent.parser, bench.parser):
        completing = parser(parser_class=Completing)
        files = {f"man/man1/{completing.prog}.1": manual(parser())}
        for shell, name in COMPLETIONS.items():
            files[name.format(prog=completing.prog)] = completions(completing, shell)
        for name, text in files.items():
            path = share / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
