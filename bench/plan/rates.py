"""What a kilowatt-hour costs, in money and in greenhouse gas: a small TOML file of the operator's."""

from __future__ import annotations

import difflib
import math
import tomllib
from pathlib import Path
from typing import Any

from powerbench_agent.bench.exits import BadFile

DEFAULT_PATH = Path("/etc/powerbench/rates.toml")
_NUMBERS = ("price_per_kwh", "gco2e_per_kwh")
_TEXTS = ("currency", "gco2e_source")


def load(path: Path | None) -> dict[str, Any]:
    """Return every key, None or "" where nobody said. Raises: BadFile for a file that cannot be used."""
    said: dict[str, Any] = {}
    if path is not None or DEFAULT_PATH.exists():
        where = path or DEFAULT_PATH
        try:
            said = tomllib.loads(where.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadFile(f"--rates {where}: cannot read it: {error.strerror}") from None
        except ValueError as error:  # TOML's errors are; they say line and column
            raise BadFile(f"--rates {where}: {error}") from None
        _check(said, where)
    return {**dict.fromkeys(_NUMBERS), **dict.fromkeys(_TEXTS, ""), **said}


def _check(said: dict[str, Any], where: Path) -> None:
    for key, value in said.items():
        if key not in (*_NUMBERS, *_TEXTS):
            near = difflib.get_close_matches(key, (*_NUMBERS, *_TEXTS), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BadFile(f"--rates {where}: {key!r} is no key here{hint}")
        if key in _TEXTS:
            if not isinstance(value, str):
                raise BadFile(f"--rates {where}: {key} must be text")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise BadFile(f"--rates {where}: {key} must be a number, and not negative")
    if "gco2e_per_kwh" in said and not said.get("gco2e_source"):
        raise BadFile(f"--rates {where}: gco2e_per_kwh needs gco2e_source: say where the figure comes from")
