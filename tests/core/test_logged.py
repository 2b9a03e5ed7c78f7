"""FFmpeg's lines out of what loggers make of them."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import CAPTURES

from powerbench_agent.core.logged import MAX_LINE, MAX_LOGGED, unwrap
from powerbench_agent.core.progress import ProgressParser, Report

NEWLINE = b"\n"
STAMP = b"2026-11-30T02:40:33.312000000Z "
PREFIXES = {
    "level": b"[info] ",
    "date and level": b"2026-11-30 02:40:33.312 [info] ",
    "docker logs -t": STAMP,
    "docker compose": b"cam1-1  | ",
    "docker compose -t": b"cam1-1  | " + STAMP,
    "kubernetes": STAMP + b"stderr F ",
    "journald": b"Nov 30 02:40:33 worker1 ffmpeg[4242]: ",
    "syslog": b"<14>1 2026-11-30T02:40:33Z worker1 ffmpeg 4242 - - ",
    "colours": b"\x1b[0;32m[info] \x1b[0m",
    "supervisor": b"cam1:out:",
    "journald short-iso": b"2026-11-30T02:40:33+0000 worker1 ffmpeg[4242]: ",
    "daemontools": b"@400000006560a1b2312345678 ",
    "stern": b"pod-1 ffmpeg \xe2\x94\x82 ",
    "a pair before": b"stream=cam1 ",
    "colours of 256": b"\x1b[38;5;226mcam1 | \x1b[0m",
    "erased line": b"\x1b[1;33m\x1b[K",
    "character set": b"\x1b(B\x1b[m",
}
NAMES = [
    "progress_5.1_rtmp.txt",
    "progress_5.1_audio_only.txt",
    "stderr_5.1_rtmp.log",
    "status_9.0_audio_only.log",
]


def parse(content: bytes) -> list[Report]:
    parser = ProgressParser()
    return parser.feed(content) + parser.close()


def captured(name: str) -> tuple[bytes, list[Report]]:
    content = (CAPTURES / name).read_bytes()
    return content, parse(content)


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_changes_nothing(prefix: bytes, name: str) -> None:
    """Real progress in which every line has a logger's prefix gives the same reports."""
    content, reports = captured(name)
    lines = content.splitlines(keepends=True)
    assert parse(b"".join(prefix + line for line in lines)) == reports


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_for_each_line_feed(prefix: bytes, name: str) -> None:
    """The same if the logger takes the status lines between two line feeds for one line, as Docker does."""
    content, reports = captured(name)
    lines = content.split(b"\n")
    assert parse(b"".join(prefix + line + b"\n" for line in lines)) == reports


def docker(line: str) -> str:
    return json.dumps({"log": line + "\n", "stream": "stderr", "time": "2026-11-30T02:40:33.3Z"})


def journald(line: str) -> str:
    message = list(line.encode()) if "\r" in line else line
    return json.dumps({"_PID": "42", "MESSAGE": message, "PRIORITY": "6"})


def structured(line: str) -> str:
    return json.dumps({"level": "info", "msg": line})


def gelf(line: str) -> str:
    return json.dumps({"version": "1.1", "host": "worker1", "short_message": line, "level": 6})


def nested(line: str) -> str:
    return json.dumps({"message": "from ffmpeg", "log": {"level": "info", "event": {"original": line}}})


def loki(line: str) -> str:
    return json.dumps({"stream": {"job": "ffmpeg"}, "values": [["1796000433312000000", line]]})


def twice(line: str) -> str:
    return json.dumps({"@timestamp": 1, "event": {"original": line}, "message": line})


def behind_a_prefix(line: str) -> str:
    return f"{STAMP.decode()}stderr F {{ " + json.dumps({"msg": line})[1:]


def in_a_list(line: str) -> str:
    return json.dumps([{"log": line}])


def logfmt(line: str) -> str:
    text = line.replace("\r", r"\r").replace('"', r"\"")
    return f'time="2026-11-30T02:40:33Z" level=info msg="{text}" stream=cam1'


def python_bytes(line: str) -> str:
    return f"INFO:ffmpeg:{line.encode() + NEWLINE!r}"


@pytest.mark.parametrize(
    "log",
    [
        docker,
        journald,
        structured,
        gelf,
        nested,
        loki,
        twice,
        behind_a_prefix,
        in_a_list,
        logfmt,
        python_bytes,
    ],
    ids=lambda log: log.__name__,
)
@pytest.mark.parametrize("name", NAMES)
def test_a_text_in_each_line(log: object, name: str) -> None:
    """Real progress as a text in JSON objects, or in quotes, gives the same reports."""
    assert callable(log)
    content, reports = captured(name)
    logged = "".join(log(line) + "\n" for line in content.decode().split("\n"))
    found = parse(logged.encode())
    frames = [(report.frames, report.size, report.media) for report in found]
    assert frames == [(report.frames, report.size, report.media) for report in reports]


@pytest.mark.parametrize("name", NAMES[:3])
def test_json_keeps_the_end(name: str) -> None:
    """The last report in Docker's JSON log is the run's end, and no other is."""
    content, _ = captured(name)
    found = parse("".join(docker(line) + "\n" for line in content.decode().split("\n")).encode())
    assert [report.ended for report in found] == [False] * (len(found) - 1) + [True]


@pytest.mark.parametrize(
    "quoted",
    [
        b'level=info msg="frame=26"\n',
        b'INFO "frame= 26"\n',
        b"'frame=26'\n",
        b"[frame=26]\n",
        b'  "frame=26",\n',
    ],
)
def test_quotes_are_taken_off(quoted: bytes) -> None:
    """The quotes of a structured log are not part of the value."""
    assert unwrap(quoted) == [b"frame=26\n"]


@pytest.mark.parametrize(
    "line",
    [
        b"[libx264 @ 0x55] frame I:2     Avg QP:20.00  size:  5000\n",
        b"[hls @ 0x55] Opening 'frame=5.ts' for writing\n",
        b"Input #0, rtmp, from 'rtmp://x/live?frame=5':\n",
        b"subframe=5\n",
        b"{not json\n",
        b'{"log": 5}\n',
        b'{"MESSAGE": [1, "x"]}\n',
        b'{"MESSAGE": [256]}\n',
        b'{"MESSAGE": [[[[[[[[[["frame=5"]]]]]]]]]]}\n',
        b'{"log": ' + json.dumps(["x"] * 2000 + ["frame=5"]).encode() + b"}\n",
        b'{"url": "rtmp://x/live?a&frame=5&b"}\n',
        b"{" + b"[" * 30_000 + b"\n",
        b'{"a":' + b"[" * 30_000 + b"\n",
    ],
)
def test_other_lines_are_no_progress(line: bytes) -> None:
    """Log lines that hold similar words, and JSON that is none or holds no text, give no report."""
    assert parse(b"total_size=7\n" + line + b"progress=continue\n")[0].frames is None


@pytest.mark.parametrize(
    "line",
    [
        b"frame=" + b" " * (MAX_LOGGED - 10) + b"x",
        b"frame=1" * (MAX_LOGGED // 7),
        b"x frame= " * 400,
        b"frame=1 time= " + b"a" * (MAX_LOGGED - 20),
        b"x size=" + b"9" * 4000,
        b"{" * MAX_LOGGED,
        b'{"' * (MAX_LOGGED // 2),
        b"{ " * (MAX_LOGGED // 2),
        b'{"a":[' * 9000,
        b'{"log": [' + b"1," * 30_000 + b"1]}",
        b'{"log": "' + b"frame=1' " * 7000 + b'"}',
        b"\x1b[" * (MAX_LOGGED // 2),
        b'frame=1" ' * 7000,
        b"frame=1)" * 8000,
        b"\\r" * (MAX_LOGGED // 2),
    ],
)
def test_hostile_lines_take_no_time(line: bytes) -> None:
    """No line, however it is built, takes long."""
    started = time.process_time()
    parse(line + b"\n")
    assert time.process_time() - started < 0.2


@given(st.binary(max_size=300))
def test_any_line(line: bytes) -> None:
    """Whatever a line holds, what comes out is lines, none too long."""
    for content in (line, b"{" + line, b'{"log": "' + line + b'"}'):
        assert all(len(one.rstrip(b"\r\n")) <= MAX_LINE for one in unwrap(content))
