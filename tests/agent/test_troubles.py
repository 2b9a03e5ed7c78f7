"""Parts of a collector that fail alone: one log line each, and a counter that can be alerted on."""

from __future__ import annotations

from structlog.testing import capture_logs

from powerbench_agent.agent.troubles import MAX_PARTS, OTHERS, RECOVERED_SECONDS, Troubles
from powerbench_agent.core.model import Trouble

SLOW = Trouble("frequency", "no answer within 0.5 s", "raise the interval")


def test_a_part_is_logged_once_while_it_fails_and_counted_each_time() -> None:
    """A part that fails at every reading gives one line, with the remedy."""
    troubles = Troubles("host")
    with capture_logs() as logs:
        for second in range(100):
            troubles.take([SLOW], float(second))
    assert troubles.faults == {"frequency": 100}
    assert logs == [
        {
            "log_level": "warning",
            "event": "part of a collector in trouble",
            "collector": "host",
            "part": "frequency",
            "error": "no answer within 0.5 s",
            "remedy": "raise the interval",
        }
    ]


def test_a_part_that_comes_and_goes_does_not_fill_the_log() -> None:
    """A fault every five seconds is one trouble; a minute without it ends it."""
    troubles = Troubles("host")
    with capture_logs() as logs:
        for second in range(0, 300, 5):
            troubles.take([SLOW], float(second))
            troubles.take([], second + 1.0)
        troubles.take([], 296.0 + RECOVERED_SECONDS)
        troubles.take([SLOW], 400.0)
    assert [entry["event"] for entry in logs] == [
        "part of a collector in trouble",
        "part of a collector is well again",
        "part of a collector in trouble",
    ]


def test_what_a_limit_cuts_is_no_fault() -> None:
    """It is logged like one, and counted by the option that says how much."""
    troubles = Troubles("docker")
    cut = Trouble("containers", "3 are not shown", "raise max_containers", limit="max_containers")
    with capture_logs() as logs:
        for second in range(3):
            troubles.take([cut], float(second))
    assert troubles.faults == {}
    assert troubles.limit_hits == {"max_containers": 3}
    assert [entry["remedy"] for entry in logs] == ["raise max_containers"]


def test_the_number_of_parts_is_bounded() -> None:
    """A collector that names parts without end is counted under one name."""
    troubles = Troubles("host")
    with capture_logs():
        troubles.take([Trouble(f"part {number}", "odd") for number in range(MAX_PARTS + 50)], 0.0)
    assert len(troubles.faults) == MAX_PARTS + 1
    assert troubles.faults[OTHERS] == 50
