"""The flags of `powerbench run`: what is measured, and how."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from powerbench_agent.bench.flags import Defaults, Parser, Verbs, add_agents, checked, parse_repeat
from powerbench_agent.bench.load.encoders import ENCODERS, PRESETS
from powerbench_agent.bench.plan import scenario


def add_parser(verbs: Verbs) -> None:
    """Add `run` and its kinds."""
    run = verbs.add_parser(
        "run",
        help="stream, and read the energy over exact windows",
        description="Run scenarios, and read the energy of the machine over each one's window.\n"
        "Without KIND: suite. What follows may also stand after the KIND.",
        epilog="examples:\n"
        "  powerbench run single --with-baseline --baseline-duration 60 --bitrate 2000k --duration 120\n"
        "  powerbench run --agent http://worker1:9510 --token-file token single --sink rtmp://worker1/live/test\n"
        "  powerbench run --repeat 5 --order interleaved multi --count 4 --bitrate 2500k --with-baseline\n"
        "  powerbench run --require-measured suite\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(run)
    kinds = run.add_subparsers(dest="kind", metavar="KIND")
    _add_suite(kinds)
    _add_single(kinds)
    _add_multi(kinds)
    _add_batch(kinds)


def _add_common(verb: Parser) -> None:
    """Add what every kind of run takes, before the kind or after it."""
    verb.add_argument(
        "--output-dir", metavar="DIR", type=Path, default=Path("test_results"), help="default: ./test_results"
    )
    add_agents(verb)
    verb.add_argument(
        "--sink",
        default="embedded",
        help="embedded, null, nginx (a private one), or an rtmp:// URL (default: embedded)",
    )
    verb.add_argument(
        "--ffmpeg", metavar="PATH", default="", help="this ffmpeg (default: the one on the PATH)"
    )
    verb.add_argument(
        "--require-measured",
        action="store_true",
        help="refuse (exit 69) where the CPU's energy could only be estimated",
    )
    verb.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show progress (default: live in a terminal, else lines)",
    )
    verb.add_argument(
        "--repeat",
        metavar="N",
        type=checked(parse_repeat),
        default=1,
        help="measure every scenario N times, with a baseline each time (5 or more for conclusions)",
    )
    verb.add_argument(
        "--order",
        choices=("sequential", "interleaved", "random"),
        default="sequential",
        help="of the repeats: in a row, block by block, or each block shuffled (default: sequential)",
    )
    verb.add_argument("--seed", metavar="N", type=int, default=1, help="of --order random (default: 1)")
    verb.add_argument(
        "--strict", action="store_true", help="a scenario that there is anything to be warned of fails"
    )
    verb.add_argument(
        "--rates",
        metavar="FILE",
        type=Path,
        help="TOML with price_per_kwh, currency, gco2e_per_kwh, gco2e_source (default: "
        "/etc/powerbench/rates.toml where there is one)",
    )
    verb.add_argument(
        "--resume",
        metavar="RESULTS",
        type=Path,
        help="go on in this results file, with what it does not hold yet; the other flags as they were",
    )


def _kind(kinds: Verbs, name: str, **how: Any) -> Parser:
    """Return a kind's parser; what is said of the run after the kind counts as well as before it."""
    kind = kinds.add_parser(name, allow_abbrev=False, **how)
    group = Parser(add_help=False)
    _add_common(group)
    for action in group._actions:  # noqa: SLF001 - argparse has no other way to say: no default here
        action.default = argparse.SUPPRESS
        action.help = argparse.SUPPRESS
        kind._add_action(action)  # noqa: SLF001 - likewise
    return kind


def _add_suite(kinds: Verbs) -> None:
    suite = _kind(
        kinds,
        "suite",
        help="the default: bitrates, resolutions, frame rates, several streams, and an idle baseline",
        description="An idle baseline; 1, 2.5, 5, 10 Mbps at 720p30; 480p, 720p, 1080p at 2.5 Mbps; 30 and\n"
        "60 fps at 5 Mbps; 2 and 4 streams at 2.5 Mbps. About 25 minutes with the default times.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_times(suite)
    _add_encoder(suite)


def _add_single(kinds: Verbs) -> None:
    single = _kind(
        kinds,
        "single",
        help="one stream, with an idle baseline if asked",
        description="One stream of a test picture, or of a file, and a tone, in real time.",
        formatter_class=Defaults,
    )
    single.add_argument(
        "--bitrate",
        type=checked(scenario.parse_bitrate),
        default="2500k",
        help="of the video: 2500k, 5M, 2500 (kbps)",
    )
    _add_stream(single)


def _add_multi(kinds: Verbs) -> None:
    multi = _kind(
        kinds,
        "multi",
        help="several streams at once, of one bitrate or of several",
        description="Several streams at once; the window opens when all of them run.",
        formatter_class=Defaults,
    )
    multi.add_argument("--count", type=checked(scenario.parse_count), help="how many streams")
    rates = multi.add_mutually_exclusive_group()
    rates.add_argument(
        "--bitrate",
        type=checked(scenario.parse_bitrate),
        default="2500k",
        help="of the video of each: 2500k, 5M, 2500 (kbps)",
    )
    rates.add_argument(
        "--bitrates",
        metavar="A,B,C",
        type=checked(scenario.parse_bitrates),
        help="of the video of one after the other, like 1000k,2500k,5M",
    )
    _add_stream(multi)


def _add_batch(kinds: Verbs) -> None:
    batch = _kind(
        kinds,
        "batch",
        help="the scenarios of a file",
        description="The scenarios of a JSON file; see configs/batches.",
        epilog="examples:\n"
        "  powerbench run batch --file configs/batches/quick.json\n"
        "  powerbench run --repeat 5 --order interleaved batch --file configs/batches/stress-matrix.json\n"
        "  powerbench run batch --file all.json --shard 2/3\n"
        "  powerbench run batch --file all.json --resume test_results/test_results_20260101_120000.json\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    batch.add_argument("--file", metavar="F.json", type=Path, required=True, help="the scenarios")
    batch.add_argument(
        "--shard",
        metavar="I/N",
        type=checked(_parse_shard),
        help="measure the I-th of N parts here; idle windows are in every part",
    )
    batch.add_argument(
        "--compute-quality", action="store_true", help="score the pictures after their windows"
    )


def _add_stream(kind: Parser) -> None:
    kind.add_argument(
        "--name",
        type=checked(scenario.parse_name),
        default="",
        help="the scenario's name; empty for one made of its settings",
    )
    kind.add_argument(
        "--resolution", type=checked(scenario.parse_resolution), default="1280x720", help="WIDTHxHEIGHT"
    )
    kind.add_argument("--fps", type=checked(scenario.parse_fps), default="30", help="frames a second")
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


def _add_times(kind: Parser) -> None:
    kind.add_argument(
        "--duration",
        type=checked(scenario.parse_duration),
        default="120",
        help="of the window: seconds, or 2m30s",
    )
    kind.add_argument(
        "--stabilization",
        type=checked(scenario.parse_wait),
        default="10",
        help="warm-up before the window, dropped; then as long again at most until power is steady",
    )
    kind.add_argument(
        "--cooldown", type=checked(scenario.parse_wait), default="10", help="rest after the stream"
    )
    kind.add_argument(
        "--baseline-duration", type=checked(scenario.parse_duration), default="60", help="of the idle window"
    )


def _add_encoder(kind: Parser) -> None:
    kind.add_argument("--encoder", choices=sorted(ENCODERS), default="h264", help="video encoder")
    kind.add_argument("--preset", choices=PRESETS, default="veryfast", help="the encoder's preset")


def _parse_shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not slash or not (number + count).isdigit() or not 1 <= int(number) <= int(count) <= 1000:
        raise ValueError(f"{text!r}: write like 2/3, the second of three parts")
    return int(number), int(count)
