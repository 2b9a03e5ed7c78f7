"""What a picture can be scored by, as it is written on the command line. Pure."""

from __future__ import annotations

import difflib

from powerbench_agent.core.scores import MEASURES


def parse_measures(text: str) -> tuple[str, ...]:
    """Return the measures of a list such as `vmaf,psnr`, each once; none for `none`. Raises: ValueError."""
    words = [word.strip().lower() for word in text.split(",")]
    if words == ["none"]:
        return ()
    for word in words:
        if word in MEASURES:
            continue
        if word == "none":
            raise ValueError("none stands alone: it means that nothing is scored")
        near = difflib.get_close_matches(word, MEASURES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{word[:40]!r} is not one of {', '.join(MEASURES)} or none{hint}")
    return tuple(name for name in MEASURES if name in words)
