"""A file of somebody else's is read to its limit, and never waited for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from powerbench_agent.core.bounded_file import UnfitFile, read_bounded_file

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_read_to_its_limit(tmp_path: Path) -> None:
    """The limit itself is allowed; a byte more is too large."""
    path = tmp_path / "x"
    path.write_bytes(b"x" * 10)
    assert read_bounded_file(path, 10) == b"x" * 10
    with pytest.raises(UnfitFile, match="is larger than 9 bytes") as unfit:
        read_bounded_file(path, 9)
    assert unfit.value.too_large


def test_a_link_is_followed_if_it_may_be(tmp_path: Path) -> None:
    """A person may name a link; a directory that others write to may not have one."""
    path, link = tmp_path / "x", tmp_path / "link"
    path.write_bytes(b"x")
    link.symlink_to(path)
    assert read_bounded_file(link, 10) == b"x"
    with pytest.raises(OSError, match="symbolic links"):
        read_bounded_file(link, 10, follow=False)


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "loop"])
def test_what_is_no_file_is_neither_read_nor_waited_for(tmp_path: Path, kind: str) -> None:
    """A pipe without a writer, an endless device, a directory, a link to itself."""
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.mkdir()
    with pytest.raises((UnfitFile, OSError)):
        read_bounded_file(path, 10)


def test_a_pipe_that_we_were_started_with_is_read() -> None:
    """What a shell makes of `<(command)` has a writer and ends."""
    reading, writing = os.pipe()
    os.write(writing, b"x" * 10)
    os.close(writing)
    try:
        assert read_bounded_file(f"/dev/fd/{reading}", 10) == b"x" * 10
    finally:
        os.close(reading)
