"""structlog, set up once: coloured for a person, plain for the journal, JSON for machines."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "json", "console")


def set_up(form: str, level: str, stream: TextIO | None = None) -> None:
    """Log to `stream` (standard error) from `level` up.

    `auto` is console for people and the journal, and JSON elsewhere.
    """
    out = stream or sys.stderr
    terminal = out.isatty()
    journal = "JOURNAL_STREAM" in os.environ
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json" or (form == "auto" and not terminal and not journal):
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        if journal and not terminal:
            processors[1] = (
                _priority  # the journal has its own time, and reads a priority from a line's start
            )
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=terminal and "NO_COLOR" not in os.environ,
                exception_formatter=structlog.dev.plain_traceback,
            )
        )
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(
        level=logging.WARNING, stream=out, format="%(levelname)s %(name)s %(message)s", force=True
    )


_PRIORITIES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>"}


def _priority(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    del logger
    event["event"] = f"{_PRIORITIES.get(method, '<6>')}{event['event']}"
    return event
