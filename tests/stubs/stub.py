"""Machines with NVIDIA GPUs that a stub of the driver's library makes up, and the collector that reads them.

The binding is the real one, through the C ABI, in a process of its own, since a process loads a library once
and finds it through its environment. These processes are forks of one that has imported everything else.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent
SONAME = "libnvidia-ml.so.1"
MEMORY = Path("/dev/shm")  # noqa: S108 - renaming a file over another is a thousand times faster than on a disk
BUSES = ("3b", "5e", "86", "af")

UUIDS = tuple(f"GPU-1111-{number}" for number in range(len(BUSES)))


@functools.cache
def library(*defines: str, hide: tuple[str, ...] = ()) -> bytes:
    """Return a build of the stub, without these functions; built once a run."""
    compiler = shutil.which("cc")
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail("there is no C compiler to build the NVML stub with")
        pytest.skip("NOT CHECKED: there is no C compiler (cc) to build the NVML stub with")
    with tempfile.TemporaryDirectory() as directory:
        script, built = Path(directory, "version-script"), Path(directory, SONAME)
        hidden = "".join(f"{name};" for name in hide)
        script.write_text(f"{{ global: nvml*; local: {hidden} *; }};")
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-Wall",
            "-Wextra",
            "-Werror",
            *defines,
            str(HERE / "nvml.c"),
        ]
        names = [f"-Wl,-soname,{SONAME}", f"-Wl,--version-script={script}"]
        subprocess.run([*command, *names, "-o", str(built)], check=True)
        return built.read_bytes()


def replace(path: Path, content: bytes) -> None:
    """Replace a file in one step; processes that have the old one open keep it."""
    fresh = f"{path}.fresh"
    with open(fresh, "wb", buffering=0) as file:  # noqa: PTH123 - thousands of times: pathlib is not cheap
        file.write(content)
    os.replace(fresh, path)  # noqa: PTH105 - likewise


class Machine:
    """A machine's PCI bus and the stub library with its answers; all may change between readings."""

    def __init__(
        self, root: Path, gpus: int = 1, *, traced: bool = True, libraries: Path | None = None
    ) -> None:
        """`traced`: note every call, which costs more than the call; `libraries`: where the library goes."""
        self.sysfs, self.procfs = root / "sys", root / "proc"
        self.library = (libraries or root / "lib") / SONAME
        spoken = tempfile.mkdtemp(prefix="nvml-stub-", dir=MEMORY if MEMORY.is_dir() else root)
        weakref.finalize(self, shutil.rmtree, spoken)
        self._control, self._trace = Path(spoken, "control"), Path(spoken, "trace")
        self._traced = traced
        self.lines: dict[str, str] = {}
        self.library.parent.mkdir(exist_ok=True)
        self.install(library())
        self.reset(gpus)

    def reset(self, gpus: int) -> None:
        """Have so many GPUs, awake and without faults."""
        shutil.rmtree(self.sysfs, ignore_errors=True)
        shutil.rmtree(self.procfs, ignore_errors=True)
        self.sysfs.mkdir()
        self.procfs.mkdir()
        for number in range(gpus):
            self.plug(BUSES[number])
        self._trace.unlink(missing_ok=True)
        self.lines = {}
        self.say({"gpus": str(gpus), "driver": "570.1.2"})
        self.say({f"uuid {number}": UUIDS[number] for number in range(gpus)})
        self.say({f"bus {number}": f"00000000:{BUSES[number].upper()}:00.0" for number in range(gpus)})
        self.say({f"name {number}": f"NVIDIA L{number + 4}" for number in range(gpus)})

    def device(self, bus: str = BUSES[0]) -> Path:
        """Return a device's directory."""
        return self.sysfs / f"bus/pci/devices/0000:{bus}:00.0"

    def plug(self, bus: str, *, vendor: str = "0x10de", kind: str = "0x030200") -> None:
        """Add a device to the PCI bus."""
        (self.device(bus) / "power").mkdir(parents=True)
        (self.device(bus) / "vendor").write_text(f"{vendor}\n")
        (self.device(bus) / "class").write_text(f"{kind}\n")
        self.power(bus, "active")

    def power(self, bus: str, status: str) -> None:
        """Set a device's runtime power management status."""
        (self.device(bus) / "power/runtime_status").write_text(f"{status}\n")

    def install(self, build: bytes | None) -> None:
        """Install another library, or none."""
        if build is None:
            self.library.unlink()
        else:
            replace(self.library, build)

    def say(self, lines: dict[str, str | None]) -> None:
        """Change lines of the control file by their beginnings; None removes a line."""
        self.lines.update({key: value for key, value in lines.items() if value is not None})
        for key, value in lines.items():
            if value is None:
                self.lines.pop(key, None)
        text = "".join(f"{key} {value}\n" for key, value in self.lines.items())
        replace(self._control, text.encode())

    def calls(self) -> list[str]:
        """Return the library's calls since the last time this was asked."""
        if not self._trace.exists():
            return []
        found = self._trace.read_text().split()
        self._trace.unlink()
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which a process finds the library and its control file."""
        found = {
            "LD_LIBRARY_PATH": str(self.library.parent),
            "NVML_STUB_CONTROL": str(self._control),
        }
        return {**found, "NVML_STUB_TRACE": str(self._trace)} if self._traced else found


class Answer:
    """A probe's answer."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.error: str = answer.get("error", "")
        self.remedy: str = answer.get("remedy", "")
        self.absent: str = answer.get("absent", "")
        self.bug: str = answer.get("bug", "")
        self.imported: bool = answer.get("imported", False)
        self.log: list[dict[str, Any]] = answer["log"]
        meters = answer.get("meters", ())
        self.meters = {key: joules for part, _, key, joules in meters if part == "gpu"}
        self.watts: dict[str, float | None] = answer.get("powers", {})  # of GPUs with a counter of their own
        self.modules = {key: joules for part, _, key, joules in meters if part == "module"}
        self.troubles: dict[str, dict[str, str]] = {t["part"]: t for t in answer.get("troubles", ())}
        self.uses = {
            (u["key"], u["engine"], u["pid"]): u["seconds"] for u in answer.get("uses", ()) if u["pid"]
        }
        self.busy = {u["key"]: u["seconds"] for u in answer.get("uses", ()) if not u["pid"]}
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for name, labels, value in answer.get("samples", ()):
            series = (name, frozenset(labels.items()))
            assert series not in self.samples, f"{name}{labels} twice"
            self.samples[series] = value

    @property
    def families(self) -> set[str]:
        """The names of what was read."""
        return {name for name, _ in self.samples}

    def of(self, name: str, **labels: str) -> dict[frozenset[tuple[str, str]], float]:
        """Return a family's samples that have these labels, and perhaps others."""
        return {k: v for (n, k), v in self.samples.items() if n == name and k >= labels.items()}

    def value(self, name: str, **labels: str) -> float:
        """Return the one sample of a family that has these labels."""
        (value,) = self.of(name, **labels).values()
        return value


class _Forks:
    """The process that every probe is a fork of; one probe at a time."""

    def __init__(self) -> None:
        self.libraries = Path(tempfile.mkdtemp(prefix="nvml-stub-"))
        places = [str(HERE.parent / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "probe.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(places),
                "LD_LIBRARY_PATH": str(self.libraries),
            },
        )

    def ask(self, line: str) -> dict[str, Any]:
        """Return what one line is answered with."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(line + "\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    def end(self) -> None:
        """End it with this process."""
        self._process.communicate(timeout=20)
        shutil.rmtree(self.libraries)


@functools.cache
def _forks() -> _Forks:
    forks = _Forks()
    atexit.register(forks.end)
    return forks


def machine_of_a_probe(root: Path, *, traced: bool = True) -> Machine:
    """Return a machine whose library is found by the next probe."""
    return Machine(root, traced=traced, libraries=_forks().libraries)


class Probe:
    """The collector, in a process of its own."""

    def __init__(self, machine: Machine, *, path: Iterable[Path] = ()) -> None:
        """`path`: where modules are looked for first."""
        given = {"environment": machine.environment, "path": [str(place) for place in path]}
        self._forks = _forks()
        assert machine.library.parent == self._forks.libraries
        self._forks.ask(f"fork {json.dumps(given)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._forks.ask("end")["status"] == 0

    def ask(self, *words: object) -> Answer:
        """Return what one line is answered with."""
        return Answer(self._forks.ask(" ".join(map(str, words))))

    def open(self, machine: Machine) -> Answer:
        """Open a collector of that machine, which closes the one before."""
        return self.ask("open", machine.sysfs, machine.procfs)

    def exclude(self, *patterns: str) -> None:
        """Leave out GPUs from the next beat on."""
        self.ask("exclude", *patterns)

    def beat(self, seconds: float = 1.0) -> Answer:
        """Let so much time pass and read."""
        return self.ask("beat", seconds)

    def refresh(self, seconds: float = 0.1) -> Answer:
        """Let so much time pass and read what a scrape reads."""
        return self.ask("refresh", seconds)
