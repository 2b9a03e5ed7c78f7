"""TOML in, typed and frozen configuration out; every problem is reported, not only the first."""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec

from powerbench_agent.core.options import (
    CollectorOptions,
    ConfigError,
    Listen,
    Network,
    Problem,
    Seconds,
    parse_listen,
    parse_seconds,
)

DEFAULT_PATH = Path("/etc/powerbench/agent.toml")
DEFAULT_PORT = 9510
DEFAULT_STATE_DIR = "/var/lib/powerbench"


class WebConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[agent.web]`: who may request what; it names files and holds no secrets."""

    tls_cert: str = ""
    tls_key: str = ""
    basic_auth_file: str = ""
    token_file: str = ""
    trusted: tuple[Network, ...] = ()

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong) for rules that a type cannot express."""
        if bool(self.tls_cert) != bool(self.tls_key):
            missing = "tls_key" if self.tls_cert else "tls_cert"
            yield missing, "TLS needs both tls_cert and tls_key; set this one too, or neither"
        for key in ("tls_cert", "tls_key", "basic_auth_file", "token_file"):
            name = getattr(self, key)
            if name:
                try:
                    with open(name, "rb"):  # noqa: PTH123 - opening it is how to know that this process may read it
                        pass
                except OSError as error:
                    yield key, f"cannot read {name}: {error.strerror}"
                except ValueError:
                    yield key, f"{name!r} is not a file name"


_ROOTS = {"sysfs": "/sys", "procfs": "/proc"}


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[agent]`: the process as a whole."""

    listen: Listen = Listen(f"0.0.0.0:{DEFAULT_PORT}")
    sysfs: str = "/sys"
    procfs: str = "/proc"
    state_dir: str = DEFAULT_STATE_DIR  # accepted, without effect: nothing is stored there yet
    idle: Literal["apart", "share"] = "apart"  # whether idle energy is kept apart or shared too
    web: WebConfig = WebConfig()

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong) for rules that a type cannot express."""
        for key in ("sysfs", "procfs"):
            root = getattr(self, key)
            if not root or not Path(root).is_dir():
                yield key, f"{root!r} is not a directory; leave the key out for {_ROOTS[key]}"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the daemon needs to know."""

    agent: AgentConfig
    collectors: Mapping[str, CollectorOptions]
    where: str = "defaults"  # the file that it was read from


def _convert_text(kind: type, value: Any) -> Any:
    """Convert a TOML value to one of our own types, for msgspec. Raises: ValueError for people to read."""
    if kind is Seconds:
        return Seconds(parse_seconds(value))
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes, not {value!r}")  # noqa: TRY004 - msgspec passes ValueErrors on
    if kind is Listen:
        if value:
            parse_listen(value)
        return Listen(value)
    if kind is Network:
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            example = "write for example 10.0.0.0/8 or fd00::/8"
            raise ValueError(f"{value!r} is not a network; {example}") from None
        return Network(value)
    raise NotImplementedError(kind)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names)}"


class _TomlReader:
    """Converts parsed TOML and collects the problems that it finds."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[Problem] = []

    def complain(self, key: str, what: str) -> None:
        self.problems.append(Problem(self.where, key, what))

    def table(self, value: Any, key: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self.complain(key, f"must be a table: write [{key}] and its keys under it")
        return {}

    def unknown(self, table: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
        for key in table:
            if key not in known:
                self.complain(f"{prefix}{key}", f"no such key; {_nearest(key, known)}")

    def each(self, kind: type[Any], values: list[Any], key: str) -> Iterator[Any]:
        """Yield the good items of a list."""
        for value in values:
            try:
                yield msgspec.convert(value, kind, dec_hook=_convert_text)
            except msgspec.ValidationError as error:
                self.complain(key, _plain(error, value))

    def section(self, kind: type[msgspec.Struct], table: Mapping[str, Any], prefix: str) -> Any:
        """Return a `kind` made of a table that may hold unknown keys."""
        known = kind.__struct_fields__
        self.unknown(table, known, prefix)
        return self.struct(kind, {key: value for key, value in table.items() if key in known}, prefix)

    def struct(self, kind: type[Any], table: Mapping[str, Any], prefix: str) -> Any:
        """Return a `kind` made of the table's good keys, with defaults for the bad ones."""
        hints = get_type_hints(kind)
        values: dict[str, Any] = {}
        for key, value in table.items():
            hint = hints[key]
            if isinstance(hint, type) and issubclass(hint, WebConfig):
                nested = self.table(value, f"{prefix}{key}")
                values[key] = self.section(hint, nested, f"{prefix}{key}.")
                continue
            if hint == tuple[Network, ...] and isinstance(value, list):
                values[key] = tuple(self.each(Network, value, f"{prefix}{key}"))
                continue
            try:
                values[key] = msgspec.convert(value, hint, dec_hook=_convert_text)
            except msgspec.ValidationError as error:
                self.complain(f"{prefix}{key}", _plain(error, value))
        made = kind(**values)
        for key, what in made.problems():
            self.complain(f"{prefix}{key}", what)
        return made


_TYPE_NAMES = {  # by msgspec's name
    "bool": "true or false",
    "str": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "array": "a list in brackets",
}


def _plain(error: msgspec.ValidationError, value: Any) -> str:
    """Return msgspec's message in plain words."""
    text = re.sub(r" - at `\$.*`$", "", str(error))
    match = re.match(r"Expected `([^`]+)`, got `[^`]+`", text)
    if not match:
        return text
    expected = match[1]
    return f"must be {_TYPE_NAMES.get(expected, expected)}, not {value!r}"


def parse(document: Mapping[str, Any], known: Mapping[str, type[CollectorOptions]], where: str) -> Config:
    """Return the configuration in a parsed TOML document. Raises: ConfigError with every problem."""
    reader = _TomlReader(where)
    reader.unknown(document, ("agent", "collectors"), "")
    agent_table = reader.table(document.get("agent", {}), "agent")
    agent = reader.section(AgentConfig, agent_table, "agent.")
    sections = reader.table(document.get("collectors", {}), "collectors")
    reader.unknown(sections, known, "collectors.")

    collectors: dict[str, CollectorOptions] = {}
    for name, kind in known.items():
        key = f"collectors.{name}"
        table = reader.table(sections.get(name, {}), key)
        collectors[name] = reader.section(kind, table, f"{key}.")
    if reader.problems:
        raise ConfigError(reader.problems)
    return Config(agent=agent, collectors=collectors, where=where)


def load(path: Path | None, known: Mapping[str, type[CollectorOptions]]) -> Config:
    """Return the configuration in a file, or the defaults if `path` is None.

    Raises: ConfigError with every problem.
    """
    if path is None:
        return parse({}, known, "defaults")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([Problem(str(path), "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), "", f"is not UTF-8 text (byte {error.start})")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Problem(str(path), "", f"is not valid TOML: {error}")]) from None
    except RecursionError:
        raise ConfigError([Problem(str(path), "", "is not valid TOML: it is nested too deeply")]) from None
    return parse(document, known, str(path))


def without_effect(config: Config) -> list[Problem]:
    """Return the keys that were set although they have no effect: worth a line, but not an error."""
    if config.agent.state_dir == DEFAULT_STATE_DIR:
        return []
    what = "has no effect in this version, which stores nothing there; you may leave the key out"
    return [Problem(config.where, "agent.state_dir", what)]


def narrow(config: Config, only: Iterable[str], where: str = "--only") -> Config:
    """Return the configuration with only the named collectors enabled. Raises: ConfigError."""
    names = list(only)
    unknown = [name for name in names if name not in config.collectors]
    if unknown:
        raise ConfigError(
            Problem(where, "", f"no collector is called {name!r}; {_nearest(name, config.collectors)}")
            for name in unknown
        )
    collectors = {
        name: msgspec.structs.replace(options, enabled=name in names)
        for name, options in config.collectors.items()
    }
    return msgspec.structs.replace(config, collectors=collectors)
