"""Where the checkout's files are, for tests at any depth."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CAPTURES = ROOT / "tests/captures"  # bytes that real programs sent
GOLDEN = ROOT / "tests/golden"  # whole outputs, compared byte by byte
