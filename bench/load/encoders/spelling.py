"""What is asked of an encoder: checked against its row, and spelt as FFmpeg's options. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.load.encoders.rates import KINDS, RateControl
from powerbench_agent.bench.load.encoders.table import find_row
from powerbench_agent.bench.nearest import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from powerbench_agent.bench.load.encoders.table import EncoderRow

_MAX_EXTRA = 2000  # characters of --encoder-options
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,40}")
# What has a flag of its own, or would change what is encoded and where it goes.
_OURS = {
    "b": "--bitrate",
    "crf": "--rate crf=…",
    "qp": "--rate qp=…",
    "cq": "--rate cq=…",
    "g": "--gop",
    "preset": "--preset",
    "pix_fmt": "--pix-fmt",
    "c": "--encoder",
    "codec": "--encoder",
    "vcodec": "--encoder",
    "s": "--resolution",
    "r": "--fps",
    **dict.fromkeys(
        ("i", "f", "map", "vf", "filter", "filter_complex", "t", "to", "ss", "frames", "y", "n"), ""
    ),
}


class EncoderAsked(NamedTuple):
    """What is asked of one encoder, apart from its bitrate."""

    encoder: str  # by any of its names
    preset: str = ""  # "": the row's default
    rate: RateControl = RateControl()
    pix_fmt: str = ""  # "": the row's default
    gop: int = 0  # frames between keyframes
    extra: tuple[tuple[str, str], ...] = ()  # its own options
    device: str = ""

    @property
    def row(self) -> EncoderRow:
        """The encoder. Raises: ValueError for one that is not in the table."""
        return find_row(self.encoder)


def parse_extra(text: str) -> tuple[tuple[str, str], ...]:
    r"""Return the options of `tune=zerolatency:bf=0`; `\:` is a colon in a value. Raises: ValueError."""
    if len(text) > _MAX_EXTRA or not text.isprintable():
        raise ValueError(f"has more than {_MAX_EXTRA} characters, or some that cannot be printed")
    found: dict[str, str] = {}
    for part in re.split(r"(?<!\\):", text):
        key, equals, value = part.strip().partition("=")
        key = key.removeprefix("-")
        if not equals or not _KEY.fullmatch(key):
            raise ValueError(f"{part[:40]!r}: write KEY=VALUE:KEY=VALUE, like tune=zerolatency:bf=0")
        if key in _OURS:
            instead = _OURS[key]
            raise ValueError(f"{key}: use {instead}" if instead else f"{key} is not an option of an encoder")
        if key in found:
            raise ValueError(f"{key} is given twice")
        found[key] = value.replace("\\:", ":")
    return tuple(found.items())


def check_preset(row: EncoderRow, preset: str) -> str:
    """Return what is wrong with a preset for this encoder, "" if nothing is."""
    speed = row.speed
    if not preset:
        return ""
    if speed is None:
        return f"{row.known_as} has no presets: omit it"
    if not speed.words:
        is_number = re.fullmatch(r"-?[0-9]{1,2}", preset)
        if is_number and speed.low <= int(preset) <= speed.high:
            return ""
        return f"{preset[:40]!r}: {row.known_as} takes a whole number from {speed}"
    if preset in speed.words:
        return ""
    what = f"{preset[:40]!r} is not a preset of {row.known_as}, which has {speed}"
    return f"{what}{nearest(preset, speed.words)}"


def check_rate(row: EncoderRow, rate: RateControl) -> str:
    """Return what is wrong with a rate control for this encoder, "" if nothing is."""
    control = row.rates.get(rate.kind)
    if not row.rates:
        return ""
    if control is None:
        has = ", ".join(kind for kind in KINDS if kind in row.rates)
        return f"{row.known_as} has no {rate.kind}; it has {has}"
    if rate.has_bitrate:
        return ""
    if not control.low <= rate.value <= control.high:
        return f"{rate}: {row.known_as} takes {rate.kind} from {control.low:g} to {control.high:g}"
    if control.whole and rate.value != int(rate.value):
        return f"{rate}: {row.known_as} takes whole numbers"
    return ""


def check_pix_fmt(row: EncoderRow, pix_fmt: str) -> str:
    """Return what is wrong with a pixel format for this encoder, "" if nothing is."""
    if not pix_fmt or pix_fmt in row.formats:
        return ""
    if not row.formats:
        return f"{row.known_as} does not change the pixel format: omit it"
    what = f"{row.known_as} takes {', '.join(row.formats)}, and not {pix_fmt[:40]!r}"
    return f"{what}{nearest(pix_fmt, row.formats)}"


def problems(asked: EncoderAsked) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) for all that this encoder cannot be asked for."""
    try:
        row = asked.row
    except ValueError as error:
        yield "encoder", str(error)
        return
    checks = {
        "preset": check_preset(row, asked.preset),
        "rate": check_rate(row, asked.rate),
        "pix_fmt": check_pix_fmt(row, asked.pix_fmt),
    }
    for key, problem in checks.items():
        if problem:
            yield key, problem


def completed(asked: EncoderAsked) -> EncoderAsked:
    """Return it with the row's defaults where nothing is asked for."""
    row = asked.row
    return asked._replace(
        encoder=row.known_as,
        preset=asked.preset or (row.speed.default if row.speed else ""),
        pix_fmt=asked.pix_fmt or (row.formats[0] if row.formats else ""),
    )


def default_rate(encoder: str) -> RateControl:
    """Return the rate control of an encoder that is asked for none. Raises: ValueError."""
    return RateControl(find_row(encoder).default_rate)


def global_options(asked: EncoderAsked) -> list[str]:
    """Return the options that choose a hardware encoder's device; they stand before the inputs."""
    family = asked.row.family
    device = asked.device or family.default_device
    return [word.format(device=device) for word in family.device.split()] if device else []


def upload_filter(asked: EncoderAsked) -> str:
    """Return the filters that bring frames to the device, "" if the encoder takes them as they are."""
    return asked.row.family.upload.format(format=completed(asked).pix_fmt)


def video_options(asked: EncoderAsked, kbps: float) -> list[str]:
    """Return the options of the video encoder."""
    whole, row = completed(asked), asked.row
    if row.name == "copy":
        return ["-c:v", "copy"]
    pairs: list[tuple[str, str]] = [("-c:v", row.name)]
    if row.speed is not None:
        pairs.append((row.speed.option, whole.preset))
    if not row.family.upload:  # else the filters have chosen it
        pairs.append(("-pix_fmt", whole.pix_fmt))
    texts = {"rate": _kbps(kbps), "double": _kbps(kbps * 2), "value": f"{whole.rate.value:g}"}
    pairs += _pairs(row.rates[whole.rate.kind].spelt, texts)
    pairs.append(("-g", str(whole.gop)))
    pairs += _pairs(row.always, {})
    if whole.device and row.family.encoder_device:
        pairs += _pairs(row.family.encoder_device, {"device": whole.device})
    for key, value in whole.extra:
        _add(pairs, f"-{key}", value)
    return [word for pair in pairs for word in pair]


def _pairs(spelt: str, texts: dict[str, str]) -> list[tuple[str, str]]:
    words = [word.format(**texts) for word in spelt.split()]
    return list(zip(words[::2], words[1::2], strict=True))


def _add(pairs: list[tuple[str, str]], option: str, value: str) -> None:
    """Add an option of the user's; parameters join those that stand there, instead of replacing them all."""
    for index, (there, has) in enumerate(pairs):
        if there == option:
            pairs[index] = (option, f"{has}:{value}" if option.endswith("-params") else value)
            return
    pairs.append((option, value))


def _kbps(kbps: float) -> str:
    return f"{kbps:g}k" if kbps < 1e6 else f"{kbps:.0f}k"
