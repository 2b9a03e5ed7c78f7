"""What a run leaves behind: a results file, written whole after every scenario, and the power trace.

core/results.py has the file's schema and the history of its `format`.

Times are Unix seconds, durations seconds, energy joules.
"""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from powerbench_agent.bench.exits import BadFile
from powerbench_agent.bench.load.redact import redact_url
from powerbench_agent.bench.meter.energy import counted
from powerbench_agent.core.bounded_file import UnfitFile, read_bounded_file
from powerbench_agent.core.results import (
    DEFAULT_BOUNDS,
    FORMAT,
    BadResults,
    baselines_of,
    describe_versus,
    difference,
    energies_of,
    parse_results,
    parse_scenario,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from powerbench_agent.bench.meter.energy import Edge
    from powerbench_agent.core.results import Conclusion, RecordedScenario

# The trace, a row a counter and reading: `time` in Unix seconds here, `monotonic` in the agent's own.
_COLUMNS = {
    "scenario": "VARCHAR",
    "phase": "VARCHAR",
    "time": "DOUBLE",
    "monotonic": "DOUBLE",
    "agent": "VARCHAR",
    "component": "VARCHAR",
    "source": "VARCHAR",
    "key": "VARCHAR",
    "joules": "DOUBLE",
}
_ROWS_AT_ONCE = 500


class ResultsRecord:
    """One run's files."""

    def __init__(self, directory: Path, head: dict[str, Any], suffix: str = "") -> None:
        """`head`: what the file says beside its scenarios; `suffix`: of its name, like "_s1of3"."""
        self._directory = directory
        self._head = head
        now = datetime.now().astimezone()
        self._date = now.isoformat(timespec="seconds")
        self._stem = f"test_results_{now:%Y%m%d_%H%M%S}{suffix}"
        self._reserved = self._written = False
        self.earlier: list[dict[str, Any]] = []  # scenarios that the file holds already

    @classmethod
    def resumed(cls, path: Path, head: dict[str, Any]) -> ResultsRecord:
        """Return the files of an earlier run, to go on in. Raises: BadFile where that cannot be."""
        try:
            content = read_bounded_file(path, DEFAULT_BOUNDS.bytes)
            parse_results(content, path.stem)
        except OSError as error:
            raise BadFile(f"--resume {path}: cannot read it: {error.strerror}") from None
        except UnfitFile as unfit:
            raise BadFile(f"--resume {path}: cannot read it: it {unfit}") from None
        except BadResults as bad:
            raise BadFile(f"--resume {path}: {bad.explained}") from None
        document = msgspec.json.decode(content)
        if document.get("format") != FORMAT or not isinstance(document.get("test_date"), str):
            raise BadFile(f"--resume {path}: is not a results file of this version of powerbench")
        if changed := _differs(document, head):
            raise BadFile(f"--resume {path}: it was made {changed}")
        results = cls(path.parent, head)
        results._date, results._stem = document["test_date"], path.stem
        results._reserved = results._written = True
        _part(trace_path(path)).unlink(missing_ok=True)  # of a run that was killed while it saved
        results.earlier = list(document["scenarios"])
        return results

    @property
    def run_id(self) -> str:
        """The file's stem; final once it is reserved."""
        return self._stem

    @property
    def path(self) -> Path:
        """The results file."""
        return self._directory / f"{self._stem}.json"

    def reserve(self) -> None:
        """Take a name that is free, with a file that holds no scenario yet. Raises: OSError."""
        if self._reserved:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        stem, number = self._stem, 2
        while not self._reserved:
            try:
                self.path.touch(exist_ok=False)
                self._reserved = True
            except FileExistsError:
                self._stem, number = f"{stem}_{number}", number + 1
        self._write([])

    def save(self, scenarios: list[dict[str, Any]]) -> None:
        """Write the whole file, with these scenarios. Raises: OSError."""
        self.reserve()
        self._write(scenarios)
        self._written = True

    def _write(self, scenarios: list[dict[str, Any]]) -> None:
        recorded = [parse_scenario(scenario) for scenario in scenarios]
        baselines = [scenario for scenario in recorded if scenario.is_baseline]
        both = zip(scenarios, recorded, strict=True)
        content = {
            "format": FORMAT,
            "test_date": self._date,
            "run_id": self._stem,
            **self._head,
            "conclusions": _conclusions(recorded),
            "scenarios": [_compared(entry, scenario, baselines) for entry, scenario in both],
        }
        try:
            write_whole(self.path, encode(content))
        except OSError:
            if not self._written:  # nothing half-written: not even the name
                self.path.unlink(missing_ok=True)
                self._reserved = False
            raise


def _compared(
    entry: dict[str, Any], scenario: RecordedScenario, baselines: Sequence[RecordedScenario]
) -> dict[str, Any]:
    """Return a scenario's entry with its difference to the baselines that the whole file has for it.

    It is worked out again at each writing: a later baseline of the block counts as much as an earlier one.
    """
    described = {key: value for key, value in entry.items() if key != "versus_baseline"}
    went_well = entry.get("status") == "ok"
    if scenario.energy is None or not (went_well or "versus_baseline" in entry):
        return described  # what failed is compared only if its energy was found to be whole
    own = baselines_of([scenario], baselines)
    versus = difference(scenario.energy, energies_of(own))
    if versus is not None:
        names = [baseline.name for baseline in own]
        described["versus_baseline"] = describe_versus(versus, names, scenario.energy, scenario.encode)
    return described


def _conclusions(scenarios: Sequence[RecordedScenario]) -> list[Conclusion]:
    """Return how sure the differences are, if there are repeats."""
    if not any(scenario.block for scenario in scenarios):
        return []
    from powerbench_agent.bench.statistics import groups  # noqa: PLC0415 - heavy; between scenarios

    return groups.conclude(scenarios)


def encode(content: dict[str, Any]) -> bytes:
    """Return JSON that people can read, too."""
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def write_whole(path: Path, content: bytes) -> None:
    """Put the whole file there, or leave what was there. Raises: OSError."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


class Trace:
    """The counters as they went, for a run's Parquet file; repeated readings are kept once."""

    def __init__(self) -> None:
        # It lives as long as the run does, and has no name that a run that is killed could leave behind.
        self._file = tempfile.TemporaryFile("w", newline="")  # noqa: SIM115
        self._writer = csv.writer(self._file)
        self._pending: list[tuple[str | float, ...]] = []  # written many at a time: that costs a third
        self._broken: OSError | None = None  # the working copy, whose rows may be torn from then on
        self._last: dict[Any, float] = {}
        self.rows = 0  # that are not in the Parquet file yet

    def take(self, scenario: str, phase: str, edge: Edge) -> bool:
        """Keep the counters of an edge; return whether there was news in it."""
        news = False
        for key in counted(edge.marks):
            mark = edge.marks[key]
            if self._last.get(key) == mark.monotonic:
                continue
            self._last[key] = mark.monotonic
            news = True
            self.rows += 1
            self._pending.append(
                (
                    scenario,
                    phase,
                    edge.time,
                    mark.monotonic,
                    key.agent,
                    key.component,
                    key.source,
                    key.key,
                    mark.joules,
                )
            )
        if len(self._pending) >= _ROWS_AT_ONCE:
            self._write()
        return news

    def _write(self) -> None:
        """Put what is pending into the working copy; one that breaks must not end the window."""
        pending, self._pending = self._pending, []
        if self._broken is None:
            try:
                self._writer.writerows(pending)
                self._file.flush()
            except OSError as error:
                self._broken = error

    def save(self, path: Path, run_id: str) -> None:
        """Add new rows to the Parquet file; a scenario measured again replaces its own. Raises: OSError."""
        import duckdb  # noqa: PLC0415 - heavy; one moment after a scenario

        self._write()
        if self._broken is not None:
            raise OSError(f"its working copy in {tempfile.gettempdir()}: {self._broken.strerror}")
        temporary = _part(path)
        try:
            with duckdb.connect() as database:
                columns = ", ".join(f"'{name}': '{kind}'" for name, kind in _COLUMNS.items())
                dialect = "delim = ',', quote = '\"', escape = '\"', header = false"
                read = f"read_csv($csv, {dialect}, columns = {{{columns}}})"
                rows = f"SELECT $run_id AS run_id, * FROM {read}"  # noqa: S608 - constants and parameters
                if path.exists():  # of earlier scenarios, or of the run that is gone on with
                    others = f"scenario NOT IN (SELECT scenario FROM {read})"  # noqa: S608 - likewise
                    earlier = f"SELECT * FROM read_parquet({_quoted(str(path))}) WHERE {others}"  # noqa: S608 - likewise
                    rows = f"{earlier} UNION ALL BY NAME {rows}"
                # COPY takes no parameter for its file: the name is quoted.
                copy = f"COPY ({rows}) TO {_quoted(str(temporary))} (FORMAT parquet, COMPRESSION zstd)"
                database.execute(copy, {"run_id": run_id, "csv": f"/proc/self/fd/{self._file.fileno()}"})
            temporary.replace(path)
            self._file.seek(0)
            self._file.truncate()
            self.rows = 0
        except duckdb.Error as error:
            raise OSError(str(error).partition("\n")[0]) from error
        finally:
            temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """Drop the working copy."""
        with contextlib.suppress(OSError):  # it is full: nothing of it is wanted any more
            self._file.close()


def _part(trace: Path) -> Path:
    """Return where a trace is while it is written."""
    return trace.with_name(f".{trace.name}.part")


def _differs(made: dict[str, Any], asked: dict[str, Any]) -> str:
    """Return how a file was made differently from this run, and what to do; "" if it was not."""
    others = ["ffmpeg"] if _is_another_ffmpeg(made.get("ffmpeg") or {}, asked["ffmpeg"]) else []
    others += [what for what in ("sink", "agents") if _shown(made.get(what)) != _shown(asked[what])]
    if others:
        return f"with another {others[0]}; start a run of its own"
    before, now = made.get("settings") or {}, asked["settings"]
    if before.get("kind") != now.get("kind"):
        return f"by run {before.get('kind')}: give the same"
    for what in ("repeat", "order", "seed"):
        if before.get(what) != now.get(what):
            return f"with --{what} {before.get(what)}: give the same"
    if bool(before.get("strict")) != bool(now.get("strict")):
        return f"{'with' if before.get('strict') else 'without'} --strict: give the same"
    if (rates := _said(made.get("rates"))) != _said(asked["rates"]):
        what = ", ".join(f"{key} {value}" for key, value in rates.items())
        return f"with {f'the rates {what}' if rates else 'no rates'}: give the same --rates"
    host = made.get("host") or {}
    moved = [key for key in ("cpu_model", "cpus", "kernel") if host.get(key) != asked["host"].get(key)]
    if host.get("cpu_model") is None and "cpu_model" in moved:
        moved.remove("cpu_model")  # earlier versions had no name for ARM's
    return f"on a machine with another {', '.join(moved)}" if moved else ""


def _is_another_ffmpeg(made: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Return whether two ffmpegs differ in what makes them the same: the bytes, and the libraries if known.

    A shared build may stay the same while its libraries are updated.
    """
    if not (made.get("sha256") and asked.get("sha256")):
        return any(made.get(key) != asked.get(key) for key in ("path", "version"))
    ours, theirs = made.get("libraries"), asked.get("libraries")
    return bool(made["sha256"] != asked["sha256"] or (ours and theirs and ours != theirs))


def _shown(value: Any) -> Any:
    """Return a sink, or the agents, as files show them; earlier versions did not hide secrets."""
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return redact_url(value) if isinstance(value, str) else value


def _said(rates: Any) -> dict[str, Any]:
    """Return the rates that were given."""
    known = rates.items() if isinstance(rates, dict) else ()
    return {key: value for key, value in known if value not in (None, "")}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def trace_path(results: Path) -> Path:
    """Return where a results file's trace lies: beside it."""
    return results.with_name(f"{results.stem}_trace.parquet")
