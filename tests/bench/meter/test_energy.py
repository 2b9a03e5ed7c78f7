"""Edges to energy: what counts, what is missing, and that nothing is made up."""

from __future__ import annotations

import pytest

from powerbench_agent.bench.meter.client import AgentFailed
from powerbench_agent.bench.meter.energy import Edge, Mark, MeterKey, counted, energy_between

RAPL = MeterKey("a", "rapl", "cpu", "rapl", "intel-rapl:0")
RAPL1 = MeterKey("a", "rapl", "cpu", "rapl", "intel-rapl:1")
GPU = MeterKey("a", "nvml", "gpu", "nvml", "0")
GUESS = MeterKey("a", "estimate", "cpu", "estimate", "cpu")


def edge(**marks: tuple[MeterKey, float, float]) -> Edge:
    return Edge(0.0, {key: Mark(joules, at) for key, joules, at in marks.values()})


def test_a_windows_energy_is_the_difference_of_counters_over_the_time_between_readings() -> None:
    """Two sockets and a GPU read a little apart: each over its own time, all of them added."""
    before = edge(a=(RAPL, 100, 10.0), b=(RAPL1, 50, 10.0), c=(GPU, 7, 10.5))
    after = edge(a=(RAPL, 400, 20.0), b=(RAPL1, 150, 20.0), c=(GPU, 507, 20.5))
    found = energy_between(before, after)
    assert found.joules == 900
    assert found.watts == pytest.approx(90)
    assert found.seconds == pytest.approx(10)
    assert found.source == "nvml + rapl"
    assert found.measured
    assert [(part.component, part.joules) for part in found.parts] == [("cpu", 400), ("gpu", 500)]


def test_an_estimate_is_never_added_to_a_measurement() -> None:
    """Where RAPL measures the CPU, the estimate of it counts for nothing."""
    before = edge(a=(RAPL, 0, 0.0), b=(GUESS, 0, 0.0))
    after = edge(a=(RAPL, 10, 1.0), b=(GUESS, 99, 1.0))
    assert energy_between(before, after).joules == 10
    assert counted(before.marks) == [RAPL]


def test_an_estimate_beside_a_measured_gpu_is_said_to_be_one() -> None:
    """With an estimated CPU beside a measured GPU the whole is not a measurement."""
    before = edge(a=(GUESS, 0, 0.0), b=(GPU, 0, 0.0))
    after = edge(a=(GUESS, 10, 1.0), b=(GPU, 5, 1.0))
    found = energy_between(before, after)
    assert not found.measured
    assert found.source == "estimate + nvml"


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (edge(a=(RAPL, 10, 1.0)), "could not be read"),
        (edge(a=(RAPL, 10, 1.0), b=(RAPL1, 3, 1.0)), "started again"),
        (edge(a=(RAPL, 10, 1.0), b=(RAPL1, 5, 0.0)), "not read within"),
    ],
)
def test_a_counter_that_breaks_within_the_window_is_named_and_adds_nothing(after: Edge, words: str) -> None:
    """The energy of a vanished, restarted or unread counter is missing, and a problem names it."""
    found = energy_between(edge(a=(RAPL, 0, 0.0), b=(RAPL1, 5, 0.0)), after)
    assert found.joules == 10
    assert words in found.problems[0]


def test_a_counter_that_appears_within_the_window_is_named() -> None:
    """Energy from before a counter was first read is not known."""
    found = energy_between(edge(a=(RAPL, 0, 0.0)), edge(a=(RAPL, 10, 1.0), c=(GPU, 99, 1.0)))
    assert found.joules == 10
    assert "appeared" in found.problems[0]


def test_no_counter_at_all_is_no_window() -> None:
    """Without a single good counter there is an error, not 0 J."""
    with pytest.raises(AgentFailed, match="no energy counter"):
        energy_between(edge(), edge())
    with pytest.raises(AgentFailed, match="started again"):
        energy_between(edge(a=(RAPL, 9, 0.0)), edge(a=(RAPL, 1, 1.0)))
