"""Log lines for machines, people and the journal."""

from __future__ import annotations

import io
import json
import logging
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
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["event"], first["level"], first["collector"]) == ("first\nline", "info", "rapl")
    assert first["timestamp"].endswith("Z")
    assert "ValueError: oops" in second["exception"]


def test_auto_is_json_without_a_terminal() -> None:
    """A pipe gets JSON."""
    out = io.StringIO()
    log.set_up("auto", "info", out)
    structlog.get_logger().info("hello")
    assert json.loads(out.getvalue())["event"] == "hello"


def test_auto_is_readable_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets text, in colour unless NO_COLOR forbids it."""
    for no_color in (False, True):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        out = Terminal()
        log.set_up("auto", "info", out)
        structlog.get_logger().info("hello", a=1)
        assert "hello" in out.getvalue()
        assert ("\x1b[" in out.getvalue()) is not no_color


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
    (line,) = out.getvalue().splitlines()[:1]
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
    assert json.loads(out.getvalue())["event"] == "hello"


@pytest.mark.parametrize("level", log.LEVELS)
def test_what_is_below_the_level_is_not_said(level: str) -> None:
    """--log-level is a threshold."""
    out = io.StringIO()
    log.set_up("json", level, out)
    for each in log.LEVELS:
        getattr(structlog.get_logger(), each)("x")
    said = [json.loads(line)["level"] for line in out.getvalue().splitlines()]
    assert said == list(log.LEVELS[log.LEVELS.index(level) :])


def test_a_librarys_warning_is_said_and_its_chatter_is_not() -> None:
    """The standard library's loggers arrive on the same stream, from warning up."""
    out = io.StringIO()
    log.set_up("console", "debug", out)
    logging.getLogger("aiohttp.server").info("chatter")
    logging.getLogger("aiohttp.server").warning("trouble")
    assert "trouble" in out.getvalue()
    assert "chatter" not in out.getvalue()


def test_text_that_is_no_text_can_be_logged() -> None:
    """A lone surrogate out of a file name or a header breaks no line."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    for form in ("json", "console"):
        log.set_up(form, "info", out)
        structlog.get_logger().info("file left out", file="\udcff.prom")
    out.flush()
    assert out.buffer.getvalue().count(b"udcff") == 2  # type: ignore[attr-defined]
