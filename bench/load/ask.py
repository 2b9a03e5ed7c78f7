"""Asks a program something it should answer at once: no program is trusted to end, or to say little."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_BYTES = 1_000_000  # of each of its two outputs; what comes after that is not read
_CHUNK_BYTES = 65_536
_REAP_SECONDS = 1.0


class Reply(NamedTuple):
    """What a program said, and how it ended."""

    code: int | None  # its exit code; None if it was ended here
    out: str
    err: str


def ask(command: Sequence[str], seconds: float, most: int = _MOST_BYTES) -> Reply:
    """Run a program for at most so many seconds and return its outputs. Raises: OSError if it cannot run.

    One that goes on, or that says more than `most` bytes, is killed with all that it started in its session.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    give_up = time.monotonic() + seconds
    try:
        out, err, ended = _read(process, give_up, most)
        if ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, give_up - time.monotonic()))
        code = process.poll()
    finally:
        _kill(process)
    return Reply(code, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def _read(process: subprocess.Popen[bytes], give_up: float, most: int) -> tuple[bytes, bytes, bool]:
    """Return both outputs, and whether they came to their end in time and in bounds."""
    assert process.stdout is not None  # noqa: S101 - asked for above
    assert process.stderr is not None  # noqa: S101 - likewise
    texts = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for descriptor in texts:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and (left := give_up - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, _CHUNK_BYTES)
                texts[key.fd] += chunk
                if not chunk or len(texts[key.fd]) > most:
                    selector.unregister(key.fd)
        is_over = not selector.get_map() and all(len(text) <= most for text in texts.values())
    out, err = texts.values()
    return bytes(out[:most]), bytes(err[:most]), is_over


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it if it runs, and close its pipes."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_REAP_SECONDS)
