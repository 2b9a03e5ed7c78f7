"""docs/collectors.md is true: its example runs, its test passes, and it imports what stays."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import pytest
from places import ROOT

from powerbench_agent import collector
from powerbench_agent.agent import config, roster
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Absent, CollectorModule, ReadFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = (ROOT / "docs/collectors.md").read_text()
EXAMPLE, TEST = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def battery() -> Iterator[Any]:
    """Return the page's example as the module that it is."""
    module = ModuleType("battery")
    sys.modules["battery"] = module  # its annotations are looked up there
    exec(compile(EXAMPLE, "docs/collectors.md", "exec"), module.__dict__)  # noqa: S102 - the page's own code
    yield module
    del sys.modules["battery"]


async def test_the_pages_test_passes(battery: Any, tmp_path: Path) -> None:
    """The example, tested by the test that the page gives."""
    exec(compile(TEST, "docs/collectors.md", "exec"), battery.__dict__)  # noqa: S102 - the page's own code
    (name,) = re.findall(r"def (test_\w+)", TEST)
    await getattr(battery, name)(tmp_path)


async def test_the_example_is_absent_without_a_battery_and_fails_with_a_broken_one(
    battery: Any, tmp_path: Path
) -> None:
    """No file is Absent; a file without a number is ReadFailed, with a remedy."""
    with pytest.raises(Absent, match=r"energy_now does not exist"):
        await battery.open_collector(battery.Options(), Host(sysfs=tmp_path))
    folder = tmp_path / "class/power_supply/BAT1"
    folder.mkdir(parents=True)
    (folder / "energy_now").write_text("\n")
    opened = await battery.open_collector(battery.Options(battery="BAT1"), Host(sysfs=tmp_path))
    with pytest.raises(ReadFailed) as failed:
        await opened.read()
    assert failed.value.remedy == "check the battery's driver"


def test_the_example_can_be_configured(battery: Any) -> None:
    """Its section takes its own key and every collector's."""
    module = cast("CollectorModule", battery)
    known = roster.options_of({"battery": module})
    document = {"collectors": {"battery": {"battery": "BAT1", "interval": "10s"}}}
    options: Any = config.parse(document, known, "agent.toml").collectors["battery"]
    assert (options.battery, options.interval, options.enabled) == ("BAT1", 10.0, True)


def test_the_page_imports_what_stays_and_nothing_else() -> None:
    """Every import of ours on the page is from powerbench_agent.collector, which has what the page names."""
    modules = set(re.findall(r"(?:from|import) (powerbench\w*[\w.]*)", PAGE))
    assert modules == {"powerbench_agent.collector"}
    named = set(re.findall(r"`([A-Z]\w+)[`(\[]", PAGE)) - {"Options", "METRICS", "SHARES"}
    assert named <= set(collector.__all__)


def test_the_stable_import_offers_all_that_it_lists() -> None:
    """`__all__` has every name of the module, and no other."""
    offered = {name for name in vars(collector) if not name.startswith("_")}
    assert set(collector.__all__) == offered
