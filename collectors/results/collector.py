"""Figures of benchmark runs: watches the directory of results files and shows the newest runs.

Reads `DIRECTORY/test_results_*.json` in every format (core/results.py), in a thread of its own, and
each version of a file once. A Prometheus, if one is named, is asked for the energy of windows
without it (window_query.py).
Privileges: reading the directory.

The writer renames whole files into place, so a reading never meets half of one of its own; others' files are
bounded, links are not followed, and what cannot be used is counted, logged and left out.
"""

from __future__ import annotations

import math
import re
import stat
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import msgspec
import structlog

from powerbench_agent.collectors.results import metrics
from powerbench_agent.collectors.results.window_query import WindowQuery
from powerbench_agent.core.bounded_file import UnfitFile, read_bounded_file
from powerbench_agent.core.model import Absent, Metric, ReadFailed, Reading, Sample, Trouble
from powerbench_agent.core.options import CollectorOptions, Seconds
from powerbench_agent.core.results import (
    BadResults,
    Bounds,
    ListedFile,
    Rates,
    ResultsFile,
    TooManyFiles,
    groups,
    list_results,
    parse_results,
)
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from powerbench_agent.core.host import Host
    from powerbench_agent.core.prometheus_windows import PastWindow

log = structlog.get_logger("results")

SCENARIOS = Metric("results_scenarios", "gauge", "Scenarios that hold, repeats as one.", ("run_id",))
SKIPPED = Metric(
    "results_files_skipped_total", "counter", "Versions of files that could not be used.", ("reason",)
)
BEGAN = Metric("results_run_timestamp_seconds", "gauge", "When the run's first window began.", ("run_id",))
METRICS = (*metrics.METRICS, SCENARIOS, BEGAN, SKIPPED)
_CUT = Trouble(
    "scenarios",
    "there are more scenarios than are shown",
    "raise [collectors.results] max_scenarios, or lower runs",
    limit="max_scenarios",
)

REMEDIES = {
    "unreadable": "let the agent's user read it; it must be a regular file, not a link",
    "too_large": "move it away, or raise [collectors.results] max_file_bytes",
    "half_written": "nothing, if it is still being written; else remove it",
    "broken": "mend it, or move it away",
    "foreign": "move it away, or mend what is named",
    "newer": "update powerbench here",
}
MAX_RUNS = 100
MAX_WINDOWS_IN_FILE = 5_000
MAX_VALUES_IN_FILE = 300_000  # 80 MB while it is parsed; a scenario of powerbench run has about 100
BYTES_AT_ONCE = 32 * 2**20  # of new files; the rest is read at the next interval
_FILE_COST = 65_536  # so that small files count, too
Version = tuple[int, int, int, int]
_MATCHER = r'[a-zA-Z_][a-zA-Z0-9_]*\s*(=|!=|=~|!~)\s*"([^"\\]|\\.)*"'
_MATCHERS = re.compile(rf"\s*({_MATCHER}\s*(,\s*{_MATCHER}\s*)*)?")


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.results]`."""

    interval: Seconds = Seconds(10.0)
    directory: str = "/var/lib/powerbench/results"
    runs: int = 1  # the newest so many are shown
    max_scenarios: int = 1000  # shown of all of them together
    max_file_bytes: int = 16_777_216
    prometheus: str = ""  # URL of a Prometheus or VictoriaMetrics, for files without energy
    prometheus_match: str = ""  # which of its machines is this one: instance="a:9510"
    price_per_kwh: float = 0.0  # these two where a file says nothing; 0 for none
    gco2e_per_kwh: float = 0.0

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        if not 1 <= self.runs <= MAX_RUNS:
            yield "runs", f"must be between 1 and {MAX_RUNS}"
        for key in ("max_scenarios", "max_file_bytes"):
            if getattr(self, key) < 1:
                yield key, "must be at least 1"
        for key in ("price_per_kwh", "gco2e_per_kwh"):
            if not 0 <= getattr(self, key) < 1e9:
                yield key, "must be 0 (for none) or more"
        if self.prometheus and not _is_server(self.prometheus):
            yield "prometheus", "must be a URL like http://localhost:9090, without ? and #"
        if not _MATCHERS.fullmatch(self.prometheus_match):
            yield "prometheus_match", """must be label matchers, like 'instance="worker-1:9510"'"""


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = url.isprintable() and not set(url) & set(" ?#")
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


def version_of(file: ListedFile) -> Version:
    """Return what tells two states of a file apart: inode, size, mtime, and ctime, which modes change."""
    status = file.status
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Run(NamedTuple):
    """One file, as it is shown."""

    run_id: str
    version: Version
    samples: list[list[Sample]]  # by group
    groups: int  # in the file
    began: float  # Unix seconds; inf where no window says it
    wanted: list[PastWindow]  # whose energy it does not hold
    found: ResultsFile | None  # kept while something is wanted
    generation: int  # of the answers that are in it


class Results:
    """One directory."""

    def __init__(self, options: Options, host: Host) -> None:
        self._options = options
        self._clock = host.clock
        self._rates = Rates(
            price_per_kwh=options.price_per_kwh or None, gco2e_per_kwh=options.gco2e_per_kwh or None
        )
        self._bounds = Bounds(options.max_file_bytes, MAX_WINDOWS_IN_FILE, MAX_VALUES_IN_FILE)
        self._worker = Worker("results")
        self.query = (
            WindowQuery(options.prometheus, options.prometheus_match, host.clock)
            if options.prometheus
            else None
        )
        self._runs: dict[str, _Run] = {}
        self._bad: dict[str, tuple[Version, str]] = {}  # (version, reason) by name
        self._skipped = dict.fromkeys(REMEDIES, 0)
        self._last: tuple[object, Reading] | None = None

    async def read(self) -> Reading:
        """Return the newest runs' figures.

        Raises: Absent without a directory or a file in it; ReadFailed where it may not be read.
        """
        reading, wanted = await self._worker.call(self._read)
        if self.query is not None:
            self.query.want(wanted)
        return reading

    async def aclose(self) -> None:
        """Let the threads go."""
        self._worker.close()
        if self.query is not None:
            await self.query.aclose()

    def _read(self) -> tuple[Reading, list[PastWindow]]:
        files = list_files(self._options.directory)
        if not files:
            raise Absent(f"no test_results_*.json in {self._options.directory}")
        shown = self._newest_runs(files)
        troubles = (_CUT,) if self._is_cut(shown, len(files)) else ()
        self._runs = shown
        names = {file.name for file in files}
        self._bad = {name: bad for name, bad in self._bad.items() if name in names}
        # The same object as long as nothing has changed: it is rendered once.
        versions = [(name, run.version, run.generation) for name, run in shown.items()]
        state = (versions, dict(self._skipped), troubles)
        if self._last is None or self._last[0] != state:
            samples = self._samples(shown.values())
            reading = Reading(samples, taken=self._clock.monotonic(), troubles=troubles)
            self._last = (state, reading)
        return self._last[1], [window for run in shown.values() for window in run.wanted]

    def _newest_runs(self, files: Iterable[ListedFile]) -> dict[str, _Run]:
        """Return the newest runs, as many as are to be shown and as can be read at once."""
        shown: dict[str, _Run] = {}
        budget, room = BYTES_AT_ONCE, self._options.max_scenarios
        for file in files:
            if len(shown) == self._options.runs or room <= 0:
                break
            run = self._runs.get(file.name)
            if run is None or run.version != version_of(file):
                if budget < BYTES_AT_ONCE and budget < file.status.st_size + _FILE_COST:
                    continue  # at a later reading
                content = self._content(file)
                if content is None:
                    continue
                budget -= len(content) + _FILE_COST
                run = self._parsed(file, content)
                if run is None:
                    continue
            elif self.query is not None and run.found and run.generation != self.query.generation:
                run = self._described(file, run.found)
            shown[file.name] = run
            room -= len(run.samples)
        return shown

    def _is_cut(self, shown: Mapping[str, _Run], files: int) -> bool:
        """Return whether there are more scenarios than are shown."""
        most = self._options.max_scenarios
        samples = sum(len(run.samples) for run in shown.values())
        if samples > most or any(len(run.samples) == most < run.groups for run in shown.values()):
            return True
        return samples == most and len(shown) < min(self._options.runs, files)

    def _samples(self, shown: Iterable[_Run]) -> list[Sample]:
        """Return the samples of the runs that are shown, no more scenarios than configured."""
        samples: list[Sample] = []
        room = self._options.max_scenarios
        for run in shown:
            run_id = metrics.label(run.run_id)
            samples.append(SCENARIOS.sample(run.groups, run_id))
            if math.isfinite(run.began):
                samples.append(BEGAN.sample(run.began, run_id))
            for group in run.samples[:room]:
                samples.extend(group)
            room -= len(run.samples)
        samples.extend(SKIPPED.sample(count, reason) for reason, count in self._skipped.items())
        return samples

    def _content(self, file: ListedFile) -> bytes | None:
        """Return a file's content; None if it cannot be read, now or in this version."""
        version = version_of(file)
        bad = self._bad.get(file.name)
        # What could not be read may be readable by now, without a new version.
        if bad is not None and bad[0] == version and bad[1] != "unreadable":
            return None
        if file.is_reserved:
            return None
        try:
            return read_bounded(f"{self._options.directory}/{file.name}", file, self._options.max_file_bytes)
        except FileNotFoundError:
            return None  # gone since it was listed
        except BadResults as verdict:
            self._skip(file, verdict)
            return None

    def _parsed(self, file: ListedFile, content: bytes) -> _Run | None:
        try:
            found = parse_results(content, file.run_id, self._bounds)
        except BadResults as verdict:
            self._skip(file, verdict)
            return None
        self._bad.pop(file.name, None)
        return self._described(file, msgspec.structs.replace(found, host={}, ffmpeg={}))

    def _described(self, file: ListedFile, found: ResultsFile) -> _Run:
        generation = self.query.generation if self.query else 0
        answer = self.query.answer if self.query else lambda _: None
        wanted = (metrics.window_of(scenario) for scenario in found.scenarios) if self.query else ()
        windows = list(islice((w for w in wanted if w is not None), self._options.max_scenarios))
        described = metrics.describe(found, file.run_id, self._rates, answer)
        return _Run(
            run_id=file.run_id,
            version=version_of(file),
            samples=list(islice(described, self._options.max_scenarios)),
            groups=len(groups(found.scenarios)),
            began=min((s.start_time for s in found.scenarios if s.start_time is not None), default=math.inf),
            wanted=windows,
            found=found if windows else None,
            generation=generation,
        )

    def _skip(self, file: ListedFile, verdict: BadResults) -> None:
        """Count and log a version of a file, once."""
        this = (version_of(file), verdict.reason)
        if self._bad.get(file.name) == this:
            return
        self._bad[file.name] = this
        self._skipped[verdict.reason] = self._skipped.get(verdict.reason, 0) + 1
        remedy = REMEDIES.get(verdict.reason, "")
        name = metrics.label(file.name)
        log.warning(
            "results file left out", file=name, reason=verdict.reason, error=str(verdict), remedy=remedy
        )


async def open_collector(options: Options, host: Host) -> Results:
    """Return the collector; it looks when it is read: a directory on a dead mount would hang here."""
    return Results(options, host)


def list_files(directory: str) -> list[ListedFile]:
    """Return the directory's results files, the newest first. Raises: Absent, ReadFailed."""
    try:
        return list_results(directory)
    except TooManyFiles as many:
        raise ReadFailed(f"cannot list {directory}: {many.strerror}", "move old results away") from None
    except PermissionError:
        raise ReadFailed(
            f"cannot list {directory}: permission denied", "let the agent's user read it"
        ) from None
    except OSError as error:
        raise Absent(f"cannot list {directory}: {error.strerror}") from None
    except ValueError:
        raise Absent(f"{directory!r} is not the name of a directory") from None


def read_bounded(path: str, file: ListedFile, limit: int) -> bytes:
    """Return a regular file's content. Raises: BadResults; FileNotFoundError."""
    if stat.S_ISLNK(file.status.st_mode):
        raise BadResults("unreadable", "is a symbolic link; put the file itself there")
    if not stat.S_ISREG(file.status.st_mode):  # opening a device may do something
        raise BadResults("unreadable", "is not a regular file")
    try:
        if file.status.st_size > limit:
            raise UnfitFile(f"is larger than {limit:,} bytes", too_large=True)
        return read_bounded_file(path, limit, follow=False)
    except UnfitFile as unfit:
        raise BadResults("too_large" if unfit.too_large else "unreadable", str(unfit)) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadResults("unreadable", error.strerror or str(error)) from None
