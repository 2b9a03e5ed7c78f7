"""Ask the stack's Prometheus. Needs nothing but Python: the stack's machine may have no powerbench installed.

    ask_prometheus.py targets             list scrape targets and their errors
    ask_prometheus.py reload COMMAND...   run the command that makes it reload its files; say whether it did

PROM_URL is its address (default http://127.0.0.1:9090, or PROMETHEUS_PORT of compose/.env); VictoriaMetrics
has the same API for targets. Exit codes: 0; 1 a target is not up; 69 nothing answers; 78 the files are
rejected.

Source: https://prometheus.io/docs/prometheus/latest/querying/api/#targets
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

TIMEOUT_SECONDS = 10
FIRST_SCRAPE_SECONDS = 20.0  # to wait for the first scrape of new targets
RELOAD_SECONDS = 15.0
DISCOVERY_SECONDS = 2.0  # after a reload, within which target files are read
SUCCESSFUL = "prometheus_config_last_reload_successful"
SUCCESS_AT = "prometheus_config_last_reload_success_timestamp_seconds"
UNREADABLE = "prometheus_sd_file_read_errors_total"
ENV = Path(__file__).with_name(".env")


def server() -> str:
    """Return the server's address. Raises: ValueError if PROM_URL is not one."""
    port = "9090"
    if ENV.exists():
        written = re.search(r"^PROMETHEUS_PORT=[\"']?(\d+)", ENV.read_text(encoding="utf-8"), re.MULTILINE)
        port = written[1] if written else port
    url = os.environ.get("PROM_URL") or f"http://127.0.0.1:{port}"
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"PROM_URL must be like http://127.0.0.1:9090, not {url}")
    return url.rstrip("/")


def ask(url: str, method: str = "GET") -> bytes:
    """Return the answer's body. Raises: OSError (HTTPError is one); http.client.HTTPException."""
    request = urllib.request.Request(url, method=method)  # noqa: S310 - server() lets only http(s) through
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - likewise
        content: bytes = answer.read()
        return content


class Target(NamedTuple):
    """A row of the table."""

    job: str
    host: str
    health: str
    error: str


HEADINGS = Target("job", "host", "health", "last error")


def rows(targets: list[dict[str, Any]]) -> list[Target]:
    """Return the active targets, those with errors first."""
    found = []
    for target in targets:
        labels = target["labels"]
        host = labels.get("host") or labels.get("instance", "")
        error = " ".join(target.get("lastError", "").split())
        found.append(Target(labels.get("job", ""), host, target.get("health", ""), error))
    return sorted(found, key=lambda row: (row.health == "up", *row))


def table(lines: list[Target]) -> str:
    """Return rows below their headings, in columns."""
    lines = [HEADINGS, *lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    printed = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        printed.append("  ".join(cells).rstrip())
    return "\n".join(printed)


def targets(url: str) -> int:
    """Print what the server scrapes; return the exit code."""
    patience = time.monotonic() + FIRST_SCRAPE_SECONDS
    while True:
        lines = rows(json.loads(ask(f"{url}/api/v1/targets?state=active"))["data"]["activeTargets"])
        if (lines and all(line.health != "unknown" for line in lines)) or time.monotonic() > patience:
            break
        time.sleep(0.5)  # the server has just been started
    print(table(lines))
    down = sum(line.health != "up" for line in lines)
    print(f"{len(lines)} targets, {down} not up")
    return 1 if down or not lines else 0


def said(url: str) -> dict[str, float]:
    """Return what the server reports about its own configuration, by metric."""
    text = ask(f"{url}/metrics").decode(errors="replace")
    values = {}
    for name in (SUCCESSFUL, SUCCESS_AT, UNREADABLE):
        match = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        if match:
            values[name] = float(match[1])
    return values


def reload(url: str, command: list[str]) -> int:
    """Make the server reload its files and print whether it accepted them; return the exit code."""
    before = said(url)
    if SUCCESS_AT not in before:
        raise ValueError("its /metrics does not report the state of its configuration")
    if code := subprocess.run(command, check=False).returncode:
        return code
    patience = time.monotonic() + RELOAD_SECONDS
    while (now := said(url))[SUCCESS_AT] == before[SUCCESS_AT]:
        if not now[SUCCESSFUL] or time.monotonic() > patience:
            why = "see its log, or run: promtool check config compose/prometheus/prometheus.yml"
            print(f"{url} keeps the old configuration; {why}", file=sys.stderr)
            return 78
        time.sleep(0.1)
    patience = time.monotonic() + DISCOVERY_SECONDS
    while time.monotonic() < patience:
        if said(url).get(UNREADABLE, 0) > before.get(UNREADABLE, 0):
            what = "a file in targets/ cannot be read, and its targets are gone"
            how = "to see which: promtool check config compose/prometheus/prometheus.yml"
            print(f"{what}; {how}", file=sys.stderr)
            return 78
        time.sleep(0.1)
    print(f"{url} has reloaded its files")
    return 0


def main(arguments: list[str]) -> int:
    """Run a verb; return the exit code."""
    verb, *command = arguments or [""]
    if verb not in ("targets", "reload") or bool(command) != (verb == "reload"):
        print("usage: ask_prometheus.py targets|reload COMMAND...", file=sys.stderr)
        return 2
    try:
        url = server()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return targets(url) if verb == "targets" else reload(url, command)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", error)
        print(f"no Prometheus at {url}: {reason}; start it (make up), or set PROM_URL=", file=sys.stderr)
        return 69


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
