"""Finds ffmpeg, and checks that it and this machine can do what is asked, before anything is measured."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from powerbench_agent.bench.exits import NotHere
from powerbench_agent.bench.load.encoders.table import ROWS
from powerbench_agent.core import ports

if TYPE_CHECKING:
    from powerbench_agent.bench.plan.scenario import Scenario


MINIMUM = (4, 1)  # the oldest release that run has been tried with
_WITH_READRATE = (5, 0)
_ANSWER_SECONDS = 10.0  # for an ffmpeg to list what it can do


class Ffmpeg(NamedTuple):
    """One ffmpeg binary, as results identify it."""

    path: str
    version: str
    sha256: str
    encoders: frozenset[str]
    configuration: str = ""  # what it was built with
    libraries: tuple[tuple[str, str], ...] = ()  # name, version

    def describe(self) -> dict[str, Any]:
        """Return it as the results file holds it."""
        return {
            "path": self.path,
            "version": self.version,
            "sha256": self.sha256,
            "configuration": self.configuration,
            "libraries": dict(self.libraries),
        }

    @property
    def number(self) -> tuple[int, int]:
        """Its release, as far as its version tells; (0, 0) for a development build."""
        match = re.match(r"n?(\d+)\.(\d+)", self.version)
        return (int(match[1]), int(match[2])) if match else (0, 0)


async def find_ffmpeg(path: str = "") -> Ffmpeg:
    """Return the given ffmpeg, else the system's, else the one that imageio-ffmpeg carries.

    Raises: NotHere.
    """
    found = locate(path)
    said = await output_of(found, "-hide_banner", "-version")
    version = version_in(found, said)
    listing = await output_of(found, "-hide_banner", "-encoders")
    encoders = frozenset(re.findall(r"^ [VAS][A-Z.]{5} ([\w-]+)", listing, re.MULTILINE))
    digest = await asyncio.to_thread(lambda: hashlib.sha256(Path(found).read_bytes()).hexdigest())
    return Ffmpeg(found, version, digest, encoders, configuration_in(said), libraries_in(said))


def version_in(path: str, text: str) -> str:
    """Return the version in what a binary prints for -version. Raises: NotHere if it is not ffmpeg."""
    match = re.match(r"ffmpeg version (\S+)", text)
    if not match:
        raise NotHere(f"{path} is not ffmpeg: its -version prints {text[:60]!r}; name another with --ffmpeg")
    return match[1]


def configuration_in(text: str) -> str:
    """Return what a binary was configured with, out of what it prints for -version; "" if it says nothing."""
    match = re.search(r"^\s*configuration:[ \t]*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def libraries_in(text: str) -> tuple[tuple[str, str], ...]:
    """Return the libraries that a binary runs with, and their versions, out of the same.

    A line has the version that it was built with and the one that was loaded: `59. 37.100 / 59. 37.100`.
    """
    lines = re.findall(r"^\s*(lib\w+)\s+[\d. ]+/([\d. ]+)$", text, re.MULTILINE)
    return tuple((name, version.replace(" ", "")) for name, version in lines)


def locate(path: str = "") -> str:
    """Return where the ffmpeg is that is used: the given one, else the system's, else the packaged one.

    Raises: NotHere.
    """
    found = shutil.which(path or "ffmpeg")
    if found is None and path:
        raise NotHere(f"no ffmpeg at {path}: give the path of an ffmpeg to --ffmpeg")
    return found if found is not None else packaged_ffmpeg()


def packaged_ffmpeg() -> str:
    """Return the ffmpeg that imageio-ffmpeg carries. Raises: NotHere."""
    try:
        import imageio_ffmpeg  # noqa: PLC0415 - an optional extra

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        raise NotHere(
            "no ffmpeg: install it (apt install ffmpeg), or the one of the extra: "
            "pip install 'powerbench-agent[ffmpeg]'"
        ) from None


async def output_of(*command: str) -> str:
    """Return what a command prints on standard output, its errors left out. Raises: NotHere."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise NotHere(
            f"cannot run {command[0]}: {error.strerror}; name another ffmpeg with --ffmpeg"
        ) from None
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        what = f"{' '.join(command)} did not end within {_ANSWER_SECONDS:g} s"
        raise NotHere(f"{what}; name another ffmpeg with --ffmpeg") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return output.decode("utf-8", "replace")


def check_version(ffmpeg: Ffmpeg) -> None:
    """Check that it is not older than what run needs; a development build may be. Raises: NotHere."""
    if (0, 0) < ffmpeg.number < MINIMUM:
        oldest = ".".join(map(str, MINIMUM))
        raise NotHere(
            f"{ffmpeg.path} ({ffmpeg.version}) is too old: run needs ffmpeg {oldest} or newer; "
            "install one, or name it with --ffmpeg"
        )


def check_readrate(ffmpeg: Ffmpeg) -> None:
    """Check that it can read at another pace than real time. Raises: NotHere."""
    if (0, 0) < ffmpeg.number < _WITH_READRATE:
        raise NotHere(
            f"{ffmpeg.path} ({ffmpeg.version}) can only hold real time: a --pace of times real time needs "
            "ffmpeg 5.0 or newer; name one with --ffmpeg"
        )


async def check_protocol(ffmpeg: Ffmpeg) -> None:
    """Check that it was built with RTMP. Raises: NotHere."""
    listing = await output_of(ffmpeg.path, "-hide_banner", "-protocols")
    if listing and "rtmp" not in listing.split():
        raise NotHere(
            f"{ffmpeg.path} ({ffmpeg.version}) was built without RTMP; "
            "use --sink null, or name another ffmpeg with --ffmpeg"
        )


def check_encoder(ffmpeg: Ffmpeg, scenario: Scenario) -> None:
    """Check that this ffmpeg was built with the scenario's encoder. Raises: NotHere."""
    wanted = scenario.asked.row.name
    if wanted not in (*ffmpeg.encoders, "copy"):
        known = [row.known_as for row in ROWS if row.name in ffmpeg.encoders and row.is_software]
        raise NotHere(
            f"{ffmpeg.path} ({ffmpeg.version}) lacks {wanted}, needed for --encoder {scenario.encoder}; "
            f"it has: {', '.join(known) or 'none of ours'}. "
            "Install a build that has it, or name another with --ffmpeg"
        )


async def check_hwaccel(ffmpeg: Ffmpeg, hwaccel: str) -> None:
    """Check that it was built with a hardware decoder. Raises: NotHere."""
    listing = await output_of(ffmpeg.path, "-hide_banner", "-hwaccels")
    known = listing.partition(":")[2].split()
    if hwaccel not in known:
        has = ", ".join(known) or "none"
        raise NotHere(f"{ffmpeg.path} ({ffmpeg.version}) has no --hwaccel {hwaccel}; it has: {has}")


def check_device(device: str) -> None:
    """Check that a device is there and may be opened: FFmpeg says the same of either. Raises: NotHere."""
    path = Path(device)
    if not path.is_absolute():
        return
    try:
        mode = path.stat().st_mode
    except OSError as error:
        there = ", ".join(sorted(str(node) for node in Path("/dev/dri").glob("renderD*")))
        what = there or "no /dev/dri/renderD*"
        raise NotHere(f"--device {device}: {error.strerror}; here is {what}") from None
    if not stat.S_ISCHR(mode):
        raise NotHere(f"--device {device}: is not a device")
    if not os.access(path, os.R_OK | os.W_OK):
        group = "usermod -aG render USER, and log in again"
        raise NotHere(f"--device {device}: permission denied; add yourself to its group: {group}")


def check_sink(sink: str, procfs: Path = Path("/proc")) -> None:
    """Check that an RTMP sink on this machine has a listener. Raises: NotHere.

    Looks at the kernel's tables, and never connects: a probe would be a listening ffmpeg's only client.
    """
    parts = urlsplit(sink)
    if parts.scheme != "rtmp" or parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        return
    port = parts.port or 1935
    listening = ports.listeners(procfs)
    if listening and port not in listening:
        raise NotHere(
            f"nothing is listening on {parts.hostname}:{port}: start an RTMP server there, "
            "or omit --sink to use the embedded one"
        )
