"""The machine's hwmon chips: which there are, what to call them, their sensors, and whether they sleep.

Reads /sys/class/hwmon/hwmonN/{name,*_input,*_label}, the runtime power management of the devices that they
belong to, and the I/O statistics of disks. Privileges: none.

Source: https://docs.kernel.org/hwmon/sysfs-interface.html, https://docs.kernel.org/hwmon/drivetemp.html,
https://docs.kernel.org/block/stat.html
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

from powerbench_agent.core import sysfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from powerbench_agent.core.host import Host

DISKS = "drivetemp"  # the driver whose readings keep a disk from spinning down
_AFTER_USE_SECONDS = 60.0  # how much longer a disk may stay awake on our account
_MOST_PARENTS = 4  # an NVMe sensor's chip, controller and PCI device
_NUMBER = re.compile(r"hwmon(0|[1-9][0-9]{0,5})")


class Sensor(NamedTuple):
    """One measured quantity of a chip."""

    path: Path
    label: str  # unique on its chip


class Chip:
    """One hwmon device."""

    def __init__(self, host: Host, path: Path, place: str, siblings: Sequence[Path]) -> None:
        """`place`: where its device is, below /sys/devices; `siblings`: all chips of that device."""
        self.path = path
        self.disk = Disk(host, path / "device")
        self._host = host
        self._place = place
        self._siblings = siblings
        self._label = ""
        self._devices = tuple(_devices(path))
        self._name = ""
        self._sensors: list[Sensor] | None = None

    @property
    def number(self) -> str:
        """hwmon3, which may be another chip after a reboot."""
        return self.path.name

    def is_asleep(self) -> bool:
        """Return whether a reading would wake its device, or what that is part of."""
        return any(sysfs.asleep(self._host, device) for device in self._devices)

    def label(self) -> str:
        """Return its device's place; if that has several chips, its name and its number among equals too."""
        if not self._label:
            self._label = f"{self._place}{self._suffix()}"
        return self._label

    def _suffix(self) -> str:
        if len(self._siblings) == 1:
            return ""
        names = [_name(self._host, path) or path.name for path in self._siblings]
        position = self._siblings.index(self.path)
        name = names[position]
        earlier = names[:position].count(name)
        return f" {name} {earlier + 1}" if earlier else f" {name}"

    def name(self) -> str:
        """Return its driver's name for it, "" if that cannot be read now."""
        if not self._name:
            self._name = _name(self._host, self.path)
        return self._name

    def temperatures(self) -> list[Sensor]:
        """Return its temperature sensors."""
        if self._sensors is not None:
            return self._sensors
        paths = sorted(self.path.glob("temp*_input"))
        numbers = [path.name.removesuffix("_input") for path in paths]
        labels = [self._sensor_label(number) for number in numbers]
        given = [label or number for label, number in zip(labels, numbers, strict=True)]
        unique = _unique(given, numbers)
        sensors = [Sensor(path, label) for path, label in zip(paths, unique, strict=True)]
        if None not in labels:
            self._sensors = sensors
        return sensors

    def _sensor_label(self, number: str) -> str | None:
        """Return a sensor's label, "" without one, None if it cannot be read now."""
        try:
            return sysfs.text(self._host, self.path / f"{number}_label")
        except FileNotFoundError:
            return ""
        except OSError:
            return None


class Disk:
    """Whether a disk is in use: only then may its temperature be read.

    A reading restarts a disk's spin-down timer, or even spins it up. So one that has had no I/O for a minute
    is left alone until it has some. A disk that does not spin, or whose I/O is unknown, is always in use.
    """

    def __init__(self, host: Host, device: Path) -> None:
        self._host = host
        self._device = device
        self._last: bytes | None = None
        self._used = -_AFTER_USE_SECONDS

    def is_in_use(self) -> bool:
        """Return whether it has had I/O within the last minute, as far as these calls have seen."""
        now = self._host.clock.monotonic()
        for block in self._device.glob("block/*"):
            try:
                if sysfs.text(self._host, block / "queue/rotational") == "0":
                    return True
                statistics = self._host.read(block / "stat")
            except OSError:
                return True
            if self._last is not None and statistics != self._last:
                self._used = now
            self._last = statistics
            return now - self._used < _AFTER_USE_SECONDS
        return True


class Chips:
    """The chips that there are now."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._listing: list[tuple[int, int]] = []
        self._chips: list[Chip] = []

    def list(self) -> list[Chip]:
        """Return the chips in the order of their numbers; the same objects as long as nothing changes.

        No attribute is read here, so no driver can make this wait.
        """
        directory = self._host.sysfs / "class/hwmon"
        listing = sorted(_listing(directory))
        if listing != self._listing:
            self._listing = listing
            paths = [directory / f"hwmon{number}" for number, _ in listing]
            places = [_place(self._host, path) for path in paths]
            siblings: defaultdict[str, list[Path]] = defaultdict(list)
            for path, place in zip(paths, places, strict=True):
                siblings[place].append(path)
            self._chips = [
                Chip(self._host, path, place, siblings[place])
                for path, place in zip(paths, places, strict=True)
            ]
        return self._chips


def _listing(directory: Path) -> Iterator[tuple[int, int]]:
    """Yield each chip's number, and its directory's inode, which a reloaded driver changes."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - 5x faster
    except OSError:
        return
    for name in names:
        number = _NUMBER.fullmatch(name)
        if number is None:
            continue
        try:
            yield int(number[1]), os.stat(directory / name).st_ino  # noqa: PTH116 - called for each chip
        except OSError:
            continue  # it is just going


def _devices(hwmon: Path) -> Iterator[Path]:
    """Yield the devices that a chip belongs to, the nearest first."""
    device = hwmon
    for _ in range(_MOST_PARENTS):
        device = device / "device"
        if not device.exists():
            return
        yield device


def _place(host: Host, hwmon: Path) -> str:
    """Return the device's path below /sys/devices, which differs between chips of one name."""
    device = hwmon / "device"
    path = (device if device.exists() else hwmon).resolve()
    try:
        return str(path.relative_to((host.sysfs / "devices").resolve()))
    except ValueError:
        return path.name


def _name(host: Host, hwmon: Path) -> str:
    try:
        return sysfs.text(host, hwmon / "name")
    except OSError:
        return ""


def _unique(labels: list[str], numbers: list[str]) -> list[str]:
    """Return the labels, with their sensors' numbers added to those that are not unique."""
    times = Counter(labels)
    numbered = [f"{label} ({number})" for label, number in zip(labels, numbers, strict=True)]
    found = []
    for label, longer in zip(labels, numbered, strict=True):
        found.append(label if times[label] == 1 else longer)
    is_unique = len(set(found)) == len(found)
    return found if is_unique else numbered  # a label may look like another's with its number
