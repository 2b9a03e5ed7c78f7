"""Finds out what a clip or a live source is, before anything is measured, with the ffmpeg that streams it.

That ffmpeg decodes the first frames: what it cannot decode it could not stream either. What the frames do not
say (rates, duration, codec) is in the container's header: an ffprobe says it exactly, else ffmpeg's lines.
A live source is asked but once, as it may serve a single client: it has ffmpeg's lines alone.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.load.ask import ask
from powerbench_agent.bench.load.encoder import sample_command
from powerbench_agent.bench.load.encoders.table import find_row
from powerbench_agent.bench.load.ffmpeg import Ffmpeg, locate, version_in
from powerbench_agent.bench.load.live_input import is_live, reading
from powerbench_agent.bench.load.probe_text import (
    StreamFacts,
    first_reason,
    last_reason,
    parse_banner,
    parse_ffprobe,
    parse_frames,
)
from powerbench_agent.bench.load.redact import redact_text, secrets_of
from powerbench_agent.bench.plan.picture import Colour, Picture, rate_of
from powerbench_agent.core.terminal import printable

if TYPE_CHECKING:
    from powerbench_agent.bench.load.ask import Reply
    from powerbench_agent.bench.load.probe_text import FrameFacts
    from powerbench_agent.bench.plan.scenario import Scenario

_SECONDS = 20.0  # for a program to look at a clip
_ENCODE_SECONDS = 60.0  # for the first frames of a slow preset
_TAKEN = re.compile(r"Supported pixel formats: (.+)")
_NO_VIDEO = re.compile(r"matches no streams|does not contain any stream")


class NotAClip(Exception):  # noqa: N818 - a verdict
    """A file that cannot be streamed; the text says why, in a line that can be printed."""


class Programs(NamedTuple):
    """What looks at a clip."""

    ffmpeg: str
    ffprobe: str = ""  # "" if there is none

    @classmethod
    def of(cls, ffmpeg: str) -> Programs:
        """Return this ffmpeg with the ffprobe beside it, else that on the PATH."""
        beside = Path(ffmpeg).with_name("ffprobe")
        return cls(ffmpeg, shutil.which(str(beside)) or shutil.which("ffprobe") or "")


def probe(path: str, programs: Programs, seconds: float = _SECONDS) -> Picture:
    """Return what the video of an input is. Raises: NotAClip; OSError if ffmpeg cannot be run."""
    decoded = ask(_decoding(programs.ffmpeg, path), seconds)
    frames = parse_frames(decoded.err)
    banner = parse_banner(decoded.err)
    if is_live(path):
        return _of_source(path, decoded, seconds)
    facts = _from_ffprobe(path, programs, seconds) or banner
    if facts is None or frames is None:
        raise NotAClip(printable(_why(decoded, banner, seconds)))
    if frames.number == 1:
        raise NotAClip("is a still picture, one frame: give a clip that moves")
    return _picture(facts, frames)


def _decoding(ffmpeg: str, path: str) -> list[str]:
    """Return the command that decodes two frames and says what they are. `V`: no cover picture."""
    command = [ffmpeg, "-hide_banner", "-nostdin", "-nostats", *reading(path), "-map", "0:V:0"]
    return [*command, "-frames:v", "2", "-vf", "showinfo", "-f", "null", "-"]


def _of_source(url: str, decoded: Reply, seconds: float) -> Picture:
    """Return what the video of a live source is. Raises: NotAClip."""
    frames, banner = parse_frames(decoded.err), parse_banner(decoded.err)
    if banner is not None and frames is not None:
        if frames.number == 1:
            raise NotAClip("sent one picture, and no other: it must move")
        return _picture(banner._replace(duration=banner.duration or None), frames)  # live FLV has 0 s
    if _NO_VIDEO.search(decoded.err):
        raise NotAClip("has no video")
    if decoded.code is None:
        raise NotAClip(f"sent no picture within {seconds:g} s; look whether its source is live")
    if "Protocol not found" in decoded.err:
        raise NotAClip("this ffmpeg was built without its protocol; name another with --ffmpeg")
    reason = printable(redact_text(last_reason(decoded.err), secrets_of(url))) or "it ended at once"
    raise NotAClip(f"cannot be read ({reason}); look whether its source is there, and is live")


def _from_ffprobe(path: str, programs: Programs, seconds: float) -> StreamFacts | None:
    """Return what ffprobe says; None if there is none, or it knows less than ffmpeg does."""
    if not programs.ffprobe:
        return None
    wanted = ["-v", "error", "-of", "json", "-show_streams", "-show_format"]
    try:
        return parse_ffprobe(ask([programs.ffprobe, *wanted, f"file:{path}"], seconds).out)
    except OSError:
        return None


def _why(decoded: Reply, banner: StreamFacts | None, seconds: float) -> str:
    """Return why nothing was decoded, and what to do."""
    if decoded.code is None:
        return (
            f"ffmpeg had not decoded its first frames after {seconds:g} s: is it on a slow disk, or damaged?"
        )
    if banner is None and _NO_VIDEO.search(decoded.err):
        return "has no video: give a clip that has a picture"
    if banner is not None and banner.width == 0:
        return "has a video whose size is not known: it is damaged or cut off"
    reason = first_reason(decoded.err)
    if banner is None:
        return f"is not a clip that ffmpeg can read, or it is cut off ({reason})"
    return f"has a video that cannot be decoded: it is damaged, or encrypted ({reason})"


def _picture(facts: StreamFacts, frames: FrameFacts) -> Picture:
    """Return a clip's picture: what frames say goes before what the header says."""
    field_order = facts.field_order if facts.field_order != "progressive" else frames.field_order
    base = frames.rate or facts.base
    rate, variable = rate_of(base, facts.average or base, interlaced=field_order != "progressive")
    if rate is None:
        raise NotAClip("does not say how many frames a second it has")
    pairs = zip(frames.colour, facts.colour, strict=True)
    return Picture(
        width=frames.width,
        height=frames.height,
        rate=rate,
        pix_fmt=frames.pix_fmt,
        stored_width=facts.width or frames.width,
        stored_height=facts.height or frames.height,
        rotation=facts.rotation,
        average_rate=facts.average,
        variable=variable,
        field_order=field_order,
        colour=Colour(*(first or second for first, second in pairs)),
        mastering_display=frames.mastering_display,
        content_light=frames.content_light,
        codec=facts.codec,
        container=facts.container,
        duration=facts.duration,
        frames=facts.frames,
        audio=facts.audio,
    )


class ClipTools:
    """Looks at clips, and at what an ffmpeg takes; asks for each but once."""

    def __init__(self, ffmpeg: str = "") -> None:
        """`ffmpeg`: as --ffmpeg names it."""
        self._asked_for = ffmpeg
        self._programs: Programs | None = None
        self._taken: dict[str, tuple[str, ...]] = {}
        self._encodes: dict[tuple[str, ...], Picture | None] = {}

    @property
    def programs(self) -> Programs:
        """The ffmpeg that will stream, and an ffprobe. Raises: NotHere."""
        if self._programs is None:
            programs = Programs.of(locate(self._asked_for))
            version_in(programs.ffmpeg, _answer(programs.ffmpeg, "-version").out)
            self._programs = programs
        return self._programs

    def picture(self, path: str) -> Picture:
        """Return what a clip's video is. Raises: NotAClip, NotHere."""
        try:
            return probe(path, self.programs)
        except OSError as error:
            raise _cannot_run(self.programs.ffmpeg, error) from None

    def taken_by(self, encoder: str) -> tuple[str, ...]:
        """Return the pixel formats that an encoder takes; none if it does not say. Raises: NotHere."""
        row = find_row(encoder)
        if not row.is_software or not row.rates:  # its frames come over an upload, or it is no encoder
            return row.formats
        if encoder not in self._taken:
            said = _TAKEN.search(_answer(self.programs.ffmpeg, "-h", f"encoder={row.name}").out)
            self._taken[encoder] = tuple(said[1].split()) if said else ()
        return self._taken[encoder]

    def lost(self, scenario: Scenario, sink: str) -> tuple[str, ...]:
        """Return what of a clip's HDR metadata an encode of it no longer has, as `scenario` encodes it."""
        source = scenario.picture
        if source is None or not (source.mastering_display or source.content_light):
            return ()
        tried = (scenario.input, scenario.encoder, scenario.pix_fmt, sink)
        if tried not in self._encodes:
            self._encodes[tried] = self._encoded(scenario, sink)
        found = self._encodes[tried]
        if found is None:  # the scenario fails by its name once it is run
            return ()
        found_lost = {
            "mastering display": source.mastering_display and not found.mastering_display,
            "content light level": source.content_light and not found.content_light,
        }
        return tuple(what for what, is_lost in found_lost.items() if is_lost)

    def _encoded(self, scenario: Scenario, sink: str) -> Picture | None:
        """Return what the first frames of a stream are once they are encoded; None if that fails."""
        with tempfile.TemporaryDirectory(prefix="powerbench-") as directory:
            file = str(Path(directory) / "encoded")
            ffmpeg = Ffmpeg(self.programs.ffmpeg, "", "", frozenset())
            ask(sample_command(ffmpeg, scenario, sink, file), _ENCODE_SECONDS)
            try:
                return probe(file, self.programs)
            except (NotAClip, OSError):
                return None


def _answer(ffmpeg: str, *what: str) -> Reply:
    """Return what an ffmpeg says of itself. Raises: NotHere."""
    try:
        return ask([ffmpeg, "-hide_banner", *what], _SECONDS)
    except OSError as error:
        raise _cannot_run(ffmpeg, error) from None


def _cannot_run(ffmpeg: str, error: OSError) -> NotHere:
    return NotHere(f"cannot run {ffmpeg}: {error.strerror}; name another ffmpeg with --ffmpeg")
