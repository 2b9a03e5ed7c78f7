"""The table of collectors, and plug-ins out of entry points."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

import pytest

from powerbench_agent.agent import roster
from powerbench_agent.core.model import SHARE_LABELS
from powerbench_agent.core.options import CollectorOptions, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from powerbench_agent.core.model import CollectorModule

MODULES = roster.load_modules()
PREFIXES = {"nvml": "nvidia_gpu_", "drm": "drm_gpu_"}  # named for what they show, not for how it is read
PLUG_IN = """
from powerbench_agent.core.model import SHARE_LABELS
from powerbench_agent.collector import CollectorOptions as Options
METRICS = ()
async def open_collector(options, host): ...
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Return a function that installs a distribution with one entry point and one module."""

    def install(name: str, module: str, source: str) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        metadata = tmp_path / f"{module}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(f"[powerbench.collectors]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())
def test_a_built_in_collector_has_the_three_names(module: CollectorModule) -> None:
    """Options, METRICS and an async open_collector(options, host) are in every module of the table."""
    assert issubclass(module.Options, CollectorOptions)
    assert inspect.iscoroutinefunction(module.open_collector)
    assert list(inspect.signature(module.open_collector).parameters) == ["options", "host"]
    assert module.METRICS
    assert list(module.Options().problems()) == [], "the defaults are good"


def test_a_metric_is_declared_once_and_under_its_collectors_name() -> None:
    """Names are unique over all collectors, start with their collector's, and counters end in _total."""
    declared = [(name, metric) for name, module in MODULES.items() for metric in module.METRICS]
    assert len({metric.name for _, metric in declared}) == len(declared)
    for name, metric in declared:
        assert metric.name.startswith(PREFIXES.get(name, f"{name}_"))
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert metric.help.endswith(".")


def test_what_shares_are_called_is_declared_by_who_claims() -> None:
    """The energy of streams and containers is declared once, by ffmpeg and docker, with a share's labels."""
    shares = {
        name: [(metric.name, metric.kind, metric.labels) for metric in roster.share_metrics({name: module})]
        for name, module in MODULES.items()
    }
    assert {name: declared for name, declared in shares.items() if declared} == {
        "ffmpeg": [("ffmpeg_stream_energy_joules_total", "counter", SHARE_LABELS["stream"])],
        "docker": [("docker_container_energy_joules_total", "counter", SHARE_LABELS["container"])],
    }


def test_a_plug_in_joins_the_table(install: object) -> None:
    """An entry point of the group powerbench.collectors is a collector under its own name."""
    install("wallmeter", "pb_wallmeter", PLUG_IN)  # type: ignore[operator]
    modules = roster.load_modules()
    assert list(modules)[: len(roster.BUILT_IN)] == list(roster.BUILT_IN)
    assert modules["wallmeter"].METRICS == ()
    assert roster.options_of(modules)["wallmeter"] is CollectorOptions


@pytest.mark.parametrize(
    ("name", "source", "what"),
    [
        ("rapl", PLUG_IN, "there is a collector of this name already; rename the entry point"),
        ("broken", "import no_such_module_anywhere", "cannot be imported: No module named"),
        ("raising", "raise ValueError('on import')", "cannot be imported: on import"),
        ("bare", "METRICS = ()", "lacks Options, open_collector"),
    ],
)
def test_a_bad_plug_in_is_a_problem_that_names_it(install: object, name: str, source: str, what: str) -> None:
    """A plug-in that cannot be used is a configuration problem with its module's name, not a traceback."""
    install(name, f"pb_{name}", source)  # type: ignore[operator]
    with pytest.raises(ConfigError) as caught:
        roster.load_modules()
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"plug-in pb_{name}: {name}: ")
    assert what in line


@pytest.mark.parametrize("other", [False, True], ids=["nothing of that name", "another powerbench"])
@pytest.mark.parametrize(
    "source",
    [
        "from powerbench.agent.model import Metric",
        "from powerbench import agent",
        "import powerbench.agent.config",
    ],
)
def test_an_import_of_the_old_root_says_what_to_change(
    install: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, *, other: bool
) -> None:
    """A plug-in written for 0.1.0 gets one line with the new import, also beside the index's powerbench."""
    monkeypatch.delitem(sys.modules, "powerbench", raising=False)
    if other:
        (tmp_path / "powerbench").mkdir()
        (tmp_path / "powerbench/__init__.py").touch()
    install("old", "pb_old", source)  # type: ignore[operator]
    with pytest.raises(ConfigError) as caught:
        roster.load_modules()
    monkeypatch.delitem(sys.modules, "powerbench", raising=False)
    (line,) = str(caught.value).splitlines()
    assert line == (
        "plug-in pb_old: old: imports powerbench.…, which is called powerbench_agent now; "
        "change its imports from powerbench.agent.model and the like to powerbench_agent.collector"
    )
