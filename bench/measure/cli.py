"""`powerbench measure`: the flags. The work is in session.py, which is heavy and imported late."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from powerbench_agent.bench.flags import add_agents, checked, parse_repeat
from powerbench_agent.bench.plan.scenario import parse_wait

if TYPE_CHECKING:
    from powerbench_agent.bench.flags import Verbs


def add_parser(verbs: Verbs) -> None:
    """Add the verb."""
    measure = verbs.add_parser(
        "measure",
        usage="%(prog)s [options] -- COMMAND...",
        help="run any command and report the energy it used",
        description="Run a command unchanged and report, on standard error, the energy that the\n"
        "machine used from right before it to right after. Exits as the command does:\n"
        "128+N if signal N killed it, 127 if it is not found, 126 if it cannot be run;\n"
        "69 if its energy cannot be read.",
        epilog="examples:\n"
        "  powerbench measure -- ffmpeg -i in.mp4 -c:v libx264 out.mp4\n"
        "  powerbench measure --repeat 5 --idle 30s --json cost.json -- ffmpeg -y -i in.mp4 out.mp4\n"
        "  powerbench measure -- sh -c 'make clean; make -j8'\n"
        "An ffmpeg, also one behind nice, timeout, env and their like, gets an additional\n"
        "-progress so that its frames are counted and, from the second run on, -y so that\n"
        "it can write its file again. One in a script or a container, or with a -progress\n"
        "of its own, is left unchanged: no joules per frame. The command's share of the\n"
        "energy is attributed by CPU time and GPU use, sampled once a second; it is not\n"
        "measured.\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    measure.add_argument(
        "--repeat",
        metavar="N",
        type=checked(parse_repeat),
        default=1,
        help="run it N times and report the mean with its 95 %% confidence interval; stop at the first "
        "run that fails",
    )
    measure.add_argument(
        "--idle",
        metavar="TIME",
        type=checked(parse_wait),
        default=0.0,
        help="first measure the idle machine for this long (30s, 2m), and report the increase over it",
    )
    measure.add_argument("--json", metavar="FILE", type=Path, help="also write every figure to FILE")
    add_agents(measure)
    measure.add_argument(
        "--require-measured",
        action="store_true",
        help="refuse (exit 69) if the CPU's energy could only be estimated",
    )
    measure.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show progress, but never while the command runs (default: only in a terminal)",
    )
    measure.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def main(flags: argparse.Namespace) -> int:
    """Measure the command that the flags name; return the exit code."""
    from powerbench_agent.bench.measure import session  # noqa: PLC0415 - heavy, and --help imports this module

    return session.run(flags)
