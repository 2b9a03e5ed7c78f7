"""AMD and Intel GPUs from sysfs: what is shown, what is counted, and what is metered."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from gpu_trees import APU, DGPU, SECOND, THIRD, GpuMachine, cycles_fdinfo, engines_fdinfo, gpu_machine, meters
from trees import add_up, open_paths, value, values

from powerbench_agent.agent.node import NODE_ENERGY, NODE_POWER, Node
from powerbench_agent.collectors.drm import collector as drm
from powerbench_agent.collectors.drm import metrics
from powerbench_agent.core.model import ANYONE, Absent, Meter, ReadFailed, Reconfigures, Refreshes, Use
from powerbench_agent.core.options import Seconds

if TYPE_CHECKING:
    from collections.abc import Callable


machine = pytest.fixture(gpu_machine)

AMD = ("card0", "amd", DGPU)
INTEL = ("card0", "intel", DGPU)
INTEL_RANGE_JOULES = 2**32 / 2**14


# -- what is shown -----------------------------------------------------------------------------------


async def test_amd_card(machine: GpuMachine) -> None:
    """A Radeon's sensors arrive in base units, labelled with card, vendor and PCI address."""
    machine.gpus.amd(0, watts=212.5)
    collector = await machine.open()
    await collector.read()
    reading = await machine.beat(collector)
    assert {sample.metric: sample.value for sample in reading.samples} == {
        metrics.POWER: 212.5,
        metrics.ENERGY: 212.5,
        metrics.TEMPERATURE: 51.0,
        metrics.BUSY: 37,
        metrics.ENCODER_BUSY: 12,
        metrics.MEMORY_USED: 2e9,
        metrics.MEMORY_TOTAL: 16e9,
        metrics.INFO: 1,
        metrics.ASLEEP: 0,
    }
    assert {sample.labels[:3] for sample in reading.samples} == {AMD}
    assert list(values(reading, metrics.INFO)) == [(*AMD, "amdgpu", "discrete", "integrated")]
    assert reading.meters == [Meter("gpu", "drm", DGPU, 212.5)]
    assert reading.taken == machine.clock.now


async def test_intel_card(machine: GpuMachine) -> None:
    """An Intel card counts its energy; its power is the mean over the beat."""
    machine.gpus.xe(3, joules=5000)
    collector = await machine.open()
    assert values(await collector.read(), metrics.POWER) == {}
    machine.gpus.set_joules(DGPU, 5060)
    reading = await machine.beat(collector, 2.0)
    assert {sample.metric: sample.value for sample in reading.samples} == {
        metrics.POWER: 30,
        metrics.ENERGY: 60,
        metrics.TEMPERATURE: 47,
        metrics.INFO: 1,
        metrics.ASLEEP: 0,
        metrics.RESETS: 0,
    }
    assert {sample.labels[:3] for sample in reading.samples} == {("card3", "intel", DGPU)}
    assert list(values(reading, metrics.INFO)) == [("card3", "intel", DGPU, "xe", "discrete", "counter")]
    assert reading.meters == [Meter("gpu", "drm", DGPU, 60)]
    assert list(reading.powers.values()) == [30]


async def test_the_limit_in_force_is_shown(machine: GpuMachine) -> None:
    """Thresholds are fractions of it. One that is switched off reads 0, and is no limit; nor is nonsense."""
    machine.gpus.amd(0, power1_cap=150_000_000, power1_cap_max=300_000_000)
    collector = await machine.open()
    assert value(await collector.read(), metrics.POWER_LIMIT, *AMD) == 150
    for none in (0, 4_294_967_295_000_000, "N/A"):
        machine.gpus.set(DGPU, power1_cap=none)
        assert values(await machine.beat(collector), metrics.POWER_LIMIT) == {}


async def test_the_limit_of_an_intel_card(machine: GpuMachine) -> None:
    """The i915 and xe drivers call theirs power1_max."""
    machine.gpus.i915(0)
    reading = await (await machine.open()).read()
    assert list(values(reading, metrics.POWER_LIMIT).values()) == [300]


async def test_card_without_edge_temperature(machine: GpuMachine) -> None:
    """An Instinct without an edge temperature shows its junction's, and power from the file's newer name."""
    machine.gpus.mi250(0)
    reading = await (await machine.open()).read()
    assert value(reading, metrics.TEMPERATURE, *AMD) == 63
    assert value(reading, metrics.POWER, *AMD) == 300


async def test_amd_card_without_a_power_sensor(machine: GpuMachine) -> None:
    """A card that has no power sensor shows the rest, and meters nothing."""
    machine.gpus.amd(0, power1_average=None)
    reading = await (await machine.open()).read()
    assert value(reading, metrics.BUSY, *AMD) == 37
    assert list(values(reading, metrics.INFO)) == [(*AMD, "amdgpu", "discrete", "")]
    assert not values(reading, metrics.ENERGY)
    assert not reading.meters


async def test_connectors_and_render_nodes_are_no_cards(machine: GpuMachine) -> None:
    """Connectors and render nodes are not cards."""
    machine.gpus.amd(0)
    machine.gpus.amd(1, SECOND)
    reading = await (await machine.open()).read()
    assert set(values(reading, metrics.ASLEEP)) == {AMD, ("card1", "amd", SECOND)}


async def test_two_nodes_of_one_card_are_one_card(machine: GpuMachine) -> None:
    """A GPU that two card numbers lead to is shown and metered once."""
    machine.gpus.amd(0)
    again = machine.gpus.sysfs / "class/drm/card1"
    again.mkdir()
    (again / "device").symlink_to(machine.gpus.file(DGPU, "vendor").parent)
    collector = await machine.open()
    await collector.read()
    reading = await machine.beat(collector)
    assert meters(reading) == {DGPU: 100}
    assert len(values(reading, metrics.ENERGY)) == 1


async def test_every_kind_at_once_gives_no_series_twice(machine: GpuMachine) -> None:
    """No series occurs twice, for any number and kind of GPUs."""
    machine.gpus.amd(0)
    machine.gpus.xe(1, SECOND)
    machine.gpus.i915(2, THIRD)
    machine.gpus.apu(3)
    machine.gpus.integrated_intel(4)
    machine.gpus.nvidia(5)
    collector = await machine.open()
    assert isinstance(collector, Refreshes)
    for reading in (await collector.read(), await machine.beat(collector), await collector.refresh()):
        series = [(sample.metric.name, sample.labels) for sample in reading.samples]
        assert len(series) == len(set(series))
        assert {sample.metric for sample in reading.samples} <= set(drm.METRICS)
        assert {labels[0] for labels in values(reading, metrics.ASLEEP)} == {
            "card0",
            "card1",
            "card2",
            "card3",
        }


@pytest.mark.parametrize("kind", ["nothing", "no class", "integrated Intel", "NVIDIA", "both"])
async def test_nothing_to_read(machine: GpuMachine, kind: str) -> None:
    """Without an AMD or a discrete Intel GPU the collector is absent, and says why."""
    if kind == "no class":
        (machine.gpus.sysfs / "class/drm/version").unlink()
        (machine.gpus.sysfs / "class/drm").rmdir()
    if kind in ("integrated Intel", "both"):
        machine.gpus.integrated_intel(0)
    if kind in ("NVIDIA", "both"):
        machine.gpus.nvidia(1)
    with pytest.raises(Absent, match="no AMD GPU and no discrete Intel GPU"):
        await machine.open()


async def test_intel_card_without_an_energy_sensor(machine: GpuMachine) -> None:
    """An Intel GPU whose hwmon has no energy counter has nothing to read."""
    machine.gpus.xe(0, card_wide=False)
    machine.gpus.file(DGPU, "energy2_input").unlink()
    collector = await machine.open()
    with pytest.raises(Absent):
        await collector.read()


async def test_the_last_card_goes_and_comes(machine: GpuMachine) -> None:
    """When the last card goes the collector is absent; when it returns its counter goes on."""
    machine.gpus.amd(0)
    collector = await machine.open()
    await collector.read()
    await machine.beat(collector)
    machine.gpus.remove(DGPU)
    for _ in range(3):
        with pytest.raises(Absent):
            await machine.beat(collector)
    machine.gpus.amd(0)
    assert meters(await machine.beat(collector)) == {DGPU: 100}
    assert meters(await machine.beat(collector)) == {DGPU: 200}


@pytest.mark.parametrize(("interval", "good"), [(1.0, True), (30.0, True), (31.0, False), (0.01, False)])
def test_interval_is_bounded(interval: float, *, good: bool) -> None:
    """An interval that could miss a wrap is refused when the configuration is read."""
    problems = list(drm.Options(interval=Seconds(interval)).problems())
    assert (not problems) is good


# -- the scan ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("end", ["device/vendor", "hwmon1/name"])
async def test_a_scan_that_fails_is_down_and_not_absent(machine: GpuMachine, end: str, code: int) -> None:
    """If a GPU cannot be examined the collector is down instead of absent, and no energy is lost."""
    machine.gpus.xe(0)
    collector = await machine.open()
    await collector.read()
    machine.reader.errors[end] = OSError(code, os.strerror(code))
    with pytest.raises(ReadFailed):
        await machine.beat(collector, drm.RESCAN_SECONDS)
    machine.reader.errors.clear()
    machine.gpus.set_joules(DGPU, 500)
    assert meters(await machine.beat(collector)) == {DGPU: 500}


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMFILE])
async def test_an_apu_stays_one(machine: GpuMachine, code: int) -> None:
    """An APU whose metrics cannot be read once stays out of the node's sum."""
    machine.gpus.amd(0)
    machine.gpus.apu(1, vddnb=False)
    collector = await machine.open()
    await collector.read()
    machine.reader.errors["card1/device/gpu_metrics"] = OSError(code, os.strerror(code))
    for _ in range(12):
        assert set(meters(await machine.beat(collector))) == {DGPU}


# -- energy ------------------------------------------------------------------------------------------


async def test_amd_energy_is_the_trapezoid_of_power(machine: GpuMachine) -> None:
    """AMD's joules are trapezoids between beats and refreshes; its power is the sensor's at the beat."""
    machine.gpus.amd(0, watts=100)
    collector = await machine.open()
    assert value(await collector.read(), metrics.ENERGY, *AMD) == 0
    machine.gpus.set_watts(DGPU, 200)
    assert value(await machine.beat(collector), metrics.ENERGY, *AMD) == 150
    machine.clock.advance(0.5)
    machine.gpus.set_watts(DGPU, 300)
    reading = await collector.refresh()
    assert value(reading, metrics.ENERGY, *AMD) == 275
    assert value(reading, metrics.POWER, *AMD) == 200
    assert value(reading, metrics.TEMPERATURE, *AMD) == 51
    reading = await machine.beat(collector, 0.5)
    assert value(reading, metrics.ENERGY, *AMD) == 425
    assert value(reading, metrics.POWER, *AMD) == 300


@pytest.mark.parametrize(("gap", "joules"), [(6.0, 600), (6.1, 0), (500.0, 0)])
async def test_amd_gap_is_not_integrated(machine: GpuMachine, gap: float, joules: float) -> None:
    """A gap of up to 3 intervals is bridged; a longer one adds nothing, and counting goes on."""
    machine.gpus.amd(0)
    collector = await machine.open(interval=2.0)
    await collector.read()
    assert meters(await machine.beat(collector, gap)) == {DGPU: pytest.approx(joules)}
    assert meters(await machine.beat(collector, 2.0)) == {DGPU: pytest.approx(joules + 200)}


async def test_intel_wrap(machine: GpuMachine) -> None:
    """When the 32-bit counter wraps, counting goes on without a reset."""
    machine.gpus.i915(0, joules=INTEL_RANGE_JOULES - 100)
    collector = await machine.open()
    await collector.read()
    machine.gpus.set_joules(DGPU, 150)
    reading = await machine.beat(collector)
    assert value(reading, metrics.ENERGY, *INTEL) == pytest.approx(250, abs=1e-5)
    assert value(reading, metrics.POWER, *INTEL) == pytest.approx(250, abs=1e-5)
    assert value(reading, metrics.RESETS, *INTEL) == 0


async def test_intel_reload(machine: GpuMachine) -> None:
    """A driver that is reloaded counts from 0, which adds nothing and counts as a reset."""
    machine.gpus.i915(0, joules=5000)
    collector = await machine.open()
    await collector.read()
    machine.gpus.set_joules(DGPU, 5080)
    await machine.beat(collector)
    machine.gpus.set_joules(DGPU, 3)
    reading = await machine.beat(collector)
    assert value(reading, metrics.ENERGY, *INTEL) == 80
    assert value(reading, metrics.RESETS, *INTEL) == 1
    machine.gpus.set_joules(DGPU, 53)
    assert value(await machine.beat(collector), metrics.ENERGY, *INTEL) == 130


async def test_a_refresh_does_not_shift_the_beat(machine: GpuMachine) -> None:
    """A refresh shows the present energy; power stays the mean from beat to beat."""
    machine.gpus.xe(0)
    collector = await machine.open()
    await collector.read()
    machine.gpus.set_joules(DGPU, 100)
    await machine.beat(collector)
    machine.clock.advance(0.25)
    machine.gpus.set_joules(DGPU, 190)
    reading = await collector.refresh()
    assert value(reading, metrics.ENERGY, *INTEL) == 190
    assert value(reading, metrics.POWER, *INTEL) == 100
    machine.gpus.set_joules(DGPU, 200)
    assert value(await machine.beat(collector, 0.75), metrics.POWER, *INTEL) == 100


async def test_a_refresh_before_the_first_beat_is_empty(machine: GpuMachine) -> None:
    """A refresh before the first beat is empty and does not fail."""
    machine.gpus.amd(0)
    assert (await (await machine.open()).refresh()).samples == []


# -- what is metered ---------------------------------------------------------------------------------


async def test_tiles_are_not_summed(machine: GpuMachine) -> None:
    """The energy of tiles is part of their card's, and is not counted again."""
    machine.gpus.i915(0)
    collector = await machine.open()
    await collector.read()
    for tile in machine.gpus.sysfs.glob("devices/*/*/hwmon/hwmon*/energy1_input"):
        tile.write_text("40000000\n")
    machine.gpus.set_joules(DGPU, 90)
    assert meters(await machine.beat(collector)) == {DGPU: 90}


@pytest.mark.parametrize(("card_wide", "joules"), [(True, 100), (False, 70)])
async def test_one_of_card_and_package(machine: GpuMachine, *, card_wide: bool, joules: float) -> None:
    """The card's energy is preferred to the package's, which is used if it is the only one."""
    machine.gpus.xe(0, card_wide=card_wide)
    collector = await machine.open()
    await collector.read()
    if card_wide:
        machine.gpus.set_joules(DGPU, 100)
    machine.gpus.set(DGPU, energy2_input=70_000_000)
    assert meters(await machine.beat(collector)) == {DGPU: joules}


APUS: dict[str, Callable[[GpuMachine], None]] = {
    "label and metrics": lambda machine: machine.gpus.apu(1),
    "label alone": lambda machine: machine.gpus.apu(1, metrics=None),
    "metrics 2": lambda machine: machine.gpus.apu(1, vddnb=False),
    "metrics 3": lambda machine: machine.gpus.apu(1, vddnb=False, metrics=3),
    "MI300A": lambda machine: machine.gpus.mi300a(1),
}


@pytest.mark.parametrize("kind", APUS)
async def test_the_node_has_the_card_once_and_the_apu_not(machine: GpuMachine, kind: str) -> None:
    """An APU is shown but not metered, since its power includes the CPU; a discrete card is metered once."""
    machine.gpus.amd(0)
    APUS[kind](machine)
    collector, node = await machine.open(), Node()
    add_up(node, [await collector.read()])
    for _ in range(5):
        reading = await machine.beat(collector)
        total = add_up(node, [reading])
    assert value(reading, metrics.ENERGY, "card1", "amd", APU) > 0
    assert list(values(reading, metrics.INFO)) == [
        (*AMD, "amdgpu", "discrete", "integrated"),
        ("card1", "amd", APU, "amdgpu", "integrated", "integrated"),
    ]
    assert meters(reading) == {DGPU: 500}
    assert values(total, NODE_ENERGY) == {("gpu", "drm"): 500}
    assert values(total, NODE_POWER) == {("gpu", "drm"): 100}


async def test_uses_are_of_metered_gpus(machine: GpuMachine) -> None:
    """Uses carry the names of their GPU's meter, at beats and refreshes; an APU has none."""
    machine.gpus.amd(0)
    machine.gpus.xe(1, SECOND)
    machine.gpus.apu(2)
    machine.clients.open(42, 5, engines_fdinfo(DGPU, 7, enc=3.0))
    machine.clients.open(43, 5, cycles_fdinfo(SECOND, 7, vcs=(100, 1000)))
    machine.clients.open(44, 5, engines_fdinfo(APU, 9, gfx=1.0))
    collector = await machine.open()
    await collector.read()
    machine.clients.open(42, 5, engines_fdinfo(DGPU, 7, enc=3.75))
    machine.clients.open(43, 5, cycles_fdinfo(SECOND, 7, vcs=(350, 2000)))
    machine.clients.open(44, 5, engines_fdinfo(APU, 9, gfx=2.0))
    for reading in (await machine.beat(collector), await collector.refresh()):
        assert {use for use in reading.uses if use.pid != ANYONE} == {
            Use("gpu", "drm", DGPU, "enc", 42, 0.75),
            Use("gpu", "drm", SECOND, "vcs", 43, 0.25),
        }


async def test_nothing_but_sysfs_and_procfs_is_opened(machine: GpuMachine) -> None:
    """A beat over four cards reads only sysfs and procfs, and leaves no descriptor open."""
    for card, bus_id in enumerate((DGPU, SECOND)):
        machine.gpus.amd(card, bus_id)
    machine.gpus.xe(2, THIRD)
    machine.gpus.apu(3)
    machine.clients.open(42, 5, engines_fdinfo(DGPU, 7, enc=3.0))
    collector = await machine.open()
    before = open_paths()
    for _ in range(12):
        await machine.beat(collector)
    roots = (machine.host.sysfs, machine.host.procfs)
    assert len(machine.reader.asked) > 12 * 4
    assert all(any(map(path.is_relative_to, roots)) for path in machine.reader.asked)
    assert not [path for path in open_paths() - before if path.is_relative_to(roots[0].parent)]
    assert not any(str(path).startswith("/dev/dri") for path in open_paths())


async def test_a_longer_interval_is_bridged_after_a_reload(machine: GpuMachine) -> None:
    """Power is still integrated after a reload with a longer interval."""
    machine.gpus.amd(0, watts=100)
    collector = await machine.open()
    await collector.read()
    assert isinstance(collector, Reconfigures)
    collector.configure(drm.Options(interval=Seconds(10)))
    for beats in range(1, 4):
        reading = await machine.beat(collector, 10.0)
        assert value(reading, metrics.ENERGY, *AMD) == 1000 * beats


async def test_how_busy_a_gpu_was_is_told_of_anyone(machine: GpuMachine) -> None:
    """The busier engine's time is given for all processes together; without engines there is none."""
    machine.gpus.amd(0, watts=100)
    collector = await machine.open()
    await collector.read()
    reading = await machine.beat(collector, 2.0)
    busy = max(values(reading, metrics.BUSY)[AMD], values(reading, metrics.ENCODER_BUSY)[AMD])
    assert [(u.pid, u.seconds) for u in reading.uses] == [(ANYONE, pytest.approx(busy / 100 * 2))]
