"""A token bucket, which limits how often readings may be requested beyond the scheduled ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from powerbench_agent.core.host import Clock


class Bucket:
    """A token bucket: `burst` at once, `rate` a second in the long run."""

    def __init__(self, clock: Clock, *, rate: float, burst: float) -> None:
        self._clock = clock
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled = clock.monotonic()

    def take(self) -> bool:
        """Take a token if there is one."""
        now = self._clock.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
