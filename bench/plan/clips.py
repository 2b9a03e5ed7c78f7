"""Scenarios that stream a clip or a live source: which it is, and what of its own picture they keep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.load.clip_file import fault_of
from powerbench_agent.bench.load.live_input import is_live, shown_input
from powerbench_agent.bench.load.probe import NotAClip
from powerbench_agent.bench.load.redact import redact_url
from powerbench_agent.bench.plan import frame_rate
from powerbench_agent.bench.plan.clip import fingerprint
from powerbench_agent.bench.plan.picture import MAX_SIDE, MIN_SIDE, cropped, nearest_format
from powerbench_agent.bench.plan.scenario import Resolution, Scenario, named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from powerbench_agent.bench.plan.clip import Clip
    from powerbench_agent.bench.plan.picture import Picture
    from powerbench_agent.bench.plan.scenario import Rendition


class Tools(Protocol):
    """What looks at clips, and at what an ffmpeg takes."""

    def picture(self, path: str) -> Picture:
        """Return what the video of a clip or a live source is. Raises: NotAClip, NotHere."""

    def taken_by(self, encoder: str) -> Sequence[str]:
        """Return the pixel formats that an encoder takes; none if it does not say. Raises: NotHere."""

    def lost(self, scenario: Scenario, sink: str) -> tuple[str, ...]:
        """Return what of the clip's HDR metadata an encode no longer has."""


class BadClips(Exception):  # noqa: N818 - a verdict
    """Clips that cannot be streamed; a line for each."""


def with_clips(scenarios: Sequence[Scenario], tools: Tools, sink: str) -> list[Scenario]:
    """Return the scenarios with the clips that they stream; what they left open is the clip's own.

    Raises: BadClips, NotHere.
    """
    problems: dict[str, str] = {}
    seen: dict[str, tuple[Clip | None, Picture]] = {}
    names = dict.fromkeys(scenario.input for scenario in scenarios if scenario.input)
    for name in names:
        if is_live(name):
            continue  # asked once all clips are known to be good
        try:
            clip = fingerprint(Path(name))
            _check_file(Path(name), clip)
            seen[name] = clip, tools.picture(name)
        except OSError as error:
            problems[name] = f"cannot read it: {error.strerror}"
        except NotAClip as bad:
            problems[name] = str(bad)
    if problems:
        raise BadClips("\n".join(f"input: {name!r}: {problem}" for name, problem in problems.items()))
    seen |= {name: (None, _source(name, tools)) for name in names if is_live(name)}
    _check_lengths(scenarios, {name: picture for name, (_, picture) in seen.items()})
    return [
        _completed(scenario, *seen[scenario.input], tools, sink) if scenario.input else scenario
        for scenario in scenarios
    ]


def _check_file(path: Path, clip: Clip) -> None:
    """Check what FFmpeg would not say. Raises: NotAClip, OSError."""
    if clip.size == 0:
        raise NotAClip("is empty")
    if fault := fault_of(path):
        raise NotAClip(fault)


def _source(url: str, tools: Tools) -> Picture:
    """Return what the video of a live source is. Raises: NotHere."""
    try:
        return tools.picture(url)
    except NotAClip as bad:
        raise NotHere(f"input: {redact_url(url)}: {bad}") from None


def _check_lengths(scenarios: Sequence[Scenario], pictures: Mapping[str, Picture]) -> None:
    """Check that no recording from the network ends too soon: it is not looped. Raises: NotHere."""
    for scenario in scenarios:
        there = pictures[scenario.input].duration if is_live(scenario.input) else None
        needed = scenario.stabilization + scenario.duration
        if there and there < needed:
            what = f"is {there:.0f} s long, and warm-up and measurement take at least {needed:.0f} s"
            hint = "a URL is not read in a loop: download it, or shorten --stabilization and --duration"
            raise NotHere(f"input: {redact_url(scenario.input)}: {what}; {hint}")


def _completed(scenario: Scenario, clip: Clip | None, picture: Picture, tools: Tools, sink: str) -> Scenario:
    """Return the scenario of a clip or a source with what it left open. Raises: BadClips."""
    pix_fmt = scenario.pix_fmt or nearest_format(picture.pix_fmt, tools.taken_by(scenario.encoder))
    own_size = Resolution(*cropped(picture.width, picture.height, pix_fmt))
    resolution = scenario.resolution if any(scenario.resolution) else own_size
    fps = scenario.fps or picture.rate
    if not MIN_SIDE <= min(resolution) <= max(resolution) <= MAX_SIDE:
        what = f"its size {resolution} is not from {MIN_SIDE} to {MAX_SIDE} pixels; give another resolution"
        raise BadClips(f"input: {shown_input(scenario.input)!r}: {what}")
    if not frame_rate.MINIMUM <= fps <= frame_rate.MAXIMUM:
        limits = f"from {frame_rate.MINIMUM} to {frame_rate.MAXIMUM} a second"
        name = shown_input(scenario.input)
        raise BadClips(f"input: {name!r}: its frame rate {fps} is not {limits}; give another fps")
    ladder = tuple(_with_format(rung, picture, tools) for rung in scenario.ladder)
    whole = msgspec.structs.replace(
        scenario,
        clip=clip,
        picture=picture,
        pix_fmt=ladder[0].pix_fmt if ladder else pix_fmt,
        resolution=resolution,
        fps=fps,
        duration=(picture.duration or scenario.duration) if scenario.to_end else scenario.duration,
        ladder=ladder,
    )
    if clip is None:  # a trial encode would be one more client of the source
        return named(whole)
    return named(msgspec.structs.replace(whole, lost=tools.lost(whole, sink)))


def _with_format(rung: Rendition, picture: Picture, tools: Tools) -> Rendition:
    """Return a rendition of a clip whose pixel format is that of the clip, unless it has one of its own."""
    pix_fmt = rung.pix_fmt or nearest_format(picture.pix_fmt, tools.taken_by(rung.encoder))
    return msgspec.structs.replace(rung, pix_fmt=pix_fmt)
