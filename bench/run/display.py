"""Shows a run's progress: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

_PLAIN_EVERY = 10.0  # seconds between lines of one phase


class PhaseDisplay(Protocol):
    """Shows phases; `news` is a short line of live figures."""

    def say(self, text: str) -> None:
        """Print a line that stays."""

    def begin(self, title: str, total: float, unit: str = "s") -> None:
        """Begin a phase of so many seconds, or so much else; `unit` is "" if the end is not known."""

    def update(self, elapsed: float, news: str) -> None:
        """Show how far the phase has come."""

    def end(self) -> None:
        """End the phase."""


class LiveDisplay:
    """A bar for each phase."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415 - heavy

        self._console = console
        columns = (
            TextColumn("{task.description:28.28}", markup=False),
            BarColumn(bar_width=24),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[news]}", style="cyan", markup=False),
        )
        self._progress = Progress(*columns, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, highlight=False, markup=False)

    def begin(self, title: str, total: float, unit: str = "s") -> None:
        """Add a bar; it moves to and fro if the end is not known."""
        self._task = self._progress.add_task(title, total=total if unit else None, news="")

    def update(self, elapsed: float, news: str) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=elapsed, news=news)

    def end(self) -> None:
        """Fill the bar."""
        task = self._progress.tasks[self._task]
        total = task.total if task.total is not None else 1.0
        self._progress.update(self._task, completed=total, total=total)


class PlainDisplay:
    """A line when a phase begins, every ten seconds, and when it ends; none without `progress`."""

    def __init__(self, console: Console, *, progress: bool) -> None:
        self._console = console
        self._show = progress
        self._title = self._news = self._unit = ""
        self._total = self._last_line = 0.0

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, title: str, total: float, unit: str = "s") -> None:
        """Print that it begins."""
        self._title, self._total, self._unit, self._news = title, total, unit, ""
        self._last_line = time.monotonic()
        if self._show:
            self.say(f"{title}: {total:g} {unit}" if unit else f"{title}: to its end")

    def update(self, elapsed: float, news: str) -> None:
        """Print how far it has come, now and then."""
        self._news = news
        now = time.monotonic()
        is_due = now - self._last_line >= _PLAIN_EVERY and elapsed < self._total
        if self._show and is_due:
            self._last_line = now
            of = f"{elapsed:.0f} of {self._total:g} {self._unit}" if self._unit else "still encoding"
            line = f"{self._title}: {of}"
            self.say(f"{line}, {news}" if news else line)

    def end(self) -> None:
        """Print the last figures."""
        if self._show and self._news:
            self.say(f"{self._title}: done, {self._news}")
