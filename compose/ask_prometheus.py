"""Ask the stack's Prometheus.

    ask_prometheus.py targets             whom it scrapes, and what is wrong
    ask_prometheus.py reload COMMAND...   run the command that makes it read its files anew; say if it did

PROM_URL is where it answers (default http://127.0.0.1:9090, or PROMETHEUS_PORT of compose/.env);
VictoriaMetrics has the same API of targets. Exit: 0; 1 where a target is not up; 69 where nobody answers; 78
where the files are refused.

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
from typing import Any

TIMEOUT_SECONDS = 10
FIRST_SCRAPE_SECONDS = 20.0  # that targets have been waited for, which nobody has scraped yet
RELOAD_SECONDS = 15.0
DISCOVERY_SECONDS = 2.0  # within which target files are read after that
SUCCESSFUL = "prometheus_config_last_reload_successful"
SUCCESS_AT = "prometheus_config_last_reload_success_timestamp_seconds"
UNREADABLE = "prometheus_sd_file_read_errors_total"
ENV = Path(__file__).with_name(".env")


def server() -> str:
    """Return the server's address. Raises: ValueError where PROM_URL is none."""
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
    request = urllib.request.Request(url, method=method)  # noqa: S310 - server() lets http(s) through alone
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - likewise
        content: bytes = answer.read()
        return content


def rows(targets: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Return (job, host, health, last error) of each target, those in trouble first."""
    found = [
        (
            target["labels"].get("job", ""),
            target["labels"].get("host") or target["labels"].get("instance", ""),
            target.get("health", ""),
            " ".join(target.get("lastError", "").split()),
        )
        for target in targets
    ]
    return sorted(found, key=lambda row: (row[2] == "up", *row))


def table(lines: list[tuple[str, str, str, str]]) -> str:
    """Return rows under their heads, in columns."""
    lines = [("job", "host", "health", "last error"), *lines]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]).rstrip()
        for line in lines
    )


def targets(url: str) -> int:
    """Print whom the server scrapes; return the exit code."""
    patience = time.monotonic() + FIRST_SCRAPE_SECONDS
    while True:
        lines = rows(json.loads(ask(f"{url}/api/v1/targets?state=active"))["data"]["activeTargets"])
        if (lines and all(line[2] != "unknown" for line in lines)) or time.monotonic() > patience:
            break
        time.sleep(0.5)  # it has just been started
    print(table(lines))
    down = sum(line[2] != "up" for line in lines)
    print(f"{len(lines)} targets, {down} not up")
    return 1 if down or not lines else 0


def said(url: str) -> dict[str, float]:
    """Return what the server says of its own configuration, by metric."""
    text = ask(f"{url}/metrics").decode(errors="replace")
    found = {
        name: re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        for name in (SUCCESSFUL, SUCCESS_AT, UNREADABLE)
    }
    return {name: float(match[1]) for name, match in found.items() if match}


def reload(url: str, command: list[str]) -> int:
    """Have the files read anew, and print whether they were taken; return the exit code."""
    before = said(url)
    if SUCCESS_AT not in before:
        raise ValueError("it says nothing of its configuration")
    if code := subprocess.run(command, check=False).returncode:
        return code
    patience = time.monotonic() + RELOAD_SECONDS
    while (now := said(url))[SUCCESS_AT] == before[SUCCESS_AT]:
        if not now[SUCCESSFUL] or time.monotonic() > patience:
            why = "promtool check config compose/prometheus/prometheus.yml, or its log, says why"
            print(f"{url} keeps the old configuration: {why}", file=sys.stderr)
            return 78
        time.sleep(0.1)
    patience = time.monotonic() + DISCOVERY_SECONDS
    while time.monotonic() < patience:
        if said(url).get(UNREADABLE, 0) > before.get(UNREADABLE, 0):
            what = "a file of targets/ cannot be read, and its targets are gone"
            print(
                f"{what}: promtool check config compose/prometheus/prometheus.yml names it", file=sys.stderr
            )
            return 78
        time.sleep(0.1)
    print(f"{url} has read its files anew")
    return 0


def main(arguments: list[str]) -> int:
    """Do what is asked; return the exit code."""
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
