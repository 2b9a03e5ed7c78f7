"""The rules' tests, which promtool runs in PromQL, told again to VictoriaMetrics and vmalert in MetricsQL.

What is imported has no mark at a series' end, so there it ends a step later: the tests look a step later.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from real.conftest import get, need
from real.servers import victoria_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = Path(__file__).parent.parent.parent / "compose/prometheus/rules"
CASES = [
    (path.stem, test)
    for path in sorted((RULES / "tests").glob("*.yml"))
    # Text alone: `0x100` is a series to promtool, and a number to YAML.
    for test in yaml.load(path.read_text(), yaml.BaseLoader)["tests"]  # noqa: S506 - makes text, no objects
]
LONGEST = 62 * 60  # seconds that a case looks at
APART = 3 * 3600  # seconds from one case's beginning to the next one's


def seconds(text: str) -> int:
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)([hms])", text))


def samples(notation: str) -> Iterator[float | None]:
    """Yield promtool's values of a series, a step each; None for none. An end cannot be marked here."""
    for word in notation.split():
        if found := re.fullmatch(r"(-?[\d.]+)([+-][\d.]+)?(?:x(\d+))?", word):
            first, step, times = float(found[1]), float(found[2] or 0), int(found[3] or 0)
            yield from (first + step * n for n in range(times + 1))
        elif found := re.fullmatch(r"_(?:x(\d+))?", word):
            yield from [None] * int(found[1] or 1)
        else:
            assert word == "stale"


def labels(series: str) -> dict[str, str]:
    name = series.partition("{")[0]
    return dict(re.findall(r'(\w+)="([^"]*)"', series)) | ({"__name__": name} if name else {})


def as_imported(series: dict[str, str], interval: int, begin: int) -> str:
    points = [
        (value, (begin + place * interval) * 1000)
        for place, value in enumerate(samples(series["values"]))
        if value is not None
    ]
    values, times = zip(*points, strict=True)
    return json.dumps({"metric": labels(series["series"]), "values": values, "timestamps": times})


def post(url: str, content: str) -> None:
    with urllib.request.urlopen(url, content.encode(), timeout=30) as answer:  # noqa: S310 - our own
        answer.read()


def groups() -> list[dict[str, Any]]:
    """Return all groups, in such an order that later ones look at what earlier ones record."""
    files = ["recording.yml", "thresholds.yml", "runs.yml", "compatible.yml", "alerts.yml"]
    found = [group for file in files for group in yaml.safe_load((RULES / file).read_text())["groups"]]
    first = ["powerbench-seen", "powerbench-machines", "powerbench-thresholds", "powerbench-runs"]
    return sorted(found, key=lambda group: [*first, group["name"]].index(group["name"]))


def replay(url: str, begin: int, file: Path) -> None:
    """Evaluate a file of rules over what was imported."""
    ends = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin + t)) for t in (0, LONGEST)]
    command = [need("vmalert"), f"-rule={file}", "-disableAlertgroupLabel"]
    command += [f"-datasource.url={url}", f"-remoteWrite.url={url}", "-remoteWrite.flushInterval=100ms"]
    command += [f"-replay.timeFrom={ends[0]}", f"-replay.timeTo={ends[1]}", "-replay.rulesDelay=0s"]
    command += ["-datasource.queryStep=15s"]
    command += ["-replay.disableProgressBar"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    get(f"{url}/internal/force_flush")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield (a VictoriaMetrics in which all cases have happened, when each began)."""
    now = int(time.time()) // 3600 * 3600
    began = {test["name"]: now - APART * (place + 1) for place, (_, test) in enumerate(CASES)}
    directory = tmp_path_factory.mktemp("vm")
    files = []
    for place, group in enumerate(groups()):
        files.append(directory / f"rules-{place}.yml")
        files[-1].write_text(yaml.safe_dump({"groups": [group]}))
    with victoria_metrics(directory / "data") as url:
        for _, test in CASES:
            lines = [
                as_imported(s, seconds(test["interval"]), began[test["name"]]) for s in test["input_series"]
            ]
            post(f"{url}/api/v1/import", "\n".join(lines))
        get(f"{url}/internal/force_flush")
        for begin in began.values():
            for file in files:
                replay(url, begin, file)
        yield url, began


def named(series: dict[str, str], expected: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a series as it can be compared: MetricsQL's round() keeps a name, PromQL's does not."""
    kept = not expected["expr"].startswith("round(")
    return sorted((label, value) for label, value in series.items() if kept or label != "__name__")


@pytest.mark.parametrize("test", [test for _, test in CASES], ids=[file for file, _ in CASES])
def test_vmalert_agrees(database: tuple[str, dict[str, int]], test: dict[str, Any]) -> None:
    """Every moment that a rule's test knows is the same in MetricsQL: alerts, series, figures."""
    url, began = database
    for expected in test["promql_expr_test"]:
        at = began[test["name"]] + seconds(expected["eval_time"])
        asked = {"query": expected["expr"], "time": at, "step": "15s", "nocache": 1}
        answer = json.loads(get(f"{url}/api/v1/query?{urllib.parse.urlencode(asked)}"))["data"]["result"]
        found = sorted((named(row["metric"], expected), float(row["value"][1])) for row in answer)
        wanted = sorted(
            (named(labels(sample.get("labels", "")), expected), float(sample["value"]))
            for sample in expected["exp_samples"]
        )
        assert [series for series, _ in found] == [series for series, _ in wanted], (expected, found)
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted]), expected
