"""Use of GPU engines by process: the content of fdinfo, and how clients are found and followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from gpu_trees import DGPU, SECOND, DrmClients, Recorder, cycles_fdinfo, engines_fdinfo
from hypothesis import example, given
from hypothesis import strategies as st

from powerbench_agent.collectors.drm.fdinfo import (
    MAX_AGE_SECONDS,
    MAX_CLIENTS,
    Clients,
    Engines,
    parse_fdinfo,
)
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Use

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

DRI = "/dev/dri/renderD128"


# -- what drivers write ------------------------------------------------------------------------------


def test_amdgpu() -> None:
    """Amdgpu gives engine time in nanoseconds; memory and pasid are not engines."""
    found = parse_fdinfo(engines_fdinfo(DGPU, 35, gfx=1.5, enc=0.25))
    assert found == Engines(DGPU, "35", {"gfx": 1_500_000_000, "enc": 250_000_000}, {}, {})


def test_i915_capacity_is_no_engine() -> None:
    """The capacity of an engine class is not an engine."""
    found = parse_fdinfo(engines_fdinfo(DGPU, 4, "i915", render=2.0, video=9.0))
    used = {"render": 2_000_000_000, "video": 9_000_000_000}
    assert found == Engines(DGPU, "4", used, {}, {"render": 2, "video": 2})


def test_xe_cycles() -> None:
    """Xe gives pairs per engine: the client's cycles and the engine's total cycles."""
    found = parse_fdinfo(cycles_fdinfo(DGPU, 4, rcs=(28257900, 7655183225), vcs=(0, 7655183225)))
    cycles = {"rcs": (28257900, 7655183225), "vcs": (0, 7655183225)}
    assert found == Engines(DGPU, "4", {}, cycles, {"rcs": 1, "vcs": 1})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pos:\t0\nflags:\t02\n",
        "drm-driver:\tpanfrost\ndrm-client-id:\t3\ndrm-engine-fragment:\t1 ns\n",  # no PCI device
        f"drm-pdev:\t{DGPU}\ndrm-engine-gfx:\t1 ns\n",  # before drivers gave clients numbers
        "drm-pdev:\ndrm-client-id:\n",
        "drm-pdev drm-client-id",
    ],
)
def test_no_client_of_a_pci_gpu(text: str) -> None:
    """A file without a PCI device or a client is not a GPU's."""
    assert parse_fdinfo(text) is None


@pytest.mark.parametrize(
    "line",
    [
        "drm-engine-gfx:",
        "drm-engine-gfx:\t-5 ns",
        "drm-engine-gfx:\t1.5 ns",
        "drm-engine-gfx:\tbusy",
        "drm-engine-gfx\t5 ns",
        "drm-cycles-rcs:\t5",  # without its total
        "drm-total-cycles-rcs:\t5",
        "amd-engine-gfx:\t5 ns",
        "drm-engine-gfx:\t\u00b2 ns",  # a digit, and no number
        "drm-engine-gfx:\t" + "9" * 5000,  # more digits than Python converts
    ],
)
def test_garbage_is_left_out(line: str) -> None:
    """Lines that cannot be used are left out, and the others count."""
    found = parse_fdinfo(f"{line}\n{engines_fdinfo(DGPU, 1, enc=1.0)}")
    assert found == Engines(DGPU, "1", {"enc": 1_000_000_000}, {}, {})


LINES = st.lists(
    st.tuples(
        st.sampled_from(["drm-pdev", "drm-client-id", "drm-engine-gfx", "drm-cycles-", "drm-total-cycles-"]),
        st.text(max_size=12),
        st.one_of(
            st.integers(-5, 2**70).map(str), st.text(max_size=12), st.characters(categories=["No", "Nd"])
        ),
    )
)


@given(text=st.one_of(st.text(), LINES.map(lambda lines: "\n".join(f"{k}{x}: {v}" for k, x, v in lines))))
@example(text="drm-engine-gfx: \u00b2")
def test_any_text(text: str) -> None:
    """Any text is parsed to a client or to None, without an exception."""
    found = parse_fdinfo(text)
    if found is not None:
        assert found.bus_id
        assert found.client
        assert all(used >= 0 for used in found.nanoseconds.values())


# -- clients -----------------------------------------------------------------------------------------


class Watched(NamedTuple):
    """Processes and the collector's clients, at times that the test gives."""

    processes: DrmClients
    clients: Clients
    reader: Recorder

    def read(self, now: float, bus_ids: Collection[str] = (DGPU,)) -> dict[tuple[int, str], float]:
        """Return seconds by process and engine."""
        found: dict[tuple[int, str], float] = {}
        for use in self.clients.read("drm", bus_ids, now):
            assert use[:3] == ("gpu", "drm", DGPU)
            assert (use.pid, use.engine) not in found
            found[use.pid, use.engine] = use.seconds
        return found


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    processes, reader = DrmClients(tmp_path / "proc"), Recorder()
    return Watched(processes, Clients(Host(procfs=tmp_path / "proc", read=reader)), reader)


def test_seconds_since_first_sight(watched: Watched) -> None:
    """Engine time counts from when a client is first seen; earlier use is not included."""
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, gfx=100.0, enc=50.0))
    assert watched.read(0.0) == {(42, "gfx"): 0, (42, "enc"): 0}
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, gfx=100.25, enc=51.0))
    assert watched.read(1.0) == {(42, "gfx"): 0.25, (42, "enc"): 1.0}
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, gfx=100.5, enc=51.0))
    assert watched.read(2.0) == {(42, "gfx"): 0.5, (42, "enc"): 1.0}
    assert list(watched.clients.uses("drm")) == [
        Use("gpu", "drm", DGPU, "gfx", 42, 0.5),
        Use("gpu", "drm", DGPU, "enc", 42, 1.0),
    ]


def test_cycles_are_a_share_of_the_time(watched: Watched) -> None:
    """On xe the client's share of the engine's cycles is its share of the time that passed."""
    watched.processes.open(42, 7, cycles_fdinfo(DGPU, 1, vcs=(500, 10_000)))
    assert watched.read(0.0) == {}
    watched.processes.open(42, 7, cycles_fdinfo(DGPU, 1, vcs=(1000, 12_000)))
    assert watched.read(2.0) == {(42, "vcs"): 0.5}
    assert watched.read(3.0) == {(42, "vcs"): 0.5}  # the engine's clock has stood still
    watched.processes.open(42, 7, cycles_fdinfo(DGPU, 1, vcs=(2100, 13_000)))
    assert watched.read(4.0) == {(42, "vcs"): 1.5}  # read at two instants: not more than all of the time
    assert not watched.clients.garbled


def leaping(watched: Watched, texts: list[str]) -> tuple[list[float], list[bool]]:
    """Return the seconds of one engine and whether the reading was garbled, a second after the other."""
    seconds, garbled = [], []
    for now, text in enumerate(texts):
        watched.processes.open(42, 7, text)
        found = watched.read(float(now))
        seconds.append(found.get((42, "vcs"), 0.0))
        garbled.append(watched.clients.garbled)
    return seconds, garbled


@pytest.mark.parametrize("driver", ["amdgpu", "i915"])
def test_engine_time_that_leaps_and_comes_back(watched: Watched, driver: str) -> None:
    """More than the engines can have run is left out, and so is the way back; then it counts again."""
    figures = (1.0, 1.5, 50_583.0, 2.5, 3.0, 4.0)
    texts = [engines_fdinfo(DGPU, 1, driver, vcs=used) for used in figures]
    assert leaping(watched, texts) == (
        [0.0, 0.5, 0.5, 0.5, 1.0, 2.0],
        [False, False, True, True, False, False],
    )


def test_the_number_of_engines_bounds_their_time(watched: Watched) -> None:
    """Two engines run at most two seconds in a second; a driver that does not say may have many."""
    texts = [engines_fdinfo(DGPU, 1, "i915", vcs=used) for used in (0.0, 2.0, 7.0)]
    assert leaping(watched, texts) == ([0.0, 2.0, 2.0], [False, False, True])
    watched.processes.open(43, 7, engines_fdinfo(DGPU, 2, vcs=0.0))
    watched.read(9.0)
    watched.processes.open(43, 7, engines_fdinfo(DGPU, 2, vcs=8.0))
    assert watched.read(10.0)[43, "vcs"] == 8.0


def test_cycles_that_leap_and_come_back(watched: Watched) -> None:
    """More cycles than the engine had are left out, and nothing else is."""
    cycles = ((0, 0), (500, 1000), (9_000_500, 2000), (1500, 3000), (2000, 4000), (2000, 4000))
    texts = [cycles_fdinfo(DGPU, 1, vcs=pair) for pair in cycles]
    assert leaping(watched, texts) == (
        [0.0, 0.5, 0.5, 0.5, 1.0, 1.0],
        [False, False, True, True, False, False],
    )


def test_an_engine_used_for_the_first_time(watched: Watched) -> None:
    """An engine that a known client uses for the first time counts from 0, since amdgpu hides zeros."""
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, gfx=100.0))
    watched.read(0.0)
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, gfx=100.0, enc=0.5))
    assert watched.read(1.0) == {(42, "gfx"): 0, (42, "enc"): 0.5}


def test_a_driver_that_steps_back(watched: Watched) -> None:
    """After a value steps back, nothing is added until it exceeds its maximum, as the kernel asks."""
    for now, used in enumerate((10.0, 11.0, 10.5, 12.0)):
        watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, "i915", video=used))
        found = watched.read(float(now))
    assert found == {(42, "video"): 2.0}


def test_two_files_of_one_client_count_once(watched: Watched) -> None:
    """A file opened once and duplicated is one client; one opened twice is two, of one process."""
    for fd in (7, 8):
        watched.processes.open(42, fd, engines_fdinfo(DGPU, 1, gfx=1.0))
    watched.processes.open(43, 7, engines_fdinfo(DGPU, 2, gfx=1.0))
    watched.read(0.0)
    for fd in (7, 8):
        watched.processes.open(42, fd, engines_fdinfo(DGPU, 1, gfx=2.0))
    assert watched.read(1.0) == {(42, "gfx"): 1.0, (43, "gfx"): 0.0}


@pytest.mark.parametrize("closed", [7, 8])
def test_one_of_two_files_is_closed(watched: Watched, closed: int) -> None:
    """A client lasts as long as one of its files."""
    for fd in (7, 8):
        watched.processes.open(42, fd, engines_fdinfo(DGPU, 1, gfx=1.0))
    watched.read(0.0)
    watched.processes.close(42, closed)
    watched.processes.open(42, 15 - closed, engines_fdinfo(DGPU, 1, gfx=2.0))
    assert watched.read(1.0) == {(42, "gfx"): 1.0}


def test_a_client_that_is_handed_on(watched: Watched) -> None:
    """When a client's first process has ended, its use belongs to the other process that shares it."""
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, gfx=1.0))
    watched.processes.open(43, 7, engines_fdinfo(DGPU, 1, gfx=1.0))
    (gone, _), *_ = watched.read(0.0)
    watched.processes.end(gone)
    assert {pid for pid, _ in watched.read(1.0)} == {85 - gone}


def test_other_gpus_clients_are_left_out(watched: Watched) -> None:
    """Clients of other GPUs are left out, even under the same client number."""
    watched.processes.open(42, 7, engines_fdinfo(SECOND, 1, gfx=1.0))
    watched.processes.open(43, 7, engines_fdinfo(DGPU, 1, gfx=1.0))
    assert watched.read(0.0) == {(43, "gfx"): 0}


@pytest.mark.parametrize("how", ["ended", "closed", "another file"])
def test_a_client_that_is_no_more(watched: Watched, how: str) -> None:
    """When a process ends, closes its file or reuses the descriptor, its use disappears at once."""
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, gfx=1.0))
    watched.processes.open(43, 7, engines_fdinfo(DGPU, 2, gfx=1.0))
    assert len(watched.read(0.0)) == 2
    if how == "ended":
        watched.processes.end(42)
    elif how == "closed":
        watched.processes.close(42, 7)
    else:
        watched.processes.open(42, 7, "pos:\t0\nflags:\t0100000\n", "/tmp/video.mp4")  # noqa: S108 - a name
    assert watched.read(1.0) == {(43, "gfx"): 0}
    watched.reader.asked.clear()
    assert watched.read(2.0) == {(43, "gfx"): 0}
    assert [path.parts[-3] for path in watched.reader.asked] == ["43"]


def test_a_process_that_starts_again_starts_at_zero(watched: Watched) -> None:
    """A new process with an old process's pid is counted separately."""
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, gfx=1.0))
    watched.read(0.0)
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, gfx=5.0))
    assert watched.read(1.0) == {(42, "gfx"): 4.0}
    watched.processes.end(42)
    assert watched.read(6.0) == {}
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 9, gfx=3.0))
    assert watched.read(11.0) == {(42, "gfx"): 0}


def test_a_new_process_is_found_within_5_s(watched: Watched) -> None:
    """A new process is searched within 5 s."""
    watched.read(0.0)
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, gfx=1.0))
    assert [bool(watched.read(float(now))) for now in range(1, 6)] == [False] * 4 + [True]


@pytest.mark.parametrize("age", [1, 5, 6, 40, 156, 1000])
def test_an_old_process_is_found_within_160_s(watched: Watched, age: int) -> None:
    """A GPU that a process opens late in its life is found within 160 s."""
    watched.processes.start(42)
    for now in range(age):
        assert watched.read(float(now)) == {}
    watched.processes.open(42, 7, engines_fdinfo(DGPU, 1, gfx=1.0))
    found = [bool(watched.read(age + later)) for later in range(int(MAX_AGE_SECONDS) + 1)]
    assert found[-1]


def test_searches_become_rarer(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a GPU is searched when it is new, and less and less often after that."""
    looks: list[float] = []
    now = 0.0
    monkeypatch.setattr(Clients, "_search_process", lambda _self, _process: looks.append(now))
    watched.processes.start(42)
    for second in range(800):
        now = float(second)
        watched.read(now)
    assert looks == [0, 5, 15, 35, 75, 155, 315, 475, 635, 795]


def test_foreign_and_vanishing_processes(watched: Watched) -> None:
    """A process whose files cannot be listed, or that ends meanwhile, does not affect the others."""
    watched.processes.open(41, 7, engines_fdinfo(DGPU, 1, gfx=1.0))
    (watched.processes.procfs / "40").mkdir()  # no fd directory: as it is to another user
    (watched.processes.procfs / "41/fd/9").write_text("no link")
    (watched.processes.procfs / "41/fd/10").symlink_to(DRI)  # closed before its fdinfo is read
    assert watched.read(0.0) == {(41, "gfx"): 0}


def test_no_procfs(tmp_path: Path) -> None:
    """Without a procfs there are no uses."""
    assert not list(Clients(Host(procfs=tmp_path / "proc")).read("drm", [DGPU], 0.0))


def test_the_number_of_files_is_bounded(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of files is limited, so that beats do not become slower and slower."""
    assert MAX_CLIENTS <= 10_000
    monkeypatch.setattr("powerbench_agent.collectors.drm.fdinfo.MAX_CLIENTS", 3)
    for fd in range(5, 15):
        watched.processes.open(fd, 3, engines_fdinfo(DGPU, fd, gfx=1.0))
    assert sum(1 for _ in watched.clients.read("drm", [DGPU], 0.0)) == 3


def test_a_client_that_closes_takes_nothing_back(watched: Watched) -> None:
    """A process keeps the use of its clients that have closed."""
    for fd in (5, 6):
        watched.processes.open(42, fd, engines_fdinfo(DGPU, fd, gfx=1.0))
    list(watched.clients.read("drm", [DGPU], 0.0))
    for fd in (5, 6):
        watched.processes.open(42, fd, engines_fdinfo(DGPU, fd, gfx=2.0))
    (both,) = watched.clients.read("drm", [DGPU], 1.0)
    watched.processes.close(42, 5)
    (left,) = watched.clients.read("drm", [DGPU], 2.0)
    assert both.seconds == left.seconds == 2.0
