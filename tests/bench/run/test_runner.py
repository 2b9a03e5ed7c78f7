"""The runner's sequence of steps, with fake meters and streams, in a loop with simulated time."""

from __future__ import annotations

import asyncio
import contextlib
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from fake_runs import NOW, Bench
from msgspec import structs

from powerbench_agent.bench.exits import BadFile, BadFlag
from powerbench_agent.bench.load.encoder import Point
from powerbench_agent.bench.meter.conditions import Conditions
from powerbench_agent.bench.plan.clip import Clip
from powerbench_agent.bench.plan.plan import Plan
from powerbench_agent.bench.plan.scenario import Resolution, Scenario
from powerbench_agent.bench.plan.sink import with_place
from powerbench_agent.bench.run import measuring, phases, runner
from powerbench_agent.bench.run.record import Trace, trace_path
from powerbench_agent.core.progress import Report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from powerbench_agent.bench.load.ffmpeg import Ffmpeg


pytestmark = pytest.mark.looptime


@contextlib.asynccontextmanager
async def streaming(_: Ffmpeg, scenario: Scenario, *__: object) -> AsyncIterator[Sequence[Any]]:
    """Run no stream at all."""
    encoder = SimpleNamespace(
        name="x", command="ffmpeg", points=[], lines=(), said=(), check_alive=lambda: None
    )
    yield [
        SimpleNamespace(scenario=one, encoder=encoder, outlets=(), cpu_seconds=lambda: {"encoder": 1.0})
        for one in scenario.streams
    ]


class Frames:
    """A stream of 30 frames a second that reports each half second, up to a moment."""

    def __init__(self, name: str, until: float = 1e9) -> None:
        self.name = name
        self.command = "ffmpeg"
        self.scenario = Scenario(name=name, type="single", duration=1.0)
        self.lines = self.said = ()
        self.until = until
        self.rate = 30.0
        self._points: list[Point] = []

    @property
    def points(self) -> list[Point]:
        now = asyncio.get_running_loop().time()
        while len(self._points) < int(min(now, self.until) * 2):
            at = (len(self._points) + 1) / 2
            frames = int(at * self.rate)
            self._points.append(Point(at, Report(frames, int(at * 120_000), frames / 30, 0, 0, ended=False)))
        return self._points

    def check_alive(self) -> None:
        pass

    def last_words(self) -> str:
        return "it printed nothing"


def streaming_of(*encoders: Frames) -> Callable[..., Any]:
    """Return what runs these as the streams of any scenario."""

    @contextlib.asynccontextmanager
    async def them(_: Ffmpeg, scenario: Scenario, *__: object) -> AsyncIterator[Sequence[Any]]:
        both = zip(scenario.streams, encoders, strict=False)
        yield [
            SimpleNamespace(scenario=s, encoder=e, outlets=(), cpu_seconds=lambda: {"encoder": 1.0})
            for s, e in both
        ]

    return them


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Give a run whose clock is the loop's, on a machine about which nothing is known."""
    monkeypatch.setattr(measuring, "streaming", streaming)
    monkeypatch.setattr(phases, "time", SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time()))
    silent = Conditions(None, None, 0.0, None, None, None, None, None)

    async def read_at_edge(*_: object) -> Conditions:
        return silent

    monkeypatch.setattr(measuring, "read_conditions", lambda _: silent)
    monkeypatch.setattr(measuring, "read_at_edge", read_at_edge)
    monkeypatch.setattr(phases.conditions, "read_conditions", lambda _: silent)
    return Bench(tmp_path)


def with_clip(name: str, path: str, sha256: str) -> Scenario:
    return structs.replace(stream(name), input=path, clip=Clip(9, sha256, 9))


def idle(name: str = "baseline", block: int = 0, warm_up: float = 0) -> Scenario:
    return Scenario(name=name, type="baseline", duration=60, stabilization=warm_up, block=block)


def stream(name: str = "x", block: int = 0, warm_up: float = 0) -> Scenario:
    return Scenario(
        name=name,
        type="single",
        duration=60,
        stabilization=warm_up,
        block=block,
        video_kbps=1000,
        resolution=Resolution(320, 180),
        fps=30,
    )


def kept(
    name: str, watts: float, block: int = 0, *, ago: float = 600, kind: str = "baseline"
) -> dict[str, Any]:
    """Return a scenario as an earlier run has left it in the file."""
    part = {"component": "cpu", "source": "rapl", "joules": watts * 60, "watts": watts}
    energy = {"source": "rapl", "seconds": 60.0, "joules": watts * 60, "mean_watts": watts, "parts": [part]}
    times = {"start_time": NOW - ago - 60, "end_time": NOW - ago}
    return {"name": name, "type": kind, "status": "ok", "block": block, "energy": energy, **times}


async def test_a_stream_is_compared_with_its_own_blocks_baseline(bench: Bench) -> None:
    """Each block's test is held against that block's idle window; without one, against all."""
    bench.results.earlier = [kept("idle", 10), kept("idle#2", 20, 1)]
    plan = (idle("idle"), stream("a"), idle("idle#2", 1), stream("a#2", 1), stream("a#3", 2))
    done = await bench.run(*plan)
    assert [outcome.status for outcome in done.outcomes] == ["ok"] * 3
    versus = {s["name"]: s["versus_baseline"] for s in bench.written if s["type"] != "baseline"}
    assert {name: one["baseline"] for name, one in versus.items()} == {
        "a": "idle",
        "a#2": "idle#2",
        "a#3": "idle + idle#2",
    }
    assert [one["delta_watts"] for one in versus.values()] == pytest.approx([20, 10, 15])
    assert [outcome.idle and outcome.idle.watts for outcome in done.outcomes] == [10, 20, 15]


async def test_a_failed_baseline_is_not_compared_with(bench: Bench) -> None:
    """A test after an idle window that failed has no difference."""
    bench.meters.joules = lambda _: -1.0 if asyncio.get_running_loop().time() > 30 else 0.0
    done = await bench.run(idle(), stream())
    assert done.outcomes[0].status == "failed"
    assert done.outcomes[1].versus is None
    assert done.outcomes[1].idle is None


@pytest.mark.parametrize(("ago", "old"), [(3500, False), (3700, True)])
@pytest.mark.parametrize("strict", [False, True])
async def test_an_old_baseline_is_warned_of(bench: Bench, ago: float, *, old: bool, strict: bool) -> None:
    """A baseline that ended over an hour before the window is a warning, and with --strict a failure."""
    bench.results.earlier = [kept("baseline", 10, ago=ago)]
    (outcome,) = (await bench.run(idle(), stream(), strict=strict)).outcomes
    assert ["62 minutes old" in warning for warning in outcome.warnings] == [True] * old
    assert outcome.status == ("failed" if old and strict else "ok")
    assert outcome.error.startswith("--strict: its baseline is") == (old and strict)
    assert outcome.versus is not None


async def test_what_is_finished_is_not_measured_again_and_keeps_its_place(bench: Bench) -> None:
    """On resume only the rest runs, what failed among it; the file has the plan's order."""
    failed = {**kept("b", 30, kind="single"), "status": "failed"}
    bench.results.earlier = [kept("baseline", 10), kept("c", 30, kind="single"), failed]
    done = await bench.run(idle(), stream("a"), stream("b"), stream("c"), stream("d"))
    assert bench.display.phases == ["a", "b", "d"]
    assert [outcome.scenario.name for outcome in done.outcomes] == ["a", "b", "d"]
    assert [s["name"] for s in bench.written] == ["baseline", "a", "b", "c", "d"]
    assert [s["status"] for s in bench.written] == ["ok"] * 5
    idle_window, finished = bench.written[0], bench.written[3]
    assert finished.pop("versus_baseline")["delta_watts"] == 20
    assert (idle_window, finished) == tuple(bench.results.earlier[:2])


@pytest.mark.parametrize("warm_up", [10, 20])
async def test_a_steady_machine_is_measured_after_ten_more_seconds(bench: Bench, warm_up: float) -> None:
    """After any warm-up, two spans of equal power are enough; the file has how long that took."""
    (outcome,) = (await bench.run(stream(warm_up=warm_up))).outcomes
    assert bench.display.phases == ["warming up", "settling", "x"]
    assert (outcome.status, outcome.warnings) == ("ok", ())
    assert bench.written[0]["settle"] == {"seconds": pytest.approx(10, abs=0.5), "settled": True}


@pytest.mark.parametrize("strict", [False, True])
async def test_a_machine_that_does_not_become_steady_is_a_warning(bench: Bench, *, strict: bool) -> None:
    """Rising power is waited for as long as the warm-up was, then measured, with a warning."""
    bench.meters.joules = lambda second: second**2
    (outcome,) = (await bench.run(stream(warm_up=20), strict=strict)).outcomes
    assert bench.written[0]["settle"] == {"seconds": pytest.approx(20, abs=0.1), "settled": False}
    assert outcome.warnings[0].startswith("power was not steady 20 s after the warm-up")
    assert outcome.status == ("failed" if strict else "ok")


async def test_a_short_warm_up_settles_nothing(bench: Bench) -> None:
    """Less than ten seconds are too short to tell: no waiting, no warning."""
    (outcome,) = (await bench.run(stream(warm_up=5))).outcomes
    assert bench.display.phases == ["warming up", "x"]
    assert outcome.settle == {"seconds": 0.0, "settled": False}
    assert outcome.warnings == ()


async def test_meters_that_are_away_within_a_window_cost_the_trace_alone(bench: Bench) -> None:
    """The window's edges are exact all the same; the gap is reported once, not once a reading."""
    bench.meters.away = (20.0, 40.0)
    (outcome,) = (await bench.run(stream())).outcomes
    assert outcome.energy is not None
    assert (outcome.energy.seconds, outcome.energy.watts) == pytest.approx((60, 30), rel=1e-3)
    assert outcome.warnings == ("the trace has a gap: it is away",)
    assert outcome.trace["readings"] == pytest.approx(400, abs=10)


async def test_a_stream_that_stands_still_fails_its_scenario(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two stops after 80 s, in the second window: that one fails, by name; the others stand."""
    monkeypatch.setattr(measuring, "streaming", streaming_of(Frames("pair-1"), Frames("pair-2", until=80)))
    pair = structs.replace(stream("pair"), type="multi", bitrates=(904.0, 904.0))
    done = await bench.run(stream("first"), pair, stream("last"))
    assert [s["status"] for s in bench.written] == ["ok", "failed", "ok"]
    failed = done.outcomes[1]
    assert failed.error.startswith("pair-2 stands still: no new frame since ")
    assert re.search(r"\([56] s\)", failed.error)  # it is looked at once a second
    assert not any("faster --preset" in warning for warning in failed.warnings)
    assert (failed.end_time or 0) - (failed.start_time or 0) == pytest.approx(25, abs=1.5)


async def test_a_slow_stream_is_warned_of_and_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of real time is a matter of the preset, not a standstill."""
    slow = Frames("x")
    slow.rate = 15.0
    monkeypatch.setattr(measuring, "streaming", streaming_of(slow))
    (outcome,) = (await bench.run(stream())).outcomes
    assert outcome.status == "ok"
    assert any("faster --preset" in warning for warning in outcome.warnings)


async def test_an_interrupted_run_keeps_what_it_has(bench: Bench) -> None:
    """The scenario that was running is kept with the part that it has, and nothing comes after it."""
    bench.display.cancel_in = "b"
    done = await bench.run(stream("a"), stream("b"), stream("c"))
    assert done.interrupted
    assert [(s["name"], s["status"]) for s in bench.written] == [("a", "ok"), ("b", "interrupted")]
    assert bench.written[1]["energy"]["seconds"] == pytest.approx(30, abs=0.2)


async def test_a_disk_that_was_full_for_a_while_costs_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written after one scenario is written after the next, without a message."""
    save, failures = bench.results.save, [OSError(28, "No space left on device")] * 2

    def full_at_first(scenarios: list[dict[str, Any]]) -> None:
        if failures:
            raise failures.pop()
        save(scenarios)

    monkeypatch.setattr(bench.results, "save", full_at_first)
    done = await bench.run(stream("a"), stream("b"))
    assert [s["name"] for s in bench.written] == ["a", "b"]
    assert (done.unsaved, done.path) == ("", bench.results.path)


async def test_a_scenario_that_is_in_the_results_has_its_trace(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the results are written, the trace of every scenario in them lies there already."""
    save = bench.results.save

    def traced(scenarios: list[dict[str, Any]]) -> None:
        path = str(trace_path(bench.results.path))
        rows = duckdb.sql("SELECT DISTINCT scenario FROM read_parquet(?)", params=[path]).fetchall()
        assert {name for (name,) in rows} == {scenario["name"] for scenario in scenarios}
        save(scenarios)

    monkeypatch.setattr(bench.results, "save", traced)
    done = await bench.run(stream("a"), stream("b"))
    assert [s["name"] for s in bench.written] == ["a", "b"]
    assert done.trace == trace_path(bench.results.path)


@pytest.mark.parametrize(
    ("good", "left"),
    [
        (0, "the figures above are all there is of it"),
        (2, "the file holds what was measured before b"),
        (3, "the file holds b without its scores"),
        (4, "the file holds what was measured before c"),
    ],
)
async def test_a_disk_that_becomes_full_is_said_with_what_the_file_holds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, good: int, left: str
) -> None:
    """Each scenario is saved twice: what could not be saved last is named, and nothing contradicts it."""
    save, saves = bench.results.save, iter(range(9))

    def full_later(scenarios: list[dict[str, Any]]) -> None:
        if next(saves) >= good:
            raise OSError(28, "No space left on device")
        save(scenarios)

    monkeypatch.setattr(bench.results, "save", full_later)
    done = await bench.run(*(stream(name) for name in ("abc" if good != 3 else "ab")))
    assert done.unsaved == f"cannot write {bench.results.path}: No space left on device; {left}"


async def test_a_trace_that_cannot_be_written_says_what_it_lacks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results are written all the same; the line has the first scenario without a trace."""
    save, saves = Trace.save, iter(range(9))

    def full_later(trace: Trace, path: Path, run_id: str) -> None:
        if next(saves):
            raise OSError(28, "No space left on device")
        save(trace, path, run_id)

    monkeypatch.setattr(Trace, "save", full_later)
    done = await bench.run(stream("a"), stream("b"), stream("c"))
    assert len(bench.written) == 3
    assert done.unsaved.endswith("No space left on device; it lacks b and what came after")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stabilization", 30, "stabilization 30 there and 0 now"),
        ("cooldown", 7, "cooldown 7 there and 0.0 now"),
        ("outputs", [{"url": "x"}], "outputs [{'url': 'x'}] there and [{"),
        ("input_sha256", "2" * 64, f"(SHA-256 {'2' * 12}) there and '/a.mp4' (SHA-256 {'1' * 12}) now"),
        ("input", "/b.mp4", None),  # the same clip, elsewhere
    ],
)
async def test_other_settings_are_not_continued(bench: Bench, key: str, value: Any, said: str | None) -> None:
    """A name that now stands for another clip, warm-up or output is refused, and quoted."""
    await bench.run(with_clip("x y", "/a.mp4", "1" * 64))
    (entry,) = bench.written
    again = Bench(bench.path)
    again.results.earlier = [entry | {key: value}]
    if said is None:
        assert (await again.run(with_clip("x y", "/a.mp4", "1" * 64))).outcomes == []
        return
    with pytest.raises(BadFile) as bad:
        await again.run(with_clip("x y", "/a.mp4", "1" * 64))
    assert "'x y' has other settings: " in str(bad.value)
    assert said in str(bad.value)


async def test_a_clip_without_a_fingerprint_is_its_path(bench: Bench) -> None:
    """In an older file only the path is known; the test picture is not a clip."""
    old = kept("x", 30, kind="single") | {"input": "/a.mp4"}
    bench.results.earlier = [old]
    assert (await bench.run(with_clip("x", "/a.mp4", "1"))).outcomes == []
    with pytest.raises(BadFile, match=r"input '/a.mp4' there and '/b.mp4' \(SHA-256 1\) now"):
        await bench.run(with_clip("x", "/b.mp4", "1"))
    with pytest.raises(BadFile, match=r"input '/a\.mp4' there and the test picture now"):
        await bench.run(stream("x"))


async def test_repeats_of_an_earlier_run_count(bench: Bench) -> None:
    """A run that goes on with another knows how often the file holds each test."""
    done = await bench.run(stream("a"), stream("a#2", 1), stream("a#3", 2))
    again = Bench(bench.path)
    again.results.earlier = [scenario | {"encode": {"seconds": 60}} for scenario in bench.written[:2]]
    again.results.reserve()
    done = await again.run(stream("a"), stream("a#2", 1), stream("a#3", 2))
    assert [outcome.scenario.name for outcome in done.outcomes] == ["a#3"]
    assert done.repeats == 3


@pytest.mark.parametrize(
    ("names", "file", "said"),
    [
        (["a", "b"], "out.mkv", ""),
        (["a b", "a_b"], "out.mkv", "two outputs would be written to .*/out_a_b.mkv"),
        (["a", "b"], "there.mkv", ""),
        (["a"], "there.mkv", "there.mkv is there already"),
        (["a"], "no/out.mkv", "no is not a directory"),
        (["é" * 100, "b"], "é" * 100 + ".mkv", "File name too long"),
    ],
)
def test_the_files_of_a_run_are_looked_at_first(
    tmp_path: Path, names: list[str], file: str, said: str
) -> None:
    """Nothing is overwritten, by an earlier run's output or by one of its own."""
    (tmp_path / "there.mkv").touch()
    plan = Plan(
        scenarios=tuple(stream(name) for name in names),
        output_dir=tmp_path,
        sink=with_place(f"file:{tmp_path / file}", len(names)),
    )
    if not said:
        runner._check_files(plan)
        return
    with pytest.raises(BadFlag, match=said):
        runner._check_files(plan)
