"""The process as a whole: start, ports, signals, reload, systemd, stop.

`Agent` is the same in the daemon and inside `powerbench run`; only `serve_forever` handles signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from powerbench_agent.agent import __version__, access, listen, roster
from powerbench_agent.agent.config import without_effect
from powerbench_agent.agent.connections import Connections, Listener, raise_descriptor_limit
from powerbench_agent.agent.exposition import AGENT_METRICS, PROCESS_METRICS
from powerbench_agent.agent.http import Handlers, tolerant
from powerbench_agent.agent.listen import Site
from powerbench_agent.agent.names import Names
from powerbench_agent.agent.node import NODE_METRICS
from powerbench_agent.agent.scheduler import Scheduler
from powerbench_agent.agent.systemd import Notifier, status_of
from powerbench_agent.core.cpu_time import CpuTimes
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Reconfigures
from powerbench_agent.core.options import Address, ConfigError, Problem

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from powerbench_agent.agent.access import Access
    from powerbench_agent.agent.config import Config
    from powerbench_agent.agent.scheduler import Open
    from powerbench_agent.core.model import CollectorModule, Metric
    from powerbench_agent.core.options import CollectorOptions

log = structlog.get_logger("agent")

_KEEPALIVE_SECONDS = 75.0  # more than any scrape interval in use
_SHUTDOWN_SECONDS = 0.5  # for requests under way; an ingest connection never ends by itself


class _ClientsFault(logging.Filter):
    """Drops aiohttp's tracebacks of malformed requests, and of clients that hang up before the answer.

    They contain the query, and anyone can cause them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (HttpProcessingError, ConnectionError))


_SERVER_LOG = logging.getLogger("powerbench.http")
_SERVER_LOG.addFilter(_ClientsFault())


class _Port(NamedTuple):
    """One address that is served: its routes, and the sockets that lead to them."""

    runner: web.AppRunner
    listeners: list[Listener]


class Embedded(NamedTuple):
    """An agent inside this process: its URL, and the token that opens all of it."""

    url: str
    token: str


class Agent:
    """The collectors, the scheduler and the ports of one process."""

    def __init__(
        self,
        config: Config,
        modules: Mapping[str, CollectorModule],
        rules: Access,
        on_beat: Callable[[], None] = lambda: None,
        connections: Connections | None = None,
    ) -> None:
        self._config = config
        self._modules = modules
        host = Host(sysfs=Path(config.agent.sysfs), procfs=Path(config.agent.procfs))
        self.scheduler = Scheduler(
            self._collectors(config),
            host.clock,
            on_beat,
            cpu_time=CpuTimes(host).read,
            idle=config.agent.idle,
        )
        self.scheduler.names = declared_names(modules)
        self._handlers = Handlers(self.scheduler, rules, host.clock)
        self._ports: dict[Address, _Port] = {}
        self._connections = connections or Connections()
        self.tls: ssl.SSLContext | None = None

    def _collectors(self, config: Config) -> dict[str, tuple[Open, float]]:
        host = Host(sysfs=Path(config.agent.sysfs), procfs=Path(config.agent.procfs))
        return {
            name: (functools.partial(self._modules[name].open_collector, options, host), options.interval)
            for name, options in config.collectors.items()
            if options.enabled
        }

    async def serve(
        self, sites: Mapping[Address, Site], listeners: list[tuple[Address, socket.socket]]
    ) -> None:
        """Serve these sites, on the new listeners and on the ports that are open already."""
        self._handlers.sites.update(sites)
        for address, listener in listeners:
            if address not in self._ports:
                runner = web.AppRunner(
                    self._handlers.application(address),
                    access_log=None,
                    logger=_SERVER_LOG,
                    shutdown_timeout=_SHUTDOWN_SECONDS,
                    keepalive_timeout=_KEEPALIVE_SECONDS,
                    auto_decompress=False,  # FFmpeg sends nothing compressed; a decompression bomb would be
                )
                await runner.setup()
                assert runner.server is not None  # noqa: S101 - setup() has set it
                runner.server.request_factory = tolerant(runner.server.request_factory)
                self._ports[address] = _Port(runner, [])
            port = self._ports[address]
            assert port.runner.server is not None  # noqa: S101 - setup() has set it
            note = self._handlers.rejections.note
            port.listeners.append(Listener(listener, self._connections, port.runner.server, note, self.tls))

    async def reload(self, config: Config, rules: Access) -> None:
        """Apply a new configuration; collectors whose own options are unchanged go on as they are."""
        old, self._config = self._config, config
        moved = (config.agent.sysfs, config.agent.procfs) != (old.agent.sysfs, old.agent.procfs)
        reopen = set()
        for name, options in config.collectors.items():
            before = old.collectors[name]
            if not options.enabled or not before.enabled:
                continue
            if moved or (options != before and not self._configure(name, options, before)):
                reopen.add(name)
        self._handlers.access = rules
        await self.scheduler.replace(self._collectors(config), reopen, config.agent.idle)

    def _configure(self, name: str, options: CollectorOptions, before: CollectorOptions) -> bool:
        """Give an open collector its new options; return False if it has to be reopened for them."""
        collector = self.scheduler.collector(name)
        if not isinstance(collector, Reconfigures):
            return _own(options) == _own(before)
        try:
            collector.configure(options)
        except Exception:
            log.exception("collector rejected its new options and is reopened", collector=name)
            return False
        return True

    async def stop_serving(self, addresses: Iterable[Address]) -> None:
        """Stop serving these; requests in progress have half a second to end."""
        ports = [self._ports.pop(address) for address in list(addresses)]
        for port in ports:
            for listener in port.listeners:
                await listener.close()
        await asyncio.gather(*(port.runner.cleanup() for port in ports))

    async def close(self) -> None:
        """Stop serving."""
        await self.stop_serving(self._ports)

    @property
    def addresses(self) -> set[Address]:
        """The addresses that are served."""
        return set(self._ports)


def declared_names(modules: Mapping[str, CollectorModule]) -> Names:
    """Return who may show which metric."""
    declared: dict[str, Iterable[Metric]] = {name: module.METRICS for name, module in modules.items()}
    declared["node"] = [*NODE_METRICS, *roster.share_metrics(modules)]
    declared["the agent itself"] = [*AGENT_METRICS, *PROCESS_METRICS]
    return Names(declared, built_in=roster.BUILT_IN)


def _own(options: object) -> dict[str, object]:
    """Return a collector's own options, without those that only the agent uses."""
    names = getattr(options, "__struct_fields__", ())
    return {name: getattr(options, name) for name in names if name not in ("enabled", "interval", "listen")}


def tls_context(config: Config, old: ssl.SSLContext | None = None) -> ssl.SSLContext | None:
    """Return the TLS context of `[agent.web]`: the old one, if given, with the new certificate.

    Raises: ConfigError for files that are not a certificate and its key.
    """
    web_config = config.agent.web
    if not web_config.tls_cert:
        return None
    import ssl  # noqa: PLC0415 - slow to import, and needed only with TLS

    files = (web_config.tls_cert, web_config.tls_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Never try a pair on the context in use: one that does not match leaves it without a key. Without
        # `password`, an encrypted key would prompt for its password on the terminal.
        context.load_cert_chain(*files, password=lambda: "")
        if old is not None:
            old.load_cert_chain(*files, password=lambda: "")
            return old
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error.strerror
        what = (
            f"{web_config.tls_cert} and {web_config.tls_key} are not a PEM certificate and its key ({reason})"
        )
        remedy = "name a pair that fits, without a password"
        raise ConfigError([Problem(config.where, "agent.web.tls_cert", f"{what}; {remedy}")]) from None
    return context


async def serve_forever(
    load: Callable[[], Config], modules: Mapping[str, CollectorModule], passed: list[socket.socket]
) -> None:
    """Run the daemon until SIGTERM or SIGINT. `load` reads the configuration, at start and at each SIGHUP.

    Raises: ConfigError and ListenError before anything is opened; later, what broke the scheduler.
    """
    config = load()
    rules = access.load(config.agent.web, config.where)
    tls = tls_context(config)
    sites = listen.plan(config, roster.BUILT_IN, os.environ)
    listeners = listen.match_passed(sites, passed) if passed else _bind(sites)
    for notice in without_effect(config):
        log.warning("setting without effect", where=notice.where, key=notice.key, reason=notice.what)
    notifier = Notifier()

    def on_beat() -> None:
        notifier.send("WATCHDOG=1")
        notifier.status(status_of(agent.scheduler.snapshot))

    agent = Agent(config, modules, rules, on_beat, Connections(raise_descriptor_limit()))
    agent.tls = tls
    signals = _Signals()
    beating = asyncio.ensure_future(agent.scheduler.run())
    try:
        await agent.serve(sites, listeners)
        log.info("listening", addresses=[str(address) for address, _ in listeners], version=__version__)
        notifier.send("READY=1")
        while not await signals.stop_or_hangup(beating):
            notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            reloading = asyncio.ensure_future(_reload(agent, load, fixed_ports=bool(passed)))
            if await signals.stop_before(reloading):
                break
            notifier.send("READY=1")
        log.info("stopping")
        notifier.send("STOPPING=1")
    finally:
        beating.cancel()
        await asyncio.gather(agent.close(), asyncio.wait([beating]))
        notifier.close()


class _Signals:
    """SIGTERM, SIGINT and SIGHUP, as events that can be waited for."""

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)

    async def stop_or_hangup(self, beating: asyncio.Task[Any]) -> bool:
        """Wait for a signal; return whether it is time to stop. Raises: what broke the scheduler."""
        events = [asyncio.ensure_future(event.wait()) for event in (self._stop, self._hangup)]
        await asyncio.wait([*events, beating], return_when=asyncio.FIRST_COMPLETED)
        for event in events:
            event.cancel()
        if beating.done():
            beating.result()
        if not self._hangup.is_set():
            return self._stop.is_set()
        self._hangup.clear()
        return False

    async def stop_before(self, reloading: asyncio.Task[Any]) -> bool:
        """Wait for the reload; return True if a signal to stop came first, and give the reload up."""
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([reloading, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not reloading.done():
            reloading.cancel()
            return True
        reloading.result()
        return False


def _bind(addresses: Iterable[Address]) -> list[tuple[Address, socket.socket]]:
    """Return a listening socket for each address that this machine has. Raises: ListenError."""
    listeners: list[tuple[Address, socket.socket]] = []
    try:
        for address in addresses:
            bound = listen.bind(address)
            if bound is not None:
                listeners.append((address, bound))
    except listen.ListenError:
        for _, bound in listeners:
            bound.close()
        raise
    return listeners


async def _reload(agent: Agent, load: Callable[[], Config], *, fixed_ports: bool) -> None:
    """Read and apply the configuration again, or log why not and keep the old one."""
    new: list[tuple[Address, socket.socket]] = []
    try:
        config = load()
        rules = access.load(config.agent.web, config.where)
        sites = listen.plan(config, roster.BUILT_IN, os.environ)
        if bool(config.agent.web.tls_cert) != bool(agent.tls):
            raise ConfigError(
                [Problem("[agent.web]", "tls_cert", "a reload cannot turn TLS on or off; restart")]
            )
        if fixed_ports:
            added_ports = sorted(_ports(sites) - _ports(agent.addresses))
            if added_ports:
                log.warning("a reload cannot add ports to passed sockets; restart", ports=added_ports)
        else:
            new = _bind_added(sites, agent.addresses)
        tls_context(config, agent.tls)
    except (ConfigError, listen.ListenError) as error:
        for _, bound in new:
            bound.close()
        problems = str(error).splitlines()
        event = "new configuration rejected, the old one stays in use"
        log.error(event, problems=problems)  # noqa: TRY400 - a traceback would say no more than the problems
        return
    await agent.reload(config, rules)
    if fixed_ports:  # a passed socket stays; only what it shows may change
        of_port = {address.port: site for address, site in sites.items()}
        sites = {address: of_port[address.port] for address in agent.addresses if address.port in of_port}
    else:
        await agent.stop_serving(agent.addresses - sites.keys())
    await agent.serve(sites, new)
    log.info("configuration reloaded")


def _ports(addresses: Iterable[Address]) -> set[int]:
    return {address.port for address in addresses}


def _bind_added(sites: Iterable[Address], served: set[Address]) -> list[tuple[Address, socket.socket]]:
    """Return sockets for the addresses that are not served yet. Raises: ConfigError, ListenError."""
    added = [address for address in sites if address not in served]
    moved = sorted(_ports(added) & _ports(served))
    if moved:
        what = f"a reload cannot move port {moved[0]} to another address; restart"
        raise ConfigError([Problem("[agent] or [collectors]", "listen", what)])
    return _bind(added)


@contextlib.asynccontextmanager
async def embedded(config: Config, modules: Mapping[str, CollectorModule]) -> AsyncIterator[Embedded]:
    """Run an agent inside this process, on a free loopback port, for as long as the context lasts."""
    token = secrets.token_urlsafe(16)
    enabled = frozenset(name for name, options in config.collectors.items() if options.enabled)
    address = Address("127.0.0.1", 0)  # 0: any free port
    bound = listen.bind(address)
    if bound is None:
        raise listen.ListenError("cannot listen on 127.0.0.1")
    agent = Agent(config, modules, access.Access(token=token))
    beating = asyncio.ensure_future(agent.scheduler.run())
    try:
        await agent.serve({address: Site(enabled, aggregated=True)}, [(address, bound)])
        yield Embedded(f"http://127.0.0.1:{bound.getsockname()[1]}", token)
    finally:
        beating.cancel()
        await asyncio.gather(agent.close(), asyncio.wait([beating]))
