"""Encodes as fast as they go, ladders and parts in a run: with fake encoders, in simulated time."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import duckdb
import pytest
from fake_runs import Bench
from msgspec import structs

from powerbench_agent.bench.exits import BadFile
from powerbench_agent.bench.load.child import StreamFailed
from powerbench_agent.bench.load.containers import StreamTarget
from powerbench_agent.bench.load.encoder import Encoder, Point
from powerbench_agent.bench.load.outlets import Outlet
from powerbench_agent.bench.load.tap import Tap
from powerbench_agent.bench.meter.conditions import Conditions
from powerbench_agent.bench.plan.ladder import parse_ladder, renditions_of, with_ladder
from powerbench_agent.bench.plan.pace import MAX, Pace
from powerbench_agent.bench.plan.plan import parts_of
from powerbench_agent.bench.plan.scenario import Resolution, Scenario
from powerbench_agent.bench.run import measuring, phases
from powerbench_agent.bench.run.phases import OpenWindow, Phases
from powerbench_agent.bench.run.record import Trace, trace_path
from powerbench_agent.bench.run.standstill import LONG_PATIENCE
from powerbench_agent.core.host import Host
from powerbench_agent.core.progress import Report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from powerbench_agent.bench.meter.meters import Meters

pytestmark = pytest.mark.looptime


def seconds_now() -> float:
    return asyncio.get_running_loop().time()


class Encode:
    """An encoder of so many frames at so many a second, which reports each half second."""

    def __init__(
        self, name: str = "x", frames: int = 3000, rate: float = 300.0, exit_code: int = 0, stuck: float = 1e9
    ) -> None:
        """`stuck`: after so many seconds no frame comes any more."""
        self.name = name
        self.command = "ffmpeg"
        self.lines = self.said = ()
        self.scenario = Scenario(name=name, type="single", duration=1.0)
        self.frames, self.rate, self.stuck = frames, rate, stuck
        self.took = frames / rate
        self.started: float | None = None
        self._points: list[Point] = []
        self.writes = True
        self._ends_with = exit_code

    def cpu_seconds(self) -> float:
        return 1.5

    async def start(self) -> None:
        self.started = seconds_now()

    async def wait(self) -> None:
        assert self.started is not None
        ends = 1e9 if self.stuck < self.took else self.took
        await asyncio.sleep(max(0.0, self.started + ends - seconds_now()))

    @property
    def exit_code(self) -> int | None:
        if self.started is None or self.stuck < self.took:
            return None
        return None if seconds_now() < self.started + self.took - 1e-9 else self._ends_with

    @property
    def points(self) -> list[Point]:
        """The reports so far: one list, which grows."""
        if self.started is None:
            return self._points
        now = seconds_now() - self.started
        steps = [n / 2 for n in range(1, int(min(now, self.took) * 2) + 1)]
        if now >= self.took - 1e-9:
            steps.append(self.took)
        self._points += [Point(self.started + at, self._report(at)) for at in steps[len(self._points) :]]
        return self._points

    def of(self, stream: Scenario) -> Encode:
        """Return it as it is before it begins to encode a stream; a part of one writes nothing."""
        self.writes = not stream.part
        self.started, self._points = None, []
        return self

    def _report(self, at: float) -> Report:
        frames = round(min(at, self.stuck) * self.rate)
        return Report(
            frames, frames * 4000 if self.writes else None, frames / 30, 0, 0, ended=at >= self.took
        )

    def check_alive(self) -> None:
        pass

    def last_words(self) -> str:
        return "its last words"


PLAIN = Scenario(
    name="x",
    type="single",
    duration=100,
    video_kbps=1000,
    resolution=Resolution(320, 180),
    fps=30,
    encoder="h264",
    preset="fast",
    pace=MAX,
)


def ladder(text: str = "320x180:1000k,160x90:500k", scenario: Scenario = PLAIN) -> Scenario:
    made, wrong = renditions_of(scenario, parse_ladder(text), 0.0)
    assert wrong == []
    return with_ladder(scenario, made)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Give a run whose clock is the loop's, on a machine about which nothing is known."""
    monkeypatch.setattr(phases, "time", SimpleNamespace(monotonic=seconds_now))
    silent = Conditions(None, None, 0.0, None, None, None, None, None)

    async def read_at_edge(*_: object) -> Conditions:
        return silent

    monkeypatch.setattr(measuring, "read_conditions", lambda _: silent)
    monkeypatch.setattr(measuring, "read_at_edge", read_at_edge)
    monkeypatch.setattr(phases.conditions, "read_conditions", lambda _: silent)
    return Bench(tmp_path)


def outlet(rendition: Scenario) -> Outlet:
    """Return an outlet that has counted a megabyte in the first second, and as much again by the tenth."""
    tap = Tap()
    now = seconds_now()
    tap.points += [(now, 0.0), (now + 1, 1e6), (now + 10, 2e6)]
    tap.total = 2_000_000
    tap.mark = lambda: None  # type: ignore[method-assign]
    return Outlet(rendition, StreamTarget("tcp://h:1", "nut"), tap, None, "nut at the sink")


def encode_with(monkeypatch: pytest.MonkeyPatch, *encoders: Encode) -> None:
    """Have these encode the streams of any scenario."""

    @contextlib.asynccontextmanager
    async def them(_: object, scenario: Scenario, *__: object) -> AsyncIterator[Sequence[Any]]:
        yield [
            SimpleNamespace(
                scenario=one,
                encoder=encoder.of(one),
                outlets=[] if one.part else [outlet(rendition) for rendition in one.renditions],
                cpu_seconds=lambda: {"encoder": 1.0},
            )
            for one, encoder in zip(scenario.streams, encoders, strict=True)
        ]

    monkeypatch.setattr(measuring, "ready", them)
    monkeypatch.setattr(measuring, "streaming", them)


async def measure(bench: Bench, frames: int | None, *encoders: Encode) -> tuple[OpenWindow, Trace]:
    """Measure some encodes by the phases alone."""
    opened, trace = OpenWindow(), Trace()
    running = Phases(cast("Meters", bench.meters), trace, bench.display, Host())
    them = [cast("Encoder", encoder) for encoder in encoders]
    try:
        await running.measure_encodes("x", frames, opened, them, lambda: None)
    finally:
        trace.close()
    return opened, trace


# -- the window ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("took", [0.3, 7.3, 200.0])
async def test_the_window_ends_when_the_encode_does(bench: Bench, took: float) -> None:
    """Not at the next second; its energy is that of this time, and the trace lacks a second at most."""
    opened, trace = await measure(bench, 3000, Encode(rate=3000 / took))
    energy = opened.energy()
    assert energy is not None
    assert energy.seconds == pytest.approx(took, abs=0.01)
    assert energy.watts == pytest.approx(30)
    assert took * 10 - 10 <= trace.rows <= took * 10 + 2
    assert bench.display.totals == [(3000, "frames")]
    assert bench.display.updates[-1][0] == 3000


async def test_the_last_of_several_ends_the_window(bench: Bench) -> None:
    """All begin together; how far it is is said of the slowest."""
    fast, slow = Encode("x-1", rate=1000), Encode("x-2", rate=100)
    opened, _ = await measure(bench, 3000, fast, slow)
    assert opened.ended - opened.began == pytest.approx(30, abs=0.01)
    assert fast.started == slow.started == 0
    shown = [done for done, _ in bench.display.updates]
    assert shown == sorted(shown)
    assert shown[3] == pytest.approx(400, abs=101)


async def test_an_end_that_is_not_known_is_shown_as_such(bench: Bench) -> None:
    """A clip that does not say how long it is."""
    await measure(bench, None, Encode())
    assert bench.display.totals == [(1.0, "")]


async def test_one_that_fails_ends_the_window_at_once(bench: Bench) -> None:
    """The others would go on for an hour; its exit code and last words are the error."""
    failing, long = Encode("x-1", frames=600, exit_code=187), Encode("x-2", frames=1_000_000)
    with pytest.raises(StreamFailed, match=r"x-1 failed \(ffmpeg's exit code 187\): its last words"):
        await measure(bench, 3000, failing, long)
    assert seconds_now() == pytest.approx(2, abs=1.1)


async def test_a_lone_one_that_fails_is_an_error_too(bench: Bench) -> None:
    """However short it was."""
    with pytest.raises(StreamFailed, match="exit code 1"):
        await measure(bench, 3000, Encode(frames=30, exit_code=1))


async def test_an_encode_that_stands_still_is_given_long_patience(bench: Bench) -> None:
    """The slowest presets look far ahead: five minutes without a frame, and not before."""
    with pytest.raises(StreamFailed, match="x stands still"):
        await measure(bench, 3000, Encode(stuck=4.0))
    assert seconds_now() == pytest.approx(4 + LONG_PATIENCE, abs=2)


async def test_an_encode_that_never_makes_a_frame_stands_still_from_its_start(bench: Bench) -> None:
    """There is no last frame to count from."""
    never = Encode(stuck=0.0)
    with pytest.raises(StreamFailed, match="x stands still"):
        await measure(bench, 3000, never)
    assert seconds_now() == pytest.approx(LONG_PATIENCE, abs=2)


async def test_meters_that_are_away_cost_the_trace_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edges are read by themselves, and the end is found as promptly."""
    bench.meters.away = (2.0, 6.0)
    encode_with(monkeypatch, Encode())
    (outcome,) = (await bench.run(PLAIN)).outcomes
    assert outcome.energy is not None
    assert outcome.energy.seconds == pytest.approx(10, abs=0.01)
    assert outcome.warnings == ("the trace has a gap: it is away",)


# -- in a run ------------------------------------------------------------------------------------------


async def test_a_file_is_measured_from_its_first_frame_to_its_last(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bitrate is of its content, its speed is told, and its length is no fault."""
    encode_with(monkeypatch, Encode())
    await bench.run(PLAIN)
    (written,) = bench.written
    encode = written["encode"]
    assert (written["status"], written["warnings"], written["pace"]) == ("ok", [], "max")
    assert written["energy"]["seconds"] == pytest.approx(10, abs=0.01)
    assert (encode["whole"], encode["frames"], encode["media_seconds"]) == (True, 3000, 100)
    assert encode["achieved_kbps"] == pytest.approx(3000 * 4000 * 8 / 1000 / 100)
    assert encode["asked_kbps"] == 1000
    assert encode["speed"] == pytest.approx(10, rel=0.01)
    assert encode["bytes_of"] == "nut at the sink"
    assert {"ladder", "part"}.isdisjoint(written)
    assert "renditions" not in encode
    rows = duckdb.sql("SELECT count(*) FROM read_parquet(?)", params=[str(trace_path(bench.results.path))])
    assert 90 <= rows.fetchall()[0][0] <= 103


async def test_a_ladder_is_written_with_its_renditions(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each is, as an output; and what each wrote, by its own counter."""
    encode_with(monkeypatch, Encode())
    await bench.run(ladder())
    (written,) = bench.written
    assert (written["pace"], written["ladder"]) == ("max", "320x180:1000k,160x90:500k")
    assert (written["resolution"], written["bitrate"]) == ("320x180+160x90", "1000k+500k")
    assert written["bitrates"] == ["1000k+500k"]
    common = {"fps": 30, "encoder": "h264", "preset": "fast", "pix_fmt": "yuv420p"}
    assert written["outputs"] == [
        {"rendition": "180p", "resolution": "320x180", "bitrate": "1000k", **common},
        {"rendition": "90p", "resolution": "160x90", "bitrate": "500k", **common},
    ]
    encode = written["encode"]
    figures = {"stream": "x", "megabits": 16, "achieved_kbps": 160, "bytes_of": "nut at the sink"}
    assert encode["renditions"] == [
        {"rendition": "180p", **figures},
        {"rendition": "90p", **figures},
    ]
    assert (encode["megabits"], encode["achieved_kbps"], encode["asked_kbps"]) == (32, 320, 1500)
    assert encode["megapixels"] == pytest.approx(3000 * (320 * 180 + 160 * 90) / 1e6)
    assert (encode["whole"], encode["container"]) == (True, "nut")


@pytest.mark.parametrize("plain", [PLAIN, ladder()], ids=["plain", "ladder"])
async def test_the_parts_of_a_scenario_are_windows_that_went_well(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, plain: Scenario
) -> None:
    """They write nothing, which is no fault of theirs; the whole comes last."""
    encode_with(monkeypatch, Encode())
    await bench.run(*parts_of(structs.replace(plain, split=True)))
    assert [(s["name"], s["status"], s.get("part")) for s in bench.written] == [
        ("x:decode", "ok", "decode"),
        ("x:decode+scale", "ok", "decode+scale"),
        ("x", "ok", None),
    ]
    decode = bench.written[0]
    assert (decode["encode"]["megabits"], decode["encode"]["asked_kbps"]) == (None, None)
    assert (decode["encode"]["frames"], decode["encode"]["bytes_of"]) == (3000, "")
    assert "sink" not in decode


async def test_a_short_encode_is_warned_of(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters are too coarse for it."""
    encode_with(monkeypatch, Encode(rate=3000))
    (outcome,) = (await bench.run(PLAIN)).outcomes
    (warning,) = outcome.warnings
    assert warning.startswith("the encode took 1.00 s: too short")


async def test_an_interrupted_encode_keeps_what_was_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Energy and frames up to then; nothing comes after it."""
    encode_with(monkeypatch, Encode())
    bench.display.cancel_in, bench.display.cancel_after = "x", 4.0
    done = await bench.run(PLAIN, structs.replace(PLAIN, name="y"))
    assert done.interrupted
    (written,) = bench.written
    assert (written["name"], written["status"]) == ("x", "interrupted")
    assert written["energy"]["seconds"] == pytest.approx(4, abs=0.2)
    assert written["encode"]["frames"] == pytest.approx(1200, abs=160)


async def test_a_failed_encode_fails_its_scenario_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is measured."""
    encode_with(monkeypatch, Encode(exit_code=1))
    await bench.run(PLAIN, structs.replace(PLAIN, name="y"))
    assert [s["status"] for s in bench.written] == ["failed", "failed"]
    assert bench.written[0]["error"] == "x failed (ffmpeg's exit code 1): its last words"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ladder(), None),
        (
            ladder("320x180:1000k,160x90:400k"),
            "ladder 320x180:1000k,160x90:500k there and 320x180:1000k,160x",
        ),
        (ladder("320x180:1000k"), "ladder 320x180:1000k,160x90:500k there and 320x180:1000k now"),
        (PLAIN, "ladder 320x180:1000k,160x90:500k there and not given now"),
        (ladder(scenario=structs.replace(PLAIN, pace=Pace(2))), "pace max there and 2x now"),
        (ladder(scenario=structs.replace(PLAIN, pace=Pace())), "pace max there and realtime now"),
        (structs.replace(ladder(), part="decode"), "part not given there and decode now"),
    ],
)
async def test_a_file_is_gone_on_with_by_the_same_ladder_and_pace(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, other: Scenario, said: str | None
) -> None:
    """What is there is not measured again; with another ladder or pace the name is something else."""
    encode_with(monkeypatch, Encode())
    await bench.run(ladder())
    again = Bench(bench.path)
    again.results.earlier = bench.written
    if said is None:
        assert (await again.run(other)).outcomes == []
        return
    with pytest.raises(BadFile) as refused:
        await again.run(other)
    assert said in str(refused.value)
