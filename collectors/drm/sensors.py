"""Reading one card's sensors: µW, µJ and m°C in; W, µJ and °C out. Failures are counted and logged."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

import structlog

from powerbench_agent.collectors.drm.cards import GONE
from powerbench_agent.collectors.drm.metrics import POWER_LIMIT, TEMPERATURE
from powerbench_agent.core import sysfs
from powerbench_agent.core.counters import PLAUSIBLE_WATTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from powerbench_agent.collectors.drm.cards import Card
    from powerbench_agent.core.host import Host
    from powerbench_agent.core.model import Sample

log = structlog.get_logger("drm")

_MAX_CELSIUS = 200.0
_UNBOUNDED = 2**63

_ERRORS = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}  # Python calls it ENOTSUP

_NO_VALUE = "the driver has no value now; a newer kernel may have one"
_REMEDIES = {
    "eacces": "give the agent's user access to the file; see docs/guide.md, GPUs",
    "eperm": "the GPU is being reset or suspended; if it lasts, see the kernel log",
    "enodata": _NO_VALUE,
    "eopnotsupp": _NO_VALUE,
    "einval": _NO_VALUE,
    "not_a_number": "the driver's value is not a number: report it to the driver's developers",
    "implausible": "the driver's value cannot be true: try a newer kernel",
}


class UnreadableSensor(Exception):  # noqa: N818 - a verdict on one sensor
    """A sensor that gives no usable number; `reason` is what it is counted under."""

    def __init__(self, sensor: str, reason: str, path: Path) -> None:
        super().__init__(f"{path}: {reason}")
        self.sensor = sensor
        self.reason = reason
        self.path = path

    @property
    def remedy(self) -> str:
        """What can be done about it."""
        return _REMEDIES.get(self.reason, "see the kernel log")


class CardVanished(Exception):  # noqa: N818 - a verdict on one card
    """The card is no longer in its place."""


class _Sensor(NamedTuple):
    name: str
    path: Path
    low: int  # the bounds of what can be true, in the file's own unit
    high: int


def read_energy_uj(host: Host, card: Card, path: Path) -> int:
    """Return the card's energy counter. Raises: UnreadableSensor, CardVanished."""
    return _read(host, card, _Sensor("energy", path, 0, _UNBOUNDED))


def read_power_watts(host: Host, card: Card, path: Path) -> float:
    """Return the card's power. Raises: UnreadableSensor, CardVanished."""
    most_watts = PLAUSIBLE_WATTS if card.most_watts is None else card.most_watts
    sensor = _Sensor("power", path, 0, int(most_watts * 1e6))
    return _read(host, card, sensor) / 1e6


def read_gauges(host: Host, card: Card) -> Iterator[Sample]:
    """Yield utilisation, memory, temperature and power limit, without those that cannot be read.

    Raises: CardVanished.
    """
    for metric, sensor, file in card.others:
        high = 100 if metric.name.endswith("_percent") else _UNBOUNDED
        number = _gauge(host, card, _Sensor(sensor, file, 0, high))
        if number is not None:
            yield metric.sample(number, *card.labels)
    if card.temperature_file is not None:
        bound = int(_MAX_CELSIUS * 1000)
        millidegrees = _gauge(host, card, _Sensor("temperature", card.temperature_file, -bound, bound))
        if millidegrees is not None:
            yield TEMPERATURE.sample(millidegrees / 1000, *card.labels)
    if card.limit_file is not None:
        most_uw = int(PLAUSIBLE_WATTS * 1e6)
        limit_uw = _gauge(host, card, _Sensor("power_limit", card.limit_file, 0, most_uw))
        if limit_uw:  # 0: it is switched off
            yield POWER_LIMIT.sample(limit_uw / 1e6, *card.labels)


def _gauge(host: Host, card: Card, sensor: _Sensor) -> int | None:
    """Return a sensor's number; None if it cannot be read, which is noted. Raises: CardVanished."""
    try:
        return _read(host, card, sensor)
    except UnreadableSensor as why:
        note_unreadable(card, why)
        return None


def note_unreadable(card: Card, why: UnreadableSensor) -> None:
    """Count a sensor that cannot be read, and log it when the reason is a new one."""
    card.errors[why.sensor, why.reason] += 1
    if card.logged.get(why.sensor) != why.reason:
        log.warning(
            "sensor left out", gpu=card.name, file=str(why.path), reason=why.reason, remedy=why.remedy
        )
    card.logged[why.sensor] = why.reason


def _read(host: Host, card: Card, sensor: _Sensor) -> int:
    """Return a sensor's number. Raises: UnreadableSensor, CardVanished."""
    try:
        number = sysfs.integer(host, sensor.path)
    except ValueError:
        raise UnreadableSensor(sensor.name, "not_a_number", sensor.path) from None
    except OSError as error:
        if error.errno in GONE or not (card.device / "vendor").exists():
            raise CardVanished from None
        reason = _ERRORS.get(error.errno or 0, "error").lower()
        raise UnreadableSensor(sensor.name, reason, sensor.path) from None
    if not sensor.low <= number <= sensor.high:
        raise UnreadableSensor(sensor.name, "implausible", sensor.path)
    card.logged.pop(sensor.name, None)
    return number
