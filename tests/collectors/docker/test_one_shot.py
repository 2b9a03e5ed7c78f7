"""The engine's own figures: both shapes, and answers that say nothing or cannot be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import CAPTURES

from powerbench_agent.collectors.docker.cgroup import Figures, Memory
from powerbench_agent.collectors.docker.one_shot import cpu_seconds, parse_one_shot

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING = Figures(None, None, None, None)


def test_one_shot_of_version_1() -> None:
    """What Docker 20.10 really answered: memory without its page cache, processes, bytes of the network."""
    shot = json.loads((CAPTURES / "docker_stats_v1.json").read_text())
    figures, network = parse_one_shot(shot)
    assert figures == Figures(Memory(335872, 25276510208), 1, None, None)
    assert network == (1252, 0)


def test_one_shot_of_version_2() -> None:
    """The other shape: inactive_file, words in small letters, several devices and networks."""
    shot = {
        "memory_stats": {"usage": 5000, "stats": {"inactive_file": 1000}, "limit": 9000},
        "pids_stats": {"current": 3, "limit": 100},
        "blkio_stats": {
            "io_service_bytes_recursive": [
                {"major": 8, "minor": 0, "op": "read", "value": 10},
                {"major": 8, "minor": 0, "op": "write", "value": 20},
                {"major": 8, "minor": 16, "op": "read", "value": 1},
            ]
        },
        "networks": {"eth0": {"rx_bytes": 5, "tx_bytes": 6}, "eth1": {"rx_bytes": 50}},
    }
    assert parse_one_shot(shot) == (Figures(Memory(4000, 9000), 3, 11, 20), (55, 6))


@pytest.mark.parametrize(
    "shot",
    [
        {},
        {"memory_stats": {}, "pids_stats": {}, "networks": {}},
        dict.fromkeys(("memory_stats", "blkio_stats")),
    ],
)
def test_one_shot_of_nothing(shot: dict[str, Any]) -> None:
    """For a container that has ended the engine answers empty tables: everything is unknown, nothing is 0."""
    assert parse_one_shot(shot) == (Figures(None, None, None, None), None)


# What engines answer for a container whose cgroup they cannot see.
BLIND = {
    "docker": {
        "cpu_stats": {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0}, "online_cpus": 4},
        "memory_stats": {},
        "blkio_stats": {"io_service_bytes_recursive": None},
        "pids_stats": {},
    },
    "podman": {
        "cpu_stats": {"cpu_usage": {"total_usage": 0, "percpu_usage": []}, "system_cpu_usage": 0},
        "memory_stats": {"usage": 0, "limit": 0},
        "blkio_stats": {
            "io_service_bytes_recursive": [{"op": "Read", "value": 0}, {"op": "Write", "value": 0}]
        },
        "pids_stats": {"current": 0},
        "networks": {"eth0": {"rx_bytes": 0, "tx_bytes": 0}},
    },
}


@pytest.mark.parametrize("shot", BLIND.values(), ids=BLIND)
def test_zeros_of_what_runs_are_unknown(shot: dict[str, Any]) -> None:
    """Whatever runs has used CPU time: an engine that answers 0 does not know, nor the other figures."""
    assert cpu_seconds(shot) is None
    assert parse_one_shot(shot) == (NOTHING, None)


def test_an_engine_without_cgroups_still_sees_the_network() -> None:
    """Traffic does not come from the cgroup: figures above 0 are shown."""
    shot = {**BLIND["docker"], "networks": {"eth0": {"rx_bytes": 5, "tx_bytes": 0}}}
    assert parse_one_shot(shot) == (NOTHING, (5, 0))


def test_an_engine_that_sees_a_part_of_a_cgroup_shows_it() -> None:
    """A user may have been given some controllers: what is not 0 is known, what is 0 is a gap."""
    written = [{"op": "Read", "value": 0}, {"op": "Write", "value": 9}]
    shot = {
        **BLIND["podman"],
        "memory_stats": {"usage": 10, "limit": 50},
        "blkio_stats": {"io_service_bytes_recursive": written},
    }
    assert cpu_seconds(shot) is None
    assert parse_one_shot(shot) == (Figures(Memory(10, 50), None, None, 9), None)


@pytest.mark.parametrize("limit", [2**63 - 4096, 2**63 - 1, 2**63 - 65536, 2**64 - 1])
def test_no_limit_in_the_kernels_words_is_none(limit: int) -> None:
    """What the kernel writes for no limit is not a number of bytes."""
    figures, _ = parse_one_shot({"memory_stats": {"usage": 10, "limit": limit}})
    assert figures.memory == Memory(10, None)


def test_a_container_that_has_moved_nothing_shows_zeros() -> None:
    """Where the engine sees the cgroup, bytes that are 0 are 0."""
    entries = [{"op": "Read", "value": 0}, {"op": "Write", "value": 0}]
    shot = {
        "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}},
        "memory_stats": {"usage": 10, "limit": 50},
        "pids_stats": {"current": 1},
        "blkio_stats": {"io_service_bytes_recursive": entries},
        "networks": {"eth0": {"rx_bytes": 0, "tx_bytes": 0}},
    }
    assert cpu_seconds(shot) == 1.5
    assert parse_one_shot(shot) == (Figures(Memory(10, 50), 1, 0, 0), (0, 0))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["cpu_usage", "total_usage", "usage", "stats", "current", "eth0", "rx_bytes", "value"]
            ),
            inner,
            max_size=3,
        )
    ),
)
keys = st.sampled_from(["cpu_stats", "memory_stats", "pids_stats", "networks", "blkio_stats"])


@given(st.dictionaries(keys, anything))
def test_answers_of_any_shape(shot: Mapping[str, Any]) -> None:
    """Whatever an engine answers, nothing is raised, and no figure is negative."""
    figures, traffic = parse_one_shot(shot)
    assert (cpu_seconds(shot) or 0) >= 0
    assert all(number >= 0 for number in (figures.pids or 0, *(traffic or ())))
