"""`powerbench analyze` as people meet it: tables, files beside, exit codes; and out of a Prometheus."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from places import CAPTURES, GOLDEN
from rich.console import Console
from trees import run_as_nobody

from powerbench_agent.bench import cli
from powerbench_agent.bench.analyze import export, prometheus, survey, tables
from powerbench_agent.bench.statistics.groups import analyze
from powerbench_agent.core.prometheus_windows import NODE, POWER, RAPL, PastWindow, Series, energy_of
from powerbench_agent.core.results import Rates, parse_results

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD = CAPTURES / "old_results_single.json"
BEGIN = 1_700_000_000
LISTING = (
    "import sys, duckdb, rich.console, scipy\n"
    "from powerbench_agent.bench import cli\n"
    "from powerbench_agent.bench.analyze import cli as analyze, survey, tables\n"
)
RUN = """
sys.stderr = sys.stdout
print(cli.main(["analyze", sys.argv[1], "closed"]))
"""


def window(watts: float, *sources: str) -> dict[str, Any]:
    names = sources or ("rapl",)
    share = watts / len(names)
    return {
        "source": " + ".join(names),
        "measured": "estimate" not in names,
        "seconds": 60.0,
        "joules": watts * 60,
        "mean_watts": watts,
        "parts": [{"component": "cpu", "source": n, "joules": share * 60, "watts": share} for n in names],
    }


def scenario(name: str, streams: int, watts: float, block: int, source: str) -> dict[str, Any]:
    described = {
        "name": f"{name}#{block + 1}" if block else name,
        "group": name,
        "block": block,
        "type": "single" if streams else "baseline",
        "status": "ok",
        "bitrate": "2500k" if streams else "0k",
        "bitrates": ["2500k"] * streams,
        "streams": streams,
        "resolution": "1280x720" if streams else "N/A",
        "fps": 30 if streams else 0,
        "duration": 60,
        "encoder": "h264" if streams else "",
        "preset": "veryfast" if streams else "",
        "outputs": [],
        "start_time": BEGIN + 100.0 * block,
        "end_time": BEGIN + 100.0 * block + 60,
        "energy": window(watts, source),
        "warnings": [f"speed {0.8 + block / 100}: too slow"] if streams == 4 else [],
    }
    if streams:
        frames, speed = 1800.0 * streams, 0.81 if streams == 4 else 0.995
        described["encode"] = {
            "frames": frames,
            "megabits": 150.0 * streams,
            "seconds": 60.0,
            "min_speed": speed,
            "dropped": 0,
            "duplicated": 0,
        }
    return described


def document(source: str = "rapl", repeats: int = 5, **more: Any) -> dict[str, Any]:
    """Return a run of a baseline, one, two and four streams, whose figures are round."""
    scenarios = []
    for block in range(repeats):
        off = (block % 3 - 1) / 50
        scenarios += [
            scenario("baseline", 0, 4.0 + off, block, source),
            scenario("720p30", 1, 5.0 - off, block, source),
            scenario("720p30 x2", 2, 6.0 + off, block, source),
            scenario("720p30 x4", 4, 8.0 - off, block, source),
            scenario("no more than idle", 1, 4.01 + off, block, source),
        ]
    last = scenario("no more than idle", 1, 4.0, repeats - 1, source)
    failed = {**last, "name": "1080p", "status": "failed", "error": "ffmpeg exited with 1"}
    return {
        "format": 2,
        "test_date": "2026-01-01T12:00:00+00:00",
        "run_id": "test_results_20260101_120000",
        "host": {"cpu_model": "A CPU", "cpus": 8, "kernel": "6.1", "machine": "x86_64", "governor": None},
        "ffmpeg": {"version": "5.1", "sha256": "abc"},
        "sink": "null",
        "rates": {
            "price_per_kwh": 0.3,
            "currency": "EUR",
            "gco2e_per_kwh": 380,
            "gco2e_source": "a table",
        },
        "scenarios": [*scenarios, failed],
        **more,
    }


def picture(vmaf: float, rendition: str = "") -> dict[str, Any]:
    return {
        **dict.fromkeys(("size", "encoded_size"), "1920x1080"),
        "frames": 300,
        "pix_fmt": "yuv420p",
        "scaler": "",
        "scored_by": "9.0",
        "rendition": rendition,
        "vmaf": {"mean": vmaf, "harmonic_mean": vmaf - 0.5, "p1": vmaf - 9, "minimum": 0.0},
        "vmaf_model": "vmaf_v0.6.1",
        "xpsnr": {"minimum": vmaf / 2, "y": 40.0, "u": 40.0, "v": 40.0},
        "psnr": {"average": vmaf / 2 + 1, "y": 40.0, "u": 40.0, "v": 40.0},
        "ssim": {"average": vmaf / 100, "y": 0.9},
    }


LADDER = {
    "ladder": "1920x1080:5M,1280x720:2500k,854x480:1M",
    "resolution": "1920x1080+1280x720+854x480",
    "bitrate": "5000k+2500k+1000k",
    "bitrates": ["5000k+2500k+1000k"],
    "sink": "null",
}
STEPS = {"": (15.0, 4.0), "decode+scale": (9.0, 16.0), "decode": (7.0, 20.0)}  # part: watts, speed


def ladders() -> dict[str, Any]:
    """Return a run of a stream, ladders, and an encode at full speed with its steps, of round figures."""
    scenarios = []
    for block in range(5):
        off = (block % 3 - 1) / 50
        scenarios.append(scenario("baseline", 0, 4.0 + off, block, "rapl"))
        for name, streams, watts, quality, settings in (
            ("720p30", 1, 5.0, [picture(93.25)], {"sink": "rtmp"}),
            ("abr", 1, 8.0, [picture(v, r) for v, r in ((95.0, "1080p"), (80.0, "480p"))], LADDER),
            ("abr x2", 2, 12.0, [], LADDER),
        ):
            one = scenario(name, streams, watts - off, block, "rapl") | settings
            one["encode"] |= {
                "media_seconds": 60.0 * streams,
                "speed": 1.0,
                "megapixels": 1658.88 * streams,
                "cpu_seconds": {"encoder": 30.0 * streams},
                "container": "flv",
                "bytes_of": "nut at the sink" if settings is LADDER else "flv as sent",
                "quality": {"of": "what was encoded in the window", "streams": quality},
            }
            scenarios.append(one)
        for part, (watts, speed) in STEPS.items():
            step = scenario(f"fast {part}".rstrip(), 1, watts + off, block, "rapl")
            step |= {"group": "fast", "pace": "max", "part": part or None, "sink": "null"}
            step["encode"] |= {
                "frames": 1800 * speed,
                "media_seconds": 60 * speed,
                "speed": speed,
                "megapixels": None if part else 1658.88 * speed,
                "megabits": None if part else 600.0,
                "cpu_seconds": {"encoder": 240.0},
                "bytes_of": "flv as sent",
            }
            scenarios.append(step)
    return document(repeats=0, format=3) | {"scenarios": scenarios}


def test_each_rendition_of_a_ladder_has_a_row_of_bytes_and_scores() -> None:
    """It comes after the ladder's, whose energy it has no part of by itself."""
    content = ladders()
    for one in content["scenarios"]:
        if one["group"] == "abr":
            one["outputs"] = [
                {"rendition": "1080p", "resolution": "1920x1080", "encoder": "h264", "bitrate": "5000k"},
                {"rendition": "480p", "resolution": "854x480", "encoder": "h264", "rate": "crf=30"},
                "not one of ours",
            ]
            one["encode"]["renditions"] = [
                {"stream": "abr", "rendition": "1080p", "achieved_kbps": 5100.0 + one["block"]},
                {"stream": "abr", "rendition": "480p", "achieved_kbps": None},
                {"rendition": 7},
            ]
    found = export.rows(analyze(parse_results(json.dumps(content).encode(), "run")), Rates())
    place = next(n for n, row in enumerate(found) if row["group"] == "abr" and row["type"] != "rendition")
    large, small = found[place + 1 : place + 3]
    assert (large["type"], large["rendition"], large["resolution"]) == ("rendition", "1080p", "1920x1080")
    assert (large["kbps"], large["vmaf"], large["bitrate"]) == (5102.0, 95.0, "5000k")
    assert (small["kbps"], small["vmaf"], small["rate"]) == (None, 80.0, "crf=30")
    assert large["mean_watts"] is None
    assert found[place]["vmaf"] is None
    assert sum(row["type"] == "rendition" for row in found) == 2


def written(directory: Path, content: dict[str, Any] | None = None, name: str = "20260101_120000") -> Path:
    path = directory / f"test_results_{name}.json"
    path.write_text(json.dumps(content or document()))
    return path


def shown(content: dict[str, Any], width: int, *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    results = parse_results(json.dumps(content).encode(), "run")
    found = analyze(results)
    tables.say(console, tables.head(results))
    rates = results.rates
    tables.show(console, tables.analysis_tables(found, rates), tables.sentences(found, rates))
    return out.getvalue()


# -- what people see -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "width", "terminal"),
    [("analyze", 100, False), ("analyze_80", 80, True), ("analyze_100", 100, True)],
)
def test_the_tables_are_the_golden_ones(name: str, width: int, terminal: bool) -> None:  # noqa: FBT001 - a case
    """A fixed file prints as the golden page, in a pipe and in terminals of 80 and 100 columns."""
    text = shown(document("estimate"), width, terminal=terminal)
    assert text == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_ladders_paces_and_steps_print_as_the_golden_page() -> None:
    """Measured, so ranked; with renditions' scores, delivered units and where the joules of a frame go."""
    text = shown(ladders(), 100, terminal=False)
    assert text == (GOLDEN / "analyze_ladders.txt").read_text(encoding="utf-8")


def test_every_table_fits_a_terminal_of_100_columns() -> None:
    """A box stands around each of them, and no line is longer."""
    lines = shown(ladders(), 100, terminal=True).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("╭") for line in lines) == 11


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_no_figure_is_cut(width: int) -> None:
    """At any width every figure of the plain page is on the terminal's, and no ellipsis."""
    figures = {
        word
        for line in shown(document(), 100, terminal=False).splitlines()
        for word in line.split()
        if word.replace(".", "").lstrip("+-").isdigit() and "." in word
    }
    text = shown(document(), width, terminal=True)
    assert [figure for figure in figures if figure not in text] == []
    assert "…" not in text


def test_every_table_of_an_estimate_says_so() -> None:
    """Each line with a figure of energy names the estimate it comes from."""
    blocks = shown(document("estimate"), 100, terminal=False).split("\n\n")
    lines = [line for block in blocks[:-1] for line in block.splitlines() if "720p30" in line]
    assert len(lines) >= 15
    assert all(line.endswith("estimate (E)") for line in lines)


def test_a_difference_too_small_to_see() -> None:
    """The group that draws 0.01 W more than idle has no detectable difference, with what could be seen."""
    text = shown(document(), 100, terminal=False)
    assert "no detectable difference (smallest detectable: 0.0" in text


def test_a_pipe_gets_no_escape_codes() -> None:
    """Neither colour nor border reaches a file; a terminal gets the box."""
    plain = shown(document(), 100, terminal=False)
    assert "\x1b" not in plain
    assert "╭" not in plain
    assert "╭" in shown(document(), 100, terminal=True)


def test_what_looks_like_markup_or_a_control_is_text() -> None:
    """A scenario's name cannot colour or clear the terminal."""
    content = document(repeats=1)
    content["scenarios"][1]["group"] = "[red]x\x1b[2J"
    text = shown(content, 100, terminal=False)
    assert "[red]x?[2J" in text
    assert "\x1b" not in text


# -- the verb ------------------------------------------------------------------------------------------


def test_the_newest_file_and_a_csv_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without FILE it is the newest by the date in its name; a row a group lies beside it."""
    newest, older = written(tmp_path), written(tmp_path, name="20250101_120000")
    os.utime(newest, (1, 1))
    assert cli.main(["analyze", "--output-dir", str(tmp_path)]) == 0
    with newest.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", ""]
    assert float(rows[1]["delta_watts"]) == pytest.approx(2.0, abs=0.02)
    assert not older.with_suffix(".csv").exists()
    assert str(newest.with_suffix(".csv")) in capsys.readouterr().out


def test_files_where_they_were_asked_for(tmp_path: Path) -> None:
    """--csv, --json and --parquet write there, and nothing lies beside the results."""
    path = written(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    wanted = [f"--{kind}={out / f'a.{kind}'}" for kind in ("csv", "json", "parquet")]
    assert cli.main(["analyze", str(path), *wanted]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["a.csv", "a.json", "a.parquet"]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [path.name]


def test_every_file_that_is_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each of CSV, JSON and Parquet, of one run and of many."""
    path = written(tmp_path)
    files = {kind: tmp_path / f"a.{kind}" for kind in ("csv", "json", "parquet")}
    wanted = {kind: f"--{kind}={file}" for kind, file in files.items()}
    assert cli.main(["analyze", str(path), *wanted.values()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [f"CSV: {files['csv']}", f"JSON: {files['json']}", f"Parquet: {files['parquet']}"]
    assert cli.main(["analyze", "--all", str(tmp_path), wanted["csv"], wanted["parquet"]]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [lines[-3], lines[-1]]


def test_a_place_for_the_csv_that_is_none_has_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing can be written beside the file, --csv is named; where that was given, it is not."""
    path = written(tmp_path)
    path.with_suffix(".csv").mkdir()
    assert cli.main(["analyze", str(path)]) == 1
    assert capsys.readouterr().err.rstrip().endswith("give --csv FILE to have it elsewhere")
    assert cli.main(["analyze", str(path), "--csv", str(path.with_suffix(".csv"))]) == 1
    assert "--csv" not in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--output-dir", "--all"])
def test_a_directory_that_may_not_be_listed_is_said_to_be_one(tmp_path: Path, flag: str) -> None:
    """Permission denied is not "no results there"."""
    written(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o700)
    said = run_as_nobody(LISTING, RUN, tmp_path, flag)
    assert said.splitlines()[-1] == "69"
    assert "closed: cannot list it: Permission denied" in said


def test_a_price_that_cannot_be_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A negative price of the file makes no cost."""
    path = written(tmp_path, document(rates={"price_per_kwh": -0.3, "currency": "EUR"}))
    assert cli.main(["analyze", str(path)]) == 0
    text = capsys.readouterr().out
    assert "Note: the file's price_per_kwh is -0.3, which is impossible: it is left out." in text
    assert "EUR" not in text


def test_many_runs_leave_out_energy_that_cannot_be(tmp_path: Path) -> None:
    """A negative mean power is in no mean of --all either."""
    content = document(repeats=2)
    content["scenarios"][6]["energy"]["mean_watts"] = -5.0
    written(tmp_path, content)
    (found,) = (row for row in survey.survey(tmp_path).rows if row["group"] == "720p30")
    assert found["n"] == 1
    assert found["mean_watts"] == content["scenarios"][1]["energy"]["mean_watts"]


def test_many_runs_keep_films_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two clips under one name are two rows of --all, each with its own J/frame."""
    content = document(repeats=2)
    for place, sha256 in ((1, "1"), (6, "2")):
        content["scenarios"][place] |= {"input": "/film.mp4", "input_sha256": sha256}
    written(tmp_path, content)
    assert [row["n"] for row in survey.survey(tmp_path).rows if row["group"] == "720p30"] == [1, 1]
    assert cli.main(["analyze", "--all", str(tmp_path)]) == 0
    assert "J/frame, all of host" in capsys.readouterr().out


def test_many_runs_have_grades_and_say_which_ladders_are_none(tmp_path: Path) -> None:
    """The grade is a column; a file whose ladders were one stream is named, and has no J/frame of them."""
    content = document(repeats=1)
    content["scenarios"][1]["outputs"] = [{}, {}]
    path = written(tmp_path, content)
    found = survey.survey(tmp_path)
    rows = {row["group"]: row for row in found.rows}
    assert {row["grade"] for row in rows.values()} == {"1"}
    assert (rows["720p30"]["joules_per_frame"], rows["720p30 x2"]["joules_per_frame"]) == (None, 5.98 / 60)
    (note,) = found.notes
    assert note.endswith(f"measure again: {path}")


def test_flags_take_the_place_of_the_files_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A price and an intensity of the command line count, and the intensity's source is printed."""
    path = written(tmp_path)
    rates = ["--price-per-kwh=1", "--currency=CHF", "--carbon-intensity=1000", "--carbon-source=my meter"]
    assert cli.main(["analyze", str(path), *rates]) == 0
    text = capsys.readouterr().out
    assert "A kWh costs 1 CHF." in text
    assert "A kWh emits 1000 gCO2e (source: my meter)." in text
    assert "a table" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no.json"], 78, ["no.json", "No such file"]),
        (["--output-dir", "nowhere"], 69, ["nowhere", "--output-dir"]),
        (["--all", "nowhere"], 69, ["nowhere"]),
        (["broken.json"], 78, ["broken.json", "line 2, column 3", "mend it"]),
        (["cut.json"], 78, ["cut.json", "it was cut off", "line 1, column", "measure again"]),
        (["nothing.json"], 78, ["nothing.json", "it was cut off"]),
        (["foreign.json"], 78, ["foreign.json", "scenarios", "test_results_"]),
        (["newer.json"], 78, ["newer.json", "99", "update powerbench"]),
        (["empty.json"], 1, ["empty.json", "nothing to analyse"]),
        (["good.json", "--csv", "good.json"], 2, ["good.json", "not written over"]),
        (["good.json", "--csv", "/proc/nowhere/x.csv"], 1, ["/proc/nowhere/x.csv", "cannot write"]),
        (["good.json", "--json", "x", "--csv", "./x"], 2, ["--json", "the CSV as well", "its own"]),
        (["good.json", "--json", "good.csv"], 2, ["--json", "good.csv"]),
        (["--all", ".", "--csv", "x", "--parquet", "x"], 2, ["--parquet", "the CSV as well"]),
        (["negative.json"], 1, ["no scenario has energy that can be"]),
        (["good.json", "--price-per-kwh", "-1"], 2, ["--price-per-kwh", "not negative"]),
        (["good.json", "--carbon-intensity", "300"], 2, ["--carbon-source"]),
        (["good.json", "--currency", "EUR"], 2, ["--price-per-kwh"]),
        (["good.json", "--prometheus", "localhost:9090"], 2, ["--prometheus", "http://"]),
        (["good.json", "--instance", "w1"], 2, ["--instance", "--prometheus"]),
        (["good.json", "--all", "."], 2, ["--all", "FILE"]),
        (["good.json", "--prometheus", "http://127.0.0.1:1"], 69, ["no Prometheus answers"]),
    ],
)
def test_a_mistake_is_one_line(  # noqa: PLR0917 - fixtures and the case
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: list[str],
) -> None:
    """What is wrong, where, and what to do, with the contract's exit code."""
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("broken", "{\n  oops\n"),
        ("cut", json.dumps(document())[:500]),
        ("nothing", ""),
        ("foreign", '{"a": 1}'),
        ("newer", '{"format": 99, "scenarios": []}'),
        ("empty", '{"format": 2, "scenarios": []}'),
        ("good", json.dumps(document())),
        ("negative", json.dumps({"scenarios": [scenario("a", 1, -5.0, 0, "rapl")]})),
    ):
        Path(f"{name}.json").write_text(content)
    try:
        found = cli.main(["analyze", *arguments])
    except SystemExit as usage:
        found = int(str(usage.code))
    assert found == code
    (line,) = capsys.readouterr().err.splitlines()
    assert [word for word in words if word not in line] == []


def test_without_the_extra_it_names_it(tmp_path: Path) -> None:
    """On a worker's install analyze and compare are exit 69 and name what to install."""
    for arguments in (["analyze"], ["compare", "a", "b"]):
        program = (
            "import sys\nsys.modules['scipy'] = None\nfrom powerbench_agent.bench.cli import main\n"
            f"sys.exit(main({arguments!r}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 69
        assert "powerbench-agent[bench]" in done.stderr


def test_help_loads_no_analysis(tmp_path: Path) -> None:
    """--help of the whole and of the verb loads neither scipy, numpy, duckdb nor rich."""
    for arguments in (["--help"], ["analyze", "--help"], ["compare", "--help"]):
        program = (
            "import sys\nfrom powerbench_agent.bench.cli import main\n"
            f"try:\n    main({arguments!r})\nexcept SystemExit as done:\n    assert done.code == 0\n"
            "assert not {'scipy', 'numpy', 'duckdb', 'rich', 'aiohttp', 'asyncio'} & set(sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr


# -- old files, and a Prometheus -----------------------------------------------------------------------


def test_an_old_file_is_listed_and_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file without energy shows its scenarios, and one line that names --prometheus."""
    path = tmp_path / "test_results_1.json"
    shutil.copy(OLD, path)
    assert cli.main(["analyze", str(path)]) == 0
    text = capsys.readouterr().out
    assert "2.5 Mbps Stream" in text
    assert text.count("--prometheus") == 1
    assert "W ±" not in text


@contextmanager
def a_prometheus(series: list[dict[str, Any]], status: int = 200) -> Iterator[str]:
    """Serve one answer to every query; give its URL."""
    answer = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": series}}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def counter(name: str, watts: float, instance: str = "w1:9510", **labels: str) -> dict[str, Any]:
    values = [[BEGIN + second, str(watts * second)] for second in range(0, 301, 15)]
    return {"metric": {"__name__": name, "instance": instance, "job": "a", **labels}, "values": values}


def gauge(name: str, value: float, instance: str = "w1:9501", **labels: str) -> dict[str, Any]:
    values = [[BEGIN + second, str(value)] for second in range(0, 301, 15)]
    return {"metric": {"__name__": name, "instance": instance, "job": "b", **labels}, "values": values}


def parsed(*series: dict[str, Any]) -> list[Series]:
    content = json.dumps({"status": "success", "data": {"result": series}}).encode()
    return prometheus.series_in(content, 200, "http://p")


def test_an_old_files_energy_comes_from_prometheus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A counter of 12 W over windows that begin between samples is 12 W, with the containers beside it."""
    path = tmp_path / "test_results_1.json"
    shutil.copy(OLD, path)
    node = counter(NODE, 12.0, component="cpu", source="rapl")
    with a_prometheus([node, gauge(prometheus.ENGINE, 3.5), gauge(prometheus.CONTAINERS, 40.0)]) as url:
        assert cli.main(["analyze", str(path), "--prometheus", url]) == 0
    assert "interpolated" in capsys.readouterr().out
    with path.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean_watts"]) for row in rows] == pytest.approx([12.0] * 3)
    assert [row["source"] for row in rows] == ["rapl"] * 3
    assert [row["docker_engine_cpu_percent"] for row in rows[:2]] == ["3.5", "3.5"]
    assert [row["docker_containers_cpu_percent"] for row in rows[:2]] == ["40.0", "40.0"]


def test_a_prometheus_without_the_windows_is_exit_69(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No sample around any window, or an answer that is none, says what to look at."""
    path = tmp_path / "test_results_1.json"
    shutil.copy(OLD, path)
    with a_prometheus([]) as url:
        assert cli.main(["analyze", str(path), "--prometheus", url]) == 69
    assert NODE in capsys.readouterr().err
    with pytest.raises(prometheus.NotThere, match="right URL"):
        prometheus.series_in(b"<html>", 404, "http://x")
    with pytest.raises(prometheus.NotThere, match="too many"):
        prometheus.series_in(b'{"status": "error", "error": "too many samples"}', 422, "http://x")


def test_a_file_with_energy_of_its_own_keeps_it() -> None:
    """A Prometheus is not named as the source of energy that the file holds itself."""
    mine = parse_results(json.dumps(document()).encode(), "run")
    with a_prometheus([gauge(prometheus.ENGINE, 3.5)]) as url:
        filled = prometheus.fill(mine, url)
    assert filled.results == mine
    assert filled.notes == []


def test_zones_within_or_beside_one_another_count_once() -> None:
    """Packages and dram are summed; cores, psys and mirrored mmio twins are not."""
    zones = [
        counter(RAPL, 10.0, package="0", zone="package", path="intel-rapl:0"),
        counter(RAPL, 10.0, package="0", zone="package", path="intel-rapl-mmio:0"),
        counter(RAPL, 7.0, package="0", zone="core", path="intel-rapl:0:0"),
        counter(RAPL, 2.0, package="0", zone="dram", path="intel-rapl:0:1"),
        counter(RAPL, 30.0, zone="psys", path="intel-rapl:1"),
    ]
    found = energy_of(parsed(*zones), PastWindow(BEGIN + 20, BEGIN + 80)).energy
    assert found is not None
    assert found.mean_watts == pytest.approx(12.0)
    assert [(p.component, p.source) for p in found.parts] == [("cpu", "rapl"), ("dram", "rapl")]


def test_the_nodes_own_counter_goes_before_raw_zones_and_gauges() -> None:
    """Of three ways to know it the best that has samples is taken; a gauge's mean is the last."""
    node = counter(NODE, 5.0, component="cpu", source="estimate")
    zone = counter(RAPL, 6.0, package="0", zone="package-0")
    watts = gauge(POWER, 7.0, package="0", zone="package")
    for series, expected in (([node, zone, watts], 5.0), ([zone, watts], 6.0), ([watts], 7.0)):
        found = energy_of(parsed(*series), PastWindow(BEGIN + 20, BEGIN + 80)).energy
        assert found is not None
        assert found.mean_watts == pytest.approx(expected)
        assert found.measured == (expected != 5.0)


def test_a_part_of_the_energy_never_passes_for_the_whole() -> None:
    """A counter that ends within the window leaves it without a figure."""
    node = counter(NODE, 5.0, component="cpu", source="rapl")
    gone = counter(NODE, 9.0, component="gpu", source="nvml")
    gone["values"] = gone["values"][:4]
    assert energy_of(parsed(node, gone), PastWindow(BEGIN + 20, BEGIN + 80)).energy is None
    assert energy_of(parsed(node, gone), PastWindow(BEGIN + 100, BEGIN + 160)).energy is not None


def test_two_workers_are_not_one() -> None:
    """Of several workers one is to be named; its Docker exporter on another port is its own."""
    one = counter(NODE, 5.0, "w1:9510", component="cpu", source="rapl")
    other = counter(NODE, 9.0, "w2:9510", component="cpu", source="rapl")
    engine = gauge(prometheus.ENGINE, 3.0, "w1:9501")
    window = PastWindow(BEGIN + 20, BEGIN + 80)
    with pytest.raises(prometheus.NotThere, match=r"w1, w2.*--instance"):
        prometheus.of_worker(parsed(one, other, engine), window, "")
    for name in ("w1:9510", "w1"):
        found = prometheus.of_worker(parsed(one, other, engine), window, name)
        assert [s.labels["instance"] for s in found] == ["w1:9510", "w1:9501"]


# -- many runs -----------------------------------------------------------------------------------------


def test_many_runs_are_a_row_a_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file below the directory, with the figures that analyze has of each; broken ones are named."""
    (tmp_path / "deep").mkdir()
    for name, directory in (("1", tmp_path), ("2", tmp_path / "deep")):
        written(directory, document(run_id=f"run{name}"), name)
    (tmp_path / "test_results_3.json").write_text("{")
    (tmp_path / "test_results_4.json").write_text('{"format": 99, "scenarios": []}')
    shutil.copy(OLD, tmp_path / "test_results_5.json")
    assert cli.main(["analyze", "--all", str(tmp_path), "--csv", str(tmp_path / "all.csv")]) == 0
    text = capsys.readouterr().out
    assert "no results in them" in text
    assert "newer format" in text
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run_id"] for row in rows].count("run1") == 4
    assert [row["mean_watts"] for row in rows if row["run_id"] == "test_results_5"] == ["", ""]
    mine = next(row for row in rows if row["run_id"] == "run2" and row["group"] == "720p30 x2")
    ours = analyze(parse_results(json.dumps(document()).encode(), "run"))
    group = next(group for group in ours.tests if group.name == "720p30 x2")
    assert group.versus is not None
    assert group.per_frame is not None
    assert group.per_frame.beyond is not None
    expected = {
        "mean_watts": group.watts.mean,
        "delta_watts": group.versus.delta,
        "p_value": group.versus.p,
        "detectable_watts": group.versus.detectable,
        "joules_per_frame": group.per_frame.whole.mean,
        "joules_per_frame_beyond_idle": group.per_frame.beyond.delta,
    }
    assert {name: float(mine[name]) for name in expected} == pytest.approx(expected)


def test_the_trace_has_the_highest_second(tmp_path: Path) -> None:
    """The peak is the largest mean over a second of all counters together, not the grain of neighbours."""
    written(tmp_path, document(repeats=1), "1")
    trace = tmp_path / "test_results_1_trace.parquet"
    # 5 W and 1 W, every 0.1 s; 20 J come at once within the third second, so 26 W over it.
    duckdb.sql("""
        SELECT '720p30' AS scenario, 'window' AS phase, n / 10 AS monotonic, 'a' AS agent, 'cpu' AS component,
            'rapl' AS source, k AS key,
            CASE k WHEN 'x' THEN n / 2 + CASE WHEN n >= 35 THEN 20 ELSE 0 END ELSE n / 10 END AS joules
        FROM range(100) r(n), (VALUES ('x'), ('y')) t(k)
    """).write_parquet(str(trace))
    peaks = {row["group"]: row["peak_watts"] for row in survey.survey(tmp_path).rows}
    assert peaks.pop("720p30") == pytest.approx(26.0)
    assert set(peaks.values()) == {None}


def test_a_broken_trace_loses_its_peak_alone(tmp_path: Path) -> None:
    """A trace that is not Parquet is named, and the results beside it still count."""
    written(tmp_path, name="1")
    (tmp_path / "test_results_1_trace.parquet").write_text("no parquet")
    found = survey.survey(tmp_path)
    assert len(found.rows) == 4
    assert any("test_results_1_trace.parquet" in note for note in found.notes)
