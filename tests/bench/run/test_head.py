"""What a results file says beside its scenarios: the machine, the programs, and how they were run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from powerbench_agent.bench.load.ffmpeg import Ffmpeg
from powerbench_agent.bench.plan.plan import Plan
from powerbench_agent.bench.run import runner

if TYPE_CHECKING:
    import pytest

KEY = "rtmp://far.example/live/abcd-1234"


def test_a_reviewer_can_run_it_again_and_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command as it was given, what ffmpeg is and was built from; stream key and password hidden."""
    monkeypatch.setattr("sys.argv", ["/opt/venv/bin/powerbench", "run", "single", "--sink", KEY])
    libraries = (("libavcodec", "59.37.100"),)
    ffmpeg = Ffmpeg("/usr/bin/ffmpeg", "5.1", "ab", frozenset(), "--enable-gpl", libraries)
    meters: Any = SimpleNamespace(clients=[SimpleNamespace(label="embedded")])
    plan = Plan(scenarios=(), output_dir=Path(), sink=KEY)
    head = runner._head(plan, ffmpeg, cast("Any", meters))
    assert head["command"] == "powerbench run single --sink 'rtmp://far.example/live/***'"
    assert head["sink"] == "rtmp://far.example/live/***"
    assert head["ffmpeg"] == {
        "path": "/usr/bin/ffmpeg",
        "version": "5.1",
        "sha256": "ab",
        "configuration": "--enable-gpl",
        "libraries": {"libavcodec": "59.37.100"},
    }
    assert {"microcode", "smt", "os_release", "power_limits"} <= head["host"].keys()
