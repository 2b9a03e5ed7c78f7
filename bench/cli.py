"""`powerbench`: everything a person runs. Flags in, exit code out; each verb is a module, imported late."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from powerbench_agent.agent import __version__
from powerbench_agent.bench import exits
from powerbench_agent.bench.flags import Parser, Verbs
from powerbench_agent.core.terminal import guarded_output

if TYPE_CHECKING:
    from collections.abc import Sequence


class Verb(NamedTuple):
    """Where a verb lives."""

    flags: str  # the module whose `add_parser` declares its flags; light, since --help imports them all
    entry: str  # the module whose `main` runs it; imported when it is run


VERBS = {
    "run": Verb("plan.flags", "run.cli"),
    "analyze": Verb("analyze.cli", "analyze.cli"),
    "compare": Verb("compare", "compare"),
    "pipe": Verb("pipe.cli", "pipe.cli"),
    "measure": Verb("measure.cli", "measure.cli"),
    "doctor": Verb("doctor.cli", "doctor.cli"),
}


def parser(verb: str = "", parser_class: type[Parser] = Parser) -> Parser:
    """Return the flags of this verb, or of all verbs if it is not one of them.

    `parser_class` makes the parsers of the verbs, too.
    """
    top = parser_class(
        prog="powerbench",
        description="Measure what video streams cost in energy.",
        epilog="examples:\n"
        "  powerbench run single --with-baseline --bitrate 2000k --duration 120\n"
        "  ffmpeg -nostats -progress pipe:1 ... | powerbench pipe --stream cam1\n"
        "  powerbench measure -- ffmpeg -i in.mp4 -c:v libx264 out.mp4\n"
        "  powerbench analyze\n"
        "  powerbench doctor\n"
        "  powerbench run --help\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"powerbench {__version__}")
    verbs: Verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in [verb] if verb in VERBS else VERBS:
        _module(VERBS[name].flags).add_parser(verbs)
    return top


def _module(name: str) -> Any:
    return importlib.import_module(f"powerbench_agent.bench.{name}")


def _split_command(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return our own words and the COMMAND of `measure` behind `--`: argparse would parse its flags."""
    if words[:1] != ["measure"] or "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code."""
    return guarded_output("powerbench", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    words, command = _split_command(sys.argv[1:] if arguments is None else arguments)
    flags = parser(words[0] if words else "").parse_args(words)
    if command:
        # A command that began before `--` has one of its own there.
        flags.command += ["--", *command] if flags.command else command
    try:
        return cast("int", _module(VERBS[flags.verb].entry).main(flags))
    except KeyboardInterrupt:
        return exits.fail("interrupted before anything was measured", exits.INTERRUPTED)
