r"""What a stream is: its codec, encoder, preset, picture size, frame rate and container. No I/O.

Two sources, each of them untrusted: what a feeder states (`stated`), and what FFmpeg writes to stderr before
it encodes (`IdentityReader`), at -loglevel info. FFmpeg never writes the preset.

    Input #0, lavfi, from 'testsrc2=size=1280x720:rate=30':
      Stream #0:0: Video: rawvideo (I420 / 0x30323449), yuv420p, 1280x720 [SAR 1:1 DAR 16:9], 30 tbr, 30 tbn
    Stream mapping:
      Stream #0:0 -> #0:0 (rawvideo (native) -> h264 (libx264))
    Output #0, flv, to 'rtmp://host/live/cam1':
      Stream #0:0: Video: h264 ([7][0][0][0] / 0x0007), yuv420p, 1280x720 [SAR 1:1 DAR 16:9], q=2-31, 30 fps
        Metadata:
          encoder         : Lavc59.37.100 libx264

Rules:

1. The stream is the first video of the outputs in their order, whichever is written first: the frames of
   FFmpeg's progress are that one's.
2. The mapping says who encodes; the tag does so only without one, since a copied stream keeps the tag of
   whoever encoded it. The encoder of a copied stream is `copy`.
3. A new run begins with its first input. With a run's end, what was known of it ends (core/progress.py).
4. Loggers' prefixes may stand before a line. Words of a file's metadata, or of a message that FFmpeg prefixes
   with a part's name and address, are none of these lines, whatever they hold.

Source: av_dump_format() in FFmpeg's libavformat/dump.c, the mapping in fftools/, versions 4.2 to 9.0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MOST_STREAMS = 64  # of a run's outputs whose encoders are kept
_DECIMALS = 2  # of a frame rate, as FFmpeg rounds it: 29.97

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}")
_SIZE = re.compile(r"0{0,4}([1-9][0-9]{0,4})x0{0,4}([1-9][0-9]{0,4})")
_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(?:/([0-9]{1,9}))?")

_LINE = re.compile(
    rb"(?<!\w)(?:"
    rb"(?P<input>Input) #(?P<source>\d{1,4}), "
    rb"|Output #(?P<output>\d{1,4}), (?P<container>[^,']{1,64})(?:,\S{1,64})?, to '"
    rb"|Stream #(?P<file>\d{1,4}):(?P<index>\d{1,4})"
    rb"(?:\[0x[0-9a-f]{1,16}\])?(?:\([^()]{1,32}\))?(?:, \d{1,9}, \d{1,9}/\d{1,9})?"
    rb": (?P<kind>[A-Z]\w{1,15}): "
    rb"|(?:Stream #\d{1,4}:\d{1,4}|-> Stream)(?: ->)? #(?P<to>\d{1,4}:\d{1,4}) \((?P<how>.{1,200})\)"
    rb"|(?:encoder|ENCODER) {1,12}: Lavc[\d.]{0,20} (?P<tag>\S{1,64})"
    rb")"
)
_CODEC = re.compile(rb"[\w-]{1,64}")
_SHOWN_SIZE = re.compile(rb", (\d{1,5}x\d{1,5})(?!\w)")
_SHOWN_RATE = re.compile(rb", (\d{1,6}(?:\.\d{1,4})?)(k?) fps\b")
_ENCODED = re.compile(rb"-> (\S{1,64}) \((\S{1,64})\)\Z")


class StreamIdentity(NamedTuple):
    """What is known of a stream, as labels show it; "" for what is not."""

    codec: str = ""  # FFmpeg's name: h264, hevc
    encoder: str = ""  # FFmpeg's name: libx264, h264_nvenc; `copy` if the stream is not encoded
    preset: str = ""
    resolution: str = ""  # 1280x720
    fps: str = ""  # 30, 29.97
    container: str = ""  # FFmpeg's name of the muxer: flv, mpegts

    @property
    def pixels(self) -> int:
        """The pixels of a frame; 0 if the size is not known."""
        if not self.resolution:
            return 0
        width, _, height = self.resolution.partition("x")
        return int(width) * int(height)

    def known(self) -> dict[str, str]:
        """Return the fields that are known, by name: what `stated` takes."""
        return {field: value for field, value in self._asdict().items() if value}

    def over(self, other: StreamIdentity) -> StreamIdentity:
        """Return this with what it lacks taken from another."""
        return StreamIdentity._make(mine or others for mine, others in zip(self, other, strict=True))


UNKNOWN = StreamIdentity()


def stated(values: Mapping[str, str]) -> StreamIdentity:
    """Return what a feeder states, by the fields' names; what is not valid is as if it were not stated.

    A rate may be a fraction: `30000/1001` is 29.97.
    """
    found = {field: _READ[field](values[field]) for field in StreamIdentity._fields if values.get(field)}
    return StreamIdentity(**found) if found else UNKNOWN


def _name(text: str) -> str:
    return text if _NAME.fullmatch(text) else ""


def _resolution(text: str) -> str:
    size = _SIZE.fullmatch(text)
    return f"{size[1]}x{size[2]}" if size else ""


def _fps(text: str) -> str:
    rate = _RATE.fullmatch(text)
    divisor = int(rate[2] or 1) if rate else 0
    if not rate or not divisor:
        return ""
    shown = f"{float(rate[1]) / divisor:.{_DECIMALS}f}".rstrip("0").rstrip(".")
    return "" if shown == "0" else shown


_READ: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(StreamIdentity._fields, _name),
    "resolution": _resolution,
    "fps": _fps,
}


class _Video(NamedTuple):
    """The first video of an output."""

    output: int
    number: int  # among the output's streams
    codec: str
    resolution: str
    fps: str


class IdentityReader:
    """Reads what FFmpeg writes to stderr about one run's first video; lines come without their JSON."""

    def __init__(self) -> None:
        self.identity: StreamIdentity | None = None  # None until something is known
        self._forget()

    def _forget(self) -> None:
        self._containers: dict[int, str] = {}  # by output
        self._encoders: dict[str, str] = {}  # by output:index, out of the mapping
        self._video: _Video | None = None
        self._tag = ""  # the encoder that the video's metadata names
        self._section: int | None = None  # the output whose streams are being listed
        self._is_in_video = False  # whether the latest stream of the list is the video

    def line(self, line: bytes) -> None:
        """Take a line of a log; most of them say nothing of this."""
        if b"#" not in line and b"Lavc" not in line:
            return
        found = _LINE.search(line)
        if found is None or _is_quoted(line[: found.start()]):
            return
        if found["input"]:
            self._begin_input(int(found["source"]))
        elif found["output"]:
            self._begin_output(int(found["output"]), found["container"])
        elif found["kind"]:
            self._list_stream(int(found["file"]), int(found["index"]), found["kind"], line[found.end() :])
        elif found["to"]:
            self._map(found["to"].decode(), found["how"])
        elif self._is_in_video and not self._tag:
            self._tag = _name(_text(found["tag"]))
        self.identity = self._known()

    def _begin_input(self, source: int) -> None:
        if source == 0:
            self._forget()
        self._section = None
        self._is_in_video = False

    def _begin_output(self, output: int, container: bytes) -> None:
        self._section = output
        self._is_in_video = False
        if len(self._containers) < _MOST_STREAMS:
            self._containers[output] = _name(_text(container))

    def _list_stream(self, file: int, index: int, kind: bytes, rest: bytes) -> None:
        self._is_in_video = False
        if file != self._section or kind != b"Video":
            return
        if self._video is not None and self._video[:2] < (file, index):
            return
        self._video = _Video(file, index, *_parse_video(rest))
        self._tag = ""
        self._is_in_video = True

    def _map(self, to: str, how: bytes) -> None:
        encoder = "copy" if how == b"copy" else ""
        if encoded := _ENCODED.search(how):
            codec, encoder = _text(encoded[1]), _text(encoded[2])
            encoder = codec if encoder == "native" else encoder
        elif not encoder:
            encoder = _text(how)  # of a filter's output
        if len(self._encoders) < _MOST_STREAMS:
            self._encoders[to] = _name(encoder)

    def _known(self) -> StreamIdentity | None:
        """Return what is known; None while an output before the video's has yet to be listed."""
        video = self._video
        if video is None or any(earlier not in self._containers for earlier in range(video.output)):
            return None
        known = StreamIdentity(
            codec=video.codec,
            encoder=self._encoders.get(f"{video.output}:{video.number}") or self._tag,
            resolution=video.resolution,
            fps=video.fps,
            container=self._containers.get(video.output, ""),
        )
        return None if known == UNKNOWN else known


def _is_quoted(before: bytes) -> bool:
    """Return whether what stands before FFmpeg's words says that they are someone else's: rule 4."""
    indent = before.find(b"    ")  # of metadata, at the least; its key ends in a colon
    return b" @ 0x" in before or (indent >= 0 and b": " in before[indent:])


def _parse_video(text: bytes) -> tuple[str, str, str]:
    """Return codec, resolution and frame rate out of what follows `Video: `."""
    codec = _CODEC.match(text)
    size = _SHOWN_SIZE.search(text)
    rate = _SHOWN_RATE.search(text)
    thousands = "000" if rate and rate[2] else ""
    return (
        _name(_text(codec[0])) if codec else "",
        _resolution(_text(size[1])) if size else "",
        _fps(_text(rate[1]) + thousands) if rate else "",
    )


def _text(content: bytes) -> str:
    return content.decode("ascii", "replace")


# -- the lines of `powerbench pipe` ------------------------------------------------------------------

_TOLD = re.compile(rb"Input #0, told, from ''\n(?:[^\n]*\n){3}")


def tell(identity: StreamIdentity | None) -> bytes:
    """Return lines from which an IdentityReader knows this and nothing else: what a forwarder sends.

    FFmpeg's own lines stay behind: they hold a stream's key, and titles. A preset cannot be told.
    """
    known = identity or UNKNOWN
    picture = ", ".join(
        [
            known.codec or "-",
            *([known.resolution] if known.resolution else []),
            *([f"{known.fps} fps"] if known.fps else []),
        ]
    )
    return (
        "Input #0, told, from ''\n"
        f"Output #0, {known.container or '-'}, to ''\n"
        f"  Stream #0:0: Video: {picture}\n"
        f"  Stream #0:0 -> #0:0 ({known.encoder or '-'})\n"
    ).encode()


def told(report: bytes) -> bytes:
    """Return the lines of `tell` with which a report begins; empty without them."""
    found = _TOLD.match(report)
    return found[0] if found else b""
