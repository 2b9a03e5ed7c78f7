"""The verdict on a scenario, and what the file says of it."""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from powerbench_agent.bench.meter.energy import MeteredEnergy
from powerbench_agent.bench.plan.scenario import Resolution, Scenario
from powerbench_agent.bench.run.outcome import Outcome, describe, judge
from powerbench_agent.core.results import Encode, Part, RecordedScenario

SCENARIO = Scenario(
    name="x",
    type="single",
    duration=10,
    video_kbps=1904,
    resolution=Resolution(640, 360),
    fps=30,
    encoder="h264",
    preset="fast",
)
ENCODE = Encode(10.0, 300.0, 20.0, 10.0, 1.0, 0, 0)


def energy(
    watts: float, *, source: str = "rapl", problems: tuple[str, ...] = (), seconds: float = 10.0
) -> MeteredEnergy:
    found = MeteredEnergy.of_parts([Part("cpu", source, watts * seconds, watts)], seconds)
    return structs.replace(found, problems=problems)


def idle(watts: float, source: str = "rapl") -> list[RecordedScenario]:
    return [RecordedScenario(name="baseline", type="baseline", energy=energy(watts, source=source))]


def test_a_good_window_holds_and_is_compared() -> None:
    """With all of its energy a stream is ok, and its difference is that of the powers."""
    judged = judge(Outcome(SCENARIO, "ok", energy=energy(30), encode=ENCODE), idle(20))
    assert (judged.status, judged.warnings) == ("ok", ())
    assert judged.versus is not None
    assert judged.versus.watts == 10
    described = describe(judged)
    assert described["versus_baseline"]["joules_per_frame"] == 10 * 10 / 300
    assert described["encode"]["joules_per_frame"] == 30 * 10 / 300
    assert described["encode"]["source"] == described["versus_baseline"]["source"] == "rapl"


def test_a_part_of_the_energy_does_not_pass_for_the_whole() -> None:
    """A counter that was lost fails the scenario: no joules a frame, no difference."""
    partial = energy(30, problems=("dram (rapl) could not be read",))
    judged = judge(Outcome(SCENARIO, "ok", energy=partial, encode=ENCODE), idle(20))
    assert (judged.status, judged.error) == ("failed", "dram (rapl) could not be read")
    described = describe(judged)
    assert "encode" not in described
    assert "versus_baseline" not in described


def test_no_energy_is_a_failure() -> None:
    """A window that was never read fails."""
    assert judge(Outcome(SCENARIO, "ok")).status == "failed"


def test_other_sources_are_not_compared() -> None:
    """A measured test is not held against an estimated baseline."""
    judged = judge(Outcome(SCENARIO, "ok", energy=energy(30), encode=ENCODE), idle(20, "estimate"))
    assert judged.versus is None
    assert "other sources" in judged.warnings[0]


def test_a_counter_that_stands_still_is_warned_of() -> None:
    """0 W is said to be a counter that does not count."""
    judged = judge(Outcome(SCENARIO, "ok", energy=energy(0), encode=ENCODE))
    assert "stands still" in judged.warnings[0]


def test_a_window_of_another_length_is_warned_of() -> None:
    """Edges read too early or too late by the meters' own clock are said to be."""
    judged = judge(Outcome(SCENARIO, "ok", energy=energy(30, seconds=9.0), encode=ENCODE))
    assert "9.00 s apart" in judged.warnings[0]


def test_an_interrupted_scenario_stays_one() -> None:
    """What was measured until the interruption is described, and its status says what it is."""
    described = describe(judge(Outcome(SCENARIO, "interrupted", "kept", energy(30), ENCODE)))
    assert (described["status"], described["error"]) == ("interrupted", "kept")
    assert described["energy"]["joules"] == 300


def test_a_stream_that_wrote_nothing_fails_by_name() -> None:
    """Frames without a byte: the window is not ok, and has no joules a frame."""
    per_stream = {"x": Encode(10.0, 300.0, 0.0, 10.0, 1.0, 0, 0)}
    judged = judge(Outcome(SCENARIO, "ok", energy=energy(30), encode=per_stream["x"], per_stream=per_stream))
    assert (judged.status, judged.warnings) == ("failed", ())
    assert judged.error == "x wrote nothing in the window: look at its sink"
    assert judged.encode is None


def test_a_stream_that_failed_is_not_advised_to_be_faster() -> None:
    """Its speed fell because it died: a preset would not have helped."""
    slow = Encode(10.0, 100.0, 20.0, 3.0, 0.3, 0, 0)
    failed = Outcome(SCENARIO, "failed", "x died", energy=energy(30), encode=slow, per_stream={"x": slow})
    assert judge(failed).warnings == ()
    assert any("faster --preset" in warning for warning in judge(replace(failed, status="ok")).warnings)
