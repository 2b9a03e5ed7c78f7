"""`powerbench`: everything a person runs. Flags in, exit codes out; each verb is a module, imported late."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from powerbench_agent.agent import __version__
from powerbench_agent.bench import exits
from powerbench_agent.bench.flags import TOKEN_VARIABLE, Parser, add_agents, checked, parse_file, parse_repeat

if TYPE_CHECKING:
    from collections.abc import Sequence


def parser(verb: str = "") -> argparse.ArgumentParser:
    """Return the flags of this verb, or of every verb: another one's may need what is heavy."""
    top = Parser(
        prog="powerbench",
        description="Say what video streams cost in energy.",
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
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    known = {
        "run": _add_run,
        "analyze": _add_analyze,
        "compare": _add_compare,
        "pipe": _add_pipe,
        "measure": _add_measure,
        "doctor": _add_doctor,
    }
    for add in [known[verb]] if verb in known else known.values():
        add(verbs)
    return top


def _add_run(verbs: argparse._SubParsersAction[Parser]) -> None:
    from powerbench_agent.bench.plan import flags  # noqa: PLC0415 - heavier than other verbs need

    flags.add_run(verbs)


def _add_analyze(verbs: argparse._SubParsersAction[Parser]) -> None:
    from powerbench_agent.bench.analyze import cli as analyze  # noqa: PLC0415 - each verb alone

    verb = verbs.add_parser(
        "analyze",
        help="say what a results file says: tables, statistics, CSV, JSON, Parquet",
        description="Print what a results file says, with how sure it is, and write a CSV beside it.",
        epilog="examples:\n"
        "  powerbench analyze\n"
        "  powerbench analyze test_results_20260101_120000.json --json all.json\n"
        "  powerbench analyze old.json --prometheus http://127.0.0.1:9090\n"
        "  powerbench analyze --all test_results --parquet runs.parquet\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    analyze.add_flags(verb)


def _add_compare(verbs: argparse._SubParsersAction[Parser]) -> None:
    from powerbench_agent.bench import compare  # noqa: PLC0415 - each verb alone

    verb = verbs.add_parser(
        "compare",
        help="what changed from one results file to another",
        description="Print what changed from run A to run B, and whether that is beyond chance. Runs whose\n"
        "machines, ffmpeg, sinks or sources of energy differ are refused.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    compare.add_flags(verb)


def _add_pipe(verbs: argparse._SubParsersAction[Parser]) -> None:
    pipe = verbs.add_parser(
        "pipe",
        help="pass an ffmpeg's progress on to an agent, live, at no risk for the encode",
        description="Read ffmpeg's progress, from -progress or its stderr, and send it to an agent.\n"
        "The encode never waits: an agent that is slow, hung or away costs old reports alone, and one that\n"
        "comes back is found.",
        epilog="examples:\n"
        "  ffmpeg -nostats -progress pipe:1 -i ... -f flv rtmp://... | powerbench pipe --stream cam1\n"
        "in bash, where standard output is taken, or stderr is to be read:\n"
        "  ffmpeg -nostats -stats_period 1 -progress pipe:3 -i ... 3> >(powerbench pipe --stream cam1)\n"
        "  ffmpeg -i ... 2> >(powerbench pipe --stream cam1 --tee >&2)\n"
        "The encoder's process is found by the pipe that it writes into. Where something stands between,\n"
        "say it; $$ is right in a script that ends in exec:\n"
        "  exec ffmpeg -progress pipe:3 ... 3> >(tee log | powerbench pipe --stream cam1 --pid $$)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    pipe.add_argument("--stream", metavar="NAME", required=True, help="the stream's name at the agent")
    pipe.add_argument(
        "--url", default="http://127.0.0.1:9510", help="the agent's (default: http://127.0.0.1:9510)"
    )
    pipe.add_argument(
        "--fd",
        metavar="N",
        type=int,
        default=0,
        help="read this file descriptor (default: 0, standard input)",
    )
    pipe.add_argument("--tee", action="store_true", help="copy what is read to standard output, untouched")
    pipe.add_argument(
        "--pid", metavar="N", type=int, help="the encoder's process (default: the one that writes to us)"
    )
    pipe.add_argument(
        "--token-file",
        metavar="FILE",
        type=checked(parse_file),
        default=os.environ.get(TOKEN_VARIABLE) or None,
        help=f"holds the agent's token (default: ${TOKEN_VARIABLE}); never on the command line",
    )


def _add_measure(verbs: argparse._SubParsersAction[Parser]) -> None:
    from powerbench_agent.bench.plan import scenario  # noqa: PLC0415 - beside its only use

    measure = verbs.add_parser(
        "measure",
        usage="%(prog)s [options] -- COMMAND...",
        help="run any command, and say what energy it cost",
        description="Run a command as it is; report on standard error the energy of the machine from right\n"
        "before it to right after. Exits as the command does: 128+N where signal N killed it, 127 where it\n"
        "is not found, 126 where it cannot be run; 69 where its energy cannot be had.",
        epilog="examples:\n"
        "  powerbench measure -- ffmpeg -i in.mp4 -c:v libx264 out.mp4\n"
        "  powerbench measure --repeat 5 --idle 30s --json cost.json -- ffmpeg -y -i in.mp4 out.mp4\n"
        "  powerbench measure -- sh -c 'make clean; make -j8'\n"
        "An ffmpeg gets a -progress of its own, so that frames are counted; one that has its own is left as\n"
        "it is, and costs no joules a frame. The command's share is by CPU time and GPU use (seen once a\n"
        "second): a share, not a measurement.\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    measure.add_argument(
        "--repeat",
        metavar="N",
        type=checked(parse_repeat),
        default=1,
        help="run it N times: the mean, and the 95 %% interval of it; ends with the first run that fails",
    )
    measure.add_argument(
        "--idle",
        metavar="TIME",
        type=checked(scenario.parse_wait),
        default=0.0,
        help="measure the idle machine first for so long (30s, 2m), and report the increase over it",
    )
    measure.add_argument("--json", metavar="FILE", type=Path, help="write every figure there as well")
    add_agents(measure)
    measure.add_argument(
        "--require-measured",
        action="store_true",
        help="refuse (exit 69) where the CPU's energy could only be estimated",
    )
    measure.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="say how far it is, never while the command runs (default: in a terminal)",
    )
    measure.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _add_doctor(verbs: argparse._SubParsersAction[Parser]) -> None:
    verbs.add_parser(
        "doctor",
        help="look at this machine: what can be measured, what is missing, what to do",
        description="Say what this machine has of what measuring and the stack need: energy sources and\n"
        "access to them, GPUs, ffmpeg, nginx-rtmp, containers, the agent, ports. Changes nothing; exits 1\n"
        "where something stands in the way.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _apart(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return our words, and those after the first `--`: argparse would look for flags among them."""
    if words[:1] != ["measure"] or "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


# What a verb's `main(flags)` is in; imported when the verb is run, since most are heavy.
_VERBS = {
    "run": "powerbench_agent.bench.run.cli",
    "analyze": "powerbench_agent.bench.analyze.cli",
    "compare": "powerbench_agent.bench.compare",
    "pipe": "powerbench_agent.bench.pipe.cli",
    "measure": "powerbench_agent.bench.measure.cli",
    "doctor": "powerbench_agent.bench.doctor",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code."""
    words, command = _apart(sys.argv[1:] if arguments is None else arguments)
    flags = parser(*words[:1]).parse_args(words)
    if flags.verb == "measure":
        # Without `--` before it the command has been taken for one already, and a later `--` is its own.
        flags.command = (
            [*flags.command, "--", *command] if flags.command and command else [*flags.command, *command]
        )
    module = importlib.import_module(_VERBS[flags.verb])
    try:
        return cast("int", module.main(flags))
    except KeyboardInterrupt:
        return exits.fail("interrupted before anything was measured", exits.INTERRUPTED)
