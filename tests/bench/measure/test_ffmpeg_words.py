"""The ffmpeg among a command's words is found where it is sure, and nowhere else."""

from __future__ import annotations

import pytest

from powerbench_agent.bench.measure.ffmpeg_words import (
    answers_ffmpeg,
    find_ffmpeg_words,
    is_ffmpeg,
    mentions_ffmpeg,
)


@pytest.mark.parametrize(
    "before",
    [
        "",
        "nice",
        "nice -n 10",
        "nice -n10",
        "nice -10",
        "nice --adjustment=5",
        "nice --adjustment 5",
        "timeout 60",
        "timeout -k 5 -s INT 60",
        "timeout --signal=INT --foreground 1m",
        "timeout -v -k5 60",
        "env",
        "env A=B C=D",
        "env -i -u HOME PATH=/bin",
        "env -",
        "/usr/bin/env -C /tmp",
        "nice -n 10 timeout 60 env A=B",
        "ionice -c2 -n 7",
        "ionice -c 3",
        "chrt -f 10",
        "taskset 0x3",
        "taskset -c 0,1",
        "numactl -N 0 -m 0",
        "numactl --preferred 0",
        "numactl --cpunodebind=0 --membind 0",
        "stdbuf -oL -e 0",
        "setsid -w",
        "nohup",
        "/usr/bin/time -v",
        "/usr/bin/time -f %e -o times",
        "nice --",
    ],
)
def test_it_is_found_behind_what_passes_words_on(before: str) -> None:
    """The options for it come right behind it, and the rest stays as it was."""
    words = before.split()
    found = find_ffmpeg_words([*words, "ffmpeg", "-i", "x", "y"])
    assert found is not None
    assert found.with_options("-y") == (*words, "ffmpeg", "-y", "-i", "x", "y")


@pytest.mark.parametrize(
    "command",
    [
        ["ffmpeg"],  # without options it prints its help
        ["nice", "ffmpeg"],
        ["ffmpeg-normalize", "x"],
        ["sh", "-c", "ffmpeg -i x y"],
        ["sudo", "ffmpeg", "-i", "x", "y"],  # it closes all descriptors
        ["docker", "run", "image", "ffmpeg", "-i", "x", "y"],
        ["echo", "ffmpeg", "-i", "x"],
        ["timeout", "60", "echo", "ffmpeg", "-i"],
        ["timeout", "ffmpeg", "-i"],  # ffmpeg would be the duration
        ["time", "-o", "ffmpeg", "ls", "-l"],
        ["env", "-C", "ffmpeg", "ls", "-l"],
        ["env", "-S", "ffmpeg -i", "x"],
        ["taskset", "ffmpeg", "ls", "-l"],
        ["nice", "-n"],
        ["env"],
        [],
    ],
)
def test_no_other_command_gets_an_argument_added(command: list[str]) -> None:
    """Neither a script, nor what runs elsewhere, nor a word that is something else there."""
    assert find_ffmpeg_words(command) is None


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("ffmpeg", True),
        ("/opt/ffmpeg/bin/ffmpeg", True),
        ("ffmpeg7", True),
        ("ffmpeg-7.0", True),
        ("./ffmpeg_n7.1-12", True),
        ("ffmpeg_g", True),
        ("ffmpeg-linux64-v4.2.2", True),
        ("ffmpeg-linux-x86_64-v7.0.2", True),
        ("ffmpeg.exe", True),
        ("ffmpeg.real", True),
        ("ffmpeg-static", True),
        ("ffmpeg-git-20240629-amd64-static", True),
        ("ffmpeg-7.0.2-amd64-static", True),
        ("ffmpeg-master-linux64-gpl", True),
        ("ffmpeg_cuda-7.1", True),
        ("ffmpeg-normalize", False),
        ("ffmpeg-static-checker", False),
        ("ffmpeg.exec", False),
        ("ffmpegthumbnailer", False),
        ("ffmpeg2theora", False),
        ("ffmpeg-progress-yield", False),
        ("ffprobe", False),
        ("ffmpeg.tar", False),
        ("", False),
    ],
)
def test_an_ffmpeg_is_known_by_its_name(name: str, *, is_one: bool) -> None:
    """With a release or the build it is of; other programs may begin alike."""
    assert is_ffmpeg(name) is is_one


@pytest.mark.parametrize(
    ("command", "mentions"),
    [
        (["sh", "-c", "ffmpeg -i x y"], True),
        (["bash", "-c", "cd x && /opt/ffmpeg-7.0 -i x y"], True),
        (["bash", "-c", '"ffmpeg" -i x y'], True),
        (["docker", "run", "image", "ffmpeg", "-i", "x", "y"], True),
        (["podman", "run", "--rm", "jrottenberg/ffmpeg:7.1-alpine", "-i", "x", "y"], True),
        (["sudo", "ffmpeg", "-i", "x"], True),
        (["/opt/jellyfin-ffmpeg", "-hide_banner", "-i", "x", "y"], True),
        (["./my_ffmpeg_build", "-i", "x", "y"], True),
        (["sh", "-c", "ls ffmpeg; grep -i x y"], False),
        (["ffmpegthumbnailer", "-i", "x", "-o", "y"], False),
        (["apt", "install", "ffmpeg"], False),
        (["sh", "-c", "cd ffmpeg && make"], False),
        (["ffmpeg-normalize", "-f", "x"], False),
        (["make", "-j8"], False),
    ],
)
def test_an_ffmpeg_with_options_is_seen_anywhere(command: list[str], *, mentions: bool) -> None:
    """In a script or behind any program; a directory of that name is none."""
    assert mentions_ffmpeg(command) is mentions


@pytest.mark.parametrize(
    ("options", "output", "may_ask"),
    [
        ("-i in.mp4 out.mp4", "out.mp4", True),
        ("-y -i in.mp4 file:out.mp4", "out.mp4", False),
        ("-n -i in.mp4 out.mp4", "out.mp4", False),
        ("-i in.mp4", "", True),  # it only describes its input
        ("-i in.mp4 -f null -", "", True),
        ("-i in.mp4 -f null /dev/null", "", True),
        ("-i in.mp4 out.mp4 -hide_banner", "", True),
        ("-version", "", True),
        ("-n -re -i in.mp4 -f flv rtmp://host/live/cam1", "", False),
        ("-i in.mp4 out%03d.jpg", "", True),
    ],
)
def test_its_output_is_the_last_word(options: str, output: str, *, may_ask: bool) -> None:
    """Where it writes a file at all."""
    found = find_ffmpeg_words(["ffmpeg", *options.split()])
    assert found is not None
    assert (found.output, found.may_ask) == (output, may_ask)


@pytest.mark.parametrize(
    ("script", "answers"), [("ffmpeg -y -i x y", True), ("ffmpeg -i x-y -yes y", False), ("ffmpeg -n", True)]
)
def test_an_answer_in_a_script_is_seen(script: str, *, answers: bool) -> None:
    """-y and -n as words of their own."""
    assert answers_ffmpeg(["sh", "-c", script]) is answers
