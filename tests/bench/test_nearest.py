"""The hint at a word that was probably meant."""

from __future__ import annotations

import pytest

from powerbench_agent.bench.nearest import nearest


@pytest.mark.parametrize(
    ("word", "hint"), [("vmaff", "; did you mean vmaf?"), ("libx265", ""), ("", ""), ("PSNR", "")]
)
def test_the_nearest_word_is_named(word: str, hint: str) -> None:
    """One that is near, as it is written; nothing if none is."""
    assert nearest(word, ["vmaf", "psnr"]) == hint
