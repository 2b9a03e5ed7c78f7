"""Who may ask for what: near and far peers, browsers, tokens, passwords, and the files they come from."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
from typing import TYPE_CHECKING

import bcrypt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from powerbench_agent.agent import access
from powerbench_agent.agent.access import Access
from powerbench_agent.agent.config import WebConfig
from powerbench_agent.core.options import ConfigError, Network

if TYPE_CHECKING:
    from pathlib import Path

HASH = bcrypt.hashpw(b"right", bcrypt.gensalt(4))
HOST = {"Host": "127.0.0.1:9510"}


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


# -- peers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_near(peer: str) -> None:
    """Loopback in every spelling, and a Unix socket, is near."""
    assert Access().is_near(peer, HOST)


@pytest.mark.parametrize(
    "peer", ["10.0.0.1", "192.168.1.1", "0.0.0.0", "::", "::2", "::ffff:10.0.0.1", "fe80::1%eth0", "what"]
)
def test_everyone_else_is_far(peer: str) -> None:
    """Neither a private address nor a peer without an address is loopback."""
    assert not Access().is_near(peer, HOST)


def test_a_trusted_network_is_near_under_any_name() -> None:
    """[agent.web] trusted opens to its networks alone, whatever name of this machine they use."""
    rules = Access(trusted=(ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")))
    named = {"Host": "worker1.example.org:9510"}
    assert rules.is_near("10.1.2.3", named)
    assert rules.is_near("::ffff:10.1.2.3", named)
    assert rules.is_near("fd00::7", named)
    assert not rules.is_near("10.2.0.1", named)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:9510", "localhost.:9510", "127.0.0.1", "[::1]", "[::1]:9510", "x.localhost", ""],
)
def test_loopback_under_an_own_name_is_near(host: str) -> None:
    """A loopback peer may call this machine by an address, by localhost, or by nothing."""
    assert Access().is_near("127.0.0.1", {"Host": host})


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9510", "localhost.evil.example", "127.0.0.1.evil.example", "\udcff"],
)
def test_loopback_under_a_foreign_name_is_refused(host: str) -> None:
    """A rebound DNS name brings a browser's request from loopback, under the attacker's name."""
    assert not Access().is_near("127.0.0.1", {"Host": host})


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8080"},
    ],
)
def test_what_another_site_sends_is_refused(headers: dict[str, str]) -> None:
    """A browser's cross-site request is not near, from loopback or from a trusted network."""
    rules = Access(trusted=(ipaddress.ip_network("10.0.0.0/8"),))
    assert not rules.is_near("127.0.0.1", HOST | headers)
    assert not rules.is_near("10.0.0.1", HOST | headers)


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://127.0.0.1:9510"}],
)
def test_what_our_own_page_sends_is_near(headers: dict[str, str]) -> None:
    """The page that the agent serves may ask the agent."""
    assert Access().is_near("127.0.0.1", HOST | headers)


# -- tokens ------------------------------------------------------------------------------------------


def test_a_token_opens_by_header_or_query() -> None:
    """The right token opens; a wrong one, an empty one, or another scheme does not."""
    rules = Access(token="s3cret")
    assert rules.has_token("Bearer s3cret")
    assert rules.has_token("bearer  s3cret ")
    assert rules.has_token("", "s3cret")
    assert rules.has_token("Bearer wrong", "s3cret")
    for authorization in (
        "",
        "Bearer",
        "Bearer ",
        "Bearer s3cre",
        "Bearer s3crett",
        "Basic s3cret",
        "s3cret",
    ):
        assert not rules.has_token(authorization)
    assert not rules.has_token("", "S3CRET")


def test_without_a_token_nothing_opens() -> None:
    """Without a configured token, an empty one opens nothing."""
    rules = Access()
    assert not rules.has_token("Bearer ", "")
    assert not rules.has_token("Bearer x", "x")


@given(st.text(max_size=30))
@example("\udcff")
def test_any_header_is_judged_without_failing(header: str) -> None:
    """Bytes that are not text arrive as lone surrogates; they are a wrong token and a wrong password."""
    rules = Access(token="s3cret", users={"prom": HASH})
    assert not rules.has_token(f"Bearer {header}x", f"{header}x")
    with pytest.raises(StopIteration) as answer:  # without bcrypt, so without the event loop
        rules.has_password(f"Basic ~{header}").send(None)
    assert answer.value.value is False


# -- passwords ---------------------------------------------------------------------------------------


async def test_the_right_name_and_password_open() -> None:
    """Basic authentication against a bcrypt hash."""
    rules = Access(users={"prom": HASH})
    assert rules.wants_password
    assert await rules.has_password(basic("prom", "right"))


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic ",
        "Basic ???",
        "Basic cHJvbQ==",
        basic("prom", "wrong"),
        basic("prom", ""),
        basic("nobody", "right"),
        basic("", "right"),
        basic("prom", "right").replace("Basic", "Bearer"),
        basic("prom", "right\0"),
    ],
)
async def test_anything_else_does_not(authorization: str) -> None:
    """A wrong password, a wrong name, another scheme, no base64: all refused, and never an error."""
    assert not await Access(users={"prom": HASH}).has_password(authorization)


async def test_an_invalid_hash_matches_no_password() -> None:
    """A broken line in the password file is a refusal, not an error."""
    rules = Access(users={"prom": b"$2b$04$short"})
    assert not await rules.has_password(basic("prom", "right"))


async def test_without_users_no_password_is_wanted_or_taken() -> None:
    """Nothing configured, nothing checked."""
    assert not Access().wants_password
    assert not await Access().has_password(basic("prom", "right"))


async def test_a_right_password_is_checked_by_bcrypt_once() -> None:
    """The second scrape's password is known: the answer comes without leaving the event loop."""
    rules = Access(users={"prom": HASH})
    assert await rules.has_password(basic("prom", "right"))
    with pytest.raises(StopIteration) as answer:
        rules.has_password(basic("prom", "right")).send(None)
    assert answer.value.value is True


async def test_a_wrong_password_is_not_remembered_as_right() -> None:
    """What failed goes on failing, also after the right one was seen."""
    rules = Access(users={"prom": HASH})
    assert not await rules.has_password(basic("prom", "wrong"))
    assert await rules.has_password(basic("prom", "right"))
    assert not await rules.has_password(basic("prom", "wrong"))


async def test_a_flood_of_passwords_is_refused_instead_of_queued() -> None:
    """Of two hundred unknown passwords at once only the first few are worth a core's time."""
    rules = Access(users={"prom": HASH})
    answers = await asyncio.gather(*(rules.has_password(basic("prom", "right")) for _ in range(200)))
    assert 0 < sum(answers) < 50
    assert await rules.has_password(basic("prom", "right")), "and the flood leaves nothing behind"


# -- files -------------------------------------------------------------------------------------------


async def test_the_files_are_read(tmp_path: Path) -> None:
    """A token file, an htpasswd file with comments and blank lines, and trusted networks."""
    (tmp_path / "token").write_text("  s3cret\n")
    (tmp_path / "users").write_text(f"# scrapers\n\nprom:{HASH.decode()}\n")
    rules = access.load(
        WebConfig(
            token_file=str(tmp_path / "token"),
            basic_auth_file=str(tmp_path / "users"),
            trusted=(Network("10.0.0.0/8"),),
        ),
        "agent.toml",
    )
    assert rules.has_token("Bearer s3cret")
    assert await rules.has_password(basic("prom", "right"))
    assert rules.is_near("10.1.1.1", {})


def test_nothing_configured_is_loopback_alone() -> None:
    """The default opens nothing beyond loopback."""
    rules = access.load(WebConfig(), "agent.toml")
    assert not rules.wants_password
    assert not rules.has_token("Bearer ", "")
    assert not rules.is_near("10.1.1.1", {})


@pytest.mark.parametrize(
    ("key", "content", "what"),
    [
        ("token_file", b"", "is empty; put a random token in it"),
        ("token_file", b" \n ", "is empty; put a random token in it"),
        ("token_file", b"\xff\xfe", "is not UTF-8 text; put a random token in it"),
        ("basic_auth_file", b"", "names no user; add one with: htpasswd -nB NAME"),
        ("basic_auth_file", b"# only this\n", "names no user"),
        ("basic_auth_file", b"prom:plain\n", "line 1 is not NAME:BCRYPT; create it with: htpasswd -nB NAME"),
        ("basic_auth_file", b"\nprom:$apr1$x$y\n", "line 2 is not NAME:BCRYPT"),
        ("basic_auth_file", b"prom\n", "line 1 is not NAME:BCRYPT"),
        ("basic_auth_file", b"\xff", "is not UTF-8 text"),
    ],
)
def test_a_bad_file_is_a_problem_with_its_remedy(tmp_path: Path, key: str, content: bytes, what: str) -> None:
    """A secret's file that cannot serve names the key, the file and what to do."""
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        access.load(WebConfig(**{key: str(path)}), "agent.toml")
    (line,) = str(caught.value).splitlines()
    assert key in line
    assert str(path) in line
    assert what in line


def test_every_bad_file_is_reported(tmp_path: Path) -> None:
    """An empty token file does not hide an empty password file."""
    (tmp_path / "token").touch()
    (tmp_path / "users").touch()
    web = WebConfig(token_file=str(tmp_path / "token"), basic_auth_file=str(tmp_path / "users"))
    with pytest.raises(ConfigError) as caught:
        access.load(web, "agent.toml")
    assert [problem.key for problem in caught.value.problems] == [
        "agent.web.token_file",
        "agent.web.basic_auth_file",
    ]


def test_a_file_that_has_gone_is_a_problem(tmp_path: Path) -> None:
    """A file that vanished since the configuration was read is a problem, not a traceback."""
    with pytest.raises(ConfigError, match="cannot read"):
        access.load(WebConfig(token_file=str(tmp_path / "gone")), "agent.toml")


def test_no_problem_holds_a_secret(tmp_path: Path) -> None:
    """A password file with a plain password in it is refused without repeating the password."""
    (tmp_path / "users").write_text("prom:hunter2\n")
    with pytest.raises(ConfigError) as caught:
        access.load(WebConfig(basic_auth_file=str(tmp_path / "users")), "agent.toml")
    assert "hunter2" not in str(caught.value)


def test_a_peer_that_has_gone_is_not_near() -> None:
    """A connection that was reset before its peer could be asked for is not near."""
    assert not Access().is_near("", HOST)


def test_the_names_of_the_loopback_are_this_machines_own(tmp_path: Path) -> None:
    """What /etc/hosts calls a loopback address opens what loopback opens; what it calls another does not."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.1.1 Worker1.example.com worker1 # this one\n::1 six\n192.0.2.1 other\nbroken\n")
    names = access.loopback_names(hosts)
    assert names == {"worker1.example.com", "worker1", "six"}
    rules = Access(own_names=names)
    assert rules.is_near("127.0.0.1", {"Host": "worker1.example.com:9510"})
    assert not rules.is_near("127.0.0.1", {"Host": "other:9510"})
    assert access.loopback_names(tmp_path / "none") == frozenset()


@pytest.mark.parametrize("browser", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "same-origin"}])
def test_a_browser_in_a_trusted_network_is_not_taken_for_its_user(browser: dict[str, str]) -> None:
    """A rebound name reaches us through a browser as same-origin: it is refused there, too."""
    rules = Access(trusted=(ipaddress.ip_network("10.0.0.0/8"),))
    assert rules.is_near("10.1.2.3", {"Host": "worker1.example.com"})
    assert not rules.is_near("10.1.2.3", {"Host": "evil.example", **browser})
