"""The table at a run's end: the baseline beside the test, and where the joules come from."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from powerbench_agent.bench.plan import frame_rate
from powerbench_agent.bench.plan.scenario import format_resolution
from powerbench_agent.bench.warnings import SPEED_SPAN
from powerbench_agent.core.results import Encode, per_unit
from powerbench_agent.core.scores import Scores, mean_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import Console

    from powerbench_agent.bench.run.figures import RenditionFigures
    from powerbench_agent.bench.run.outcome import Outcome
    from powerbench_agent.core.results import Difference, Energy, Origin

_NAME_WIDTH = 14
_FIGURE_WIDTH = 8  # of "estimate", and of any figure
_ENOUGH_REPEATS, _ENOUGH_SECONDS = 5, 60.0  # for conclusions


def doubt(repeats: int, seconds: float) -> str:
    """Return what so many windows of a test, of so many seconds, do not allow; "" where they are enough."""
    if repeats >= _ENOUGH_REPEATS:
        return ""
    if repeats > 1:
        return f"{repeats} repeats are few: give --repeat {_ENOUGH_REPEATS} or more before you conclude."
    if seconds >= _ENOUGH_SECONDS:
        return "One run is an illustration, not a result: repeat it before you conclude."
    return (
        "One short run is an illustration, not a result: repeat it, with longer windows, before you conclude."
    )


class Row(NamedTuple):
    """One line of the table."""

    what: str
    unit: str
    baseline: str
    test: str


def energy_rows(test: Energy, idle: Energy | None) -> Iterator[Row]:
    """Yield what both windows drew. Every line of energy says where the joules come from."""

    def row(what: str, unit: str, pick: Callable[[Energy], str]) -> Row:
        return Row(what, unit, pick(idle) if idle else "", pick(test))

    yield row("joules come from", "", lambda energy: energy.graded_source)
    yield row("window", "s", lambda energy: f"{energy.seconds:.2f}")
    for part in test.parts if len(test.parts) > 1 else ():
        pick = partial(_watts_of, part.origin)
        yield row(f"mean power, {part.component}", f"W ({part.source})", pick)
    yield row("mean power", f"W ({test.source})", lambda energy: f"{energy.watts:.3f}")
    yield row("energy", f"Wh ({test.source})", lambda energy: f"{energy.watt_hours:.5f}")


def _watts_of(origin: Origin, energy: Energy) -> str:
    """Return the mean power of one component by one source; "" if it was not measured."""
    return " ".join(f"{part.watts:.3f}" for part in energy.parts if part.origin == origin)


def stream_rows(
    test: Energy, encode: Encode, versus: Difference | None, asked_kbps: float | None
) -> Iterator[Row]:
    """Yield what the stream cost, and how it went."""
    if versus is not None:
        yield _cost(test, "Δ power", "W", f"{versus.watts:+.3f}")
        yield _cost(test, "Δ energy, same window", "Wh", f"{versus.watt_hours:+.5f}")
        if versus.percent is not None:
            yield _cost(test, "increase", "%", f"{versus.percent:+.1f}")
    yield from _unit_rows(test, encode, versus)
    span = f"{SPEED_SPAN:g} s" if encode.seconds >= SPEED_SPAN else "the window"
    bitrate = f"bitrate, {asked_kbps:.0f} asked" if asked_kbps else "bitrate"
    for what, unit, figure, form in (
        (bitrate, "kbps", encode.kbps, ".0f"),
        ("frames a second", "fps", encode.fps, ".2f"),
        ("speed", "x", encode.speed if encode.whole else None, ".3f"),
        (f"smallest speed over {span}", "x", encode.min_speed, ".3f"),
        ("frames dropped", "", encode.dropped, "d"),
    ):
        if figure is not None:
            yield Row(what, unit, "", format(figure, form))


def _cost(test: Energy, what: str, unit: str, figure: str) -> Row:
    return Row(what, f"{unit} ({test.source})", "", figure)


def _unit_rows(test: Energy, encode: Encode, versus: Difference | None) -> Iterator[Row]:
    """Yield what each delivered unit cost, of all that the host drew; frames and bits beyond idle as well."""
    for what, unit, amount, form, has_beyond in (
        ("frame", "J/frame", encode.frames, ".4f", True),
        ("Mbit", "J/Mbit", encode.megabits, ".4f", True),
        ("megapixel", "J/Mpixel", encode.megapixels, ".4f", False),
        ("minute of content", "J/min", encode.content_minutes, ".2f", False),
    ):
        if (all_of_it := per_unit(test.watts, amount, encode.seconds)) is not None:
            of = f"per {what}, all of the host" if has_beyond else f"per {what}"
            yield _cost(test, of, unit, format(all_of_it, form))
        beyond = per_unit(versus.watts, amount, encode.seconds) if versus and has_beyond else None
        if beyond is not None:
            yield _cost(test, f"per {what}, beyond idle", unit, format(beyond, f"+{form}"))


def rendition_rows(renditions: Sequence[RenditionFigures]) -> Iterator[Row]:
    """Yield what each rendition of a ladder wrote."""
    several = len({one.stream for one in renditions}) > 1
    for one in renditions:
        of = f"{one.stream} {one.rendition}" if several else one.rendition
        figure = "-" if one.kbps is None else f"{one.kbps:.0f}"
        yield Row(f"bitrate, {of}", f"kbps ({one.bytes_of})", "", figure)


def quality_rows(quality: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the scores, or why there are none."""
    streams = quality.get("streams", ())
    for stream in streams:
        of = f", {stream.get('rendition') or stream['name']}" if len(streams) > 1 else ""
        scores = msgspec.convert(stream, Scores)
        units = {"vmaf": scores.vmaf_model or "", "xpsnr": "dB", "psnr": "dB", "ssim": ""}
        for measure, unit in units.items():
            figure = scores.figures.get(measure)
            if figure is not None:
                yield Row(f"{measure.upper()}{of}", unit, "", f"{figure:.{4 if measure == 'ssim' else 2}f}")
            elif getattr(scores, measure) is not None:
                yield Row(f"{measure.upper()}{of}", unit, "", "identical")
            elif why := scores.missing.get(measure):
                yield Row(f"{measure.upper()}{of}", why, "", "-")
    for name, why in quality.get("missing", {}).items():
        yield Row("picture scores", f"{name}: {why}", "", "-")


def show_all(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Print a line a scenario, in the order that they were measured; joules a megapixel if they are known."""
    from rich import box  # noqa: PLC0415 - heavy
    from rich.table import Table  # noqa: PLC0415 - heavy
    from rich.text import Text  # noqa: PLC0415 - heavy

    terminal = console.is_terminal
    sources = sorted({outcome.energy.graded_source for outcome in outcomes if outcome.energy})
    title = f"joules come from {', '.join(sources)}"
    table = Table(
        title=Text(title) if terminal else None, box=box.ROUNDED if terminal else None, pad_edge=terminal
    )
    if not terminal:
        console.print(title, highlight=False, markup=False)
    table.add_column("scenario", overflow="fold")
    scored = any(_vmaf(outcome) for outcome in outcomes)
    pixels = any(outcome.encode and outcome.encode.megapixels for outcome in outcomes)
    units = ("J/frame", *(["J/Mpixel"] if pixels else ()))
    for heading in ("streams", "W", "Δ W", *units, "kbps", "speed", *(["VMAF"] if scored else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for outcome in outcomes:
        energy, encode, versus = outcome.energy, outcome.encode, outcome.versus
        if energy is None or encode is None:
            continue
        amounts = (encode.frames, *([encode.megapixels] if pixels else ()))
        costs = [per_unit(energy.watts, amount, encode.seconds) for amount in amounts]
        table.add_row(
            Text(outcome.scenario.name + ("" if outcome.status == "ok" else f" ({outcome.status})")),
            str(len(outcome.scenario.streams)),
            f"{energy.watts:.2f}",
            f"{versus.watts:+.2f}" if versus else "",
            *("" if cost is None else f"{cost:.4f}" for cost in costs),
            "" if encode.kbps is None else f"{encode.kbps:.0f}",
            _speed(encode),
            *([_vmaf(outcome)] if scored else ()),
        )
    console.print(table)


def _vmaf(outcome: Outcome) -> str:
    """Return the mean VMAF of a scenario's streams, of each rendition of ladders; "" without any."""
    quality = outcome.quality
    scores = mean_scores(Encode(0.0, quality=dict(quality)).scores) if quality else []
    return " / ".join(f"{one.figures['vmaf']:.2f}" for one in scores if "vmaf" in one.figures)


def _speed(encode: Encode) -> str:
    """Return the mean speed, and the smallest; only one of them if the other is not known."""
    if encode.speed is None:
        return "" if encode.min_speed is None else f"{encode.min_speed:.3f}"
    least = "" if encode.min_speed is None else f" (min {encode.min_speed:.3f})"
    return f"{encode.speed:.3f}{least}"


def show(console: Console, outcome: Outcome) -> None:
    """Print a stream's table: boxed and coloured in a terminal, aligned plain columns elsewhere."""
    from rich import box  # noqa: PLC0415 - heavy
    from rich.table import Table  # noqa: PLC0415 - heavy
    from rich.text import Text  # noqa: PLC0415 - heavy

    scenario, energy, encode, idle = outcome.scenario, outcome.energy, outcome.encode, outcome.idle
    if energy is None or encode is None:
        return
    lines = [*energy_rows(energy, idle), *stream_rows(energy, encode, outcome.versus, scenario.asked_kbps)]
    lines += [*rendition_rows(outcome.renditions), *quality_rows(outcome.quality or {})]
    settings = [
        scenario.encoder,
        scenario.preset,
        "" if scenario.rate.kind in ("cbr", "copy") else str(scenario.rate),
    ]
    size = format_resolution(scenario)
    title = (
        f"{'' if outcome.status == 'ok' else outcome.status.upper() + ', '}{scenario.name}: "
        f"{size} at {frame_rate.full(scenario.fps)} fps, {' '.join(filter(None, settings))}"
    )
    terminal = console.is_terminal
    table = Table(
        title=Text(title) if terminal else None, box=box.ROUNDED if terminal else None, pad_edge=terminal
    )
    if not terminal:
        console.print(title, highlight=False, markup=False)
    # Figures are never cut: in a narrow terminal the unit wraps, and a long name is shortened.
    name = scenario.name if len(scenario.name) <= _NAME_WIDTH else f"{scenario.name[: _NAME_WIDTH - 1]}…"
    table.add_column("", style="bold" if terminal else "", no_wrap=True)
    if idle is not None:
        table.add_column("baseline", justify="right", no_wrap=True, min_width=_FIGURE_WIDTH)
    style = "green" if terminal else ""
    table.add_column(Text(name), justify="right", style=style, no_wrap=True, min_width=_FIGURE_WIDTH)
    table.add_column("unit", style="dim" if terminal else "")
    for line in lines:
        cells = [line.what, *([line.baseline] if idle is not None else []), line.test, line.unit]
        table.add_row(*map(Text, cells))  # as text: a remedy has brackets of its own
    console.print(table)
