"""Batch files: a list of scenarios in JSON, every problem of it named at once.

A file is a list of entries, or an object with `scenarios`, and `defaults` for what entries leave out. An
entry has `type` (baseline, single, multi), and the keys of KEYS; bitrates and durations are written as on the
command line.
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any

from powerbench_agent.bench.exits import BadFile
from powerbench_agent.bench.load.encoders import ENCODERS, PRESETS
from powerbench_agent.bench.plan import plan, scenario
from powerbench_agent.bench.plan.scenario import Scenario
from powerbench_agent.core.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

KEYS = (
    *("type", "name", "bitrate", "bitrates", "count", "resolution", "fps", "duration", "stabilization"),
    *("cooldown", "outputs", "encoder", "preset", "input"),
)
TYPES = ("baseline", "single", "multi")
_TOP = ("scenarios", "defaults", "name", "description")
_IDLE = ("type", "name", "duration", "stabilization", "cooldown")
_MAX_SCENARIOS = 10_000


class BadBatch(BadFile):
    """A batch file that cannot be run, with everything that is wrong with it, a line each."""


def parse_batch(content: bytes, where: str) -> list[Scenario]:
    """Return the file's scenarios; `where`: its name, for messages. Raises: BadBatch."""
    try:
        document = json.loads(content, object_pairs_hook=_no_doubles)
    except json.JSONDecodeError as error:
        what = f"{where}: line {error.lineno}, column {error.colno}: {error.msg}; mend the JSON there"
        raise BadBatch(what) from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise BadBatch(f"{where}: no JSON text: {error}") from None
    entries, defaults, problems = _top(document, where)
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MAX_SCENARIOS:
        problems.append(f"{where}: must be a list of 1 to 10,000 scenarios, or have one under scenarios")
        raise BadBatch("\n".join(problems))
    found = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            problems.append(f'{where}: scenario {number}: must be an object, like {{"type": "single"}}')
            continue
        label = f"{where}: scenario {number}"
        if isinstance(entry.get("name"), str):
            label += f" ({printable(entry['name'][:40])})"
        # Of bitrate and bitrates an entry has one: its own, and not the other one's default beside it.
        rivals = {"bitrates": "bitrate", "bitrate": "bitrates"}
        unsaid = {rivals[key] for key in entry if key in rivals}
        common = {key: value for key, value in defaults.items() if key not in unsaid}
        made, wrong = _scenario({**common, **entry}, common.keys() - entry.keys())
        problems += [f"{label}: {problem}" for problem in wrong]
        if made is not None:
            found.append(made)
    if problems:
        raise BadBatch("\n".join(problems))
    return found


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raises: ValueError where a key stands twice: one of the two was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} stands twice in one object")
    return found


def _top(document: Any, where: str) -> tuple[Any, dict[str, Any], list[str]]:
    """Return (the entries, what they leave out, what is wrong) of the file as a whole."""
    if not isinstance(document, dict):
        return document, {}, []
    problems = [f"{where}: {_unknown(key, _TOP)}" for key in document if key not in _TOP]
    defaults = document.get("defaults", {})
    if not isinstance(defaults, dict):
        problems.append(f"{where}: defaults: must be an object")
        defaults = {}
    problems += [f"{where}: defaults: {_unknown(key, KEYS)}" for key in defaults if key not in KEYS]
    return document.get("scenarios"), defaults, problems


def _unknown(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(key), known, 1)
    return f"{str(key)[:40]!r} is no key here" + (f"; did you mean {near[0]}?" if near else "")


def _scenario(entry: dict[str, Any], unsaid: Collection[str]) -> tuple[Scenario | None, list[str]]:
    """Return an entry's scenario, or what is wrong with it; `unsaid`: the keys that are the defaults'."""
    wrong = [_unknown(key, KEYS) for key in entry if key not in KEYS]
    kind = entry.get("type", "multi" if "bitrates" in entry or "count" in entry else "single")
    if kind not in TYPES:
        near = difflib.get_close_matches(str(kind), TYPES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return None, [*wrong, f"type: {str(kind)[:40]!r} is none of {', '.join(TYPES)}{hint}"]

    def get(key: str, parse: Callable[[str], Any], default: str) -> Any:
        value = entry.get(key, default)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            wrong.append(f"{key}: must be text or a number, not {json.dumps(value)[:40]}")
            return None
        try:
            return parse(str(value))
        except ValueError as error:
            wrong.append(f"{key}: {error}")
            return None

    idle = kind == "baseline"
    wrong += _odd(entry, unsaid) if idle else []
    name = get("name", scenario.parse_name, "baseline" if idle else "")
    duration = get("duration", scenario.parse_duration, "60" if idle else "120")
    stabilization = get("stabilization", scenario.parse_wait, "10")
    cooldown = get("cooldown", scenario.parse_wait, "0" if idle else "10")
    common = {"name": name, "duration": duration, "stabilization": stabilization, "cooldown": cooldown}
    if idle:
        return (None if wrong else Scenario(type="baseline", **common)), wrong

    resolution = get("resolution", scenario.parse_resolution, "1280x720")
    fps = get("fps", scenario.parse_fps, "30")
    encoder = _choice(entry, "encoder", tuple(ENCODERS), "h264", wrong)
    preset = _choice(entry, "preset", PRESETS, "veryfast", wrong)
    bitrates = _bitrates(entry, kind, get, wrong)
    outputs = entry.get("outputs", [])
    if not isinstance(outputs, list):
        wrong.append("outputs: must be a list")
    if not isinstance(entry.get("input", ""), str):
        wrong.append("input: must be a file's name")
    if wrong:
        return None, wrong
    common.update(
        resolution=resolution, fps=fps, encoder=encoder, preset=preset, input=entry.get("input", "")
    )
    common["outputs"] = tuple(outputs)
    if kind == "single":
        common["name"] = name or scenario.default_name(bitrates[0], resolution, fps, encoder, common["input"])
        return Scenario(type="single", video_kbps=bitrates[0], **common), wrong
    common["name"] = name or plan.multi_name(bitrates, resolution, fps, encoder, common["input"])
    return Scenario(type="multi", bitrates=bitrates, **common), wrong


def _odd(entry: dict[str, Any], unsaid: Collection[str]) -> list[str]:
    """Return what an idle window cannot have, unless it is the defaults'."""
    odd = [key for key in entry if key in KEYS and key not in _IDLE and key not in unsaid]
    return [f"{key}: a baseline has none, it is an idle machine" for key in odd]


def _choice(entry: dict[str, Any], key: str, known: tuple[str, ...], default: str, wrong: list[str]) -> str:
    value = entry.get(key, default)
    if value not in known:
        wrong.append(f"{key}: {str(value)[:40]!r} is none of {', '.join(known)}")
        return default
    return str(value)


def _bitrates(
    entry: dict[str, Any], kind: str, get: Callable[[str, Callable[[str], Any], str], Any], wrong: list[str]
) -> tuple[float, ...]:
    """Return the video bitrate of each stream, in kbps."""
    count = get("count", scenario.parse_count, "1") if "count" in entry else None
    if "bitrates" not in entry:
        kbps = get("bitrate", scenario.parse_bitrate, "2500k")
        if kind == "single" and count not in (None, 1):
            wrong.append("count: a single has one stream; write type multi")
        if kind == "multi" and "count" not in entry:
            wrong.append("count: a multi needs count, or bitrates")
        return (kbps,) * (count or 1) if kbps else ()
    if kind == "single":
        wrong.append("bitrates: a single has one bitrate; write type multi")
    if "bitrate" in entry:
        wrong.append("bitrates: give bitrate for all streams, or bitrates for each, not both")
    listed = entry["bitrates"]
    texts = listed.split(",") if isinstance(listed, str) else listed
    if not isinstance(texts, list) or not texts:
        wrong.append('bitrates: must be a list, like ["1000k", "2500k"]')
        return ()
    found = []
    for text in texts:
        try:
            found.append(scenario.parse_bitrate(str(text)))
        except ValueError as error:
            wrong.append(f"bitrates: {error}")
    if count is not None and count != len(texts):
        wrong.append(
            f"count: {count} streams, but {len(texts)} bitrates; leave count out, or make them agree"
        )
    return tuple(found)
