"""Flags in, exit codes out: what `powerbench-agent` says to a person who got something wrong, and right."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from powerbench_agent.agent import __version__, cli, roster
from powerbench_agent.core.options import Address, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from powerbench_agent.agent.config import Config

KNOWN = roster.options_of(roster.load_modules())
EVERY = set(KNOWN)


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what main() set up for its process, and have no port variables."""
    for entry in roster.BUILT_IN.values():
        if entry.port_variable:
            monkeypatch.delenv(entry.port_variable, raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.fixture
def empty(tmp_path: Path) -> str:
    """Return the name of a configuration that says nothing; the machine's own is not looked at."""
    (tmp_path / "agent.toml").touch()
    return str(tmp_path / "agent.toml")


def configured(*arguments: str, **environ: str) -> Config:
    return cli.configure(cli.parser().parse_args(arguments), KNOWN, environ)


def enabled(config: Config) -> set[str]:
    return {name for name, options in config.collectors.items() if options.enabled}


# -- flags -------------------------------------------------------------------------------------------


def test_no_flag_is_needed(empty: str) -> None:
    """Everything, on port 9510."""
    config = configured("--config", empty)
    assert enabled(config) == EVERY
    assert config.agent.listen == "0.0.0.0:9510"


def test_flags_stand_above_the_file(tmp_path: Path, empty: str) -> None:
    """--listen, --sysfs and --procfs win over what the file says."""
    Path(empty).write_text("[agent]\nlisten = '127.0.0.1:1'\n")
    config = configured(
        "--config", empty, "--listen", "[::1]:2", "--sysfs", str(tmp_path), "--procfs", str(tmp_path)
    )
    assert config.agent.listen.address == Address("::1", 2)
    assert (config.agent.sysfs, config.agent.procfs) == (str(tmp_path), str(tmp_path))


def test_port_is_listen_on_every_address(empty: str) -> None:
    """--port N is --listen :N."""
    assert configured("--config", empty, "--port", "7777").agent.listen.address == Address("", 7777)


@pytest.mark.parametrize(
    ("flags", "environ", "collectors", "address"),
    [
        (["ffmpeg"], {}, {"ffmpeg"}, Address("", 9506)),
        (["rapl"], {}, {"rapl"}, Address("", 9510)),
        (["ffmpeg", "--port", "7"], {}, {"ffmpeg"}, Address("", 7)),
        (["ffmpeg"], {"FFMPEG_EXPORTER_PORT": "7"}, {"ffmpeg"}, Address("", 7)),
        (["host"], {}, {"host"}, Address("0.0.0.0", 9510)),
        (["rapl,ffmpeg"], {}, {"rapl", "ffmpeg"}, Address("0.0.0.0", 9510)),
        ([" rapl , ffmpeg ,"], {}, {"rapl", "ffmpeg"}, Address("0.0.0.0", 9510)),
    ],
)
def test_only_runs_the_named_collectors(
    empty: str,
    flags: list[str],
    environ: dict[str, str],
    collectors: set[str],
    address: Address,
) -> None:
    """One name takes its classic port, its variable or --port; several share the usual one."""
    config = configured("--config", empty, "--only", *flags, **environ)
    assert enabled(config) == collectors
    assert config.agent.listen.address == address


@pytest.mark.parametrize("only", ["", ",", " "])
def test_only_with_no_name_is_a_problem(empty: str, only: str) -> None:
    """An agent that would serve nothing is not what anyone meant."""
    with pytest.raises(ConfigError, match="--only"):
        configured("--config", empty, "--only", only)


def test_every_bad_flag_is_reported_at_once(empty: str) -> None:
    """Three bad values are three problems that name their flags."""
    with pytest.raises(ConfigError) as caught:
        configured("--config", empty, "--listen", "nowhere", "--sysfs", "/no/such", "--procfs", "/no/such")
    assert [problem.where for problem in caught.value.problems] == ["--sysfs", "--procfs", "--listen"]


# -- main --------------------------------------------------------------------------------------------


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    code = cli.main([*arguments, "--check"])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


def test_check_says_that_state_dir_has_no_effect(capsys: pytest.CaptureFixture[str], empty: str) -> None:
    """A state_dir of one's own is accepted, exit 0, and said to change nothing; the default needs no word."""
    Path(empty).write_text("[agent]\nstate_dir = '/srv/powerbench'\n")
    code, out, lines = checked(capsys, "--config", empty)
    what = "has no effect in this version, which stores nothing there; you may leave the key out"
    assert (code, lines) == (0, [])
    assert out == f"{empty}: agent.state_dir: {what}\nconfiguration is good\n"
    Path(empty).write_text("[agent]\nstate_dir = '/var/lib/powerbench'\n")
    assert checked(capsys, "--config", empty) == (0, "configuration is good\n", [])


def test_check_says_that_a_good_configuration_is_good(capsys: pytest.CaptureFixture[str], empty: str) -> None:
    """--check of a good file is exit 0 and one line."""
    assert checked(capsys, "--config", empty) == (0, "configuration is good\n", [])


def test_check_lists_every_problem_one_a_line(capsys: pytest.CaptureFixture[str], empty: str) -> None:
    """--check of a bad file is exit 78, and each line names file, key and remedy."""
    Path(empty).write_text("[agnet]\n[collectors.rapl]\ninterval = '1m'\n[agent.web]\ntrusted = ['x']\n")
    code, out, lines = checked(capsys, "--config", empty)
    assert (code, out) == (78, "")
    assert lines == [
        f"{empty}: agnet: no such key; did you mean 'agent'?",
        f"{empty}: agent.web.trusted: 'x' is not a network; write for example 10.0.0.0/8 or fd00::/8",
        (
            f"{empty}: collectors.rapl.interval: must be at most 30s: "
            "the counter wraps, and a missed wrap loses energy"
        ),
    ]


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [
        (["--config", "/no/such.toml"], "/no/such.toml: cannot be read: "),
        (["--config", "/"], "/: cannot be read: Is a directory"),
        (["--port", "http"], "--port: ':http' is not HOST:PORT"),
        (["--port", "0"], "--port: ':0' is not HOST:PORT"),
        (["--port", ""], "--port: ':' is not HOST:PORT"),
        (["--listen", ""], "--listen: '' is not HOST:PORT"),
        (["--listen", "::1:9510"], "--listen: '::1:9510': put an IPv6 address in brackets"),
        (["--only", "rappl"], "--only: no collector is called 'rappl'; did you mean 'rapl'?"),
        (["--sysfs", "/no/such"], "--sysfs: /no/such is not a directory"),
    ],
)
def test_a_bad_flag_is_one_line_and_78(
    capsys: pytest.CaptureFixture[str], empty: str, arguments: list[str], starts: str
) -> None:
    """Each bad value of a flag is exit 78 and one line that starts with the flag or the file."""
    code, _, lines = checked(capsys, *([] if "--config" in arguments else ["--config", empty]), *arguments)
    assert code == 78
    assert len(lines) == 1
    assert lines[0].startswith(starts)


@pytest.mark.parametrize("port", ["http", "99999", "²"])
@pytest.mark.parametrize("only", [[], ["--only", "ffmpeg"]])
def test_a_bad_port_variable_is_one_line_and_78(
    capsys: pytest.CaptureFixture[str],
    empty: str,
    monkeypatch: pytest.MonkeyPatch,
    port: str,
    only: list[str],
) -> None:
    """A variable that holds no port is a problem, whether or not its collector runs alone."""
    monkeypatch.setenv("FFMPEG_EXPORTER_PORT", port)
    code, _, lines = checked(capsys, "--config", empty, *only)
    assert code == 78
    what = "is not a port number; write for example 9510, or unset it"
    assert lines == [f"environment: FFMPEG_EXPORTER_PORT: {port!r} {what}"]


def test_check_reads_the_secrets_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, empty: str
) -> None:
    """--check reports an empty token file and an invalid certificate together."""
    for name in ("token", "cert", "key"):
        (tmp_path / name).touch()
    Path(empty).write_text(
        f"[agent.web]\ntoken_file = '{tmp_path}/token'\n"
        f"tls_cert = '{tmp_path}/cert'\ntls_key = '{tmp_path}/key'\n"
    )
    code, _, lines = checked(capsys, "--config", empty)
    assert code == 78
    assert [key for key in ("token_file", "tls_cert") if any(key in line for line in lines)] == [
        "token_file",
        "tls_cert",
    ]


@pytest.mark.parametrize(
    "arguments", [["--port", "1", "--listen", ":2"], ["--log-level", "loud"], ["--chek"], ["extra"]]
)
def test_flags_that_there_are_not_are_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """An unknown flag, a bad choice or two that exclude each other: usage, exit 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: powerbench-agent ")


def test_help_names_every_flag_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """--help is enough to get going; --version says which."""
    for arguments, said in (
        (["--help"], ["--config", "--listen", "--only", "--port", "--sysfs", "--procfs", "--log-format"]),
        (["--help"], ["--log-level", "--check", "examples:", "curl localhost:9510/metrics"]),
        (["--version"], [f"powerbench-agent {__version__}"]),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert [text for text in said if text not in out] == []


# -- the installed command ---------------------------------------------------------------------------


def test_the_installed_command_checks_a_configuration(tmp_path: Path, empty: str) -> None:
    """`powerbench-agent --check` as it is installed: 0 and 78, no traceback, nothing on the other stream."""
    command = Path(sys.executable).parent / "powerbench-agent"
    if not command.exists():
        pytest.skip(f"NOT CHECKED: {command} is not installed")
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_PORT")}
    (tmp_path / "bad.toml").write_text("agnet = 1\n")
    for file, code, out, err in (
        (empty, 0, "configuration is good\n", ""),
        (f"{tmp_path}/bad.toml", 78, "", f"{tmp_path}/bad.toml: agnet: no such key; did you mean 'agent'?\n"),
    ):
        ended = subprocess.run(
            [command, "--config", file, "--check"],
            env=environ, timeout=20, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert (ended.returncode, ended.stdout, ended.stderr) == (code, out, err)


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ('"$@" | true; exit ${PIPESTATUS[0]}', 0, ""),
        ('"$@" >/dev/full', 1, "cannot write standard output: No space left on device; what was printed"),
    ],
)
@pytest.mark.parametrize("flag", ["--check", "--help"])
def test_output_that_cannot_be_written_is_no_crash(flag: str, shell: str, code: int, said: str) -> None:
    """A reader that has gone ends it quietly; a full disk is one line and exit 1."""
    agent = Path(sys.executable).with_name("powerbench-agent")
    done = subprocess.run(
        ["/bin/bash", "-c", shell, "bash", agent, flag],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == bool(said)
    assert said in done.stderr
