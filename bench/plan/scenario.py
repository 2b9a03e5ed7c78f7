"""A scenario: what one window measures; and how its values are written on the command line. Pure."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from powerbench_agent.bench.load.encoders.rates import RateControl
from powerbench_agent.bench.load.encoders.spelling import EncoderAsked
from powerbench_agent.bench.load.live_input import is_live, source_name
from powerbench_agent.bench.plan import frame_rate
from powerbench_agent.bench.plan.clip import Clip
from powerbench_agent.bench.plan.frame_rate import FrameRate
from powerbench_agent.bench.plan.pace import REALTIME, Pace
from powerbench_agent.bench.plan.picture import Picture
from powerbench_agent.core.options import parse_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_NAME = 100
MAX_STREAMS = 200
_MAX_STEM = 30  # of a clip, in a name
AUDIO_KBPS = 96.0  # beside the video, in every stream
_GOP_SECONDS = 2
_MAX_GOP = 10_000

_BITRATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kKmM]?)")
_RESOLUTION = re.compile(r"([0-9]{1,5})[xX]([0-9]{1,5})")


class Resolution(NamedTuple):
    """Pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        """Return it as FFmpeg and people write it."""
        return f"{self.width}x{self.height}"


class Rendition(msgspec.Struct, frozen=True, kw_only=True):
    """One picture of a ladder; its fields are those of a scenario."""

    rendition: str  # "720p"
    resolution: Resolution
    encoder: str
    video_kbps: float = 0.0
    preset: str = ""
    rate: RateControl = RateControl()
    pix_fmt: str = ""
    gop: int = 0
    encoder_options: tuple[tuple[str, str], ...] = ()
    device: str = ""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One window to measure: an idle one, a stream's, or several streams'. Seconds and kbps."""

    name: str
    type: Literal["baseline", "single", "multi"]
    duration: float
    stabilization: float = 0.0
    cooldown: float = 0.0
    video_kbps: float = 0.0
    resolution: Resolution = Resolution(0, 0)
    fps: FrameRate = 0
    encoder: str = ""  # as results name it
    preset: str = ""
    rate: RateControl = RateControl()
    pix_fmt: str = ""  # "": the encoder's default, or until a clip's own is known
    gop: int = 0  # frames between keyframes; 0: two seconds
    encoder_options: tuple[tuple[str, str], ...] = ()  # its own ones
    device: str = ""
    hwaccel: str = ""  # what decodes the clip; "": the CPU
    bitrates: tuple[float, ...] = ()  # of the streams of a multi, instead of video_kbps
    input: str = ""  # a file that is streamed in a loop, or a live URL, instead of the test picture
    clip: Clip | None = None  # which one that is
    picture: Picture | None = None  # and what its video is
    lost: tuple[str, ...] = ()  # what of the clip's HDR metadata this ffmpeg does not pass on
    pace: Pace = REALTIME
    to_end: bool = False  # at the greatest pace: a clip from its first frame to its last, whatever that takes
    ladder: tuple[Rendition, ...] = ()  # the pictures that are made of one
    rendition: str = ""  # which of them this is
    drawn: Resolution = Resolution(0, 0)  # the size of the test picture, if it is not the stream's own
    part: Literal["", "decode", "decode+scale"] = ""  # of the work: "" is all of it
    split: bool = False  # whether its parts are measured as well
    outputs: tuple[Any, ...] = ()  # the one output that a batch file names, as it is written there
    group: str = ""  # the name that repeats share
    block: int = 0  # which repeat

    @property
    def streams(self) -> tuple[Scenario, ...]:
        """Each stream as a scenario of its own; none of an idle window."""
        if self.type == "baseline":
            return ()
        if self.type == "single":
            return (self,)
        one = msgspec.structs.replace(self, type="single", bitrates=())
        return tuple(
            msgspec.structs.replace(one, name=f"{self.name}-{number}", video_kbps=kbps)
            for number, kbps in enumerate(self.bitrates, 1)
        )

    @property
    def renditions(self) -> tuple[Scenario, ...]:
        """Each picture that one of its streams is encoded to, as a scenario; itself if it is no ladder."""
        if not self.ladder:
            return (self,)
        return tuple(
            msgspec.structs.replace(
                self,
                name=f"{self.name} {rung.rendition}",
                ladder=(),
                drawn=self.resolution,
                **msgspec.structs.asdict(rung),
            )
            for rung in self.ladder
        )

    @property
    def has_tone(self) -> bool:
        """Whether a tone is encoded beside the picture: in streams, not in a file that is encoded."""
        return not self.pace.is_max and not self.part

    @property
    def audio_kbps(self) -> float:
        """What the tones of all streams are asked for."""
        return AUDIO_KBPS * sum(len(stream.renditions) for stream in self.streams) if self.has_tone else 0.0

    @property
    def asked_kbps(self) -> float | None:
        """What all streams together were asked for: video and audio; None if they go by quality."""
        encoded = [one for stream in self.streams for one in stream.renditions]
        if self.part or not all(one.rate.has_bitrate for one in encoded):
            return None
        return sum(one.video_kbps for one in encoded) + self.audio_kbps

    @property
    def asked(self) -> EncoderAsked:
        """What is asked of the video encoder."""
        gop = self.gop or frame_rate.frames_in(self.fps, _GOP_SECONDS)
        return EncoderAsked(
            self.encoder, self.preset, self.rate, self.pix_fmt, gop, self.encoder_options, self.device
        )


def parse_bitrate(text: str) -> float:
    """Return kbps from `2500k`, `5M` or `2500`. Raises: ValueError."""
    match = _BITRATE.fullmatch(text.strip())
    kbps = float(match[1]) * (1000.0 if match[2] in ("m", "M") else 1.0) if match else 0.0
    if not 10 <= kbps <= 1_000_000:
        what = "write it like 2500k, 5M, or 2500 for kbps, from 10k to 1000M"
        raise ValueError(f"{text!r} is not a bitrate; {what}")
    return kbps


def parse_bitrates(text: str) -> tuple[float, ...]:
    """Return kbps from `1000k,2500k,5M`. Raises: ValueError."""
    return tuple(parse_bitrate(part) for part in text.split(","))


def parse_count(text: str) -> int:
    """Return a number of streams. Raises: ValueError."""
    if not re.fullmatch(r"[0-9]{1,3}", text.strip()) or not 1 <= int(text) <= MAX_STREAMS:
        raise ValueError(f"{text!r}: write a whole number of streams from 1 to {MAX_STREAMS}")
    return int(text)


def format_bitrates(scenario: Scenario) -> str:
    """Return a scenario's video bitrate for tables and labels: `2500k`, `1000k+2500k`, `0k` if idle.

    It is "" for streams that go by quality; a ladder's are those of one, in its order.
    """
    if scenario.ladder:
        by_quality = any(not rung.rate.has_bitrate for rung in scenario.ladder)
        return "" if by_quality else "+".join(format_bitrate(rung.video_kbps) for rung in scenario.ladder)
    if not scenario.rate.has_bitrate:
        return ""
    rates = [format_bitrate(stream.video_kbps) for stream in scenario.streams]
    if not rates:
        return "0k"
    return "+".join(rates) if len(set(rates)) > 1 else rates[0]


def format_resolution(scenario: Scenario) -> str:
    """Return a scenario's picture size: `1280x720`; of a ladder `1920x1080+1280x720`."""
    return "+".join(str(one.resolution) for one in scenario.renditions)


def format_bitrate(kbps: float) -> str:
    """Return kbps as the results file and FFmpeg write it: `2500k`."""
    return f"{kbps:g}k" if kbps < 1e6 else f"{kbps:.0f}k"


def parse_resolution(text: str) -> Resolution:
    """Return pixels from `1280x720`. Raises: ValueError."""
    match = _RESOLUTION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a resolution; write WIDTHxHEIGHT, like 1280x720")
    resolution = Resolution(int(match[1]), int(match[2]))
    even = resolution.width % 2 == 0 and resolution.height % 2 == 0
    if not even or min(resolution) < 16 or max(resolution) > 16384:
        raise ValueError(f"{text!r}: width and height must be even, and between 16 and 16384")
    return resolution


def parse_duration(text: str) -> float:
    """Return seconds, at least one, from `120`, `90s` or `2m30s`. Raises: ValueError."""
    seconds = parse_seconds(text)
    if not 1 <= seconds <= 7 * 86400:
        raise ValueError(f"{text!r}: must be at least 1 s and at most a week; write seconds, or like 2m30s")
    return seconds


def parse_wait(text: str) -> float:
    """Return seconds, which may be 0. Raises: ValueError."""
    seconds = parse_seconds(text)
    if not 0 <= seconds <= 7 * 86400:
        raise ValueError(f"{text!r}: must be at most a week; write seconds, or like 2m30s")
    return seconds


def parse_gop(text: str) -> int:
    """Return frames between keyframes. Raises: ValueError."""
    if not re.fullmatch(r"[0-9]{1,5}", text.strip()) or not 1 <= int(text) <= _MAX_GOP:
        raise ValueError(f"{text!r}: write a whole number of frames from 1 to {_MAX_GOP}, like 60")
    return int(text)


def parse_hwaccel(text: str) -> str:
    """Return the name of a hardware decoder. Raises: ValueError."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{1,20}", text):
        raise ValueError(f"{text!r}: write a name that ffmpeg -hwaccels lists, like cuda, qsv or vaapi")
    return text


def parse_device(text: str) -> str:
    """Return a device as FFmpeg takes it. Raises: ValueError."""
    if not re.fullmatch(r"/dev/[\w/.-]{1,100}|[0-9]{1,2}", text) or ".." in text:
        raise ValueError(f"{text!r}: write a device like /dev/dri/renderD128, or a GPU's number")
    return text


def parse_name(text: str) -> str:
    """Return a scenario's name, which tables, labels and files can hold. Raises: ValueError."""
    if len(text) > MAX_NAME or not text.isprintable():
        raise ValueError(f"{text[:40]!r}: a name has at most {MAX_NAME} printable characters")
    return text


def with_suffix(name: str, suffix: str) -> str:
    """Return a name with a suffix, before which it is cut if both are too long."""
    return f"{name[: MAX_NAME - len(suffix)]}{suffix}"


def with_unique_names(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """Return the scenarios; the second one of a name is called NAME#2, and so on.

    No name becomes longer than MAX_NAME.
    """
    taken: set[str] = set()
    unique = []
    for scenario in scenarios:
        name, number = scenario.name, 2
        while name in taken:
            name, number = with_suffix(scenario.name, f"#{number}"), number + 1
        taken.add(name)
        group = scenario.group or scenario.name
        unique.append(msgspec.structs.replace(scenario, name=name, group=group))
    return unique


def named(scenario: Scenario) -> Scenario:
    """Return the scenario with a name made of its settings, if it was given none."""
    if scenario.name:
        return scenario
    return msgspec.structs.replace(scenario, name=_name_of(scenario)[:MAX_NAME])


def _name_of(scenario: Scenario) -> str:
    count = f"{len(scenario.streams)}x_" if scenario.type == "multi" else ""
    pace = "" if scenario.pace == REALTIME else f"_{scenario.pace}"
    rate = frame_rate.short(scenario.fps)
    if scenario.ladder:
        sizes = "+".join(rung.rendition for rung in scenario.ladder)
        encoders = "+".join(dict.fromkeys(rung.encoder for rung in scenario.ladder))
        return f"{count}ladder_{sizes}_{rate}fps_{encoders}{_of_clip(scenario.input)}{pace}"
    rates = [format_bitrate(stream.video_kbps) for stream in scenario.streams]
    spent = "+".join(rates) if len(set(rates)) > 1 else rates[0]
    if not scenario.rate.has_bitrate:
        spent = str(scenario.rate).replace("=", "")
    elif scenario.rate.kind != "cbr":
        spent += f"_{scenario.rate.kind}"
    picture = f"{scenario.resolution.height}p{rate}"
    if scenario.encoder == "copy":
        return f"{count}copy_{picture}{_of_clip(scenario.input)}{pace}"
    usual = ("", *scenario.asked.row.formats[:1])
    pixels = "" if scenario.pix_fmt in usual else f"_{scenario.pix_fmt}"
    return f"{count}{spent}_{picture}_{scenario.encoder}{_of_clip(scenario.input)}{pixels}{pace}"


def _of_clip(path: str) -> str:
    """Return what a clip or a live source adds to such a name; nothing for the test picture."""
    stem = (source_name(path) if is_live(path) else PurePath(path).stem)[:_MAX_STEM]
    printable = "".join(character if character.isprintable() else "?" for character in stem)
    return f"_{printable}" if printable else ""
