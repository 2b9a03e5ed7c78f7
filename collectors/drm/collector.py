"""AMD and Intel GPUs from sysfs alone, without a vendor's library: power, energy, use, memory.

Reads `/sys/class/drm/card*/device` and its hwmon, and `/proc/PID/fdinfo` for use by process. µW, µJ and m°C
in; W, J and °C out. Privileges: none for the GPUs; root or CAP_SYS_PTRACE for processes of other users.

- AMD has no energy counter: power is integrated from beat to beat. Discrete Intel GPUs (i915, xe) have one.
  It is 32 bits wide and wraps after 4.4 minutes at 1 kW; the driver sees a wrap only if it is read in time.
- Shown, but not in the node's sum: an APU, whose power includes the CPU that RAPL measures. An integrated
  Intel GPU has no sensor of its own: its energy is RAPL's uncore zone.
- Not shown: the tiles of an Intel GPU (`i915_gt*`), which are included in its card.
- A GPU that runtime power management has suspended is not woken: drm_gpu_asleep is 1, other series pause.
- A sensor that cannot be read is a gap, counted in drm_gpu_read_errors_total and logged. The collector is
  down if no card's energy can be read.

Source: https://docs.kernel.org/gpu/amdgpu/thermal.html,
https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-driver-intel-i915-hwmon and …-intel-xe-hwmon
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powerbench_agent.collectors.drm import metrics as drm_metrics
from powerbench_agent.collectors.drm.cards import Card, find_gpus, find_sensors
from powerbench_agent.collectors.drm.fdinfo import Clients
from powerbench_agent.collectors.drm.metrics import (
    ASLEEP,
    BUSY,
    ENCODER_BUSY,
    ENERGY,
    ERRORS,
    INFO,
    POWER,
    RESETS,
)
from powerbench_agent.collectors.drm.sensors import (
    CardVanished,
    UnreadableSensor,
    note_unreadable,
    read_energy_uj,
    read_gauges,
    read_power_watts,
)
from powerbench_agent.core import sysfs
from powerbench_agent.core.host import asleep
from powerbench_agent.core.model import (
    ANYONE,
    Absent,
    Meter,
    ReadFailed,
    Reading,
    Sample,
    Trouble,
    Use,
)
from powerbench_agent.core.options import Exclude
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from powerbench_agent.core.host import Host

METRICS = drm_metrics.METRICS

MAX_INTERVAL = 30.0  # seconds; the counter wraps after 262 at 1 kW, and its driver must see every wrap
RESCAN_SECONDS = 10.0
_LEAPT = "the energy counter was reset, or moved further than the GPU can have used; that is not counted"
_LEAPT_REMEDY = "see the kernel log; a driver that was loaded again counts from 0"
_GARBLED = "a process's fdinfo says that it used a GPU for longer than that was there; left out"
_GARBLED_REMEDY = "try a newer kernel"
_ABSENT = "no AMD GPU and no discrete Intel GPU (an integrated Intel GPU's energy is RAPL's uncore)"


class Options(Exclude, frozen=True, kw_only=True):
    """`[collectors.drm]`; `exclude` takes a GPU's card, PCI address or vendor."""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        if self.interval > MAX_INTERVAL:
            yield "interval", "must be at most 30s: power is integrated, and counters wrap"


class Drm:
    """The AMD and Intel GPUs of one machine."""

    def __init__(self, options: Options, host: Host) -> None:
        self._host = host
        self._worker = Worker("drm")
        self._options = options
        self._known: dict[str, Card] = {}  # by PCI address
        self._cards: list[Card] = []
        self._clients = Clients(host)
        self._rescan_at = 0.0

    def configure(self, options: Options) -> None:
        """Take a reload's interval and exclusions; the cards and their counters stay."""
        self._options = options
        self._rescan_at = 0.0
        for card in self._known.values():
            card.integral.max_gap = max_gap(options)

    async def read(self) -> Reading:
        """Read every card that is awake, and end the power gauges' interval. Raises: ReadFailed, Absent."""
        return await self._worker.call(self._beat)

    async def refresh(self) -> Reading:
        """Read the energy; the gauges stay those of the last beat. Raises: ReadFailed."""
        return await self._worker.call(self._refresh)

    async def aclose(self) -> None:
        """Let the thread end."""
        self._worker.close()

    # -- in the thread ---------------------------------------------------------------------------

    def _beat(self) -> Reading:
        now = self._host.clock.monotonic()
        if now >= self._rescan_at or not self._cards or self._has_woken():
            try:
                self.scan()
            except ReadFailed:
                for card in self._cards:
                    card.rate.restart()  # the next mean would include the gap
                raise
        for _ in range(2):
            try:
                reading = self._read_cards(now)
                break
            except CardVanished:
                self.scan()
        else:
            raise ReadFailed("GPUs appear and vanish while they are read", "see the kernel log")
        counted = {card.bus_id for card in self._cards if card.counts}
        uses = self._clients.read("drm", counted, now)
        for card in self._cards:
            self._note_busy(card, now)
        return reading._replace(uses=(*uses, *self._busy()), troubles=self._troubles())

    def _refresh(self) -> Reading:
        try:
            reading = self._reading(self._host.clock.monotonic(), beat=False)
        except CardVanished:
            raise ReadFailed("a GPU has vanished", "it is looked for at the next beat") from None
        uses = (*self._clients.uses("drm"), *self._busy())
        return reading._replace(uses=uses, troubles=self._troubles())

    def _has_woken(self) -> bool:
        """Return whether a card that could not be identified in its sleep is awake now."""
        unidentified = [card for card in self._cards if not card.identified]
        return any(not sysfs.asleep(self._host, card.device) for card in unidentified)

    def _read_cards(self, now: float) -> Reading:
        """Read everything of every card. Raises: CardVanished, with the errors counted before; ReadFailed."""
        errors = {card.bus_id: card.errors.copy() for card in self._cards}
        try:
            for card in self._cards:
                card.gauges = []
                if not sysfs.asleep(self._host, card.device):
                    card.gauges = list(read_gauges(self._host, card))
            return self._reading(now, beat=True)
        except CardVanished:
            for card in self._cards:
                card.errors = errors[card.bus_id]
            raise

    def _note_busy(self, card: Card, now: float) -> None:
        """Add the time since the last beat during which the card's busier engine was in use."""
        percents = [sample.value for sample in card.gauges if sample.metric in (BUSY, ENCODER_BUSY)]
        if not percents:
            card.busy_at = card.busy_seconds = None
            return
        span = 0.0 if card.busy_at is None else now - card.busy_at
        card.busy_at = now
        card.busy_seconds = (card.busy_seconds or 0.0) + max(percents) / 100 * span

    def _busy(self) -> Iterator[Use]:
        for card in self._cards:
            if card.counts and card.busy_seconds is not None:
                yield Use("gpu", "drm", card.bus_id, "busiest", ANYONE, card.busy_seconds)

    def scan(self) -> None:
        """Find the cards and their sensors. Raises: Absent if no card has a sensor; ReadFailed."""
        cards: dict[str, Card] = {}
        sensors: set[Path] = set()
        for device, vendor in find_wanted(self._host, self._options):
            bus_id = device.resolve().name
            if bus_id in cards:
                continue
            card = self._known.get(bus_id) or Card(bus_id, vendor, max_gap(self._options))
            card.name, card.device = device.parent.name, device
            find_sensors(self._host, card)
            sensor = card.energy_file or card.power_file
            if sensor is not None and sensor.resolve() in sensors:
                card.energy_file = card.power_file = None  # another card has shown what it measures
            elif sensor is not None:
                sensors.add(sensor.resolve())
            if card.has_sensors:
                self._known[bus_id] = cards[bus_id] = card
        for bus_id, card in self._known.items():
            if bus_id not in cards:  # it may come back; what it uses until then is unknown
                card.forget()
        self._cards = list(cards.values())
        if not cards:
            raise Absent(_ABSENT)
        self._rescan_at = self._host.clock.monotonic() + RESCAN_SECONDS

    # -- the reading -----------------------------------------------------------------------------

    def _joules(self, card: Card, *, beat: bool) -> float | None:
        """Return joules since the start, None if there is no sensor; a beat also sets the power.

        Raises: UnreadableSensor, CardVanished.
        """
        if card.energy_file is not None:
            now = self._host.clock.monotonic()
            energy_uj = read_energy_uj(self._host, card, card.energy_file)
            return card.advance(energy_uj, now, asleep(self._host.clock), beat=beat)
        if card.power_file is not None:
            now = self._host.clock.monotonic()
            watts = read_power_watts(self._host, card, card.power_file)
            if beat:
                card.watts = watts
            return card.integral.advance(watts, now)
        return None

    def _reading(self, now: float, *, beat: bool) -> Reading:
        samples: list[Sample] = []
        powers: dict[Meter, float | None] = {}
        meters: list[Meter] = []
        unreadable: list[UnreadableSensor] = []
        for card in self._cards:
            samples.append(_info(card))
            is_asleep = sysfs.asleep(self._host, card.device)
            samples.append(ASLEEP.sample(int(is_asleep), *card.labels))
            if is_asleep:
                card.forget()  # without power the counter starts again at 0
                continue
            samples.extend(card.gauges)
            try:
                joules = self._joules(card, beat=beat)
            except UnreadableSensor as why:
                note_unreadable(card, why)
                unreadable.append(why)
                card.integral.forget()
                card.forget_power()
                continue
            if joules is not None:
                samples.extend(_energy_samples(card, joules))
                if card.counts:
                    meter = Meter("gpu", "drm", card.bus_id, joules)
                    meters.append(meter)
                    if card.energy_file is not None:
                        powers[meter] = card.watts
        for card in self._cards:
            for (sensor, reason), count in card.errors.items():
                samples.append(ERRORS.sample(count, *card.labels, sensor, reason))
        if unreadable and not any(sample.metric is ENERGY for sample in samples):
            reasons = "; ".join(str(why) for why in unreadable)
            raise ReadFailed(f"no energy: {reasons}", unreadable[0].remedy)
        return Reading(samples, meters, taken=now, powers=powers)

    def _troubles(self) -> list[Trouble]:
        leapt = [card for card in self._cards if card.has_leapt]
        troubles = [Trouble(f"{card.name} energy counter", _LEAPT, _LEAPT_REMEDY) for card in leapt]
        if self._clients.garbled:
            troubles.append(Trouble("use by process", _GARBLED, _GARBLED_REMEDY))
        return troubles


def _info(card: Card) -> Sample:
    kind = "integrated" if card.integrated else "discrete"
    if card.energy_file:
        energy = "counter"
    elif card.power_file:
        energy = "integrated"
    else:
        energy = ""
    return INFO.sample(1, *card.labels, card.driver, kind, energy)


def _energy_samples(card: Card, joules: float) -> Iterator[Sample]:
    yield ENERGY.sample(joules, *card.labels)
    if card.energy_file is not None:
        yield RESETS.sample(card.counter.resets, *card.labels)
    if card.watts is not None:
        yield POWER.sample(card.watts, *card.labels)


def max_gap(options: Options) -> float:
    """Return the seconds between two power readings that are still integrated."""
    return max(5.0, 3 * options.interval)


def find_wanted(host: Host, options: Options) -> Iterator[tuple[Path, str]]:
    """Yield every card that is not excluded, and its vendor."""
    for device, vendor in find_gpus(host):
        card, bus_id = device.parent.name, device.resolve().name
        if not options.excludes(card, card.removeprefix("card"), bus_id, vendor):
            yield device, vendor


async def open_collector(options: Options, host: Host) -> Drm:
    """Return the collector; sensors are read only in its thread. Raises: Absent if there is no GPU."""
    wanted = find_wanted(host, options)
    if not any(vendor == "amd" or (device / "hwmon").exists() for device, vendor in wanted):
        raise Absent(_ABSENT)
    return Drm(options, host)
