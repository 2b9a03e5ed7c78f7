"""The plan of a run: what was asked for, made of the flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from powerbench_agent.bench.exits import BadFile, BadFlag
from powerbench_agent.bench.flags import read_token
from powerbench_agent.bench.load.encoders.spelling import EncoderAsked, completed, default_rate, problems
from powerbench_agent.bench.load.live_input import is_live
from powerbench_agent.bench.load.probe import ClipTools
from powerbench_agent.bench.meter import choose
from powerbench_agent.bench.plan import defaults, order, rates, sink
from powerbench_agent.bench.plan.batch_file import BadBatch, parse_batch
from powerbench_agent.bench.plan.clips import BadClips, with_clips
from powerbench_agent.bench.plan.frame_rate import parse_fps
from powerbench_agent.bench.plan.ladder import renditions_of, with_ladder
from powerbench_agent.bench.plan.pace import REALTIME
from powerbench_agent.bench.plan.scenario import (
    Resolution,
    Scenario,
    named,
    parse_bitrate,
    parse_duration,
    parse_resolution,
    with_suffix,
)
from powerbench_agent.bench.plan.suite import Times, baseline, suite
from powerbench_agent.core.bounded_file import UnfitFile, read_bounded_file
from powerbench_agent.core.scores import MEASURES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from powerbench_agent.bench.load.encoders.rates import RateControl
    from powerbench_agent.bench.plan.clips import Tools

_MAX_BATCH_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    scenarios: tuple[Scenario, ...]
    output_dir: Path
    agents: tuple[str, ...] = ()
    token: str = ""
    sink: str = "embedded"
    ffmpeg: str = ""
    require_measured: bool = False
    quality: tuple[str, ...] = ()  # what pictures are scored by
    quality_ffmpeg: str = ""
    strict: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)  # as the results file has them
    rates: Mapping[str, Any] = field(default_factory=dict)  # likewise
    sink_kind: str = "embedded"  # what was asked for, whatever URL stands for it
    suffix: str = ""  # of the results file's name
    resume: Path | None = None  # the results file to continue


def make_plan(flags: argparse.Namespace, tools: Tools | None = None) -> Plan:
    """Return what the flags ask for; `tools`: what looks at clips, by default --ffmpeg does.

    Raises: BadFlag, BadFile, NotHere.
    """
    choose.check_urls(flags.agent)
    once, suffix = _scenarios(flags, tools or ClipTools(flags.ffmpeg)), ""
    if flags.shard is not None:
        number, count = flags.shard
        once = _shard(once, number, count)
        suffix = f"_s{number}of{count}"
    once = [part for scenario in once for part in parts_of(scenario)]
    scenarios = tuple(order.in_blocks(once, flags.repeat, flags.order, flags.seed))
    outputs = [len(outputs_of(scenario)) for scenario in scenarios]
    try:
        sink.check_ports(flags.sink, max(outputs, default=0))
    except ValueError as error:
        raise BadFlag(f"--sink: {error}") from None
    return Plan(
        scenarios=scenarios,
        output_dir=flags.output_dir,
        agents=tuple(flags.agent),
        token=read_token(flags.token_file),
        sink=sink.with_place(flags.sink, sum(outputs)),
        sink_kind=sink.kind_of(flags.sink),
        ffmpeg=flags.ffmpeg,
        require_measured=flags.require_measured,
        quality=flags.quality or (MEASURES if flags.compute_quality else ()),
        quality_ffmpeg=flags.quality_ffmpeg,
        strict=flags.strict,
        settings={
            "kind": flags.kind,
            "repeat": flags.repeat,
            "order": flags.order,
            "seed": flags.seed if flags.order == "random" else None,
            "strict": flags.strict,
        },
        rates=rates.load(flags.rates),
        suffix=suffix,
        resume=flags.resume,
    )


def outputs_of(scenario: Scenario) -> list[Scenario]:
    """Return what a scenario sends to a sink: each rendition of each stream."""
    return [one for stream in scenario.streams if not stream.part for one in stream.renditions]


def _shard(once: list[Scenario], number: int, count: int) -> list[Scenario]:
    """Return one machine's part. Raises: BadFlag if there is no test in it."""
    ours = order.shard(once, number, count)
    if all(scenario.type == "baseline" for scenario in ours):
        tests = sum(scenario.type != "baseline" for scenario in once)
        has = f"{tests} test{'' if tests == 1 else 's'}"
        raise BadFlag(f"--shard: shard {number} of {count} has nothing: the batch has {has}")
    return ours


def _scenarios(flags: argparse.Namespace, tools: Tools) -> list[Scenario]:
    """Return what is measured once. Raises: BadFlag, BadFile, NotHere."""
    if flags.kind == "batch":
        return _batch(flags.file, tools, flags.sink)
    times = Times(
        duration=flags.duration or parse_duration(defaults.DURATION),
        stabilization=flags.stabilization,
        cooldown=flags.cooldown,
        baseline=flags.baseline_duration,
    )
    if flags.kind == "suite":
        return suite(times, _asked(flags))
    idle = [baseline(times)] if flags.with_baseline else []
    try:
        streams = with_clips([_stream(flags)], tools, flags.sink)
    except BadClips as bad:
        raise BadFile(f"--{str(bad).replace(': ', ' ', 1)}") from None
    return [*idle, *streams]


def _batch(file: Path, tools: Tools, to: str) -> list[Scenario]:
    """Return the scenarios of a batch file. Raises: BadFile, NotHere."""
    try:
        content = read_bounded_file(file, _MAX_BATCH_BYTES)
    except OSError as error:
        raise BadBatch(f"{file}: cannot read it: {error.strerror}") from None
    except UnfitFile as unfit:
        raise BadBatch(f"{file}: {unfit}; give a batch file to --file") from None
    scenarios = parse_batch(content, str(file))
    inputs = dict.fromkeys(scenario.input for scenario in scenarios if scenario.input)
    lost = [name for name in inputs if not is_live(name) and not Path(name).is_file()]
    if lost:
        raise BadBatch("\n".join(f"{file}: input: {name!r}: is not a file" for name in lost))
    try:
        made = with_clips(scenarios, tools, to)
    except BadClips as bad:
        raise BadBatch("\n".join(f"{file}: {line}" for line in str(bad).splitlines())) from None
    return made


def _stream(flags: argparse.Namespace) -> Scenario:
    """Return the scenario of `single` or `multi`; what it leaves to a clip is not set.

    Raises: BadFlag, BadFile.
    """
    bitrates = _bitrates(flags) if flags.kind == "multi" else ()
    is_clip = flags.input is not None and not is_live(flags.input)
    if is_clip and not Path(flags.input).is_file():
        raise BadFile(f"--input {flags.input!r}: is not a file")
    asked = _asked(flags)
    rate = asked.rate
    has_clip = flags.input is not None
    _check_clip_flags(flags, asked.encoder)
    no_size, test_size = Resolution(0, 0), parse_resolution(defaults.RESOLUTION)
    stream = Scenario(
        name=flags.name,
        type="multi" if bitrates else "single",
        duration=flags.duration or parse_duration(defaults.DURATION),
        stabilization=flags.stabilization,
        cooldown=flags.cooldown,
        video_kbps=0.0 if bitrates or flags.ladder else _kbps(flags, rate),
        bitrates=bitrates,
        resolution=flags.resolution or (no_size if has_clip else test_size),
        fps=flags.fps or (0 if has_clip else parse_fps(defaults.FPS)),
        encoder=asked.encoder,
        preset=asked.preset,
        rate=rate,
        pix_fmt=asked.pix_fmt or ("" if has_clip else completed(asked).pix_fmt),
        gop=flags.gop or 0,
        encoder_options=asked.extra,
        device=asked.device,
        hwaccel=flags.hwaccel or "",
        input=str(Path(flags.input).resolve()) if is_clip else flags.input or "",
        pace=flags.pace,
        to_end=flags.pace.is_max and has_clip and flags.duration is None,
        split=flags.split,
    )
    if flags.ladder:
        stream = _with_ladder(flags, stream)
    return stream if has_clip else named(stream)


def _check_clip_flags(flags: argparse.Namespace, encoder: str) -> None:
    """Check that what only a clip can have comes with one. Raises: BadFlag."""
    if flags.input is not None:
        if flags.split and encoder == "copy":
            raise BadFlag("--split: copy decodes and scales nothing; give an --encoder")
        if is_live(flags.input) and flags.pace != REALTIME:
            raise BadFlag(f"--pace {flags.pace}: a live source sends at its own; omit it, or give a clip")
        return
    for flag, is_given, why in (
        ("hwaccel", bool(flags.hwaccel), "decodes a clip"),
        ("encoder copy", encoder == "copy", "sends a clip on as it is"),
        ("split", flags.split, "measures what decoding, scaling and encoding a clip take"),
    ):
        if is_given:
            raise BadFlag(f"--{flag}: {why}; give one with --input")


def _with_ladder(flags: argparse.Namespace, stream: Scenario) -> Scenario:
    """Return the scenario with its ladder. Raises: BadFlag."""
    if flags.resolution:
        raise BadFlag("--resolution: does not go with --ladder, whose renditions have their own")
    ladder, wrong = renditions_of(stream, flags.ladder, flags.bitrate or 0.0)
    if wrong:
        raise BadFlag("; ".join(f"--ladder: {what}" for what in wrong))
    return with_ladder(stream, ladder)


def parts_of(stream: Scenario) -> list[Scenario]:
    """Return a stream, after the windows that tell its decoding and scaling apart, if they are asked for."""
    if not stream.split:
        return [stream]
    parts: tuple[Literal["decode", "decode+scale"], ...] = ("decode", "decode+scale")
    named_parts = [(part, with_suffix(stream.name, f":{part}")) for part in parts]
    return [*(msgspec.structs.replace(stream, name=name, part=part) for part, name in named_parts), stream]


def _asked(flags: argparse.Namespace) -> EncoderAsked:
    """Return what is asked of the encoder. Raises: BadFlag for what it does not have."""
    given = EncoderAsked(
        encoder=flags.encoder,
        preset=flags.preset,
        rate=getattr(flags, "rate", None) or default_rate(flags.encoder),
        pix_fmt=flags.pix_fmt,
        extra=flags.encoder_options or (),
        device=flags.device or "",
    )
    if found := [f"--{key.replace('_', '-')}: {what}" for key, what in problems(given)]:
        raise BadFlag("; ".join(found))
    return given._replace(preset=completed(given).preset)


def _kbps(flags: argparse.Namespace, rate: RateControl) -> float:
    """Return the video bitrate of a stream, in kbps; 0 if it goes by quality. Raises: BadFlag."""
    if rate.has_bitrate:
        return float(flags.bitrate or parse_bitrate(defaults.BITRATE))
    if flags.bitrate:
        raise BadFlag(f"--bitrate: does not go with --rate {rate}, which spends what the picture takes")
    return 0.0


def _bitrates(flags: argparse.Namespace) -> tuple[float, ...]:
    """Return the video bitrate of each stream of a `multi`, in kbps. Raises: BadFlag."""
    rate = _asked(flags).rate
    if flags.bitrates and flags.ladder:
        raise BadFlag("--bitrates: do not go with --ladder, whose renditions have their own")
    if flags.bitrates and not rate.has_bitrate:
        raise BadFlag(f"--bitrates: do not go with --rate {rate}, which spends what the picture takes")
    each = 0.0 if flags.ladder else _kbps(flags, rate)
    bitrates: tuple[float, ...] = flags.bitrates or (each,) * (flags.count or 0)
    if not bitrates:
        raise BadFlag("multi: give the number of streams with --count, or their --bitrates")
    if flags.bitrates and flags.count not in (None, len(bitrates)):
        what = f"--count {flags.count}, but {len(bitrates)} --bitrates"
        raise BadFlag(f"multi: {what}: make them agree, or omit --count")
    return bitrates
