"""What a picture can be scored by, as it is written on the command line. Pure."""

from __future__ import annotations

from powerbench_agent.bench.nearest import nearest
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
        what = f"{word[:40]!r} is not one of {', '.join(MEASURES)} or none"
        raise ValueError(what + nearest(word, MEASURES))
    return tuple(name for name in MEASURES if name in words)
