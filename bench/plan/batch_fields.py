"""The fields of an object in a batch file, read as the command line reads them; and a rendition's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from powerbench_agent.bench.load.encoders.rates import parse_rate
from powerbench_agent.bench.load.encoders.spelling import parse_extra
from powerbench_agent.bench.load.encoders.table import find_row
from powerbench_agent.bench.nearest import nearest
from powerbench_agent.bench.plan import scenario
from powerbench_agent.bench.plan.ladder import Rung

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

OF_RENDITION = (
    *("resolution", "bitrate", "rate", "encoder", "preset", "pix_fmt", "gop", "encoder_options", "device"),
)


class Fields:
    """The fields of one object, and what is wrong with those that were read."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.problems: list[str] = []
        self._fields = dict(fields)

    def value(self, key: str, parse: Callable[[str], Any], default: str) -> Any:
        """Return what a key says; None, and a problem, if it cannot be read."""
        value = self._fields.get(key, default)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.problems.append(f"{key}: must be text or a number, not {json.dumps(value)[:40]}")
            return None
        try:
            return parse(str(value))
        except ValueError as error:
            self.problems.append(f"{key}: {error}")
            return None

    def optional(self, key: str, parse: Callable[[str], Any]) -> Any:
        """Return what a key says, None if it is not there or cannot be read."""
        return self.value(key, parse, "") if key in self._fields else None

    def text(self, key: str) -> str:
        """Return the text of a key, "" if it is not there."""
        return str(self.optional(key, str) or "")

    def flag(self, key: str) -> bool:
        """Return whether a key says true; it is false where it is not there."""
        value = self._fields.get(key, False)
        if not isinstance(value, bool):
            self.problems.append(f"{key}: must be true or false, not {json.dumps(value)[:40]}")
        return value is True


def unknown(key: str, known: Collection[str]) -> str:
    """Return that a key is not one of those that can be here, and which one was probably meant."""
    return f"{str(key)[:40]!r} is not a key here{nearest(str(key), known)}"


def read_rung(given: Any) -> tuple[Rung | None, list[str]]:
    """Return (a rendition as an output of a batch file has it, what is wrong with it)."""
    if not isinstance(given, dict):
        return None, ['must be an object, like {"resolution": "1280x720"}']
    fields = Fields(given)
    fields.problems += [unknown(key, OF_RENDITION) for key in given if key not in OF_RENDITION]
    if "resolution" not in given:
        return None, [*fields.problems, "resolution: every rendition needs one, like 1280x720"]
    rung = Rung(
        resolution=fields.value("resolution", scenario.parse_resolution, ""),
        video_kbps=fields.optional("bitrate", scenario.parse_bitrate) or 0.0,
        rate=fields.optional("rate", parse_rate),
        encoder=fields.optional("encoder", lambda text: find_row(text).known_as) or "",
        preset=fields.text("preset"),
        pix_fmt=fields.text("pix_fmt"),
        gop=fields.optional("gop", scenario.parse_gop) or 0,
        encoder_options=fields.optional("encoder_options", parse_extra) or (),
        device=fields.optional("device", scenario.parse_device) or "",
    )
    return (None if fields.problems else rung), fields.problems
