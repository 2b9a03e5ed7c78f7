"""The floor plan holds: no circles, no arrow upward, no class name twice, and one import root."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

import pytest
from places import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMPORT_ROOT = "powerbench_agent"
FLOORS = {"core": 0, "agent": 1, "collectors": 1, "bench": 2}

# Still doubled, and still circles: these lists only get shorter.
DOUBLED: set[str] = set()
CIRCLES: set[tuple[str, str]] = set()


def module_name(path: Path) -> str:
    """Return the import name of a file, below the import root."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))}
SOURCES["collector"] = ROOT / "collector.py"
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in SOURCES.items()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield what is imported anywhere: within functions and for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_module(imported_name: str) -> str | None:
    """Return the module of ours that an imported name is, or is in."""
    root, _, name = imported_name.partition(".")
    if root != IMPORT_ROOT:
        return None
    while name not in SOURCES:
        name, _, _ = name.rpartition(".")
        assert name, f"{imported_name} is not in the checkout"
    return name


def import_graph() -> dict[str, set[str]]:
    """Return which modules each module imports."""
    graph: dict[str, set[str]] = {}
    for name, tree in TREES.items():
        modules = {own_module(imported_name) for imported_name in imported(tree)}
        graph[name] = {module for module in modules if module is not None and module != name}
    return graph


GRAPH = import_graph()
ARROWS = [(importer, module) for importer, modules in GRAPH.items() for module in modules]


def test_no_arrow_runs_upward() -> None:
    """A floor imports itself and the floors below it; agent and collectors do not know each other."""
    wrong = []
    for importer, module in ARROWS:
        floor, below = importer.partition(".")[0], module.partition(".")[0]
        if importer == "collector":  # the stable import, which stands on core alone
            if below != "core":
                wrong.append((importer, module))
        elif floor != below and FLOORS[floor] <= FLOORS.get(below, 3):
            wrong.append((importer, module))
    assert wrong == []


def test_no_collector_imports_another() -> None:
    """A collector's file or folder imports from itself and from core."""
    between = [arrow for arrow in ARROWS if all(name.startswith("collectors.") for name in arrow)]
    across = [
        (importer, module) for importer, module in between if importer.split(".")[1] != module.split(".")[1]
    ]
    assert across == []


def test_the_benchmark_knows_the_agent_through_http() -> None:
    """Nothing in bench imports a collector or the scheduler."""
    wrong = [
        (importer, module)
        for importer, module in ARROWS
        if importer.startswith("bench.")
        if module == "agent.scheduler" or module.startswith("collectors")
    ]
    assert wrong == []


def test_no_circles() -> None:
    """No module imports itself by way of others, for type checking or otherwise."""
    graph = {
        importer: {module for module in modules if (importer, module) not in CIRCLES}
        for importer, modules in GRAPH.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_class_name_twice() -> None:
    """A class is found by its name; `Options` is what every collector's configuration is called."""
    modules_of: defaultdict[str, list[str]] = defaultdict(list)
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                modules_of[node.name].append(module)
    twice = {
        name: modules
        for name, modules in modules_of.items()
        if len(modules) > 1 and name not in {"Options", *DOUBLED}
    }
    assert twice == {}


# -- the import root ---------------------------------------------------------------------------------


def included() -> set[str]:
    """Return what the wheel is made of."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    return {name.removeprefix("/") for name in build["targets"]["wheel"]["include"]}


def test_the_checkout_is_imported_as_the_wheel() -> None:
    """packaging/src has a symlink for each thing that the wheel includes, and nothing else."""
    links = {link.name: link for link in (ROOT / "packaging/src" / IMPORT_ROOT).iterdir()}
    assert {name: link.resolve() for name, link in links.items()} == {
        name: ROOT / name for name in included()
    }


def test_the_image_and_the_deb_take_all_that_the_wheel_includes() -> None:
    """What the wheel includes is copied by the image's build and by the deb's."""
    dockerfile = (ROOT / "packaging/image/Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", dockerfile, re.MULTILINE)
    assert included() <= {name for names in copied for name in names.split()}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in included()} <= set(ignored)
    build = (ROOT / "packaging/debian/build").read_text()
    taken = re.search(r"^tar .*sources.tar ((?:.*\\\n)*.*)$", build, re.MULTILINE)
    assert taken
    assert included() <= set(taken[1].replace("\\\n", " ").split())
