"""The package's life on a machine: installed, upgraded, taken back, removed, purged."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from real.conftest import need, wait_for
from systemd.machine import CONFIG, SOCKET, UNIT

if TYPE_CHECKING:
    from pathlib import Path

    from systemd.machine import Machine

EDIT = "\n# edited here\n"


@pytest.fixture
def newer(deb: Path, tmp_path: Path) -> Path:
    """Return the same package as a later version, whose default configuration has changed as well."""
    tree = tmp_path / "newer"
    subprocess.run([need("dpkg-deb"), "--raw-extract", str(deb), str(tree)], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 99:", 1))
    config = tree / CONFIG.lstrip("/")
    config.write_text(config.read_text() + "# a later default\n")
    built = tmp_path / "powerbench-agent_99.deb"
    pack = [need("dpkg-deb"), "--root-owner-group", "-Zgzip", "-z1", "--build", str(tree), str(built)]
    subprocess.run(pack, check=True, capture_output=True)
    return built


def version(machine: Machine) -> str:
    return machine.run("dpkg-query", "--showformat=${Version}", "--show", "powerbench-agent")


def traces(machine: Machine) -> set[str]:
    """Return every file of the machine's disk whose name has to do with powerbench."""
    search = ("find", "/", "-xdev", "-path", "/root", "-prune", "-o", "-name", "*powerbench*", "-print")
    return set(machine.run(*search, "-o", "-name", "ffmpeg-*-exporter*", "-print").split())


def test_from_the_installation_to_the_first_scrape(bare: Machine, deb: Path) -> None:
    """One command, and within ten seconds the page is there for other machines; it comes with each boot."""
    began = time.monotonic()
    bare.install(deb)
    installed = time.monotonic()
    wait_for(bare.answers, "the page is there")
    scraped = time.monotonic()
    print(f"installed in {installed - began:.1f} s, scraped after {scraped - began:.1f} s")  # noqa: T201 - a figure
    assert scraped - began <= 10
    assert bare.is_active()
    assert bare.systemctl("is-enabled", UNIT, SOCKET).split() == ["enabled", "enabled"]
    for unit in ("powerbench.target", "ffmpeg-cpu-exporter.service"):
        assert bare.systemctl("is-enabled", unit, check=False).strip() == "disabled"
    assert "powercap" in bare.run("id", "-Gn", "powerbench")
    assert (
        bare.run("stat", "--format=%U:%G %a", "/var/lib/powerbench/results").strip()
        == "powerbench:powerbench 2775"
    )
    assert bare.run("systemd-analyze", "verify", "--man=no", UNIT, "powerbench.target", check=False) == ""


def test_an_upgrade_keeps_edits_and_refuses_no_scrape_and_can_be_taken_back(
    bare: Machine, deb: Path, newer: Path
) -> None:
    """A new version takes over with the edited configuration; the old one does after it, likewise."""
    bare.install(deb)
    before = version(bare)
    config = bare.root / CONFIG.lstrip("/")
    config.write_text(config.read_text() + EDIT)
    process = bare.show("MainPID")
    for package in (newer, deb):
        with bare.installing(package) as installing:
            assert len(list(bare.requests(20, installing))) >= 20
        assert installing.returncode == 0
        assert config.read_text().endswith(EDIT)
        wait_for(bare.is_active, "it is up")
        assert bare.show("MainPID") != process
        process = bare.show("MainPID")
        wait_for(bare.answers, "it answers")
    assert version(bare) == before
    assert bare.show("NRestarts") == "0"


def test_removed_it_is_gone_and_purged_it_has_never_been_there(bare: Machine, deb: Path) -> None:
    """Removal ends it and keeps configuration and state; purging keeps the accounts alone, as Debian does."""
    clean = traces(bare)
    bare.install(deb)
    wait_for(bare.answers, "it answers")
    bare.systemctl("start", "powerbench.target")
    bare.run("apt-get", "remove", "--yes", "powerbench-agent")
    assert not bare.answers()
    active = ("list-units", "--no-legend", "--state=active", "--type=service,socket,target,path")
    assert bare.systemctl(*active, "*powerbench*", "ffmpeg-*") == ""
    assert "/etc/powerbench" in traces(bare)
    assert "/var/lib/powerbench" in traces(bare)
    bare.run("apt-get", "purge", "--yes", "powerbench-agent")
    assert traces(bare) == clean
    assert bare.run("getent", "passwd", "powerbench"), "a system account stays: its number is not given again"
