"""What makes two hosts' figures comparable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from powerbench_agent.bench.meter import fingerprint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("file", "content", "turbo"),
    [
        ("intel_pstate/no_turbo", "0\n", True),
        ("intel_pstate/no_turbo", "1\n", False),
        ("cpufreq/boost", "1\n", True),
        ("cpufreq/boost", "0\n", False),
        (None, "", None),
    ],
)
def test_turbo_is_read_from_whichever_driver_there_is(
    tmp_path: Path, file: str | None, content: str, *, turbo: bool | None
) -> None:
    """intel_pstate inverts the value; without either file it is unknown."""
    if file:
        path = tmp_path / "devices/system/cpu" / file
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert fingerprint.host(tmp_path, tmp_path)["turbo"] is turbo


def test_the_cpu_is_named_and_a_guest_is_known(tmp_path: Path) -> None:
    """The model's name and the hypervisor flag come from cpuinfo."""
    (tmp_path / "cpuinfo").write_text("model name\t: Imaginary 9000\nflags\t\t: fpu hypervisor\n")
    found = fingerprint.host(tmp_path, tmp_path)
    assert (found["cpu_model"], found["virtual"]) == ("Imaginary 9000", True)
