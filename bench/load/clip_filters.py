"""How a clip becomes what its scenario asks for: FFmpeg's filters, and what they change of it. Pure.

A clip whose settings are its own goes through one filter, which holds its rate. FFmpeg turns a rotated one
upright by itself, and passes the tags of its colour on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powerbench_agent.bench.load.encoders.spelling import upload_filter
from powerbench_agent.bench.plan import frame_rate
from powerbench_agent.bench.plan.picture import is_rgb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from powerbench_agent.bench.plan.picture import Picture
    from powerbench_agent.bench.plan.scenario import Scenario

_KEEP_FIELDS = ("h264", "libx264", "mpeg2video")  # encoders that can encode fields as fields
_SAME_SHAPE = 0.01  # by which the ratio of width to height may differ


def picture_filters(scenario: Scenario) -> list[str]:
    """Return the filters between the picture and its encoder: one rendition's of a clip or test picture."""
    filters: list[str] = []
    size = scenario.resolution
    if scenario.asked.row.name == "copy":
        return filters
    if scenario.input:
        filters += clip_filters(scenario)
    elif any(scenario.drawn) and scenario.drawn != size:
        filters.append(f"scale={size.width}:{size.height}")
    upload = "" if scenario.part else upload_filter(scenario.asked)
    return [*filters, upload] if upload else filters


def clip_filters(scenario: Scenario) -> list[str]:
    """Return the filters between the clip and the encoder."""
    source, size = scenario.picture, scenario.resolution
    if source is None:  # the clip was not probed
        return [f"scale={size.width}:{size.height}", f"fps={scenario.fps}"]
    filters = []
    scaling = []
    if crop := cropping(scenario):
        filters.append(crop)
    elif size != (source.width, source.height):
        scaling += [f"{size.width}:{size.height}", *(["interl=-1"] if source.interlaced else [])]
    tags = ""
    if _leaves_rgb(scenario, source):
        scaling += ["out_color_matrix=bt709", "out_range=tv"]
        tags = "setparams=range=tv:colorspace=bt709"
    elif _narrows_range(scenario, source):
        scaling += ["out_range=tv"]
        tags = "setparams=range=tv"
    if scaling:
        filters.append(f"scale={':'.join(scaling)}")
    filters.append(f"fps={scenario.fps}")
    return [*filters, f"format={scenario.pix_fmt}", tags] if tags else filters


def cropping(scenario: Scenario) -> str:
    """Return the filter that cuts off an odd column or row, "" if none is cut."""
    size, source = scenario.resolution, scenario.picture
    return f"crop={size.width}:{size.height}:0:0" if source and _is_cropped(scenario, source) else ""


def field_options(scenario: Scenario) -> list[str]:
    """Return the options that have an encoder keep the fields of an interlaced clip."""
    interlaced = scenario.picture is not None and scenario.picture.interlaced
    return ["-flags:v", "+ilme+ildct"] if interlaced and scenario.encoder in _KEEP_FIELDS else []


def changes_of(scenario: Scenario) -> list[str]:
    """Return what a stream of a clip no longer has of the clip; nothing for the test picture."""
    source = scenario.picture
    if source is None:
        return []
    shape, rate = _changed_shape(scenario, source), _changed_rate(scenario, source)
    return [*shape, *rate, *_changed_pixels(scenario, source)]


def _changed_shape(scenario: Scenario, source: Picture) -> Iterator[str]:
    size, shown = scenario.resolution, f"{source.width}x{source.height}"
    if source.rotation:
        stored = f"{source.stored_width}x{source.stored_height}"
        yield f"turned upright by {source.rotation}° ({stored} → {shown})"
    if str(size) != shown:
        yield f"size {shown} → {size}{_how(scenario, source)}"


def _changed_rate(scenario: Scenario, source: Picture) -> Iterator[str]:
    rate = frame_rate.full(scenario.fps)
    if source.variable:
        average = frame_rate.short(source.average_rate or source.rate)
        yield f"variable frame rate ({average} on average) → constant {rate}"
    elif scenario.fps != source.rate:
        yield f"frame rate {frame_rate.full(source.rate)} → {rate}"


def _changed_pixels(scenario: Scenario, source: Picture) -> Iterator[str]:
    if scenario.pix_fmt != source.pix_fmt:
        yield f"pixel format {source.pix_fmt} → {scenario.pix_fmt}"
    if _leaves_rgb(scenario, source):
        yield "RGB → BT.709"
    elif _narrows_range(scenario, source):
        yield "full range → limited range"
    if source.interlaced and scenario.encoder not in _KEEP_FIELDS:
        yield f"interlaced → whole frames: {scenario.encoder} has no fields"
    if scenario.lost:
        yield f"HDR metadata ({', '.join(scenario.lost)}) → none: this ffmpeg does not pass it on"


def _is_cropped(scenario: Scenario, source: Picture) -> bool:
    """Return whether the size is the clip's but for an odd column or row, which is then cut off."""
    lost = source.width - scenario.resolution.width, source.height - scenario.resolution.height
    return (
        lost != (0, 0)
        and set(lost) <= {0, 1}
        and source.width % 2 >= lost[0]
        and source.height % 2 >= lost[1]
    )


def _leaves_rgb(scenario: Scenario, source: Picture) -> bool:
    return is_rgb(source.pix_fmt) and not is_rgb(scenario.pix_fmt)


def _narrows_range(scenario: Scenario, source: Picture) -> bool:
    return source.full_range and not scenario.pix_fmt.startswith("yuvj")


def _how(scenario: Scenario, source: Picture) -> str:
    """Return how a size is changed, where that is not plain scaling: players still show the same shape."""
    size = scenario.resolution
    if _is_cropped(scenario, source):
        return f" (cropped: {scenario.pix_fmt} needs even sides)"
    ratio = (size.width / size.height) / (source.width / source.height)
    return "" if abs(ratio - 1) <= _SAME_SHAPE else " (its pixels are no longer square)"
