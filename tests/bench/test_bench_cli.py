"""`powerbench` as users see it: a mistake gives one clear line, the right exit code, and no files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("powerbench")
WITHOUT = """
import sys
sys.modules[{module!r}] = None  # as if it were not installed
from powerbench_agent.bench.cli import main
sys.exit(main(["run", "single"]))
"""


# An ffmpeg that tells its version, one encoder and one protocol; the rest of it differs between tests.
STAND_IN = """#!/bin/sh
case "$*" in
    *-version*) echo "ffmpeg version {version} Copyright (c) the FFmpeg developers" ;;
    *-encoders*) echo " V..... libx264              H.264" ;;
    *-protocols*) printf 'Output:\\n  file\\n  {protocol}\\n' ;;
    *) {otherwise} ;;
esac
"""


def stand_in(
    directory: Path, *, version: str = "7.1", protocol: str = "rtmp", otherwise: str = "exit 0"
) -> str:
    """Write an ffmpeg that does as told; return its path."""
    path = directory / "ffmpeg"
    path.write_text(STAND_IN.format(version=version, protocol=protocol, otherwise=otherwise))
    path.chmod(0o755)
    return str(path)


def powerbench(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environ}
    return subprocess.run(
        [COMMAND, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "single", "--bitrate", "fast"], 2, ["--bitrate", "'fast'", "2500k"]),
        (["run", "single", "--resolution", "720"], 2, ["--resolution", "'720'", "1280x720"]),
        (["run", "single", "--duration", "0"], 2, ["--duration", "at least 1 s"]),
        (["run", "single", "--fps", "30/0"], 2, ["--fps", "30000/1001"]),
        (
            ["run", "single", "--encoder", "libx246"],
            2,
            ["--encoder", "did you mean libx26", "doctor --encoders"],
        ),
        (["run", "single", "--preset", "vryfast"], 2, ["--preset", "did you mean veryfast?"]),
        (["run", "single", "--encoder", "av1", "--preset", "fast"], 2, ["libsvtav1", "from -1 to 13"]),
        (
            ["run", "single", "--encoder", "rav1e", "--rate", "crf=30"],
            2,
            ["--rate", "no crf", "it has vbr, qp"],
        ),
        (["run", "single", "--rate", "crf=99"], 2, ["--rate", "from 0 to 51"]),
        (["run", "single", "--rate", "crf=23", "--bitrate", "1M"], 2, ["--bitrate", "crf=23"]),
        (["run", "multi", "--bitrates", "1M,2M", "--rate", "qp=3"], 2, ["--bitrates", "qp=3"]),
        (["run", "single", "--encoder", "vvc", "--pix-fmt", "yuv420p"], 2, ["--pix-fmt", "yuv420p10le"]),
        (["run", "single", "--encoder-options", "crf=3"], 2, ["--encoder-options", "use --rate crf"]),
        (["run", "single", "--encoder-options", "vf=null"], 2, ["vf is not an option of an encoder"]),
        (["run", "single", "--encoder", "copy"], 2, ["copy", "--input"]),
        (["run", "single", "--hwaccel", "cuda"], 2, ["--hwaccel", "--input"]),
        (["run", "single", "--device", "../x"], 2, ["--device", "/dev/dri/renderD128"]),
        (["run", "single", "--colour", "red"], 2, ["--colour"]),
        ([], 2, ["VERB"]),
        (["run", "--sink", "udp://x", "single"], 2, ["--sink", "needs a port", "udp://x:9000"]),
        (["run", "--sink", "embeded", "single"], 2, ["--sink", "file:FILE", "did you mean embedded?"]),
        (["run", "--sink", "http://x/y", "single"], 2, ["--sink", "rtmp://HOST/APP/STREAM"]),
        (["run", "--sink", "file:/", "single"], 2, ["--sink", "name a file, like file:out.mkv"]),
        (["run", "--sink", "file:/nonexistent/x.mkv", "single"], 2, ["/nonexistent is not a directory"]),
        (["run", "--sink", "file:/dev/null", "single"], 2, ["--sink", "name a file that ends in .flv, .mkv"]),
        (
            ["run", "--sink", "srt://127.0.0.1:9", "single", "--encoder", "av1"],
            2,
            ["--sink", "mpegts does not take av1", "embedded, tcp://"],
        ),
        (["run", "single", "--pace", "fast"], 2, ["--pace", "write realtime, max"]),
        (["run", "single", "--ladder", "640x360"], 2, ["--ladder: rendition 1: bitrate: "]),
        (["run", "single", "--ladder", "640:1M"], 2, ["--ladder", "'640' is not a resolution"]),
        (["run", "single", "--ladder", "64x64:crf=99"], 2, ["--ladder", "from 0 to 51"]),
        (
            ["run", "single", "--ladder", "64x64:1M", "--resolution", "64x64"],
            2,
            ["--resolution: does not go"],
        ),
        (["run", "multi", "--ladder", "64x64:1M", "--bitrates", "1M,2M"], 2, ["--bitrates: do not go"]),
        (["run", "single", "--input", "udp://h:1", "--pace", "max"], 2, ["--pace max: a live source"]),
        (["run", "single", "--split"], 2, ["--split", "--input"]),
        (["run", "--sink", "rtmp://", "single"], 2, ["--sink", "rtmp://HOST/APP/STREAM"]),
        (["run", "single", "--name", "a\nb"], 2, ["--name", "printable"]),
        (["run", "--agent", "worker:9510", "single"], 2, ["--agent", "http://"]),
        (["run", "--token-file", "/nonexistent/t", "single"], 78, ["--token-file", "No such file"]),
        (["run", "--token-file", "/dev/null", "single"], 78, ["--token-file", "holds no token"]),
        (["run", "--token-file", "", "single"], 2, ["--token-file", "must name a file"]),
        (["run", "--ffmpeg", "/nonexistent/ffmpeg", "single"], 69, ["/nonexistent/ffmpeg", "--ffmpeg"]),
        (["run", "--ffmpeg", "/bin/true", "single"], 69, ["/bin/true", "is not ffmpeg"]),
        (
            ["run", "--sink", "rtmp://127.0.0.1:1/live/x", "single"],
            69,
            ["nothing is listening", "127.0.0.1:1"],
        ),
        (
            ["run", "--agent", "http://127.0.0.1:1", "single"],
            69,
            ["no agent at http://127.0.0.1:1", "powerbench-agent"],
        ),
        (["run", "--output-dir", "/proc/nowhere", "single"], 69, ["/proc/nowhere", "--output-dir"]),
        (["run", "--repeat", "0", "suite"], 2, ["--repeat", "from 1 to 1000"]),
        (["run", "--order", "backwards", "suite"], 2, ["--order", "interleaved"]),
        (["run", "multi"], 2, ["--count", "--bitrates"]),
        (["run", "multi", "--count", "0"], 2, ["--count", "from 1 to 200"]),
        (["run", "multi", "--count", "3", "--bitrates", "1M,2M"], 2, ["--count 3", "2 --bitrates"]),
        (["run", "multi", "--bitrates", "1M,x"], 2, ["--bitrates", "'x'"]),
        (["run", "single", "--input", "/nonexistent.mp4"], 78, ["--input", "/nonexistent.mp4"]),
        (["run", "batch"], 2, ["--file"]),
        (["run", "batch", "--file", "/nonexistent.json"], 78, ["/nonexistent.json", "No such file"]),
        (["run", "batch", "--file", "x.json", "--shard", "4/3"], 2, ["--shard", "2/3"]),
        (["run", "--rates", "/nonexistent.toml", "suite"], 78, ["--rates", "No such file"]),
        (["measure", "--token-file", "/nonexistent/t", "true"], 78, ["--token-file", "No such file"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    """One line says what is wrong, where, and what to do; the exit code fits, and no file is written."""
    done = powerbench(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert [word for word in words if word not in done.stderr] == []
    assert not any(tmp_path.rglob("*.json"))


def test_without_ffmpeg_it_says_how_to_get_one(tmp_path: Path) -> None:
    """With no ffmpeg on the PATH nor from the extra, it exits 69 and names both ways to get one."""
    program = WITHOUT.format(module="imageio_ffmpeg")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 69
    assert "apt install ffmpeg" in done.stderr
    assert "powerbench-agent[ffmpeg]" in done.stderr


@pytest.mark.parametrize(
    ("ffmpeg", "sink", "words"),
    [
        ({"version": "4.0.6"}, "embedded", ["(4.0.6) is too old", "needs ffmpeg 4.1 or newer"]),
        ({"version": "n3.4"}, "null", ["(n3.4) is too old"]),
        ({"protocol": "rtmpx"}, "embedded", ["was built without RTMP", "--sink null"]),
        (
            {"otherwise": """echo "Unrecognized option 'x'." >&2; exit 1"""},
            "null",
            ["failed to encode a test picture", "--preset veryfast", "Unrecognized option 'x'.", "--ffmpeg"],
        ),
        ({"otherwise": "kill -ILL $$"}, "null", ["failed to encode a test picture", "it printed nothing"]),
    ],
)
def test_what_an_ffmpeg_cannot_do_is_found_before_anything_is_measured(
    tmp_path: Path, ffmpeg: dict[str, str], sink: str, words: list[str]
) -> None:
    """Exit 69 and one line with the remedy: no idle window first, no file."""
    path = stand_in(tmp_path, **ffmpeg)
    done = powerbench("run", "--ffmpeg", path, "--sink", sink, "single", "--with-baseline", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (69, "")
    assert len(done.stderr.splitlines()) == 1
    assert [word for word in words if word not in done.stderr] == []
    assert not any(tmp_path.rglob("*.json"))


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    """On a worker's install, run exits 69 and names what to install."""
    program = WITHOUT.format(module="duckdb")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 69
    assert "powerbench-agent[bench]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["run", "single", "--help"], ["--version"]]
)
def test_help_comes_without_heavy_imports(tmp_path: Path, arguments: list[str]) -> None:
    """--help loads neither rich nor aiohttp, duckdb or asyncio."""
    program = (
        "import sys\nfrom powerbench_agent.bench.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "heavy = {'rich', 'aiohttp', 'duckdb', 'asyncio'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "powerbench" in done.stdout


READERS = [
    ["analyze"],
    ["compare", "--force", "GOOD"],
    ["run", "--resume"],
    ["run", "batch", "--file"],
    ["run", "single", "--rates"],
]


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "loop", "large", "dense"])
@pytest.mark.parametrize("reader", READERS)
def test_no_file_is_waited_for_or_read_without_end(tmp_path: Path, reader: list[str], kind: str) -> None:
    """A pipe, a device, a link to itself, or a file beyond all bounds: exit 78 and one line, at once."""
    file = tmp_path / "file"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "large":
        file.touch()
        os.truncate(file, 100 * 2**20)
    elif kind == "dense":
        file.write_text('{"scenarios": [' + "0," * 2_000_001 + "0]}")
    else:
        file.symlink_to(kind)
    good = shows(["compare"], tmp_path)[-1]
    words = [good if word == "GOOD" else word for word in reader]
    done = powerbench(*words, str(file), cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)
    assert str(file) in done.stderr


SHOWS = [["--help"], ["run", "--help"], ["--version"], ["doctor"], ["analyze"], ["compare"]]


def shows(arguments: list[str], directory: Path) -> list[str]:
    """Return the command line of something that prints; a results file for the verbs that read one."""
    part = '{"component": "cpu", "source": "rapl", "joules": 90, "watts": 9}'
    energy = f'{{"source": "rapl", "seconds": 10, "joules": 90, "mean_watts": 9, "parts": [{part}]}}'
    file = directory / "test_results_x.json"
    file.write_text(f'{{"scenarios": [{{"name": "baseline", "energy": {energy}}}]}}')
    files = {"analyze": [str(file)], "compare": ["--force", str(file), str(file)]}
    return [str(COMMAND), *arguments, *files.get(arguments[0], [])]


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("arguments", SHOWS)
def test_a_reader_that_has_gone_is_no_error(tmp_path: Path, arguments: list[str], buffered: str) -> None:
    """As in `powerbench doctor | head`: not a word, and the exit code of what was done."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            shows(arguments, tmp_path),
            stdout=writing,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    bad = arguments == ["doctor"] and done.returncode == 1  # it found a problem, which counts more
    assert (done.returncode, done.stderr) == (bad, b"")


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("arguments", SHOWS)
def test_a_full_disk_is_one_line(tmp_path: Path, arguments: list[str], buffered: str) -> None:
    """What could not be printed is an error, said once."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            shows(arguments, tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
            timeout=60,
            check=False,
        )
    what = "cannot write standard output: No space left on device; what was printed is incomplete"
    assert (done.returncode, done.stderr) == (1, f"powerbench: {what}\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_or_full_stream_does_not_change_the_exit_code(tmp_path: Path, stream: str) -> None:
    """`>&-` loses the text alone; a mistake is still a mistake where nobody can be told."""
    number = 1 if stream == "stdout" else 2
    closed = f'exec "$@" {number}>&-'
    done = subprocess.run(
        ["/bin/sh", "-c", closed, "sh", *shows(["analyze"], tmp_path)], timeout=60, check=False
    )
    assert done.returncode == 0
    mistaken = ["/bin/sh", "-c", 'exec "$@" 2>/dev/full', "sh", str(COMMAND), "measure"]
    assert subprocess.run(mistaken, timeout=60, check=False).returncode == 2


def test_the_files_are_written_though_the_reader_has_gone(tmp_path: Path) -> None:
    """`powerbench analyze --json FILE | head -1` leaves the whole file."""
    command = [*shows(["analyze"], tmp_path), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(["/bin/sh", "-c", '"$@" | true', "sh", *command], timeout=60, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "out.json").read_text())
