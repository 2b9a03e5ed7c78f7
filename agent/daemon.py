"""Open, run, close: the process as a whole. Signals, reload, ports, systemd.

`Agent` is the same thing in the daemon and inside `powerbench run`; only `serve_forever` knows signals.
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
from typing import TYPE_CHECKING, NamedTuple

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from powerbench_agent.agent import __version__, access, listen, roster
from powerbench_agent.agent.config import without_effect
from powerbench_agent.agent.connections import Connections, raise_descriptor_limit
from powerbench_agent.agent.http import Handlers
from powerbench_agent.agent.listen import Site
from powerbench_agent.agent.scheduler import Scheduler
from powerbench_agent.agent.systemd import Notifier, status_of
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Reconfigures
from powerbench_agent.core.options import Address, ConfigError, Problem
from powerbench_agent.core.procfs import read_cpu_time

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from powerbench_agent.agent.access import Access
    from powerbench_agent.agent.config import Config
    from powerbench_agent.agent.scheduler import Open
    from powerbench_agent.core.model import CollectorModule

log = structlog.get_logger("agent")

_KEEPALIVE_SECONDS = 75.0  # more than any scrape interval in use
_SHUTDOWN_SECONDS = 0.5  # for requests under way; an ingest connection never ends by itself


class _Malformed(logging.Filter):
    """Drops aiohttp's tracebacks of what is no HTTP: they hold the query, and anyone can cause them."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


_SERVER_LOG = logging.getLogger("powerbench.http")
_SERVER_LOG.addFilter(_Malformed())


class _Port(NamedTuple):
    """One address that is served: the routes, and the sockets that lead to them."""

    runner: web.AppRunner
    servers: list[asyncio.Server]


class Embedded(NamedTuple):
    """An agent inside this process: where it listens, and what opens everything of it."""

    url: str
    token: str


class Agent:
    """The collectors, the beat and the ports of one process."""

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
            time,
            on_beat,
            cpu_time=functools.partial(read_cpu_time, host),
            idle=config.agent.idle,
        )
        self._handlers = Handlers(self.scheduler, rules, time)
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
        """Show these sites: on the listeners, and on what is listened on already."""
        self._handlers.sites.update(sites)
        loop = asyncio.get_running_loop()
        for address, listener in listeners:
            if address not in self._ports:
                runner = web.AppRunner(
                    self._handlers.application(address),
                    access_log=None,
                    logger=_SERVER_LOG,
                    shutdown_timeout=_SHUTDOWN_SECONDS,
                    keepalive_timeout=_KEEPALIVE_SECONDS,
                    auto_decompress=False,  # FFmpeg compresses nothing, and a bomb would
                )
                await runner.setup()
                self._ports[address] = _Port(runner, [])
            port = self._ports[address]
            assert port.runner.server is not None  # noqa: S101 - set up
            guarded = self._connections.guard(port.runner.server)
            server = await loop.create_server(guarded, sock=listener, ssl=self.tls, backlog=listen.BACKLOG)
            port.servers.append(server)

    async def reload(self, config: Config, rules: Access) -> None:
        """Take a new configuration; collectors whose own options are the same go on as they are."""
        old, self._config = self._config, config
        reopen = set()
        for name, options in config.collectors.items():
            if not options.enabled or not old.collectors[name].enabled:
                continue
            collector = self.scheduler.collector(name)
            if (config.agent.sysfs, config.agent.procfs) != (old.agent.sysfs, old.agent.procfs):
                reopen.add(name)
            elif options == old.collectors[name]:
                continue
            elif isinstance(collector, Reconfigures):
                try:
                    collector.configure(options)
                except Exception:
                    log.exception("collector did not take its options, so it is opened anew", collector=name)
                    reopen.add(name)
            elif _own(options) != _own(old.collectors[name]):
                reopen.add(name)
        self._handlers.access = rules
        await self.scheduler.replace(self._collectors(config), reopen, config.agent.idle)

    async def stop_serving(self, addresses: Iterable[Address]) -> None:
        """Stop serving these; requests under way have half a second."""
        ports = [self._ports.pop(address) for address in list(addresses)]
        for port in ports:
            for server in port.servers:
                server.close()
        await asyncio.gather(*(port.runner.cleanup() for port in ports))

    async def close(self) -> None:
        """Stop serving at all."""
        await self.stop_serving(self._ports)

    @property
    def addresses(self) -> set[Address]:
        """Where it is served."""
        return set(self._ports)


def _own(options: object) -> dict[str, object]:
    """Return a collector's own options, without those that are the agent's business."""
    names = getattr(options, "__struct_fields__", ())
    return {name: getattr(options, name) for name in names if name not in ("enabled", "interval", "listen")}


def tls_context(config: Config, old: ssl.SSLContext | None = None) -> ssl.SSLContext | None:
    """Return the TLS context of `[agent.web]`: the old one with the new certificate, where there is one.

    Raises: ConfigError for files that are no certificate or key, and for a reload that turns TLS on or off.
    """
    web_config = config.agent.web
    if not web_config.tls_cert:
        return None
    import ssl  # noqa: PLC0415 - only those who use it pay for it

    files = (web_config.tls_cert, web_config.tls_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A pair that does not fit leaves a context without a key: so never try it on the one in use. An
        # encrypted key would ask for its password on a terminal.
        context.load_cert_chain(*files, password=lambda: "")
        if old is not None:
            old.load_cert_chain(*files, password=lambda: "")
            return old
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error.strerror
        what = f"{web_config.tls_cert} and {web_config.tls_key} are no PEM certificate and its key ({reason})"
        remedy = "name a pair that fits, without a password"
        raise ConfigError([Problem(config.where, "agent.web.tls_cert", f"{what}; {remedy}")]) from None
    return context


async def serve_forever(
    load: Callable[[], Config], modules: Mapping[str, CollectorModule], passed: list[socket.socket]
) -> None:
    """Run the daemon until SIGTERM or SIGINT. `load` reads the configuration, now and at each SIGHUP.

    Raises: ConfigError, ListenError before anything is opened; whatever breaks the scheduler.
    """
    config = load()
    rules, tls = access.load(config.agent.web, config.where), tls_context(config)
    sites = listen.plan(config, roster.BUILT_IN, os.environ)
    if passed:
        listeners = listen.match_passed(sites, passed)
    else:
        listeners = [(address, bound) for address in sites if (bound := listen.bind(address))]
    for notice in without_effect(config):
        log.warning("setting without effect", where=notice.where, key=notice.key, reason=notice.what)
    notifier = Notifier()
    connections = Connections(raise_descriptor_limit())

    def on_beat() -> None:
        notifier.send("WATCHDOG=1")
        notifier.status(status_of(agent.scheduler.snapshot))

    agent = Agent(config, modules, rules, on_beat, connections)
    agent.tls = tls
    loop = asyncio.get_running_loop()
    stop, hangup = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)

    beating = asyncio.ensure_future(agent.scheduler.run())
    try:
        await agent.serve(sites, listeners)
        log.info("listening", addresses=[str(address) for address, _ in listeners], version=__version__)
        notifier.send("READY=1")
        while not stop.is_set():
            waits = [asyncio.ensure_future(event.wait()) for event in (stop, hangup)]
            await asyncio.wait([*waits, beating], return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if beating.done():
                beating.result()
            if hangup.is_set():
                hangup.clear()
                notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
                reloading = asyncio.ensure_future(_reload(agent, load, fixed_ports=bool(passed)))
                stopping = asyncio.ensure_future(stop.wait())
                await asyncio.wait([reloading, stopping], return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if not reloading.done():
                    reloading.cancel()
                    break
                reloading.result()
                notifier.send("READY=1")
        log.info("stopping")
        notifier.send("STOPPING=1")
    finally:
        beating.cancel()
        await asyncio.gather(agent.close(), asyncio.wait([beating]))
        notifier.close()


async def _reload(agent: Agent, load: Callable[[], Config], *, fixed_ports: bool) -> None:
    """Take the configuration anew, or log why not and keep the old one."""
    new: list[tuple[Address, socket.socket]] = []
    try:
        config = load()
        rules = access.load(config.agent.web, config.where)
        sites = listen.plan(config, roster.BUILT_IN, os.environ)
        if bool(config.agent.web.tls_cert) != bool(agent.tls):
            raise ConfigError(
                [Problem("[agent.web]", "tls_cert", "a reload cannot turn TLS on or off; restart")]
            )
        if not fixed_ports:
            added_addresses = [address for address in sites if address not in agent.addresses]
            if moved := sorted({a.port for a in added_addresses} & {a.port for a in agent.addresses}):
                what = f"a reload cannot move port {moved[0]} to another address; restart"
                raise ConfigError([Problem("[agent] or [collectors]", "listen", what)])
            new.extend((address, bound) for address in added_addresses if (bound := listen.bind(address)))
        elif added := {a.port for a in sites} - {a.port for a in agent.addresses}:
            log.warning("a reload cannot add ports to passed sockets; restart for these", ports=sorted(added))
        tls_context(config, agent.tls)
    except (ConfigError, listen.ListenError) as error:
        for _, bound in new:
            bound.close()
        problems = str(error).splitlines()
        log.error("new configuration not taken, the old one stays", problems=problems)  # noqa: TRY400 - no traceback
        return
    await agent.reload(config, rules)
    if fixed_ports:  # the socket stays what it is; only what it shows may be another
        of_port = {address.port: site for address, site in sites.items()}
        sites = {address: of_port[address.port] for address in agent.addresses if address.port in of_port}
    else:
        await agent.stop_serving(agent.addresses - sites.keys())
    await agent.serve(sites, new)
    log.info("configuration reloaded")


@contextlib.asynccontextmanager
async def embedded(config: Config, modules: Mapping[str, CollectorModule]) -> AsyncIterator[Embedded]:
    """Run an agent inside this process, on a free loopback port, for as long as the context lasts."""
    token = secrets.token_urlsafe(16)
    enabled = frozenset(name for name, options in config.collectors.items() if options.enabled)
    address = Address("127.0.0.1", 0)  # a free port
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
