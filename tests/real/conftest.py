"""Real programs on this machine; what is missing is named, and in CI it is a failure."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

BIN = Path(sys.executable).parent
PATIENCE = 30.0


def need(program: str) -> str:
    """Return the program's path; without it the test is skipped, loudly, and fails in CI."""
    found = shutil.which(program)
    if found is None:
        text = f"{program} is not installed"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)
    return found


def wait_for(what: Callable[[], bool], why: str) -> None:
    """Look again and again until it is so: other processes have no clock that could be injected."""
    patience = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > patience:
            pytest.fail(f"not within {PATIENCE:g} s: {why}")
        time.sleep(0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own loopback address
        text: str = answer.read().decode()
        return text


@contextmanager
def agent(
    port: int,
    *arguments: str,
    program: Sequence[str] = (str(BIN / "powerbench-agent"),),
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a real powerbench-agent for as long as the context lasts; `env` on top of this process's."""
    command = [*program, "--listen", f"127.0.0.1:{port}", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **(env or {})})
    try:
        wait_for(lambda: _answers(port), "the agent listens")
        yield process
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    try:
        get(f"http://127.0.0.1:{port}/ready")
    except OSError:
        return False
    return True


def series(page: str, name: str) -> dict[str, float]:
    """Return a metric's samples on a page: labels as written → value."""
    found = {}
    for line in page.splitlines():
        head, _, value = line.rpartition(" ")
        if head == name or head.startswith(name + "{"):
            found[head[len(name) :]] = float(value)
    return found


@pytest.fixture
def ffmpeg() -> str:
    return need("ffmpeg")


@pytest.fixture
def port() -> int:
    return free_port()
