"""Benchmark runs: each scenario against its baseline, from the results files that an agent watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boards.layout import Row, board, choice, matching
from boards.panels import bars, graph, stat, table
from boards.queries import SLOW_STEP, Query, of

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard

    from boards.panels import Panel

RUN = 'run_id=~"$run_id"'
SCENARIO = 'scenario=~"$scenario"'
NAMED = "{{scenario}} ({{source}}) {{host}} {{run}}"
SCORED = "{{scenario}} {{rendition}} ({{source}}) {{host}} {{run}}"
NO_RUN = "no run"
NO_BASELINE = "no baseline"
SETTINGS = ("bitrate", "rate", "resolution", "fps", "encoder", "preset", "streams")
REPEATS = "Mean over the scenario's repeats; the brackets name its source of energy."


def figure(name: str) -> str:
    """Return a figure of the selected scenarios."""
    return of(f"results_scenario_{name}", RUN, SCENARIO)


def named(expr: str) -> str:
    """Return an expression whose series have a short `run` beside their run_id, for their legends."""
    return f'label_replace({expr}, "run", "$1", "run_id", "(?:test_results_)?(.+)")'


def summary() -> Row:
    """Return the row with the outcome."""
    baseline = f"{figure('mean_power_watts')} - {figure('delta_power_watts')}"
    return Row(
        "Outcome",
        [
            stat(
                "Scenarios",
                "Successful scenarios in the selected runs; repeats count as one.",
                "none",
                Query(f"sum(max by (host, run_id) ({of('results_scenarios', RUN)}))", "scenarios"),
                nothing=NO_RUN,
                size=(6, 4),
            ),
            stat(
                "Baseline power",
                "Mean power of the baselines of the selected scenarios, by source.",
                "watt",
                Query(f"avg by (source) ({baseline})", "{{source}}"),
                decimals=2,
                nothing=NO_BASELINE,
                size=(6, 4),
            ),
            stat(
                "Largest difference",
                "The largest mean power beyond the baseline of any selected scenario, by source.",
                "watt",
                Query(f"max by (source) ({figure('delta_power_watts')})", "{{source}}"),
                decimals=2,
                nothing=NO_BASELINE,
                size=(6, 4),
            ),
            stat(
                "Largest increase",
                "The largest mean power beyond the baseline of any selected scenario, in percent of it, by "
                "source.",
                "percent",
                Query(f"max by (source) ({figure('power_pct_increase')})", "{{source}}"),
                decimals=1,
                nothing=NO_BASELINE,
                size=(6, 4),
            ),
            _bars(
                "Δ power",
                "Mean power beyond the baseline of the same block.",
                "watt",
                "delta_power_watts",
            ),
            _bars(
                "Δ power in percent",
                "Mean power beyond the baseline, in percent of it.",
                "percent",
                "power_pct_increase",
            ),
            _bars(
                "Δ energy",
                "Energy beyond the baseline, over the window of the test.",
                "watth",
                "delta_energy_wh",
            ),
        ],
    )


def _bars(title: str, what: str, unit: str, name: str, nothing: str = NO_BASELINE) -> Panel:
    return bars(
        title,
        f"{what} {REPEATS}",
        unit,
        Query(f"sort_desc({named(figure(name))})", NAMED),
        size=(8, 9),
        decimals=2,
        nothing=nothing,
    )


def _score(title: str, what: str, unit: str, measure: str, decimals: int = 2) -> Panel:
    """Return the panel of one measure of quality, each rendition of a ladder for itself."""
    return bars(
        title,
        f"Quality of the picture against its source, {what}: of what the window encoded, or of ten seconds "
        "with the same settings, as the results file says. Mean over streams and repeats.",
        unit,
        Query(f"sort_desc({named(figure(f'{measure}_score'))})", SCORED),
        size=(12, 9),
        decimals=decimals,
        nothing=f"not scored; run with --quality {measure}",
    )


def scenarios() -> Row:
    """Return the row that has every figure of every scenario."""
    labels = ("scenario", "host", "source", "grade", *SETTINGS, "run_id")

    def column(name: str) -> str:
        return f"max by ({', '.join(labels)}) ({figure(name)})"

    return Row(
        "Every scenario",
        [
            table(
                "All figures",
                "Every selected scenario with its settings, its source of energy and its figures. Figures "
                "are means over repeats and cover the whole host. Grade E is an estimate, 1 counters of "
                "components, 2 calibrated to the wall, 3 a meter of the whole machine. "
                "Δ from and Δ to are the 95 % interval of the power beyond the baseline (Welch), available "
                "with repeats only. If it includes 0, no difference was detected.",
                {
                    "mean power": (column("mean_power_watts"), "watt"),
                    "Δ power": (column("delta_power_watts"), "watt"),
                    "Δ from": (column("delta_power_ci_lower_watts"), "watt"),
                    "Δ to": (column("delta_power_ci_upper_watts"), "watt"),
                    "repeats": (column("repeats"), "none"),
                    "Δ %": (column("power_pct_increase"), "percent"),
                    "Δ energy": (column("delta_energy_wh"), "watth"),
                    "mJ per frame": (column("energy_mj_per_frame"), "none"),
                    "J per Mpixel": (column("energy_joules_per_megapixel"), "none"),
                    "speed": (column("speed"), "none"),
                    "fps": (column("avg_fps"), "none"),
                    "dropped": (column("dropped_frames"), "short"),
                    "seconds": (column("duration_seconds"), "s"),
                },
                {label: label.replace("run_id", "run") for label in labels},
                sort_by="Δ power",
                size=(24, 10),
                nothing=NO_RUN,
            )
        ],
    )


def costs() -> Row:
    """Return the row of what a frame, a bit and a test cost."""
    no_encode = "no scenario with an encode"
    return Row(
        "Cost and quality",
        [
            _bars(
                "Mean power", "Mean power of the host over the window.", "watt", "mean_power_watts", NO_RUN
            ),
            bars(
                "Energy per frame",
                f"Energy of the host, including idle, per encoded frame. {REPEATS}",
                "joule",
                Query(f"sort_desc({named(figure('energy_mj_per_frame'))} / 1000)", NAMED),
                size=(8, 9),
                decimals=3,
                nothing=no_encode,
            ),
            bars(
                "Energy per megapixel",
                f"Energy of the host, including idle, per million encoded pixels. {REPEATS}",
                "joule",
                Query(f"sort_desc({named(figure('energy_joules_per_megapixel'))})", NAMED),
                size=(8, 9),
                decimals=3,
                nothing=no_encode,
            ),
            _bars(
                "Energy by bitrate",
                "Energy of the host over the window in Wh, divided by the achieved bitrate in Mbit/s.",
                "watth",
                "energy_wh_per_mbps",
                no_encode,
            ),
            _bars(
                "Frames encoded per second",
                "All streams of the scenario together.",
                "suffix: fps",
                "avg_fps",
                no_encode,
            ),
            _bars(
                "Speed",
                "Seconds of content encoded a second, the mean of the streams.",
                "none",
                "speed",
                no_encode,
            ),
            _bars(
                "Cost",
                "Energy of the host over the window, at the price of a kWh, in the currency of that price.",
                "none",
                "cost",
                "the price of a kWh is not set",
            ),
            _bars(
                "CO2e",
                "Energy of the host over the window, at the grid's grams per kWh: only as good as that "
                "figure.",
                "massg",
                "co2e_grams",
                "grams per kWh are not set",
            ),
            _bars("Energy", "Energy of the host over the window.", "watth", "total_energy_wh", NO_RUN),
            _score("VMAF", "mean, 0 to 100", "none", "vmaf"),
            _score("XPSNR", "of the worst plane, in dB", "suffix: dB", "xpsnr"),
            _score("PSNR", "in dB", "suffix: dB", "psnr"),
            _score("SSIM", "at most 1", "none", "ssim", decimals=4),
        ],
    )


def history() -> Row:
    """Return the row of one run after another."""
    return Row(
        "Runs over time",
        [
            graph(
                "Δ power as runs came in",
                "Mean power beyond the baseline as the agent showed it, with its source in brackets. Each "
                "step is a newer run.",
                "watt",
                Query(named(of("results_scenario_delta_power_watts", SCENARIO)), NAMED),
                step=SLOW_STEP,
                least=None,
                nothing=NO_BASELINE,
            ),
            graph(
                "Successful scenarios",
                "Number of successful scenarios of each run while it goes on; repeats count as one.",
                "none",
                Query(of("results_scenarios"), "{{host}} {{run_id}}"),
                step=SLOW_STEP,
                nothing=NO_RUN,
            ),
        ],
    )


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    power = "results_scenario_mean_power_watts"
    return board(
        "baseline-vs-test",
        "Baseline vs test",
        "Results of benchmark runs: power and energy beyond the idle baseline, energy per frame, quality and "
        "cost. Every figure covers the whole host and nothing else.",
        [summary(), scenarios(), costs(), history()],
        [
            choice("run_id", "Run", matching(power, "run_id"), everything=False, newest_first=True),
            choice("scenario", "Scenario", matching(power, "scenario", RUN)),
        ],
        since="now-6h",
    )
