"""The table that people read."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from msgspec import structs
from rich.console import Console

from powerbench_agent.bench.plan.scenario import Resolution, Scenario
from powerbench_agent.bench.run.outcome import Outcome
from powerbench_agent.bench.run.table import doubt, show, show_all
from powerbench_agent.core.results import Difference, Encode, Energy, Part
from powerbench_agent.core.scores import Pooled, Psnr, Scores, Ssim

SCENARIO = Scenario(
    name="demo",
    type="single",
    duration=20,
    video_kbps=2000,
    resolution=Resolution(1280, 720),
    fps=30,
    encoder="h264",
    preset="veryfast",
)
IDLE = Energy.of_parts((Part("cpu", "estimate", 10.0, 1.0),), 10.0)
TEST = Energy.of_parts((Part("cpu", "estimate", 60.0, 3.0),), 20.0)
ENCODE = Encode(20.0, 600.0, 40.0, 20.0, 0.99, 0, 0)
VERSUS = Difference(2.0, 2.0 * 20 / 3600, 200.0)
OUTCOME = Outcome(SCENARIO, "ok", energy=TEST, encode=ENCODE, versus=VERSUS, idle=IDLE)


@pytest.mark.parametrize(
    ("repeats", "seconds", "words"),
    [
        (1, 20, "One short run is an illustration"),
        (1, 120, "One run is an illustration"),
        (3, 20, "3 repeats are few"),
        (5, 20, ""),
    ],
)
def test_one_run_is_called_one_only_where_it_is(repeats: int, seconds: float, words: str) -> None:
    """What is said of few repeats and of short windows fits them; five are enough."""
    said = doubt(repeats, seconds)
    assert said.startswith(words)
    assert bool(said) == bool(words)


def scored(*missing: tuple[str, str], **scores: object) -> dict[str, Any]:
    whole = Scores(
        frames=300,
        size="1280x720",
        encoded_size="1280x720",
        pix_fmt="yuv420p",
        scaler="",
        scored_by="9.0",
        missing=dict(missing),
        **scores,  # type: ignore[arg-type]
    )
    return {"of": "10 s", "streams": [{"name": "demo", **msgspec.to_builtins(whole)}]}


def printed(*, terminal: bool, outcome: Outcome = OUTCOME, width: int = 100) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width, force_terminal=terminal), outcome)
    return out.getvalue()


def test_every_line_of_energy_says_that_it_is_an_estimate() -> None:
    """No watt and no joule stands on a line that does not name its source."""
    lines = printed(terminal=False).splitlines()
    energy = [line for line in lines if any(unit in line for unit in (" W", " Wh", "J/", "%"))]
    assert len(energy) == 10
    assert all("(estimate)" in line for line in energy)


def test_the_figures_are_those_of_the_windows() -> None:
    """Watts, Wh, differences and joules a frame, as worked out by hand."""
    text = printed(terminal=False)
    for figure in (
        "1.000",
        "3.000",
        "0.01667",
        "+2.000",
        "+0.01111",
        "+200.0",
        "0.1000",
        "+0.0667",
        "1.5000",
        "+1.0000",
    ):
        assert figure in text
    assert "bitrate, 2096 asked" in text


def test_a_pipe_gets_plain_lines_and_a_terminal_a_box() -> None:
    """No escape code and no border reaches a file."""
    assert "\x1b" not in printed(terminal=False)
    assert "╭" not in printed(terminal=False)
    assert "╭" in printed(terminal=True)


def test_without_a_baseline_there_is_no_column_for_one() -> None:
    """A stream alone has its own figures and no empty column."""
    text = printed(terminal=False, outcome=replace(OUTCOME, versus=None, idle=None))
    assert "baseline" not in text
    assert "Δ" not in text
    assert "3.000" in text


def test_scores_and_their_absence_are_in_the_table() -> None:
    """PSNR and SSIM have a line each, and a score that could not be had says why."""
    quality = scored(
        ("vmaf", "this ffmpeg has no libvmaf"), psnr=Psnr(38.25, 38.0, 40.0, 40.0), ssim=Ssim(0.974, 0.98)
    )
    text = printed(terminal=False, outcome=replace(OUTCOME, quality=quality))
    assert "38.25" in text
    assert "0.9740" in text
    assert "no libvmaf" in text


def test_a_batchs_table_has_a_column_for_scores_if_there_are_any() -> None:
    """Mean VMAF, and nothing for a scenario that has none."""
    good = replace(OUTCOME, quality=scored(vmaf=Pooled(93.25, 93.0, 88.0, 80.0), vmaf_model="vmaf_v0.6.1"))
    for outcomes, has in (([good, OUTCOME], True), ([OUTCOME, OUTCOME], False)):
        out = io.StringIO()
        show_all(Console(file=out, width=120), outcomes)
        assert ("VMAF" in out.getvalue()) == ("93.25" in out.getvalue()) == has


def lines_of(outcomes: list[Outcome]) -> list[str]:
    out = io.StringIO()
    show_all(Console(file=out, width=100), outcomes)
    return out.getvalue().splitlines()


def test_a_batchs_table_has_megapixels_and_the_mean_speed() -> None:
    """3 W over 20 s and 600 megapixels are 0.1 J each; the smallest speed stands behind the mean."""
    known = structs.replace(ENCODE, megapixels=600.0, speed=4.25, min_speed=3.9)
    title, heads, *rows = lines_of([replace(OUTCOME, encode=known), OUTCOME])
    assert title == "joules come from estimate (E)"
    assert "J/Mpixel" in heads
    fast, plain = (row.split() for row in rows if row.startswith("demo") or " demo" in row)
    assert fast[5] == "0.1000"
    assert fast[-3:] == ["4.250", "(min", "3.900)"]
    assert plain[-1] == "0.990"
    assert "J/Mpixel" not in lines_of([OUTCOME])[1]


def test_a_batchs_table_has_the_score_of_each_rendition() -> None:
    """The VMAF of a ladder is not one number."""
    pictures = scored(vmaf=Pooled(95.0, 94.0, 88.0, 80.0), vmaf_model="vmaf_v0.6.1", rendition="1080p")
    lower = scored(vmaf=Pooled(80.5, 80.0, 70.0, 60.0), vmaf_model="vmaf_v0.6.1", rendition="480p")
    both = {"of": "10 s", "streams": [*pictures["streams"], *lower["streams"]]}
    assert any("95.00 / 80.50" in line for line in lines_of([replace(OUTCOME, quality=both)]))


def test_a_name_is_shown_as_it_was_given() -> None:
    """What looks like markup in a name is text."""
    named = replace(OUTCOME, scenario=structs.replace(SCENARIO, name="my [red]x[/red]"))
    for terminal in (True, False):
        assert "[red]" in printed(terminal=terminal, outcome=named)


def test_no_figure_is_cut_in_a_narrow_terminal() -> None:
    """At 80 columns, with a long name and a long reason, every figure is there."""
    scenario = structs.replace(SCENARIO, name="a name that goes on and on and on")
    quality = scored(
        ("vmaf", "this ffmpeg has no libvmaf"), psnr=Psnr(38.25, 38.0, 40.0, 40.0), ssim=Ssim(0.974, 0.98)
    )
    text = printed(terminal=True, outcome=replace(OUTCOME, scenario=scenario, quality=quality), width=80)
    figures = ("3.000", "0.01667", "+2.000", "+0.01111", "+200.0", "0.1000", "+0.0667", "38.25", "0.9740")
    assert [figure for figure in figures if figure not in text] == []
    assert text.count("(estimate)") == 10


def test_a_remedy_with_brackets_is_printed_as_it_is() -> None:
    """It is text and no markup: what it says to install is what is needed."""
    quality = scored(("vmaf", "no libvmaf: pip install 'powerbench-agent[ffmpeg]'"))
    assert "powerbench-agent[ffmpeg]" in printed(terminal=False, outcome=replace(OUTCOME, quality=quality))
