"""One daemon thread for calls that may hang: drivers, sensors on slow buses, network file systems.

A timeout does not stop a thread, and a stuck thread in the default executor would keep the process from
ending. So each such source has a thread of its own, and while one call has not returned the next is refused.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from powerbench_agent.core.model import ReadFailed

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class _Job(NamedTuple):
    function: Callable[[], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Worker:
    """Runs one function at a time, off the event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None ends the thread
        self._thread: threading.Thread | None = None
        self._busy = False

    @property
    def busy(self) -> bool:
        """Whether a call has not returned."""
        return self._busy

    async def call(self, function: Callable[[], T]) -> T:
        """Return what `function()` returns, or raise what it raises.

        Raises: ReadFailed while an earlier call has not returned.
        """
        if self._busy:
            raise ReadFailed(
                "an earlier call has not returned",
                "check the kernel log for a stuck driver or mount",
            )
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._busy = True
        self._jobs.put(_Job(function, future, loop))
        return await future

    def close(self) -> None:
        """End the thread after its present call, without waiting for it."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = job.function()
            except BaseException as caught:  # noqa: BLE001 - raised where the call is awaited
                error = caught
            try:
                job.loop.call_soon_threadsafe(self._finish, job.future, result, error)
            except RuntimeError:  # the loop has closed in the meantime, so the result is not awaited any more
                return

    def _finish(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._busy = False
        if future.done():  # the caller has run into its deadline
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
