"""A private nginx with its rtmp module, as the sink of a run: `--sink nginx`.

It listens on a free loopback port, writes only to a temporary directory, and ends with the run.

Source: https://github.com/arut/nginx-rtmp-module/wiki/Directives
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from powerbench_agent.bench.exits import NotHere

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MODULES = (
    "/usr/lib/nginx/modules/ngx_rtmp_module.so",
    "/usr/lib64/nginx/modules/ngx_rtmp_module.so",
    "/usr/share/nginx/modules/ngx_rtmp_module.so",
)
_START_SECONDS = 5.0
_STOP_SECONDS = 5.0
_ANSWER_SECONDS = 10.0  # for it to say how it was built
_CONFIGURATION = """\
{load}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
rtmp {{
    server {{
        listen 127.0.0.1:{port};
        application live {{ live on; record off; }}
    }}
}}
"""
_INSTALL = (
    "install nginx and its rtmp module (Debian: libnginx-mod-rtmp), or omit --sink to use the embedded one"
)


@contextlib.asynccontextmanager
async def private_nginx() -> AsyncIterator[str]:
    """Run an nginx for as long as the context lasts; yield the URL that streams are published to.

    Raises: NotHere without nginx or its rtmp module, or if it does not start.
    """
    binary = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if binary is None:
        raise NotHere(f"--sink nginx: nginx is not installed; {_INSTALL}")
    load = await asyncio.to_thread(rtmp_module, binary)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="powerbench-nginx-") as directory:
        log = Path(directory) / "error.log"
        configuration = Path(directory) / "nginx.conf"
        configuration.write_text(_CONFIGURATION.format(load=load, directory=directory, port=port))
        process = await asyncio.create_subprocess_exec(
            *(binary, "-p", directory, "-c", str(configuration), "-e", str(log)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            await _wait_for(process, port, log)
            yield f"rtmp://127.0.0.1:{port}/live/stream"
        finally:
            await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Stop it: SIGTERM, then SIGKILL if it does not end."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()


def rtmp_module(binary: str) -> str:
    """Return the line that loads this nginx's rtmp module; "" if it is built in. Raises: NotHere."""
    try:
        version = subprocess.run(
            [binary, "-V"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS,
            check=False,
        ).stderr
    except (OSError, subprocess.TimeoutExpired):
        raise NotHere(f"--sink nginx: {binary} -V does not answer; {_INSTALL}") from None
    added = [word for word in version.split() if "add-module" in word]
    if any("rtmp" in word and "dynamic" not in word for word in added):
        return ""
    for module in _MODULES:
        if Path(module).exists():
            return f"load_module {module};"
    raise NotHere(f"--sink nginx: nginx lacks its rtmp module; {_INSTALL}")


async def _wait_for(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    """Wait until it listens. Raises: NotHere."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START_SECONDS):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                return
    reason = await asyncio.to_thread(_last_line, log)
    what = f"nginx did not start: {reason or 'it printed nothing'}"
    raise NotHere(f"--sink nginx: {what}; omit --sink to use the embedded one")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else ""
