"""Everything that compares windows or picks a file gives the same answer for the same results.

The record that a run writes, the collector's page, the groups of `analyze`, the table of `analyze --all` and
the file that `analyze` picks: each rule is one, and these tests hold its users together.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from trees import FakeClock, values

from powerbench_agent.bench.analyze import survey
from powerbench_agent.bench.analyze.files import newest_in
from powerbench_agent.bench.run.record import ResultsRecord
from powerbench_agent.bench.statistics.groups import analyze
from powerbench_agent.collectors.results import collector, metrics
from powerbench_agent.collectors.results.collector import SCENARIOS
from powerbench_agent.core.host import Host
from powerbench_agent.core.results import parse_results

if TYPE_CHECKING:
    from pathlib import Path


def energy(watts: float, *components: str, source: str = "rapl") -> dict[str, Any]:
    names = components or ("cpu",)
    share = watts / len(names)
    parts = [{"component": n, "source": source, "joules": share * 60, "watts": share} for n in names]
    return {
        "source": source,
        "measured": source != "estimate",
        "seconds": 60.0,
        "joules": watts * 60,
        "mean_watts": watts,
        "parts": parts,
    }


def window(name: str, block: int, its: dict[str, Any], begin: float = 0.0, **more: Any) -> dict[str, Any]:
    group = name.partition("#")[0]
    idle = group.startswith("baseline")
    encode = {} if idle else {"encode": {"seconds": 60.0, "frames": 1800.0, "megabits": 60.0}}
    return {
        "name": name,
        "group": group,
        "block": block,
        "type": "baseline" if idle else "single",
        "status": "ok",
        "bitrate": "0k" if idle else "1000k",
        "streams": 0 if idle else 1,
        "start_time": begin,
        "end_time": begin + 60,
        "energy": its,
        **encode,
        **more,
    }


class Case(NamedTuple):
    """Scenarios of a file, and the watts beyond idle of its test x."""

    scenarios: list[dict[str, Any]]
    expected: float | None


IMPOSSIBLE = {**energy(1.0), "joules": -60.0}
CASES = {
    "two baselines in a block": Case(
        [
            window("baseline", 0, energy(10.0), 0.0),
            window("x", 0, energy(30.0), 100.0),
            window("baseline again", 0, energy(14.0), 200.0),
        ],
        18.0,
    ),
    "both before the test": Case(
        [
            window("baseline", 0, energy(10.0), 0.0),
            window("baseline again", 0, energy(14.0), 100.0),
            window("x", 0, energy(30.0), 200.0),
        ],
        18.0,
    ),
    "a block without a baseline": Case(
        [
            window("baseline", 0, energy(10.0)),
            window("baseline#2", 1, energy(20.0), 100.0),
            window("x", 2, energy(30.0), 200.0),
        ],
        15.0,
    ),
    "a baseline that failed": Case(
        [
            window("baseline", 0, energy(10.0), status="failed"),
            window("baseline again", 0, energy(14.0), 100.0),
            window("x", 0, energy(30.0), 200.0),
        ],
        16.0,
    ),
    "a baseline of impossible energy": Case(
        [
            window("baseline", 0, IMPOSSIBLE),
            window("baseline again", 0, energy(14.0), 100.0),
            window("x", 0, energy(30.0), 200.0),
        ],
        16.0,
    ),
    "a baseline whose part is impossible": Case(
        [
            window("baseline", 0, {**energy(9.0), "parts": [{**energy(9.0)["parts"][0], "watts": -9.0}]}),
            window("baseline again", 0, energy(14.0), 100.0),
            window("x", 0, energy(30.0), 200.0),
        ],
        16.0,
    ),
    "baselines of other sources and components": Case(
        [
            window("baseline", 0, energy(1.0, source="estimate")),
            window("baseline again", 0, energy(20.0, "cpu", "dram"), 100.0),
            window("baseline#2", 1, energy(12.0), 200.0),
            window("x", 0, energy(30.0), 300.0),
        ],
        18.0,
    ),
    "nothing comparable": Case(
        [window("baseline", 0, energy(10.0, source="estimate")), window("x", 0, energy(30.0), 100.0)],
        None,
    ),
    "repeats in two blocks": Case(
        [
            window("baseline", 0, energy(10.0)),
            window("x", 0, energy(30.0), 100.0),
            window("baseline#2", 1, energy(14.0), 200.0),
            window("x#2", 1, energy(40.0), 300.0),
        ],
        23.0,
    ),
    "an older record that says otherwise": Case(
        [
            window("baseline", 0, energy(10.0)),
            window("baseline again", 0, energy(14.0), 100.0),
            window(
                *("x", 0, energy(30.0), 200.0),
                versus_baseline={"baseline": "baseline", "delta_watts": 20.0, "delta_wh": 0.3},
            ),
        ],
        18.0,
    ),
}


def recorded(path: Path, scenarios: list[dict[str, Any]]) -> ResultsRecord:
    """Write a file as a run does: again after each scenario."""
    results = ResultsRecord(path, {})
    for count in range(len(scenarios)):
        results.save(scenarios[: count + 1])
    return results


@pytest.mark.parametrize("name", CASES)
async def test_every_user_has_the_same_difference(tmp_path: Path, name: str) -> None:
    """The record, the page, `analyze` and `analyze --all` have one ΔW, and one joules a frame."""
    scenarios, expected = CASES[name]
    path = recorded(tmp_path, scenarios).path
    content = json.loads(path.read_text())
    versus = [s.get("versus_baseline") for s in content["scenarios"] if s["group"] == "x"]
    record = [one["delta_watts"] for one in versus if one is not None]

    page = collector.Results(collector.Options(directory=str(tmp_path)), Host(clock=FakeClock()))
    samples = await page.read()
    await page.aclose()
    shown = {labels[1]: value for labels, value in values(samples, metrics.DELTA_POWER).items()}
    frames = {labels[1]: value / 1000 for labels, value in values(samples, metrics.MJ_PER_FRAME).items()}

    (group,) = analyze(parse_results(path.read_bytes(), path.stem)).tests
    (row,) = survey.survey(tmp_path).rows

    found = [
        sum(record) / len(record) if record else None,
        shown.get("x"),
        group.versus.delta if group.versus else None,
        row["delta_watts"],
    ]
    assert found == [expected] * 4
    per_frame = group.per_frame.whole.mean if group.per_frame else None
    energies = [s["energy"]["mean_watts"] / 30 for s in content["scenarios"] if s["group"] == "x"]
    assert per_frame == pytest.approx(sum(energies) / len(energies))
    assert (frames["x"], row["joules_per_frame"]) == pytest.approx((per_frame, per_frame))


def test_the_record_names_all_that_it_is_against(tmp_path: Path) -> None:
    """A test is against both idle windows of its block, also the one that was measured after it."""
    scenarios = CASES["two baselines in a block"].scenarios
    results = ResultsRecord(tmp_path, {})
    results.save(scenarios[:2])
    written = [s.get("versus_baseline") for s in json.loads(results.path.read_text())["scenarios"]]
    assert [versus and versus["delta_watts"] for versus in written] == [None, 20.0]
    results.save(scenarios)
    _, test, _ = json.loads(results.path.read_text())["scenarios"]
    assert test["versus_baseline"] == {
        "baseline": "baseline + baseline again",
        "delta_watts": 18.0,
        "delta_wh": 18.0 / 60,
        "percent": 150.0,
        "joules_per_frame": 18.0 / 30,
        "joules_per_megabit": 18.0,
        "joules_per_megapixel": None,
        "joules_per_content_minute": None,
        "source": "rapl",
        "grade": "1",
    }


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["20260101_000000", "20260102_000000"], [300, 100]),
        (["20260102_000000", "20260102_000000_2"], [100, 300]),
        (["20260102_000000", "mine"], [100, 1_767_900_000]),
        (["20260102_000000", "mine"], [100, 1_700_000_000]),
        (["20260101_000000", "20260102_000000", "20270101_000000"], [300, 200, 100]),
    ],
)
async def test_analyze_and_the_page_pick_the_same_file(
    tmp_path: Path, names: list[str], written: list[int]
) -> None:
    """Whatever the names and the times of writing; a name that is only reserved is never it."""
    for name, moment in zip(names, written, strict=True):
        path = tmp_path / f"test_results_{name}.json"
        path.write_text("" if name == "20270101_000000" else json.dumps({"scenarios": [{"name": "a"}]}))
        os.utime(path, (moment, moment))
    page = collector.Results(collector.Options(directory=str(tmp_path)), Host(clock=FakeClock()))
    ((shown,),) = values(await page.read(), SCENARIOS)
    await page.aclose()
    assert newest_in(tmp_path).stem == shown
