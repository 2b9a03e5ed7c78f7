"""The engine's own figures of a container, from its one-shot statistics. Pure.

ns and bytes in; seconds and bytes out. An engine that cannot see a container's cgroup (a rootless one without
delegation) answers zeros in the same shape: what is 0 and cannot be is unknown.

Source: https://docs.docker.com/reference/api/engine/ (ContainerStats)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from powerbench_agent.collectors.docker.cgroup import UNLIMITED, Figures, Memory
from powerbench_agent.collectors.docker.network import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def cpu_seconds(shot: Mapping[str, Any]) -> float | None:
    """Return the CPU time used since the container started; None if the engine does not know it."""
    used = _number(_table(_table(shot, "cpu_stats"), "cpu_usage"), "total_usage")
    return used / 1e9 if used else None  # whatever runs has used some


def parse_one_shot(shot: Mapping[str, Any]) -> tuple[Figures, Traffic | None]:
    """Return the engine's own figures of a container, and its traffic if it has networks."""
    usage = _table(_table(shot, "cpu_stats"), "cpu_usage")
    is_blind = "total_usage" in usage and cpu_seconds(shot) is None
    traffic = _traffic(shot)
    read, written = _block_bytes(shot)
    if is_blind:  # memory and processes that are 0 are unknown in any case
        read, written = read or None, written or None
        traffic = traffic if traffic and any(traffic) else None
    pids = _number(_table(shot, "pids_stats"), "current") or None
    return Figures(_memory(shot), pids, read, written), traffic


def _memory(shot: Mapping[str, Any]) -> Memory | None:
    memory = _table(shot, "memory_stats")
    usage = _number(memory, "usage")
    if not usage:
        return None
    stats = _table(memory, "stats")  # of cgroup version 1, or 2
    inactive = _number(stats, "total_inactive_file") or _number(stats, "inactive_file") or 0
    limit = _number(memory, "limit")
    if limit is not None and limit >= UNLIMITED:
        limit = None
    return Memory(max(0, usage - inactive), limit)


def _block_bytes(shot: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the bytes (read, written) over all devices."""
    entries = _table(shot, "blkio_stats").get("io_service_bytes_recursive")
    if not isinstance(entries, list) or not entries:
        return None, None
    return _sum_of(entries, "read"), _sum_of(entries, "write")


def _sum_of(entries: Iterable[Any], operation: str) -> int:
    total = 0
    for entry in entries:
        if isinstance(entry, dict) and str(entry.get("op", "")).lower() == operation:
            total += _number(entry, "value") or 0
    return total


def _traffic(shot: Mapping[str, Any]) -> Traffic | None:
    networks = [network for network in _table(shot, "networks").values() if isinstance(network, dict)]
    if not networks:
        return None
    received = sum(_number(network, "rx_bytes") or 0 for network in networks)
    transmitted = sum(_number(network, "tx_bytes") or 0 for network in networks)
    return Traffic(received, transmitted)


def _table(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def _number(content: Mapping[str, Any], key: str) -> int | None:
    """Return a whole number; None if there is none, or it is negative."""
    found = content.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None
