"""Ask the stack's Prometheus: `targets` says whom it scrapes, `reload` has it read its files anew.

PROM_URL is where it answers (default http://127.0.0.1:9090, or PROMETHEUS_PORT of compose/.env);
VictoriaMetrics has the same API. Exit: 0; 1 where a target is not up; 69 where nobody answers; 78 where the
files are refused.

Source: https://prometheus.io/docs/prometheus/latest/querying/api/#targets
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 10
ENV = Path(__file__).with_name(".env")


def server() -> str:
    """Return the server's address. Raises: ValueError where PROM_URL is none."""
    port = "9090"
    if ENV.exists():
        values = dict(line.partition("=")[::2] for line in ENV.read_text(encoding="utf-8").splitlines())
        port = values.get("PROMETHEUS_PORT", port)
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


def main(arguments: list[str]) -> int:
    """Do what is asked; return the exit code."""
    if arguments not in (["targets"], ["reload"]):
        print("usage: ask_prometheus.py targets|reload", file=sys.stderr)
        return 2
    try:
        url = server()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        if arguments == ["reload"]:
            ask(f"{url}/-/reload", "POST")
            print(f"{url} has read its files anew")
            return 0
        lines = rows(json.loads(ask(f"{url}/api/v1/targets?state=active"))["data"]["activeTargets"])
    except urllib.error.HTTPError as error:
        print(f"{url}: {error.code} {error.read(2000).decode(errors='replace').strip()}", file=sys.stderr)
        return 78
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", error)
        print(f"no Prometheus at {url}: {reason}; start it (make up), or set PROM_URL=", file=sys.stderr)
        return 69
    print(table(lines))
    down = sum(line[2] != "up" for line in lines)
    print(f"{len(lines)} targets, {down} not up")
    return 1 if down or not lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
