"""Which encoders of the table are built into an ffmpeg, and which of those open on this machine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.bench.load.encoders.table import ROWS
from powerbench_agent.bench.load.ffmpeg import find_ffmpeg
from powerbench_agent.bench.load.trial import open_row

if TYPE_CHECKING:
    from powerbench_agent.bench.load.encoders.table import EncoderRow
    from powerbench_agent.bench.load.ffmpeg import Ffmpeg

_AT_ONCE = 2  # trials: more would slow each other down


class TriedEncoder(NamedTuple):
    """A row of the table, and whether it can be used here."""

    row: EncoderRow
    is_built_in: bool
    reason: str  # why it does not open; "" if it does

    @property
    def is_usable(self) -> bool:
        """Whether `powerbench run` can use it here."""
        return self.is_built_in and not self.reason


async def try_all(path: str = "") -> tuple[Ffmpeg, list[TriedEncoder]]:
    """Return every encoder of the table as it is in an ffmpeg, tried with its defaults. Raises: NotHere."""
    ffmpeg = await find_ffmpeg(path)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def try_one(row: EncoderRow) -> TriedEncoder:
        if row.name not in ffmpeg.encoders:
            return TriedEncoder(row, is_built_in=False, reason="")
        async with gate:
            return TriedEncoder(row, is_built_in=True, reason=await open_row(ffmpeg, row))

    rows = [row for row in ROWS if row.rates]
    return ffmpeg, list(await asyncio.gather(*map(try_one, rows)))


def cells(tried: TriedEncoder) -> tuple[str, str, str, str, str]:
    """Return a line of the listing: name, codec, presets, rate controls, and what it is here."""
    row = tried.row
    presets = str(row.speed) if row.speed else "-"
    if row.speed and len(row.speed.words) > 3:
        presets = f"{row.speed.words[0]} … {row.speed.words[-1]}"
    verdict = "opens" if tried.is_usable else tried.reason or "not built in"
    return row.known_as, row.codec, presets, ", ".join(row.rates), verdict
