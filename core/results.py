"""A benchmark's results file, as the benchmark and the results collector read it, in every format. Pure.

- No `format`: what the predecessor of this project wrote: `test_date`, and scenarios with `name bitrate
  resolution fps duration encoder preset start_time end_time outputs` alone. There is no energy in it; whoever
  has a Prometheus can ask for that of each window.
- 1 and 2: see bench/record.py.

Units: seconds, Unix seconds, joules, watts. Keys that are not known are passed over: others may add theirs.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

NEWEST_FORMAT = 2
BASELINE = "baseline"

# What may stand at the end of a text that was cut off: the beginning of a word, a number or an escape.
_BEGUN = re.compile(
    r"|t(r|ru)?|f(a|al|als)?|n(u|ul)?|N(a)?|-?I[a-z]{0,6}|-|[0-9]*\.|[0-9.]*[eE][+-]?|\\?(u[0-9a-fA-F]{0,3})?"
)
_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')


class BadResults(Exception):  # noqa: N818 - a verdict
    """A file that holds no results; `reason` is one word to count it under."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class Part(msgspec.Struct, frozen=True):
    """One component's energy over a window, by what measured it."""

    component: str
    source: str
    joules: float
    watts: float  # mean


class Energy(msgspec.Struct, frozen=True):
    """A window's energy."""

    source: str  # "rapl", "nvml + rapl", "estimate"
    seconds: float
    joules: float
    mean_watts: float
    measured: bool = True
    parts: tuple[Part, ...] = ()

    @property
    def impossible(self) -> str:
        """Which of its figures cannot be; "" where all can."""
        figures = {"seconds": self.seconds, "joules": self.joules, "mean_watts": self.mean_watts}
        for part in self.parts:
            figures |= {f"joules of {part.component}": part.joules, f"watts of {part.component}": part.watts}
        for name, value in figures.items():
            if not math.isfinite(value):
                return f"{name} is not finite"
            if value < 0 or (value == 0 and name == "seconds"):
                return f"{name} is {value:g}"
        return ""


class Encode(msgspec.Struct, frozen=True):
    """What all streams of a window did together; None is what ffmpeg did not say."""

    seconds: float
    frames: float | None = None
    megabits: float | None = None
    media_seconds: float | None = None
    min_speed: float | None = None  # the slowest stream's, over any 10 s
    dropped: int | None = None
    duplicated: int | None = None
    quality: dict[str, Any] | None = None


class Versus(msgspec.Struct, frozen=True):
    """A window against its baseline."""

    delta_watts: float
    delta_wh: float
    percent: float | None = None
    baseline: str | None = None


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One window."""

    name: str
    start_time: float | None = None
    end_time: float | None = None
    type: str = ""
    status: str = "ok"
    error: str = ""
    group: str = ""  # the name that its repeats share
    block: int = 0
    bitrate: str = ""
    bitrates: tuple[str, ...] = ()
    resolution: str = ""
    fps: float = 0
    duration: float = 0.0
    encoder: str = ""
    preset: str = ""
    input: str = ""  # path of the film that is streamed; "" for the test picture
    input_sha256: str = ""  # which one it is; "" in files that do not say
    streams: int = 1
    energy: Energy | None = None
    encode: Encode | None = None
    versus_baseline: Versus | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_baseline(self) -> bool:
        """Whether it is an idle window."""
        return self.type == BASELINE


class Rates(msgspec.Struct, frozen=True):
    """What a kilowatt-hour costs, in money and in greenhouse gas; None where nobody said."""

    price_per_kwh: float | None = None
    currency: str | None = None
    gco2e_per_kwh: float | None = None
    gco2e_source: str | None = None


class Conclusion(msgspec.Struct, frozen=True, kw_only=True):
    """How sure a group's difference to its baselines is: Welch's 95 % interval of it, in watts."""

    group: str
    source: str
    low: float
    high: float


class ResultsFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file."""

    scenarios: tuple[Scenario, ...]
    format: int = 0
    run_id: str = ""
    test_date: str = ""
    host: dict[str, Any] = {}
    ffmpeg: dict[str, Any] = {}
    sink: str = ""
    rates: Rates = Rates()
    conclusions: tuple[Conclusion, ...] = ()


def parse_results(content: bytes, run_id: str) -> ResultsFile:
    """Return what a file holds; `run_id`: its stem, for a file that does not say.

    Raises: BadResults, as "half_written", "broken", "foreign" or "newer". Numbers may still be infinite.
    """
    document = _parse_json(content)
    if not isinstance(document, dict) or not isinstance(document.get("scenarios"), list):
        raise BadResults("foreign", "it has no list of scenarios: is it a results file?")
    form = document.get("format", 0)
    if isinstance(form, bool) or not isinstance(form, int) or form < 0:
        raise BadResults("foreign", f"its format is {json.dumps(form)[:40]}, and no whole number from 0")
    if form > NEWEST_FORMAT:  # before the rest: nobody knows what its keys hold
        raise BadResults("newer", f"its format {form} is newer than {NEWEST_FORMAT}; update powerbench")
    document["scenarios"] = [
        {key: value for key, value in scenario.items() if value is not None}  # null is what nobody said
        if isinstance(scenario, dict)
        else scenario
        for scenario in document["scenarios"]
    ]
    try:
        found = msgspec.convert(document, ResultsFile, strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadResults("foreign", str(error)) from None
    scenarios = tuple(_completed(scenario) for scenario in found.scenarios)
    return msgspec.structs.replace(found, scenarios=scenarios, run_id=found.run_id or run_id)


def _parse_json(content: bytes) -> Any:
    """Return a JSON document; numbers are numbers. Raises: BadResults."""
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data"
        what = f"no UTF-8 text at byte {error.start}: {error.reason}"
        raise BadResults("half_written" if cut else "broken", what) from None
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        rest = text[error.pos :].rstrip()
        cut = error.msg.startswith("Unterminated string") or _BEGUN.fullmatch(rest) is not None
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise BadResults("half_written" if cut else "broken", where) from None
    except RecursionError:
        raise BadResults("broken", "its brackets are nested too deeply") from None
    except _NoNumber as error:
        at = next((match.start() for match in _CONSTANT.finditer(text) if match[1]), 0)
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        raise BadResults("broken", f"line {line}, column {column}: {error} is no number in JSON") from None
    except ValueError as error:  # an integer of thousands of digits
        raise BadResults("broken", str(error)) from None


class _NoNumber(Exception):  # noqa: N818 - a verdict
    """A constant that Python's reader would take for a number."""


def _refuse_constant(name: str) -> float:
    raise _NoNumber(name)


def _completed(scenario: Scenario) -> Scenario:
    """Return a scenario with what older formats leave to be understood."""
    kind = scenario.type
    if not kind:
        idle = BASELINE in scenario.name.lower() or scenario.bitrate in ("0k", "0", "")
        kind = BASELINE if idle else "single"
    return msgspec.structs.replace(
        scenario,
        type=kind,
        group=scenario.group or scenario.name,
        streams=0 if kind == BASELINE else scenario.streams,
        bitrates=scenario.bitrates or (() if kind == BASELINE else (scenario.bitrate,)),
    )


def groups(scenarios: Iterable[Scenario]) -> dict[str, list[Scenario]]:
    """Return the windows that hold by the name that repeats share, in their order."""
    found: dict[str, list[Scenario]] = {}
    for scenario in scenarios:
        if scenario.status == "ok":
            found.setdefault(scenario.group, []).append(scenario)
    return found


def baseline_of(scenario: Scenario, scenarios: Iterable[Scenario]) -> Scenario | None:
    """Return the idle window that a test is compared with: its block's, the last before it, or any."""
    idle = [s for s in scenarios if s.is_baseline and s.status == "ok" and s.energy is not None]
    if scenario.versus_baseline is not None and scenario.versus_baseline.baseline:
        named = [s for s in idle if s.name == scenario.versus_baseline.baseline]
        if named:
            return named[0]
    in_block = [s for s in idle if s.block == scenario.block]
    begin = scenario.start_time if scenario.start_time is not None else math.inf
    before = [s for s in in_block or idle if s.start_time is not None and s.start_time <= begin]
    candidates = before or in_block or idle
    return candidates[-1] if candidates else None
