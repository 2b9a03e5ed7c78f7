"""What the ports turn away: counted by reason, and logged with a remedy, at most once a minute for each.

FFmpeg ends with exit code 0 even if its reports went to the wrong place, so the log of the agent is where its
user finds out. Anyone who can reach a port can cause these lines: hence the limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from powerbench_agent.core.host import Clock

log = structlog.get_logger("http")

SAY_AGAIN_SECONDS = 60.0

SEND_PROGRESS_TO = "send FFmpeg's progress to http://HOST:PORT/ingest?stream=NAME"
# What is logged for each reason: what happened, and what to do about it.
_EVENTS = {
    "forbidden": (
        "request refused because of who sent it",
        "see token_file and trusted in agent.toml",
    ),
    "path": ("a POST to a path that takes no reports", SEND_PROGRESS_TO),
    "port": (
        "FFmpeg progress sent to a port that does not serve the ffmpeg collector",
        "send it to the aggregated port or to the listener of [collectors.ffmpeg]",
    ),
    "raw_progress": ("FFmpeg progress sent over plain TCP", f"{SEND_PROGRESS_TO}, not to tcp://HOST:PORT"),
    "tls": (
        "a TLS client on a port that serves plain HTTP",
        "use http://, or set tls_cert and tls_key in [agent.web]",
    ),
    "plain_http": ("a plain client on a port that serves HTTPS", "use https://"),
    "not_http": ("a client that does not send HTTP", "find out what connects to this port"),
    "connection_limit": (
        "too many open connections, a new one was closed",
        "find who opens them with ss -tnp; raise LimitNOFILE if they are wanted",
    ),
    "slow_request": (
        "a client did not finish the head of its request and was disconnected",
        "check the client and the network to it",
    ),
    "not_read": (
        "a client did not read its answer and was disconnected",
        "check the client and the network to it",
    ),
}
REASONS = tuple(_EVENTS)


class Rejections:
    """Counts by reason since the start."""

    def __init__(self, clock: Clock) -> None:
        self.counts = dict.fromkeys(REASONS, 0)
        self._clock = clock
        self._said: dict[str, float] = {}

    def count(self, reason: str) -> None:
        """Count a rejection that the client will notice by itself."""
        self.counts[reason] += 1

    def note(self, reason: str, peer: str, path: str = "") -> None:
        """Count a rejection; log it unless the same reason was logged within the last minute."""
        self.count(reason)
        now = self._clock.monotonic()
        said = self._said.get(reason)
        if said is not None and now - said < SAY_AGAIN_SECONDS:
            return
        self._said[reason] = now
        event, remedy = _EVENTS[reason]
        details = {"path": path} if path else {}
        log.warning(event, peer=peer, **details, so_far=self.counts[reason], remedy=remedy)
