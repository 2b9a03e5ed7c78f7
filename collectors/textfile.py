"""Metrics that other programs write to `*.prom` files in a directory: cron jobs, wall meters, inventories.

Reads `DIRECTORY/*.prom` in the Prometheus text format, as node_exporter's textfile collector does. A file
that cannot be used is counted and left out; the others are read. Privileges: reading the directory.

The files are written by others. So their size and number are limited, symbolic links are not followed, and
they cannot replace a metric family of the agent (see exposition).

Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING

import structlog
from prometheus_client import parser

from powerbench_agent.core.labels import shorten
from powerbench_agent.core.metric_names import metric_complaint, sample_complaint
from powerbench_agent.core.model import Absent, Metric, Reading, Sample, Trouble
from powerbench_agent.core.options import CollectorOptions, Seconds
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.samples import Sample as ParsedSample

    from powerbench_agent.core.host import Host
    from powerbench_agent.core.model import Kind

log = structlog.get_logger("textfile")

MTIME = Metric(
    "textfile_mtime_seconds", "gauge", "Time of the file's last change, in Unix seconds.", ("file",)
)
SKIPPED = Metric(
    "textfile_files_skipped_total",
    "counter",
    "Number of times a file could not be used, by reason.",
    ("reason",),
)
METRICS = (MTIME, SKIPPED)
_COUNTER_TYPE = re.compile(r"^# TYPE (\S+(?<!_total)) counter\s*$", re.MULTILINE)
_MAX_NAME = 200  # characters of a file's name in a label
REASONS = ("malformed", "timestamps", "too_large", "too_many", "unreadable")


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.textfile]`; without a directory the collector is absent."""

    interval: Seconds = Seconds(10.0)
    directory: str = ""
    max_files: int = 100
    max_file_bytes: int = 1_048_576
    max_series: int = 20_000  # of all files together

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        for key in ("max_files", "max_file_bytes", "max_series"):
            if getattr(self, key) < 1:
                yield key, "must be at least 1"


class UnusableFile(Exception):  # noqa: N818 - a verdict on a file
    """A file that is left out; `reason` is the label under which it is counted, `limit` what it exceeds."""

    def __init__(self, reason: str, what: str, limit: str = "") -> None:
        super().__init__(what)
        self.reason = reason
        self.limit = limit


class Textfile:
    """One directory."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._worker = Worker("textfile")
        self._skipped = dict.fromkeys(REASONS, 0)
        self._logged: dict[str, str] = {}  # what was logged about a file, by its name

    async def read(self) -> Reading:
        """Return the samples of every usable file. Raises: Absent if the directory cannot be listed."""
        return await self._worker.call(self._read)

    async def aclose(self) -> None:
        """Let the thread end."""
        self._worker.close()

    def _read(self) -> Reading:
        names = list_files(self._options.directory)
        samples: list[Sample] = []
        hit: dict[str, None] = {}  # options whose limit has left a file out, in their order
        for number, name in enumerate(names):
            try:
                if number >= self._options.max_files:
                    what = f"more than {self._options.max_files} files"
                    raise UnusableFile("too_many", what, "max_files")
                samples.extend(self._read_file(name, self._options.max_series - len(samples)))
            except UnusableFile as unusable:
                self._skip(name, unusable)
                if unusable.limit:
                    hit[unusable.limit] = None
            else:
                self._logged.pop(name, None)
        self._logged = {name: why for name, why in self._logged.items() if name in names}
        samples.extend(SKIPPED.sample(count, reason) for reason, count in self._skipped.items())
        return Reading(samples, troubles=[_cut(option) for option in hit])

    def _read_file(self, name: str, room: int) -> list[Sample]:
        """Return a file's samples, at most `room` of them, and its time. Raises: UnusableFile."""
        path = os.path.join(self._options.directory, name)  # noqa: PTH118 - a plain join, per file per beat
        mtime, text = read_bounded(path, self._options.max_file_bytes)
        if count_series(text) > room:
            what = f"has more series than the {self._options.max_series} that all files may have together"
            raise UnusableFile("too_many", f"{what}; raise [collectors.textfile] max_series", "max_series")
        label = shorten(name, _MAX_NAME)
        return [MTIME.sample(mtime, label), *parse(text, label)]

    def _skip(self, name: str, unusable: UnusableFile) -> None:
        self._skipped[unusable.reason] += 1
        why = str(unusable)
        if self._logged.get(name) != why:
            self._logged[name] = why
            log.warning("file left out", file=name, reason=unusable.reason, error=why)


async def open_collector(options: Options, host: Host) -> Textfile:
    """Return the collector. Raises: Absent if no directory is set."""
    del host
    if not options.directory:
        raise Absent("no [collectors.textfile] directory is set")
    return Textfile(options)  # the directory is first listed in its thread: on a dead mount that hangs


def list_files(directory: str) -> list[str]:
    """Return the names of the directory's *.prom files, sorted. Raises: Absent."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - only names are wanted
    except OSError as error:
        raise Absent(f"cannot list {directory}: {error.strerror}") from None
    return sorted(name for name in names if name.endswith(".prom") and not name.startswith("."))


def read_bounded(path: str, limit: int) -> tuple[float, str]:
    """Return a regular file's (mtime in Unix seconds, text). Raises: UnusableFile."""
    try:
        mtime, content = _read_regular(path, limit + 1)
    except OSError as error:
        what = error.strerror or str(error)
        if error.errno == errno.ELOOP:
            what = "is a symbolic link; put the file itself there"
        raise UnusableFile("unreadable", what) from None
    if len(content) > limit:
        raise UnusableFile("too_large", f"is larger than {limit} bytes", "max_file_bytes")
    try:
        return mtime, content.decode()
    except UnicodeDecodeError:
        raise UnusableFile("malformed", "is not UTF-8 text") from None


def _read_regular(path: str, size: int) -> tuple[float, bytes]:
    """Return a regular file's mtime and first bytes. Raises: OSError, UnusableFile."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableFile("unreadable", "is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return status.st_mtime, file.read(size)
    finally:
        os.close(descriptor)


def count_series(text: str) -> int:
    """Return how many lines of a file may be samples; far cheaper than parsing them."""
    lines = text.count("\n") + 1
    return lines - text.count("\n#") - text.startswith("#")


def parse(text: str, file: str) -> Iterator[Sample]:
    """Yield the samples of one file in text format 0.0.4. Raises: UnusableFile.

    Gauges, and counters that end in _total, keep their type; other counters keep their name. The series of
    histograms and summaries come out one by one, untyped.
    """
    try:
        families = list(parser.text_string_to_metric_families(text))
    except Exception as error:
        raise UnusableFile("malformed", f"is not Prometheus text: {error}") from error
    plain_counters = set(_COUNTER_TYPE.findall(text))
    for family in families:
        help_text = family.documentation or f"Read from {file}."
        metrics: dict[tuple[str, tuple[str, ...]], Metric] = {}
        for sample in family.samples:
            name, kind = _name_and_kind(family, sample, plain_counters)
            labels = tuple(sorted(sample.labels))
            metric = metrics.get((name, labels))
            if metric is None:
                metric = metrics[name, labels] = Metric(name, kind, help_text, labels)
                _refuse(metric, metric_complaint(metric))
            shown = metric.sample(sample.value, *(sample.labels[label] for label in labels))
            _refuse(metric, sample_complaint(shown))
            yield shown


def _cut(option: str) -> Trouble:
    """Return what is said of a limit that has left files out; each file has a line of its own."""
    return Trouble(
        f"files beyond {option}", "files are left out", f"raise [collectors.textfile] {option}", limit=option
    )


def _refuse(metric: Metric, complaint: str) -> None:
    """Raise UnusableFile if there is a complaint about a metric."""
    if complaint:
        raise UnusableFile("malformed", f"{metric.name!r} {complaint}")


def _name_and_kind(family: Family, sample: ParsedSample, plain_counters: set[str]) -> tuple[str, Kind]:
    """Return what a sample is served as. Raises: UnusableFile."""
    if sample.timestamp is not None:
        raise UnusableFile("timestamps", f"{sample.name} has a timestamp; samples get the time of the scrape")
    if family.type == "gauge":
        return sample.name, "gauge"
    if family.type != "counter":
        return sample.name, "unknown"
    if family.name in plain_counters:
        return family.name, "unknown"  # as the author named it; the parser appends _total
    return sample.name, "counter"
