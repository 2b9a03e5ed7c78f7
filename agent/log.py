"""Logging, set up once: coloured for people, plain for the journal, JSON for machines."""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

from powerbench_agent.agent.log_writer import Writer, standard_error

if TYPE_CHECKING:
    from collections.abc import MutableMapping

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "json", "console")


_MAX_TEXT = 2000  # characters of one field
_MAX_TRACEBACK = 20_000
_MAX_ITEMS = 100  # of a list


class Unbreakable:
    """A text stream whose writes never fail: if the disk is full or the reader has gone, lines are lost."""

    def __init__(self, stream: TextIO | None) -> None:
        """`stream`: None if the process was started without one."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write as much as possible."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Do nothing: every write is flushed."""

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_writer = Writer(None)


def drain() -> None:
    """Wait shortly for what has been logged to be written."""
    _writer.drain()


atexit.register(drain)


def set_up(form: str, level: str, stream: TextIO | None = None) -> None:
    """Log to `stream` (default: standard error), from `level` up.

    `auto` is `console` on a terminal and for the journal, and `json` elsewhere.
    """
    global _writer  # noqa: PLW0603 - the log is the process's, as structlog's configuration is
    _writer.close()
    out = stream or standard_error()
    _writer = Writer(out)
    terminal = Unbreakable(out).isatty()
    journal = "JOURNAL_STREAM" in os.environ
    processors: list[Any] = [structlog.processors.add_log_level]
    if form == "json" or (form == "auto" and not terminal and not journal):
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _bounded,
            structlog.processors.JSONRenderer(),
        ]
    else:
        if not journal:  # the journal adds the time itself
            processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
        colors = terminal and "NO_COLOR" not in os.environ
        renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_indented_traceback)
        processors += [_bounded, _escaped, renderer]
        if journal and not terminal:
            processors.append(_with_priority)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _writer)),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Handler()], force=True)


def _bounded(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut what is long: a line may quote what others sent."""
    del logger, method
    for key, value in event.items():
        if key != "exc_info":
            event[key] = _cut(value, _MAX_TRACEBACK if key == "exception" else _MAX_TEXT)
    return event


def _cut(value: Any, longest: int = _MAX_TEXT) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple):
        return [_cut(item) for item in value[:_MAX_ITEMS]]
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


_QUOTED = frozenset(" \t\r\n=\"'")  # a value with one of these is quoted, and so escaped, by ConsoleRenderer


def _escaped(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters, so that nobody can forge a line or send codes to a terminal."""
    del logger, method
    for key, value in event.items():
        if isinstance(value, str) and (key == "event" or _QUOTED.isdisjoint(value)):
            event[key] = _escape(value)
    return event


def _escape(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def _indented_traceback(out: TextIO, exc_info: Any) -> None:
    """Write a traceback whose lines cannot be taken for lines of the log, whatever the exception says."""
    formatted = io.StringIO()
    structlog.dev.plain_traceback(formatted, exc_info)
    out.writelines(
        f"\n  {_escape(line)}" for line in _cut(formatted.getvalue(), _MAX_TRACEBACK).strip().splitlines()
    )


# Prefixes that the journal reads as a line's priority: sd-daemon(3).
_PRIORITIES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>"}


def _with_priority(logger: Any, method: str, line: str) -> str:
    del logger
    return f"{_PRIORITIES.get(method, '<6>')}{line}"


class _Handler(logging.Handler):
    """Passes what libraries log on to structlog, so that the log has one format."""

    def emit(self, record: logging.LogRecord) -> None:
        level = max(logging.DEBUG, min(record.levelno, logging.ERROR))
        structlog.get_logger().log(level, record.getMessage(), logger=record.name, exc_info=record.exc_info)
