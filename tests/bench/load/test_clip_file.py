"""What a clip's file says of itself, in its first bytes and its boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from powerbench_agent.bench.load.clip_file import fault_of

if TYPE_CHECKING:
    from pathlib import Path

EBML, SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")


def box(kind: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4) + kind + content


FILE_TYPE, LOCKED = box(b"ftyp", b"isom"), box(b"moov", b"..encv..")
LONG = FILE_TYPE + b"\0\0\0\1mdat" + (21).to_bytes(8) + b"....."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (FILE_TYPE + LOCKED, "is encrypted"),
        (LONG + LOCKED, "is encrypted"),
        (FILE_TYPE + box(b"mdat", b"encv") + box(b"moov", b"avc1"), ""),  # the word may stand in the media
        (FILE_TYPE + b"\0\0\0\0mdatencv", ""),  # to the end of the file
        (FILE_TYPE + box(b"moov", b"avc1") + b"\0\0\1\0mdat....", "it has 36 of its 280 bytes"),
        (LONG[:-1], "it has 32 of its 33 bytes"),
        (LONG, ""),
        (FILE_TYPE + box(b"moov", b"avc1") + b"rubbish at the end", ""),
        (EBML + b"\x82.." + SEGMENT + b"\x84....", ""),
        (EBML + b"\x82.." + SEGMENT + b"\x40\x05....", "it has 17 of its 18 bytes"),
        (EBML + b"\x82.." + SEGMENT + b"\xff....", ""),  # live: its length is not known
        (EBML + b"\x82..", ""),
        (EBML, ""),
        (b"encv" * 100, ""),
        (b"", ""),
    ],
)
def test_a_file_is_encrypted_cut_off_or_neither(tmp_path: Path, content: bytes, said: str) -> None:
    """By its movie box and by the length that it says; of any other file nothing is known."""
    (tmp_path / "a").write_bytes(content)
    fault = fault_of(tmp_path / "a")
    assert said in fault
    assert bool(fault) is bool(said)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([EBML, FILE_TYPE, b""]), st.binary(max_size=64))
def test_no_file_is_an_error_of_ours(tmp_path: Path, begin: bytes, rest: bytes) -> None:
    """Whatever stands in it, and however little."""
    (tmp_path / "a").write_bytes(begin + rest)
    assert isinstance(fault_of(tmp_path / "a"), str)
