"""What a kilowatt-hour costs: the operator's file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from places import ROOT

from powerbench_agent.bench.exits import BadFile
from powerbench_agent.bench.plan import rates

if TYPE_CHECKING:
    from pathlib import Path


def test_the_shipped_file_is_sound() -> None:
    """configs/rates.toml has every key."""
    said = rates.load(ROOT / "configs/rates.toml")
    assert set(said) == {"price_per_kwh", "currency", "gco2e_per_kwh", "gco2e_source"}
    assert said["price_per_kwh"] == 0.30


def test_what_is_left_out_is_unknown(tmp_path: Path) -> None:
    """A price alone leaves the greenhouse gas unknown."""
    (tmp_path / "r.toml").write_text("price_per_kwh = 1\n")
    said = rates.load(tmp_path / "r.toml")
    assert said == {"price_per_kwh": 1, "currency": "", "gco2e_per_kwh": None, "gco2e_source": ""}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("price_per_kwh = -1", "not negative"),
        ("price_per_kwh = nan", "not negative"),
        ("price_per_kwh = true", "must be a number"),
        ("price_pr_kwh = 1", "did you mean price_per_kwh"),
        ("currency = 3", "must be text"),
        ("gco2e_per_kwh = 400", "gco2e_source"),
        ("price = ", "line 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, words: str) -> None:
    """One line with the file and the key."""
    (tmp_path / "r.toml").write_text(content + "\n")
    with pytest.raises(BadFile, match=words) as bad:
        rates.load(tmp_path / "r.toml")
    assert "r.toml" in str(bad.value)
