"""One daemon thread for calls that may hang: drivers, sensors behind slow buses, network file systems.

A timeout does not stop a thread, and a stuck thread in the default executor would keep the process
from ending. So each such source has a thread of its own, and while a call is out the next is refused.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from powerbench_agent.core.model import ReadFailed

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Worker:
    """Runs one function at a time, off the event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[
            tuple[Callable[[], Any], asyncio.Future[Any], asyncio.AbstractEventLoop] | None
        ]
        self._jobs = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy = False

    async def call(self, function: Callable[[], T]) -> T:
        """Return what `function()` returns, or raise what it raises.

        Raises: ReadFailed while an earlier call has not come back.
        """
        if self._busy:
            raise ReadFailed(
                "an earlier call to it has not come back",
                "look at the kernel log for a stuck driver or mount",
            )
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._busy = True
        self._jobs.put((function, future, loop))
        return await future

    def close(self) -> None:
        """Let the thread end after the call it is in; does not wait for it."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future, loop = job
            try:
                result, error = function(), None
            except BaseException as caught:  # noqa: BLE001 - handed to the awaiting side whole
                result, error = None, caught
            try:
                loop.call_soon_threadsafe(self._finish, future, result, error)
            except RuntimeError:  # the loop has closed meanwhile: nobody waits any more
                return

    def _finish(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._busy = False
        if future.done():  # its caller has met its deadline and gone
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
