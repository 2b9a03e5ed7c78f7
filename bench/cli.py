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


def parser(verb: str = "") -> argparse.ArgumentParser:
    """Return the flags of this verb, or of every verb: another one's may need what is heavy."""
    top = _Parser(
        prog="powerbench",
        description="Say what video streams cost in energy.",
        epilog="examples:\n"
        "  powerbench run single --with-baseline --bitrate 2000k --duration 120\n"
        "  ffmpeg -nostats -progress pipe:1 ... | powerbench pipe --stream cam1\n"
        "  powerbench measure -- ffmpeg -i in.mp4 -c:v libx264 out.mp4\n"
        "  powerbench analyze\n"
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
    }
    for add in [known[verb]] if verb in known else known.values():
        add(verbs)
    return top


def _add_run(verbs: argparse._SubParsersAction[_Parser]) -> None:
    run = verbs.add_parser(
        "run",
        help="stream, and read the energy over exact windows",
        description="Run scenarios, and read the energy of the machine over each one's window.\n"
        "Without KIND: suite.",
        epilog="examples:\n"
        "  powerbench run single --with-baseline --baseline-duration 60 --bitrate 2000k --duration 120\n"
        "  powerbench run --agent http://worker1:9510 --token-file token single --sink rtmp://worker1/live/test\n"
        "  powerbench run --repeat 5 --order interleaved multi --count 4 --bitrate 2500k --with-baseline\n"
        "  powerbench run --require-measured suite\n",
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
        "--sink",
        default="embedded",
        help="embedded, null, nginx (a private one), or an rtmp:// URL (default: embedded)",
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
    run.add_argument(
        "--repeat",
        metavar="N",
        type=_checked(_parse_repeat),
        default=1,
        help="measure every scenario N times, with a baseline each time (5 or more for conclusions)",
    )
    run.add_argument(
        "--order",
        choices=("sequential", "interleaved", "random"),
        default="sequential",
        help="of the repeats: in a row, block by block, or each block shuffled (default: sequential)",
    )
    run.add_argument("--seed", metavar="N", type=int, default=1, help="of --order random (default: 1)")
    run.add_argument(
        "--strict", action="store_true", help="a scenario that there is anything to be warned of fails"
    )
    run.add_argument(
        "--rates",
        metavar="FILE",
        type=Path,
        help="TOML with price_per_kwh, currency, gco2e_per_kwh, gco2e_source (default: "
        "/etc/powerbench/rates.toml where there is one)",
    )
    kinds = run.add_subparsers(dest="kind", metavar="KIND")
    _add_suite(kinds)
    _add_single(kinds)
    _add_multi(kinds)
    _add_batch(kinds)


def _add_suite(kinds: argparse._SubParsersAction[_Parser]) -> None:
    suite = kinds.add_parser(
        "suite",
        help="the default: bitrates, resolutions, frame rates, several streams, and an idle baseline",
        description="An idle baseline; 1, 2.5, 5, 10 Mbps at 720p30; 480p, 720p, 1080p at 2.5 Mbps; 30 and\n"
        "60 fps at 5 Mbps; 2 and 4 streams at 2.5 Mbps. About 25 minutes with the default times.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_times(suite)
    _add_encoder(suite)


def _add_single(kinds: argparse._SubParsersAction[_Parser]) -> None:
    from powerbench.bench import scenario  # noqa: PLC0415 - beside its only use

    single = kinds.add_parser(
        "single",
        help="one stream, with an idle baseline if asked",
        description="One stream of a test picture, or of a file, and a tone, in real time.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    single.add_argument(
        "--bitrate",
        type=_checked(scenario.parse_bitrate),
        default="2500k",
        help="of the video: 2500k, 5M, 2500 (kbps)",
    )
    _add_stream(single)


def _add_multi(kinds: argparse._SubParsersAction[_Parser]) -> None:
    from powerbench.bench import scenario  # noqa: PLC0415 - beside its only use

    multi = kinds.add_parser(
        "multi",
        help="several streams at once, of one bitrate or of several",
        description="Several streams at once; the window opens when all of them run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    multi.add_argument("--count", type=_checked(scenario.parse_count), help="how many streams")
    rates = multi.add_mutually_exclusive_group()
    rates.add_argument(
        "--bitrate",
        type=_checked(scenario.parse_bitrate),
        default="2500k",
        help="of the video of each: 2500k, 5M, 2500 (kbps)",
    )
    rates.add_argument(
        "--bitrates",
        metavar="A,B,C",
        type=_checked(scenario.parse_bitrates),
        help="of the video of one after the other, like 1000k,2500k,5M",
    )
    _add_stream(multi)


def _add_batch(kinds: argparse._SubParsersAction[_Parser]) -> None:
    batch = kinds.add_parser(
        "batch",
        help="the scenarios of a file",
        description="The scenarios of a JSON file; see configs/batches.",
        epilog="examples:\n"
        "  powerbench run batch --file configs/batches/quick.json\n"
        "  powerbench run --repeat 5 --order interleaved batch --file configs/batches/stress-matrix.json\n"
        "  powerbench run batch --file all.json --shard 2/3\n"
        "  powerbench run batch --file all.json --resume test_results/test_results_20260101_120000.json\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    batch.add_argument("--file", metavar="F.json", type=Path, required=True, help="the scenarios")
    batch.add_argument(
        "--shard",
        metavar="I/N",
        type=_checked(_parse_shard),
        help="measure the I-th of N parts here; idle windows are in every part",
    )
    batch.add_argument(
        "--resume",
        metavar="RESULTS",
        type=Path,
        help="go on in this results file, with what it does not hold yet",
    )
    batch.add_argument(
        "--compute-quality", action="store_true", help="score the pictures after their windows"
    )


def _add_stream(kind: _Parser) -> None:
    from powerbench.bench import scenario  # noqa: PLC0415 - beside its only use

    kind.add_argument(
        "--name",
        type=_checked(scenario.parse_name),
        default="",
        help="the scenario's name; empty for one made of its settings",
    )
    kind.add_argument(
        "--resolution", type=_checked(scenario.parse_resolution), default="1280x720", help="WIDTHxHEIGHT"
    )
    kind.add_argument("--fps", type=_checked(scenario.parse_fps), default="30", help="frames a second")
    kind.add_argument(
        "--input", metavar="FILE", type=Path, help="stream this file in a loop, instead of a test picture"
    )
    _add_times(kind)
    _add_encoder(kind)
    kind.add_argument(
        "--with-baseline", action="store_true", help="measure the idle machine first, and compare"
    )
    kind.add_argument(
        "--compute-quality",
        action="store_true",
        help="score the picture (PSNR, SSIM, VMAF where there is libvmaf) after the window",
    )


def _add_times(kind: _Parser) -> None:
    from powerbench.bench import scenario  # noqa: PLC0415 - beside its only use

    kind.add_argument(
        "--duration",
        type=_checked(scenario.parse_duration),
        default="120",
        help="of the window: seconds, or 2m30s",
    )
    kind.add_argument(
        "--stabilization",
        type=_checked(scenario.parse_wait),
        default="10",
        help="warm-up before the window, dropped; then as long again at most until power is steady",
    )
    kind.add_argument(
        "--cooldown", type=_checked(scenario.parse_wait), default="10", help="rest after the stream"
    )
    kind.add_argument(
        "--baseline-duration", type=_checked(scenario.parse_duration), default="60", help="of the idle window"
    )


def _add_encoder(kind: _Parser) -> None:
    from powerbench.bench import scenario  # noqa: PLC0415 - beside its only use

    kind.add_argument("--encoder", choices=sorted(scenario.ENCODERS), default="h264", help="video encoder")
    kind.add_argument("--preset", choices=scenario.PRESETS, default="veryfast", help="the encoder's preset")


def _parse_shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not slash or not (number + count).isdigit() or not 1 <= int(number) <= int(count) <= 1000:
        raise ValueError(f"{text!r}: write like 2/3, the second of three parts")
    return int(number), int(count)


def _add_analyze(verbs: argparse._SubParsersAction[_Parser]) -> None:
    from powerbench.bench import analyze  # noqa: PLC0415 - each verb alone

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


def _add_compare(verbs: argparse._SubParsersAction[_Parser]) -> None:
    from powerbench.bench import compare  # noqa: PLC0415 - each verb alone

    verb = verbs.add_parser(
        "compare",
        help="what changed from one results file to another",
        description="Print what changed from run A to run B, and whether that is beyond chance. Runs whose\n"
        "machines, ffmpeg, sinks or sources of energy differ are refused.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    compare.add_flags(verb)


def _add_pipe(verbs: argparse._SubParsersAction[_Parser]) -> None:
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
        default=os.environ.get(_TOKEN_VARIABLE, ""),
        help=f"holds the agent's token (default: ${_TOKEN_VARIABLE}); never on the command line",
    )


def _add_measure(verbs: argparse._SubParsersAction[_Parser]) -> None:
    from powerbench.bench import scenario  # noqa: PLC0415 - beside its only use

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
        type=_checked(_parse_repeat),
        default=1,
        help="run it N times: the mean, and the 95 %% interval of it; ends with the first run that fails",
    )
    measure.add_argument(
        "--idle",
        metavar="TIME",
        type=_checked(scenario.parse_wait),
        default=0.0,
        help="measure the idle machine first for so long (30s, 2m), and report the increase over it",
    )
    measure.add_argument("--json", metavar="FILE", type=Path, help="write every figure there as well")
    _add_agents(measure)
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


def _add_agents(verb: _Parser) -> None:
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
        default=os.environ.get(_TOKEN_VARIABLE, ""),
        help=f"holds the agents' token (default: ${_TOKEN_VARIABLE}); never on the command line",
    )


def _parse_repeat(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise ValueError(f"{text!r}: must be a whole number of runs from 1 to 1000")
    return int(text)


def _apart(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return our words, and those after the first `--`: argparse would look for flags among them."""
    if words[:1] != ["measure"] or "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code."""
    words, command = _apart(sys.argv[1:] if arguments is None else arguments)
    flags = parser(*words[:1]).parse_args(words)
    if flags.verb == "measure":
        from powerbench.bench import measure  # noqa: PLC0415 - each verb alone

        # Without `--` before it the command has been taken for one already, and a later `--` is its own.
        flags.command = (
            [*flags.command, "--", *command] if flags.command and command else [*flags.command, *command]
        )
        return measure.main(flags)
    if flags.verb == "pipe":
        from powerbench.bench import pipe  # noqa: PLC0415 - each verb alone

        return pipe.main(flags)
    if flags.verb == "analyze":
        from powerbench.bench import analyze  # noqa: PLC0415 - each verb alone

        return analyze.main(flags)
    if flags.verb == "compare":
        from powerbench.bench import compare  # noqa: PLC0415 - each verb alone

        return compare.main(flags)
    try:
        from powerbench.bench import run  # noqa: PLC0415 - heavy

        return run.main(flags)
    except KeyboardInterrupt:
        return exits.fail("interrupted before anything was measured", exits.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
