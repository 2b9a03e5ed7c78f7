"""AMD and Intel GPUs straight from sysfs, without a vendor's library: power, energy, use, memory.

Reads `/sys/class/drm/card*/device` and its hwmon, and `/proc/PID/fdinfo` for who used it. µW, µJ and m°C in;
W, J and °C out. Privileges: none for the GPUs; for other users' processes, root or CAP_SYS_PTRACE.

- AMD has no energy counter: power is integrated from beat to beat. Intel (discrete; i915 and xe) has one; it
  is 32 bits wide and wraps in 4.4 minutes at 1 kW, which its driver sees only if somebody reads it.
- Shown, and no part of the node's sum: an APU, whose power includes the CPU that RAPL has. An integrated
  Intel GPU has no sensor of its own: its energy is RAPL's uncore.
- Not shown: the tiles of an Intel GPU (`i915_gt*`), which its card includes.
- A GPU that runtime power management has put to sleep is left asleep: drm_gpu_asleep 1, a gap otherwise.
- A sensor that cannot be read is a gap, counted in drm_gpu_read_errors_total and logged; the collector is
  down where no card's energy can be read.

Source: https://docs.kernel.org/gpu/amdgpu/thermal.html,
https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-driver-intel-i915-hwmon and …-intel-xe-hwmon
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import structlog

from powerbench_agent.collectors.drm.cards import GONE, Card, find_gpus, find_hwmon, first_file, is_apu
from powerbench_agent.collectors.drm.fdinfo import Clients
from powerbench_agent.core import sysfs
from powerbench_agent.core.counters import PLAUSIBLE_WATTS, Rate
from powerbench_agent.core.model import ANYONE, Absent, Meter, Metric, ReadFailed, Reading, Sample, Use
from powerbench_agent.core.options import CollectorOptions
from powerbench_agent.core.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from powerbench_agent.core.host import Host

log = structlog.get_logger("drm")

_GPU = ("gpu", "vendor", "pci_bus_id")
POWER = Metric(
    "drm_gpu_power_watts",
    "gauge",
    "Power. AMD: its sensor's value, usually a mean; Intel: the mean over the last interval.",
    _GPU,
)
ENERGY = Metric(
    "drm_gpu_energy_joules_total",
    "counter",
    "Energy since the agent started. Intel: the GPU's own counter; AMD: power integrated over time.",
    _GPU,
)
TEMPERATURE = Metric(
    "drm_gpu_temperature_celsius", "gauge", "Temperature: edge, or else junction or package.", _GPU
)
BUSY = Metric("drm_gpu_busy_percent", "gauge", "Utilisation of the graphics and compute engines (AMD).", _GPU)
ENCODER_BUSY = Metric(
    "drm_gpu_encoder_busy_percent", "gauge", "Utilisation of the video engine, VCN (AMD).", _GPU
)
MEMORY_USED = Metric("drm_gpu_memory_used_bytes", "gauge", "Dedicated memory in use (AMD).", _GPU)
MEMORY_TOTAL = Metric("drm_gpu_memory_total_bytes", "gauge", "Dedicated memory installed (AMD).", _GPU)
INFO = Metric(
    "drm_gpu_info",
    "gauge",
    "Always 1; kind is discrete or integrated (not in the node's sum), energy is counter or integrated.",
    (*_GPU, "driver", "kind", "energy"),
)
ASLEEP = Metric(
    "drm_gpu_asleep",
    "gauge",
    "1 while runtime power management has suspended the GPU; it is not woken, so other series pause.",
    _GPU,
)
RESETS = Metric(
    "drm_gpu_energy_resets_total",
    "counter",
    "Number of implausible jumps of the GPU's energy counter; such a jump adds no energy.",
    _GPU,
)
ERRORS = Metric(
    "drm_gpu_read_errors_total",
    "counter",
    "Failed reads of a sensor, by reason.",
    (*_GPU, "sensor", "reason"),
)
METRICS = (
    *(POWER, ENERGY, TEMPERATURE, BUSY, ENCODER_BUSY, MEMORY_USED, MEMORY_TOTAL),
    *(INFO, ASLEEP, RESETS, ERRORS),
)

MAX_INTERVAL = 30.0  # seconds; the register wraps in 262 at 1 kW, and its driver must see every wrap
RESCAN_SECONDS = 10.0
_MAX_CELSIUS = 200.0
_ABSENT = "no AMD GPU and no discrete Intel GPU (an integrated Intel GPU's energy is RAPL's uncore)"

_ERRORS = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}  # Python calls it ENOTSUP

_REMEDIES = {
    "eacces": "give the agent's user access to the file; see docs/guide.md, GPUs",
    "eperm": "the GPU is being reset or suspended; see the kernel log if it lasts",
    "enodata": "the driver has no value: a newer kernel may",
    "eopnotsupp": "the driver has no value: a newer kernel may",
    "einval": "the driver has no value: a newer kernel may",
    "not_a_number": "the driver wrote no number: report it to its developers",
    "implausible": "the driver wrote a value that cannot be true: a newer kernel may not",
}


class Options(CollectorOptions, frozen=True, kw_only=True):
    """`[collectors.drm]`."""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield (key, what is wrong)."""
        yield from super().problems()
        if self.interval > MAX_INTERVAL:
            yield "interval", "must be at most 30s: power is integrated, and counters wrap"


class _Unreadable(Exception):  # noqa: N818 - a verdict on one sensor
    def __init__(self, sensor: str, reason: str, path: Path) -> None:
        super().__init__(str(path))
        self.sensor = sensor
        self.reason = reason
        self.path = path


class _Vanished(Exception):  # noqa: N818 - a verdict on one card
    """The card is not where it was."""


class Drm:
    """The AMD and Intel GPUs of one machine."""

    def __init__(self, options: Options, host: Host) -> None:
        self._host = host
        self._worker = Worker("drm")
        self._max_gap = max_gap(options)
        self._known: dict[str, Card] = {}  # by PCI address
        self._cards: list[Card] = []
        self._clients = Clients(host)
        self._rescan_at = 0.0

    def configure(self, options: Options) -> None:
        """Take a reload's interval; the cards and their counters stay."""
        self._max_gap = max_gap(options)
        for card in self._known.values():
            card.integral.max_gap = self._max_gap

    async def read(self) -> Reading:
        """Read every card that is awake, and close the power gauges' window. Raises: ReadFailed, Absent."""
        return await self._worker.call(self._beat)

    async def refresh(self) -> Reading:
        """Read the energy; the gauges stay the beat's."""
        return await self._worker.call(self._refresh)

    async def aclose(self) -> None:
        """Let the thread go."""
        self._worker.close()

    # -- in the thread ---------------------------------------------------------------------------

    def _beat(self) -> Reading:
        now = self._host.clock.monotonic()
        woken = any(not (card.identified or sysfs.asleep(self._host, card.device)) for card in self._cards)
        if now >= self._rescan_at or not self._cards or woken:
            try:
                self.scan()
            except ReadFailed:
                for card in self._cards:
                    card.rate = Rate()  # a mean over the gap would be none of the last beat
                raise
        for _ in range(2):
            before = {card.bus_id: card.errors.copy() for card in self._cards}
            try:
                for card in self._cards:
                    card.gauges = []
                    if not sysfs.asleep(self._host, card.device):
                        card.gauges = list(self._gauges(card))
                reading = self._reading(now, beat=True)
                break
            except _Vanished:
                for card in self._cards:
                    card.errors = before[card.bus_id]
                self.scan()  # and once more, over what is left
        else:
            raise ReadFailed("GPUs come and go", "see the kernel log")
        counting = {card.bus_id: card.bus_id for card in self._cards if card.counts}
        uses = self._clients.read("drm", set(counting), now)
        self._note_busy(now)
        return reading._replace(uses=(*uses, *self._busy()))

    def _note_busy(self, now: float) -> None:
        """Add the time since the last beat that each card's busier engine was in use."""
        for card in self._cards:
            busy = [sample.value for sample in card.gauges if sample.metric in (BUSY, ENCODER_BUSY)]
            span = 0.0 if card.busy_at is None else now - card.busy_at
            card.busy_at = now if busy else None
            card.busy_seconds = (card.busy_seconds or 0.0) + max(busy) / 100 * span if busy else None

    def _busy(self) -> Iterator[Use]:
        for card in self._cards:
            if card.counts and card.busy_seconds is not None:
                yield Use("gpu", "drm", card.bus_id, "busiest", ANYONE, card.busy_seconds)

    def _refresh(self) -> Reading:
        try:
            reading = self._reading(self._host.clock.monotonic(), beat=False)
        except _Vanished:
            raise ReadFailed("a GPU has vanished", "it is looked for at the next beat") from None
        return reading._replace(uses=(*self._clients.uses("drm"), *self._busy()))

    def scan(self) -> None:
        """Find the cards and their sensors. Raises: Absent where there is nothing to read."""
        cards: list[Card] = []
        for device, vendor in find_gpus(self._host):
            bus_id = device.resolve().name
            if any(card.bus_id == bus_id for card in cards):
                continue
            card = self._known.get(bus_id)
            if card is None:
                card = Card(bus_id, vendor, self._max_gap)
            card.name, card.device = device.parent.name, device
            self._find_sensors(card)
            if card.power_file or card.energy_file or card.others:
                self._known[bus_id] = card
                cards.append(card)
        for card in self._known.values():
            if card not in cards:  # it may come back: what it counts meanwhile, nobody knows
                card.counter.forget()
                card.integral.forget()
                card.rate = Rate()
        self._cards = cards
        if not cards:
            raise Absent(_ABSENT)
        self._rescan_at = self._host.clock.monotonic() + RESCAN_SECONDS

    def _find_sensors(self, card: Card) -> None:
        device = card.device
        card.driver = (device / "driver").resolve().name if (device / "driver").exists() else ""
        hwmon = find_hwmon(self._host, device)
        card.energy_file = card.power_file = card.temperature_file = None
        if hwmon is not None:
            if card.vendor == "intel":
                # The card, else its package.
                card.energy_file = first_file(hwmon, "energy1_input", "energy2_input")
            else:
                card.power_file = first_file(hwmon, "power1_average", "power1_input")
            card.temperature_file = first_file(hwmon, "temp1_input", "temp2_input")
        if not card.identified:
            apu = is_apu(self._host, device, hwmon) if card.vendor == "amd" else False
            card.integrated, card.identified = bool(apu), apu is not None
        card.others = []
        if card.vendor == "amd":
            files = (
                (BUSY, "busy", "gpu_busy_percent"),
                (ENCODER_BUSY, "encoder_busy", "vcn_busy_percent"),
                (MEMORY_USED, "memory_used", "mem_info_vram_used"),
                (MEMORY_TOTAL, "memory_total", "mem_info_vram_total"),
            )
            card.others = [
                (metric, sensor, device / file) for metric, sensor, file in files if (device / file).exists()
            ]

    # -- sensors ---------------------------------------------------------------------------------

    def _number(self, card: Card, sensor: str, path: Path, low: int, high: int) -> int:
        """Return a sensor's number between these bounds. Raises: _Unreadable, _Vanished."""
        try:
            number = sysfs.integer(self._host, path)
        except ValueError:
            raise _Unreadable(sensor, "not_a_number", path) from None
        except OSError as error:
            if error.errno in GONE or not (card.device / "vendor").exists():
                raise _Vanished from None
            reason = _ERRORS.get(error.errno or 0, "error").lower()
            raise _Unreadable(sensor, reason, path) from None
        if not low <= number <= high:
            raise _Unreadable(sensor, "implausible", path)
        card.said.pop(sensor, None)
        return number

    def _failed(self, card: Card, why: _Unreadable) -> None:
        card.errors[why.sensor, why.reason] += 1
        if card.said.get(why.sensor) != why.reason:
            remedy = _REMEDIES.get(why.reason, "see the kernel log")
            log.warning(
                "sensor left out", gpu=card.name, file=str(why.path), reason=why.reason, remedy=remedy
            )
        card.said[why.sensor] = why.reason

    def _gauges(self, card: Card) -> Iterator[Sample]:
        for metric, sensor, file in card.others:
            try:
                high = 100 if metric.name.endswith("_percent") else 2**63
                number = self._number(card, sensor, file, 0, high)
                yield metric.sample(number, *card.labels)
            except _Unreadable as why:
                self._failed(card, why)
        if card.temperature_file is not None:
            try:
                bound = int(_MAX_CELSIUS * 1000)
                number = self._number(card, "temperature", card.temperature_file, -bound, bound)
                yield TEMPERATURE.sample(number / 1000, *card.labels)
            except _Unreadable as why:
                self._failed(card, why)

    def _joules(self, card: Card, *, beat: bool) -> float | None:
        """Return the joules since the start, and set the card's watts. Raises: _Unreadable, _Vanished."""
        if card.energy_file is not None:
            now = self._host.clock.monotonic()
            energy_uj = self._number(card, "energy", card.energy_file, 0, 2**63)
            resets = card.counter.resets
            joules = card.counter.advance(energy_uj, now)
            if card.counter.resets != resets:
                card.rate = Rate()  # what was used meanwhile is not known: no 0 W
            if beat:
                card.rate.beat(joules, now)
                card.watts = card.rate.watts
            return joules
        if card.power_file is not None:
            now = self._host.clock.monotonic()
            watts = self._number(card, "power", card.power_file, 0, int(PLAUSIBLE_WATTS * 1e6)) / 1e6
            if beat:
                card.watts = watts
            return card.integral.advance(watts, now)
        return None

    # -- the reading -----------------------------------------------------------------------------

    def _reading(self, now: float, *, beat: bool) -> Reading:
        samples: list[Sample] = []
        meters: list[Meter] = []
        unreadable: list[_Unreadable] = []
        for card in self._cards:
            labels = card.labels
            kind = "integrated" if card.integrated else "discrete"
            energy = "counter" if card.energy_file else "integrated" if card.power_file else ""
            samples.append(INFO.sample(1, *labels, card.driver, kind, energy))
            asleep = sysfs.asleep(self._host, card.device)
            samples.append(ASLEEP.sample(int(asleep), *labels))
            if asleep:
                card.integral.forget()
                card.counter.forget()  # without power the register starts anew
                card.rate, card.watts = Rate(), None
                continue
            samples.extend(card.gauges)
            try:
                joules = self._joules(card, beat=beat)
            except _Unreadable as why:
                self._failed(card, why)
                unreadable.append(why)
                card.integral.forget()
                card.rate, card.watts = Rate(), None
                continue
            if joules is None:
                continue
            samples.append(ENERGY.sample(joules, *labels))
            if card.energy_file is not None:
                samples.append(RESETS.sample(card.counter.resets, *labels))
            if card.watts is not None:
                samples.append(POWER.sample(card.watts, *labels))
            if card.counts:
                meters.append(Meter("gpu", "drm", card.bus_id, joules))
        for card in self._cards:
            samples.extend(ERRORS.sample(n, *card.labels, *which) for which, n in card.errors.items())
        if unreadable and not any(sample.metric is ENERGY for sample in samples):
            what = "; ".join(f"{why.path}: {why.reason}" for why in unreadable)
            raise ReadFailed(f"no energy: {what}", _REMEDIES.get(unreadable[0].reason, "see the kernel log"))
        return Reading(samples, meters, taken=now)


def max_gap(options: Options) -> float:
    """Return how far apart power readings may be to be bridged, in seconds."""
    return max(5.0, 3 * options.interval)


async def open_collector(options: Options, host: Host) -> Drm:
    """Return the collector; it looks at sensors in its thread alone. Raises: Absent where there is no GPU."""
    if not any(vendor == "amd" or (device / "hwmon").exists() for device, vendor in find_gpus(host)):
        raise Absent(_ABSENT)
    return Drm(options, host)
