"""Which agents a benchmark reads: those that were named, else one in this process, else this machine's."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from powerbench_agent.agent import config, daemon, roster
from powerbench_agent.bench.exits import BadFlag, NotHere
from powerbench_agent.bench.meter.client import AgentClient, AgentFailed
from powerbench_agent.bench.meter.meters import Meters, Sources
from powerbench_agent.core.model import ESTIMATE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import aiohttp

LOCAL_AGENT = f"http://127.0.0.1:{config.DEFAULT_PORT}"

_ACCESS = (
    "run on bare metal with access to RAPL (docs/guide.md, access to RAPL), "
    "or name an agent that measures with --agent URL"
)


def check_urls(urls: Sequence[str]) -> None:
    """Check what --agent names. Raises: BadFlag."""
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise BadFlag(f"--agent {url!r}: must be a URL, like http://127.0.0.1:9510")


async def choose(
    urls: Sequence[str],
    token: str,
    session: aiohttp.ClientSession,
    stack: contextlib.AsyncExitStack,
    say: Callable[[str], None],
) -> Meters:
    """Return the meters of the agents that were named, else of one in this process, for as long as the stack.

    Where that one could only estimate and this machine's agent measures, that is used, and said.
    Raises: AgentFailed.
    """
    if urls:
        meters = Meters([AgentClient(session, url, token) for url in urls])
        await meters.ready()
        return meters
    modules = roster.load_modules()
    settings = config.load(None, roster.options_of(modules))
    inside = await stack.enter_async_context(daemon.embedded(settings, modules))
    meters = Meters([AgentClient(session, inside.url, inside.token, label="embedded")])
    await meters.ready()
    if _estimates(await meters.sources()):
        local = Meters([AgentClient(session, LOCAL_AGENT, token)])
        with contextlib.suppress(AgentFailed):
            if not _estimates(await local.sources()):
                say(f"This process could only estimate; the agent at {LOCAL_AGENT} measures: it is used.")
                return local
    return meters


def check(sources: Sources, *, require_measured: bool) -> None:
    """Refuse to begin without energy, or with an estimate of it. Raises: NotHere."""
    missing = "; ".join(sources.missing)
    if _estimates(sources) and require_measured:
        raise NotHere(f"nothing measures the CPU's energy here ({missing or 'no source'}): {_ACCESS}")
    if not sources.found:
        raise NotHere(f"the agent has no energy source ({missing or 'see its /health'}): {_ACCESS}")


def describe(sources: Sources) -> list[str]:
    """Return where the joules come from, and, where it is one, that it is an estimate."""
    parts = sorted(sources.found.items())
    listed = ", ".join(f"{component}: {' + '.join(sorted(names))}" for component, names in parts)
    lines = [f"Joules come from {listed}."]
    if _estimates(sources):
        why = next((reason for reason in sources.missing if reason.startswith("rapl")), "no source")
        lines.append(
            f"Nothing measures the CPU here ({why}): its energy is an estimate, a model of CPU time."
        )
    return lines


def _estimates(sources: Sources) -> bool:
    """Return whether nothing measures the CPU."""
    return sources.found.get("cpu", {ESTIMATE}) == {ESTIMATE}
