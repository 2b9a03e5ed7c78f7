"""Where the ffmpeg is among a command's words, directly or behind nice, timeout, env and their like. Pure.

Only programs that pass their descriptors and the words behind their own on unchanged are looked through. A
shell's script is not touched: where a word stands in it decides what it means.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# ffmpeg, ffmpeg7, ffmpeg-7.0, ffmpeg_n7.1-12, ffmpeg_g, ffmpeg-linux64-v4.2.2, ffmpeg-git-amd64-static,
# ffmpeg.real; not ffmpeg-normalize.
_RELEASE = r"\d+(?:\.\d+)*(?:[-+~][\w.+~-]*)?"
_BUILD = (
    r"[-_.](?:git|master|release|static|shared|full|essentials|gpl|lgpl|nonfree|real|orig|bin|exe|wrapped"
    r"|linux|linux64|linuxarm64|amd64|arm64|armhf|aarch64|x86_64|i686|cuda|nvenc|nvidia|qsv|vaapi|amf)"
)
_NAME = rf"ffmpeg(?:_g|-linux[\w-]*-v{_RELEASE}|(?:{_BUILD})*(?:[-_.]?[nv]?{_RELEASE}|{_BUILD}))?"
_PROGRAM = re.compile(_NAME)
# Also an image, which has the program's name and a tag: jrottenberg/ffmpeg:7.1-alpine -i ...
_WITH_AN_OPTION = re.compile(rf"(?<![\w.-]){_NAME}(?::[\w.-]+)?[\"']?\s+[\"']?-\w")
# Whatever else has the word in its name and takes an input as ffmpeg does: jellyfin-ffmpeg -y -i ...
_WITH_AN_INPUT = re.compile(r"(?<![^\W_])ffmpeg(?![^\W_])[\w.-]*[\"']?(?:\s[^;|&\n]*)?\s-i\s")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_URL = re.compile(r"[a-z][a-z0-9+.-]+:")
_NOWHERE = ("-", "/dev/null", "pipe:", "pipe:1")


class _Wrapper(NamedTuple):
    """How a program that runs another one is called."""

    letters: str = ""  # short options that take a value
    names: tuple[str, ...] = ()  # long ones
    operands: int = 0  # words between its options and the command


_WRAPPERS: Mapping[str, _Wrapper] = {
    "chrt": _Wrapper("DPT", ("--sched-runtime", "--sched-period", "--sched-deadline"), 1),
    "env": _Wrapper("CSau", ("--unset", "--chdir", "--split-string", "--argv0")),
    "ionice": _Wrapper("cn", ("--class", "--classdata")),
    "nice": _Wrapper("n", ("--adjustment",)),
    "nohup": _Wrapper(),
    "numactl": _Wrapper(
        "CNPimp", ("--physcpubind", "--cpunodebind", "--interleave", "--membind", "--preferred")
    ),
    "setsid": _Wrapper(),
    "stdbuf": _Wrapper("eio", ("--error", "--input", "--output")),
    "taskset": _Wrapper(operands=1),
    "time": _Wrapper("fo", ("--format", "--output")),
    "timeout": _Wrapper("ks", ("--kill-after", "--signal"), 1),
}


class FfmpegWords(NamedTuple):
    """A command that runs an ffmpeg."""

    words: tuple[str, ...]
    at: int  # the ffmpeg among them

    @property
    def options(self) -> tuple[str, ...]:
        """What the ffmpeg is told."""
        return self.words[self.at + 1 :]

    @property
    def has_progress(self) -> bool:
        """Whether it reports its progress elsewhere."""
        return "-progress" in self.options

    @property
    def may_ask(self) -> bool:
        """Whether it asks before it overwrites a file."""
        return "-y" not in self.options and "-n" not in self.options

    @property
    def never_overwrites(self) -> bool:
        """Whether it ends if the file that it would write is there."""
        return "-n" in self.options and "-y" not in self.options

    @property
    def output(self) -> str:
        """The file that it writes, the last one if there are several; "" if it writes none.

        It does not look whether those of a pattern, like out%03d.jpg, are there.
        """
        last = self.options[-1].removeprefix("file:")
        is_input = self.options[-2:-1] == ("-i",)
        is_no_file = last in _NOWHERE or last.startswith("-") or _URL.match(last) or "%" in last
        return "" if is_input or is_no_file else last

    def with_options(self, *added: str) -> tuple[str, ...]:
        """Return the command with more options for the ffmpeg."""
        return (*self.words[: self.at + 1], *added, *self.options)


def is_ffmpeg(program: str) -> bool:
    """Return whether a program of this name or path is an ffmpeg."""
    return _PROGRAM.fullmatch(PurePath(program).name) is not None


def find_ffmpeg_words(command: Sequence[str]) -> FfmpegWords | None:
    """Return the ffmpeg that the command runs with options; None if it is not among the words themselves."""
    at = 0
    while at < len(command) - 1:
        if is_ffmpeg(command[at]):
            return FfmpegWords(tuple(command), at)
        wrapper = _WRAPPERS.get(PurePath(command[at]).name)
        if wrapper is None:
            return None
        at = _after_options(command, at + 1, wrapper)
        while at < len(command) and _ASSIGNMENT.match(command[at]):  # of env; none of the others has any
            at += 1
        at += wrapper.operands
    return None


def _after_options(command: Sequence[str], at: int, wrapper: _Wrapper) -> int:
    """Return where a program's options end."""
    while at < len(command) and command[at].startswith("-"):
        word = command[at]
        at += 1
        if word == "--":
            break
        if word.startswith("--"):
            needs_value = word in wrapper.names
        else:
            valued = [letter for letter in word[1:] if letter in wrapper.letters]
            needs_value = bool(valued) and word.endswith(valued[0])
        at += needs_value
    return at


def mentions_ffmpeg(command: Sequence[str]) -> bool:
    """Return whether an ffmpeg with options stands anywhere in the command: in a script, behind sudo."""
    words = " ".join(command)
    return _WITH_AN_OPTION.search(words) is not None or _WITH_AN_INPUT.search(words) is not None


def answers_ffmpeg(command: Sequence[str]) -> bool:
    """Return whether -y or -n stands anywhere in the command."""
    return re.search(r"(?<!\S)-[yn](?!\S)", " ".join(command)) is not None
