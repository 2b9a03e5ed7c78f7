"""Attribute files: one value a file, and the kernel's own errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import open_paths

from powerbench_agent.core import sysfs
from powerbench_agent.core.host import Host


@pytest.mark.parametrize(
    ("content", "number"),
    [(b"42\n", 42), (b"0", 0), (b"-5\n", -5), (b"  7 \n", 7), (b"9" * 20, int("9" * 20))],
)
def test_integer(tmp_path: Path, content: bytes, number: int) -> None:
    """A whole number is read with or without its line end."""
    (tmp_path / "value").write_bytes(content)
    assert sysfs.integer(Host(), tmp_path / "value") == number


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"1.5\n",
        b"0x10",
        b"--1",
        b"-",
        b"1 2",
        b"1_000",
        "٣".encode(),
        b"9" * 5000,
        b"\xff",
    ],
)
def test_no_integer(tmp_path: Path, content: bytes) -> None:
    """Anything that is not a whole number is a ValueError, never a guess."""
    (tmp_path / "value").write_bytes(content)
    with pytest.raises(ValueError, match=r"number|digits|literal"):
        sysfs.integer(Host(), tmp_path / "value")


@pytest.mark.parametrize(
    ("word", "is_count"),
    [
        (b"0", True),
        (b"18446744073709551615", True),
        (b"9" * 21, False),
        (b"9" * 400, False),
        (b"-1", False),
        (b"", False),
        (b"1.5", False),
        (b"x", False),
        ("12", True),
        ("\N{SUPERSCRIPT TWO}", False),
        ("\N{ARABIC-INDIC DIGIT TWO}", False),
    ],
)
def test_counts(word: bytes | str, *, is_count: bool) -> None:
    """A count has digits only, and not more than the kernel's 64 bits."""
    assert sysfs.is_count(word) is is_count


@given(content=st.binary(max_size=50))
def test_any_bytes(content: bytes) -> None:
    """Any bytes are a number, or a ValueError; and always some text that a page can hold."""
    host = Host(read=lambda _: content)
    sysfs.text(host, host.sysfs).encode()
    try:
        number = sysfs.integer(host, host.sysfs)
    except ValueError:
        return
    assert int(content) == number


def test_text_is_stripped(tmp_path: Path) -> None:
    """Text comes without its line end, and bytes that are not UTF-8 are replaced."""
    (tmp_path / "name").write_bytes(b"pack\xffage\n")
    assert sysfs.text(Host(), tmp_path / "name") == "pack\ufffdage"


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is the kernel's ENOENT."""
    with pytest.raises(FileNotFoundError):
        sysfs.integer(Host(), tmp_path / "nothing")


def test_io_error_is_the_kernels(tmp_path: Path) -> None:
    """A driver's EIO arrives as it is."""
    (tmp_path / "energy_uj").symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sysfs.integer(Host(), tmp_path / "energy_uj")


def test_pipe_does_not_hang(tmp_path: Path) -> None:
    """A pipe in place of a file is a ValueError, and reading it does not block."""
    os.mkfifo(tmp_path / "value")
    with pytest.raises(ValueError, match="not a whole number"):
        sysfs.integer(Host(), tmp_path / "value")


def test_endless_file_is_refused(tmp_path: Path) -> None:
    """A file without an end is an error that names it, and not a value cut out of it."""
    (tmp_path / "name").symlink_to("/dev/zero")
    with pytest.raises(OSError, match=r"longer than \d+ bytes.*name"):
        sysfs.text(Host(), tmp_path / "name")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """Neither a good read nor a failed one leaves a descriptor behind."""
    (tmp_path / "good").write_text("1\n")
    (tmp_path / "bad").symlink_to("/proc/self/mem")
    for _ in range(5):
        sysfs.integer(Host(), tmp_path / "good")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            sysfs.integer(Host(), tmp_path / "bad")
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="longer"):
        sysfs.text(Host(), tmp_path / "endless")
    assert not {Path("/dev/zero"), tmp_path / "good", Path("/proc/self/mem").resolve()} & open_paths()


@pytest.mark.parametrize(
    ("status", "asleep"),
    [
        ("suspended\n", True),
        ("suspending\n", True),
        ("active\n", False),
        ("resuming\n", False),
        ("unsupported\n", False),
        ("error\n", False),
        ("", False),
        (None, False),
    ],
)
def test_asleep(tmp_path: Path, status: str | None, *, asleep: bool) -> None:
    """A device is asleep while it is suspended or about to be, and awake where the kernel does not say."""
    if status is not None:
        (tmp_path / "power").mkdir()
        (tmp_path / "power/runtime_status").write_text(status)
    assert sysfs.asleep(Host(), tmp_path) is asleep
