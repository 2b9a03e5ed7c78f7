"""`powerbench`: everything a person runs. Flags in, exit codes out; each verb is a module, imported late."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from powerbench.agent import __version__
from powerbench.bench import exits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TOKEN_VARIABLE = "POWERBENCH_TOKEN_FILE"  # noqa: S105 - the name of a variable that names a file

T = TypeVar("T")


class _Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake: what, where, what to do."""

    def error(self, message: str) -> NoReturn:
        self.exit(exits.USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return the parser as an argparse type that keeps its own words."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def parser() -> argparse.ArgumentParser:
    """Return the flags of every verb."""
    top = _Parser(
        prog="powerbench",
        description="Say what video streams cost in energy.",
        epilog="examples:\n"
        "  powerbench run single --with-baseline --bitrate 2000k --duration 120\n"
        "  powerbench run --help\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"powerbench {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_run(verbs)
    return top


def _add_run(verbs: argparse._SubParsersAction[_Parser]) -> None:
    run = verbs.add_parser(
        "run",
        help="stream, and read the energy over exact windows",
        description="Run scenarios: an idle baseline, a stream, the energy of both.",
        epilog="examples:\n"
        "  powerbench run single --with-baseline --baseline-duration 60 --bitrate 2000k --duration 120\n"
        "  powerbench run --agent http://worker1:9510 --token-file token single --sink rtmp://worker1/live/test\n"
        "  powerbench run --require-measured single --encoder h265 --preset fast\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument(
        "--output-dir", metavar="DIR", type=Path, default=Path("test_results"), help="default: ./test_results"
    )
    run.add_argument(
        "--agent",
        metavar="URL",
        action="append",
        default=[],
        help="read this agent instead of one in this process; may repeat",
    )
    run.add_argument(
        "--token-file",
        metavar="FILE",
        default=os.environ.get(_TOKEN_VARIABLE, ""),
        help=f"holds the agents' token (default: ${_TOKEN_VARIABLE}); never on the command line",
    )
    run.add_argument(
        "--sink", default="embedded", help="embedded, null, or an rtmp:// URL (default: embedded)"
    )
    run.add_argument(
        "--ffmpeg", metavar="PATH", default="", help="this ffmpeg (default: the one on the PATH)"
    )
    run.add_argument(
        "--require-measured",
        action="store_true",
        help="refuse (exit 69) where the CPU's energy could only be estimated",
    )
    run.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show progress (default: live in a terminal, else lines)",
    )
    kinds = run.add_subparsers(dest="kind", metavar="KIND", required=True)
    _add_single(kinds)


def _add_single(kinds: argparse._SubParsersAction[_Parser]) -> None:
    from powerbench.bench import scenario  # noqa: PLC0415 - beside its only use

    single = kinds.add_parser(
        "single",
        help="one stream, with an idle baseline if asked",
        description="One stream of a test picture and a tone, in real time.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    single.add_argument(
        "--name",
        type=_checked(scenario.parse_name),
        default="",
        help="the scenario's name; empty for one made of its settings",
    )
    single.add_argument(
        "--bitrate",
        type=_checked(scenario.parse_bitrate),
        default="2500k",
        help="of the video: 2500k, 5M, 2500 (kbps)",
    )
    single.add_argument(
        "--resolution", type=_checked(scenario.parse_resolution), default="1280x720", help="WIDTHxHEIGHT"
    )
    single.add_argument("--fps", type=_checked(scenario.parse_fps), default="30", help="frames a second")
    single.add_argument(
        "--duration",
        type=_checked(scenario.parse_duration),
        default="120",
        help="of the window: seconds, or 2m30s",
    )
    single.add_argument(
        "--stabilization",
        type=_checked(scenario.parse_wait),
        default="10",
        help="warm-up before the window, dropped",
    )
    single.add_argument(
        "--cooldown", type=_checked(scenario.parse_wait), default="10", help="rest after the stream"
    )
    single.add_argument("--encoder", choices=sorted(scenario.ENCODERS), default="h264", help="video encoder")
    single.add_argument("--preset", choices=scenario.PRESETS, default="veryfast", help="the encoder's preset")
    single.add_argument(
        "--with-baseline", action="store_true", help="measure the idle machine first, and compare"
    )
    single.add_argument(
        "--baseline-duration", type=_checked(scenario.parse_duration), default="60", help="of the idle window"
    )
    single.add_argument(
        "--compute-quality",
        action="store_true",
        help="score the picture (PSNR, SSIM, VMAF where there is libvmaf) after the window",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code."""
    flags = parser().parse_args(arguments)
    try:
        from powerbench.bench import run  # noqa: PLC0415 - heavy

        return run.main(flags)
    except KeyboardInterrupt:
        return exits.fail("interrupted before anything was measured", exits.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
