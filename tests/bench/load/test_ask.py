"""No program that is asked something can keep us, or fill our memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from powerbench_agent.bench.load.ask import Reply, ask

PATIENCE = 20.0  # seconds; far more than any of these should take, far less than what they would take


def test_a_program_is_heard_out() -> None:
    """Both outputs and the exit code of one that ends."""
    assert ask(["sh", "-c", "echo out; echo err >&2; exit 3"], PATIENCE) == Reply(3, "out\n", "err\n")


def test_one_that_goes_on_is_killed_with_what_it_started() -> None:
    """It ignores every signal it can, and so does its child, which holds the pipe."""
    begun = time.monotonic()
    script = "trap '' INT TERM HUP; sleep 100 & echo $!; wait; sleep 100"
    reply = ask(["sh", "-c", script], 0.5)
    assert reply.code is None
    assert time.monotonic() - begun < PATIENCE
    child = Path(f"/proc/{int(reply.out)}/stat")
    patience = time.monotonic() + PATIENCE
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < patience, "its child goes on"
        os.sched_yield()


def test_one_that_says_too_much_is_cut_off() -> None:
    """What is kept is bounded, and it is not waited for."""
    reply = ask(["sh", "-c", "exec yes >&2"], PATIENCE, most=1000)
    assert reply.code is None
    assert len(reply.err) == 1000


def test_one_that_closes_its_outputs_and_stays_is_killed() -> None:
    """The end of what it says is not its end."""
    assert ask(["sh", "-c", "exec >&- 2>&-; sleep 100"], 0.5).code is None


def test_one_that_is_not_there_is_an_os_error() -> None:
    """As every call that cannot run a program."""
    with pytest.raises(FileNotFoundError):
        ask(["/nonexistent/ffprobe"], PATIENCE)
