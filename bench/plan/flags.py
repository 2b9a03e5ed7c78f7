"""The flags of `powerbench run`: what is measured, and how."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from powerbench_agent.bench.flags import Defaults, Parser, Verbs, add_agents, checked, parse_repeat
from powerbench_agent.bench.load.encoders.rates import parse_rate
from powerbench_agent.bench.load.encoders.spelling import parse_extra
from powerbench_agent.bench.load.encoders.table import find_row
from powerbench_agent.bench.load.live_input import parse_input
from powerbench_agent.bench.plan import defaults, scenario
from powerbench_agent.bench.plan.frame_rate import parse_fps
from powerbench_agent.bench.plan.ladder import parse_ladder
from powerbench_agent.bench.plan.order import ORDERS
from powerbench_agent.bench.plan.pace import parse_pace
from powerbench_agent.bench.plan.sink import parse_sink
from powerbench_agent.bench.quality.measures import parse_measures


class _AfterKind(Parser):
    """Flags that are repeated after the kind: no default and no help there, as they have them before it."""

    def add_argument(self, *names: str, **how: Any) -> argparse.Action:
        """Add a flag that is silent unless it is given."""
        action = super().add_argument(*names, **how)
        action.default = argparse.SUPPRESS
        action.help = argparse.SUPPRESS
        return action


def add_parser(verbs: Verbs) -> None:
    """Add `run` and its kinds."""
    run = verbs.add_parser(
        "run",
        help="run test streams and measure their energy",
        description="Run scenarios one after the other and measure the energy of each one's time window.\n"
        "The default KIND is suite. The options below may also be given after KIND.",
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
    suite = _add_suite(kinds)
    _add_single(kinds)
    _add_multi(kinds)
    _add_batch(kinds)
    # Without a kind it is the suite, with its defaults; what a kind has no flag for is off.
    run.set_defaults(kind="suite", **vars(suite.parse_args([])))
    run.set_defaults(shard=None, quality=(), compute_quality=False, quality_ffmpeg="")


def _add_common(verb: Parser) -> None:
    """Add what every kind of run takes, before the kind or after it."""
    verb.add_argument(
        "--output-dir",
        metavar="DIR",
        type=Path,
        default=Path("test_results"),
        help="where results are written (default: ./test_results)",
    )
    add_agents(verb)
    verb.add_argument(
        "--sink",
        type=checked(parse_sink),
        default="embedded",
        help="where streams go: embedded, null, nginx (a private one), a URL of rtmp, srt, udp or tcp, "
        "or file:OUT.mkv, which is kept (default: embedded)",
    )
    verb.add_argument(
        "--ffmpeg", metavar="PATH", default="", help="use this ffmpeg (default: the one on the PATH)"
    )
    verb.add_argument(
        "--require-measured",
        action="store_true",
        help="refuse to run (exit 69) if the CPU's energy could only be estimated",
    )
    verb.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show progress (default: live in a terminal, else as lines)",
    )
    verb.add_argument(
        "--repeat",
        metavar="N",
        type=checked(parse_repeat),
        default=1,
        help="measure every scenario N times, with a baseline each time (conclusions need 5 or more)",
    )
    verb.add_argument(
        "--order",
        choices=ORDERS,
        default="sequential",
        help="order of the repeats: each scenario's in a row, block by block, or each block shuffled "
        "(default: sequential)",
    )
    verb.add_argument("--seed", metavar="N", type=int, default=1, help="seed of --order random (default: 1)")
    verb.add_argument("--strict", action="store_true", help="treat warnings as failures")
    verb.add_argument(
        "--rates",
        metavar="FILE",
        type=Path,
        help="TOML file with price_per_kwh, currency, gco2e_per_kwh, gco2e_source "
        "(default: /etc/powerbench/rates.toml if it exists)",
    )
    verb.add_argument(
        "--resume",
        metavar="RESULTS",
        type=Path,
        help="continue this results file with the scenarios it lacks; give the same flags as before",
    )


def _kind(kinds: Verbs, name: str, **how: Any) -> Parser:
    """Return a kind's parser; it takes the flags of `run` as well."""
    common = _AfterKind(add_help=False)
    _add_common(common)
    return kinds.add_parser(name, parents=[common], allow_abbrev=False, **how)


def _add_suite(kinds: Verbs) -> Parser:
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
    return suite


def _add_single(kinds: Verbs) -> None:
    single = _kind(
        kinds,
        "single",
        help="one stream, with an idle baseline on request",
        description="One stream in real time: a test picture or a file, and a tone.",
        formatter_class=Defaults,
    )
    single.add_argument(
        "--bitrate",
        type=checked(scenario.parse_bitrate),
        help=f"video bitrate: 2500k, 5M, 2500 (kbps); {defaults.BITRATE} unless --rate goes by quality",
    )
    _add_stream(single)


def _add_multi(kinds: Verbs) -> None:
    multi = _kind(
        kinds,
        "multi",
        help="several streams at once, of one bitrate or of several",
        description="Several streams at once; the measurement begins when all of them run.",
        formatter_class=Defaults,
    )
    multi.add_argument("--count", type=checked(scenario.parse_count), help="number of streams")
    rates = multi.add_mutually_exclusive_group()
    rates.add_argument(
        "--bitrate",
        type=checked(scenario.parse_bitrate),
        help=f"video bitrate of every stream: 2500k, 5M; {defaults.BITRATE} unless --rate goes by quality",
    )
    rates.add_argument(
        "--bitrates",
        metavar="A,B,C",
        type=checked(scenario.parse_bitrates),
        help="video bitrate of each stream, like 1000k,2500k,5M",
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
    batch.add_argument("--file", metavar="F.json", type=Path, required=True, help="file with the scenarios")
    batch.add_argument(
        "--shard",
        metavar="I/N",
        type=checked(_parse_shard),
        help="measure the I-th of N parts on this machine; every part has the idle windows",
    )
    _add_quality(batch)


def _add_stream(kind: Parser) -> None:
    kind.add_argument(
        "--name",
        type=checked(scenario.parse_name),
        default="",
        help="name of the scenario; if empty, made of its settings",
    )
    kind.add_argument(
        "--resolution",
        type=checked(scenario.parse_resolution),
        help=f"WIDTHxHEIGHT (default: {defaults.RESOLUTION}, or the clip's own)",
    )
    kind.add_argument(
        "--fps",
        type=checked(parse_fps),
        help="frames per second: 25, 30000/1001, or 29.97, which means 30000/1001 "
        f"(default: {defaults.FPS}, or the clip's own)",
    )
    kind.add_argument(
        "--input",
        metavar="FILE|URL",
        type=checked(parse_input),
        help="stream this clip in a loop, as it is, instead of a test picture; or a live source: "
        "rtmp, srt, udp, rtp, rtsp, tcp or http(s)://, HLS among them",
    )
    kind.add_argument(
        "--pace",
        type=checked(parse_pace),
        default="realtime",
        help="realtime, 2x (times real time), or max: a file encoded from its first frame to its last, "
        "as fast as it goes, over which the energy is measured",
    )
    kind.add_argument(
        "--ladder",
        metavar="WxH:RATE,…",
        type=checked(parse_ladder),
        default=None,
        help="encode several renditions of one decoded picture, like 1920x1080:5M,1280x720:2500k,854x480:1M",
    )
    kind.add_argument(
        "--split",
        action="store_true",
        help="measure decoding and scaling in windows of their own, too: what a frame costs of each",
    )
    _add_times(kind)
    _add_encoder(kind)
    _add_rate(kind)
    kind.add_argument(
        "--with-baseline", action="store_true", help="measure the idle machine first, and compare with it"
    )
    _add_quality(kind)


def _add_quality(kind: Parser) -> None:
    kind.add_argument(
        "--quality",
        metavar="LIST",
        type=checked(parse_measures),
        help="score each picture after its measurement: vmaf, xpsnr, psnr, ssim, or none",
    )
    kind.add_argument(
        "--quality-ffmpeg",
        metavar="PATH",
        default="",
        help="the ffmpeg that scores (default: the one that encodes, or that of the extra ffmpeg)",
    )
    kind.add_argument(
        "--compute-quality", action="store_true", help="the older name of --quality vmaf,xpsnr,psnr,ssim"
    )


def _add_times(kind: Parser) -> None:
    kind.add_argument(
        "--duration",
        type=checked(scenario.parse_duration),
        default=None,
        help=f"measurement time, in seconds or as 2m30s (default: {defaults.DURATION}); "
        "with --pace max, how much of the clip (default: all of it)",
    )
    kind.add_argument(
        "--stabilization",
        type=checked(scenario.parse_wait),
        default=defaults.STABILIZATION,
        help="warm-up before the measurement; afterwards up to the same time again until power is steady",
    )
    kind.add_argument(
        "--cooldown",
        type=checked(scenario.parse_wait),
        default=defaults.COOLDOWN,
        help="pause after the stream",
    )
    kind.add_argument(
        "--baseline-duration",
        type=checked(scenario.parse_duration),
        default=defaults.BASELINE_DURATION,
        help="measurement time of the idle baseline",
    )


def _add_encoder(kind: Parser) -> None:
    kind.add_argument(
        "--encoder",
        metavar="NAME",
        type=checked(_parse_encoder),
        default=defaults.ENCODER,
        help="video encoder; powerbench doctor --encoders lists them",
    )
    kind.add_argument(
        "--preset",
        default="",
        help="preset, or speed, of the encoder; if empty, a fast one (veryfast for h264 and h265)",
    )
    kind.add_argument(
        "--encoder-options",
        metavar="KEY=VALUE:…",
        type=checked(parse_extra),
        default=None,
        help="more options of the encoder, like tune=zerolatency:bf=0",
    )
    kind.add_argument(
        "--device",
        type=checked(scenario.parse_device),
        default=None,
        help="device of a hardware encoder, like /dev/dri/renderD128, or the number of an NVIDIA GPU",
    )
    kind.add_argument(
        "--pix-fmt",
        default="",
        help="pixel format, like yuv420p10le; if empty, the clip's own, or the encoder's usual one",
    )


def _add_rate(kind: Parser) -> None:
    kind.add_argument(
        "--rate",
        type=checked(parse_rate),
        default=None,
        help="rate control: cbr, vbr, crf=23, qp=28 or cq=30; if empty, a bitrate: cbr for most encoders",
    )
    kind.add_argument(
        "--gop",
        type=checked(scenario.parse_gop),
        default=None,
        help="frames between keyframes; if empty, 2 s",
    )
    kind.add_argument(
        "--hwaccel",
        type=checked(scenario.parse_hwaccel),
        default=None,
        help="decode the clip of --input in hardware: cuda, qsv, vaapi, vulkan",
    )


def _parse_encoder(name: str) -> str:
    return find_row(name).known_as


def _parse_shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not slash or not (number + count).isdigit() or not 1 <= int(number) <= int(count) <= 1000:
        raise ValueError(f"{text!r}: write it like 2/3, the second of three parts")
    return int(number), int(count)
