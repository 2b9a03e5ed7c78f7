"""What a kilowatt-hour costs, in money and in greenhouse gas: a small TOML file that the operator writes."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

from powerbench_agent.bench.exits import BadFile
from powerbench_agent.bench.nearest import nearest
from powerbench_agent.core.bounded_file import UnfitFile, read_bounded_file

_MAX_BYTES = 65_536
DEFAULT_PATH = Path("/etc/powerbench/rates.toml")
_NUMBERS = ("price_per_kwh", "gco2e_per_kwh")
_TEXTS = ("currency", "gco2e_source")


def load(path: Path | None) -> dict[str, Any]:
    """Return every key; None or "" if the file does not have it. Raises: BadFile if it cannot be used."""
    found: dict[str, Any] = {}
    if path is not None or DEFAULT_PATH.exists():
        where = path or DEFAULT_PATH
        try:
            found = tomllib.loads(read_bounded_file(where, _MAX_BYTES).decode())
        except OSError as error:
            raise BadFile(f"--rates {where}: cannot read it: {error.strerror}") from None
        except UnfitFile as unfit:
            raise BadFile(f"--rates {where}: {unfit}") from None
        except ValueError as error:  # as TOML's errors are; they name line and column
            raise BadFile(f"--rates {where}: {error}") from None
        _check(found, where)
    return {**dict.fromkeys(_NUMBERS), **dict.fromkeys(_TEXTS, ""), **found}


def _check(found: dict[str, Any], where: Path) -> None:
    """Check the keys and their values. Raises: BadFile."""
    for key, value in found.items():
        if key not in (*_NUMBERS, *_TEXTS):
            hint = nearest(key, (*_NUMBERS, *_TEXTS))
            raise BadFile(f"--rates {where}: {key!r} is not a key here{hint}")
        if key in _TEXTS:
            if not isinstance(value, str):
                raise BadFile(f"--rates {where}: {key} must be text")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise BadFile(f"--rates {where}: {key} must be a number, and not negative")
    if "gco2e_per_kwh" in found and not found.get("gco2e_source"):
        raise BadFile(f"--rates {where}: gco2e_per_kwh needs gco2e_source: name where the figure comes from")
