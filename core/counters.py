"""Raw energy counters and power readings to joules. Pure: no I/O, no clock.

Rules, each because some exporter breaks it:

- A counter here starts at 0 with the agent and never decreases.
- A decrease of the raw counter is a wrap only if the energy that a wrap implies is plausible for the time
  that passed (`most_watts`). Otherwise the counter was reset and the energy used meanwhile is unknown, so
  0 is added.
- An increase beyond what the part can draw is a sentinel value or another counter: 0 is added, and it counts
  as a reset. The decrease that follows it is not a wrap.
- An unchanged raw counter adds 0: it neither wrapped nor was it reset.

Source: https://docs.kernel.org/power/powercap/powercap.html (energy_uj, max_energy_range_uj).
"""

from __future__ import annotations

PLAUSIBLE_WATTS = 6000.0  # of one metered part: twice the largest module sold in 2026, 2,900 W
_SLACK_SECONDS = 0.1  # between the time of a reading and the counter's own last update


class Counter:
    """Joules since the first reading of a raw counter, over wraps, resets and missed readings."""

    def __init__(self, range_uj: int | None) -> None:
        """`range_uj`: the largest raw value, in µJ; None if unknown, then every wrap is a reset."""
        self.range_uj = range_uj
        self.most_watts = PLAUSIBLE_WATTS  # that two readings may imply; the part's own if known
        self.wraps = 0
        self.resets = 0
        self._gained_uj = 0  # whole µJ, so that months of readings add up without a rounding error
        self._last: tuple[int, float] | None = None
        self._leapt = False  # the last raw value cannot be true

    @property
    def joules(self) -> float:
        """Joules since the first reading."""
        return self._gained_uj / 1e6

    def advance(self, energy_uj: int, now: float) -> float:
        """Take the raw value read at monotonic second `now`; return joules since the first."""
        if self._last is not None:
            before_uj, then = self._last
            self._add(energy_uj - before_uj, now - then)
        self._last = (energy_uj, now)
        return self.joules

    def _add(self, gained_uj: int, seconds: float) -> None:
        """Add the difference of two raw values, or count a reset if it cannot be energy."""
        wrapped = False
        if gained_uj < 0 and self.range_uj is not None and not self._leapt:
            wrapped = True
            gained_uj += self.range_uj
        most_uj = self.most_watts * (seconds + _SLACK_SECONDS) * 1e6
        if 0 <= gained_uj <= most_uj:
            self._gained_uj += gained_uj
            self.wraps += wrapped
            self._leapt = False
        else:
            self.resets += 1
            self._leapt = gained_uj > 0 and not wrapped

    def forget(self) -> None:
        """Drop the last raw value: energy up to the next reading is not counted."""
        self._last = None


class Rate:
    """Mean power between one beat and the next."""

    def __init__(self) -> None:
        self.watts: float | None = None
        self._last: tuple[float, float] | None = None

    def beat(self, joules: float, now: float) -> None:
        """Take the joules at monotonic second `now`, and set the mean power since the last beat."""
        if self._last is not None:
            before, then = self._last
            if now > then:
                self.watts = (joules - before) / (now - then)
        self._last = (joules, now)


class Integral:
    """Joules since the first of a series of power readings, for parts without a counter: trapezoids.

    Power as the kernel or a driver gives it is a mean over a window of its own, so of the time between two
    readings only that window is seen.
    """

    def __init__(self, max_gap: float) -> None:
        """`max_gap`: the most seconds between two readings that are integrated; a longer gap adds 0."""
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
