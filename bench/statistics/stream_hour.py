"""What a stream costs an hour, in energy, money and greenhouse gas. Pure.

Wh (watts are Wh an hour), money in the rates' currency, grams CO2e.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from powerbench_agent.bench.statistics.stats import Interval
from powerbench_agent.core.results import REALTIME

if TYPE_CHECKING:
    from powerbench_agent.bench.statistics.groups import Group
    from powerbench_agent.core.results import Rates


def stream_hour(group: Group, rates: Rates) -> dict[str, Any]:
    """Return what a stream costs an hour: marginal, what it adds; attributional, its part of all.

    It has what the group and the rates tell; nothing for a group without streams, for one that does a part of
    the work, and for one that is not at real time: its hour is not an hour of what people watch. A ladder is
    one stream.
    """
    if not group.streams or not group.is_whole or group.settings.pace != REALTIME:
        return {}
    row: dict[str, Any] = {}
    kinds = [("attributional", group.watts.mean, group.watts.interval)]
    if group.versus is not None:
        kinds.append(("marginal", group.versus.delta, group.versus.interval))
    for kind, watts, interval in kinds:
        hour = watts / group.streams
        ends = Interval(*(end / group.streams for end in interval)) if interval else None
        row |= spread(f"wh_per_stream_hour_{kind}", hour, ends)
        if rates.price_per_kwh is not None:
            row[f"cost_per_stream_hour_{kind}"] = hour / 1000 * rates.price_per_kwh
            row["currency"] = rates.currency or None
        if rates.gco2e_per_kwh is not None:
            row[f"gco2e_per_stream_hour_{kind}"] = hour / 1000 * rates.gco2e_per_kwh
            row["gco2e_source"] = rates.gco2e_source or None
    return row


def spread(name: str, value: float, interval: Interval | None) -> dict[str, float | None]:
    """Return a figure and the ends of its 95 % interval, under the names that files give them."""
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
