"""A real engine, real containers and a real agent."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from statistics import mean
from typing import TYPE_CHECKING

import pytest
from real.conftest import series, wait_for
from real.dockerd import BURN, Agent, Dockerd, agent_of, assert_adds_up, joules, labelled

from powerbench_agent.agent.attribution import MAX_HELD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SOON = 2.0  # seconds in which a change of the engine's shows
CHURN_SECONDS = 60.0
CHURN_RATE = 20.0  # containers a second that are asked for
CPU = "docker_container_cpu_percent"
SECONDS = "docker_container_cpu_seconds_total"
ENERGY = "docker_container_energy_joules_total"
MEBIBYTE = 2**20
# An encoder and its forwarder: progress out of a busy shell, posted over a connection that stays open.
ENCODER = r"""(
printf 'POST /ingest?QUERY HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\n\r\n'
n=0
while :; do
    n=$((n+1)); i=0
    while [ $i -lt 20000 ]; do i=$((i+1)); done
    printf "frame=$n\nfps=25.00\nout_time_us=${n}0000\nprogress=continue\n"
done
) | nc 127.0.0.1 PORT"""


def cores(number: float) -> int:
    """Return the API's word for so many cores."""
    return round(number * 1e9)


@pytest.fixture(scope="module")
def dockerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    daemon = Dockerd(tmp_path_factory.mktemp("d"))
    try:
        daemon.start()
        daemon.import_image()
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def agent(dockerd: Dockerd, port: int, tmp_path: Path) -> Iterator[Agent]:
    """Yield an agent; whatever a test does, it ends with a sound log, and its containers go."""
    with agent_of(dockerd, port, tmp_path) as running:
        yield running
        assert running.process.poll() is None
    running.assert_sound()
    for container in dockerd.call("GET", "/containers/json?all=1"):
        dockerd.remove(container["Id"])


def within(seconds: float, what: Callable[[], bool], why: str) -> float:
    """Wait until it is so, no longer than promised; return how long it took."""
    begun = time.monotonic()
    while not what():
        if time.monotonic() - begun > seconds:
            pytest.fail(f"not within {seconds:g} s: {why}")
        time.sleep(0.05)
    return time.monotonic() - begun


@pytest.mark.alone
def test_a_containers_life_and_figures(dockerd: Dockerd, agent: Agent) -> None:
    """It shows within 2 s, with the figures of `docker stats`; is paused, renamed and removed in view."""
    labels = {"com.docker.compose.project": "x", "com.docker.compose.service": "web"}
    script = "exec dd if=/dev/zero of=/dev/null bs=32M count=100000000"
    busy = dockerd.run("busy", script, labels, NanoCpus=cores(0.3), Memory=64 * MEBIBYTE)
    within(SOON, lambda: "busy" in agent.series(SECONDS), "the container shows")
    (info,) = series(agent.page(), "docker_container_info")
    for label in ('container="busy"', f'id="{busy}"', 'compose_project="x"', 'compose_service="web"'):
        assert label in info

    theirs, ours = [], []
    for _ in range(4):
        theirs.append(dockerd.cpu_percent(busy))
        ours.append(agent.series(CPU)["busy"])
    print(f"CPU {mean(ours):.2f} %, of docker stats {mean(theirs):.2f} %")  # noqa: T201 - the figure
    assert mean(ours) == pytest.approx(mean(theirs), abs=2)
    assert agent.series("docker_containers_total_cpu_percent")[""] == pytest.approx(30, abs=6)
    memory = dockerd.stats(busy)["memory_stats"]
    used = memory["usage"] - memory["stats"].get(
        "total_inactive_file", memory["stats"].get("inactive_file", 0)
    )
    assert used > 32 * MEBIBYTE
    assert agent.series("docker_container_memory_bytes")["busy"] == pytest.approx(used, rel=0.1)
    assert agent.series("docker_container_memory_limit_bytes")["busy"] == 64 * MEBIBYTE
    assert agent.series("docker_container_memory_percent")["busy"] == pytest.approx(
        used / (64 * MEBIBYTE) * 100, rel=0.1
    )
    assert agent.series("docker_container_pids")["busy"] == 1
    assert not agent.series("docker_container_network_receive_bytes_total").get("busy")

    dockerd.call("POST", f"/containers/{busy}/pause")
    within(SOON, lambda: agent.series("docker_containers")["paused"] == 1, "the pause shows")
    within(SOON + 1, lambda: agent.series(CPU).get("busy") == 0, "a whole beat without CPU")
    dockerd.call("POST", f"/containers/{busy}/unpause")
    within(SOON + 1, lambda: agent.series(CPU)["busy"] > 20, "it runs again")
    dockerd.call("POST", f"/containers/{busy}/rename?name=lively")
    within(SOON, lambda: list(agent.series(SECONDS)) == ["lively"], "the new name shows, the old one leaves")
    assert_adds_up(agent.page())
    dockerd.remove(busy)
    within(SOON, lambda: not agent.series(SECONDS), "the container leaves")
    page = agent.page()
    assert all(line.startswith(ENERGY) for line in page.splitlines() if "lively" in line)
    assert min(joules(page, ENERGY, name) for name in ("busy", "lively")) > 0  # names keep their joules
    assert agent.series("docker_engine_memory_bytes")[""] > 10 * MEBIBYTE
    assert agent.series("docker_engine_cpu_percent")[""] >= 0
    assert 0 < agent.series("docker_engine_memory_percent")[""] < 100


def test_the_network_of_a_container(dockerd: Dockerd, agent: Agent) -> None:
    """Bytes are those of its own interfaces; a container on the host's network has none."""
    network = dockerd.call("POST", "/networks/create", {"Name": "ours", "Internal": True})["Id"]
    try:
        dockerd.run("onhost", BURN, NanoCpus=cores(0.05), NetworkMode="host")
        peer = dockerd.run("peer", "sleep 1000", NetworkMode="ours")
        networks = dockerd.call("GET", f"/containers/{peer}/json")["NetworkSettings"]["Networks"]
        address = networks["ours"]["IPAddress"]
        dockerd.run("caller", f"ping -c 3 -s 1000 {address} >/dev/null; sleep 1000", NetworkMode="ours")
        sent = "docker_container_network_transmit_bytes_total"
        received = "docker_container_network_receive_bytes_total"
        within(12, lambda: agent.series(sent).get("caller", 0) >= 3000, "the caller's bytes show")
        within(6, lambda: agent.series(received).get("peer", 0) >= 3000, "the peer's bytes show")
        within(
            6, lambda: "onhost" in agent.series("docker_container_memory_bytes"), "the one on the host shows"
        )
        assert set(agent.series(sent)) == set(agent.series(received)) == {"caller", "peer"}
        counted = dockerd.stats(peer)["networks"]["eth0"]["rx_bytes"]
        within(6, lambda: agent.series(received)["peer"] >= counted, "what the engine counts")
    finally:
        for container in dockerd.call("GET", "/containers/json?all=1"):
            dockerd.remove(container["Id"])
        dockerd.call("DELETE", f"/networks/{network}")


@pytest.mark.alone
def test_shares_go_by_cpu_time(
    dockerd: Dockerd, agent: Agent, record_property: Callable[[str, object], None]
) -> None:
    """Joules of busy containers are as their CPU time, to 1 percent; in every snapshot the sum holds."""
    quotas = {"even": 0.1, "other": 0.1, "large": 0.3, "small": 0.1}
    for name, quota in quotas.items():
        # The weight gives the same proportions where the machine has less time to give.
        dockerd.run(name, BURN, NanoCpus=cores(quota), CpuShares=round(quota * 10_000))
    wait_for(lambda: set(agent.series(CPU)) == set(quotas), "all four show")
    pages = [agent.page()]
    ends = time.monotonic() + 13
    while time.monotonic() < ends:
        time.sleep(1)
        pages.append(agent.page())
    for page in pages:
        assert_adds_up(page)

    def gained(name: str) -> tuple[float, float]:
        used = [labelled(page, SECONDS)[name] for page in (pages[0], pages[-1])]
        energy = [joules(page, ENERGY, name) for page in (pages[0], pages[-1])]
        return used[1] - used[0], energy[1] - energy[0]

    for one, other, expected in (("even", "other", 1.0), ("large", "small", 3.0)):
        seconds, energy = zip(gained(one), gained(other), strict=True)
        by_time, by_energy = seconds[0] / seconds[1], energy[0] / energy[1]
        record_property(f"{one}:{other}", f"CPU time {by_time:.5f}, joules {by_energy:.5f}")
        print(f"{one}:{other} of CPU time {by_time:.5f}, of joules {by_energy:.5f}")  # noqa: T201 - the figure
        assert by_energy == pytest.approx(by_time, rel=0.01)
        assert by_time == pytest.approx(expected, rel=0.5)


@pytest.mark.alone
def test_a_stream_within_a_container_is_a_view_of_it(dockerd: Dockerd, agent: Agent) -> None:
    """Found by its connection or by the pid it gives, the stream has its container's energy, counted once."""
    pairs = {"inside": "encoder", "given": "namespaced"}
    for query, home in (("stream=inside", "encoder"), ("stream=given&pid=1", "namespaced")):
        script = ENCODER.replace("QUERY", query).replace("PORT", str(agent.port))
        dockerd.run(home, script, NetworkMode="host", NanoCpus=cores(0.3))
    stream = "ffmpeg_stream_energy_joules_total"

    def known() -> bool:
        page = agent.page()
        return all(
            joules(page, stream, name) > joules(page, ENERGY, home) / 2 for name, home in pairs.items()
        )

    wait_for(known, "the streams' processes are known")
    begun = agent.page()
    ends = time.monotonic() + 6
    while time.monotonic() < ends:
        time.sleep(1)
        page = agent.page()
        assert_adds_up(page, viewed=tuple(pairs))
    for name, home in pairs.items():
        ours = joules(page, stream, name) - joules(begun, stream, name)
        whole = joules(page, ENERGY, home) - joules(begun, ENERGY, home)
        assert ours == pytest.approx(whole, rel=0.2)  # a process's CPU time has a grain of 10 ms


@pytest.mark.alone
def test_an_engine_that_crashes_costs_no_container_and_comes_back(dockerd: Dockerd, agent: Agent) -> None:
    """Killed, its containers go on by their cgroups, which is said; started again it is back within 10 s."""
    dockerd.run("before", BURN, NanoCpus=cores(0.1))
    faults = "powerbench_collector_faults_total"
    in_trouble = '{collector="docker",part="engine"}'
    wait_for(lambda: "before" in agent.series(CPU), "the container shows")
    dockerd.kill()
    within(SOON + 1, lambda: in_trouble in agent.series(faults), "the engine is in trouble")
    begun = agent.page()
    ends = time.monotonic() + 3
    while time.monotonic() < ends:
        page = agent.page()
        assert labelled(page, "powerbench_collector_up")["docker"] == 1
        assert "docker_containers{" not in page  # what only the engine can tell
        assert_adds_up(page)
        time.sleep(0.5)
    assert labelled(page, SECONDS)["before"] > labelled(begun, SECONDS)["before"]
    assert joules(page, ENERGY, "before") > joules(begun, ENERGY, "before")
    dockerd.start()  # it ends what its predecessor had started, so there may be nothing to show for a moment
    dockerd.run("after", BURN, NanoCpus=cores(0.1))
    within(10, lambda: "docker_containers{" in agent.page(), "the engine is asked again")
    within(SOON, lambda: "after" in agent.series(SECONDS), "what was started meanwhile shows")
    assert_adds_up(agent.page())
    troubled = [entry for entry in agent.log() if entry.get("part") == "engine"]
    assert len(troubled) == 1
    assert dockerd.url in troubled[0]["error"]


def brief_figures(page: str) -> list[str]:
    """Return what a page says of brief containers beside the joules that their names keep."""
    return [line for line in page.splitlines() if '"brief' in line and not line.startswith(ENERGY)]


@pytest.mark.alone
def test_a_crowd_that_comes_and_goes(
    dockerd: Dockerd, agent: Agent, record_property: Callable[[str, object], None]
) -> None:
    """Containers by the hundred leave no memory, no word in the log, and no more than joules for a while.

    The sum holds throughout.
    """
    dockerd.run("steady", BURN, NanoCpus=cores(0.1))
    wait_for(lambda: "steady" in agent.series(CPU), "the steady one shows")
    numbers = count()
    begun = time.monotonic()
    resident = agent.resident()

    def churn() -> int:
        made = 0
        while (now := time.monotonic()) - begun < CHURN_SECONDS:
            number = next(numbers)
            time.sleep(max(0.0, begun + number / CHURN_RATE - now))
            dockerd.run(f"brief{number}", "sleep 0.2", AutoRemove=True)
            made += 1
        return made

    seen = set()
    with ThreadPoolExecutor(6) as pool:
        workers = [pool.submit(churn) for _ in range(6)]
        while not all(worker.done() for worker in workers):
            page = agent.page()
            assert_adds_up(page)
            seen |= labelled(page, SECONDS).keys()
            time.sleep(1)
        made = sum(worker.result() for worker in workers)
    rate = made / (time.monotonic() - begun)
    wait_for(lambda: len(dockerd.call("GET", "/containers/json?all=1")) == 1, "the engine is rid of them")
    within(3, lambda: not brief_figures(agent.page()), "no figures of them are left")
    page = agent.page()
    held = {name for key in series(page, ENERGY) for name in re.findall(r'container="(brief\d+)"', key)}
    assert len(held) <= MAX_HELD
    assert_adds_up(page)
    grown = agent.resident() - resident
    figures = f"{rate:.1f} containers a second, {len(seen) - 1} seen, {grown / 1e6:.2f} MB more"
    record_property("churn", figures)
    print(figures)  # noqa: T201 - what this machine reached
    assert len(seen) > 10
    assert grown < 5e6
