"""Picture quality, scored after the energy window: a short encode with the stream's own settings.

The source is generated, so the encoder gets exactly the frames that it had in the stream, and nothing is
written while energy is measured. Every ffmpeg has PSNR and SSIM; VMAF needs a build with libvmaf.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from powerbench_agent.bench.load.child import StreamFailed
from powerbench_agent.bench.load.encoders.spelling import video_options

if TYPE_CHECKING:
    from powerbench_agent.bench.load.ffmpeg import Ffmpeg
    from powerbench_agent.bench.plan.scenario import Scenario

_SECONDS = 10
_PATIENCE = 1800.0  # seconds for one step: the slowest presets encode a frame in a second
# The key in results: FFmpeg's filter, and where the score stands in its output.
_PATTERNS = {
    "psnr_db": ("psnr", re.compile(r"PSNR .*average:([0-9.]+|inf)")),
    "ssim": ("ssim", re.compile(r"SSIM .*All:([0-9.]+)")),
    "vmaf": ("libvmaf", re.compile(r"VMAF score: ([0-9.]+)")),
}


async def score(ffmpeg: Ffmpeg, scenario: Scenario) -> dict[str, float | str]:
    """Return the scores of ten seconds of the stream, and why any is missing. Raises: StreamFailed."""
    picture = f"testsrc2=size={scenario.resolution}:rate={scenario.fps}:duration={_SECONDS}"
    source = ["-f", "lavfi", "-i", picture]
    quiet = [ffmpeg.path, "-hide_banner", "-nostdin", "-nostats"]
    scores: dict[str, float | str] = {"of": f"{_SECONDS} s encoded with the same settings, after the window"}
    with tempfile.TemporaryDirectory(prefix="powerbench-") as directory:
        encoded = str(Path(directory) / "encoded.mkv")
        code, text = await _run(
            *quiet, *source, *video_options(scenario.asked, scenario.video_kbps), "-y", encoded
        )
        if code != 0:
            raise StreamFailed(f"cannot encode for the score: {' | '.join(text.splitlines()[-2:])}")
        for name, (filter_name, pattern) in _PATTERNS.items():
            # yuv420p, as the encoder got it: or the score would be that of the conversion.
            graph = f"[0:v]format=yuv420p[a];[1:v]format=yuv420p[b];[a][b]{filter_name}"
            code, text = await _run(*quiet, "-i", encoded, *source, "-lavfi", graph, "-f", "null", "-")
            found = pattern.search(text)
            if code == 0 and found:
                scores[name] = float(found[1]) if found[1] != "inf" else "identical"
            elif "No such filter" in text:
                scores[f"{name}_missing"] = f"this ffmpeg has no {filter_name}"
            else:
                scores[f"{name}_missing"] = "failed"
    return scores


async def _run(*command: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_PATIENCE):
            _, text = await process.communicate()
    except TimeoutError:
        raise StreamFailed(f"the score was not done within {_PATIENCE:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return process.returncode or 0, text.decode("utf-8", "replace")
