"""Raw energy counters to joules. Pure: no I/O, no clock.

Rules, each because some exporter breaks it:

- A counter here starts at 0 with the agent and never decreases.
- A decrease of the raw counter is a wrap only if the energy that it implies is plausible for the time
  that passed; otherwise the counter was reset, and what it lost is unknown: 0 is added.
- An increase beyond what any part draws is a sentinel or another counter: 0 is added, and it counts as
  a reset; the way back from it is none of a wrap.
- An equal reading is an equal reading.

Source: https://docs.kernel.org/power/powercap/powercap.html (energy_uj, max_energy_range_uj).
"""

from __future__ import annotations

PLAUSIBLE_WATTS = 2000.0  # of one metered part; the largest socket of 2026 draws a quarter of it
_SLACK_SECONDS = 0.1  # between stamping a reading and the counter's own last update


class Counter:
    """Joules since the start out of one raw counter that wraps, resets and is sometimes missed."""

    def __init__(self, range_uj: int | None) -> None:
        """`range_uj`: the largest raw value, in µJ; None where unknown, so that no wrap can be told."""
        self.range_uj = range_uj
        self.wrap_watts = PLAUSIBLE_WATTS  # the bound of a wrap, where the part's own limits say less
        self.wraps = 0
        self.resets = 0
        self._gained_uj = 0  # whole µJ: months of beats add up without a rounding error
        self._last: tuple[int, float] | None = None
        self._leapt = False  # to a value that cannot be true

    @property
    def joules(self) -> float:
        """Since the first reading."""
        return self._gained_uj / 1e6

    def advance(self, energy_uj: int, now: float) -> float:
        """Take the raw value read at monotonic second `now`; return joules since the first."""
        if self._last is not None:
            before_uj, then = self._last
            gained_uj = energy_uj - before_uj
            watts = PLAUSIBLE_WATTS
            if wrapped := gained_uj < 0 and self.range_uj is not None and not self._leapt:
                gained_uj += self.range_uj or 0
                watts = self.wrap_watts
            if 0 <= gained_uj <= watts * (now - then + _SLACK_SECONDS) * 1e6:
                self._gained_uj += gained_uj
                self.wraps += wrapped
                self._leapt = False
            else:
                self._leapt = gained_uj > 0 and not wrapped
                self.resets += 1
        self._last = (energy_uj, now)
        return self.joules

    def forget(self) -> None:
        """Drop the last raw value: what comes until the next reading is not counted."""
        self._last = None


class Rate:
    """Mean watts between one beat and the next."""

    def __init__(self) -> None:
        self.watts: float | None = None
        self._last: tuple[float, float] | None = None

    def beat(self, joules: float, now: float) -> None:
        """Close the window that the last beat opened."""
        if self._last is not None and now > self._last[1]:
            self.watts = (joules - self._last[0]) / (now - self._last[1])
        self._last = (joules, now)


class Integral:
    """Joules since the start out of power readings, where a part has no counter: trapezoids between them.

    The kernel's or the driver's power is a mean over its own window, so what happens between two readings
    is seen only as far as that window reaches.
    """

    def __init__(self, max_gap: float) -> None:
        """`max_gap`: seconds between readings that are bridged; beyond, nothing is known and 0 is added."""
        self.joules = 0.0
        self.max_gap = max_gap
        self._last: tuple[float, float] | None = None

    def advance(self, watts: float, now: float) -> float:
        """Take the power read at monotonic second `now`; return joules since the first reading."""
        if self._last is not None:
            before, then = self._last
            if now - then <= self.max_gap:
                self.joules += (before + watts) / 2 * (now - then)
        self._last = (watts, now)
        return self.joules

    def forget(self) -> None:
        """Drop the last reading: the time until the next is not counted."""
        self._last = None
