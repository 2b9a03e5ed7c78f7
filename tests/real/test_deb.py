"""The Debian package as `make deb` builds it: what is in it, and that it runs from where it was unpacked.

Installing, upgrading and purging it is tests/systemd's, on a machine of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from real.conftest import BIN, agent, get, need, series

from powerbench_agent.agent import __version__

pytestmark = pytest.mark.timeout(300)  # two builds, while other tests run
ROOT = Path(__file__).parents[2]
VENV = "usr/lib/powerbench"
MAX_BYTES = 12e6
# What a package may bring: nothing in /usr/local, /opt, /home, /var, and no second place for the same.
PLACES = (
    "etc/powerbench/",
    "lib/systemd/system/",
    "usr/lib/systemd/system/",
    "lib/udev/rules.d/",
    "usr/lib/udev/rules.d/",
    "usr/bin/powerbench",
    f"{VENV}/",
    "usr/lib/sysusers.d/",
    "usr/lib/tmpfiles.d/",
    "usr/share/bash-completion/completions/",
    "usr/share/doc/powerbench-agent/",
    "usr/share/fish/vendor_completions.d/",
    "usr/share/lintian/overrides/",
    "usr/share/man/man1/",
    "usr/share/powerbench/",
    "usr/share/zsh/vendor-completions/",
)


class Package(NamedTuple):
    """A built package: the file, its SBOM beside it, its contents unpacked."""

    deb: Path
    sbom: Path
    tree: Path


def build() -> Path:
    """Build the package; return it."""
    done = subprocess.run([ROOT / "packaging/debian/build", BIN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (name,) = re.findall(r"dist/\S+\.deb", done.stdout)
    return ROOT / name


def output(program: str, *arguments: str | Path) -> str:
    """Run a program that must not fail; return what it says."""
    return subprocess.run([need(program), *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    need("dh")
    deb = build()
    tree = tmp_path_factory.mktemp("unpacked")
    output("dpkg-deb", "--extract", deb, tree)
    (tree / "usr/bin/python3").symlink_to("/usr/bin/python3")  # what the package depends on, beside it
    return Package(deb, deb.with_suffix(".cdx.json"), tree)


def fields(package: Package) -> dict[str, str]:
    """Return the control fields."""
    said = output("dpkg-deb", "--field", package.deb)
    return dict(re.findall(r"^([\w-]+): (.*)$", said, re.MULTILINE))


def members(package: Package) -> list[tarfile.TarInfo]:
    """Return what the package installs, as its archive has it."""
    command = [need("dpkg-deb"), "--fsys-tarfile", package.deb]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getmembers()


def run(package: Package, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the package's programs out of the unpacked tree, by the interpreter that it names."""
    program, *arguments = words
    script = package.tree / VENV / "bin" / program
    assert script.read_text().startswith(f"#!/{VENV}/bin/python3\n")
    command = [package.tree / VENV / "bin/python3", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_is_small(package: Package) -> None:
    """It takes 12 MB at most."""
    assert package.deb.stat().st_size <= MAX_BYTES


def test_it_says_what_it_is_and_what_it_needs(package: Package) -> None:
    """Version, architecture and the one Python that its libraries were made for."""
    said = fields(package)
    assert said["Version"].startswith(f"{__version__}-1+")
    assert said["Architecture"] == output("dpkg", "--print-architecture").strip()
    python = output("/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])")
    major, minor = map(int, python.split())
    assert f"python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1})" in said["Depends"]


def test_it_puts_files_where_they_belong(package: Package) -> None:
    """Every file lies in a place of the package's own or of its kind."""
    files = [member.name.removeprefix("./") for member in members(package) if not member.isdir()]
    assert [name for name in files if not name.startswith(PLACES)] == []


def test_its_files_are_roots_and_only_roots(package: Package) -> None:
    """All belong to root, nobody else may write, and none runs as another user."""
    for member in members(package):
        assert (member.uid, member.gid) == (0, 0), member.name
        if not member.issym():
            assert not member.mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID), member.name


def test_the_configuration_is_the_shipped_one_and_the_administrators(package: Package) -> None:
    """/etc holds configs/agent.toml alone, and dpkg keeps what was edited."""
    assert output("dpkg-deb", "--info", package.deb, "conffiles").split() == ["/etc/powerbench/agent.toml"]
    assert (package.tree / "etc/powerbench/agent.toml").read_bytes() == (
        ROOT / "configs/agent.toml"
    ).read_bytes()


def test_all_units_and_drop_ins_are_in_it(package: Package) -> None:
    """What systemd/ has is installed, unchanged."""
    installed = {(path.name, path.read_bytes()) for path in package.tree.rglob("*") if path.is_file()}
    files = [path for path in (ROOT / "systemd").rglob("*") if path.is_file() and path.suffix != ".md"]
    assert files
    assert [path for path in files if (path.name, path.read_bytes()) not in installed] == []


def test_there_is_nothing_to_install_with_in_it(package: Package) -> None:
    """The environment has what the agent imports: no pip, no build tool, no trace of where it was built."""
    (libraries,) = (package.tree / VENV / "lib").glob("python3.*/site-packages")
    there = {path.name.partition("-")[0] for path in libraries.glob("*.dist-info")}
    assert "powerbench_agent" in there
    assert not there & {"pip", "setuptools", "wheel", "hatchling", "editables"}
    place = str(ROOT).encode()
    assert [path for path in package.tree.rglob("*") if path.is_file() and place in path.read_bytes()] == []


def test_byte_code_is_shipped_and_used(package: Package) -> None:
    """Every module has its byte code, taken as it is: a start compiles nothing and writes nothing."""
    root = package.tree / VENV / "lib"
    sources = [path for path in root.rglob("*.py") if path.parent.name != "__pycache__"]
    tag = f"{sources[0].relative_to(root).parts[0].replace('python', 'cpython-').replace('.', '')}.pyc"
    for source in sources:
        header = (source.parent / "__pycache__" / f"{source.stem}.{tag}").read_bytes()[:8]
        assert header[4:] == b"\x01\x00\x00\x00", f"{source} has byte code that is checked"  # PEP 552
    before = set(package.tree.rglob("*"))
    assert run(package, "powerbench-agent", "--version").returncode == 0
    assert set(package.tree.rglob("*")) == before


def test_its_programs_run_from_where_they_were_unpacked(package: Package, tmp_path: Path) -> None:
    """The shipped configuration is good, a bad one is refused, and a verb without its libraries says so."""
    assert run(package, "powerbench-agent", "--version").stdout == f"powerbench-agent {__version__}\n"
    assert run(package, "powerbench", "--version").stdout == f"powerbench {__version__}\n"
    shipped = package.tree / "etc/powerbench/agent.toml"
    assert run(package, "powerbench-agent", "--config", shipped, "--check").returncode == 0
    (bad := tmp_path / "bad.toml").write_text("[agent]\nlisten = 7\n")
    assert run(package, "powerbench-agent", "--config", bad, "--check").returncode == 78
    assert run(package, "powerbench", "run", "suite").returncode == 69


def test_it_serves(package: Package, port: int) -> None:
    """The unpacked agent answers with its own version, from its own libraries alone."""
    program = package.tree / VENV / "bin/powerbench-agent"
    with agent(port, program=[str(package.tree / VENV / "bin/python3"), "-I", str(program)]):
        page = get(f"http://127.0.0.1:{port}/metrics")
    ((labels, value),) = series(page, "powerbench_build_info").items()
    assert (value, f'version="{__version__}"' in labels) == (1, True)


def test_the_bill_of_materials_is_what_is_in_it(package: Package) -> None:
    """The SBOM fits its schema and names each library, as it was locked; the package has it, too."""
    text = package.sbom.read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert (package.tree / "usr/share/doc/powerbench-agent/powerbench-agent.cdx.json").read_text() == text
    bill: dict[str, Any] = json.loads(text)
    component = bill["metadata"]["component"]
    assert (component["name"], component["version"]) == ("powerbench-agent", __version__)
    named = {part["name"].replace("_", "-"): part["version"] for part in bill["components"]}
    folders = [path.name for path in (package.tree / VENV).rglob("*.dist-info")]
    shipped = dict(name.removesuffix(".dist-info").replace("_", "-").rsplit("-", 1) for name in folders)
    assert named == {name: version for name, version in shipped.items() if name != "powerbench-agent"}
    lock = (ROOT / "requirements/agent.txt").read_text()
    assert [name for name, version in named.items() if f"\n{name}=={version} " not in f"\n{lock}"] == []
    assert all(re.fullmatch(r"pkg:pypi/[^@]+@.+", part["purl"]) for part in bill["components"])


def test_lintian_has_nothing_to_say(package: Package) -> None:
    """Debian's own checks find neither an error nor a warning that is not answered for."""
    command = [need("lintian"), "--allow-root", "--fail-on", "error,warning", package.deb]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_two_builds_are_the_same(package: Package) -> None:
    """The same sources make the same package, bit for bit."""
    first = hashlib.sha256(package.deb.read_bytes()).hexdigest()
    assert hashlib.sha256(build().read_bytes()).hexdigest() == first
