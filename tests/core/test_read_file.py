"""Reading the kernel's files: whole, however many pieces they come in."""

from __future__ import annotations

from pathlib import Path

import pytest

from powerbench_agent.core.host import read_file


@pytest.mark.parametrize("size", [0, 1, 4096, 65535, 65536, 65537, 3 * 2**20])
def test_files_are_read_whole(tmp_path: Path, size: int) -> None:
    """No length is special: /proc/stat of 1,920 CPUs is longer than one read."""
    content = b"".join(b"%d\n" % number for number in range(size // 2))[:size]
    (tmp_path / "stat").write_bytes(content)
    assert read_file(tmp_path / "stat") == content


def test_tables_that_come_in_pages() -> None:
    """The kernel hands out a table a page at a time; all of it is read."""
    table = read_file(Path("/proc/self/smaps"))
    assert len(table) > 2 * 4096
    assert table.rstrip().rpartition(b"\n")[2].startswith(b"VmFlags:"), "it ends with a whole entry"
