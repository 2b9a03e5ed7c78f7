"""How good a figure of energy is, and that no file is trusted about it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from powerbench_agent.core.grades import grade_of
from powerbench_agent.core.results import Energy, Part, describe_energy, parse_results

CASES = [
    ([("cpu", "rapl")], "1"),
    ([("cpu", "rapl"), ("gpu", "nvml")], "1"),
    ([("module", "hwmon")], "1"),
    ([("cpu", "estimate")], "E"),
    ([("cpu", "estimate"), ("gpu", "nvml")], "E"),
    ([("platform", "calibrated")], "2"),
    ([("cpu", "calibrated"), ("gpu", "calibrated")], "2"),
    ([("platform", "http_json")], "3"),
    ([("platform", "http_json"), ("gpu", "nvml")], "1"),
    ([("platform", "hwmon"), ("cpu", "estimate")], "E"),
    ([], ""),
]


@pytest.mark.parametrize(("parts", "grade"), CASES)
def test_the_grade_is_that_of_the_worst_part(parts: list[tuple[str, str]], grade: str) -> None:
    """An estimate in a sum makes it one; a machine's meter is one only alone."""
    assert grade_of(parts) == grade


def recorded(**energy: Any) -> Energy:
    window = {"seconds": 60.0, "joules": 60.0, "mean_watts": 1.0, **energy}
    content = {"format": 3, "scenarios": [{"name": "a", "bitrate": "1M", "energy": window}]}
    found = parse_results(json.dumps(content).encode(), "run").scenarios[0].energy
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("energy", "grade"),
    [
        ({"source": "rapl", "grade": "3"}, "1"),
        ({"source": "estimate", "grade": "3", "measured": True}, "E"),
        ({"source": "estimate + rapl"}, "E"),
        ({"source": "rapl", "measured": False}, "E"),
        ({"source": "calibrated"}, "2"),
        ({"source": ""}, ""),
    ],
)
def test_a_file_is_not_trusted(energy: dict[str, Any], grade: str) -> None:
    """The grade is worked out of the sources, whatever the file says of it."""
    assert recorded(**energy).grade == grade


def test_files_and_tables_have_it() -> None:
    """A window's energy is written with its grade, and named with it."""
    energy = Energy.of_parts([Part("cpu", "rapl", 60.0, 1.0)], 60.0)
    assert describe_energy(energy)["grade"] == "1"
    assert energy.graded_source == "rapl (1)"
