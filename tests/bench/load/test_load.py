"""What is checked of a stream before it starts, and its command line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.load.child import Child, StreamFailed
from powerbench_agent.bench.load.containers import StreamTarget, choose_container
from powerbench_agent.bench.load.encoder import encoder_command, identity_of, trial_command
from powerbench_agent.bench.load.ffmpeg import (
    Ffmpeg,
    check_device,
    check_encoder,
    check_sink,
    check_version,
    configuration_in,
    libraries_in,
)
from powerbench_agent.bench.load.outlets import Way
from powerbench_agent.bench.load.streams import streaming
from powerbench_agent.bench.load.trial import open_encoder
from powerbench_agent.bench.plan.scenario import Resolution, Scenario

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.bench.load.containers import Container
    from powerbench_agent.bench.meter.client import AgentClient

SCENARIO = Scenario(
    name="x",
    type="single",
    duration=60,
    stabilization=5,
    video_kbps=2000,
    resolution=Resolution(640, 360),
    fps=25,
    encoder="h265",
    preset="fast",
)


def ffmpeg(version: str, *encoders: str) -> Ffmpeg:
    return Ffmpeg("/usr/bin/ffmpeg", version, "", frozenset(encoders))


def listeners(tmp_path: Path, *ports: int) -> Path:
    (tmp_path / "net").mkdir()
    rows = [f"   {n}: 0100007F:{port:04X} 00000000:0000 0A 0:0 0:0 0 0 0 {n}" for n, port in enumerate(ports)]
    (tmp_path / "net/tcp").write_text("\n".join(["  sl  local_address rem_address   st", *rows]) + "\n")
    return tmp_path


def test_an_encoder_that_this_ffmpeg_lacks_is_named_beside_those_it_has() -> None:
    """The message has the missing one, the binary, and what could be used instead."""
    with pytest.raises(NotHere, match=r"/usr/bin/ffmpeg .*libx265.*it has: h264"):
        check_encoder(ffmpeg("7.1", "libx264"), SCENARIO)


@pytest.mark.parametrize(
    ("codec", "sink", "release", "container"),
    [
        ("h264", "embedded", (5, 1), "flv"),
        ("hevc", "embedded", (5, 1), "nut"),
        ("hevc", "embedded", (6, 1), "flv"),
        ("hevc", "embedded", (0, 0), "flv"),
        ("av1", "embedded", (9, 0), "nut"),
        ("vvc", "embedded", (9, 0), "mpegts"),
        ("av1", "null", (5, 1), "nut"),
        ("h264", "null", (5, 1), "matroska"),
        ("av1", "rtmp://x/y", (9, 0), "flv"),
    ],
)
def test_a_codec_travels_in_what_can_carry_it(
    codec: str, sink: str, release: tuple[int, int], container: str
) -> None:
    """FLV where it has always worked, and to RTMP servers; a development build is as new as can be."""
    assert choose_container(codec, sink, release) == container


@pytest.mark.parametrize("version", ["4.1", "4.2.2-static", "n7.0.2", "N-11234-gabc"])
def test_releases_from_4_1_on_and_development_builds_will_do(version: str) -> None:
    """The oldest that is tried is 4.1; a build without a release number may be new enough."""
    check_version(ffmpeg(version))


@pytest.mark.parametrize("version", ["4.0.6", "n3.4.13", "0.8"])
def test_an_older_release_is_refused(version: str) -> None:
    """The message has the version that is there and the one that is needed."""
    with pytest.raises(NotHere, match=rf"\({version}\) is too old: run needs ffmpeg 4\.1"):
        check_version(ffmpeg(version))


def test_no_option_is_used_that_4_1_lacks() -> None:
    """-stats_period came with 4.4; reports come every half second without it."""
    assert "-stats_period" not in encoder_command(
        ffmpeg("4.2.2", "libx265"), SCENARIO, [StreamTarget("null", "matroska")], 7
    )


def test_the_trial_has_the_streams_options_and_no_receiver() -> None:
    """What is tried is what will run: the same options and muxer, three frames, into /dev/null."""
    which = ffmpeg("7.1", "libx265")
    stream = encoder_command(which, SCENARIO, [StreamTarget("rtmp://127.0.0.1/live/x", "flv")], 1)
    trial = trial_command(which, SCENARIO, "flv")
    same = stream.index("-t")
    assert trial[:same] == stream[:same]
    muxer = ["-f", "flv", "-flvflags", "no_duration_filesize"]
    assert trial[same:] == ["-frames:v", "3", *muxer, "-y", "/dev/null"]


def test_a_local_sink_is_looked_up_in_the_kernels_tables(tmp_path: Path) -> None:
    """A listener is found without connecting to it; without one, the address is named."""
    procfs = listeners(tmp_path, 1935)
    check_sink("rtmp://127.0.0.1/live/x", procfs)
    with pytest.raises(NotHere, match="localhost:1936"):
        check_sink("rtmp://localhost:1936/live/x", procfs)
    check_sink("rtmp://elsewhere.example:1936/live/x", procfs)
    check_sink("embedded", procfs)


def test_a_stream_is_as_asked_and_ends_by_itself() -> None:
    """The command has the scenario's settings, no token, and an end well after the planned one."""
    command = encoder_command(
        ffmpeg("7.1", "libx265"), SCENARIO, [StreamTarget("rtmp://127.0.0.1/live/x", "flv")], 7
    )
    text = " ".join(command)
    assert "testsrc2=size=640x360:rate=25" in text
    assert "-c:v libx265 -preset fast" in text
    assert "-b:v 2000k -maxrate 2000k" in text
    assert "-progress pipe:7" in text
    assert float(command[command.index("-t") + 1]) > SCENARIO.duration + SCENARIO.stabilization
    assert command[-1] == "rtmp://127.0.0.1/live/x"


def test_what_an_agent_is_told_of_a_stream() -> None:
    """All of it is known before the stream starts, by FFmpeg's names."""
    assert identity_of(SCENARIO, "nut").known() == {
        "codec": "hevc",
        "encoder": "libx265",
        "preset": "fast",
        "resolution": "640x360",
        "fps": "25",
        "container": "nut",
    }


async def test_a_deaf_child_is_killed_by_a_second_interruption() -> None:
    """Cancelled while it waits for one that ignores SIGINT, it leaves nothing behind."""
    child = Child("deaf", ["sh", "-c", "trap '' INT TERM; echo ready >&2; while :; do sleep 0.1; done"])
    await child.start()
    async with asyncio.timeout(10):
        while not child.lines:  # noqa: ASYNC110 - what it prints sets no event
            await asyncio.sleep(0.01)
    stopping = asyncio.ensure_future(child.stop())
    await asyncio.sleep(0.1)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    async with asyncio.timeout(10):
        await child.wait()
    assert child.exit_code == -9


async def test_a_trial_that_hangs_is_killed(tmp_path: Path) -> None:
    """An ffmpeg that neither ends nor hears SIGTERM ends with the trial, and is a refusal."""
    deaf = tmp_path / "ffmpeg"
    deaf.write_text("#!/bin/sh\ntrap '' INT TERM\nwhile :; do sleep 0.1; done\n")
    deaf.chmod(0o755)
    which = Ffmpeg(str(deaf), "7.1", "", frozenset({"libx265"}))
    async with asyncio.timeout(10):
        said = await open_encoder(which, SCENARIO, "flv", seconds=0.3)
    assert said == "it did not encode three frames within 0.3 s into flv"


def test_a_device_is_looked_at_before_ffmpeg_is(tmp_path: Path) -> None:
    """What is not there and what is no device are told apart, which FFmpeg does not."""
    check_device("")
    check_device("0")
    check_device("/dev/null")
    with pytest.raises(NotHere, match="No such file or directory; here is "):
        check_device(str(tmp_path / "renderD128"))
    (tmp_path / "plain").touch()
    with pytest.raises(NotHere, match="is not a device"):
        check_device(str(tmp_path / "plain"))


SAID = """ffmpeg version 5.1.9-0+deb12u1 Copyright (c) 2000-2026 the FFmpeg developers
built with gcc 12 (Debian 12.2.0-14+deb12u1)
configuration: --prefix=/usr --enable-gpl --extra-libs='-lgomp -ldl'
libavutil      57. 28.100 / 57. 28.100
libavcodec     59. 37.100 / 59. 38.101
libpostproc    56.  6.100 / 56.  6.100

Exiting with exit code 0
"""


def test_what_an_ffmpeg_was_built_with_and_runs_with() -> None:
    """Its configuration as it prints it, and the libraries that were loaded."""
    assert configuration_in(SAID) == "--prefix=/usr --enable-gpl --extra-libs='-lgomp -ldl'"
    assert libraries_in(SAID) == (
        ("libavutil", "57.28.100"),
        ("libavcodec", "59.38.101"),
        ("libpostproc", "56.6.100"),
    )


def test_an_ffmpeg_that_says_nothing_of_itself_has_nothing() -> None:
    """Neither is made up; results hold them as empty."""
    assert (configuration_in("ffmpeg version 1"), libraries_in("ffmpeg version 1")) == ("", ())
    assert ffmpeg("5.1").describe()["libraries"] == {}


async def test_last_words_do_not_have_the_streams_key() -> None:
    """FFmpeg quotes its URLs, and what it prints ends up in results and in reports."""
    url = "rtmp://127.0.0.1/live/abcd-1234"
    child = Child("x", ["sh", "-c", f"echo 'Error opening {url}: abcd-1234 is busy' >&2", url])
    await child.start()
    async with asyncio.timeout(10):
        await child.wait()
    assert "abcd" not in child.command
    assert child.command.endswith(" 'rtmp://127.0.0.1/live/***'")
    assert child.last_words() == "Error opening rtmp://127.0.0.1/live/***: *** is busy"


async def test_a_stream_that_does_not_start_does_not_show_its_key(tmp_path: Path) -> None:
    """The error has where nothing listens, without the key, and what ffmpeg said of it."""
    refused = tmp_path / "ffmpeg"
    refused.write_text('#!/bin/sh\nfor last; do :; done\necho "$last: Connection refused" >&2\nexit 1\n')
    refused.chmod(0o755)
    which = Ffmpeg(str(refused), "7.1", "", frozenset({"libx265"}))
    client = cast("AgentClient", None)  # there is no progress to send
    way = Way("rtmp://me:pa55@far.example/live/abcd-1234", client)
    with pytest.raises(StreamFailed) as failed:
        async with streaming(which, SCENARIO, way):
            pass
    assert "nothing is listening at rtmp://***@far.example/live/***;" in str(failed.value)
    assert str(failed.value).endswith("(Connection refused)")


@pytest.mark.parametrize("container", ["nut", "mpegts"])
def test_a_copy_travels_in_its_own_container(container: Container) -> None:
    """What the stream itself travels in says nothing of it: VVC goes to no one in Matroska, NUT lacks it."""
    target = StreamTarget("null", "matroska", "tcp://127.0.0.1:9", container)
    slaves = encoder_command(ffmpeg("9.0", "libx265"), SCENARIO, [target], 7)[-1]
    itself, aside = slaves.split("|")
    assert itself.startswith("[f=matroska:")
    assert aside == f"[f={container}:flush_packets=1:onfail=ignore]tcp://127.0.0.1:9"


@pytest.mark.parametrize(("version", "catches_up"), [("5.1", False), ("7.1.1", False), ("9.0", True)])
def test_a_new_ffmpeg_makes_up_for_a_slow_start_at_once(version: str, *, catches_up: bool) -> None:
    """Picture and tone alike; an older one does so by itself, and does not know the option."""
    command = encoder_command(ffmpeg(version, "libx265"), SCENARIO, [StreamTarget("null", "matroska")], 7)
    assert command.count("-re") == 2
    assert command.count("-readrate_catchup") == (2 if catches_up else 0)
