"""Batch files: a list of scenarios in JSON; every problem of a file is reported at once.

A file is a list of entries, or an object with `scenarios`, and `defaults` for what entries leave out. An
entry has `type` (baseline, single, multi) and the keys of KEYS; bitrates and durations are written as on the
command line.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from powerbench_agent.bench.exits import BadFile
from powerbench_agent.bench.load.encoders.rates import RateControl, parse_rate
from powerbench_agent.bench.load.encoders.spelling import (
    completed,
    default_rate,
    parse_extra,
    problems,
)
from powerbench_agent.bench.load.encoders.table import find_row
from powerbench_agent.bench.load.live_input import is_live, parse_input
from powerbench_agent.bench.nearest import nearest
from powerbench_agent.bench.plan import defaults, scenario
from powerbench_agent.bench.plan.batch_fields import OF_RENDITION, Fields, read_rung, unknown
from powerbench_agent.bench.plan.frame_rate import parse_fps
from powerbench_agent.bench.plan.ladder import MAX_RENDITIONS, parse_ladder, renditions_of, with_ladder
from powerbench_agent.bench.plan.pace import REALTIME, parse_pace
from powerbench_agent.bench.plan.scenario import Rendition, Resolution, Scenario
from powerbench_agent.core.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from powerbench_agent.bench.plan.ladder import Rung

KEYS = (
    *("type", "name", "bitrate", "bitrates", "count", "resolution", "fps", "duration", "stabilization"),
    *("cooldown", "outputs", "encoder", "preset", "input", "rate", "pix_fmt", "gop", "encoder_options"),
    *("device", "hwaccel", "pace", "ladder", "split"),
)
TYPES = ("baseline", "single", "multi")
_TOP = ("scenarios", "defaults", "name", "description")
_IDLE = ("type", "name", "duration", "stabilization", "cooldown")
_MAX_SCENARIOS = 10_000


class BadBatch(BadFile):
    """A batch file cannot be run; the text has one line for each problem."""


def parse_batch(content: bytes, where: str) -> list[Scenario]:
    """Return the file's scenarios; `where`: its name, for messages. Raises: BadBatch.

    What a clip's scenario leaves open is filled in once the clip is known, and so is its name.
    """
    document = _decoded(content, where)
    entries, common, problems = _top(document, where)
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MAX_SCENARIOS:
        problems.append(f"{where}: must be a list of 1 to 10,000 scenarios, or have one under scenarios")
        raise BadBatch("\n".join(problems))
    found = []
    for number, fields in enumerate(entries, 1):
        label = f"{where}: scenario {number}"
        if not isinstance(fields, dict):
            problems.append(f'{label}: must be an object, like {{"type": "single"}}')
            continue
        if isinstance(fields.get("name"), str):
            label += f" ({printable(fields['name'][:40])})"
        entry = _Entry(fields, common)
        made = entry.scenario()
        problems += [f"{label}: {problem}" for problem in entry.problems]
        found.append(made)
    if problems:
        raise BadBatch("\n".join(problems))
    return [made for made in found if made is not None]


def _decoded(content: bytes, where: str) -> Any:
    """Return the file's JSON. Raises: BadBatch."""
    try:
        return json.loads(content, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        what = f"{where}: line {error.lineno}, column {error.colno}: {error.msg}; correct the JSON there"
        raise BadBatch(what) from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise BadBatch(f"{where}: is not JSON text: {error}") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raises: ValueError if a key stands twice: only one of the two can be meant."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:40]!r} stands twice in one object")
        found[key] = value
    return found


def _top(document: Any, where: str) -> tuple[Any, dict[str, Any], list[str]]:
    """Return (the entries, what they leave out, what is wrong) of the file as a whole."""
    if not isinstance(document, dict):
        return document, {}, []
    problems = [f"{where}: {unknown(key, _TOP)}" for key in document if key not in _TOP]
    common = document.get("defaults", {})
    if not isinstance(common, dict):
        problems.append(f"{where}: defaults: must be an object")
        common = {}
    problems += [f"{where}: defaults: {unknown(key, KEYS)}" for key in common if key not in KEYS]
    return document.get("scenarios"), common, problems


class _Entry(Fields):
    """One scenario of the file while it is read, and what is wrong with it."""

    def __init__(self, own: dict[str, Any], common: dict[str, Any]) -> None:
        """`own`: what the entry says; `common`: the file's defaults."""
        # An entry has bitrate or bitrates: one of its own overrules a default of the other.
        rivals = {"bitrates": "bitrate", "bitrate": "bitrates"}
        overruled = {rivals[key] for key in own if key in rivals}
        inherited = {key: value for key, value in common.items() if key not in overruled}
        super().__init__({**inherited, **own})
        self._own = own

    def scenario(self) -> Scenario | None:
        """Return the scenario, or None if there are problems."""
        self.problems += [unknown(key, KEYS) for key in self._fields if key not in KEYS]
        is_multi = "bitrates" in self._fields or "count" in self._fields
        kind = self._fields.get("type", "multi" if is_multi else "single")
        if kind not in TYPES:
            hint = nearest(str(kind), TYPES)
            self.problems.append(f"type: {str(kind)[:40]!r} is not one of {', '.join(TYPES)}{hint}")
            return None
        made = self._baseline() if kind == "baseline" else self._test(kind)
        return None if self.problems else made

    def _baseline(self) -> Scenario:
        for key in self._own:
            if key in KEYS and key not in _IDLE:
                self.problems.append(f"{key}: does not apply to a baseline, which is an idle machine")
        return Scenario(
            type="baseline",
            name=self.value("name", scenario.parse_name, "baseline"),
            duration=self.value("duration", scenario.parse_duration, defaults.BASELINE_DURATION),
            stabilization=self.value("stabilization", scenario.parse_wait, defaults.STABILIZATION),
            cooldown=self.value("cooldown", scenario.parse_wait, defaults.BASELINE_COOLDOWN),
        )

    def _test(self, kind: str) -> Scenario | None:
        encoder = self.value("encoder", lambda text: find_row(text).known_as, defaults.ENCODER)
        pace = self.optional("pace", parse_pace) or REALTIME
        outputs = self._outputs()
        made = Scenario(
            type="single",
            name=self.value("name", scenario.parse_name, ""),
            duration=self.value("duration", scenario.parse_duration, defaults.DURATION),
            stabilization=self.value("stabilization", scenario.parse_wait, defaults.STABILIZATION),
            cooldown=self.value("cooldown", scenario.parse_wait, defaults.COOLDOWN),
            resolution=self._picture("resolution", scenario.parse_resolution, defaults.RESOLUTION)
            or Resolution(0, 0),
            fps=self._picture("fps", parse_fps, defaults.FPS) or 0,
            encoder=encoder or defaults.ENCODER,
            preset=self.text("preset"),
            rate=self._rate(encoder),
            pix_fmt=self.text("pix_fmt"),
            gop=self.optional("gop", scenario.parse_gop) or 0,
            encoder_options=self.optional("encoder_options", parse_extra) or (),
            device=self.optional("device", scenario.parse_device) or "",
            hwaccel=self.optional("hwaccel", scenario.parse_hwaccel) or "",
            outputs=outputs if len(outputs) == 1 else (),
            input=self._input(),
            pace=pace,
            to_end=pace.is_max and bool(self._fields.get("input")) and "duration" not in self._fields,
            split=self.flag("split"),
        )
        if encoder is not None:
            self.problems += [f"{key}: {what}" for key, what in problems(made.asked)]
        if made.hwaccel and not made.input:
            self.problems.append("hwaccel: decodes a clip; give one as input")
        if encoder == "copy" and not made.input:
            self.problems.append("encoder: copy sends a clip on as it is; give one as input")
        if is_live(made.input) and made.pace != REALTIME:
            self.problems.append("pace: a live source sends at its own; leave it out, or give a clip")
        self._check_split(made)
        is_ladder = "ladder" in self._fields or len(outputs) > 1
        ladder = self._ladder(made, outputs) if is_ladder else ()
        bitrates = (0.0,) * self._count(kind) if is_ladder else self._bitrates(kind, made.rate)
        if self.problems:
            return None
        made = msgspec.structs.replace(made, preset=completed(made.asked).preset)
        if kind == "single":
            made = msgspec.structs.replace(made, video_kbps=bitrates[0])
        else:
            made = msgspec.structs.replace(made, type="multi", bitrates=bitrates)
        if ladder:
            made = with_ladder(made, ladder)
        if made.input:
            return made
        return scenario.named(msgspec.structs.replace(made, pix_fmt=completed(made.asked).pix_fmt))

    def _check_split(self, made: Scenario) -> None:
        if made.split and not made.input:
            self.problems.append("split: is about decoding a clip; give one as input")
        if made.split and made.encoder == "copy":
            self.problems.append("split: copy decodes and scales nothing; name an encoder")

    def _count(self, kind: str) -> int:
        """Return how many ladders there are at once."""
        for key in ("bitrates", "resolution"):
            if key in self._own:
                self.problems.append(f"{key}: does not go with a ladder, whose renditions have their own")
        count: int | None = self.optional("count", scenario.parse_count)
        if kind == "multi" and "count" not in self._fields:
            self.problems.append("count: a multi of ladders needs one")
        if kind == "single" and count not in (None, 1):
            self.problems.append("count: a single has one ladder; write type multi")
        return count or 1

    def _ladder(self, made: Scenario, outputs: tuple[Any, ...]) -> tuple[Rendition, ...]:
        """Return the renditions, as a ladder in one text or as several outputs; none if one is wrong."""
        key = "ladder" if "ladder" in self._fields else "outputs"
        if key == "ladder" and outputs:
            self.problems.append("ladder: give a ladder or outputs, not both")
        rungs = (self.optional("ladder", parse_ladder) or ()) if key == "ladder" else self._rungs(outputs)
        kbps = self.optional("bitrate", scenario.parse_bitrate) or 0.0
        if self.problems:
            return ()
        ladder, wrong = renditions_of(made, rungs, kbps)
        self.problems += [f"{key}: {what}" for what in wrong]
        return ladder

    def _rungs(self, outputs: tuple[Any, ...]) -> tuple[Rung, ...]:
        """Return what the outputs ask for."""
        if len(outputs) > MAX_RENDITIONS:
            self.problems.append(f"outputs: must be at most {MAX_RENDITIONS} renditions")
            return ()
        read = [read_rung(output) for output in outputs]
        for number, (_, wrong) in enumerate(read, 1):
            self.problems += [f"outputs: rendition {number}: {what}" for what in wrong]
        return tuple(rung for rung, _ in read if rung is not None)

    def _picture(self, key: str, parse: Callable[[str], Any], default: str) -> Any:
        """Return a setting of the picture; None if it is left to the clip."""
        if self._fields.get("input") and key not in self._fields:
            return None
        return self.value(key, parse, default)

    def _rate(self, encoder: str | None) -> RateControl:
        found: RateControl | None = self.optional("rate", parse_rate)
        return found or (default_rate(encoder) if encoder else RateControl())

    def _outputs(self) -> tuple[Any, ...]:
        """Return the outputs that are named: several are a ladder, and one is for the record."""
        outputs = self._fields.get("outputs", [])
        if not isinstance(outputs, list):
            self.problems.append("outputs: must be a list")
            return ()
        if len(outputs) == 1 and isinstance(outputs[0], dict):
            for key in OF_RENDITION:
                self._check_lone_output(key, outputs[0])
        return tuple(outputs)

    def _check_lone_output(self, key: str, output: dict[str, Any]) -> None:
        """Check that the one output says what its scenario says, which is what is encoded."""
        if key not in output or (key == "bitrate" and "bitrates" in self._fields):
            return
        if key not in self._own:
            self._fields[key] = output[key]
        elif not _is_same(key, self._own[key], output[key]):
            what = f"{key} is {output[key]}, and {self._own[key]} in the scenario"
            self.problems.append(f"outputs: {what}; write it once")

    def _input(self) -> str:
        name = self._fields.get("input", "")
        if not isinstance(name, str):
            self.problems.append("input: must be the name of a file, or a URL")
            return ""
        return str(self.optional("input", parse_input) or "")

    def _bitrates(self, kind: str, rate: RateControl) -> tuple[float, ...]:
        """Return the video bitrate of each stream, in kbps; 0 of streams that go by quality."""
        if not rate.has_bitrate:
            for key in ("bitrate", "bitrates"):
                if key in self._own:
                    self.problems.append(
                        f"{key}: does not go with rate {rate}, which spends what the picture takes"
                    )
        has_count = "count" in self._fields
        count = self.value("count", scenario.parse_count, "") if has_count else None
        if "bitrates" not in self._fields or not rate.has_bitrate:
            kbps = (
                self.value("bitrate", scenario.parse_bitrate, defaults.BITRATE) if rate.has_bitrate else 0.0
            )
            if kind == "single" and count not in (None, 1):
                self.problems.append("count: a single has one stream; write type multi")
            if kind == "multi" and not has_count:
                self.problems.append("count: a multi needs count, or bitrates")
            return () if kbps is None else (kbps,) * (count or 1)
        if kind == "single":
            self.problems.append("bitrates: a single has one bitrate; write type multi")
        if "bitrate" in self._fields:
            self.problems.append("bitrates: give bitrate for all streams, or bitrates for each, not both")
        bitrates = self._listed_bitrates()
        if count is not None and bitrates is not None and count != len(bitrates):
            what = f"{count} streams, but {len(bitrates)} bitrates"
            self.problems.append(f"count: {what}; leave count out, or make them agree")
        return tuple(bitrates or ())

    def _listed_bitrates(self) -> list[float] | None:
        """Return what `bitrates` lists, 0 for what is not a bitrate; None if it is not a list."""
        listed = self._fields["bitrates"]
        texts = listed.split(",") if isinstance(listed, str) else listed
        if not isinstance(texts, list) or not texts:
            self.problems.append('bitrates: must be a list, like ["1000k", "2500k"]')
            return None
        found = []
        for text in texts:
            try:
                found.append(scenario.parse_bitrate(str(text)))
            except ValueError as error:
                self.problems.append(f"bitrates: {error}")
                found.append(0.0)
        return found


def _is_same(key: str, one: Any, other: Any) -> bool:
    """Return whether two values of a key mean the same: 2500k is 2.5M."""
    read = {"bitrate": scenario.parse_bitrate, "resolution": scenario.parse_resolution, "rate": parse_rate}
    parse: Callable[[str], Any] = read.get(key, str)
    try:
        return bool(parse(str(one)) == parse(str(other)))
    except ValueError:
        return str(one) == str(other)
