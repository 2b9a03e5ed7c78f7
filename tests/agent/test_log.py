"""Log lines for machines, people and the journal."""

from __future__ import annotations

import io
import json
import logging
import threading
from typing import TYPE_CHECKING

import pytest
import structlog

from powerbench_agent.agent import log

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what set_up() changed: it is for a process."""
    for name in ("JOURNAL_STREAM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def written(out: io.StringIO) -> str:
    """Return what has been logged."""
    log.drain()
    return out.getvalue()


def fail() -> None:
    raise ValueError("oops")


def test_json_is_one_object_a_line() -> None:
    """Each event is one line of JSON with its level, time and fields; a traceback is a field."""
    out = io.StringIO()
    log.set_up("json", "info", out)
    logger = structlog.get_logger()
    logger.info("first\nline", collector="rapl")
    try:
        fail()
    except ValueError:
        logger.exception("bug")
    first, second = map(json.loads, written(out).splitlines())
    assert (first["event"], first["level"], first["collector"]) == ("first\nline", "info", "rapl")
    assert first["timestamp"].endswith("Z")
    assert "ValueError: oops" in second["exception"]


def test_auto_is_json_without_a_terminal() -> None:
    """A pipe gets JSON."""
    out = io.StringIO()
    log.set_up("auto", "info", out)
    structlog.get_logger().info("hello")
    assert json.loads(written(out))["event"] == "hello"


def test_auto_is_readable_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets text, in colour unless NO_COLOR forbids it."""
    for no_color in (False, True):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        out = Terminal()
        log.set_up("auto", "info", out)
        structlog.get_logger().info("hello", a=1)
        assert "hello" in written(out)
        assert ("\x1b[" in written(out)) is not no_color


@pytest.mark.parametrize(
    ("method", "priority"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3), ("exception", 3)]
)
def test_a_journal_line_starts_with_its_priority(
    monkeypatch: pytest.MonkeyPatch, method: str, priority: int
) -> None:
    """Journald reads `<N>` at the very start of a line (sd-daemon(3)), and has a clock of its own."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:4242")
    out = io.StringIO()
    log.set_up("auto", "debug", out)
    getattr(structlog.get_logger(), method)("collector down", collector="rapl")
    (line,) = written(out).splitlines()[:1]
    assert line.startswith(f"<{priority}>")
    assert "collector down" in line
    assert "collector=rapl" in line
    assert "Z" not in line, "no time of its own"


def test_json_in_the_journal_stays_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for JSON gets JSON, the journal or not."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:4242")
    out = io.StringIO()
    log.set_up("json", "info", out)
    structlog.get_logger().info("hello")
    assert json.loads(written(out))["event"] == "hello"


@pytest.mark.parametrize("level", log.LEVELS)
def test_what_is_below_the_level_is_not_said(level: str) -> None:
    """--log-level is a threshold."""
    out = io.StringIO()
    log.set_up("json", level, out)
    for each in log.LEVELS:
        getattr(structlog.get_logger(), each)("x")
    said = [json.loads(line)["level"] for line in written(out).splitlines()]
    assert said == list(log.LEVELS[log.LEVELS.index(level) :])


def test_a_librarys_warning_is_said_and_its_chatter_is_not() -> None:
    """The standard library's loggers arrive on the same stream, from warning up."""
    out = io.StringIO()
    log.set_up("console", "debug", out)
    logging.getLogger("aiohttp.server").info("chatter")
    logging.getLogger("aiohttp.server").warning("trouble")
    assert "trouble" in written(out)
    assert "chatter" not in written(out)


def test_text_that_is_no_text_can_be_logged() -> None:
    """A lone surrogate out of a file name or a header breaks no line."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    for form in ("json", "console"):
        log.set_up(form, "info", out)
        structlog.get_logger().info("file left out", file="\udcff.prom")
    log.drain()
    assert out.buffer.getvalue().count(b"udcff") == 2  # type: ignore[attr-defined]


# -- nothing waits for the log, and nobody else writes it ---------------------------------------------


class Stalled(io.StringIO):
    """A pipe that nobody reads, until `read` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.read = threading.Event()

    def write(self, text: str) -> int:
        self.read.wait(20)
        return super().write(text)


def test_logging_never_waits_and_says_what_it_lost() -> None:
    """A stalled reader costs lines past a thousand; how many is logged when it reads on."""
    out = Stalled()
    log.set_up("json", "info", out)
    for number in range(3000):
        structlog.get_logger().info("hello", number=number)
    out.read.set()
    written(out)  # the last of the thousand; the loss is logged after it
    lines = [json.loads(line) for line in written(out).splitlines()]
    numbers = [line["number"] for line in lines if line["event"] == "hello"]
    (said,) = [line for line in lines if line["event"] != "hello"]
    assert numbers == list(range(len(numbers)))
    assert 1000 <= len(numbers) <= 1001, "one may be with the writer"
    assert said["lines"] == 3000 - len(numbers)
    assert said["level"] == "warning"


def test_a_full_disk_costs_lines_and_no_more() -> None:
    """What cannot be written is lost and counted."""

    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    out = Full()
    log.set_up("json", "info", out)
    for _ in range(5):
        structlog.get_logger().info("hello")
    written(out)
    out.full = False
    structlog.get_logger().info("again")
    written(out)
    first, second = [json.loads(line) for line in written(out).splitlines()]
    assert (first["event"], second["lines"]) == ("again", 5)


@pytest.mark.parametrize("stream", ["none", "closed"])
def test_without_standard_error_there_is_no_log(monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    """A process that was started without the stream, or whose stream was closed, goes on."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", {"none": None, "closed": closed}[stream])
    log.set_up("auto", "info")
    structlog.get_logger().info("hello")
    log.drain()


HOSTILE = [
    "\n<3>forged",
    "\r",
    "\x1b[2J",
    "\u2028forged",
    "\x00",
    "\x9b2J",
    "a b\nforged",
    "\udcff",
    "\u202e",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("form", ["json", "console"])
def test_nobody_can_forge_a_line(form: str, text: str) -> None:
    """An event, a field, a list and an exception that hold control characters are printable lines."""
    out = io.StringIO()
    log.set_up(form, "info", out)
    logger = structlog.get_logger()
    event = f"event{text}"
    logger.info(event, field=text, items=[text])
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("bug")
    shown = written(out).split("\n")
    assert all(line.isprintable() for line in shown)
    starts = [line for line in shown if line and not line.startswith(("  ", "2", "{"))]
    assert starts == [], "every line is an entry, or an indented part of a traceback"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_line_is_bounded(form: str) -> None:
    """However much others send, a line of the log is a few kilobytes, a traceback a few pages."""
    out = io.StringIO()
    log.set_up(form, "info", out)
    logger = structlog.get_logger()
    logger.info("x" * 1_000_000, field="x" * 1_000_000, other=b"x" * 1_000_000)
    assert len(written(out)) < 10_000
    try:
        raise ValueError("x" * 1_000_000)
    except ValueError as error:
        logger.exception("bug", items=["x" * 100_000] * 3, error=error, number=7)
    text = written(out)
    assert len(text) < 50_000
    assert "Traceback" in text
    assert "7" in text
