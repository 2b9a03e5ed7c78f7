"""What `powerbench measure` tells a person: a table of plain text, 80 columns wide, and sentences. Pure."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from powerbench_agent.bench.load.redact import describe_command
from powerbench_agent.bench.measure.costs import energy_figures, frame_figures, mean
from powerbench_agent.bench.warnings import kind_of_warning
from powerbench_agent.core.terminal import align, printable, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from powerbench_agent.bench.measure.costs import CommandRun, Figure, Measured

WIDTH = 80
A_SHARE = "attributed by CPU time and GPU use, not measured"

_SOURCE_WIDTH = 17
# The cells of a row: label, J, ±, W, ±, source. One run has no ±.
_REPEATED, _SINGLE = (0, 1, 2, 3, 4, 5), (0, 1, 3, 5)
_BLANK = ("",) * 6


def report(measured: Measured) -> str:
    """Return the report."""
    command = printable(describe_command(measured.command))
    lines = [shorten(f"Energy of: {command}", WIDTH)]
    figures = list(energy_figures(measured))
    if figures:
        lines += ["", *_table(measured, figures), "", *_elapsed(measured.counted)]
    sentences = [_sentence(hint) for hint in hints(measured)]
    if sentences:
        lines.append("")
    for sentence in sentences:
        lines += textwrap.wrap(sentence, WIDTH, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


# -- the table ---------------------------------------------------------------------------------------


def _table(measured: Measured, figures: Sequence[Figure]) -> list[str]:
    """Return joules and watts and, if there are frames, joules per frame in the same columns."""
    rows: list[Sequence[str]] = [("", "J", "±", "W", "±", "source")]
    digits = _digits(figures)
    for figure in figures:
        is_repetition = figure.key == "total" and figure.joules == figures[0].joules  # of a single part
        if not is_repetition:
            rows.append(_row(figure, digits))
    per_frame = list(frame_figures(measured))
    if per_frame:
        rows += [_BLANK, ("", "J/frame", "±", "", "", "")]
        rows += [_row(figure, 4) for figure in per_frame]
    is_repeated = len(measured.counted) > 1
    shown = _REPEATED if is_repeated else _SINGLE
    numbers = range(1, len(shown) - 1)
    return align([[row[place] for place in shown] for row in rows], right=numbers)


def _digits(figures: Sequence[Figure]) -> int:
    """Return how many decimals joules get."""
    largest = max(abs(joules) for figure in figures for joules in figure.joules)
    if largest < 100:
        return 3
    return 2 if largest < 100_000 else 0


def _row(figure: Figure, digits: int) -> Sequence[str]:
    sign = "+" if figure.key == "beyond_idle" else ""
    joules = _cells(figure.joules, digits, sign)
    watts = _cells(figure.watts, 2, sign)
    source = figure.source
    if len(source) > _SOURCE_WIDTH:
        source = source.replace(" ", "")
    return (figure.label, *joules, *watts, source)


def _cells(values: Sequence[float], digits: int, sign: str = "") -> tuple[str, str]:
    """Return a mean and its ±, each empty if there is none."""
    if not values:
        return "", ""
    found = mean(values)
    half = "" if found.half_width is None else f"{found.half_width:.{digits}f}"
    return f"{found.mean:{sign}.{digits}f}", half


# -- sentences ---------------------------------------------------------------------------------------


def _elapsed(runs: Sequence[CommandRun]) -> Iterator[str]:
    """Yield how long it took, its part of the CPUs, what it encoded."""
    yield f"{_spread([run.used.seconds for run in runs], 3)} s elapsed"
    cpu = f"{_spread([run.used.cpu_seconds for run in runs], 3)} s of CPU time"
    percents = [100 * run.used.cpu_seconds / run.capacity_seconds for run in runs if run.capacity_seconds]
    if percents:
        cpu += f", {mean(percents).mean:.1f} % of the machine's CPU capacity"
    yield cpu
    encoded = [(run.used.frames, run.used.seconds) for run in runs if run.used.frames]
    if encoded:
        frames = mean([count for count, _ in encoded]).mean
        rates = [count / seconds for count, seconds in encoded]
        yield f"{frames:.0f} frames, {_spread(rates, 1)} per second"


def _spread(values: Sequence[float], digits: int) -> str:
    figure, half = _cells(values, digits)
    return f"{figure} ± {half}" if half else figure


def _sentence(hint: str) -> str:
    stop = "" if hint.endswith(".") else "."
    return printable(f"{hint[0].upper()}{hint[1:]}{stop}")


def hints(measured: Measured) -> Iterator[str]:
    """Yield what a reader should know beside the figures, with what to do if something can be done."""
    yield from _faults(measured.runs)
    counted = measured.counted
    if counted and len(counted) < len(measured.runs) and counted[0].good:
        runs = "run" if len(counted) == 1 else "runs"
        yield f"the figures are based on the {len(counted)} {runs} that succeeded"
    if len(counted) > 1:
        idle = "; the idle window was measured once" if measured.idle is not None else ""
        yield f"± is the 95 % confidence interval of the mean over {len(counted)} runs{idle}"
    yield from _warnings(counted)
    shares = [run.share for run in counted if run.share is not None]
    if any(share.parts for share in shares):
        yield f"the command's share is {A_SHARE}"
    missing = [what for share in shares for what in share.missing]
    for what in dict.fromkeys(missing):
        yield f"not in the share: {what}"
    yield from measured.notes


def _faults(runs: Sequence[CommandRun]) -> Iterator[str]:
    """Yield what went wrong in each run."""
    count = len(runs)
    for number, run in enumerate(runs, 1):
        which = f"run {number} of {count}: " if count > 1 else ""
        if run.used.signal:
            yield f"{which}the command was killed by {run.used.signal}"
        elif run.used.code:
            yield f"{which}the command failed with exit code {run.used.code}"
        for problem in run.problems:
            yield f"{which}{problem}"


def _warnings(runs: Sequence[CommandRun]) -> Iterator[str]:
    """Yield the warnings; those that differ in their figures alone become one."""
    alike: dict[str, list[str]] = {}
    for run in runs:
        for text in run.warnings:
            alike.setdefault(kind_of_warning(text), []).append(text)
    for texts in alike.values():
        others = f" (in {len(texts)} runs, with different figures)" if len(set(texts)) > 1 else ""
        yield f"{texts[0]}{others}"
