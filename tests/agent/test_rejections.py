"""What is turned away is counted each time and logged once a minute for each reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from structlog.testing import capture_logs

from powerbench_agent.agent.rejections import REASONS, SAY_AGAIN_SECONDS, Rejections

if TYPE_CHECKING:
    from conftest import FakeClock


def test_a_flood_is_one_line_a_minute(clock: FakeClock) -> None:
    """Anyone can cause these lines: the next one of a reason says how many there were."""
    rejections = Rejections(clock)
    with capture_logs() as logged:
        for _ in range(1000):
            rejections.note("not_http", "192.0.2.1")
        clock.advance(SAY_AGAIN_SECONDS)
        rejections.note("not_http", "192.0.2.2")
    assert [(line["peer"], line["so_far"]) for line in logged] == [("192.0.2.1", 1), ("192.0.2.2", 1001)]


def test_every_reason_has_its_own_minute_and_remedy(clock: FakeClock) -> None:
    """One reason does not hide another."""
    rejections = Rejections(clock)
    with capture_logs() as logged:
        for reason in REASONS:
            rejections.note(reason, "192.0.2.1")
    assert len({line["event"] for line in logged}) == len(REASONS)
    assert all(line["remedy"] for line in logged)
    assert rejections.counts == dict.fromkeys(REASONS, 1)


def test_what_the_client_notices_itself_is_counted_alone(clock: FakeClock) -> None:
    """A 403 to a browser is no line in the log."""
    rejections = Rejections(clock)
    with capture_logs() as logged:
        rejections.count("forbidden")
    assert (logged, rejections.counts["forbidden"]) == ([], 1)
