"""When a machine is steady."""

from __future__ import annotations

import pytest

from powerbench_agent.bench.meter.energy import Edge, Mark, MeterKey
from powerbench_agent.bench.run.phases import OpenWindow, is_steady

KEY = MeterKey("here", "rapl", "cpu", "rapl", "0")


def edges(watts: list[float], celsius: list[float] | None = None) -> list[tuple[Edge, float | None]]:
    """Return a reading a second, the counter as these powers move it."""
    found: list[tuple[Edge, float | None]] = []
    joules = 0.0
    for second, power in enumerate([0.0, *watts]):
        joules += power
        warmth = celsius[min(second, len(celsius) - 1)] if celsius else None
        found.append((Edge(float(second), {KEY: Mark(joules, float(second))}), warmth))
    return found


@pytest.mark.parametrize(
    ("watts", "steady"),
    [
        ([40.0] * 10, True),
        ([40.0] * 5 + [40.9] * 5, True),
        ([40.0] * 5 + [42.0] * 5, False),
        ([2.0] * 5 + [2.4] * 5, True),  # within half a watt
        ([80.0, 60.0, 50.0, 45.0, 42.0, 41.0, 40.0, 40.0, 40.0, 40.0], False),
        ([40.0] * 6, False),  # too short to tell
    ],
)
def test_steady_is_two_spans_of_one_power(watts: list[float], *, steady: bool) -> None:
    """Two times five seconds within 3 % or half a watt of each other."""
    assert is_steady(edges(watts)) is steady


def test_what_still_warms_is_not_steady() -> None:
    """The same power at a rising temperature is not steady."""
    assert not is_steady(edges([40.0] * 10, [50.0 + n for n in range(11)]))
    assert is_steady(edges([40.0] * 10, [50.0 + n / 20 for n in range(11)]))


def test_counters_that_do_not_answer_are_not_steady() -> None:
    """Without energy it is not steady."""
    assert not is_steady([(Edge(float(second), {}), None) for second in range(11)])


def test_a_window_without_edges_has_no_energy() -> None:
    """Nothing is made of a window that never opened, or never closed."""
    opened = OpenWindow()
    assert (opened.energy(), opened.hertz) == (None, None)
    opened.open(edges([])[0][0])
    assert opened.energy() is None
