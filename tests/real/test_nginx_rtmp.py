"""A real nginx with the rtmp module, real publishers and players, and a real agent."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from real.conftest import agent, free_port, get, need, series, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
PICTURE = [
    "-re",
    "-f",
    "lavfi",
    "-i",
    "testsrc2=size=320x180:rate=30",
    "-f",
    "lavfi",
    "-i",
    "sine=sample_rate=48000",
]
ENCODE = ["-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", "-f", "flv"]
NOISE = ["-re", "-f", "lavfi", "-i", "nullsrc=s=640x360:r=30,geq=random(1)*255:128:128"]
HEAVY = ["-c:v", "flv", "-qscale:v", "1", "-f", "flv"]  # 100 Mbit/s
CONFIGURATION = """\
load_module {module};
daemon off;
worker_processes {workers};
pid {directory}/nginx.pid;
events {{ worker_connections 256; }}
rtmp {{
    server {{ listen 127.0.0.1:{rtmp}; application live {{ live on; record off; }} }}
    server {{ listen 127.0.0.1:{other}; application live {{ live on; record off; }} }}
}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{http} reuseport;
        location = /stat {{ rtmp_stat all; }}
        location = /brief {{ rtmp_stat global live; }}
        location / {{ return 404; }}
    }}
}}
"""
UP = "powerbench_collector_up"
SUCCESS = "powerbench_collector_last_success_timestamp_seconds"
COUNTERS = {
    "bytes_in": "nginx_rtmp_stream_bytes_in_total",
    "bytes_out": "nginx_rtmp_stream_bytes_out_total",
    "nclients": "nginx_rtmp_stream_clients",
    "time": "nginx_rtmp_stream_uptime_seconds",
}


class Nginx:
    """One nginx, its files in a directory of its own."""

    def __init__(self, directory: Path, workers: int = 1) -> None:
        if not MODULE.exists():
            need(f"nginx's {MODULE.name}")
        self._binary = need("nginx")
        self._directory = directory
        self._rtmp, self._other, self._http = free_port(), free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._http}/stat"
        (directory / "nginx.conf").write_text(
            CONFIGURATION.format(
                module=MODULE,
                workers=workers,
                directory=directory,
                rtmp=self._rtmp,
                other=self._other,
                http=self._http,
            )
        )

    def start(self) -> None:
        where = self._directory
        command = [self._binary, "-p", str(where), "-c", f"{where}/nginx.conf", "-e", f"{where}/error.log"]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for(self._answers, "nginx answers")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        with suppress(OSError):
            return bool(get(self.url))
        return False

    def address(self, stream: str, *, other: bool = False) -> str:
        return f"rtmp://127.0.0.1:{self._other if other else self._rtmp}/live/{stream}"

    def page(self) -> dict[str, dict[str, str]]:
        """Return what nginx itself says: the fields of each stream by its name, and the server's under ""."""
        root = ET.fromstring(get(self.url))  # noqa: S314 - our own nginx
        found = {"": {child.tag: child.text or "" for child in root}}
        for stream in root.iter("stream"):
            fields = {child.tag: child.text or "" for child in stream}
            for kind in ("video", "audio"):
                fields.update(
                    {f"{kind}_{child.tag}": child.text or "" for child in stream.iterfind(f"meta/{kind}/*")}
                )
            dropped = [int(text.text or "") for text in stream.iterfind("client/dropped")]
            found[fields["name"]] = fields | {"dropped": str(sum(dropped))}
        return found


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)


def publish(nginx: Nginx, stream: str, *, other: bool = False) -> list[str]:
    return [need("ffmpeg"), *PICTURE, *ENCODE, nginx.address(stream, other=other)]


def play(nginx: Nginx, stream: str) -> list[str]:
    return [need("ffmpeg"), "-i", nginx.address(stream), "-c", "copy", "-f", "null", "-"]


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    server = Nginx(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def watching(url: str, port: int, tmp_path: Path) -> Iterator[str]:
    """Run an agent that watches this stat page; give the address of its own page."""
    (tmp_path / "agent.toml").write_text(f'[collectors.nginx_rtmp]\nurl = "{url}"\ninterval = "1s"\n')
    with agent(port, "--config", f"{tmp_path}/agent.toml", "--only", "nginx_rtmp,host"):
        yield f"http://127.0.0.1:{port}/metrics"


def label(stream: str) -> str:
    return f'{{application="live",stream="{stream}"}}'


def up(page: str, name: str = "nginx_rtmp") -> float | None:
    return series(page, UP).get(f'{{collector="{name}"}}')


def reason(address: str) -> str:
    """Return why the collector is down; "" while it is up."""
    health = json.loads(get(address.replace("/metrics", "/health")))
    return str(health["collectors"]["nginx_rtmp"].get("reason", ""))


def fresh(address: str) -> str:
    """Return a page whose reading began after this moment: of the second beat from now."""
    for _ in range(2):
        now = time.time()
        wait_for(lambda since=now: _read_at(get(address)) > since, "another reading")  # type: ignore[misc]
    return get(address)


def _read_at(page: str) -> float:
    return series(page, SUCCESS)['{collector="nginx_rtmp"}']


def test_the_page_is_the_stat_pages(nginx: Nginx, port: int, tmp_path: Path) -> None:
    """Each figure of three clients lies between the stat page's before and after; promtool agrees."""
    promtool = need("promtool")
    with ExitStack() as stack:
        for stream in ("cam1", "cam2"):
            stack.enter_context(running(*publish(nginx, stream)))
        wait_for(lambda: "video_codec" in nginx.page().get("cam1", {}), "cam1 is published")
        stack.enter_context(running(*play(nginx, "cam1")))
        address = stack.enter_context(watching(nginx.url, port, tmp_path))
        wait_for(
            lambda: series(get(address), "nginx_rtmp_stream_bytes_out_total").get(label("cam1"), 0) > 0,
            "cam1 is played",
        )
        wait_for(lambda: "audio_codec" in nginx.page().get("cam2", {}), "cam2 is published")
        before = nginx.page()
        page = fresh(address)
        after = nginx.page()

    for stream in ("cam1", "cam2"):
        for tag, metric in COUNTERS.items():
            scale = 1000 if tag == "time" else 1
            said = series(page, metric)[label(stream)] * scale
            assert int(before[stream][tag]) <= said <= int(after[stream][tag]), (stream, tag)
        assert series(page, "nginx_rtmp_stream_publishers")[label(stream)] == 1
        assert series(page, "nginx_rtmp_stream_publishing")[label(stream)] == 1
        assert series(page, "nginx_rtmp_stream_active")[label(stream)] == 1
        assert series(page, "nginx_rtmp_stream_messages_dropped_total")[label(stream)] == 0
    assert series(page, "nginx_rtmp_stream_players") == {label("cam1"): 1, label("cam2"): 0}
    assert series(page, "nginx_rtmp_streams") == {'{application="live"}': 2}
    for tag, metric in (
        ("bytes_in", "nginx_rtmp_bytes_in_total"),
        ("bytes_out", "nginx_rtmp_bytes_out_total"),
        ("naccepted", "nginx_rtmp_connections_accepted_total"),
        ("uptime", "nginx_rtmp_uptime_seconds"),
    ):
        assert int(before[""][tag]) <= series(page, metric)[""] <= int(after[""][tag]), tag
    (info,) = (text for text in series(page, "nginx_rtmp_stream_info") if 'stream="cam1"' in text)
    for tag, name in {
        "video_codec": "video_codec",
        "video_profile": "video_profile",
        "video_level": "video_level",
        "video_frame_rate": "fps",
        "audio_codec": "audio_codec",
        "audio_profile": "audio_profile",
        "audio_channels": "audio_channels",
        "audio_sample_rate": "audio_sample_rate",
    }.items():
        assert f'{name}="{after["cam1"][tag]}"' in info
    assert 'resolution="320x180"' in info
    linted = subprocess.run(
        [promtool, "check", "metrics"], input=page.encode(), capture_output=True, check=False
    )
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, b"", b"")


def test_one_name_in_two_server_blocks(nginx: Nginx, port: int, tmp_path: Path) -> None:
    """A name in two server blocks is one series of two publishers; one that nginx refuses is not counted."""
    with (
        running(*publish(nginx, "cam1")),
        running(*publish(nginx, "cam1", other=True)),
        watching(nginx.url, port, tmp_path) as address,
    ):
        wait_for(
            lambda: series(get(address), "nginx_rtmp_stream_publishers") == {label("cam1"): 2},
            "two publishers of cam1",
        )
        third = subprocess.run(
            publish(nginx, "cam1"), stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
        )
        assert b"Already publishing" in third.stderr
        page = fresh(address)
    assert series(page, "nginx_rtmp_stream_publishers") == {label("cam1"): 2}
    assert series(page, "nginx_rtmp_stream_clients") == {label("cam1"): 2}
    assert series(page, "nginx_rtmp_streams") == {'{application="live"}': 2}
    assert series(page, "powerbench_series_dropped_total")[""] == 0


def test_what_a_slow_player_drops_stays_counted(nginx: Nginx, port: int, tmp_path: Path) -> None:
    """A player that stops reading drops messages; when it has gone the counter stands where it was."""
    metric = "nginx_rtmp_stream_messages_dropped_total"
    ffmpeg = need("ffmpeg")
    with (
        running(ffmpeg, *NOISE, *HEAVY, nginx.address("heavy")),
        watching(nginx.url, port, tmp_path) as address,
    ):
        wait_for(lambda: "video_codec" in nginx.page().get("heavy", {}), "heavy is published")
        with running(*play(nginx, "heavy")) as player:
            wait_for(
                lambda: series(get(address), "nginx_rtmp_stream_bytes_out_total").get(label("heavy"), 0) > 0,
                "heavy is played",
            )
            player.send_signal(signal.SIGSTOP)
            wait_for(lambda: series(get(address), metric)[label("heavy")] > 0, "drops")
            seen = series(fresh(address), metric)[label("heavy")]
            assert seen <= int(nginx.page()["heavy"]["dropped"])
        wait_for(
            lambda: series(get(address), "nginx_rtmp_stream_players")[label("heavy")] == 0, "it has gone"
        )
        assert nginx.page()["heavy"]["dropped"] == "0"
        assert series(get(address), metric)[label("heavy")] >= seen


def test_clients_left_out_of_the_page(nginx: Nginx, port: int, tmp_path: Path) -> None:
    """Under `rtmp_stat global live` all is shown but the drops, of which nothing is known."""
    url = nginx.url.replace("/stat", "/brief")
    with running(*publish(nginx, "cam1")), watching(url, port, tmp_path) as address:
        wait_for(lambda: bool(series(get(address), "nginx_rtmp_stream_clients")), "cam1 is published")
        page = get(address)
    assert series(page, "nginx_rtmp_stream_publishers") == {label("cam1"): 1}
    assert series(page, "nginx_rtmp_stream_players") == {label("cam1"): 0}
    assert series(page, "nginx_rtmp_stream_messages_dropped_total") == {}


def test_nginx_may_go_and_come_back(nginx: Nginx, port: int, tmp_path: Path) -> None:
    """While nginx is stopped the collector is down, without a sample, and no other is; then it is up."""
    with watching(nginx.url, port, tmp_path) as address:
        wait_for(lambda: up(get(address)) == 1, "up")
        nginx.stop()
        wait_for(lambda: up(get(address)) == 0, "down")
        page = get(address)
        assert not [
            line for line in page.splitlines() if line.startswith(("nginx_rtmp", "# TYPE nginx_rtmp"))
        ]
        assert up(page, "host") == 1
        assert series(page, "host_load1")
        assert series(page, "powerbench_collector_failures_total")['{collector="host"}'] == 0
        wait_for(lambda: "start nginx" in reason(address), "the remedy")
        nginx.start()
        wait_for(lambda: up(get(address)) == 1, "up again")
        assert series(get(address), "nginx_rtmp_connections_accepted_total") == {"": 0}


def test_several_workers_are_refused(port: int, tmp_path: Path) -> None:
    """Where two workers answer in turn, each with its own streams, the collector says what to write."""
    nginx = Nginx(tmp_path, workers=2)
    try:
        nginx.start()
        with watching(nginx.url, port, tmp_path) as address:
            wait_for(lambda: "worker_processes 1" in reason(address), "both workers have been seen in turn")
            assert up(get(address)) == 0
    finally:
        nginx.stop()


def test_the_page_of_another_server(nginx: Nginx, port: int, tmp_path: Path) -> None:
    """The error page of nginx, and its RTMP port, are told from the stat page, with the remedy."""
    with watching(nginx.url.replace("/stat", "/nothing"), port, tmp_path) as address:
        wait_for(
            lambda: "answers 404; set [collectors.nginx_rtmp] url" in reason(address),
            "the error page is told as one",
        )
    rtmp = nginx.address("x").replace("rtmp://", "http://")
    with watching(rtmp, free_port(), tmp_path) as address:
        wait_for(lambda: "no stat page from 127.0.0.1" in reason(address), "the port is told to be no page")
