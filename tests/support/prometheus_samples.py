"""Samples as Prometheus's API writes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from powerbench_agent.core.prometheus_windows import NODE, PastWindow

if TYPE_CHECKING:
    from collections.abc import Callable

BEGIN = 1_799_990_000.0  # well before the clock's now
WINDOW = PastWindow(BEGIN + 2.5, BEGIN + 62.5)


def every(seconds: float, value: Callable[[float], float], begin: float = -60, end: float = 200) -> list[Any]:
    """Return raw samples as Prometheus writes them; `value` by seconds since BEGIN."""
    moments = [begin + number * seconds for number in range(int((end - begin) / seconds) + 1)]
    return [[BEGIN + moment, f"{value(moment):.6f}"] for moment in moments]


def series(name: str, samples: list[Any], **labels: str) -> dict[str, Any]:
    metric = {"__name__": name, "instance": "worker-1:9510", "job": "powerbench", **labels}
    return {"metric": metric, "values": samples}


def node(watts: float, component: str = "cpu", source: str = "rapl", **labels: str) -> dict[str, Any]:
    samples = every(5, lambda moment: (moment + 60) * watts)
    return series(NODE, samples, component=component, source=source, **labels)


def answer(*found: dict[str, Any]) -> bytes:
    data = {"resultType": "matrix", "result": list(found)}
    return json.dumps({"status": "success", "data": data}).encode()
