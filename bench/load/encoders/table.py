"""The table of encoders. To add one: a row here, and its test; docs/encoders.md is generated from it. Pure.

A row says how an encoder is called, how it is told its speed and its rate, which pixel formats it takes, and
what a hardware encoder needs of its device. Ranges and words are those of FFmpeg's `-h encoder=NAME`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.nearest import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

SOFTWARE = "software"


class Speed(NamedTuple):
    """How an encoder is told how much work to do: one of some words, or a whole number."""

    option: str
    default: str
    words: tuple[str, ...] = ()
    low: int = 0
    high: int = 0

    def __str__(self) -> str:
        """Return what can be asked for."""
        return ", ".join(self.words) if self.words else f"{self.low} to {self.high}"


class Control(NamedTuple):
    """How an encoder spells one rate control.

    `{rate}`, `{double}` stand for the bitrate and twice as much, `{value}` for a quality of `low` to `high`.
    """

    spelt: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = True  # whether the value must be a whole number


class Hardware(NamedTuple):
    """What hardware encoders of one kind need beside their own options.

    `{device}` stands for what --device names.
    """

    name: str
    device: str = ""  # the global options that choose a device
    default_device: str = ""
    encoder_device: str = ""  # the encoder's option that chooses one instead
    upload: str = ""  # the filters that bring frames of `{format}` to it
    hwaccel: str = ""  # what decodes for it


class EncoderRow(NamedTuple):
    """One encoder."""

    name: str  # FFmpeg's
    codec: str
    rates: Mapping[str, Control]
    speed: Speed | None = None
    friendly: tuple[str, ...] = ()  # names that people use
    label: str = ""  # the name in results, where it is not FFmpeg's
    formats: tuple[str, ...] = ("yuv420p",)  # pixel formats that it takes; the first is the default
    always: str = ""  # options that it always gets
    family: Hardware = Hardware(SOFTWARE)

    @property
    def known_as(self) -> str:
        """The name in results and tables."""
        return self.label or self.name

    @property
    def is_software(self) -> bool:
        """Whether the CPU does the work."""
        return self.family.name == SOFTWARE

    @property
    def default_rate(self) -> str:
        """The rate control if none is asked for: the row's first."""
        return next(iter(self.rates), "copy")


_420 = ("yuv420p", "yuv420p10le")
_422_444 = ("yuv422p", "yuv444p", "yuv422p10le", "yuv444p10le")
_12 = ("yuv420p12le", "yuv422p12le", "yuv444p12le")
_HARDWARE = ("nv12", "p010le")

X26X_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast", "medium"),
    *("slow", "slower", "veryslow", "placebo"),
)
_X26X = Speed("-preset", "veryfast", X26X_PRESETS)
_NVENC = Speed("-preset", "p4", tuple(f"p{number}" for number in range(1, 8)))
_QSV = Speed("-preset", "medium", ("veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"))
_AMF = Speed("-quality", "balanced", ("speed", "balanced", "quality"))

_CAPPED = "-b:v {rate} -maxrate {rate} -bufsize {double}"
_PEAKS = "-b:v {rate} -maxrate {double} -bufsize {double}"
_HELD = "-b:v {rate} -minrate {rate} -maxrate {rate} -bufsize {double}"

_LIBX = {
    "cbr": Control(_CAPPED),
    "vbr": Control(_PEAKS),
    "crf": Control("-crf {value}", 0, 51, whole=False),
    "qp": Control("-qp {value}", 0, 51),
}

NVENC = Hardware("nvenc", encoder_device="-gpu {device}", hwaccel="cuda")
QSV = Hardware("qsv", device="-qsv_device {device}", hwaccel="qsv")
VAAPI = Hardware(
    "vaapi",
    device="-vaapi_device {device}",
    default_device="/dev/dri/renderD128",
    upload="format={format},hwupload",
    hwaccel="vaapi",
)
AMF = Hardware("amf")
VULKAN = Hardware(
    "vulkan",
    device="-init_hw_device vulkan=vk:{device} -filter_hw_device vk",
    default_device="0",
    upload="format={format},hwupload",
    hwaccel="vulkan",
)
V4L2M2M = Hardware("v4l2m2m")


def _nvenc(codec: str, highest_qp: int, highest_cq: int, *friendly: str) -> EncoderRow:
    rates = {
        "cbr": Control("-rc cbr -b:v {rate} -maxrate {rate} -bufsize {double}"),
        "vbr": Control("-rc vbr -b:v {rate} -maxrate {double} -bufsize {double}"),
        "cq": Control("-rc vbr -cq {value} -b:v 0", 1, highest_cq, whole=False),
        "qp": Control("-rc constqp -qp {value}", 0, highest_qp),
    }
    return EncoderRow(f"{codec}_nvenc", codec, rates, _NVENC, friendly, formats=_HARDWARE, family=NVENC)


def _qsv(codec: str, *friendly: str) -> EncoderRow:
    rates = {
        "cbr": Control(_CAPPED),
        "vbr": Control(_PEAKS),
        "cq": Control("-global_quality {value}", 1, 51),
        "qp": Control("-q:v {value}", 1, 51),
    }
    return EncoderRow(f"{codec}_qsv", codec, rates, _QSV, friendly, formats=_HARDWARE, family=QSV)


def _vaapi(
    codec: str, quantizer: str, highest: int, speed: Speed | None = None, *friendly: str
) -> EncoderRow:
    rates = {
        "cbr": Control("-rc_mode CBR -b:v {rate} -maxrate {rate} -bufsize {double}"),
        "vbr": Control("-rc_mode VBR -b:v {rate} -maxrate {double} -bufsize {double}"),
        "cq": Control("-rc_mode ICQ -global_quality {value}", 1, highest),
        "qp": Control(f"-rc_mode CQP {quantizer} {{value}}", 1, highest),
    }
    return EncoderRow(f"{codec}_vaapi", codec, rates, speed, friendly, formats=_HARDWARE, family=VAAPI)


def _amf(codec: str, highest: int, *friendly: str) -> EncoderRow:
    # By name: the numbers of these words differ from codec to codec.
    rates = {
        "cbr": Control("-rc cbr -b:v {rate} -maxrate {rate} -bufsize {double}"),
        "vbr": Control("-rc vbr_peak -b:v {rate} -maxrate {double} -bufsize {double}"),
        "qp": Control("-rc cqp -qp_i {value} -qp_p {value}", 0, highest),
    }
    return EncoderRow(f"{codec}_amf", codec, rates, _AMF, friendly, formats=_HARDWARE, family=AMF)


def _vulkan(codec: str, *friendly: str) -> EncoderRow:
    rates = {
        "cbr": Control("-rc_mode cbr -b:v {rate} -maxrate {rate} -bufsize {double}"),
        "vbr": Control("-rc_mode vbr -b:v {rate} -maxrate {double} -bufsize {double}"),
        "qp": Control("-rc_mode cqp -qp {value}", 0, 255),
    }
    return EncoderRow(f"{codec}_vulkan", codec, rates, None, friendly, formats=_HARDWARE, family=VULKAN)


def _v4l2m2m(codec: str, *friendly: str) -> EncoderRow:
    rates = {"vbr": Control("-b:v {rate}")}  # its only one: what the driver makes of a bitrate
    return EncoderRow(
        f"{codec}_v4l2m2m", codec, rates, None, friendly, formats=("yuv420p", "nv12"), family=V4L2M2M
    )


ROWS = (
    EncoderRow("libx264", "h264", _LIBX, _X26X, ("h264", "x264", "avc"), "h264", (*_420, *_422_444, "nv12")),
    EncoderRow(
        "libx265",
        "hevc",
        _LIBX,
        _X26X,
        ("h265", "hevc", "x265"),
        "h265",
        (*_420, *_422_444, *_12),
        always="-x265-params log-level=warning",
    ),
    EncoderRow(
        "libsvtav1",
        "av1",
        {
            "vbr": Control("-b:v {rate}"),
            # Low delay, as it has no other constant bitrate; its authors advise against it for comparisons.
            "cbr": Control("-b:v {rate} -svtav1-params rc=2:pred-struct=1"),
            "crf": Control("-crf {value}", 1, 63),
            "qp": Control("-qp {value}", 1, 63),
        },
        Speed("-preset", "8", low=-1, high=13),
        ("av1", "svtav1", "svt-av1"),
        formats=_420,
    ),
    EncoderRow(
        "libaom-av1",
        "av1",
        {
            "cbr": Control(_HELD),
            "vbr": Control("-b:v {rate}"),
            "crf": Control("-crf {value} -b:v 0", 0, 63),
        },
        Speed("-cpu-used", "6", low=0, high=8),
        ("aom", "libaom"),
        formats=(*_420, *_422_444, *_12),
    ),
    EncoderRow(
        "librav1e",
        "av1",
        {"vbr": Control("-b:v {rate}"), "qp": Control("-qp {value}", 0, 255)},
        Speed("-speed", "8", low=0, high=10),
        ("rav1e",),
        formats=(*_420, *_422_444, *_12),
    ),
    EncoderRow(
        "libvpx-vp9",
        "vp9",
        {
            "cbr": Control(_HELD),
            "vbr": Control("-b:v {rate}"),
            "crf": Control("-crf {value} -b:v 0", 0, 63),
        },
        Speed("-cpu-used", "6", low=0, high=8),
        ("vp9", "vpx"),
        formats=(*_420, *_422_444, *_12),
        always="-deadline realtime -row-mt 1",
    ),
    EncoderRow(
        "libvvenc",
        "vvc",
        {"vbr": Control("-b:v {rate}"), "qp": Control("-qp {value}", 0, 63)},
        Speed("-preset", "faster", ("faster", "fast", "medium", "slow", "slower")),
        ("vvc", "h266", "vvenc"),
        formats=("yuv420p10le",),
    ),
    EncoderRow(
        "libopenh264",
        "h264",
        {"cbr": Control("-b:v {rate} -maxrate {rate} -rc_mode bitrate -allow_skip_frames 1")},
        None,
        ("openh264",),
    ),
    _nvenc("h264", 51, 51, "nvenc"),
    _nvenc("hevc", 51, 51),
    _nvenc("av1", 255, 63),
    _qsv("h264", "qsv"),
    _qsv("hevc"),
    _qsv("av1"),
    _vaapi("h264", "-qp", 52, Speed("-quality", "0", low=0, high=7), "vaapi"),
    _vaapi("hevc", "-qp", 52),
    _vaapi("av1", "-global_quality", 255),
    _amf("h264", 51, "amf"),
    _amf("hevc", 51),
    _amf("av1", 255),
    _vulkan("h264", "vulkan"),
    _vulkan("hevc"),
    _vulkan("av1"),
    _v4l2m2m("h264", "v4l2m2m"),
    _v4l2m2m("hevc"),
    EncoderRow(
        "mpeg2video",
        "mpeg2video",
        {"cbr": Control(_HELD), "vbr": Control(_PEAKS), "qp": Control("-q:v {value}", 1, 31)},
        None,
        ("mpeg2",),
        formats=("yuv420p", "yuv422p"),
    ),
    EncoderRow("copy", "copy", {}, formats=()),
)

BY_NAME = {name: row for row in ROWS for name in (row.name, row.known_as, *row.friendly)}


def find_row(name: str) -> EncoderRow:
    """Return the row of an encoder by any of its names. Raises: ValueError with the nearest one."""
    row = BY_NAME.get(name.strip().lower())
    if row is not None:
        return row
    hint = nearest(name.lower(), BY_NAME)
    what = f"{name[:40]!r} is not an encoder that powerbench knows{hint}"
    raise ValueError(f"{what} (powerbench doctor --encoders lists them)")
