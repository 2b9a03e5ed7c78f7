"""What an expression asks for, as far as the dashboards' expressions go: selectors and groupings."""

from __future__ import annotations

import re
from typing import NamedTuple

_WORDS = {"and", "or", "unless", "by", "on", "without", "ignoring", "group_left", "group_right", "time"}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_SELECTOR = re.compile(rf"({_NAME})(\{{[^}}]*\}})?(\[[^\]]*\])?")
_GROUPING = re.compile(r"\b(?:by|on|group_left|group_right|ignoring|without) ?\(([^)]*)\)")
_MATCHER = re.compile(rf'({_NAME})(=~|!~|!=|=)("(?:[^"\\]|\\.)*")')


class Selector(NamedTuple):
    """A metric, its matchers as written by label, and its window."""

    metric: str
    matchers: dict[str, str]
    window: str


def selectors(expr: str) -> list[Selector]:
    """Return what an expression selects."""
    text = _GROUPING.sub("", expr)
    found = []
    for match in _SELECTOR.finditer(_outside_strings(text)):
        name, braces, window = match.groups()
        called = text[match.end() :].lstrip().startswith("(")
        if name in _WORDS or (called and braces is None):
            continue
        # The blanked text has the same places as the text itself.
        written = text[match.start(2) : match.end(2)] if braces else ""
        matchers = {label: how + value for label, how, value in _MATCHER.findall(written)}
        found.append(Selector(name, matchers, window or ""))
    return found


def grouping(expr: str) -> set[str]:
    """Return every label by which an expression groups or joins."""
    return {
        label.strip() for labels in _GROUPING.findall(expr) for label in labels.split(",") if label.strip()
    }


def _outside_strings(text: str) -> str:
    """Return the text with its strings' contents blanked; selectors keep their braces."""
    return _STRING.sub(lambda match: '"' + " " * (len(match[0]) - 2) + '"', text)
