"""Which ffmpeg runs, and whether it and this machine can do what is asked; before anything is measured."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from powerbench_agent.bench.load.encoders import ENCODERS
from powerbench_agent.core import ports

if TYPE_CHECKING:
    from powerbench_agent.bench.plan.scenario import Scenario


class NotHere(Exception):  # noqa: N818 - a verdict
    """Something that was asked for is not on this machine; exit 69. The text says what to do."""


class Ffmpeg(NamedTuple):
    """One ffmpeg binary, as results identify it."""

    path: str
    version: str
    sha256: str
    encoders: frozenset[str]

    @property
    def number(self) -> tuple[int, int]:
        """Its release, as far as its version tells; (0, 0) for a development build."""
        match = re.match(r"n?(\d+)\.(\d+)", self.version)
        return (int(match[1]), int(match[2])) if match else (0, 0)


async def find_ffmpeg(path: str = "") -> Ffmpeg:
    """Return the given ffmpeg, else the system's, else the one that imageio-ffmpeg carries.

    Raises: NotHere.
    """
    found = shutil.which(path or "ffmpeg")
    if found is None and path:
        raise NotHere(f"no ffmpeg at {path}: give --ffmpeg the path of one")
    if found is None:
        try:
            import imageio_ffmpeg  # noqa: PLC0415 - an optional extra

            found = imageio_ffmpeg.get_ffmpeg_exe()
        except (ImportError, RuntimeError):
            raise NotHere(
                "no ffmpeg: install it (apt install ffmpeg), or the one of the extra: "
                "pip install 'powerbench-agent[ffmpeg]'"
            ) from None
    version = await _output(found, "-hide_banner", "-version")
    match = re.match(r"ffmpeg version (\S+)", version)
    if not match:
        raise NotHere(f"{found} is no ffmpeg: its -version says {version[:60]!r}")
    listing = await _output(found, "-hide_banner", "-encoders")
    encoders = frozenset(re.findall(r"^ [VAS][A-Z.]{5} (\w+)", listing, re.MULTILINE))
    digest = await asyncio.to_thread(lambda: hashlib.sha256(Path(found).read_bytes()).hexdigest())
    return Ffmpeg(found, match[1], digest, encoders)


async def _output(*command: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise NotHere(f"cannot run {command[0]}: {error.strerror}") from None
    output, _ = await process.communicate()
    return output.decode("utf-8", "replace")


def check_encoder(ffmpeg: Ffmpeg, scenario: Scenario, sink: str) -> None:
    """Raise NotHere where this ffmpeg cannot do what the scenario asks of it."""
    wanted = ENCODERS[scenario.encoder]
    if wanted not in ffmpeg.encoders:
        has = (
            ", ".join(name for name, codec in ENCODERS.items() if codec in ffmpeg.encoders) or "none of ours"
        )
        raise NotHere(
            f"{ffmpeg.path} ({ffmpeg.version}) has no {wanted} for --encoder {scenario.encoder}; "
            f"it has: {has}. Install a build that has it, or name another with --ffmpeg"
        )
    if scenario.encoder == "h265" and sink != "null" and (0, 0) < ffmpeg.number < (6, 1):
        raise NotHere(
            f"{ffmpeg.path} ({ffmpeg.version}) cannot send h265 over RTMP, which came with 6.1; "
            "use --sink null, or a newer one with --ffmpeg"
        )


def check_sink(sink: str, procfs: Path = Path("/proc")) -> None:
    """Raise NotHere where an RTMP sink on this machine has no listener.

    Looks at the kernel's tables, and never connects: a probe would be a listening ffmpeg's only client.
    """
    parts = urlsplit(sink)
    if parts.scheme != "rtmp" or parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        return
    port = parts.port or 1935
    listening = ports.listeners(procfs)
    if listening and port not in listening:
        raise NotHere(
            f"nobody listens at {parts.hostname}:{port}: start an RTMP server there, "
            "or leave --sink out for the embedded one"
        )
