"""Command lines of encoders: ladders, paces, parts, devices, and files with odd names."""

from __future__ import annotations

import asyncio
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from powerbench_agent.bench.load.child import Child
from powerbench_agent.bench.load.containers import StreamTarget
from powerbench_agent.bench.load.encoder import encoder_command
from powerbench_agent.bench.load.ffmpeg import Ffmpeg
from powerbench_agent.bench.load.inputs import length_options, pace_options
from powerbench_agent.bench.plan.ladder import Rung, renditions_of, with_ladder
from powerbench_agent.bench.plan.pace import MAX, REALTIME, Pace
from powerbench_agent.bench.plan.scenario import Resolution, Scenario

if TYPE_CHECKING:
    from pathlib import Path

FFMPEG = Ffmpeg("/usr/bin/ffmpeg", "7.1", "", frozenset())
SIZES = (Resolution(1280, 720), Resolution(640, 360))
PLAIN = Scenario(
    name="x",
    type="single",
    duration=60,
    stabilization=5,
    video_kbps=900,
    resolution=SIZES[0],
    fps=25,
    encoder="h264",
    preset="fast",
)
ODD = "it's a|b\\c [d]:e,f;g%d.mkv"  # what a shell, tee or a pattern would take for something else


def command(scenario: Scenario, *targets: StreamTarget) -> list[str]:
    made = encoder_command(FFMPEG, scenario, targets or [StreamTarget("null", "matroska")], 7)
    return made[made.index("pipe:7") + 1 :]


def ladder(*rungs: Rung, **settings: Any) -> Scenario:
    scenario = structs.replace(PLAIN, **settings)
    made, wrong = renditions_of(scenario, rungs or [Rung(size, 900) for size in SIZES], 0.0)
    assert wrong == []
    return with_ladder(scenario, made)


def values(words: list[str], option: str) -> list[str]:
    return [words[place + 1] for place, word in enumerate(words) if word == option]


TWO = (StreamTarget("tcp://127.0.0.1:1", "nut"), StreamTarget("tcp://127.0.0.1:2", "nut"))


def test_a_ladders_picture_is_read_once() -> None:
    """It is drawn in the largest size, split, and each rendition scaled from it, with a tone of its own."""
    words = command(ladder(), *TWO)
    assert values(words, "-i") == ["testsrc2=size=1280x720:rate=25", "sine=frequency=440:sample_rate=48000"]
    assert values(words, "-filter_complex") == ["[0:v:0]split=2[c0][c1];[c0]null[v0];[c1]scale=640:360[v1]"]
    assert values(words, "-map") == ["[v0]", "1:a:0", "[v1]", "1:a:0"]
    assert [word for word in words if word.startswith("tcp:")] == [target.url for target in TWO]
    assert values(words, "-t") == ["250", "250"]


def test_a_ladder_of_one_needs_no_graph() -> None:
    """Its picture is scaled as a lone stream's is."""
    words = command(ladder(Rung(SIZES[0], 900)))
    assert "-filter_complex" not in words
    assert values(words, "-map") == ["0:v:0", "1:a:0"]


def test_a_clip_at_the_greatest_pace_is_read_to_its_end() -> None:
    """Nothing holds it, repeats it, sounds beside it or ends it."""
    words = command(structs.replace(PLAIN, input="/a b.mp4", pace=MAX, to_end=True))
    for absent in ("-re", "-readrate", "-stream_loop", "-t", "-frames:v", "-c:a", "lavfi"):
        assert absent not in words
    assert values(words, "-i") == ["file:/a b.mp4"]
    assert values(words, "-map") == ["0:V:0"]


def test_a_length_at_the_greatest_pace_is_frames() -> None:
    """The clip is repeated as often as that takes; each rendition has as many."""
    words = command(ladder(input="/a.mp4", pace=MAX, duration=10), *TWO)
    assert values(words, "-frames:v") == ["250", "250"]
    assert values(words, "-stream_loop") == ["-1"]
    assert not {"-re", "-readrate", "-t", "-c:a"} & set(words)


def test_times_real_time_hold_both_inputs() -> None:
    """A tone that came faster than its picture would be read ahead for ever."""
    words = command(structs.replace(PLAIN, pace=Pace(2.5)))
    assert values(words, "-readrate") == ["2.5", "2.5"]
    assert "-re" not in words
    assert words.count("-i") == 2
    assert float(values(words, "-t")[0]) > (PLAIN.stabilization + PLAIN.duration) * 2.5
    assert command(PLAIN).count("-re") == 2


def test_pace_and_length_as_options() -> None:
    """Real time has an option that all releases know; newer ones are told to make up for a slow start."""
    assert pace_options(REALTIME, (5, 1)) == ["-re"]
    assert pace_options(REALTIME, (9, 0)) == ["-re", "-readrate_catchup", "2"]
    assert pace_options(MAX, (9, 0)) == []
    assert length_options(structs.replace(PLAIN, pace=MAX, to_end=True)) == []


@pytest.mark.parametrize("pace", [REALTIME, MAX])
def test_a_part_of_the_work_encodes_nothing(pace: Pace) -> None:
    """Decoding has one output, decoding and scaling one of each rendition; none has a codec or a tone."""
    for part, maps in (("decode", ["0:V:0"]), ("decode+scale", ["[v0]", "[v1]"])):
        words = command(ladder(input="/a.mp4", part=part, pace=pace))
        assert values(words, "-map") == maps
        assert words.count("null") == len(maps)
        assert not {"-c:v", "-c:a", "lavfi", "-b:v"} & set(words)


def test_devices_are_named_once_and_frames_uploaded_for_each() -> None:
    """Two renditions of one VAAPI device with a software one between them; a part uploads nothing."""
    upload = {"encoder": "h264_vaapi", "device": "/dev/dri/renderD129"}
    rungs = [Rung(SIZES[0], 900, **upload), Rung(SIZES[1], 900), Rung(SIZES[1], 500, **upload)]
    three = (*TWO, StreamTarget("tcp://127.0.0.1:3", "nut"))
    words = command(ladder(*rungs), *three)
    assert values(words, "-vaapi_device") == ["/dev/dri/renderD129"]
    assert words.index("-vaapi_device") < words.index("-i")
    (graph,) = values(words, "-filter_complex")
    assert "[c0]format=nv12,hwupload[v0]" in graph
    assert "[c1]scale=640:360[v1]" in graph
    assert "[c2]scale=640:360,format=nv12,hwupload[v2]" in graph
    part = command(ladder(*rungs, input="/a.mp4", part="decode+scale"))
    assert "hwupload" not in " ".join(part)


def test_a_copy_is_sent_beside_the_stream() -> None:
    """The stream itself must arrive; its copy may fail. Both are flushed, and need their headers."""
    (slaves,) = [
        word
        for word in command(PLAIN, StreamTarget("srt://h:9", "mpegts", "tcp://127.0.0.1:1"))
        if word.startswith("[")
    ]
    main, copy = slaves.split("|")
    assert re.fullmatch(r"\[f=mpegts:flush_packets=1:onfail=abort\]srt://h:9", main)
    assert re.fullmatch(r"\[f=nut:flush_packets=1:onfail=ignore\]tcp://127\.0\.0\.1:1", copy)


# -- with a real ffmpeg ---------------------------------------------------------------------------------


def found() -> str:
    """Return an ffmpeg of this machine."""
    path = shutil.which("ffmpeg")
    if path is None:
        pytest.skip("no ffmpeg here")
    return path


async def encode(scenario: Scenario, targets: list[StreamTarget], directory: Path) -> Child:
    """Encode three frames."""
    words = encoder_command(Ffmpeg(found(), "7.1", "", frozenset()), scenario, targets, 1)
    child = Child("x", words, directory=directory)
    await child.start()
    async with asyncio.timeout(60):
        await child.wait()
    return child


def files(directory: Path) -> dict[str, int]:
    """Return what lies there: names and bytes."""
    return {path.name: path.stat().st_size for path in directory.iterdir()}


THREE = {"pace": MAX, "duration": 0.12, "preset": "ultrafast", "resolution": Resolution(64, 64)}


@pytest.mark.parametrize("container", ["matroska", "nut"])
async def test_a_files_name_is_taken_as_it_is(tmp_path: Path, container: Any) -> None:
    """Quotes, bars, backslashes, brackets, colons, spaces: no part of it means anything to FFmpeg."""
    target = StreamTarget(f"file:{tmp_path / ODD}", container)
    child = await encode(structs.replace(PLAIN, **THREE), [target], tmp_path)
    assert (child.exit_code, list(child.lines)) == (0, [])
    there = files(tmp_path)
    assert set(there) == {ODD}
    assert there[ODD] > 500


async def test_tee_takes_names_as_they_are(tmp_path: Path) -> None:
    """Of the stream and of its copy."""
    target = StreamTarget(f"file:{tmp_path / ODD}", "matroska", f"file:{tmp_path / ('copy ' + ODD)}")
    child = await encode(structs.replace(PLAIN, **THREE), [target], tmp_path)
    assert child.exit_code == 0, child.last_words()
    there = files(tmp_path)
    assert set(there) == {ODD, "copy " + ODD}
    assert min(there.values()) > 500


async def test_a_ladder_and_its_parts_run(tmp_path: Path) -> None:
    """Each rendition is a file of its own; the clip with the odd name is read, split and scaled."""
    rungs = [Rung(Resolution(64, 64), 900), Rung(Resolution(32, 32), 500)]
    targets = [StreamTarget(f"file:{tmp_path / name}", "matroska") for name in (ODD, "b.mkv")]
    whole = ladder(*rungs, **THREE)
    child = await encode(whole, targets, tmp_path)
    assert child.exit_code == 0, child.last_words()
    there = files(tmp_path)
    assert set(there) == {ODD, "b.mkv"}
    assert min(there.values()) > 300
    of_clip = ladder(*rungs, **THREE, input=str(tmp_path / ODD), to_end=True)
    for part in ("decode", "decode+scale"):
        child = await encode(structs.replace(of_clip, part=part), [], tmp_path)
        assert child.exit_code == 0, child.last_words()
