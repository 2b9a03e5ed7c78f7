"""Continuing a results file: which of the plan's scenarios it holds, and whether they are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from powerbench_agent.bench.exits import BadFile
from powerbench_agent.bench.run.outcome import Outcome, describe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from powerbench_agent.bench.plan.scenario import Scenario

# What scenarios of one name must have in common to be the same.
_SETTINGS = (
    *("type", "bitrates", "resolution", "fps", "duration", "stabilization", "cooldown", "encoder", "preset"),
    *("outputs", "block", "rate", "pix_fmt", "pace"),
)
_ONLY_IF_ASKED = ("gop", "encoder_options", "device", "hwaccel", "part", "ladder")


def finished(entries: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the scenarios of an earlier run that are not measured again, by name."""
    return {entry["name"]: entry for entry in entries if entry.get("status") == "ok"}


def check_settings(scenarios: Iterable[Scenario], kept: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Check that a name in the file stands for the settings that it has now. Raises: BadFile."""
    for scenario in scenarios:
        entry = kept.get(scenario.name)
        changed = _changes(entry, scenario) if entry is not None else []
        if changed:
            what = f"{scenario.name!r} has other settings: {', '.join(changed)}"
            raise BadFile(f"--resume {path}: {what}; give the flags that the file was made with")


def _changes(was: Mapping[str, Any], scenario: Scenario) -> list[str]:
    now = describe(Outcome(scenario, "ok"))
    others = [key for key in _SETTINGS if key in was and was[key] != now.get(key)]
    others += [key for key in _ONLY_IF_ASKED if was.get(key) != now.get(key)]
    changed = [
        f"{key} {was.get(key, 'not given')} there and {now.get(key, 'not given')} now" for key in others
    ]
    identity = "input_sha256" if "input_sha256" in was else "input"  # a clip may have been moved
    if was.get(identity) != now.get(identity):
        changed.append(f"input {_clip_text(was)} there and {_clip_text(now)} now")
    return changed


def _clip_text(entry: Mapping[str, Any]) -> str:
    """Return what a scenario streams, for a message."""
    if not entry.get("input"):
        return "the test picture"
    sha256 = str(entry.get("input_sha256", ""))
    return f"{entry['input']!r}" + (f" (SHA-256 {sha256[:12]})" if sha256 else "")
