"""Raw energy counters and power readings to joules. Pure: no I/O, no clock.

Rules, each because some exporter breaks it:

- A counter here starts at 0 with the agent and never decreases.
- A decrease of the raw counter is a wrap only if the energy that a wrap implies is plausible for the time
  that passed. Over a suspend it never is one: most suspends restart the counter.
- A difference beyond what the part can draw, or far beyond what it has lately drawn, is doubtful. It is held
  until the next reading decides: energy, if the counter goes on from there; a glitch, if it is back on its
  line; else a reset. Energy is then counted in full, a glitch adds nothing, and over a reset the energy is
  unknown, so 0 is added.
- What was believed is taken back if the counter returns to its line within some readings: the joules then
  stand still until the truth has caught up with them.
- An unchanged raw counter adds 0: it neither wrapped nor was it reset. Its next step may be the energy of the
  whole time that it stood, since some are written every few seconds.

Source: https://docs.kernel.org/power/powercap/powercap.html (energy_uj, max_energy_range_uj).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAUSIBLE_WATTS = 6000.0  # of one metered part: twice the largest module sold in 2026, 2,900 W
_SLACK_SECONDS = 0.1  # between the time of a reading and the counter's own last update
_USUAL_FACTOR = 3.0  # up to this multiple of its recent highest power a part is believed at once,
_USUAL_WATTS = 20.0  # and this much more
_FIRST_SHARE = 0.5  # up to this share of what is plausible, the first power is believed at once
_FORGET_SECONDS = 60.0  # in which the recent highest power falls to 1/e
_HELD_SECONDS = 3.0  # a leap that has lasted this long was a burst of real energy,
_HELD_READINGS = 2  # if so many readings have gone on from there
STILL_SECONDS = 5.0  # a counter that stands still for less may be one that moves in large steps
_STEPS_SECONDS = 60.0  # after it stood still, a counter is taken for one that moves in large steps
_MEAN_SECONDS = 10.0  # over which the power of such a counter is a mean
_RETURN_SECONDS = 10.0  # a counter that left its line may come back to it within this time,
_RETURN_READINGS = 4  # or within so many of the intervals that it is read at


class _Reading(NamedTuple):
    """A raw value, and what was counted and usual by then."""

    raw_uj: int
    now: float  # monotonic seconds
    asleep: float  # seconds that the machine had been suspended
    stood: float = 0.0  # seconds that it had stood at this value, at most _MEAN_SECONDS
    gained_uj: int = 0
    usual_watts: float | None = None  # recent highest power; None: not known yet


class _Step(NamedTuple):
    """The energy between two readings, if nothing is wrong with them."""

    gained_uj: int
    seconds: float
    wrapped: bool

    def plus(self, other: _Step) -> _Step:
        """Return this step and the one after it as one, which may be longer than the counter's range."""
        gained_uj, seconds = self.gained_uj + other.gained_uj, self.seconds + other.seconds
        return _Step(gained_uj, seconds, self.wrapped or other.wrapped)

    def fits(self, watts: float) -> bool:
        """Return whether the energy is at most what this power gives."""
        return self.gained_uj <= watts * (self.seconds + _SLACK_SECONDS) * 1e6


class _Doubt(NamedTuple):
    """Readings that leapt away from the counter's line and went on from there."""

    first: _Reading
    last: _Reading
    on: _Step  # from the first to the last
    readings: int  # after the first
    leap: _Step | None  # from the line to the first; None: it cannot be energy
    counted: bool  # among the resets
    confused: bool  # the readings before it were in doubt too, and fitted nowhere


class Counter:
    """Joules since the first reading of a raw counter, over wraps, resets, glitches and missed readings."""

    def __init__(self, range_uj: int | None) -> None:
        """`range_uj`: the largest raw value, in µJ; None if unknown, then every wrap is a reset."""
        self.range_uj = range_uj
        self.most_watts = PLAUSIBLE_WATTS  # that two readings may imply; the part's own if known
        self.wraps = 0
        self.resets = 0  # implausible leaps, there and back
        self.breaks = 0  # how often `joules` lost touch with the raw counter: no mean power over that
        self.held = False  # the last reading is in doubt: `joules` are those of an earlier one
        self._shown_uj = 0  # whole µJ, so that months of readings add up without a rounding error
        self._line: list[_Reading] = []  # the last two that are believed, the newest last
        self._left: _Reading | None = None  # the newest of the line before the last reset or leap
        self._left_for = _RETURN_SECONDS  # it may come back to that one within this time
        self._read_at: float | None = None
        self._doubt: _Doubt | None = None

    @property
    def joules(self) -> float:
        """Joules since the first reading."""
        return self._shown_uj / 1e6

    def advance(self, energy_uj: int, now: float, asleep: float = 0.0) -> float:
        """Take the raw value read at monotonic second `now`; return joules since the first.

        `asleep`: seconds that the machine has been suspended since boot, which `now` leaves out.
        """
        reading = _Reading(energy_uj, now, asleep)
        if self._read_at is not None:
            self._left_for = max(self._left_for, _RETURN_READINGS * (now - self._read_at))
        self._read_at = now
        if not self._line:
            self._line = [reading._replace(gained_uj=self._shown_uj)]
        elif not self._go_on(reading) and not self._follow_doubt(reading):
            self._open_doubt(reading)
        gained_uj = self._line[-1].gained_uj
        self._shown_uj = max(self._shown_uj, gained_uj)
        self.held = self._doubt is not None or gained_uj < self._shown_uj
        return self.joules

    def forget(self) -> None:
        """Drop the last raw values: energy up to the next reading is not counted."""
        self._line = []
        self._left = self._doubt = self._read_at = None
        self.breaks += 1

    # -- on the line -----------------------------------------------------------------------------

    def _go_on(self, reading: _Reading) -> bool:
        """Take a reading that is usual after the newest of the line, or else after the one before that."""
        newest = self._line[-1]
        for before in self._candidates(reading):
            step = self._step(before, reading)
            if step is None or not step.fits(self._usual(before)):
                continue
            if before is self._left and step.wrapped:
                continue  # after so long nearly any reading could be a wrap
            if before is not newest:
                if self._is_between(before, newest, reading) or self._turns_over(before, reading):
                    continue
                # What came after it was a glitch that had been believed.
                self.resets += 1
                self.breaks += 1
                self._left = None
            elif self._doubt is not None and not self._is_between(before, self._doubt.first, reading):
                self.resets += 1 if self._doubt.counted else 2
            elif self._doubt is not None:
                self._leave(before)
            self._believe(before, reading, step)
            return True
        return False

    def _candidates(self, reading: _Reading) -> Iterator[_Reading]:
        """Yield what a reading may follow, the likeliest first."""
        newest = self._line[-1]
        yield newest
        step = self._step(newest, reading)
        if step is None or not step.fits(self.most_watts):
            yield self._line[0]
        if self._left is not None:
            if reading.now - self._left.now <= self._left_for:
                yield self._left
            else:
                self._left = None

    def _believe(self, before: _Reading, reading: _Reading, step: _Step) -> None:
        """Put a reading on the line: it has gained `step` since `before`."""
        self.wraps += step.wrapped
        usual = before.usual_watts
        if step.gained_uj == 0:  # a counter that stands still tells nothing, but may move in large steps
            reading = reading._replace(stood=min(step.seconds, _MEAN_SECONDS))
        else:
            watts = step.gained_uj / 1e6 / (step.seconds + _SLACK_SECONDS)
            usual = max(watts, (usual or 0.0) / (1 + step.seconds / _FORGET_SECONDS))
        gained_uj = before.gained_uj + step.gained_uj
        self._line = [before, reading._replace(gained_uj=gained_uj, usual_watts=usual)]
        self._doubt = None

    def _leave(self, newest: _Reading) -> None:
        """Remember what the counter may still come back to."""
        self._left = newest
        self._left_for = _RETURN_SECONDS

    def _is_between(self, before: _Reading, doubted: _Reading, reading: _Reading) -> bool:
        """Return whether a doubted reading lies on the way: a counter that moves in large steps."""
        there, on = self._step(before, doubted), self._step(doubted, reading)
        whole = self._step(before, reading)
        if there is None or on is None or whole is None:
            return False
        return there.gained_uj + on.gained_uj == whole.gained_uj

    def _turns_over(self, before: _Reading, reading: _Reading) -> bool:
        """Return whether the counter has only gone once round its range since it was at `before`."""
        newest = self._line[-1]
        on, whole = self._step(newest, reading), self._step(before, reading)
        if self.range_uj is None or on is None or whole is None or not on.fits(self.most_watts):
            return False
        gained_uj = newest.gained_uj - before.gained_uj + on.gained_uj
        return gained_uj != whole.gained_uj and (gained_uj - whole.gained_uj) % self.range_uj == 0

    # -- in doubt --------------------------------------------------------------------------------

    def _open_doubt(self, reading: _Reading) -> None:
        """Hold a reading that fits nowhere."""
        newest = self._line[-1]
        if self._doubt is not None:
            self.resets += not self._doubt.counted
        leap = self._step(newest, reading)
        if leap is not None and not leap.fits(self.most_watts):
            leap = None
        confused = self._doubt is not None
        is_fall = leap is None and reading.raw_uj < newest.raw_uj
        self.resets += is_fall and not confused
        self._doubt = _Doubt(
            reading, reading, _Step(0, 0.0, wrapped=False), 0, leap, is_fall or confused, confused
        )

    def _follow_doubt(self, reading: _Reading) -> bool:
        """Take a reading that goes on from the doubted ones; it may show what their leap was."""
        doubt = self._doubt
        on = None if doubt is None else self._step(doubt.last, reading)
        if doubt is None or on is None or not on.fits(self.most_watts):
            return False
        newest = self._line[-1]
        whole = doubt.on.plus(on)
        readings = doubt.readings + 1
        if doubt.leap is not None and _goes_on(doubt.leap, whole, readings):
            self._leave(newest)
            self._believe(newest, reading, doubt.leap.plus(whole))
            return True
        if doubt.leap is not None:
            self._doubt = doubt._replace(last=reading, on=whole, readings=readings)
            return True
        if not on.fits(self._usual(newest)) and not doubt.confused:
            return False
        self.resets += not doubt.counted
        self.breaks += 1
        self._leave(newest)
        start = doubt.first._replace(gained_uj=newest.gained_uj, usual_watts=newest.usual_watts)
        self._believe(start, reading, whole)
        return True

    # -- what is plausible -----------------------------------------------------------------------

    def _usual(self, before: _Reading) -> float:
        """Return the power that is believed at once after a reading."""
        if before.usual_watts is None:
            return _FIRST_SHARE * self.most_watts
        return min(self.most_watts, _USUAL_FACTOR * before.usual_watts + _USUAL_WATTS)

    def _step(self, before: _Reading, after: _Reading) -> _Step | None:
        """Return the energy between two readings; None for a decrease that cannot be a wrap."""
        gained_uj = after.raw_uj - before.raw_uj
        seconds = max(0.0, after.now - before.now)
        slept = max(0.0, after.asleep - before.asleep)
        if gained_uj >= 0:
            return _Step(gained_uj, seconds + slept + before.stood, wrapped=False)
        if self.range_uj is None or slept > _SLACK_SECONDS or gained_uj + self.range_uj < 0:
            return None
        return _Step(gained_uj + self.range_uj, seconds, wrapped=True)


def _goes_on(leap: _Step, since: _Step, readings: int) -> bool:
    """Return whether a leap is energy: as much power since, or it has lasted."""
    watts = leap.gained_uj / (leap.seconds + _SLACK_SECONDS)
    watts_since = since.gained_uj / (since.seconds + _SLACK_SECONDS)
    has_lasted = since.seconds >= _HELD_SECONDS and readings >= _HELD_READINGS
    return watts_since >= watts / 2 or has_lasted


class Rate:
    """Mean power between one beat and the next; of a counter that moves in large steps, over whole steps.

    A beat in which such a counter stands still is not 0 W: the last mean holds until the next step.
    """

    def __init__(self, at_rest: float | None = 0.0) -> None:
        """`at_rest`: the power of a counter that has not moved yet, or not for 5 s; None: unknown."""
        self.watts: float | None = None
        self._at_rest = at_rest
        self._steps: deque[tuple[float, float]] = deque()  # joules and second of the last movements
        self._stood_at: float | None = None  # the last beat in which it stood still
        self._rests = False
        self._has_moved = False
        self._breaks = 0

    def follow(self, counter: Counter, now: float) -> None:
        """Take a counter at a beat: no power while a reading is in doubt, nor over energy that is unknown."""
        if counter.breaks != self._breaks:
            self._breaks = counter.breaks
            self.restart()
        if counter.held:
            self.watts = None  # the next mean is over this beat too
        else:
            self.beat(counter.joules, now)

    def beat(self, joules: float, now: float) -> None:
        """Take the joules at monotonic second `now`, and set the mean power since the last beat."""
        if not self._steps:
            self._steps.append((joules, now))
            return
        before, then = self._steps[-1]
        if now <= then:
            return
        if joules != before:
            self._move(joules, now)
            return
        self._stood_at = now
        if self._rests or not self._has_moved or now - then >= STILL_SECONDS:
            self._rests = True
            self.watts = self._at_rest
            # Where nothing rests, the next step is of the whole time since the last one.
            self._steps = deque([(joules, then if self._at_rest is None and self._has_moved else now)])

    def restart(self) -> None:
        """Have no power until two beats in a row have given a mean."""
        self.watts = self._stood_at = None
        self._steps.clear()
        self._rests = self._has_moved = False

    def _move(self, joules: float, now: float) -> None:
        self._has_moved = True
        begin, then = self._steps[-1]
        if self._rests:
            self._rests, self._stood_at = False, None  # it was at rest: no large steps
        elif self._stood_at is not None and now - self._stood_at < _STEPS_SECONDS:
            begin, then = self._steps[0]
        self.watts = (joules - begin) / (now - then)
        self._steps.append((joules, now))
        while now - self._steps[0][1] > _MEAN_SECONDS and len(self._steps) > 1:
            self._steps.popleft()


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
