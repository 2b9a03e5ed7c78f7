"""What packages consist of: the worker's lock, maintainer scripts, completions and manual pages."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest
from places import ROOT

from powerbench_agent.agent import cli as agent
from powerbench_agent.bench import cli as bench

if TYPE_CHECKING:
    from pathlib import Path

DEBIAN = ROOT / "packaging/debian"
PARSERS = {parser().prog: parser for parser in (agent.parser, bench.parser)}


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what the package puts into /usr/share for shells and man."""
    directory = tmp_path_factory.mktemp("share")
    subprocess.run([sys.executable, DEBIAN / "commands.py", directory], check=True)
    return directory


def flags_of(prog: str) -> set[str]:
    """Return every flag that a program's help lists."""
    heads = re.findall(r"^  (-.*?)(?:  |$)", PARSERS[prog]().format_help(), re.MULTILINE)
    return {flag for head in heads for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", head)}


def complete(share: Path, line: str, cwd: Path | None = None) -> set[str]:
    """Return what bash offers for the last word of a line."""
    words = line.split(" ")
    script = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '"_shtab_${1//-/_}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    file = share / "bash-completion/completions" / words[0]
    command = ["bash", "--norc", "-c", script, "bash", str(file), *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def pins(name: str) -> dict[str, str]:
    """Return a lock's distributions and versions."""
    found = re.findall(r"^([a-z0-9.-]+)==([^ ]+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE)
    return dict(found)


def test_the_workers_lock_is_a_part_of_the_benchmarks() -> None:
    """agent.txt has every dependency of the worker, each in the version of the other lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pins("agent.txt")
    assert {re.split("[><=]", dependency)[0] for dependency in project["dependencies"]} <= locked.keys()
    assert locked.items() < pins("run.txt").items()


@pytest.mark.parametrize("name", ["agent.txt", "run.txt", "ffmpeg.txt", "real.txt"])
def test_no_lock_contradicts_another(name: str) -> None:
    """Two locks agree on the versions they share: installing one after the other changes nothing."""
    everything = pins("dev.txt")
    assert {
        part: version for part, version in pins(name).items() if everything.get(part, version) != version
    } == {}


def test_every_wheel_of_the_lock_has_its_hash() -> None:
    """Only the files that were locked can be installed."""
    entries = re.split(r"\n(?=[a-z])", (ROOT / "requirements/agent.txt").read_text().strip())
    assert len(entries) == len(pins("agent.txt"))
    assert all("--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize("prog", PARSERS)
def test_bash_completes_the_flags(share: Path, prog: str) -> None:
    """A dash offers every flag of the program, and nothing else."""
    assert {"-h", "--help", "--version"} <= flags_of(prog)
    assert complete(share, f"{prog} -") == flags_of(prog)


def test_bash_completes_verbs_kinds_and_choices(share: Path) -> None:
    """Verbs, kinds of run, choices of a flag and collectors are offered where they may follow."""
    assert complete(share, "powerbench ") >= {"run", "analyze", "compare", "pipe", "measure"}
    assert complete(share, "powerbench run ") == {"suite", "single", "multi", "batch"}
    assert complete(share, "powerbench run --order ") == {"sequential", "interleaved", "random"}
    assert {"rapl", "ffmpeg"} <= complete(share, "powerbench-agent --only ")


def test_bash_completes_files_and_directories(share: Path, tmp_path: Path) -> None:
    """A flag for a file offers files and directories; one for a directory offers only directories."""
    (tmp_path / "some.toml").touch()
    (tmp_path / "folder").mkdir()
    assert complete(share, "powerbench-agent --config ", tmp_path) == {"some.toml", "folder"}
    assert complete(share, "powerbench-agent --sysfs ", tmp_path) == {"folder"}
    assert complete(share, "powerbench analyze ", tmp_path) == {"some.toml", "folder"}
    assert complete(share, "powerbench run single --input ", tmp_path) == {"some.toml", "folder"}
    assert complete(share, "powerbench run --output-dir ", tmp_path) == {"folder"}


@pytest.mark.parametrize("prog", PARSERS)
def test_the_other_shells_know_the_commands(share: Path, prog: str) -> None:
    """There is a file for zsh and one for fish, under the name by which the shell finds it."""
    assert f"#compdef {prog}\n" in (share / f"zsh/vendor-completions/_{prog}").read_text()
    assert f"complete -c {prog}" in (share / f"fish/vendor_completions.d/{prog}.fish").read_text()


@pytest.mark.parametrize("prog", PARSERS)
def test_the_manual_has_every_flag(share: Path, prog: str) -> None:
    """A manual page has the program's name, its purpose, and each flag that is not hidden."""
    page = (share / f"man/man1/{prog}.1").read_text().replace("\\-", "-")
    assert f"\n{prog} - " in page
    assert [flag for flag in flags_of(prog) - {"-h", "--help"} if flag not in page] == []


@pytest.mark.parametrize(
    "name", ["build", "powerbench-agent.postinst", "powerbench-agent.prerm", "powerbench-agent.postrm"]
)
def test_the_scripts_are_shell(name: str) -> None:
    """The scripts parse, and stop at the first command that fails."""
    script = DEBIAN / name
    subprocess.run(["/bin/sh", "-n", script], check=True)
    assert re.search(r"^set -eu?$", script.read_text(), re.MULTILINE)


def test_what_the_build_takes_is_there() -> None:
    """Every path of the checkout that the build and its rules name exists."""
    copied = re.search(r"^tar .*sources.tar ((?:.*\\\n)*.*)$", (DEBIAN / "build").read_text(), re.MULTILINE)
    assert copied
    named = copied[1].replace("\\\n", " ").split()
    named += re.findall(r"\b((?:systemd|configs|requirements)/[\w./-]+\.\w+)", (DEBIAN / "rules").read_text())
    named += [
        line
        for kind in ("docs", "examples")
        for line in (DEBIAN / f"powerbench-agent.{kind}").read_text().split()
    ]
    assert [name for name in named if not (ROOT / name).exists()] == []
