"""Bytes that a container has read from and written to block devices, each byte once.

The kernel counts a byte at each device that it passes: at LVM or LUKS, at the RAID below, at the disks below
that. Reads /sys/dev/block/MAJ:MIN/{slaves,loop}, /sys/class/block and /proc/1/mountinfo to see what lies on
what. Privileges: none.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (io.stat),
https://docs.kernel.org/admin-guide/cgroup-v1/blkio-controller.html, proc(5)
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core import sysfs
from powerbench_agent.core.procfs import WRAPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from powerbench_agent.core.host import Host

_REMEMBER_SECONDS = 60.0  # what lies on what rarely changes
_DEVICE = re.compile(r"[0-9]+:[0-9]+")
_MAX_DEVICES = 100  # below one device
_BYTES = {"rbytes": "read", "wbytes": "written", "Read": "read", "Write": "written"}


class Moved(NamedTuple):
    """Bytes."""

    read: int
    written: int


_NOTHING = Moved(0, 0)


def parse_io_v2(text: str, before: Mapping[str, Moved] | None = None) -> dict[str, Moved]:
    """Return the bytes by device ("8:0"), from the text of io.stat.

    `before`: the last such answer. A figure that is not a count costs itself: it stays what it was.
    """
    moved: dict[str, Moved] = {}
    for line in text.splitlines():
        device = ""
        for word in line.split():
            key, equals, value = word.partition("=")
            if not equals:
                # Some kernels end no line after a device without figures: the last one counts.
                device = word if _DEVICE.fullmatch(word) else ""
            elif device and key in _BYTES:
                _take(moved, before, device, key, value)
    return moved


def parse_io_v1(text: str, before: Mapping[str, Moved] | None = None) -> dict[str, Moved]:
    """Return the bytes by device ("8:0"), from the text of blkio.throttle.io_service_bytes.

    `before`: as for version 2.
    """
    moved: dict[str, Moved] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and _DEVICE.fullmatch(words[0]) and words[1] in _BYTES:
            _take(moved, before, *words)
    return moved


def _take(
    moved: dict[str, Moved], before: Mapping[str, Moved] | None, device: str, key: str, value: str
) -> None:
    """Take one figure of a device."""
    if device not in moved:
        moved[device] = (before or {}).get(device, _NOTHING)
    if sysfs.is_count(value) and int(value) < WRAPPED:
        moved[device] = moved[device]._replace(**{_BYTES[key]: int(value)})


def count_once(moved: Mapping[str, Moved], below: Callable[[str], frozenset[str]]) -> Moved:
    """Return the sum over all devices; `below`: the devices that lie below one, at any depth.

    Of devices that lie on each other the uppermost show what the container moved: below a RAID it is more. A
    disk below may show more than all that lies on it, if one of its partitions is used directly; then that
    counts. Each of these figures only grows, so their maximum does too.
    """
    if len(moved) < 2:
        return next(iter(moved.values()), _NOTHING)
    lower = {device: below(device) & moved.keys() for device in moved}
    read = written = 0
    for stack in _stacks(lower):
        ways = list(_ways(stack, lower))
        read += max(sum(moved[device].read for device in way) for way in ways)
        written += max(sum(moved[device].written for device in way) for way in ways)
    return Moved(read, written)


def _stacks(lower: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """Return the devices in sets of which none lies on another's."""
    stacks: list[set[str]] = []
    for device, beneath in lower.items():
        stack = {device, *beneath}
        apart = []
        for other in stacks:
            if stack.isdisjoint(other):
                apart.append(other)
            else:
                stack |= other
        stacks = [*apart, stack]
    return stacks


def _ways(stack: set[str], lower: Mapping[str, frozenset[str]]) -> Iterator[set[str]]:
    """Yield sets of a stack's devices of which none lies on another: each device, and the tops not on it."""
    tops = {device for device in stack if not any(device in lower[other] for other in stack)}
    for device in stack:
        yield {device} | {top for top in tops if device not in lower[top]}


class Layers:
    """Which block devices lie below which."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._devices = host.sysfs / "dev/block"
        self._below: dict[str, frozenset[str]] = {}
        self._forget_at = 0.0

    def below(self, device: str) -> frozenset[str]:
        """Return the whole devices below one, at any depth; none if that is not known."""
        now = self._host.clock.monotonic()
        if now >= self._forget_at:
            self._below.clear()
            self._forget_at = now + _REMEMBER_SECONDS
        if device not in self._below:
            self._below[device] = self._search(device)
        return self._below[device]

    def _search(self, device: str) -> frozenset[str]:
        found: set[str] = set()
        left = [device]
        while left and len(found) < _MAX_DEVICES:
            new = set(self._directly_below(left.pop())) - found
            found |= new
            left.extend(new)
        return frozenset(found)

    def _directly_below(self, device: str) -> Iterator[str]:
        directory = self._devices / device
        try:
            names = os.listdir(directory / "slaves")  # noqa: PTH208 - as elsewhere in this package
        except OSError:
            names = []
        for name in names:
            if whole := self._whole(directory / "slaves" / name):
                yield whole
        if behind := self._behind_loop(directory):
            yield behind

    def _whole(self, directory: Path) -> str:
        """Return the number of a device, or of the one that it is a partition of; "" if unknown."""
        if (directory / "partition").exists():
            directory = directory / ".."
        try:
            return sysfs.text(self._host, directory / "dev")
        except OSError:
            return ""

    def _behind_loop(self, directory: Path) -> str:
        """Return the device that a loop device's file is on; "" for any other device."""
        try:
            file = sysfs.text(self._host, directory / "loop/backing_file")
            mounts = sysfs.text(self._host, self._host.procfs / "1/mountinfo")
        except OSError:
            return ""
        device, source = mount_of(file, mounts)
        if device.startswith("0:"):  # a file system without a number of its own device, as btrfs
            return self._whole(self._host.sysfs / "class/block" / source.rpartition("/")[2])
        return self._whole(self._devices / device)


def mount_of(file: str, mountinfo: str) -> tuple[str, str]:
    """Return the number of the device that a file is on, and what is mounted there.

    Source: proc_pid_mountinfo(5).
    """
    longest, found = "", ("0:0", "")
    for line in mountinfo.splitlines():
        fields = line.split()
        if len(fields) < 5:
            continue
        point = fields[4]
        holds = file.startswith(point.rstrip("/") + "/")
        if holds and len(point) >= len(longest):  # what is mounted later lies on top
            _, _, ending = line.partition(" - ")
            source = ending.split()[1:2] or [""]
            longest, found = point, (fields[2], source[0])
    return found
