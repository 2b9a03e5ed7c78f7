"""Logging, set up once: coloured for people, plain for the journal, JSON for machines."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any, TextIO, cast

import structlog

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "json", "console")


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


def set_up(form: str, level: str, stream: TextIO | None = None) -> None:
    """Log to `stream` (default: standard error), from `level` up.

    `auto` is `console` on a terminal and for the journal, and `json` elsewhere.
    """
    out = Unbreakable(stream or sys.stderr)
    terminal = out.isatty()
    journal = "JOURNAL_STREAM" in os.environ
    processors: list[Any] = [structlog.processors.add_log_level]
    if form == "json" or (form == "auto" and not terminal and not journal):
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        if not journal:  # the journal adds the time itself
            processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
        colors = terminal and "NO_COLOR" not in os.environ
        plain = structlog.dev.plain_traceback
        processors.append(structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain))
        if journal and not terminal:
            processors.append(_with_priority)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", out)),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Handler()], force=True)


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
