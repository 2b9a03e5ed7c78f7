"""The thread for calls that may hang."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from powerbench_agent.core.model import ReadFailed
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("tested worker")
    yield worker
    worker.close()
    for thread in threads():
        thread.join(10)
        assert not thread.is_alive(), "a closed worker's thread ends after its call"


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tested worker"]


async def test_calls_run_in_one_daemon_thread_of_their_own(worker: Worker) -> None:
    """Every call runs in the same thread, which is not the event loop's and does not delay the exit."""
    ran_in = {await worker.call(threading.current_thread) for _ in range(5)}
    assert list(ran_in) == threads()
    assert all(thread.daemon for thread in ran_in)
    assert threading.current_thread() not in ran_in


async def test_no_thread_before_the_first_call(worker: Worker) -> None:
    """A worker that is never asked costs nothing."""
    assert threads() == []
    assert await worker.call(lambda: 42) == 42
    assert len(threads()) == 1


@pytest.mark.parametrize("error", [ReadFailed("x"), OSError(5, "y"), KeyError("z"), SystemExit(3)])
async def test_what_the_function_raises_the_caller_gets(worker: Worker, error: BaseException) -> None:
    """The very exception arrives, and the worker works on."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await worker.call(fail)
    assert caught.value is error
    assert await worker.call(lambda: 1) == 1


async def test_while_a_call_is_out_the_next_is_refused(worker: Worker) -> None:
    """A caller that has given up leaves the call out: others are refused at once, until it comes back."""
    entered, leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hang() -> str:
        loop.call_soon_threadsafe(entered.set)
        leave.wait(20)
        return "late"

    first = asyncio.ensure_future(worker.call(hang))
    await entered.wait()
    for _ in range(2):
        with pytest.raises(ReadFailed, match="has not returned") as refused:
            await worker.call(lambda: 1)
        assert refused.value.remedy
    first.cancel()
    await asyncio.wait([first])
    with pytest.raises(ReadFailed):
        await worker.call(lambda: 1)
    leave.set()
    async with asyncio.timeout(10):
        while True:
            try:
                answer = await worker.call(lambda: "new")
                break
            except ReadFailed:
                await asyncio.sleep(0)
    assert answer == "new", "a late answer does not reach another caller"


HANGING = """
import asyncio, threading
from powerbench_agent.core.worker import Worker

async def main():
    loop, entered = asyncio.get_running_loop(), asyncio.Event()
    def hang():
        loop.call_soon_threadsafe(entered.set)
        threading.Event().wait()
    worker = Worker("stuck")
    call = asyncio.ensure_future(worker.call(hang))
    await entered.wait()
    call.cancel()
    worker.close()

asyncio.run(main())
"""


def test_a_stuck_call_does_not_keep_the_process() -> None:
    """A process whose driver call never comes back ends all the same, in silence."""
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], timeout=20, check=False, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
