"""Streams' processes: found when a stream connects, followed, shared, handed on, forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from proc_trees import Connection, Processes
from structlog.testing import capture_logs
from trees import FakeClock

from powerbench_agent.collectors.ffmpeg import encoders
from powerbench_agent.collectors.ffmpeg.encoders import CHILDREN_BEATS, ENERGY, Encoders
from powerbench_agent.core import processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from powerbench_agent.core.model import Claim

ID = "a" * 64


class Streams:
    """Encoders over a tree of processes, and what they claim."""

    def __init__(self, proc: Processes) -> None:
        self.proc = proc
        self.encoders = Encoders(proc.host, 80.0)

    def meet(self, stream: str, pid: int | str, port: int = 40000) -> None:
        """Let a stream connect that gives this pid."""
        connection = Connection(("127.0.0.1", port))
        if isinstance(pid, int):
            self.proc.connections(self.proc.procfs / f"{pid}/net", connection)
        self.encoders.meet(stream, connection.sender(str(pid), self.proc.clock.now))

    async def claims(self) -> dict[str, Claim]:
        """Return the claims of the next beat, by which new children are looked for."""
        self.proc.advance(CHILDREN_BEATS)
        for _ in range(CHILDREN_BEATS - 1):
            await self.encoders.claims()
        return {claim.name: claim for claim in await self.encoders.claims()}

    async def seconds(self) -> dict[str, float]:
        return {name: round(claim.cpu_seconds, 6) for name, claim in (await self.claims()).items()}


@pytest.fixture
async def streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Streams]:
    # A search may take long on a busy machine, which is not a failure here.
    monkeypatch.setattr(encoders, "_PATIENCE", 20.0)
    made = Streams(Processes(tmp_path / "proc", FakeClock()))
    yield made
    made.encoders.close()


async def test_a_stream_has_a_claim_at_the_next_beat(streams: Streams) -> None:
    """One claims() after it has connected a stream has its process, its container and its seconds."""
    assert await streams.claims() == {}
    streams.proc.start(50, container=ID, age=0.0)
    streams.proc.work(50, 0.5)
    streams.meet("cam1", 50)
    assert await streams.encoders.claims() == [("stream", "cam1", ENERGY, 0.5, ID, (50,))]
    streams.proc.work(50, 1.0)
    assert await streams.seconds() == {"cam1": 1.5}


async def test_streams_of_one_process_share_it(streams: Streams) -> None:
    """Two streams of one process have half each, and together all of it, whichever comes or goes."""
    streams.proc.start(50)
    streams.meet("cam1", 50)
    streams.proc.work(50, 2.0)
    assert await streams.seconds() == {"cam1": 0.0}
    streams.proc.work(50, 2.0)
    streams.meet("cam2", 50, 40001)
    await streams.claims()
    streams.proc.work(50, 3.0)
    found = await streams.seconds()
    assert sum(found.values()) == pytest.approx(5)
    assert found["cam2"] == pytest.approx(2.5)
    assert {claim.pids for claim in (await streams.claims()).values()} == {(50,)}
    streams.encoders.part("cam1")
    streams.proc.work(50, 4.0)
    assert await streams.seconds() == {"cam2": 6.5}


async def test_a_child_with_a_stream_of_its_own(streams: Streams) -> None:
    """Its seconds are its stream's and never its parent's, not even when it ends."""
    streams.proc.start(50)
    streams.meet("supervisor", 50)
    await streams.claims()
    streams.proc.start(51, 50, age=0.0)
    streams.proc.start(52, 50, age=0.0)
    streams.meet("cam1", 51, 40001)
    await streams.claims()
    for pid, seconds in ((50, 1.0), (51, 100.0), (52, 10.0)):
        streams.proc.work(pid, seconds)
    found = await streams.claims()
    assert (found["supervisor"].cpu_seconds, found["cam1"].cpu_seconds) == (11, 100)
    assert (set(found["supervisor"].pids), found["cam1"].pids) == ({50, 52}, (51,))
    streams.proc.end(51)
    streams.proc.work(50, 1.0)
    assert await streams.seconds() == {"supervisor": 12, "cam1": 100}


async def test_a_process_that_ended(streams: Streams) -> None:
    """Its claim stays with its seconds and its container, without pids, until the stream itself leaves."""
    streams.proc.start(50, container=ID)
    streams.meet("cam1", 50)
    await streams.claims()
    streams.proc.work(50, 2.0)
    await streams.claims()
    streams.proc.end(50)
    for _ in range(2):
        assert await streams.claims() == {"cam1": ("stream", "cam1", ENERGY, 2.0, ID, ())}
    streams.encoders.part("cam1")
    assert await streams.claims() == {}


async def test_a_new_process_of_the_same_stream(streams: Streams) -> None:
    """A stream's seconds go on over its processes: what a new one has used is added."""
    streams.proc.start(50)
    streams.meet("cam1", 50)
    await streams.claims()
    streams.proc.work(50, 2.0)
    await streams.claims()
    streams.proc.end(50)
    streams.proc.start(60, age=3600.0, seconds=900.0)
    streams.meet("cam1", 60, 40001)
    assert await streams.seconds() == {"cam1": 2.0}
    streams.proc.work(60, 3.0)
    claim = (await streams.claims())["cam1"]
    assert (claim.cpu_seconds, claim.pids) == (5, (60,))


async def test_a_reconnection_of_the_same_process(streams: Streams) -> None:
    """After a reconnection the process is the same: no second counts twice, and none is lost."""
    streams.proc.start(50)
    streams.meet("cam1", 50)
    await streams.claims()
    streams.proc.work(50, 2.0)
    streams.meet("cam1", 50, 40001)
    streams.proc.work(50, 2.0)
    assert await streams.seconds() == {"cam1": 4.0}


async def test_why_there_is_no_process_is_logged_once(streams: Streams) -> None:
    """The same reason is one line however often a stream reconnects; another reason is another line."""
    with capture_logs() as logs:
        for pid in ("abc", "abc", "70", "70", "abc"):
            streams.meet("cam1", pid)
            assert await streams.claims() == {}
    assert [log["reason"] for log in logs] == [
        "pid='abc' is not a process id",
        "pid=70 is not a process that this connection can come from",
        "pid='abc' is not a process id",
    ]
    assert all(log["log_level"] == "info" and log["stream"] == "cam1" and log["remedy"] for log in logs)


async def test_a_stream_that_has_gone_elsewhere(streams: Streams) -> None:
    """A known stream that comes from a process unknown now keeps its seconds and gains none."""
    streams.proc.start(50)
    streams.meet("cam1", 50)
    await streams.claims()
    streams.proc.work(50, 2.0)
    await streams.claims()
    streams.meet("cam1", "abc")
    streams.proc.work(50, 2.0)
    await streams.claims()
    streams.proc.work(50, 2.0)
    claim = (await streams.claims())["cam1"]
    assert claim.pids == ()
    assert claim.cpu_seconds <= 4


async def test_a_stream_that_has_left_stays_forgotten(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that leaves while its process is looked for is not found any more."""
    streams.proc.start(50)
    streams.meet("cam1", 50)
    monkeypatch.setattr(streams.encoders, "_patience", 0.0)
    await streams.encoders.claims()
    streams.encoders.part("cam1")
    monkeypatch.setattr(streams.encoders, "_patience", 20.0)
    assert await streams.claims() == {}
    assert await streams.claims() == {}


async def test_a_pid_of_thousands_of_digits_does_no_harm(streams: Streams) -> None:
    """A bad pid from one sender does not keep other streams' processes from being found."""
    streams.proc.start(50)
    streams.meet("evil", "9" * 5000)
    assert await streams.claims() == {}
    streams.meet("cam1", 50)
    assert (await streams.claims()).keys() == {"cam1"}


async def test_a_search_that_fails_is_no_end_of_searches(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in one search fails that beat, and the next search starts again."""

    def broken(*_: object) -> int:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(processes, "find_sender", broken)
        streams.meet("cam1", "50")
        with pytest.raises(RuntimeError, match="a bug"):
            await streams.claims()
    streams.proc.start(50)
    streams.meet("cam1", 50)
    assert (await streams.claims()).keys() == {"cam1"}
