"""Metrics that other programs leave as `*.prom` files in a directory: cron jobs, wall meters, inventories.

Reads `DIRECTORY/*.prom` in the Prometheus text format, as node_exporter's textfile collector does. A file
that cannot be used is counted and left out; the others stay. Privileges: reading the directory.

Files are written by others: each is bounded, links that lead out of the directory are not followed, and a
family that the agent serves itself stays the agent's (see exposition).

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

from powerbench_agent.core.model import Absent, Metric, Reading, Sample
from powerbench_agent.core.options import CollectorOptions, Seconds
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
REASONS = ("malformed", "timestamps", "too_large", "too_many", "unreadable")


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.textfile]`; without a directory there is no such source."""

    interval: Seconds = Seconds(10.0)
    directory: str = ""
    max_files: int = 100
    max_file_bytes: int = 1_048_576

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        for key in ("max_files", "max_file_bytes"):
            if getattr(self, key) < 1:
                yield key, "must be at least 1"


class Unusable(Exception):  # noqa: N818 - a verdict on a file
    """A file that is left out; `reason` is what it is counted under."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class Textfile:
    """One directory."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._worker = Worker("textfile")
        self._skipped = dict.fromkeys(REASONS, 0)
        self._complained: dict[str, str] = {}

    async def read(self) -> Reading:
        """Return the samples of every usable file. Raises: Absent where the directory has gone."""
        return await self._worker.call(self._read)

    async def aclose(self) -> None:
        """Let the thread go."""
        self._worker.close()

    def _read(self) -> Reading:
        options = self._options
        names = list_files(options.directory)
        samples: list[Sample] = []
        for number, name in enumerate(names):
            path = os.path.join(options.directory, name)  # noqa: PTH118 - a plain join, per file per beat
            try:
                if number >= options.max_files:
                    raise Unusable("too_many", f"more than {options.max_files} files")
                mtime, text = read_bounded(path, options.max_file_bytes)
                found = list(parse(text, name))
            except Unusable as unusable:
                self._skip(name, unusable)
                continue
            self._complained.pop(name, None)
            samples.append(MTIME.sample(mtime, name.encode("utf-8", "replace").decode()))
            samples.extend(found)
        self._complained = {name: why for name, why in self._complained.items() if name in names}
        samples.extend(SKIPPED.sample(count, reason) for reason, count in self._skipped.items())
        return Reading(samples)

    def _skip(self, name: str, unusable: Unusable) -> None:
        self._skipped[unusable.reason] += 1
        if self._complained.get(name) != str(unusable):
            self._complained[name] = str(unusable)
            log.warning("file left out", file=name, reason=unusable.reason, error=str(unusable))


async def open_collector(options: Options, host: Host) -> Textfile:
    """Return the collector. Raises: Absent without a directory."""
    del host
    if not options.directory:
        raise Absent("no [collectors.textfile] directory is set")
    return Textfile(options)  # which looks for itself: a directory on a dead mount would hang here, too


def list_files(directory: str) -> list[str]:
    """Return the names of the directory's *.prom files, sorted. Raises: Absent."""
    try:
        return sorted(
            name
            for name in os.listdir(directory)  # noqa: PTH208 - names are all that is wanted
            if name.endswith(".prom") and not name.startswith(".")
        )
    except OSError as error:
        raise Absent(f"cannot list {directory}: {error.strerror}") from None


def read_bounded(path: str, limit: int) -> tuple[float, str]:
    """Return a regular file's (mtime in Unix seconds, text). Raises: Unusable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Unusable("unreadable", "is no regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        what = (
            "is a symbolic link; put the file itself there" if error.errno == errno.ELOOP else error.strerror
        )
        raise Unusable("unreadable", what or str(error)) from None
    if len(content) > limit:
        raise Unusable("too_large", f"is larger than {limit} bytes")
    try:
        return status.st_mtime, content.decode()
    except UnicodeDecodeError:
        raise Unusable("malformed", "is no UTF-8 text") from None


def parse(text: str, file: str) -> Iterator[Sample]:
    """Yield the samples of one file in text format 0.0.4. Raises: Unusable.

    Gauges, and counters that end in _total, keep their type; other counters keep their name. A histogram's or
    summary's series come out one by one, untyped.
    """
    try:
        families = list(parser.text_string_to_metric_families(text))
    except Exception as error:
        raise Unusable("malformed", f"is no Prometheus text: {error}") from error
    plain_counters = set(_COUNTER_TYPE.findall(text))
    for family in families:
        text_of_help = family.documentation or f"Read from {file}."
        metrics: dict[tuple[str, tuple[str, ...]], Metric] = {}
        for sample in family.samples:
            if sample.timestamp is not None:
                raise Unusable(
                    "timestamps", f"{sample.name} has a timestamp; the agent says when it was read"
                )
            labels = tuple(sorted(sample.labels))
            name = sample.name
            kind: Kind = "gauge" if family.type == "gauge" else "unknown"
            if family.type == "counter" and family.name in plain_counters:
                name = family.name  # the parser adds _total, and the file's author did not
            elif family.type == "counter":
                kind = "counter"
                if sample.value < 0:
                    raise Unusable("malformed", f"{name} is a counter and negative")
            if (metric := metrics.get((name, labels))) is None:
                metric = metrics[name, labels] = Metric(name, kind, text_of_help, labels)
            yield metric.sample(sample.value, *(sample.labels[label] for label in labels))
