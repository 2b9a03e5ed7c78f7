"""Results files and traces: whole or not there, and never over somebody else's."""

from __future__ import annotations

import json
import resource
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from powerbench_agent.bench.exits import BadFile
from powerbench_agent.bench.meter.energy import Edge, Mark, MeterKey
from powerbench_agent.bench.run.record import ResultsRecord, Trace, trace_path
from powerbench_agent.core.results import FORMAT, parse_results

if TYPE_CHECKING:
    from pathlib import Path


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


KEY = MeterKey("embedded", "estimate", "cpu", "estimate", "cpu")


def test_the_file_is_there_after_the_first_scenario_and_grows_with_each(tmp_path: Path) -> None:
    """Nothing is written before there is something to write; then the whole file, each time."""
    results = ResultsRecord(tmp_path / "new", {"sink": "null"})
    assert not (tmp_path / "new").exists()
    results.save([{"name": "a"}])
    results.save([{"name": "a"}, {"name": "b"}])
    content = json.loads(results.path.read_text())
    assert [scenario["name"] for scenario in content["scenarios"]] == ["a", "b"]
    assert (content["format"], content["run_id"], content["sink"]) == (FORMAT, results.path.stem, "null")
    assert names(tmp_path / "new") == [results.path.name]


def test_a_name_is_taken_with_a_file_that_can_be_gone_on_with(tmp_path: Path) -> None:
    """Before the first scenario the file is whole: a run that is killed then leaves nothing broken."""
    results = ResultsRecord(tmp_path, {"sink": "null"})
    results.reserve()
    assert parse_results(results.path.read_bytes(), "").scenarios == ()
    results.save([{"name": "a"}])
    assert names(tmp_path) == [results.path.name]


def resumes(directory: Path, made: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether a run goes on with a file whose head was `made`."""
    begun = ResultsRecord(directory, HEAD | made)
    begun.save([{"name": "a"}])
    try:
        ResultsRecord.resumed(begun.path, HEAD | now)
    except BadFile:
        return False
    return True


OLD_FFMPEG = {"path": "/usr/bin/ffmpeg", "version": "5.1", "sha256": "ab"}
NEW_FFMPEG = {**OLD_FFMPEG, "configuration": "--enable-gpl", "libraries": {"libavcodec": "59.37.100"}}


@pytest.mark.parametrize(
    ("made", "now", "same"),
    [
        (OLD_FFMPEG, NEW_FFMPEG, True),
        (NEW_FFMPEG, NEW_FFMPEG | {"path": "/opt/ffmpeg"}, True),
        (NEW_FFMPEG, NEW_FFMPEG | {"sha256": "cd"}, False),
        (NEW_FFMPEG, NEW_FFMPEG | {"libraries": {"libavcodec": "59.38.100"}}, False),
        ({}, NEW_FFMPEG, False),
    ],
)
def test_an_ffmpeg_is_the_same_by_its_bytes_and_libraries(
    tmp_path: Path, made: dict[str, Any], now: dict[str, Any], *, same: bool
) -> None:
    """Not by its place, nor by what files of earlier versions did not hold."""
    assert resumes(tmp_path, {"ffmpeg": made}, {"ffmpeg": now}) is same


def test_files_of_earlier_versions_are_gone_on_with(tmp_path: Path) -> None:
    """They hold the sink and the agents with their secrets, and no name of an ARM CPU."""
    made = {"sink": "rtmp://h/live/KEY", "agents": ["http://me:pw@w:9510"], "host": {"cpu_model": None}}
    now = {
        "sink": "rtmp://h/live/***",
        "agents": ["http://***@w:9510"],
        "host": {"cpu_model": "Raspberry Pi 5"},
    }
    assert resumes(tmp_path, made, now)
    assert not resumes(tmp_path, made, now | {"sink": "rtmp://other/live/***"})
    assert not resumes(tmp_path, {"host": {"cpu_model": "Pi 4"}}, {"host": {"cpu_model": "Pi 5"}})


HEAD: dict[str, Any] = {
    "ffmpeg": {},
    "sink": "embedded",
    "agents": ["embedded"],
    "host": {},
    "settings": {"kind": "suite", "repeat": 2, "order": "random", "seed": 7, "strict": True},
    "rates": {"price_per_kwh": 0.3, "currency": "EUR", "gco2e_per_kwh": None, "gco2e_source": ""},
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"settings": {**HEAD["settings"], "kind": "multi"}}, "by run suite: give the same"),
        ({"settings": {**HEAD["settings"], "repeat": 5}}, "with --repeat 2: give the same"),
        ({"settings": {**HEAD["settings"], "seed": 1}}, "with --seed 7: give the same"),
        ({"settings": {**HEAD["settings"], "strict": False}}, "with --strict: give the same"),
        ({"rates": {}}, "with the rates price_per_kwh 0.3, currency EUR: give the same --rates"),
        ({"sink": "null"}, "with another sink"),
        ({"host": {"cpus": 4}}, "on a machine with another cpus"),
    ],
)
def test_a_run_is_gone_on_with_as_it_was_begun(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    """Flags, rates and machine are those of the file, else what they were is named; the same go on."""
    begun = ResultsRecord(tmp_path, HEAD)
    begun.save([{"name": "a"}])
    assert ResultsRecord.resumed(begun.path, HEAD).earlier == [{"name": "a"}]
    with pytest.raises(BadFile) as bad:
        ResultsRecord.resumed(begun.path, HEAD | changed)
    assert f"--resume {begun.path}: it was made {said}" in str(bad.value)


@pytest.mark.parametrize("length", [0, 40])
def test_a_file_that_was_cut_off_is_not_gone_on_with(tmp_path: Path, length: int) -> None:
    """What was cut off, or is empty, is said to be that, with what to do."""
    begun = ResultsRecord(tmp_path, HEAD)
    begun.save([{"name": "a"}])
    begun.path.write_bytes(begun.path.read_bytes()[:length])
    with pytest.raises(BadFile, match=r"it was cut off \(line .*\): take a whole copy, or measure again"):
        ResultsRecord.resumed(begun.path, HEAD)


def test_what_a_killed_run_has_left_of_its_trace_is_removed(tmp_path: Path) -> None:
    """The half of a trace that was being written goes when the run goes on; the trace itself stays."""
    begun = ResultsRecord(tmp_path, HEAD)
    begun.save([{"name": "a"}])
    trace = trace_path(begun.path)
    trace.write_bytes(b"whole")
    trace.with_name(f".{trace.name}.part").write_bytes(b"half")
    ResultsRecord.resumed(begun.path, HEAD)
    assert sorted(names(tmp_path)) == sorted([begun.path.name, trace.name])


def test_a_file_of_the_same_second_is_left_alone(tmp_path: Path) -> None:
    """A name that is taken is not written over: the next run has its own."""
    results = ResultsRecord(tmp_path, {})
    (tmp_path / results.path.name).write_text("another run's")
    first = results.path
    results.save([{"name": "b"}])
    assert results.path.name == f"{first.stem}_2.json"
    assert first.read_text() == "another run's"
    assert json.loads(results.path.read_text())["run_id"] == results.path.stem


def test_a_directory_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """An error in writing is an error, and no temporary file stays."""
    (tmp_path / "file").write_text("in the way")
    results = ResultsRecord(tmp_path / "file", {})
    with pytest.raises(OSError, match="file"):
        results.save([{"name": "a"}])
    assert names(tmp_path) == ["file"]


def test_the_trace_is_parquet_with_a_row_a_reading(tmp_path: Path) -> None:
    """A reading that is seen twice is one row; every row names its source."""
    trace = Trace()
    assert trace.take("s", "window", Edge(1.0, {KEY: Mark(5.0, 10.0)}))
    assert not trace.take("s", "window", Edge(1.1, {KEY: Mark(5.0, 10.0)}))
    assert trace.take('it\'s "a"', "window", Edge(1.2, {KEY: Mark(6.0, 10.1)}))
    path = trace_path(tmp_path / "it's a run.json")
    trace.save(path, "it's a run")
    trace.close()
    rows = duckdb.sql(
        "SELECT run_id, scenario, source, monotonic, joules FROM read_parquet(?) ORDER BY monotonic",
        params=[str(path)],
    )
    assert rows.fetchall() == [
        ("it's a run", "s", "estimate", 10.0, 5.0),
        ("it's a run", 'it\'s "a"', "estimate", 10.1, 6.0),
    ]
    assert names(tmp_path) == ["it's a run_trace.parquet"]


def test_a_working_copy_that_breaks_ends_no_window(tmp_path: Path) -> None:
    """If the trace has no room, readings continue, and a torn trace is never saved."""
    trace = Trace()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        news = [trace.take("s", "window", Edge(n, {KEY: Mark(n, n)})) for n in map(float, range(2000))]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert all(news)
    with pytest.raises(OSError, match=r"its working copy in .*: File too large"):
        trace.save(tmp_path / "trace.parquet", "run")
    assert names(tmp_path) == []
    trace.close()


def test_repeats_are_concluded_from(tmp_path: Path) -> None:
    """With repeats the file says how sure each difference is; with one of each, nothing."""

    def scenario(group: str, block: int, watts: float) -> dict[str, Any]:
        energy = {
            "source": "rapl",
            "measured": True,
            "seconds": 60,
            "joules": watts * 60,
            "mean_watts": watts,
        }
        name = f"{group}#{block + 1}" if block else group
        kind = "baseline" if group == "idle" else "single"
        return {"name": name, "group": group, "block": block, "type": kind, "status": "ok", "energy": energy}

    results = ResultsRecord(tmp_path, {})
    once = [scenario("idle", 0, 10), scenario("x", 0, 15)]
    results.save(once)
    assert json.loads(results.path.read_text())["conclusions"] == []
    results.save([*once, scenario("idle", 1, 11), scenario("x", 1, 16)])
    [found] = json.loads(results.path.read_text())["conclusions"]
    # Equal variances: two degrees of freedom, t(0.975) = 4.302653 in every table; error² = 0.5/2 + 0.5/2.
    assert (found["group"], found["source"]) == ("x", "rapl")
    half = 4.302653 * 0.5**0.5
    assert (found["low"], found["high"]) == pytest.approx((5 - half, 5 + half), rel=1e-6)
