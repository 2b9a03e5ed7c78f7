"""TOML in, typed configuration out; every problem at once, in words that help."""

from __future__ import annotations

import contextlib
import tomllib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from powerbench_agent.agent import roster
from powerbench_agent.agent.config import Config, load, narrow, parse
from powerbench_agent.core.options import (
    Address,
    ConfigError,
    Exclude,
    Listen,
    Network,
    parse_listen,
    parse_seconds,
)

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = roster.options_of(roster.load_modules())


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(tomllib.loads(text), KNOWN, "agent.toml")
    return str(caught.value).splitlines()


def config_of(text: str) -> Config:
    return parse(tomllib.loads(text), KNOWN, "agent.toml")


# -- good ones ---------------------------------------------------------------------------------------


def test_no_file_serves_every_collector_on_port_9510() -> None:
    """Without a file the built-in defaults hold: every collector enabled, one port."""
    config = load(None, KNOWN)
    assert config.agent.listen.address == Address("0.0.0.0", 9510)
    assert set(config.collectors) == set(KNOWN)
    assert all(options.enabled and not options.listen for options in config.collectors.values())


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    """A file that says nothing changes nothing."""
    (tmp_path / "agent.toml").touch()
    read, default = load(tmp_path / "agent.toml", KNOWN), load(None, KNOWN)
    assert (read.agent, read.collectors) == (default.agent, default.collectors)


def test_a_file_says_what_it_says() -> None:
    """Each documented key arrives, durations in seconds."""
    config = config_of(
        """
        [agent]
        listen = "[::1]:9999"
        state_dir = "/tmp/x"
        [agent.web]
        trusted = ["10.0.0.0/8", "fd00::1"]
        [collectors.rapl]
        interval = "500ms"
        listen = ":9510"
        [collectors.ffmpeg]
        enabled = false
        interval = 2
        """
    )
    assert config.agent.listen.address == Address("::1", 9999)
    assert config.agent.state_dir == "/tmp/x"  # noqa: S108 - a name, nothing is written there
    assert [str(network.network) for network in config.agent.web.trusted] == ["10.0.0.0/8", "fd00::1/128"]
    assert config.collectors["rapl"].interval == 0.5
    assert config.collectors["rapl"].listen.address == Address("", 9510)
    assert (config.collectors["ffmpeg"].enabled, config.collectors["ffmpeg"].interval) == (False, 2.0)


def test_an_empty_listen_is_no_listener() -> None:
    """`listen = ""` opens no aggregated port."""
    assert config_of('agent.listen = ""').agent.listen.address is None


def test_a_configuration_cannot_be_changed() -> None:
    """Whoever holds a configuration can rely on it."""
    config = load(None, KNOWN)
    with pytest.raises(AttributeError):
        config.agent.listen = Listen("")  # type: ignore[misc]


# -- problems ----------------------------------------------------------------------------------------


def test_every_problem_is_reported_at_once() -> None:
    """Nine mistakes in one file are nine lines, each with the file and the key, the agent's first."""
    lines = problems_of(
        """
        agnet = 1
        [agent]
        listen = "nowhere"
        sysfs = "/does/not/exist"
        [agent.web]
        trusted = ["10.0.0.0/99"]
        tls_cert = "/does/not/exist.pem"
        [collectors.rapl]
        interval = "soon"
        enabled = "yes"
        [collectors.rappl]
        """
    )
    assert [line.split(": ")[:2] for line in lines] == [
        ["agent.toml", key]
        for key in (
            "agnet",
            "agent.listen",
            "agent.web.trusted",
            "agent.web.tls_key",
            "agent.web.tls_cert",
            "agent.sysfs",
            "collectors.rappl",
            "collectors.rapl.interval",
            "collectors.rapl.enabled",
        )
    ]


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ("agnet = 1", "agnet", "did you mean 'agent'?"),
        ("agent.lisen = ''", "agent.lisen", "did you mean 'listen'?"),
        ("agent.web.tokenfile = ''", "agent.web.tokenfile", "did you mean 'token_file'?"),
        ("collectors.ralp.enabled = true", "collectors.ralp", "did you mean 'rapl'?"),
        ("collectors.rapl.intervall = 1", "collectors.rapl.intervall", "did you mean 'interval'?"),
        ("collectors.rapl.zzz = 1", "collectors.rapl.zzz", "known here: enabled, exclude, interval, listen"),
        ("collectors.rapl.max_streams = 1", "collectors.rapl.max_streams", "known here: "),
        ("agent = 3", "agent", "write [agent] and its keys under it"),
        ("agent.web = 3", "agent.web", "write [agent.web] and its keys under it"),
        ("collectors = []", "collectors", "write [collectors] and its keys under it"),
        ("collectors.rapl = true", "collectors.rapl", "write [collectors.rapl] and its keys under it"),
        ("collectors.rapl.enabled = 1", "collectors.rapl.enabled", "must be true or false, not 1"),
        ("agent.sysfs = 5", "agent.sysfs", "must be text in quotes, not 5"),
        ("agent.listen = 9510", "agent.listen", "must be text in quotes, not 9510"),
        (
            "agent.listen = '9510'",
            "agent.listen",
            "write for example 127.0.0.1:9510, or :9510 for every address",
        ),
        ("agent.listen = 'host:'", "agent.listen", "is not HOST:PORT"),
        ("agent.listen = ':0'", "agent.listen", "is not HOST:PORT"),
        ("agent.listen = ':65536'", "agent.listen", "is not HOST:PORT"),
        ("agent.listen = ':-1'", "agent.listen", "is not HOST:PORT"),
        ("agent.listen = '::1:9510'", "agent.listen", "put an IPv6 address in brackets"),
        ("collectors.rapl.listen = 'x'", "collectors.rapl.listen", "is not HOST:PORT"),
        ("agent.web.trusted = '10.0.0.0/8'", "agent.web.trusted", "must be a list in brackets"),
        ("agent.web.trusted = ['home']", "agent.web.trusted", "write for example 10.0.0.0/8 or fd00::/8"),
        ("agent.web.trusted = [7]", "agent.web.trusted", "must be text in quotes, not 7"),
        ("collectors.rapl.interval = 'soon'", "collectors.rapl.interval", "for example 1s, 2m30s, 500ms"),
        ("collectors.rapl.interval = ''", "collectors.rapl.interval", "for example 1s, 2m30s, 500ms"),
        ("collectors.rapl.interval = true", "collectors.rapl.interval", "for example 1s, 2m30s, 500ms"),
        ("collectors.rapl.interval = [1]", "collectors.rapl.interval", "for example 1s, 2m30s, 500ms"),
        ("collectors.rapl.interval = 0", "collectors.rapl.interval", "must be between 100ms and 1h"),
        ("collectors.rapl.interval = -1", "collectors.rapl.interval", "must be between 100ms and 1h"),
        ("collectors.ffmpeg.interval = inf", "collectors.ffmpeg.interval", "must be between"),
        ("collectors.ffmpeg.interval = nan", "collectors.ffmpeg.interval", ""),
        ("collectors.ffmpeg.window = nan", "collectors.ffmpeg.window", ""),
        ("collectors.ffmpeg.max_streams = 1.5", "collectors.ffmpeg.max_streams", "must be a whole number"),
        ("collectors.ffmpeg.max_streams = 0", "collectors.ffmpeg.max_streams", "must be at least 1"),
        ("agent.web.token_file = '/no/such'", "agent.web.token_file", "cannot read /no/such: No such file"),
        ("agent.web.token_file = '/'", "agent.web.token_file", "Is a directory"),
        (r'agent.web.token_file = "a\u0000b"', "agent.web.token_file", ""),
        ("agent.sysfs = '/no/such'", "agent.sysfs", "leave the key out for /sys"),
    ],
)
def test_a_problem_names_file_key_and_remedy(text: str, key: str, remedy: str) -> None:
    """Each kind of mistake is one line that starts with the file and the key and says what to write."""
    (line,) = problems_of(text)
    assert line.startswith(f"agent.toml: {key}: ")
    assert remedy in line


@pytest.mark.parametrize(("there", "missing"), [("tls_cert", "tls_key"), ("tls_key", "tls_cert")])
def test_half_of_tls_names_the_missing_half(tmp_path: Path, there: str, missing: str) -> None:
    """A certificate without a key, or the other way round, is a problem of the one that lacks."""
    (tmp_path / "x.pem").touch()
    (line,) = problems_of(f"[agent.web]\n{there} = '{tmp_path}/x.pem'")
    assert line.startswith(f"agent.toml: agent.web.{missing}: TLS needs both")


def test_rapl_is_read_at_least_every_30_seconds() -> None:
    """A longer RAPL interval is refused, for a counter that wraps unseen."""
    assert config_of("collectors.rapl.interval = '30s'").collectors["rapl"].interval == 30
    (line,) = problems_of("collectors.rapl.interval = '31s'")
    assert "at most 30s" in line
    assert config_of("collectors.host.interval = '31s'").collectors["host"].interval == 31


TOML_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
SECTION_KEYS = sorted({key for kind in KNOWN.values() for key in kind.__struct_fields__} | {"x"})
WEB_KEYS = ("tls_cert", "tls_key", "basic_auth_file", "token_file", "trusted", "x")
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "agent": TOML_VALUES
        | st.dictionaries(
            st.sampled_from(["listen", "sysfs", "procfs", "state_dir", "x"]) | st.text(max_size=5),
            TOML_VALUES,
            max_size=4,
        )
        | st.fixed_dictionaries({"web": st.dictionaries(st.sampled_from(WEB_KEYS), TOML_VALUES)}),
        "collectors": st.dictionaries(
            st.sampled_from([*KNOWN, "x"]), st.dictionaries(st.sampled_from(SECTION_KEYS), TOML_VALUES)
        ),
        "other": TOML_VALUES,
    },
)


@given(DOCUMENTS)
@example({"two\nlines": 1})
@example({"agent": {"sysfs": "/two\nlines"}})
@example({"agent": {"web": {"token_file": "/two\nlines"}}})
@settings(max_examples=40)
def test_any_document_is_a_configuration_or_a_list_of_problems(document: dict[str, Any]) -> None:
    """Whatever TOML holds: a configuration whose addresses parse, or problems, each of them one line."""
    problems: tuple[object, ...] = ()
    try:
        config = parse(document, KNOWN, "agent.toml")
        assert isinstance(config.agent.listen.address, Address | None)
    except ConfigError as error:
        problems = error.problems or ("an error without a problem\n",)
    assert [str(problem) for problem in problems if "\n" in str(problem)] == []


# -- files -------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, KNOWN)
    (line,) = str(caught.value).splitlines()
    return line


def test_a_missing_file_is_one_problem(tmp_path: Path) -> None:
    """A configured file that does not exist is an error; the defaults do not replace it."""
    path = tmp_path / "none.toml"
    assert refused(path) == f"{path}: cannot be read: No such file or directory"


def test_bad_syntax_names_the_line(tmp_path: Path) -> None:
    """What is not valid TOML is one problem that says where."""
    path = tmp_path / "agent.toml"
    path.write_text("[agent]\nlisten = \n")
    assert refused(path).startswith(f"{path}: is not valid TOML: ")
    assert "line 2" in refused(path)


def test_a_file_that_is_no_utf8_names_the_byte(tmp_path: Path) -> None:
    """TOML is UTF-8; Latin-1 is one problem that says where."""
    path = tmp_path / "agent.toml"
    path.write_bytes(b"# caf\xe9\n")
    assert refused(path) == f"{path}: is not UTF-8 text (byte 5)"


# -- durations and addresses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("2m30s", 150),
        ("500ms", 0.5),
        ("1h", 3600),
        ("1h1m1s1ms", 3661.001),
        ("1.5s", 1.5),
        ("90", 90),
        (90, 90),
        (0.25, 0.25),
        (" 1s ", 1),
        ("2m", 120),
    ],
)
def test_a_duration_reads_as_written(text: str | float, seconds: float) -> None:
    """Units from hours to milliseconds, or bare seconds."""
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "s", "1x", "-1s", "1s2m", "1 s", "1e3", "nan", "inf", "1m2", "1s1s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Anything else is a ValueError that shows how to write one."""
    with pytest.raises(ValueError, match="write seconds, or for example 1s, 2m30s, 500ms"):
        parse_seconds(text)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_any_duration_is_the_sum_of_its_parts(hours: int, minutes: int, seconds: int, millis: int) -> None:
    """Every mixture of units adds up."""
    text = f"{hours}h{minutes}m{seconds}s{millis}ms"
    assert parse_seconds(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + millis / 1000)


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    """No text makes parse_seconds fail otherwise, nor gives a negative duration."""
    with contextlib.suppress(ValueError):
        assert parse_seconds(text) >= 0


@given(st.sampled_from(["", "127.0.0.1", "localhost", "::1", "fe80::1%eth0"]), st.integers(1, 65535))
def test_an_address_reads_as_it_is_written(host: str, port: int) -> None:
    """Writing an address and reading it is the identity."""
    assert parse_listen(str(Address(host, port))) == Address(host, port)


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    """For any text parse_listen either returns a valid port or raises ValueError."""
    with contextlib.suppress(ValueError):
        assert 0 < parse_listen(text).port < 65536


def test_a_network_may_be_written_as_a_host() -> None:
    """`10.1.2.3/8` is 10.0.0.0/8."""
    assert str(Network("10.1.2.3/8").network) == "10.0.0.0/8"


# -- narrow ------------------------------------------------------------------------------------------


def test_narrow_leaves_the_named_collectors_alone() -> None:
    """--only enables what it names, even what the file disables, and nothing else."""
    config = narrow(config_of("collectors.rapl.enabled = false"), ["rapl", "ffmpeg"])
    assert {name for name, options in config.collectors.items() if options.enabled} == {"rapl", "ffmpeg"}


def test_narrow_suggests_the_nearest_name_for_each_unknown_one() -> None:
    """Every unknown name is a problem with a suggestion."""
    with pytest.raises(ConfigError) as caught:
        narrow(load(None, KNOWN), ["ralp", "rapl", "fmpeg"])
    assert str(caught.value).splitlines() == [
        "--only: no collector is called 'ralp'; did you mean 'rapl'?",
        "--only: no collector is called 'fmpeg'; did you mean 'ffmpeg'?",
    ]


def test_every_collectors_options_are_frozen() -> None:
    """A collector cannot change its configuration behind the agent's back."""
    for kind in KNOWN.values():
        assert issubclass(kind, msgspec.Struct)
        assert kind.__struct_config__.frozen


@pytest.mark.parametrize(
    ("pattern", "name", "excluded"),
    [
        ("hwmon*", "hwmon3", True),
        ("intel-rapl:0", "intel-rapl:0:1", False),
        ("*drivetemp*", "drivetemp", True),
    ],
)
def test_exclude_takes_patterns(pattern: str, name: str, *, excluded: bool) -> None:
    """A pattern fits the whole of a name; a part goes by any of its names."""
    options = Exclude(exclude=(pattern,))
    assert options.excludes("something else", name) is excluded
