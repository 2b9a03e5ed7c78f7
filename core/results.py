"""The results schema: what a benchmark's results file holds, and the rules about it.

The benchmark writes such files, the results collector and the verbs of analysis read them. Every rule that
more than one of them needs is here once: which energy is valid, what may be compared, which windows are the
baselines of a test, the difference to them, joules a frame, which file is the newest.

History of `format`:

- none: written by the predecessor of this project. `test_date`, and scenarios that have only the keys
  `name bitrate resolution fps duration encoder preset start_time end_time outputs`. There is no energy in it;
  a Prometheus that scraped the machine may still have it.
- 1: `test_date`, `run_id`, `powerbench`, `host`, `ffmpeg`, `agents`, `scenarios[]`. A scenario also has
  `type`, `status`, `energy`, `encode`, `versus_baseline`, `warnings`, `trace`.
- 2: scenarios of several streams, and repeats. The head has `settings` (`kind repeat order seed strict`) and
  `rates` (`price_per_kwh currency gco2e_per_kwh gco2e_source`, null where not given). A scenario has `group`
  (the name that its repeats share), `block` (which repeat, from 0), `streams`, `bitrates`, `settle` and
  `conditions`; `encode` is of all streams together, `encode.per_stream` of each. With repeats the head has
  `conclusions`: `group source low high`, the 95 % interval of a group's watts beyond its baselines. A
  scenario that streams a clip has `input` (its path), `input_size` in bytes, `input_sha256` and
  `input_hashed_bytes`, which is less than the size if only the two ends were hashed, half of it at each.
- 3: encoders by table. A scenario has `rate` (`cbr`, `vbr`, `crf=35`, `qp=28`, `cq=30`, `copy`) and, if it
  goes by quality, no `bitrate`; where they were asked for, `gop` (frames), `encoder_options`
  (`tune=zerolatency:bf=0`), `device`, `hwaccel`. `pix_fmt` is that of the encoded picture; `frame_rate`
  ("30000/1001") stands beside `fps` (29.97003) where that is not whole. With a clip, `input_picture` is what
  its video is, and `changes` has a line for each thing that its stream does not keep. `encode.container` is
  what the bytes were counted in, and `encode.bytes_of` where ("flv as sent", "nut at the sink");
  `encode.quality` has `of`, what was scored, `streams`, the scores of each by core/scores.py, and `missing`,
  why a stream has none. Scores of earlier formats are wrong, and not read.
  A scenario has `pace` ("realtime", "max", "2x"; realtime if absent), `sink` (its kind: "null", "rtmp"),
  `part` if only a part of the work was done ("decode", "decode+scale"; nothing is encoded then), and `ladder`
  ("1920x1080:5M,1280x720:2500k") if one ffmpeg encodes several renditions: then `resolution` and `bitrate`
  are joined with "+", `bitrates` has one such text a ladder, `outputs` the renditions, and `streams` is the
  number of ladders. Earlier formats have `outputs` too, but a single stream of theirs encoded one of them.
  `encode` also has `megapixels` (millions, encoded), `speed` (content seconds a second, the mean of the
  streams) and `cpu_seconds` by program. `energy.grade` is that of core/grades.py; readers work it out again.
  A live source has `input_kind` ("live"), and as `input` its URL without stream key, password or query.

Units: Unix seconds, seconds, joules, watts. Unknown keys are ignored: others may add theirs.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import math
import os
import re
import stat
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import PurePath
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from powerbench_agent.core.grades import ESTIMATED, grade_of, with_grade
from powerbench_agent.core.model import ESTIMATE
from powerbench_agent.core.scores import MeanScores, Scores, mean_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

FORMAT = 3  # the newest
_FIRST_WITH_TRUE_SCORES = 3
_FIRST_WITH_TRUE_LADDERS = 3
BASELINE = "baseline"
REALTIME, UNPACED = "realtime", "max"  # two of the paces; others are like "2x"
PIX_FMT = "yuv420p"  # of every stream in files that do not say

# What may stand at the end of a text that was cut off: the beginning of a word, a number or an escape.
_BEGUN = re.compile(
    r"|t(r|ru)?|f(a|al|als)?|n(u|ul)?|N(a)?|-?I[a-z]{0,6}|-|[0-9]*\.|[0-9.]*[eE][+-]?|\\?(u[0-9a-fA-F]{0,3})?"
)
_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')
_DATED = re.compile(r"test_results_([0-9]{8}_[0-9]{6})")

MAX_LISTED = 50_000  # entries of a directory that is searched for results files


class Bounds(NamedTuple):
    """How large a file may be: parsed, a value takes a hundred bytes and more."""

    bytes: int = 64 * 2**20
    scenarios: int = 20_000
    values: int = 2_000_000


DEFAULT_BOUNDS = Bounds()

Origin = tuple[str, str]  # (component, source)


class BadResults(Exception):  # noqa: N818 - a verdict
    """A file that holds no results; `reason` is one word to count it under."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason

    @property
    def explained(self) -> str:
        """Why the file cannot be used, and what to do."""
        if self.reason == "half_written":
            return f"it was cut off ({self}): take a whole copy, or measure again"
        if self.reason == "too_large":
            return f"is too large: {self}; split it into files of fewer scenarios"
        what_to_do = {
            "broken": "; it was edited or damaged: mend it there, or take a copy",
            "foreign": "; give a test_results_*.json of powerbench run",
        }
        return f"is not a results file: {self}{what_to_do.get(self.reason, '')}"


# -- the schema --------------------------------------------------------------------------------------


class Part(msgspec.Struct, frozen=True, order=True):
    """One component's energy over a window, as one source measured it."""

    component: str
    source: str
    joules: float
    watts: float  # mean

    @property
    def origin(self) -> Origin:
        """What was measured, and by what."""
        return self.component, self.source


class Energy(msgspec.Struct, frozen=True):
    """A window's energy; its parts do not overlap."""

    source: str  # "rapl", "nvml + rapl", "estimate"
    seconds: float
    joules: float
    mean_watts: float
    measured: bool = True
    parts: tuple[Part, ...] = ()

    @classmethod
    def of_parts(cls, parts: Iterable[Part], seconds: float) -> Self:
        """Return the sum of the parts of a window that lasted so long."""
        found = tuple(parts)
        sources = sorted({part.source for part in found})
        return cls(
            source=" + ".join(sources),
            seconds=seconds,
            joules=sum(part.joules for part in found),
            mean_watts=sum(part.watts for part in found),
            measured=ESTIMATE not in sources,
            parts=found,
        )

    @property
    def watts(self) -> float:
        """Mean power of all parts together."""
        return self.mean_watts

    @property
    def watt_hours(self) -> float:
        """All parts together."""
        return self.joules / 3600

    @property
    def origins(self) -> frozenset[Origin]:
        """What was measured, and by what; without parts only the latter is known."""
        if self.parts:
            return frozenset(part.origin for part in self.parts)
        return frozenset({("", self.source)})

    @property
    def grade(self) -> str:
        """How good it is, by core/grades.py: worked out of what measured it, whatever a file says."""
        if not self.measured:
            return ESTIMATED
        if self.parts:
            return grade_of(self.origins)
        return grade_of(("", source) for source in self.source.split(" + ") if source)

    @property
    def graded_source(self) -> str:
        """Where its joules come from, and how good that is: "rapl (1)"."""
        return with_grade(self.source, self.grade)

    @property
    def impossible(self) -> str:
        """Which of its figures is impossible, and why; "" if the energy is valid."""
        figures = {"seconds": self.seconds, "joules": self.joules, "mean_watts": self.mean_watts}
        for part in self.parts:
            figures[f"joules of {part.component}"] = part.joules
            figures[f"watts of {part.component}"] = part.watts
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
    min_speed: float | None = None  # the slowest stream's, over any 10 s of the window
    dropped: int | None = None
    duplicated: int | None = None
    quality: dict[str, Any] | None = None
    whole: bool = False  # from a first frame to a last one
    content_seconds: float | None = None  # of a stream, that bitrates are of; None: those of the window
    megapixels: float | None = None  # millions, of all streams and renditions
    speed: float | None = None  # content seconds a second, the mean of the streams
    cpu_seconds: dict[str, Any] | None = None  # by program: "encoder", "sink"
    container: str | None = None
    bytes_of: str | None = None  # where the bytes were counted
    renditions: Any = None  # of ladders, a list; in others' files anything

    @property
    def fps(self) -> float | None:
        """Frames encoded a second."""
        return self._per_second(self.frames)

    @property
    def kbps(self) -> float | None:
        """Kilobits written a second; of content, where that is not encoded in real time."""
        if self.content_seconds and self.megabits is not None:
            return self.megabits / self.content_seconds * 1000
        rate = self._per_second(self.megabits)
        return None if rate is None else rate * 1000

    @property
    def rendition_kbps(self) -> dict[str, list[float]]:
        """What each rendition of a ladder wrote, in each of the streams, as far as it was counted."""
        found: dict[str, list[float]] = {}
        for one in self.renditions if isinstance(self.renditions, list) else ():
            if not isinstance(one, dict):
                continue
            name, kbps = one.get("rendition"), one.get("achieved_kbps")
            if isinstance(name, str) and isinstance(kbps, int | float):
                found.setdefault(name, []).append(float(kbps))
        return found

    @property
    def content_minutes(self) -> float | None:
        """Minutes of content that were encoded, of all streams together."""
        return None if self.media_seconds is None else self.media_seconds / 60

    @property
    def amounts(self) -> dict[str, float | None]:
        """How much was done, by the units that energy is divided by."""
        return {
            "frame": self.frames,
            "megabit": self.megabits,
            "megapixel": self.megapixels,
            "content_minute": self.content_minutes,
        }

    @property
    def encoder_cpu_seconds(self) -> float | None:
        """CPU time of the encoders alone."""
        seconds = (self.cpu_seconds or {}).get("encoder")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            return None
        with contextlib.suppress(OverflowError):
            return float(seconds) if 0 <= seconds < math.inf else None
        return None

    @property
    def counted(self) -> str:
        """Which bytes `megabits` is of; "" if that is not known."""
        return self.bytes_of or self.container or ""

    @property
    def scores(self) -> list[Scores]:
        """The scores of the streams and renditions that have any."""
        streams = (self.quality or {}).get("streams")
        found = []
        for stream in streams if isinstance(streams, list) else ():
            with contextlib.suppress(msgspec.ValidationError):
                found.append(msgspec.convert(stream, Scores))
        return found

    def _per_second(self, amount: float | None) -> float | None:
        if amount is None or not 0 < self.seconds < math.inf:
            return None
        return amount / self.seconds


class Versus(msgspec.Struct, frozen=True):
    """A window against its baselines."""

    delta_watts: float
    delta_wh: float
    percent: float | None = None
    baseline: str | None = None


class RecordedScenario(msgspec.Struct, frozen=True, kw_only=True):
    """One window of a file."""

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
    rate: str = ""  # how it is controlled; "" in files before format 3, where it is cbr
    gop: int = 0  # this and the next three only where they were asked for
    encoder_options: str = ""
    device: str = ""
    hwaccel: str = ""
    resolution: str = ""
    fps: float = 0
    frame_rate: str = ""  # the fraction that fps stands for, "30000/1001"; "" if it is whole
    duration: float = 0.0
    encoder: str = ""
    preset: str = ""
    pix_fmt: str = PIX_FMT
    pace: str = REALTIME
    sink: str = ""  # its kind: "null", "rtmp"; "" in files that do not say
    part: str = ""  # of the work, "decode" or "decode+scale"; "" if it is the whole
    ladder: str = ""  # "1920x1080:5M,1280x720:2500k"; "" if a stream is one rendition
    outputs: Any = None  # a list, and in others' files anything
    one_stream_for: int = 0  # renditions of a ladder that an older version encoded as one stream
    input: str = ""  # path of the clip that is streamed; "" for the test picture
    input_sha256: str = ""  # of the clip; "" in files that do not say
    streams: int = 1
    energy: Energy | None = None
    encode: Encode | None = None
    versus_baseline: Versus | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_baseline(self) -> bool:
        """Whether it is an idle window."""
        return self.type == BASELINE

    @property
    def fps_text(self) -> str:
        """Its frame rate for people: `30`, `29.97 (30000/1001)`."""
        stands_for = f" ({self.frame_rate})" if self.frame_rate.endswith("/1001") else ""
        return f"{self.fps:g}{stands_for}"

    @property
    def asked_speed(self) -> float | None:
        """Content seconds a second that its pace asks for; None for as fast as it can."""
        if self.pace == UNPACED:
            return None
        with contextlib.suppress(ValueError):
            if 0 < (times := float(self.pace.removesuffix("x"))) < math.inf:
                return times
        return 1.0

    @property
    def went_well(self) -> bool:
        """Whether it neither failed nor was interrupted."""
        return self.status == "ok"


class Rates(msgspec.Struct, frozen=True):
    """What a kilowatt-hour costs, in money and in greenhouse gas; None if that was not given."""

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

    scenarios: tuple[RecordedScenario, ...]
    format: int = 0
    run_id: str = ""
    test_date: str = ""
    host: dict[str, Any] = {}
    ffmpeg: dict[str, Any] = {}
    sink: str = ""
    rates: Rates = Rates()
    conclusions: tuple[Conclusion, ...] = ()


# -- reading -----------------------------------------------------------------------------------------


def parse_results(content: bytes, run_id: str, bounds: Bounds = DEFAULT_BOUNDS) -> ResultsFile:
    """Return what a file holds; `run_id`: its stem, for a file that does not say.

    Raises: BadResults, as "half_written", "broken", "foreign", "newer" or "too_large". Numbers may still be
    infinite.
    """
    _check_size(content, bounds)
    document = _parse_json(content)
    if not isinstance(document, dict) or not isinstance(document.get("scenarios"), list):
        raise BadResults("foreign", "it has no list of scenarios: is it a results file?")
    form = document.get("format", 0)
    if isinstance(form, bool) or not isinstance(form, int) or form < 0:
        raise BadResults("foreign", f"its format is {json.dumps(form)[:40]}, not a whole number from 0")
    if form > FORMAT:  # before the rest: what its keys hold is not known
        raise BadResults("newer", f"its format {form} is newer than {FORMAT}; update powerbench")
    if len(document["scenarios"]) > bounds.scenarios:
        raise BadResults("too_large", f"it has more than {bounds.scenarios:,} scenarios")
    document["scenarios"] = [_without_nulls(scenario) for scenario in document["scenarios"]]
    try:
        found = msgspec.convert(document, ResultsFile, strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadResults("foreign", str(error)) from None
    sink = _kind_of_sink(found.sink)
    scenarios = tuple(_completed(scenario, sink) for scenario in found.scenarios)
    if form < _FIRST_WITH_TRUE_SCORES:
        scenarios = tuple(_without_scores(scenario) for scenario in scenarios)
    if form < _FIRST_WITH_TRUE_LADDERS:
        scenarios = tuple(_without_ladder(scenario) for scenario in scenarios)
    return msgspec.structs.replace(found, scenarios=scenarios, run_id=found.run_id or run_id)


def _check_size(content: bytes, bounds: Bounds) -> None:
    """Check that parsing takes a bounded amount of memory. Raises: BadResults."""
    if len(content) > bounds.bytes:
        raise BadResults("too_large", f"it is larger than {bounds.bytes:,} bytes")
    # Every value but the first of a list or object comes behind a comma, and depth is limited by the parser.
    if content.count(b",") > bounds.values:
        raise BadResults("too_large", f"it has more than {bounds.values:,} values")


def parse_scenario(entry: Mapping[str, Any]) -> RecordedScenario:
    """Return one scenario of a file's document. Raises: msgspec.ValidationError."""
    return _completed(msgspec.convert(_without_nulls(dict(entry)), RecordedScenario, strict=False))


def _without_nulls(scenario: Any) -> Any:
    """Return a scenario without the keys that are null: they say as much as missing ones."""
    if not isinstance(scenario, dict):
        return scenario
    return {key: value for key, value in scenario.items() if value is not None}


def _parse_json(content: bytes) -> Any:
    """Return a JSON document; numbers are numbers. Raises: BadResults."""
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data"
        what = f"not UTF-8 text at byte {error.start}: {error.reason}"
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
    except _NotANumber as error:
        raise BadResults("broken", f"{_place_of_constant(text)}: {error} is not a number in JSON") from None
    except ValueError as error:  # an integer of thousands of digits
        raise BadResults("broken", str(error)) from None


class _NotANumber(Exception):  # noqa: N818 - a verdict
    """A constant that Python's reader would accept as a number."""


def _refuse_constant(name: str) -> float:
    raise _NotANumber(name)


def _place_of_constant(text: str) -> str:
    """Return where the first NaN or Infinity outside a string is."""
    at = next((match.start() for match in _CONSTANT.finditer(text) if match[1]), 0)
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return f"line {line}, column {column}"


def _completed(scenario: RecordedScenario, sink: str = "") -> RecordedScenario:
    """Return a scenario with what older formats leave to be understood; `sink`: the kind of its file's."""
    kind = scenario.type or _type_by_name(scenario)
    group = scenario.group or scenario.name
    known = {"type": kind, "group": group, "one_stream_for": 0}
    if kind == BASELINE:
        return msgspec.structs.replace(scenario, **known, streams=0)
    bitrates = scenario.bitrates or (scenario.bitrate,) * bool(scenario.bitrate or not scenario.rate)
    return msgspec.structs.replace(scenario, **known, bitrates=bitrates, sink=scenario.sink or sink)


def _kind_of_sink(sink: str) -> str:
    """Return the kind of a sink that is named as a file's head names it: a word, or a URL."""
    return sink.partition(":")[0]


def _without_ladder(scenario: RecordedScenario) -> RecordedScenario:
    """Return a scenario without what its encode did, and a warning, if it was to be of several renditions.

    These versions encoded one stream and wrote its figures down as those of the ladder.
    """
    count = len(scenario.outputs) if isinstance(scenario.outputs, list) else 0
    if count < 2 or scenario.type != "single":
        return scenario
    told = (
        f"its ladder of {count} outputs was encoded as one stream by the version that wrote it: "
        "measure it again; it is not ranked"
    )
    return msgspec.structs.replace(
        scenario, encode=None, one_stream_for=count, warnings=(*scenario.warnings, told)
    )


def _without_scores(scenario: RecordedScenario) -> RecordedScenario:
    """Return a scenario without its scores, and a warning that they were wrong, if it has any."""
    encode = scenario.encode
    if encode is None or not encode.quality:
        return scenario
    told = "its picture scores are not shown: older versions compared the wrong frames; measure again"
    return msgspec.structs.replace(
        scenario,
        encode=msgspec.structs.replace(encode, quality=None),
        warnings=(*scenario.warnings, told),
    )


def _type_by_name(scenario: RecordedScenario) -> str:
    idle = BASELINE in scenario.name.lower() or (not scenario.rate and scenario.bitrate in ("0k", "0", ""))
    return BASELINE if idle else "single"


# -- writing -----------------------------------------------------------------------------------------


def describe_energy(energy: Energy) -> dict[str, Any]:
    """Return a window's energy as files hold it."""
    return {
        "source": energy.source,
        "measured": energy.measured,
        "grade": energy.grade,
        "seconds": energy.seconds,
        "joules": energy.joules,
        "wh": energy.watt_hours,
        "mean_watts": energy.mean_watts,
        "parts": [msgspec.structs.asdict(part) for part in energy.parts],
    }


def describe_encode(encode: Encode) -> dict[str, Any]:
    """Return what one stream, or all of a window, did as files hold it; without scores."""
    return {
        "frames": encode.frames,
        "media_seconds": encode.media_seconds,
        "megabits": encode.megabits,
        "seconds": encode.seconds,
        "min_speed": encode.min_speed,
        "dropped": encode.dropped,
        "duplicated": encode.duplicated,
        "megapixels": encode.megapixels,
        "speed": encode.speed,
        **({"whole": True} if encode.whole else {}),
        **({"content_seconds": encode.content_seconds} if encode.content_seconds else {}),
    }


def describe_per_unit(watts: float, encode: Encode) -> dict[str, float | None]:
    """Return what a frame, a megabit, a megapixel and a minute of content cost, as files hold it."""
    return {
        f"joules_per_{unit}": per_unit(watts, amount, encode.seconds)
        for unit, amount in encode.amounts.items()
    }


def describe_versus(
    versus: Difference, baselines: Iterable[str], energy: Energy, encode: Encode | None
) -> dict[str, Any]:
    """Return a window's difference as files hold it; `baselines`: the names of the windows it is against."""
    return {
        "baseline": " + ".join(baselines),
        "delta_watts": versus.watts,
        "delta_wh": versus.watt_hours,
        "percent": versus.percent,
        **(describe_per_unit(versus.watts, encode) if encode else {}),
        "source": energy.source,
        "grade": energy.grade,
    }


# -- the rules ---------------------------------------------------------------------------------------


def valid(scenario: RecordedScenario) -> bool:
    """Return whether a window went well and has energy that is possible."""
    return scenario.went_well and scenario.energy is not None and not scenario.energy.impossible


def comparable(one: Energy, other: Energy) -> bool:
    """Return whether the same sources have measured the same components."""
    return one.origins == other.origins


def per_unit(watts: float, amount: float | None, seconds: float) -> float | None:
    """Return joules a frame, or another unit, of an encode that did such an amount in such a time.

    It is power divided by rate: the windows of energy and encode need not agree to the millisecond.
    """
    if amount is None or not amount > 0 or not 0 < seconds < math.inf:
        return None
    return watts * seconds / amount


def baselines_of(
    windows: Sequence[RecordedScenario], scenarios: Iterable[RecordedScenario]
) -> list[RecordedScenario]:
    """Return the idle windows that a test's windows are compared with; none for idle windows.

    They are all valid baselines of the blocks that the windows are in, or of the whole file if these blocks
    have none, as far as the same sources have measured the same components. `windows`: of one such set.
    """
    first = windows[0]
    if first.energy is None or first.is_baseline:
        return []
    origins = first.energy.origins
    idle = [scenario for scenario in scenarios if scenario.is_baseline]
    alike = [scenario for scenario in idle if origins_of(scenario) == origins]
    blocks = {window.block for window in windows}
    return [scenario for scenario in alike if scenario.block in blocks] or alike


def energies_of(scenarios: Iterable[RecordedScenario]) -> list[Energy]:
    """Return the energies of the valid windows among them."""
    return [scenario.energy for scenario in scenarios if valid(scenario) and scenario.energy is not None]


class Difference(NamedTuple):
    """What a test's window drew beyond the idle machine."""

    watts: float
    watt_hours: float  # over the test's own window
    percent: float | None  # of the idle power; None if that is 0


def difference(test: Energy, idle: Sequence[Energy]) -> Difference | None:
    """Return what a window drew beyond the mean of idle ones; None if none is comparable.

    The mean power of the comparable idle windows is subtracted, each counting the same.
    """
    watts_idle = [energy.mean_watts for energy in idle if comparable(energy, test)]
    if not watts_idle:
        return None
    mean_idle = mean(watts_idle)
    watts = test.mean_watts - mean_idle
    percent = 100 * watts / mean_idle if mean_idle > 0 else None
    return Difference(watts, watts * test.seconds / 3600, percent)


def mean_energy(energies: Sequence[Energy]) -> Energy:
    """Return the mean of comparable windows, part by part."""
    if len(energies) == 1:
        return energies[0]
    joules: defaultdict[Origin, float] = defaultdict(float)
    watts: defaultdict[Origin, float] = defaultdict(float)
    for energy in energies:
        for part in energy.parts:
            joules[part.origin] += part.joules / len(energies)
            watts[part.origin] += part.watts / len(energies)
    return Energy(
        source=energies[0].source,
        seconds=mean([energy.seconds for energy in energies]),
        joules=mean([energy.joules for energy in energies]),
        mean_watts=mean([energy.mean_watts for energy in energies]),
        measured=all(energy.measured for energy in energies),
        parts=tuple(Part(*origin, joules[origin], watts[origin]) for origin in joules),
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean; infinite if the sum is beyond any number."""
    try:
        return fmean(values)
    except OverflowError:
        return math.inf


# -- repeats -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What one stream is; `bitrates` has one entry if all streams have the same.

    A clip is its content, whatever its name; its path in files that do not tell the content.
    """

    bitrates: tuple[str, ...]
    resolution: str
    fps: float
    encoder: str
    preset: str
    rate: str = ""  # "" is a constant bitrate
    more: str = ""  # what else was asked of the encoder
    pix_fmt: str = PIX_FMT
    input: str = field(default="", compare=False)  # the clip's file name; "" for the test picture
    clip: str = ""  # its SHA-256, or its path
    pace: str = REALTIME
    sink: str = ""  # its kind; not in the text: most files have one
    part: str = ""  # of the work; "" if it is the whole
    ladder: str = ""

    def __str__(self) -> str:
        rates = " ".join(filter(None, ("+".join(self.bitrates), self.rate)))
        pictures = (f"ladder {self.ladder}", self.rate) if self.ladder else (rates, self.resolution)
        own_format = "" if self.pix_fmt == PIX_FMT else self.pix_fmt
        coder = (self.encoder, self.preset, own_format, self.more)
        how = (pace_text(self.pace), self.part and f"{self.part} alone")
        said = (*pictures, f"{self.fps:g} fps", *coder, self.input, *how)
        return " ".join(filter(None, said))


def pace_text(pace: str) -> str:
    """Return a pace as people read it; "" for real time, which goes without saying."""
    return "" if pace == REALTIME else f"pace {pace}"


def settings_of(scenario: RecordedScenario) -> Settings:
    """Return what one of a scenario's streams is."""
    rates = scenario.bitrates
    idle, renditions = scenario.is_baseline, scenario.one_stream_for
    return Settings(
        bitrates=rates if len(set(rates)) > 1 else rates[:1],
        resolution=scenario.resolution,
        fps=scenario.fps,
        encoder=scenario.encoder,
        preset=scenario.preset,
        rate="" if scenario.rate == "cbr" else scenario.rate,
        more=_more_settings(scenario),
        pix_fmt=scenario.pix_fmt,
        input=input_name(scenario.input),
        clip=scenario.input_sha256 or scenario.input,
        pace=REALTIME if idle else scenario.pace,
        sink="" if idle else scenario.sink,
        part="" if idle else scenario.part,
        ladder=f"of {renditions} encoded as one stream" if renditions else scenario.ladder,
    )


def input_name(text: str) -> str:
    """Return what people call an input: a clip's file name, a live source's whole URL."""
    return text if "://" in text else PurePath(text).name


def _more_settings(scenario: RecordedScenario) -> str:
    """Return what was asked of the encoder beyond preset and rate, as people read it."""
    asked = {
        "gop": scenario.gop,
        "options": scenario.encoder_options,
        "device": scenario.device,
        "hwaccel": scenario.hwaccel,
    }
    return " ".join(f"{key} {value}" for key, value in asked.items() if value)


def origins_of(scenario: RecordedScenario) -> frozenset[Origin]:
    """Return what measured a window's energy; empty if it has no valid energy."""
    return scenario.energy.origins if valid(scenario) and scenario.energy is not None else frozenset()


def groups(scenarios: Iterable[RecordedScenario]) -> dict[str, list[RecordedScenario]]:
    """Return the windows that went well by the name that repeats share, in their order."""
    found: dict[str, list[RecordedScenario]] = {}
    for scenario in scenarios:
        if scenario.went_well:
            found.setdefault(scenario.group, []).append(scenario)
    return found


@dataclass(frozen=True)
class Repeats:
    """Windows of one group, one setting and one set of sources; `name` tells settings of one group apart."""

    name: str
    windows: tuple[RecordedScenario, ...]

    @property
    def first(self) -> RecordedScenario:
        """One of them, for what they have in common."""
        return self.windows[0]

    @property
    def energies(self) -> list[Energy]:
        """Their energies; none if they have no valid ones."""
        return energies_of(self.windows)

    @property
    def source(self) -> str:
        """Where their joules come from; "" without valid energy."""
        energies = self.energies
        return energies[0].source if energies else ""

    @property
    def grade(self) -> str:
        """How good their joules are; "" without valid energy."""
        energies = self.energies
        return energies[0].grade if energies else ""

    @property
    def scores(self) -> list[MeanScores]:
        """The mean scores of their pictures, by rendition."""
        return mean_scores(
            score for window in self.windows if window.encode for score in window.encode.scores
        )


def repeats(scenarios: Iterable[RecordedScenario]) -> list[Repeats]:
    """Return the windows that went well, those that may be averaged together.

    An estimate is never averaged with a measurement, nor one setting with another. Windows without valid
    energy stand apart from those with it.
    """
    found: list[Repeats] = []
    for name, windows in groups(scenarios).items():
        alike: dict[object, list[RecordedScenario]] = {}
        for window in windows:
            settings = settings_of(window)
            key = window.is_baseline, settings, window.streams, origins_of(window)
            alike.setdefault(key, []).append(window)
        sets = [tuple(its) for its in alike.values()]
        telling = _telling([settings_of(its[0]) for its in sets])
        for its in sets:
            told = telling(settings_of(its[0]))
            found.append(Repeats(f"{name} ({told})" if told else name, its))
    return found


def _telling(several: Sequence[Settings]) -> Callable[[Settings], str]:
    """Return what names one of several settings of a group, as far as they differ; "" if it is one alone."""

    def described(settings: Settings) -> dict[str, str]:
        return {
            "clip": settings.input,
            "pace": pace_text(settings.pace),
            "sink": "" if settings.part or not settings.sink else f"to {settings.sink}",
            "part": settings.part and f"{settings.part} alone",
            "ladder": settings.ladder and f"ladder {settings.ladder}",
        }

    def differs(key: str) -> bool:
        # A part of the work has a sink of its own, and is told apart without it.
        return len({getattr(one, key) for one in several if key != "sink" or not one.part}) > 1

    differing = [key for key in described(several[0]) if differs(key)]

    def told(settings: Settings) -> str:
        return ", ".join(filter(None, (described(settings)[key] for key in differing)))

    return told


# -- files -------------------------------------------------------------------------------------------


class ListedFile(NamedTuple):
    """One results file of a directory."""

    name: str
    status: os.stat_result  # its own, not a link's target's

    @property
    def run_id(self) -> str:
        """The file's stem."""
        return self.name.removesuffix(".json")

    @property
    def is_reserved(self) -> bool:
        """Whether it only holds the name that a run has just reserved."""
        return stat.S_ISREG(self.status.st_mode) and not self.status.st_size

    @property
    def age(self) -> tuple[str, int, str]:
        """What tells the newest: the date in its name, else that of its last writing; then the latter."""
        dated = _DATED.match(self.name)
        date = dated[1] if dated else self._written
        return date, self.status.st_mtime_ns, self.name

    @property
    def _written(self) -> str:
        try:
            return time.strftime("%Y%m%d_%H%M%S", time.localtime(self.status.st_mtime))
        except (ValueError, OverflowError, OSError):
            return ""


class TooManyFiles(OSError):  # noqa: N818 - a verdict
    """A directory has too many entries to be searched for the newest."""

    def __init__(self) -> None:
        super().__init__(errno.E2BIG, f"it has more than {MAX_LISTED:,} entries")


def is_results_name(name: str) -> bool:
    """Return whether a file of this name is taken for a results file."""
    return name.startswith("test_results_") and name.endswith(".json")


def list_results(directory: str | os.PathLike[str]) -> list[ListedFile]:
    """Return a directory's results files, the newest first.

    Raises: TooManyFiles or another OSError; ValueError for a directory whose name holds a NUL.
    """
    found = []
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number == MAX_LISTED:  # which of them are the newest is not known before the last
                raise TooManyFiles
            if is_results_name(entry.name):
                with contextlib.suppress(OSError):  # it has just gone
                    found.append(ListedFile(entry.name, entry.stat(follow_symlinks=False)))
    return sorted(found, key=lambda file: file.age, reverse=True)


def newest(files: Iterable[ListedFile]) -> ListedFile | None:
    """Return the newest of listed files that holds anything."""
    return next((file for file in files if not file.is_reserved), None)
