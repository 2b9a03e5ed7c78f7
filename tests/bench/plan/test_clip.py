"""Which clip a stream is of."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from powerbench_agent.bench.plan.clip import Clip, fingerprint

if TYPE_CHECKING:
    from pathlib import Path


def test_a_clip_is_its_content(tmp_path: Path) -> None:
    """Size and SHA-256 of the whole file, whatever its name."""
    (tmp_path / "a").write_bytes(b"clip" * 1_000_000)
    expected = hashlib.sha256(b"clip" * 1_000_000).hexdigest()
    assert fingerprint(tmp_path / "a") == Clip(4_000_000, expected, 4_000_000)


def test_a_long_clip_is_its_two_ends(tmp_path: Path) -> None:
    """Beyond the limit half of it is hashed at each end; `hashed_bytes` is how much that was."""
    (tmp_path / "a").write_bytes(b"AAAA" + b"middle" + b"ZZZZ")
    assert fingerprint(tmp_path / "a", 8) == Clip(14, hashlib.sha256(b"AAAAZZZZ").hexdigest(), 8)
    assert fingerprint(tmp_path / "a", 14).hashed_bytes == 14
