"""The processes behind the streams: found when a stream connects, followed from beat to beat.

The CPU time of a stream's process and its descendants is the stream's claim on the node's energy. If a
process sends several streams, they share its time evenly; a descendant that sends a stream of its own belongs
to that stream.

Finding a process among many takes long, so this has a thread of its own and no beat waits for it; reading the
known ones has another, so that the event loop does not wait.

Privileges: see core/processes.py.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

import structlog

from powerbench_agent.core import processes
from powerbench_agent.core.model import SHARE_HELP, SHARE_LABELS, Claim, Metric
from powerbench_agent.core.process_tree import ProcessTree
from powerbench_agent.core.processes import Unresolved
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from powerbench_agent.core.host import Host
    from powerbench_agent.core.model import Sender

log = structlog.get_logger("ffmpeg")

ENERGY = Metric(
    "ffmpeg_stream_energy_joules_total",
    "counter",
    f"Energy of the stream's processes; with a container, a view of that container's. {SHARE_HELP}",
    SHARE_LABELS["stream"],
)

CHILDREN_BEATS = 5  # between two searches for a tree's new descendants
_PATIENCE = 0.1  # seconds that a beat waits for a search; most are done by then


class _Encoder:
    """What is known of one stream's process."""

    def __init__(self) -> None:
        self.tree: ProcessTree | None = None
        self.container = ""  # of its latest process
        self.cpu_seconds = 0.0  # over all its processes so far

    @property
    def pids(self) -> tuple[int, ...]:
        return () if self.tree is None else self.tree.pids

    def take(self, cpu_seconds: float) -> None:
        """Add what its processes have used; forget them if they have ended."""
        self.cpu_seconds += cpu_seconds
        if self.tree is not None and not self.tree.alive:
            self.tree = None


class Encoders:
    """The processes of all streams."""

    def __init__(self, host: Host, interval: float = 1.0) -> None:
        """`interval`: seconds between beats."""
        self._host = host
        self._patience = min(_PATIENCE, interval / 4)
        self._finder = Worker("find encoders")
        self._looker = Worker("encoders")
        self._encoders: dict[str, _Encoder] = {}  # of streams whose process is or was known
        self._unknown: dict[str, Sender] = {}  # of streams whose process is to be found
        self._search: asyncio.Task[dict[str, ProcessTree | Unresolved]] | None = None
        self._searched: set[str] = set()  # streams that the search is for
        self._said: dict[str, str] = {}  # why a stream has no process, as it was logged
        self._beat = 0
        self._looked: set[ProcessTree] = set()  # trees whose descendants were searched at least once

    def meet(self, stream: str, sender: Sender) -> None:
        """Note that a stream has connected; the next beat looks for its process."""
        self._unknown[stream] = sender

    def part(self, stream: str) -> None:
        """Forget a stream that has left."""
        self._encoders.pop(stream, None)
        self._unknown.pop(stream, None)
        self._searched.discard(stream)
        self._said.pop(stream, None)

    async def claims(self) -> list[Claim]:
        """Return the claims of all streams whose process is or was known, with their CPU time as of now."""
        await self._find()
        sharers: dict[ProcessTree, list[_Encoder]] = {}
        for encoder in self._encoders.values():
            if encoder.tree is not None:
                sharers.setdefault(encoder.tree, []).append(encoder)
        if sharers:
            before = {tree: tree.cpu_seconds for tree in sharers}
            await self._looker.call(functools.partial(self._look, list(sharers)))
            for tree, encoders in sharers.items():
                share = (tree.cpu_seconds - before[tree]) / len(encoders)
                for encoder in encoders:
                    encoder.take(share)
        return [
            Claim("stream", name, ENERGY, encoder.cpu_seconds, encoder.container, encoder.pids)
            for name, encoder in self._encoders.items()
        ]

    def _look(self, trees: list[ProcessTree]) -> None:
        """Read what the trees have used, and search a fifth of them for new descendants."""
        roots = {tree.pid for tree in trees}
        own = processes.own_pid(self._host)
        if own is not None:
            roots.add(own)
        self._beat += 1
        for tree in trees:
            is_new = tree not in self._looked
            is_due = (tree.pid + self._beat) % CHILDREN_BEATS == 0
            tree.look(roots - {tree.pid}, children=is_new or is_due)
        self._looked = set(trees)

    def close(self) -> None:
        """Stop the threads."""
        if self._search is not None:
            self._search.cancel()
        self._finder.close()
        self._looker.close()

    async def _find(self) -> None:
        """Look for the processes of streams that have connected; take what was found."""
        if self._search is None and self._unknown:
            senders, self._unknown = self._unknown, {}
            self._searched = set(senders)
            search = functools.partial(_search, self._host, senders)
            self._search = asyncio.ensure_future(self._finder.call(search))
        if self._search is None:
            return
        await asyncio.wait([self._search], timeout=self._patience)
        if not self._search.done():
            return
        done, self._search = self._search, None
        found = done.result()
        trees = self._trees()
        for stream, result in found.items():
            if stream not in self._searched:
                continue  # it has left in the meantime
            if isinstance(result, Unresolved):
                self._explain(stream, result)
                if stream in self._encoders:
                    self._encoders[stream].tree = None  # another process sends the stream now
                continue
            self._said.pop(stream, None)
            encoder = self._encoders.setdefault(stream, _Encoder())
            encoder.tree = trees.setdefault((result.pid, result.start), result)
            encoder.container = result.container

    def _trees(self) -> dict[tuple[int, float], ProcessTree]:
        """Return the known trees by pid and start of their process."""
        trees: dict[tuple[int, float], ProcessTree] = {}
        for encoder in self._encoders.values():
            if encoder.tree is not None:
                trees[encoder.tree.pid, encoder.tree.start] = encoder.tree
        return trees

    def _explain(self, stream: str, why: Unresolved) -> None:
        if self._said.get(stream) != str(why):
            log.info(
                "stream without energy: its process is not known",
                stream=stream,
                reason=str(why),
                remedy=why.remedy,
            )
        self._said[stream] = str(why)


def _search(host: Host, senders: dict[str, Sender]) -> dict[str, ProcessTree | Unresolved]:
    """Return the process tree of every sender, or why it is not known."""
    index = processes.Index(host)
    found: dict[str, ProcessTree | Unresolved] = {}
    for stream, sender in senders.items():
        try:
            found[stream] = ProcessTree(host, processes.find_sender(host, sender, index))
        except Unresolved as why:
            found[stream] = why
    return found
