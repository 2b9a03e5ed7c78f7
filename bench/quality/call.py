"""Runs FFmpeg to its end in a directory of its own, within a time limit, and counts the lines of its logs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from powerbench_agent.bench.load.child import Child

if TYPE_CHECKING:
    from collections.abc import Iterator

_TAG = re.compile(r"^(?:\[[^]]* @ 0x[0-9a-f]+\] )*\[(error|fatal|panic)\] ")


class NotScored(Exception):  # noqa: N818 - a verdict
    """There is no score; the text is one line that says why."""


@contextlib.contextmanager
def private_directory() -> Iterator[Path]:
    """Make a directory for FFmpeg's logs: with relative names, a filter's options need no escapes.

    Raises: NotScored.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="powerbench-")
    except OSError as error:
        raise NotScored(f"no temporary directory ({error}): name another in TMPDIR") from None
    with made as name:
        yield Path(name)


async def call(ffmpeg: str, arguments: list[str], directory: Path, patience: float) -> list[str]:
    """Return the last lines that FFmpeg printed, each with its level in brackets.

    It is killed when `patience` (seconds) is over, and when this is cancelled. Raises: NotScored.
    """
    quiet = ["-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info", "-y"]
    child = Child("score", [ffmpeg, *quiet, *arguments], directory=directory)
    try:
        await child.start()
        async with asyncio.timeout(patience):
            await child.wait()
    except TimeoutError:  # before OSError, of which it is one
        raise NotScored(f"it was not done within {patience:g} s") from None
    except OSError as error:
        raise NotScored(f"cannot run {ffmpeg}: {error.strerror}") from None
    finally:
        await child.kill()
    lines = list(child.lines)
    if child.exit_code != 0:
        raise NotScored(f"ffmpeg: {cause(lines) or child.last_words()}")
    return lines


def cause(lines: list[str]) -> str:
    """Return the first error among these lines, without its brackets; later ones are its consequences."""
    for line in lines:
        if tag := _TAG.match(line):
            return line[tag.end() :]
    return ""


def count_lines(log: Path, start: str) -> int:
    """Return how many lines of a log start like this. Raises: NotScored."""
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            return sum(line.startswith(start) for line in lines)
    except OSError as error:
        raise NotScored(f"ffmpeg did not write {log.name}: {error.strerror}") from None
