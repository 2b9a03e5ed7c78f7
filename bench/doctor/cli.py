"""`powerbench doctor`: checks this machine and prints a line for each finding, with the remedy below it.

Exit codes: 0 nothing stands in the way of measuring; 1 something does, and its line says what to do.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from powerbench_agent.bench import exits
from powerbench_agent.core.terminal import align, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from powerbench_agent.bench.doctor.findings import Finding, Verdict
    from powerbench_agent.bench.flags import Verbs

_COLOURS: Mapping[Verdict, str] = {"ok": "32", "note": "33", "bad": "31"}


def add_parser(verbs: Verbs) -> None:
    """Add the verb."""
    verb = verbs.add_parser(
        "doctor",
        help="check what this machine can measure, what is missing, and how to fix it",
        description="Check this machine for everything that measuring and the stack need: energy\n"
        "sources and access to them, GPUs, ffmpeg, nginx-rtmp, containers, the agent,\n"
        "ports. Changes nothing. Exits 1 if something prevents measuring.",
        epilog="examples:\n"
        "  powerbench doctor\n"
        "  powerbench doctor --encoders      # which encoders open here, and why others do not\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_argument(
        "--encoders",
        action="store_true",
        help="try every encoder that run knows: is it built in, does it open here, and if not, why",
    )
    verb.add_argument(
        "--ffmpeg",
        metavar="PATH",
        default="",
        help="the ffmpeg that --encoders tries (default: as run chooses)",
    )


def main(flags: argparse.Namespace) -> int:
    """Check the machine and print the findings; return the exit code."""
    import asyncio  # noqa: PLC0415 - heavy, and --help imports this module

    from powerbench_agent.agent import log  # noqa: PLC0415 - likewise
    from powerbench_agent.bench.doctor import findings  # noqa: PLC0415 - likewise

    log.set_up("console", "critical")
    if flags.encoders:
        return _show_encoders(flags.ffmpeg)
    found = asyncio.run(findings.examine())
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in lines(found, coloured=coloured):
        print(line)  # noqa: T201 - what a command line is for
    bad = sum(finding.verdict == "bad" for finding in found)
    if bad:
        what = "1 problem prevents" if bad == 1 else f"{bad} problems prevent"
        print(f"{what} measuring; see the lines marked bad.")  # noqa: T201 - likewise
    return exits.FAILED if bad else exits.OK


def _show_encoders(path: str) -> int:
    """Print a line for each encoder of the table; return the exit code."""
    import asyncio  # noqa: PLC0415 - as above

    from powerbench_agent.bench.doctor import encoders  # noqa: PLC0415 - likewise

    try:
        which, tried = asyncio.run(encoders.try_all(path))
    except exits.NotHere as missing:
        return exits.fail(str(missing), exits.UNAVAILABLE)
    print(f"{which.path} {which.version}")  # noqa: T201 - what a command line is for
    for line in align([("encoder", "codec", "presets", "rate control", "here"), *map(encoders.cells, tried)]):
        print(printable(line))  # noqa: T201 - likewise
    return exits.OK


def lines(found: Sequence[Finding], *, coloured: bool) -> Iterator[str]:
    """Yield the findings as a person reads them: verdict, subject, text; the remedy on a line of its own."""
    subjects = align([(finding.verdict, finding.what) for finding in found])
    indent = max(map(len, subjects), default=0) + 2
    for subject, finding in zip(subjects, found, strict=True):
        verdict = finding.verdict
        line = f"{subject:<{indent}}{printable(finding.text)}"
        yield line.replace(verdict, f"\x1b[{_COLOURS[verdict]}m{verdict}\x1b[0m", 1) if coloured else line
        if finding.remedy:
            yield f"{'':{indent}}→ {printable(finding.remedy)}"
