"""The one rule for what a token file holds, and that the agent and the benchmark share it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from powerbench_agent.agent import access
from powerbench_agent.agent.config import WebConfig
from powerbench_agent.bench import flags
from powerbench_agent.bench.exits import BadFile
from powerbench_agent.core.options import ConfigError
from powerbench_agent.core.token_file import BadToken, read_token

if TYPE_CHECKING:
    from pathlib import Path

BAD = [
    (b"", "is empty"),
    (b" \n ", "is empty"),
    (b"\xff\xfe", "is not UTF-8 text"),
    (b"one\ntwo\n", "has control characters or several lines"),
    (b"s3\x07cret", "has control characters or several lines"),
]


def test_white_space_around_a_token_is_not_part_of_it(tmp_path: Path) -> None:
    """A final newline, which editors add, and indentation are dropped, by the agent too."""
    path = tmp_path / "token"
    path.write_bytes(b"  s3cret \n")
    assert read_token(path) == flags.read_token(str(path)) == "s3cret"
    assert access.load(WebConfig(token_file=str(path)), "agent.toml").has_token("Bearer s3cret")


@pytest.mark.parametrize(("content", "what"), BAD)
def test_a_file_without_a_token_is_refused_by_all(tmp_path: Path, content: bytes, what: str) -> None:
    """What the agent refuses to serve with, no client sends, and both say the same of the file."""
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(BadToken, match=what):
        read_token(path)
    with pytest.raises(BadFile, match=what):
        flags.read_token(str(path))
    with pytest.raises(ConfigError, match=what):
        access.load(WebConfig(token_file=str(path)), "agent.toml")


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    """Each reader reports it in its own words."""
    with pytest.raises(FileNotFoundError):
        read_token(tmp_path / "token")
