"""`powerbench-agent`: its flags, the configuration that they make, and its exit codes."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from powerbench_agent.agent import __version__, listen, log, roster, systemd
from powerbench_agent.agent.config import DEFAULT_PATH, Config, load, narrow, without_effect
from powerbench_agent.core.options import ConfigError, Listen, Problem, parse_listen
from powerbench_agent.core.terminal import guarded_output

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from powerbench_agent.core.model import CollectorModule
    from powerbench_agent.core.options import CollectorOptions

EX_CONFIG = 78  # sysexits.h
_EXAMPLES = """examples:
  powerbench-agent                            every source on this machine, on :9510
  powerbench-agent --only rapl,ffmpeg         only these two
  powerbench-agent --only ffmpeg --port 9506  one exporter on its classic port
  powerbench-agent --config agent.toml --check
  curl localhost:9510/metrics
"""


def parser(parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return the flags; `parser_class` makes them."""
    flags = parser_class(
        prog="powerbench-agent",
        description="Serve this machine's energy, and what used it, to Prometheus.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument(
        "--config",
        metavar="FILE",
        help=f"TOML file (default: {DEFAULT_PATH} if it exists, else built-in values)",
    )
    where = flags.add_mutually_exclusive_group()
    where.add_argument(
        "--listen", metavar="HOST:PORT", help="serve every collector on this address; :PORT is every address"
    )
    where.add_argument("--port", metavar="N", help="the same as --listen :N")
    flags.add_argument(
        "--only",
        metavar="NAME[,NAME]",
        help="run only these collectors; a single one without --port uses its classic port",
    )
    flags.add_argument("--sysfs", metavar="DIR", help="read this instead of /sys")
    flags.add_argument("--procfs", metavar="DIR", help="read this instead of /proc")
    flags.add_argument(
        "--log-format",
        choices=log.FORMATS,
        default="auto",
        help="format of the log (default: auto, which is console on a terminal or in the journal, else json)",
    )
    flags.add_argument(
        "--log-level", choices=log.LEVELS, default="info", help="lowest level to log (default: info)"
    )
    flags.add_argument(
        "--check", action="store_true", help="check the configuration, print every problem, and exit"
    )
    flags.add_argument("--version", action="version", version=f"powerbench-agent {__version__}")
    return flags


def configure(
    flags: argparse.Namespace, known: Mapping[str, type[CollectorOptions]], environ: Mapping[str, str]
) -> Config:
    """Return the configuration of the file, overridden by the flags. Raises: ConfigError."""
    config = load(Path(flags.config) if flags.config else _default_path(), known)
    changes: dict[str, object] = {"web": systemd.with_credentials(config.agent.web, environ)}
    problems: list[Problem] = []
    for name in ("sysfs", "procfs"):
        value = getattr(flags, name)
        if value is not None:
            changes[name] = value
            if not Path(value).is_dir():
                problems.append(Problem(f"--{name}", "", f"{value} is not a directory"))
    listen_flag = _listen_flag(flags, problems)
    if listen_flag is not None:
        changes["listen"] = listen_flag
    if problems:
        raise ConfigError(problems)
    if flags.only is not None:
        only = _names(flags.only, known)
        config = narrow(config, only)
        if listen_flag is None and len(only) == 1:
            own = listen.only_listen(only[0], config, roster.BUILT_IN, environ)
            if own is not None:
                changes["listen"] = Listen(own)
    return msgspec.structs.replace(config, agent=msgspec.structs.replace(config.agent, **changes))


def _names(text: str, known: Iterable[str]) -> list[str]:
    """Return the collectors that --only lists. Raises: ConfigError."""
    stripped = [name.strip() for name in text.split(",")]
    names = [name for name in stripped if name]
    if not names:
        what = f"names no collector; known here: {', '.join(sorted(known))}"
        raise ConfigError([Problem("--only", "", what)])
    return names


def _listen_flag(flags: argparse.Namespace, problems: list[Problem]) -> Listen | None:
    """Return what --listen or --port say, or None without either."""
    flag, text = ("--listen", flags.listen) if flags.port is None else ("--port", f":{flags.port}")
    if text is None:
        return None
    try:
        parse_listen(text)
    except ValueError as error:
        problems.append(Problem(flag, "", str(error)))
    return Listen(text)


def _default_path() -> Path | None:
    try:
        return DEFAULT_PATH if DEFAULT_PATH.exists() else None
    except OSError:  # the directory cannot be searched: reading the file will report it
        return DEFAULT_PATH


def check(config: Config) -> None:
    """Check everything that a start would check. Raises: ConfigError with every problem."""
    from powerbench_agent.agent import access, daemon  # noqa: PLC0415 - slow to import, and needed here only for --check

    problems: list[Problem] = []
    for look in (lambda: access.load(config.agent.web, config.where), lambda: daemon.tls_context(config)):
        try:
            look()
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; return the exit code."""
    return guarded_output("powerbench-agent", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    flags = parser().parse_args(arguments)
    log.set_up(flags.log_format, flags.log_level)
    passed = listen.passed_sockets(os.environ, os.getpid())
    try:
        modules = roster.load_modules()
        known = roster.options_of(modules)
        config = configure(flags, known, os.environ)
        listen.plan(config, roster.BUILT_IN, os.environ)
        if flags.check:
            check(config)
            for notice in without_effect(config):
                print(notice)  # noqa: T201 - a part of the answer to --check
            print("configuration is good")  # noqa: T201 - the answer to --check
            return 0
        return _run(flags, known, modules, passed)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - one problem a line, whatever the log's format
        systemd.tell_failure(str(error))
        return EX_CONFIG
    except listen.ListenError as error:
        print(f"powerbench-agent: {error}", file=sys.stderr)  # noqa: T201 - likewise
        systemd.tell_failure(str(error))
        return 1


@contextlib.contextmanager
def _without_authorities() -> Iterator[None]:
    """Import aiohttp without the system's certificate authorities.

    Its client loads them on import, which costs 2 MB and 70 ms, and this process is a server. A collector
    that sends HTTPS requests creates its own SSL context (docs/decisions/0011).
    """
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _run(
    flags: argparse.Namespace,
    known: Mapping[str, type[CollectorOptions]],
    modules: Mapping[str, CollectorModule],
    passed: list[socket.socket],
) -> int:
    import uvloop  # noqa: PLC0415 - --help and --check do not need an event loop

    with _without_authorities():
        from powerbench_agent.agent import daemon  # noqa: PLC0415 - nor an HTTP server

    uvloop.run(daemon.serve_forever(lambda: configure(flags, known, os.environ), modules, passed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
