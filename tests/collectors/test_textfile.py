"""Files that other programs leave: good ones are shown, bad ones are counted, none can hang or flood it."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import open_paths, values

from powerbench_agent.collectors import textfile
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Absent, Reading

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Directory(NamedTuple):
    path: Path
    collector: textfile.Textfile

    def write(self, name: str, content: str | bytes) -> None:
        (self.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    async def read(self) -> Reading:
        return await self.collector.read()


async def open_directory(path: Path, **options: int) -> textfile.Textfile:
    return await textfile.open_collector(textfile.Options(directory=str(path), **options), Host())


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Directory]:
    collector = await open_directory(tmp_path)
    yield Directory(tmp_path, collector)
    await collector.aclose()


def others(reading: Reading) -> list[tuple[str, str, dict[str, str], float]]:
    """Return (name, kind, labels, value) of what files said."""
    return [
        (
            sample.metric.name,
            sample.metric.kind,
            dict(zip(sample.metric.labels, sample.labels, strict=True)),
            sample.value,
        )
        for sample in reading.samples
        if sample.metric not in textfile.METRICS
    ]


def skipped(reading: Reading) -> dict[str, float]:
    return {reason: count for (reason,), count in values(reading, textfile.SKIPPED).items() if count}


GOOD = '# HELP wall_watts At the plug.\n# TYPE wall_watts gauge\nwall_watts{plug="rack\\"1\\""} 231.5\n'


async def test_good_file(directory: Directory) -> None:
    """A file's series come with their types, labels and values, and the file's own time."""
    directory.write("wall.prom", GOOD)
    directory.write("jobs.prom", "# TYPE jobs_total counter\njobs_total 3\nuntyped_thing 4\n")
    os.utime(directory.path / "wall.prom", (1_700_000_000, 1_700_000_000))
    reading = await directory.read()
    assert sorted(others(reading)) == [
        ("jobs_total", "counter", {}, 3),
        ("untyped_thing", "unknown", {}, 4),
        ("wall_watts", "gauge", {"plug": 'rack"1"'}, 231.5),
    ]
    assert values(reading, textfile.MTIME)[("wall.prom",)] == 1_700_000_000
    assert skipped(reading) == {}
    (help_,) = {sample.metric.help for sample in reading.samples if sample.metric.name == "wall_watts"}
    assert help_ == "At the plug."


async def test_other_files_are_not_looked_at(directory: Directory) -> None:
    """Only `*.prom` counts; what a writer is still writing (hidden, or another ending) does not."""
    for name in ("a.txt", ".hidden.prom", "b.prom.tmp", "prom", "c.prom~"):
        directory.write(name, "nonsense nonsense")
    reading = await directory.read()
    assert others(reading) == []
    assert skipped(reading) == {}


async def test_files_come_change_and_go(directory: Directory) -> None:
    """Each reading is of the files as they are: new ones appear, removed ones leave at once."""
    directory.write("a.prom", "a 1\n")
    assert others(await directory.read()) == [("a", "unknown", {}, 1)]
    directory.write("a.prom", "a 2\n")
    directory.write("b.prom", "b 3\n")
    assert {row[0]: row[3] for row in others(await directory.read())} == {"a": 2, "b": 3}
    (directory.path / "a.prom").unlink()
    reading = await directory.read()
    assert {row[0] for row in others(reading)} == {"b"}
    assert list(values(reading, textfile.MTIME)) == [("b.prom",)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("nonsense here\n", "malformed"),
        ('a{b="c" 1\n', "malformed"),
        ("a-b 1\n", "malformed"),
        ("# TYPE a nonsense\na 1\n", "malformed"),
        ('a{b="1",b="2"} 1\n', "malformed"),
        (b"a 1 \xff\n", "malformed"),
        (b"\x89PNG\r\n\x1a\n", "malformed"),
        ('{"odd name"} 1\n', "malformed"),
        ('{"größe", b="c"} 1\n', "malformed"),
        ('a{"odd label"="c"} 1\n', "malformed"),
        ('a{__name__="b"} 1\n', "malformed"),
        ('a{__b="c"} 1\n', "malformed"),
        ("# TYPE a_total counter\na_total NaN\n", "malformed"),
        ("# TYPE a_total counter\na_total -1\n", "malformed"),
        ('a 1 # {trace_id="1"} 1\n', "timestamps"),
        ("a 1 1700000000000\n", "timestamps"),
        ("a 1\n" * 20_001, "too_many"),
        ("# " + "x" * 1_048_576 + "\na 1\n", "too_large"),
    ],
    ids=lambda what: what if isinstance(what, str) and len(what) < 20 else "",
)
async def test_bad_file(directory: Directory, content: str | bytes, reason: str) -> None:
    """A file that cannot be used is left out whole and counted by reason at each reading; the others stay."""
    directory.write("good.prom", GOOD)
    directory.write("bad.prom", b"before 1\n" + (content if isinstance(content, bytes) else content.encode()))
    for times in (1, 2):
        reading = await directory.read()
        assert [row[0] for row in others(reading)] == ["wall_watts"]
        assert list(values(reading, textfile.MTIME)) == [("good.prom",)]
        assert skipped(reading) == {reason: times}
    directory.write("bad.prom", "a 1\n")
    assert {row[0] for row in others(await directory.read())} == {"wall_watts", "a"}


async def test_largest_file(directory: Directory) -> None:
    """A file of exactly the limit is taken."""
    line = "a 1\n"
    directory.write("a.prom", "# " + "x" * (1_048_576 - len(line) - 3) + "\n" + line)
    assert (directory.path / "a.prom").stat().st_size == 1_048_576
    assert others(await directory.read()) == [("a", "unknown", {}, 1)]


async def test_too_many_files(tmp_path: Path) -> None:
    """Past the limit files are counted and not read, in the order of their names."""
    collector = await open_directory(tmp_path, max_files=3)
    for number in range(5):
        (tmp_path / f"{number}.prom").write_text(f"a{number} 1\n")
    reading = await collector.read()
    assert [row[0] for row in others(reading)] == ["a0", "a1", "a2"]
    assert skipped(reading) == {"too_many": 2}
    assert [trouble.limit for trouble in reading.troubles] == ["max_files"]
    await collector.aclose()


@pytest.mark.parametrize("kind", ["outside", "inside", "dangling", "loop", "device"])
async def test_links_are_not_followed(
    directory: Directory, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    """A link is never a way to have the agent read another file."""
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.prom"
    secret.write_text("secret 1\n")
    directory.write("inside.prom", "inside 1\n")
    targets = {
        "outside": secret,
        "inside": directory.path / "inside.prom",
        "dangling": directory.path / "nothing",
        "loop": directory.path / "link.prom",
        "device": "/dev/zero",
    }
    (directory.path / "link.prom").symlink_to(targets[kind])
    reading = await directory.read()
    assert [row[0] for row in others(reading)] == ["inside"]
    assert skipped(reading) == {"unreadable": 1}


async def test_pipe_does_not_hang(directory: Directory) -> None:
    """A named pipe is refused without waiting for its writer, whether there is one or not."""
    os.mkfifo(directory.path / "a.prom")
    directory.write("good.prom", GOOD)
    assert skipped(await directory.read()) == {"unreadable": 1}
    end = os.open(directory.path / "a.prom", os.O_RDWR)
    try:
        os.write(end, b"a 1\n")
        reading = await directory.read()
    finally:
        os.close(end)
    assert [row[0] for row in others(reading)] == ["wall_watts"]
    assert skipped(reading) == {"unreadable": 2}


async def test_socket_is_refused(directory: Directory) -> None:
    """A socket is left out: it is not a regular file."""
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(directory.path, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{here}/a.prom")  # a socket's path is short
        finally:
            os.close(here)
        assert skipped(await directory.read()) == {"unreadable": 1}


async def test_no_descriptor_is_left_open(directory: Directory) -> None:
    """However often good and unusable entries are read, no descriptor stays open."""
    (directory.path / "directory.prom").mkdir()
    (directory.path / "link.prom").symlink_to("/dev/zero")
    os.mkfifo(directory.path / "pipe.prom")
    directory.write("large.prom", b"#" * 1_100_000)
    directory.write("good.prom", GOOD)
    for _ in range(5):
        reading = await directory.read()
    assert not [path for path in open_paths() if path.is_relative_to(directory.path)]
    assert skipped(reading) == {"unreadable": 15, "too_large": 5}


async def test_labels_are_text(directory: Directory) -> None:
    """A file whose name is not UTF-8 gets a label that a page can hold, or none; the others are read."""
    (directory.path / os.fsdecode(b"\xff\xfe.prom")).write_text("a 1\n")
    directory.write("good.prom", GOOD)
    reading = await directory.read()
    for sample in reading.samples:
        "".join(sample.labels).encode("utf-8")
    assert "wall_watts" in [row[0] for row in others(reading)]


async def test_directory_that_vanishes(directory: Directory) -> None:
    """When the directory goes, the source is gone."""
    directory.path.rmdir()
    with pytest.raises(Absent, match="cannot list"):
        await directory.read()


@pytest.mark.parametrize("kind", ["unset", "missing", "file"])
async def test_no_directory(tmp_path: Path, kind: str) -> None:
    """Without a directory the collector is absent."""
    (tmp_path / "file").write_text("a 1\n")
    name = {"unset": "", "missing": str(tmp_path / "nothing"), "file": str(tmp_path / "file")}[kind]
    with pytest.raises(Absent):
        await (await textfile.open_collector(textfile.Options(directory=name), Host())).read()


async def test_histogram_is_flattened(directory: Directory) -> None:
    """A histogram's and a summary's series come out one by one, under their own names, untyped."""
    directory.write(
        "h.prom",
        "# TYPE job_seconds histogram\n"
        'job_seconds_bucket{le="1"} 2\njob_seconds_bucket{le="+Inf"} 3\n'
        "job_seconds_sum 4.5\njob_seconds_count 3\n"
        "# TYPE size summary\n"
        'size{quantile="0.5"} 7\nsize_sum 8\nsize_count 9\n',
    )
    assert others(await directory.read()) == [
        ("job_seconds_bucket", "unknown", {"le": "1"}, 2),
        ("job_seconds_bucket", "unknown", {"le": "+Inf"}, 3),
        ("job_seconds_sum", "unknown", {}, 4.5),
        ("job_seconds_count", "unknown", {}, 3),
        ("size", "unknown", {"quantile": "0.5"}, 7),
        ("size_sum", "unknown", {}, 8),
        ("size_count", "unknown", {}, 9),
    ]


async def test_counter_keeps_its_name(directory: Directory) -> None:
    """A counter of an old program, without `_total` in its name, is shown under the name that it has."""
    directory.write("old.prom", "# TYPE restarts counter\nrestarts 3\n")
    assert [row[0] for row in others(await directory.read())] == ["restarts"]


async def test_redefining_the_agents_metrics_is_the_pages_affair(directory: Directory) -> None:
    """A file may say anything: a family of the agent's passes through here and is settled on the page."""
    directory.write(
        "cheat.prom",
        '# TYPE powerbench_node_power_watts gauge\npowerbench_node_power_watts{component="cpu"} 1\n',
    )
    assert others(await directory.read()) == [
        ("powerbench_node_power_watts", "gauge", {"component": "cpu"}, 1)
    ]


async def test_labels_in_any_order_are_one_family(directory: Directory) -> None:
    """The order in which a file writes its labels makes no difference."""
    directory.write("a.prom", 'a{x="1",y="2"} 3\na{y="5",x="4"} 6\n')
    assert [row[2] for row in others(await directory.read())] == [{"x": "1", "y": "2"}, {"x": "4", "y": "5"}]


@given(
    text=st.text(max_size=100)
    | st.lists(
        st.sampled_from(
            ["a", "{", "}", '"', "=", ",", " ", "1", "\n", "\\", "#", "# TYPE a ", "counter", "# HELP", "NaN"]
        )
    ).map("".join)
)
def test_any_text(text: str) -> None:
    """Any text is samples or a verdict on the file, never another error."""
    reason = ""
    samples = []
    try:
        samples = list(textfile.parse(text, "a.prom"))
    except textfile.UnusableFile as unusable:
        reason = unusable.reason
    assert reason in ("", *textfile.REASONS)
    for sample in samples:
        assert len(sample.labels) == len(sample.metric.labels)


async def test_all_files_together_have_a_limit_of_series(tmp_path: Path) -> None:
    """The file that would go past it is left out whole, unparsed; smaller ones after it are shown."""
    collector = await open_directory(tmp_path, max_series=6)
    (tmp_path / "a.prom").write_text("# HELP a A.\n# TYPE a gauge\na 1\n")
    (tmp_path / "b.prom").write_text("".join(f'b{{n="{number}"}} 1\n' for number in range(5)))
    (tmp_path / "c.prom").write_text("c 1\n")
    reading = await collector.read()
    assert [row[0] for row in others(reading)] == ["a", "c"]
    assert skipped(reading) == {"too_many": 1}
    assert [trouble.limit for trouble in reading.troubles] == ["max_series"]
    await collector.aclose()


@pytest.mark.parametrize(
    ("text", "most"), [("", 1), ("a 1", 1), ("# HELP a A.\na 1\n# x\nb 2\n", 3), ("a 1\n" * 9, 10)]
)
def test_series_are_counted_before_parsing(text: str, most: int) -> None:
    """The count is never less than the series that there are."""
    assert textfile.count_series(text) == most
    assert len(list(textfile.parse(text, "a.prom"))) <= most


async def test_a_file_name_cannot_break_its_help(directory: Directory) -> None:
    """The name of a file is a label and a HELP text: printable, valid, and of bounded length."""
    for name in (b"\xff.prom", b"a\nb.prom", b"x" * 240 + b".prom"):
        (directory.path / os.fsdecode(name)).write_text("a 1\n")
    for sample in (await directory.read()).samples:
        assert (sample.metric.help + "".join(sample.labels)).isprintable()
        assert all(len(label) <= 200 for label in sample.labels)


@pytest.mark.parametrize("key", ["max_files", "max_file_bytes", "max_series"])
def test_options_have_a_floor(key: str) -> None:
    """A limit of 0 is refused when the configuration is read."""
    assert [name for name, _ in textfile.Options(**{key: 0}).problems()] == [key]


async def test_opening_looks_at_nothing(tmp_path: Path) -> None:
    """A directory on a dead mount hangs a reading, which its thread bounds, and never the opening."""
    collector = await textfile.open_collector(textfile.Options(directory=str(tmp_path / "dead")), Host())
    with pytest.raises(Absent):
        await collector.read()
    await collector.aclose()


async def test_a_file_without_help_still_has_one(directory: Directory) -> None:
    """What says nothing of itself is said to come from its file; linters want a HELP."""
    directory.write("a.prom", "plain 1\n")
    (metric,) = {
        sample.metric for sample in (await directory.read()).samples if sample.metric.name == "plain"
    }
    assert metric.help == "Read from a.prom."
