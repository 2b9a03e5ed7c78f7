"""docs/architecture.md and its picture name what is really there; links between the pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from defusedxml import ElementTree

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("core", "agent", "collectors", "bench")
PAGE = (ROOT / "docs/architecture.md").read_text()
PICTURE = ElementTree.parse(ROOT / "docs/architecture.svg").getroot()
REMEDY = "run .venv/bin/python docs/architecture.py"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def lines_of_picture() -> list[str]:
    """Return the picture's lines of text, in their order."""
    return [line.text or "" for line in PICTURE.iter("{http://www.w3.org/2000/svg}text")]


def pages() -> list[Path]:
    """Return every Markdown page of the repository."""
    folders = (".github", "benchmarks", "compose", "docs", "systemd")
    inside = [page for folder in folders for page in sorted((ROOT / folder).rglob("*.md"))]
    return sorted(ROOT.glob("*.md")) + inside


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_picture_names_existing_files() -> None:
    """Every module that the picture names is in one of the floors."""
    there = {path.name for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    named = {name for line in lines_of_picture() for name in re.findall(r"\w+\.py", line)}
    assert named
    assert named <= there, REMEDY


def test_paths_in_steps_exist() -> None:
    """Every path that the picture or the page gives in full leads to a file or a folder."""
    text = PAGE + "\n".join(lines_of_picture())
    paths = set(re.findall(rf"(?<![\w/])(?:{'|'.join(FLOORS)})/[\w/]*(?:\.py)?", text))
    assert len(paths) > 20
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_every_folder_is_named() -> None:
    """Every folder of the floors that has code in it is in the picture."""
    folders = {path.parent.name for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    assert {f"{folder}/" for folder in folders} <= set(lines_of_picture()), REMEDY


def test_picture_has_both_schemes() -> None:
    """The picture brings its own background, has a dark scheme, and its text is text."""
    style = PICTURE.findtext("{http://www.w3.org/2000/svg}style") or ""
    assert "prefers-color-scheme: dark" in style
    assert PICTURE.get("viewBox")
    assert any(element.get("class") == "ground" for element in PICTURE.iter())


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link of a page leads to a file or folder, and its anchor to a heading there."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link
